//! The files of the journal: what is read at the start of a daemon, and how they stay small.
//!
//! ```text
//! BASE/journal/  history.log   what earlier daemons left, written whole
//!                0.log 1.log…  what shards append since
//!                damaged.log   lines that nobody could read, kept for people
//! ```
//! A file may end in the middle of a line: the daemon died while it wrote, and nobody was told that the job
//! was accepted or had ended. That piece is cut off, or the next record would be glued to it. A bad line
//! anywhere else is damage: it is reported, skipped, and kept.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{
    encode_accepted, encode_ended,
    line::{Ended, Record},
};
use crate::{
    job::{JobId, JobView, Outcome, Reason, ShardIndex, State, Transition, Usage},
    sys::durable,
};

const HISTORY: &str = "history.log";
const DAMAGED: &str = "damaged.log";

/// What a journal says, oldest job first.
#[derive(Debug, Default)]
pub struct Replay {
    /// Jobs that have ended.
    pub ended: Vec<JobView>,
    /// Jobs whose end nobody wrote down: now ended as `host_lost`, at the moment given to [`replay`]. The
    /// caller writes that down, with [`compact`] or [`encode_ended`].
    pub lost: Vec<JobView>,
    /// Files that ended in the middle of a line; those pieces were cut off.
    pub torn: usize,
    /// Lines that were skipped.
    pub damaged: Vec<Damage>,
}

/// A line that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// In which file.
    pub path: PathBuf,
    /// Which line, counted from 1.
    pub line: usize,
    /// What stands there, without the newline.
    pub bytes: Vec<u8>,
}

/// The same point in time on both clocks, nanoseconds: wall since the epoch, monotonic since the boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Wall clock.
    pub wall_ns: i64,
    /// Monotonic clock.
    pub mono_ns: u64,
}

/// What [`compact`] kept and what it forgot, oldest job first.
#[derive(Debug)]
pub struct History {
    /// Jobs that are still in the journal.
    pub kept: Vec<JobView>,
    /// Jobs that are not: their output can be removed.
    pub forgotten: Vec<JobView>,
}

/// Why a journal cannot be read or written.
#[derive(Debug, Error)]
#[error("{verb} {}", .path.display())]
pub struct JournalError {
    /// What was tried.
    pub verb: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

fn error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError {
        verb,
        path: path.to_owned(),
        source,
    }
}

/// The file that shard `shard` appends to.
#[must_use]
pub fn shard_file(dir: &Path, shard: ShardIndex) -> PathBuf {
    dir.join(format!("{shard}.log"))
}

/// Opens the file of shard `shard` for appending (O_APPEND, 0600), and makes it if it is not there.
///
/// # Errors
/// [`JournalError`] when the kernel refuses.
pub fn open_shard(dir: &Path, shard: ShardIndex) -> Result<File, JournalError> {
    let path = shard_file(dir, shard);
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(error("open", &path))
}

/// Reads the whole journal in `dir`, and cuts off what was written half. Nobody may be writing meanwhile.
///
/// # Errors
/// [`JournalError`] when a file cannot be read or cut.
pub fn replay(dir: &Path, now: Moment) -> Result<Replay, JournalError> {
    let mut found = Replay::default();
    let mut jobs: HashMap<JobId, JobView> = HashMap::new();
    let mut ends: Vec<(Ended, Damage)> = Vec::new();
    for path in files(dir)? {
        found.torn += usize::from(read_lines(&path, |damage| {
            match Record::parse(&damage.bytes) {
                Some(Record::Accepted(accepted)) => match accepted.into_view() {
                    Some(view) => drop(jobs.insert(view.id, view)),
                    None => found.damaged.push(damage),
                },
                Some(Record::Ended(ended)) => ends.push((ended, damage)),
                None => found.damaged.push(damage),
            }
        })?);
    }
    // A job that is owned by another shard than before has its end in another file than its beginning.
    for (ended, damage) in ends {
        match ended.id().and_then(|id| jobs.get_mut(&id)) {
            Some(view) => ended.apply(view),
            None => found.damaged.push(damage),
        }
    }
    for mut view in jobs.into_values() {
        if view.outcome.is_some() {
            found.ended.push(view);
        } else {
            lose(&mut view, now);
            found.lost.push(view);
        }
    }
    found.ended.sort_by_key(age);
    found.lost.sort_by_key(age);
    Ok(found)
}

/// Writes the journal anew with the newest `history_jobs` ended jobs of `jobs`, and all that have not ended.
/// Lines of `damaged` move to a file of their own.
///
/// A crash at any point loses no record: files of shards are removed when all they say is in the new one.
///
/// # Errors
/// [`JournalError`] when something cannot be written; the old journal is then still whole.
pub fn compact(
    dir: &Path,
    mut jobs: Vec<JobView>,
    damaged: &[Damage],
    history_jobs: usize,
) -> Result<History, JournalError> {
    jobs.sort_by_key(age);
    let ended = jobs.iter().filter(|view| view.outcome.is_some()).count();
    let mut surplus = ended.saturating_sub(history_jobs);
    let (forgotten, kept): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|view| {
        let is_forgotten = surplus > 0 && view.outcome.is_some();
        surplus -= usize::from(is_forgotten);
        is_forgotten
    });

    keep_damaged(dir, damaged)?;
    let history = dir.join(HISTORY);
    durable::replace_with(&history, |file| {
        let mut out = BufWriter::new(file);
        for view in &kept {
            out.write_all(&encode_accepted(view))?;
            if view.outcome.is_some() {
                out.write_all(&encode_ended(view))?;
            }
        }
        out.flush()
    })
    .map_err(error("write", &history))?;
    for path in files(dir)? {
        if path != history {
            fs::remove_file(&path).map_err(error("remove", &path))?;
        }
    }
    Ok(History { kept, forgotten })
}

/// Appends damaged lines to their own file, before the files they came from are replaced.
fn keep_damaged(dir: &Path, damaged: &[Damage]) -> Result<(), JournalError> {
    if damaged.is_empty() {
        return Ok(());
    }
    let path = dir.join(DAMAGED);
    let append = || {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)?;
        let mut lines = Vec::new();
        for damage in damaged {
            lines.extend_from_slice(&damage.bytes);
            lines.push(b'\n');
        }
        file.write_all(&lines)?;
        file.sync_all()
    };
    append().map_err(error("write", &path))
}

/// The files with records in them: the history first, then those of shards in their order.
fn files(dir: &Path) -> Result<Vec<PathBuf>, JournalError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(error("list", dir))? {
        let name = entry.map_err(error("list", dir))?.file_name();
        let shard = name
            .to_str()
            .and_then(|name| name.strip_suffix(".log")?.parse::<usize>().ok());
        if name == HISTORY || shard.is_some() {
            found.push((shard, dir.join(name)));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Gives every whole line to `take`; cuts off a last one that has no newline, and says whether there was one.
fn read_lines(path: &Path, mut take: impl FnMut(Damage)) -> Result<bool, JournalError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(error("open", path))?;
    let mut reader = BufReader::new(&file);
    let mut whole_bytes = 0;
    for line in 1.. {
        let mut bytes = Vec::new();
        let read = reader
            .read_until(b'\n', &mut bytes)
            .map_err(error("read", path))?;
        if bytes.pop_if(|last| *last == b'\n').is_none() {
            if read == 0 {
                return Ok(false);
            }
            file.set_len(whole_bytes)
                .and_then(|()| file.sync_all())
                .map_err(error("cut", path))?;
            return Ok(true);
        }
        whole_bytes += u64::try_from(read).unwrap_or(u64::MAX);
        take(Damage {
            path: path.to_owned(),
            line,
            bytes,
        });
    }
    unreachable!("no file has so many lines")
}

/// Ends a job whose true end nobody knows.
fn lose(view: &mut JobView, now: Moment) {
    view.state = State::Failed;
    view.transitions.push(Transition {
        state: State::Failed,
        wall_ns: now.wall_ns,
        mono_ns: now.mono_ns,
    });
    view.outcome = Some(Outcome {
        reason: Reason::HostLost,
        exit_code: None,
        signal: None,
        usage: Usage::default(),
        wall_ms: 0,
        queued_ms: 0,
        start_micros: None,
    });
}

/// Orders jobs by when they were accepted; the id only makes the order total.
fn age(view: &JobView) -> (Option<i64>, JobId) {
    (view.transitions.first().map(|first| first.wall_ns), view.id)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use proptest::{collection::vec, strategy::ValueTree, test_runner::TestRunner};

    use super::{super::record::tests::*, *};

    const NOW: Moment = Moment {
        wall_ns: 77,
        mono_ns: 88,
    };

    /// `count` jobs without secrets, oldest first.
    fn jobs(count: usize) -> Vec<JobView> {
        let tree = proptest::strategy::Strategy::new_tree(
            &vec(ended_job(), count),
            &mut TestRunner::deterministic(),
        );
        let mut jobs: Vec<_> = tree
            .unwrap()
            .current()
            .into_iter()
            .map(without_secrets)
            .collect();
        for (index, job) in jobs.iter_mut().enumerate() {
            job.transitions[0].wall_ns = i64::try_from(index).unwrap();
        }
        jobs
    }

    fn append(dir: &Path, shard: usize, bytes: &[u8]) {
        open_shard(dir, shard).unwrap().write_all(bytes).unwrap();
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn jobs_come_back_oldest_first_whatever_file_they_are_in() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = jobs(5);
        for (index, job) in jobs.iter().enumerate().rev() {
            append(dir.path(), index % 3, &encode_accepted(job));
            append(dir.path(), (index + 1) % 3, &encode_ended(job));
        }
        let found = replay(dir.path(), NOW).unwrap();
        assert_eq!(found.ended, jobs);
        assert_eq!(
            (found.lost.len(), found.torn, found.damaged.len()),
            (0, 0, 0)
        );
        assert_eq!(
            fs::metadata(shard_file(dir.path(), 0)).unwrap().mode() & 0o7777,
            0o600
        );
    }

    #[test]
    fn a_job_without_an_end_is_lost_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut job = jobs(1).remove(0);
        job.outcome = None;
        append(dir.path(), 0, &encode_accepted(&job));
        let lost = replay(dir.path(), NOW).unwrap().lost.remove(0);
        assert_eq!(lost.state, State::Failed);
        assert_eq!(lost.outcome.as_ref().unwrap().reason, Reason::HostLost);
        let last = Transition {
            state: State::Failed,
            wall_ns: NOW.wall_ns,
            mono_ns: NOW.mono_ns,
        };
        assert_eq!(lost.transitions.last(), Some(&last));

        append(dir.path(), 1, &encode_ended(&lost));
        let found = replay(
            dir.path(),
            Moment {
                wall_ns: 1,
                mono_ns: 1,
            },
        )
        .unwrap();
        assert_eq!((found.ended, found.lost.len()), (vec![lost], 0));
    }

    #[test]
    fn a_torn_end_is_cut_wherever_it_tears_and_the_next_record_stands_alone() {
        let jobs = jobs(2);
        let last = encode_ended(&jobs[0]);
        for cut in [1, last.len() / 2, last.len() - 1] {
            let dir = tempfile::tempdir().unwrap();
            append(dir.path(), 0, &encode_accepted(&jobs[0]));
            append(dir.path(), 0, &last[..cut]);
            let found = replay(dir.path(), NOW).unwrap();
            assert_eq!((found.ended.len(), found.lost.len(), found.torn), (0, 1, 1));
            assert_eq!(found.damaged, []);
            append(dir.path(), 0, &encode_ended(&found.lost[0]));
            let found = replay(dir.path(), NOW).unwrap();
            assert_eq!(
                (
                    found.ended.len(),
                    found.lost.len(),
                    found.torn,
                    found.damaged.len()
                ),
                (1, 0, 0, 0)
            );
        }
    }

    #[test]
    fn damage_in_the_middle_is_skipped_named_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = jobs(3);
        append(dir.path(), 0, &encode_accepted(&jobs[0]));
        append(dir.path(), 0, b"\0\0 nonsense\n");
        append(dir.path(), 0, &encode_ended(&jobs[0]));
        append(dir.path(), 1, &encode_ended(&jobs[1]));
        append(dir.path(), 1, &encode_accepted(&jobs[2]));
        let found = replay(dir.path(), NOW).unwrap();
        assert_eq!(found.ended, jobs[..1]);
        assert_eq!(found.lost.len(), 1);
        let places: Vec<_> = found
            .damaged
            .iter()
            .map(|damage| (damage.path.clone(), damage.line))
            .collect();
        assert_eq!(
            places,
            [
                (shard_file(dir.path(), 0), 2),
                (shard_file(dir.path(), 1), 1)
            ]
        );
        assert_eq!(found.damaged[0].bytes, b"\0\0 nonsense");

        let all = found.ended.into_iter().chain(found.lost).collect();
        let history = compact(dir.path(), all, &found.damaged, 10).unwrap();
        assert_eq!((history.kept.len(), history.forgotten.len()), (2, 0));
        assert_eq!(names(dir.path()), ["damaged.log", "history.log"]);
        let mut kept = b"\0\0 nonsense\n".to_vec();
        kept.extend(encode_ended(&jobs[1]));
        assert_eq!(fs::read(dir.path().join(DAMAGED)).unwrap(), kept);
        let found = replay(dir.path(), NOW).unwrap();
        assert_eq!(found.ended, history.kept);
        assert_eq!((found.lost.len(), found.damaged.len()), (0, 0));
    }

    #[test]
    fn only_the_newest_ended_jobs_are_kept_and_all_that_live() {
        let dir = tempfile::tempdir().unwrap();
        let mut jobs = jobs(6);
        jobs[0].outcome = None;
        for shard in [0, 7] {
            append(dir.path(), shard, &encode_accepted(&jobs[1]));
        }
        let mut shuffled = jobs.clone();
        shuffled.reverse();
        let history = compact(dir.path(), shuffled, &[], 3).unwrap();
        let expected: Vec<_> = [0, 3, 4, 5].map(|index| jobs[index].clone()).into();
        assert_eq!(history.kept, expected);
        assert_eq!(history.forgotten, jobs[1..3]);
        assert_eq!(names(dir.path()), ["history.log"]);
        let found = replay(dir.path(), NOW).unwrap();
        assert_eq!(found.ended, jobs[3..]);
        assert_eq!(found.lost[0].id, jobs[0].id);
    }

    #[test]
    fn a_crash_between_the_new_history_and_the_removal_of_old_files_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = jobs(2);
        for job in &jobs {
            append(
                dir.path(),
                0,
                &[encode_accepted(job), encode_ended(job)].concat(),
            );
        }
        let old = fs::read(shard_file(dir.path(), 0)).unwrap();
        compact(dir.path(), jobs.clone(), &[], 10).unwrap();
        append(dir.path(), 0, &old);
        let found = replay(dir.path(), NOW).unwrap();
        assert_eq!(
            (found.ended, found.lost.len(), found.damaged.len()),
            (jobs, 0, 0)
        );
    }

    #[test]
    fn an_empty_journal_has_no_jobs_and_a_missing_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(replay(dir.path(), NOW).unwrap().ended, []);
        assert_eq!(compact(dir.path(), Vec::new(), &[], 1).unwrap().kept, []);
        let missing = dir.path().join("none");
        assert_eq!(
            replay(&missing, NOW).unwrap_err().to_string(),
            format!("list {}", missing.display())
        );
    }
}
