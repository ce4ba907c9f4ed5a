//! What a job may use, and what it used.

/// Bounds of one job. `None` is unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// CPU time, percent of one core, 1 to 10,000; 100 is one core.
    pub cpu_percent: Option<u32>,
    /// Memory, bytes; there is no swap beside it.
    pub memory_bytes: Option<u64>,
    /// Bytes a second, read and written each, on every block device that backs the job's files.
    pub io_bytes_per_second: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Host cores it may run on, ascending, each once, never empty; `None` is every core for jobs.
    pub cores: Option<Vec<u32>>,
}

/// One of a job's [`Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LimitKind {
    /// `cpu_percent`.
    Cpu,
    /// `memory_bytes`.
    Memory,
    /// `io_bytes_per_second`.
    Io,
    /// `pids`.
    Pids,
    /// `cores`.
    Cores,
}

/// A limit of a job that this host does not enforce, or not in every case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caveat {
    /// Which.
    pub limit: LimitKind,
    /// It holds in most cases; otherwise in none, which only a daemon with `best_effort` accepts.
    pub is_partly: bool,
    /// What does not hold, and why.
    pub note: String,
}

/// What a job has used so far. `None` is what this host does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time in user mode, microseconds.
    pub cpu_user_us: u64,
    /// CPU time in the kernel, microseconds.
    pub cpu_system_us: u64,
    /// Time that processes were ready and held back by the CPU limit, microseconds.
    pub throttled_us: Option<u64>,
    /// Memory now, bytes; 0 of a job that has ended.
    pub memory_bytes: Option<u64>,
    /// The most memory at any time, bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Processes that were killed because memory was out.
    pub oom_kills: Option<u64>,
    /// Bytes read from block devices.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub io_write_bytes: Option<u64>,
    /// Processes and threads now; 0 of a job that has ended.
    pub pids: Option<u64>,
    /// The most processes and threads at any time.
    pub pids_peak: Option<u64>,
    /// Times that a process or thread was refused because of the limit.
    pub pids_refused: Option<u64>,
}

/// How much of the time work waited for a resource, from pressure stall information.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stall {
    /// Hundredths of a percent of the last ten seconds.
    pub avg10_centi: u32,
    /// In total, microseconds.
    pub total_us: u64,
}

/// One look at a live job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// When, nanoseconds since the epoch.
    pub wall_ns: i64,
    /// What it had used.
    pub usage: Usage,
    /// Stalls of some of its processes on CPU, memory and I/O, where the kernel tells.
    pub pressure: Option<[Stall; 3]>,
}
