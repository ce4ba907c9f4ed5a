//! Any job that there can be, for the tests of this room.

use std::sync::Arc;

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::job::{JobId, JobView, LogTotals, Spec};

fn transition() -> impl Strategy<Value = Transition> {
    (state(), any::<i64>(), any::<u64>()).prop_map(|(state, wall_ns, mono_ns)| Transition {
        state,
        wall_ns,
        mono_ns,
    })
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        Just(State::Scheduled),
        Just(State::Queued),
        Just(State::Initializing),
        Just(State::Running),
        Just(State::Stopping),
        Just(State::Completed),
        Just(State::Failed),
        Just(State::Stopped),
        Just(State::Timeout),
        Just(State::Canceled),
    ]
}

fn reason() -> impl Strategy<Value = Reason> {
    prop_oneof![
        Just(Reason::Exited),
        Just(Reason::Signaled),
        Just(Reason::OutOfMemory),
        Just(Reason::Timeout),
        any::<String>().prop_map(|by| Reason::Stopped { by }),
        Just(Reason::Canceled),
        Just(Reason::LogLimit),
        (any::<String>(), any::<i32>())
            .prop_map(|(step, errno)| Reason::StartFailed { step, errno }),
        Just(Reason::CommandNotFound),
        any::<i32>().prop_map(|errno| Reason::CommandNotExecutable { errno }),
        Just(Reason::HostLost),
        Just(Reason::DaemonDown),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    (
        reason(),
        any::<Option<i32>>(),
        any::<Option<i32>>(),
        usage(),
        any::<(u64, u64)>(),
        any::<Option<u64>>(),
    )
        .prop_map(
            |(reason, exit_code, signal, usage, (wall_ms, queued_ms), start_micros)| Outcome {
                reason,
                exit_code,
                signal,
                usage,
                wall_ms,
                queued_ms,
                start_micros,
            },
        )
}

fn usage() -> impl Strategy<Value = Usage> {
    (any::<(u64, u64)>(), any::<[Option<u64>; 9]>()).prop_map(
        |((cpu_user_us, cpu_system_us), counts)| {
            let [
                throttled_us,
                memory_bytes,
                memory_peak_bytes,
                oom_kills,
                io_read_bytes,
                io_write_bytes,
                pids,
                pids_peak,
                pids_refused,
            ] = counts;
            Usage {
                cpu_user_us,
                cpu_system_us,
                throttled_us,
                memory_bytes,
                memory_peak_bytes,
                oom_kills,
                io_read_bytes,
                io_write_bytes,
                pids,
                pids_peak,
                pids_refused,
            }
        },
    )
}

fn job_limits() -> impl Strategy<Value = Limits> {
    let cores = option::of(vec(any::<u32>(), 1..5));
    (any::<Option<u32>>(), any::<[Option<u64>; 3]>(), cores).prop_map(
        |(cpu_percent, [memory_bytes, io_bytes_per_second, pids], cores)| Limits {
            cpu_percent,
            memory_bytes,
            io_bytes_per_second,
            pids,
            cores,
        },
    )
}

fn caveat() -> impl Strategy<Value = Caveat> {
    let limit = prop_oneof![
        Just(LimitKind::Cpu),
        Just(LimitKind::Memory),
        Just(LimitKind::Io),
        Just(LimitKind::Pids),
        Just(LimitKind::Cores),
    ];
    (limit, any::<bool>(), any::<String>()).prop_map(|(limit, is_partly, note)| Caveat {
        limit,
        is_partly,
        note,
    })
}

/// Text and bytes that are none, in equal parts.
fn bytes() -> impl Strategy<Value = ByteString> {
    prop_oneof![
        any::<String>().prop_map(String::into_bytes),
        vec(any::<u8>(), 0..20)
    ]
}

fn spec() -> impl Strategy<Value = Spec> {
    let env =
        (any::<String>(), bytes(), any::<bool>()).prop_map(|(name, value, is_secret)| EnvEntry {
            name,
            value,
            is_secret,
        });
    let words = (
        any::<Option<String>>(),
        vec(any::<(String, String)>(), 0..3),
        vec(bytes(), 1..4),
        vec(env, 0..4),
    );
    let numbers = (
        any::<(u32, u32)>(),
        any::<u64>(),
        option::of(any::<u64>()),
        any::<u64>(),
        any::<Option<u64>>(),
    );
    let rest = (
        option::of(schedule()),
        any::<i32>(),
        vec(attachment(), 0..3),
    );
    (words, bytes(), numbers, job_limits(), rest).prop_map(
        |(
            (name, labels, argv, env),
            workdir,
            ((uid, gid), work_bytes, timeout, grace, uploads),
            limits,
            (schedule, priority, volumes),
        )| Spec {
            name,
            labels,
            argv,
            env,
            workdir,
            user: User { uid, gid },
            work_bytes,
            volumes,
            limits,
            timeout: timeout.map(Duration::from_nanos),
            grace: Duration::from_nanos(grace),
            uploads,
            schedule,
            priority,
        },
    )
}

fn attachment() -> impl Strategy<Value = Attachment> {
    ("[A-Za-z][A-Za-z0-9_-]{0,62}", any::<bool>()).prop_map(|(name, is_read_only)| Attachment {
        volume: VolumeName::parse(&name).expect("the pattern is that of names"),
        is_read_only,
    })
}

fn schedule() -> impl Strategy<Value = Schedule> {
    prop_oneof![
        any::<i64>().prop_map(|at_ns| Schedule::Once { at_ns }),
        any::<(u64, i64)>().prop_map(|(ns, from_ns)| Schedule::Every {
            every: Duration::from_nanos(ns),
            from_ns,
        }),
        any::<(String, String)>()
            .prop_map(|(expression, zone)| Schedule::Cron { expression, zone }),
    ]
}

/// Any job that has ended.
pub(in crate::store) fn ended_job() -> impl Strategy<Value = JobView> {
    let log = any::<(u64, u64, u64)>().prop_map(|(stdout_bytes, stderr_bytes, dropped_bytes)| {
        LogTotals {
            stdout_bytes,
            stderr_bytes,
            dropped_bytes,
        }
    });
    let work = prop_oneof![Just(WorkKind::Memory), Just(WorkKind::Disk)];
    let made = (spec(), work, vec(caveat(), 0..3));
    (
        any::<[u8; 16]>(),
        any::<String>(),
        state(),
        made,
        vec(transition(), 1..6),
        outcome(),
        log,
        any::<(Option<[u8; 16]>, Option<i64>, Option<i64>)>(),
    )
        .prop_map(
            |(id, owner, state, (spec, work, caveats), transitions, outcome, log, runs)| JobView {
                id: JobId::from_bytes(id),
                owner,
                state,
                spec: Arc::new(spec),
                work,
                caveats,
                transitions,
                ending: None,
                outcome: Some(outcome),
                log,
                schedule_id: runs.0.map(JobId::from_bytes),
                next_run_ns: None,
                last_run_ns: runs.1,
                waits_for: None,
            },
        )
}

/// What a reader gets of a job: no secret.
pub(in crate::store) fn without_secrets(mut view: JobView) -> JobView {
    let spec = Arc::make_mut(&mut view.spec);
    for entry in spec.env.iter_mut().filter(|entry| entry.is_secret) {
        entry.value = SECRET.to_vec();
    }
    view
}
