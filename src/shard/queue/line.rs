//! A line: jobs of one owner and priority that wait, the oldest first, each with its position.
//!
//! Sorted pieces of bounded length in a row. A search is binary, an insertion moves less than one piece, and a
//! position is the sum of the lengths before it: no tree of the standard library counts what it holds.

use crate::{job::JobId, limits::LINE_PIECE_JOBS};

/// Where a job stands among those of its owner and priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Wall clock of its submit, nanoseconds.
    pub(super) arrived_ns: i64,
    /// Of two that arrived at once the lower one is first.
    pub(super) id: JobId,
}

/// Places in order. No piece is empty.
#[derive(Debug, Default)]
pub(super) struct Line {
    pieces: Vec<Vec<Place>>,
    len: usize,
}

impl Line {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn first(&self) -> Option<Place> {
        self.pieces.first().and_then(|piece| piece.first()).copied()
    }

    /// The place with `index` others before it.
    pub(super) fn get(&self, index: usize) -> Option<Place> {
        let mut left = index;
        for piece in &self.pieces {
            match piece.get(left) {
                Some(place) => return Some(*place),
                None => left -= piece.len(),
            }
        }
        None
    }

    /// How many are before `place`, whether or not it is there itself.
    pub(super) fn count_before(&self, place: Place) -> usize {
        let (piece, at) = self.find(place);
        let before = self.pieces.iter().take(piece).map(Vec::len).sum::<usize>();
        before + at
    }

    /// Adds a place that is not there.
    pub(super) fn insert(&mut self, place: Place) {
        self.len += 1;
        let (index, at) = self.find(place);
        let Some(piece) = self.pieces.get_mut(index) else {
            self.pieces.push(vec![place]);
            return;
        };
        piece.insert(at, place);
        if piece.len() > LINE_PIECE_JOBS {
            let rest = piece.split_off(LINE_PIECE_JOBS / 2);
            self.pieces.insert(index + 1, rest);
        }
    }

    /// Takes a place out, if it is there.
    pub(super) fn remove(&mut self, place: Place) {
        let (index, at) = self.find(place);
        let Some(piece) = self.pieces.get_mut(index) else {
            return;
        };
        if piece.get(at) != Some(&place) {
            return;
        }
        piece.remove(at);
        self.len -= 1;
        self.join(index);
        if let Some(before) = index.checked_sub(1) {
            self.join(before);
        }
    }

    /// A piece that has become small is joined with the next one, or a line that thins out would keep the memory
    /// it once had; an empty one goes.
    fn join(&mut self, index: usize) {
        let len_of = |index: usize| self.pieces.get(index).map_or(0, Vec::len);
        let (piece, next) = (len_of(index), len_of(index + 1));
        if piece == 0 {
            self.pieces.remove(index);
        } else if next > 0 && piece + next <= LINE_PIECE_JOBS / 2 {
            let next = self.pieces.remove(index + 1);
            if let Some(piece) = self.pieces.get_mut(index) {
                piece.extend(next);
            }
        }
    }

    /// The piece that `place` is in or belongs into, and where in it.
    fn find(&self, place: Place) -> (usize, usize) {
        let after = self
            .pieces
            .partition_point(|piece| piece.first().is_some_and(|first| *first <= place));
        let index = after.saturating_sub(1);
        let at = self
            .pieces
            .get(index)
            .map_or(0, |piece| piece.partition_point(|other| *other < place));
        (index, at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn place(n: u16) -> Place {
        let [high, low] = n.to_be_bytes();
        let mut raw = [0; 16];
        raw[0] = high;
        raw[1] = low;
        Place {
            arrived_ns: i64::from(n / 3),
            id: JobId::from_bytes(raw),
        }
    }

    fn check(line: &Line, expected: &BTreeSet<Place>) {
        assert_eq!(
            (line.len(), line.is_empty()),
            (expected.len(), expected.is_empty())
        );
        assert_eq!(line.first(), expected.first().copied());
        assert_eq!(line.get(expected.len()), None);
        for (index, place) in expected.iter().enumerate() {
            assert_eq!(line.get(index), Some(*place));
            assert_eq!(line.count_before(*place), index);
        }
        for piece in &line.pieces {
            assert!(
                (1..=LINE_PIECE_JOBS).contains(&piece.len()),
                "{}",
                piece.len()
            );
        }
    }

    #[test]
    fn a_long_line_is_sorted_whatever_the_order_of_arrival() {
        let count = 4_000;
        let orders: [fn(u16) -> u16; 3] = [|n| n, |n| 3_999 - n, |n| (n * 7) % 4_000];
        for order in orders {
            let mut line = Line::default();
            for n in 0..count {
                line.insert(place(order(n)));
            }
            check(&line, &(0..count).map(place).collect());
        }
    }

    #[test]
    fn a_line_that_thins_out_gives_its_pieces_back() {
        let mut line = Line::default();
        (0..4_000).map(place).for_each(|place| line.insert(place));
        for n in (0..4_000).filter(|n| n % 100 != 0) {
            line.remove(place(n));
        }
        check(&line, &(0..40).map(|n| place(n * 100)).collect());
        assert!(line.pieces.len() <= 2, "{}", line.pieces.len());
    }

    proptest! {
        #[test]
        fn a_line_is_a_sorted_set_that_counts(steps: Vec<(bool, u16)>) {
            let mut line = Line::default();
            let mut model = BTreeSet::new();
            for (is_insert, n) in steps {
                let place = place(n % 64);
                if !is_insert {
                    line.remove(place);
                    model.remove(&place);
                } else if model.insert(place) {
                    line.insert(place);
                }
                check(&line, &model);
            }
        }
    }
}
