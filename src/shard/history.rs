//! Jobs that have ended: they are in the store and in no shard's memory, and every shard may read them.

use std::{cell::RefCell, rc::Rc};

use super::{desk::chain, driver::Shard, handle::unknown};
use crate::{
    job::{Cursor, JobId, JobView, ListQuery, Refusal, RefusalCode},
    rt::{self, Gate},
    store::{self, Reader, StoreError},
};

/// The connection of one shard to the store; who wants it waits for who has it.
#[derive(Debug)]
pub(super) struct Archive {
    reader: RefCell<Option<Reader>>,
    turn: Gate,
}

impl Archive {
    pub(super) fn new(reader: Reader) -> Self {
        Self {
            reader: RefCell::new(Some(reader)),
            turn: Gate::new(1),
        }
    }

    /// Reads from the store on the blocking pool.
    ///
    /// # Errors
    /// `Failed` when it cannot be read, `Busy` when the pool takes no more.
    pub(super) async fn read<T: Send + 'static>(
        self: &Rc<Self>,
        read: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let archive = Rc::clone(self);
        // A task of its own, so that the connection comes back when the caller goes away meanwhile.
        let done = rt::spawn(async move {
            let _turn = archive.turn.enter().await;
            let reader = archive.reader.borrow_mut().take();
            let Some(reader) = reader else {
                return Err(Refusal::new(
                    RefusalCode::Failed,
                    "the store cannot be read any more",
                ));
            };
            let work = move || {
                let result = read(&reader);
                (reader, result)
            };
            match rt::blocking("read the store", work).await {
                Ok((reader, result)) => {
                    archive.reader.replace(Some(reader));
                    result.map_err(|error| unread(&error))
                }
                Err(error) => Err(Refusal::new(RefusalCode::Busy, error.to_string())),
            }
        });
        done.await
            .unwrap_or_else(|panicked| Err(Refusal::new(RefusalCode::Failed, panicked.to_string())))
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

    /// Jobs that have ended, as `query` asks, newest first.
    ///
    /// # Errors
    /// A store that cannot be read.
    pub(super) async fn ended_jobs(&self, query: ListQuery) -> Result<Vec<JobView>, Refusal> {
        if query.state.is_some_and(|state| !state.has_ended()) {
            return Ok(Vec::new());
        }
        self.archive
            .read(move |store| {
                let mut ended = Vec::new();
                let mut before = query
                    .before
                    .map(|Cursor { created_ns, id }| store::Cursor { created_ns, id });
                loop {
                    let (page, next) = store.list(&store::ListQuery {
                        state: query.state,
                        owner: None,
                        limit: query.limit.saturating_sub(ended.len()),
                        before,
                    })?;
                    // Of those that live the shards know more.
                    let is_wanted = |job: &JobView| job.outcome.is_some() && query.includes(job);
                    ended.extend(page.into_iter().filter(is_wanted));
                    before = next;
                    if before.is_none() || ended.len() >= query.limit {
                        return Ok(ended);
                    }
                }
            })
            .await
    }
}
