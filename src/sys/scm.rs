//! Descriptors over a SOCK_SEQPACKET socket, one message at a time.

use std::{
    io::{self, IoSlice},
    mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Most descriptors in one message of ours; the kernel takes 253.
pub const FDS_MAX: usize = 96;

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

/// Room for the descriptors of one message, aligned as the kernel writes its headers.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// The kernel rounds each header and its contents up to a word; our descriptors are one header's contents.
const CONTROL_BYTES: usize = size_of::<libc::cmsghdr>() + FDS_MAX * size_of::<RawFd>();
const _: () = assert!(
    CONTROL_BYTES.is_multiple_of(size_of::<usize>())
        && align_of::<libc::cmsghdr>() <= align_of::<Control>()
);

/// Receives one message into `buffer` and appends its descriptors, close-on-exec, to `fds` in order.
/// Returns its length; 0 means that the other side is gone.
///
/// The wrapped call gives no descriptor of a truncated message and so leaks those that did arrive: the reason
/// why the headers are read here.
///
/// # Errors
/// `EAGAIN` when a non-blocking socket has nothing; `EMSGSIZE` when the message or its descriptors did
/// not fit, also because we may not have so many (those that came are closed).
///
/// # Source
/// unix(7), recvmsg(2), cmsg(3).
pub fn recv(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut slice = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all zeros is a message header without a name, buffers and control data.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_BYTES;
    // SAFETY: buffer and control data are ours, writable for the lengths given, and outlive the call.
    let length =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let before = fds.len();
    take_descriptors(&header, fds);
    if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        fds.truncate(before);
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok(length)
}

/// Every descriptor that came with a message, complete or not. Call it once a message.
fn take_descriptors(header: &libc::msghdr, fds: &mut Vec<OwnedFd>) {
    // SAFETY: recvmsg has filled the header, and its control data is still there.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: null, or a header in the control data, which is aligned for it.
    while let Some(control) = unsafe { next.as_ref() } {
        if (control.cmsg_level, control.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: a header in the control data, as above.
            let contents = unsafe { libc::CMSG_DATA(control) };
            // The kernel counts what it has installed, not what was sent.
            let bytes = control.cmsg_len - (contents as usize - next as usize);
            for index in 0..bytes / size_of::<RawFd>() {
                // SAFETY: below the length that the header says, within the control data.
                let place = unsafe { contents.cast::<RawFd>().add(index) };
                // SAFETY: a number of the kernel's, at whatever address.
                let raw = unsafe { place.read_unaligned() };
                // SAFETY: the kernel has just installed it for us and nobody else knows it.
                fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
        // SAFETY: both are what recvmsg has filled.
        next = unsafe { libc::CMSG_NXTHDR(header, control) };
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use nix::{
        poll::{PollFd, PollFlags, PollTimeout, poll},
        sys::{
            resource::{Resource, getrlimit, setrlimit},
            socket::{AddressFamily, SockFlag, SockType, socketpair},
            wait::{WaitStatus, waitpid},
        },
        unistd::Pid,
    };

    use super::*;
    use crate::sys::keeper_calls::{Forked, exit_now, fork};

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
    #[test]
    fn descriptors_of_a_message_that_does_not_fit_are_closed() {
        let (a, b) = pair();
        let (read, write) = nix::unistd::pipe().unwrap();
        let some = [write.as_fd(); FDS_MAX];
        let many = [write.as_fd(); FDS_MAX + 4];
        let (mut buffer, mut fds) = ([0; 16], Vec::new());
        send(a.as_fd(), b"all", &some).unwrap();
        assert_eq!(recv(b.as_fd(), &mut buffer, &mut fds).unwrap(), 3);
        assert_eq!(fds.len(), FDS_MAX);

        let mut kept = fds.split_off(FDS_MAX - 1);
        for (bytes, sent) in [(&[7; 8][..], &many[..]), (&[7; 64][..], &some[..])] {
            send(a.as_fd(), bytes, sent).unwrap();
            let error = recv(b.as_fd(), &mut buffer, &mut kept).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
            assert_eq!(kept.len(), 1, "what was there before stays");
        }
        drop((fds, kept, write));
        // The end of the pipe is seen only when no copy of its other end is left.
        let mut polls = [PollFd::new(read.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut polls, PollTimeout::ZERO);
        assert_eq!(ready, Ok(1), "a copy is left");
    }

    #[test]
    fn at_the_limit_of_open_files_the_descriptors_that_still_fit_are_closed() {
        let (a, b) = pair();
        send(a.as_fd(), b"some", &[a.as_fd(); FDS_MAX]).unwrap();
        let child = match fork().unwrap() {
            Forked::Parent(pid) => Pid::from_raw(pid.try_into().unwrap()),
            Forked::Child => {
                let at_limit = || std::iter::from_fn(|| File::open("/dev/null").ok());
                let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
                setrlimit(Resource::RLIMIT_NOFILE, 1_000, hard).unwrap();
                let mut held: Vec<File> = at_limit().collect();
                held.truncate(held.len() - 3);
                let (mut buffer, mut fds) = ([0; 16], Vec::new());
                let error = recv(b.as_fd(), &mut buffer, &mut fds).unwrap_err();
                let is_clean = error.raw_os_error() == Some(libc::EMSGSIZE)
                    && fds.is_empty()
                    && at_limit().collect::<Vec<File>>().len() == 3;
                exit_now(i32::from(!is_clean))
            }
        };
        assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
    }
}
