//! What can be asked of a server about volumes.

use std::{io::Read, path::PathBuf};

use proto_rkyv::{Reply, Request, Volume, VolumeCreate, VolumeRead, VolumeWrite};

use crate::{
    archive,
    blob::{Blobs, Tally},
    client::{Client, send_until},
    conversation::{Incoming, ask, open},
    error::RequestError,
    stream::Arrivals,
    upload::{self, Tree},
};

/// What was written into a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of file contents.
    pub bytes: u64,
    /// What was left out: it is neither of these.
    pub skipped: Vec<PathBuf>,
}

impl Client {
    /// Makes a volume and returns it.
    ///
    /// # Errors
    /// [`RequestError`].
    ///
    /// # Cancel
    /// The volume may or may not exist when the future is dropped; it is never half made.
    pub async fn create_volume(&self, create: VolumeCreate) -> Result<Volume, RequestError> {
        self.one(&Request::VolumeCreate(create)).await
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn volumes(&self) -> Result<Vec<Volume>, RequestError> {
        self.several(&Request::Volumes).await
    }

    /// One volume.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn volume(&self, name: impl Into<String>) -> Result<Volume, RequestError> {
        self.one(&Request::Volume(name.into())).await
    }

    /// Removes a volume that no job has.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn remove_volume(&self, name: impl Into<String>) -> Result<(), RequestError> {
        let mut incoming = ask(&self.link, &Request::VolumeRemove(name.into())).await?;
        finished(&mut incoming).await
    }

    /// Reads a file or directory of a volume; `path` is relative to its root, and empty for all of it. What comes
    /// can be written with [`crate::Landing`] or [`crate::Pack`].
    ///
    /// # Errors
    /// [`RequestError`]; a refusal comes out of the first [`Arrivals::next`].
    pub async fn read_volume(
        &self,
        volume: impl Into<String>,
        path: impl Into<Vec<u8>>,
    ) -> Result<Arrivals, RequestError> {
        let read = VolumeRead {
            volume: volume.into(),
            path: path.into(),
        };
        ask(&self.link, &Request::VolumeRead(read))
            .await
            .map(Arrivals::new)
    }

    /// Writes a tree into a volume, where its destinations are relative to the volume's root. `progress` is told how
    /// many bytes of file contents were sent so far. A directory that only leads to a destination is made where it is
    /// missing, and keeps its mode where it is there.
    ///
    /// # Errors
    /// [`RequestError`]; what was written until then stays.
    ///
    /// # Cancel
    /// As with an error.
    pub async fn write_volume(
        &self,
        volume: impl Into<String>,
        tree: &Tree,
        progress: impl FnMut(u64),
    ) -> Result<(), RequestError> {
        let blobs = upload::read_found(tree);
        self.write(volume.into(), Some(tree.bytes()), blobs, progress)
            .await
            .map(drop)
    }

    /// Writes what is in a tar archive into a volume, while it is read. `progress` is as in
    /// [`Client::write_volume`].
    ///
    /// # Errors
    /// As [`Client::write_volume`]; [`RequestError::Archive`] for an archive that is none, is cut short, or would
    /// write elsewhere.
    ///
    /// # Cancel
    /// As with an error; one call to `tar.read` may still be under way.
    pub async fn import_volume(
        &self,
        volume: impl Into<String>,
        tar: impl Read + Send + 'static,
        progress: impl FnMut(u64),
    ) -> Result<Imported, RequestError> {
        self.write(volume.into(), None, archive::unpack(tar), progress)
            .await
    }

    async fn write(
        &self,
        volume: String,
        bytes: Option<u64>,
        blobs: Blobs,
        mut progress: impl FnMut(u64),
    ) -> Result<Imported, RequestError> {
        let request = Request::VolumeWrite(VolumeWrite { volume, bytes });
        let frame = proto_rkyv::encode(&request).map_err(RequestError::RequestTooLarge)?;
        let (outgoing, mut incoming) = open(&self.link, frame).await?;
        let mut imported = Imported::default();
        let count = |tally: Tally| {
            imported.entries += tally.entries;
            imported.bytes += tally.contents;
            imported.skipped.extend(tally.skipped);
            progress(imported.bytes);
        };
        send_until(outgoing, blobs, count, finished(&mut incoming)).await?;
        Ok(imported)
    }

    async fn one(&self, request: &Request) -> Result<Volume, RequestError> {
        let mut found = self.several(request).await?;
        match (found.pop(), found.is_empty()) {
            (Some(volume), true) => Ok(volume),
            (Some(_), false) | (None, _) => Err(RequestError::Unexpected {
                expected: "one volume",
            }),
        }
    }

    async fn several(&self, request: &Request) -> Result<Vec<Volume>, RequestError> {
        let expected = "volumes";
        let mut incoming = ask(&self.link, request).await?;
        let (mut volumes, mut has_answer) = (Vec::<Volume>::new(), false);
        while let Some(reply) = incoming.reply_or_end(expected).await? {
            let Reply::Volumes(some) = reply else {
                return Err(RequestError::Unexpected { expected });
            };
            has_answer = true;
            for volume in some {
                match volumes.last_mut() {
                    // It has more jobs than fitted a frame.
                    Some(last) if last.name == volume.name => last.jobs.extend(volume.jobs),
                    Some(_) | None => volumes.push(volume),
                }
            }
        }
        // A server that is ended meanwhile must not look like one without volumes.
        if has_answer {
            Ok(volumes)
        } else {
            Err(RequestError::Truncated)
        }
    }
}

async fn finished(incoming: &mut Incoming) -> Result<(), RequestError> {
    let expected = "the end of a request";
    let Reply::Finished = incoming.reply(expected).await? else {
        return Err(RequestError::Unexpected { expected });
    };
    Ok(())
}
