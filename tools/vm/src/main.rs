//! The integration tests as root of a machine of their own.
//!
//! ```text
//! vm [--kernel 6.1|6.12|all] IT [TEST ARGUMENT…]
//! vm [--kernel 6.1|6.12|all] power [--rounds N] [--seed N] IT
//! ```
//! The machine is QEMU's without KVM and without a network. Its kernel is Debian's cloud kernel as it is
//! packaged, its programs are those of this host's Debian packages, its only cgroup hierarchy is cgroup2, and
//! the daemon finds it as a fresh boot leaves it. Nothing that happens in there reaches this host: all disks
//! are thrown away, but for the scratch of `power`, which cuts the machine's power and looks what is left.
//!
//! ```text
//! kernel    vmlinuz and modules, by apt, kept below target/vm
//! system    disk 1: packages, modules and `init`; made again when one of them changes
//! programs  disk 2: joblet, rnx and the test binary, mounted where they lie on this host
//! scratch   disk 3: /tmp, where daemons have their base directories
//! ```
//! `cargo xtask vm` builds what is needed and calls this. Exit code 0: every kernel passed. Any executable may stand
//! in place of IT, a script for example, with an argument that is no flag.
#![expect(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a tool for people: it prints, starts programs and reads a clock"
)]

mod disk;
mod kernel;
mod machine;
mod power;
mod suite;
mod userland;

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

use disk::Programs;
use kernel::{Kernel, Series};
use machine::Init;
use power::Cuts;

/// What a cgroup hierarchy and a kernel may change, volumes in memory among it: on every kernel.
const ON_EVERY_KERNEL: &[&str] = &["isolation::", "limits::", "volume::a_"];
/// What sets the machine's clock: on the last kernel only, and alone.
const CLOCK: &[&str] = &["machine::clock::", "--test-threads=1"];
/// What needs systemd as PID 1: on the last kernel only.
const SYSTEMD: &[&str] = &["machine::systemd::", "--test-threads=1"];

/// Something to be done on a kernel.
#[derive(Debug, Clone)]
enum Step {
    /// The test binary, so often, below this init.
    Tests(Init, Vec<Vec<String>>),
    /// Losses of power.
    Power(Cuts),
}

/// The command line.
#[derive(Debug)]
struct Asked {
    kernels: Vec<Series>,
    tests: PathBuf,
    what: What,
}

/// What is asked for on each kernel.
#[derive(Debug)]
enum What {
    /// All there is, with these flags for the tests.
    Everything(Vec<String>),
    /// Just this.
    Step(Step),
}

impl What {
    fn steps(&self, is_last: bool) -> Vec<Step> {
        let flags = match self {
            Self::Step(step) => return vec![step.clone()],
            Self::Everything(flags) => flags,
        };
        let run = |run: &[&str]| {
            let run = run.iter().map(|argument| (*argument).to_owned());
            run.chain(flags.iter().cloned()).collect()
        };
        if !is_last {
            return vec![Step::Tests(Init::Own, vec![run(ON_EVERY_KERNEL)])];
        }
        vec![
            Step::Tests(Init::Own, vec![run(ON_EVERY_KERNEL), run(CLOCK)]),
            Step::Tests(Init::Systemd, vec![run(SYSTEMD)]),
            Step::Power(Cuts::default()),
        ]
    }
}

impl Asked {
    fn parse(args: impl Iterator<Item = String>) -> Result<Self> {
        let mut args = args.peekable();
        let mut kernels = Series::ALL.to_vec();
        if args.next_if(|arg| arg == "--kernel").is_some() {
            let name = args.next().context("--kernel needs 6.1, 6.12 or all")?;
            if name != "all" {
                let series = Series::parse(&name)
                    .with_context(|| format!("no kernel {name:?}: there are 6.1, 6.12 and all"))?;
                kernels = vec![series];
            }
        }
        let mut cuts = None;
        if args.next_if(|arg| arg == "power").is_some() {
            let cuts = cuts.insert(Cuts::default());
            while let Some(flag) = args.next_if(|arg| arg.starts_with("--")) {
                let value = args.next().and_then(|value| value.parse().ok());
                let value = value.with_context(|| format!("{flag} needs a whole number"))?;
                match flag.as_str() {
                    "--rounds" => cuts.rounds = value,
                    "--seed" => cuts.seed = value,
                    _ => bail!("power has --rounds and --seed, and no {flag}"),
                }
            }
        }
        let tests = PathBuf::from(args.next().context("which test binary?")?);
        let arguments: Vec<String> = args.collect();
        ensure!(
            arguments
                .iter()
                .all(|argument| !argument.is_empty() && !argument.contains('\n')),
            "an argument is empty or has a line break"
        );
        let is_of_systemd = |argument: &String| argument.starts_with("machine::systemd");
        let what = if let Some(cuts) = cuts {
            What::Step(Step::Power(cuts))
        } else if arguments.iter().all(|argument| argument.starts_with('-')) {
            What::Everything(arguments)
        } else if arguments.iter().any(is_of_systemd) {
            What::Step(Step::Tests(Init::Systemd, vec![arguments]))
        } else {
            What::Step(Step::Tests(Init::Own, vec![arguments]))
        };
        Ok(Self {
            kernels,
            tests,
            what,
        })
    }
}

fn main() -> Result<ExitCode> {
    let asked = Asked::parse(env::args().skip(1))?;
    let cache = root()?.join("target/vm");
    fs::create_dir_all(&cache)?;
    // Until the end: two of us would make the same files.
    let only_one = fs::File::create(cache.join("lock"))?;
    only_one.lock()?;
    let mut programs = Programs {
        home: root()?.join("target/release"),
        tests: asked.tests,
        runs: Vec::new(),
        book: Vec::new(),
    };

    let mut passed = true;
    let mut summary = Vec::new();
    let last_kernel = asked.kernels.last().copied();
    for series in asked.kernels {
        let kernel = Kernel::get(series, &cache)?;
        for step in asked.what.steps(Some(series) == last_kernel) {
            let (is_pass, line) = do_step(&step, &kernel, &mut programs, &cache)?;
            passed &= is_pass;
            summary.push(format!("vm: Linux {:24} {line}", kernel.release));
        }
    }
    for line in summary {
        eprintln!("{line}");
    }
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether it passed, and a line about it.
fn do_step(
    step: &Step,
    kernel: &Kernel,
    programs: &mut Programs,
    cache: &Path,
) -> Result<(bool, String)> {
    let (init, runs) = match step {
        Step::Tests(init, runs) => (*init, runs),
        Step::Power(cuts) => return power::run(cuts, kernel, programs, cache),
    };
    programs.runs.clone_from(runs);
    let begin = Instant::now();
    let disks = disk::make(kernel, programs, cache)?;
    let made = begin.elapsed();
    let run = suite::run(kernel, &disks, &programs.home, init)?;
    let line = format!(
        "disks {:5.1} s, boot {:5.1} s, tests {:6.1} s: {}",
        made.as_secs_f64(),
        run.boot.as_secs_f64(),
        run.tests.as_secs_f64(),
        run.verdict
    );
    Ok((run.verdict.is_pass(), line))
}

/// The root of the workspace, two levels above this package.
fn root() -> Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors()
        .nth(2)
        .map(Path::to_owned)
        .context("tools/vm has no grandparent")
}

/// A program with its arguments.
fn command<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    // Debian keeps mkfs, sfdisk, depmod and ldconfig where a PATH often does not look.
    let path = env::var("PATH").unwrap_or_default();
    command
        .args(args)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

/// Runs a program for its standard output.
fn output(mut command: Command) -> Result<String> {
    let shown = format!("{command:?}");
    let done = command
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("start {shown}"))?;
    if !done.status.success() {
        bail!(
            "{shown}: {}\n{}",
            done.status,
            String::from_utf8_lossy(&done.stderr)
        );
    }
    String::from_utf8(done.stdout).with_context(|| format!("output of {shown}"))
}
