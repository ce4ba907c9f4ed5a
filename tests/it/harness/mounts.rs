//! Mounts of one test, in a namespace of its own.

use std::panic::resume_unwind;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` where its mounts are seen by itself and what it starts only, so that they go with them,
/// however they end.
pub(crate) fn in_private_mounts(test: impl FnOnce() + Send + 'static) {
    let run = thread::spawn(move || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        test();
    });
    run.join().unwrap_or_else(|failure| resume_unwind(failure));
}
