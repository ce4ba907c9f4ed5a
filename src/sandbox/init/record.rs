//! What PID 1 and the daemon say to each other: the only file both include. Nothing but `core`.
//!
//! ```text
//! daemon ─► init   "G"                go: start the command
//! keeper ─► init   'S' signo          send this signal to the command
//! init   ─► keeper one RECORD_BYTES   started, then (when the command started) exited
//! daemon ─► upload entry header, path, target, contents; again; END
//! upload ─► daemon ANSWER_BYTES       errno, index of the entry
//! ```
//! All integers are little-endian.

/// The message that lets the command start.
pub const GO: u8 = b'G';
/// First byte of a message that carries a signal number as its second.
pub const SIGNAL: u8 = b'S';
/// Size of every record from init.
pub const RECORD_BYTES: usize = 40;
/// Size of an upload entry's header.
pub const ENTRY_BYTES: usize = 24;
/// Size of the uploader's answer.
pub const ANSWER_BYTES: usize = 8;
/// Longest path or link target of an upload, bytes, its NUL included: PATH_MAX.
pub const PATH_BYTES_MAX: usize = 4096;

/// Descriptors that init is started with, beside 0, 1 and 2.
pub mod fd {
    /// Its end of the control socket.
    pub const CONTROL: i32 = 3;
    /// Its end of the upload socket, when there are uploads.
    pub const UPLOAD: i32 = 4;
}

/// What init does between its own start and the command's. `sandbox::plan` has the names.
#[allow(missing_docs, reason = "sandbox::plan::step_name says each in words")]
pub mod step {
    pub const UPLOAD: u8 = 200;
    pub const CLONE: u8 = 201;
    pub const SESSION: u8 = 202;
    pub const GROUPS: u8 = 203;
    pub const GID: u8 = 204;
    pub const UID: u8 = 205;
    pub const BOUNDING: u8 = 206;
    pub const CAPABILITIES: u8 = 207;
    pub const NO_NEW_PRIVILEGES: u8 = 208;
    pub const KEYRING: u8 = 209;
    pub const WORKDIR: u8 = 210;
    pub const DESCRIPTORS: u8 = 211;
    pub const SIGNALS: u8 = 212;
    pub const EXECUTE: u8 = 213;
}

/// Kinds of an upload entry.
pub mod entry {
    /// A directory. One that is there gets the mode: send it once before and once after what is in it when
    /// the mode forbids writing.
    pub const DIR: u8 = 1;
    /// A file of exactly so many bytes.
    pub const FILE: u8 = 2;
    /// A symbolic link.
    pub const SYMLINK: u8 = 3;
    /// No more entries; the uploader answers.
    pub const END: u8 = 4;
}

/// What init reports, once or twice in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// The command's execve has succeeded (errno 0) or something before or in it has failed; then there is
    /// no second record.
    Started {
        /// Where it ended, one of [`step`]; [`step::EXECUTE`] on success.
        step: u8,
        /// The kernel's error number, 0 on success.
        errno: i32,
        /// When, on the host's monotonic clock, nanoseconds.
        mono_ns: u64,
    },
    /// The command has ended.
    Exited {
        /// As wait(2) gives it.
        wait_status: i32,
        /// Its time in user mode and that of its reaped children, microseconds.
        utime_us: u64,
        /// The same in the kernel.
        stime_us: u64,
        /// Largest resident set, KiB.
        maxrss_kb: u64,
        /// When it was seen, on the host's monotonic clock, nanoseconds.
        mono_ns: u64,
    },
}

impl Record {
    /// The record as it travels.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let (kind, step, word, numbers) = match *self {
            Self::Started {
                step,
                errno,
                mono_ns,
            } => (1, step, errno, [mono_ns, 0, 0, 0]),
            Self::Exited {
                wait_status,
                utime_us,
                stime_us,
                maxrss_kb,
                mono_ns,
            } => (2, 0, wait_status, [mono_ns, utime_us, stime_us, maxrss_kb]),
        };
        let mut bytes = [0; RECORD_BYTES];
        let head = [kind, step, 0, 0].into_iter().chain(word.to_le_bytes());
        let body = numbers.into_iter().flat_map(u64::to_le_bytes);
        for (to, from) in bytes.iter_mut().zip(head.chain(body)) {
            *to = from;
        }
        bytes
    }

    /// Reads a record; `None` if it is none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; RECORD_BYTES] = bytes.try_into().ok()?;
        let word = i32::from_le_bytes(*bytes[4..].first_chunk()?);
        let number = |index: usize| {
            bytes
                .get(8 + 8 * index..)?
                .first_chunk()
                .map(|raw| u64::from_le_bytes(*raw))
        };
        match bytes[0] {
            1 => Some(Self::Started {
                step: bytes[1],
                errno: word,
                mono_ns: number(0)?,
            }),
            2 => Some(Self::Exited {
                wait_status: word,
                mono_ns: number(0)?,
                utime_us: number(1)?,
                stime_us: number(2)?,
                maxrss_kb: number(3)?,
            }),
            _ => None,
        }
    }
}
