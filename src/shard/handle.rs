//! What a front may ask of its shard. Requests for jobs of other shards go through the mailbox.

use std::{
    collections::HashSet,
    path::Path,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::{
    admission::admit,
    driver::Shard,
    effect::{Event, NewJob},
    output::Output,
    tree::Tree,
    upload::UploadSink,
};
use crate::{
    cgroup::Enforcement,
    config::{Config, JobLimits},
    job::{
        Accepted, IdempotencyKey, JobId, JobView, LimitKind, Limits, LogQuery, NodeView, Peer,
        Reason, Refusal, RefusalCode, Sample, ShardIndex, Spec, State, StopSignal, WorkKind,
    },
    limits, store,
};

/// The door of one shard, for code on the same thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    shard: Rc<Shard>,
}

/// Configured values that the front needs to complete a request.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `/work` in memory when a submit asks for no size, bytes.
    pub work_memory_bytes: u64,
    /// `/work` on disk when uploads need more than memory and no size was asked, bytes.
    pub work_disk_bytes: u64,
    /// Time between SIGTERM and SIGKILL when a submit asks for none.
    pub grace: Duration,
    /// Limits of a job that asked for none.
    pub default_limits: Limits,
    /// What no job may exceed; `cores` is not used.
    pub max_limits: Limits,
    /// Cores of the host that jobs run on, ascending.
    pub cores: Arc<[u32]>,
    /// Cores of the host that are kept for the daemon, ascending.
    pub reserved_cores: Arc<[u32]>,
}

impl Settings {
    /// What `config` says on a host where the daemon may use `cpus`, ascending.
    pub(super) fn new(config: &Config, cpus: &[usize]) -> Self {
        let reserved = config.jobs.reserved_core_count(cpus.len());
        let numbers = |cpus: &[usize]| {
            cpus.iter()
                .map(|cpu| u32::try_from(*cpu).expect("the kernel numbers cores with 32 bits"))
                .collect()
        };
        Self {
            work_memory_bytes: config.limits.work_memory_bytes,
            work_disk_bytes: config.limits.work_bytes,
            grace: config.jobs.grace,
            default_limits: job_limits(&config.jobs.default),
            max_limits: job_limits(&config.jobs.max),
            cores: numbers(&cpus[reserved..]),
            reserved_cores: numbers(&cpus[..reserved]),
        }
    }
}

const fn job_limits(limits: &JobLimits) -> Limits {
    Limits {
        cpu_percent: limits.cpu_percent,
        memory_bytes: limits.memory_bytes,
        io_bytes_per_second: limits.io_bytes_per_second,
        pids: limits.pids,
        cores: None,
    }
}

impl Handle {
    pub(crate) const fn new(shard: Rc<Shard>) -> Self {
        Self { shard }
    }

    pub(super) const fn shard(&self) -> &Rc<Shard> {
        &self.shard
    }

    /// The number of this shard, from 0.
    #[must_use]
    pub fn shard_index(&self) -> ShardIndex {
        self.shard.index
    }

    /// How many shards there are.
    #[must_use]
    pub fn shard_count(&self) -> usize {
        self.shard.shards
    }

    /// Configured values.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        self.shard.settings()
    }

    /// Makes a job of `owner`. Without uploads it is accepted with this call, when the store keeps it; with uploads
    /// it waits for [`Submission::accept`]. `arrived` is when the request came in, for `start_micros`. A request
    /// with the `key` of an earlier one gives the job of that.
    ///
    /// # Errors
    /// `Busy` when no more jobs fit, the disk is full or the daemon goes down; `Unsupported` for a limit that this
    /// host cannot keep; `Conflict` when `key` was used for another request.
    pub async fn submit(
        &self,
        owner: &Peer,
        spec: Spec,
        key: Option<IdempotencyKey>,
        arrived: Instant,
    ) -> Result<Submission, Refusal> {
        let host = &self.shard.host;
        let room = host.disk.take(limits::JOB_RECORD_BYTES);
        if room.bytes() < limits::JOB_RECORD_BYTES {
            return Err(no_space(&host.base_dir));
        }
        room.settle(0);
        let target = self.shard.place();
        let id = JobId::random_owned_by(target, self.shard.shards);
        let has_uploads = spec.uploads.is_some();
        let work = if spec.work_bytes <= self.settings().work_memory_bytes {
            WorkKind::Memory
        } else {
            WorkKind::Disk
        };
        let enforcement = |limit| host.cgroups.enforcement(limit);
        let default = &host.settings.default_limits;
        let caveats = admit(&spec.limits, default, host.best_effort, enforcement)?;
        let arrived_mono_ns = self.shard.mono_ns_of(arrived);
        let new = NewJob {
            id,
            owner: owner.name.clone(),
            spec,
            work,
            caveats,
            arrived_mono_ns,
        };
        let key = key.map(|key| store::Key {
            owner: owner.name.clone(),
            key: key.key,
            fingerprint: key.fingerprint,
            expires_ns: self.shard.moment().wall_ns + key_life_ns(),
        });
        let submit = move |shard: Rc<Shard>| async move {
            let upload = has_uploads.then(|| shard.open_upload(id)).transpose()?;
            if let Err(refusal) = shard.submit(new, key) {
                shard.forget_upload(id);
                return Err(refusal);
            }
            // Without uploads the client has given everything; its sandbox is made while the store works.
            let accepted = match upload {
                Some(_) => None,
                None => Some(shard.accept(id).await?),
            };
            Ok::<_, Refusal>((upload, accepted))
        };
        let (upload, accepted) = self
            .shard
            .on(target, |shard| Box::pin(submit(shard)))
            .await??;
        let upload = upload.map(UploadSink::new).transpose()?;
        Ok(Submission {
            shard: Rc::clone(&self.shard),
            id,
            upload,
            accepted,
        })
    }

    /// The job whose id starts with `prefix`.
    ///
    /// # Errors
    /// Not found, ambiguous (the hint lists candidates), or no prefix of an id at all.
    pub async fn resolve(&self, prefix: &str) -> Result<JobId, Refusal> {
        let prefix = JobId::check_prefix(prefix).map_err(|error| {
            Refusal::new(RefusalCode::Invalid, error.to_string()).hint("`rnx job list` shows ids")
        })?;
        let mut found = Vec::new();
        for shard in self.shards_for(&prefix) {
            let prefix = prefix.clone();
            found.extend(
                self.shard
                    .on(shard, |shard| {
                        Box::pin(async move { shard.find(&prefix, CANDIDATES) })
                    })
                    .await?,
            );
        }
        // A whole id that a shard knows needs no look into the store.
        if found.is_empty() || JobId::parse(&prefix).is_none() {
            let prefix = prefix.clone();
            let ended = self
                .shard
                .archive
                .read(move |store| store.find(&prefix, CANDIDATES));
            found.extend(ended.await?);
            found.sort_unstable();
            found.dedup();
        }
        match found.as_slice() {
            [] => Err(unknown(&prefix)),
            [id] => Ok(*id),
            several => {
                let list: Vec<String> = several
                    .iter()
                    .take(CANDIDATES)
                    .map(ToString::to_string)
                    .collect();
                Err(Refusal::new(
                    RefusalCode::Conflict,
                    format!("job id {prefix} is ambiguous"),
                )
                .hint(format!("it begins {}", list.join(", "))))
            }
        }
    }

    /// A whole id names its owner; a prefix may be anywhere.
    fn shards_for(&self, prefix: &str) -> std::ops::Range<ShardIndex> {
        match JobId::parse(prefix) {
            Some(id) => {
                let owner = id.owner(self.shard.shards);
                owner..owner + 1
            }
            None => 0..self.shard.shards,
        }
    }

    async fn at_owner<R: Send + 'static>(
        &self,
        id: JobId,
        work: impl FnOnce(Rc<Shard>) -> super::remote::Local<R> + Send + 'static,
    ) -> Result<R, Refusal> {
        self.shard.on(id.owner(self.shard.shards), work).await
    }

    /// One job as it is now.
    ///
    /// # Errors
    /// Not found.
    pub async fn view(&self, id: JobId) -> Result<JobView, Refusal> {
        self.at_owner(id, move |shard| {
            Box::pin(async move { shard.look(id).await })
        })
        .await?
    }

    /// Jobs, newest first, at most `limit`: those of all shards and those that only the store has. A shard that
    /// does not keep up is waited for.
    ///
    /// # Errors
    /// A store that cannot be read.
    pub async fn list(&self, state: Option<State>, limit: usize) -> Result<Vec<JobView>, Refusal> {
        let mut live = Vec::new();
        for shard in 0..self.shard.shards {
            let some = self
                .shard
                .on(shard, move |shard| {
                    Box::pin(async move { shard.list() })
                })
                .await;
            live.extend(some.unwrap_or_default());
        }
        // After the shards: what one of them lets go meanwhile is in the store by then.
        let ended = self.shard.ended_jobs(state, limit).await?;
        let known: HashSet<JobId> = live.iter().map(|job| job.id).collect();
        let wanted = |job: &JobView| state.is_none_or(|state| job.state == state);
        let mut jobs: Vec<JobView> = live.into_iter().filter(wanted).collect();
        jobs.extend(ended.into_iter().filter(|job| !known.contains(&job.id)));
        jobs.sort_by_key(|job| std::cmp::Reverse(created_ns(job)));
        jobs.truncate(limit);
        Ok(jobs)
    }

    /// Asks a job to stop. Asking twice, or after it has ended, is not an error.
    ///
    /// # Errors
    /// Not found.
    pub async fn stop(&self, id: JobId, by: &str, signal: StopSignal) -> Result<JobView, Refusal> {
        let by = by.to_owned();
        self.at_owner(id, move |shard| {
            Box::pin(async move {
                shard.feed(Event::Stop { id, by, signal });
                // What is answered is not forgotten, whatever becomes of this daemon.
                shard.ending_noted(id).await;
                shard.look(id).await
            })
        })
        .await?
    }

    /// Waits until the job has ended.
    ///
    /// # Errors
    /// Not found; `Busy` when the daemon goes down first.
    pub async fn ended(&self, id: JobId) -> Result<JobView, Refusal> {
        self.at_owner(id, move |shard| {
            Box::pin(async move { shard.ended(id).await })
        })
        .await?
    }

    /// The output of a job: history and live as one.
    ///
    /// # Errors
    /// Not found; a log that cannot be read.
    pub async fn follow(&self, id: JobId, query: LogQuery) -> Result<Output, Refusal> {
        Output::open(&self.shard, id, query).await
    }

    /// A file or tree below a job's `/work`. `path` is relative.
    ///
    /// # Errors
    /// Not found; a job whose `/work` is gone.
    pub async fn copy_out(&self, id: JobId, path: &[u8]) -> Result<Tree, Refusal> {
        let root = self
            .at_owner(id, move |shard| {
                Box::pin(async move { shard.open_work(id).await })
            })
            .await??;
        Tree::open(root, path.to_vec()).await
    }

    /// What a job uses now, or, when it has ended, used in all.
    ///
    /// # Errors
    /// Not found; a cgroup that cannot be read.
    pub async fn sample(&self, id: JobId) -> Result<Sample, Refusal> {
        self.at_owner(id, move |shard| {
            Box::pin(async move { shard.sample(id).await })
        })
        .await?
    }

    /// What a job was lately seen to use and what it uses now, oldest first; when it has ended only what it
    /// used in all.
    ///
    /// # Errors
    /// Not found; a cgroup that cannot be read.
    pub async fn samples(&self, id: JobId) -> Result<Vec<Sample>, Refusal> {
        self.at_owner(id, move |shard| {
            Box::pin(async move { shard.samples(id).await })
        })
        .await?
    }

    /// What stands behind a limit on this host.
    #[must_use]
    pub fn enforcement(&self, limit: LimitKind) -> Enforcement {
        self.shard.host.cgroups.enforcement(limit)
    }

    /// What this daemon is.
    pub async fn node(&self) -> NodeView {
        let mut starts = self.shard.starts();
        let mut jobs_live = 0;
        for shard in 0..self.shard.shards {
            let answer = self
                .shard
                .on(shard, |shard| {
                    Box::pin(async move { (shard.live(), shard.starts()) })
                })
                .await;
            let Ok((live, histogram)) = answer else {
                continue;
            };
            jobs_live += live as u64;
            if shard != self.shard.index {
                let _ = starts.add(&histogram);
            }
        }
        self.shard.node(jobs_live, summary(&starts))
    }
}

const CANDIDATES: usize = 5;

fn no_space(base: &Path) -> Refusal {
    let base = base.display();
    Refusal::new(
        RefusalCode::Busy,
        format!("the disk of {base} has nothing left but its reserve, no job is admitted"),
    )
    .hint("jobs that run go on; delete jobs or make space there, and submits are taken again")
}

fn key_life_ns() -> i64 {
    i64::try_from(limits::IDEMPOTENCY_KEY_KEPT.as_nanos()).unwrap_or(i64::MAX)
}

fn summary(starts: &Histogram<u64>) -> (u64, u64, u64) {
    (
        starts.value_at_quantile(0.5),
        starts.value_at_quantile(0.99),
        starts.len(),
    )
}

pub(super) fn created_ns(job: &JobView) -> i64 {
    job.transitions.first().map_or(0, |first| first.wall_ns)
}

pub(super) fn unknown(what: &str) -> Refusal {
    Refusal::new(RefusalCode::NotFound, format!("job {what} not found"))
        .hint("`rnx job list` shows the jobs there are")
}

/// A job that has been made. Dropping it before [`Submission::accept`] discards a job with uploads.
#[derive(Debug)]
pub struct Submission {
    shard: Rc<Shard>,
    id: JobId,
    upload: Option<UploadSink>,
    /// What became of it, once that is known.
    accepted: Option<Accepted>,
}

impl Submission {
    /// Its id, which may turn out to be that of a job that never was: see [`Submission::accept`].
    #[must_use]
    pub const fn id(&self) -> JobId {
        self.id
    }

    /// Where its uploads go, when its spec announced any.
    pub const fn upload(&mut self) -> Option<&mut UploadSink> {
        self.upload.as_mut()
    }

    /// The client has given everything: the job is in the store and will run, or it is an earlier one with the same
    /// idempotency key. With uploads this waits until they are written.
    ///
    /// # Errors
    /// The uploads could not be written, the sandbox could not be made, or the store could not take the job; it is
    /// then discarded.
    pub async fn accept(mut self) -> Result<Accepted, Refusal> {
        if let Some(accepted) = self.accepted {
            return Ok(accepted);
        }
        let id = self.id;
        if let Some(sink) = self.upload.take()
            && let Err(refusal) = sink.finish().await
        {
            return Err(self.why_it_failed().await.unwrap_or(refusal));
        }
        let owner = id.owner(self.shard.shards);
        let accept = move |shard: Rc<Shard>| async move {
            let accepted = shard.accept(id).await?;
            Ok::<_, Refusal>((accepted, shard.look(accepted.id).await?))
        };
        let (accepted, view) = self
            .shard
            .on(owner, move |shard| Box::pin(accept(shard)))
            .await??;
        self.accepted = Some(accepted);
        match start_failure(&view) {
            Some(refusal) if !accepted.existing => Err(refusal),
            Some(_) | None => Ok(accepted),
        }
    }

    /// When writing fails because the sandbox failed, that is what the user must hear.
    async fn why_it_failed(&self) -> Option<Refusal> {
        end_soon(&self.shard, self.id)
            .await
            .as_ref()
            .and_then(start_failure)
    }
}

/// The job's end, if it comes soon.
async fn end_soon(shard: &Rc<Shard>, id: JobId) -> Option<JobView> {
    let owner = id.owner(shard.shards);
    let ended = shard.on(owner, move |shard| {
        Box::pin(async move { shard.ended(id).await })
    });
    crate::rt::timeout(limits::START_FAILURE_WAIT, ended)
        .await
        .ok()?
        .ok()?
        .ok()
}

fn start_failure(view: &JobView) -> Option<Refusal> {
    match &view.outcome.as_ref()?.reason {
        Reason::StartFailed { step, errno } => {
            let error = std::io::Error::from_raw_os_error(*errno);
            Some(Refusal::new(
                RefusalCode::Failed,
                format!("job {} could not be started: {step}: {error}", view.id),
            ))
        }
        Reason::Exited
        | Reason::Signaled
        | Reason::OutOfMemory
        | Reason::Timeout
        | Reason::Stopped { .. }
        | Reason::Canceled
        | Reason::LogLimit
        | Reason::CommandNotFound
        | Reason::CommandNotExecutable { .. }
        | Reason::HostLost
        | Reason::DaemonDown => None,
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        if self.accepted.is_none() {
            let (id, owner) = (self.id, self.id.owner(self.shard.shards));
            self.shard
                .post_or_run(owner, move |shard| shard.feed(Event::Abandon(id)));
        }
    }
}
