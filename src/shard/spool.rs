//! Uploads of jobs that run later: one file a job, which every run of it reads.
//!
//! ```text
//! BASE/spool/.<job id>.part ──finish──► BASE/spool/<job id> ──each run──► init's uploader
//!            └──dropped, or found at start-up──► gone       └──removed with its job or schedule──► gone
//! ```
//! The file holds exactly the bytes that init's uploader reads from its socket, so a run copies them and knows
//! nothing about trees. It gets its name when it is whole (and on the disk, where the store promises to survive a
//! loss of power), before the submit is acknowledged: what has the name can run. It is never changed after that,
//! so any number of runs read it at once, and one that has it open is not disturbed when it is removed.

mod replay;
#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use bytes::Bytes;

pub(super) use self::replay::Spooled;
use super::upload::{progress::Progress, wire};
use crate::{
    config::Durability,
    job::{JobId, Refusal, RefusalCode, TreeEntry},
    limits,
    log::DiskGuard,
    rt::{self, File, OpenHow},
    sys::durable,
};

/// Directory of the spools, below the base directory.
pub(super) const SPOOL: &str = "spool";
/// Beside the name of a spool that is not whole yet.
const TEMPORARY: (&str, &str) = (".", ".part");

/// The directory of spools, for one shard. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Spool {
    dir: Arc<Path>,
    disk: Arc<DiskGuard>,
    durability: Durability,
}

impl Spool {
    /// Spools in `dir`, which exists, on the file system that `disk` guards.
    pub(super) fn new(dir: &Path, disk: Arc<DiskGuard>, durability: Durability) -> Self {
        Self {
            dir: dir.into(),
            disk,
            durability,
        }
    }

    /// Begins the spool of a job that has none.
    ///
    /// # Errors
    /// `Failed` when the file cannot be made.
    pub(super) async fn create(&self, id: JobId) -> Result<SpoolSink, Refusal> {
        let draft = Draft::new(&self.dir, id);
        let file = File::open(&draft.temporary, OpenHow::CreateNew)
            .await
            .map_err(|error| failed("make", id, &error))?;
        Ok(SpoolSink {
            disk: Arc::clone(&self.disk),
            durability: self.durability,
            progress: Progress::default(),
            file: Some(file),
            pending: Vec::new(),
            written: 0,
            draft,
        })
    }

    /// Opens the spool of a job that is about to run, whole as it is.
    ///
    /// # Errors
    /// `Failed` when there is none, or when it is damaged.
    pub(super) async fn open(&self, id: JobId) -> Result<Spooled, Refusal> {
        let file = File::open(&self.dir.join(id.to_string()), OpenHow::Read)
            .await
            .map_err(|error| failed("open", id, &error))?;
        Spooled::check(id, file).await
    }

    /// Removes what there is of a job's spool; none is not an error. Runs that have it open go on.
    ///
    /// # Errors
    /// As unlink(2), or when the blocking pool is full; [`clean`] removes it at the next start then.
    pub(super) async fn remove(&self, id: JobId) -> io::Result<()> {
        let names = [self.dir.join(id.to_string()), temporary(&self.dir, id)];
        // Giving back a few gigabytes takes the file system a moment.
        rt::blocking("remove a spool", move || remove_all(&names))
            .await
            .map_err(io::Error::other)?
    }
}

/// Removes the spools in `dir` that are not whole or whose job is not in `keep`; returns how many. For start-up:
/// it blocks, and nobody may be writing there. What no spool is named like is left alone.
///
/// # Errors
/// As readdir(3) and unlink(2).
pub(super) fn clean(dir: &Path, keep: &HashSet<JobId>) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_kept = match Name::parse(&entry.file_name()) {
            Some(Name::Whole(id)) => keep.contains(&id),
            Some(Name::Part) => false,
            None => true,
        };
        if !is_kept {
            fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// What a name in the directory says.
enum Name {
    Whole(JobId),
    Part,
}

impl Name {
    fn parse(name: &OsStr) -> Option<Self> {
        let name = name.to_str()?;
        // Only as we write it: other spellings of a UUID are not ours.
        let id_of = |text: &str| JobId::parse(text).filter(|id| id.to_string() == text);
        let (before, after) = TEMPORARY;
        match name
            .strip_prefix(before)
            .and_then(|rest| rest.strip_suffix(after))
        {
            Some(part) => id_of(part).map(|_| Self::Part),
            None => id_of(name).map(Self::Whole),
        }
    }
}

fn temporary(dir: &Path, id: JobId) -> PathBuf {
    let (before, after) = TEMPORARY;
    dir.join(format!("{before}{id}{after}"))
}

fn remove_all(paths: &[PathBuf]) -> io::Result<()> {
    for path in paths {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

fn failed(verb: &str, id: JobId, error: &dyn std::error::Error) -> Refusal {
    let message = format!("{verb} the spooled uploads of job {id}: {error}");
    Refusal::new(RefusalCode::Failed, message)
}

/// Writes an upload to its spool. Dropped before [`SpoolSink::finish`] has ended, it leaves nothing.
#[derive(Debug)]
pub(super) struct SpoolSink {
    disk: Arc<DiskGuard>,
    durability: Durability,
    progress: Progress,
    /// `None` when a write has failed or was abandoned: such a spool is never given its name.
    file: Option<File>,
    /// What is not written yet: less than one chunk.
    pending: Vec<u8>,
    written: u64,
    draft: Draft,
}

impl SpoolSink {
    /// The next entry. The last file must be complete.
    ///
    /// # Errors
    /// `Invalid` when the last file is short, or init would not take the entry; `Busy` when the disk is full.
    pub(super) async fn entry(&mut self, entry: &TreeEntry) -> Result<(), Refusal> {
        check_entry(entry)?;
        self.progress.begin(entry)?;
        self.push(&wire::header(entry)).await
    }

    /// Some bytes of the last file.
    ///
    /// # Errors
    /// `Invalid` when there are more than its entry said; `Busy` when the disk is full.
    pub(super) async fn data(&mut self, bytes: Bytes) -> Result<(), Refusal> {
        self.progress.advance(bytes.len())?;
        self.push(&bytes).await
    }

    /// No more entries: the spool gets its name, and is on the disk when the store's durability is `power`.
    ///
    /// # Errors
    /// As [`SpoolSink::entry`]; `Failed` when the disk does not take it. Nothing is left then.
    ///
    /// # Cancel
    /// Nothing is left.
    pub(super) async fn finish(mut self) -> Result<(), Refusal> {
        self.progress.check_complete()?;
        self.push(&wire::end()).await?;
        self.flush().await?;
        let id = self.draft.id;
        let file = self.file.take().ok_or_else(|| torn(id))?;
        let to_disk = match self.durability {
            Durability::Process => false,
            Durability::Power => true,
        };
        if to_disk {
            // Before the rename: a name that survives must not stand for less than everything.
            let synced = file.sync_data().await;
            synced.map_err(|error| failed("sync", id, &error))?;
        }
        self.draft.name(to_disk).await
    }

    async fn push(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            let room = limits::SPOOL_CHUNK_BYTES - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == limits::SPOOL_CHUNK_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Writes what is pending, as far as the disk's reserve is not touched.
    async fn flush(&mut self) -> Result<(), Refusal> {
        let id = self.draft.id;
        let file = self.file.take().ok_or_else(|| torn(id))?;
        let mut rest = Bytes::from(std::mem::take(&mut self.pending));
        while !rest.is_empty() {
            let grant = self.disk.take(rest.len() as u64);
            let granted = usize::try_from(grant.bytes()).unwrap_or(usize::MAX);
            if granted == 0 {
                return Err(no_space(&self.disk));
            }
            let now = rest.split_to(granted.min(rest.len()));
            let count = now.len() as u64;
            let wrote = file.write_all_at(now, self.written).await;
            grant.settle(count);
            wrote.map_err(|error| match error.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => no_space(&self.disk),
                _ => failed("write", id, &error),
            })?;
            self.written += count;
        }
        self.file = Some(file);
        Ok(())
    }
}

/// What init's uploader relies on. It would refuse the rest as well, but only when the job runs.
fn check_entry(entry: &TreeEntry) -> Result<(), Refusal> {
    let (path, target) = match entry {
        TreeEntry::Dir { path, .. } | TreeEntry::File { path, .. } => (path, None),
        TreeEntry::Symlink { path, target } => (path, Some(target)),
    };
    for part in std::iter::once(path).chain(target) {
        let why = if part.is_empty() {
            "is empty"
        } else if part.len() > limits::PATH_BYTES_MAX {
            "is too long"
        } else if part.contains(&0) {
            "has a NUL byte"
        } else {
            continue;
        };
        let what = if std::ptr::eq(part, path) {
            "path"
        } else {
            "target"
        };
        let shown: String = String::from_utf8_lossy(path).chars().take(80).collect();
        let message = format!("upload {shown}: its {what} {why}");
        return Err(Refusal::new(RefusalCode::Invalid, message));
    }
    Ok(())
}

fn no_space(disk: &DiskGuard) -> Refusal {
    let message = format!(
        "the disk of {} has nothing left but its reserve of {} bytes, the uploads cannot be kept",
        disk.path().display(),
        disk.reserve_bytes()
    );
    Refusal::new(RefusalCode::Busy, message)
        .hint("delete jobs or make space there, then submit again")
}

fn torn(id: JobId) -> Refusal {
    let message = format!("the spooled uploads of job {id} are not whole");
    Refusal::new(RefusalCode::Failed, message)
}

/// The names of a spool until it is whole. Dropped before, it leaves neither of them.
#[derive(Debug)]
struct Draft {
    id: JobId,
    dir: PathBuf,
    temporary: PathBuf,
    whole: PathBuf,
    is_named: bool,
    /// Tells a rename that is under way on another thread that it comes too late.
    is_abandoned: Arc<AtomicBool>,
}

impl Draft {
    fn new(dir: &Path, id: JobId) -> Self {
        Self {
            id,
            dir: dir.to_path_buf(),
            temporary: temporary(dir, id),
            whole: dir.join(id.to_string()),
            is_named: false,
            is_abandoned: Arc::default(),
        }
    }

    /// Gives the file its name; `to_disk` so that a loss of power does not take it away.
    async fn name(mut self, to_disk: bool) -> Result<(), Refusal> {
        let (dir, from, to) = (self.dir.clone(), self.temporary.clone(), self.whole.clone());
        let is_abandoned = Arc::clone(&self.is_abandoned);
        let rename = move || {
            fs::rename(from, &to)?;
            // Looked at after the rename and set before both names are removed: one of the two sees the other.
            if is_abandoned.load(SeqCst) {
                return fs::remove_file(to);
            }
            if to_disk {
                durable::sync_dir(&dir)
            } else {
                Ok(())
            }
        };
        rt::blocking("name a spool", rename)
            .await
            .map_err(|error| {
                Refusal::new(RefusalCode::Busy, error.to_string()).hint("try again in a moment")
            })?
            .map_err(|error| failed("name", self.id, &error))?;
        self.is_named = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.is_named {
            return;
        }
        self.is_abandoned.store(true, SeqCst);
        let names = [
            std::mem::take(&mut self.temporary),
            std::mem::take(&mut self.whole),
        ];
        let id = self.id;
        let removed = rt::blocking("remove a spool", move || remove_all(&names));
        rt::spawn(async move {
            let done = removed.await.map_err(io::Error::other).flatten();
            if let Err(error) = done {
                tracing::warn!(job_id = %id, %error, "a half-made spool stays until the next start");
            }
        });
    }
}
