//! What the kernel alone needs for the objects of one job: the floor under the product's own numbers.
//!
//! A single-threaded loop makes exactly the kernel objects of a job and takes them down again, and reports
//! the time to the command's `execve` and to reaped: back to back, one per 50 ms, and with several worker
//! processes at once. Namespaces and cgroups of version 1 come from pools that are filled before the clock
//! starts, as the product's pools are filled off its submit path; cgroups are removed when a job has been reaped,
//! which only the rate pays for, as the product's does. One JSON object on standard output; times are
//! microseconds.
#![expect(clippy::print_stdout, reason = "its result is its output")]

mod cgroups;
mod job;
mod pool;
mod sys;
mod template;

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::{
    fcntl::{OFlag, open},
    sys::{
        memfd::{MFdFlags, memfd_create},
        stat::{Mode, fchmod},
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    cgroups::{Cgroups, Seat},
    job::{Bench, Times},
    pool::{Maker, Namespaces},
};

/// The static program that is PID 1 with arguments and the command without.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// Pairs of namespaces made at once: enough to measure on, few enough to hold.
const BATCH: usize = 50;

#[derive(Debug, Parser)]
#[command(about = "Measures what the kernel alone needs for the objects of one job")]
struct Args {
    /// Jobs back to back
    #[arg(long, default_value_t = 300)]
    serial: usize,
    /// Jobs at one per 50 ms
    #[arg(long, default_value_t = 60)]
    paced: usize,
    /// Worker processes for the sustained rate
    #[arg(long, default_value_t = 8)]
    workers: usize,
    /// Jobs of each worker
    #[arg(long, default_value_t = 60)]
    each: usize,
    /// Print every sample
    #[arg(long)]
    samples: bool,
    /// Write the static command to this file and do nothing else
    #[arg(long, value_name = "FILE")]
    write_command: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(path) = &args.write_command {
        return write_command(path);
    }
    let place = Place::make()?;
    let answer = measure(&args, &place);
    drop(place);
    println!("{}", answer?);
    Ok(())
}

/// What is taken away at the end: cgroups and an empty directory.
#[derive(Debug)]
struct Place {
    cgroups: cgroups::Place,
    scratch: PathBuf,
}

impl Place {
    fn make() -> Result<Self> {
        let cgroups = cgroups::Place::make()?;
        let name = format!("joblet-floor-{}", std::process::id());
        let scratch = std::env::temp_dir().join(name);
        fs::create_dir(&scratch).with_context(|| format!("make {}", scratch.display()))?;
        Ok(Self { cgroups, scratch })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It is empty; when it is not, somebody wants to look at what is in it.
        let _ = fs::remove_dir(&self.scratch);
    }
}

/// Measures in a child, because entering the template cannot be undone; the child's JSON.
fn measure(args: &Args, place: &Place) -> Result<String> {
    let (mut answer, mut answer_end) = io::pipe()?;
    let Some(child) = sys::fork()? else {
        let done = measure_here(args, place)
            .and_then(|json| Ok(answer_end.write_all(json.to_string().as_bytes())?));
        if let Err(error) = &done {
            // The parent prints what arrives, whatever it is.
            let _ = write!(answer_end, "error: {error:#}");
        }
        sys::end(i32::from(done.is_err()));
    };
    drop(answer_end);
    let mut text = String::new();
    answer.read_to_string(&mut text)?;
    let status = waitpid(Pid::from_raw(child), None)?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{text}");
    Ok(text)
}

fn measure_here(args: &Args, place: &Place) -> Result<Value> {
    let null = directory_or_file("/dev/null", OFlag::O_RDWR)?;
    // Numbers up to 9 stay taken, so that the child may put its own descriptors there.
    let reserved: Vec<OwnedFd> = (0..10)
        .map(|_| null.try_clone())
        .collect::<io::Result<_>>()?;
    let reserve = || -> Result<OwnedFd> { Ok(null.try_clone()?) };
    let cgroups = place.cgroups.open()?;
    let proc = directory_or_file("/proc", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    let init = init_image()?;
    template::enter(&place.scratch, PROGRAM).context("enter the template")?;
    let mut maker = Maker::new(proc.try_clone()?, 0);
    let mut bench = Bench::new(cgroups.try_clone()?, init.try_clone()?, reserve()?)?;
    // The first ones make what stays in caches.
    run(&mut bench, &mut maker, 20, None)?;
    let serial = run(&mut bench, &mut maker, args.serial, None)?;
    let paced = run(
        &mut bench,
        &mut maker,
        args.paced,
        Some(Duration::from_millis(50)),
    )?;
    let pieces = Pieces {
        cgroups,
        proc,
        init,
        null,
    };
    let rate = sustained(&pieces, args, false)?;
    let rate_with_pool = sustained(&pieces, args, true)?;
    drop(reserved);
    Ok(json!({
        "serial": summary(&serial, args.samples),
        "paced": summary(&paced, args.samples),
        "workers": args.workers,
        "jobs_per_second": rate,
        "jobs_per_second_namespaces_included": rate_with_pool,
    }))
}

/// Jobs one after the other, the pool filled between batches.
fn run(
    bench: &mut Bench,
    maker: &mut Maker,
    count: usize,
    pause: Option<Duration>,
) -> Result<Vec<Times>> {
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        for ready in make(bench, maker, BATCH.min(count - all.len()))? {
            if let Some(pause) = pause {
                wait(pause);
            }
            all.push(bench.run(ready)?);
        }
    }
    Ok(all)
}

/// What the product has ready for a job.
type Ready = (Seat, Namespaces);

/// So many of them.
fn make(bench: &mut Bench, maker: &mut Maker, count: usize) -> Result<Vec<Ready>> {
    let each = (0..count).map(|_| Ok((bench.make_seat()?, maker.make_one()?)));
    each.collect()
}

#[expect(clippy::disallowed_methods, reason = "the pace of a measurement")]
fn wait(pause: Duration) {
    std::thread::sleep(pause);
}

/// What workers share.
#[derive(Debug)]
struct Pieces {
    cgroups: Cgroups,
    proc: OwnedFd,
    init: OwnedFd,
    null: OwnedFd,
}

/// Jobs per second of all workers together; with `included` they make their namespaces while the clock runs.
fn sustained(pieces: &Pieces, args: &Args, included: bool) -> Result<f64> {
    let (mut ready, ready_end) = io::pipe()?;
    let (go, go_end) = io::pipe()?;
    let mut children = Vec::new();
    for worker in 0..args.workers {
        match sys::fork()? {
            Some(pid) => children.push(pid),
            None => {
                let first = (worker as u64 + 1) * 1_000 + if included { 500 } else { 0 };
                let ends = (ready_end, go, go_end);
                sys::end(i32::from(
                    work(pieces, args.each, first, included, ends).is_err(),
                ));
            }
        }
    }
    drop((ready_end, go));
    ready
        .read_exact(&mut vec![0; args.workers])
        .context("workers that are ready")?;
    let begin = sys::now_ns();
    drop(go_end);
    for pid in children {
        let status = waitpid(Pid::from_raw(pid), None)?;
        ensure!(
            matches!(status, WaitStatus::Exited(_, 0)),
            "a worker: {status:?}"
        );
    }
    let jobs = u32::try_from(args.workers * args.each)?;
    Ok(f64::from(jobs) / Duration::from_nanos(sys::now_ns() - begin).as_secs_f64())
}

/// One worker: fills its pool, says so, waits until all may begin (the end of a pipe), and runs.
fn work(
    pieces: &Pieces,
    each: usize,
    first: u64,
    included: bool,
    (mut ready, mut go, go_end): (io::PipeWriter, io::PipeReader, io::PipeWriter),
) -> Result<()> {
    drop(go_end);
    let mut maker = Maker::new(pieces.proc.try_clone()?, first);
    let mut bench = Bench::new(
        pieces.cgroups.try_clone()?,
        pieces.init.try_clone()?,
        pieces.null.try_clone()?,
    )?;
    let pool = make(&mut bench, &mut maker, if included { 0 } else { each })?;
    ready.write_all(b"r")?;
    ensure!(go.read(&mut [0])? == 0, "go is the end of the pipe");
    for ready in pool {
        bench.run(ready)?;
    }
    if included {
        for _ in 0..each {
            let ready = (bench.make_seat()?, maker.make_one()?);
            bench.run(ready)?;
        }
    }
    Ok(())
}

/// The program in a memfd that may be executed and not read.
fn init_image() -> Result<OwnedFd> {
    let image = memfd_create("init", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(image.try_clone()?);
    file.write_all(PROGRAM)?;
    drop(file);
    fchmod(image.as_fd(), Mode::from_bits_truncate(0o111))?;
    // A file that is open for writing cannot be executed, so it is opened again for reading.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&image));
    directory_or_file(&path, OFlag::O_RDONLY)
}

fn directory_or_file(path: impl AsRef<Path>, flags: OFlag) -> Result<OwnedFd> {
    let path = path.as_ref();
    open(path, flags | OFlag::O_CLOEXEC, Mode::empty())
        .with_context(|| format!("open {}", path.display()))
}

#[expect(clippy::disallowed_methods, reason = "a tool without a shard")]
fn write_command(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, PROGRAM).with_context(|| format!("write {}", path.display()))?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// Percentiles in microseconds, and with `samples` every value.
fn summary(times: &[Times], samples: bool) -> Value {
    let executed = times.iter().map(|t| t.executed).collect();
    let reaped = times.iter().map(|t| t.reaped).collect();
    json!({ "count": times.len(), "executed": percentiles(executed, samples), "reaped": percentiles(reaped, samples) })
}

fn percentiles(mut ns: Vec<u64>, samples: bool) -> Value {
    ns.sort_unstable();
    let micros = |ns: u64| Duration::from_nanos(ns).as_secs_f64() * 1e6;
    let at = |percent: usize| {
        ns.get((ns.len() * percent / 100).min(ns.len().saturating_sub(1)))
            .copied()
    };
    let mut value =
        json!({ "p50": at(50).map(micros), "p90": at(90).map(micros), "p99": at(99).map(micros) });
    if samples {
        value["samples"] = ns.iter().map(|ns| micros(*ns)).collect();
    }
    value
}
