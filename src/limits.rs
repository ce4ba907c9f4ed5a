//! Every bound, with its unit and its reason, and how bounds relate.

use std::time::Duration;

// ---- jobs -------------------------------------------------------------------------------------------

/// Argument list and environment of one submit together, bytes. The kernel's own limit is lower for most.
pub const SUBMIT_BYTES_MAX: usize = 4 << 20;
/// One argument or variable, bytes: MAX_ARG_STRLEN of execve(2), with its NUL.
pub const ARGUMENT_BYTES_MAX: usize = 128 << 10;
/// Ids that a job's user namespace maps, from 0.
pub const IDS_PER_JOB: u32 = 65_536;
/// Default time between SIGTERM and SIGKILL.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// Longest grace that may be asked for.
pub const GRACE_MAX: Duration = Duration::from_secs(3_600);
/// Longest timeout that may be asked for: a year.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(366 * 24 * 3_600);
/// Ended jobs a daemon remembers; the oldest is forgotten, with its output, when there are more.
pub const HISTORY_JOBS_DEFAULT: usize = 10_000;
/// Jobs of one shard whose sandbox is being made at once; more wait their turn in the order of arrival.
pub const STARTS_IN_FLIGHT_MAX: usize = 64;

// ---- helper processes -------------------------------------------------------------------------------

/// A spawner that has not answered for so long is stuck in a step and replaced.
pub const SPAWNER_STUCK: Duration = Duration::from_secs(4);
/// Fresh namespace pairs a shard keeps ready.
pub const NAMESPACES_READY: usize = 64;

// ---- log --------------------------------------------------------------------------------------------

/// Output of one job that is stored, bytes, unless configured.
pub const LOG_BYTES_DEFAULT: u64 = 1 << 30;
/// Free space of the base directory's file system that is never used up, bytes, unless configured.
pub const DISK_RESERVE_DEFAULT: u64 = 1 << 30;

// ---- front ------------------------------------------------------------------------------------------

/// Concurrent request streams of one connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 8_192;

const _: () = assert!(ARGUMENT_BYTES_MAX < SUBMIT_BYTES_MAX);

// ---- sandbox ----------------------------------------------------------------------------------------

/// `/tmp` of a job, bytes; in memory and charged to the job.
pub const TMP_BYTES_DEFAULT: u64 = 64 << 20;
/// `/dev/shm` of a job, bytes; in memory and charged to the job.
pub const SHM_BYTES_DEFAULT: u64 = 64 << 20;
/// A plan: what a submit may carry, its own arguments and steps.
pub const PLAN_BYTES_MAX: usize = SUBMIT_BYTES_MAX + (256 << 10);
/// The template root, bytes: what of the host's `/etc` is copied must fit, three times over on Debian.
pub const TEMPLATE_BYTES_MAX: u64 = 16 << 20;
/// One file of the host's `/etc`; larger ones are no configuration and not copied.
pub const TEMPLATE_FILE_BYTES_MAX: u64 = 2 << 20;
/// Depth below one entry of the host's `/etc` that is copied.
pub const TEMPLATE_DEPTH_MAX: usize = 8;
/// Of jobs, and of the spawners they are cloned from: they go before the daemon when memory is short.
pub const OOM_SCORE_ADJ_JOB: i32 = 500;

const _: () = assert!(TEMPLATE_FILE_BYTES_MAX < TEMPLATE_BYTES_MAX);
