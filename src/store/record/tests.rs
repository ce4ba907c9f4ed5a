//! Any job that can be written reads back as it was, but for its secrets.

use proptest::{collection::vec, option, prelude::*};

use super::*;

fn transition() -> impl Strategy<Value = Transition> {
    (state(), any::<i64>(), any::<u64>()).prop_map(|(state, wall_ns, mono_ns)| Transition {
        state,
        wall_ns,
        mono_ns,
    })
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        Just(State::Scheduled),
        Just(State::Queued),
        Just(State::Initializing),
        Just(State::Running),
        Just(State::Stopping),
        Just(State::Completed),
        Just(State::Failed),
        Just(State::Stopped),
        Just(State::Timeout),
        Just(State::Canceled),
    ]
}

fn reason() -> impl Strategy<Value = Reason> {
    prop_oneof![
        Just(Reason::Exited),
        Just(Reason::Signaled),
        Just(Reason::OutOfMemory),
        Just(Reason::Timeout),
        any::<String>().prop_map(|by| Reason::Stopped { by }),
        Just(Reason::Canceled),
        Just(Reason::LogLimit),
        (any::<String>(), any::<i32>())
            .prop_map(|(step, errno)| Reason::StartFailed { step, errno }),
        Just(Reason::CommandNotFound),
        any::<i32>().prop_map(|errno| Reason::CommandNotExecutable { errno }),
        Just(Reason::HostLost),
        Just(Reason::DaemonDown),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    (
        reason(),
        any::<Option<i32>>(),
        any::<Option<i32>>(),
        usage(),
        any::<(u64, u64)>(),
        any::<Option<u64>>(),
    )
        .prop_map(
            |(reason, exit_code, signal, usage, (wall_ms, queued_ms), start_micros)| Outcome {
                reason,
                exit_code,
                signal,
                usage,
                wall_ms,
                queued_ms,
                start_micros,
            },
        )
}

fn usage() -> impl Strategy<Value = Usage> {
    (any::<(u64, u64)>(), any::<[Option<u64>; 9]>()).prop_map(
        |((cpu_user_us, cpu_system_us), counts)| {
            let [
                throttled_us,
                memory_bytes,
                memory_peak_bytes,
                oom_kills,
                io_read_bytes,
                io_write_bytes,
                pids,
                pids_peak,
                pids_refused,
            ] = counts;
            Usage {
                cpu_user_us,
                cpu_system_us,
                throttled_us,
                memory_bytes,
                memory_peak_bytes,
                oom_kills,
                io_read_bytes,
                io_write_bytes,
                pids,
                pids_peak,
                pids_refused,
            }
        },
    )
}

fn job_limits() -> impl Strategy<Value = Limits> {
    let cores = option::of(vec(any::<u32>(), 1..5));
    (any::<Option<u32>>(), any::<[Option<u64>; 3]>(), cores).prop_map(
        |(cpu_percent, [memory_bytes, io_bytes_per_second, pids], cores)| Limits {
            cpu_percent,
            memory_bytes,
            io_bytes_per_second,
            pids,
            cores,
        },
    )
}

fn caveat() -> impl Strategy<Value = Caveat> {
    let limit = prop_oneof![
        Just(LimitKind::Cpu),
        Just(LimitKind::Memory),
        Just(LimitKind::Io),
        Just(LimitKind::Pids),
        Just(LimitKind::Cores),
    ];
    (limit, any::<bool>(), any::<String>()).prop_map(|(limit, is_partly, note)| Caveat {
        limit,
        is_partly,
        note,
    })
}

/// Text and bytes that are none, in equal parts.
fn bytes() -> impl Strategy<Value = ByteString> {
    prop_oneof![
        any::<String>().prop_map(String::into_bytes),
        vec(any::<u8>(), 0..20)
    ]
}

fn spec() -> impl Strategy<Value = Spec> {
    let env =
        (any::<String>(), bytes(), any::<bool>()).prop_map(|(name, value, is_secret)| EnvEntry {
            name,
            value,
            is_secret,
        });
    let words = (
        any::<Option<String>>(),
        vec(any::<(String, String)>(), 0..3),
        vec(bytes(), 1..4),
        vec(env, 0..4),
    );
    let numbers = (
        any::<(u32, u32)>(),
        any::<u64>(),
        option::of(any::<u64>()),
        any::<u64>(),
        any::<Option<u64>>(),
    );
    let when = (option::of(schedule()), any::<i32>());
    (words, bytes(), numbers, job_limits(), when).prop_map(
        |(
            (name, labels, argv, env),
            workdir,
            ((uid, gid), work_bytes, timeout, grace, uploads),
            limits,
            (schedule, priority),
        )| Spec {
            name,
            labels,
            argv,
            env,
            workdir,
            user: User { uid, gid },
            work_bytes,
            limits,
            timeout: timeout.map(Duration::from_nanos),
            grace: Duration::from_nanos(grace),
            uploads,
            schedule,
            priority,
        },
    )
}

fn schedule() -> impl Strategy<Value = Schedule> {
    prop_oneof![
        any::<i64>().prop_map(|at_ns| Schedule::Once { at_ns }),
        any::<(u64, i64)>().prop_map(|(ns, from_ns)| Schedule::Every {
            every: Duration::from_nanos(ns),
            from_ns,
        }),
        any::<(String, String)>()
            .prop_map(|(expression, zone)| Schedule::Cron { expression, zone }),
    ]
}

/// Any job that has ended.
pub(in crate::store) fn ended_job() -> impl Strategy<Value = JobView> {
    let log = any::<(u64, u64, u64)>().prop_map(|(stdout_bytes, stderr_bytes, dropped_bytes)| {
        LogTotals {
            stdout_bytes,
            stderr_bytes,
            dropped_bytes,
        }
    });
    let work = prop_oneof![Just(WorkKind::Memory), Just(WorkKind::Disk)];
    let made = (spec(), work, vec(caveat(), 0..3));
    (
        any::<[u8; 16]>(),
        any::<String>(),
        state(),
        made,
        vec(transition(), 1..6),
        outcome(),
        log,
        any::<(Option<[u8; 16]>, Option<i64>, Option<i64>)>(),
    )
        .prop_map(
            |(id, owner, state, (spec, work, caveats), transitions, outcome, log, runs)| JobView {
                id: JobId::from_bytes(id),
                owner,
                state,
                spec: Arc::new(spec),
                work,
                caveats,
                transitions,
                outcome: Some(outcome),
                log,
                schedule_id: runs.0.map(JobId::from_bytes),
                next_run_ns: runs.1,
                last_run_ns: runs.2,
                waits_for: None,
            },
        )
}

/// What a reader gets of a job: no secret.
pub(in crate::store) fn without_secrets(mut view: JobView) -> JobView {
    let spec = Arc::make_mut(&mut view.spec);
    for entry in spec.env.iter_mut().filter(|entry| entry.is_secret) {
        entry.value = SECRET.to_vec();
    }
    view
}

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
            schedule: None,
            priority: 0,
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
        schedule_id: None,
        next_run_ns: None,
        last_run_ns: None,
        waits_for: None,
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
