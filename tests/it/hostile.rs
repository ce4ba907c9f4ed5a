//! Peers that lie, stall and vanish: each gets one clear refusal, the daemon and the others notice nothing.

use std::ffi::OsStr;
use std::time::Duration;

use proto_rkyv::{
    After, Header, JobRef, Kind, List, Log, Reply, Request, Stop, StopSignal, Streams, Submit,
    encode, header_bytes, join,
};

use crate::harness::{
    Client, Daemon, Host, Identity, LONG, Output, SHORT, Shared, Waiting, Wire, block_on, data,
    now, patient, wait_until,
};

static DAEMON: Shared = Shared::new();

#[test]
fn mangled_bytes_end_their_stream_and_nothing_else() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let good = encode(&Request::List(List::default())).unwrap().to_vec();
    let mut cases: Vec<Vec<u8>> = vec![
        Vec::new(),
        vec![0],
        vec![0xff; 40],
        vec![0; 40],
        vec![0x55; 1 << 16],
        good[..good.len() - 1].to_vec(),
        good[..proto_rkyv::HEADER_BYTES].to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        // An archive that is no request.
        data(Kind::Control, &[0xff; 64]),
        data(Kind::Control, b""),
        // Frames where the first must be a request.
        data(Kind::Argv, &join(&["true"])),
        data(Kind::File, &[1; 1000]),
    ];
    // Every byte of a good request, turned over, one at a time.
    for index in 0..good.len() {
        let mut bad = good.clone();
        bad[index] ^= 0xff;
        cases.push(bad);
    }
    block_on(async {
        let wire = admin(&daemon).await;
        for case in &cases {
            let mut stream = wire.open().await;
            // The daemon may stop reading as soon as it has seen enough.
            let _ = stream.send.write_all(case).await;
            let _ = stream.send.finish();
            let answer = tokio::time::timeout(patient(SHORT), stream.reply())
                .await
                .expect("an answer or the end");
            assert!(!matches!(answer, Some(Reply::Accepted { .. })), "{case:?}");
        }
        assert!(
            wire.run(&["true"]).await.is_ok(),
            "the same connection still serves"
        );
    });
}

#[test]
fn lengths_that_lie_are_refused_before_anything_is_kept() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let lie = |kind: Kind, len: u32| header_bytes(&Header::new(kind, len)).to_vec();
    let submit = encode(&Request::Submit(Box::default())).unwrap().to_vec();
    let mut argv_lies = (u32::MAX).to_le_bytes().to_vec();
    argv_lies.extend_from_slice(b"true");
    let cases = [
        lie(Kind::Control, u32::MAX),
        lie(Kind::Control, (64 << 10) + 1),
        lie(Kind::Argv, u32::MAX),
        [submit.clone(), lie(Kind::Argv, (1 << 20) + 1)].concat(),
        [submit.clone(), data(Kind::Argv, &argv_lies)].concat(),
        [submit.clone(), data(Kind::Argv, &[1, 0])].concat(),
        [submit.clone(), data(Kind::Argv, b"")].concat(),
        // More than a submit may be, in frames that are each allowed.
        [
            submit.clone(),
            data(Kind::Argv, &join(&["x".repeat(1 << 19)])).repeat(20),
        ]
        .concat(),
        // No argument list at all.
        submit,
    ];
    block_on(async {
        let wire = admin(&daemon).await;
        for case in cases {
            let mut stream = wire.open().await;
            let _ = stream.send.write_all(&case).await;
            let _ = stream.send.finish();
            let answer = tokio::time::timeout(patient(SHORT), stream.reply())
                .await
                .expect("an answer or the end");
            assert!(
                matches!(answer, Some(Reply::Refused(_)) | None),
                "{answer:?}"
            );
        }
        assert!(wire.run(&["true"]).await.is_ok());
    });
}

#[test]
fn requests_with_absurd_values_are_refused() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let none = || JobRef::from("00000000-0000-4000-8000-000000000000");
    let log = |job: JobRef| {
        Request::Log(Log {
            job,
            streams: Streams::All,
            follow: true,
            offset: u64::MAX,
            tail_lines: Some(u64::MAX),
            since_ns: Some(i64::MIN),
        })
    };
    let requests = [
        Request::Status(none()),
        Request::Status(JobRef::new()),
        Request::Status("zz".into()),
        Request::Status("../../etc/passwd".into()),
        Request::Wait(none()),
        Request::Stop(Stop {
            job: none(),
            signal: StopSignal::Term,
        }),
        log(none()),
        log("%".into()),
    ];
    let submits = [
        Submit {
            user: Some((65_536, 0)),
            ..Submit::default()
        },
        Submit {
            user: Some((0, u32::MAX)),
            ..Submit::default()
        },
        Submit {
            workdir: Some("relative".into()),
            ..Submit::default()
        },
        Submit {
            workdir: Some("/a\0b".into()),
            ..Submit::default()
        },
        Submit {
            timeout_ms: Some(u64::MAX),
            ..Submit::default()
        },
        Submit {
            timeout_ms: Some(0),
            ..Submit::default()
        },
        Submit {
            grace_ms: Some(u64::MAX),
            ..Submit::default()
        },
        Submit {
            work_bytes: Some(u64::MAX),
            ..Submit::default()
        },
        Submit {
            uploads: Some(u64::MAX),
            ..Submit::default()
        },
        Submit {
            labels: vec![(String::new(), String::new())],
            ..Submit::default()
        },
    ];
    block_on(async {
        let wire = admin(&daemon).await;
        for request in requests {
            let mut stream = wire.open().await;
            stream
                .send
                .write_all(&encode(&request).unwrap())
                .await
                .unwrap();
            stream.send.finish().unwrap();
            let answer = stream.reply().await;
            assert!(
                matches!(answer, Some(Reply::Refused(_))),
                "{request:?}: {answer:?}"
            );
        }
        for submit in submits {
            let mut stream = wire
                .submit(
                    Submit {
                        after: After::Wait,
                        ..submit.clone()
                    },
                    &["true"],
                )
                .await;
            let _ = stream.send.finish();
            let answer = stream.reply().await;
            assert!(
                matches!(answer, Some(Reply::Refused(_))),
                "{submit:?}: {answer:?}"
            );
        }
        for argv in [&["a\0b"][..], &["true", "\0"], &[""]] {
            let mut stream = wire
                .submit(
                    Submit {
                        after: After::Wait,
                        ..Submit::default()
                    },
                    argv,
                )
                .await;
            let _ = stream.send.finish();
            let mut answer = stream.reply().await;
            if matches!(answer, Some(Reply::Accepted { .. })) {
                answer = stream.reply().await;
            }
            let ran = matches!(&answer, Some(Reply::Ended(job)) if job.outcome.as_ref().is_some_and(|o| o.exit_code == Some(0)));
            assert!(!ran, "{argv:?}: {answer:?}");
        }
    });
}

#[test]
fn streams_that_stall_hold_up_nobody() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    block_on(async {
        let wire = admin(&daemon).await;
        let request = encode(&Request::Submit(Box::default())).unwrap();
        let mut stalled = Vec::new();
        for part in 0..200 {
            let mut stream = wire.open().await;
            stream
                .send
                .write_all(&request[..part % request.len()])
                .await
                .unwrap();
            stalled.push(stream);
        }
        for _ in 0..20 {
            assert!(wire.run(&["true"]).await.is_ok());
        }
        assert!(
            admin(&daemon).await.run(&["true"]).await.is_ok(),
            "another connection is served too"
        );
    });
    daemon.job(["true"]).assert_code(0);
}

#[test]
fn a_reader_that_stops_reading_holds_up_neither_job_nor_others() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = block_on(async {
        let wire = admin(&daemon).await;
        let submit = Submit {
            after: After::Follow,
            ..Submit::default()
        };
        let mut stream = wire
            .submit(submit, &["head", "-c", "50000000", "/dev/zero"])
            .await;
        stream.send.finish().unwrap();
        let Some(Reply::Accepted { id, .. }) = stream.reply().await else {
            panic!("not accepted")
        };
        // Nothing of its output is read from here on, and the job ends all the same.
        let id = uuid::Uuid::from_bytes(id).to_string();
        let begin = now();
        while matches!(daemon.state(&id).as_str(), "INITIALIZING" | "RUNNING") {
            assert!(
                begin.elapsed() < patient(LONG),
                "the job hangs on its reader"
            );
            // The connection stays alive meanwhile: only the stream is not read.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(daemon.state(&id), "COMPLETED");
        id
    });
    let log = daemon.rnx(["job", "log", &id]);
    assert_eq!(log.stdout.len(), 50_000_000);
}

#[test]
fn clients_that_vanish_leave_their_jobs_and_nothing_else() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let mut ids = Vec::new();
    block_on(async {
        for _ in 0..10 {
            let wire = admin(&daemon).await;
            let mut stream = wire
                .submit(
                    Submit {
                        after: After::Follow,
                        ..Submit::default()
                    },
                    &["sleep", "600"],
                )
                .await;
            stream.send.finish().unwrap();
            let Some(Reply::Accepted { id, .. }) = stream.reply().await else {
                panic!("not accepted")
            };
            ids.push(uuid::Uuid::from_bytes(id).to_string());
            wire.connection.close(7u32.into(), b"");
        }
    });
    for id in &ids {
        daemon.wait_state(id, "RUNNING");
    }
    let stop = daemon.client().args(["job", "stop"]).args(&ids).run();
    stop.assert_code(0);
    for id in &ids {
        assert_eq!(daemon.ended(id)["status"], "STOPPED");
    }
}

#[test]
fn ten_thousand_arguments_arrive_and_more_than_the_kernel_takes_is_refused() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let many: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
    let script = ["sh", "-c", r#"echo $#; eval echo \${$#}"#, "sh"];
    let run = daemon.job(
        script
            .iter()
            .copied()
            .chain(many.iter().map(String::as_str)),
    );
    run.assert_code(0);
    assert_eq!(run.text(), "10000\n9999\n");

    // One argument beyond MAX_ARG_STRLEN, and a list beyond ARG_MAX: the client could not even be started
    // with these, so they are sent by hand.
    block_on(async {
        let wire = admin(&daemon).await;
        let long = "x".repeat((128 << 10) + 1);
        assert_not_run(wire.run(&["true", &long]).await);
        // Above the 2 MiB that a stack of 8 MiB allows, below the 4 MiB that a submit allows.
        let piece = "x".repeat(100_000);
        let mut stream = wire.open().await;
        let submit = Submit {
            after: After::Wait,
            ..Submit::default()
        };
        let mut frames = encode(&Request::Submit(Box::new(submit))).unwrap().to_vec();
        for _ in 0..35 {
            frames.extend(data(Kind::Argv, &join(&["true", &piece])));
        }
        stream.send.write_all(&frames).await.unwrap();
        stream.send.finish().unwrap();
        match stream.reply().await {
            Some(Reply::Refused(_)) => {}
            Some(Reply::Accepted { .. }) => match stream.reply().await {
                Some(Reply::Ended(job)) => assert_not_run(Ok(*job)),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    });
    daemon.job(["true"]).assert_code(0);
}

/// Fails if the command of this job was executed.
#[track_caller]
fn assert_not_run(answer: Result<proto_rkyv::Job, Reply>) {
    match answer {
        Err(Reply::Refused(_)) => {}
        Ok(job) => assert!(
            job.outcome.as_ref().is_some_and(|o| o.exit_code != Some(0)),
            "{job:?}"
        ),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn a_daemon_out_of_descriptors_refuses_and_recovers() {
    if !Host::Any.is_here() {
        return;
    }
    let daemon = Daemon::start();
    let process = daemon.process();
    let used = process.descriptors_in_use();
    let limit = |soft: usize| {
        let done = std::process::Command::new("prlimit")
            .args([
                OsStr::new("--pid"),
                process.pid.to_string().as_ref(),
                format!("--nofile={soft}:20000").as_ref(),
            ])
            .status()
            .unwrap();
        assert!(done.success());
    };
    limit(used + 12);
    let runs: Vec<_> = (0..40)
        .map(|_| daemon.client().args(["job", "run", "sleep", "3"]).spawn())
        .collect();
    let outputs: Vec<Output> = runs
        .into_iter()
        .map(crate::harness::Running::finish)
        .collect();
    assert!(
        outputs
            .iter()
            .all(|run| run.code == 0 || run.stderr.contains("error:")),
        "{outputs:?}"
    );
    assert!(
        outputs.iter().any(|run| run.code != 0),
        "the limit was never reached"
    );
    limit(20_000);
    wait_until(LONG, "jobs run again", || {
        let run = daemon.job(["true"]);
        Waiting::when(run.code == 0, || format!("{run:?}"))
    });
}

async fn admin(daemon: &Daemon) -> Wire {
    Client::of(&Identity::read(&daemon.config))
        .connect(daemon.address)
        .await
        .unwrap()
}
