//! What this host keeps of the promises: each is tried in a job that is thrown away.
//!
//! A trial is an ordinary job, submitted as everybody else's, that does what the promise says it cannot. What a
//! finding says was measured a moment ago on the daemon that answers; where a mechanism is missing, the job
//! would be refused, and the reason stands in its place. Trials are labelled, so that a list shows what they are.

mod promise;
mod volumes;

use std::time::Duration;

use self::promise::Facts;
use crate::{
    cgroup::Enforcement,
    job::{
        Finding, JobView, LimitKind, Limits, LogQuery, Outcome, Peer, Reason, Refusal, Spec, State,
        Streams, User, Verdict,
    },
    rt,
    shard::Handle,
};

/// One limit and the job that wants more.
struct Trial {
    limit: LimitKind,
    promise: &'static str,
    script: &'static str,
    limits: Limits,
    /// Size of `/work`; more than fits into memory lies on disk.
    work_bytes: u64,
    timeout: Duration,
    /// What a job that was held shows: what to say of it, or what is wrong.
    judge: fn(&Outcome, &str) -> Result<String, String>,
}

const MIB: u64 = 1 << 20;

/// Tries every promise, as `peer`. Takes a few seconds.
///
/// # Errors
/// The refusal of a job that should have been taken, when the daemon takes none.
pub async fn examine(handle: &Handle, peer: &Peer) -> Result<Vec<Finding>, Refusal> {
    let mut running = Vec::new();
    for trial in trials(handle) {
        let (handle, peer) = (handle.clone(), peer.clone());
        running.push(rt::spawn(
            async move { limit(&handle, &peer, &trial).await },
        ));
    }
    let facts = {
        let (handle, peer) = (handle.clone(), peer.clone());
        rt::spawn(async move { facts(&handle, &peer).await })
    };
    let timeout = {
        let (handle, peer) = (handle.clone(), peer.clone());
        rt::spawn(async move { timeout(&handle, &peer).await })
    };
    let volumes = {
        let (handle, peer) = (handle.clone(), peer.clone());
        rt::spawn(async move { volumes::examine(&handle, &peer).await })
    };
    let broken = |panicked| Refusal::new(crate::job::RefusalCode::Failed, format!("{panicked}"));
    let mut findings = Vec::new();
    for trial in running {
        findings.push(trial.await.map_err(broken)??);
    }
    findings.push(timeout.await.map_err(broken)??);
    findings.extend(volumes.await.map_err(broken)??);
    findings.extend(facts.await.map_err(broken)??);
    Ok(findings)
}

fn trials(handle: &Handle) -> Vec<Trial> {
    let settings = handle.settings();
    let last = settings.cores.last().copied().unwrap_or(0);
    vec![
        Trial {
            limit: LimitKind::Cpu,
            promise: "max-cpu",
            script: "while :; do :; done",
            limits: Limits {
                cpu_percent: Some(20),
                ..Limits::default()
            },
            work_bytes: MIB,
            timeout: Duration::from_secs(1),
            judge: |outcome, _| {
                let used = (outcome.usage.cpu_user_us + outcome.usage.cpu_system_us) / 1_000;
                let said = format!("{used} ms of CPU time in {} ms at 20 %", outcome.wall_ms);
                // A fifth, and one period more that may have begun.
                if used <= outcome.wall_ms / 5 + 150 {
                    Ok(said)
                } else {
                    Err(said)
                }
            },
        },
        Trial {
            limit: LimitKind::Memory,
            promise: "max-memory",
            // Without a newline tail keeps everything.
            script: "exec tail /dev/zero",
            limits: Limits {
                memory_bytes: Some(16 * MIB),
                ..Limits::default()
            },
            work_bytes: MIB,
            timeout: Duration::from_secs(20),
            judge: |outcome, _| {
                if outcome.reason == Reason::OutOfMemory {
                    Ok("a job of 16 MiB that wanted more was ended".to_owned())
                } else {
                    let reason = &outcome.reason;
                    Err(format!(
                        "a job of 16 MiB that wanted more ended as {reason:?}"
                    ))
                }
            },
        },
        Trial {
            limit: LimitKind::Io,
            promise: "max-iobps",
            script: "exec dd if=/dev/zero of=/work/trial bs=64k count=32 conv=fdatasync",
            limits: Limits {
                io_bytes_per_second: Some(MIB),
                ..Limits::default()
            },
            work_bytes: settings.work_memory_bytes + 16 * MIB,
            timeout: Duration::from_secs(30),
            judge: |outcome, _| {
                let said = format!("2 MiB synced in {} ms at 1 MiB/s", outcome.wall_ms);
                let held = outcome.reason == Reason::Exited && outcome.wall_ms >= 1_000;
                if held { Ok(said) } else { Err(said) }
            },
        },
        Trial {
            limit: LimitKind::Pids,
            promise: "max-pids",
            script: "i=0; while [ $i -lt 20 ]; do sleep 1 & i=$((i+1)); done; wait",
            limits: Limits {
                pids: Some(10),
                ..Limits::default()
            },
            work_bytes: MIB,
            timeout: Duration::from_secs(5),
            judge: |outcome, _| match (outcome.usage.pids_peak, outcome.usage.pids_refused) {
                (Some(peak), Some(1..)) if peak > 10 => {
                    Err(format!("{peak} processes of 10 lived"))
                }
                (_, Some(refused @ 1..)) => Ok(format!("{refused} of a job of 10 were refused")),
                (..) => Err("a job of 10 had more than 20".to_owned()),
            },
        },
        Trial {
            limit: LimitKind::Cores,
            promise: "cpu-cores",
            script: "grep Cpus_allowed_list /proc/self/status",
            limits: Limits {
                cores: Some(vec![last]),
                ..Limits::default()
            },
            work_bytes: MIB,
            timeout: Duration::from_secs(5),
            judge: |_, output| {
                let list = output.split_whitespace().last().unwrap_or("nothing");
                let said = format!("a job of one core sees {list}");
                if list.parse::<u32>().is_ok() {
                    Ok(said)
                } else {
                    Err(said)
                }
            },
        },
    ]
}

/// Tries one limit, unless nothing stands behind it.
async fn limit(handle: &Handle, peer: &Peer, trial: &Trial) -> Result<Finding, Refusal> {
    let (mechanism, note) = match handle.enforcement(trial.limit) {
        Enforcement::Full { mechanism } => (mechanism, None),
        Enforcement::Partly { mechanism, note } => (mechanism, Some(note)),
        Enforcement::Missing { reason } => {
            return Ok(Finding {
                promise: trial.promise.to_owned(),
                verdict: Verdict::NotEnforced,
                mechanism: "none".to_owned(),
                detail: reason,
                remedy: Some(
                    "give the daemon a cgroup with this controller, as a systemd unit with Delegate=yes"
                        .to_owned(),
                ),
            });
        }
    };
    let spec = spec(
        trial.script,
        trial.limits.clone(),
        trial.work_bytes,
        trial.timeout,
    );
    let (view, output) = run(handle, peer, spec).await?;
    let judged = match &view.outcome {
        Some(outcome) => (trial.judge)(outcome, &output),
        None => Err("the job has no outcome".to_owned()),
    };
    let (verdict, detail) = match (judged, note) {
        (Ok(said), None) => (Verdict::Enforced, said),
        (Ok(said), Some(note)) => (Verdict::Partly, format!("{said}; {note}")),
        (Err(said), _) => (Verdict::NotEnforced, said),
    };
    Ok(Finding {
        promise: trial.promise.to_owned(),
        remedy: (verdict == Verdict::NotEnforced)
            .then(|| format!("look at the files of {mechanism} while a job with this limit runs")),
        verdict,
        mechanism,
        detail,
    })
}

/// A job whose time is over is gone with all that it started.
async fn timeout(handle: &Handle, peer: &Peer) -> Result<Finding, Refusal> {
    let script = "(setsid sleep 60 &); trap '' TERM; sleep 60; sleep 60";
    let mut spec = spec(script, Limits::default(), MIB, Duration::from_millis(300));
    spec.grace = Duration::from_millis(100);
    let (view, _) = run(handle, peer, spec).await?;
    let holds = view.state == State::Timeout;
    Ok(Finding {
        promise: "timeout".to_owned(),
        verdict: if holds {
            Verdict::Enforced
        } else {
            Verdict::NotEnforced
        },
        mechanism: "cgroup.kill".to_owned(),
        detail: format!(
            "a job of 300 ms that ignores SIGTERM ended as {:?}",
            view.state
        ),
        remedy: (!holds).then(|| "see the daemon's log".to_owned()),
    })
}

/// What a job sees of itself, judged promise by promise.
async fn facts(handle: &Handle, peer: &Peer) -> Result<Vec<Finding>, Refusal> {
    let spec = spec(
        promise::SCRIPT,
        Limits::default(),
        MIB,
        Duration::from_secs(20),
    );
    let (_, output) = run(handle, peer, spec).await?;
    Ok(promise::judge(
        &Facts::parse(&output),
        &Facts::of_this_process(),
    ))
}

fn spec(script: &str, limits: Limits, work_bytes: u64, timeout: Duration) -> Spec {
    Spec {
        name: Some("doctor".to_owned()),
        labels: vec![("joblet".to_owned(), "doctor".to_owned())],
        argv: [b"sh".as_slice(), b"-c", script.as_bytes()]
            .map(<[u8]>::to_vec)
            .into(),
        env: Vec::new(),
        workdir: b"/work".to_vec(),
        user: User {
            uid: 1_000,
            gid: 1_000,
        },
        work_bytes,
        volumes: Vec::new(),
        limits,
        timeout: Some(timeout),
        grace: Duration::ZERO,
        uploads: None,
        schedule: None,
        priority: 0,
    }
}

/// Runs a job to its end; gives what it wrote to standard output.
async fn run(handle: &Handle, peer: &Peer, spec: Spec) -> Result<(JobView, String), Refusal> {
    let id = handle.submit(peer, spec, None, rt::now()).await?.id();
    let view = handle.ended(id).await?;
    let query = LogQuery {
        streams: Streams::Stdout,
        follow: false,
        offset: 0,
        tail_lines: None,
        since_ns: None,
    };
    let mut output = handle.follow(id, query).await?;
    let mut text = Vec::new();
    while let Some(chunk) = output.next().await? {
        text.extend_from_slice(&chunk.bytes);
    }
    Ok((view, String::from_utf8_lossy(&text).into_owned()))
}
