//! What a volume costs: `cargo bench --bench volume`, no arguments.
//!
//! The same program reads and writes a file on the disk of the base directory and, in a job, on a volume there, in
//! turn, so that a busy disk slows both; medians and their ratios are told, with those of making a volume and of
//! starting a job with one. A docker volume stands beside it where an engine runs. JSON goes to standard output.
//! Under `cargo test --all-targets` it runs at a size that only shows that it works.
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

use std::{path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use harness::{Daemon, Host, now};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Size {
    rounds: usize,
    file_mb: u32,
    random: u32,
    volumes: usize,
    starts: usize,
}

const REAL: Size = Size {
    rounds: 5,
    file_mb: 256,
    random: 4_000,
    volumes: 20,
    starts: 20,
};
const SMOKE: Size = Size {
    rounds: 1,
    file_mb: 8,
    random: 20,
    volumes: 1,
    starts: 1,
};

/// Prints MB/s of writing and of reading a file from one end to the other, and thousands of 4 KiB writes and reads a
/// second anywhere in it; past the page cache, and written to the disk at the end.
const PROGRAM: &str = r#"
import mmap, os, random, sys, time
path, megabytes, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random.seed(1)
large, small = mmap.mmap(-1, 1 << 20), mmap.mmap(-1, 4096)
large.write(os.urandom(1 << 20)); small.write(os.urandom(4096))
f = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
def timed(what):
    begin = time.perf_counter(); what(); return time.perf_counter() - begin
def write_all():
    for at in range(megabytes): os.pwritev(f, [large], at << 20)
    os.fsync(f)
def read_all():
    for at in range(megabytes): os.preadv(f, [large], at << 20)
places = [random.randrange(megabytes << 8) << 12 for _ in range(count)]
def write_some():
    for at in places: os.pwritev(f, [small], at)
    os.fsync(f)
def read_some():
    for at in places: os.preadv(f, [small], at)
# The first pass gives the file its blocks; what is measured finds them there.
write_all()
print(megabytes / timed(write_all), megabytes / timed(read_all), count / timed(write_some) / 1e3, count / timed(read_some) / 1e3)
os.unlink(path)
"#;

/// What [`PROGRAM`] prints.
const FIGURES: [&str; 4] = [
    "write_mb_per_s",
    "read_mb_per_s",
    "random_writes_k_per_s",
    "random_reads_k_per_s",
];

fn main() {
    let is_real = std::env::args().any(|arg| arg == "--bench");
    if !Host::Any.is_here() {
        return;
    }
    let size = if is_real { REAL } else { SMOKE };
    let daemon = Daemon::start();
    let result = json!({
        "io": io(&daemon, size),
        "create_remove": create_remove(&daemon, size),
        "start": starts(&daemon, size),
    });
    println!("{result:#}");
}

fn io(daemon: &Daemon, size: Size) -> Value {
    daemon
        .rnx(["volume", "create", "bench", "--size=2GB"])
        .assert_code(0);
    let numbers = [size.file_mb.to_string(), size.random.to_string()];
    let (mut host, mut volume, mut docker) = (Vec::new(), Vec::new(), Vec::new());
    let on_host = daemon.base.join("bench.dat");
    for _ in 0..size.rounds {
        host.push(figures(python(&on_host, &numbers)));
        let job = daemon
            .client()
            .args(["job", "run", "--volume=bench", "python3", "-c", PROGRAM])
            .arg("/volumes/bench/bench.dat")
            .args(&numbers)
            .run();
        job.assert_code(0);
        volume.push(figures(job.text()));
        docker.extend(in_docker(&numbers));
    }
    daemon.rnx(["volume", "remove", "bench"]).assert_code(0);
    let mut table = serde_json::Map::new();
    for (index, name) in FIGURES.into_iter().enumerate() {
        let median_of = |rows: &[[f64; 4]]| median(rows.iter().map(|row| row[index]).collect());
        let (host, volume) = (median_of(&host), median_of(&volume));
        let mut row = json!({"host": host, "volume": volume, "volume_over_host": volume / host});
        if docker.is_empty() {
            row["docker"] = "no engine runs here".into();
        } else {
            row["docker"] = median_of(&docker).into();
        }
        table.insert(name.to_owned(), row);
    }
    table.into()
}

fn python(path: &Path, numbers: &[String]) -> String {
    let output = Command::new("python3")
        .args(["-c", PROGRAM])
        .arg(path)
        .args(numbers)
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The same on a volume of docker's, where its engine and an image with python3 are.
fn in_docker(numbers: &[String]) -> Option<[f64; 4]> {
    let output = Command::new("docker")
        .args(["run", "--rm", "-v", "joblet-bench:/v", "python:3-slim"])
        .args(["python3", "-c", PROGRAM, "/v/bench.dat"])
        .args(numbers)
        .output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(figures(String::from_utf8(output.stdout).ok()?))
}

fn figures(text: String) -> [f64; 4] {
    let found: Vec<f64> = text
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    found.try_into().unwrap()
}

/// Whole calls of `rnx`.
fn create_remove(daemon: &Daemon, size: Size) -> Value {
    let (mut made, mut removed) = (Vec::new(), Vec::new());
    for _ in 0..size.volumes {
        made.push(timed(daemon, &["volume", "create", "one", "--size=1GB"]));
        removed.push(timed(daemon, &["volume", "remove", "one"]));
    }
    let (made, removed) = (median(made), median(removed));
    json!({"create_ms": made, "remove_ms": removed, "pairs_per_s": 1_000.0 / (made + removed)})
}

fn timed(daemon: &Daemon, args: &[&str]) -> f64 {
    let begin = now();
    daemon.rnx(args).assert_code(0);
    millis(now() - begin)
}

/// Submit to execve, with a volume, with `/work` on disk alone as a job with a volume has it, and with neither.
fn starts(daemon: &Daemon, size: Size) -> Value {
    daemon
        .rnx(["volume", "create", "held", "--size=1GB"])
        .assert_code(0);
    let kinds: [(&str, &[&str]); 3] = [
        ("with_volume_us", &["--volume=held"]),
        ("disk_work_us", &["--work-size=10GB"]),
        ("plain_us", &[]),
    ];
    let mut found = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..size.starts {
        for ((_, flags), found) in kinds.iter().zip(&mut found) {
            let run = daemon.client().args(["--json", "job", "run", "--wait"]);
            let job = run.args(*flags).arg("true").run().json();
            found.push(job["outcome"]["start_micros"].as_f64().unwrap());
        }
    }
    daemon.rnx(["volume", "remove", "held"]).assert_code(0);
    let rows = kinds.iter().zip(found);
    rows.map(|((name, _), found)| ((*name).to_owned(), json!(median(found))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
