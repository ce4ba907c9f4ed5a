//! Running a command: arguments, environment, streams, exit codes.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;

use crate::harness::{Host, Output, Running, Shared};

static DAEMON: Shared = Shared::new();

#[test]
fn streams_stay_apart_and_the_exit_code_is_the_jobs() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let run = daemon.job(["sh", "-c", "echo out; echo err >&2; exit 7"]);
    run.assert_code(7);
    assert_eq!(run.text(), "out\n");
    assert_eq!(run.stderr, "err\n");
}

#[test]
fn a_job_that_a_signal_ended_gives_128_and_its_number() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("SEGV", 139), ("USR1", 138)] {
        daemon
            .job(["sh", "-c", &format!("kill -{signal} $$")])
            .assert_code(code);
    }
}

#[test]
fn abort_is_reported_as_sigabrt() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(&[], &["perl", "-e", "use POSIX; POSIX::abort()"]);
    let status = daemon.ended(&id);
    assert_eq!(status["status"], "FAILED", "{status}");
    assert_eq!(status["outcome"]["reason"], "signaled", "{status}");
    assert_eq!(status["outcome"]["signal"], 6, "{status}");
    daemon.rnx(["job", "wait", &id]).assert_code(134);
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_cannot_run_is_126() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    for missing in [
        "no-such-command",
        "/usr/bin/no-such-command",
        "/etc/passwd/x",
    ] {
        let run = daemon.job([missing]);
        run.assert_code(127);
        assert!(run.stderr.contains("error:"), "{run:?}");
    }
    for refused in ["/etc/passwd", "/usr", "/proc/self/status"] {
        let run = daemon.job([refused]);
        run.assert_code(126);
        assert!(run.stderr.contains("error:"), "{run:?}");
    }
}

#[test]
fn yes_into_head_dies_of_sigpipe_as_in_a_shell() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let run = daemon.job(["bash", "-c", "yes | head -1; echo ${PIPESTATUS[0]}"]);
    run.assert_code(0);
    assert_eq!(run.text(), "y\n141\n");
}

#[test]
fn dev_stdout_and_dev_stderr_can_be_opened_for_writing_only() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let run = daemon.job([
        "sh",
        "-c",
        "echo x > /dev/stderr; echo y > /dev/stdout; echo z | tee /dev/stderr",
    ]);
    run.assert_code(0);
    assert_eq!(run.text(), "y\nz\n");
    assert_eq!(run.stderr, "x\nz\n");
    let read = daemon.job(["sh", "-c", "head -c 1 < /dev/stdout"]);
    assert_ne!(read.code, 0, "the read end would steal output: {read:?}");
}

#[test]
fn standard_input_is_empty() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    assert_eq!(
        daemon.sh("wc -c; readlink /proc/self/fd/0"),
        "0\n/dev/null\n"
    );
}

#[test]
fn arguments_travel_byte_for_byte() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let args: Vec<OsString> = [
        &b""[..],
        b"a b",
        b"line\nbreak\n",
        b"--json",
        b"--",
        b"'\"`$(x)\\",
        b"\xff\xfe\x80",
        "ä€😀".as_bytes(),
        b"",
        b"\t\r\x1b[31m",
        b"-d",
        b"--config=x",
    ]
    .iter()
    .map(|raw| OsStr::from_bytes(raw).to_owned())
    .collect();
    let script = ["sh", "-c", r#"for a; do printf '%s\0' "$a"; done"#, "sh"];
    let command = script
        .iter()
        .map(OsString::from)
        .chain(args.iter().cloned());
    let run = daemon.job(command);
    run.assert_code(0);
    let expected: Vec<u8> = args
        .iter()
        .flat_map(|arg| [arg.as_bytes(), b"\0"].concat())
        .collect();
    assert_eq!(run.stdout, expected);
}

#[test]
fn words_after_the_command_belong_to_it_without_a_separator() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let run = daemon.rnx([
        "job",
        "run",
        "echo",
        "--json",
        "-d",
        "--timeout=1s",
        "--",
        "x",
    ]);
    run.assert_code(0);
    assert_eq!(run.text(), "--json -d --timeout=1s -- x\n");
}

#[test]
fn variables_reach_the_job_and_secrets_stay_secret() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let flags = [
        "--env",
        "JOB_NAME=mine",
        "-e",
        "TEXT=a=b c\nd",
        "--secret-env=TOKEN=hunter2",
        "--env=EMPTY=",
    ];
    let script = r#"printf '%s|' "$JOB_NAME" "$TEXT" "${EMPTY-unset}"; test "$TOKEN" = hunter2 && echo token"#;
    let run = daemon
        .client()
        .args(["job", "run"])
        .args(flags)
        .args(["--", "sh", "-c", script])
        .run();
    run.assert_code(0);
    assert_eq!(run.text(), "mine|a=b c\nd||token\n");

    let id = daemon.submit(&flags, &["true"]);
    daemon.ended(&id);
    for shown in [
        daemon.rnx(["job", "status", &id]),
        daemon.rnx(["job", "status", "--json", &id]),
    ] {
        assert!(!shown.text().contains("hunter2"), "{shown:?}");
        assert!(
            shown.text().contains("***") && shown.text().contains("TOKEN"),
            "{shown:?}"
        );
    }
}

#[test]
fn an_environment_file_is_read_line_by_line() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "# a comment\n\nONE=1\nTWO=x=y\n").unwrap();
    let run = daemon
        .client()
        .args(["job", "run", "--env-file"])
        .arg(file.path());
    let run = run
        .args(["--env", "ONE=2", "--", "sh", "-c", "echo $ONE $TWO"])
        .run();
    run.assert_code(0);
    assert_eq!(run.text(), "2 x=y\n");
}

#[test]
fn a_variable_with_a_bad_name_is_refused() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    for bad in ["1X=a", "A-B=c", "=x"] {
        let run = daemon.rnx(["job", "run", "--env", bad, "true"]);
        assert!(matches!(run.code, 2 | 125), "{bad}: {run:?}");
        assert!(run.stderr.contains("error:"), "{run:?}");
    }
}

#[test]
fn the_working_directory_is_work_or_what_was_asked() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    assert_eq!(daemon.sh("pwd; echo $PWD"), "/work\n/work\n");
    let run = daemon.rnx([
        "job",
        "run",
        "--workdir",
        "/usr/bin",
        "sh",
        "-c",
        "pwd; echo $PWD",
    ]);
    run.assert_code(0);
    assert_eq!(run.text(), "/usr/bin\n/usr/bin\n");
    let run = daemon.rnx(["job", "run", "--workdir", "/no/such/place", "true"]);
    run.assert_code(125);
    assert!(run.stderr.contains("error:"), "{run:?}");
}

#[test]
fn the_user_is_1000_or_what_was_asked() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let ids = |flags: &[&str]| {
        let run = daemon
            .client()
            .args(["job", "run"])
            .args(flags)
            .args(["--", "sh", "-c", "id -u; id -g; id -G"])
            .run();
        run.assert_code(0);
        run.text()
    };
    assert_eq!(ids(&[]), "1000\n1000\n1000\n");
    assert_eq!(ids(&["--user", "0"]), "0\n0\n0\n");
    assert_eq!(ids(&["--user=2000:3000"]), "2000\n3000\n3000\n");
    assert_eq!(ids(&["--user", "65534"]), "65534\n65534\n65534\n");
    for bad in ["65536", "-1", "nobody-here", "4294967295"] {
        let run = daemon.rnx(["job", "run", &format!("--user={bad}"), "true"]);
        assert!(matches!(run.code, 2 | 125), "{bad}: {run:?}");
        assert!(run.stderr.contains("error:"), "{bad}: {run:?}");
    }
}

#[test]
fn a_timeout_ends_the_job_with_124() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    daemon
        .rnx(["job", "run", "--timeout", "1s", "sleep", "600"])
        .assert_code(124);
    let stubborn = "trap '' TERM; while :; do sleep 1; done";
    let id = daemon.submit(&["--timeout=1s", "--grace=1s"], &["sh", "-c", stubborn]);
    let status = daemon.ended(&id);
    assert_eq!(status["status"], "TIMEOUT", "{status}");
    assert_eq!(status["outcome"]["reason"], "timeout", "{status}");
    daemon.rnx(["job", "wait", &id]).assert_code(124);
    daemon
        .rnx(["job", "run", "--timeout", "600s", "true"])
        .assert_code(0);
}

#[test]
fn detached_prints_id_command_and_status() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let run = daemon.rnx(["job", "run", "-d", "sh", "-c", "exit 3"]);
    run.assert_code(0);
    let text = run.text();
    for line in ["ID:", "Command:", "Status:"] {
        assert!(
            text.lines().any(|l| l.starts_with(line)),
            "no {line} in {run:?}"
        );
    }
    let id = text
        .lines()
        .find_map(|l| l.strip_prefix("ID:"))
        .unwrap()
        .trim()
        .to_owned();
    daemon.rnx(["job", "wait", &id]).assert_code(3);
}

#[test]
fn json_is_one_object_with_the_id_at_once() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let run = daemon.rnx(["job", "run", "--json", "sleep", "1"]);
    run.assert_code(0);
    let job = run.json();
    let id = job["id"].as_str().unwrap();
    assert_eq!(id.len(), 36, "{job}");
    assert!(
        job["uuid"] == job["id"] && job["job_uuid"] == job["id"],
        "{job}"
    );
    daemon.rnx(["job", "wait", id]).assert_code(0);
    let status = daemon.status(id);
    assert_eq!(status["status"], "COMPLETED", "{status}");
    assert_eq!(status["outcome"]["exit_code"], 0, "{status}");
    assert!(
        status["outcome"]["start_micros"]
            .as_u64()
            .is_some_and(|us| us > 0),
        "{status}"
    );
}

#[test]
fn json_with_wait_is_printed_with_the_outcome() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let run = daemon.rnx(["job", "run", "--json", "--wait", "sh", "-c", "exit 9"]);
    let job = run.json();
    assert_eq!(job["status"], "FAILED", "{job}");
    assert_eq!(job["outcome"]["exit_code"], 9, "{job}");
}

#[test]
fn names_and_labels_are_kept_and_listed() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(
        &["--name", "a name", "--label", "team=red", "--label=x="],
        &["true"],
    );
    let status = daemon.ended(&id);
    assert_eq!(status["name"], "a name", "{status}");
    assert_eq!(status["labels"]["team"], "red", "{status}");
    assert_eq!(status["labels"]["x"], "", "{status}");
    let list = daemon.rnx(["job", "list", "--json"]).json();
    let found = list
        .as_array()
        .unwrap()
        .iter()
        .find(|job| job["id"] == id.as_str())
        .unwrap();
    assert_eq!(found["name"], "a name", "{found}");
    assert!(daemon.rnx(["job", "list"]).text().contains("a name"));
}

#[test]
fn a_unique_beginning_of_an_id_is_enough() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(&[], &["true"]);
    daemon.ended(&id);
    assert_eq!(daemon.status(&id[..18])["id"], id.as_str());
    assert_eq!(daemon.status(&id.to_uppercase())["id"], id.as_str());
    let short = daemon.rnx(["job", "status", &id[..3]]);
    assert!(
        short.code == 1 || short.code == 2 || short.code == 3,
        "{short:?}"
    );
    daemon
        .rnx(["job", "status", "00000000-0000-4000-8000-000000000000"])
        .assert_refused(3, "not found");
}

#[test]
fn a_closed_pipe_is_success() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(&[], &["seq", "300000"]);
    daemon.ended(&id);
    let (running, stdout) = Running::streaming(&daemon.client().args(["job", "log", &id]));
    let mut first = String::new();
    BufReader::new(stdout).read_line(&mut first).unwrap();
    assert_eq!(first, "1\n");
    let log = running.finish();
    log.assert_code(0);
    assert_eq!(log.stderr, "");
}

#[test]
fn a_job_may_use_every_processor_that_is_not_kept_for_the_daemon() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let here = std::thread::available_parallelism().unwrap().get();
    // Unless configured, one core is kept where there are four or more.
    let expected = here - usize::from(here >= 4);
    assert_eq!(daemon.sh("nproc").trim(), expected.to_string());
}

#[test]
fn what_is_not_there_yet_is_refused_and_never_ignored() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let flags = [
        "--volume=data",
        "--network=bridge",
        "--runtime=x",
        "--gpu=1",
        "--gpu-memory=1",
    ];
    for flag in flags {
        let run: Output = daemon.rnx(["job", "run", flag, "echo", "ran"]);
        assert!(matches!(run.code, 2 | 125), "{flag}: {run:?}");
        assert!(run.stdout.is_empty(), "{flag}: {run:?}");
        assert!(run.stderr.contains("error:"), "{flag}: {run:?}");
    }
}

#[test]
fn wrong_usage_is_2() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    for args in [
        &["job", "run"][..],
        &["job", "run", "--no-such-flag", "true"],
        &["no-such-verb"],
        &["job", "stop"],
    ] {
        daemon.rnx(args).assert_code(2);
    }
}

#[test]
fn nodes_and_version_name_the_server() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let nodes = daemon.rnx(["nodes"]);
    nodes.assert_code(0);
    assert!(
        nodes.text().contains(&daemon.address.port().to_string()),
        "{nodes:?}"
    );
    let version = daemon.rnx(["version"]);
    version.assert_code(0);
    assert!(
        version.text().matches(env!("CARGO_PKG_VERSION")).count() >= 2,
        "client and server: {version:?}"
    );
}
