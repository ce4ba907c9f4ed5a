//! The process that makes fresh namespaces, off the path of any start.
//!
//! One request, one answer, one at a time. It lives in an empty network namespace of its own and goes back
//! there after each pair, so that it keeps none of a job's alive.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::{
        socket::{MsgFlags, recv},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::message::{self, MakeStep};
use crate::{
    limits,
    sandbox::identity::IdRange,
    sys::{
        keeper_calls::{
            CAP_NET_ADMIN, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, CAP_SYS_PTRACE, exit_now,
            keep_capabilities, lower_priority,
        },
        netlo::loopback_up,
        scm,
        userns::clone_sealed,
    },
};

/// Exit status of a maker that could not be set up.
const EXIT_SETUP: i32 = 70;
/// Starts of jobs come first.
const NICE: i32 = 5;

/// Runs the maker until the daemon closes its end of `daemon`, a blocking SOCK_SEQPACKET socket.
///
/// The process must be single-threaded and see the host's `/proc`.
pub fn run(daemon: OwnedFd) -> ! {
    let Ok(home) = prepare() else { exit_now(EXIT_SETUP) };
    loop {
        let mut buffer = [0; message::REQUEST_BYTES + 1];
        let length = match recv(daemon.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => exit_now(0),
            Ok(length) => length,
            Err(Errno::EINTR) => continue,
            Err(_) => exit_now(0),
        };
        if let Some(ids) = message::decode_request(&buffer[..length])
            && answer(&daemon, &home, ids).is_err()
        {
            exit_now(0); // The daemon is gone.
        }
    }
}

/// Returns the network namespace to come home to.
fn prepare() -> io::Result<OwnedFd> {
    lower_priority(NICE)?;
    nix::sys::prctl::set_no_new_privs()?;
    keep_capabilities(&[
        CAP_SYS_ADMIN,  // make and enter namespaces
        CAP_SETUID,     // write a map of many uids
        CAP_SETGID,     // write a map of many gids
        CAP_NET_ADMIN,  // bring lo up, open the ports below 1024
        CAP_SYS_PTRACE, // look at the user namespace of a child
    ])?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    Ok(File::open("/proc/self/ns/net")?.into())
}

fn answer(daemon: &OwnedFd, home: &OwnedFd, ids: IdRange) -> io::Result<()> {
    match make(home, ids) {
        Ok((user, net)) => {
            let bytes = message::encode_answer(ids, None);
            match scm::send(daemon.as_fd(), &bytes, &[user.as_fd(), net.as_fd()]) {
                // Too many descriptors are on their way to the daemon already.
                Err(full) if full.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                    refuse(daemon.as_fd(), ids, MakeStep::Send, &full)
                }
                sent => sent,
            }
        }
        Err((step, error)) => refuse(daemon.as_fd(), ids, step, &error),
    }
}

fn refuse(daemon: BorrowedFd<'_>, ids: IdRange, step: MakeStep, error: &io::Error) -> io::Result<()> {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    scm::send(daemon, &message::encode_answer(ids, Some((step, errno))), &[])
}

fn make(home: &OwnedFd, ids: IdRange) -> Result<(OwnedFd, OwnedFd), (MakeStep, io::Error)> {
    let user = make_user(ids)?;
    let net = make_net();
    setns(home, CloneFlags::CLONE_NEWNET).map_err(|error| (MakeStep::GoHome, error.into()))?;
    Ok((user, net?))
}

/// A user namespace with ids 0 to 65,535 on `ids`, and no room for another below it.
fn make_user(ids: IdRange) -> Result<OwnedFd, (MakeStep, io::Error)> {
    let pid = clone_sealed().map_err(|error| (MakeStep::CloneUser, error))?;
    let mapped = map_and_open(pid, ids);
    // The child has ended; as a zombie it held its namespace until here.
    let status = waitpid(pid, Some(WaitPidFlag::__WALL));
    match status {
        Ok(WaitStatus::Exited(_, 0)) => mapped,
        Ok(WaitStatus::Exited(_, errno)) => Err((MakeStep::Seal, io::Error::from_raw_os_error(errno))),
        Ok(_) => Err((MakeStep::Seal, io::Error::from_raw_os_error(libc::EIO))),
        Err(error) => Err((MakeStep::Seal, error.into())),
    }
}

fn map_and_open(pid: Pid, ids: IdRange) -> Result<OwnedFd, (MakeStep, io::Error)> {
    let map = format!("0 {} {}\n", ids.base(), limits::IDS_PER_JOB);
    for (file, step) in [("uid_map", MakeStep::MapUids), ("gid_map", MakeStep::MapGids)] {
        put(&format!("/proc/{pid}/{file}"), &map).map_err(|error| (step, error))?;
    }
    let user = File::open(format!("/proc/{pid}/ns/user"));
    Ok(user.map_err(|error| (MakeStep::OpenUser, error))?.into())
}

/// A network namespace with `lo` up, in which every port may be bound by everybody.
fn make_net() -> Result<OwnedFd, (MakeStep, io::Error)> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| (MakeStep::UnshareNet, error.into()))?;
    loopback_up().map_err(|error| (MakeStep::LoopbackUp, error))?;
    put("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0\n")
        .map_err(|error| (MakeStep::OpenPorts, error))?;
    let net = File::open("/proc/self/ns/net").map_err(|error| (MakeStep::OpenNet, error))?;
    Ok(net.into())
}

fn put(path: &str, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}
