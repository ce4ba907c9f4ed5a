//! Where an upload is: which entry came last and what its file still lacks.

use crate::job::{Refusal, RefusalCode, TreeEntry};

/// The order of an upload: an entry, then exactly the bytes that it announced, then the next entry.
#[derive(Debug, Default)]
pub(in crate::shard) struct Progress {
    path: Vec<u8>,
    left: u64,
}

impl Progress {
    /// The next entry.
    ///
    /// # Errors
    /// `Invalid` when the last file is short.
    pub(in crate::shard) fn begin(&mut self, entry: &TreeEntry) -> Result<(), Refusal> {
        self.check_complete()?;
        let (path, left) = match entry {
            TreeEntry::Dir { path, .. } | TreeEntry::Symlink { path, .. } => (path, 0),
            TreeEntry::File { path, bytes, .. } => (path, *bytes),
        };
        self.path.clone_from(path);
        self.left = left;
        Ok(())
    }

    /// Bytes of the last file.
    ///
    /// # Errors
    /// `Invalid` when there are more than its entry said.
    pub(in crate::shard) fn advance(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.left = self.left.checked_sub(bytes as u64).ok_or_else(|| {
            let message = format!("upload {} is longer than announced", self.shown());
            Refusal::new(RefusalCode::Invalid, message)
        })?;
        Ok(())
    }

    /// # Errors
    /// `Invalid` when the last file is short.
    pub(in crate::shard) fn check_complete(&self) -> Result<(), Refusal> {
        if self.left == 0 {
            return Ok(());
        }
        let message = format!("upload {} ended {} bytes early", self.shown(), self.left);
        Err(Refusal::new(RefusalCode::Invalid, message))
    }

    /// The path of the last entry.
    pub(in crate::shard) fn path(&self) -> &[u8] {
        &self.path
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}
