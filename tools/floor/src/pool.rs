//! Fresh user and network namespaces, made before anything is measured.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, Result, ensure};
use nix::{
    fcntl::{OFlag, openat},
    sched::{CloneFlags, unshare},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socket},
        stat::Mode,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::sys;

/// First host id of the first range, far from what /etc/subuid gives out.
const FIRST_ID: u64 = 0xC000_0000;
const IDS: u64 = 65_536;
const RANGES: u64 = 16_000;

/// What one job takes from the pool. Never used twice.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pub(crate) user: OwnedFd,
    pub(crate) net: OwnedFd,
    /// Host id that stands for 0 inside.
    pub(crate) base: u64,
}

/// Makes namespaces, through a `/proc` that was opened before the host's mounts were left behind.
#[derive(Debug)]
pub(crate) struct Maker {
    proc: OwnedFd,
    next: u64,
}

impl Maker {
    /// One whose id ranges begin at the `first`th; makers that work at once must not overlap.
    pub(crate) fn new(proc: OwnedFd, first: u64) -> Self {
        Self { proc, next: first }
    }

    /// One pair.
    pub(crate) fn make_one(&mut self) -> Result<Namespaces> {
        let base = FIRST_ID + self.next % RANGES * IDS;
        self.next += 1;
        let user = self.user(base).context("make a user namespace")?;
        let net = self.net().context("make a network namespace")?;
        Ok(Namespaces { user, net, base })
    }

    /// A user namespace with 65,536 ids from `base`, in which no further one can be made.
    fn user(&self, base: u64) -> Result<OwnedFd> {
        let (mut born, born_end) = io::pipe()?;
        let (go, mut go_end) = io::pipe()?;
        let Some(child) = sys::fork()? else {
            self.hold_user(born_end, go)
        };
        drop(born_end);
        born.read_exact(&mut [0])?;
        for map in ["uid_map", "gid_map"] {
            self.write(&format!("{child}/{map}"), &format!("0 {base} {IDS}\n"))?;
        }
        let user = self.open(&format!("{child}/ns/user"), OFlag::O_RDONLY)?;
        go_end.write_all(b"g")?;
        let status = waitpid(Pid::from_raw(child), None)?;
        ensure!(
            matches!(status, WaitStatus::Exited(_, 0)),
            "sealing it: {status:?}"
        );
        Ok(user)
    }

    /// The child that is in the new namespace until the parent holds it.
    fn hold_user(&self, mut born: io::PipeWriter, mut go: io::PipeReader) -> ! {
        let sealed = || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWUSER)?;
            born.write_all(b"b")?;
            go.read_exact(&mut [0])?;
            self.write("sys/user/max_user_namespaces", "0\n")
        }();
        sys::end(i32::from(sealed.is_err()))
    }

    /// A network namespace with loopback up and every port free for all. This process is in it until the
    /// next one is made.
    fn net(&self) -> Result<OwnedFd> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let any = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        sys::loopback_up(any.as_fd())?;
        self.write("sys/net/ipv4/ip_unprivileged_port_start", "0\n")?;
        self.open("self/ns/net", OFlag::O_RDONLY)
    }

    fn open(&self, path: &str, flags: OFlag) -> Result<OwnedFd> {
        openat(&self.proc, path, flags | OFlag::O_CLOEXEC, Mode::empty())
            .with_context(|| format!("open /proc/{path}"))
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let mut file = File::from(self.open(path, OFlag::O_WRONLY)?);
        file.write_all(text.as_bytes())
            .with_context(|| format!("write {text:?} to /proc/{path}"))
    }
}
