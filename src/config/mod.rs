//! Configuration in two steps: `raw` is what was typed, [`Config`] is what it means.
//!
//! Everything is checked before anything starts: an unknown key or a value out of range is refused with its
//! full name, its value and what is allowed. The bounds stand in `limits`. A key that is not written has the
//! default that the file made by `joblet init` documents.

mod jobs;
mod raw;
mod template;

use std::{
    ffi::OsString,
    fs, io,
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;

use crate::{job::units::format_size, limits};
pub use jobs::{JobLimits, Jobs};
use raw::{RawConfig, refuse};
pub use template::default_file;

/// The format of the file that this version reads.
const VERSION: u64 = 1;
const LISTEN_ALLOWED: &str =
    "an address and a port from 1 to 65535, like 0.0.0.0:50051 or [::]:50051";

/// What a daemon is told before it starts, checked and complete.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Where and on how many cores it serves.
    pub server: Server,
    /// Bounds on what jobs may take.
    pub limits: Limits,
    /// What a job gets that did not ask, and what it may ask for.
    pub jobs: Jobs,
    /// Whether jobs may ask for limits that this host does not enforce.
    pub best_effort: bool,
    /// Host ids that jobs run as.
    pub ids: Ids,
    /// What a change of the store survives.
    pub store: Store,
}

/// `server`: where and on how many cores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `server.listen`: address and port of every transport.
    pub listen: SocketAddr,
    /// `server.shards`: `None` is one for each core that the daemon may run on.
    pub shards: Option<NonZeroUsize>,
}

/// `limits`: bounds on what jobs may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `limits.log_bytes`: output of one job that is stored, bytes.
    pub log_bytes: u64,
    /// `limits.log_policy`: what happens to a job that writes more.
    pub log_policy: LogPolicy,
    /// `limits.disk_reserve`: free bytes of the base directory's file system that are never used.
    pub disk_reserve: u64,
    /// `limits.work_memory_bytes`: `/work` in memory, bytes.
    pub work_memory_bytes: u64,
    /// `limits.work_bytes`: `/work` on disk, bytes.
    pub work_bytes: u64,
    /// `limits.work_keep`: how long the `/work` on disk of an ended job can be read.
    pub work_keep: Duration,
    /// `limits.work_keep_jobs`: how many of them there are at most; the oldest one goes first.
    pub work_keep_jobs: usize,
    /// `limits.history_jobs`: ended jobs that are remembered.
    pub history_jobs: usize,
    /// `limits.history_age`: how long after its end a job is remembered; `None` is for ever.
    pub history_age: Option<Duration>,
    /// `limits.history_bytes`: output of ended jobs that is kept in all, bytes; `None` is without bound.
    pub history_bytes: Option<u64>,
    /// `limits.tmp_bytes`: `/tmp` of a job, bytes.
    pub tmp_bytes: u64,
    /// `limits.shm_bytes`: `/dev/shm` of a job, bytes.
    pub shm_bytes: u64,
}

/// What happens to a job that writes more than `limits.log_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogPolicy {
    /// It goes on; what is too much is counted and thrown away.
    Drop,
    /// It is stopped with the reason `log_limit`.
    Stop,
}

/// `ids`: the ranges of host ids that jobs run as, [`limits::IDS_PER_JOB`] ids each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// `ids.first`: first id of the first range.
    pub first: u32,
    /// `ids.count`: number of ranges, which follow each other.
    pub count: u32,
}

/// `store`: how what happened to jobs is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Store {
    /// `store.durability`: what an acknowledged change survives.
    pub durability: Durability,
}

/// What an acknowledged change of the store survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The death of the daemon in any way. The last changes before a power loss may be missing.
    #[default]
    Process,
    /// A power loss too: each group of changes waits for the disk.
    Power,
}

/// Values of the environment that win over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `JOBLET_LISTEN`.
    pub listen: Option<OsString>,
}

/// Why a configuration was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file says something that cannot be.
    #[error("configuration {}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What.
        #[source]
        source: Box<ConfigError>,
    },
    /// Not YAML.
    #[error("not valid YAML")]
    Syntax {
        /// Where and why.
        #[source]
        source: Box<serde_saphyr::Error>,
    },
    /// A key that means nothing.
    #[error("unknown key {key}; known here: {known}")]
    Unknown {
        /// Its full name.
        key: String,
        /// The keys that stand beside it.
        known: String,
    },
    /// A value that is not allowed.
    #[error("{key} is {value}; allowed is {allowed}")]
    Value {
        /// Full name of its key, or the environment variable.
        key: String,
        /// As it was typed.
        value: String,
        /// What would be accepted.
        allowed: String,
    },
}

impl Config {
    /// Reads the file at `path`; `overrides` win.
    ///
    /// # Errors
    /// [`ConfigError`], which names the file, the key and what is allowed.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut config = Self::parse(&text).map_err(|source| ConfigError::File {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        if let Some(listen) = &overrides.listen {
            config.server.listen = listen
                .to_str()
                .and_then(parse_listen)
                .ok_or_else(|| refuse("JOBLET_LISTEN", &listen.display(), LISTEN_ALLOWED))?;
        }
        Ok(config)
    }

    /// Reads the text of a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`], which names the key and what is allowed.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut raw = RawConfig::parse(text)?;
        raw.integer("version", VERSION, &(VERSION..=VERSION))?;
        let config = Self {
            server: Server::from_raw(raw.section("server")?)?,
            limits: Limits::from_raw(raw.section("limits")?)?,
            jobs: Jobs::from_raw(raw.section("jobs")?)?,
            best_effort: raw.flag("best_effort", false)?,
            ids: Ids::from_raw(raw.section("ids")?)?,
            store: Store::from_raw(raw.section("store")?)?,
        };
        raw.finish()?;
        Ok(config)
    }
}

impl Server {
    fn from_raw(mut raw: RawConfig) -> Result<Self, ConfigError> {
        let default = Self::default();
        let listen = raw.text("listen", default.listen, parse_listen, LISTEN_ALLOWED)?;
        let shards = raw.integer("shards", 0, &(0..=limits::SHARDS_MAX))?;
        raw.finish()?;
        Ok(Self {
            listen,
            shards: NonZeroUsize::new(usize::try_from(shards).unwrap_or(usize::MAX)),
        })
    }

    /// How many shards to run where the daemon may use `cores` cores.
    #[must_use]
    pub fn shard_count(&self, cores: NonZeroUsize) -> NonZeroUsize {
        let most = NonZeroUsize::new(usize::try_from(limits::SHARDS_MAX).unwrap_or(1))
            .unwrap_or(NonZeroUsize::MIN);
        self.shards.unwrap_or(cores).min(most)
    }

    /// The address at which a client on the same machine reaches this server.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        let mut address = self.listen;
        match address {
            SocketAddr::V4(v4) if v4.ip().is_unspecified() => {
                address.set_ip(std::net::Ipv4Addr::LOCALHOST.into())
            }
            SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
                address.set_ip(std::net::Ipv6Addr::LOCALHOST.into())
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => {}
        }
        address
    }
}

impl Limits {
    fn from_raw(mut raw: RawConfig) -> Result<Self, ConfigError> {
        let default = Self::default();
        let memory = limits::MEMORY_BYTES_RANGE;
        let history_default = u64::try_from(default.history_jobs).unwrap_or(u64::MAX);
        let history = raw.integer("history_jobs", history_default, &limits::HISTORY_JOBS_RANGE)?;
        let keep_default = u64::try_from(default.work_keep_jobs).unwrap_or(u64::MAX);
        let keep_range = limits::WORK_KEEP_JOBS_RANGE;
        let work_keep_jobs = raw.integer("work_keep_jobs", keep_default, &keep_range)?;
        let found = Self {
            log_bytes: raw.size("log_bytes", default.log_bytes, &limits::LOG_BYTES_RANGE)?,
            log_policy: raw.word(
                "log_policy",
                default.log_policy,
                &[("drop", LogPolicy::Drop), ("stop", LogPolicy::Stop)],
            )?,
            disk_reserve: raw.size(
                "disk_reserve",
                default.disk_reserve,
                &limits::DISK_RESERVE_RANGE,
            )?,
            work_memory_bytes: raw.size("work_memory_bytes", default.work_memory_bytes, &memory)?,
            work_bytes: raw.size("work_bytes", default.work_bytes, &limits::WORK_BYTES_RANGE)?,
            work_keep: raw.duration("work_keep", default.work_keep, limits::WORK_KEEP_MAX)?,
            work_keep_jobs: usize::try_from(work_keep_jobs).unwrap_or(usize::MAX),
            history_jobs: usize::try_from(history).unwrap_or(usize::MAX),
            history_age: Some(raw.duration(
                "history_age",
                default.history_age.unwrap_or_default(),
                limits::HISTORY_AGE_MAX,
            )?)
            .filter(|age| !age.is_zero()),
            history_bytes: raw.size_or_none(
                "history_bytes",
                default.history_bytes,
                &limits::HISTORY_BYTES_RANGE,
            )?,
            tmp_bytes: raw.size("tmp_bytes", default.tmp_bytes, &memory)?,
            shm_bytes: raw.size("shm_bytes", default.shm_bytes, &memory)?,
        };
        raw.finish()?;
        if found.work_bytes < found.work_memory_bytes {
            // Uploads that do not fit into memory go to the disk image: it must not be the smaller one.
            let allowed = format!(
                "at least limits.work_memory_bytes, {}",
                format_size(found.work_memory_bytes)
            );
            return Err(refuse(
                "limits.work_bytes",
                &format_size(found.work_bytes),
                allowed,
            ));
        }
        Ok(found)
    }
}

impl Ids {
    fn from_raw(mut raw: RawConfig) -> Result<Self, ConfigError> {
        let default = Self::default();
        let each = u64::from(limits::IDS_PER_JOB);
        let first = raw.integer(
            "first",
            default.first.into(),
            &(each..=limits::IDS_END_MAX - each),
        )?;
        // The default fills what is left above a first id that was moved up.
        let left = (limits::IDS_END_MAX - first) / each;
        let count = raw.integer(
            "count",
            left.min(default.count.into()),
            &limits::IDS_COUNT_RANGE,
        )?;
        raw.finish()?;
        if !first.is_multiple_of(each) {
            return Err(refuse("ids.first", &first, format!("a multiple of {each}")));
        }
        if count > left {
            return Err(refuse(
                "ids.count",
                &count,
                format!("at most {left}: that many ranges follow ids.first"),
            ));
        }
        let narrow = |number| {
            u32::try_from(number).expect("both are below IDS_END_MAX, which is below 2^32")
        };
        Ok(Self {
            first: narrow(first),
            count: narrow(count),
        })
    }
}

impl Store {
    fn from_raw(mut raw: RawConfig) -> Result<Self, ConfigError> {
        let default = Self::default();
        let found = Self {
            durability: raw.word(
                "durability",
                default.durability,
                &[
                    ("process", Durability::Process),
                    ("power", Durability::Power),
                ],
            )?,
        };
        raw.finish()?;
        Ok(found)
    }
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 50_051)),
            shards: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            log_bytes: limits::LOG_BYTES_DEFAULT,
            log_policy: LogPolicy::Drop,
            disk_reserve: limits::DISK_RESERVE_DEFAULT,
            work_memory_bytes: limits::WORK_MEMORY_BYTES_DEFAULT,
            work_bytes: limits::WORK_BYTES_DEFAULT,
            work_keep: limits::WORK_KEEP_DEFAULT,
            work_keep_jobs: limits::WORK_KEEP_JOBS_DEFAULT,
            history_jobs: limits::HISTORY_JOBS_DEFAULT,
            history_age: None,
            history_bytes: None,
            tmp_bytes: limits::TMP_BYTES_DEFAULT,
            shm_bytes: limits::SHM_BYTES_DEFAULT,
        }
    }
}

impl Default for Ids {
    fn default() -> Self {
        Self {
            first: limits::IDS_FIRST_DEFAULT,
            count: limits::IDS_COUNT_DEFAULT,
        }
    }
}

fn parse_listen(text: &str) -> Option<SocketAddr> {
    text.parse()
        .ok()
        .filter(|address: &SocketAddr| address.port() != 0)
}

#[cfg(test)]
mod tests;
