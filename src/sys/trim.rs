//! FITRIM: a file system tells the device under it what is free.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// FITRIM of linux/fs.h.
const FITRIM: libc::Ioctl = 0xC018_5879_u32 as libc::Ioctl;

/// struct fstrim_range: what to look at; the kernel writes into `bytes` how much it has trimmed.
#[repr(C)]
struct Range {
    start: u64,
    bytes: u64,
    piece_bytes_min: u64,
}

const _: () = assert!(size_of::<Range>() == 24);

/// Tells the device under the file system of `root`, an open directory, about all blocks that are free: a loop device
/// gives their space back. Those told before and not used since are not told again. Returns their bytes.
///
/// # Errors
/// `EOPNOTSUPP` where the file system or the device cannot; `EPERM` without CAP_SYS_ADMIN; `EROFS`.
///
/// # Source
/// Linux `fs/ext4/ioctl.c`, `ext4_ioctl`; fstrim(8).
pub fn free_blocks(root: BorrowedFd<'_>) -> io::Result<u64> {
    let mut range = Range {
        start: 0,
        bytes: u64::MAX,
        piece_bytes_min: 0,
    };
    // SAFETY: the descriptor is open, and the range is ours and lives through the call.
    match unsafe { libc::ioctl(root.as_raw_fd(), FITRIM, &raw mut range) } {
        0 => Ok(range.bytes),
        _ => Err(io::Error::last_os_error()),
    }
}
