//! Every bound, with its unit and its reason, and how bounds relate.
//!
//! From what a request may ask for, over what a job gets, to how the daemon is built. A relation stands below
//! the last bound that it names.

use std::{ops::RangeInclusive, time::Duration};

// ---- what a request may ask for ---------------------------------------------------------------------

/// Argument list and environment of one submit together, bytes. The kernel's own limit is lower for most.
pub const SUBMIT_BYTES_MAX: usize = 4 << 20;
/// Arguments and variables of one submit: more would not fit the kernel's own limit at nine bytes each.
pub const SUBMIT_ENTRIES_MAX: usize = 262_144;
/// One argument or variable, bytes: MAX_ARG_STRLEN of execve(2), with its NUL.
pub const ARGUMENT_BYTES_MAX: usize = 128 << 10;
const _: () = assert!(ARGUMENT_BYTES_MAX < SUBMIT_BYTES_MAX);

/// Name of a job, bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Labels of a job.
pub const LABELS_MAX: usize = 32;
/// Key of a label, bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 64;
/// Value of a label, bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 256;
/// A path, bytes: PATH_MAX without its NUL.
pub const PATH_BYTES_MAX: usize = 4_095;
/// One component of a path, bytes: NAME_MAX.
pub const PATH_COMPONENT_BYTES_MAX: usize = 255;
/// Name of a peer, the owner of its jobs, bytes: `ub-common-name` of RFC 5280.
pub const PEER_NAME_BYTES_MAX: usize = 64;

/// Entries of one upload. Each costs an inode of the job's `/work`.
pub const UPLOAD_ENTRIES_MAX: u64 = 1 << 20;
/// Bytes of an upload that are written to its spool, or read from it, at once: all that one holds in memory, and
/// enough that a trip through the ring costs less than the copy.
pub const SPOOL_CHUNK_BYTES: usize = 128 << 10;
// The longest path is found in one chunk.
const _: () = assert!(PATH_BYTES_MAX < SPOOL_CHUNK_BYTES);
/// Directories below one another that a copy out of `/work` descends into: one open descriptor each.
pub const TREE_DEPTH_MAX: usize = 128;
/// What one copy remembers of files with several names, bytes: some hundred thousand names of a usual length.
pub const TREE_LINKS_BYTES_MAX: usize = 16 << 20;
/// Jobs in one list.
pub const LIST_JOBS_MAX: usize = 10_000;
/// Default time between SIGTERM and SIGKILL.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// Longest grace that may be asked for.
pub const GRACE_MAX: Duration = Duration::from_secs(3_600);
const _: () = assert!(GRACE_DEFAULT.as_secs() <= GRACE_MAX.as_secs());
/// Longest timeout that may be asked for: a year.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(366 * 24 * 3_600);

/// Shortest delay or interval of a schedule.
pub const SCHEDULE_MIN: Duration = Duration::from_secs(1);
/// Longest delay or interval of a schedule, and the latest time of a one-shot: a year.
pub const SCHEDULE_MAX: Duration = Duration::from_secs(366 * 24 * 3_600);
/// How long an idempotency key is remembered.
pub const IDEMPOTENCY_KEPT: Duration = Duration::from_secs(24 * 3_600);
/// How far back the time of a one-shot may lie: a submit that is repeated while its key is remembered is the same
/// submit, whatever the clock says meanwhile.
pub const SCHEDULE_LATE_MAX: Duration = IDEMPOTENCY_KEPT;
/// An idempotency key, bytes: room for a UUID or a digest with words around it.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;
/// A cron expression, bytes: every value of every field would be longer, and say nothing.
pub const CRON_BYTES_MAX: usize = 256;
/// How far ahead a cron expression may come true, years: 2096 is followed by no leap year before 2104.
pub const CRON_YEARS: i32 = 9;
/// Name of a time zone, bytes: the longest there is has 32.
pub const ZONE_BYTES_MAX: usize = 64;
/// Future runs that are shown of one schedule.
pub const NEXT_RUNS_SHOWN: usize = 5;
/// What a job waits for, as it is shown, bytes.
pub const WAITS_FOR_BYTES_MAX: usize = 512;
/// Priorities of jobs.
pub const PRIORITY_RANGE: RangeInclusive<i32> = -100..=100;

// One job with everything at its largest is one control frame of 64 KiB.
const _: () = assert!(
    NAME_BYTES_MAX
        + LABELS_MAX * (LABEL_KEY_BYTES_MAX + LABEL_VALUE_BYTES_MAX + 16)
        + PATH_BYTES_MAX
        + WAITS_FOR_BYTES_MAX
        + CRON_BYTES_MAX
        + 2 * PEER_NAME_BYTES_MAX
        < 32 << 10
);

// ---- places of a job --------------------------------------------------------------------------------

/// Smallest `/work`, bytes: below it a file system would be all metadata.
pub const WORK_BYTES_MIN: u64 = 1 << 20;
/// Largest `/work`, bytes: far below the largest file that ext4 can hold as an image.
pub const WORK_BYTES_MAX: u64 = 1 << 40;
/// `limits.work_bytes`, and what a job may ask for, bytes.
pub const WORK_BYTES_RANGE: RangeInclusive<u64> = WORK_BYTES_MIN..=WORK_BYTES_MAX;
/// `/work` on disk unless configured, bytes.
pub const WORK_BYTES_DEFAULT: u64 = 10 << 30;
const _: () = assert!(WORK_BYTES_MIN <= WORK_BYTES_DEFAULT && WORK_BYTES_DEFAULT <= WORK_BYTES_MAX);
/// `limits.work_memory_bytes`, `limits.tmp_bytes` and `limits.shm_bytes`, bytes: memory of the host.
pub const MEMORY_BYTES_RANGE: RangeInclusive<u64> = 64 << 10..=1 << 40;
// The disk image must not be the smaller one, whatever is configured for memory.
const _: () = assert!(*MEMORY_BYTES_RANGE.end() <= WORK_BYTES_MAX);
/// `/work` in memory unless configured, bytes.
pub const WORK_MEMORY_BYTES_DEFAULT: u64 = 64 << 20;
const _: () = assert!(WORK_MEMORY_BYTES_DEFAULT <= WORK_BYTES_DEFAULT);
/// `/tmp` of a job unless configured, bytes.
pub const TMP_BYTES_DEFAULT: u64 = 64 << 20;
/// `/dev/shm` of a job unless configured, bytes.
pub const SHM_BYTES_DEFAULT: u64 = 64 << 20;
/// Smallest volume, bytes: below it a file system would be all metadata.
pub const VOLUME_BYTES_MIN: u64 = 16 << 10;
/// Largest volume, bytes: half of the largest file that ext4, which may be below, can hold.
pub const VOLUME_BYTES_MAX: u64 = 8 << 40;
/// What `volume create --size` may say, bytes.
pub const VOLUME_BYTES_RANGE: RangeInclusive<u64> = VOLUME_BYTES_MIN..=VOLUME_BYTES_MAX;
/// Name of a volume, characters.
pub const VOLUME_NAME_MAX: usize = 63;
/// Volumes of one daemon: each is a mount and a loop device of the host, and all are looked at before it is ready.
pub const VOLUMES_MAX: usize = 4_096;
/// Volumes of one job: each is a descriptor in the message that starts it, which holds 253.
pub const JOB_VOLUMES_MAX: usize = 64;
/// How long a volume that has failed and is to be checked waits for its last user. Whoever holds it longer is a job, and
/// then it is not checked.
pub const VOLUME_RELEASE_MAX: Duration = Duration::from_secs(2);
/// How long the `/work` of an ended job can still be read, unless configured.
pub const WORK_KEEP_DEFAULT: Duration = Duration::from_secs(600);
/// Longest time that the `/work` of an ended job may be kept.
pub const WORK_KEEP_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);
const _: () = assert!(WORK_KEEP_DEFAULT.as_secs() <= WORK_KEEP_MAX.as_secs());
/// Ended jobs whose `/work` is kept, unless configured: one loop device, mount and descriptor each.
pub const WORK_KEEP_JOBS_DEFAULT: usize = 64;
/// `limits.work_keep_jobs`: 0 keeps none.
pub const WORK_KEEP_JOBS_RANGE: RangeInclusive<u64> = 0..=1_024;
const _: () = assert!(WORK_KEEP_JOBS_DEFAULT as u64 <= *WORK_KEEP_JOBS_RANGE.end());

// ---- host ids ---------------------------------------------------------------------------------------

/// Ids that a job's user namespace maps, from 0.
pub const IDS_PER_JOB: u32 = 65_536;
/// End of the last range of host ids: the last 65,536 hold ids that mean "none" to system calls.
pub const IDS_END_MAX: u64 = (1 << 32) - 65_536;
/// First host id of the first range: above those of useradd, subuid and systemd.
pub const IDS_FIRST_DEFAULT: u32 = 0x8000_0000;
/// Ranges of [`IDS_PER_JOB`] host ids: all above the first, less the range that holds the invalid id -1.
pub const IDS_COUNT_DEFAULT: u32 = 32_767;
const _: () = assert!(
    IDS_FIRST_DEFAULT as u64 + IDS_COUNT_DEFAULT as u64 * IDS_PER_JOB as u64 == IDS_END_MAX
);
/// `ids.count`: one range a live job, and those that wait in the pools.
pub const IDS_COUNT_RANGE: RangeInclusive<u64> = 256..=65_534;
const _: () = assert!(IDS_COUNT_DEFAULT as u64 <= *IDS_COUNT_RANGE.end());
/// Ranges of host ids that a shard leases at once: 5,000 jobs are twenty leases.
pub const ID_SLICE_RANGES: u32 = 256;
/// Most shards of one daemon: the owner of a job is one byte of its id.
pub const SHARDS_MAX: u64 = 128;
// Every shard can have a slice.
const _: () = assert!(SHARDS_MAX * ID_SLICE_RANGES as u64 <= IDS_COUNT_DEFAULT as u64 + 1);

// ---- jobs that wait ---------------------------------------------------------------------------------

/// Jobs of one daemon whose time has not come, each some kilobytes of memory.
pub const SCHEDULED_JOBS_MAX: usize = 100_000;
/// A job whose time has come and that the full queue did not take asks again after so long.
pub const QUEUE_RETRY: Duration = Duration::from_secs(5);

// ---- resource limits of a job -----------------------------------------------------------------------

/// Open files of a job's process, soft: what select(2) can handle.
pub const JOB_FILES_SOFT: u64 = 1_024;
/// The same, hard; less where the daemon itself may not have so many.
pub const JOB_FILES_HARD: u64 = 524_288;
const _: () = assert!(JOB_FILES_SOFT <= JOB_FILES_HARD);
/// Stack of a job's main thread, soft, bytes: the kernel's default. It also bounds the argument list.
pub const JOB_STACK_BYTES: u64 = 8 << 20;
/// Of jobs, and of the spawners they are cloned from: they go before the daemon when memory is short.
pub const OOM_SCORE_ADJ_JOB: i32 = 500;

/// CPU time that may be asked for, percent of one core: cpu.max takes a millisecond in a tenth of a second, and
/// 100 cores are enough.
pub const JOB_CPU_PERCENT_RANGE: RangeInclusive<u64> = 1..=10_000;
/// Memory that may be asked for, bytes. What is made for a job before its command starts, mounts and page tables
/// included, is charged to it: with less the sandbox itself would be out of memory. The most is more than any
/// host has.
pub const JOB_MEMORY_BYTES_RANGE: RangeInclusive<u64> = 6 << 20..=1 << 50;
/// Bytes a second that may be asked for: at least a page.
pub const JOB_IOBPS_RANGE: RangeInclusive<u64> = 4_096..=1 << 50;
/// Processes and threads that may be asked for: init and the command are two, and PID_MAX_LIMIT is the most that
/// pids.max takes.
pub const JOB_PIDS_RANGE: RangeInclusive<u64> = 2..=4 << 20;
/// Processes and threads of a job unless configured.
pub const JOB_PIDS_DEFAULT: u64 = 4_096;
/// Looks at a job that are kept with it, two minutes of them by default: some 30 KiB, and only of jobs that
/// somebody looked at.
pub const SAMPLES_KEPT: usize = 120;
/// Time between two looks at a job for one who follows, unless asked for.
pub const SAMPLE_INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
/// Shortest such time: a look is a dozen reads of files that the kernel makes up.
pub const SAMPLE_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Longest such time.
pub const SAMPLE_INTERVAL_MAX: Duration = Duration::from_secs(3_600);
/// A look that is not older is given again, so that many readers of one job cost no more than two.
pub const SAMPLE_AGE_MAX: Duration = Duration::from_millis(50);
const _: () = assert!(SAMPLE_AGE_MAX.as_millis() < SAMPLE_INTERVAL_MIN.as_millis());
/// Hosts with so many cores keep one of them for the daemon; below that it would be too much.
pub const RESERVED_CORES_FROM: usize = 4;
/// Most cores that may be kept for the daemon: CPU_SETSIZE.
pub const RESERVED_CORES_MAX: u64 = 1_024;

// ---- jobs that wait for capacity --------------------------------------------------------------------

/// `jobs.max_running`: more than the descriptors and host ids of any daemon allow.
pub const MAX_RUNNING_RANGE: RangeInclusive<u64> = 1..=1_000_000;
/// Jobs that wait for capacity, unless configured; further ones are refused. The queue keeps 200 bytes of each,
/// 2 MiB, and their shards what was asked for.
pub const QUEUE_JOBS_DEFAULT: usize = 10_000;
/// `jobs.queue_max`: a daemon with a bound on capacity has a queue. The most is 200 MiB of memory for the queue alone.
pub const QUEUE_JOBS_RANGE: RangeInclusive<u64> = 1..=1_000_000;
const _: () = assert!(QUEUE_JOBS_DEFAULT as u64 <= *QUEUE_JOBS_RANGE.end());
/// `jobs.memory_budget`, bytes: with less than one job must have no job with a limit would ever run.
pub const MEMORY_BUDGET_RANGE: RangeInclusive<u64> = JOB_MEMORY_BYTES_RANGE;
/// `jobs.cpu_budget`, percent of one core: ten thousand cores.
pub const CPU_BUDGET_RANGE: RangeInclusive<u64> = 1..=1_000_000;
const _: () = assert!(*JOB_CPU_PERCENT_RANGE.end() <= *CPU_BUDGET_RANGE.end());
/// Waiting jobs in one piece of a line: a move within 12 KiB costs less than the search before it.
pub const LINE_PIECE_JOBS: usize = 512;

/// How long a lock of the base directory is waited for whose daemon has ended: a child between fork and execve has
/// it, which takes microseconds, or seconds on a host that is out of memory.
pub const LOCK_ORPHANED_MAX: Duration = Duration::from_secs(3);

// ---- making sandboxes -------------------------------------------------------------------------------

/// Jobs of one shard whose sandbox is being made at once; more wait their turn in the order of arrival.
pub const STARTS_IN_FLIGHT_MAX: usize = 64;
/// A job that has waited so long for fresh namespaces fails: something keeps the host from making them.
pub const NAMESPACES_WAIT: Duration = Duration::from_secs(10);
/// Fresh namespace pairs a shard keeps ready.
pub const NAMESPACES_READY: usize = 64;
const _: () = assert!(NAMESPACES_READY < ID_SLICE_RANGES as usize);
/// More are made at once when so many are left: a start that finds none waits for one.
pub const NAMESPACES_LOW: usize = 24;
const _: () = assert!(NAMESPACES_LOW < NAMESPACES_READY);
/// Else when no start has taken any for so long: longer than a start takes, shorter than what lies between two that
/// a person or an agent asks for.
pub const STARTS_PAUSE: Duration = Duration::from_millis(4);
/// Cgroups of version 1 that a shard keeps ready for jobs, where there are such.
pub const SEATS_READY: usize = 64;
/// More are made when so many are left.
pub const SEATS_LOW: usize = 24;
const _: () = assert!(SEATS_LOW < SEATS_READY);
/// So many of them are made in one go, on the blocking pool.
pub const SEATS_AT_ONCE: usize = 8;
/// Jobs of a daemon without a memory limit whose memory is counted all the same, where memory is counted by
/// version 1; cgroups that are ready for jobs are among them. Each of the six file systems of a job has a
/// shrinker, and each memory cgroup of the host has room for every shrinker of the host, 520 bytes for 64 of
/// them: memory that grows with the square of the number of jobs, 0.5 MiB for each of 5,000. With 512 it stays
/// below 50 KiB for each of those.
pub const MEMORY_COUNTED_JOBS: usize = 512;
// Every shard has its part of them.
const _: () = assert!(SHARDS_MAX <= MEMORY_COUNTED_JOBS as u64);
/// When the kernel says that memory is out in a cgroup of version 1, it has not killed anybody yet: first pause
/// before it is looked who was killed, doubled each time.
pub const OOM_LOOK_FIRST: Duration = Duration::from_millis(1);
/// Last pause of the same.
pub const OOM_LOOK_LAST: Duration = Duration::from_millis(1_024);
const _: () = assert!(OOM_LOOK_FIRST.as_millis() < OOM_LOOK_LAST.as_millis());
/// A plan: what a submit may carry, its own arguments and steps.
pub const PLAN_BYTES_MAX: usize = SUBMIT_BYTES_MAX + (256 << 10);
/// The template root, bytes: what of the host's `/etc` is copied must fit, three times over on Debian.
pub const TEMPLATE_BYTES_MAX: u64 = 16 << 20;
/// One file of the host's `/etc`; larger ones are no configuration and not copied.
pub const TEMPLATE_FILE_BYTES_MAX: u64 = 2 << 20;
const _: () = assert!(TEMPLATE_FILE_BYTES_MAX < TEMPLATE_BYTES_MAX);
/// Depth below one entry of the host's `/etc` that is copied.
pub const TEMPLATE_DEPTH_MAX: usize = 8;
/// How long a failed upload waits for the reason why the job's side is gone.
pub const START_FAILURE_WAIT: Duration = Duration::from_secs(2);

// ---- helper processes -------------------------------------------------------------------------------

/// A crew that is not ready after so long will never be.
pub const CREW_READY: Duration = Duration::from_secs(10);
/// First pause between tries to start helper processes.
pub const CREW_RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest pause between the same.
pub const CREW_RETRY_LAST: Duration = Duration::from_secs(5);
const _: () = assert!(CREW_RETRY_FIRST.as_millis() < CREW_RETRY_LAST.as_millis());
/// A spawner that has not answered for so long is stuck in a step and replaced.
pub const SPAWNER_STUCK: Duration = Duration::from_secs(4);
/// A process that has not ended so long after SIGKILL sleeps in the kernel, runs no line of its own any more,
/// and is not waited for.
pub const KILLED_WAIT: Duration = Duration::from_millis(250);
// The next crew is there five seconds after the last one got stuck.
const _: () = assert!(SPAWNER_STUCK.as_millis() + KILLED_WAIT.as_millis() < 5_000);
/// A keeper that a new daemon has connected to and that says nothing for so long is not waited for. It answers
/// at once unless the machine is drowning; only a spawner stuck in a step holds it up, and that is killed first.
pub const ADOPT_SILENCE_MAX: Duration = Duration::from_secs(5);
const _: () = assert!(SPAWNER_STUCK.as_millis() < ADOPT_SILENCE_MAX.as_millis());
/// A keeper without jobs that has not ended so long after it was told to is killed.
pub const CREW_SHUT_DOWN: Duration = Duration::from_secs(2);

// ---- end of a job, history --------------------------------------------------------------------------

/// First pause while a cgroup empties.
pub const LEAF_RETRY_FIRST: Duration = Duration::from_millis(1);
/// Longest pause of the same.
pub const LEAF_RETRY_LAST: Duration = Duration::from_millis(100);
const _: () = assert!(LEAF_RETRY_FIRST.as_millis() < LEAF_RETRY_LAST.as_millis());
/// Tries to remove a cgroup whose processes are dead.
pub const LEAF_RETRIES: u32 = 64;
/// Ended jobs a daemon remembers; the oldest is forgotten, with its output, when there are more. They are rows
/// of the store: some 100 MiB of disk, and no memory.
pub const HISTORY_JOBS_DEFAULT: usize = 100_000;
/// `limits.history_jobs`: at least one, so that a job can be looked at when it has ended.
pub const HISTORY_JOBS_RANGE: RangeInclusive<u64> = 1..=1_000_000;
const _: () = assert!(HISTORY_JOBS_DEFAULT as u64 <= *HISTORY_JOBS_RANGE.end());
/// Longest `limits.history_age`: ten years, and 0 is for ever.
pub const HISTORY_AGE_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3_600);
/// `limits.history_bytes`: less than one job may write would forget jobs for nothing; 0 is no bound.
pub const HISTORY_BYTES_RANGE: RangeInclusive<u64> = 1 << 20..=1 << 50;

// ---- start and end of a daemon ----------------------------------------------------------------------

/// How long recovery waits for killed processes to be gone; a process stuck in the kernel may take for ever.
pub const RECOVER_WAIT: Duration = Duration::from_secs(20);
/// How long a bind is tried again: after a crash the kernel frees the port some milliseconds late.
pub const BIND_RETRY: Duration = Duration::from_secs(1);
/// Beyond the grace of its jobs, the time that `down` gives a daemon to end before it is killed.
pub const DOWN_MARGIN: Duration = Duration::from_secs(15);
/// Time that `down` gives the kernel to end a daemon that was killed.
pub const DOWN_KILL_WAIT: Duration = Duration::from_secs(10);

/// Time that a daemon which leaves its jobs to the next one gives the store.
pub const LEAVE_WAIT: Duration = Duration::from_secs(5);

// ---- certificates -----------------------------------------------------------------------------------

/// Life of the authority and of what `init` issues: nobody should be locked out of a forgotten machine.
pub const AUTHORITY_DAYS: u32 = 3_650;
/// Life of a client certificate unless asked for, days.
pub const CERTIFICATE_DAYS_DEFAULT: u32 = 365;
const _: () = assert!(CERTIFICATE_DAYS_DEFAULT <= AUTHORITY_DAYS);
/// How far in the past a certificate begins: clocks of clients are off by less.
pub const CLOCK_SKEW: Duration = Duration::from_secs(3_600);
/// Name of a node in a client file, bytes.
pub const NODE_NAME_BYTES_MAX: usize = 63;

// ---- descriptors ------------------------------------------------------------------------------------

/// Limit of open files that is assumed where the kernel does not tell.
pub const OPEN_FILES_ASSUMED: u64 = 1_024;
/// Limit of open files that the daemon asks for when it may have more than it was given: as many as systemd
/// allows services. Enough for a hundred thousand jobs.
pub const OPEN_FILES_WANTED: u64 = 524_288;
/// Descriptors of a running job in the daemon: its two pipes.
pub const DAEMON_FILES_PER_JOB: usize = 2;
/// Descriptors of the daemon that jobs at rest may not use: rings, sockets, namespaces that are ready, starts
/// in flight (17 each), cgroups that are ready, log files that are open, kept disk images.
pub const DAEMON_FILES_RESERVE: usize = 4_096;
const _: () = assert!(
    (17 * STARTS_IN_FLIGHT_MAX + 2 * NAMESPACES_READY + 3 * SEATS_READY) as u64
        + *WORK_KEEP_JOBS_RANGE.end()
        < DAEMON_FILES_RESERVE as u64
);
/// Descriptors of a running job in its keeper: two pipes, control socket, pidfd.
pub const KEEPER_FILES_PER_JOB: usize = 4;
/// Descriptors of a keeper that jobs may not use.
pub const KEEPER_FILES_RESERVE: usize = 64;

// ---- runtime ----------------------------------------------------------------------------------------

/// Entries of a shard's ring. The runtime panics when one turn queues more than twice as many.
pub const RING_ENTRIES: u32 = 4_096;
/// Entries of a shard's second ring.
pub const SIDE_RING_ENTRIES: u32 = 256;
/// Kernel threads that serve both rings of a shard; without a bound there is one for each splice in flight.
pub const RING_WORKERS: u32 = 4;
/// Threads of a shard's blocking pool: mounts, mkfs, netlink, whole trees of files.
pub const BLOCKING_THREADS_MAX: usize = 8;
/// Blocking calls that wait for a thread; more are refused.
pub const BLOCKING_QUEUE_MAX: usize = 4_096;
/// Slots of the ring from one shard to another. A caller is refused when so many calls more are backed up.
pub const MAILBOX_SLOTS: usize = 1_024;
/// Calls served from one ring before the other rings have their turn.
pub const MAILBOX_TURN: usize = 256;
const _: () = assert!(MAILBOX_TURN <= MAILBOX_SLOTS);

// ---- log: what is stored ----------------------------------------------------------------------------

/// Output of one job that is stored, bytes, unless configured.
pub const LOG_BYTES_DEFAULT: u64 = 1 << 30;
/// `limits.log_bytes`, bytes: at least a page, at most what one file of ext4 with 4 KiB blocks can hold.
pub const LOG_BYTES_RANGE: RangeInclusive<u64> = 4 << 10..=16 << 40;
const _: () = assert!(LOG_BYTES_DEFAULT <= *LOG_BYTES_RANGE.end());
/// Free space of the base directory's file system that is never used up, bytes, unless configured.
pub const DISK_RESERVE_DEFAULT: u64 = 1 << 30;
/// `limits.disk_reserve`, bytes: 0 leaves the host nothing.
pub const DISK_RESERVE_RANGE: RangeInclusive<u64> = 0..=1 << 50;
const _: () = assert!(DISK_RESERVE_DEFAULT <= *DISK_RESERVE_RANGE.end());
/// Free space is looked at again after so long.
pub const DISK_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Free space is looked at again after so many bytes.
pub const DISK_CHECK_BYTES: u64 = 64 << 20;
/// Bytes that a fast disk takes in a millisecond: how soon the space above the reserve can be gone.
pub const DISK_FILLED_PER_MS: u64 = 4 << 20;
/// Free space is looked at so often at most while a job may fill a volume.
pub const SPACE_LOOK_SHORTEST: Duration = Duration::from_millis(5);
/// And so often at least.
pub const SPACE_LOOK_LONGEST: Duration = Duration::from_secs(1);
/// Deleted files of volumes are asked to give their space back so often while the disk is full.
pub const SPACE_TRIM_INTERVAL: Duration = Duration::from_secs(10);
/// Space above the reserve before a frozen job goes on, bytes; less where the reserve is small.
pub const DISK_THAW_MARGIN: u64 = 64 << 20;
/// What one splice may cost the disk beyond its bytes: a block of its stream and one of the index.
pub const DISK_ROUNDING_BYTES: u64 = 8 << 10;
/// Index records that wait for a disk that takes none; output is dropped when there are more.
pub const INDEX_PENDING_MAX: usize = 4_096;
/// Part of the index that is free of charge, bytes; so is half of what is stored. More counts as output, so
/// that a job which writes single bytes cannot fill the disk with their index.
pub const INDEX_FREE_BYTES: u64 = 1 << 20;

// ---- log: from pipe to file -------------------------------------------------------------------------

/// Splices of a shard that are in flight at once: bounds how long the kernel's workers keep the shard's CPU.
pub const SPLICES_IN_FLIGHT: usize = 4;
const _: () = assert!(SPLICES_IN_FLIGHT < SIDE_RING_ENTRIES as usize);
/// Bytes of one splice while others want to: bounds how long a job that is killed waits for its own write.
pub const SPLICE_BYTES: u32 = 256 << 10;
/// Bytes of one splice when nobody else wants to.
pub const SPLICE_ALONE_BYTES: u32 = 1 << 20;
const _: () = assert!(SPLICE_BYTES <= SPLICE_ALONE_BYTES);
/// Bytes of one splice that throws away.
pub const DISCARD_BYTES: u32 = 1 << 20;
/// Capacity of a pipe that has been found full, bytes: what `fs.pipe-max-size` allows everybody.
pub const PIPE_BUSY_BYTES: usize = 1 << 20;
/// Capacity of a pipe otherwise, bytes: the kernel's default.
pub const PIPE_BYTES: usize = 64 << 10;
const _: () = assert!(PIPE_BYTES < PIPE_BUSY_BYTES);
/// A splice that moved so many bytes is followed by the next at once: there will be more.
pub const SPLICE_BUSY_BYTES: u64 = 64 << 10;
const _: () = assert!(SPLICE_BUSY_BYTES <= PIPE_BYTES as u64);
/// Pause after a splice that moved fewer: batches lines, and never delays the first one.
pub const SPLICE_PACE: Duration = Duration::from_millis(5);
/// The same while somebody watches.
pub const SPLICE_PACE_WATCHED: Duration = Duration::from_millis(1);
const _: () = assert!(SPLICE_PACE_WATCHED.as_millis() <= SPLICE_PACE.as_millis());
/// A stream that was silent for so long closes its file and gives its big pipe back.
pub const LOG_IDLE_CLOSE: Duration = Duration::from_secs(5);

// ---- log: followers ---------------------------------------------------------------------------------

/// Bytes that a follower reads at once.
pub const FOLLOW_READ_BYTES: u64 = 256 << 10;
/// Index records that a follower reads at once.
pub const FOLLOW_READ_RECORDS: u64 = 1_024;
/// Bytes up to which small pieces of one stream are given as one.
pub const FOLLOW_MERGE_BYTES: u64 = 32 << 10;
const _: () = assert!(FOLLOW_MERGE_BYTES <= FOLLOW_READ_BYTES);
/// Pieces further apart in time than this keep their own time stamps, nanoseconds.
pub const FOLLOW_MERGE_NS: u64 = 100_000_000;
/// Newest blocks that followers of one shard share.
pub const FOLLOW_SHARED_BLOCKS: usize = 4;

// ---- front: connections -----------------------------------------------------------------------------

/// Connections of one shard. With the windows below it bounds what peers with a certificate can make the
/// daemon hold; peers without one never get that far.
pub const CONNECTIONS_PER_SHARD_MAX: usize = 1_024;
/// Unfinished handshakes of one shard; further attempts are refused.
pub const HANDSHAKES_MAX: usize = 1_024;
/// From so many unfinished handshakes on a peer must first prove its address (Retry), which costs it a round
/// trip and us no memory.
pub const HANDSHAKES_BEFORE_RETRY: usize = 256;
const _: () = assert!(HANDSHAKES_BEFORE_RETRY < HANDSHAKES_MAX);
/// A handshake that takes longer is given up.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent connection is given up after so long. Clients that wait for something send a sign each second.
pub const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(30);
/// Bytes a peer may have on the way to us on one stream: 1 GB/s at 1 ms, and 8 times that over loopback.
pub const STREAM_RECEIVE_WINDOW_BYTES: u32 = 1_310_720;
/// The same for all streams of a connection, so that a dozen stalled uploads leave room for requests.
pub const CONNECTION_RECEIVE_WINDOW_BYTES: u32 = 16 << 20;
const _: () = assert!(8 * STREAM_RECEIVE_WINDOW_BYTES <= CONNECTION_RECEIVE_WINDOW_BYTES);
/// Bytes of a connection that are sent and not yet acknowledged, or wait to be sent.
pub const CONNECTION_SEND_WINDOW_BYTES: u64 = 2 << 20;
/// Stateless resets are at least so far apart: clients of a killed daemon learn it at once, a flood does not
/// echo.
pub const RESET_INTERVAL: Duration = Duration::from_millis(1);
/// Turns of the endpoint's loop, with traffic that never ends, before a closing server closes all the same.
pub const CLOSING_TURNS_MAX: u32 = 64;

// ---- front: datagrams -------------------------------------------------------------------------------

/// Largest datagram tried on a network, bytes: Ethernet less IPv6 and UDP headers.
pub const MTU_NETWORK_BYTES: u16 = 1_452;
/// Largest datagram tried on loopback, bytes: the largest that UDP over IPv4 carries.
pub const MTU_LOOPBACK_BYTES: u16 = 65_507;
/// Most bytes of one send with segmentation offload; the kernel allows no more.
pub const SEND_BATCH_BYTES_MAX: usize = 65_507;
const _: () = assert!(MTU_LOOPBACK_BYTES as usize <= SEND_BATCH_BYTES_MAX);
/// Datagram on loopback, bytes: what its interface carries in one piece, less the longer of the IP headers.
pub const MTU_LOOPBACK_DATA_BYTES: u16 = 65_488;
const _: () = assert!(MTU_LOOPBACK_DATA_BYTES <= MTU_LOOPBACK_BYTES);
/// The kernel's own MTU of the loopback interface; a lower one is somebody's doing and probed.
pub const LOOPBACK_INTERFACE_MTU: u32 = 65_536;
/// Packets of a new connection on loopback before the first acknowledgement.
pub const LOOPBACK_PACKETS_AT_FIRST: u64 = 10;
/// Most segments of one send; kernels before 6.9 allow no more.
pub const SEND_BATCH_SEGMENTS_MAX: usize = 64;
/// Sends of one connection before the others get their turn.
pub const SEND_BURST: usize = 4;
/// Receive batches of a shard before it sends.
pub const RECEIVE_BURST: usize = 4;
/// Kernel buffers of each UDP socket, bytes: loopback has no back-pressure and the default loses packets.
pub const UDP_BUFFER_BYTES: usize = 4 << 20;
/// Datagrams from other shards that wait to be looked at; more are lost, as datagrams may be.
pub const FORWARDED_DATAGRAMS_MAX: usize = 1_024;

// ---- front: requests --------------------------------------------------------------------------------

/// Concurrent request streams of one connection; more wait on the client's side.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 1_024;
/// As many of them as a connection may open before it has shown that it needs more: room for all that are allowed is
/// made at once, which takes a millisecond for 8,192.
pub const STREAMS_AT_FIRST: u32 = 64;
const _: () = assert!(STREAMS_AT_FIRST < STREAMS_PER_CONNECTION_MAX);
/// Requests of one shard that are served at once; more are refused as busy. Twice what a full host of idle,
/// attached jobs needs.
pub const REQUESTS_PER_SHARD_MAX: usize = 20_000;
/// Bytes that all requests of one shard may hold while they come in or while their answer waits for the peer:
/// argument lists, environments, lists of jobs. More are refused as busy.
pub const REQUEST_BYTES_PER_SHARD_MAX: usize = 256 << 20;
const _: () = assert!(16 * SUBMIT_BYTES_MAX <= REQUEST_BYTES_PER_SHARD_MAX);
/// What one job in a list is counted as, bytes.
pub const LISTED_JOB_BYTES: usize = 1 << 10;
const _: () = assert!(16 * LIST_JOBS_MAX * LISTED_JOB_BYTES <= REQUEST_BYTES_PER_SHARD_MAX);
/// A request stream must have brought its first frame by then.
pub const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(10);
const _: () = assert!(FIRST_FRAME_TIMEOUT.as_secs() < CONNECTION_IDLE_MAX.as_secs());
/// A client that owes us bytes (argument list, upload) may be silent on that stream for so long.
pub const STREAM_STALL_MAX: Duration = Duration::from_secs(60);
/// Small pieces of output are copied together up to so many bytes, because each piece costs a scan in QUIC.
pub const OUTPUT_SLAB_BYTES_MAX: usize = 32 << 10;
/// Pieces of output from this size on are passed on as they are.
pub const OUTPUT_COPY_BYTES_MAX: usize = 8 << 10;
/// Output handed to QUIC at once, bytes.
pub const OUTPUT_BATCH_BYTES_MAX: usize = 256 << 10;
const _: () = assert!(
    OUTPUT_COPY_BYTES_MAX < OUTPUT_SLAB_BYTES_MAX
        && OUTPUT_SLAB_BYTES_MAX <= OUTPUT_BATCH_BYTES_MAX
);
/// Bytes of a file read at once for a copy out of `/work`.
pub const COPY_CHUNK_BYTES: usize = 256 << 10;

// ---- store ------------------------------------------------------------------------------------------

/// Space that a job's record may take on the disk, bytes: without so much above the reserve none is admitted.
pub const JOB_RECORD_BYTES: u64 = 16 << 10;
/// Ended jobs beyond what is remembered, and keys that have expired, are forgotten so often.
pub const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// An outcome that the store did not take is offered again after so long.
pub const STORE_RETRY: Duration = Duration::from_millis(500);
/// A job that is to be ended is let live so long for the store to note why. Longer than any commit takes; a disk that
/// hangs must not keep a job from being stopped.
pub const ENDING_NOTED_MAX: Duration = Duration::from_secs(2);
/// Changes that wait for the store's thread; more are refused. A shard that ends its jobs all at once has one for
/// each, and tries again with what was refused.
pub const STORE_QUEUE_CHANGES: usize = 4_096;
/// Changes in one transaction: those behind it wait until it is done.
pub const STORE_BATCH_CHANGES: usize = 256;
const _: () = assert!(STORE_BATCH_CHANGES <= STORE_QUEUE_CHANGES);
/// Bytes in one transaction, roughly: SQLite holds changed pages in memory until then.
pub const STORE_BATCH_BYTES: usize = 8 << 20;
// The largest submit is at most six times as long in JSON, a byte as an escape, and still one transaction.
const _: () = assert!(SUBMIT_BYTES_MAX <= STORE_BATCH_BYTES);
/// Bytes, roughly, after which what the write-ahead log holds is written to the file in the background.
pub const STORE_CHECKPOINT_BYTES: usize = 4 << 20;
/// Bytes of the log from which on the store's thread does that itself, so that the log starts anew: in the background
/// it never gets to the end of a log that never stops growing. Changes wait for two syncs of the disk meanwhile, so
/// this is seconds of a flood.
pub const STORE_WAL_BYTES: u64 = 128 << 20;
const _: () = assert!((STORE_CHECKPOINT_BYTES + STORE_BATCH_BYTES) as u64 <= STORE_WAL_BYTES);
/// Size that the file of the log is cut to when it starts anew, bytes.
pub const STORE_WAL_KEPT_BYTES: u64 = 16 << 20;
/// How long a change waits for a lock that another program holds on the database: people may look at it with
/// tools of their own.
pub const STORE_LOCK_WAIT: Duration = Duration::from_secs(2);
/// Page cache of a connection that reads, bytes: a list of 100 jobs is less.
pub const STORE_READ_CACHE_BYTES: u64 = 512 << 10;
/// Databases up to so many bytes are looked through whole at start; of larger ones all but the contents of ended
/// jobs, so that a daemon starts in a second whatever its history.
pub const STORE_CHECK_BYTES: u64 = 32 << 20;
/// Jobs that one change deletes at most: some 20 ms.
pub const STORE_DELETE_JOBS: usize = 512;
/// Keys that one change forgets at most.
pub const STORE_FORGET_KEYS: usize = 4_096;
/// Free pages of the database, 4 KiB each, that stay for new jobs; of more some are given back.
pub const STORE_FREE_PAGES: u32 = 4_096;
/// Pages that are given back at once.
pub const STORE_VACUUM_PAGES: u32 = 256;
const _: () = assert!(STORE_VACUUM_PAGES <= STORE_FREE_PAGES);
/// Output of an ended job that moves into the store, both streams together, bytes: a million small jobs need not
/// cost three million inodes.
pub const SMALL_OUTPUT_BYTES: usize = 4 << 10;
/// Index of such output, bytes: output in more pieces than it holds stays in files.
pub const SMALL_OUTPUT_INDEX_BYTES: usize = 4 << 10;
/// Jobs of a shard whose files wait to be removed because the store has their output; files beyond that are left to
/// the next start.
pub const EMPTIED_JOBS_MAX: usize = 1 << 16;
/// Time that such files wait for others, to be removed with them.
pub const EMPTIED_PAUSE: Duration = Duration::from_millis(50);
/// Directories of jobs that a daemon which starts asks the store about at once: some milliseconds.
pub const EMPTIED_LOOK_JOBS: usize = 512;
/// Candidates of a prefix that a reader is asked for at most.
pub const FIND_JOBS_MAX: usize = 100;
const _: () = assert!(FIND_JOBS_MAX <= LIST_JOBS_MAX);
