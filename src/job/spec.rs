//! What was asked of a job, checked and complete: nothing here is optional because it was forgotten.

use std::time::Duration;

use super::{Attachment, Limits, Schedule};

/// Bytes that came from a user and need not be text.
pub type ByteString = Vec<u8>;

/// What the client asked for, after defaults and range checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Free text chosen by the user.
    pub name: Option<String>,
    /// `key`, `value` pairs in the order given.
    pub labels: Vec<(String, String)>,
    /// The command and its arguments, never empty, without NUL bytes.
    pub argv: Vec<ByteString>,
    /// The user's environment in the order given, later ones win.
    pub env: Vec<EnvEntry>,
    /// Working directory, absolute.
    pub workdir: ByteString,
    /// User and group inside the job.
    pub user: User,
    /// Size of `/work`, bytes.
    pub work_bytes: u64,
    /// Volumes it has, each at most once, in the order given.
    pub volumes: Vec<Attachment>,
    /// What it may use.
    pub limits: Limits,
    /// Wall-clock limit.
    pub timeout: Option<Duration>,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Sum of all file sizes to be uploaded, when uploads follow.
    pub uploads: Option<u64>,
    /// When it runs; at once when absent.
    pub schedule: Option<Schedule>,
    /// Of jobs that wait for capacity the one with the greatest is first; −100 to 100.
    pub priority: i32,
}

#[cfg(test)]
impl Spec {
    /// `true` with everything as it is when nothing is asked for, for tests.
    pub(crate) fn plain() -> Self {
        Self {
            name: None,
            labels: Vec::new(),
            argv: vec![b"true".to_vec()],
            env: Vec::new(),
            workdir: b"/work".to_vec(),
            user: User {
                uid: 1000,
                gid: 1000,
            },
            work_bytes: 64 << 20,
            volumes: Vec::new(),
            limits: Limits::default(),
            timeout: None,
            grace: Duration::from_secs(10),
            uploads: None,
            schedule: None,
            priority: 0,
        }
    }
}

/// One variable of a job's environment.
#[derive(Clone, PartialEq, Eq)]
pub struct EnvEntry {
    /// `[A-Za-z_][A-Za-z0-9_]*`.
    pub name: String,
    /// Any bytes but NUL.
    pub value: ByteString,
    /// Never shown, logged or stored in clear text.
    pub is_secret: bool,
}

impl std::fmt::Debug for EnvEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = if self.is_secret {
            "***".into()
        } else {
            String::from_utf8_lossy(&self.value)
        };
        write!(f, "{}={value}", self.name)
    }
}

/// User and group inside a job's own user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User id, below 65,536.
    pub uid: u32,
    /// Group id, below 65,536.
    pub gid: u32,
}

/// Which of a job's two streams one piece of output is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Which streams a reader wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Streams {
    /// Both.
    #[default]
    All,
    /// Standard output only.
    Stdout,
    /// Standard error only.
    Stderr,
}

impl Streams {
    /// Whether `stream` is wanted.
    #[must_use]
    pub const fn includes(self, stream: Stream) -> bool {
        match self {
            Self::All => true,
            Self::Stdout => matches!(stream, Stream::Stdout),
            Self::Stderr => matches!(stream, Stream::Stderr),
        }
    }
}

/// Which output a reader wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogQuery {
    /// Which streams.
    pub streams: Streams,
    /// Go on until the job has ended; otherwise stop at what is there.
    pub follow: bool,
    /// Start at this byte of the selected streams, counted in the order of capture.
    pub offset: u64,
    /// Only the last so many lines of what is there, then whatever follows.
    pub tail_lines: Option<u64>,
    /// Only output captured at or after this time, nanoseconds since the epoch.
    pub since_ns: Option<i64>,
}

/// The first signal of a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StopSignal {
    /// SIGTERM.
    #[default]
    Term,
    /// SIGINT.
    Int,
}

/// One entry of a tree that is uploaded to or copied from a job's `/work`. Paths are relative to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeEntry {
    /// A directory, made if it is not there.
    Dir {
        /// Where.
        path: ByteString,
        /// Permission bits, without setuid, setgid and sticky.
        mode: u32,
    },
    /// A file of exactly `bytes` bytes.
    File {
        /// Where.
        path: ByteString,
        /// Permission bits, without setuid, setgid and sticky.
        mode: u32,
        /// Its size.
        bytes: u64,
    },
    /// A symbolic link, stored as it is and never followed.
    Symlink {
        /// Where.
        path: ByteString,
        /// What it says.
        target: ByteString,
    },
}

/// What a volume's tree may have beside what every tree has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtraEntry {
    /// A FIFO.
    Fifo {
        /// Where.
        path: ByteString,
        /// Permission bits, without setuid, setgid and sticky.
        mode: u32,
    },
    /// Another name of a file that came before.
    Link {
        /// Where.
        path: ByteString,
        /// The path that the file came under.
        target: ByteString,
    },
}

/// What a tree that is read does not carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remark {
    /// A socket, which is left out.
    Socket,
    /// A device, which is left out.
    Device,
    /// Another name of a file that came before, which comes as a file of its own.
    Doubled,
}
