//! Jobs that have ended: they are in the store and in no shard's memory, and every shard may read them.

use std::{cell::RefCell, path::PathBuf, rc::Rc};

use super::{desk::chain, driver::Shard, handle::unknown};
use crate::{
    job::{JobId, JobView, Refusal, RefusalCode, State},
    rt,
    store::{ListQuery, Reader, StoreError},
};

/// Connections to the store that nobody reads through right now.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    idle: RefCell<Vec<Reader>>,
}

impl Archive {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self {
            path,
            idle: RefCell::new(Vec::new()),
        }
    }

    /// Reads from the store on the blocking pool.
    ///
    /// # Errors
    /// `Failed` when it cannot be read.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let idle = self.idle.borrow_mut().pop();
        let path = self.path.clone();
        let work = move || {
            let reader = match idle {
                Some(reader) => reader,
                None => Reader::open(&path)?,
            };
            let result = read(&reader)?;
            Ok((reader, result))
        };
        match rt::blocking("read the store", work).await {
            Ok(Ok((reader, result))) => {
                self.idle.borrow_mut().push(reader);
                Ok(result)
            }
            Ok(Err(error)) => Err(unread(&error)),
            Err(error) => Err(Refusal::new(RefusalCode::Busy, error.to_string())),
        }
    }
}

fn unread(error: &StoreError) -> Refusal {
    let error = chain(error);
    tracing::error!(error, "the store cannot be read");
    Refusal::new(RefusalCode::Failed, format!("read the store: {error}"))
}

impl Shard {
    /// One job, live or ended.
    ///
    /// # Errors
    /// Not found; a store that cannot be read.
    pub(super) async fn look(self: &Rc<Self>, id: JobId) -> Result<JobView, Refusal> {
        if let Some(view) = self.view(id) {
            return Ok(view);
        }
        let found = self.archive.read(move |store| store.get(id)).await?;
        match found {
            // One that the store does not know to have ended is some shard's; ours has let it go meanwhile.
            Some(view) => Ok(view),
            None => Err(unknown(&id.to_string())),
        }
    }

    /// Jobs that have ended, in `state`, newest first, at most `limit`.
    ///
    /// # Errors
    /// A store that cannot be read.
    pub(super) async fn ended_jobs(
        &self,
        state: Option<State>,
        limit: usize,
    ) -> Result<Vec<JobView>, Refusal> {
        if state.is_some_and(|state| !state.has_ended()) {
            return Ok(Vec::new());
        }
        self.archive
            .read(move |store| {
                let mut ended = Vec::new();
                let mut before = None;
                loop {
                    let query = ListQuery {
                        state,
                        owner: None,
                        limit: limit.saturating_sub(ended.len()),
                        before,
                    };
                    let (page, next) = store.list(&query)?;
                    // Of those that live the shards know more.
                    ended.extend(page.into_iter().filter(|job| job.outcome.is_some()));
                    before = next;
                    if before.is_none() || ended.len() >= limit {
                        return Ok(ended);
                    }
                }
            })
            .await
    }
}
