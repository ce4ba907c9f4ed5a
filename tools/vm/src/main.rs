//! `vm [--kernel 6.1|6.12|all] IT [TEST ARGUMENT…]`: the integration tests as root of a machine of their own.
//!
//! The machine is QEMU's without KVM and without a network. Its kernel is Debian's cloud kernel as it is
//! packaged, its programs are those of this host's Debian packages, its only cgroup hierarchy is cgroup2, and
//! the daemon finds it as a fresh boot leaves it. Nothing that happens in there reaches this host: all disks
//! are thrown away.
//!
//! ```text
//! kernel    vmlinuz and modules, by apt, kept below target/vm
//! system    disk 1: packages, modules and `init`; made again when one of them changes
//! programs  disk 2: joblet, rnx and the test binary, mounted where they lie on this host
//! scratch   disk 3: /tmp, where daemons have their base directories
//! ```
//! `cargo xtask vm` builds what is needed and calls this. Exit code 0: every kernel passed.
#![expect(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a tool for people: it prints, starts programs and reads a clock"
)]

mod disk;
mod kernel;
mod machine;
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

/// What runs when nothing is asked for: what a cgroup hierarchy and a kernel may change.
const DEFAULT_TESTS: [&str; 2] = ["isolation::", "limits::"];

fn main() -> Result<ExitCode> {
    let mut args = env::args().skip(1).peekable();
    let mut wanted = Series::ALL.to_vec();
    if args.next_if(|arg| arg == "--kernel").is_some() {
        let name = args.next().context("--kernel needs 6.1, 6.12 or all")?;
        if name != "all" {
            let series = Series::parse(&name)
                .with_context(|| format!("no kernel {name:?}: there are 6.1, 6.12 and all"))?;
            wanted = vec![series];
        }
    }
    let tests = PathBuf::from(args.next().context("which test binary?")?);
    let mut arguments: Vec<String> = args.collect();
    if arguments.iter().all(|argument| argument.starts_with('-')) {
        arguments.extend(DEFAULT_TESTS.map(str::to_owned));
    }
    ensure!(
        arguments.iter().all(|argument| !argument.contains('\n')),
        "an argument has a line break"
    );
    let cache = root()?.join("target/vm");
    fs::create_dir_all(&cache)?;
    // Until the end: two of us would make the same files.
    let only_one = fs::File::create(cache.join("lock"))?;
    only_one.lock()?;
    let programs = Programs {
        home: root()?.join("target/release"),
        tests,
        arguments,
    };

    let mut passed = true;
    let mut summary = Vec::new();
    for series in wanted {
        let begin = Instant::now();
        let kernel = Kernel::get(series, &cache)?;
        let disks = disk::make(&kernel, &programs, &cache)?;
        let made = begin.elapsed();
        let run = machine::run(&kernel, &disks, &programs.home)?;
        passed &= run.verdict.is_pass();
        summary.push(format!(
            "vm: Linux {:24} disks {:5.1} s, boot {:5.1} s, tests {:6.1} s: {}",
            kernel.release,
            made.as_secs_f64(),
            run.boot.as_secs_f64(),
            run.tests.as_secs_f64(),
            run.verdict
        ));
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
