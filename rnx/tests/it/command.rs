//! The program: exit codes, streams, JSON, signals.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto_rkyv::{
    Finding, Kind, Node as ServerNode, Pressure, Reason, RefusalCode, Reply, Request, Sample,
    Stall, State, StopSignal, Upload, Usage, Verdict, encode, join,
};
use serde_json::Value;
use tokio::sync::{Notify, mpsc};

use crate::server::{Asked, ID, ID_TEXT, Server, asked, data, job, refused, reply, say};

/// A server, a client file for it, and `rnx` with that file.
pub(crate) struct Setting {
    _server: Server,
    dir: tempfile::TempDir,
    config: PathBuf,
}

impl Setting {
    pub(crate) fn new(server: Server) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = server.client_file(dir.path());
        Self {
            _server: server,
            dir,
            config,
        }
    }

    /// With a server that tells what it was asked and answers that with `answer`.
    pub(crate) fn told(
        answer: fn(&Asked) -> Vec<bytes::Bytes>,
    ) -> (Self, mpsc::UnboundedReceiver<Asked>) {
        let (tell, told) = mpsc::unbounded_channel();
        let server = Server::start(move |mut send, mut recv| {
            let tell = tell.clone();
            async move {
                let Some(asked) = asked(&mut recv).await else {
                    return;
                };
                let frames = answer(&asked);
                let _ = tell.send(asked);
                say(&mut send, frames).await;
            }
        });
        (Self::new(server), told)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the program itself is what is tested"
    )]
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rnx"));
        command
            .args(words)
            .env("RNX_CONFIG", &self.config)
            .env("TZ", "UTC")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs and checks the code; returns standard output and error as text.
    pub(crate) fn check(&self, words: &[&str], code: i32) -> (String, String) {
        let output = self.run(words);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(
            output.status.code(),
            Some(code),
            "{words:?}\n{stdout}\n{stderr}"
        );
        (stdout, stderr)
    }
}

/// Runs jobs by their name: `exit N`, `signal N` or another reason; everything else about one finished job.
fn everyday() -> Setting {
    Setting::new(Server::start(|mut send, mut recv| async move {
        let Some(asked) = asked(&mut recv).await else {
            return;
        };
        say(&mut send, answer(&asked)).await;
    }))
}

fn answer(asked: &Asked) -> Vec<bytes::Bytes> {
    let done = job(Reason::Exited, Some(0), None);
    let accepted = reply(&Reply::Accepted {
        id: ID,
        existing: false,
    });
    match &asked.request {
        Request::Submit(submit) => {
            let words: Vec<_> = asked
                .argv
                .iter()
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            let number = words.get(1).and_then(|word| word.parse().ok());
            let ended = match words[0].as_str() {
                "exit" => job(Reason::Exited, number, None),
                "signal" => job(Reason::Signaled, None, number),
                "timeout" => job(Reason::Timeout, None, Some(15)),
                "stopped" => job(Reason::Stopped { by: "bob".into() }, None, Some(15)),
                "missing" => job(Reason::CommandNotFound, None, None),
                "denied" => job(Reason::CommandNotExecutable { errno: 13 }, None, None),
                "broken" => job(
                    Reason::StartFailed {
                        step: "mount /proc".into(),
                        errno: 1,
                    },
                    None,
                    None,
                ),
                "refuse" => {
                    return vec![refused(
                        RefusalCode::NotPermitted,
                        "a reader may not run jobs",
                    )];
                }
                "invalid" => {
                    return vec![refused(RefusalCode::Invalid, "user 70000 is out of range")];
                }
                "limits" => {
                    assert_eq!((submit.max_cpu, submit.max_pids), (Some(800), Some(0)));
                    assert_eq!(submit.max_memory_bytes, Some(16 << 30));
                    assert_eq!(submit.max_iobps, Some(1 << 20));
                    assert_eq!(submit.cpu_cores, Some(vec![(0, 1), (4, 4)]));
                    job(Reason::OutOfMemory, None, Some(9))
                }
                "flood" => {
                    let chunk = vec![b'y'; 64 << 10];
                    let output = (0..200).map(|at| data(Kind::Stdout, at * (64 << 10), &chunk));
                    return std::iter::once(accepted).chain(output).collect();
                }
                other => panic!("{other}"),
            };
            let output = [
                data(Kind::Stdout, 0, b"out\xff\n"),
                data(Kind::Stderr, 0, b"err\n"),
                data(Kind::Stdout, 5, b"\x1b[1m"),
            ];
            match submit.after {
                proto_rkyv::After::Detach => vec![accepted],
                proto_rkyv::After::Wait => vec![accepted, reply(&Reply::Ended(ended))],
                proto_rkyv::After::Follow => [
                    vec![accepted],
                    output.to_vec(),
                    vec![reply(&Reply::Ended(ended))],
                ]
                .concat(),
            }
        }
        Request::List(list) if list.state == Some(State::Queued) => vec![],
        Request::List(_) => vec![reply(&Reply::Jobs(vec![*done]))],
        Request::Status(id) | Request::Wait(id) if id == "none" => {
            vec![refused(RefusalCode::NotFound, "job none not found")]
        }
        Request::Status(_) => {
            let argv = data(Kind::Argv, 0, &join(&["sh", "-c", "exit 0"]));
            vec![
                reply(&Reply::Status(done)),
                argv,
                data(Kind::Env, 0, &join(&["A=1", "TOKEN=***"])),
            ]
        }
        Request::Log(log) => {
            assert_eq!(
                (log.follow, log.offset, log.tail_lines),
                (false, 3, Some(2))
            );
            vec![
                data(Kind::Stdout, 0, b"one\ntwo"),
                data(Kind::Stderr, 0, b"\xff\xfe"),
                data(Kind::Stdout, 7, b"\nthree\n"),
                reply(&Reply::LogEnd { dropped: 5 }),
            ]
        }
        Request::Stop(stop) if stop.job == "busy" => {
            vec![refused(RefusalCode::Conflict, "job busy is ambiguous")]
        }
        Request::Stop(_) => vec![reply(&Reply::Done(done))],
        Request::Cancel(_) | Request::Delete(_) | Request::DeleteAll => {
            vec![refused(RefusalCode::Unsupported, "see schedule.rs")]
        }
        Request::VolumeCreate(_)
        | Request::Volumes
        | Request::Volume(_)
        | Request::VolumeRemove(_)
        | Request::VolumeRead(_)
        | Request::VolumeWrite(_) => vec![refused(RefusalCode::Unsupported, "see volume.rs")],
        Request::Wait(id) if id == "fail" => {
            vec![reply(&Reply::Ended(job(Reason::Exited, Some(7), None)))]
        }
        Request::Wait(_) => vec![reply(&Reply::Ended(done))],
        Request::Copy(copy) if copy.path == b"evil" => {
            let entry = Upload::File {
                path: b"../evil".to_vec(),
                mode: 0o644,
                bytes: 0,
            };
            vec![encode(&entry).unwrap(), encode(&Upload::End).unwrap()]
        }
        Request::Copy(_) => {
            let entry = Upload::File {
                path: b"d/result".to_vec(),
                mode: 0o644,
                bytes: 3,
            };
            vec![
                encode(&entry).unwrap(),
                data(Kind::File, 0, b"abc"),
                encode(&Upload::End).unwrap(),
            ]
        }
        Request::Metrics(metrics) if metrics.job == "none" => {
            vec![refused(RefusalCode::NotFound, "job none not found")]
        }
        Request::Metrics(metrics) => {
            let expected = if metrics.follow { Some(250) } else { None };
            assert_eq!(metrics.interval_ms, expected);
            [(0, 1_000_000), (2, 2_000_000)]
                .map(|(seconds, cpu_us)| reply(&Reply::Sample(Box::new(sample(seconds, cpu_us)))))
                .to_vec()
        }
        Request::Doctor => vec![
            reply(&Reply::Findings(vec![finding(
                "no-root",
                Verdict::Enforced,
                None,
            )])),
            reply(&Reply::Findings(vec![
                finding("max-iobps", Verdict::Partly, None),
                finding(
                    "max-memory",
                    Verdict::NotEnforced,
                    Some("enable the controller"),
                ),
            ])),
        ],
        Request::Node => vec![reply(&Reply::Node(Box::new(ServerNode {
            version: "0.1.0".into(),
            instance: "0123abcd".into(),
            hostname: "host".into(),
            kernel: "6.18.0".into(),
            shards: 2,
            jobs_live: 0,
            you: "alice".into(),
            role: "admin".into(),
            work_memory_bytes: 64 << 20,
            start_ns: (1, 2, 3),
        })))],
    }
}

fn sample(seconds: i64, cpu_us: u64) -> Sample {
    let stall = Stall {
        avg10_centi: 150,
        total_us: 2_500_000,
    };
    Sample {
        wall_ns: (1_700_000_000 + seconds) * 1_000_000_000,
        usage: Usage {
            cpu_user_us: cpu_us,
            memory_bytes: Some(3 << 20),
            ..Usage::default()
        },
        pressure: (seconds == 0).then_some(Pressure {
            cpu: stall,
            memory: stall,
            io: stall,
        }),
    }
}

fn finding(promise: &str, verdict: Verdict, remedy: Option<&str>) -> Finding {
    Finding {
        promise: promise.into(),
        verdict,
        mechanism: "a mechanism".into(),
        detail: "measured".into(),
        remedy: remedy.map(Into::into),
    }
}

#[test]
fn samples_are_lines_of_a_table_or_objects() {
    let rnx = everyday();
    let (stdout, stderr) = rnx.check(&["job", "metrics", "1f3a"], 0);
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!((lines.len(), stderr.as_str()), (3, ""), "{stdout}");
    assert!(
        lines[0].starts_with("TIME                 CPU      CPU TIME"),
        "{stdout}"
    );
    assert!(
        lines[1].starts_with("2023-11-14 22:13:20  -        1s"),
        "{stdout}"
    );
    assert!(
        lines[1].ends_with("cpu 1.50%, memory 1.50%, io 1.50%"),
        "{stdout}"
    );
    assert!(
        lines[2].starts_with("2023-11-14 22:13:22  50%      2s"),
        "{stdout}"
    );
    let words = [
        "job",
        "metrics",
        "1f3a",
        "--follow",
        "--interval",
        "250ms",
        "--json",
    ];
    let (stdout, _) = rnx.check(&words, 0);
    let objects: Vec<Value> = stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let stall = serde_json::json!({"avg10_percent": 1.5, "total_seconds": 2.5});
    let expected = serde_json::json!({
        "time": "2023-11-14T22:13:20.000000000Z", "cpu_seconds": {"user": 1.0, "system": 0.0},
        "throttled_seconds": null, "memory_bytes": 3 << 20, "memory_peak_bytes": null, "oom_kills": null,
        "io_read_bytes": null, "io_write_bytes": null, "pids": null, "pids_peak": null,
        "pids_refused": null, "pressure": {"cpu": stall, "memory": stall, "io": stall},
    });
    assert_eq!(objects[0], expected);
    assert_eq!((objects.len(), &objects[1]["pressure"]), (2, &Value::Null));
    rnx.check(&["job", "metrics", "none"], 3);
}

#[test]
fn a_promise_that_is_not_kept_makes_doctor_fail() {
    let rnx = everyday();
    let (stdout, stderr) = rnx.check(&["doctor"], 1);
    let lines: Vec<Vec<_>> = stdout
        .lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .collect()
        })
        .collect();
    assert_eq!(lines[0], ["PROMISE", "VERDICT", "MECHANISM", "DETAIL"]);
    assert_eq!(lines[1], ["no-root", "enforced", "a mechanism", "measured"]);
    assert_eq!(lines[2], ["max-iobps", "partly", "a mechanism", "measured"]);
    assert_eq!(
        lines[3],
        ["max-memory", "not enforced", "a mechanism", "measured"]
    );
    assert_eq!(stderr, "max-memory: enable the controller\n");
    let list: Value = serde_json::from_str(&rnx.check(&["doctor", "--json"], 1).0).unwrap();
    let expected = serde_json::json!({
        "promise": "max-memory", "verdict": "not_enforced", "mechanism": "a mechanism",
        "detail": "measured", "remedy": "enable the controller",
    });
    assert_eq!(list[2], expected);
}

#[test]
fn an_attached_run_keeps_streams_apart_and_exits_like_its_job() {
    let rnx = everyday();
    let check = |words: &[&str], code: i32, says: &str| {
        let output = rnx.run(&[&["job", "run"], words].concat());
        assert_eq!(output.status.code(), Some(code), "{words:?}");
        assert_eq!(
            output.stdout, b"out\xff\n\x1b[1m",
            "{words:?}: byte-exact when not a terminal"
        );
        let stderr = String::from_utf8(output.stderr)
            .unwrap()
            .replace(ID_TEXT, "J");
        assert_eq!(stderr, format!("err\n{says}"), "{words:?}");
    };
    check(&["exit", "0"], 0, "");
    check(&["--", "exit", "7"], 7, "");
    check(&["exit", "255", "--json", "-d"], 255, "");
    check(&["--wait", "exit", "3"], 3, "");
    check(&["signal", "6"], 134, "error: job J ended by SIGABRT\n");
    check(&["signal", "9"], 137, "error: job J ended by SIGKILL\n");
    let limits = [
        "--max-cpu=800",
        "--max-memory=16384",
        "--max-iobps=1M",
        "--max-pids=0",
        "--cpu-cores=0-1,4",
    ];
    check(
        &[&limits[..], &["limits"]].concat(),
        137,
        "error: job J ran out of memory at 64 MB\n",
    );
    check(&["timeout"], 124, "error: job J ran out of time\n");
    check(&["stopped"], 143, "error: job J was stopped by bob\n");
    check(&["missing"], 127, "error: sh: command not found\n");
    check(
        &["denied"],
        126,
        "error: sh: cannot be executed: permission denied\n",
    );
    check(
        &["broken"],
        125,
        "error: job J could not be started: mount /proc: operation not permitted\n",
    );
}

#[test]
fn what_fails_before_a_command_starts_is_125_attached_and_from_the_table_otherwise() {
    let rnx = everyday();
    let refusal = "error: a reader may not run jobs\nhint: a hint\n";
    assert_eq!(
        rnx.check(&["job", "run", "refuse"], 125),
        (String::new(), refusal.into())
    );
    assert_eq!(
        rnx.check(&["job", "run", "--json", "--wait", "refuse"], 125)
            .0,
        ""
    );
    assert_eq!(
        rnx.check(&["job", "run", "-d", "refuse"], 4),
        (String::new(), refusal.into())
    );
    rnx.check(&["--json", "job", "run", "refuse"], 4);
    rnx.check(&["job", "run", "invalid"], 2);
    rnx.check(
        &["job", "run", "--upload", "/nonexistent/file", "exit", "0"],
        125,
    );
    rnx.check(
        &[
            "job",
            "run",
            "-d",
            "--upload",
            "/nonexistent/file",
            "exit",
            "0",
        ],
        3,
    );
    rnx.check(&["job", "run", "--env", "1=2", "exit", "0"], 2);
    rnx.check(
        &["job", "run", "--upload", "/etc/hostname:../x", "exit", "0"],
        2,
    );
    for words in [
        &["job", "run", "--network=x", "ls"][..],
        &["job", "run", "--gpu", "1", "ls"],
        &["network", "list"],
    ] {
        let (stdout, stderr) = rnx.check(words, 2);
        assert_eq!(stdout, "");
        assert!(
            stderr.contains("is not supported by this version of rnx yet"),
            "{stderr}"
        );
    }
    assert!(
        rnx.check(&["network", "create", "x", "--cidr=10.0.0.0/8"], 2)
            .1
            .contains("`rnx network create`")
    );
    rnx.check(&["job", "stop", "--grace", "1s", "1234"], 2);
    rnx.check(&[], 2);
    rnx.check(&["shutdown"], 2);
}

#[test]
fn a_detached_run_prints_the_lines_or_the_object_of_its_job() {
    let rnx = everyday();
    let (stdout, stderr) = rnx.check(&["job", "run", "-d", "exit", "0", "it's"], 0);
    assert_eq!(
        (stdout, stderr),
        (
            format!("ID: {ID_TEXT}\nCommand: exit 0 'it'\\''s'\nStatus: COMPLETED\n"),
            String::new()
        )
    );
    let (stdout, _) = rnx.check(&["job", "run", "--json", "exit", "0"], 0);
    let object: Value = serde_json::from_str(&stdout).unwrap();
    for key in ["id", "uuid", "job_uuid"] {
        assert_eq!(object[key], ID_TEXT);
    }
    assert_eq!(
        (&object["status"], &object["outcome"]["reason"]),
        (&"COMPLETED".into(), &"exited".into())
    );
    let (stdout, _) = rnx.check(&["job", "run", "--json", "--wait", "signal", "9"], 137);
    let object: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (
            &object["outcome"]["signal"],
            &object["outcome"]["signal_name"]
        ),
        (&9.into(), &"SIGKILL".into())
    );
    assert_eq!(object["outcome"]["cpu_seconds"]["user"], 1.5);
}

#[test]
fn jobs_are_listed_as_a_table_or_as_json() {
    let rnx = everyday();
    let (stdout, _) = rnx.check(&["job", "list"], 0);
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{stdout}");
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>().join(" "),
        "ID NAME STATUS START TIME DURATION COMMAND"
    );
    assert!(
        lines[1].starts_with(ID_TEXT)
            && lines[1].contains("COMPLETED")
            && lines[1].contains("2023-11-14 22:13:21")
    );
    assert!(
        lines[1].contains("n\\u{1b}[2J") && !stdout.contains('\x1b'),
        "a name cannot control a terminal"
    );
    assert_eq!(
        rnx.check(&["job", "list", "--status", "queued"], 0).0,
        "No jobs found\n"
    );
    assert_eq!(
        rnx.check(&["job", "list", "--status=QUEUED", "--json"], 0)
            .0,
        "[]\n"
    );
    let list: Value = serde_json::from_str(&rnx.check(&["job", "list", "--json"], 0).0).unwrap();
    assert_eq!(list[0]["start_time"], "2023-11-14T22:13:21.000000000Z");
}

#[test]
fn a_status_has_sections_and_a_stable_object() {
    let rnx = everyday();
    let (stdout, _) = rnx.check(&["job", "status", "1f3a"], 0);
    for part in [
        "Job:\n",
        "Command:\n",
        "Outcome:\n",
        "sh -c 'exit 0'",
        "exited",
        "TOKEN=***",
        "States:\n  INITIALIZING: 2023-11-14 22:13:20, after 0s\n  RUNNING:      2023-11-14 22:13:21, after 1s\n",
        "  CPU:          150% of a core\n",
        "  Memory:       64 MB\n",
        "  I/O:          1 MB a second\n",
        "  Processes:    unlimited\n",
        "  Cores:        0-1,4\n",
        "  Caveat:       io: partly enforced: direct and synced I/O only\n",
        "  CPU:          1.5s user, 0s system, 0.25s held back by the limit\n",
        "  Memory:       48 MB at most, 0 processes killed for it\n",
        "  I/O:          4 KB read\n",
        "  Processes:    3 at most, 1 refused\n",
        "  Queued:       0.04s\n",
    ] {
        assert!(stdout.contains(part), "{part}\n{stdout}");
    }
    let object: Value =
        serde_json::from_str(&rnx.check(&["job", "status", "1f3a", "--json"], 0).0).unwrap();
    let mut keys: Vec<_> = object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    let expected = [
        "args",
        "caveats",
        "command",
        "created_time",
        "end_time",
        "env",
        "exit_code",
        "grace_seconds",
        "id",
        "job_uuid",
        "labels",
        "last_run_time",
        "limits",
        "log",
        "name",
        "next_run_time",
        "next_run_times",
        "outcome",
        "owner",
        "priority",
        "schedule",
        "schedule_id",
        "start_time",
        "status",
        "timeout_seconds",
        "transitions",
        "user",
        "uuid",
        "volumes",
        "waits_for",
        "work",
        "workdir",
    ];
    assert_eq!(keys, expected);
    let expected = serde_json::json!({
        "cpu_percent": 150, "memory_bytes": 64 << 20, "io_bytes_per_second": 1 << 20, "pids": null,
        "cores": [0, 1, 4],
    });
    assert_eq!(object["limits"], expected);
    let caveat = serde_json::json!([{
        "limit": "io", "enforced": "partly", "note": "direct and synced I/O only",
    }]);
    assert_eq!(object["caveats"], caveat);
    let outcome = serde_json::json!({
        "reason": "exited", "exit_code": 0, "signal": null, "signal_name": null, "by": null, "step": null,
        "errno": null, "cpu_seconds": {"user": 1.5, "system": 0.0}, "memory_peak_bytes": 48 << 20,
        "io_read_bytes": 4_096, "io_write_bytes": null, "pids_peak": 3, "pids_refused": 1, "oom_kills": 0,
        "throttled_seconds": 0.25, "wall_seconds": 2.0, "queued_seconds": 0.04, "start_micros": 700,
    });
    assert_eq!(object["outcome"], outcome);
    assert_eq!(object["args"], serde_json::json!(["sh", "-c", "exit 0"]));
    assert_eq!(object["env"], serde_json::json!({"A": "1", "TOKEN": "***"}));
    let (stdout, stderr) = rnx.check(&["job", "status", "none"], 3);
    assert_eq!(
        (stdout, stderr),
        (
            String::new(),
            "error: job none not found\nhint: a hint\n".into()
        )
    );
}

#[test]
fn a_log_is_byte_exact_stamped_or_json() {
    let rnx = everyday();
    let words = [
        "job",
        "log",
        "1f3a",
        "--no-follow",
        "--offset",
        "3",
        "--tail=2",
    ];
    let output = rnx.run(&words);
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(0), &b"one\ntwo\nthree\n"[..])
    );
    assert_eq!(
        output.stderr,
        b"\xff\xfewarning: 5 bytes of output were not stored because of a limit\n"
    );
    let (stdout, _) = rnx.check(&[&words[..], &["--timestamps"]].concat(), 0);
    let time = "2023-11-14T22:13:20.000000000Z";
    assert_eq!(stdout, format!("{time} one\n{time} two\n{time} three\n"));
    let (stdout, _) = rnx.check(&[&words[..], &["--json"]].concat(), 0);
    let records: Vec<Value> = stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let record = |offset: u64, stream: &str, data: &str| serde_json::json!({"offset": offset, "time": time, "stream": stream, "data": data});
    let mut binary = record(0, "stderr", "//4=");
    binary["encoding"] = "base64".into();
    assert_eq!(
        records,
        [
            record(0, "stdout", "one\ntwo"),
            binary,
            record(7, "stdout", "\nthree\n")
        ]
    );
    rnx.check(&[&words[..], &["--json", "--timestamps"]].concat(), 2);
}

#[test]
fn stop_and_wait_take_several_jobs() {
    let rnx = everyday();
    assert_eq!(
        rnx.check(&["job", "stop", "1f3a"], 0).0,
        format!("{ID_TEXT} COMPLETED\n")
    );
    let (stdout, stderr) = rnx.check(&["job", "stop", "busy", "1f3a"], 5);
    assert_eq!(
        (stdout, stderr),
        (
            format!("{ID_TEXT} COMPLETED\n"),
            "error: job busy is ambiguous\nhint: a hint\n".into()
        )
    );
    rnx.check(&["job", "wait", "1f3a"], 0);
    rnx.check(&["job", "wait", "1f3a", "fail"], 7);
    rnx.check(&["job", "wait", "none"], 3);
    let list: Value =
        serde_json::from_str(&rnx.check(&["job", "wait", "fail", "1f3a", "--json"], 7).0).unwrap();
    assert_eq!(
        (&list[0]["exit_code"], &list[1]["exit_code"]),
        (&7.into(), &0.into())
    );
}

#[test]
fn a_copy_lands_and_a_hostile_one_does_not() {
    let rnx = everyday();
    let target = rnx.dir.path().join("got");
    rnx.check(
        &["job", "cp", "1f3a:/work/d/result", target.to_str().unwrap()],
        0,
    );
    assert_eq!(std::fs::read(&target).unwrap(), b"abc");
    let (_, stderr) = rnx.check(
        &[
            "job",
            "cp",
            "1f3a:/work/evil",
            rnx.dir.path().to_str().unwrap(),
        ],
        1,
    );
    assert!(
        stderr.contains("the server sent the path \"../evil\""),
        "{stderr}"
    );
    rnx.check(&["job", "cp", "1f3a:/etc/passwd", "x"], 2);
}

#[test]
fn nodes_and_versions_are_told_also_without_a_server() {
    let rnx = everyday();
    let (stdout, _) = rnx.check(&["nodes"], 0);
    assert!(
        stdout.starts_with("NAME") && stdout.contains("default") && stdout.contains("yes"),
        "{stdout}"
    );
    let nodes: Value = serde_json::from_str(&rnx.check(&["--json", "nodes"], 0).0).unwrap();
    assert_eq!(
        (&nodes[0]["name"], &nodes[0]["default"]),
        (&"default".into(), &true.into())
    );
    assert!(nodes[0].get("key").is_none());
    for words in [&["version"][..], &["-V"], &["--version", "job", "list"]] {
        let (stdout, _) = rnx.check(words, 0);
        assert!(
            stdout.contains("client  rnx ") && stdout.contains("server  joblet 0.1.0 on host"),
            "{stdout}"
        );
    }
    let output = rnx
        .command(&["version"])
        .env("RNX_CONFIG", "")
        .env("HOME", "/nonexistent")
        .current_dir("/")
        .output();
    let output = output.unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("client  rnx "));
    assert!(rnx.check(&["completions", "bash"], 0).0.contains("_rnx"));
    assert!(rnx.check(&["config-help"], 0).0.contains("RNX_LOCAL_DIR"));
    assert!(
        rnx.check(&["job", "run", "--help"], 0)
            .0
            .contains("--secret-env")
    );
    rnx.check(&["--node", "other", "job", "list"], 3);
}

#[test]
fn a_server_that_is_not_there_is_6() {
    let ca = crate::server::Authority::new();
    let free = std::net::UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let node = crate::server::node(free, &ca, &ca.issue("alice", crate::server::Validity::Now));
    let mut rnx = everyday();
    rnx.config = rnx.dir.path().join("other.yml");
    rnx::Config::new(rnx.config.clone(), [("n".to_owned(), node)].into())
        .save()
        .unwrap();
    let (stdout, stderr) = rnx.check(&["job", "list"], 6);
    assert_eq!(stdout, "");
    assert!(
        stderr.starts_with(&format!(
            "error: cannot reach {free}: connection refused\nhint: "
        )),
        "{stderr}"
    );
    rnx.check(&["job", "run", "-d", "true"], 6);
    rnx.check(&["job", "run", "true"], 125);
    rnx.check(&["version"], 6);
    rnx.config = "/nonexistent/rnx-config.yml".into();
    rnx.check(&["job", "list"], 1);
}

#[test]
fn a_closed_pipe_is_success() {
    let rnx = everyday();
    let mut child = rnx
        .command(&["job", "run", "flood"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &first), (Some(0), b"yyyyyyyyyy"));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("goes on"),
        "says that the job was left alone"
    );
    let mut child = rnx
        .command(&["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), &output.stderr[..]),
        (Some(0), &b""[..])
    );
}

#[test]
fn an_input_that_would_be_ignored_is_warned_about() {
    let rnx = everyday();
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"data").unwrap();
    let output = rnx
        .command(&["job", "run", "exit", "0"])
        .stdin(reader)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        stderr.contains("warning: standard input is ignored"),
        "{stderr}"
    );
    assert_eq!(output.status.code(), Some(0));
}

/// A job that runs until it is asked to stop, `stubborn` not even then.
fn long_running() -> (Setting, std::sync::mpsc::Receiver<StopSignal>) {
    let (stopped, (tell, told)) = (Arc::new(Notify::new()), std::sync::mpsc::channel());
    let setting = Setting::new(Server::start(move |mut send, mut recv| {
        let (stopped, tell) = (stopped.clone(), tell.clone());
        async move {
            let Some(asked) = asked(&mut recv).await else {
                return;
            };
            match asked.request {
                Request::Submit(_) => {
                    send.write_chunk(reply(&Reply::Accepted {
                        id: ID,
                        existing: false,
                    }))
                    .await
                    .unwrap();
                    send.write_chunk(data(Kind::Stdout, 0, b"ready\n"))
                        .await
                        .unwrap();
                    if asked.argv[0] == b"stubborn" {
                        let _ = send.stopped().await;
                        return;
                    }
                    stopped.notified().await;
                    let ended = job(Reason::Stopped { by: "alice".into() }, None, Some(2));
                    say(&mut send, [reply(&Reply::Ended(ended))]).await;
                }
                Request::Stop(stop) => {
                    tell.send(stop.signal).unwrap();
                    stopped.notify_one();
                    say(
                        &mut send,
                        [reply(&Reply::Done(job(Reason::Exited, Some(0), None)))],
                    )
                    .await;
                }
                other => panic!("{other:?}"),
            }
        }
    }));
    (setting, told)
}

/// Starts `rnx` and waits for the first line of the job.
fn attached(rnx: &Setting, command: &str) -> Child {
    let mut child = rnx
        .command(&["job", "run", command])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n", "output comes live");
    child
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

#[test]
fn the_first_interrupt_stops_the_job_with_its_signal() {
    for (ours, passed) in [
        (Signal::SIGINT, StopSignal::Int),
        (Signal::SIGTERM, StopSignal::Term),
    ] {
        let (rnx, told) = long_running();
        let child = attached(&rnx, "polite");
        signal(&child, ours);
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), output.status.signal()),
            (Some(130), None)
        );
        assert_eq!(told.recv().unwrap(), passed);
        assert!(told.try_recv().is_err(), "asked once");
    }
}

#[test]
fn the_second_interrupt_leaves_the_job_alone_and_names_it() {
    let (rnx, told) = long_running();
    let child = attached(&rnx, "stubborn");
    signal(&child, Signal::SIGINT);
    assert_eq!(told.recv().unwrap(), StopSignal::Int);
    signal(&child, Signal::SIGINT);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130));
    assert!(
        stderr.contains(&format!("detached; job {ID_TEXT} goes on")),
        "{stderr}"
    );
    assert!(told.try_recv().is_err(), "asked once");
}
