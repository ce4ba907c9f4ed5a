//! Volumes are made and removed on the first shard, each step between two words to the store.
//!
//! ```text
//! create: registry ─► row creating ─► image, mount ─► row ready    ─► registry ─► answer
//! remove: registry ─► row removing ─► all of it    ─► row deleted  ─► registry ─► answer
//! ```
//! A daemon that dies anywhere in it leaves a row that says what the next one has to undo or to finish.

use std::{rc::Rc, sync::Arc};

use super::{
    KEEPER,
    registry::{Became, Kept, Known, in_use},
};
use crate::{
    job::{Refusal, RefusalCode, VolumeKind, VolumeName, VolumeSpec, VolumeView},
    limits, rt,
    shard::{desk::chain, driver::Shard, records::Unkept, remote::Local, tree::busy},
    store::{Change, StoreError, StoredVolume, VolumeState},
    volume::{VolumeError, Volumes},
};

impl Shard {
    /// Does something on the first shard to its end, whether or not the one who asked waits for it.
    async fn at_keeper<R: Send + 'static>(
        self: &Rc<Self>,
        work: impl FnOnce(Rc<Self>) -> Local<Result<R, Refusal>> + Send + 'static,
    ) -> Result<R, Refusal> {
        self.on(KEEPER, move |there| {
            let work = rt::spawn(work(there));
            Box::pin(async move {
                work.await
                    .unwrap_or_else(|bug| Err(failed(bug.to_string())))
            })
        })
        .await?
    }

    /// Makes a volume, whatever becomes of the one who asked.
    ///
    /// # Errors
    /// `Conflict` for a name that is taken; `Busy` when the disk is full; `Failed` with the step that did.
    pub(super) async fn create_volume(
        self: &Rc<Self>,
        spec: VolumeSpec,
    ) -> Result<VolumeView, Refusal> {
        self.at_keeper(move |there| Box::pin(there.create_here(spec)))
            .await
    }

    async fn create_here(self: Rc<Self>, spec: VolumeSpec) -> Result<VolumeView, Refusal> {
        let is_on_disk = spec.kind == VolumeKind::Filesystem;
        if is_on_disk && !self.host.disk.has_room(limits::JOB_RECORD_BYTES) {
            return Err(no_space(&self.host.base_dir));
        }
        let created_ns = self.moment().wall_ns;
        let name = spec.name.clone();
        self.shelf
            .registry
            .borrow_mut()
            .begin_create(spec.clone(), created_ns)?;
        let open = self.records.begin();
        let (became, answer) = self.make_volume(&spec, created_ns).await;
        self.shelf.registry.borrow_mut().settle(&name, became);
        drop(open);
        answer?;
        let known = self.shelf.registry.borrow().get(&name)?;
        let mut views = self.show_volumes(vec![known]).await?;
        views.pop().ok_or_else(|| failed("no volume was looked at"))
    }

    async fn make_volume(
        self: &Rc<Self>,
        spec: &VolumeSpec,
        created_ns: i64,
    ) -> (Became, Result<(), Refusal>) {
        let volume = Box::new(StoredVolume {
            spec: spec.clone(),
            created_ns,
            state: VolumeState::Creating,
        });
        if let Err(error) = self.records.submit(Change::PutVolume { volume }).await {
            return (Became::Gone, Err(unrecorded(&error)));
        }
        let (host, wanted) = (Arc::clone(&self.host), spec.clone());
        let make = move || host.volumes.create(&wanted, created_ns);
        let made = match rt::blocking("make a volume", make).await {
            Ok(Ok(())) => {
                let state = VolumeState::Ready;
                let name = spec.name.clone();
                match self.records.submit(Change::SetVolume { name, state }).await {
                    Ok(_) => return (Became::Ready, Ok(())),
                    Err(error) => Err(unrecorded(&error)),
                }
            }
            // Whatever that is, it is not of our making.
            Ok(Err(error @ VolumeError::Exists { .. })) => {
                return (self.forget_volume(&spec.name).await, Err(error.refusal()));
            }
            Ok(Err(error)) => Err(error.refusal()),
            Err(error) => Err(busy(&error)),
        };
        (self.clear_away(&spec.name).await, made)
    }

    /// Removes a volume that no job has, whatever becomes of the one who asked. One that a job has until just now is
    /// waited for.
    ///
    /// # Errors
    /// `Conflict` when a job that has not ended names it; `NotFound`; `Failed` when something is left of it.
    pub(super) async fn remove_volume(self: &Rc<Self>, name: &VolumeName) -> Result<(), Refusal> {
        let name = name.clone();
        self.at_keeper(move |there| Box::pin(there.remove_here(name)))
            .await
    }

    async fn remove_here(self: Rc<Self>, name: VolumeName) -> Result<(), Refusal> {
        self.begin_remove(&name).await?;
        let open = self.records.begin();
        let state = VolumeState::Removing;
        let noted = Change::SetVolume {
            name: name.clone(),
            state,
        };
        let became = match self.records.submit(noted).await {
            Ok(_) => self.clear_away(&name).await,
            Err(error) => {
                let mut registry = self.shelf.registry.borrow_mut();
                registry.settle(&name, Became::Untouched);
                return Err(unrecorded(&error));
            }
        };
        let answer = match &became {
            Became::Gone => Ok(()),
            Became::Stuck(why) => Err(failed(format!("failed to remove volume {name}: {why}"))
                .hint(format!(
                    "`rnx volume remove {name}` tries again, and so does the daemon's next start"
                ))),
            Became::Ready | Became::Untouched => Err(failed("a removed volume is there")),
        };
        self.shelf.registry.borrow_mut().settle(&name, became);
        drop(open);
        answer
    }

    /// Asks the registry, and once more when those that had the volume were ending.
    async fn begin_remove(self: &Rc<Self>, name: &VolumeName) -> Result<(), Refusal> {
        let begin = || self.shelf.registry.borrow_mut().begin_remove(name);
        let mut kept = begin();
        if let Err(Kept::InUse(jobs)) = &kept {
            for job in jobs.clone() {
                let look = move |there: Rc<Self>| async move {
                    let is_leaving = there.is_leaving(job).await;
                    is_leaving || there.live_view(job).is_none()
                };
                let owner = job.owner(self.shards);
                if !self.on(owner, move |there| Box::pin(look(there))).await? {
                    break;
                }
            }
            kept = begin();
        }
        match kept {
            Ok(_) => Ok(()),
            Err(Kept::InUse(jobs)) => Err(in_use(&jobs)),
            Err(Kept::Refused(refusal)) => Err(refusal),
        }
    }

    /// Removes what there is of a volume, then its row.
    async fn clear_away(self: &Rc<Self>, name: &VolumeName) -> Became {
        let (host, going) = (Arc::clone(&self.host), name.clone());
        let removed = rt::blocking("remove a volume", move || host.volumes.remove(&going)).await;
        let why = match removed {
            Ok(Ok(())) => return self.forget_volume(name).await,
            Ok(Err(error)) => chain(&error),
            Err(error) => error.to_string(),
        };
        tracing::error!(volume = %name, why, "a volume is not cleared away");
        Became::Stuck(why)
    }

    /// Deletes the row of a volume of which nothing is left.
    async fn forget_volume(self: &Rc<Self>, name: &VolumeName) -> Became {
        let change = Change::DeleteVolume { name: name.clone() };
        match self.records.submit(change).await {
            Ok(_) => Became::Gone,
            Err(error) => {
                let why = chain(&error);
                tracing::error!(volume = %name, why, "a volume that is gone stays in the store");
                Became::Stuck(why)
            }
        }
    }

    /// What is known of volumes, with what is in them now.
    pub(super) async fn show_volumes(
        self: &Rc<Self>,
        known: Vec<Known>,
    ) -> Result<Vec<VolumeView>, Refusal> {
        let host = Arc::clone(&self.host);
        let look = move || {
            let show = |known| show(&host.volumes, known);
            known.into_iter().map(show).collect()
        };
        rt::blocking("look at volumes", look)
            .await
            .map_err(|error| busy(&error))
    }
}

fn show(volumes: &Volumes, known: Known) -> VolumeView {
    let usage = volumes.usage(&known.spec);
    let damage = known.damage.or_else(|| match &usage {
        Ok(usage) if usage.is_failing => Some(FAILING.to_owned()),
        Ok(_) => None,
        Err(error) => Some(chain(error)),
    });
    VolumeView {
        used_bytes: usage.ok().map(|usage| usage.used_bytes),
        spec: known.spec,
        created_ns: known.created_ns,
        jobs: known.jobs,
        damage,
    }
}

/// What is said of a volume whose file system had to stop.
pub(super) const FAILING: &str = "damaged: host disk full";

fn no_space(base: &std::path::Path) -> Refusal {
    let base = base.display();
    let message = format!("the disk of {base} has nothing left but its reserve, no volume is made");
    Refusal::new(RefusalCode::Busy, message).hint("make space there, or delete jobs and volumes")
}

fn failed(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::Failed, message)
}

/// Why the store did not note what becomes of a volume.
fn unrecorded(error: &Unkept) -> Refusal {
    match error {
        Unkept::Refused(StoreError::Full) => Refusal::new(
            RefusalCode::Busy,
            "the disk of the state directory is full and the volume cannot be recorded",
        )
        .hint("make space there, and try again"),
        Unkept::Refused(StoreError::VolumeExists { name }) => Refusal::new(
            RefusalCode::Conflict,
            format!("volume {name} already exists"),
        )
        .hint("the store has a record of it that cannot be read; the daemon's log says more"),
        Unkept::Backlog | Unkept::Closed => {
            Refusal::new(RefusalCode::Busy, error.to_string()).hint("try again in a moment")
        }
        Unkept::Refused(other) => {
            failed(format!("the volume cannot be recorded: {}", chain(other)))
        }
    }
}
