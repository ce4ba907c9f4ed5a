//! The named socket on which a keeper without a daemon waits for the next one.
//!
//! ```text
//! Shut (there is a daemon) ── lost ──► Open ── one is let in ──► Shut
//!                                       └─ no descriptor left ──► Stuck ── something is closed ──► Shut, then Open
//! ```

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::sys::seqpacket;

/// Daemons that may wait for us to lose the one we have. There is one a base directory, and its successor.
const WAITING_MAX: u8 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Shut,
    Open,
    /// Nobody can be let in for want of a descriptor; the socket stays readable, and we would spin.
    Stuck,
}

#[derive(Debug)]
pub(super) struct Door {
    listener: OwnedFd,
    state: State,
    /// Only a daemon of this user is let in.
    user: u32,
    token: u64,
}

impl Door {
    /// Shut. `listener` is bound already; here and not where it was bound it begins to listen, so that whoever
    /// connects is told our process id. `token` is what the epoll will say of it.
    pub(super) fn new(listener: OwnedFd, token: u64) -> io::Result<Self> {
        seqpacket::listen(listener.as_fd(), WAITING_MAX)?;
        Ok(Self {
            listener,
            state: State::Shut,
            user: nix::unistd::geteuid().as_raw(),
            token,
        })
    }

    /// Waits for a daemon from now on, unless it does so already or cannot let one in.
    pub(super) fn open(&mut self, epoll: &Epoll) {
        let readable = EpollEvent::new(EpollFlags::EPOLLIN, self.token);
        if self.state == State::Shut && epoll.add(&self.listener, readable).is_ok() {
            self.state = State::Open;
        }
    }

    /// Waits for none: one was let in.
    pub(super) fn shut(&mut self, epoll: &Epoll) {
        let _ = epoll.delete(&self.listener);
        self.state = State::Shut;
    }

    /// One who has knocked and is of our user; the door stays open.
    pub(super) fn admit(&mut self, epoll: &Epoll) -> Option<OwnedFd> {
        match seqpacket::accept(self.listener.as_fd()) {
            Ok(socket) => {
                let peer = seqpacket::peer(socket.as_fd());
                Some(socket).filter(|_| peer.is_ok_and(|peer| peer.uid == self.user))
            }
            Err(error) => {
                if let Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) =
                    error.raw_os_error()
                {
                    let _ = epoll.delete(&self.listener);
                    self.state = State::Stuck;
                }
                None
            }
        }
    }

    /// A descriptor has been closed: there may be room for a daemon's.
    pub(super) fn has_room(&mut self) {
        if self.state == State::Stuck {
            self.state = State::Shut;
        }
    }
}
