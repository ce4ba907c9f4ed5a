//! The numbers that matter, beside what the kernel allows: `cargo bench --bench canonical`, no arguments.
//!
//! A private daemon, one warm connection, jobs that do nothing. Rounds of the floor and of the product
//! alternate, so that a busy machine slows both. JSON goes to standard output and to
//! `target/canonical.json`; the verdict by `PROMISES.md` goes to standard error, and a broken promise is
//! exit code 1. Under `cargo test --all-targets` it runs at a size that only shows that it works.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench runs beside the product: it may block, panic, start processes and print"
)]

#[allow(
    dead_code,
    unused_imports,
    reason = "the tests' harness; a bench needs a part of it"
)]
#[path = "../tests/it/harness/mod.rs"]
mod harness;
mod promises;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
    time::Duration,
};

use hdrhistogram::Histogram;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proto_rkyv::{Job, State, Submit};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use harness::{Client, Daemon, Host, Identity, Wire, block_on, joblet_binary, now};
use promises::{Promise, judge};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Size {
    rounds: usize,
    serial: usize,
    paced: usize,
    sustained: usize,
    floor_each: usize,
}

const REAL: Size = Size {
    rounds: 5,
    serial: 200,
    paced: 40,
    sustained: 2_000,
    floor_each: 60,
};
const SMOKE: Size = Size {
    rounds: 1,
    serial: 5,
    paced: 2,
    sustained: 20,
    floor_each: 2,
};

/// Requests at a time while the sustained rate is measured.
const IN_FLIGHT: usize = 64;

/// Mounts that are added to the host for a moment.
const MOUNTS: usize = 1_000;

fn main() -> ExitCode {
    let is_real = std::env::args().any(|arg| arg == "--bench");
    if !Host::Any.is_here() {
        return ExitCode::SUCCESS;
    }
    let size = if is_real { REAL } else { SMOKE };
    let result = measure(size);
    println!("{result:#}");
    if !is_real {
        return ExitCode::SUCCESS;
    }
    let target = joblet_binary().parent().unwrap().join("../canonical.json");
    fs::write(target, format!("{result:#}\n")).unwrap();
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/PROMISES.md"))
            .unwrap();
    let ratios = result["ratios"].as_object().unwrap();
    let measured: Vec<(&str, f64)> = ratios
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_f64().unwrap()))
        .collect();
    let (lines, all_hold) = judge(&Promise::read(&text), &measured);
    assert_eq!(
        lines.len(),
        measured.len(),
        "every ratio has a row in PROMISES.md"
    );
    for line in lines {
        eprintln!("{line}");
    }
    if all_hold {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What the rounds gather.
#[derive(Debug)]
struct Samples {
    product: [Histogram<u64>; 2],
    inside: [Histogram<u64>; 2],
    floor: [Histogram<u64>; 2],
    /// Without and with many more mounts on the host.
    mounts: [Histogram<u64>; 2],
    /// Without and with limits, in turn; back to back and paced.
    limits: [[Histogram<u64>; 2]; 2],
    product_rates: Vec<f64>,
    floor_rates: Vec<f64>,
}

const SERIAL: usize = 0;
const PACED: usize = 1;

fn measure(size: Size) -> Value {
    let command = StaticCommand::install();
    let daemon = Daemon::start();
    let histograms = || [new_histogram(), new_histogram()];
    let mut samples = Samples {
        product: histograms(),
        inside: histograms(),
        floor: histograms(),
        mounts: histograms(),
        limits: [histograms(), histograms()],
        product_rates: Vec::new(),
        floor_rates: Vec::new(),
    };
    block_on(async {
        let wire = Client::of(&Identity::read(&daemon.config))
            .connect(daemon.address)
            .await
            .unwrap();
        let argv = [command.0.to_str().unwrap()];
        // What a first job makes stays: pages, pools, the path of the connection.
        sustain(&wire, &argv, size.serial.min(100)).await;
        for round in 0..size.rounds {
            eprintln!("round {} of {}", round + 1, size.rounds);
            floor(size, &mut samples);
            one_by_one(&wire, &argv, size.serial, None, &mut samples).await;
            one_by_one(
                &wire,
                &argv,
                size.paced,
                Some(Duration::from_millis(50)),
                &mut samples,
            )
            .await;
            let begin = now();
            sustain(&wire, &argv, size.sustained).await;
            let jobs = u32::try_from(size.sustained).unwrap();
            samples
                .product_rates
                .push(f64::from(jobs) / begin.elapsed().as_secs_f64());
            beside_mounts(&wire, &argv, size, &mut samples).await;
            beside_limits(&wire, &argv, size, &mut samples).await;
        }
    });
    drop(daemon);
    report(size, samples)
}

/// Jobs one after the other; how long each took from here to its command's execve.
async fn one_by_one(
    wire: &Wire,
    argv: &[&str],
    count: usize,
    pause: Option<Duration>,
    samples: &mut Samples,
) {
    let kind = if pause.is_some() { PACED } else { SERIAL };
    for _ in 0..count {
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        let begin = mono_ns();
        let job = wire.run(argv).await.unwrap();
        samples.product[kind]
            .record(running_ns(&job) - begin)
            .unwrap();
        samples.inside[kind]
            .record(job.outcome.unwrap().start_micros.unwrap() * 1_000)
            .unwrap();
    }
}

/// The same start twice: as the host is, and with [`MOUNTS`] more mounts on it.
async fn beside_mounts(wire: &Wire, argv: &[&str], size: Size, samples: &mut Samples) {
    for with in [0, 1] {
        let mounts = (with == 1).then(Mounts::make);
        for _ in 0..size.serial / 2 {
            let begin = mono_ns();
            let job = wire.run(argv).await.unwrap();
            samples.mounts[with]
                .record(running_ns(&job) - begin)
                .unwrap();
        }
        drop(mounts);
    }
}

/// The same start twice, in turn: without a limit and with one of each kind that every job may have.
async fn beside_limits(wire: &Wire, argv: &[&str], size: Size, samples: &mut Samples) {
    let bounded = Submit {
        max_cpu: Some(100),
        max_memory_bytes: Some(256 << 20),
        max_pids: Some(512),
        ..Submit::default()
    };
    let free = Submit {
        max_pids: Some(0),
        ..Submit::default()
    };
    let paces = [
        (size.serial, None),
        (size.paced, Some(Duration::from_millis(50))),
    ];
    for (kind, (count, pause)) in paces.into_iter().enumerate() {
        for _ in 0..count {
            for (with, submit) in [&free, &bounded].into_iter().enumerate() {
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
                let begin = mono_ns();
                let job = wire.run_as(submit.clone(), argv).await.unwrap();
                samples.limits[kind][with]
                    .record(running_ns(&job) - begin)
                    .unwrap();
            }
        }
    }
}

/// So many jobs, [`IN_FLIGHT`] at a time, on one connection.
async fn sustain(wire: &Wire, argv: &[&str], count: usize) {
    let turns = Arc::new(Semaphore::new(IN_FLIGHT));
    let argv: Arc<Vec<String>> = Arc::new(argv.iter().map(|&word| word.to_owned()).collect());
    let mut runs = Vec::with_capacity(count);
    for _ in 0..count {
        let turn = Arc::clone(&turns).acquire_owned().await.unwrap();
        let (wire, argv) = (wire.clone(), Arc::clone(&argv));
        runs.push(tokio::spawn(async move {
            let words: Vec<&str> = argv.iter().map(String::as_str).collect();
            let job = wire.run(&words).await.unwrap();
            drop(turn);
            job
        }));
    }
    for run in runs {
        let job = run.await.unwrap();
        assert_eq!(job.state, State::Completed, "{job:?}");
    }
}

/// The same objects without a daemon.
fn floor(size: Size, samples: &mut Samples) {
    let answer = Command::new(floor_binary())
        .args(["--samples", "--workers", "8"])
        .args([
            "--serial",
            &size.serial.to_string(),
            "--paced",
            &size.paced.to_string(),
        ])
        .args(["--each", &size.floor_each.to_string()])
        .output()
        .unwrap();
    assert!(
        answer.status.success(),
        "floor: {}",
        String::from_utf8_lossy(&answer.stderr)
    );
    let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
    for (kind, name) in [(SERIAL, "serial"), (PACED, "paced")] {
        for micros in answer[name]["executed"]["samples"].as_array().unwrap() {
            let taken = Duration::from_secs_f64(micros.as_f64().unwrap() / 1e6);
            samples.floor[kind]
                .record(u64::try_from(taken.as_nanos()).unwrap())
                .unwrap();
        }
    }
    samples
        .floor_rates
        .push(answer["jobs_per_second"].as_f64().unwrap());
}

fn report(size: Size, mut samples: Samples) -> Value {
    let p50 = |histogram: &Histogram<u64>| micros(histogram.value_at_quantile(0.5));
    let p99 = |histogram: &Histogram<u64>| micros(histogram.value_at_quantile(0.99));
    let (rate, floor_rate) = (
        median(&mut samples.product_rates),
        median(&mut samples.floor_rates),
    );
    let part = |kind: usize| {
        json!({
            "count": samples.product[kind].len(),
            "product_us": { "p50": p50(&samples.product[kind]), "p99": p99(&samples.product[kind]) },
            "start_micros": { "p50": p50(&samples.inside[kind]), "p99": p99(&samples.inside[kind]) },
            "floor_us": { "p50": p50(&samples.floor[kind]), "p99": p99(&samples.floor[kind]) },
        })
    };
    let mounts = p50(&samples.mounts[1]) / p50(&samples.mounts[0]);
    let added = |kind: usize| p50(&samples.limits[kind][1]) - p50(&samples.limits[kind][0]);
    let over = |kind: usize| p50(&samples.product[kind]) / p50(&samples.floor[kind]);
    json!({
        "machine": machine(),
        "rounds": size.rounds,
        "back_to_back": part(SERIAL),
        "one_per_50_ms": part(PACED),
        "jobs_per_second": { "product": rate, "floor": floor_rate },
        "ratios": {
            "submit_execve_p50_over_floor": over(SERIAL),
            "submit_execve_p99_ms": p99(&samples.product[SERIAL]) / 1e3,
            "paced_submit_execve_p50_over_floor": over(PACED),
            "paced_submit_execve_p99_ms": p99(&samples.product[PACED]) / 1e3,
            "jobs_per_second_over_floor": rate / floor_rate,
            "submit_execve_p50_with_1000_mounts": mounts,
            "limits_added_us": added(SERIAL),
            "paced_limits_added_us": added(PACED),
        },
    })
}

/// When the command had passed execve, on the host's monotonic clock.
fn running_ns(job: &Job) -> u64 {
    let running = job
        .transitions
        .iter()
        .find(|entered| entered.state == State::Running);
    running.expect("a job that completed was running").mono_ns
}

fn mono_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(Duration::from(time).as_nanos()).unwrap()
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 60_000_000_000, 3).unwrap()
}

fn micros(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64() * 1e6
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Kernel, processors and commit: what a number is worth nothing without.
fn machine() -> Value {
    let words = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        output.map_or_else(
            |_| String::new(),
            |o| String::from_utf8_lossy(&o.stdout).trim().to_owned(),
        )
    };
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| {
        line.strip_prefix("model name")?
            .split(": ")
            .nth(1)
            .map(str::to_owned)
    });
    json!({
        "kernel": words("uname", &["-r"]),
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "cpu": model,
        "commit": words("git", &["rev-parse", "--short", "HEAD"]),
        "load": fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
    })
}

fn floor_binary() -> PathBuf {
    let path = joblet_binary().with_file_name("floor");
    assert!(
        path.exists(),
        "{} is missing; run `cargo xtask bench`, which builds it",
        path.display()
    );
    path
}

/// The floor's own static command where jobs can see it, taken away at the end.
#[derive(Debug)]
struct StaticCommand(PathBuf);

impl StaticCommand {
    fn install() -> Self {
        let path = PathBuf::from(format!(
            "/usr/local/bin/joblet-bench-true-{}",
            std::process::id()
        ));
        let written = Command::new(floor_binary())
            .arg("--write-command")
            .arg(&path)
            .status()
            .unwrap();
        assert!(written.success());
        Self(path)
    }
}

impl Drop for StaticCommand {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// Many mounts in the host's own mount namespace, below one that is detached with all of them.
#[derive(Debug)]
struct Mounts(PathBuf);

impl Mounts {
    fn make() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("joblet-bench-")
            .tempdir()
            .unwrap()
            .keep();
        let none = None::<&str>;
        mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        // Made before anything is mounted below it, so that all are taken away should this fail half-way.
        let mounts = Self(dir);
        mount(none, &mounts.0, none, MsFlags::MS_PRIVATE, none).unwrap();
        for index in 0..MOUNTS {
            let point = mounts.0.join(index.to_string());
            fs::create_dir(&point).unwrap();
            mount(Some(&point), &point, none, MsFlags::MS_BIND, none).unwrap();
        }
        mounts
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
        fs::remove_dir(&self.0).unwrap();
    }
}
