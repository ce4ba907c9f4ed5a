//! Job ids: random UUIDs, and which shard owns one.

use std::fmt;

use thiserror::Error;
use uuid::Uuid;

/// Position of a shard, from 0.
pub type ShardIndex = usize;

/// The id of one job: a version 4 UUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(Uuid);

/// Why text is not a job id or a prefix of one.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum IdError {
    /// Characters that no id has.
    #[error("job id {0:?} has characters other than hex digits and dashes")]
    Characters(String),
    /// Too short to be looked up.
    #[error("job id {0:?} is shorter than 4 characters")]
    Short(String),
}

impl JobId {
    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// A new random id that shard `shard` of `shards` owns.
    ///
    /// # Panics
    /// If `shard` is not below `shards`, or there are more than 128 shards.
    #[must_use]
    pub fn random_owned_by(shard: ShardIndex, shards: usize) -> Self {
        assert!(shard < shards && shards <= 128, "shard {shard} of {shards}");
        let mut raw = Uuid::new_v4().into_bytes();
        let low = usize::from(raw[15]) % (256 / shards);
        raw[15] = u8::try_from(low * shards + shard).expect("below 256 because low < 256 / shards");
        Self(Uuid::from_bytes(raw))
    }

    /// The shard that owns this job: a pure function of the id and the number of shards.
    #[must_use]
    pub fn owner(self, shards: usize) -> ShardIndex {
        usize::from(self.0.as_bytes()[15]) % shards
    }

    /// From the 16 bytes of a UUID.
    #[must_use]
    pub const fn from_bytes(raw: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(raw))
    }

    /// The 16 bytes of the UUID.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.into_bytes()
    }

    /// Reads a whole id in its usual form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }

    /// Whether `prefix` (lower case, with or without dashes) is the beginning of this id.
    #[must_use]
    pub fn starts_with(self, prefix: &str) -> bool {
        if prefix.contains('-') {
            let mut buffer = Uuid::encode_buffer();
            self.0
                .hyphenated()
                .encode_lower(&mut buffer)
                .starts_with(prefix)
        } else {
            let mut buffer = Uuid::encode_buffer();
            self.0
                .simple()
                .encode_lower(&mut buffer)
                .starts_with(prefix)
        }
    }

    /// Checks a prefix and brings it to lower case.
    ///
    /// # Errors
    /// [`IdError`] when it is too short or no part of any id.
    pub fn check_prefix(prefix: &str) -> Result<String, IdError> {
        if !prefix.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
            return Err(IdError::Characters(prefix.to_owned()));
        }
        if prefix.len() < 4 {
            return Err(IdError::Short(prefix.to_owned()));
        }
        Ok(prefix.to_ascii_lowercase())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_made_for_a_shard_is_owned_by_it() {
        for shards in [1, 2, 3, 7, 64, 128] {
            for shard in 0..shards {
                for _ in 0..20 {
                    assert_eq!(JobId::random_owned_by(shard, shards).owner(shards), shard);
                }
            }
        }
    }

    #[test]
    fn prefixes_match_with_and_without_dashes() {
        let id = JobId::parse("01234567-89ab-4def-8123-456789abcdef").unwrap();
        for prefix in [
            "0123",
            "01234567-89",
            "0123456789ab",
            "01234567-89ab-4def-8123-456789abcdef",
        ] {
            assert!(id.starts_with(prefix), "{prefix}");
        }
        assert!(!id.starts_with("0124"));
        assert_eq!(JobId::check_prefix("ABCD"), Ok("abcd".to_owned()));
        assert!(matches!(JobId::check_prefix("abc"), Err(IdError::Short(_))));
        assert!(matches!(
            JobId::check_prefix("abcg"),
            Err(IdError::Characters(_))
        ));
    }
}
