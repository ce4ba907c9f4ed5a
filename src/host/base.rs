//! The base directory: everything that one daemon keeps on disk, and who may use it.
//!
//! ```text
//! BASE/            0700, by default /opt/joblet
//!   joblet.yml     configuration
//!   instance       eight hex digits
//!   seal.key       seals secrets of jobs that wait
//!   lock           locked by the daemon that serves here; holds its pid, for people
//!   run/           sockets of helper processes
//!   jobs/          a directory a job: its output
//!   pki/           authority, server certificate, keys
//!   store.db       jobs, as a SQLite database; store.db-wal and store.db-shm belong to it
//!   work/          disk images of `/work`
//!   volumes/       a directory a volume: its image and, mounted, what is in it
//!   spool/         uploads of jobs that run later, a file a job
//! ```
//! Nobody else may be able to change what is here: a path that others own or may write is refused.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::{Pid, geteuid},
};
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;

use super::{Holder, Instance};
use crate::{limits, sys::durable};

/// Length of the key of the store.
const SEAL_KEY_BYTES: usize = 32;

/// Between two tries to take a lock that nobody is left to give.
const LOCK_PAUSE: Duration = Duration::from_millis(2);

const DIRS: [&str; 5] = ["run", "jobs", "pki", "work", "spool"];

/// A base directory that has been checked.
#[derive(Debug, Clone)]
pub struct Base {
    root: PathBuf,
    instance: Instance,
}

/// The proof that this process alone serves a base directory. Ends when it is dropped or the process dies.
#[derive(Debug)]
pub struct BaseLock {
    _file: Flock<File>,
}

/// Why a base directory cannot be used.
#[derive(Debug, Error)]
pub enum BaseError {
    /// Nothing was set up there.
    #[error("{} is not set up; run: joblet init --base {}", .0.display(), .0.display())]
    Missing(PathBuf),
    /// Somebody else could change what is there.
    #[error("{} {why}; give it to the user that runs the daemon with mode 0700", .path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file `instance` holds something else.
    #[error("{} does not hold eight hex digits; restore it, jobs that still run are found by it", .0.display())]
    Instance(PathBuf),
    /// The key of the store is something else.
    #[error("{} does not hold {SEAL_KEY_BYTES} bytes; restore it, secrets of waiting jobs are sealed with it", .0.display())]
    SealKey(PathBuf),
    /// Another daemon serves there.
    #[error("{} is in use by {}", .root.display(), describe(*.pid))]
    Held {
        /// The base directory.
        root: PathBuf,
        /// The process that says it holds it.
        pid: Option<Pid>,
    },
    /// The kernel refused.
    #[error("{verb} {}", .path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn describe(pid: Option<Pid>) -> String {
    pid.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    )
}

impl Base {
    /// Makes what is missing of the base directory `root`; what exists is kept.
    ///
    /// # Errors
    /// [`BaseError`] when it cannot be made or is not safe to use.
    pub fn create(root: &Path) -> Result<Self, BaseError> {
        durable::make_private_dir(root).map_err(|source| io_error("make", root, source))?;
        let root = canonical(root)?;
        // The lock of the directory itself: two set-ups at once must agree on one instance.
        let _alone = alone(&root)?;
        check_place(&root)?;
        let file = root.join("instance");
        if !file.exists() {
            let line = format!("{}\n", Instance::random());
            durable::replace(&file, line.as_bytes())
                .map_err(|source| io_error("write", &file, source))?;
        }
        Self::open(&root)
    }

    /// The base directory `root`, which was set up before. Subdirectories that are missing are made.
    ///
    /// # Errors
    /// [`BaseError::Missing`] when it was not set up, others when it is not safe to use.
    pub fn open(root: &Path) -> Result<Self, BaseError> {
        let file = root.join("instance");
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(BaseError::Missing(root.to_owned()));
            }
            Err(source) => return Err(io_error("read", &file, source)),
        };
        let root = canonical(root)?;
        check_place(&root)?;
        let instance = text.parse().map_err(|_| BaseError::Instance(file))?;
        for dir in DIRS {
            let path = root.join(dir);
            durable::make_private_dir(&path).map_err(|source| io_error("make", &path, source))?;
            check_own(&path)?;
        }
        Ok(Self { root, instance })
    }

    /// Takes the lock of the set-up, so that two `init` do not mix their keys. Waits for the other one.
    ///
    /// # Errors
    /// [`BaseError::Io`] when the kernel refuses.
    pub fn set_up_alone(&self) -> Result<impl Drop + use<>, BaseError> {
        alone(&self.root)
    }

    /// Takes the lock that the one daemon of this directory holds, and writes our pid. A daemon that lives is not
    /// waited for; of one that was killed a child that it was just making may have the lock for a moment more.
    ///
    /// # Errors
    /// [`BaseError::Held`] when another process has it.
    pub fn lock(&self) -> Result<BaseLock, BaseError> {
        let path = self.lock_file();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|source| io_error("open", &path, source))?;
        #[expect(
            clippy::disallowed_methods,
            reason = "before there is any shard, whose clock could be asked"
        )]
        let is_late = {
            let begin = Instant::now();
            move || begin.elapsed() >= limits::LOCK_ORPHANED_MAX
        };
        let mut file = file;
        let mut locked = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => break locked,
                Err((again, Errno::EWOULDBLOCK)) => {
                    if self.holder()?.is_some() || is_late() {
                        return Err(BaseError::Held {
                            root: self.root.clone(),
                            pid: self.written_pid(),
                        });
                    }
                    file = again;
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "before there is any shard, and nobody says when it is given"
                    )]
                    thread::sleep(LOCK_PAUSE);
                }
                Err((_, errno)) => return Err(io_error("lock", &path, errno.into())),
            }
        };
        locked
            .set_len(0)
            .and_then(|()| locked.write_all(format!("{}\n", Pid::this()).as_bytes()))
            .map_err(|source| io_error("write", &path, source))?;
        Ok(BaseLock { _file: locked })
    }

    /// The process that holds the lock now, found by the pid in the file and proved by the kernel's own list
    /// of its locks. `None` when that process does not hold it.
    ///
    /// # Errors
    /// [`BaseError::Io`] when the kernel refuses to tell.
    pub fn holder(&self) -> Result<Option<Holder>, BaseError> {
        let path = self.lock_file();
        let Some(pid) = self.written_pid() else {
            return Ok(None);
        };
        Holder::find(pid, &path).map_err(|source| io_error("find who holds", &path, source))
    }

    /// The pid that the last holder of the lock has written. It proves nothing.
    fn written_pid(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.lock_file()).ok()?;
        text.trim()
            .parse()
            .ok()
            .filter(|pid| *pid > 0)
            .map(Pid::from_raw)
    }

    /// The directory itself, absolute and without symbolic links.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The mark on every kernel object of this daemon.
    #[must_use]
    pub fn instance(&self) -> Instance {
        self.instance
    }

    /// The key under which the store seals secrets; made when there is none.
    ///
    /// # Errors
    /// [`BaseError::Io`]; [`BaseError::SealKey`] when the file is no key.
    pub fn seal_key(&self) -> Result<[u8; SEAL_KEY_BYTES], BaseError> {
        let path = self.root.join("seal.key");
        match fs::read(&path) {
            Ok(bytes) => bytes.try_into().map_err(|_| BaseError::SealKey(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut key = [0; SEAL_KEY_BYTES];
                SystemRandom::new()
                    .fill(&mut key)
                    .map_err(|_| io_error("draw", &path, io::Error::other("no random bytes")))?;
                durable::replace(&path, &key).map_err(|source| io_error("write", &path, source))?;
                Ok(key)
            }
            Err(source) => Err(io_error("read", &path, source)),
        }
    }

    /// Whether keepers of a former daemon may hold jobs: their sockets are there.
    ///
    /// # Errors
    /// [`BaseError::Io`].
    pub fn has_keepers(&self) -> Result<bool, BaseError> {
        let run = self.run();
        let entries = fs::read_dir(&run).map_err(|source| io_error("list", &run, source))?;
        Ok(entries
            .flatten()
            .any(|entry| entry.path().extension() == Some(OsStr::new("sock"))))
    }

    /// The configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.root.join("joblet.yml")
    }

    /// The file that the daemon locks.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Where the sockets of helper processes are.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Where each job has a directory.
    #[must_use]
    pub fn jobs(&self) -> PathBuf {
        self.root.join("jobs")
    }

    /// The database of jobs.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.root.join("store.db")
    }

    /// Where certificates and keys are.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// Where the disk images of `/work` are.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// Where the uploads of jobs that run later are.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }
}

fn io_error(verb: &'static str, path: &Path, source: io::Error) -> BaseError {
    BaseError::Io {
        verb,
        path: path.to_owned(),
        source,
    }
}

fn canonical(root: &Path) -> Result<PathBuf, BaseError> {
    root.canonicalize()
        .map_err(|source| io_error("resolve", root, source))
}

/// Holds the lock of the directory `root` itself, which lasts for a set-up only.
fn alone(root: &Path) -> Result<Flock<File>, BaseError> {
    let dir = File::open(root).map_err(|source| io_error("open", root, source))?;
    Flock::lock(dir, FlockArg::LockExclusive)
        .map_err(|(_, errno)| io_error("lock", root, errno.into()))
}

/// Refuses a canonical `root` that somebody else could change or replace.
fn check_place(root: &Path) -> Result<(), BaseError> {
    check_own(root)?;
    for above in root.ancestors().skip(1) {
        let facts = above
            .symlink_metadata()
            .map_err(|source| io_error("look at", above, source))?;
        let unsafe_because = |why| BaseError::Unsafe {
            path: above.to_owned(),
            why,
        };
        if facts.uid() != 0 && facts.uid() != geteuid().as_raw() {
            return Err(unsafe_because("belongs to somebody else"));
        }
        // In a sticky directory like /tmp others cannot rename what is ours.
        if facts.mode() & 0o1002 == 0o0002 {
            return Err(unsafe_because("can be written by everybody"));
        }
    }
    Ok(())
}

/// Refuses a directory of ours that others own or may write.
fn check_own(path: &Path) -> Result<(), BaseError> {
    let facts = path
        .symlink_metadata()
        .map_err(|source| io_error("look at", path, source))?;
    let unsafe_because = |why| {
        Err(BaseError::Unsafe {
            path: path.to_owned(),
            why,
        })
    };
    if !facts.is_dir() {
        return unsafe_because("is no directory");
    }
    if facts.uid() != geteuid().as_raw() {
        return unsafe_because("belongs to somebody else");
    }
    if facts.mode() & 0o022 != 0 {
        return unsafe_because("can be written by others");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::process::{Command, Stdio};

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn making_a_base_twice_keeps_the_instance_and_all_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("opt/joblet");
        assert!(matches!(Base::open(&root), Err(BaseError::Missing(_))));
        let first = Base::create(&root).unwrap();
        let second = Base::create(&root).unwrap();
        assert_eq!(first.instance(), second.instance());
        assert_eq!(Base::open(&root).unwrap().instance(), first.instance());
        for path in [
            first.root().to_owned(),
            first.run(),
            first.jobs(),
            first.pki(),
            first.work(),
            first.spool(),
        ] {
            assert_eq!(
                fs::metadata(&path).unwrap().mode() & 0o7777,
                0o700,
                "{}",
                path.display()
            );
        }
        assert_eq!(
            fs::metadata(root.join("instance")).unwrap().mode() & 0o7777,
            0o600
        );
    }

    #[test]
    fn the_lock_is_held_by_one_and_says_by_whom() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base::create(dir.path()).unwrap();
        assert!(base.holder().unwrap().is_none());
        let lock = base.lock().unwrap();
        let error = base.lock().unwrap_err();
        assert!(matches!(&error, BaseError::Held { pid: Some(pid), .. } if *pid == Pid::this()));
        assert_eq!(
            error.to_string(),
            format!(
                "{} is in use by process {}",
                base.root().display(),
                Pid::this()
            )
        );
        assert_eq!(base.holder().unwrap().unwrap().pid(), Pid::this());
        drop(lock);
        assert!(
            base.holder().unwrap().is_none(),
            "the pid is still written, the lock is not held"
        );
        drop(base.lock().unwrap());
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "the test needs a process of its own to end"
    )]
    fn a_lock_that_an_ended_daemon_has_left_to_a_child_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base::create(dir.path()).unwrap();
        // No process has that number.
        File::create(base.lock_file())
            .and_then(|mut file| file.write_all(b"4194305\n"))
            .unwrap();
        let mut child = Command::new("flock")
            .arg("--no-fork")
            .arg(base.lock_file())
            .args(["sh", "-c", "echo; exec sleep 0.2"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0];
        child.stdout.take().unwrap().read_exact(&mut said).unwrap();
        drop(base.lock().unwrap());
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn places_that_others_may_change_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        let root = open.join("base");
        let base = Base::create(&root).unwrap();
        let refused = |why: &str, at: &Path| match Base::open(&root) {
            Err(error @ BaseError::Unsafe { .. }) => {
                let start = format!("{} {why}", at.display());
                assert!(
                    error.to_string().starts_with(&start),
                    "{error}, expected {start}"
                );
            }
            other => panic!("{other:?}, expected a refusal: {why}"),
        };

        chmod(&open, 0o777);
        refused("can be written by everybody", &open);
        chmod(&open, 0o1777);
        Base::open(&root).unwrap();
        chmod(&open, 0o755);

        chmod(&root, 0o720);
        refused("can be written by others", &root);
        chmod(&root, 0o755);
        Base::open(&root).unwrap();

        chown(base.pki(), Some(12_345), None).unwrap();
        refused("belongs to somebody else", &base.pki());
        chown(base.pki(), Some(0), None).unwrap();

        fs::remove_dir(base.run()).unwrap();
        symlink(base.jobs(), base.run()).unwrap();
        refused("is no directory", &base.run());
        fs::remove_file(base.run()).unwrap();
        Base::open(&root).unwrap();
    }

    #[test]
    fn a_damaged_instance_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        Base::create(dir.path()).unwrap();
        durable::replace(&dir.path().join("instance"), b"").unwrap();
        assert!(matches!(
            Base::create(dir.path()),
            Err(BaseError::Instance(_))
        ));
    }
}
