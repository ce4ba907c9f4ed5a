//! The connection to a daemon: who is at the other end, and how far the conversation has come.
//!
//! ```text
//! the daemon that started us ─────────────────────────────────────────────────────────► Open: events
//! another one ─► Greeting ─ hello of our version ─► Listing ─ all listed, spawner gone ─► Open: events
//!                  └ of another one: ours is said, and a hello is waited for again
//! ```
//! Nothing is remembered of what was sent in a list: a daemon that dies half-way leaves the table as it was,
//! and the next one is told everything from the start.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{MsgFlags, send};

use super::{
    Notice, Notices, retry, retry_io,
    table::{Job, Seat, Table},
};
use crate::{
    sandbox::{
        inventory::{Hello, Inventory},
        wire::{KeeperEvent, VERSION},
    },
    sys::scm,
};

/// How far the conversation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting {
        /// It has asked for a version that we do not speak, and is to be told which we do.
        is_answer_due: bool,
    },
    Listing {
        is_greeted: bool,
        /// The first seat that is not listed.
        next: Seat,
        jobs: u32,
    },
    Open,
}

/// How much of what there is to tell was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    All,
    /// The socket is full: wait for room in it.
    Some,
    /// Nobody is there any more.
    Lost,
}

/// What became of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Done,
    Full,
    /// The kernel takes no more descriptors, but would take the message.
    Refused,
    Lost,
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) socket: OwnedFd,
    /// Whether its socket was full, so that we wait for room in it.
    pub(super) is_choked: bool,
    stage: Stage,
}

impl Line {
    /// To the daemon that started us: it knows everything so far.
    pub(super) fn open(socket: OwnedFd) -> Self {
        Self {
            socket,
            is_choked: false,
            stage: Stage::Open,
        }
    }

    /// To a daemon that has connected.
    pub(super) fn accepted(socket: OwnedFd) -> Self {
        Self {
            socket,
            is_choked: false,
            stage: Stage::Greeting {
                is_answer_due: false,
            },
        }
    }

    /// Whether a hello is waited for, and no command counts.
    pub(super) fn is_greeting(&self) -> bool {
        matches!(self.stage, Stage::Greeting { .. })
    }

    /// Takes a message while a hello is waited for. Whether it was one that we understand; anything but a
    /// hello is ignored.
    pub(super) fn on_hello(&mut self, message: &[u8]) -> bool {
        let Some(Hello { version }) = Hello::decode(message) else {
            return false;
        };
        let is_ours = version == VERSION;
        self.stage = if is_ours {
            Stage::Listing {
                is_greeted: false,
                next: 0,
                jobs: 0,
            }
        } else {
            Stage::Greeting {
                is_answer_due: true,
            }
        };
        is_ours
    }

    /// Sends what there is to tell, as far as the socket takes it. The list ends only once no birth can
    /// follow.
    pub(super) fn tell(
        &mut self,
        table: &mut Table,
        notices: &mut Notices,
        is_spawner_gone: bool,
    ) -> Said {
        loop {
            let (sent, then) = match self.stage {
                Stage::Greeting {
                    is_answer_due: false,
                } => return Said::All,
                Stage::Greeting {
                    is_answer_due: true,
                } => (
                    self.hello(),
                    Stage::Greeting {
                        is_answer_due: false,
                    },
                ),
                Stage::Listing {
                    is_greeted: false,
                    next,
                    jobs,
                } => {
                    let is_greeted = true;
                    let then = Stage::Listing {
                        is_greeted,
                        next,
                        jobs,
                    };
                    (self.hello(), then)
                }
                Stage::Listing {
                    is_greeted: true,
                    next,
                    jobs,
                } => match table.first_from(next) {
                    Some((seat, job)) => {
                        let then = Stage::Listing {
                            is_greeted: true,
                            next: seat + 1,
                            jobs: jobs.saturating_add(1),
                        };
                        (self.list(job), then)
                    }
                    None if is_spawner_gone => {
                        (self.send(&Inventory::End { jobs }.encode()), Stage::Open)
                    }
                    None => return Said::All,
                },
                Stage::Open => return self.tell_events(table, notices),
            };
            match sent {
                Sent::Done => self.stage = then,
                Sent::Full | Sent::Refused => return Said::Some,
                Sent::Lost => return Said::Lost,
            }
        }
    }

    fn tell_events(&self, table: &mut Table, notices: &mut Notices) -> Said {
        let mut said = Said::All;
        let mut send_one = |event: &KeeperEvent| {
            match self.send(&event.encode()) {
                Sent::Done => return true,
                Sent::Full | Sent::Refused => said = Said::Some,
                Sent::Lost => said = Said::Lost,
            }
            false
        };
        if notices.ready == Notice::Due && send_one(&KeeperEvent::Ready) {
            notices.ready = Notice::Told;
        }
        let is_all_told = notices.ready == Notice::Told && table.tell(&mut send_one);
        if is_all_told && notices.spawner_gone == Notice::Due && send_one(&KeeperEvent::SpawnerGone)
        {
            notices.spawner_gone = Notice::Told;
        }
        said
    }

    fn hello(&self) -> Sent {
        self.send(&Hello { version: VERSION }.encode())
    }

    /// Lists one job with its descriptors; without them when the kernel passes none now.
    fn list(&self, job: &Job) -> Sent {
        let (mut passed, fds) = job.descriptors();
        let message = |passed| {
            let (id, pid, state) = (job.id, job.pid, job.state());
            Inventory::Job {
                id,
                pid,
                state,
                passed,
            }
            .encode()
        };
        if fds.is_empty() {
            return self.send(&message(passed));
        }
        match self.send_with(&message(passed), &fds) {
            Sent::Refused => {
                (passed.output, passed.control, passed.is_incomplete) = (false, false, true);
                self.send(&message(passed))
            }
            sent @ (Sent::Done | Sent::Full | Sent::Lost) => sent,
        }
    }

    fn send(&self, message: &[u8]) -> Sent {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match retry(|| send(self.socket.as_raw_fd(), message, flags)) {
            Ok(_) => Sent::Done,
            Err(errno) => failed(errno as i32),
        }
    }

    /// The socket does not block: [`Line::accepted`] got it so.
    fn send_with(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> Sent {
        match retry_io(|| scm::send(self.socket.as_fd(), message, fds)) {
            Ok(()) => Sent::Done,
            Err(error) => failed(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

fn failed(errno: i32) -> Sent {
    match errno {
        libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => Sent::Full,
        // So many descriptors of ours are on their way already that the limit of open files is reached.
        libc::ETOOMANYREFS => Sent::Refused,
        _ => Sent::Lost,
    }
}
