//! Exit codes, and from every error to one of them.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done; an attached run: the job's own code, 128+n for signal n, 124 when its time ran out |
//! | 125, 126, 127 | attached run: failed before the command started; found but not executable; not found |
//! | 6 | attached run, too: the server was lost and did not come back; the job goes on |
//! | 1, 2, 3, 4, 5, 6 | failed; usage; not found; not permitted; conflict; cannot reach or trust the server |

use std::{error::Error, io};

use rnx::{
    ArchiveError, ConfigError, ConnectError, Distrust, LandingError, PackError, RequestError, Side,
    UploadError,
    proto::{Job, Outcome, Reason, Refusal, RefusalCode},
};

use crate::text;

/// The codes of the table that are not a job's own.
pub(crate) mod code {
    pub(crate) const DONE: u8 = 0;
    pub(crate) const FAILED: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const NOT_FOUND: u8 = 3;
    pub(crate) const NOT_PERMITTED: u8 = 4;
    pub(crate) const CONFLICT: u8 = 5;
    pub(crate) const UNREACHABLE: u8 = 6;
    pub(crate) const TIMEOUT: u8 = 124;
    pub(crate) const NOT_STARTED: u8 = 125;
    pub(crate) const NOT_EXECUTABLE: u8 = 126;
    pub(crate) const NO_COMMAND: u8 = 127;
    pub(crate) const SIGNAL_BASE: u8 = 128;
    pub(crate) const INTERRUPTED: u8 = SIGNAL_BASE + 2;
}

/// What a command failed of: what to print and the code to exit with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    /// `None` when there is nothing to say.
    pub(crate) message: Option<String>,
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// Any failure that is not named in the table.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            code: code::FAILED,
            message: Some(message.into()),
            hint: None,
        }
    }

    /// Something was typed that makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            code: code::USAGE,
            ..Self::new(message)
        }
    }

    /// Whoever read our output has gone, which is how `… | head` ends: success, and nothing to say.
    pub(crate) fn closed_pipe() -> Self {
        Self {
            code: code::DONE,
            message: None,
            hint: None,
        }
    }

    /// Whether this is [`Failure::closed_pipe`].
    pub(crate) fn is_closed_pipe(&self) -> bool {
        self.code == code::DONE
    }

    /// The same with what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same in an attached run, where codes below 125 are the job's own.
    pub(crate) fn attached(mut self) -> Self {
        if !matches!(self.code, code::DONE | code::USAGE | code::INTERRUPTED) {
            self.code = code::NOT_STARTED;
        }
        self
    }

    fn of(code: u8, error: &dyn Error) -> Self {
        Self {
            code,
            ..Self::new(chain(error))
        }
    }

    /// The same for an error that may hold names from elsewhere: none of them begins a line of ours.
    fn of_names(code: u8, error: &dyn Error) -> Self {
        Self {
            code,
            ..Self::new(text::plain(&chain(error)))
        }
    }
}

/// An error and what caused it, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some foreign errors repeat their source in their own text.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

impl From<io::Error> for Failure {
    /// What our own output met.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::closed_pipe();
        }
        Self::new(format!("write output: {error}"))
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let named = "name one with --node, or set isDefault: true on one";
        let (code, hint) = match &error {
            ConfigError::NotFound { .. } => (
                code::NOT_FOUND,
                Some("run `joblet init` on the server, or use --local; see `rnx config-help`"),
            ),
            ConfigError::UnknownNode { .. } => (code::NOT_FOUND, None),
            ConfigError::NotOwned { .. } => (
                code::FAILED,
                Some(
                    "name the file with --config if you trust it: it decides which server gets your jobs",
                ),
            ),
            ConfigError::SeveralDefaults { .. } | ConfigError::NoDefault { .. } => {
                (code::FAILED, Some(named))
            }
            ConfigError::File { .. }
            | ConfigError::Malformed { .. }
            | ConfigError::Version { .. }
            | ConfigError::Unwritable { .. }
            | ConfigError::NoNodes { .. } => (code::FAILED, None),
        };
        Self {
            hint: hint.map(Into::into),
            ..Self::of(code, &error)
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let hint = match &error {
            ConnectError::Unreachable { .. } => Some(
                "is `joblet serve` running there, and does the address in the client file fit?",
            ),
            ConnectError::Untrusted {
                why: Distrust::Expired | Distrust::NotYetValid,
                ..
            } => Some(
                "look at the clocks of both machines, or issue a new certificate with `joblet cert issue`",
            ),
            ConnectError::Untrusted {
                side: Side::Server, ..
            } => Some("the client file belongs to another server, or somebody is in between"),
            ConnectError::Untrusted {
                side: Side::Client, ..
            } => Some("get a client file from this server: `joblet cert issue` there"),
            ConnectError::OtherProtocol { .. } => {
                Some("client and server are of incompatible versions, or that is no joblet server")
            }
            ConnectError::Lost { .. } => {
                Some("jobs go on without us; see `rnx job list` once it is back")
            }
            ConnectError::Address { .. }
            | ConnectError::Credentials { .. }
            | ConnectError::Closed { .. } => None,
        };
        Self {
            hint: hint.map(Into::into),
            ..Self::of(code::UNREACHABLE, &error)
        }
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Refused(Refusal {
                code,
                message,
                hint,
            }) => Self {
                code: refusal_code(code),
                message: Some(text::plain(&message)),
                hint: hint.map(|hint| text::plain(&hint)),
            },
            RequestError::Connection(error) => error.into(),
            RequestError::SpecTooLarge { .. } => Self::of_names(code::FAILED, &error)
                .hint("put large data in a file and pass it with --upload"),
            RequestError::Upload(error) => error.into(),
            RequestError::Archive(error) => error.into(),
            RequestError::Aborted { .. }
            | RequestError::Truncated
            | RequestError::Frame(_)
            | RequestError::Bulk(_)
            | RequestError::Unexpected { .. }
            | RequestError::RequestTooLarge(_) => Self::of_names(code::FAILED, &error),
        }
    }
}

impl From<UploadError> for Failure {
    fn from(error: UploadError) -> Self {
        let code = match &error {
            UploadError::Destination { .. }
            | UploadError::Twice { .. }
            | UploadError::Nameless { .. } => code::USAGE,
            UploadError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                code::NOT_FOUND
            }
            UploadError::Read { .. }
            | UploadError::NotAFile { .. }
            | UploadError::Changed { .. } => code::FAILED,
        };
        Self::of_names(code, &error)
    }
}

impl From<ArchiveError> for Failure {
    fn from(error: ArchiveError) -> Self {
        let hint = match &error {
            ArchiveError::Compressed { program } => Some(format!(
                "`{program} -dc FILE | rnx volume import NAME` takes it"
            )),
            ArchiveError::HardLink { .. } => {
                Some("make the archive with `tar --hard-dereference`".into())
            }
            ArchiveError::Unsupported { .. } => {
                Some("make the archive with `tar --format=gnu`".into())
            }
            ArchiveError::Outside { .. } | ArchiveError::Through { .. } => {
                Some("make the archive of what a directory holds: `tar -C DIR -c .`".into())
            }
            ArchiveError::Truncated => {
                Some("did the command that makes it fail? What came before is written".into())
            }
            ArchiveError::Read(_) => None,
        };
        Self {
            hint,
            ..Self::of_names(code::FAILED, &error)
        }
    }
}

impl From<PackError> for Failure {
    fn from(error: PackError) -> Self {
        match error {
            // Whoever reads the archive has had enough.
            PackError::Write(error) => error.into(),
            PackError::Path { .. } | PackError::Contents { .. } => {
                Self::of_names(code::FAILED, &error)
            }
        }
    }
}

impl From<LandingError> for Failure {
    fn from(error: LandingError) -> Self {
        Self::of_names(code::FAILED, &error)
    }
}

fn refusal_code(refusal: RefusalCode) -> u8 {
    match refusal {
        RefusalCode::Invalid => code::USAGE,
        RefusalCode::NotFound => code::NOT_FOUND,
        RefusalCode::NotPermitted => code::NOT_PERMITTED,
        RefusalCode::Conflict => code::CONFLICT,
        RefusalCode::TooLarge
        | RefusalCode::Unsupported
        | RefusalCode::Busy
        | RefusalCode::Failed => code::FAILED,
    }
}

/// The code of an attached run whose job ended like this.
pub(crate) fn outcome_code(outcome: &Outcome) -> u8 {
    match &outcome.reason {
        Reason::Timeout => code::TIMEOUT,
        Reason::CommandNotFound => code::NO_COMMAND,
        Reason::CommandNotExecutable { .. } => code::NOT_EXECUTABLE,
        Reason::StartFailed { .. } | Reason::Canceled => code::NOT_STARTED,
        Reason::Exited
        | Reason::Signaled
        | Reason::OutOfMemory
        | Reason::Stopped { .. }
        | Reason::LogLimit
        | Reason::HostLost
        | Reason::DaemonDown => own_code(outcome).unwrap_or(code::NOT_STARTED),
    }
}

/// What the command itself ended with, as a shell counts.
fn own_code(outcome: &Outcome) -> Option<u8> {
    let signal = outcome.signal.and_then(|signal| u8::try_from(signal).ok());
    let exit = outcome
        .exit_code
        .and_then(|exit| u8::try_from(exit & 0xff).ok());
    signal
        .map(|signal| code::SIGNAL_BASE.saturating_add(signal))
        .or(exit)
}

/// Why a job ended, as a sentence about it; `None` when it simply exited. `ours` tells that we asked for the
/// stop ourselves and need not be told.
pub(crate) fn outcome_message(job: &Job, ours: bool) -> Option<String> {
    let outcome = job.outcome.as_ref()?;
    let ended = || match outcome.signal {
        Some(signal) => format!("ended by {}", crate::signal::name(signal)),
        None => "ended".to_owned(),
    };
    let what = match &outcome.reason {
        Reason::Exited => return None,
        Reason::Stopped { .. } if ours => return None,
        Reason::Signaled => ended(),
        Reason::OutOfMemory => match job.limits.memory_bytes {
            Some(limit) => format!("ran out of memory at {}", text::bytes(limit)),
            None => "ran out of memory".into(),
        },
        Reason::Timeout => match job.timeout_ms {
            Some(limit) => format!("ran out of time after {}", text::millis(limit)),
            None => "ran out of time".into(),
        },
        Reason::Stopped { by } => format!("was stopped by {by}"),
        Reason::Canceled => "was canceled before it began".into(),
        Reason::LogLimit => "was stopped because of too much output".into(),
        Reason::StartFailed { step, errno: 0 } => format!("could not be started: {step}"),
        Reason::StartFailed { step, errno } => {
            format!("could not be started: {step}: {}", errno_text(*errno))
        }
        Reason::CommandNotFound => {
            return Some(format!("{}: command not found", first_word(&job.command)));
        }
        Reason::CommandNotExecutable { errno } => {
            return Some(format!(
                "{}: cannot be executed: {}",
                first_word(&job.command),
                errno_text(*errno)
            ));
        }
        Reason::HostLost => "was lost with its helper processes; how it ended is not known".into(),
        Reason::DaemonDown => "was ended by `joblet down`".into(),
    };
    Some(format!("job {} {what}", text::id(job.id)))
}

fn first_word(command: &str) -> &str {
    command.split(' ').next().unwrap_or(command)
}

/// The kernel's words for an error number of the server, without the number that std appends. Other systems
/// number errors differently, so there it is the number.
fn errno_text(errno: i32) -> String {
    if !cfg!(target_os = "linux") {
        return format!("errno {errno}");
    }
    let text = io::Error::from_raw_os_error(errno).to_string();
    text.split(" (os error")
        .next()
        .unwrap_or(&text)
        .to_lowercase()
}

#[cfg(test)]
mod tests;
