//! A classic BPF program that picks the socket of a SO_REUSEPORT group.

use std::{
    io,
    mem::size_of_val,
    os::fd::{AsRawFd, BorrowedFd},
};

/// One instruction: operation, jumps if true and false, operand.
pub type Instruction = libc::sock_filter;

/// An instruction.
#[must_use]
pub const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// Attaches `program` to the group that `socket` is in. For UDP, offset 0 of the program's input is the
/// first byte of the payload; the program returns the position of a socket, in the order in which they were
/// bound. Needs no privilege.
///
/// # Errors
/// `EINVAL` when the program is refused or the socket is in no group.
///
/// # Source
/// socket(7), "SO_ATTACH_REUSEPORT_CBPF".
pub fn attach(socket: BorrowedFd<'_>, program: &mut [Instruction]) -> io::Result<()> {
    let len =
        u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter = libc::sock_fprog {
        len,
        filter: program.as_mut_ptr(),
    };
    let size = libc::socklen_t::try_from(size_of_val(&filter)).expect("a small struct");
    // SAFETY: the option's value is a `sock_fprog` of exactly `size` bytes that lives across the call, and it
    // points to `len` instructions that live as long; the kernel copies both.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            std::ptr::from_ref(&filter).cast(),
            size,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
