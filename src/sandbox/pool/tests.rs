//! A real maker in a process of its own, and what a process inside its namespaces can do.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socketpair},
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::*;
use crate::sys::keeper_calls::{Forked, close_others, exit_now, fork};

const BASE: u32 = 0x9000_0000;

struct Maker {
    socket: Option<OwnedFd>,
    pid: Pid,
}

impl Drop for Maker {
    fn drop(&mut self) {
        self.socket = None;
        assert_eq!(waitpid(self.pid, None).unwrap(), WaitStatus::Exited(self.pid, 0));
    }
}

fn ids(number: u32) -> IdRange {
    IdRange::from_base(BASE + number * limits::IDS_PER_JOB).unwrap()
}

fn maker() -> Maker {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let pid = match fork().unwrap() {
        Forked::Parent(pid) => Pid::from_raw(i32::try_from(pid).unwrap()),
        Forked::Child => {
            // What tests beside this one have open must not stay open here.
            close_others(&[theirs.as_fd()]).unwrap();
            run_maker(theirs)
        }
    };
    Maker { socket: Some(ours), pid }
}

impl Maker {
    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().unwrap().as_fd()
    }

    fn answer(&self) -> Answer {
        let mut waiting = [PollFd::new(self.socket(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut waiting, PollTimeout::from(20_000_u16)).unwrap(), 1, "the maker is silent");
        receive(self.socket()).unwrap().unwrap()
    }

    fn pair(&self, number: u32) -> Namespaces {
        request(self.socket(), ids(number)).unwrap();
        match self.answer() {
            Answer::Made(namespaces) => namespaces,
            Answer::Failed { step, errno, .. } => {
                panic!("{step}: {}", io::Error::from_raw_os_error(errno))
            }
        }
    }
}

/// Runs `probe` in a child inside both namespaces, as uid and gid 0 of the user namespace.
fn inside(namespaces: &Namespaces, probe: fn() -> bool) {
    let Forked::Parent(pid) = fork().unwrap() else {
        let entered = setns(&namespaces.net, CloneFlags::CLONE_NEWNET).is_ok()
            && setns(&namespaces.user, CloneFlags::CLONE_NEWUSER).is_ok()
            && nix::unistd::setresgid(0.into(), 0.into(), 0.into()).is_ok()
            && nix::unistd::setresuid(0.into(), 0.into(), 0.into()).is_ok();
        exit_now(match (entered, entered && probe()) {
            (false, _) => 2,
            (true, false) => 1,
            (true, true) => 0,
        });
    };
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 0));
}

#[test]
fn a_pair_maps_its_own_ids_and_has_only_a_working_loopback() {
    let maker = maker();
    let namespaces = maker.pair(1);
    assert_eq!(namespaces.ids, ids(1));
    inside(&namespaces, || {
        let map = |file: &str| {
            let text = fs::read_to_string(file).unwrap();
            text.split_whitespace().map(|word| word.parse::<u32>().unwrap()).collect::<Vec<_>>()
        };
        let expected = vec![0, BASE + limits::IDS_PER_JOB, limits::IDS_PER_JOB];
        map("/proc/self/uid_map") == expected && map("/proc/self/gid_map") == expected
    });
    inside(&namespaces, || {
        let devices = fs::read_to_string("/proc/self/net/dev").unwrap();
        let names: Vec<&str> =
            devices.lines().skip(2).map(|line| line.split(':').next().unwrap().trim()).collect();
        names == ["lo"]
    });
}

#[test]
fn every_port_may_be_bound_by_everybody() {
    let maker = maker();
    inside(&maker.pair(2), || {
        nix::unistd::setresuid(1000.into(), 1000.into(), 1000.into()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:80").unwrap();
        std::net::TcpStream::connect(listener.local_addr().unwrap()).is_ok()
    });
}

#[test]
fn no_user_namespace_can_be_made_below_and_the_seal_cannot_be_lifted_by_the_job() {
    let maker = maker();
    inside(&maker.pair(3), || {
        nix::unistd::setresuid(1000.into(), 1000.into(), 1000.into()).unwrap();
        let lift = fs::OpenOptions::new()
            .write(true)
            .open("/proc/sys/user/max_user_namespaces")
            .and_then(|mut file| file.write_all(b"100\n"));
        lift.is_err() && unshare(CloneFlags::CLONE_NEWUSER) == Err(nix::errno::Errno::ENOSPC)
    });
}

#[test]
fn each_answer_has_namespaces_of_its_own_and_the_maker_keeps_none() {
    let maker = maker();
    let inode = |fd: &OwnedFd| nix::sys::stat::fstat(fd).unwrap().st_ino;
    let (one, two) = (maker.pair(4), maker.pair(5));
    // The standard three, the socket, home. It closes a pair right after it has sent it.
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", maker.pid)).unwrap().count();
    for _ in 0..2_000 {
        if descriptors() != 5 {
            poll(&mut [], PollTimeout::from(10_u16)).unwrap();
        }
    }
    assert_eq!(descriptors(), 5);
    assert_ne!(inode(&one.user), inode(&two.user));
    assert_ne!(inode(&one.net), inode(&two.net));
    let home = fs::metadata(format!("/proc/{}/ns/net", maker.pid)).unwrap().ino();
    assert!(![inode(&one.net), inode(&two.net)].contains(&home));
    assert_ne!(home, fs::metadata("/proc/self/ns/net").unwrap().ino(), "nor does it live in the host's");
}

#[test]
fn the_books_balance() {
    let mut pool = NamespacePool::new();
    assert_eq!(pool.wanted(), limits::NAMESPACES_READY);
    pool.note_requested(ids(1));
    pool.note_requested(ids(2));
    assert_eq!(pool.wanted(), limits::NAMESPACES_READY - 2);
    let made = |number| {
        let (user, net) = nix::unistd::pipe().unwrap();
        Answer::Made(Namespaces { user, net, ids: ids(number) })
    };
    pool.put(made(1)).unwrap();
    assert_eq!((pool.ready(), pool.wanted()), (1, limits::NAMESPACES_READY - 2));
    let failed = Answer::Failed { ids: ids(2), step: MakeStep::Seal, errno: libc::EPERM };
    let error = pool.put(failed).unwrap_err();
    assert_eq!(error.to_string(), format!("seal the user namespace for ids from {}", ids(2).base()));
    assert_eq!(pool.wanted(), limits::NAMESPACES_READY - 1);
    assert!(matches!(pool.put(made(1)), Err(PoolError::Unasked { .. })));
    pool.note_requested(ids(3));
    assert_eq!(pool.forget_requested(), [ids(3)]);
    assert_eq!(pool.take().unwrap().ids, ids(1));
    assert!(pool.take().is_none());
    assert_eq!(pool.empty(), []);
    assert_eq!(pool.wanted(), limits::NAMESPACES_READY);
}

#[test]
fn a_request_that_the_kernel_refuses_names_the_step() {
    let maker = maker();
    // The last range holds the id -1, which cannot be mapped.
    let last = IdRange::from_base(0xFFFF_0000);
    assert!(last.is_none(), "so it cannot even be asked for");
    let bytes = [1, 0, 0, 0, 0, 0, 0xFF, 0xFF];
    scm::send(maker.socket(), &bytes, &[]).unwrap();
    // What is no request is not answered; the maker goes on.
    assert_eq!(maker.pair(6).ids, ids(6));
}
