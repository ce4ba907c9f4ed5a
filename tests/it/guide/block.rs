//! What a block of the guide is, and a section of them with the test that runs each.

use super::reader::Guide;

/// A block of commands.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) verdict: Verdict,
    /// As it is printed.
    pub(super) text: &'static str,
    /// What is run instead of what of it.
    pub(super) changes: &'static [(&'static str, &'static str)],
}

/// How a block of the guide is tried.
#[derive(Debug)]
#[expect(dead_code, reason = "the words are for whoever reads the table")]
pub(super) enum Verdict {
    /// As it is printed.
    Literal,
    /// As it is printed, with these volumes and files there, and what `<…>` stands for.
    Fixtures(&'static str),
    /// It cannot do what it says as it is printed, and why; what is run instead.
    Cannot(&'static str),
}

/// Blocks that follow each other in the guide.
#[derive(Debug)]
pub(super) struct Section {
    /// In the guide's order.
    pub(super) blocks: &'static [&'static Block],
    /// Runs all of them.
    pub(super) test: fn(&Guide),
}

impl Section {
    /// Runs the test, which must have run every block when it is over.
    pub(super) fn run(&self) {
        let Some(guide) = Guide::open() else { return };
        (self.test)(&guide);
        for block in self.blocks {
            assert!(guide.has_tried(block), "nothing runs\n{}", block.text);
        }
    }
}
