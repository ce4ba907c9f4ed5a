//! Keepers that outlived their daemon: found by the names of their sockets, and taken over with their jobs.
//!
//! ```text
//! name in the run directory ─ connect ─► refused: nobody, the name goes
//!                                └─► hello ─► inventory (jobs with descriptors) ─► Helper, events follow on it
//! ```
//! A keeper lets a new daemon in only when the socket of the last one is closed, so a job's pipes never have
//! two readers. Its list ends when its spawner has ended too, which the death of a daemon brings about at once;
//! one that is stuck in a step is killed here as a living daemon would, with the job it was making.
//!
//! The keeper need not be of this program's version: it says which it speaks.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;

use crate::{
    job::JobId,
    limits,
    sandbox::{
        crew::{Helper, readable},
        inventory::{HELLO_BYTES, HeldState, Hello, INVENTORY_BYTES, Inventory, Passed, SPOKEN},
        wire::{KeeperCommand, WireError},
    },
    sys::{
        keeper_calls::{pidfd_kill, pidfd_open},
        scm, seqpacket,
    },
};

const PREFIX: &str = "keeper-";
const SUFFIX: &str = ".sock";
/// Names of a keeper's children that are no jobs: what a crew's spawner calls itself, and so what it is just
/// making is called, and what it is called before it does.
const SPAWNER: [&str; 2] = ["joblet-spawner", "joblet-keeper"];

/// A keeper of a dead daemon, ours now.
#[derive(Debug)]
pub struct AdoptedKeeper {
    /// The keeper. Its events follow on its socket: of every job that is not released from its birth on, then
    /// that the spawner is gone. It is not our child; [`Helper::end_keeper`] knows.
    pub keeper: Helper,
    /// What it holds, in the order of births.
    pub jobs: Vec<HeldJob>,
}

/// A job that a keeper holds.
#[derive(Debug)]
pub struct HeldJob {
    /// The job.
    pub id: JobId,
    /// Process id of its init: where its ids and its `/work` are found while it is not gone. 0 when there
    /// never was one.
    pub pid: u32,
    /// What the keeper knows of it.
    pub state: HeldState,
    /// Its output, unless it is released or was never born.
    pub pipes: Option<HeldPipes>,
    /// The keeper's end of init's control socket, to say go through. The keeper reads it; nobody else may.
    pub control: Option<OwnedFd>,
    /// It has descriptors that could not be handed over now, here or there. Close the keeper's socket and
    /// adopt again: nothing is lost.
    pub is_incomplete: bool,
}

/// The read ends of a job's output.
#[derive(Debug)]
pub struct HeldPipes {
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// Why a keeper, which goes on holding its jobs, is not ours.
#[derive(Debug, Error)]
pub enum AdoptError {
    /// The run directory or a name in it.
    #[error("look for keepers at {}", .path.display())]
    Look {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It could not be connected to, or spoken with.
    #[error("speak with the keeper at {}", .path.display())]
    Speak {
        /// Its socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What listens there belongs to another user.
    #[error("{} belongs to process {pid} of user {uid}, no keeper of ours", .path.display())]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// Whose it is.
        pid: u32,
        /// That one's user.
        uid: u32,
    },
    /// It said nothing in [`limits::ADOPT_SILENCE_MAX`]: another daemon has it, or it is no keeper.
    #[error(
        "the keeper at {} is silent for {} s",
        .path.display(), limits::ADOPT_SILENCE_MAX.as_secs()
    )]
    Silent {
        /// Its socket.
        path: PathBuf,
    },
    /// It speaks a version that we do not.
    #[error("the keeper at {} speaks version {version}, not one of {SPOKEN:?}", .path.display())]
    Version {
        /// Its socket.
        path: PathBuf,
        /// What it speaks.
        version: u8,
    },
    /// It speaks our version and says something else.
    #[error("the keeper at {} says what no keeper says", .path.display())]
    Message {
        /// Its socket.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
}

/// Takes over every keeper that has a socket in `run_dir`; names of dead ones are removed. Blocks, for each
/// keeper that does not answer a little more than [`limits::ADOPT_SILENCE_MAX`]. The caller alone may do this
/// with this directory, and must have raised its limit of open files to hold three descriptors for each job.
///
/// Whoever drops an [`AdoptedKeeper`] leaves it to the next daemon as it was.
///
/// # Errors
/// [`AdoptError::Look`] when the directory cannot be read; one that does not exist holds no keeper. An error
/// in the list is of that keeper alone.
pub fn keepers(run_dir: &Path) -> Result<Vec<Result<AdoptedKeeper, AdoptError>>, AdoptError> {
    let (directory, names) = match sockets(run_dir)? {
        Some(found) => found,
        None => return Ok(Vec::new()),
    };
    let meet = |name: String| {
        let socket_path = run_dir.join(&name);
        let met = Candidate {
            path: &socket_path,
            directory: directory.as_fd(),
            name: &name,
        }
        .adopt();
        match met {
            Ok(Some(keeper)) => Some(Ok(keeper)),
            Ok(None) => unname(&socket_path).err().map(Err),
            Err(error) => Some(Err(error)),
        }
    };
    Ok(names.into_iter().filter_map(meet).collect())
}

/// Removes the sockets of keepers from `run_dir`. Call it when none of them lives; returns how many there were.
///
/// # Errors
/// [`AdoptError::Look`].
pub fn remove_sockets(run_dir: &Path) -> Result<usize, AdoptError> {
    let names = sockets(run_dir)?.map_or(Vec::new(), |(_, names)| names);
    for name in &names {
        unname(&run_dir.join(name))?;
    }
    Ok(names.len())
}

/// A fresh name for a keeper's socket.
pub(super) fn socket_name() -> String {
    let random = u128::from_be_bytes(JobId::random().to_bytes());
    let low = u64::try_from(random & u128::from(u64::MAX)).expect("masked to 64 bits");
    format!("{PREFIX}{low:016x}{SUFFIX}")
}

fn is_socket_name(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_suffix(SUFFIX))
        .is_some_and(|number| {
            number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

/// The directory and the names of keepers in it, sorted.
fn sockets(run_dir: &Path) -> Result<Option<(File, Vec<String>)>, AdoptError> {
    let look = |source| AdoptError::Look {
        path: run_dir.to_owned(),
        source,
    };
    let directory = match File::open(run_dir) {
        Ok(directory) => directory,
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(look(source)),
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(run_dir).map_err(look)? {
        let name = entry.map_err(look)?.file_name();
        names.extend(name.into_string().ok().filter(|name| is_socket_name(name)));
    }
    names.sort();
    Ok(Some((directory, names)))
}

fn unname(path: &Path) -> Result<(), AdoptError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(AdoptError::Look {
            path: path.to_owned(),
            source,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A name that a keeper may be behind.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    path: &'a Path,
    directory: BorrowedFd<'a>,
    name: &'a str,
}

/// One message and what came with it.
struct Heard<const N: usize> {
    bytes: [u8; N],
    length: usize,
    fds: Vec<OwnedFd>,
    /// Not all of its descriptors could be taken.
    is_cut: bool,
}

impl Candidate<'_> {
    /// `None` when nobody is there any more.
    fn adopt(self) -> Result<Option<AdoptedKeeper>, AdoptError> {
        let socket = match seqpacket::connect(self.directory, self.name) {
            Ok(socket) => socket,
            Err(error) => match error.raw_os_error() {
                Some(libc::ECONNREFUSED | libc::ENOENT) => return Ok(None),
                // Others wait for it already.
                Some(libc::EAGAIN) => return Err(self.silent()),
                _ => return Err(self.speak(error)),
            },
        };
        let peer = seqpacket::peer(socket.as_fd()).map_err(|error| self.speak(error))?;
        if peer.uid != nix::unistd::geteuid().as_raw() {
            return Err(AdoptError::Stranger {
                path: self.path.to_owned(),
                pid: peer.pid,
                uid: peer.uid,
            });
        }
        // Opened before the keeper answers: when it does, this is of the one that answered.
        let pidfd = match pidfd_open(peer.pid) {
            Ok(pidfd) => pidfd,
            Err(gone) if gone.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(self.speak(error)),
        };
        if !self.greet(&socket)? {
            return Ok(None);
        }
        let Some(jobs) = self.list(&socket, peer.pid)? else {
            return Ok(None);
        };
        Ok(Some(AdoptedKeeper {
            keeper: Helper {
                pid: peer.pid,
                pidfd,
                socket,
                socket_path: Some(self.path.to_owned()),
            },
            jobs,
        }))
    }

    /// Agrees on a version. False when the keeper has ended.
    fn greet(self, socket: &OwnedFd) -> Result<bool, AdoptError> {
        let mut version = SPOKEN[0];
        // Once more with what it speaks, and then it must agree.
        for _ in 0..2 {
            if !self.say(socket, &Hello { version }.encode())? {
                return Ok(false);
            }
            let heard: Heard<HELLO_BYTES> = match self.hear(socket, limits::ADOPT_SILENCE_MAX)? {
                Some(heard) if heard.length > 0 => heard,
                Some(_) => return Ok(false),
                None => return Err(self.silent()),
            };
            let answer = Hello::decode(&heard.bytes[..heard.length])
                .ok_or_else(|| self.message(WireError::Length(heard.length)))?;
            if answer.version == version {
                return Ok(true);
            }
            version = answer.version;
            if !SPOKEN.contains(&version) {
                break;
            }
        }
        Err(AdoptError::Version {
            path: self.path.to_owned(),
            version,
        })
    }

    /// Receives the list; `None` when the keeper has ended.
    fn list(self, socket: &OwnedFd, pid: u32) -> Result<Option<Vec<HeldJob>>, AdoptError> {
        let mut jobs = Vec::new();
        let mut patience = Some(limits::SPAWNER_STUCK);
        loop {
            let wait = patience.unwrap_or(limits::ADOPT_SILENCE_MAX);
            let heard: Heard<INVENTORY_BYTES> = match self.hear(socket, wait)? {
                Some(heard) if heard.length > 0 => heard,
                Some(_) => return Ok(None),
                None if patience.take().is_some() => {
                    // Only its spawner can hold it up.
                    kill_spawner(pid).map_err(|error| self.speak(error))?;
                    if self.say(socket, &KeeperCommand::SpawnerKilled.encode())? {
                        continue;
                    }
                    return Ok(None);
                }
                None => return Err(self.silent()),
            };
            let message = Inventory::decode(&heard.bytes[..heard.length]);
            match message.map_err(|error| self.message(error))? {
                Inventory::Job {
                    id,
                    pid,
                    state,
                    passed,
                } => {
                    let mut job = HeldJob {
                        id,
                        pid,
                        state,
                        pipes: None,
                        control: None,
                        is_incomplete: passed.is_incomplete || heard.is_cut,
                    };
                    if !heard.is_cut {
                        take(&mut job, passed, heard.fds)
                            .ok_or_else(|| self.message(WireError::Padding))?;
                    }
                    jobs.push(job);
                }
                Inventory::End { jobs: count } if u32::try_from(jobs.len()) == Ok(count) => {
                    return Ok(Some(jobs));
                }
                Inventory::End { .. } => return Err(self.message(WireError::Padding)),
            }
        }
    }

    /// False when the keeper has ended.
    fn say(self, socket: &OwnedFd, message: &[u8]) -> Result<bool, AdoptError> {
        match scm::send(socket.as_fd(), message, &[]) {
            Ok(()) => Ok(true),
            Err(error) if is_end(&error) => Ok(false),
            Err(error) => Err(self.speak(error)),
        }
    }

    /// The next message, one of no length when the keeper has ended, `None` when it says nothing.
    fn hear<const N: usize>(
        self,
        socket: &OwnedFd,
        wait: Duration,
    ) -> Result<Option<Heard<N>>, AdoptError> {
        if !readable(socket.as_fd(), wait).map_err(|error| self.speak(error))? {
            return Ok(None);
        }
        let mut heard = Heard {
            bytes: [0; N],
            length: 0,
            fds: Vec::new(),
            is_cut: false,
        };
        match scm::recv(socket.as_fd(), &mut heard.bytes, &mut heard.fds) {
            Ok(length) => heard.length = length,
            Err(error) if is_end(&error) => {}
            // We are out of descriptors: the message came, some of its descriptors did not.
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                (heard.length, heard.is_cut) = (N, true);
            }
            Err(error) => return Err(self.speak(error)),
        }
        Ok(Some(heard))
    }

    fn silent(self) -> AdoptError {
        AdoptError::Silent {
            path: self.path.to_owned(),
        }
    }

    fn speak(self, source: io::Error) -> AdoptError {
        AdoptError::Speak {
            path: self.path.to_owned(),
            source,
        }
    }

    fn message(self, source: WireError) -> AdoptError {
        AdoptError::Message {
            path: self.path.to_owned(),
            source,
        }
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN)
    )
}

/// Gives a job its descriptors; `None` when others came than were announced.
fn take(job: &mut HeldJob, passed: Passed, fds: Vec<OwnedFd>) -> Option<()> {
    if fds.len() != passed.count() {
        return None;
    }
    let mut fds = fds.into_iter();
    if passed.output {
        let (stdout, stderr) = (fds.next()?, fds.next()?);
        job.pipes = Some(HeldPipes { stdout, stderr });
    }
    job.control = fds.next();
    Some(())
}

/// Kills the spawner of keeper `keeper`, and the process that it may just have cloned.
fn kill_spawner(keeper: u32) -> io::Result<()> {
    for task in fs::read_dir(format!("/proc/{keeper}/task"))? {
        let children = fs::read_to_string(task?.path().join("children"))?;
        for child in children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
        {
            let Ok(pidfd) = pidfd_open(child) else {
                continue;
            };
            // Looked at after it was opened: the number may have gone to another process before.
            if is_spawner_of(child, keeper) {
                pidfd_kill(pidfd.as_fd())?;
            }
        }
    }
    Ok(())
}

fn is_spawner_of(pid: u32, keeper: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let mut lines = status.lines();
        lines
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    field("Name:").is_some_and(|name| SPAWNER.contains(&name))
        && field("PPid:") == Some(keeper.to_string().as_str())
}

#[cfg(test)]
mod tests;
