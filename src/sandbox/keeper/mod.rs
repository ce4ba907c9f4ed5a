//! The keeper: parent of all jobs of a crew, and the only process that has to outlive everybody else.
//!
//! ```text
//!            births (pidfd, pipes, control)            events
//!  spawner ────────────────────────────────► keeper ──────────► daemon
//!                                 records  ▲   │ ▲
//!                            init ─────────┘   │ └───────────── commands
//!                                  signals ◄───┘
//! ```
//! One thread, one epoll, a dozen system calls, no paths. It holds a duplicate of every job's descriptors and
//! init's records until the daemon says that the outcome is stored. It decides nothing: killing is done by
//! cgroup, reading output by the daemon. When the daemon is gone it goes on holding; when the spawner is gone
//! it says so and goes on. Without both and without a job it ends.
//!
//! While it has no daemon it listens on a named socket. The first of its own user that connects is its daemon
//! from then on, until that has closed its end: never two at once. See `line` for what they say.
//!
//! A job here: born → (records) → gone (pidfd readable, records read, reaped) → released. Release may come
//! before gone; the pidfd is then kept until the job is reaped.

mod door;
mod filter;
mod line;
mod table;
#[cfg(test)]
pub(super) mod tests;

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{MsgFlags, recv, send},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
};

pub use filter::{ConfineError, confine};

use self::{
    door::Door,
    line::{Line, Said},
    table::{Job, Origin, Seat, Table},
};
use crate::{
    job::JobId,
    sandbox::{
        birth::{Birth, StepFailure},
        init::record::{RECORD_BYTES, Record},
        inventory::HELLO_BYTES,
        wire::{self, COMMAND_BYTES, InitRecord, KeeperCommand},
    },
    sys::{
        keeper_calls::{exit_now, pidfd_kill},
        scm,
    },
};

/// Exit status of a keeper that could not be set up.
const EXIT_SETUP: i32 = 70;
/// Exit status of a keeper whose epoll failed: a bug.
const EXIT_EPOLL: i32 = 71;
/// Events taken from one epoll_wait.
const BATCH: usize = 64;
/// Messages taken from one socket in one turn, so that no socket starves the others.
const MESSAGES_PER_TURN: usize = 64;
/// First and longest pause between two looks for children nobody told us of, milliseconds.
const REAP_PAUSE_MS: (u16, u16) = (10, 60_000);

const TOKEN_DAEMON: u64 = 0;
const TOKEN_BIRTHS: u64 = 1;
const TOKEN_LISTENER: u64 = u64::MAX;

const _: () = assert!(HELLO_BYTES <= COMMAND_BYTES);

/// What of a job an epoll token names. Seats start at 1, so tokens of jobs start at 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Pidfd,
    Control,
}

const fn token(seat: Seat, side: Side) -> u64 {
    seat * 2 + side as u64
}

/// Runs the keeper until the daemon tells it to end and no job is left.
///
/// `daemon` carries events out and commands in, `births` what the spawner sends, and on `listener`, which is
/// bound already, later daemons are waited for; all SOCK_SEQPACKET. The process must be single-threaded. It
/// confines itself before it reads anything.
pub fn run(daemon: OwnedFd, births: OwnedFd, listener: OwnedFd) -> ! {
    let Ok(mut keeper) = Keeper::new(daemon, births, listener) else {
        exit_now(EXIT_SETUP)
    };
    if confine().is_err() {
        exit_now(EXIT_SETUP);
    }
    keeper.notices.ready = Notice::Due;
    match keeper.serve() {
        Ok(()) => exit_now(0),
        Err(_) => exit_now(EXIT_EPOLL),
    }
}

/// Something to be told once that belongs to no job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notice {
    NotYet,
    Due,
    Told,
}

#[derive(Debug)]
struct Notices {
    ready: Notice,
    spawner_gone: Notice,
}

/// How much of what lay in a socket was taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// A turn's worth; there may be more.
    Some,
    All,
}

#[derive(Debug)]
struct Keeper {
    epoll: Epoll,
    /// `None` while there is no daemon: nobody is told anything then.
    line: Option<Line>,
    door: Door,
    /// `None` once the spawner is gone.
    births: Option<OwnedFd>,
    table: Table,
    notices: Notices,
    leaving: bool,
    /// Until the next look for unknown children; `None` when there are no children to look for.
    reap_pause_ms: Option<u16>,
}

impl Keeper {
    fn new(daemon: OwnedFd, births: OwnedFd, listener: OwnedFd) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (socket, token) in [(&daemon, TOKEN_DAEMON), (&births, TOKEN_BIRTHS)] {
            let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
            fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        }
        Ok(Self {
            epoll,
            line: Some(Line::open(daemon)),
            door: Door::new(listener, TOKEN_LISTENER)?,
            births: Some(births),
            table: Table::default(),
            notices: Notices {
                ready: Notice::NotYet,
                spawner_gone: Notice::NotYet,
            },
            leaving: false,
            reap_pause_ms: None,
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); BATCH];
        loop {
            self.tell();
            if self.line.is_none() {
                self.door.open(&self.epoll);
            }
            // Without a spawner nothing new comes. The daemon, if it lives, is told that before we go: what it
            // sent to the spawner and heard no birth of was not made.
            let is_all_told =
                self.line.is_none() || (self.leaving && self.notices.spawner_gone == Notice::Told);
            if self.births.is_none() && is_all_told && self.table.is_empty() {
                self.reap_unknown();
                return Ok(());
            }
            let timeout = self
                .reap_pause_ms
                .map_or(EpollTimeout::NONE, EpollTimeout::from);
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..count] {
                self.on_ready(event.data());
            }
            if count == 0 {
                self.reap_unknown();
            }
        }
    }

    fn on_ready(&mut self, ready: u64) {
        match ready {
            TOKEN_DAEMON => self.on_commands(),
            TOKEN_LISTENER => self.on_connection(),
            // What is left keeps the socket readable.
            TOKEN_BIRTHS => _ = self.on_births(),
            // A job that was released in this same batch is not found, which is right.
            job if job % 2 == Side::Pidfd as u64 => self.on_exit(job / 2),
            job => self.on_records(job / 2),
        }
    }

    // ---- daemon -------------------------------------------------------------------------------------

    fn on_commands(&mut self) {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(line) = &mut self.line else { return };
            // One byte more than a command, so that a longer message is seen to be none.
            let mut buffer = [0; COMMAND_BYTES + 1];
            match receive(line.socket.as_fd(), &mut buffer) {
                Received::Message(length) if line.is_greeting() => {
                    if line.on_hello(&buffer[..length]) {
                        self.start_over();
                    }
                }
                Received::Message(length) => {
                    // What is no command was sent by something that is not our daemon: ignored.
                    if let Ok(command) = KeeperCommand::decode(&buffer[..length]) {
                        self.on_command(command);
                    }
                }
                Received::Nothing => return,
                Received::Closed => return self.lose_daemon(),
            }
        }
    }

    /// A new daemon knows nothing of what the last one was told, nor stands by what that one wanted.
    fn start_over(&mut self) {
        self.table.rewind();
        self.leaving = false;
        self.notices.ready = Notice::Told; // the hello has said it
        if self.notices.spawner_gone == Notice::Told {
            self.notices.spawner_gone = Notice::Due;
        }
    }

    /// Lets one daemon in, and no other while that one is there.
    fn on_connection(&mut self) {
        if self.line.is_some() {
            return;
        }
        let readable = EpollEvent::new(EpollFlags::EPOLLIN, TOKEN_DAEMON);
        if let Some(socket) = self.door.admit(&self.epoll)
            && self.epoll.add(&socket, readable).is_ok()
        {
            self.door.shut(&self.epoll);
            self.line = Some(Line::accepted(socket));
        }
    }

    fn on_command(&mut self, command: KeeperCommand) {
        match command {
            KeeperCommand::Signal { id, signo } => self.signal(id, signo),
            KeeperCommand::Release { id } => self.release(id),
            KeeperCommand::Exit => self.leaving = true,
            KeeperCommand::SpawnerKilled => {
                while self.on_births() == Heard::Some {}
                self.lose_spawner();
            }
        }
    }

    fn signal(&mut self, id: JobId, signo: i32) {
        let Some(job) = self
            .table
            .seat(id)
            .and_then(|seat| self.table.get_mut(seat))
        else {
            return;
        };
        if let (Some(control), Ok(signo)) = (&job.control, u8::try_from(signo)) {
            // An init that is gone or does not read needs no signal: the daemon kills its cgroup next.
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let _ = send(control.as_raw_fd(), &[wire::SIGNAL, signo], flags);
        }
    }

    fn release(&mut self, id: JobId) {
        let Some(seat) = self.table.seat(id) else {
            return;
        };
        self.deafen(seat);
        let Some(job) = self.table.get_mut(seat) else {
            return;
        };
        job.released = true;
        job.control = None;
        job.output = None;
        if job.gone {
            self.table.remove(seat);
        }
    }

    /// Sends what there is to tell, as far as the daemon's socket takes it.
    fn tell(&mut self) {
        let Some(line) = &mut self.line else { return };
        let said = line.tell(&mut self.table, &mut self.notices, self.births.is_none());
        if said == Said::Lost {
            return self.lose_daemon();
        }
        let is_choked = said == Said::Some;
        if is_choked != line.is_choked {
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, is_choked);
            if self
                .epoll
                .modify(&line.socket, &mut EpollEvent::new(flags, TOKEN_DAEMON))
                .is_ok()
            {
                line.is_choked = is_choked;
            }
        }
    }

    /// The daemon is gone. Its jobs are held on to; what they have to tell stays in the table.
    fn lose_daemon(&mut self) {
        if let Some(line) = self.line.take() {
            let _ = self.epoll.delete(&line.socket);
            drop(line);
            self.door.has_room();
        }
    }

    // ---- spawner ------------------------------------------------------------------------------------

    fn on_births(&mut self) -> Heard {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(births) = &self.births else {
                return Heard::All;
            };
            let mut buffer = [0; crate::sandbox::birth::BIRTH_BYTES];
            let mut fds = Vec::new();
            match retry_io(|| scm::recv(births.as_fd(), &mut buffer, &mut fds)) {
                Ok(0) => {
                    self.lose_spawner();
                    return Heard::All;
                }
                Ok(length) => {
                    if let Some(birth) = Birth::decode(&buffer[..length]) {
                        self.on_birth(&birth, fds);
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Heard::All,
                    // We are out of descriptors: the message came, some of its descriptors did not.
                    Some(libc::EMSGSIZE) => {
                        if let Some(birth) = Birth::decode(&buffer) {
                            self.on_birth(&birth, Vec::new());
                        }
                    }
                    _ => {
                        self.lose_spawner();
                        return Heard::All;
                    }
                },
            }
        }
        Heard::Some
    }

    fn on_birth(&mut self, birth: &Birth, fds: Vec<OwnedFd>) {
        let take_over = StepFailure {
            step: wire::STEP_TAKE_OVER,
            errno: libc::EMFILE,
        };
        let fds = <[OwnedFd; 4]>::try_from(fds).ok();
        let origin = match (birth.failure, &fds) {
            (Some(failure), _) => Origin::Failed(failure),
            (None, Some(_)) => Origin::Born,
            (None, None) => Origin::Failed(take_over),
        };
        let mut job = Job::new(birth.id, birth.pid, origin);
        match fds {
            Some([pidfd, stdout, stderr, control]) => {
                job.pidfd = Some(pidfd);
                job.output = Some([stdout, stderr]);
                job.control = Some(control);
            }
            None => job.gone = true,
        }
        match self.table.insert(job) {
            Ok(seat) => self.watch(seat),
            // Two jobs of one id are a bug of the daemon's; the second must not run unseen.
            Err(second) => _ = second.pidfd.as_ref().map(|pidfd| pidfd_kill(pidfd.as_fd())),
        }
    }

    /// Waits for a new job's end and records, and queues its birth. A job that cannot be watched is killed.
    fn watch(&mut self, seat: Seat) {
        let Some(job) = self.table.get_mut(seat) else {
            return;
        };
        let readable = |side| EpollEvent::new(EpollFlags::EPOLLIN, token(seat, side));
        if let Some(control) = &job.control {
            job.listening = self.epoll.add(control, readable(Side::Control)).is_ok();
        }
        if let Some(pidfd) = &job.pidfd
            && let Err(error) = self.epoll.add(pidfd, readable(Side::Pidfd))
        {
            let _ = pidfd_kill(pidfd.as_fd());
            job.origin = Origin::Failed(StepFailure {
                step: wire::STEP_TAKE_OVER,
                errno: error as i32,
            });
            job.pidfd = None;
            job.gone = true;
            self.reap_pause_ms.get_or_insert(REAP_PAUSE_MS.0);
        }
        self.table.announce(seat);
    }

    fn lose_spawner(&mut self) {
        if let Some(births) = self.births.take() {
            let _ = self.epoll.delete(&births);
            drop(births);
            self.door.has_room();
            self.notices.spawner_gone = Notice::Due;
            // It was our child, and may have died between a clone and its birth.
            self.reap_pause_ms = Some(REAP_PAUSE_MS.0);
        }
    }

    /// Reaps children that no pidfd of ours stands for. Jobs are reaped too if it comes to that: their
    /// pidfds stay readable, and their records come by their control sockets.
    fn reap_unknown(&mut self) {
        let Some(pause_ms) = self.reap_pause_ms else {
            return;
        };
        loop {
            match waitid(
                Id::All,
                WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::__WALL,
            ) {
                Ok(WaitStatus::StillAlive) => break,
                Err(Errno::ECHILD) => {
                    self.reap_pause_ms = None;
                    return;
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        self.reap_pause_ms = Some(pause_ms.saturating_mul(2).min(REAP_PAUSE_MS.1));
    }

    // ---- jobs ---------------------------------------------------------------------------------------

    /// Reads what init has to say; a closed or broken socket is not listened to any more.
    fn on_records(&mut self, seat: Seat) {
        let Some(job) = self.table.get_mut(seat) else {
            return;
        };
        let Some(control) = &job.control else { return };
        let mut records = Vec::new();
        let closed = loop {
            let mut buffer = [0; RECORD_BYTES + 1];
            match receive(control.as_fd(), &mut buffer) {
                Received::Message(length) => {
                    records.extend(Record::decode(&buffer[..length]).map(InitRecord::from))
                }
                Received::Nothing => break false,
                Received::Closed => break true,
            }
        };
        records.into_iter().for_each(|record| job.note(record));
        if closed {
            self.deafen(seat);
        }
        self.table.announce(seat);
    }

    /// The pidfd is readable: everything in the job's PID namespace has ended.
    fn on_exit(&mut self, seat: Seat) {
        let Some(pidfd) = self.table.get_mut(seat).and_then(|job| job.pidfd.take()) else {
            return;
        };
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
        // Every error means reaped too: earlier, among unknown children (ECHILD), or ended by a signal that
        // has no name (EINVAL).
        if retry(|| waitid(Id::PIDFd(pidfd.as_fd()), flags)) == Ok(WaitStatus::StillAlive) {
            if let Some(job) = self.table.get_mut(seat) {
                job.pidfd = Some(pidfd);
            }
            return;
        }
        // Descriptors of one open file stay registered while the daemon has another: take it out by hand.
        let _ = self.epoll.delete(&pidfd);
        drop(pidfd);
        self.door.has_room();
        self.on_records(seat);
        self.deafen(seat);
        let Some(job) = self.table.get_mut(seat) else {
            return;
        };
        job.gone = true;
        if job.released {
            self.table.remove(seat);
        } else {
            self.table.announce(seat);
        }
    }

    /// Stops watching a job's control socket.
    fn deafen(&mut self, seat: Seat) {
        if let Some(job) = self.table.get_mut(seat)
            && std::mem::take(&mut job.listening)
            && let Some(control) = &job.control
        {
            let _ = self.epoll.delete(control);
        }
    }
}

enum Received {
    Message(usize),
    Nothing,
    Closed,
}

/// One message without waiting. Descriptors that come with it are never installed.
fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Received {
    loop {
        match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Received::Closed,
            Ok(length) => return Received::Message(length),
            Err(Errno::EAGAIN) => return Received::Nothing,
            // ECONNRESET comes once, in front of what is still queued, when the other side closed
            // without having read everything of ours: an init that got a signal just before its end.
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            Err(_) => return Received::Closed,
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

fn retry_io<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
