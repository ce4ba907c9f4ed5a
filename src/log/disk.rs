//! Keeps part of the disk free, whatever all jobs of all shards write together.
//!
//! Bytes are granted before they are written. All grants ever made are counted in one number, which may not
//! pass a ceiling. Whoever looks at the free space reads first how many granted bytes have been *settled*
//! (written, so the file system shows them), then the free space, and sets
//! `ceiling = settled + free − reserve`: whatever was granted beyond `settled` is taken to be still missing
//! from `free`. Each ceiling is safe by itself, so shards may look at the same time without a lock.
//! The ceiling is also at most [`limits::DISK_CHECK_BYTES`] ahead, so that what others write is noticed.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Instant,
};

use nix::{
    fcntl::{OFlag, open},
    sys::{stat::Mode, statvfs::fstatvfs},
};

use super::LogError;
use crate::{limits, rt};

/// Hands out the free space of one file system, less a reserve. Shared by all shards.
#[derive(Debug)]
pub struct DiskGuard {
    dir: OwnedFd,
    path: PathBuf,
    reserve_bytes: u64,
    granted: AtomicU64,
    settled: AtomicU64,
    ceiling: AtomicU64,
    /// Whether the ceiling is the end of the space and not only the next time to look.
    is_full: AtomicBool,
    started: Instant,
    checked_ns: AtomicU64,
}

impl DiskGuard {
    /// Guards the file system that `base` lies on.
    ///
    /// # Errors
    /// [`LogError::Open`], [`LogError::FreeSpace`].
    pub fn new(base: &Path, reserve_bytes: u64) -> Result<Arc<Self>, LogError> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let dir = open(base, flags, Mode::empty()).map_err(|e| LogError::Open {
            path: base.to_path_buf(),
            source: e.into(),
        })?;
        let guard = Self {
            dir,
            path: base.to_path_buf(),
            reserve_bytes,
            granted: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            ceiling: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
            started: rt::now(),
            checked_ns: AtomicU64::new(0),
        };
        guard.look()?;
        Ok(Arc::new(guard))
    }

    /// A place on the file system.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Free space that is never handed out, bytes.
    #[must_use]
    pub const fn reserve_bytes(&self) -> u64 {
        self.reserve_bytes
    }

    /// Free space now, bytes.
    ///
    /// # Errors
    /// [`LogError::FreeSpace`].
    pub fn free_bytes(&self) -> Result<u64, LogError> {
        let seen = fstatvfs(&self.dir).map_err(|e| LogError::FreeSpace {
            path: self.path.clone(),
            source: e.into(),
        })?;
        Ok(seen.blocks_available().saturating_mul(seen.fragment_size()))
    }

    /// Free space above the reserve as far as it has been handed out for use, bytes.
    #[must_use]
    pub fn headroom(&self) -> u64 {
        self.ceiling
            .load(SeqCst)
            .saturating_sub(self.granted.load(SeqCst))
    }

    /// Grants at most `want` bytes; fewer, or none, when the reserve would be touched.
    #[must_use]
    pub fn take(self: &Arc<Self>, want: u64) -> Grant {
        if self.is_stale() {
            self.look_or_say();
        }
        let mut bytes = self.try_take(want);
        if bytes == 0 && !self.is_full.load(SeqCst) {
            self.look_or_say();
            bytes = self.try_take(want);
        }
        let charged = if bytes == 0 {
            0
        } else {
            bytes + limits::DISK_ROUNDING_BYTES
        };
        Grant {
            guard: self.clone(),
            bytes,
            charged,
        }
    }

    /// Whether `bytes` could be written now without touching the reserve.
    #[must_use]
    pub fn has_room(self: &Arc<Self>, bytes: u64) -> bool {
        let room = self.take(bytes);
        let is_enough = room.bytes() >= bytes;
        room.settle(0);
        is_enough
    }

    fn try_take(&self, want: u64) -> u64 {
        let mut granted = self.granted.load(SeqCst);
        loop {
            let room = self.ceiling.load(SeqCst).saturating_sub(granted);
            let bytes = want.min(room.saturating_sub(limits::DISK_ROUNDING_BYTES));
            if bytes == 0 {
                return 0;
            }
            let after = granted + bytes + limits::DISK_ROUNDING_BYTES;
            match self
                .granted
                .compare_exchange_weak(granted, after, SeqCst, SeqCst)
            {
                Ok(_) => return bytes,
                Err(other) => granted = other,
            }
        }
    }

    /// Whether it is time to look, and this call is the one that does.
    fn is_stale(&self) -> bool {
        let now = self.elapsed_ns();
        let checked = self.checked_ns.load(SeqCst);
        let interval = u64::try_from(limits::DISK_CHECK_INTERVAL.as_nanos()).unwrap_or(u64::MAX);
        now.saturating_sub(checked) >= interval
            && self
                .checked_ns
                .compare_exchange(checked, now, SeqCst, SeqCst)
                .is_ok()
    }

    fn elapsed_ns(&self) -> u64 {
        let elapsed = rt::now().saturating_duration_since(self.started);
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }

    fn look(&self) -> Result<(), LogError> {
        let settled = self.settled.load(SeqCst); // Before the look: see above.
        let above_reserve = self.free_bytes()?.saturating_sub(self.reserve_bytes);
        let end = settled.saturating_add(above_reserve);
        let next_look = self
            .granted
            .load(SeqCst)
            .saturating_add(limits::DISK_CHECK_BYTES);
        self.is_full.store(end <= next_look, SeqCst);
        self.ceiling.store(end.min(next_look), SeqCst);
        self.checked_ns.store(self.elapsed_ns(), SeqCst);
        Ok(())
    }

    fn look_or_say(&self) {
        if let Err(error) = self.look() {
            // The last ceiling stands: at most so many more bytes.
            tracing::warn!(path = %self.path.display(), %error, "free space is not known");
        }
    }
}

/// Bytes that may be written. Dropped without being settled, they count as written.
#[derive(Debug)]
pub struct Grant {
    guard: Arc<DiskGuard>,
    bytes: u64,
    charged: u64,
}

impl Grant {
    /// How many.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back what was not used.
    pub fn settle(mut self, used: u64) {
        let kept = if used == 0 {
            0
        } else {
            used + limits::DISK_ROUNDING_BYTES
        };
        let kept = kept.min(self.charged);
        self.guard.granted.fetch_sub(self.charged - kept, SeqCst);
        self.charged = kept;
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.guard.settled.fetch_add(self.charged, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(dir: &Path) -> u64 {
        let seen = nix::sys::statvfs::statvfs(dir).unwrap();
        seen.blocks_available() * seen.fragment_size()
    }

    #[test]
    fn grants_together_never_pass_what_is_free_above_the_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = free(dir.path()) - (32 << 20);
        let guard = DiskGuard::new(dir.path(), reserve).unwrap();
        // Another writer of this machine may move the free space meanwhile: the ceiling seen first counts.
        let ceiling = guard.ceiling.load(SeqCst);
        assert!(ceiling < 64 << 20, "{ceiling}");
        let grants: Vec<_> =
            std::iter::from_fn(|| Some(guard.try_take(3 << 20)).filter(|n| *n > 0)).collect();
        let charged: u64 = grants.iter().map(|n| n + limits::DISK_ROUNDING_BYTES).sum();
        assert!(charged <= ceiling && ceiling - charged <= limits::DISK_ROUNDING_BYTES);
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let guard = DiskGuard::new(dir.path(), 0).unwrap();
        let before = guard.granted.load(SeqCst);
        let grant = guard.take(1 << 20);
        assert_eq!(grant.bytes(), 1 << 20);
        grant.settle(0);
        assert_eq!(guard.granted.load(SeqCst), before);
        guard.take(1 << 20).settle(10);
        let charged = 10 + limits::DISK_ROUNDING_BYTES;
        assert_eq!(
            (guard.granted.load(SeqCst), guard.settled.load(SeqCst)),
            (before + charged, charged)
        );
    }

    #[test]
    fn nothing_is_granted_when_the_reserve_is_larger_than_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let guard = DiskGuard::new(dir.path(), u64::MAX).unwrap();
        assert_eq!((guard.take(1).bytes(), guard.headroom()), (0, 0));
    }
}
