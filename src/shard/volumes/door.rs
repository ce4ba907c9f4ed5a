//! What a front may ask about volumes.

use std::{rc::Rc, sync::Arc};

use super::{KEEPER, VolumeSink, registry::Known};
use crate::{
    job::{Refusal, RefusalCode, VolumeKind, VolumeName, VolumeSpec, VolumeView},
    rt,
    shard::{Handle, Tree, beneath::Root, driver::Shard, tree::busy},
    volume::VolumeError,
};

impl Handle {
    /// Makes a volume: when this returns it is mounted and outlives the daemon.
    ///
    /// # Errors
    /// `Conflict` when the name is taken; `Busy` or `Failed` with what could not be done, and then nothing of it is
    /// left.
    pub async fn create_volume(&self, spec: VolumeSpec) -> Result<VolumeView, Refusal> {
        self.shard().create_volume(spec).await
    }

    /// What volumes of a kind are made of here, in words.
    ///
    /// # Errors
    /// `Failed` with what is missing.
    pub async fn volume_mechanism(&self, kind: VolumeKind) -> Result<String, Refusal> {
        let host = Arc::clone(&self.shard().host);
        let look = move || host.volumes.mechanism(kind);
        let found = rt::blocking("look at what volumes are made of", look).await;
        let found = found.map_err(|error| busy(&error))?;
        found.map_err(|error| error.refusal())
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// `Busy` when the first shard or the blocking pool does not keep up.
    pub async fn volumes(&self) -> Result<Vec<VolumeView>, Refusal> {
        let shard = self.shard();
        let known = shard.on(KEEPER, |there| {
            let known = there.shelf.registry.borrow().iter().collect();
            Box::pin(async move { known })
        });
        let known = known.await?;
        shard.show_volumes(known).await
    }

    /// One volume.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn volume(&self, name: &VolumeName) -> Result<VolumeView, Refusal> {
        let known = self.shard().known_volume(name).await?;
        let mut views = self.shard().show_volumes(vec![known]).await?;
        let none = || Refusal::new(RefusalCode::Failed, "no volume was looked at");
        views.pop().ok_or_else(none)
    }

    /// Removes a volume and all that is in it.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when a job that has not ended names it.
    pub async fn remove_volume(&self, name: &VolumeName) -> Result<(), Refusal> {
        self.shard().remove_volume(name).await
    }

    /// A file or tree of a volume. `path` is relative to its root; all of it when that is empty.
    ///
    /// # Errors
    /// Not found; a volume that cannot be reached.
    pub async fn copy_from_volume(&self, name: &VolumeName, path: &[u8]) -> Result<Tree, Refusal> {
        let known = self.shard().known_volume(name).await?;
        let host = Arc::clone(&self.shard().host);
        let root = rt::blocking("open a volume", move || host.volumes.root(&known.spec))
            .await
            .map_err(|error| busy(&error))?;
        let root = root.map_err(|error: VolumeError| error.refusal())?;
        Tree::open(root, path.to_vec(), Root::Volume(name.clone())).await
    }

    /// Takes a tree into a volume.
    ///
    /// # Errors
    /// Not found; a volume that cannot be reached.
    pub async fn copy_into_volume(&self, name: &VolumeName) -> Result<VolumeSink, Refusal> {
        let known = self.shard().known_volume(name).await?;
        VolumeSink::open(Arc::clone(&self.shard().host), known.spec).await
    }
}

impl Shard {
    async fn known_volume(self: &Rc<Self>, name: &VolumeName) -> Result<Known, Refusal> {
        let name = name.clone();
        self.on(KEEPER, move |there| {
            let known = there.shelf.registry.borrow().get(&name);
            Box::pin(async move { known })
        })
        .await?
    }
}
