//! What a keeper may still do once it is confined.
//!
//! The list is the whole of its life: wait, receive, send, reap, close, and memory for its tables. Anything
//! else is refused with EPERM rather than killed for, because a keeper that dies takes the outcomes of its
//! jobs with it.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use thiserror::Error;

use crate::sys::keeper_calls::{CAP_KILL, keep_capabilities};

/// Why this process could not be confined.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// Capabilities could not be given up.
    #[error("give up capabilities")]
    Capabilities(#[source] std::io::Error),
    /// The filter could not be built for this machine.
    #[error("build the system-call filter")]
    Build(#[from] seccompiler::BackendError),
    /// The kernel refused it.
    #[error("install the system-call filter")]
    Install(#[from] seccompiler::Error),
}

/// Gives up every capability but the one to kill, all privileges to be gained by exec, and every system
/// call that is not on the list. There is no way back.
///
/// # Errors
/// [`ConfineError`]; the process may then be confined in part and should end.
pub fn confine() -> Result<(), ConfineError> {
    // CAP_KILL: a job whose birth cannot be taken over runs under ids of its own, and is killed.
    keep_capabilities(&[CAP_KILL]).map_err(ConfineError::Capabilities)?;
    let program = program()?;
    seccompiler::apply_filter(&program)?; // sets no_new_privs first
    Ok(())
}

fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules()?, refuse, SeccompAction::Allow, arch)?.try_into()
}

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    // Memory that can be executed is never needed.
    let not_executable = || {
        let prot_exec = u64::try_from(libc::PROT_EXEC).expect("a positive flag");
        let condition = SeccompCondition::new(
            2,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(prot_exec),
            0,
        )?;
        Ok::<_, seccompiler::BackendError>(vec![SeccompRule::new(vec![condition])?])
    };
    let level = u64::try_from(libc::SOL_SOCKET).expect("a positive constant");
    let name = u64::try_from(libc::SO_PEERCRED).expect("a positive constant");
    let of_peer = [(1, level), (2, name)].map(|(argument, value)| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
    });
    let of_peer = of_peer.into_iter().collect::<Result<Vec<_>, _>>()?;
    let to_stderr = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, 2)?;
    Ok(BTreeMap::from([
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_epoll_wait, vec![]), // wait for anything
        (libc::SYS_epoll_pwait, vec![]), // the same on aarch64
        (libc::SYS_epoll_ctl, vec![]),   // watch a job, stop watching it
        (libc::SYS_recvmsg, vec![]),     // births: the only message that brings descriptors
        (libc::SYS_recvfrom, vec![]),    // commands, and records of init
        (libc::SYS_sendto, vec![]),      // events, and signals for init
        (libc::SYS_sendmsg, vec![]),     // a job's descriptors for a daemon that takes over
        (libc::SYS_accept4, vec![]),     // let that daemon in
        (libc::SYS_getsockopt, vec![SeccompRule::new(of_peer)?]), // and see whose it is
        (libc::SYS_waitid, vec![]),      // reap
        (libc::SYS_close, vec![]),       // release
        (libc::SYS_pidfd_send_signal, vec![]), // kill a job that cannot be taken over
        (libc::SYS_brk, vec![]),         // the allocator, for the tables: here and the next four
        (libc::SYS_mmap, not_executable()?),
        (libc::SYS_mprotect, not_executable()?),
        (libc::SYS_mremap, vec![]),
        (libc::SYS_munmap, vec![]),
        (libc::SYS_write, vec![SeccompRule::new(vec![to_stderr])?]), // the last words of a panic
        (libc::SYS_exit_group, vec![]),                              // the end
    ]))
}

#[cfg(test)]
mod tests {
    use nix::{
        errno::Errno,
        fcntl::OFlag,
        sys::{
            stat::Mode,
            wait::{WaitStatus, waitpid},
        },
        unistd::Pid,
    };

    use super::*;
    use crate::sys::keeper_calls::{Forked, exit_now, fork};

    /// Runs `probe` in a confined child and expects its exit status to be 0.
    fn confined(probe: fn() -> bool) {
        let Forked::Parent(pid) = fork().unwrap() else {
            exit_now(if confine().is_err() {
                2
            } else if probe() {
                0
            } else {
                1
            });
        };
        let pid = Pid::from_raw(i32::try_from(pid).unwrap());
        assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 0));
    }

    #[test]
    fn no_path_can_be_opened() {
        confined(|| {
            nix::fcntl::open("/dev/null", OFlag::O_RDONLY, Mode::empty()).err()
                == Some(Errno::EPERM)
        });
    }

    #[test]
    fn no_program_can_be_started_and_no_process_made() {
        confined(|| {
            nix::unistd::execv(c"/bin/true", &[c"true"]).err() == Some(Errno::EPERM)
                && fork().is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
        });
    }

    #[test]
    fn no_socket_can_be_made_and_nobody_be_signalled_by_number() {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        confined(|| {
            let made = socket(
                AddressFamily::Inet,
                SockType::Stream,
                SockFlag::empty(),
                None,
            );
            let killed = nix::sys::signal::kill(Pid::this(), None);
            made.err() == Some(Errno::EPERM) && killed.err() == Some(Errno::EPERM)
        });
    }

    #[test]
    fn memory_can_be_had() {
        confined(|| {
            std::hint::black_box(vec![1_u8; 8 << 20])
                .iter()
                .all(|byte| *byte == 1)
        });
    }
}
