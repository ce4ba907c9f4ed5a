//! Descriptors over a SOCK_SEQPACKET socket, one message at a time.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most descriptors in one message of ours.
pub const FDS_MAX: usize = 20;

/// Sends one message and duplicates of `fds`. Never raises SIGPIPE; blocks only if the socket does.
///
/// # Errors
/// `EAGAIN` when a non-blocking socket is full, `EPIPE` when the other side is gone, `EMSGSIZE` when
/// `bytes` is larger than the socket's buffer (about 200 KiB).
///
/// # Source
/// unix(7), "SCM_RIGHTS".
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    debug_assert_eq!(
        sent,
        bytes.len(),
        "a SEQPACKET message is sent whole or not at all"
    );
    Ok(())
}

/// Receives one message into `buffer` and appends its descriptors, close-on-exec, to `fds` in order.
/// Returns its length; 0 means that the other side is gone.
///
/// # Errors
/// `EAGAIN` when a non-blocking socket has nothing; `EMSGSIZE` when the message or its descriptors did
/// not fit (those that came are closed).
///
/// # Source
/// unix(7), recvmsg(2).
pub fn recv(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let before = fds.len();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just installed these descriptors for us and nobody else knows them.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    if message
        .flags
        .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC)
    {
        fds.truncate(before);
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok(message.bytes)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap()
    }

    #[test]
    fn bytes_and_descriptors_arrive_together_and_in_order() {
        let (a, b) = pair();
        let (read, write) = nix::unistd::pipe().unwrap();
        send(a.as_fd(), b"hello", &[read.as_fd(), write.as_fd()]).unwrap();
        let (mut buffer, mut fds) = ([0; 16], Vec::new());
        assert_eq!(recv(b.as_fd(), &mut buffer, &mut fds).unwrap(), 5);
        assert_eq!(&buffer[..5], b"hello");
        assert_eq!(fds.len(), 2);
        nix::unistd::write(&fds[1], b"x").unwrap();
        let mut one = [0];
        assert_eq!(nix::unistd::read(&read, &mut one).unwrap(), 1);
    }

    #[test]
    fn a_message_that_does_not_fit_is_an_error_and_a_closed_peer_is_zero() {
        let (a, b) = pair();
        send(a.as_fd(), &[7; 64], &[]).unwrap();
        let (mut buffer, mut fds) = ([0; 16], Vec::new());
        let error = recv(b.as_fd(), &mut buffer, &mut fds).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        drop(a);
        assert_eq!(recv(b.as_fd(), &mut buffer, &mut fds).unwrap(), 0);
    }
}
