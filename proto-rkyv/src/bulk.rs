//! Lists of byte strings as bulk payload: argument lists and environments.
//!
//! Each entry is a little-endian `u32` length and the bytes. The length prefix keeps empty strings and
//! newlines, which any separator would lose.

use thiserror::Error;

/// Why a bulk payload is not a list of byte strings.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum BulkError {
    /// A length says more than there is.
    #[error("entry {index} claims {claimed} bytes and {left} are left")]
    Short {
        /// Position of the entry, from 0.
        index: usize,
        /// What its length says.
        claimed: usize,
        /// What is left after the length.
        left: usize,
    },
    /// Fewer than four bytes where a length should be.
    #[error("{left} stray bytes after entry {index}")]
    Stray {
        /// Position of the entry that is missing, from 0.
        index: usize,
        /// How many bytes are there.
        left: usize,
    },
}

/// Joins byte strings into one payload, in order.
///
/// # Panics
/// If one entry is 4 GiB or larger.
#[must_use]
pub fn join<T: AsRef<[u8]>>(entries: &[T]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.iter().map(|e| 4 + e.as_ref().len()).sum());
    for entry in entries {
        let entry = entry.as_ref();
        let len = u32::try_from(entry.len()).expect("an entry of a submit is far below 4 GiB");
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(entry);
    }
    out
}

/// Splits a payload into the byte strings it was joined from. Borrows; copies nothing.
///
/// # Errors
/// [`BulkError`] when a length does not agree with the bytes.
pub fn split(mut payload: &[u8]) -> Result<Vec<&[u8]>, BulkError> {
    let mut entries = Vec::new();
    while !payload.is_empty() {
        let index = entries.len();
        let Some((len, rest)) = payload.split_first_chunk::<4>() else {
            return Err(BulkError::Stray { index, left: payload.len() });
        };
        let claimed = u32::from_le_bytes(*len) as usize;
        let Some((entry, rest)) = rest.split_at_checked(claimed) else {
            return Err(BulkError::Short { index, claimed, left: rest.len() });
        };
        entries.push(entry);
        payload = rest;
    }
    Ok(entries)
}
