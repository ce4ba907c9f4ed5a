//! Private daemons, the client, and waiting without sleeping.
//!
//! A test says which kind of host it is for and gets a daemon, or nothing when it is not meant for this
//! host: `let Some(daemon) = DAEMON.get(Host::Any) else { return };`. A missing right is a line
//! `skip: …`, and a failure under `JOBLET_TEST_REQUIRE=1`.

pub(crate) mod ask;
mod daemon;
mod dice;
mod disk;
mod killing;
mod leftovers;
mod mounts;
mod process;
mod rnx;
mod shared;
mod trace;
mod wait;
mod wire;
mod witness;

pub(crate) use daemon::Daemon;
pub(crate) use dice::Dice;
pub(crate) use disk::{Filler, free, on_a_disk_of, with_reserve};
pub(crate) use leftovers::loop_devices;
pub(crate) use mounts::{Mute, Requests, in_private_mounts};
pub(crate) use process::{Process, all as all_processes, daemon_memory};
pub(crate) use rnx::{Output, Rnx, Running};
pub(crate) use shared::Shared;
pub(crate) use trace::{KilledAt, Tracer};
pub(crate) use wait::{LONG, SHORT, Waiting, now, patient, wait_until};
pub(crate) use wire::{Client, Heard, Identity, Stream, Wire, Written, data};
pub(crate) use witness::Witness;

use std::path::{Path, PathBuf};

/// The kind of host a test is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// Every host the product supports.
    Any,
    /// Controllers in v1 hierarchies, cgroup2 beside them.
    Hybrid,
    /// Controllers in cgroup2.
    V2,
}

impl Host {
    /// Whether a test for this kind is to run here. A host of another kind is no skip, a missing right is.
    ///
    /// # Panics
    /// If a right is missing and `JOBLET_TEST_REQUIRE=1`.
    pub(crate) fn is_here(self) -> bool {
        let hybrid = Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists();
        let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let meant = match self {
            Self::Any => true,
            Self::Hybrid => hybrid,
            Self::V2 => v2,
        };
        if !meant {
            return false;
        }
        let missing = if !nix::unistd::geteuid().is_root() {
            Some("root")
        } else if !hybrid && !v2 {
            Some("a cgroup2 hierarchy")
        } else {
            None
        };
        let Some(missing) = missing else { return true };
        assert!(
            std::env::var_os("JOBLET_TEST_REQUIRE").is_none_or(|v| v != "1"),
            "missing: {missing}"
        );
        eprintln!("skip: {missing}");
        false
    }
}

/// Runs hand-made conversations to their end on this thread.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// The daemon's binary.
pub(crate) fn joblet_binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_joblet"))
}

/// The client's binary, which cargo puts beside the daemon's.
///
/// # Panics
/// If it was not built: cargo builds only the binaries of the package under test.
pub(crate) fn rnx_binary() -> PathBuf {
    let path = joblet_binary().with_file_name("rnx");
    assert!(
        path.exists(),
        "{} is missing; run `cargo xtask test`, which builds it",
        path.display()
    );
    path
}
