//! Reads what is in the page cache and never waits for a disk.

use std::{io, os::fd::AsRawFd};

/// Appends to `buffer` what of the `len` bytes at `offset` is in the page cache; returns how many came.
///
/// Fewer than `len` means that the rest is not cached or beyond the end of the file.
///
/// # Errors
/// `EAGAIN` when the first byte is not cached, `EOPNOTSUPP` where the file system cannot tell.
///
/// # Source
/// preadv2(2), "RWF_NOWAIT".
pub fn read_cached(file: &impl AsRawFd, buffer: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<usize> {
    let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    buffer.reserve(len);
    let spare = &mut buffer.spare_capacity_mut()[..len];
    let slice = libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: spare.len() };
    // SAFETY: `slice` points at `len` bytes of spare capacity that nobody else refers to, and lives across
    // the call; the kernel writes into them only and checks the descriptor and the offset.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &raw const slice, 1, offset, libc::RWF_NOWAIT) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    let filled = buffer.len() + read;
    // SAFETY: the kernel has initialised `read` bytes behind the old length, within the reserved capacity.
    unsafe { buffer.set_len(filled) };
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn bytes_just_written_are_cached_and_appended() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"hello world", 0).unwrap();
        let mut buffer = b"> ".to_vec();
        assert_eq!(read_cached(&file, &mut buffer, 5, 6).unwrap(), 5);
        assert_eq!(buffer, b"> world");
        assert_eq!(read_cached(&file, &mut buffer, 64, 6).unwrap(), 5);
        assert_eq!(buffer, b"> worldworld");
        assert_eq!(read_cached(&file, &mut buffer, 64, 11).unwrap(), 0);
    }
}
