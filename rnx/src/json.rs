//! The JSON that `--json` prints. Names are snake_case, and stable: they are added to, never renamed.
//!
//! A job:
//! ```text
//! id, uuid, job_uuid   the same id three times, for scripts written for the original system
//! name                 text or null
//! owner                common name of the certificate that submitted it
//! status               SCHEDULED … CANCELED
//! command              first line of the command
//! labels               {key: value}
//! workdir, user        directory; {uid, gid}
//! work                 {kind: "memory" | "disk", bytes}
//! volumes              [{name, read_only}], what it has below /volumes
//! timeout_seconds      or null; grace_seconds
//! limits               {cpu_percent, memory_bytes, io_bytes_per_second, pids, cores: [number]}, each null when
//!                      there is no such limit
//! caveats              [{limit, enforced: "partly" | "no", note}]: limits that do not hold in every case here
//! created_time, start_time, end_time     RFC 3339 in UTC, or null
//! transitions          [{status, time, monotonic_ns}], oldest first
//! schedule             null for a job that runs at once, else {kind: "once", time}, {kind: "every", seconds} or
//!                      {kind: "cron", expression, zone}
//! schedule_id          the schedule that this is a repetition of, or null
//! next_run_time        while SCHEDULED, RFC 3339 in UTC, else null; next_run_times: some of them, `job status` only
//!                      has more than the first; last_run_time: when its schedule last made it run, or null
//! priority             −100 to 100; waits_for: while QUEUED, or frozen because the host's disk is full, what for in
//!                      one line, else null
//! exit_code            of the command, or null (also in outcome)
//! outcome              null until the job has ended: {reason, exit_code, signal, signal_name, by, step, errno,
//!                      cpu_seconds: {user, system}, memory_peak_bytes, io_read_bytes, io_write_bytes,
//!                      pids_peak, pids_refused, oom_kills, throttled_seconds, wall_seconds, queued_seconds,
//!                      start_micros}; what the host does not count is null
//! log                  {stdout_bytes, stderr_bytes, stored_bytes, dropped_bytes, produced_bytes}
//! args, env            only `job status`: list of strings; {NAME: value}, secrets as "***"
//! ```
//! A line of `job metrics`: time, and of the time until then cpu_seconds, throttled_seconds, memory_bytes,
//! memory_peak_bytes, oom_kills, io_read_bytes, io_write_bytes, pids, pids_peak, pids_refused as in an outcome;
//! pressure is null or {cpu, memory, io}, each {avg10_percent, total_seconds}. `doctor` prints a list of
//! {promise, verdict: "enforced" | "partly" | "not_enforced", mechanism, detail, remedy}. `job delete` and
//! `job delete-all` print {deleted_count, skipped_count}, the former also deleted: the ids as they were given.
//!
//! A volume is {name, size: as it was typed, size_bytes, type: "filesystem" | "memory", created, used_bytes: or null,
//! jobs: [id] that have not ended, damage: null or what is wrong}; `volume list` prints {volumes: [volume]}, `volume
//! remove` {removed: [name]}, `volume import` {name, entries, bytes, skipped: [path]}.
//!
//! `reason` is one of exited, signaled, out_of_memory, timeout, stopped, canceled, log_limit, start_failed,
//! command_not_found, command_not_executable, host_lost, daemon_down. Bytes that are not UTF-8 are shown as
//! `{"base64": "…"}`.

use base64::{Engine, engine::general_purpose::STANDARD};
use rnx::{
    Deleted, Imported, Output, Status, Stream,
    proto::{
        Caveat, Finding, Job, Limits, Node, Outcome, Reason, Sample, Schedule, Stall, Usage,
        Volume, Work,
    },
};
use serde_json::{Map, Value, json};

use crate::text::{self, Times};

/// One volume.
pub(crate) fn volume(volume: &Volume) -> Value {
    let jobs: Vec<_> = volume.jobs.iter().map(|id| text::id(*id)).collect();
    json!({
        "name": volume.name,
        "size": volume.size,
        "size_bytes": volume.size_bytes,
        "type": text::volume_kind(volume.kind),
        "created": text::utc_time(volume.created_ns.into()),
        "used_bytes": volume.used_bytes,
        "jobs": jobs,
        "damage": volume.damage,
    })
}

/// What was written into a volume.
pub(crate) fn imported(name: &str, imported: &Imported) -> Value {
    let skipped: Vec<_> = imported
        .skipped
        .iter()
        .map(|path| path.to_string_lossy())
        .collect();
    json!({
        "name": name,
        "entries": imported.entries,
        "bytes": imported.bytes,
        "skipped": skipped,
    })
}

/// One job.
pub(crate) fn job(job: &Job) -> Value {
    let id = text::id(job.id);
    let times = Times::of(job);
    let time = |ns: Option<i64>| ns.map(|ns| text::utc_time(ns.into()));
    let labels: Map<_, _> = job
        .labels
        .iter()
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    let transitions: Vec<_> = job
        .transitions
        .iter()
        .map(|t| json!({"status": text::state(t.state), "time": text::utc_time(t.wall_ns.into()), "monotonic_ns": t.mono_ns}))
        .collect();
    let stored = job.log.stdout_bytes.saturating_add(job.log.stderr_bytes);
    json!({
        "id": id,
        "uuid": id,
        "job_uuid": id,
        "name": job.name,
        "owner": job.owner,
        "status": text::state(job.state),
        "command": job.command,
        "labels": labels,
        "workdir": job.workdir,
        "volumes": job.volumes.iter().map(|attached| json!({
            "name": attached.volume,
            "read_only": attached.is_read_only,
        })).collect::<Vec<_>>(),
        "user": {"uid": job.user.0, "gid": job.user.1},
        "work": {"kind": work(job.work), "bytes": job.work_bytes},
        "timeout_seconds": job.timeout_ms.map(|ms| seconds(ms, 1_000)),
        "grace_seconds": seconds(job.grace_ms, 1_000),
        "limits": limits(&job.limits),
        "caveats": job.caveats.iter().map(caveat).collect::<Vec<_>>(),
        "created_time": time(times.created),
        "start_time": time(times.started),
        "end_time": time(times.ended),
        "transitions": transitions,
        "schedule": job.schedule.as_ref().map(schedule),
        "schedule_id": job.schedule_id.map(text::id),
        "next_run_time": time(job.next_runs_ns.first().copied()),
        "next_run_times": job.next_runs_ns.iter().map(|ns| text::utc_time((*ns).into())).collect::<Vec<_>>(),
        "last_run_time": time(job.last_run_ns),
        "priority": job.priority,
        "waits_for": job.waits_for,
        "exit_code": job.outcome.as_ref().and_then(|outcome| outcome.exit_code),
        "outcome": job.outcome.as_ref().map(outcome),
        "log": {
            "stdout_bytes": job.log.stdout_bytes,
            "stderr_bytes": job.log.stderr_bytes,
            "stored_bytes": stored,
            "dropped_bytes": job.log.dropped_bytes,
            "produced_bytes": stored.saturating_add(job.log.dropped_bytes),
        },
    })
}

/// One job with its argument list and environment.
pub(crate) fn status(status: &Status) -> Value {
    let mut value = job(&status.job);
    let variable = |entry: &Vec<u8>| {
        let end = entry
            .iter()
            .position(|byte| *byte == b'=')
            .unwrap_or(entry.len());
        let value = entry.get(end + 1..).unwrap_or_default();
        (
            String::from_utf8_lossy(&entry[..end]).into_owned(),
            string(value),
        )
    };
    value["args"] = status.argv.iter().map(|word| string(word)).collect();
    value["env"] = Value::Object(status.env.iter().map(variable).collect());
    value
}

/// One record of a log; `data` is base64 when the bytes are not UTF-8, and `encoding` then says so.
pub(crate) fn record(output: &Output) -> Value {
    let mut value = json!({
        "offset": output.offset,
        "time": text::utc_time(output.time_ns.into()),
        "stream": match output.stream { Stream::Stdout => "stdout", Stream::Stderr => "stderr" },
    });
    match str::from_utf8(&output.bytes) {
        Ok(text) => value["data"] = text.into(),
        Err(_) => {
            value["data"] = STANDARD.encode(&output.bytes).into();
            value["encoding"] = "base64".into();
        }
    }
    value
}

/// One look at a job.
pub(crate) fn sample(sample: &Sample) -> Value {
    let usage = &sample.usage;
    let stall = |stall: Stall| {
        json!({
            "avg10_percent": seconds(stall.avg10_centi.into(), 100),
            "total_seconds": seconds(stall.total_us, 1_000_000),
        })
    };
    json!({
        "time": text::utc_time(sample.wall_ns.into()),
        "cpu_seconds": cpu_seconds(usage),
        "throttled_seconds": usage.throttled_us.map(|us| seconds(us, 1_000_000)),
        "memory_bytes": usage.memory_bytes,
        "memory_peak_bytes": usage.memory_peak_bytes,
        "oom_kills": usage.oom_kills,
        "io_read_bytes": usage.io_read_bytes,
        "io_write_bytes": usage.io_write_bytes,
        "pids": usage.pids,
        "pids_peak": usage.pids_peak,
        "pids_refused": usage.pids_refused,
        "pressure": sample.pressure.map(|pressure| {
            json!({
                "cpu": stall(pressure.cpu),
                "memory": stall(pressure.memory),
                "io": stall(pressure.io),
            })
        }),
    })
}

/// One promise and what stands behind it.
pub(crate) fn finding(finding: &Finding) -> Value {
    json!({
        "promise": finding.promise,
        "verdict": text::verdict(finding.verdict).replace(' ', "_"),
        "mechanism": finding.mechanism,
        "detail": finding.detail,
        "remedy": finding.remedy,
    })
}

/// What a server is.
pub(crate) fn node(node: &Node) -> Value {
    let (p50, p99, count) = node.start_ns;
    json!({
        "version": node.version,
        "instance": node.instance,
        "hostname": node.hostname,
        "kernel": node.kernel,
        "shards": node.shards,
        "jobs_live": node.jobs_live,
        "you": node.you,
        "role": node.role,
        "work_memory_bytes": node.work_memory_bytes,
        "start": {"p50_ns": p50, "p99_ns": p99, "count": count},
    })
}

/// Why a job ended, as one word.
pub(crate) fn reason(reason: &Reason) -> &'static str {
    match reason {
        Reason::Exited => "exited",
        Reason::Signaled => "signaled",
        Reason::OutOfMemory => "out_of_memory",
        Reason::Timeout => "timeout",
        Reason::Stopped { .. } => "stopped",
        Reason::Canceled => "canceled",
        Reason::LogLimit => "log_limit",
        Reason::StartFailed { .. } => "start_failed",
        Reason::CommandNotFound => "command_not_found",
        Reason::CommandNotExecutable { .. } => "command_not_executable",
        Reason::HostLost => "host_lost",
        Reason::DaemonDown => "daemon_down",
    }
}

/// What `/work` is made of, as one word.
pub(crate) fn work(work: Work) -> &'static str {
    match work {
        Work::Memory => "memory",
        Work::Disk => "disk",
    }
}

/// What became of a deletion, and of which jobs.
pub(crate) fn deleted(deleted: Deleted, ids: Option<&[String]>) -> Value {
    let mut value = json!({
        "deleted_count": deleted.deleted,
        "skipped_count": deleted.skipped,
    });
    if let Some(ids) = ids {
        value["deleted"] = json!(ids);
    }
    value
}

fn schedule(schedule: &Schedule) -> Value {
    match schedule {
        // A server tells the time of a one-shot; this is only for what a client asks.
        Schedule::After { ms } => json!({"kind": "once", "seconds": seconds(*ms, 1_000)}),
        Schedule::At { ns } => json!({"kind": "once", "time": text::utc_time((*ns).into())}),
        Schedule::Every { ms } => json!({"kind": "every", "seconds": seconds(*ms, 1_000)}),
        Schedule::Cron { expression, zone } => {
            json!({"kind": "cron", "expression": expression, "zone": zone})
        }
    }
}

fn limits(limits: &Limits) -> Value {
    json!({
        "cpu_percent": limits.cpu_percent,
        "memory_bytes": limits.memory_bytes,
        "io_bytes_per_second": limits.io_bytes_per_second,
        "pids": limits.pids,
        "cores": limits.cores.as_deref().map(|ranges| {
            ranges.iter().flat_map(|(first, last)| *first..=*last).collect::<Vec<_>>()
        }),
    })
}

fn caveat(caveat: &Caveat) -> Value {
    json!({
        "limit": text::limit(caveat.limit),
        "enforced": if caveat.is_partly { "partly" } else { "no" },
        "note": caveat.note,
    })
}

fn cpu_seconds(usage: &Usage) -> Value {
    json!({
        "user": seconds(usage.cpu_user_us, 1_000_000),
        "system": seconds(usage.cpu_system_us, 1_000_000),
    })
}

fn outcome(outcome: &Outcome) -> Value {
    let (mut by, mut step, mut number) = (None, None, None);
    match &outcome.reason {
        Reason::Stopped { by: who } => by = Some(who),
        Reason::StartFailed { step: which, errno } => (step, number) = (Some(which), Some(*errno)),
        Reason::CommandNotExecutable { errno } => number = Some(*errno),
        Reason::Exited
        | Reason::Signaled
        | Reason::OutOfMemory
        | Reason::Timeout
        | Reason::Canceled
        | Reason::LogLimit
        | Reason::CommandNotFound
        | Reason::HostLost
        | Reason::DaemonDown => {}
    }
    let usage = &outcome.usage;
    json!({
        "reason": reason(&outcome.reason),
        "exit_code": outcome.exit_code,
        "signal": outcome.signal,
        "signal_name": outcome.signal.map(crate::signal::name),
        "by": by,
        "step": step,
        "errno": number.filter(|errno| *errno != 0),
        "cpu_seconds": cpu_seconds(usage),
        "memory_peak_bytes": usage.memory_peak_bytes,
        "io_read_bytes": usage.io_read_bytes,
        "io_write_bytes": usage.io_write_bytes,
        "pids_peak": usage.pids_peak,
        "pids_refused": usage.pids_refused,
        "oom_kills": usage.oom_kills,
        "throttled_seconds": usage.throttled_us.map(|us| seconds(us, 1_000_000)),
        "wall_seconds": seconds(outcome.wall_ms, 1_000),
        "queued_seconds": seconds(outcome.queued_ms, 1_000),
        "start_micros": outcome.start_micros,
    })
}

#[expect(
    clippy::cast_precision_loss,
    reason = "times below 285 years are exact to the microsecond"
)]
fn seconds(count: u64, per_second: u64) -> f64 {
    count as f64 / per_second as f64
}

/// Bytes as a string, or as base64 when they are none.
fn string(bytes: &[u8]) -> Value {
    match str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({"base64": STANDARD.encode(bytes)}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_record_that_is_not_text_is_base64_and_says_so() {
        let record = |bytes: &'static [u8]| {
            let bytes = Bytes::from_static(bytes);
            record(&Output {
                stream: Stream::Stderr,
                offset: 7,
                time_ns: 0,
                bytes,
                left: 0,
            })
        };
        let time = "1970-01-01T00:00:00.000000000Z";
        let expected = json!({"offset": 7, "time": time, "stream": "stderr", "data": "ä\u{1b}\n"});
        assert_eq!(record("ä\u{1b}\n".as_bytes()), expected);
        let expected = json!({"offset": 7, "time": time, "stream": "stderr", "data": "/wo=", "encoding": "base64"});
        assert_eq!(record(b"\xff\n"), expected);
    }
}
