//! Command lines: what is understood and what is refused.

use std::os::unix::ffi::OsStringExt;

use clap::CommandFactory;
use proptest::prelude::*;

use super::*;

fn parse(words: &[&str]) -> Result<Flags, clap::Error> {
    Flags::try_parse_from(std::iter::once(&"rnx").chain(words))
}

fn run(words: &[&str]) -> (Global, RunFlags) {
    let flags = parse(&[&["job", "run"], words].concat())
        .unwrap_or_else(|error| panic!("{words:?}: {error}"));
    match flags.verb {
        Some(Verb::Job(JobVerb::Run(run))) => (flags.global, *run),
        other => panic!("{words:?}: {other:?}"),
    }
}

#[test]
fn the_definition_is_consistent() {
    Flags::command().debug_assert();
}

#[test]
fn the_first_word_that_is_no_flag_starts_the_command() {
    let check =
        |words: &[&str], command: &[&str]| assert_eq!(run(words).1.command, command, "{words:?}");
    check(&["ls"], &["ls"]);
    check(&["ls", "-la", "--json"], &["ls", "-la", "--json"]);
    check(
        &["ls", "--volume=x", "-d", "-V", "--help", "-h"],
        &["ls", "--volume=x", "-d", "-V", "--help", "-h"],
    );
    check(&["--", "ls", "-l"], &["ls", "-l"]);
    check(&["--", "--", "x"], &["--", "x"]);
    check(&["--", "--odd-command"], &["--odd-command"]);
    check(
        &["git", "checkout", "--", "file"],
        &["git", "checkout", "--", "file"],
    );
    check(&["run", "run"], &["run", "run"]);
    check(&["help"], &["help"]);
    check(
        &["printf", "", "a\nb", "\"q\""],
        &["printf", "", "a\nb", "\"q\""],
    );
    check(
        &["--name", "x", "sh", "-c", "exit 7"],
        &["sh", "-c", "exit 7"],
    );
    check(&["-", "x"], &["-", "x"]);
}

#[test]
fn what_follows_the_command_changes_nothing_of_ours() {
    let (global, flags) = run(&[
        "cmd",
        "--json",
        "--local",
        "--config=x",
        "--node",
        "n",
        "-d",
        "--name",
        "n",
        "-V",
    ]);
    assert!(
        !global.json
            && !global.local
            && !global.version
            && global.config.is_none()
            && global.node.is_none()
    );
    assert!(!flags.detach && flags.name.is_none());
}

#[test]
fn arguments_that_are_not_text_are_kept() {
    let odd = OsString::from_vec(vec![b'a', 0xff, b'\n', 0xfe]);
    let words = ["rnx", "job", "run", "cmd"]
        .map(OsString::from)
        .into_iter()
        .chain([odd.clone()]);
    let Some(Verb::Job(JobVerb::Run(run))) = Flags::try_parse_from(words).unwrap().verb else {
        panic!("not a run")
    };
    assert_eq!(run.command[1], odd);
}

#[test]
fn values_follow_a_space_or_an_equals_sign() {
    for words in [
        &[
            "--name=n",
            "--timeout=45s",
            "--work-size=1GB",
            "--user=5:6",
            "--label=a=b",
            "--env=A=1",
            "--upload=p:q",
            "c",
        ][..],
        &[
            "--name",
            "n",
            "--timeout",
            "45s",
            "--work-size",
            "1GB",
            "--user",
            "5:6",
            "--label",
            "a=b",
            "--env",
            "A=1",
            "--upload",
            "p:q",
            "c",
        ],
        &[
            "--name",
            "n",
            "--timeout",
            "45s",
            "--work-size",
            "1GB",
            "--user",
            "5:6",
            "--label",
            "a=b",
            "-e",
            "A=1",
            "--upload-dir",
            "p:q",
            "c",
        ],
    ] {
        let flags = run(words).1;
        assert_eq!(flags.name.as_deref(), Some("n"));
        assert_eq!(
            (flags.timeout, flags.work_size, flags.user),
            (Some(45_000), Some(1 << 30), Some((5, 6)))
        );
        assert_eq!(flags.label, [("a".to_owned(), "b".to_owned())]);
        assert_eq!(
            (&flags.env[0], &flags.upload[0]),
            (&"A=1".into(), &"p:q".into())
        );
    }
    assert_eq!(run(&["--user", "0", "c"]).1.user, Some((0, 0)));
    assert_eq!(
        run(&["-e", "A=1", "-e", "B=2", "-s", "C=3", "c"])
            .1
            .env
            .len(),
        2
    );
    assert_eq!(run(&["--env=A=--x", "c"]).1.env, ["A=--x"]);
}

#[test]
fn limits_follow_a_space_or_an_equals_sign() {
    for words in [
        &[
            "--max-cpu=800",
            "--max-memory=16384",
            "--max-iobps=10MB",
            "--max-pids=0",
            "--cpu-cores=0-1,4",
            "c",
        ][..],
        &[
            "--max-cpu",
            "800",
            "--max-memory",
            "16G",
            "--max-iobps",
            "10485760",
            "--max-pids",
            "0",
            "--cpu-cores",
            "0-1,4",
            "c",
        ],
    ] {
        let flags = run(words).1;
        assert_eq!(
            (
                flags.max_cpu,
                flags.max_memory,
                flags.max_iobps,
                flags.max_pids
            ),
            (Some(800), Some(16 << 30), Some(10 << 20), Some(0))
        );
        assert_eq!(flags.cpu_cores, Some(Cores(vec![(0, 1), (4, 4)])));
    }
    let none = run(&["c", "--max-cpu=1"]).1;
    assert_eq!(
        (none.max_cpu, none.max_memory, none.cpu_cores),
        (None, None, None)
    );
}

#[test]
fn global_flags_stand_anywhere_before_a_command() {
    for words in [
        &["--json", "job", "list"][..],
        &["job", "--json", "list"],
        &["job", "list", "--json"],
    ] {
        assert!(parse(words).unwrap().global.json, "{words:?}");
    }
    assert!(run(&["--json", "-d", "c"]).0.json);
    assert_eq!(
        parse(&["nodes", "--config=f"]).unwrap().global.config,
        Some("f".into())
    );
    assert!(
        parse(&["-V"]).unwrap().global.version && parse(&["--version"]).unwrap().global.version
    );
}

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    for words in [
        &["job", "run"][..],
        &["job", "run", "-d"],
        &["job", "run", "--"],
        &["job", "run", "--max-cpux", "1", "ls"],
        &["job", "run", "--user", "root", "ls"],
        &["job", "run", "--user", "1:2:3", "ls"],
        &["job", "run", "--user", "-1", "ls"],
        &["job", "run", "--timeout", "30", "ls"],
        &["job", "run", "--work-size", "big", "ls"],
        &["job", "run", "--label", "novalue", "ls"],
        &["job", "run", "--label", "=v", "ls"],
        &["job", "run", "-d", "--wait", "ls"],
        &["job", "run", "--max-cpu=10001", "ls"],
        &["job", "run", "--max-cpu=-1", "ls"],
        &["job", "run", "--max-cpu", "-1", "ls"],
        &["job", "run", "--max-memory=5X", "ls"],
        &["job", "run", "--max-memory=", "ls"],
        &["job", "run", "--max-iobps=fast", "ls"],
        &["job", "run", "--max-pids=18446744073709551616", "ls"],
        &["job", "run", "--cpu-cores=3-1", "ls"],
        &["job", "run", "--cpu-cores=", "ls"],
        &["job", "run", "--cpu-cores", "--", "ls"],
        &["job", "list", "--status", "NONE"],
        &["job", "status"],
        &["job", "stop"],
        &["job", "wait"],
        &["job", "cp", "1234:/work/x"],
        &["job", "metrics"],
        &["job", "metrics", "1234", "--interval=1s"],
        &["job", "metrics", "1234", "--follow", "--interval=99ms"],
        &["job", "metrics", "1234", "--follow", "--interval=3601s"],
        &["job", "metrics", "1234", "--follow", "--interval=1"],
        &["job", "frobnicate"],
        &["doctor", "1234"],
        &["frobnicate"],
        &["--local", "--node", "x", "job", "list"],
        &["completions", "tcsh9"],
    ] {
        let error = parse(words).expect_err(&words.join(" "));
        assert!(error.use_stderr() && error.exit_code() == 2, "{words:?}");
    }
}

#[test]
fn flags_of_later_versions_are_recognised_by_name() {
    for flag in ["network", "runtime", "gpu", "gpu-memory"] {
        let flag = format!("--{flag}");
        assert_eq!(
            run(&[&format!("{flag}=1"), "ls"]).1.later.given(),
            Some(flag.clone())
        );
        let (_, flags) = run(&[&flag, "1", "ls", "-x"]);
        assert_eq!(
            (flags.later.given(), flags.command),
            (Some(flag), vec!["ls".into(), "-x".into()])
        );
    }
    assert_eq!(run(&["ls", "--network=x"]).1.later.given(), None);
}

#[test]
fn commands_of_later_versions_take_anything() {
    for verb in ["network", "runtime", "node", "monitor"] {
        assert!(
            parse(&[verb, "create", "x", "--size=1GB", "--help"]).is_ok(),
            "{verb}"
        );
        assert!(parse(&[verb]).is_ok(), "{verb}");
    }
}

#[test]
fn volumes_are_given_one_by_one() {
    let words = [
        "--volume=input",
        "--volume",
        "output:ro",
        "ls",
        "--volume=x",
    ];
    let flags = run(&words).1;
    let found: Vec<_> = flags
        .volume
        .iter()
        .map(|attached| (attached.volume.as_str(), attached.is_read_only))
        .collect();
    assert_eq!(found, [("input", false), ("output", true)]);
    assert_eq!(flags.command, ["ls", "--volume=x"]);
    for words in [
        &["job", "run", "--volume=data:x", "ls"][..],
        &["volume", "create", "data"],
        &["volume", "create", "--size=1GB"],
        &["volume", "create", "data", "--size=1GB", "--type=disk"],
        &["volume", "remove"],
        &["volume", "cp", "a"],
        &["volume"],
    ] {
        assert!(parse(words).is_err(), "{words:?}");
    }
}

#[test]
fn what_runs_later_is_read_in_both_forms() {
    let cron = Schedule::Cron {
        expression: "0 9 * * 1".into(),
        zone: jiff::tz::TimeZone::system()
            .iana_name()
            .unwrap_or("UTC")
            .into(),
    };
    for (text, expected) in [
        ("168h", Schedule::After { ms: 604_800_000 }),
        ("every 1d", Schedule::Every { ms: 86_400_000 }),
        ("2200-01-01T00:00:00Z", Schedule::At { ns: i64::MAX }),
        ("0 9 * * 1", cron),
    ] {
        let glued = run(&[&format!("--schedule={text}"), "c"]).1.schedule;
        let apart = run(&["--schedule", text, "c"]).1.schedule;
        assert_eq!(glued, apart, "{text}");
        if expected != (Schedule::At { ns: i64::MAX }) {
            assert_eq!(glued, Some(expected), "{text}");
        }
    }
    for priority in ["-100", "0", "100"] {
        let expected = priority.parse().ok();
        let glued = run(&[&format!("--priority={priority}"), "c"]).1.priority;
        let apart = run(&["--priority", priority, "c"]).1.priority;
        assert_eq!((glued, apart), (expected, expected));
    }
    for words in [
        &["--idempotency-key=a b", "c"][..],
        &["--idempotency-key", "a b", "c"],
    ] {
        assert_eq!(run(words).1.idempotency_key.as_deref(), Some("a b"));
    }
    let command = run(&["c", "--schedule=1h", "--priority=1"]).1;
    assert_eq!((command.schedule, command.priority), (None, None));
    for words in [
        &["--schedule=soon", "c"][..],
        &["--schedule=2001-01-01T00:00:00Z", "c"],
        &["--schedule", "--", "c"],
        &["--priority=101", "c"],
        &["--priority=-101", "c"],
        &["--priority=high", "c"],
    ] {
        let words = [&["job", "run"], words].concat();
        assert!(parse(&words).is_err(), "{words:?}");
    }
}

#[test]
fn jobs_to_cancel_delete_or_remove_are_named() {
    for verb in [
        &["job", "cancel"][..],
        &["job", "delete"],
        &["schedule", "remove"],
    ] {
        assert!(parse(verb).is_err(), "{verb:?}");
        let named = [verb, &["1234", "5678"]].concat();
        let ids = match parse(&named).unwrap().verb {
            Some(Verb::Job(JobVerb::Cancel(jobs) | JobVerb::Delete(jobs)))
            | Some(Verb::Schedule(ScheduleVerb::Remove(jobs))) => jobs.ids,
            other => panic!("{other:?}"),
        };
        assert_eq!(ids, ["1234", "5678"]);
    }
    assert!(parse(&["job", "delete-all"]).is_ok());
    assert!(parse(&["job", "delete-all", "1234"]).is_err());
    for words in [&["--limit=7"][..], &["--limit", "7"]] {
        let words = [&["schedule", "list"], words].concat();
        let Some(Verb::Schedule(ScheduleVerb::List(list))) = parse(&words).unwrap().verb else {
            panic!("not a list")
        };
        assert_eq!(list.limit, Some(7));
    }
}

#[test]
fn states_are_typed_in_any_case() {
    for word in ["RUNNING", "running", "Running"] {
        let Some(Verb::Job(JobVerb::List(list))) =
            parse(&["job", "list", "--status", word]).unwrap().verb
        else {
            panic!("not a list")
        };
        assert_eq!(list.status, Some(StateName::Running));
    }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[test]
fn a_run_is_read_by_itself_also_after_global_flags() {
    for line in [
        &["rnx", "job", "run", "-d", "ls", "-l"][..],
        &["rnx", "--local", "--json", "job", "run", "ls"],
    ] {
        let read = Flags::read(&words(line)).unwrap();
        assert!(
            matches!(read.verb, Some(Verb::Job(JobVerb::Run(_)))),
            "{line:?}"
        );
        assert_eq!(read.global.local, line.contains(&"--local"));
    }
    assert!(Flags::read(&[]).is_ok_and(|flags| flags.verb.is_none()));
    let help = Flags::read(&words(&["rnx", "job", "run", "--help"])).unwrap_err();
    assert!(help.to_string().contains("Usage: rnx job run"), "{help}");
    let wrong = Flags::read(&words(&["rnx", "job", "run", "--tiemout", "1s", "ls"])).unwrap_err();
    assert!(wrong.to_string().contains("--timeout"), "{wrong}");
}

proptest! {
    #[test]
    fn reading_a_run_by_itself_makes_no_difference(line in proptest::collection::vec(prop_oneof![
        Just("job"), Just("run"), Just("--local"), Just("--json"), Just("-d"), Just("--wait"), Just("--name"), Just("n"),
        Just("--name=n"), Just("--"), Just("ls"), Just("-x"), Just("-V"), Just("--help"), Just("-e"), Just("A=1"),
        Just("--volume"), Just("--config"), Just("--user=1"), Just(""),
    ], 0..8), is_run in any::<bool>()) {
        let start: &[&str] = if is_run { &["rnx", "job", "run"] } else { &["rnx"] };
        let line = words(&[start, &line[..]].concat());
        let run = |flags: Flags| match flags.verb {
            Some(Verb::Job(JobVerb::Run(run))) => Ok((flags.global, *run)),
            other => Err(format!("{:?} {other:?}", flags.global)),
        };
        let read = Flags::read(&line).map(run).map_err(|error| error.to_string());
        let whole = Flags::try_parse_from(&line).map(run).map_err(|error| error.to_string());
        prop_assert_eq!(read, whole);
    }
}
