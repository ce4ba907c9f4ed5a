//! The exact bytes of version 1: the header and every message. A change of these is a new version.
//!
//! `golden/v1.txt` holds a line per frame, `name hex`. A frame that differs prints the line it would be.

use proto_rkyv::{
    After, Attachment, Caveat, Copy, Cursor, Finding, HEADER_BYTES, Header, Job, Kind, LimitKind,
    Limits, List, Log, LogTotals, Metrics, Node, Outcome, Piece, Pressure, Reader, Reason, Refusal,
    RefusalCode, Remark, Reply, Request, Sample, Schedule, Stall, State, Stop, StopSignal, Streams,
    Submit, Transition, Upload, Usage, Verdict, Volume, VolumeCreate, VolumeKind, VolumeRead,
    VolumeWrite, Work, encode, header_bytes,
};

const GOLDEN: &str = include_str!("golden/v1.txt");
const ID: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("golden lines are hex"))
        .collect()
}

fn job(outcome: Option<Outcome>) -> Box<Job> {
    Box::new(Job {
        id: ID,
        name: Some("nightly build".into()),
        owner: "alice".into(),
        state: if outcome.is_some() {
            State::Failed
        } else {
            State::Running
        },
        command: "sh -c true".into(),
        labels: vec![("team".into(), "a team with a long name".into())],
        workdir: "/work".into(),
        user: (1000, 1000),
        work_bytes: 64 << 20,
        work: Work::Memory,
        volumes: attachments(),
        timeout_ms: Some(5_000),
        grace_ms: 10_000,
        limits: Limits {
            cpu_percent: Some(150),
            memory_bytes: Some(512 << 20),
            io_bytes_per_second: Some(1 << 20),
            pids: Some(4_096),
            cores: Some(vec![(0, 1), (4, 4)]),
        },
        caveats: vec![caveat(LimitKind::Io, true), caveat(LimitKind::Cores, false)],
        transitions: vec![
            Transition {
                state: State::Initializing,
                wall_ns: 1,
                mono_ns: 2,
            },
            Transition {
                state: State::Running,
                wall_ns: -3,
                mono_ns: u64::MAX,
            },
        ],
        outcome,
        log: LogTotals {
            stdout_bytes: 1,
            stderr_bytes: 2,
            dropped_bytes: 3,
        },
        schedule: Some(cron()),
        schedule_id: Some(ID),
        next_runs_ns: vec![4, 5],
        last_run_ns: Some(-6),
        priority: -100,
        waits_for: Some("memory: 512 MB of 256 MB".into()),
    })
}

fn attachments() -> Vec<Attachment> {
    let attachment = |volume: &str, is_read_only| Attachment {
        volume: volume.into(),
        is_read_only,
    };
    vec![attachment("dataset2024", true), attachment("out", false)]
}

fn cron() -> Schedule {
    Schedule::Cron {
        expression: "30 2 * * 1-5".into(),
        zone: "Europe/Berlin".into(),
    }
}

fn caveat(limit: LimitKind, is_partly: bool) -> Caveat {
    Caveat {
        limit,
        is_partly,
        note: "for direct input and output".into(),
    }
}

fn usage() -> Usage {
    Usage {
        cpu_user_us: 10,
        cpu_system_us: 11,
        throttled_us: Some(12),
        memory_bytes: Some(13),
        memory_peak_bytes: Some(14),
        oom_kills: Some(15),
        io_read_bytes: Some(16),
        io_write_bytes: Some(17),
        pids: Some(18),
        pids_peak: Some(19),
        pids_refused: None,
    }
}

fn sample(pressure: Option<Pressure>) -> Sample {
    Sample {
        wall_ns: -1,
        usage: usage(),
        pressure,
    }
}

fn pressure() -> Pressure {
    let stall = |avg10_centi| Stall {
        avg10_centi,
        total_us: 1 << 40,
    };
    Pressure {
        cpu: stall(1),
        memory: stall(2),
        io: stall(10_000),
    }
}

fn finding(verdict: Verdict, remedy: Option<&str>) -> Finding {
    Finding {
        promise: "max-memory".into(),
        verdict,
        mechanism: "cgroup v2 memory".into(),
        detail: "200 MiB touched under 64 MiB".into(),
        remedy: remedy.map(Into::into),
    }
}

fn ended(reason: Reason) -> Reply {
    Reply::Ended(job(Some(Outcome {
        reason,
        exit_code: Some(7),
        signal: Some(9),
        usage: usage(),
        wall_ms: 12,
        queued_ms: 13,
        start_micros: Some(640),
    })))
}

fn requests() -> Vec<(&'static str, Request)> {
    let submit = Submit {
        name: Some("nightly build".into()),
        labels: vec![("team".into(), "a".into())],
        workdir: Some("/work/sub".into()),
        user: Some((0, 65_535)),
        work_bytes: Some(1 << 30),
        timeout_ms: Some(1),
        grace_ms: Some(2),
        uploads: Some(3),
        max_cpu: Some(150),
        max_memory_bytes: Some(512 << 20),
        max_iobps: Some(1 << 20),
        max_pids: Some(0),
        cpu_cores: Some(vec![(0, 1), (4, 4)]),
        schedule: Some(cron()),
        priority: Some(100),
        idempotency_key: Some("0b1d5d0e-nightly".into()),
        volumes: attachments(),
        after: After::Follow,
    };
    let scheduled = |schedule| {
        Request::Submit(Box::new(Submit {
            schedule: Some(schedule),
            ..Submit::default()
        }))
    };
    vec![
        ("submit", Request::Submit(Box::new(submit))),
        ("submit-default", Request::Submit(Box::default())),
        (
            "submit-wait",
            Request::Submit(Box::new(Submit {
                after: After::Wait,
                ..Submit::default()
            })),
        ),
        (
            "submit-after",
            scheduled(Schedule::After { ms: 604_800_000 }),
        ),
        ("submit-at", scheduled(Schedule::At { ns: -8 })),
        ("submit-every", scheduled(Schedule::Every { ms: 1_000 })),
        (
            "list",
            Request::List(List {
                state: Some(State::Running),
                limit: Some(10),
                before: Some(Cursor {
                    created_ns: -9,
                    id: ID,
                }),
                schedules: true,
            }),
        ),
        ("status", Request::Status("0001020304".into())),
        (
            "log",
            Request::Log(Log {
                job: "00010203".into(),
                streams: Streams::Stderr,
                follow: true,
                offset: 5,
                tail_lines: Some(6),
                since_ns: Some(-7),
            }),
        ),
        (
            "stop",
            Request::Stop(Stop {
                job: "0001".into(),
                signal: StopSignal::Int,
            }),
        ),
        ("cancel", Request::Cancel("0001".into())),
        ("delete", Request::Delete("0001020304".into())),
        ("delete-all", Request::DeleteAll),
        ("wait", Request::Wait("0001".into())),
        (
            "copy",
            Request::Copy(Copy {
                job: "0001".into(),
                path: b"out/a file \xff".to_vec(),
            }),
        ),
        ("node", Request::Node),
        (
            "metrics",
            Request::Metrics(Metrics {
                job: "0001".into(),
                follow: true,
                interval_ms: Some(250),
            }),
        ),
        ("doctor", Request::Doctor),
        ("volume-create", volume_create(VolumeKind::Filesystem)),
        ("volume-create-memory", volume_create(VolumeKind::Memory)),
        ("volumes", Request::Volumes),
        ("volume", Request::Volume("ml-checkpoints".into())),
        ("volume-remove", Request::VolumeRemove("cache".into())),
        (
            "volume-read",
            Request::VolumeRead(VolumeRead {
                volume: "cache".into(),
                path: b"out/a file \xff".to_vec(),
            }),
        ),
        ("volume-write", volume_write(Some(1 << 40))),
        ("volume-write-unknown", volume_write(None)),
    ]
}

fn volume_create(kind: VolumeKind) -> Request {
    Request::VolumeCreate(VolumeCreate {
        name: "ml-checkpoints".into(),
        size: "1.5GB".into(),
        kind,
    })
}

fn volume_write(bytes: Option<u64>) -> Request {
    Request::VolumeWrite(VolumeWrite {
        volume: "ml-checkpoints".into(),
        bytes,
    })
}

fn volumes() -> Vec<Volume> {
    let whole = Volume {
        name: "ml-checkpoints".into(),
        size: "1.5GB".into(),
        size_bytes: 3 << 29,
        kind: VolumeKind::Filesystem,
        created_ns: 1 << 60,
        used_bytes: Some(4_096),
        jobs: vec![ID, ID],
        damage: None,
    };
    let damaged = Volume {
        name: "cache".into(),
        kind: VolumeKind::Memory,
        used_bytes: None,
        jobs: Vec::new(),
        damage: Some("host disk full".into()),
        ..whole.clone()
    };
    vec![whole, damaged]
}

fn replies() -> Vec<(&'static str, Reply)> {
    let refusal = Refusal {
        code: RefusalCode::NotFound,
        message: "job 0001 not found".into(),
        hint: Some("look".into()),
    };
    let node = Node {
        version: "0.1.0".into(),
        instance: "0badcafe".into(),
        hostname: "host".into(),
        kernel: "6.18.44".into(),
        shards: 2,
        jobs_live: 3,
        you: "alice".into(),
        role: "admin".into(),
        work_memory_bytes: 4,
        start_ns: (5, 6, 7),
    };
    vec![
        ("refused", Reply::Refused(refusal)),
        (
            "accepted",
            Reply::Accepted {
                id: ID,
                existing: false,
            },
        ),
        (
            "accepted-existing",
            Reply::Accepted {
                id: ID,
                existing: true,
            },
        ),
        ("jobs", Reply::Jobs(vec![*job(None)])),
        ("jobs-none", Reply::Jobs(Vec::new())),
        (
            "more",
            Reply::More(Cursor {
                created_ns: 1 << 60,
                id: ID,
            }),
        ),
        (
            "deleted",
            Reply::Deleted {
                deleted: 7,
                skipped: 1 << 40,
            },
        ),
        ("status-reply", Reply::Status(job(None))),
        ("log-end", Reply::LogEnd { dropped: 99 }),
        ("done", Reply::Done(job(None))),
        ("node-reply", Reply::Node(Box::new(node))),
        ("sample", Reply::Sample(Box::new(sample(Some(pressure()))))),
        (
            "sample-without-pressure",
            Reply::Sample(Box::new(sample(None))),
        ),
        (
            "findings",
            Reply::Findings(vec![
                finding(Verdict::Enforced, None),
                finding(Verdict::Partly, None),
                finding(Verdict::NotEnforced, Some("load the module")),
            ]),
        ),
        ("volumes-reply", Reply::Volumes(volumes())),
        ("volumes-none", Reply::Volumes(Vec::new())),
        ("finished", Reply::Finished),
        ("ended-exited", ended(Reason::Exited)),
        ("ended-signaled", ended(Reason::Signaled)),
        ("ended-out-of-memory", ended(Reason::OutOfMemory)),
        ("ended-timeout", ended(Reason::Timeout)),
        ("ended-stopped", ended(Reason::Stopped { by: "bob".into() })),
        ("ended-canceled", ended(Reason::Canceled)),
        ("ended-log-limit", ended(Reason::LogLimit)),
        (
            "ended-start-failed",
            ended(Reason::StartFailed {
                step: "mount proc".into(),
                errno: 1,
            }),
        ),
        ("ended-not-found", ended(Reason::CommandNotFound)),
        (
            "ended-not-executable",
            ended(Reason::CommandNotExecutable { errno: 13 }),
        ),
        ("ended-host-lost", ended(Reason::HostLost)),
        ("ended-daemon-down", ended(Reason::DaemonDown)),
    ]
}

fn uploads() -> Vec<(&'static str, Upload)> {
    vec![
        (
            "dir",
            Upload::Dir {
                path: b"src".to_vec(),
                mode: 0o755,
            },
        ),
        (
            "file",
            Upload::File {
                path: b"src/main.rs".to_vec(),
                mode: 0o644,
                bytes: 1 << 40,
            },
        ),
        (
            "symlink",
            Upload::Symlink {
                path: b"link".to_vec(),
                target: b"../somewhere".to_vec(),
            },
        ),
        ("upload-end", Upload::End),
        (
            "fifo",
            Upload::Fifo {
                path: b"queue".to_vec(),
                mode: 0o600,
            },
        ),
        (
            "link",
            Upload::Link {
                path: b"a second name".to_vec(),
                target: b"src/main.rs".to_vec(),
            },
        ),
        (
            "remark",
            Upload::Remark {
                path: b"run/socket".to_vec(),
                remark: Remark::Socket,
            },
        ),
    ]
}

fn golden(name: &str) -> Vec<u8> {
    let line = GOLDEN
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    unhex(line.unwrap_or_default())
}

fn archive_of(frame: &[u8]) -> bytes::Bytes {
    let mut reader = Reader::default();
    reader.feed(bytes::Bytes::copy_from_slice(frame));
    let Ok(Some(Piece::Control(archive))) = reader.next() else {
        panic!("not one control frame")
    };
    assert!(reader.is_between_frames(), "more than one frame");
    archive
}

#[test]
fn every_message_has_its_golden_bytes_and_is_read_from_them() {
    let mut names = vec!["header"];
    let mut wrong = String::new();
    let mut check = |name: &'static str, frame: bytes::Bytes| {
        names.push(name);
        let same = golden(name) == frame[..];
        if !same {
            wrong += &format!("{name} {}\n", hex(&frame));
        }
        same
    };
    for (name, message) in requests() {
        if check(name, encode(&message).unwrap()) {
            assert_eq!(
                Request::decode(&archive_of(&golden(name))),
                Ok(message),
                "{name}"
            );
        }
    }
    for (name, message) in replies() {
        if check(name, encode(&message).unwrap()) {
            assert_eq!(
                Reply::decode(&archive_of(&golden(name))),
                Ok(message),
                "{name}"
            );
        }
    }
    for (name, message) in uploads() {
        if check(name, encode(&message).unwrap()) {
            assert_eq!(
                Upload::decode(&archive_of(&golden(name))),
                Ok(message),
                "{name}"
            );
        }
    }
    assert!(
        wrong.is_empty(),
        "frames that differ from golden/v1.txt:\n{wrong}"
    );
    let lines: Vec<&str> = GOLDEN
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(
        lines, names,
        "golden/v1.txt has a line for each frame and no other"
    );
}

#[test]
fn the_header_has_its_golden_bytes() {
    let header = Header {
        kind: Kind::Stderr,
        len: 0x0102,
        job: ID,
        offset: 0x0304_0506,
        time_ns: u64::MAX,
    };
    assert_eq!(hex(&header_bytes(&header)), hex(&golden("header")));
    let raw: [u8; HEADER_BYTES] = golden("header").try_into().unwrap();
    assert_eq!(Header::parse(&raw), Ok(header));
}

#[test]
fn kinds_have_the_numbers_of_version_1() {
    let numbers = [
        Kind::Control,
        Kind::Stdout,
        Kind::Stderr,
        Kind::Argv,
        Kind::Env,
        Kind::SecretEnv,
        Kind::File,
    ]
    .map(|kind| header_bytes(&Header::new(kind, 0))[36]);
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
}
