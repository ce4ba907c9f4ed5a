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

/// Ranges of host ids that a daemon leases at once: 5,000 jobs are five leases.
pub const ID_SLICE_RANGES: u32 = 1_024;
/// First host id for jobs, unless configured: above systemd's and everybody's subordinate ids.
pub const HOST_IDS_FIRST_DEFAULT: u32 = 0x8000_0000;
/// Slices of host ids from there, unless configured: all to the end of the id space.
pub const HOST_ID_SLICES_DEFAULT: u32 = 32;
/// A crew that is not ready after so long will never be.
pub const CREW_READY: Duration = Duration::from_secs(10);
/// A keeper without jobs that has not ended so long after it was told to is killed.
pub const CREW_SHUT_DOWN: Duration = Duration::from_secs(2);

// ---- work on disk, recovery -------------------------------------------------------------------------

/// Smallest disk image for `/work`, bytes: below it a file system would be all metadata.
pub const WORK_IMAGE_BYTES_MIN: u64 = 1 << 20;
/// Largest disk image for `/work`, bytes: what ext4 with 4 KiB blocks holds without 64-bit block numbers.
pub const WORK_IMAGE_BYTES_MAX: u64 = 16 << 40;
/// How long recovery waits for killed processes to be gone; a process stuck in the kernel may take for ever.
pub const RECOVER_WAIT: Duration = Duration::from_secs(20);

// ---- log --------------------------------------------------------------------------------------------

/// Output of one job that is stored, bytes, unless configured.
pub const LOG_BYTES_DEFAULT: u64 = 1 << 30;
/// Free space of the base directory's file system that is never used up, bytes, unless configured.
pub const DISK_RESERVE_DEFAULT: u64 = 1 << 30;

// ---- front ------------------------------------------------------------------------------------------

/// Concurrent request streams of one connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 8_192;

const _: () = assert!(ARGUMENT_BYTES_MAX < SUBMIT_BYTES_MAX);
const _: () = assert!(NAMESPACES_READY < ID_SLICE_RANGES as usize);
const _: () = assert!(
    HOST_IDS_FIRST_DEFAULT as u64 + HOST_ID_SLICES_DEFAULT as u64 * ID_SLICE_RANGES as u64 * IDS_PER_JOB as u64
        == 1 << 32
);
