//! Fresh namespaces, made before they are needed.
//!
//! A user and a network namespace cost half a millisecond and all of the tail of a start, so a *maker*
//! process beside each shard makes them ahead. A pair is used by one job and never again. Here are the
//! daemon's books ([`NamespacePool`]) and its two non-blocking calls; waiting is the driver's business.

mod maker;
mod message;

use std::{
    collections::{HashSet, VecDeque},
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use thiserror::Error;

pub use maker::run as run_maker;
pub use message::MakeStep;

use self::message::ANSWER_BYTES;
use crate::{limits, sandbox::identity::IdRange, sys::scm};

/// What one job gets: namespaces nobody has used, and the host ids that the user namespace maps.
#[derive(Debug)]
pub struct Namespaces {
    /// User namespace: ids 0 to 65,535 on `ids`, sealed.
    pub user: OwnedFd,
    /// Network namespace: `lo` up, every port may be bound.
    pub net: OwnedFd,
    /// Host ids of the job; given back to the allocator when its cgroup is empty.
    pub ids: IdRange,
}

/// A maker's answer to one request.
#[derive(Debug)]
pub enum Answer {
    /// Made.
    Made(Namespaces),
    /// Not made; the ids are unused.
    Failed {
        /// What was asked for.
        ids: IdRange,
        /// What failed.
        step: MakeStep,
        /// Its errno.
        errno: i32,
    },
}

/// Why there is no pair.
#[derive(Debug, Error)]
pub enum PoolError {
    /// The maker could not make one. Its ids can be allocated again.
    #[error("{step} for ids from {}", .ids.base())]
    Make {
        /// What was asked for.
        ids: IdRange,
        /// What failed.
        step: MakeStep,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An answer to something that was not asked, or not of this maker. It is dropped.
    #[error("answer for ids from {} that nobody asked for", .ids.base())]
    Unasked {
        /// The ids it names.
        ids: IdRange,
    },
}

/// The pairs that are ready and the requests that are not answered yet. No I/O.
#[derive(Debug, Default)]
pub struct NamespacePool {
    ready: VecDeque<Namespaces>,
    asked: HashSet<IdRange>,
}

impl NamespacePool {
    /// An empty pool that wants [`limits::NAMESPACES_READY`] pairs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The oldest pair that is ready, if there is one.
    pub fn take(&mut self) -> Option<Namespaces> {
        self.ready.pop_front()
    }

    /// How many more to request so that the pool fills up.
    #[must_use]
    pub fn wanted(&self) -> usize {
        limits::NAMESPACES_READY.saturating_sub(self.ready.len() + self.asked.len())
    }

    /// How many pairs are ready.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Notes that a pair on `ids` was requested.
    pub fn note_requested(&mut self, ids: IdRange) {
        self.asked.insert(ids);
    }

    /// Takes an answer in.
    ///
    /// # Errors
    /// [`PoolError::Make`]: free the ids and ask again later; [`PoolError::Unasked`].
    pub fn put(&mut self, answer: Answer) -> Result<(), PoolError> {
        let (Answer::Made(Namespaces { ids, .. }) | Answer::Failed { ids, .. }) = &answer;
        if !self.asked.remove(ids) {
            return Err(PoolError::Unasked { ids: *ids });
        }
        match answer {
            Answer::Made(namespaces) => {
                self.ready.push_back(namespaces);
                Ok(())
            }
            Answer::Failed { ids, step, errno } => {
                Err(PoolError::Make { ids, step, source: io::Error::from_raw_os_error(errno) })
            }
        }
    }

    /// Forgets the requests of a maker that is gone and returns their ids, which can be allocated again.
    /// Pairs that are ready stay: they do not depend on their maker.
    pub fn forget_requested(&mut self) -> Vec<IdRange> {
        self.asked.drain().collect()
    }

    /// Closes the pairs that are ready and returns their ids and those of unanswered requests.
    pub fn empty(&mut self) -> Vec<IdRange> {
        let mut ids = self.forget_requested();
        ids.extend(self.ready.drain(..).map(|namespaces| namespaces.ids));
        ids
    }
}

/// Asks the maker for one pair on `ids`.
///
/// # Errors
/// `WouldBlock` when the socket is full; `EPIPE` when the maker is gone.
pub fn request(socket: BorrowedFd<'_>, ids: IdRange) -> io::Result<()> {
    scm::send(socket, &message::encode_request(ids), &[])
}

/// One answer, if one is there.
///
/// # Errors
/// `UnexpectedEof` when the maker is gone; `InvalidData` when what came is no answer; what recvmsg(2) says.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Answer>> {
    let (mut buffer, mut fds) = ([0; ANSWER_BYTES], Vec::new());
    let length = match scm::recv(socket, &mut buffer, &mut fds) {
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    };
    let answer = match (message::decode_answer(&buffer[..length]), <[OwnedFd; 2]>::try_from(fds)) {
        (Some((ids, None)), Ok([user, net])) => Answer::Made(Namespaces { user, net, ids }),
        (Some((ids, Some((step, errno)))), Err(fds)) if fds.is_empty() => Answer::Failed { ids, step, errno },
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    Ok(Some(answer))
}

#[cfg(test)]
mod tests;
