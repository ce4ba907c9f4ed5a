//! Files out of a job's `/work` or out of a volume: an upload in the other direction.

use proto_rkyv::{Header, Kind, Upload};

use super::{Broken, Session};
use crate::{
    front::{authorise::Operation, convert},
    shard::{Tree, TreeItem},
};

impl Session {
    pub(super) async fn copy(&mut self, copy: proto_rkyv::Copy) -> Result<(), Broken> {
        let path = convert::copy_path(&copy.path)?;
        let id = self.job(Operation::Copy, &copy.job).await?.id;
        let tree = self
            .outgoing
            .unless_gone(self.handle.copy_out(id, path))
            .await??;
        self.tree(tree).await
    }

    /// Sends a tree entry by entry as it is read.
    pub(super) async fn tree(&mut self, mut tree: Tree) -> Result<(), Broken> {
        while let Some(item) = self.outgoing.unless_gone(tree.next()).await?? {
            match item {
                TreeItem::Entry(entry) => {
                    self.outgoing.upload(&convert::entry_message(entry)).await?
                }
                TreeItem::Extra(extra) => {
                    self.outgoing.upload(&convert::extra_message(extra)).await?
                }
                TreeItem::Remark(path, remark) => {
                    let remark = convert::remark_message(path, remark);
                    self.outgoing.upload(&remark).await?
                }
                TreeItem::Data(bytes) => {
                    self.outgoing
                        .data(Header::new(Kind::File, 0), bytes)
                        .await?
                }
            }
        }
        self.outgoing.upload(&Upload::End).await
    }
}
