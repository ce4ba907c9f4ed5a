//! The paths of an upload that its uploader may still refuse: those of what it has not taken yet.

use std::collections::VecDeque;

/// Remembers paths as long as an answer can name them, which bounds memory whatever the number of entries is.
#[derive(Debug)]
pub(super) struct Recent {
    /// Bytes that can be sent and not yet read, at most.
    unread_bytes_max: u64,
    /// Bytes sent.
    sent: u64,
    /// The number of the first entry held, from 0.
    first: u64,
    /// Where each entry begins in what was sent, and its path.
    entries: VecDeque<(u64, Vec<u8>)>,
}

impl Recent {
    pub(super) const fn new(unread_bytes_max: u64) -> Self {
        Self {
            unread_bytes_max,
            sent: 0,
            first: 0,
            entries: VecDeque::new(),
        }
    }

    /// The entry that begins with the next byte.
    pub(super) fn begin(&mut self, path: &[u8]) {
        // An uploader that has begun to read an entry is done with the one before.
        let read = self.sent.saturating_sub(self.unread_bytes_max);
        while self.entries.get(1).is_some_and(|(begin, _)| *begin < read) {
            self.entries.pop_front();
            self.first += 1;
        }
        self.entries.push_back((self.sent, path.to_vec()));
    }

    /// So many bytes were sent.
    pub(super) const fn advance(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// The path of entry `index`, from 0.
    pub(super) fn path(&self, index: u32) -> Option<&[u8]> {
        let at = u64::from(index).checked_sub(self.first)?;
        let (_, path) = self.entries.get(usize::try_from(at).ok()?)?;
        Some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_unread_is_named_and_no_more_is_held() {
        let mut recent = Recent::new(1_000);
        for index in 0..10_000_u32 {
            recent.begin(index.to_string().as_bytes());
            recent.advance(100);
            // Of a thousand bytes the oldest may lie inside the eleventh entry from the end.
            let oldest = index.saturating_sub(10);
            for held in [oldest, index] {
                let expected = held.to_string();
                assert_eq!(recent.path(held), Some(expected.as_bytes()));
            }
            assert_eq!(recent.path(index + 1), None);
            assert!(recent.entries.len() <= 13, "{}", recent.entries.len());
        }
    }

    #[test]
    fn a_large_file_is_named_until_the_next_entry_is_read() {
        let mut recent = Recent::new(1_000);
        recent.begin(b"large");
        recent.advance(1 << 30);
        recent.begin(b"next");
        recent.advance(100);
        recent.begin(b"last");
        assert_eq!(recent.path(0), Some(&b"large"[..]));
        recent.advance(1_000);
        recent.begin(b"end");
        assert_eq!(recent.path(0), None);
        assert_eq!(recent.path(1), Some(&b"next"[..]));
    }
}
