//! A submit on its way from a request to a job that the store keeps.

use std::{path::Path, rc::Rc, time::Instant};

use super::{
    admission::admit,
    driver::Shard,
    effect::{Event, NewJob, Start},
    places::demand,
    queue::Answer,
    upload::UploadSink,
};
use crate::{
    job::{Accepted, JobId, JobView, Reason, Refusal, RefusalCode, Schedule, Spec, WorkKind},
    limits, rt, store,
};

/// What is asked of a new job.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) owner: String,
    pub(super) spec: Spec,
    pub(super) key: Option<store::Key>,
    /// The schedule that it is a repetition of.
    pub(super) schedule_id: Option<JobId>,
    pub(super) arrived: Instant,
}

/// A job that has been made. Dropping it before [`Submission::accept`] discards a job with uploads.
#[derive(Debug)]
pub struct Submission {
    shard: Rc<Shard>,
    id: JobId,
    upload: Option<UploadSink>,
    /// Its uploads go to the disk; no sandbox is made yet that could fail.
    is_spooled: bool,
    /// What became of it, once that is known.
    accepted: Option<Accepted>,
}

impl Submission {
    /// Makes the job, on this shard or another one. Without uploads it is accepted with this call.
    ///
    /// Whatever is in the way of a new job is not in the way of one that was made before: what is refused is looked
    /// up by its key, and only then, as the store looks at the key of every job that it takes.
    pub(super) async fn make(shard: &Rc<Shard>, asked: Asked) -> Result<Self, Refusal> {
        let target = shard.place();
        let id = JobId::random_owned_by(target, shard.shards);
        let key = asked.key.clone();
        let refusal = match Self::make_new(shard, asked, target, id).await {
            Ok(made) => return Ok(made),
            Err(refusal) => refusal,
        };
        let Some(key) = key else {
            return Err(refusal);
        };
        let accepted = shard.recall(key, id, refusal).await?;
        Ok(Self {
            shard: Rc::clone(shard),
            id: accepted.id,
            upload: None,
            is_spooled: false,
            accepted: Some(accepted),
        })
    }

    async fn make_new(
        shard: &Rc<Shard>,
        asked: Asked,
        target: usize,
        id: JobId,
    ) -> Result<Self, Refusal> {
        let host = &shard.host;
        if !host.disk.has_room(limits::JOB_RECORD_BYTES) {
            return Err(no_space(&host.base_dir));
        }
        let spec = asked.spec;
        // Work with volumes is work with much data, which memory is too small for.
        let is_small = spec.work_bytes <= host.settings.work_memory_bytes;
        let work = if is_small && spec.volumes.is_empty() {
            WorkKind::Memory
        } else {
            WorkKind::Disk
        };
        let enforcement = |limit| host.cgroups.enforcement(limit);
        let default = &host.settings.default_limits;
        let caveats = admit(&spec.limits, default, host.best_effort, enforcement)?;
        // Before anything of it exists: what it names cannot be removed any more.
        let hold = shard.hold_volumes(id, &spec.volumes).await?;
        let start = match spec.schedule.as_ref() {
            Some(schedule) => Start::At(first_run(schedule, shard.moment().wall_ns)?),
            None if host.has_queue => {
                let demand = demand(id, &asked.owner, &spec, shard.moment().wall_ns);
                match shard.ask_place(demand).await? {
                    Answer::Granted => Start::Now,
                    Answer::Waits(why) => Start::Queued(why),
                }
            }
            None => Start::Now,
        };
        let has_place = host.has_queue && !matches!(start, Start::At(_));
        // Of a repetition they lie there already.
        let is_spooled =
            start != Start::Now && asked.schedule_id.is_none() && spec.uploads.is_some();
        let spool = match is_spooled {
            true => Some(shard.spool.create(id).await),
            false => None,
        };
        let spool = spool.transpose().inspect_err(|_| {
            if has_place {
                shard.give_back(id);
            }
        })?;
        let new = NewJob {
            id,
            owner: asked.owner,
            spec,
            work,
            caveats,
            arrived_mono_ns: shard.mono_ns_of(asked.arrived),
            schedule_id: asked.schedule_id,
            start,
            has_place,
        };
        let key = asked.key;
        let has_volumes = !new.spec.volumes.is_empty();
        let submit = move |there: Rc<Shard>| async move {
            let give_back = || {
                if has_place {
                    there.give_back(id);
                }
                if has_volumes {
                    there.release_volumes(id);
                }
            };
            let upload = there.open_upload(&new).inspect_err(|_| give_back())?;
            if let Err(refusal) = there.submit(new, key) {
                there.forget_upload(id);
                give_back();
                return Err(refusal);
            }
            if is_spooled {
                there.spooled.borrow_mut().insert(id);
            }
            // Without uploads the client has given everything; its sandbox is made while the store works.
            let accepted = match upload {
                None if !is_spooled => Some(there.accept(id).await?),
                Some(_) | None => None,
            };
            Ok::<_, Refusal>((upload, accepted))
        };
        let taken = shard.on(target, |there| Box::pin(submit(there)));
        // It is asked at once, and answers for what the job has whether or not we wait for it.
        hold.pass_on();
        let taken = taken.await.inspect_err(|_| {
            if has_volumes {
                shard.release_volumes(id);
            }
        });
        let (upload, accepted) = taken??;
        let upload = match spool {
            Some(spool) => Some(spool.into()),
            None => upload.map(UploadSink::new).transpose()?,
        };
        Ok(Self {
            shard: Rc::clone(shard),
            id,
            upload,
            is_spooled,
            accepted,
        })
    }

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
            let cause = match self.is_spooled {
                true => None,
                false => self.why_it_failed().await,
            };
            return Err(cause.unwrap_or(refusal));
        }
        let owner = id.owner(self.shard.shards);
        let accept = move |shard: Rc<Shard>| async move {
            let accepted = shard.accept(id).await?;
            Ok::<_, Refusal>((accepted, shard.look(accepted.id).await?))
        };
        let accepted = self
            .shard
            .on(owner, move |shard| Box::pin(accept(shard)))
            .await?;
        let (accepted, view) = accepted?;
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

fn no_space(base: &Path) -> Refusal {
    let base = base.display();
    Refusal::new(
        RefusalCode::Busy,
        format!("the disk of {base} has nothing left but its reserve, no job is admitted"),
    )
    .hint("jobs that run go on; delete jobs or make space there, and submits are taken again")
}

/// When a schedule that was just asked for is due first.
fn first_run(schedule: &Schedule, now_ns: i64) -> Result<i64, Refusal> {
    schedule
        .next_run(now_ns, None)
        .ok_or_else(|| Refusal::new(RefusalCode::Invalid, "the schedule never comes true"))
}

/// The job's end, if it comes soon.
async fn end_soon(shard: &Rc<Shard>, id: JobId) -> Option<JobView> {
    let owner = id.owner(shard.shards);
    let ended = shard.on(owner, move |shard| {
        Box::pin(async move { shard.ended(id).await })
    });
    rt::timeout(limits::START_FAILURE_WAIT, ended)
        .await
        .ok()?
        .ok()?
        .ok()
}

fn start_failure(view: &JobView) -> Option<Refusal> {
    match &view.outcome.as_ref()?.reason {
        Reason::StartFailed { step, errno } => {
            let mut message = format!("job {} could not be started: {step}", view.id);
            if *errno != 0 {
                let error = std::io::Error::from_raw_os_error(*errno);
                message = format!("{message}: {error}");
            }
            Some(Refusal::new(RefusalCode::Failed, message))
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
