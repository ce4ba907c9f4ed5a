//! Small output of ended jobs: off its files, into the store with the end, and then the files go.
//!
//! ```text
//! drained ─► bytes in memory ─► one commit: end and output ─► directory removed
//!            files ─────────────────────────────────────────────────┘ whoever dies before leaves them,
//!                                                                     and the next start removes them
//! ```
//! The files are read until the store has the bytes, and after that by nobody who comes new: a reader that misses
//! one asks the store. What does not fit, or cannot be read, stays in files for good.

use std::{cell::RefCell, rc::Rc};

use super::{desk::chain, driver::Shard, records::Open};
use crate::{
    job::JobId,
    limits,
    log::{Capture, JobFiles, Place, Whole},
    rt::{self, Notify},
    store::SmallOutput,
};

/// Jobs whose output the store has and whose directories are to go.
#[derive(Debug, Default)]
pub(super) struct Emptied {
    /// A daemon that goes down waits for these.
    jobs: RefCell<Vec<(JobId, Open)>>,
    more: Notify,
}

impl Shard {
    /// Where the output of a job lies, for whoever reads it.
    pub(super) fn place_of(&self, id: JobId) -> Place {
        let archive = Rc::clone(&self.archive);
        let moved = move || {
            let archive = Rc::clone(&archive);
            let output = async move { archive.read(move |store| store.output(id)).await };
            let whole = async move { Ok(output.await?.map(into_whole)) };
            Box::pin(whole) as crate::log::Found
        };
        Place::new(self.files(id), Rc::new(moved))
    }

    /// The files of a job's output, which need not exist.
    pub(super) fn files(&self, id: JobId) -> JobFiles {
        JobFiles::new(&self.host.base_dir, id)
    }

    /// All output of a drained job, when the store may take it.
    pub(super) async fn small_output(&self, id: JobId, capture: &Capture) -> Option<SmallOutput> {
        match capture.whole(SmallOutput::fits).await {
            Ok(whole) => whole.map(from_whole),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(job_id = %id, error, "output of a job stays in files");
                None
            }
        }
    }

    /// Has the directory of a job removed, soon: the store has its output.
    pub(super) fn remove_emptied(&self, id: JobId) {
        let mut jobs = self.emptied.jobs.borrow_mut();
        if jobs.len() >= limits::EMPTIED_JOBS_MAX {
            tracing::warn!(job_id = %id, "files of a job are left to the next start: too many are to go");
            return;
        }
        jobs.push((id, self.records.begin()));
        drop(jobs);
        self.emptied.more.notify_one();
    }

    /// Removes directories of jobs whose output has moved, for ever.
    pub(super) async fn serve_emptied(self: Rc<Self>) {
        loop {
            self.emptied.more.notified().await;
            // Nobody waits for it, and many with one call keep a thread from being woken for each.
            rt::sleep(limits::EMPTIED_PAUSE).await;
            let jobs = std::mem::take(&mut *self.emptied.jobs.borrow_mut());
            if jobs.is_empty() {
                continue; // They went with the last ones.
            }
            self.remove_all(jobs.iter().map(|(id, _)| *id).collect())
                .await;
            drop(jobs);
        }
    }

    async fn remove_all(&self, ids: Vec<JobId>) {
        let all: Vec<JobFiles> = ids.into_iter().map(|id| self.files(id)).collect();
        let remove = move || {
            for files in all {
                if let Err(error) = files.remove_now() {
                    let error = chain(&error);
                    tracing::warn!(
                        error,
                        "files whose contents are in the store are left to the next start"
                    );
                }
            }
        };
        if let Err(error) = rt::blocking("remove small logs", remove).await {
            tracing::warn!(%error, "files whose contents are in the store are left to the next start");
        }
    }

    /// Removes what a former daemon had not removed yet. One shard does it for all.
    pub(super) async fn remove_left(self: Rc<Self>) {
        let base = self.host.base_dir.clone();
        let listed = rt::blocking("list logs", move || JobFiles::all(&base)).await;
        let found = match listed {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                return tracing::warn!(error = chain(&error), "logs cannot be listed");
            }
            Err(error) => return tracing::warn!(%error, "logs cannot be listed"),
        };
        let mut count = 0;
        for some in found.chunks(limits::EMPTIED_LOOK_JOBS) {
            let ids = some.to_vec();
            match self
                .archive
                .read(move |store| store.with_output(&ids))
                .await
            {
                Ok(ids) if ids.is_empty() => {}
                Ok(ids) => {
                    count += ids.len();
                    self.remove_all(ids).await;
                }
                // It has been logged.
                Err(_) => return,
            }
        }
        if count > 0 {
            tracing::info!(
                count,
                "files whose contents were in the store already are removed"
            );
        }
    }
}

fn into_whole(output: SmallOutput) -> Whole {
    let SmallOutput {
        stdout,
        stderr,
        index,
    } = output;
    Whole {
        stdout,
        stderr,
        index,
    }
}

/// As the store takes it.
pub(super) fn from_whole(whole: Whole) -> SmallOutput {
    let Whole {
        stdout,
        stderr,
        index,
    } = whole;
    SmallOutput {
        stdout,
        stderr,
        index,
    }
}
