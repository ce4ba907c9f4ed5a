//! A submit that is repeated when what it named is gone.

use super::start;

#[test]
fn a_submit_that_is_repeated_after_its_volume_went_is_told_of_its_job() {
    let Some(daemon) = start() else { return };
    daemon.create("data", "10MB");
    let run = |key: &str, command: &str| {
        let key = format!("--idempotency-key={key}");
        let args = ["job", "run", "--json", &key, "--volume=data", "--", command];
        daemon.rnx(args)
    };
    let first = run("once", "true").json();
    let id = first["id"].as_str().unwrap();
    assert_eq!(daemon.ended(id)["status"], "COMPLETED");
    daemon.remove("data").assert_code(0);
    for round in 0..2 {
        let again = run("once", "true");
        assert!(
            again.stderr.contains("was submitted before"),
            "{round}: {again:?}"
        );
        assert_eq!(again.json()["id"], id, "{round}: {again:?}");
        daemon.kill();
        daemon.serve();
    }
    // Another request with that key, and the same one with another key, are what they were.
    run("once", "false").assert_code(5);
    run("twice", "true").assert_code(3);
    let list = daemon.rnx(["job", "list", "--json"]).json();
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
}
