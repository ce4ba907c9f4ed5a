//! Named storage that outlives jobs: names, sizes, what is asked and what is shown.

use std::fmt;

use thiserror::Error;

use super::{JobId, units};
use crate::limits::{VOLUME_BYTES_MAX, VOLUME_BYTES_MIN, VOLUME_BYTES_RANGE, VOLUME_NAME_MAX};

/// The name of a volume: a letter, then at most 62 letters, digits, `_` or `-`. It is a path component as it stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

/// What the names of volumes begin with that are made to see whether volumes work.
const TRIAL: &str = "joblet-doctor-";

/// Text that names no volume.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum VolumeNameError {
    /// Nothing.
    #[error("a volume's name is empty")]
    Empty,
    /// Longer than a name may be.
    #[error("a volume's name has {length} characters; at most {VOLUME_NAME_MAX} are possible")]
    TooLong {
        /// Its length, characters.
        length: usize,
    },
    /// It begins with something else than a letter.
    #[error("volume name {name:?} does not begin with a letter (a-z, A-Z)")]
    Start {
        /// What was asked.
        name: String,
    },
    /// A character that no name has.
    #[error("volume name {name:?} has {character:?}; letters, digits, _ and - are possible")]
    Character {
        /// What was asked.
        name: String,
        /// The first such.
        character: char,
    },
}

impl VolumeName {
    /// Reads a name.
    ///
    /// # Errors
    /// [`VolumeNameError`].
    pub fn parse(name: &str) -> Result<Self, VolumeNameError> {
        let first = name.chars().next().ok_or(VolumeNameError::Empty)?;
        let length = name.chars().count();
        if length > VOLUME_NAME_MAX {
            return Err(VolumeNameError::TooLong { length });
        }
        if !first.is_ascii_alphabetic() {
            let name = name.to_owned();
            return Err(VolumeNameError::Start { name });
        }
        let is_possible = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        match name.chars().find(|c| !is_possible(*c)) {
            None => Ok(Self(name.to_owned())),
            Some(character) => Err(VolumeNameError::Character {
                name: name.to_owned(),
                character,
            }),
        }
    }

    /// A name for a trial, which no other volume has.
    #[must_use]
    pub fn of_trial() -> Self {
        Self(format!("{TRIAL}{}", JobId::random()))
    }

    /// Whether it is a trial's: such a volume goes when the trial is over, so no user may have the name.
    #[must_use]
    pub fn is_of_trial(&self) -> bool {
        self.0.starts_with(TRIAL)
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How large a volume is, and how that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSize {
    text: String,
    bytes: u64,
}

/// Text that is no size of a volume.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum VolumeSizeError {
    /// No size at all, or more than 64 bits hold.
    #[error("{0:?} is no size of a volume")]
    Malformed(String),
    /// A size that no volume has.
    #[error(
        "size {text} is {bytes} bytes; a volume has {VOLUME_BYTES_MIN} to {VOLUME_BYTES_MAX} bytes"
    )]
    Range {
        /// As it was written.
        text: String,
        /// What that means.
        bytes: u64,
    },
}

impl VolumeSize {
    /// Reads a number, decimals allowed, with `B`, `KB`, `MB`, `GB`, `TB` in any case, in steps of 1,024, or none
    /// for bytes.
    ///
    /// # Errors
    /// [`VolumeSizeError`].
    pub fn parse(text: &str) -> Result<Self, VolumeSizeError> {
        /// Longer than any size is written; it is kept and shown.
        const TEXT_MAX: usize = 32;
        let bytes = units::parse_size(text).filter(|_| text.len() <= TEXT_MAX);
        let Some(bytes) = bytes else {
            let shown = text.chars().take(TEXT_MAX).collect();
            return Err(VolumeSizeError::Malformed(shown));
        };
        let text = text.trim().to_owned();
        if VOLUME_BYTES_RANGE.contains(&bytes) {
            Ok(Self { text, bytes })
        } else {
            Err(VolumeSizeError::Range { text, bytes })
        }
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What that means.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What a volume is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VolumeKind {
    /// A disk image: it survives everything.
    #[default]
    Filesystem,
    /// A tmpfs: empty after the machine was started anew.
    Memory,
}

impl VolumeKind {
    /// The word for it, in listings and on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Filesystem => "filesystem",
            Self::Memory => "memory",
        }
    }
}

/// A volume that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    /// What it is called.
    pub name: VolumeName,
    /// How large it is.
    pub size: VolumeSize,
    /// What it is made of.
    pub kind: VolumeKind,
}

/// A volume that a job is to have below `/volumes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Which.
    pub volume: VolumeName,
    /// The job may only read it.
    pub is_read_only: bool,
}

/// A volume as it is shown: a copy that may leave the shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeView {
    /// What was asked.
    pub spec: VolumeSpec,
    /// When it was made, nanoseconds since the epoch.
    pub created_ns: i64,
    /// Bytes of files in it; `None` when it cannot be looked at now.
    pub used_bytes: Option<u64>,
    /// Jobs that have not ended and name it, in the order in which they came.
    pub jobs: Vec<JobId>,
    /// What is wrong with it, in one line.
    pub damage: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_guide() {
        let long = "a".repeat(VOLUME_NAME_MAX);
        for name in ["user-data", "app_cache_v2", "Dataset2024", "a", "A-", &long] {
            assert_eq!(VolumeName::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn trials_have_names_of_their_own() {
        let [one, other] = [VolumeName::of_trial(), VolumeName::of_trial()];
        assert_ne!(one, other);
        assert_eq!(VolumeName::parse(one.as_str()), Ok(one.clone()));
        assert!(one.is_of_trial());
        assert!(!VolumeName::parse("joblet-data").unwrap().is_of_trial());
    }

    #[test]
    fn what_is_no_name_is_refused_with_what_is_wrong() {
        let start = |name: &str| VolumeNameError::Start { name: name.into() };
        let character = |name: &str, character| VolumeNameError::Character {
            name: name.into(),
            character,
        };
        let length = VOLUME_NAME_MAX + 1;
        let long = "a".repeat(length);
        for (name, error) in [
            ("", VolumeNameError::Empty),
            ("123data", start("123data")),
            ("-a", start("-a")),
            ("_a", start("_a")),
            ("..", start("..")),
            ("/", start("/")),
            ("äpfel", start("äpfel")),
            ("my.data", character("my.data", '.')),
            ("my data", character("my data", ' ')),
            ("a/b", character("a/b", '/')),
            ("a\nb", character("a\nb", '\n')),
            ("a\0", character("a\0", '\0')),
            ("aé", character("aé", 'é')),
            (&long, VolumeNameError::TooLong { length }),
        ] {
            assert_eq!(VolumeName::parse(name), Err(error), "{name:?}");
        }
    }

    #[test]
    fn sizes_are_kept_as_they_were_written() {
        for (text, bytes) in [
            ("50KB", 50 << 10),
            ("100MB", 100 << 20),
            ("5GB", 5 << 30),
            ("1TB", 1 << 40),
            ("1073741824", 1 << 30),
            ("1.5gb", 3 << 29),
            ("65536B", 65_536),
        ] {
            let size = VolumeSize::parse(text).unwrap();
            assert_eq!((size.text(), size.bytes()), (text, bytes));
        }
    }

    #[test]
    fn both_sides_of_each_bound_are_told_apart() {
        for bytes in [VOLUME_BYTES_MIN, VOLUME_BYTES_MAX] {
            assert!(VolumeSize::parse(&bytes.to_string()).is_ok());
        }
        for bytes in [0, 1, VOLUME_BYTES_MIN - 1, VOLUME_BYTES_MAX + 1, 1 << 63] {
            let text = bytes.to_string();
            assert_eq!(
                VolumeSize::parse(&text),
                Err(VolumeSizeError::Range {
                    text: text.clone(),
                    bytes
                })
            );
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        let long = format!("{}1GB", "0".repeat(32));
        for text in [
            "",
            "GB",
            "-1GB",
            "1XB",
            "1 G B",
            "1e9",
            "1.GB",
            "99999999999TB",
            &long,
        ] {
            let refused = VolumeSize::parse(text);
            assert!(
                matches!(refused, Err(VolumeSizeError::Malformed(_))),
                "{text:?}: {refused:?}"
            );
        }
    }
}
