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

/// How many byte strings a payload holds. Allocates nothing, so it may be asked before [`split`].
///
/// # Errors
/// [`BulkError`] when a length does not agree with the bytes.
pub fn count(mut payload: &[u8]) -> Result<usize, BulkError> {
    let mut index = 0;
    while !payload.is_empty() {
        (_, payload) = first(payload, index)?;
        index += 1;
    }
    Ok(index)
}

/// Splits a payload into the byte strings it was joined from. Borrows; copies nothing.
///
/// # Errors
/// [`BulkError`] when a length does not agree with the bytes.
pub fn split(mut payload: &[u8]) -> Result<Vec<&[u8]>, BulkError> {
    let mut entries = Vec::new();
    while !payload.is_empty() {
        let (entry, rest) = first(payload, entries.len())?;
        entries.push(entry);
        payload = rest;
    }
    Ok(entries)
}

/// The entry at the front of a payload, which is number `index`, and what follows it.
fn first(payload: &[u8], index: usize) -> Result<(&[u8], &[u8]), BulkError> {
    let Some((len, rest)) = payload.split_first_chunk::<4>() else {
        return Err(BulkError::Stray {
            index,
            left: payload.len(),
        });
    };
    let claimed = u32::from_le_bytes(*len) as usize;
    rest.split_at_checked(claimed).ok_or(BulkError::Short {
        index,
        claimed,
        left: rest.len(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn empty_entries_and_newlines_survive() {
        let entries: [&[u8]; 4] = [b"", b"a\nb", b"\0\xff", b""];
        let payload = join(&entries);
        assert_eq!(split(&payload).unwrap(), entries);
        assert_eq!(count(&payload), Ok(4));
        assert_eq!(split(b"").unwrap(), Vec::<&[u8]>::new());
    }

    #[test]
    fn lengths_that_lie_name_the_entry() {
        let check = |payload: &[u8], expected: BulkError| {
            assert_eq!(split(payload), Err(expected));
            assert_eq!(count(payload), Err(expected));
        };
        check(
            &[1, 0, 0, 0],
            BulkError::Short {
                index: 0,
                claimed: 1,
                left: 0,
            },
        );
        check(
            &[1, 0, 0, 0, b'x', 255, 255, 255, 255, 7],
            BulkError::Short {
                index: 1,
                claimed: 0xffff_ffff,
                left: 1,
            },
        );
        check(
            &[0, 0, 0, 0, 9, 9, 9],
            BulkError::Stray { index: 1, left: 3 },
        );
    }

    proptest! {
        #[test]
        fn what_was_joined_splits_into_the_same(entries: Vec<Vec<u8>>) {
            let payload = join(&entries);
            prop_assert_eq!(count(&payload), Ok(entries.len()));
            prop_assert_eq!(split(&payload).unwrap(), entries);
        }

        #[test]
        fn any_bytes_split_into_entries_that_join_to_them_or_fail(payload: Vec<u8>) {
            match split(&payload) {
                Ok(entries) => prop_assert_eq!(join(&entries), payload),
                Err(error) => prop_assert_eq!(count(&payload), Err(error)),
            }
        }
    }
}
