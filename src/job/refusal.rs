//! Refusals: what a peer is told when a request cannot be granted.

use std::fmt;

/// Why a request was refused or failed, for people and for programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind; the client's exit code follows from it.
    pub code: RefusalCode,
    /// What happened to which object: one line, lower case, no full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// The kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalCode {
    /// The request itself makes no sense or is out of range.
    Invalid,
    /// No such object.
    NotFound,
    /// The certificate's role or name does not allow it.
    NotPermitted,
    /// The object is in the wrong state, in use, or ambiguous.
    Conflict,
    /// Larger than a limit.
    TooLarge,
    /// Not supported by this daemon.
    Unsupported,
    /// A bounded resource is exhausted; the same request may succeed later.
    Busy,
    /// The daemon tried and could not.
    Failed,
}

impl Refusal {
    /// A refusal without a hint.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}
