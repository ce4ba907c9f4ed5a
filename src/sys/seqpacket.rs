//! Named SOCK_SEQPACKET sockets: found by a name in a directory, whose path may be longer than a socket
//! address has room for.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::PathBuf,
};

use nix::sys::{
    socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, getsockopt, sockopt},
    stat::{Mode, fchmod},
};

/// Who is at the other end, as the kernel noted it: for a connecting side the process that called
/// [`listen`], for an accepting one the process that connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process id. It may have been given to another process since.
    pub pid: u32,
    /// Effective user id.
    pub uid: u32,
}

/// Makes a socket and gives it the name `name` in `directory`; non-blocking, mode 0600. The name outlives it.
///
/// # Errors
/// `EADDRINUSE` when the name is taken; whatever socket(2) and bind(2) say.
///
/// # Source
/// unix(7).
pub fn bind(directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let made = new()?;
    // The file takes its mode from the socket's own.
    fchmod(&made, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket::bind(made.as_raw_fd(), &address(directory, name)?)?;
    Ok(made)
}

/// Lets others connect, at most `waiting` of them at once before they are accepted. From now on the calling
/// process is what [`peer`] tells them.
///
/// # Errors
/// What listen(2) says.
///
/// # Source
/// unix(7), "SO_PEERCRED".
pub fn listen(listener: BorrowedFd<'_>, waiting: u8) -> io::Result<()> {
    let backlog = Backlog::new(waiting).map_err(io::Error::from)?;
    Ok(socket::listen(&listener, backlog)?)
}

/// Takes one who has connected; non-blocking, close-on-exec.
///
/// # Errors
/// `EAGAIN` when nobody waits, `EMFILE`; whatever accept(2) says.
///
/// # Source
/// accept4(2).
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let raw = socket::accept4(listener.as_raw_fd(), flags)?;
    // SAFETY: the kernel has just installed it for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Connects to the socket `name` in `directory`; non-blocking.
///
/// # Errors
/// `ENOENT` without such a file, `ECONNREFUSED` when nobody listens any more, `EAGAIN` when too many wait.
///
/// # Source
/// unix(7).
pub fn connect(directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let made = new()?;
    socket::connect(made.as_raw_fd(), &address(directory, name)?)?;
    Ok(made)
}

/// Who is at the other end of a connected socket.
///
/// # Errors
/// What getsockopt(2) says.
///
/// # Source
/// unix(7), "SO_PEERCRED".
pub fn peer(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let found = getsockopt(&socket.as_fd(), sockopt::PeerCredentials)?;
    Ok(Peer {
        pid: u32::try_from(found.pid()).unwrap_or_default(),
        uid: found.uid(),
    })
}

fn new() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket::socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        flags,
        None,
    )?)
}

/// An address holds 107 bytes, a path up to 4,095: the directory is named by its descriptor.
fn address(directory: BorrowedFd<'_>, name: &str) -> io::Result<UnixAddr> {
    let directory = format!("/proc/self/fd/{}", directory.as_raw_fd());
    Ok(UnixAddr::new(&PathBuf::from(directory).join(name))?)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::{FileTypeExt, PermissionsExt},
    };

    use super::*;
    use crate::sys::scm;

    #[test]
    fn a_socket_below_a_path_of_a_thousand_bytes_is_found_and_its_listener_named() {
        let base = tempfile::tempdir().unwrap();
        let deep = (0..10).fold(base.path().to_owned(), |path, _| path.join("d".repeat(100)));
        fs::create_dir_all(&deep).unwrap();
        let directory = File::open(&deep).unwrap();
        let listener = bind(directory.as_fd(), "one").unwrap();
        let metadata = fs::metadata(deep.join("one")).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        let refused = connect(directory.as_fd(), "one").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED));
        let taken = bind(directory.as_fd(), "one").unwrap_err();
        assert_eq!(taken.raw_os_error(), Some(libc::EADDRINUSE));
        let missing = connect(directory.as_fd(), "two").unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));

        listen(listener.as_fd(), 1).unwrap();
        let nobody = accept(listener.as_fd()).unwrap_err();
        assert_eq!(nobody.raw_os_error(), Some(libc::EAGAIN));
        let ours = connect(directory.as_fd(), "one").unwrap();
        let theirs = accept(listener.as_fd()).unwrap();
        let us = Peer {
            pid: std::process::id(),
            uid: nix::unistd::geteuid().as_raw(),
        };
        assert_eq!(peer(ours.as_fd()).unwrap(), us);
        assert_eq!(peer(theirs.as_fd()).unwrap(), us);
        scm::send(theirs.as_fd(), b"hello", &[]).unwrap();
        let mut buffer = [0; 8];
        let length = scm::recv(ours.as_fd(), &mut buffer, &mut Vec::new()).unwrap();
        assert_eq!(&buffer[..length], b"hello");
    }
}
