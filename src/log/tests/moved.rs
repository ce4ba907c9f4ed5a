//! Output that leaves its files: read off them whole, and followed across the move.

use super::*;
use crate::{
    job::{Refusal, RefusalCode},
    log::{LogError, Moved, Whole},
};

/// Where output goes when it leaves its files, and how often somebody looked.
#[derive(Default)]
struct Elsewhere {
    whole: RefCell<Option<Whole>>,
    looks: Cell<usize>,
}

impl Elsewhere {
    fn place(self: &Rc<Self>, files: &JobFiles) -> Place {
        let this = Rc::clone(self);
        let moved: Moved = Rc::new(move || {
            this.looks.set(this.looks.get() + 1);
            let whole = this.whole.borrow().clone();
            Box::pin(async move { Ok(whole) })
        });
        Place::new(files.clone(), moved)
    }

    /// As at the end of a job: it is elsewhere before its files go.
    async fn take(&self, capture: &Capture) {
        let whole = capture.whole(fits).await.unwrap();
        assert!(whole.is_some(), "it is small");
        self.whole.replace(whole);
        capture.files().remove().await.unwrap();
        assert!(!capture.files().dir().exists());
    }
}

fn fits(bytes: usize, index_bytes: usize) -> bool {
    bytes <= 4_096 && index_bytes <= 4_096
}

/// Everything that a follower gives, piece by piece.
async fn pieces(mut follower: Follower) -> Vec<(Stream, u64, u64, Vec<u8>)> {
    let mut pieces = Vec::new();
    while let Some(chunk) = follower.next().await.unwrap() {
        let bytes = chunk.bytes.to_vec();
        pieces.push((chunk.stream, chunk.offset, chunk.time_ns, bytes));
    }
    pieces
}

/// A job that has written `out` and `err` in turns, so that each piece has a record of its own, and is drained.
async fn drained(house: &House, out: &[&str], err: &[&str]) -> Capture {
    let mut job = house.job(UNLIMITED);
    let mut written = 0;
    for turn in 0..out.len().max(err.len()) {
        for (to, text) in [
            (&mut job.stdout, out.get(turn)),
            (&mut job.stderr, err.get(turn)),
        ] {
            let text = text.map_or("", |text| *text);
            to.write_all(text.as_bytes()).unwrap();
            written += text.len() as u64;
            job.capture.progress().watching();
            while job.capture.progress().snapshot().bytes < written {
                rt::yield_io().await;
            }
        }
    }
    job.capture.drain().await;
    job.capture
}

#[test]
fn every_question_is_answered_alike_before_and_after_the_move() {
    on_shard(|| async {
        let house = House::new();
        let capture = drained(&house, &["one\ntwo\n", "three"], &["e1\n", "e2\ne3\n"]).await;
        capture.progress().end();
        let elsewhere = Rc::<Elsewhere>::default();
        let place = elsewhere.place(capture.files());
        let mut queries = vec![ALL, HISTORY];
        for streams in [Streams::All, Streams::Stdout, Streams::Stderr] {
            for offset in [0, 1, 8, 13, 22, 23] {
                queries.push(LogQuery {
                    streams,
                    offset,
                    ..HISTORY
                });
            }
            for lines in [0, 1, 2, 9] {
                let tail_lines = Some(lines);
                queries.push(LogQuery {
                    streams,
                    tail_lines,
                    ..HISTORY
                });
            }
        }
        let mut before = Vec::new();
        for query in &queries {
            let progress = Progress::ended(&place).await.unwrap();
            before.push(pieces(Follower::open(&place, *query, progress).await.unwrap()).await);
        }
        assert_eq!(elsewhere.looks.get(), 0, "there are files");
        let all: usize = before[0].iter().map(|(.., bytes)| bytes.len()).sum();
        assert_eq!(all, 22);

        elsewhere.take(&capture).await;
        for (query, before) in queries.iter().zip(before) {
            let progress = Progress::ended(&place).await.unwrap();
            let snapshot = progress.snapshot();
            assert_eq!((snapshot.bytes, snapshot.is_ended), (22, true));
            let after = pieces(Follower::open(&place, *query, progress).await.unwrap()).await;
            assert_eq!(after, before, "{query:?}");
        }
        assert_eq!(
            elsewhere.looks.get(),
            queries.len(),
            "it is looked for once"
        );
    });
}

#[test]
fn a_follower_goes_on_at_its_byte_wherever_the_files_go_under_it() {
    on_shard(|| async {
        let house = House::new();
        // Times far apart are pieces apart: only the first stream is open when the first piece has been given.
        for given in 0..=4 {
            let capture = drained(&house, &["one", "two"], &["three", "four"]).await;
            let elsewhere = Rc::<Elsewhere>::default();
            let place = elsewhere.place(capture.files());
            let mut follower = Follower::open(&place, ALL, capture.progress())
                .await
                .unwrap();
            let (mut got, mut offsets) = ([Vec::new(), Vec::new()], [0, 0]);
            for _ in 0..given {
                let chunk = follower.next().await.unwrap().unwrap();
                let which = usize::from(chunk.stream == Stream::Stderr);
                offsets[which] += chunk.bytes.len() as u64;
                got[which].extend_from_slice(&chunk.bytes);
            }
            elsewhere.take(&capture).await;
            capture.progress().end();
            let rest = read_all(follower, offsets).await;
            for (got, rest) in got.iter_mut().zip(rest) {
                got.extend(rest);
            }
            assert_eq!(
                got,
                [b"onetwo".to_vec(), b"threefour".to_vec()],
                "{given} pieces before"
            );
        }
    });
}

#[test]
fn a_follower_that_has_opened_one_file_only_finds_the_rest_elsewhere() {
    on_shard(|| async {
        let house = House::new();
        let capture = drained(&house, &["out"], &["err"]).await;
        let elsewhere = Rc::<Elsewhere>::default();
        let place = elsewhere.place(capture.files());
        let query = LogQuery {
            streams: Streams::Stdout,
            ..ALL
        };
        let mut first = Follower::open(&place, query, capture.progress())
            .await
            .unwrap();
        assert_eq!(&first.next().await.unwrap().unwrap().bytes[..], b"out");
        elsewhere.take(&capture).await;
        capture.progress().end();
        // It shares what the first one has opened: index and stdout, and no stderr.
        let second = Follower::open(&place, ALL, capture.progress())
            .await
            .unwrap();
        assert_eq!(
            read_all(second, [0, 0]).await,
            [b"out".to_vec(), b"err".to_vec()]
        );
        assert_eq!(first.next().await.unwrap(), None);
    });
}

#[test]
fn a_follower_that_cannot_look_elsewhere_now_goes_on_when_it_can() {
    on_shard(|| async {
        let house = House::new();
        let capture = drained(&house, &["out"], &["err"]).await;
        let elsewhere = Rc::<Elsewhere>::default();
        let is_open = Rc::new(Cell::new(false));
        let (found, may) = (elsewhere.place(capture.files()), Rc::clone(&is_open));
        let moved: Moved = Rc::new(move || {
            let (found, is_open) = (found.clone(), may.get());
            Box::pin(async move {
                match is_open {
                    true => Ok(found.moved().await.unwrap()),
                    false => Err(Refusal::new(RefusalCode::Busy, "not now")),
                }
            })
        });
        let place = Place::new(capture.files().clone(), moved);
        let mut follower = Follower::open(&place, ALL, capture.progress())
            .await
            .unwrap();
        let first = follower.next().await.unwrap().unwrap();
        assert_eq!(
            (first.stream, &first.bytes[..]),
            (Stream::Stdout, &b"out"[..])
        );
        let late = Progress::new(capture.progress().snapshot());
        let mut late = Follower::open(&place, HISTORY, late).await.unwrap();
        elsewhere.take(&capture).await;
        capture.progress().end();
        assert!(matches!(late.next().await, Err(LogError::Moved(_))));
        assert!(matches!(
            Progress::ended(&place).await,
            Err(LogError::Moved(_))
        ));
        is_open.set(true);
        assert_eq!(
            read_all(late, [0, 0]).await,
            [b"out".to_vec(), b"err".to_vec()]
        );
        assert_eq!(
            read_all(follower, [3, 0]).await,
            [Vec::new(), b"err".to_vec()]
        );
    });
}

#[test]
fn output_is_whole_on_one_side_of_the_bound_only() {
    on_shard(|| async {
        let house = House::new();
        let text = "x".repeat(4_097);
        for (bytes, is_small) in [(1, true), (4_096, true), (4_097, false)] {
            let capture = drained(&house, &[&text[..bytes - 1]], &["y"]).await;
            let whole = capture.whole(fits).await.unwrap();
            assert_eq!(whole.is_some(), is_small, "{bytes} bytes");
            if let Some(whole) = whole {
                assert_eq!(whole.stdout, text.as_bytes()[..bytes - 1]);
                assert_eq!(whole.stderr, b"y");
                assert_eq!(whole.index, fs::read(capture.files().index()).unwrap());
            }
        }
        // A header and 101 records are 4,080 bytes.
        for (records, is_small) in [(101, true), (102, false)] {
            let capture = drained(&house, &vec!["x"; records], &[]).await;
            let whole = capture.whole(fits).await.unwrap();
            assert_eq!(whole.is_some(), is_small, "{records} records");
        }
        let silent = drained(&house, &[], &[]).await;
        assert_eq!(silent.whole(fits).await.unwrap(), None);
    });
}

#[test]
fn files_that_say_something_else_than_was_counted_stay() {
    on_shard(|| async {
        let house = House::new();
        let cut: [fn(&JobFiles) -> PathBuf; 3] = [
            |files| files.stream(Stream::Stdout),
            |files| files.stream(Stream::Stderr),
            JobFiles::index,
        ];
        for path in cut {
            let capture = drained(&house, &["out"], &["err"]).await;
            let path = path(capture.files());
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() - 1).unwrap();
            assert_eq!(capture.whole(fits).await.unwrap(), None);
        }
        let capture = drained(&house, &["out"], &[]).await;
        fs::remove_file(capture.files().index()).unwrap();
        assert!(capture.whole(fits).await.is_err());
    });
}

#[test]
fn what_was_dropped_alone_is_whole_too() {
    on_shard(|| async {
        let house = House::new();
        let mut job = house.job(Limits {
            bytes: 0,
            policy: Policy::Drop,
        });
        job.stdout.write_all(b"gone").unwrap();
        job.produced(4).await;
        job.capture.drain().await;
        let whole = job.capture.whole(fits).await.unwrap().unwrap();
        assert_eq!((whole.stdout.len(), whole.index.len()), (0, 40));
        let elsewhere = Rc::<Elsewhere>::default();
        elsewhere.take(&job.capture).await;
        let progress = Progress::ended(&elsewhere.place(job.capture.files()))
            .await
            .unwrap();
        assert_eq!(progress.snapshot().dropped_bytes, 4);
    });
}

#[test]
fn output_that_is_found_after_a_crash_is_whole_once_its_files_are_in_order() {
    on_shard(|| async {
        let house = House::new();
        let capture = drained(&house, &["out"], &["err"]).await;
        let files = capture.files().clone();
        let whole = capture.whole(fits).await.unwrap();
        let found = recover(files.dir(), 1).unwrap();
        assert_eq!(Whole::found(files.dir(), &found, fits).unwrap(), whole);
        assert_eq!(
            Whole::found(files.dir(), &found, |_, _| false).unwrap(),
            None
        );
        assert_eq!(JobFiles::all(house.dir.path()).unwrap().len(), 1);
        files.remove_now().unwrap();
        assert_eq!(JobFiles::all(house.dir.path()).unwrap(), []);
        let none = Recovered::default();
        assert_eq!(Whole::found(files.dir(), &none, fits).unwrap(), None);
    });
}
