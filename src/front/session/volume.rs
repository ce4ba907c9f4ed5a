//! Volumes: made, shown, removed, and their files in both directions.

use proto_rkyv::{Reply, VolumeCreate, VolumeRead, VolumeWrite};

use super::{Broken, Session};
use crate::{
    front::{
        authorise::{Operation, OwnerRelation, authorise},
        convert::{self, UploadStep, Uploads},
    },
    job::{Refusal, VolumeView},
};

impl Session {
    /// Volumes belong to nobody: the role alone decides.
    fn may(&self, operation: Operation) -> Result<(), Refusal> {
        authorise(self.peer.role, operation, OwnerRelation::Own)
    }

    pub(super) async fn create_volume(&mut self, create: VolumeCreate) -> Result<(), Broken> {
        self.may(Operation::Volumes)?;
        // Once begun it is made whether or not the peer waits for it; nothing is half made when it goes away.
        let made = self
            .handle
            .create_volume(convert::volume_spec(&create)?)
            .await?;
        self.show(&[made]).await
    }

    pub(super) async fn volumes(&mut self) -> Result<(), Broken> {
        self.may(Operation::VolumeList)?;
        let volumes = self.outgoing.unless_gone(self.handle.volumes()).await??;
        self.show(&volumes).await
    }

    pub(super) async fn volume(&mut self, name: &str) -> Result<(), Broken> {
        self.may(Operation::VolumeList)?;
        let name = convert::volume_name(name)?;
        let volume = self.handle.volume(&name).await?;
        self.show(&[volume]).await
    }

    pub(super) async fn remove_volume(&mut self, name: &str) -> Result<(), Broken> {
        self.may(Operation::Volumes)?;
        let name = convert::volume_name(name)?;
        self.handle.remove_volume(&name).await?;
        self.outgoing.reply(&Reply::Finished).await
    }

    pub(super) async fn read_volume(&mut self, read: VolumeRead) -> Result<(), Broken> {
        self.may(Operation::VolumeFiles)?;
        let name = convert::volume_name(&read.volume)?;
        let path = convert::volume_path(&read.path)?;
        let tree = self
            .outgoing
            .unless_gone(self.handle.copy_from_volume(&name, path))
            .await??;
        self.tree(tree).await
    }

    /// Hands files on as they come: a slow disk slows the client down, and nothing is held here but one piece.
    pub(super) async fn write_volume(&mut self, write: VolumeWrite) -> Result<(), Broken> {
        self.may(Operation::VolumeFiles)?;
        let name = convert::volume_name(&write.volume)?;
        let mut sink = self
            .outgoing
            .unless_gone(self.handle.copy_into_volume(&name))
            .await??;
        let mut uploads = Uploads::into_volume(write.bytes);
        loop {
            let piece = self.upload_piece().await?;
            match uploads.step(piece)? {
                UploadStep::Header => {}
                UploadStep::Entry(entry) => {
                    self.outgoing.unless_gone(sink.entry(&entry)).await??;
                }
                UploadStep::Extra(extra) => {
                    self.outgoing.unless_gone(sink.extra(&extra)).await??;
                }
                UploadStep::Data(bytes) => {
                    self.outgoing.unless_gone(sink.data(bytes)).await??;
                }
                UploadStep::End => break,
            }
        }
        self.outgoing.unless_gone(sink.finish()).await??;
        self.outgoing.reply(&Reply::Finished).await
    }

    async fn show(&mut self, volumes: &[VolumeView]) -> Result<(), Broken> {
        let mut held = self.budget.reserve();
        held.grow(convert::volumes_bytes(volumes))?;
        for reply in convert::volumes(volumes) {
            self.outgoing.reply(&reply).await?;
        }
        Ok(())
    }
}
