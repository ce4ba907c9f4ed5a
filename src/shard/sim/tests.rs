//! Thousands of seeds, the same run twice, and bugs that are planted to be found.

use super::{
    faults::Planted,
    world::{Broken, simulate},
};

/// Seeds in the test command: about four seconds of one core.
const SEEDS: u64 = 20_000;
/// A planted bug is found within so many.
const SEEDS_TO_FIND: u64 = 1_000;

/// How many seeds to run: `JOBLET_SIM_SEEDS`, when more are wanted. `JOBLET_SIM_FROM` is the first one.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text: String| text.parse::<u64>().ok())
    };
    let from = number("JOBLET_SIM_FROM").unwrap_or(0);
    from..from + number("JOBLET_SIM_SEEDS").unwrap_or(SEEDS)
}

fn shown(broken: &Broken) -> String {
    let Broken {
        seed,
        rule,
        what,
        trace,
    } = broken;
    format!(
        "{trace}\nseed {seed}: {rule}: {what}\nagain with JOBLET_SIM_FROM={seed} JOBLET_SIM_SEEDS=1"
    )
}

#[test]
fn whatever_fails_and_whenever_no_rule_is_broken() {
    let (mut jobs, mut runs, mut crashes, mut steps) = (0, 0, 0, 0);
    let seeds = seeds();
    for seed in seeds.clone() {
        let summary =
            simulate(seed, Planted::Nothing).unwrap_or_else(|broken| panic!("{}", shown(&broken)));
        jobs += summary.jobs;
        runs += summary.runs;
        crashes += summary.crashes;
        steps += summary.steps;
    }
    println!("seeds {seeds:?}: {jobs} jobs, {runs} runs, {crashes} crashes, {steps} steps");
}

#[test]
fn a_seed_gives_the_same_run_twice_and_another_one_another() {
    let run = |seed| {
        simulate(seed, Planted::Nothing).unwrap_or_else(|broken| panic!("{}", shown(&broken)))
    };
    for seed in 0..50 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
        assert_ne!(run(seed).hash, run(seed + 1).hash, "seed {seed}");
    }
}

/// The seed that finds a planted bug first, and by which rule.
fn found(planted: Planted) -> (u64, &'static str) {
    let broken = (0..SEEDS_TO_FIND).find_map(|seed| simulate(seed, planted).err());
    let broken = broken.unwrap_or_else(|| panic!("{planted:?} is not found"));
    println!(
        "{planted:?}: seed {}: {}: {}",
        broken.seed, broken.rule, broken.what
    );
    (broken.seed, broken.rule)
}

#[test]
fn an_acknowledgement_before_the_commit_is_found() {
    let (_, rule) = found(Planted::LostAcknowledgement);
    let rules = ["no promised job is forgotten", "no command runs unrecorded"];
    assert!(rules.contains(&rule), "{rule}");
}

#[test]
fn a_command_that_runs_again_with_a_second_go_is_found() {
    let (_, rule) = found(Planted::DoubleGo);
    assert_eq!(rule, "no command runs twice");
}

#[test]
fn a_keeper_that_is_released_before_the_store_has_the_end_is_found() {
    let (_, rule) = found(Planted::EarlyRelease);
    assert_eq!(rule, "no job with a helper is lost");
}
