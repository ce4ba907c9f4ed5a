//! A crew: the keeper, spawner and maker of one shard, seen from both sides.
//!
//! ```text
//!  daemon ── exec of itself, set-up socket as standard input ──► keeper ── fork ──► spawner
//!    │   ◄── pids and pidfds on the set-up socket ────────────────┘  └──── fork ──► maker
//!    └── afterwards one socket to each
//! ```
//! The helper is executed, not forked: it has none of the daemon's memory, keys or threads. The set-up socket
//! is its standard input, so that no descriptor has to be inheritable in a process with threads. A crew is
//! replaced whole: see [`Crew::retire`].

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::Signal,
        socket::{AddressFamily, SockFlag, SockType, getsockopt, socketpair, sockopt},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::{chdir, dup2_stdin, setsid},
};
use thiserror::Error;

use crate::{
    limits,
    sandbox::{
        adopt, keeper, pool,
        spawner::{self, SpawnerOptions},
        wire::{EVENT_BYTES, KeeperCommand, KeeperEvent},
    },
    sys::{
        keeper_calls::{Forked, close_others, exit_now, fork, parent_id, pidfd_kill, pidfd_open},
        scm, seqpacket,
    },
};

/// The argument that makes this program a helper.
pub const SUBCOMMAND: &str = "keeper";
const VERSION: u8 = 1;
/// Version and a path.
const SETUP_BYTES_MAX: usize = 1 + libc::PATH_MAX as usize;
/// Version, step (0 = all is well), two zeros, errno, pids of spawner and maker.
const REPLY_BYTES: usize = 16;
const EXIT_SETUP: i32 = 70;

/// What a crew needs to start.
#[derive(Debug, Clone, Copy)]
pub struct CrewOptions<'a> {
    /// An absolute path of an existing directory, for the spawner's template root.
    pub scratch_dir: &'a Path,
    /// An existing directory, ours alone: the keeper's socket gets a name in it.
    pub run_dir: &'a Path,
    /// `cgroup.procs` of the helpers' cgroup, open for writing.
    pub helpers_procs: BorrowedFd<'a>,
}

/// Why there is no crew.
#[derive(Debug, Error)]
pub enum CrewError {
    /// A socket could not be made.
    #[error("make the sockets of a crew")]
    Sockets(#[source] io::Error),
    /// The path does not fit into the set-up message, or is relative.
    #[error("scratch directory {} is relative or too long", .0.display())]
    Scratch(PathBuf),
    /// The socket by which a later daemon finds the keeper.
    #[error("make a socket in {}", .path.display())]
    Listener {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// This program could not be executed again.
    #[error("execute {}", .path.display())]
    Execute {
        /// What was executed.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The helper could not be put into its cgroup.
    #[error("move helper {pid} into its cgroup")]
    Join {
        /// Its process id.
        pid: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The set-up message did not go or the answer did not come.
    #[error("set up helper {pid}")]
    SetUp {
        /// Its process id.
        pid: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The helper said what it could not do.
    #[error("helper {pid} could not {step}")]
    Helper {
        /// Its process id.
        pid: u32,
        /// What it could not do.
        step: HelperStep,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It said nothing in [`limits::CREW_READY`].
    #[error("helper {pid} is not ready after {} s", limits::CREW_READY.as_secs())]
    NotReady {
        /// Its process id.
        pid: u32,
    },
    /// It could not be waited for or killed.
    #[error("end helper {pid}")]
    End {
        /// Its process id.
        pid: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What a helper does to set itself up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelperStep {
    /// Leave the daemon's session, directory and descriptor limit.
    Detach = 1,
    /// Make the socket between spawner and keeper.
    Sockets = 2,
    /// Fork the spawner.
    ForkSpawner = 3,
    /// Fork the maker.
    ForkMaker = 4,
}

impl std::fmt::Display for HelperStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Detach => "detach from the daemon",
            Self::Sockets => "make a socket",
            Self::ForkSpawner => "fork the spawner",
            Self::ForkMaker => "fork the maker",
        })
    }
}

/// One helper process, seen from the daemon.
#[derive(Debug)]
pub struct Helper {
    /// Process id, for printing.
    pub pid: u32,
    /// Readable once it has ended.
    pub pidfd: OwnedFd,
    /// Our end of its socket: SOCK_SEQPACKET, non-blocking.
    pub socket: OwnedFd,
    /// Of a keeper: the socket by which a later daemon finds it. Removed by [`Helper::end_keeper`].
    pub socket_path: Option<PathBuf>,
}

/// The helpers of one shard.
#[derive(Debug)]
pub struct Crew {
    /// Our child: holds the jobs.
    pub keeper: Helper,
    /// The keeper's child: makes jobs.
    pub spawner: Helper,
    /// The keeper's child: makes namespaces.
    pub maker: Helper,
}

impl Crew {
    /// Starts a crew and waits until its keeper is confined and its other helpers run. Blocks, at most twice
    /// [`limits::CREW_READY`].
    ///
    /// # Errors
    /// [`CrewError`]; nothing is left running then.
    pub fn start(options: &CrewOptions<'_>) -> Result<Self, CrewError> {
        Self::start_as(options, &[SUBCOMMAND])
    }

    pub(super) fn start_as(
        options: &CrewOptions<'_>,
        arguments: &[&str],
    ) -> Result<Self, CrewError> {
        let setup = setup_message(options.scratch_dir)?;
        let (ours, theirs) = pair().map_err(CrewError::Sockets)?;
        let channels = [channel(), channel(), channel()];
        let [keeper, spawner, maker] = channels;
        let ((keeper, keeper_end), (spawner, spawner_end), (maker, maker_end)) = (
            keeper.map_err(CrewError::Sockets)?,
            spawner.map_err(CrewError::Sockets)?,
            maker.map_err(CrewError::Sockets)?,
        );
        let (listener, socket_path) = listener(options.run_dir)?;
        let executed = execute(theirs, arguments).and_then(|pid| {
            let pidfd = pidfd_open(pid).map_err(|source| CrewError::End { pid, source })?;
            Ok((pid, pidfd))
        });
        let (pid, pidfd) = executed.inspect_err(|_| unname(&socket_path))?;
        let keeper = Helper {
            pid,
            pidfd,
            socket: keeper,
            socket_path: Some(socket_path),
        };
        let started = (|| {
            // Before it has forked anybody: they are then born in that cgroup.
            join(options.helpers_procs, pid).map_err(|source| CrewError::Join { pid, source })?;
            let ends = [&keeper_end, &spawner_end, &maker_end, &listener].map(AsFd::as_fd);
            scm::send(ours.as_fd(), &setup, &ends)
                .map_err(|source| CrewError::SetUp { pid, source })?;
            drop((keeper_end, spawner_end, maker_end, listener));
            let others = await_reply(&ours, pid)?;
            await_ready(&keeper)?;
            Ok(others)
        })();
        match started {
            Ok([(spawner_pid, spawner_pidfd), (maker_pid, maker_pidfd)]) => Ok(Self {
                keeper,
                spawner: Helper {
                    pid: spawner_pid,
                    pidfd: spawner_pidfd,
                    socket: spawner,
                    socket_path: None,
                },
                maker: Helper {
                    pid: maker_pid,
                    pidfd: maker_pidfd,
                    socket: maker,
                    socket_path: None,
                },
            }),
            Err(error) => {
                // Its children die with it.
                let _ = pidfd_kill(keeper.pidfd.as_fd());
                let _ = waitid(Id::PIDFd(keeper.pidfd.as_fd()), WaitPidFlag::WEXITED);
                keeper.socket_path.as_deref().into_iter().for_each(unname);
                Err(error)
            }
        }
    }

    /// Whether all three helpers run. When not, the crew has to be replaced.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        [&self.keeper, &self.spawner, &self.maker]
            .into_iter()
            .all(|helper| !helper.has_ended())
    }

    /// Kills the spawner, which is stuck in a step.
    ///
    /// # Errors
    /// [`CrewError::End`].
    pub fn kill_spawner(&self) -> Result<(), CrewError> {
        self.spawner.kill()
    }

    /// Ends a crew that is replaced, but for its keeper: that lives on for its jobs until
    /// [`Helper::end_keeper`].
    ///
    /// # Errors
    /// [`CrewError::End`].
    pub fn retire(self) -> Result<Helper, CrewError> {
        self.spawner.kill()?;
        self.maker.kill()?;
        Ok(self.keeper)
    }

    /// Ends the crew: a keeper that still holds jobs is killed. Blocks, at most [`limits::CREW_SHUT_DOWN`].
    ///
    /// # Errors
    /// [`CrewError::End`].
    pub fn shut_down(self) -> Result<(), CrewError> {
        self.retire()?.end_keeper()
    }
}

impl Helper {
    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        readable(self.pidfd.as_fd(), Duration::ZERO).unwrap_or(true)
    }

    /// Kills it; one that has ended is no error.
    ///
    /// # Errors
    /// [`CrewError::End`].
    pub fn kill(&self) -> Result<(), CrewError> {
        pidfd_kill(self.pidfd.as_fd()).map_err(|source| CrewError::End {
            pid: self.pid,
            source,
        })
    }

    /// Tells a keeper to end and kills it when it has not after [`limits::CREW_SHUT_DOWN`]. One that is our
    /// child is reaped; an adopted one is somebody else's, and has ended when its pidfd says so. Its socket
    /// loses its name. Blocks, at most twice that time for an adopted one.
    ///
    /// # Errors
    /// [`CrewError::End`].
    pub fn end_keeper(self) -> Result<(), CrewError> {
        let end = |source| CrewError::End {
            pid: self.pid,
            source,
        };
        // When its socket is full or closed it does not matter what is in it: it will be killed, or has ended.
        let _ = scm::send(self.socket.as_fd(), &KeeperCommand::Exit.encode(), &[]);
        if !readable(self.pidfd.as_fd(), limits::CREW_SHUT_DOWN).map_err(end)? {
            self.kill()?;
        }
        match waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED) {
            Ok(_) => {}
            Err(Errno::ECHILD) => {
                if !readable(self.pidfd.as_fd(), limits::CREW_SHUT_DOWN).map_err(end)? {
                    return Err(end(io::ErrorKind::TimedOut.into()));
                }
            }
            Err(error) => return Err(end(error.into())),
        }
        self.socket_path.as_deref().into_iter().for_each(unname);
        Ok(())
    }
}

/// A fresh socket with a name in `run_dir`. The keeper, not we, will listen on it.
fn listener(run_dir: &Path) -> Result<(OwnedFd, PathBuf), CrewError> {
    let name = adopt::socket_name();
    let bound = File::open(run_dir).and_then(|dir| seqpacket::bind(dir.as_fd(), &name));
    let bound = bound.map_err(|source| CrewError::Listener {
        path: run_dir.to_owned(),
        source,
    })?;
    Ok((bound, run_dir.join(name)))
}

/// Best effort: a name that is left is removed by the next daemon, which finds nobody behind it.
fn unname(socket: &Path) {
    let _ = std::fs::remove_file(socket);
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

/// A pair whose first end, ours, never blocks.
fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pair()?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((ours, theirs))
}

fn setup_message(scratch_dir: &Path) -> Result<Vec<u8>, CrewError> {
    let path = scratch_dir.as_os_str().as_bytes();
    if !scratch_dir.is_absolute() || path.len() >= SETUP_BYTES_MAX {
        return Err(CrewError::Scratch(scratch_dir.to_owned()));
    }
    Ok([&[VERSION], path].concat())
}

/// Starts this very program again, whatever has been put in its place on disk since.
fn execute(setup: OwnedFd, arguments: &[&str]) -> Result<u32, CrewError> {
    let path = PathBuf::from("/proc/self/exe");
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where helpers start"
    )]
    let child = Command::new(&path)
        .arg0("joblet-keeper")
        .args(arguments)
        .env_clear()
        .stdin(Stdio::from(setup))
        .stdout(Stdio::null())
        .spawn()
        .map_err(|source| CrewError::Execute { path, source })?;
    Ok(child.id())
}

fn join(procs: BorrowedFd<'_>, pid: u32) -> io::Result<()> {
    File::from(procs.try_clone_to_owned()?).write_all(pid.to_string().as_bytes())
}

/// Waits for the helper's answer: pids and pidfds of spawner and maker.
fn await_reply(setup: &OwnedFd, pid: u32) -> Result<[(u32, OwnedFd); 2], CrewError> {
    let set_up = |source| CrewError::SetUp { pid, source };
    if !readable(setup.as_fd(), limits::CREW_READY).map_err(set_up)? {
        return Err(CrewError::NotReady { pid });
    }
    let (mut buffer, mut fds) = ([0; REPLY_BYTES], Vec::new());
    let length = scm::recv(setup.as_fd(), &mut buffer, &mut fds).map_err(set_up)?;
    if length == 0 {
        return Err(set_up(io::ErrorKind::UnexpectedEof.into()));
    }
    let word = |at: usize| [buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3]];
    let step = match buffer[1] {
        1 => Some(HelperStep::Detach),
        2 => Some(HelperStep::Sockets),
        3 => Some(HelperStep::ForkSpawner),
        4 => Some(HelperStep::ForkMaker),
        _ => None,
    };
    if let Some(step) = step {
        let source = io::Error::from_raw_os_error(i32::from_le_bytes(word(4)));
        return Err(CrewError::Helper { pid, step, source });
    }
    match (length, buffer[0], buffer[1], <[OwnedFd; 2]>::try_from(fds)) {
        (REPLY_BYTES, VERSION, 0, Ok([spawner, maker])) => Ok([
            (u32::from_le_bytes(word(8)), spawner),
            (u32::from_le_bytes(word(12)), maker),
        ]),
        _ => Err(set_up(io::ErrorKind::InvalidData.into())),
    }
}

/// Waits for the keeper's first event: it is confined and listens.
fn await_ready(keeper: &Helper) -> Result<(), CrewError> {
    let pid = keeper.pid;
    let set_up = |source| CrewError::SetUp { pid, source };
    if !readable(keeper.socket.as_fd(), limits::CREW_READY).map_err(set_up)? {
        return Err(CrewError::NotReady { pid });
    }
    let mut buffer = [0; EVENT_BYTES];
    match scm::recv(keeper.socket.as_fd(), &mut buffer, &mut Vec::new()).map_err(set_up)? {
        0 => Err(set_up(io::ErrorKind::UnexpectedEof.into())),
        length if KeeperEvent::decode(&buffer[..length]) == Ok(KeeperEvent::Ready) => Ok(()),
        _ => Err(set_up(io::ErrorKind::InvalidData.into())),
    }
}

pub(super) fn readable(fd: BorrowedFd<'_>, wait: Duration) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(count) => return Ok(count > 0),
            // The whole time once more: a signal is rare and the bound is generous.
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

// ---- the helper's side ----------------------------------------------------------------------------------

/// Takes the set-up socket from standard input, which becomes `/dev/null`.
///
/// # Errors
/// `ENOTSOCK` or `EPROTOTYPE` when standard input is none, `EMFILE`, or no `/dev/null`.
pub fn setup_from_stdin() -> io::Result<OwnedFd> {
    if getsockopt(&io::stdin(), sockopt::SockType)? != SockType::SeqPacket {
        return Err(io::Error::from_raw_os_error(libc::EPROTOTYPE));
    }
    let setup = io::stdin().as_fd().try_clone_to_owned()?;
    dup2_stdin(File::open("/dev/null")?)?;
    Ok(setup)
}

/// What a helper process has become after its forks, with the sockets it needs and no other.
enum Role {
    Keeper {
        daemon: OwnedFd,
        births: OwnedFd,
        listener: OwnedFd,
    },
    Spawner {
        daemon: OwnedFd,
        keeper: OwnedFd,
        options: SpawnerOptions,
    },
    Maker {
        daemon: OwnedFd,
    },
}

/// Becomes a keeper, with a spawner and a maker as children. Called first thing in a process that
/// [`Crew::start`] executed, before any thread exists.
pub fn helper_main(setup: OwnedFd) -> ! {
    let role = set_up(&setup);
    if let Err((step, error)) = &role {
        let mut reply = [0; REPLY_BYTES];
        (reply[0], reply[1]) = (VERSION, *step as u8);
        reply[4..8].copy_from_slice(&error.raw_os_error().unwrap_or(libc::EIO).to_le_bytes());
        let _ = scm::send(setup.as_fd(), &reply, &[]);
    }
    drop(setup);
    match role {
        Ok(Role::Keeper {
            daemon,
            births,
            listener,
        }) => keeper::run(daemon, births, listener),
        Ok(Role::Spawner {
            daemon,
            keeper,
            options,
        }) => match spawner::run(daemon, keeper, &options) {
            Ok(()) => exit_now(0),
            Err(error) => {
                let _ = writeln!(
                    io::stderr(),
                    "joblet-spawner: {error}: {:?}",
                    std::error::Error::source(&error)
                );
                exit_now(EXIT_SETUP)
            }
        },
        Ok(Role::Maker { daemon }) => pool::run_maker(daemon),
        Err(_) => exit_now(EXIT_SETUP),
    }
}

/// Returns three times: in each of the processes that it makes of this one.
fn set_up(setup: &OwnedFd) -> Result<Role, (HelperStep, io::Error)> {
    close_others(&[setup.as_fd()]).map_err(|error| (HelperStep::Detach, error))?;
    let Some(([keeper, spawner, maker, listener], scratch_dir)) = await_setup(setup) else {
        exit_now(EXIT_SETUP)
    };
    detach().map_err(|error| (HelperStep::Detach, error))?;
    let (births, announce) = pair().map_err(|error| (HelperStep::Sockets, error))?;
    let at_home = std::process::id();

    let spawner_pid = match fork().map_err(|error| (HelperStep::ForkSpawner, error))? {
        Forked::Parent(pid) => pid,
        Forked::Child => {
            become_child(c"joblet-spawner", at_home);
            let options = SpawnerOptions { scratch_dir };
            return Ok(Role::Spawner {
                daemon: spawner,
                keeper: announce,
                options,
            });
        }
    };
    drop((spawner, announce));
    let maker_pid = match fork().map_err(|error| (HelperStep::ForkMaker, error))? {
        Forked::Parent(pid) => pid,
        Forked::Child => {
            become_child(c"joblet-maker", at_home);
            return Ok(Role::Maker { daemon: maker });
        }
    };
    reply(setup, spawner_pid, maker_pid).map_err(|error| (HelperStep::ForkMaker, error))?;
    Ok(Role::Keeper {
        daemon: keeper,
        births,
        listener,
    })
}

/// The set-up message; `None` when the daemon is gone or is not ours.
fn await_setup(setup: &OwnedFd) -> Option<([OwnedFd; 4], PathBuf)> {
    let (mut buffer, mut fds) = (vec![0; SETUP_BYTES_MAX], Vec::new());
    let length = scm::recv(setup.as_fd(), &mut buffer, &mut fds).ok()?;
    let (version, path) = buffer[..length].split_first()?;
    let path = (*version == VERSION).then(|| PathBuf::from(OsStr::from_bytes(path)))?;
    Some((fds.try_into().ok()?, path))
}

fn detach() -> io::Result<()> {
    setsid()?; // a Ctrl-C for the daemon is none for its jobs
    chdir("/")?;
    prctl::set_name(c"joblet-keeper")?;
    // Four descriptors a job: as many as this host allows.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}

fn become_child(name: &std::ffi::CStr, parent: u32) {
    let named = prctl::set_name(name);
    // Without a keeper there is nobody to give jobs to.
    let tied = prctl::set_pdeathsig(Signal::SIGKILL);
    if named.is_err() || tied.is_err() || parent_id() != parent {
        exit_now(EXIT_SETUP);
    }
}

fn reply(setup: &OwnedFd, spawner: u32, maker: u32) -> io::Result<()> {
    let mut reply = [0; REPLY_BYTES];
    reply[0] = VERSION;
    reply[8..12].copy_from_slice(&spawner.to_le_bytes());
    reply[12..16].copy_from_slice(&maker.to_le_bytes());
    let (spawner, maker) = (pidfd_open(spawner)?, pidfd_open(maker)?);
    scm::send(setup.as_fd(), &reply, &[spawner.as_fd(), maker.as_fd()])
}

#[cfg(test)]
pub(super) mod tests;
