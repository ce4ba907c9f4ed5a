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

// ---- mailbox ----------------------------------------------------------------------------------------

/// Slots of the ring from one shard to another. A caller is refused when so many calls more are backed up.
pub const MAILBOX_SLOTS: usize = 1_024;
/// Calls served from one ring before the other rings have their turn.
pub const MAILBOX_TURN: usize = 256;

// ---- copies out of /work ----------------------------------------------------------------------------

/// Directories below one another that a copy descends into: one open descriptor each.
pub const TREE_DEPTH_MAX: usize = 128;
/// Bytes of a file read at once for a copy.
pub const COPY_CHUNK_BYTES: usize = 256 << 10;
/// How long a failed upload waits for the reason why the job's side is gone.
pub const START_FAILURE_WAIT: Duration = Duration::from_secs(2);

// ---- driver -----------------------------------------------------------------------------------------

/// First and longest pause between tries to start helper processes.
pub const CREW_RETRY_FIRST: Duration = Duration::from_millis(100);
/// See [`CREW_RETRY_FIRST`].
pub const CREW_RETRY_LAST: Duration = Duration::from_secs(5);
/// First and longest pause while a cgroup empties.
pub const LEAF_RETRY_FIRST: Duration = Duration::from_millis(1);
/// See [`LEAF_RETRY_FIRST`].
pub const LEAF_RETRY_LAST: Duration = Duration::from_millis(100);
/// Tries to remove a cgroup whose processes are dead.
pub const LEAF_RETRIES: u32 = 64;

// ---- descriptors ------------------------------------------------------------------------------------

/// Limit of open files that is assumed where the kernel does not tell.
pub const OPEN_FILES_ASSUMED: u64 = 1_024;
/// Descriptors of a running job in the daemon: its two pipes.
pub const DAEMON_FILES_PER_JOB: usize = 2;
/// Descriptors of the daemon that jobs at rest may not use: rings, sockets, namespaces that are ready, starts
/// in flight (14 each), log files that are open.
pub const DAEMON_FILES_RESERVE: usize = 4_096;
/// Descriptors of a running job in its keeper: two pipes, control socket, pidfd.
pub const KEEPER_FILES_PER_JOB: usize = 4;
/// Descriptors of a keeper that jobs may not use.
pub const KEEPER_FILES_RESERVE: usize = 64;
