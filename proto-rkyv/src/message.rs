//! Control messages: what a client may ask and what it is told.
//!
//! Plain data. Sizes are bytes, times are nanoseconds since the Unix epoch (`*_ns`) or milliseconds
//! (`*_ms`) as named. Nothing here is trusted by the daemon because it decoded: ranges are checked in its
//! `front/convert`.

use rkyv::{Archive, Deserialize, Serialize};

/// A job id as 16 raw bytes (a UUID).
pub type Id = [u8; 16];

/// The first frame of every stream, client to server.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Start a job. Followed by `Argv`, `Env` and `SecretEnv` frames: the payloads of one kind, put
    /// together in the order of arrival, are one list ([`crate::join`]), so an entry may straddle two
    /// frames; later variables win, secret ones over plain ones. They end where the first [`Upload`]
    /// control frame begins, when `uploads` is set, and where the client finishes the stream, when it is
    /// not. Uploads are [`Upload`] control frames, each file followed by its `File` frames, closed by
    /// [`Upload::End`]. Answered by [`Reply::Accepted`] and then as `after` asks.
    Submit(Box<Submit>),
    /// Jobs, newest first. Answered by any number of [`Reply::Jobs`], then [`Reply::More`] when there are more
    /// than the server sends at once, then the stream ends.
    List(List),
    /// One job. Answered by [`Reply::Status`], then `Argv` and `Env` frames (put together as in a submit;
    /// values of secrets are `***`), then the end.
    Status(JobRef),
    /// Output of one job. Answered by `Stdout` and `Stderr` frames, then [`Reply::LogEnd`].
    Log(Log),
    /// Ask one job to stop; one that has not begun is canceled. Answered by [`Reply::Done`].
    Stop(Stop),
    /// Cancel one job that has not begun, or a schedule. Answered by [`Reply::Done`].
    Cancel(JobRef),
    /// Delete one job that has ended. Answered by [`Reply::Deleted`].
    Delete(JobRef),
    /// Delete every job that has ended and that the caller may delete. Answered by [`Reply::Deleted`].
    DeleteAll,
    /// Wait until one job has ended. Answered by [`Reply::Ended`].
    Wait(JobRef),
    /// Read a file or directory below a job's `/work`. Answered by [`Upload`] control frames (the same
    /// entries as an upload, in the other direction) with their `File` frames, closed by [`Upload::End`].
    Copy(Copy),
    /// What the server is. Answered by [`Reply::Node`].
    Node,
    /// What one job uses. Answered by [`Reply::Sample`]s, oldest first, then the stream ends: those that were
    /// kept and one of now, or, when following, one of now and one after each interval. The last sample of a
    /// job that has ended is what it used in all.
    Metrics(Metrics),
    /// What the server's machine keeps of the promises, tried out. Answered by any number of
    /// [`Reply::Findings`], then the stream ends.
    Doctor,
    /// Make a volume. Answered by one [`Reply::Volumes`] with it.
    VolumeCreate(VolumeCreate),
    /// All volumes, by name. Answered by any number of [`Reply::Volumes`], at least one, then the stream ends.
    Volumes,
    /// One volume. Answered like [`Request::Volumes`].
    Volume(String),
    /// Remove a volume that no job has. Answered by [`Reply::Finished`].
    VolumeRemove(String),
    /// Read a file or directory of a volume. Answered as [`Request::Copy`] is, with paths relative to the
    /// volume's root.
    VolumeRead(VolumeRead),
    /// Write files into a volume. Followed by [`Upload`] control frames with their `File` frames, closed by
    /// [`Upload::End`], with paths relative to the volume's root. Files and links that are there already are
    /// replaced, directories stay. Answered by [`Reply::Finished`] when all of it is written; what was written
    /// before a refusal stays.
    VolumeWrite(VolumeWrite),
}

/// A job by its id or a unique prefix of at least four characters (hex digits and dashes, lower case).
pub type JobRef = String;

/// What a client asks of a new job. Argument list and environment travel as bulk payload beside it.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
pub struct Submit {
    /// Free text chosen by the user.
    pub name: Option<String>,
    /// `key`, `value` pairs in the order given.
    pub labels: Vec<(String, String)>,
    /// Working directory inside the job, `/work` when absent.
    pub workdir: Option<String>,
    /// User and group inside the job, 1000:1000 when absent.
    pub user: Option<(u32, u32)>,
    /// Size of `/work`; the server's default when absent.
    pub work_bytes: Option<u64>,
    /// Wall-clock limit.
    pub timeout_ms: Option<u64>,
    /// Time between SIGTERM and SIGKILL; the server's default when absent.
    pub grace_ms: Option<u64>,
    /// Sum of the sizes of all files that will be uploaded, and whether uploads follow at all.
    pub uploads: Option<u64>,
    /// CPU time, percent of one core. As with the next three, 0 is unlimited and absent the server's default.
    pub max_cpu: Option<u32>,
    /// Memory.
    pub max_memory_bytes: Option<u64>,
    /// Bytes a second, read and written each.
    pub max_iobps: Option<u64>,
    /// Processes and threads.
    pub max_pids: Option<u64>,
    /// Cores of the server to run on, as ranges with both ends in them; every core for jobs when absent.
    pub cpu_cores: Option<Vec<(u32, u32)>>,
    /// When to run; at once when absent.
    pub schedule: Option<Schedule>,
    /// Of jobs that wait for capacity the one with the greatest is first; −100 to 100, 0 when absent.
    pub priority: Option<i32>,
    /// Submits with the same key and the same content make one job, within 24 hours and one owner; the same key
    /// with other content is refused. At most 128 printable ASCII characters.
    pub idempotency_key: Option<String>,
    /// Volumes that it has below `/volumes`, each once.
    pub volumes: Vec<Attachment>,
    /// What the stream carries once the job is accepted.
    pub after: After,
}

/// A volume that a job has.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Name of the volume.
    pub volume: String,
    /// The job may only read it.
    pub is_read_only: bool,
}

/// When a job runs.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// Once, so long after the submit. A server tells it as [`Schedule::At`].
    After {
        /// A second to a year.
        ms: u64,
    },
    /// Once, at that time, or at once when it is over.
    At {
        /// At most a year from now.
        ns: i64,
    },
    /// Again and again, counted from the submit. Each repetition is a job of its own.
    Every {
        /// A second to a year.
        ms: u64,
    },
    /// Whenever a cron expression matches. Each repetition is a job of its own.
    Cron {
        /// Minute, hour, day of the month, month, day of the week.
        expression: String,
        /// IANA name of the time zone that it means.
        zone: String,
    },
}

/// What the stream of a submit carries after [`Reply::Accepted`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum After {
    /// Nothing; it ends.
    #[default]
    Detach,
    /// [`Reply::Ended`] when the job has ended.
    Wait,
    /// Its output as `Stdout` and `Stderr` frames, live, then [`Reply::Ended`].
    Follow,
}

/// One entry of an upload or of a copied tree. Paths are relative, `/`-separated and have no `..`; they begin at the
/// job's `/work` or at the volume's root.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub enum Upload {
    /// A directory, made if it is not there.
    Dir {
        /// Where.
        path: Vec<u8>,
        /// Permission bits (0o777).
        mode: u32,
    },
    /// A file of exactly `bytes` bytes, which follow as `File` frames.
    File {
        /// Where.
        path: Vec<u8>,
        /// Permission bits (0o777).
        mode: u32,
        /// Its size.
        bytes: u64,
    },
    /// A symbolic link, stored as it is and never followed by the server.
    Symlink {
        /// Where.
        path: Vec<u8>,
        /// What it says.
        target: Vec<u8>,
    },
    /// No more entries.
    End,
    /// A FIFO. Jobs' uploads have none.
    Fifo {
        /// Where.
        path: Vec<u8>,
        /// Permission bits (0o777).
        mode: u32,
    },
    /// Another name of a file that came before. Jobs' uploads have none.
    Link {
        /// Where.
        path: Vec<u8>,
        /// The path that the file came under.
        target: Vec<u8>,
    },
    /// Something about the tree that it cannot carry; only from the server.
    Remark {
        /// About what.
        path: Vec<u8>,
        /// What is said of it.
        remark: Remark,
    },
}

/// What a tree does not carry of what it is read from.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remark {
    /// It is a socket, and left out.
    Socket,
    /// It is a device, and left out.
    Device,
    /// It is another name of a file that came before, and comes as a file of its own: the tree has more such names
    /// than are remembered.
    Doubled,
}

/// Which jobs to list.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
pub struct List {
    /// Only jobs in this state.
    pub state: Option<State>,
    /// At most so many; the server has a limit of its own.
    pub limit: Option<u32>,
    /// Only jobs behind this place, which [`Reply::More`] gave.
    pub before: Option<Cursor>,
    /// Only schedules: jobs that repeat, not their repetitions.
    pub schedules: bool,
}

/// A place in the list of all jobs.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// When the job there was created, wall clock.
    pub created_ns: i64,
    /// That job.
    pub id: Id,
}

/// Which output of a job to send.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The job.
    pub job: JobRef,
    /// Which streams.
    pub streams: Streams,
    /// Go on until the job has ended; otherwise stop at what is there.
    pub follow: bool,
    /// Start at this byte of the selected streams, counted in the order in which they were captured.
    pub offset: u64,
    /// Only the last so many lines of what is there now, then whatever follows.
    pub tail_lines: Option<u64>,
    /// Only output captured at or after this time.
    pub since_ns: Option<i64>,
}

/// Which of a job's two streams.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Streams {
    /// Standard output and standard error.
    #[default]
    All,
    /// Standard output only.
    Stdout,
    /// Standard error only.
    Stderr,
}

/// How to stop a job.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// The job.
    pub job: JobRef,
    /// The first signal: SIGTERM, or SIGINT when a person pressed Ctrl-C.
    pub signal: StopSignal,
}

/// The first signal of a stop.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StopSignal {
    /// SIGTERM.
    #[default]
    Term,
    /// SIGINT.
    Int,
}

/// Which samples of a job to send.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// The job.
    pub job: JobRef,
    /// Go on until the job has ended.
    pub follow: bool,
    /// Time between two samples when following; the server's default when absent.
    pub interval_ms: Option<u64>,
}

/// A path below a job's `/work`.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// The job.
    pub job: JobRef,
    /// Relative to `/work`; empty for all of it.
    pub path: Vec<u8>,
}

/// A volume that is to be made.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct VolumeCreate {
    /// What it is called.
    pub name: String,
    /// How large it is, as a person writes it: `50GB`. The server reads it, and shows it like that.
    pub size: String,
    /// What it is made of.
    pub kind: VolumeKind,
}

/// What a volume is made of.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VolumeKind {
    /// A disk image: it survives everything.
    #[default]
    Filesystem,
    /// A tmpfs: empty after the server's machine was started anew.
    Memory,
}

/// A path in a volume that is read.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct VolumeRead {
    /// Name of the volume.
    pub volume: String,
    /// Relative to its root; empty for all of it.
    pub path: Vec<u8>,
}

/// Files for a volume, which follow.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct VolumeWrite {
    /// Name of the volume.
    pub volume: String,
    /// Sum of the sizes of all files that follow, when it is known.
    pub bytes: Option<u64>,
}

/// A volume as it is shown.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// How large it is, as it was asked for.
    pub size: String,
    /// What that means.
    pub size_bytes: u64,
    /// What it is made of.
    pub kind: VolumeKind,
    /// When it was made, wall clock.
    pub created_ns: i64,
    /// Bytes of files in it; absent when it cannot be looked at now.
    pub used_bytes: Option<u64>,
    /// Jobs that have not ended and name it, oldest first. When they do not fit one frame, the volume is sent again
    /// right behind with the next ones, as often as it takes.
    pub jobs: Vec<Id>,
    /// What is wrong with it, in one line.
    pub damage: Option<String>,
}

/// Control frames, server to client.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The request was refused or failed; nothing else follows.
    Refused(Refusal),
    /// The job exists and will run.
    Accepted {
        /// Its id.
        id: Id,
        /// An earlier submit with the same idempotency key made it.
        existing: bool,
    },
    /// Some jobs.
    Jobs(Vec<Job>),
    /// There are more jobs: ask again with this as [`List::before`].
    More(Cursor),
    /// One job in full.
    Status(Box<Job>),
    /// The job has ended.
    Ended(Box<Job>),
    /// All output that was asked for has been sent.
    LogEnd {
        /// Bytes the job wrote that were not stored because of a limit.
        dropped: u64,
    },
    /// Done, with the job as it is now.
    Done(Box<Job>),
    /// What became of a deletion.
    Deleted {
        /// So many jobs are gone.
        deleted: u64,
        /// So many are still there: they have not ended, or the caller may not delete them.
        skipped: u64,
    },
    /// What the server is.
    Node(Box<Node>),
    /// One look at a job.
    Sample(Box<Sample>),
    /// Some promises and what stands behind them.
    Findings(Vec<Finding>),
    /// Some volumes.
    Volumes(Vec<Volume>),
    /// What was asked for is done, and there is nothing to tell about it.
    Finished,
}

/// Why a request was refused, for people and for programs.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of refusal; the client's exit code follows from it.
    pub code: RefusalCode,
    /// What happened to which object, one line, lower case, no full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// The kinds of refusal.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalCode {
    /// The request itself makes no sense or is out of range.
    Invalid,
    /// No such object.
    NotFound,
    /// The certificate's role or name does not allow it.
    NotPermitted,
    /// The object is in the wrong state, in use, or ambiguous.
    Conflict,
    /// Larger than a limit.
    TooLarge,
    /// Not supported by this server.
    Unsupported,
    /// A bounded resource is exhausted; the same request may succeed later.
    Busy,
    /// The server tried and could not.
    Failed,
}

/// State of a job.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Its time has not come.
    Scheduled,
    /// Waits for capacity.
    Queued,
    /// Its sandbox is being made.
    Initializing,
    /// Its command has passed `execve`.
    Running,
    /// Asked to stop, still alive.
    Stopping,
    /// Exit code 0.
    Completed,
    /// Ended in any way not named here.
    Failed,
    /// Ended by a stop.
    Stopped,
    /// Ended by its timeout.
    Timeout,
    /// Ended before it began.
    Canceled,
}

/// Everything about one job but its argument list and environment.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: Id,
    /// Free text chosen by the user.
    pub name: Option<String>,
    /// Common name of the certificate that submitted it.
    pub owner: String,
    /// State.
    pub state: State,
    /// First line of the command, at most 80 characters, for tables.
    pub command: String,
    /// `key`, `value` pairs in the order given.
    pub labels: Vec<(String, String)>,
    /// Working directory inside the job.
    pub workdir: String,
    /// User and group inside the job.
    pub user: (u32, u32),
    /// Size of `/work`.
    pub work_bytes: u64,
    /// What `/work` is made of.
    pub work: Work,
    /// Volumes that it has below `/volumes`.
    pub volumes: Vec<Attachment>,
    /// Wall-clock limit.
    pub timeout_ms: Option<u64>,
    /// Time between SIGTERM and SIGKILL.
    pub grace_ms: u64,
    /// What it may use.
    pub limits: Limits,
    /// Which of its limits do not hold in every case on this host.
    pub caveats: Vec<Caveat>,
    /// Every state entered, oldest first.
    pub transitions: Vec<Transition>,
    /// Why it ended, when it has.
    pub outcome: Option<Outcome>,
    /// Output so far.
    pub log: LogTotals,
    /// When it runs, if not at once.
    pub schedule: Option<Schedule>,
    /// The schedule that it is a repetition of.
    pub schedule_id: Option<Id>,
    /// When it runs next, wall clock, soonest first; only while scheduled. A status has several, a list the first.
    pub next_runs_ns: Vec<i64>,
    /// When its schedule last made it run, wall clock.
    pub last_run_ns: Option<i64>,
    /// Of jobs that wait for capacity the one with the greatest is first.
    pub priority: i32,
    /// What it waits for, in one line; only while queued.
    pub waits_for: Option<String>,
}

/// What a job may use. `None` is unlimited.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// CPU time, percent of one core.
    pub cpu_percent: Option<u32>,
    /// Memory.
    pub memory_bytes: Option<u64>,
    /// Bytes a second, read and written each.
    pub io_bytes_per_second: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Cores of the server it may run on, as ascending ranges with both ends in them; absent is every core
    /// for jobs.
    pub cores: Option<Vec<(u32, u32)>>,
}

/// One of a job's [`Limits`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LimitKind {
    /// CPU time.
    Cpu,
    /// Memory.
    Memory,
    /// Bytes a second.
    Io,
    /// Processes and threads.
    Pids,
    /// Cores.
    Cores,
}

/// A limit that the host does not enforce, or not in every case.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Caveat {
    /// Which.
    pub limit: LimitKind,
    /// It holds in most cases; otherwise in none.
    pub is_partly: bool,
    /// What does not hold, and why.
    pub note: String,
}

/// What a job has used. `None` is what the host does not count.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time in user mode.
    pub cpu_user_us: u64,
    /// CPU time in the kernel.
    pub cpu_system_us: u64,
    /// Time that processes were ready and held back by the CPU limit.
    pub throttled_us: Option<u64>,
    /// Memory now.
    pub memory_bytes: Option<u64>,
    /// The most memory at any time.
    pub memory_peak_bytes: Option<u64>,
    /// Processes that were killed because memory was out.
    pub oom_kills: Option<u64>,
    /// Bytes read from block devices.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub io_write_bytes: Option<u64>,
    /// Processes and threads now.
    pub pids: Option<u64>,
    /// The most processes and threads at any time.
    pub pids_peak: Option<u64>,
    /// Times that a process or thread was refused because of the limit.
    pub pids_refused: Option<u64>,
}

/// One look at a job.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// When, nanoseconds since the epoch.
    pub wall_ns: i64,
    /// What it had used.
    pub usage: Usage,
    /// How much of the time some of its processes waited, where the kernel tells.
    pub pressure: Option<Pressure>,
}

/// How much of the time work waited, for each resource.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    /// For a processor.
    pub cpu: Stall,
    /// For memory.
    pub memory: Stall,
    /// For block devices.
    pub io: Stall,
}

/// How much of the time work waited for one resource.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stall {
    /// Hundredths of a percent of the last ten seconds.
    pub avg10_centi: u32,
    /// In total, microseconds.
    pub total_us: u64,
}

/// One promise and what stands behind it on the server's machine.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Short name of the promise, stable.
    pub promise: String,
    /// Whether it holds.
    pub verdict: Verdict,
    /// What enforces it there.
    pub mechanism: String,
    /// What was measured, or why it does not hold.
    pub detail: String,
    /// What to do about it, when it does not hold.
    pub remedy: Option<String>,
}

/// Whether a promise holds.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was tried and holds.
    Enforced,
    /// It holds in the cases that `detail` names.
    Partly,
    /// It does not hold.
    NotEnforced,
}

/// What a job's `/work` is made of.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A tmpfs charged to the job.
    Memory,
    /// A disk image.
    Disk,
}

/// One state entered.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// Which.
    pub state: State,
    /// Wall clock.
    pub wall_ns: i64,
    /// Monotonic clock of the host.
    pub mono_ns: u64,
}

/// Why and how a job ended.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Why.
    pub reason: Reason,
    /// Exit code of the command, when it exited.
    pub exit_code: Option<i32>,
    /// Signal that ended the command, when one did.
    pub signal: Option<i32>,
    /// What the job used in all.
    pub usage: Usage,
    /// From `execve` to the end; zero when the command never started.
    pub wall_ms: u64,
    /// From the submit's arrival until its sandbox began to be made.
    pub queued_ms: u64,
    /// From the submit's arrival to the command's `execve`.
    pub start_micros: Option<u64>,
}

/// Why a job ended.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The command exited by itself.
    Exited,
    /// A signal that was not ours ended the command.
    Signaled,
    /// It used more memory than it may.
    OutOfMemory,
    /// Its timeout.
    Timeout,
    /// Somebody asked for it.
    Stopped {
        /// Common name of the one who asked.
        by: String,
    },
    /// Ended before it began.
    Canceled,
    /// Its output exceeded `limits.log_bytes` under the policy `stop`.
    LogLimit,
    /// Its sandbox could not be made.
    StartFailed {
        /// The step that failed.
        step: String,
        /// The kernel's error number, 0 when there is none.
        errno: i32,
    },
    /// There is no such command in the job's root.
    CommandNotFound,
    /// The command is there but the kernel would not execute it.
    CommandNotExecutable {
        /// The kernel's error number.
        errno: i32,
    },
    /// The daemon or its helpers died and the true end is not known.
    HostLost,
    /// `joblet down` ended it.
    DaemonDown,
}

/// How much output there was. `produced = stored + dropped`, exactly.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogTotals {
    /// Bytes of standard output in its file.
    pub stdout_bytes: u64,
    /// Bytes of standard error in its file.
    pub stderr_bytes: u64,
    /// Bytes written by the job and not stored.
    pub dropped_bytes: u64,
}

/// What a server is.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Version of the daemon.
    pub version: String,
    /// Instance, 8 hex digits.
    pub instance: String,
    /// Host name.
    pub hostname: String,
    /// Kernel release.
    pub kernel: String,
    /// Number of shards.
    pub shards: u32,
    /// Jobs that have not ended.
    pub jobs_live: u64,
    /// The caller as the server sees it: common name.
    pub you: String,
    /// The caller's role.
    pub role: String,
    /// Size of `/work` in memory, when a submit asks for none.
    pub work_memory_bytes: u64,
    /// Nanoseconds from a submit's arrival to the command's `execve`: p50, p99, count since start.
    pub start_ns: (u64, u64, u64),
}

macro_rules! control {
    ($($message:ty),*) => {$(
        impl $message {
            /// Reads the message from the archive of a control frame.
            ///
            /// # Errors
            /// [`crate::FrameError::Control`] when the bytes are not a valid archive of this message.
            pub fn decode(archive: &[u8]) -> Result<Self, crate::FrameError> {
                rkyv::from_bytes::<Self, rkyv::rancor::Failure>(archive).map_err(|_| crate::FrameError::Control)
            }
        }
    )*};
}
control!(Request, Reply, Upload);
