//! Any job that can be written reads back as it was, but for its secrets.

use proptest::prelude::*;

use super::{super::record::tests::*, *};
use crate::job::{Caveat, EnvEntry, LimitKind, Reason, Transition, Usage};

fn parse(line: &[u8]) -> Record {
    let (newline, line) = line.split_last().unwrap();
    assert_eq!(*newline, b'\n');
    assert!(!line.contains(&b'\n'), "a record is one line");
    Record::parse(line).unwrap()
}

proptest! {
    #[test]
    fn a_job_reads_back_from_its_two_lines(job in ended_job()) {
        let Record::Accepted(accepted) = parse(&encode_accepted(&job)) else { panic!("another record") };
        let mut found = accepted.into_view().unwrap();
        prop_assert_eq!(found.outcome.clone(), None);
        let Record::Ended(ended) = parse(&encode_ended(&job)) else { panic!("another record") };
        prop_assert_eq!(ended.id(), Some(job.id));
        ended.apply(&mut found);
        prop_assert_eq!(found, without_secrets(job));
    }
}

/// A job whose lines are written out below.
fn example() -> JobView {
    let entry = |name: &str, value: &[u8], is_secret| EnvEntry {
        name: name.into(),
        value: value.into(),
        is_secret,
    };
    JobView {
        id: JobId::parse("01234567-89ab-4def-8123-456789abcdef").unwrap(),
        owner: "ann".into(),
        state: State::Stopped,
        spec: Arc::new(Spec {
            name: Some("nightly".into()),
            labels: vec![("team".into(), "a".into())],
            argv: vec![b"echo".to_vec(), vec![0xff, b'a']],
            env: vec![entry("A", b"1", false), entry("TOKEN", b"hunter2", true)],
            workdir: b"/work".to_vec(),
            user: User {
                uid: 1000,
                gid: 1000,
            },
            work_bytes: 64 << 20,
            limits: Limits {
                cpu_percent: Some(50),
                memory_bytes: None,
                io_bytes_per_second: Some(1 << 20),
                pids: Some(4_096),
                cores: Some(vec![0, 2]),
            },
            timeout: Some(Duration::from_secs(1)),
            grace: Duration::from_secs(10),
            uploads: None,
        }),
        work: WorkKind::Memory,
        caveats: vec![Caveat {
            limit: LimitKind::Io,
            is_partly: true,
            note: "direct only".into(),
        }],
        transitions: vec![Transition {
            state: State::Stopped,
            wall_ns: 5,
            mono_ns: 7,
        }],
        outcome: Some(Outcome {
            reason: Reason::Stopped { by: "bob".into() },
            exit_code: None,
            signal: Some(15),
            usage: Usage {
                cpu_user_us: 1,
                cpu_system_us: 2,
                throttled_us: None,
                memory_bytes: Some(0),
                memory_peak_bytes: Some(5),
                oom_kills: Some(6),
                io_read_bytes: Some(7),
                io_write_bytes: Some(8),
                pids: Some(0),
                pids_peak: Some(9),
                pids_refused: Some(10),
            },
            wall_ms: 3,
            queued_ms: 11,
            start_micros: Some(4),
        }),
        log: LogTotals {
            stdout_bytes: 1,
            stderr_bytes: 2,
            dropped_bytes: 3,
        },
    }
}

#[test]
fn the_lines_of_version_1_do_not_change() {
    let text = |line: Vec<u8>| String::from_utf8(line).unwrap();
    let accepted = concat!(
        r#"{"accepted":{"v":1,"id":"01234567-89ab-4def-8123-456789abcdef","owner":"ann","state":"stopped","#,
        r#""name":"nightly","labels":[["team","a"]],"argv":["echo",{"base64":"/2E="}],"#,
        r#""env":[{"name":"A","value":"1"},{"name":"TOKEN","value":"***","secret":true}],"workdir":"/work","#,
        r#""user":{"uid":1000,"gid":1000},"work_bytes":67108864,"work":"memory","#,
        r#""limits":{"cpu_percent":50,"memory_bytes":null,"io_bytes_per_second":1048576,"pids":4096,"cores":[0,2]},"#,
        r#""caveats":[{"limit":"io","is_partly":true,"note":"direct only"}],"timeout_ns":1000000000,"#,
        r#""grace_ns":10000000000,"uploads":null,"transitions":[{"state":"stopped","wall_ns":5,"mono_ns":7}]}}"#,
        "\n"
    );
    let ended = concat!(
        r#"{"ended":{"v":1,"id":"01234567-89ab-4def-8123-456789abcdef","state":"stopped","#,
        r#""transitions":[{"state":"stopped","wall_ns":5,"mono_ns":7}],"#,
        r#""outcome":{"reason":{"stopped":{"by":"bob"}},"exit_code":null,"signal":15,"#,
        r#""usage":{"cpu_user_us":1,"cpu_system_us":2,"throttled_us":null,"memory_bytes":0,"#,
        r#""memory_peak_bytes":5,"oom_kills":6,"io_read_bytes":7,"io_write_bytes":8,"pids":0,"pids_peak":9,"#,
        r#""pids_refused":10},"wall_ms":3,"queued_ms":11,"start_micros":4},"#,
        r#""log":{"stdout_bytes":1,"stderr_bytes":2,"dropped_bytes":3}}}"#,
        "\n"
    );
    assert_eq!(text(encode_accepted(&example())), accepted);
    assert_eq!(text(encode_ended(&example())), ended);
}

#[test]
fn lines_of_another_version_or_shape_are_not_ours() {
    let line = encode_ended(&example());
    let line = str::from_utf8(&line).unwrap().trim_end();
    assert!(Record::parse(line.as_bytes()).is_some());
    for bad in [
        line.replace("\"v\":1", "\"v\":2"),
        line.replace("ended", "begun"),
        line[..40].to_owned(),
        String::new(),
    ] {
        assert!(Record::parse(bad.as_bytes()).is_none(), "{bad}");
    }
}
