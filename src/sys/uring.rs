//! A second submission ring for what the runtime's ring lacks: splice at an offset, mkdir.
//!
//! The one idea: the ring owns whatever an operation refers to, from the moment it is queued until its
//! completion has been read, so callers may forget an operation at any time. Completions are handed back
//! with the caller's tag. The ring's own descriptor becomes readable when there are some.

use std::{
    ffi::CString,
    fmt, io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

use io_uring::{IoUring, opcode, squeue, types};

/// The owner of an open descriptor.
pub type Owner = Rc<dyn AsRawFd>;

/// Moves bytes out of a pipe without waiting for any.
pub struct Splice {
    /// The pipe's read end.
    pub from: Owner,
    /// Where to: a file that is not O_APPEND, or a device.
    pub to: Owner,
    /// Position in the file; `None` for what has none.
    pub offset: Option<u64>,
    /// At most so many bytes.
    pub len: u32,
}

impl fmt::Debug for Splice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Splice")
            .field("from", &self.from.as_raw_fd())
            .field("to", &self.to.as_raw_fd())
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish()
    }
}

/// What the kernel may still look at while an operation is in flight.
#[expect(dead_code, reason = "held for their lifetime only")]
enum Held {
    Descriptors(Owner, Owner),
    Path(CString),
}

struct InFlight<T> {
    _held: Held,
    tag: T,
}

/// A ring whose operations each carry a tag.
pub struct SideRing<T> {
    ring: IoUring,
    slots: Vec<Option<InFlight<T>>>,
    free: Vec<usize>,
}

impl<T> fmt::Debug for SideRing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SideRing").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

impl<T> SideRing<T> {
    /// Makes a ring for the calling thread, which alone may use it.
    ///
    /// `workers` bounds the kernel threads that serve this thread's rings, all of them: without a bound
    /// there is one for each splice in flight. Not DEFER_TASKRUN: the ring's descriptor would never become
    /// readable.
    ///
    /// # Errors
    /// `ENOSYS` or `EPERM` when the host has no io_uring, `EMFILE`, `ENOMEM`.
    ///
    /// # Source
    /// io_uring_setup(2); io_uring_register(2), "IORING_REGISTER_IOWQ_MAX_WORKERS".
    pub fn new(entries: u32, workers: u32) -> io::Result<Self> {
        let ring: IoUring = IoUring::builder().setup_single_issuer().setup_coop_taskrun().build(entries)?;
        ring.submitter().register_iowq_max_workers(&mut [workers, workers])?;
        Ok(Self { ring, slots: Vec::new(), free: Vec::new() })
    }

    /// A descriptor that is readable while there are completions.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn readiness(&self) -> io::Result<OwnedFd> {
        // SAFETY: the ring owns this descriptor and outlives the borrow, which ends with the statement.
        let ring = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
        ring.try_clone_to_owned()
    }

    /// Queues a splice. Completes with the number of bytes, 0 at the end of the pipe, `-EAGAIN` when it is
    /// empty.
    ///
    /// # Errors
    /// When the queue is full and the kernel takes nothing.
    ///
    /// # Source
    /// splice(2); io_uring_enter(2), "IORING_OP_SPLICE".
    pub fn push_splice(&mut self, splice: Splice, tag: T) -> io::Result<()> {
        // -1 says that this side has no position of its own.
        let offset = match splice.offset {
            Some(offset) => i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?,
            None => -1,
        };
        let from = types::Fd(splice.from.as_raw_fd());
        let to = types::Fd(splice.to.as_raw_fd());
        let entry = opcode::Splice::new(from, -1, to, offset, splice.len)
            .flags(libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE)
            .build();
        self.push(entry, Held::Descriptors(splice.from, splice.to), tag)
    }

    /// Queues the making of a directory. Completes with 0 or a negative error number.
    ///
    /// # Errors
    /// As [`SideRing::push_splice`].
    ///
    /// # Source
    /// mkdirat(2); io_uring_enter(2), "IORING_OP_MKDIRAT".
    pub fn push_mkdir(&mut self, path: CString, mode: u32, tag: T) -> io::Result<()> {
        let entry = opcode::MkDirAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).mode(mode).build();
        self.push(entry, Held::Path(path), tag)
    }

    /// Gives everything queued to the kernel.
    ///
    /// # Errors
    /// `EINTR`, `EAGAIN`, `EBUSY`: reap and try again.
    pub fn submit(&mut self) -> io::Result<usize> {
        self.ring.submit()
    }

    /// Hands every completion that is there to `each`, with its tag and the kernel's result.
    pub fn reap(&mut self, mut each: impl FnMut(T, i32)) {
        for completion in self.ring.completion() {
            let slot = usize::try_from(completion.user_data()).expect("slots are counted in usize");
            let done = self.slots[slot].take().expect("a completion comes once for each operation");
            self.free.push(slot);
            each(done.tag, completion.result());
        }
    }

    /// Operations whose completion has not been read.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn push(&mut self, entry: squeue::Entry, held: Held, tag: T) -> io::Result<()> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(InFlight { _held: held, tag });
        let entry = entry.user_data(u64::try_from(slot).expect("usize fits in u64"));
        loop {
            // SAFETY: what the entry points at (a path) lives on the heap in `slots` and is neither moved nor
            // dropped before the completion is read; descriptors are numbers that the kernel checks, and
            // their owners are in the slot so that the numbers keep their meaning.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            if let Err(error) = self.ring.submit() {
                self.slots[slot] = None;
                self.free.push(slot);
                return Err(error);
            }
        }
    }
}

impl<T> Drop for SideRing<T> {
    /// Waits for what is in flight: closing the ring would not, and the kernel may still look at it.
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            if self.ring.submit_and_wait(1).is_err_and(|e| e.kind() != io::ErrorKind::Interrupted) {
                // Nothing more will complete that we could see: what is left is never freed.
                self.slots.drain(..).for_each(std::mem::forget);
                return;
            }
            self.reap(|_, _| {});
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt};

    use super::*;

    fn wait(ring: &mut SideRing<u32>) -> Vec<(u32, i32)> {
        let mut done = Vec::new();
        while ring.in_flight() > 0 {
            ring.ring.submit_and_wait(1).unwrap();
            ring.reap(|tag, result| done.push((tag, result)));
        }
        done
    }

    #[test]
    fn a_splice_keeps_its_descriptors_open_until_it_has_completed() {
        let mut ring = SideRing::new(8, 2).unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        nix::unistd::write(&write, b"hello").unwrap();
        let file = tempfile::tempfile().unwrap();
        let (from, to): (Rc<OwnedFd>, Rc<File>) = (Rc::new(read), Rc::new(file.try_clone().unwrap()));
        let (weak_from, weak_to) = (Rc::downgrade(&from), Rc::downgrade(&to));
        ring.push_splice(Splice { from, to, offset: Some(3), len: 4096 }, 7).unwrap();
        assert!(weak_from.upgrade().is_some() && weak_to.upgrade().is_some());
        assert_eq!(wait(&mut ring), [(7, 5)]);
        assert!(weak_from.upgrade().is_none() && weak_to.upgrade().is_none());
        let mut stored = [0; 8];
        file.read_exact_at(&mut stored, 0).unwrap();
        assert_eq!(&stored, b"\0\0\0hello");
    }

    #[test]
    fn an_empty_pipe_is_eagain_and_a_closed_one_is_zero() {
        let mut ring = SideRing::new(8, 2).unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        let from: Owner = Rc::new(read);
        let to: Owner = Rc::new(tempfile::tempfile().unwrap());
        let splice = || Splice { from: from.clone(), to: to.clone(), offset: Some(0), len: 4096 };
        ring.push_splice(splice(), 1).unwrap();
        assert_eq!(wait(&mut ring), [(1, -libc::EAGAIN)]);
        drop(write);
        ring.push_splice(splice(), 2).unwrap();
        assert_eq!(wait(&mut ring), [(2, 0)]);
    }

    #[test]
    fn more_operations_than_entries_are_all_completed() {
        let mut ring = SideRing::new(2, 2).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for tag in 0..9 {
            let path = dir.path().join(tag.to_string());
            let path = CString::new(path.into_os_string().into_encoded_bytes()).unwrap();
            ring.push_mkdir(path, 0o700, tag).unwrap();
        }
        let mut done = wait(&mut ring);
        done.sort_unstable();
        assert_eq!(done, (0..9).map(|tag| (tag, 0)).collect::<Vec<_>>());
        assert!(dir.path().join("8").is_dir());
    }
}
