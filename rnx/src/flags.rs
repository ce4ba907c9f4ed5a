//! The command line: what may be typed, and nothing about what it does.
//!
//! Flags and commands of a later version are recognised and refused by name ([`Later`], [`Rest`]): whoever
//! follows the guide learns that this version does not have them, and a limit that was asked for is never
//! silently missing.

mod volume;

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use rnx::proto::{Attachment, Schedule};

use crate::{
    amount::{self, Cores, Since},
    schedule,
};

pub(crate) use volume::{
    VolumeCpFlags, VolumeCreateFlags, VolumeListFlags, VolumeName, VolumeNames, VolumeType,
    VolumeVerb,
};

/// Runs Linux jobs on a joblet server.
#[derive(Parser, Debug)]
#[command(
    name = "rnx",
    disable_version_flag = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub(crate) struct Flags {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
}

/// `job run` alone, for [`Flags::read`].
#[derive(Parser, Debug)]
#[command(name = "rnx", disable_version_flag = true)]
struct RunAlone {
    #[command(flatten)]
    global: Global,
    #[command(flatten)]
    run: RunFlags,
}

impl Flags {
    /// Reads a command line, the program's name first.
    ///
    /// Describing every command to clap costs a tenth of the time in which a whole job should be done, so
    /// `job run` is tried by itself; whatever that cannot make sense of, help and errors included, is left
    /// to the description of everything.
    ///
    /// # Errors
    /// What clap says, help included.
    pub(crate) fn read(words: &[OsString]) -> Result<Self, clap::Error> {
        let own = words.len().min(1);
        let flags = words[own..]
            .iter()
            .take_while(|word| *word == "--local" || *word == "--json")
            .count();
        let (before, after) = words.split_at(own + flags);
        if let [job, run, after @ ..] = after
            && job == "job"
            && run == "run"
            && let Ok(RunAlone { global, run }) =
                RunAlone::try_parse_from(before.iter().chain(after))
        {
            return Ok(Self {
                global,
                verb: Some(Verb::Job(JobVerb::Run(Box::new(run)))),
            });
        }
        Self::try_parse_from(words)
    }
}

/// Flags that every command takes.
#[derive(Args, Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Global {
    /// Client file to use, instead of the first one found (see `rnx config-help`)
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// Node of the client file to talk to
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Print JSON on standard output and nothing else
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Use a private server on this machine, started when none runs
    #[arg(long, global = true, conflicts_with_all = ["config", "node"])]
    pub(crate) local: bool,
    /// Print the version of client and server
    #[arg(short = 'V', long, global = true)]
    pub(crate) version: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    /// Run, watch and stop jobs
    #[command(subcommand)]
    Job(JobVerb),
    /// List the nodes of the client file
    Nodes,
    /// Print the version of client and server
    Version,
    /// Print a completion script
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Explain the client file, `--local` and exit codes
    ConfigHelp,
    /// Stop the server of `--local` and all of its jobs
    Shutdown,
    /// List and remove schedules: jobs that repeat
    #[command(subcommand)]
    Schedule(ScheduleVerb),
    /// Make, list and remove volumes: storage that outlives jobs
    #[command(subcommand)]
    Volume(VolumeVerb),
    #[command(hide = true)]
    Network(Rest),
    #[command(hide = true)]
    Runtime(Rest),
    #[command(hide = true)]
    Node(Rest),
    #[command(hide = true)]
    Monitor(Rest),
    /// Try out what the server's machine enforces
    Doctor,
    /// Becomes the server of `--local`: leaves the caller's session, then executes the program.
    #[command(name = crate::local::DETACH_VERB, hide = true)]
    Detach {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum JobVerb {
    /// Run a command as a job and wait for it
    Run(Box<RunFlags>),
    /// List jobs, newest first
    List(ListFlags),
    /// Show everything about one job
    Status(JobId),
    /// Print the output of a job, live until it ends
    Log(LogFlags),
    /// Stop jobs and wait for their end; what still lives after their grace is killed
    Stop(StopFlags),
    /// Wait until jobs have ended and exit like the first that failed
    Wait(JobIds),
    /// Show what a job uses
    Metrics(MetricsFlags),
    /// Copy a file or directory out of a job's /work
    Cp(CpFlags),
    /// Cancel jobs that have not begun, and schedules
    Cancel(JobIds),
    /// Delete jobs that have ended, with their output
    Delete(JobIds),
    /// Delete every job that has ended and that you may delete
    DeleteAll,
}

#[derive(Subcommand, Debug)]
pub(crate) enum ScheduleVerb {
    /// List schedules, newest first
    List(ScheduleListFlags),
    /// Remove schedules: they run no more
    Remove(JobIds),
}

#[derive(Args, Debug)]
pub(crate) struct ScheduleListFlags {
    /// At most so many
    #[arg(long, value_name = "COUNT")]
    pub(crate) limit: Option<u32>,
}

/// Arguments of a command that this version does not have.
#[derive(Args, Debug)]
#[command(disable_help_flag = true)]
pub(crate) struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) rest: Vec<OsString>,
}

#[derive(Args, Debug)]
pub(crate) struct JobId {
    /// Id of the job, or a unique beginning of at least 4 characters
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

#[derive(Args, Debug)]
pub(crate) struct JobIds {
    /// Ids of the jobs, or unique beginnings of at least 4 characters
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
}

#[derive(Args, Debug, PartialEq, Eq)]
pub(crate) struct RunFlags {
    /// Do not wait: print the id and return
    #[arg(short, long, conflicts_with = "wait")]
    pub(crate) detach: bool,
    /// With --json: print when the job has ended, with its outcome
    #[arg(long)]
    pub(crate) wait: bool,
    /// Variable of the job; without a value it is taken from our environment
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<OsString>,
    /// Variable that is never shown, logged or returned
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) secret_env: Vec<OsString>,
    /// File with a NAME=VALUE on each line; empty lines and lines that start with # are left out
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// File, or directory whose contents, to put in /work (or DEST below it) before the command starts
    #[arg(long, visible_alias = "upload-dir", value_name = "PATH[:DEST]")]
    pub(crate) upload: Vec<OsString>,
    /// Volume to have as /volumes/NAME; with :ro the job may only read it
    #[arg(long, value_name = "NAME[:ro]", value_parser = volume::attachment)]
    pub(crate) volume: Vec<Attachment>,
    /// Name of the job
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Label of the job
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) label: Vec<(String, String)>,
    /// Directory the command starts in, /work by default
    #[arg(long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Size of /work, for example 500MB
    #[arg(long, value_name = "SIZE", value_parser = amount::size)]
    pub(crate) work_size: Option<u64>,
    /// User and group inside the job, 1000:1000 by default
    #[arg(long, value_name = "UID[:GID]", value_parser = user)]
    pub(crate) user: Option<(u32, u32)>,
    /// Stop the job after so long, for example 30min; its exit code is then 124
    #[arg(long, value_name = "DURATION", value_parser = amount::millis)]
    pub(crate) timeout: Option<u64>,
    /// Time between SIGTERM and SIGKILL, 10s by default
    #[arg(long, value_name = "DURATION", value_parser = amount::millis)]
    pub(crate) grace: Option<u64>,
    /// CPU time in percent, 100 is one core; 0 is unlimited
    #[arg(long, value_name = "PERCENT", value_parser = amount::percent)]
    pub(crate) max_cpu: Option<u32>,
    /// Memory in MiB, or for example 512M or 2G; 0 is unlimited
    #[arg(long, value_name = "SIZE", value_parser = amount::memory)]
    pub(crate) max_memory: Option<u64>,
    /// Bytes a second, read and written each, for example 10MB; 0 is unlimited
    #[arg(long, value_name = "SIZE", value_parser = amount::size)]
    pub(crate) max_iobps: Option<u64>,
    /// Processes and threads; 0 is unlimited
    #[arg(long, value_name = "COUNT", value_parser = amount::count)]
    pub(crate) max_pids: Option<u64>,
    /// Cores to run on, for example 0-3 or 0-1,4
    #[arg(long, value_name = "CORES", value_parser = amount::cores)]
    pub(crate) cpu_cores: Option<Cores>,
    /// Run it later, and do not wait: in 168h, at 2026-01-31T12:00:00, 'every 24h', or a cron expression
    #[arg(long, value_name = "WHEN", value_parser = schedule::schedule)]
    pub(crate) schedule: Option<Schedule>,
    /// Of jobs that wait for room the one with the greatest is first, -100 to 100
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-100..=100))]
    pub(crate) priority: Option<i32>,
    /// Submitted again with this key within a day, it is the same job
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// Do not escape control sequences of the job on a terminal
    #[arg(long)]
    pub(crate) raw: bool,
    #[command(flatten)]
    pub(crate) later: Later,
    /// The command and its arguments, to which everything after its name belongs
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub(crate) command: Vec<OsString>,
}

macro_rules! later {
    ($($flag:ident),*) => {
        /// Flags of `job run` that this version does not have.
        #[derive(Args, Debug, Default, PartialEq, Eq)]
        pub(crate) struct Later {
            $(#[arg(long, hide = true, value_name = "VALUE")] $flag: Vec<OsString>,)*
        }

        impl Later {
            /// The first of them that was given, as it is typed.
            pub(crate) fn given(&self) -> Option<String> {
                [$((stringify!($flag), &self.$flag)),*]
                    .into_iter()
                    .find(|(_, values)| !values.is_empty())
                    .map(|(flag, _)| format!("--{}", flag.replace('_', "-")))
            }
        }
    };
}
later!(network, runtime, gpu, gpu_memory);

#[derive(Args, Debug)]
pub(crate) struct ListFlags {
    /// Only jobs in this state
    #[arg(long, value_name = "STATE", value_enum, ignore_case = true)]
    pub(crate) status: Option<StateName>,
    /// At most so many
    #[arg(long, value_name = "COUNT")]
    pub(crate) limit: Option<u32>,
}

#[derive(Args, Debug)]
pub(crate) struct LogFlags {
    #[command(flatten)]
    pub(crate) job: JobId,
    /// Which output
    #[arg(long, value_enum, default_value = "all")]
    pub(crate) stream: StreamName,
    /// Stop at what is there now
    #[arg(long)]
    pub(crate) no_follow: bool,
    /// Only the last so many lines, then what follows
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<u64>,
    /// Only output since then: a time, or a duration ago
    #[arg(long, value_name = "TIME", value_parser = amount::since)]
    pub(crate) since: Option<Since>,
    /// Start each line with the time of its capture
    #[arg(long)]
    pub(crate) timestamps: bool,
    /// Start at this byte
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub(crate) offset: u64,
    /// Do not escape control sequences of the job on a terminal
    #[arg(long)]
    pub(crate) raw: bool,
}

#[derive(Args, Debug)]
pub(crate) struct MetricsFlags {
    #[command(flatten)]
    pub(crate) job: JobId,
    /// Go on until the job has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// With --follow: time between two samples, 100ms to 1h; 1s by default
    #[arg(long, value_name = "DURATION", value_parser = interval, requires = "follow")]
    pub(crate) interval: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct StopFlags {
    #[command(flatten)]
    pub(crate) jobs: JobIds,
    /// Return once they are asked, without waiting for their end
    #[arg(long)]
    pub(crate) no_wait: bool,
    #[arg(long, hide = true, value_name = "DURATION")]
    pub(crate) grace: Option<OsString>,
}

#[derive(Args, Debug)]
pub(crate) struct CpFlags {
    /// What to copy
    #[arg(value_name = "ID:/work/PATH")]
    pub(crate) from: OsString,
    /// Where to: a directory, or the new name
    #[arg(value_name = "LOCAL")]
    pub(crate) to: PathBuf,
}

/// Which of a job's streams.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamName {
    All,
    Stdout,
    Stderr,
}

/// States as they are typed.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StateName {
    Scheduled,
    Queued,
    Initializing,
    Running,
    Stopping,
    Completed,
    Failed,
    Stopped,
    Timeout,
    Canceled,
}

fn interval(text: &str) -> Result<u64, String> {
    let ms = amount::millis(text)?;
    if (100..=3_600_000).contains(&ms) {
        Ok(ms)
    } else {
        Err(format!("{text} is not between 100ms and 1h"))
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        Some(_) | None => Err("expected KEY=VALUE".into()),
    }
}

/// A group that is not given is the user's number, as in a fresh account.
fn user(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| {
        text.parse::<u32>()
            .map_err(|_| format!("expected UID or UID:GID as numbers, not {text:?}"))
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, number(gid)?)),
        None => number(text).map(|uid| (uid, uid)),
    }
}

#[cfg(test)]
mod tests;
