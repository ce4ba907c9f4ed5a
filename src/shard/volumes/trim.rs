//! Space that deleted files of volumes had is given back to the host: when a job that could delete some has ended,
//! and when the host is short of space.
//!
//! One volume after the other, on the blocking pool; one that is asked for twice before its turn has one turn.

use std::{collections::BTreeSet, rc::Rc, sync::Arc};

use crate::{
    job::VolumeName,
    rt,
    shard::{desk::chain, driver::Shard},
};

impl Shard {
    /// Has volumes trimmed, soon.
    pub(super) fn trim_volumes(&self, names: impl IntoIterator<Item = VolumeName>) {
        let mut untrimmed = self.shelf.untrimmed.borrow_mut();
        let before = untrimmed.len();
        untrimmed.extend(names);
        if untrimmed.len() > before {
            self.shelf.has_untrimmed.notify_one();
        }
    }

    /// Has every volume trimmed, soon.
    pub(super) fn trim_all_volumes(&self) {
        let all: BTreeSet<_> = {
            let registry = self.shelf.registry.borrow();
            registry.iter().map(|known| known.spec.name).collect()
        };
        self.trim_volumes(all);
    }

    /// Trims what is to be trimmed, for ever. Only on the first shard.
    pub(in crate::shard) async fn serve_trims(self: Rc<Self>) {
        loop {
            let next = self.shelf.untrimmed.borrow_mut().pop_first();
            let Some(name) = next else {
                self.shelf.has_untrimmed.notified().await;
                continue;
            };
            // It may have been removed meanwhile.
            let known = self.shelf.registry.borrow().get(&name);
            let Ok(known) = known else { continue };
            let host = Arc::clone(&self.host);
            match rt::blocking("trim a volume", move || host.volumes.trim(&known.spec)).await {
                Ok(Ok(bytes)) => tracing::debug!(volume = %name, bytes, "a volume is trimmed"),
                Ok(Err(error)) => {
                    tracing::debug!(volume = %name, error = chain(&error), "a volume is not trimmed");
                }
                Err(error) => tracing::debug!(volume = %name, %error, "a volume is not trimmed"),
            }
        }
    }
}
