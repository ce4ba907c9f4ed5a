//! The message that starts a job: daemon → spawner, one SEQPACKET message with the job's descriptors.
//!
//! ```text
//! version u16 · flags u16 (1: mount for /work, 2: upload socket) · joins u16 · volumes u16 · job id 16 bytes
//! descriptors: see StartFds
//! ```

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use thiserror::Error;

use crate::{job::JobId, limits::JOB_VOLUMES_MAX, sys::scm};

const VERSION: u16 = 2;
const MESSAGE_BYTES: usize = 24;
const FLAG_TREE: u16 = 1;
const FLAG_UPLOAD: u16 = 2;
/// Descriptors that every start carries.
const FDS: usize = 10;

/// Cgroups of version 1 that a start can carry: one for each controller that bounds a job.
pub const JOINS_MAX: usize = 5;
/// The most descriptors of one start.
const FDS_MOST: usize = FDS + 2 + JOINS_MAX + JOB_VOLUMES_MAX;

const _: () = assert!(FDS_MOST <= scm::FDS_MAX);

/// What the spawner is given for one job, in the order of travel. The sender keeps its own.
#[derive(Debug, Clone, Copy)]
pub struct StartFds<'a> {
    /// The sealed plan.
    pub plan: BorrowedFd<'a>,
    /// Write end of the job's standard output.
    pub stdout_write: BorrowedFd<'a>,
    /// Write end of the job's standard error.
    pub stderr_write: BorrowedFd<'a>,
    /// Init's end of the control socket.
    pub control_init: BorrowedFd<'a>,
    /// The cgroup2 leaf the job is born in.
    pub cgroup: BorrowedFd<'a>,
    /// A fresh user namespace.
    pub user_ns: BorrowedFd<'a>,
    /// A fresh network namespace.
    pub net_ns: BorrowedFd<'a>,
    /// Read end of the standard output, for the keeper.
    pub stdout_read: BorrowedFd<'a>,
    /// Read end of the standard error, for the keeper.
    pub stderr_read: BorrowedFd<'a>,
    /// The keeper's end of the control socket.
    pub control_keeper: BorrowedFd<'a>,
    /// A detached mount for `/work`, exactly when the plan says so.
    pub work_tree: Option<BorrowedFd<'a>>,
    /// Init's end of the upload stream, exactly when the plan says so.
    pub upload: Option<BorrowedFd<'a>>,
    /// `tasks` files of the job's cgroups of version 1, open for writing, exactly as many as the plan says.
    pub joins: &'a [OwnedFd],
    /// Detached mounts of the job's volumes, in the order of their names in the plan.
    pub volumes: &'a [OwnedFd],
}

/// A start as the spawner has received it; fields as in [`StartFds`].
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are described once, in StartFds")]
pub struct Start {
    pub id: JobId,
    pub plan: OwnedFd,
    pub stdout_write: OwnedFd,
    pub stderr_write: OwnedFd,
    pub control_init: OwnedFd,
    pub cgroup: OwnedFd,
    pub user_ns: OwnedFd,
    pub net_ns: OwnedFd,
    pub stdout_read: OwnedFd,
    pub stderr_read: OwnedFd,
    pub control_keeper: OwnedFd,
    pub work_tree: Option<OwnedFd>,
    pub upload: Option<OwnedFd>,
    pub joins: Vec<OwnedFd>,
    pub volumes: Vec<OwnedFd>,
}

/// Why there is no start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The socket.
    #[error("receive a start")]
    Receive(#[source] io::Error),
    /// Not a message of this version, or not with the descriptors it says.
    #[error("a start of {bytes} bytes with {fds} descriptors is malformed")]
    Malformed {
        /// Its length.
        bytes: usize,
        /// Its descriptors.
        fds: usize,
    },
}

/// Asks the spawner to start job `id`. Blocks only if the socket does.
///
/// # Errors
/// As [`scm::send`]: `EAGAIN` when the spawner is that far behind, `EPIPE` when it has gone. `InvalidInput` for
/// more than [`JOINS_MAX`] cgroups or [`JOB_VOLUMES_MAX`] volumes.
pub fn send(socket: BorrowedFd<'_>, id: JobId, fds: &StartFds<'_>) -> io::Result<()> {
    let mut all = [fds.plan; FDS_MOST];
    let fixed = [
        fds.plan,
        fds.stdout_write,
        fds.stderr_write,
        fds.control_init,
        fds.cgroup,
        fds.user_ns,
        fds.net_ns,
        fds.stdout_read,
        fds.stderr_read,
        fds.control_keeper,
    ];
    let joins = count_of(fds.joins, JOINS_MAX)?;
    let volumes = count_of(fds.volumes, JOB_VOLUMES_MAX)?;
    let optional = [fds.work_tree, fds.upload].into_iter().flatten();
    let counted = fds.joins.iter().chain(fds.volumes).map(AsFd::as_fd);
    let mut count = 0;
    for (slot, fd) in all
        .iter_mut()
        .zip(fixed.into_iter().chain(optional).chain(counted))
    {
        *slot = fd;
        count += 1;
    }
    let tree = if fds.work_tree.is_some() {
        FLAG_TREE
    } else {
        0
    };
    let upload = if fds.upload.is_some() { FLAG_UPLOAD } else { 0 };
    let mut message = [0; MESSAGE_BYTES];
    message[..2].copy_from_slice(&VERSION.to_le_bytes());
    message[2..4].copy_from_slice(&(tree | upload).to_le_bytes());
    message[4..6].copy_from_slice(&joins.to_le_bytes());
    message[6..8].copy_from_slice(&volumes.to_le_bytes());
    message[8..].copy_from_slice(&id.to_bytes());
    scm::send(socket, &message, &all[..count])
}

fn count_of(fds: &[OwnedFd], most: usize) -> io::Result<u16> {
    let count = u16::try_from(fds.len()).ok();
    let count = count.filter(|_| fds.len() <= most);
    count.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Receives the next start; `None` when the daemon's end is closed.
///
/// # Errors
/// [`StartError`]; the descriptors of a malformed message are closed.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Option<Start>, StartError> {
    let mut message = [0; MESSAGE_BYTES];
    let mut fds = Vec::with_capacity(FDS_MOST);
    let bytes = scm::recv(socket, &mut message, &mut fds).map_err(StartError::Receive)?;
    if bytes == 0 && fds.is_empty() {
        return Ok(None);
    }
    let malformed = StartError::Malformed {
        bytes,
        fds: fds.len(),
    };
    let [v0, v1, f0, f1, j0, j1, n0, n1, id @ ..] = message;
    let flags = u16::from_le_bytes([f0, f1]);
    let joins = usize::from(u16::from_le_bytes([j0, j1]));
    let volumes = usize::from(u16::from_le_bytes([n0, n1]));
    let (tree, upload) = (flags & FLAG_TREE != 0, flags & FLAG_UPLOAD != 0);
    let expected = FDS + usize::from(tree) + usize::from(upload) + joins + volumes;
    let known = flags & !(FLAG_TREE | FLAG_UPLOAD) == 0;
    if bytes != MESSAGE_BYTES
        || u16::from_le_bytes([v0, v1]) != VERSION
        || !known
        || fds.len() != expected
    {
        return Err(malformed);
    }
    let mut fds = fds.into_iter();
    let mut next = || fds.next().expect("as many as were counted above");
    Ok(Some(Start {
        id: JobId::from_bytes(id),
        plan: next(),
        stdout_write: next(),
        stderr_write: next(),
        control_init: next(),
        cgroup: next(),
        user_ns: next(),
        net_ns: next(),
        stdout_read: next(),
        stderr_read: next(),
        control_keeper: next(),
        work_tree: tree.then(&mut next),
        upload: upload.then(&mut next),
        joins: fds.by_ref().take(joins).collect(),
        volumes: fds.collect(),
    }))
}

impl Start {
    /// What the keeper gets of it, in the order of a birth.
    #[must_use]
    pub fn keeper_fds(&self) -> [BorrowedFd<'_>; 3] {
        [
            self.stdout_read.as_fd(),
            self.stderr_read.as_fd(),
            self.control_keeper.as_fd(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap()
    }

    #[test]
    fn a_start_arrives_with_its_descriptors_in_their_places() {
        let (daemon, spawner) = pair();
        let fds: Vec<OwnedFd> = (0..12).map(|_| pair().0).collect();
        let inode = |fd: &OwnedFd| nix::sys::stat::fstat(fd).unwrap().st_ino;
        let at = |index: usize| fds[index].as_fd();
        let id = JobId::random();
        let mut start = StartFds {
            plan: at(0),
            stdout_write: at(1),
            stderr_write: at(2),
            control_init: at(3),
            cgroup: at(4),
            user_ns: at(5),
            net_ns: at(6),
            stdout_read: at(7),
            stderr_read: at(8),
            control_keeper: at(9),
            work_tree: None,
            upload: Some(at(11)),
            joins: &fds[..2],
            volumes: &fds[2..5],
        };
        send(daemon.as_fd(), id, &start).unwrap();
        let got = receive(spawner.as_fd()).unwrap().unwrap();
        assert_eq!(got.id, id);
        assert!(got.work_tree.is_none());
        assert_eq!(inode(&got.upload.unwrap()), inode(&fds[11]));
        assert_eq!(
            got.joins.iter().map(inode).collect::<Vec<_>>(),
            [inode(&fds[0]), inode(&fds[1])]
        );
        assert_eq!(
            got.volumes.iter().map(inode).collect::<Vec<_>>(),
            fds[2..5].iter().map(inode).collect::<Vec<_>>()
        );
        assert_eq!(inode(&got.control_keeper), inode(&fds[9]));
        start.work_tree = Some(at(10));
        send(daemon.as_fd(), id, &start).unwrap();
        let got = receive(spawner.as_fd()).unwrap().unwrap();
        assert_eq!(inode(&got.work_tree.unwrap()), inode(&fds[10]));
        assert_eq!(inode(&got.plan), inode(&fds[0]));
    }

    #[test]
    fn a_start_of_another_shape_is_refused_and_a_closed_socket_is_the_end() {
        let (daemon, spawner) = pair();
        scm::send(daemon.as_fd(), &[1; MESSAGE_BYTES], &[]).unwrap();
        assert!(matches!(
            receive(spawner.as_fd()),
            Err(StartError::Malformed { bytes: 24, fds: 0 })
        ));
        scm::send(daemon.as_fd(), &[0; 1], &[daemon.as_fd()]).unwrap();
        assert!(matches!(
            receive(spawner.as_fd()),
            Err(StartError::Malformed { bytes: 1, fds: 1 })
        ));
        drop(daemon);
        assert!(receive(spawner.as_fd()).unwrap().is_none());
    }
}
