//! Jobs and the node as they are shown to a peer.

use proto_rkyv::{Job, Node};

use super::{cut, limit::ranges_of, schedule::schedule_message, volume::attachment};
use crate::{
    job::{
        Caveat, JobId, JobView, LimitKind, Limits, NodeView, Outcome, Peer, Reason, Sample, Spec,
        State, Usage, WorkKind,
    },
    limits,
    shard::Settings,
};

/// Width of a command in a table, characters.
const COMMAND_CHARS_MAX: usize = 80;
const HIDDEN: &[u8] = b"***";

/// Everything about one job but its argument list and environment.
pub(in crate::front) fn job(view: &JobView) -> Job {
    let spec = &*view.spec;
    Job {
        id: view.id.to_bytes(),
        name: spec.name.clone(),
        owner: view.owner.clone(),
        state: state(view.state),
        command: command_line(spec),
        labels: spec.labels.clone(),
        workdir: String::from_utf8_lossy(&spec.workdir).into_owned(),
        user: (spec.user.uid, spec.user.gid),
        work_bytes: spec.work_bytes,
        work: match view.work {
            WorkKind::Memory => proto_rkyv::Work::Memory,
            WorkKind::Disk => proto_rkyv::Work::Disk,
        },
        volumes: spec.volumes.iter().map(attachment).collect(),
        timeout_ms: spec.timeout.map(milliseconds),
        grace_ms: milliseconds(spec.grace),
        limits: job_limits(&spec.limits),
        caveats: view.caveats.iter().map(caveat).collect(),
        transitions: view
            .transitions
            .iter()
            .map(|t| proto_rkyv::Transition {
                state: state(t.state),
                wall_ns: t.wall_ns,
                mono_ns: t.mono_ns,
            })
            .collect(),
        outcome: view.outcome.as_ref().map(outcome),
        log: proto_rkyv::LogTotals {
            stdout_bytes: view.log.stdout_bytes,
            stderr_bytes: view.log.stderr_bytes,
            dropped_bytes: view.log.dropped_bytes,
        },
        schedule: spec.schedule.as_ref().map(schedule_message),
        schedule_id: view.schedule_id.map(JobId::to_bytes),
        next_runs_ns: view.next_run_ns.into_iter().collect(),
        last_run_ns: view.last_run_ns,
        priority: spec.priority,
        waits_for: view.waits_for.as_ref().map(|what| {
            let mut what = what.clone();
            cut(&mut what, limits::WAITS_FOR_BYTES_MAX);
            what
        }),
    }
}

/// As [`job`], with several runs to come: for one job that takes a look at the calendar, for a list it would be
/// too many.
pub(in crate::front) fn job_in_full(view: &JobView) -> Job {
    let mut shown = job(view);
    if let (Some(schedule), Some(next)) = (&view.spec.schedule, view.next_run_ns) {
        shown.next_runs_ns = schedule.runs_from(next, limits::NEXT_RUNS_SHOWN);
    }
    shown
}

/// First line of a command, for tables.
fn command_line(spec: &Spec) -> String {
    let mut line = String::new();
    for (index, argument) in spec.argv.iter().enumerate() {
        if index > 0 {
            line.push(' ');
        }
        // A character has at most four bytes, so this much is always enough, however long the argument is.
        let start = &argument[..argument.len().min(4 * COMMAND_CHARS_MAX)];
        line.push_str(&String::from_utf8_lossy(start));
        if line.len() > 4 * COMMAND_CHARS_MAX || start.contains(&b'\n') {
            break;
        }
    }
    let first = line.split('\n').next().unwrap_or_default();
    first
        .chars()
        .filter(|c| !c.is_control())
        .take(COMMAND_CHARS_MAX)
        .collect()
}

/// About how many bytes argument list and environment have.
pub(in crate::front) fn spec_bytes(spec: &Spec) -> usize {
    let env = spec
        .env
        .iter()
        .map(|entry| entry.name.len() + entry.value.len());
    spec.argv.iter().map(Vec::len).chain(env).sum()
}

/// The environment as `NAME=value` entries, values of secrets hidden.
pub(in crate::front) fn environment(spec: &Spec) -> Vec<Vec<u8>> {
    let value = |entry: &crate::job::EnvEntry| {
        if entry.is_secret {
            HIDDEN.to_vec()
        } else {
            entry.value.clone()
        }
    };
    spec.env
        .iter()
        .map(|entry| [entry.name.as_bytes(), b"=", &value(entry)].concat())
        .collect()
}

/// What the server is and how it sees the peer.
pub(in crate::front) fn node(view: NodeView, peer: &Peer, settings: &Settings) -> Node {
    Node {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: view.instance,
        hostname: view.hostname,
        kernel: view.kernel,
        shards: u32::try_from(view.shards).unwrap_or(u32::MAX),
        jobs_live: view.jobs_live,
        you: peer.name.clone(),
        role: peer.role.to_string(),
        work_memory_bytes: settings.work_memory_bytes,
        start_ns: view.start_ns,
    }
}

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn outcome(outcome: &Outcome) -> proto_rkyv::Outcome {
    proto_rkyv::Outcome {
        reason: reason(&outcome.reason),
        exit_code: outcome.exit_code,
        signal: outcome.signal,
        usage: usage(&outcome.usage),
        wall_ms: outcome.wall_ms,
        queued_ms: outcome.queued_ms,
        start_micros: outcome.start_micros,
    }
}

fn job_limits(limits: &Limits) -> proto_rkyv::Limits {
    proto_rkyv::Limits {
        cpu_percent: limits.cpu_percent,
        memory_bytes: limits.memory_bytes,
        io_bytes_per_second: limits.io_bytes_per_second,
        pids: limits.pids,
        cores: limits.cores.as_deref().map(ranges_of),
    }
}

fn caveat(caveat: &Caveat) -> proto_rkyv::Caveat {
    proto_rkyv::Caveat {
        limit: match caveat.limit {
            LimitKind::Cpu => proto_rkyv::LimitKind::Cpu,
            LimitKind::Memory => proto_rkyv::LimitKind::Memory,
            LimitKind::Io => proto_rkyv::LimitKind::Io,
            LimitKind::Pids => proto_rkyv::LimitKind::Pids,
            LimitKind::Cores => proto_rkyv::LimitKind::Cores,
        },
        is_partly: caveat.is_partly,
        note: caveat.note.clone(),
    }
}

/// One look at a job.
pub(in crate::front) fn sample(sample: &Sample) -> proto_rkyv::Sample {
    proto_rkyv::Sample {
        wall_ns: sample.wall_ns,
        usage: usage(&sample.usage),
        pressure: sample.pressure.map(|stalls| {
            let [cpu, memory, io] = stalls.map(|stall| proto_rkyv::Stall {
                avg10_centi: stall.avg10_centi,
                total_us: stall.total_us,
            });
            proto_rkyv::Pressure { cpu, memory, io }
        }),
    }
}

const fn usage(usage: &Usage) -> proto_rkyv::Usage {
    proto_rkyv::Usage {
        cpu_user_us: usage.cpu_user_us,
        cpu_system_us: usage.cpu_system_us,
        throttled_us: usage.throttled_us,
        memory_bytes: usage.memory_bytes,
        memory_peak_bytes: usage.memory_peak_bytes,
        oom_kills: usage.oom_kills,
        io_read_bytes: usage.io_read_bytes,
        io_write_bytes: usage.io_write_bytes,
        pids: usage.pids,
        pids_peak: usage.pids_peak,
        pids_refused: usage.pids_refused,
    }
}

fn reason(reason: &Reason) -> proto_rkyv::Reason {
    match reason {
        Reason::Exited => proto_rkyv::Reason::Exited,
        Reason::Signaled => proto_rkyv::Reason::Signaled,
        Reason::OutOfMemory => proto_rkyv::Reason::OutOfMemory,
        Reason::Timeout => proto_rkyv::Reason::Timeout,
        Reason::Stopped { by } => proto_rkyv::Reason::Stopped { by: by.clone() },
        Reason::Canceled => proto_rkyv::Reason::Canceled,
        Reason::LogLimit => proto_rkyv::Reason::LogLimit,
        Reason::StartFailed { step, errno } => proto_rkyv::Reason::StartFailed {
            step: step.clone(),
            errno: *errno,
        },
        Reason::CommandNotFound => proto_rkyv::Reason::CommandNotFound,
        Reason::CommandNotExecutable { errno } => {
            proto_rkyv::Reason::CommandNotExecutable { errno: *errno }
        }
        Reason::HostLost => proto_rkyv::Reason::HostLost,
        Reason::DaemonDown => proto_rkyv::Reason::DaemonDown,
    }
}

const fn state(state: State) -> proto_rkyv::State {
    match state {
        State::Scheduled => proto_rkyv::State::Scheduled,
        State::Queued => proto_rkyv::State::Queued,
        State::Initializing => proto_rkyv::State::Initializing,
        State::Running => proto_rkyv::State::Running,
        State::Stopping => proto_rkyv::State::Stopping,
        State::Completed => proto_rkyv::State::Completed,
        State::Failed => proto_rkyv::State::Failed,
        State::Stopped => proto_rkyv::State::Stopped,
        State::Timeout => proto_rkyv::State::Timeout,
        State::Canceled => proto_rkyv::State::Canceled,
    }
}

#[cfg(test)]
pub(in crate::front) mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        job::{Attachment, EnvEntry, JobId, LogTotals, Schedule, Transition, User, VolumeName},
        limits,
    };

    /// A job with everything at its largest.
    pub(in crate::front) fn largest_job() -> JobView {
        let label = |n: usize| {
            (
                format!("{n:0>w$}", w = limits::LABEL_KEY_BYTES_MAX),
                "v".repeat(limits::LABEL_VALUE_BYTES_MAX),
            )
        };
        let attachment = |n: usize| Attachment {
            volume: VolumeName::parse(&format!("v{n:0>w$}", w = limits::VOLUME_NAME_MAX - 1))
                .unwrap(),
            is_read_only: n.is_multiple_of(2),
        };
        let spec = Spec {
            name: Some("n".repeat(limits::NAME_BYTES_MAX)),
            labels: (0..limits::LABELS_MAX).map(label).collect(),
            argv: vec![vec![b'x'; 100_000], b"second".to_vec()],
            env: vec![
                EnvEntry {
                    name: "A".into(),
                    value: b"b".to_vec(),
                    is_secret: false,
                },
                EnvEntry {
                    name: "TOKEN".into(),
                    value: b"hunter2".to_vec(),
                    is_secret: true,
                },
            ],
            // Bytes that are no text grow threefold when shown.
            workdir: [b"/".as_slice(), &[0xff; 4_094]].concat(),
            user: User { uid: 1, gid: 2 },
            work_bytes: 3,
            volumes: (0..limits::JOB_VOLUMES_MAX).map(attachment).collect(),
            limits: Limits {
                cpu_percent: Some(1),
                memory_bytes: Some(2),
                io_bytes_per_second: Some(3),
                pids: Some(4),
                // No two beside each other: a range for each.
                cores: Some((0..8_192).step_by(2).collect()),
            },
            timeout: Some(Duration::from_millis(4)),
            grace: Duration::from_millis(5),
            uploads: None,
            schedule: Some(Schedule::Cron {
                expression: "c".repeat(limits::CRON_BYTES_MAX),
                zone: "z".repeat(limits::ZONE_BYTES_MAX),
            }),
            priority: -100,
        };
        let reason = Reason::StartFailed {
            step: "s".repeat(256),
            errno: 2,
        };
        JobView {
            id: JobId::random(),
            owner: "o".repeat(limits::PEER_NAME_BYTES_MAX),
            state: State::Failed,
            spec: Arc::new(spec),
            work: WorkKind::Disk,
            caveats: vec![
                Caveat {
                    limit: LimitKind::Io,
                    is_partly: true,
                    note: "n".repeat(512),
                };
                5
            ],
            transitions: vec![
                Transition {
                    state: State::Running,
                    wall_ns: 1,
                    mono_ns: 2
                };
                8
            ],
            ending: None,
            outcome: Some(Outcome {
                reason,
                exit_code: None,
                signal: None,
                usage: Usage::default(),
                wall_ms: 0,
                queued_ms: 0,
                start_micros: None,
            }),
            log: LogTotals {
                stdout_bytes: 1,
                stderr_bytes: 2,
                dropped_bytes: 3,
            },
            schedule_id: Some(JobId::random()),
            next_run_ns: Some(i64::MAX),
            last_run_ns: Some(i64::MIN),
            waits_for: Some("ü".repeat(limits::WAITS_FOR_BYTES_MAX)),
        }
    }

    #[test]
    fn the_largest_job_fits_a_control_frame() {
        let view = largest_job();
        let shown = job(&view);
        assert_eq!(shown.command, "x".repeat(80));
        assert_eq!(shown.grace_ms, 5);
        assert!(proto_rkyv::encode(&proto_rkyv::Reply::Status(Box::new(shown))).is_ok());
    }

    #[test]
    fn what_a_job_waits_for_is_cut_to_a_line() {
        let waits_for = job(&largest_job()).waits_for.unwrap();
        assert!(waits_for.len() <= limits::WAITS_FOR_BYTES_MAX && waits_for.ends_with('…'));
    }

    #[test]
    fn several_runs_of_a_schedule_are_shown_of_one_job_and_the_next_in_a_list() {
        let check = |schedule, all: &[i64]| {
            let mut view = largest_job();
            view.spec = Arc::new(Spec {
                schedule,
                ..(*view.spec).clone()
            });
            view.next_run_ns = all.first().copied();
            assert_eq!(job_in_full(&view).next_runs_ns, all);
            let first: Vec<_> = all.iter().take(1).copied().collect();
            assert_eq!(job(&view).next_runs_ns, first);
        };
        let every = Schedule::Every {
            every: Duration::from_nanos(5),
            from_ns: 0,
        };
        check(Some(every), &[10, 15, 20, 25, 30]);
        check(Some(Schedule::Once { at_ns: 7 }), &[7]);
        check(Some(Schedule::Once { at_ns: 7 }), &[]);
        check(None, &[]);
    }

    #[test]
    fn a_command_is_shown_as_its_first_line() {
        let check = |argv: &[&[u8]], expected: &str| {
            let spec = Spec {
                argv: argv.iter().map(|a| a.to_vec()).collect(),
                ..(*largest_job().spec).clone()
            };
            assert_eq!(command_line(&spec), expected);
        };
        check(&[b"sh", b"-c", b"echo a\necho b", b"c"], "sh -c echo a");
        check(&[b"a\x1b[31m", b"\xff"], "a[31m \u{fffd}");
        check(&[b"true"], "true");
    }

    #[test]
    fn secrets_are_never_shown() {
        assert_eq!(
            environment(&largest_job().spec),
            [b"A=b".to_vec(), b"TOKEN=***".to_vec()]
        );
    }
}
