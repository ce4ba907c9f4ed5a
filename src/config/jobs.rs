//! `jobs`: what a job gets that did not ask, what it may ask for, and how many run at once.

use std::{num::NonZeroUsize, time::Duration};

use super::{ConfigError, raw::RawConfig};
use crate::limits;

/// `jobs`: what a job gets that did not ask, what it may ask for, and how many run at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jobs {
    /// `jobs.grace`: time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// `jobs.default_*`: limits of a job that asked for none.
    pub default: JobLimits,
    /// `jobs.max_*`: what no job may exceed, its defaults included.
    pub max: JobLimits,
    /// `jobs.reserved_cores`: `None` follows from the number of cores.
    pub reserved_cores: Option<usize>,
    /// `jobs.max_running`: jobs that run at once, of all shards; `None` is without bound.
    pub max_running: Option<NonZeroUsize>,
    /// `jobs.memory_budget`: memory limits of running jobs in all, bytes; `None` is without bound.
    pub memory_budget: Option<u64>,
    /// `jobs.cpu_budget`: CPU limits of running jobs in all, percent of one core; `None` is without bound.
    pub cpu_budget: Option<u64>,
    /// `jobs.queue_max`: jobs that wait for one of these; further ones are refused.
    pub queue_max: usize,
}

/// One number for each limit of a job; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JobLimits {
    /// CPU time, percent of one core.
    pub cpu_percent: Option<u32>,
    /// Memory, bytes.
    pub memory_bytes: Option<u64>,
    /// Bytes a second, read and written each.
    pub io_bytes_per_second: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// The keys of one [`JobLimits`].
struct Keys {
    cpu: &'static str,
    memory: &'static str,
    iobps: &'static str,
    pids: &'static str,
}

const DEFAULTS: Keys = Keys {
    cpu: "default_cpu",
    memory: "default_memory",
    iobps: "default_iobps",
    pids: "default_pids",
};
const MAXIMA: Keys = Keys {
    cpu: "max_cpu",
    memory: "max_memory",
    iobps: "max_iobps",
    pids: "max_pids",
};

impl Jobs {
    pub(super) fn from_raw(mut raw: RawConfig) -> Result<Self, ConfigError> {
        let default = Self::default();
        let running_default = default
            .max_running
            .and_then(|n| u64::try_from(n.get()).ok());
        let queue_default = u64::try_from(default.queue_max).unwrap_or(u64::MAX);
        let found = Self {
            grace: raw.duration("grace", default.grace, limits::GRACE_MAX)?,
            default: JobLimits::from_raw(&mut raw, &DEFAULTS, default.default)?,
            max: JobLimits::from_raw(&mut raw, &MAXIMA, default.max)?,
            reserved_cores: raw.count_or_auto("reserved_cores", limits::RESERVED_CORES_MAX)?,
            max_running: raw
                .integer_or_none("max_running", running_default, &limits::MAX_RUNNING_RANGE)?
                .and_then(|count| NonZeroUsize::new(usize::try_from(count).unwrap_or(usize::MAX))),
            memory_budget: raw.size_or_none(
                "memory_budget",
                default.memory_budget,
                &limits::MEMORY_BUDGET_RANGE,
            )?,
            cpu_budget: raw.integer_or_none(
                "cpu_budget",
                default.cpu_budget,
                &limits::CPU_BUDGET_RANGE,
            )?,
            queue_max: usize::try_from(raw.integer(
                "queue_max",
                queue_default,
                &limits::QUEUE_JOBS_RANGE,
            )?)
            .unwrap_or(usize::MAX),
        };
        raw.finish()?;
        Ok(found)
    }

    /// How many of `cores` cores, the lowest ones, jobs do not run on. One at least is left to them.
    #[must_use]
    pub fn reserved_core_count(&self, cores: usize) -> usize {
        let auto = usize::from(cores >= limits::RESERVED_CORES_FROM);
        self.reserved_cores
            .unwrap_or(auto)
            .min(cores.saturating_sub(1))
    }
}

impl JobLimits {
    fn from_raw(raw: &mut RawConfig, keys: &Keys, default: Self) -> Result<Self, ConfigError> {
        let percent = raw.integer_or_none(
            keys.cpu,
            default.cpu_percent.map(u64::from),
            &limits::JOB_CPU_PERCENT_RANGE,
        )?;
        Ok(Self {
            cpu_percent: percent.and_then(|percent| u32::try_from(percent).ok()),
            memory_bytes: raw.size_or_none(
                keys.memory,
                default.memory_bytes,
                &limits::JOB_MEMORY_BYTES_RANGE,
            )?,
            io_bytes_per_second: raw.size_or_none(
                keys.iobps,
                default.io_bytes_per_second,
                &limits::JOB_IOBPS_RANGE,
            )?,
            pids: raw.integer_or_none(keys.pids, default.pids, &limits::JOB_PIDS_RANGE)?,
        })
    }
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            grace: limits::GRACE_DEFAULT,
            default: JobLimits {
                pids: Some(limits::JOB_PIDS_DEFAULT),
                ..JobLimits::default()
            },
            max: JobLimits::default(),
            reserved_cores: None,
            max_running: None,
            memory_budget: None,
            cpu_budget: None,
            queue_max: limits::QUEUE_JOBS_DEFAULT,
        }
    }
}
