//! `cargo xtask VERB`: the same checks with the same words on every machine.
//!
//! It adds nothing to what cargo does but the order, the profile (release, so that nothing is built
//! twice; `dist` for what is measured) and the two binaries that the integration tests run.
#![expect(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a tool for people: it prints, starts cargo and reads a clock"
)]

mod dist;
mod licence;
mod order;

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

const USAGE: &str = "\
usage: cargo xtask VERB

  check            everything below, in this order
  fmt              rustfmt has nothing to change
  lint             clippy has nothing to say, in all targets
  deny             licences, sources and versions are the allowed ones
  test [FILTER…]   builds both binaries, then runs every test; JOBLET_TEST_REQUIRE=1 makes skips failures
  vm [--kernel 6.1|6.12|all] [FILTER…]
                   on Debian kernels with cgroup v2 alone: integration tests of isolation and limits, and those that
                   need a machine of their own (clock, systemd, power)
  vm [--kernel 6.1|6.12|all] power [--rounds N] [--seed N]
                   losses of power only
  dist             what is installed: target/dist/joblet and target/dist/rnx
  order            writes rnx/link-order.txt, by which rnx is linked, from runs of it; as root, after a change of the
                   compiler or of dependencies
  bench            the numbers of benches/PROMISES.md, and the peers beside them";

fn main() -> Result<()> {
    let mut args = env::args_os().skip(1);
    let verb = args.next().unwrap_or_default();
    let rest: Vec<OsString> = args.collect();
    match verb.to_str() {
        Some("check") => check(),
        Some("fmt") => fmt(),
        Some("lint") => lint(),
        Some("deny") => deny(),
        Some("test") => test(&rest),
        Some("vm") => vm(&rest),
        Some("dist") => dist::build().map(drop),
        Some("order") => order::record(),
        Some("bench") => bench(),
        Some("help" | "--help" | "-h") => {
            eprintln!("{USAGE}");
            Ok(())
        }
        _ => bail!("no such verb: {}\n{USAGE}", verb.display()),
    }
}

fn check() -> Result<()> {
    fmt()?;
    lint()?;
    deny()?;
    test(&[])
}

fn fmt() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])
}

fn lint() -> Result<()> {
    let lints = ["--release", "--workspace", "--all-targets", "--locked"];
    cargo(&[&["clippy"], &lints[..], &["--", "-D", "warnings"]].concat())
}

/// `cargo deny` where it is installed; else the part of `deny.toml` that needs no database.
fn deny() -> Result<()> {
    let installed = Command::new("cargo")
        .args(["deny", "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    if installed {
        return cargo(&["deny", "check", "bans", "licenses", "sources"]);
    }
    eprintln!("xtask: cargo-deny is not installed; checking the licence list of deny.toml only");
    licence::check(&root()?)
}

/// Everything that is built, with the features that the tests want: once.
const BUILD: [&str; 5] = [
    "build",
    "--release",
    "--workspace",
    "--all-targets",
    "--locked",
];

/// The tests run the binaries of two packages, and cargo builds those of one: so both are built first.
fn test(filter: &[OsString]) -> Result<()> {
    cargo(&BUILD)?;
    let args = ["test", "--release", "--workspace", "--locked", "--"];
    let mut args: Vec<&OsStr> = args.iter().chain(&NOT_HERE).map(OsStr::new).collect();
    args.extend(filter.iter().map(OsString::as_os_str));
    cargo(&args)
}

/// Tests that set the clock and the like: `vm` gives them a machine.
const NOT_HERE: [&str; 2] = ["--skip", "machine::"];

/// Hands what was built to `tools/vm`, whose exit code is the tests'.
fn vm(args: &[OsString]) -> Result<()> {
    run(Command::new(root()?.join("tools/packages")).arg("vm"))?;
    cargo(&BUILD)?;
    let tests = test_binary()?;
    let (kernel, rest) = match args {
        [flag, kernel, rest @ ..] if flag == "--kernel" => (kernel.as_os_str(), rest),
        rest => (OsStr::new("all"), rest),
    };
    let mut vm = Command::new(root()?.join("target/release/vm"));
    vm.arg("--kernel").arg(kernel);
    match rest {
        [verb, ..] if verb == "power" => vm.args(rest).arg(tests),
        filter => vm.arg(tests).args(filter),
    };
    run(&mut vm)
}

/// Where cargo has put the binary of the integration tests: its name has a hash, and older ones lie around.
fn test_binary() -> Result<PathBuf> {
    let output = cargo_command()?
        .args(BUILD)
        .args(["--quiet", "--message-format=json"])
        .output()
        .context("start cargo")?;
    let source = root()?.join("tests/it/main.rs");
    let text = String::from_utf8(output.stdout)?;
    text.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["src_path"].as_str().map(Path::new) == Some(&source))
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .context("cargo names no binary of tests/it")
}

/// Measures what is installed, with tools that are built as it is.
fn bench() -> Result<()> {
    dist::build()?;
    let dist = dist::PROFILE;
    let tools = ["--package=floor", "--package=compare"];
    cargo(&[&["build", "--bins", dist, "--locked"], &tools[..]].concat())?;
    cargo(&["bench", "--bench", "canonical", dist, "--locked"])?;
    cargo(&["run", dist, "--package", "compare", "--locked"])
}

/// Runs cargo in the workspace and fails as it fails.
fn cargo<S: AsRef<OsStr>>(args: &[S]) -> Result<()> {
    let shown: Vec<_> = args
        .iter()
        .map(|arg| arg.as_ref().to_string_lossy())
        .collect();
    let shown = shown.join(" ");
    eprintln!("xtask: cargo {shown}");
    let begin = Instant::now();
    let status = cargo_command()?
        .args(args)
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "cargo {shown}: {status}");
    eprintln!("xtask: {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Cargo in the workspace, with the environment that it has outside of `cargo xtask`.
///
/// `cargo run` tells us about our own package in variables that build scripts look at (ring's does): with them
/// cargo would build again what `cargo build` has built, and the other way round.
fn cargo_command() -> Result<Command> {
    let mut command = Command::new("cargo");
    command.current_dir(root()?);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// Runs a program of ours and fails as it fails.
fn run(command: &mut Command) -> Result<()> {
    let shown = command.get_program().display().to_string();
    let status = command.status().with_context(|| format!("start {shown}"))?;
    ensure!(status.success(), "{shown}: {status}");
    Ok(())
}

/// The target triple of this machine, as rustc names it.
fn host() -> Result<String> {
    let output = Command::new("rustc")
        .args(["-vV"])
        .output()
        .context("start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

/// The root of the workspace, two levels above this package.
fn root() -> Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors()
        .nth(2)
        .map(Path::to_owned)
        .context("tools/xtask has no grandparent")
}
