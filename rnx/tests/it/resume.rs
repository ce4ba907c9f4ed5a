//! Connections that are lost: at every frame, in every way, for a moment and for good.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use proto_rkyv::{
    After, HEADER_BYTES, Kind, Log, Reason, RefusalCode, Reply, Request, Streams, code,
};
use quinn::Connection;
use rnx::{
    Client, ConnectError, FollowEvent, Line, LogEvent, Pace, RequestError, RunEvent, Spec, Stream,
    Tree,
};
use tokio::sync::{Notify, mpsc};

use crate::{
    command::Setting,
    server::{Asked, Authority, ID, ID_TEXT, Server, asked, data, job, refused, reply, say},
};

/// What the job wrote, in the order of capture.
const WRITTEN: [(Stream, &[u8]); 6] = [
    (Stream::Stdout, b"one\n"),
    (Stream::Stderr, b"\xff\0warn"),
    (Stream::Stdout, b"two\nthree"),
    (Stream::Stdout, b"\n"),
    (Stream::Stderr, b"ing\n"),
    (Stream::Stdout, b"end"),
];

/// How a server loses a client.
#[derive(Debug, Clone, Copy)]
enum Loss {
    /// It ends the stream, then the connection.
    Ends,
    /// The same in the middle of a frame.
    EndsInside,
    /// It closes the connection; what is under way is lost.
    Closes,
    /// It gives up the stream, and keeps the connection.
    Aborts,
    /// It refuses for the moment, as one does that ends.
    Busy,
}

const LOSSES: [Loss; 5] = [
    Loss::Ends,
    Loss::EndsInside,
    Loss::Closes,
    Loss::Aborts,
    Loss::Busy,
];

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn accepted(existing: bool) -> Bytes {
    reply(&Reply::Accepted { id: ID, existing })
}

/// Frames of the output from `position` on.
fn output(streams: Streams, position: u64) -> Vec<Bytes> {
    let (mut ends, mut at, mut frames) = (HashMap::new(), 0, Vec::new());
    for (stream, bytes) in WRITTEN {
        let end = ends.entry(stream).or_insert(0u64);
        let offset = *end;
        *end += bytes.len() as u64;
        let kind = match (streams, stream) {
            (Streams::All | Streams::Stdout, Stream::Stdout) => Kind::Stdout,
            (Streams::All | Streams::Stderr, Stream::Stderr) => Kind::Stderr,
            _ => continue,
        };
        let start = at;
        at += bytes.len() as u64;
        if at > position {
            let skipped = position.saturating_sub(start);
            let rest = &bytes[skipped as usize..];
            frames.push(data(kind, offset + skipped, rest));
        }
    }
    frames
}

fn frames(asked: &Asked) -> Vec<Bytes> {
    let ended = reply(&Reply::Ended(job(Reason::Exited, Some(7), None)));
    match &asked.request {
        Request::Submit(submit) if submit.after == After::Wait => vec![accepted(false), ended],
        Request::Submit(_) => {
            [vec![accepted(false)], output(Streams::All, 0), vec![ended]].concat()
        }
        Request::Log(log) => {
            assert!(log.job == ID_TEXT || log.job == "1f3a", "{}", log.job);
            assert_eq!(log.tail_lines, None, "positions are exact here");
            let end = reply(&Reply::LogEnd { dropped: 5 });
            [output(log.streams, log.offset), vec![end]].concat()
        }
        Request::Wait(id) => {
            assert_eq!(id, ID_TEXT);
            vec![ended]
        }
        other => panic!("{other:?}"),
    }
}

/// Serves the job above. Of the first answer it sends `first` frames before it loses the client, of later ones a
/// frame or two; from the sixth on whole ones, in case a loss took with it what was sent.
fn losing(loss: Loss, first: usize) -> Server {
    let answers = Arc::new(AtomicUsize::new(0));
    Server::at(
        (Ipv4Addr::LOCALHOST, 0).into(),
        &Authority::new(),
        move |connection, send, mut recv| {
            let answers = answers.clone();
            async move {
                let Some(asked) = asked(&mut recv).await else {
                    return;
                };
                let number = answers.fetch_add(1, Ordering::Relaxed);
                let granted = match number {
                    0 => first,
                    1..5 => 1 + number % 2,
                    _ => usize::MAX,
                };
                lose(loss, connection, send, &frames(&asked), granted).await;
            }
        },
    )
}

async fn lose(
    loss: Loss,
    connection: Connection,
    mut send: quinn::SendStream,
    frames: &[Bytes],
    granted: usize,
) {
    if granted >= frames.len() {
        return say(&mut send, frames.to_vec()).await;
    }
    for frame in &frames[..granted] {
        let _ = send.write_chunk(frame.clone()).await;
    }
    let shut_down = || connection.close(code::CONNECTION_SHUTDOWN.into(), b"bye");
    match loss {
        Loss::Ends => {
            say(&mut send, []).await;
            shut_down();
        }
        Loss::EndsInside => {
            // All of the header and half of the payload: what came of a frame counts.
            let next = &frames[granted];
            let half = HEADER_BYTES + (next.len() - HEADER_BYTES).div_ceil(2);
            say(&mut send, [next.slice(..half)]).await;
            shut_down();
        }
        Loss::Closes => shut_down(),
        Loss::Aborts => {
            let _ = send.reset(code::STREAM_CANCELED.into());
        }
        // Before a job is accepted it is an answer like any other.
        Loss::Busy if granted == 0 => shut_down(),
        Loss::Busy => {
            let busy = refused(RefusalCode::Busy, "the daemon is going down");
            say(&mut send, [busy]).await;
        }
    }
}

/// Everything that is told, stream by stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: Option<i32>,
    dropped: Option<u64>,
}

async fn all(mut follow: rnx::Follow) -> Told {
    let mut told = Told::default();
    while let Some(event) = follow.next().await.unwrap() {
        match event {
            FollowEvent::Output(output) => match output.stream {
                Stream::Stdout => told.stdout.extend_from_slice(&output.bytes),
                Stream::Stderr => told.stderr.extend_from_slice(&output.bytes),
            },
            FollowEvent::LogEnd { dropped } => told.dropped = Some(dropped),
            FollowEvent::Ended(job) => told.exit = job.outcome.unwrap().exit_code,
        }
    }
    told
}

fn log(streams: Streams, offset: u64) -> Log {
    Log {
        job: "1f3a".into(),
        streams,
        follow: true,
        offset,
        tail_lines: None,
        since_ns: None,
    }
}

/// A line that does not wait long before it tries again: what is tested is not the pace.
async fn hasty(server: &Server) -> Line {
    let client = Client::connect(&server.node).await.unwrap();
    let pace = Pace {
        pause_first: Duration::from_millis(1),
        ..Pace::default()
    };
    Line::with_pace(server.node.clone(), client, pace)
}

const STDOUT: &[u8] = b"one\ntwo\nthree\nend";
const STDERR: &[u8] = b"\xff\0warning\n";

/// Runs `check` for every loss after each number of frames, each on a thread of its own.
fn everywhere(frames: usize, check: impl Fn(Loss, usize) + Sync) {
    std::thread::scope(|scope| {
        for loss in LOSSES {
            let check = &check;
            scope.spawn(move || (0..frames).for_each(|first| check(loss, first)));
        }
    });
}

#[test]
fn a_run_that_loses_its_connection_at_any_frame_tells_every_byte_once() {
    everywhere(WRITTEN.len() + 2, |loss, first| {
        let server = losing(loss, first);
        let told = block_on(async {
            let line = hasty(&server).await;
            let run = line.submit(&Spec::attached(["sh"]), |_| {}).await.unwrap();
            all(line.attach(run)).await
        });
        let expected = Told {
            stdout: STDOUT.to_vec(),
            stderr: STDERR.to_vec(),
            exit: Some(7),
            dropped: None,
        };
        assert_eq!(told, expected, "{loss:?} after {first}");
    });
}

#[test]
fn a_log_that_loses_its_connection_at_any_frame_goes_on_at_its_byte() {
    everywhere(WRITTEN.len() + 1, |loss, first| {
        let check = |asked: Log, stdout: &[u8], stderr: &[u8]| {
            let server = losing(loss, first);
            let told = block_on(async {
                let line = hasty(&server).await;
                all(line.log(asked)).await
            });
            let expected = Told {
                stdout: stdout.to_vec(),
                stderr: stderr.to_vec(),
                exit: None,
                dropped: Some(5),
            };
            assert_eq!(told, expected, "{loss:?} after {first}");
        };
        check(log(Streams::All, 2), &STDOUT[2..], STDERR);
        check(log(Streams::Stderr, 3), b"", &STDERR[3..]);
    });
}

#[test]
fn who_waits_without_output_waits_again() {
    for loss in [Loss::Ends, Loss::Closes, Loss::Aborts] {
        let server = losing(loss, 1);
        let mut spec = Spec::detached(["sh"]);
        spec.submit.after = After::Wait;
        let told = block_on(async {
            let line = Line::connect(&server.node).await.unwrap();
            let run = line.submit(&spec, |_| {}).await.unwrap();
            all(line.attach(run)).await
        });
        let expected = Told {
            exit: Some(7),
            ..Told::default()
        };
        assert_eq!(told, expected, "{loss:?}");
    }
}

#[test]
fn the_program_prints_every_byte_once_and_exits_like_its_job() {
    for loss in [Loss::EndsInside, Loss::Closes] {
        for first in [1, 4] {
            let rnx = Setting::new(losing(loss, first));
            let output = rnx.run(&["job", "run", "sh"]);
            assert_eq!(
                (output.status.code(), &output.stdout[..], &output.stderr[..]),
                (Some(7), STDOUT, STDERR),
                "{loss:?} after {first}"
            );
            let rnx = Setting::new(losing(loss, first));
            let output = rnx.run(&["job", "log", "1f3a", "--stream=stdout"]);
            assert_eq!(
                (output.status.code(), &output.stdout[..]),
                (Some(0), STDOUT),
                "{loss:?} after {first}"
            );
        }
    }
    let rnx = Setting::new(losing(Loss::Closes, 0));
    assert_eq!(rnx.run(&["job", "wait", ID_TEXT]).status.code(), Some(7));
}

/// A server whose first answer to a submit is lost, and what it was asked.
fn forgetful() -> (Server, mpsc::UnboundedReceiver<Asked>) {
    let (tell, told) = mpsc::unbounded_channel();
    let answers = Arc::new(AtomicUsize::new(0));
    let server = Server::at(
        (Ipv4Addr::LOCALHOST, 0).into(),
        &Authority::new(),
        move |connection, mut send, mut recv| {
            let (tell, answers) = (tell.clone(), answers.clone());
            async move {
                let Some(asked) = asked(&mut recv).await else {
                    return;
                };
                let is_submit = matches!(asked.request, Request::Submit(_));
                let _ = tell.send(asked);
                if !is_submit {
                    let done = reply(&Reply::Status(job(Reason::Exited, Some(0), None)));
                    say(&mut send, [done]).await;
                } else if answers.fetch_add(1, Ordering::Relaxed) == 0 {
                    connection.close(code::CONNECTION_SHUTDOWN.into(), b"bye");
                } else {
                    say(&mut send, [accepted(true)]).await;
                }
            }
        },
    );
    (server, told)
}

fn key(asked: &Asked) -> Option<String> {
    let Request::Submit(submit) = &asked.request else {
        panic!("{:?}", asked.request)
    };
    submit.idempotency_key.clone()
}

#[test]
fn a_submit_whose_answer_is_lost_is_repeated_under_the_same_key() {
    for own in [None, Some("nightly".to_owned())] {
        let (server, mut told) = forgetful();
        let mut spec = Spec::detached(["sh", "-c", "x"]);
        spec.env = vec![b"A=1".to_vec()];
        spec.secret_env = vec![b"T=s".to_vec()];
        spec.submit.idempotency_key = own.clone();
        block_on(async {
            let line = Line::connect(&server.node).await.unwrap();
            let run = line.submit(&spec, |_| {}).await.unwrap();
            assert!(run.is_existing() && run.id() == ID);
        });
        let (first, second) = (told.try_recv().unwrap(), told.try_recv().unwrap());
        assert_eq!(first, second, "the same request");
        let sent = key(&first).unwrap();
        match own {
            Some(own) => assert_eq!(sent, own),
            None => assert_eq!(sent.len(), 36, "a key of its own"),
        }
    }
    // Another submit has another key.
    let (server, mut told) = forgetful();
    block_on(async {
        let line = Line::connect(&server.node).await.unwrap();
        for _ in 0..2 {
            line.submit(&Spec::detached(["sh"]), |_| {}).await.unwrap();
        }
    });
    let keys: Vec<_> = std::iter::from_fn(|| told.try_recv().ok())
        .map(|asked| key(&asked))
        .collect();
    assert_eq!(keys.len(), 3);
    assert!(keys[0] == keys[1] && keys[1] != keys[2]);
}

#[test]
fn a_submit_with_uploads_is_never_repeated() {
    let (server, mut told) = forgetful();
    let dir = tempfile::tempdir().unwrap();
    std::fs::File::create(dir.path().join("f")).unwrap();
    let mut tree = Tree::new();
    tree.add(dir.path(), None).unwrap();
    let mut spec = Spec::detached(["sh"]);
    spec.uploads = Some(tree);
    let error = block_on(async {
        let line = Line::connect(&server.node).await.unwrap();
        line.submit(&spec, |_| {}).await.unwrap_err()
    });
    assert!(matches!(error, RequestError::Connection(_)), "{error}");
    assert_eq!(key(&told.try_recv().unwrap()), None);
    assert!(told.try_recv().is_err(), "one request");
}

#[test]
fn the_program_says_that_a_job_was_submitted_before_only_when_the_key_is_the_users() {
    let (server, _told) = forgetful();
    let rnx = Setting::new(server);
    let (stdout, stderr) = rnx.check(&["job", "run", "-d", "--idempotency-key=k", "sh"], 0);
    assert!(stdout.starts_with(&format!("ID: {ID_TEXT}\n")), "{stdout}");
    assert_eq!(
        stderr,
        format!("job {ID_TEXT} was submitted before with this key\n")
    );
    let (server, _told) = forgetful();
    let (_, stderr) = Setting::new(server).check(&["job", "run", "-d", "sh"], 0);
    assert_eq!(stderr, "");
}

#[test]
fn a_server_that_dies_and_comes_back_at_its_address_is_found_again() {
    let authority = Authority::new();
    let begun = Arc::new(Notify::new());
    let half = {
        let begun = begun.clone();
        move |_: Connection, mut send: quinn::SendStream, mut recv: quinn::RecvStream| {
            let begun = begun.clone();
            async move {
                let asked = asked(&mut recv).await.unwrap();
                for frame in frames(&asked).into_iter().take(3) {
                    send.write_chunk(frame).await.unwrap();
                }
                begun.notified().await;
            }
        }
    };
    let server = Server::at((Ipv4Addr::LOCALHOST, 0).into(), &authority, half);
    let (address, node) = (server.address, server.node.clone());
    let told = block_on(async {
        let line = Line::connect(&node).await.unwrap();
        let run = line.submit(&Spec::attached(["sh"]), |_| {}).await.unwrap();
        let mut follow = line.attach(run);
        for _ in 0..2 {
            let event = follow.next().await.unwrap();
            assert!(matches!(event, Some(FollowEvent::Output(_))), "{event:?}");
        }
        // Killed: the socket is gone and nobody was told. While it is away nothing is there to be heard.
        tokio::task::spawn_blocking(move || server.die())
            .await
            .unwrap();
        let early = tokio::time::timeout(Duration::from_millis(300), follow.next()).await;
        assert!(early.is_err(), "{early:?}");
        let whole = |_: Connection, mut send: quinn::SendStream, mut recv: quinn::RecvStream| async move {
            let asked = asked(&mut recv).await.unwrap();
            say(&mut send, frames(&asked)).await;
        };
        let server = Server::at(address, &authority, whole);
        let back = tokio::time::Instant::now();
        let told = all(follow).await;
        assert!(
            back.elapsed() < Duration::from_millis(1_500),
            "{:?}",
            back.elapsed()
        );
        drop(line);
        (told, server)
    });
    let expected = Told {
        stdout: STDOUT[4..].to_vec(),
        stderr: STDERR[6..].to_vec(),
        exit: Some(7),
        dropped: None,
    };
    assert_eq!(told.0, expected);
}

#[test]
fn patience_has_an_end_and_then_the_server_is_unreachable() {
    let server = losing(Loss::Ends, 3);
    let node = server.node.clone();
    let error = block_on(async {
        let client = Client::connect(&node).await.unwrap();
        let pace = Pace {
            patience: Duration::from_millis(200),
            ..Pace::default()
        };
        let line = Line::with_pace(node.clone(), client, pace);
        let run = line.submit(&Spec::attached(["sh"]), |_| {}).await.unwrap();
        tokio::task::spawn_blocking(move || server.die())
            .await
            .unwrap();
        let mut follow = line.attach(run);
        loop {
            match follow.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("no end came"),
                Err(error) => break error,
            }
        }
    });
    assert!(
        matches!(
            error,
            RequestError::Connection(ConnectError::Unreachable { .. })
        ),
        "{error}"
    );
}

#[test]
fn what_no_connection_mends_is_told_at_once() {
    let check = |frames: Vec<Bytes>| {
        let answers = Arc::new(AtomicUsize::new(0));
        let counted = answers.clone();
        let server = Server::start(move |mut send, mut recv| {
            let (answers, frames) = (counted.clone(), frames.clone());
            async move {
                answers.fetch_add(1, Ordering::Relaxed);
                let _ = asked(&mut recv).await;
                say(&mut send, frames).await;
            }
        });
        let error = block_on(async {
            let line = Line::connect(&server.node).await.unwrap();
            let mut follow = line.log(log(Streams::All, 0));
            loop {
                match follow.next().await {
                    Ok(event) => assert!(event.is_some()),
                    Err(error) => break error,
                }
            }
        });
        assert_eq!(answers.load(Ordering::Relaxed), 1, "{error}");
        error
    };
    let gone = refused(RefusalCode::NotFound, "job 1f3a not found");
    assert!(matches!(check(vec![gone]), RequestError::Refused(_)));
    // The first answer is the answer, also that there is no room now.
    let busy = refused(RefusalCode::Busy, "too many requests");
    assert!(matches!(check(vec![busy]), RequestError::Refused(_)));
    let wrong = vec![data(Kind::Stdout, 0, b"x"), reply(&Reply::Jobs(Vec::new()))];
    assert!(matches!(check(wrong), RequestError::Unexpected { .. }));
}

#[test]
fn a_plain_client_reports_a_lost_connection() {
    let server = losing(Loss::Ends, 2);
    block_on(async {
        let client = Client::connect(&server.node).await.unwrap();
        let mut run = client.submit(&Spec::attached(["sh"])).await.unwrap();
        assert!(matches!(run.next().await, Ok(Some(RunEvent::Output(_)))));
        assert!(matches!(
            run.next().await,
            Err(RequestError::Truncated | RequestError::Connection(_))
        ));
    });
    let server = losing(Loss::Ends, 0);
    block_on(async {
        let client = Client::connect(&server.node).await.unwrap();
        let mut logs = client.log(log(Streams::All, 0)).await.unwrap();
        let first: Result<Option<LogEvent>, _> = logs.next().await;
        assert!(first.is_err(), "{first:?}");
    });
}
