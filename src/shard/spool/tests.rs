//! Spools on a real disk, and a reader on a socket that does what init's uploader does.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    thread::{self, JoinHandle},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::statvfs::statvfs,
};
use proptest::{collection::vec, prelude::*};
use tempfile::TempDir;

use super::*;
use crate::{
    rt::{Either, or, testing::on_shard},
    sandbox::init::record::{ANSWER_BYTES, ENTRY_BYTES, entry},
    shard::UploadSink,
};

/// Entries with the bytes of the files among them.
type Tree = Vec<(TreeEntry, Vec<u8>)>;

/// At which entry the reader fails, and why.
type Failure = Option<(u32, i32)>;

fn spool_in(dir: &TempDir) -> Spool {
    spool_with(dir, 0, Durability::Process)
}

fn spool_with(dir: &TempDir, reserve_bytes: u64, durability: Durability) -> Spool {
    let disk = DiskGuard::new(dir.path(), reserve_bytes).unwrap();
    Spool::new(dir.path(), disk, durability)
}

fn names(dir: &TempDir) -> BTreeSet<String> {
    fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

async fn until_empty(dir: &TempDir) {
    while !names(dir).is_empty() {
        rt::yield_io().await;
    }
}

fn dir_entry(path: &[u8]) -> (TreeEntry, Vec<u8>) {
    let entry = TreeEntry::Dir {
        path: path.to_vec(),
        mode: 0o755,
    };
    (entry, Vec::new())
}

fn file(path: &[u8], contents: Vec<u8>) -> (TreeEntry, Vec<u8>) {
    let entry = TreeEntry::File {
        path: path.to_vec(),
        mode: 0o644,
        bytes: contents.len() as u64,
    };
    (entry, contents)
}

fn symlink(path: &[u8], target: &[u8]) -> (TreeEntry, Vec<u8>) {
    let entry = TreeEntry::Symlink {
        path: path.to_vec(),
        target: target.to_vec(),
    };
    (entry, Vec::new())
}

/// Bytes that tell where they are.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    let cycle: Vec<u8> = (0..251).map(|at: u8| seed.wrapping_add(at)).collect();
    cycle.into_iter().cycle().take(len).collect()
}

/// Puts a file there as it is.
fn put(path: &Path, contents: &[u8]) {
    fs::File::create(path).unwrap().write_all(contents).unwrap();
}

/// Gives `tree` to `sink`, contents in pieces of `piece` bytes.
async fn give(mut sink: UploadSink, tree: &Tree, piece: usize) -> Result<(), Refusal> {
    for (entry, contents) in tree {
        sink.entry(entry).await?;
        for bytes in contents.chunks(piece) {
            sink.data(Bytes::copy_from_slice(bytes)).await?;
        }
    }
    sink.finish().await
}

async fn spooled(spool: &Spool, id: JobId, tree: &Tree, piece: usize) -> Result<(), Refusal> {
    give(spool.create(id).await?.into(), tree, piece).await
}

/// Reads as init's uploader does, answers, and gives back what it has read.
fn uploader(mut socket: UnixStream, failure: Failure) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut raw, mut index) = (Vec::new(), 0);
        let mut next = |len: u64| {
            let from = raw.len();
            let got = (&mut socket).take(len).read_to_end(&mut raw).unwrap();
            (got as u64 == len).then(|| raw[from..].to_vec())
        };
        let errno = loop {
            let Some(header) = next(ENTRY_BYTES as u64) else {
                break libc::EPIPE;
            };
            let word = |at: usize| u32::from_le_bytes(*header[at..].first_chunk().unwrap());
            if header[0] == entry::END {
                break failure
                    .filter(|(at, _)| *at == index)
                    .map_or(0, |(_, errno)| errno);
            }
            next(u64::from(word(8)) + u64::from(word(12))).unwrap();
            if let Some((_, errno)) = failure.filter(|(at, _)| *at == index) {
                break errno;
            }
            next(u64::from_le_bytes(*header.last_chunk().unwrap())).unwrap();
            index += 1;
        };
        let mut answer = [0; ANSWER_BYTES];
        answer[..4].copy_from_slice(&errno.to_le_bytes());
        answer[4..].copy_from_slice(&index.to_le_bytes());
        socket.write_all(&answer).unwrap();
        raw
    })
}

/// Uploads straight into a reader; what came of it and what the reader has read.
async fn direct(tree: &Tree, failure: Failure) -> (Result<(), Refusal>, Vec<u8>) {
    let (ours, inits) = UnixStream::pair().unwrap();
    let reader = uploader(inits, failure);
    let sink = UploadSink::new(OwnedFd::from(ours)).unwrap();
    let done = give(sink, tree, 16 << 10).await;
    (done, reader.join().unwrap())
}

async fn replay(spooled: &Spooled, failure: Failure) -> (Result<(), Refusal>, Vec<u8>) {
    let (ours, inits) = UnixStream::pair().unwrap();
    let reader = uploader(inits, failure);
    let done = spooled.feed(OwnedFd::from(ours)).await;
    (done, reader.join().unwrap())
}

fn any_tree() -> impl Strategy<Value = Tree> {
    let path = || vec(1..=u8::MAX, 1..60);
    let contents = (any::<u8>(), prop_oneof![0..100_usize, 0..400_000_usize])
        .prop_map(|(seed, len)| pattern(seed, len));
    let entry = prop_oneof![
        (path(), 0..=0o777_u32)
            .prop_map(|(path, mode)| (TreeEntry::Dir { path, mode }, Vec::new())),
        (path(), path()).prop_map(|(path, target)| symlink(&path, &target)),
        (path(), contents).prop_map(|(path, contents): (_, Vec<u8>)| file(&path, contents)),
    ];
    vec(entry, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_spool_is_what_a_direct_upload_sends_and_so_is_its_replay(
        tree in any_tree(),
        piece in 1_000..300_000_usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let id = JobId::random();
        let seen = on_shard(|| async {
            let (done, sent) = direct(&tree, None).await;
            assert_eq!(done, Ok(()));
            let spool = spool_in(&dir);
            spooled(&spool, id, &tree, piece).await.unwrap();
            let (done, replayed) = replay(&spool.open(id).await.unwrap(), None).await;
            assert_eq!(done, Ok(()));
            (sent, replayed)
        });
        let file = fs::read(dir.path().join(id.to_string())).unwrap();
        prop_assert!(file == seen.0, "spool and direct upload differ");
        prop_assert!(file == seen.1, "spool and replay differ");
    }
}

#[test]
fn a_spool_gets_its_name_when_it_is_whole_and_is_private() {
    for durability in [Durability::Process, Durability::Power] {
        let dir = tempfile::tempdir().unwrap();
        let id = JobId::random();
        on_shard(|| async {
            let spool = spool_with(&dir, 0, durability);
            let mut sink = spool.create(id).await.unwrap();
            let (entry, contents) = file(b"a", vec![7; 1 << 20]);
            sink.entry(&entry).await.unwrap();
            sink.data(contents.into()).await.unwrap();
            assert_eq!(names(&dir), BTreeSet::from([format!(".{id}.part")]));
            assert!(sink.pending.len() < limits::SPOOL_CHUNK_BYTES);
            sink.finish().await.unwrap();
            assert_eq!(names(&dir), BTreeSet::from([id.to_string()]));
            let mode = fs::metadata(dir.path().join(id.to_string())).unwrap();
            assert_eq!(mode.permissions().mode() & 0o7777, 0o600);
            spool.remove(id).await.unwrap();
            assert!(names(&dir).is_empty());
            spool.remove(id).await.unwrap(); // There is none any more: not an error.
        });
    }
}

#[test]
fn a_spool_that_is_given_up_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    on_shard(|| async {
        let spool = spool_in(&dir);
        // By its client.
        let mut sink = spool.create(JobId::random()).await.unwrap();
        let (entry, contents) = file(b"a", vec![7; 1 << 20]);
        sink.entry(&entry).await.unwrap();
        sink.data(contents.into()).await.unwrap();
        drop(sink);
        until_empty(&dir).await;
        // While it is given its name: whichever thread is first, no name is left.
        for _ in 0..50 {
            let draft = Draft::new(dir.path(), JobId::random());
            put(&draft.temporary, b"whole");
            match or(draft.name(false), async {}).await {
                Either::Left(done) => panic!("{done:?}, and nobody has waited"),
                Either::Right(()) => until_empty(&dir).await,
            }
        }
    });
}

#[test]
fn an_upload_that_does_not_add_up_is_never_named() {
    let dir = tempfile::tempdir().unwrap();
    on_shard(|| async {
        let spool = spool_in(&dir);
        let check = async |announced: u64, tree: &Tree, expected: &str| {
            let mut tree = tree.clone();
            if let TreeEntry::File { bytes, .. } = &mut tree[0].0 {
                *bytes = announced;
            }
            let refusal = spooled(&spool, JobId::random(), &tree, 1_000).await;
            let refusal = refusal.unwrap_err();
            assert_eq!(refusal.code, RefusalCode::Invalid);
            assert_eq!(refusal.message, expected);
            until_empty(&dir).await;
        };
        let tree = vec![file(b"a", vec![1; 10]), file(b"b", vec![])];
        check(12, &tree, "upload a ended 2 bytes early").await;
        check(12, &tree[..1].to_vec(), "upload a ended 2 bytes early").await;
        check(9, &tree, "upload a is longer than announced").await;
    });
}

#[test]
fn what_init_would_refuse_later_is_refused_now() {
    let dir = tempfile::tempdir().unwrap();
    on_shard(|| async {
        let spool = spool_in(&dir);
        let longest = vec![b'x'; limits::PATH_BYTES_MAX];
        let longer = vec![b'x'; limits::PATH_BYTES_MAX + 1];
        let fits = vec![dir_entry(&longest), symlink(&longest, &longest)];
        let id = JobId::random();
        spooled(&spool, id, &fits, 1).await.unwrap();
        spool.remove(id).await.unwrap();
        let cut = "x".repeat(80);
        for (bad, expected) in [
            (dir_entry(b""), "upload : its path is empty".to_owned()),
            (
                file(b"a\0b", vec![]),
                "upload a\0b: its path has a NUL byte".to_owned(),
            ),
            (
                dir_entry(&longer),
                format!("upload {cut}: its path is too long"),
            ),
            (
                symlink(b"l", b""),
                "upload l: its target is empty".to_owned(),
            ),
            (
                symlink(b"l", &longer),
                "upload l: its target is too long".to_owned(),
            ),
        ] {
            let refusal = spooled(&spool, JobId::random(), &vec![bad], 1)
                .await
                .unwrap_err();
            assert_eq!(
                (refusal.code, refusal.message),
                (RefusalCode::Invalid, expected)
            );
            until_empty(&dir).await;
        }
    });
}

#[test]
fn a_reader_that_fails_gives_the_words_of_a_direct_upload() {
    let dir = tempfile::tempdir().unwrap();
    let big = vec![3; 2 << 20]; // More than the socket holds: the failure comes while we still send.
    let mut tree = vec![dir_entry(b"d"), file(b"d/small", vec![1; 10])];
    tree.extend([file(b"d/big", big), symlink(b"link", b"d/big")]);
    // Headers in more than one window.
    tree.extend((0..10_000).map(|n| dir_entry(format!("many/{n:060}").as_bytes())));
    on_shard(|| async {
        let (spool, id) = (spool_in(&dir), JobId::random());
        spooled(&spool, id, &tree, 100_000).await.unwrap();
        let open = spool.open(id).await.unwrap();
        let check =
            async |index: u32, errno: i32, code: RefusalCode, message: &str, hint: Option<&str>| {
                let (expected, _) = direct(&tree, Some((index, errno))).await;
                let (refusal, _) = replay(&open, Some((index, errno))).await;
                assert_eq!(refusal, expected);
                let refusal = refusal.unwrap_err();
                assert_eq!((refusal.code, refusal.message.as_str()), (code, message));
                assert_eq!(refusal.hint.as_deref(), hint);
            };
        let larger = Some("ask for a larger /work with --work-size");
        let outside = Some("an upload may not go through a symbolic link or out of /work");
        let full = "No space left on device (os error 28)";
        let (large, failed) = (RefusalCode::TooLarge, RefusalCode::Failed);
        check(
            1,
            libc::ENOSPC,
            large,
            &format!("upload d/small: {full}"),
            larger,
        )
        .await;
        check(
            2,
            libc::ENOSPC,
            large,
            &format!("upload d/big: {full}"),
            larger,
        )
        .await;
        for (index, number) in [(5_003, 4_999), (10_003, 9_999)] {
            let message = format!("upload many/{number:060}: {full}");
            check(index, libc::ENOSPC, large, &message, larger).await;
        }
        let message = "upload link: Too many levels of symbolic links (os error 40)";
        check(3, libc::ELOOP, RefusalCode::Invalid, message, outside).await;
        let message = "upload d: No such file or directory (os error 2)";
        check(0, libc::ENOENT, failed, message, None).await;
        let message = "upload ?: Input/output error (os error 5)";
        check(10_004, libc::EIO, failed, message, None).await;
    });
}

#[test]
fn a_job_that_ends_without_a_word_ends_its_replay() {
    let dir = tempfile::tempdir().unwrap();
    on_shard(|| async {
        let (spool, id) = (spool_in(&dir), JobId::random());
        spooled(&spool, id, &vec![file(b"a", vec![1; 1 << 20])], 100_000)
            .await
            .unwrap();
        let open = spool.open(id).await.unwrap();
        let (ours, inits) = UnixStream::pair().unwrap();
        drop(inits);
        let refusal = open.feed(OwnedFd::from(ours)).await.unwrap_err();
        assert_eq!(
            refusal.message,
            "the job ended while its uploads were written"
        );
    });
}

#[test]
fn many_runs_read_one_spool_at_once_and_its_removal_does_not_disturb_them() {
    let dir = tempfile::tempdir().unwrap();
    let tree = vec![file(b"a", pattern(0, 3_000_000))];
    on_shard(|| async {
        let (spool, id) = (spool_in(&dir), JobId::random());
        spooled(&spool, id, &tree, 100_000).await.unwrap();
        let whole = fs::read(dir.path().join(id.to_string())).unwrap();
        let mut runs = Vec::new();
        for _ in 0..8 {
            let open = spool.open(id).await.unwrap();
            let (ours, inits) = UnixStream::pair().unwrap();
            let reader = uploader(inits, None);
            let fed = rt::spawn(async move { open.feed(OwnedFd::from(ours)).await });
            runs.push((fed, reader));
        }
        spool.remove(id).await.unwrap();
        for (fed, reader) in runs {
            assert_eq!(fed.await.unwrap(), Ok(()));
            assert!(
                reader.join().unwrap() == whole,
                "a run has read something else"
            );
        }
        assert!(names(&dir).is_empty());
    });
}

#[test]
fn a_spool_that_is_missing_or_cut_short_does_not_run() {
    let dir = tempfile::tempdir().unwrap();
    on_shard(|| async {
        let (spool, id) = (spool_in(&dir), JobId::random());
        let missing = spool.open(id).await.unwrap_err();
        let expected =
            format!("open the spooled uploads of job {id}: No such file or directory (os error 2)");
        assert_eq!(missing.message, expected);
        spooled(&spool, id, &vec![file(b"a", vec![1; 1_000])], 100)
            .await
            .unwrap();
        let path = dir.path().join(id.to_string());
        let whole = fs::read(&path).unwrap();
        for keep in [0, 10, ENTRY_BYTES, whole.len() - 1] {
            put(&path, &whole[..keep]);
            let refusal = spool.open(id).await.unwrap_err();
            let expected = format!("the spooled uploads of job {id} are not whole");
            assert_eq!(refusal.message, expected, "{keep}");
        }
        put(&path, &whole);
        spool.open(id).await.unwrap();
    });
}

#[test]
fn start_up_keeps_whole_spools_of_known_jobs_and_what_is_not_ours() {
    let dir = tempfile::tempdir().unwrap();
    let (known, unknown) = (JobId::random(), JobId::random());
    let upper = unknown.to_string().to_uppercase();
    for name in [
        known.to_string(),
        unknown.to_string(),
        format!(".{known}.part"),
        format!(".{unknown}.part"),
        format!("{upper}.txt"),
        "notes".to_owned(),
    ] {
        put(&dir.path().join(name), b"");
    }
    let keep = HashSet::from([known]);
    assert_eq!(clean(dir.path(), &keep).unwrap(), 3);
    let kept = [
        known.to_string(),
        format!("{upper}.txt"),
        "notes".to_owned(),
    ];
    assert_eq!(names(&dir), BTreeSet::from(kept));
    assert_eq!(clean(dir.path(), &keep).unwrap(), 0);
}

/// A tmpfs of eight mebibytes that only the calling thread and those it makes see.
fn small_disk(at: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some("size=8m")).unwrap();
}

#[test]
fn a_spool_never_touches_the_reserve_of_the_disk() {
    const RESERVE_BYTES: u64 = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    thread::scope(|scope| {
        let with_disk = scope.spawn(|| {
            small_disk(dir.path());
            on_shard(|| async {
                let spool = spool_with(&dir, RESERVE_BYTES, Durability::Process);
                let (large, id) = (vec![file(b"a", vec![1; 6 << 20])], JobId::random());
                let refusal = spooled(&spool, id, &large, 100_000).await.unwrap_err();
                assert_eq!(refusal.code, RefusalCode::Busy);
                let expected = format!(
                    "the disk of {} has nothing left but its reserve of {RESERVE_BYTES} bytes, the uploads cannot be kept",
                    dir.path().display()
                );
                assert_eq!(refusal.message, expected);
                until_empty(&dir).await;

                // Whoever goes on after a refusal gets no spool.
                let mut sink = spool.create(JobId::random()).await.unwrap();
                sink.entry(&large[0].0).await.unwrap();
                let refusal = sink.data(large[0].1.clone().into()).await.unwrap_err();
                assert_eq!(refusal.message, expected);
                let seen = statvfs(dir.path()).unwrap();
                assert!(seen.blocks_available() * seen.fragment_size() >= RESERVE_BYTES);
                let refusal = sink.finish().await.unwrap_err();
                assert!(
                    refusal.message.ends_with("are not whole"),
                    "{}",
                    refusal.message
                );
                until_empty(&dir).await;

                // There is space again, when the kernel has closed what was removed and the guard has looked.
                let small = vec![file(b"a", vec![1; 1 << 20])];
                while let Err(refusal) = spooled(&spool, id, &small, 100_000).await {
                    assert_eq!(refusal.message, expected);
                    until_empty(&dir).await;
                }
                assert_eq!(names(&dir), BTreeSet::from([id.to_string()]));
            });
        });
        with_disk.join().unwrap();
    });
}
