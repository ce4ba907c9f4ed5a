//! The user's guide to volumes, block by block: what it prints is what is run here.
//!
//! A section has the text of its blocks with what came of each, and a test that runs all of them through a shell, with
//! `rnx` in its path and a daemon of their own. A block that takes volumes or files for granted finds them there.

mod block;
mod creation;
mod examples;
mod jobs;
mod lines;
mod listing;
mod practice;
mod reader;
mod sharing;
mod speed;
mod trouble;
mod work;

use block::{Block, Section, Verdict};
use lines::RNX_LINES;

/// A test for each section, and the table of them: what is in the table is run.
macro_rules! sections {
    ($($test:ident: $section:ident,)+) => {
        $(
            #[test]
            fn $test() {
                $section::SECTION.run();
            }
        )+

        /// In the guide's order.
        const SECTIONS: &[&Section] = &[$(&$section::SECTION),+];
    };
}

sections! {
    isolation_and_sharing: sharing,
    creation_sizes_and_names: creation,
    volumes_in_jobs: jobs,
    listing_usage_and_removal: listing,
    work_that_goes_on_in_another_job_and_backups: work,
    speed_of_both_types: speed,
    good_practice: practice,
    troubleshooting: trouble,
    examples_without_what_comes_later: examples,
}

#[test]
fn every_command_of_the_guide_stands_in_one_of_the_blocks() {
    let blocks: Vec<&Block> = SECTIONS
        .iter()
        .flat_map(|section| section.blocks)
        .copied()
        .collect();
    let commands: Vec<String> = blocks
        .iter()
        .flat_map(|block| commands(block.text))
        .collect();
    assert_eq!(commands, RNX_LINES);
    for block in blocks {
        let mut printed = block.changes.iter().map(|(printed, _)| *printed);
        let is_true = match block.verdict {
            Verdict::Literal => printed.next().is_none(),
            Verdict::Fixtures(_) => {
                printed.all(|word| word.starts_with('<') && word.ends_with('>'))
            }
            Verdict::Cannot(_) => printed.next().is_some(),
        };
        assert!(is_true, "{block:?}");
    }
}

/// The command lines of a block that call `rnx`, without comments and line continuations.
fn commands(text: &str) -> Vec<String> {
    let text = text.replace("\\\n", " ");
    text.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter_map(|line| {
            let call = line.split_once("=$(").map_or(&*line, |(_, call)| call);
            let call = call.split_once(" # ").map_or(call, |(call, _)| call);
            call.starts_with("rnx ").then(|| call.to_owned())
        })
        .collect()
}
