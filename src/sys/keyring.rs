//! The session keyring, which every child shares unless told otherwise.

use std::io;

use nix::errno::Errno;

/// Gives the calling process a session keyring that nobody else has. A kernel without keyrings has none to
/// share, which is as good.
///
/// # Errors
/// `EDQUOT` when the user's quota of keys is used up.
///
/// # Source
/// KEYCTL_JOIN_SESSION_KEYRING(2const).
pub fn join_new_session() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: a number and a null name, which asks for an anonymous keyring.
    match Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0_usize) }) {
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
