//! Mounts of one test: in a namespace of its own, and a file system that never answers.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::resume_unwind;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::Process;

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

/// What becomes of a request to a [`Mute`] file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Requests {
    /// Nobody reads it: who waits for its answer can be killed.
    Queued,
    /// It is read and never answered: who waits for its answer cannot be killed.
    Taken,
}

/// A FUSE file system whose server never answers. All who wait for it get an error when this is dropped.
#[derive(Debug)]
pub(crate) struct Mute {
    device: File,
    requests: Requests,
}

impl Mute {
    /// Mounts one on the directory `point` in the mount namespace of `process`, which must not be the host's.
    pub(crate) fn over(process: Process, point: &'static str, requests: Requests) -> Self {
        let path = |pid: u32| format!("/proc/{pid}/ns/mnt");
        let [theirs, host] =
            [process.pid, std::process::id()].map(|pid| fs::read_link(path(pid)).unwrap());
        assert_ne!(theirs, host, "{point} of the host is everybody's");
        let namespace = File::open(path(process.pid)).unwrap();
        let device = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/fuse")
            .unwrap();
        let fd = device.as_raw_fd();
        let options = format!("fd={fd},rootmode=40755,user_id=0,group_id=0");
        let mounted = thread::spawn(move || {
            unshare(CloneFlags::CLONE_FS).unwrap();
            setns(namespace, CloneFlags::CLONE_NEWNS).unwrap();
            let (source, kind) = (Some("mute"), Some("fuse"));
            mount(
                source,
                point,
                kind,
                MsFlags::empty(),
                Some(options.as_str()),
            )
            .unwrap();
        });
        mounted.join().unwrap();
        let mut mute = Self { device, requests };
        if requests == Requests::Taken {
            mute.agree();
        }
        mute
    }

    /// Answers the first request, which says which protocol to speak: others are not made before.
    fn agree(&mut self) {
        const INIT: u32 = 26;
        // Version 7.31, no feature, and bounds of 0 for the kernel's own.
        const ANSWER: [u32; 16] = [7, 31, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let request = self.read().expect("it comes with the mount");
        assert_eq!(request[4..8], INIT.to_ne_bytes());
        let mut reply = 80_u32.to_ne_bytes().to_vec();
        reply.extend(0_u32.to_ne_bytes());
        reply.extend(&request[8..16]);
        reply.extend(ANSWER.iter().flat_map(|word| word.to_ne_bytes()));
        self.device.write_all(&reply).unwrap();
    }

    /// Reads what has been asked since the last call, when it is one that reads.
    pub(crate) fn hear(&mut self) {
        while self.requests == Requests::Taken && self.read().is_some() {}
    }

    fn read(&mut self) -> Option<Vec<u8>> {
        // Less than 8 KiB is refused, whatever the request needs.
        let mut buffer = vec![0; 64 << 10];
        // Nothing is asked, or nobody is left who could.
        let length = self.device.read(&mut buffer).ok()?;
        buffer.truncate(length);
        Some(buffer)
    }
}
