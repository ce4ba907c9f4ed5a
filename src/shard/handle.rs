//! What a front may ask of its shard. Requests for jobs of other shards go through the mailbox.

use std::{
    collections::HashSet,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::{
    beneath::Root,
    driver::Shard,
    effect::Event,
    output::Output,
    remote::Local,
    submission::{Asked, Submission},
    tree::Tree,
};
use crate::{
    cgroup::Enforcement,
    config::{Config, JobLimits},
    job::{
        Cursor, Deleted, IdempotencyKey, JobId, JobView, LimitKind, Limits, ListQuery, LogQuery,
        NodeView, Peer, Refusal, RefusalCode, Sample, ShardIndex, Spec, State, StopSignal,
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
    /// `Busy` when no more jobs fit, the disk is full or the daemon goes down; `TooLarge` for what the queue's budget
    /// can never hold; `Unsupported` for a limit that this host cannot keep; `Conflict` when `key` was used for
    /// another request.
    pub async fn submit(
        &self,
        owner: &Peer,
        spec: Spec,
        key: Option<IdempotencyKey>,
        arrived: Instant,
    ) -> Result<Submission, Refusal> {
        let key = key.map(|key| store::Key {
            owner: owner.name.clone(),
            key: key.key,
            fingerprint: key.fingerprint,
            expires_ns: self.shard.moment().wall_ns + key_life_ns(),
        });
        let request = Asked {
            owner: owner.name.clone(),
            spec,
            key,
            schedule_id: None,
            arrived,
        };
        Submission::make(&self.shard, request).await
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
        work: impl FnOnce(Rc<Shard>) -> Local<R> + Send + 'static,
    ) -> Result<R, Refusal> {
        self.shard.on(id.owner(self.shard.shards), work).await
    }

    /// One job as it is now.
    ///
    /// # Errors
    /// Not found.
    pub async fn view(&self, id: JobId) -> Result<JobView, Refusal> {
        let look =
            move |shard: Rc<Shard>| -> Local<_> { Box::pin(async move { shard.look(id).await }) };
        let mut view = self.at_owner(id, look).await??;
        if view.state == State::Queued {
            // What it waits for changes with every job that ends.
            view.waits_for = self.shard.why_queued(id).await.or(view.waits_for);
        }
        Ok(view)
    }

    /// Jobs, newest first, and where to go on when there are more: those of all shards and those that only the store
    /// has. A shard that does not keep up is waited for.
    ///
    /// # Errors
    /// A store that cannot be read.
    pub async fn list(&self, query: ListQuery) -> Result<(Vec<JobView>, Option<Cursor>), Refusal> {
        let mut live = Vec::new();
        for shard in 0..self.shard.shards {
            let some = self
                .shard
                .on(shard, move |shard| Box::pin(async move { shard.list() }))
                .await;
            live.extend(some.unwrap_or_default());
        }
        // After the shards: what one of them lets go meanwhile is in the store by then. One more than asked for
        // tells that there is more.
        let limit = query.limit.saturating_add(1);
        let ended = self.shard.ended_jobs(ListQuery { limit, ..query }).await?;
        let known: HashSet<JobId> = live.iter().map(|job| job.id).collect();
        let mut jobs: Vec<JobView> = live.into_iter().filter(|job| query.includes(job)).collect();
        jobs.extend(ended.into_iter().filter(|job| !known.contains(&job.id)));
        Ok(query.page(jobs))
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
                shard.noted_progress(id).await;
                shard.look(id).await
            })
        })
        .await?
    }

    /// Cancels a job that has not begun. Canceling twice is not an error.
    ///
    /// # Errors
    /// Not found; `Conflict` for a job that has begun or ended otherwise.
    pub async fn cancel(&self, id: JobId, _by: &str) -> Result<JobView, Refusal> {
        self.at_owner(id, move |shard| {
            Box::pin(async move {
                shard.feed(Event::Cancel(id));
                let view = shard.look(id).await?;
                match view.state {
                    State::Canceled => Ok(view),
                    State::Scheduled
                    | State::Queued
                    | State::Initializing
                    | State::Running
                    | State::Stopping => {
                        Err(conflict(format!("job {id} has begun")).hint("`rnx job stop` stops it"))
                    }
                    State::Completed | State::Failed | State::Stopped | State::Timeout => {
                        Err(conflict(format!("job {id} has ended")))
                    }
                }
            })
        })
        .await?
    }

    /// Deletes a job that has ended, its output and all that is known of it.
    ///
    /// # Errors
    /// Not found; `Conflict` when it has not ended.
    pub async fn delete(&self, id: JobId) -> Result<(), Refusal> {
        self.at_owner(id, move |shard| {
            Box::pin(async move {
                let view = shard.look(id).await?;
                if !view.state.has_ended() {
                    return Err(conflict(format!("job {id} has not ended"))
                        .hint("`rnx job stop` or `rnx job cancel` ends it"));
                }
                shard.delete(vec![id]).await.map(drop)
            })
        })
        .await?
    }

    /// Deletes every job that has ended and whose owner is `allowed`; the others are skipped.
    ///
    /// # Errors
    /// `Busy` when a shard does not keep up; what was deleted until then stays so.
    pub async fn delete_all(
        &self,
        allowed: impl Fn(&str) -> bool + Clone + Send + 'static,
    ) -> Result<Deleted, Refusal> {
        let mut live = Vec::new();
        for shard in 0..self.shard.shards {
            let some = self
                .shard
                .on(shard, move |shard| Box::pin(async move { shard.list() }))
                .await?;
            live.extend(some.into_iter().filter(|job| job.outcome.is_none()));
        }
        let mut done = Deleted {
            deleted: 0,
            skipped: live.len() as u64,
        };
        let mut before = None;
        loop {
            let query = ListQuery {
                state: None,
                schedules: false,
                limit: limits::STORE_DELETE_JOBS,
                before,
            };
            let jobs = self.shard.ended_jobs(query).await?;
            before = jobs.last().map(Cursor::of);
            if before.is_none() {
                return Ok(done);
            }
            let (mine, others): (Vec<_>, Vec<_>) =
                jobs.into_iter().partition(|job| allowed(&job.owner));
            done.skipped += others.len() as u64;
            let ids = mine.into_iter().map(|job| job.id).collect();
            done.deleted += self.shard.delete(ids).await?;
        }
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
        Tree::open(root, path.to_vec(), Root::Work).await
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

fn key_life_ns() -> i64 {
    i64::try_from(limits::IDEMPOTENCY_KEPT.as_nanos()).unwrap_or(i64::MAX)
}

fn summary(starts: &Histogram<u64>) -> (u64, u64, u64) {
    (
        starts.value_at_quantile(0.5),
        starts.value_at_quantile(0.99),
        starts.len(),
    )
}

fn conflict(message: String) -> Refusal {
    Refusal::new(RefusalCode::Conflict, message)
}

pub(super) fn unknown(what: &str) -> Refusal {
    Refusal::new(RefusalCode::NotFound, format!("job {what} not found"))
        .hint("`rnx job list` shows the jobs there are")
}
