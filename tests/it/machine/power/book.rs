//! The book: what was said before the power was cut, a line each.
//!
//! ```text
//! SIDE acknowledged NUMBER ID    a submit was answered
//! SIDE ran NUMBER                the command opened a file of its own: a witness that the product cannot fool
//! SIDE told NUMBER CODE          a waiter was told how it ended
//! boot                           a load began
//! last                           none follows any more
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::{fmt, fs, path::Path};

use super::load::Order;

/// A value of `store.durability`, with a daemon and a base directory of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// Survives the daemon's death.
    Process,
    /// Survives a loss of power.
    Power,
}

impl Side {
    pub(super) const ALL: [Self; 2] = [Self::Process, Self::Power];

    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|side| side.to_string() == name)
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::Power => "power",
        })
    }
}

/// What was said of all jobs.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// How often a load began.
    pub(super) boots: u64,
    /// Whether none follows.
    pub(super) is_last: bool,
    pages: BTreeMap<Side, Page>,
}

/// What was said of the jobs of a side.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) acknowledged: BTreeMap<Order, String>,
    pub(super) ran: BTreeSet<Order>,
    pub(super) told: BTreeMap<Order, i32>,
}

impl Book {
    /// Reads it. The power was cut within a line as well: one that is not whole was not said.
    pub(super) fn read(path: &Path) -> Self {
        let mut book = Self {
            pages: Side::ALL.map(|side| (side, Page::default())).into(),
            ..Self::default()
        };
        for line in fs::read_to_string(path).unwrap().lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["boot"] => book.boots += 1,
                ["last"] => book.is_last = true,
                _ => drop(book.note(line)),
            }
        }
        book
    }

    fn note(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split(' ').collect();
        let page = self.pages.get_mut(&Side::parse(words.first()?)?)?;
        let order = Order(words.get(2)?.parse().ok()?);
        match (words[1], words.get(3)) {
            ("acknowledged", Some(id)) if id.len() == 36 => {
                page.acknowledged.insert(order, (*id).to_owned());
            }
            ("ran", Some(&".")) => _ = page.ran.insert(order),
            ("told", Some(code)) => {
                _ = page
                    .told
                    .insert(order, code.strip_suffix('.')?.parse().ok()?)
            }
            _ => return None,
        }
        Some(())
    }

    pub(super) fn page(&self, side: Side) -> &Page {
        &self.pages[&side]
    }
}
