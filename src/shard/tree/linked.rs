//! Files with several names, so that a tree carries each of them once.
//!
//! Who made the tree may have made any number of them: what is remembered is bounded, and a file is forgotten when
//! all of its names were seen.

use std::collections::HashMap;

use nix::sys::stat::FileStat;

use crate::limits;

/// What a file costs beside its path, bytes: at most, in a table that has just grown.
const ENTRY_BYTES: usize = 128;

/// Files with names that are still to come.
#[derive(Debug, Default)]
pub(super) struct Linked {
    files: HashMap<(u64, u64), Names>,
    bytes: usize,
}

#[derive(Debug)]
struct Names {
    /// The one that it was sent under.
    first: Vec<u8>,
    /// How many are to come.
    left: u64,
}

/// Whether a file was seen before.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Under this path.
    Before(Vec<u8>),
    /// Not yet, or it has but this name.
    First,
    /// Nobody knows: there is no room to remember it.
    Unknown,
}

impl Linked {
    /// Looks a file up that is now seen as `path`, and remembers it.
    pub(super) fn look(&mut self, stat: &FileStat, path: &[u8]) -> Seen {
        #[allow(
            clippy::useless_conversion,
            reason = "st_nlink has 32 bits on some machines"
        )]
        let names = u64::from(stat.st_nlink);
        self.see((stat.st_dev, stat.st_ino), names, path)
    }

    fn see(&mut self, file: (u64, u64), names: u64, path: &[u8]) -> Seen {
        if names <= 1 {
            return Seen::First;
        }
        if let Some(known) = self.files.get_mut(&file) {
            known.left = known.left.saturating_sub(1);
            if known.left > 0 {
                return Seen::Before(known.first.clone());
            }
            let known = self.files.remove(&file).expect("it was found");
            self.bytes -= ENTRY_BYTES + known.first.len();
            return Seen::Before(known.first);
        }
        let bytes = ENTRY_BYTES + path.len();
        if self.bytes + bytes > limits::TREE_LINKS_BYTES_MAX {
            return Seen::Unknown;
        }
        self.bytes += bytes;
        let (first, left) = (path.to_vec(), names - 1);
        self.files.insert(file, Names { first, left });
        Seen::First
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_but_the_first_is_told_the_first_and_then_all_is_forgotten() {
        let mut linked = Linked::default();
        let before = |path: &[u8]| Seen::Before(path.to_vec());
        assert_eq!(linked.see((1, 1), 1, b"alone"), Seen::First);
        assert_eq!(linked.see((1, 1), 1, b"alone"), Seen::First);
        assert_eq!(linked.see((1, 2), 3, b"a"), Seen::First);
        assert_eq!(linked.see((2, 2), 2, b"other disk"), Seen::First);
        assert_eq!(linked.see((1, 2), 3, b"b"), before(b"a"));
        assert_eq!(linked.see((1, 2), 3, b"c"), before(b"a"));
        assert_eq!(linked.see((2, 2), 2, b"x"), before(b"other disk"));
        assert!(linked.files.is_empty());
        assert_eq!(linked.bytes, 0);
        // As many names as it had are seen: this is another file with its number.
        assert_eq!(linked.see((1, 2), 2, b"d"), Seen::First);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_is_not_is_said() {
        let mut linked = Linked::default();
        let path = [b'p'; 4_000];
        let fit = limits::TREE_LINKS_BYTES_MAX / (ENTRY_BYTES + path.len());
        for file in 0..fit as u64 {
            assert_eq!(linked.see((1, file), 2, &path), Seen::First);
        }
        assert_eq!(linked.see((2, 0), 2, &path), Seen::Unknown);
        assert_eq!(linked.see((2, 0), 2, &path), Seen::Unknown);
        assert_eq!(linked.see((1, 0), 2, b"x"), Seen::Before(path.to_vec()));
        assert_eq!(linked.see((2, 0), 2, &path), Seen::First);
    }
}
