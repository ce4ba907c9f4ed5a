//! One isolated command, whole process: `rnx job run true` beside what others offer on this machine.
//!
//! Rows alternate, so that a busy machine slows all of them; medians are compared. bwrap and runc are
//! installed if they are missing, podman and docker are used where they run. A table on standard output; a
//! table without a peer, and a broken promise of `benches/PROMISES.md`, are exit code 1.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a tool for people: it prints, starts programs and reads a clock"
)]

mod peers;
mod private;
#[path = "../../../benches/promises.rs"]
mod promises;

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use peers::Peer;
use promises::{Promise, judge};

/// Times each row is run.
const ROUNDS: usize = 40;

fn main() -> Result<ExitCode> {
    let scratch = tempfile::tempdir()?;
    let daemon = private::Daemon::start(scratch.path())?;
    let mut peers = peers::find(scratch.path(), &daemon)?;
    ensure!(
        peers.len() > 2,
        "there is nothing to compare with: neither bwrap nor runc nor podman nor docker runs here"
    );
    for round in 0..ROUNDS {
        // Another one begins each time, so that nobody always runs after the same neighbour.
        let count = peers.len();
        peers.rotate_left(round % count);
        for peer in &mut peers {
            peer.times.push(time(&mut peer.command)?);
        }
    }
    peers.sort_by_key(Peer::median);
    peers::clean(scratch.path());
    daemon.end()?;
    report(&peers)
}

/// One run, from before the start of the process to its end.
fn time(command: &mut Command) -> Result<Duration> {
    let begin = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("start {command:?}"))?;
    let taken = begin.elapsed();
    ensure!(status.success(), "{command:?}: {status}");
    Ok(taken)
}

fn report(peers: &[Peer]) -> Result<ExitCode> {
    let own = peers
        .iter()
        .find(|peer| peer.name == "rnx")
        .context("no row of our own")?
        .median();
    println!("| command | median ms | p10–p90 ms | rnx / this |\n|---|---|---|---|");
    let mut measured = Vec::new();
    for peer in peers {
        let ratio = own.as_secs_f64() / peer.median().as_secs_f64();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (low, high) = (ms(peer.at(10)), ms(peer.at(90)));
        println!(
            "| {} | {:.2} | {low:.2}–{high:.2} | {ratio:.3} |",
            peer.shown,
            ms(peer.median())
        );
        measured.push((format!("rnx_over_{}", peer.name), ratio));
    }
    let measured: Vec<(&str, f64)> = measured
        .iter()
        .map(|(key, ratio)| (key.as_str(), *ratio))
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let json = json!({ "rounds": ROUNDS, "ratios": measured.iter().map(|(k, v)| json!([k, v])).collect::<Vec<_>>() });
    fs::create_dir_all(root.join("target"))?;
    fs::write(root.join("target/compare.json"), format!("{json:#}\n"))?;
    let text =
        fs::read_to_string(root.join("benches/PROMISES.md")).context("read benches/PROMISES.md")?;
    let (lines, all_hold) = judge(&Promise::read(&text), &measured);
    for line in lines {
        eprintln!("{line}");
    }
    Ok(if all_hold {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A command that reads nothing and prints nowhere.
fn quiet<S: AsRef<std::ffi::OsStr>>(program: S) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use crate::promises::{Promise, judge};

    const TABLE: &str = "| name | bound |\n|---|---|\n| `a_over_b` | ≤ 2.0 | words | x |\n| `rate` | ≥ 0.5 | |\n\
                         | free words | ≤ 1 |\n| `no_bound` | soon |\nprose\n";

    #[test]
    fn rows_with_a_name_and_a_bound_are_promises() {
        let promises = Promise::read(TABLE);
        let shown: Vec<String> = promises.iter().map(Promise::to_string).collect();
        assert_eq!(shown, ["a_over_b ≤ 2", "rate ≥ 0.5"]);
    }

    #[test]
    fn both_sides_of_each_bound_are_judged() {
        let promises = Promise::read(TABLE);
        let check = |measured: &[(&str, f64)], lines: usize, holds: bool| {
            let judged = judge(&promises, measured);
            assert_eq!((judged.0.len(), judged.1), (lines, holds), "{measured:?}");
        };
        check(&[("a_over_b", 2.0), ("rate", 0.5)], 2, true);
        check(&[("a_over_b", 2.01)], 1, false);
        check(&[("rate", 0.49)], 1, false);
        check(&[("rate", f64::NAN)], 1, false);
        check(&[("nobody_promised", 9.0)], 0, true);
    }
}
