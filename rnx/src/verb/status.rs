//! `rnx job status ID`: everything about one job, in sections.

use rnx::{
    Status,
    proto::{Job, Limits, Outcome, Usage},
};

use super::{Session, page::Page};
use crate::{
    exit::{self, Failure, code},
    flags::JobId,
    json, schedule,
    text::{self, Times},
};

pub(crate) async fn status(job: &JobId, session: &Session) -> Result<u8, Failure> {
    let client = session.connect().await?;
    let status = client.status(&job.id).await;
    client.close().await;
    let status = status?;
    if session.out.json {
        session.out.json(&json::status(&status))?;
    } else {
        session
            .out
            .data(sections(&status, text::now_ns()).as_bytes())?;
    }
    Ok(code::DONE)
}

fn sections(status: &Status, now_ns: i64) -> String {
    let (job, mut page) = (&status.job, Page::default());
    page.section("Job");
    page.line("ID", &text::id(job.id));
    page.line("Name", job.name.as_deref().unwrap_or("-"));
    page.line("Owner", &job.owner);
    page.line("Status", text::state(job.state));
    if let Some(what) = &job.waits_for {
        page.line("Waits for", what);
    }
    page.line("Priority", &job.priority.to_string());
    for (key, value) in &job.labels {
        page.line("Label", &format!("{key}={value}"));
    }
    when(job, &mut page);
    page.section("Command");
    page.line("Command", &command(&status.argv));
    page.line("Directory", &job.workdir);
    page.line("User", &format!("{}:{}", job.user.0, job.user.1));
    for attached in &job.volumes {
        let path = text::volume_path(&attached.volume);
        let note = if attached.is_read_only {
            " (read-only)"
        } else {
            ""
        };
        page.line("Volume", &format!("{path}{note}"));
    }
    page.section("Limits");
    limits(&job.limits, &mut page);
    page.line(
        "Work",
        &format!("{} ({})", text::bytes(job.work_bytes), json::work(job.work)),
    );
    page.line(
        "Timeout",
        &job.timeout_ms.map_or_else(|| "none".into(), text::millis),
    );
    page.line("Grace", &text::millis(job.grace_ms));
    for caveat in &job.caveats {
        let holds = if caveat.is_partly {
            "partly enforced"
        } else {
            "not enforced"
        };
        let limit = text::limit(caveat.limit);
        page.line("Caveat", &format!("{limit}: {holds}: {}", caveat.note));
    }
    times(job, now_ns, &mut page);
    if let Some(found) = &job.outcome {
        outcome(job, found, &mut page);
    }
    page.section("Output");
    page.line("Stdout", &text::bytes(job.log.stdout_bytes));
    page.line("Stderr", &text::bytes(job.log.stderr_bytes));
    page.line("Dropped", &text::bytes(job.log.dropped_bytes));
    if !status.env.is_empty() {
        page.section("Environment");
        for entry in &status.env {
            page.entry(&String::from_utf8_lossy(entry));
        }
    }
    page.into_text()
}

/// When a job runs that was not simply started.
fn when(job: &Job, page: &mut Page) {
    if job.schedule.is_none() && job.schedule_id.is_none() {
        return;
    }
    page.section("Schedule");
    if let Some(schedule) = &job.schedule {
        page.line("Runs", &schedule::phrase(schedule));
    }
    if let Some(id) = job.schedule_id {
        page.line("Repeats", &text::id(id));
    }
    for (index, ns) in job.next_runs_ns.iter().enumerate() {
        page.line(
            if index == 0 { "Next run" } else { "Then" },
            &text::local_time(*ns),
        );
    }
    if let Some(ns) = job.last_run_ns {
        page.line("Last run", &text::local_time(ns));
    }
}

fn limits(limits: &Limits, page: &mut Page) {
    let unlimited = || "unlimited".to_owned();
    let percent = |percent: u32| format!("{percent}% of a core");
    page.line("CPU", &limits.cpu_percent.map_or_else(unlimited, percent));
    page.line(
        "Memory",
        &limits.memory_bytes.map_or_else(unlimited, text::bytes),
    );
    let rate = |bytes| format!("{} a second", text::bytes(bytes));
    page.line(
        "I/O",
        &limits.io_bytes_per_second.map_or_else(unlimited, rate),
    );
    page.line(
        "Processes",
        &limits.pids.map_or_else(unlimited, |pids| pids.to_string()),
    );
    let cores = limits.cores.as_deref();
    page.line(
        "Cores",
        &cores.map_or_else(|| "all for jobs".into(), text::cores),
    );
}

fn times(job: &Job, now_ns: i64, page: &mut Page) {
    let times = Times::of(job);
    page.section("Times");
    for (name, at) in [
        ("Created", times.created),
        ("Started", times.started),
        ("Ended", times.ended),
    ] {
        page.line(name, &at.map_or_else(|| "-".into(), text::local_time));
    }
    page.line(
        "Duration",
        &times
            .duration_ms(now_ns)
            .map_or_else(|| "-".into(), text::millis),
    );
    page.section("States");
    let first = job.transitions.first().map_or(0, |first| first.mono_ns);
    for entered in &job.transitions {
        let after = entered.mono_ns.saturating_sub(first) / 1_000_000;
        let value = format!(
            "{}, after {}",
            text::local_time(entered.wall_ns),
            text::millis(after)
        );
        page.line(text::state(entered.state), &value);
    }
}

fn outcome(job: &Job, outcome: &Outcome, page: &mut Page) {
    page.section("Outcome");
    page.line("Reason", json::reason(&outcome.reason));
    if let Some(message) = exit::outcome_message(job, false) {
        page.line("Detail", &message);
    }
    if let Some(exit) = outcome.exit_code {
        page.line("Exit code", &exit.to_string());
    }
    if let Some(signal) = outcome.signal {
        page.line(
            "Signal",
            &format!("{signal} ({})", crate::signal::name(signal)),
        );
    }
    page.line("Wall", &text::millis(outcome.wall_ms));
    page.line("Queued", &text::millis(outcome.queued_ms));
    if let Some(micros) = outcome.start_micros {
        page.line("Start", &format!("{micros} µs from submit to the command"));
    }
    used(&outcome.usage, page);
}

/// What a job used in all, as far as the host counts it.
fn used(usage: &Usage, page: &mut Page) {
    let time = |us: u64| text::millis(us / 1_000);
    page.section("Used");
    let cpu = [
        Some(format!("{} user", time(usage.cpu_user_us))),
        Some(format!("{} system", time(usage.cpu_system_us))),
        usage
            .throttled_us
            .map(|us| format!("{} held back by the limit", time(us))),
    ];
    page.line("CPU", &counted(cpu));
    let memory = [
        usage
            .memory_peak_bytes
            .map(|peak| format!("{} at most", text::bytes(peak))),
        usage
            .oom_kills
            .map(|kills| format!("{kills} processes killed for it")),
    ];
    page.line("Memory", &counted(memory));
    let io = [
        usage
            .io_read_bytes
            .map(|read| format!("{} read", text::bytes(read))),
        usage
            .io_write_bytes
            .map(|written| format!("{} written", text::bytes(written))),
    ];
    page.line("I/O", &counted(io));
    let processes = [
        usage.pids_peak.map(|peak| format!("{peak} at most")),
        usage.pids_refused.map(|times| format!("{times} refused")),
    ];
    page.line("Processes", &counted(processes));
}

/// The parts that the host counts, on one line.
fn counted(parts: impl IntoIterator<Item = Option<String>>) -> String {
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        return "not counted by this host".into();
    }
    parts.join(", ")
}

/// The command as it could be typed in a shell.
pub(crate) fn command(argv: &[Vec<u8>]) -> String {
    let words: Vec<_> = argv
        .iter()
        .map(|word| quoted(&String::from_utf8_lossy(word)))
        .collect();
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let safe = |c: char| c.is_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(safe) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_counted_is_left_out() {
        let part = |text: &str| Some(text.to_owned());
        assert_eq!(counted([part("a"), None, part("b")]), "a, b");
        assert_eq!(counted([None, None]), "not counted by this host");
    }

    #[test]
    fn a_command_is_shown_as_it_could_be_typed() {
        let words = |words: &[&str]| {
            command(
                &words
                    .iter()
                    .map(|word| word.as_bytes().to_vec())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(words(&["sh", "-c", "echo hi"]), "sh -c 'echo hi'");
        assert_eq!(
            words(&["printf", "", "it's", "a=b"]),
            r"printf '' 'it'\''s' a=b"
        );
    }
}
