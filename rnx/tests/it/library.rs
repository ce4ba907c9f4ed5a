//! Requests through the library: what is sent, what is told, and every way in which an answer can be wrong.

use std::sync::Arc;

use proto_rkyv::{
    After, DATA_BYTES_MAX, Kind, List, Log, Reason, RefusalCode, Reply, Request, State, StopSignal,
    Streams, Submit, Upload, encode, join,
};
use rnx::{Arrival, Client, LogEvent, RequestError, RunEvent, Spec, Stream, Tree};
use tokio::{sync::mpsc, task::JoinSet};

use crate::server::{Asked, ID, Server, asked, data, job, refused, reply, say};

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Answers every request with the same frames, and hands the requests on.
fn scripted(frames: Vec<bytes::Bytes>) -> (Server, mpsc::UnboundedReceiver<Asked>) {
    let (tell, told) = mpsc::unbounded_channel();
    let server = Server::start(move |mut send, mut recv| {
        let (tell, frames) = (tell.clone(), frames.clone());
        async move {
            if let Some(asked) = asked(&mut recv).await {
                let _ = tell.send(asked);
            }
            say(&mut send, frames).await;
        }
    });
    (server, told)
}

fn accepted() -> bytes::Bytes {
    reply(&Reply::Accepted {
        id: ID,
        existing: false,
    })
}

#[test]
fn a_submit_carries_everything_byte_exact_and_its_events_come_in_order() {
    let ended = job(Reason::Exited, Some(7), None);
    let (server, mut told) = scripted(vec![
        accepted(),
        data(Kind::Stdout, 0, b"out1"),
        data(Kind::Stderr, 0, b"\xff\0err"),
        data(Kind::Stdout, 4, b""),
        data(Kind::Stdout, 4, b"out2"),
        reply(&Reply::Ended(ended.clone())),
    ]);
    let mut spec = Spec::attached(["sh", "", "a\nb"]);
    spec.argv.push(vec![0xff, 0xfe]);
    spec.env = vec![b"A=1".to_vec(), b"B=\n\xff".to_vec()];
    spec.secret_env = vec![b"TOKEN=x".to_vec()];
    spec.submit.name = Some("name".into());
    spec.submit.labels = vec![("k".into(), "v".into()), ("k".into(), "w".into())];
    let events = block_on(async {
        let client = Client::connect(&server.node).await.unwrap();
        let mut run = client.submit(&spec).await.unwrap();
        assert_eq!(run.id(), ID);
        let mut events = Vec::new();
        while let Some(event) = run.next().await.unwrap() {
            events.push(event);
        }
        assert_eq!(run.next().await.unwrap(), None, "nothing follows the end");
        client.close().await;
        events
    });
    let shown: Vec<_> = events
        .iter()
        .map(|event| match event {
            RunEvent::Output(o) => (o.stream, o.offset, o.bytes.to_vec()),
            RunEvent::Ended(_) => (Stream::Stdout, u64::MAX, Vec::new()),
        })
        .collect();
    let expected = [
        (Stream::Stdout, 0, b"out1".to_vec()),
        (Stream::Stderr, 0, b"\xff\0err".to_vec()),
        (Stream::Stdout, 4, b"out2".to_vec()),
        (Stream::Stdout, u64::MAX, Vec::new()),
    ];
    assert_eq!(shown, expected);
    assert_eq!(events.last(), Some(&RunEvent::Ended(ended)));
    let asked = told.try_recv().unwrap();
    let Request::Submit(submit) = asked.request else {
        panic!("{:?}", asked.request)
    };
    let expected = Submit {
        after: After::Follow,
        uploads: None,
        ..spec.submit.clone()
    };
    assert_eq!(*submit, expected);
    assert_eq!(
        (asked.argv, asked.env, asked.secret_env),
        (spec.argv, spec.env, spec.secret_env)
    );
    assert!(told.try_recv().is_err(), "one request");
}

#[test]
fn arguments_may_straddle_frames_and_have_a_limit() {
    let (server, mut told) = scripted(vec![accepted()]);
    block_on(async {
        let client = Client::connect(&server.node).await.unwrap();
        let mut spec = Spec::detached(["true"]);
        spec.argv.extend(vec![vec![b'x'; 100_000]; 30]);
        let mut run = client.submit(&spec).await.unwrap();
        assert_eq!(
            run.next().await.unwrap(),
            None,
            "a detached job has no events"
        );
        assert_eq!(told.recv().await.unwrap().argv, spec.argv);
        spec.env = vec![vec![b'x'; 2 << 20]];
        match client.submit(&spec).await {
            Err(RequestError::SpecTooLarge { bytes, .. }) => assert!(bytes > 4 << 20),
            other => panic!("{other:?}"),
        }
        spec.env.clear();
        spec.submit.labels = vec![("k".into(), "v".repeat(70_000))];
        assert!(matches!(
            client.submit(&spec).await,
            Err(RequestError::RequestTooLarge(_))
        ));
    });
    assert!(told.try_recv().is_err(), "what is too large is not sent");
}

#[test]
fn an_upload_arrives_whole() {
    let (server, mut told) = scripted(vec![
        accepted(),
        reply(&Reply::Ended(job(Reason::Exited, Some(0), None))),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let big: Vec<u8> = (0..5_000_000u32).map(|at| ((at * 31) >> 3) as u8).collect();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::io::Write::write_all(
        &mut std::fs::File::create(dir.path().join("d/big")).unwrap(),
        &big,
    )
    .unwrap();
    std::os::unix::fs::symlink("big", dir.path().join("d/link")).unwrap();
    let mut tree = Tree::new();
    tree.add(dir.path(), None).unwrap();
    let mut spec = Spec::detached(["true"]);
    spec.submit.after = After::Wait;
    spec.uploads = Some(tree);
    let mut progress = Vec::new();
    block_on(async {
        let client = Client::connect(&server.node).await.unwrap();
        let mut run = client
            .submit_with(&spec, |sent| progress.push(sent))
            .await
            .unwrap();
        assert_eq!(run.ended().await.unwrap().id, ID);
    });
    assert!(progress.is_sorted() && progress.last() == Some(&5_000_000) && progress.len() > 10);
    let asked = told.try_recv().unwrap();
    let Request::Submit(submit) = asked.request else {
        panic!("{:?}", asked.request)
    };
    assert_eq!(submit.uploads, Some(5_000_000));
    let paths: Vec<_> = asked
        .uploads
        .iter()
        .map(|(upload, _)| upload.clone())
        .collect();
    assert!(matches!(
        &paths[..],
        [
            Upload::Dir { .. },
            Upload::File {
                bytes: 5_000_000,
                ..
            },
            Upload::Symlink { .. },
            Upload::End
        ]
    ));
    assert!(asked.uploads[1].1 == big);
}

#[test]
fn a_refused_upload_ends_at_once_with_the_reason() {
    let server = Server::start(|mut send, mut recv| async move {
        // Reads nothing but the request.
        let _ = recv.read_chunk(100, true).await;
        let _ = recv.stop(9u32.into());
        say(
            &mut send,
            [refused(RefusalCode::TooLarge, "uploads are too large")],
        )
        .await;
    });
    let dir = tempfile::tempdir().unwrap();
    // Sparse, and far more than any window holds.
    std::fs::File::create(dir.path().join("huge"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let mut spec = Spec::detached(["true"]);
    let mut tree = Tree::new();
    tree.add(dir.path(), None).unwrap();
    spec.uploads = Some(tree);
    let error = block_on(async {
        Client::connect(&server.node)
            .await
            .unwrap()
            .submit(&spec)
            .await
            .unwrap_err()
    });
    match error {
        RequestError::Refused(refusal) => assert_eq!(refusal.message, "uploads are too large"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_upload_that_fails_here_never_looks_complete_there() {
    let (server, mut told) = scripted(vec![accepted()]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(1_000_000)
        .unwrap();
    let mut spec = Spec::detached(["true"]);
    let mut tree = Tree::new();
    tree.add(dir.path(), None).unwrap();
    spec.uploads = Some(tree);
    std::fs::File::create(&path)
        .unwrap()
        .set_len(999_999)
        .unwrap();
    block_on(async {
        let client = Client::connect(&server.node).await.unwrap();
        assert!(matches!(
            client.submit(&spec).await,
            Err(RequestError::Upload(_))
        ));
        // The connection is as good as before.
        assert!(client.submit(&Spec::detached(["x"])).await.is_ok());
        let asked = told.recv().await.unwrap();
        assert_eq!(
            asked.argv,
            [b"x".to_vec()],
            "the server saw the first one given up"
        );
    });
}

#[test]
fn a_server_that_accepts_before_the_upload_ends_gets_all_of_it() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let server = Server::start(move |mut send, mut recv| {
        let tell = tell.clone();
        async move {
            send.write_chunk(accepted()).await.unwrap();
            tell.send(asked(&mut recv).await).unwrap();
            say(&mut send, []).await;
        }
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::File::create(dir.path().join("f"))
        .unwrap()
        .set_len(3_000_000)
        .unwrap();
    let mut spec = Spec::detached(["true"]);
    let mut tree = Tree::new();
    tree.add(dir.path(), None).unwrap();
    spec.uploads = Some(tree);
    block_on(async {
        let client = Client::connect(&server.node).await.unwrap();
        client.submit(&spec).await.unwrap();
        let asked = told.recv().await.unwrap().expect("complete");
        assert_eq!(asked.uploads[0].1.len(), 3_000_000);
    });
}

#[test]
fn thousands_of_requests_share_one_connection() {
    let server = Server::start(|mut send, mut recv| async move {
        let Some(Asked {
            request: Request::Wait(id),
            ..
        }) = asked(&mut recv).await
        else {
            panic!("not a wait")
        };
        let mut ended = job(Reason::Exited, Some(0), None);
        ended.name = Some(id);
        say(&mut send, [reply(&Reply::Ended(ended))]).await;
    });
    block_on(async {
        let client = Client::connect(&server.node).await.unwrap();
        let mut waits = JoinSet::new();
        for index in 0..3_000 {
            let client = client.clone();
            waits.spawn(async move {
                (
                    index,
                    client.wait(format!("{index:04}")).await.unwrap().name,
                )
            });
        }
        let mut count = 0;
        while let Some(waited) = waits.join_next().await {
            let (index, name) = waited.unwrap();
            assert_eq!(name, Some(format!("{index:04}")));
            count += 1;
        }
        assert_eq!(count, 3_000);
    });
}

#[test]
fn small_requests_have_their_answers() {
    let server = Server::start(|mut send, mut recv| async move {
        let ended = job(Reason::Exited, Some(0), None);
        let frames = match asked(&mut recv).await.unwrap().request {
            Request::List(list) => {
                assert_eq!((list.state, list.limit), (Some(State::Running), Some(3)));
                vec![
                    reply(&Reply::Jobs(vec![*ended.clone()])),
                    reply(&Reply::Jobs(vec![*ended.clone(), *ended])),
                ]
            }
            Request::Status(id) => {
                assert_eq!(id, "1f3a");
                let argv = join(&["sh", "-c", "exit"]);
                let (first, second) = argv.split_at(5);
                vec![
                    reply(&Reply::Status(ended)),
                    data(Kind::Argv, 0, first),
                    data(Kind::Argv, 0, second),
                    data(Kind::Env, 0, &join(&["A=1", "S=***"])),
                ]
            }
            Request::Stop(stop) => {
                assert_eq!(stop.signal, StopSignal::Int);
                vec![reply(&Reply::Done(ended))]
            }
            other => panic!("{other:?}"),
        };
        say(&mut send, frames).await;
    });
    block_on(async {
        let client = Client::connect(&server.node).await.unwrap();
        let asked = List {
            state: Some(State::Running),
            limit: Some(3),
            ..List::default()
        };
        let page = client.list(asked).await.unwrap();
        assert_eq!((page.jobs.len(), page.next), (3, None));
        let status = client.status("1f3a").await.unwrap();
        assert_eq!(
            status.argv,
            [b"sh".to_vec(), b"-c".to_vec(), b"exit".to_vec()]
        );
        assert_eq!(status.env, [b"A=1".to_vec(), b"S=***".to_vec()]);
        assert_eq!(client.stop("1f3a", StopSignal::Int).await.unwrap().id, ID);
    });
}

#[test]
fn a_log_keeps_positions_however_frames_are_cut() {
    let payload: Vec<u8> = (0..DATA_BYTES_MAX).map(|at| (at % 251) as u8).collect();
    let frames = vec![
        data(Kind::Stdout, 10, &payload),
        data(Kind::Stderr, 5, b"e"),
        reply(&Reply::LogEnd { dropped: 3 }),
    ];
    let (server, _told) = scripted(frames);
    block_on(async {
        let client = Client::connect(&server.node).await.unwrap();
        let request = Log {
            job: "1f3a".into(),
            streams: Streams::All,
            follow: true,
            offset: 0,
            tail_lines: None,
            since_ns: None,
        };
        let mut logs = client.log(request).await.unwrap();
        let (mut all, mut pieces) = (Vec::new(), 0);
        loop {
            match logs.next().await.unwrap() {
                Some(LogEvent::Output(o)) if o.stream == Stream::Stdout => {
                    assert_eq!(o.offset, 10 + all.len() as u64);
                    all.extend_from_slice(&o.bytes);
                    assert_eq!(o.left as usize, payload.len() - all.len());
                    pieces += 1;
                }
                Some(LogEvent::Output(o)) => {
                    assert_eq!((o.offset, &o.bytes[..], o.left), (5, &b"e"[..], 0))
                }
                Some(LogEvent::End { dropped }) => assert_eq!(dropped, 3),
                None => break,
            }
        }
        assert!(all == payload && pieces > 1);
    });
}

#[test]
fn a_copied_tree_is_told_entry_by_entry_or_refused() {
    let entry = |upload: &Upload| encode(upload).unwrap();
    let file = Upload::File {
        path: b"d/f".to_vec(),
        mode: 0o644,
        bytes: 3,
    };
    let frames = vec![
        entry(&file),
        data(Kind::File, 0, b"abc"),
        entry(&Upload::End),
    ];
    let (server, mut told) = scripted(frames);
    block_on(async {
        let client = Client::connect(&server.node).await.unwrap();
        let mut arrivals = client.copy("1f3a", "d").await.unwrap();
        assert_eq!(arrivals.next().await.unwrap(), Some(Arrival::Entry(file)));
        assert_eq!(
            arrivals.next().await.unwrap(),
            Some(Arrival::Data(b"abc".as_slice().into()))
        );
        assert_eq!(arrivals.next().await.unwrap(), None);
        assert_eq!(arrivals.next().await.unwrap(), None);
        let Request::Copy(copy) = told.recv().await.unwrap().request else {
            panic!("not a copy")
        };
        assert_eq!((copy.job.as_str(), &copy.path[..]), ("1f3a", &b"d"[..]));
    });
    let (server, _told) = scripted(vec![refused(
        RefusalCode::NotFound,
        "no such file: /work/x",
    )]);
    block_on(async {
        let client = Client::connect(&server.node).await.unwrap();
        let error = client
            .copy("1f3a", "x")
            .await
            .unwrap()
            .next()
            .await
            .unwrap_err();
        assert!(
            matches!(error, RequestError::Refused(refusal) if refusal.code == RefusalCode::NotFound)
        );
    });
}

#[test]
fn answers_that_are_wrong_are_typed_errors_and_the_connection_lives_on() {
    type Check = fn(&RequestError) -> bool;
    let cases: Vec<(&str, Vec<bytes::Bytes>, Check)> = vec![
        ("nothing", vec![], |e| matches!(e, RequestError::Truncated)),
        ("half a frame", vec![accepted().slice(..20)], |e| {
            matches!(e, RequestError::Truncated)
        }),
        ("garbage", vec![vec![0xaa; 100].into()], |e| {
            matches!(e, RequestError::Frame(_))
        }),
        (
            "a broken archive",
            vec![data(Kind::Control, 0, b"\xff\xff")],
            |e| matches!(e, RequestError::Frame(_)),
        ),
        (
            "another reply",
            vec![reply(&Reply::LogEnd { dropped: 0 })],
            |e| matches!(e, RequestError::Unexpected { .. }),
        ),
        ("output", vec![data(Kind::Stdout, 0, b"x")], |e| {
            matches!(e, RequestError::Unexpected { .. })
        }),
        ("a refusal", vec![refused(RefusalCode::Busy, "full")], |e| {
            matches!(e, RequestError::Refused(_))
        }),
    ];
    let answers: Arc<Vec<_>> =
        Arc::new(cases.iter().map(|(_, frames, _)| frames.clone()).collect());
    let server = Server::start(move |mut send, mut recv| {
        let answers = answers.clone();
        async move {
            let Some(Asked {
                request: Request::Wait(index),
                ..
            }) = asked(&mut recv).await
            else {
                panic!("not a wait")
            };
            match answers.get(index.parse::<usize>().unwrap()) {
                Some(frames) => say(&mut send, frames.clone()).await,
                None => send.reset(42u32.into()).unwrap(),
            }
        }
    });
    block_on(async {
        let client = Client::connect(&server.node).await.unwrap();
        for (index, (name, _, check)) in cases.iter().enumerate() {
            let error = client.wait(index.to_string()).await.unwrap_err();
            assert!(check(&error), "{name}: {error:?}");
        }
        let error = client.wait("99").await.unwrap_err();
        assert!(
            matches!(error, RequestError::Aborted { code: 42 }),
            "{error:?}"
        );
    });
}

#[test]
fn a_run_whose_events_are_awaited_in_a_select_loses_none() {
    let frames: Vec<_> = (0..500)
        .map(|at| data(Kind::Stdout, at * 3, b"abc"))
        .collect();
    let all = [
        vec![accepted()],
        frames,
        vec![reply(&Reply::Ended(job(Reason::Exited, Some(0), None)))],
    ]
    .concat();
    let (server, _told) = scripted(all);
    block_on(async {
        let client = Client::connect(&server.node).await.unwrap();
        let mut run = client.submit(&Spec::attached(["x"])).await.unwrap();
        let mut bytes = 0;
        loop {
            let event = tokio::select! {
                biased;
                () = tokio::task::yield_now() => continue,
                event = run.next() => event.unwrap(),
            };
            match event {
                Some(RunEvent::Output(output)) => {
                    assert_eq!(output.offset, bytes);
                    bytes += output.bytes.len() as u64;
                }
                Some(RunEvent::Ended(_)) => break,
                None => panic!("no end"),
            }
        }
        assert_eq!(bytes, 1_500);
    });
}
