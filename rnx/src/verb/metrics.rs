//! `rnx job metrics ID`: what a job uses, once or until it ends.

use std::fmt::Write;

use rnx::{
    Client,
    proto::{Metrics, Sample, Stall},
};

use super::Session;
use crate::{
    exit::{Failure, code},
    flags::MetricsFlags,
    json, text,
};

/// Columns and their widths; the last one is as wide as it must be.
const COLUMNS: [(&str, usize); 9] = [
    ("TIME", 19),
    ("CPU", 7),
    ("CPU TIME", 10),
    ("THROTTLED", 10),
    ("MEMORY", 10),
    ("READ", 10),
    ("WRITTEN", 10),
    ("PROCESSES", 9),
    ("STALLED", 0),
];

pub(crate) async fn metrics(flags: &MetricsFlags, session: &Session) -> Result<u8, Failure> {
    let client = session.connect().await?;
    let shown = show(&client, flags, session).await;
    client.close().await;
    shown
}

async fn show(client: &Client, flags: &MetricsFlags, session: &Session) -> Result<u8, Failure> {
    let mut samples = client
        .metrics(Metrics {
            job: flags.job.id.clone(),
            follow: flags.follow,
            interval_ms: flags.interval,
        })
        .await?;
    let mut before = None;
    while let Some(sample) = samples.next().await? {
        if session.out.json {
            session.out.json(&json::sample(&sample))?;
        } else {
            if before.is_none() {
                session
                    .out
                    .line(&line(&COLUMNS.map(|(name, _)| name.to_owned())))?;
            }
            session.out.line(&line(&row(&sample, before.as_ref())))?;
        }
        before = Some(sample);
    }
    Ok(code::DONE)
}

fn line(cells: &[String; COLUMNS.len()]) -> String {
    let mut line = String::new();
    for (cell, (_, width)) in cells.iter().zip(COLUMNS) {
        write!(line, "{cell:<width$}  ").expect("a string takes everything");
    }
    line.trim_end().to_owned()
}

/// A dash is what the host does not count, or what takes two samples to tell.
fn row(sample: &Sample, before: Option<&Sample>) -> [String; COLUMNS.len()] {
    let usage = &sample.usage;
    let absent = || "-".to_owned();
    let bytes = |bytes: Option<u64>| bytes.map_or_else(absent, text::bytes);
    let time = |us: u64| text::millis(us / 1_000);
    [
        text::local_time(sample.wall_ns),
        before
            .and_then(|before| cpu_percent(before, sample))
            .map_or_else(absent, |percent| format!("{percent}%")),
        time(usage.cpu_user_us.saturating_add(usage.cpu_system_us)),
        usage.throttled_us.map_or_else(absent, time),
        bytes(usage.memory_bytes),
        bytes(usage.io_read_bytes),
        bytes(usage.io_write_bytes),
        usage.pids.map_or_else(absent, |pids| pids.to_string()),
        sample.pressure.map_or_else(absent, |pressure| {
            let [cpu, memory, io] = [pressure.cpu, pressure.memory, pressure.io].map(stalled);
            format!("cpu {cpu}, memory {memory}, io {io}")
        }),
    ]
}

/// CPU time between two samples, percent of one core.
fn cpu_percent(before: &Sample, now: &Sample) -> Option<u64> {
    let cpu = |sample: &Sample| {
        sample
            .usage
            .cpu_user_us
            .saturating_add(sample.usage.cpu_system_us)
    };
    let wall_us = u64::try_from(now.wall_ns.checked_sub(before.wall_ns)? / 1_000).ok()?;
    cpu(now)
        .checked_sub(cpu(before))?
        .saturating_mul(100)
        .checked_div(wall_us)
}

fn stalled(stall: Stall) -> String {
    let (whole, hundredths) = (stall.avg10_centi / 100, stall.avg10_centi % 100);
    format!("{whole}.{hundredths:02}%")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rnx::proto::{Pressure, Usage};

    fn sample(seconds: i64, cpu_us: u64) -> Sample {
        let stall = |avg10_centi| Stall {
            avg10_centi,
            total_us: 0,
        };
        Sample {
            wall_ns: seconds * 1_000_000_000,
            usage: Usage {
                cpu_user_us: cpu_us,
                memory_bytes: Some(3 << 20),
                pids: Some(2),
                ..Usage::default()
            },
            pressure: Some(Pressure {
                cpu: stall(1_205),
                memory: stall(0),
                io: stall(7),
            }),
        }
    }

    #[test]
    fn a_row_shows_dashes_for_what_is_not_known() {
        let (first, second) = (sample(10, 500_000), sample(12, 3_500_000));
        let cells = row(&first, None);
        let stalls = "cpu 12.05%, memory 0.00%, io 0.07%";
        assert_eq!(
            cells[1..],
            ["-", "0.5s", "-", "3 MB", "-", "-", "2", stalls]
        );
        assert_eq!(row(&second, Some(&first))[1], "150%");
        assert_eq!(row(&first, Some(&first))[1], "-", "no time has passed");
        let head = line(&COLUMNS.map(|(name, _)| name.to_owned()));
        assert_eq!(head.find("CPU"), Some(21));
        assert_eq!(line(&cells).find("0.5s"), head.find("CPU TIME"));
    }
}
