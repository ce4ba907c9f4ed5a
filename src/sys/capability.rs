//! Capabilities of the calling thread, and the promise never to gain one by execve.

use std::io;

use nix::errno::Errno;

/// A set of capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(u64);

impl Capabilities {
    /// None.
    pub const NONE: Self = Self(0);
    /// Signals to processes of other users.
    pub const KILL: Self = Self(1 << 5);
    /// Any gid and supplementary groups.
    pub const SETGID: Self = Self(1 << 6);
    /// Any uid.
    pub const SETUID: Self = Self(1 << 7);
    /// Dropping from the bounding set.
    pub const SETPCAP: Self = Self(1 << 8);
    /// Mounts and namespaces.
    pub const SYS_ADMIN: Self = Self(1 << 21);

    /// Both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// As the kernel's 64 bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// From the kernel's 64 bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Their numbers, ascending.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |number| self.0 & (1 << number) != 0)
    }
}

/// capset(2)'s header, version 3, for the calling thread.
pub(super) const HEADER: [u32; 2] = [0x2008_0522, 0];

/// capset(2)'s data: effective, permitted, inheritable, low words first.
#[expect(
    clippy::cast_possible_truncation,
    reason = "splits 64 bits in two words"
)]
pub(super) const fn data(kept: Capabilities, inheritable: Capabilities) -> [u32; 6] {
    let (low, high) = (kept.0 as u32, (kept.0 >> 32) as u32);
    [
        low,
        low,
        inheritable.0 as u32,
        high,
        high,
        (inheritable.0 >> 32) as u32,
    ]
}

/// Leaves the calling thread exactly `kept`, permitted and effective, nothing inheritable or ambient, an empty
/// bounding set, and no way to gain any: no_new_privs is set.
///
/// # Errors
/// `EPERM` if `kept` is not held now or CAP_SETPCAP is missing.
///
/// # Source
/// capabilities(7), capset(2), PR_CAPBSET_DROP(2const).
pub fn keep_only(kept: Capabilities) -> io::Result<()> {
    nix::sys::prctl::set_no_new_privs()?;
    for number in 0..64 {
        // SAFETY: numbers only.
        match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) }) {
            Ok(_) => {}
            Err(Errno::EINVAL) if number > 0 => break, // past the last one this kernel knows
            Err(error) => return Err(error.into()),
        }
    }
    let data = data(kept, Capabilities::NONE);
    // SAFETY: header and data have the layout of version 3 and live until the call returns.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, HEADER.as_ptr(), data.as_ptr()) })?;
    Ok(())
}
