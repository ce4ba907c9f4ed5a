//! Start-up is recovery: what a dead daemon of this base directory left, and what nobody goes on with, is removed.
//!
//! Only what carries our instance or lies in our base directory is touched. The order matters: processes
//! first, then what they used (mounts, loop devices, images), their ids last, because an id may be handed out
//! again only when nothing runs under it. Doing it twice, or when nothing was left, changes nothing.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::mount::{MntFlags, umount2};
use thiserror::Error;

use crate::{
    cgroup::{CgroupError, Spared, Tree},
    limits,
    sandbox::{
        adopt::{self, AdoptError},
        identity::{self, IdError, IdRange},
    },
    sys::mountinfo,
    volume::{self, WorkError},
};

/// Directories of the base directory that are ours alone: whatever is mounted below them, we mounted.
const PRIVATE_DIRECTORIES: [&str; 2] = [RUN, "work"];
/// Where helpers have their sockets.
const RUN: &str = "run";

/// What was found and removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Jobs whose cgroup was still there; their processes were killed.
    pub leaves: usize,
    /// Trees of cgroups, with helpers.
    pub trees: usize,
    /// Mounts below our private directories.
    pub mounts: usize,
    /// Loop devices of disks for `/work`.
    pub loop_devices: usize,
    /// Image files of the same.
    pub images: usize,
    /// Leases of host ids.
    pub leases: usize,
}

/// Why something of ours is left.
#[derive(Debug, Error)]
pub enum RecoverError {
    /// The caller lives in the cgroup it would kill.
    #[error("this process runs in a cgroup of instance {0}")]
    InOwnTree(String),
    /// Killed processes are not gone in time: stuck in the kernel. Their ids stay leased.
    #[error("processes in {} do not end", .path.display())]
    StillPopulated {
        /// The tree.
        path: PathBuf,
    },
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Disks for `/work`.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// Host ids.
    #[error(transparent)]
    Ids(#[from] IdError),
    /// Names of keepers' sockets.
    #[error(transparent)]
    Sockets(#[from] AdoptError),
    /// The mount table could not be read.
    #[error("read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    /// A mount of ours could not be detached.
    #[error("unmount {}", .path.display())]
    Unmount {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Ends every process of `instance` and removes every kernel object and lease of it, but for what is `spared` and
/// the host ids `used` by that. No daemon of it may run but the caller, which must not have started a crew yet.
/// Blocks.
///
/// # Errors
/// [`RecoverError`]; what came before the failure is done, and calling again goes on from there.
pub fn recover(
    base_dir: &Path,
    instance: &str,
    spared: &Spared,
    used: &HashSet<IdRange>,
) -> Result<Report, RecoverError> {
    recover_from(
        base_dir,
        instance,
        Path::new(identity::LEASE_DIRECTORY),
        limits::RECOVER_WAIT,
        (spared, used),
    )
}

fn recover_from(
    base_dir: &Path,
    instance: &str,
    leases: &Path,
    wait: Duration,
    (spared, used): (&Spared, &HashSet<IdRange>),
) -> Result<Report, RecoverError> {
    if Tree::contains_us(instance)? {
        return Err(RecoverError::InOwnTree(instance.to_owned()));
    }
    let mut report = Report::default();
    let is_all = *spared == Spared::default();
    for tree in Tree::all(instance)? {
        report.trees += 1;
        if is_all {
            report.leaves += tree.leaves()?.len();
            tree.kill_all()?;
            if !tree.wait_empty(wait)? {
                return Err(still_populated(&tree));
            }
            tree.remove_all()?;
        } else {
            let removed = tree.remove_all_but(spared, wait)?;
            report.leaves += removed.ok_or_else(|| still_populated(&tree))?;
        }
    }
    if is_all {
        Tree::remove_remains(instance)?;
        adopt::remove_sockets(&base_dir.join(RUN))?;
    } else {
        Tree::remove_legacy_but(instance, spared)?;
    }
    report.mounts = unmount(base_dir)?;
    let cleaned = volume::clean(base_dir, &spared.jobs)?;
    (report.loop_devices, report.images) = (cleaned.devices, cleaned.images);
    report.leases = identity::release_unused(leases, instance, used)?;
    Ok(report)
}

fn still_populated(tree: &Tree) -> RecoverError {
    RecoverError::StillPopulated {
        path: tree.path().to_owned(),
    }
}

/// Detaches what is mounted below our private directories, what covers first.
fn unmount(base_dir: &Path) -> Result<usize, RecoverError> {
    let Ok(base_dir) = base_dir.canonicalize() else {
        return Ok(0);
    };
    let private = PRIVATE_DIRECTORIES.map(|name| base_dir.join(name));
    let mounts = mountinfo::read().map_err(RecoverError::Mounts)?;
    let mut count = 0;
    for mount in mounts.into_iter().rev() {
        if private
            .iter()
            .any(|directory| mount.point.starts_with(directory))
        {
            let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
            umount2(&mount.point, flags).map_err(|error| RecoverError::Unmount {
                path: mount.point,
                source: error.into(),
            })?;
            count += 1;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::Write,
        os::fd::OwnedFd,
        process::{Child, Command, Stdio},
    };

    use nix::mount::{MsFlags, mount};
    use tempfile::TempDir;

    use super::*;
    use crate::{
        job::JobId,
        sandbox::identity::{IdRanges, LeaseOptions},
        volume::{WorkImage, WorkOptions},
    };

    const WAIT: Duration = Duration::from_secs(20);

    /// A base directory with a daemon's leftovers, recovered at the end whatever happens.
    struct Ruin {
        base: TempDir,
        leases: PathBuf,
        instance: String,
    }

    impl Ruin {
        fn new() -> Self {
            let base = TempDir::new().unwrap();
            let instance = JobId::random().to_string()[..8].to_owned();
            File::create(base.path().join("instance"))
                .unwrap()
                .write_all(instance.as_bytes())
                .unwrap();
            Self {
                leases: base.path().join("ids"),
                base,
                instance,
            }
        }

        fn recover(&self) -> Result<Report, RecoverError> {
            let nothing = (&Spared::default(), &HashSet::new());
            recover_from(
                self.base.path(),
                &self.instance,
                &self.leases,
                WAIT,
                nothing,
            )
        }
    }

    impl Drop for Ruin {
        fn drop(&mut self) {
            let _ = self.recover();
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a process to be killed")]
    fn sleeper_in(procs: OwnedFd) -> Child {
        let child = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        File::from(procs)
            .write_all(child.id().to_string().as_bytes())
            .unwrap();
        child
    }

    #[test]
    fn everything_a_dead_daemon_left_is_removed_and_a_second_time_there_is_nothing() {
        let ruin = Ruin::new();
        let tree = Tree::open(&ruin.instance).unwrap();
        let job = JobId::random();
        drop(
            tree.create(job, &crate::job::Limits::default(), None)
                .unwrap(),
        );
        let procs = File::options()
            .write(true)
            .open(tree.path().join(format!("{job}/cgroup.procs")));
        let mut children = [
            sleeper_in(procs.unwrap().into()),
            sleeper_in(tree.helpers_procs().unwrap()),
        ];
        let base = ruin.base.path();
        let work = WorkOptions {
            base_dir: base,
            job,
            bytes: 8 << 20,
            uid: 70_000,
            gid: 70_000,
        };
        let image = WorkImage::create(&work).unwrap();
        File::create(base.join("work/half.img")).unwrap();
        fs::create_dir(base.join("run")).unwrap();
        fs::create_dir(base.join("run/template")).unwrap();
        let options = Some("size=64k");
        mount(
            Some("x"),
            &base.join("run/template"),
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )
        .unwrap();
        let lease = LeaseOptions {
            directory: ruin.leases.clone(),
            instance: ruin.instance.clone(),
            base_dir: base.to_owned(),
            first: limits::IDS_FIRST_DEFAULT,
            count: limits::IDS_COUNT_DEFAULT,
        };
        drop(IdRanges::lease(lease).unwrap());

        let all = Report {
            leaves: 1,
            trees: 1,
            mounts: 1,
            loop_devices: 1,
            images: 1,
            leases: 1,
        };
        assert_eq!(ruin.recover().unwrap(), all);
        for child in &mut children {
            assert_eq!(
                std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()),
                Some(9)
            );
        }
        assert!(!tree.path().exists());
        assert!(
            !mountinfo::read()
                .unwrap()
                .iter()
                .any(|mount| mount.point.starts_with(base))
        );
        image.discard();
        // The kernel clears the device right after its last close, not always before that returns.
        let work = base.join("work").canonicalize().unwrap();
        for _ in 0..1_000 {
            if !volume::devices_backed_below(&work).unwrap().is_empty() {
                nix::poll::poll(&mut [], 10_u16).unwrap();
            }
        }
        assert_eq!(ruin.recover().unwrap(), Report::default());
    }

    #[test]
    fn a_mount_of_somebody_else_in_the_base_directory_stays() {
        let ruin = Ruin::new();
        let theirs = ruin.base.path().join("volumes");
        fs::create_dir(&theirs).unwrap();
        mount(
            Some("x"),
            &theirs,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=64k"),
        )
        .unwrap();
        let report = ruin.recover();
        let stays = mountinfo::read()
            .unwrap()
            .iter()
            .any(|mount| mount.point == theirs);
        umount2(&theirs, MntFlags::MNT_DETACH).unwrap();
        assert_eq!(report.unwrap(), Report::default());
        assert!(stays);
    }

    #[test]
    fn another_instance_keeps_its_jobs() {
        let (ours, theirs) = (Ruin::new(), Ruin::new());
        let tree = Tree::open(&theirs.instance).unwrap();
        let mut child = sleeper_in(tree.helpers_procs().unwrap());
        assert_eq!(ours.recover().unwrap(), Report::default());
        assert!(child.try_wait().unwrap().is_none());
        assert_eq!(
            theirs.recover().unwrap(),
            Report {
                trees: 1,
                ..Report::default()
            }
        );
        child.wait().unwrap();
    }

    #[test]
    fn a_base_directory_that_never_was_has_nothing_to_recover() {
        let none = recover_from(
            Path::new("/nonexistent"),
            "00000000",
            Path::new("/nonexistent/ids"),
            WAIT,
            (&Spared::default(), &HashSet::new()),
        );
        assert_eq!(none.unwrap(), Report::default());
    }
}
