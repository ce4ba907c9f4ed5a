//! What a former daemon left of its volumes, before any job is taken over or made.
//!
//! The store decides: what was being made is undone, what was being removed is finished, what was there is mounted
//! again and never made anew. What lies in the directory and is in no row goes.

use std::sync::mpsc;

use super::registry::{Left, Registry};
use crate::{
    job::{Attachment, JobId, VolumeName},
    shard::{desk::chain, topology::StartError},
    store::{Change, Reader, StoredVolume, VolumeState, Writer},
    volume::Volumes,
};

/// Puts all volumes in order. One that cannot be is said to be damaged and harms no other.
///
/// # Errors
/// A store that cannot be read.
pub(in crate::shard) fn restore<'a>(
    volumes: &Volumes,
    reader: &Reader,
    writer: &Writer,
    live: impl Iterator<Item = (JobId, &'a [Attachment])>,
) -> Result<Registry, StartError> {
    let stored = reader.volumes()?;
    for error in &stored.broken {
        tracing::error!(
            error = chain(error),
            "a volume is not served, and left as it is"
        );
    }
    let is_all_known = stored.broken.is_empty();
    let known = stored.names();
    let mut registry = Registry::default();
    for StoredVolume {
        spec,
        created_ns,
        state,
    } in stored.volumes
    {
        let name = spec.name.clone();
        let left = match state {
            VolumeState::Ready => match volumes.restore(&spec) {
                Ok(restored) => {
                    tracing::debug!(volume = %name, ?restored, "a volume is there");
                    Some(Left::Whole)
                }
                Err(error) => {
                    let why = chain(&error);
                    tracing::error!(volume = %name, why, "a volume is damaged");
                    Some(Left::Damaged(why))
                }
            },
            VolumeState::Creating | VolumeState::Removing => {
                let cleared = volumes.remove(&name).map_err(|error| chain(&error));
                let forgotten = cleared.and_then(|()| forget(writer, &spec.name));
                forgotten.err().map(|why| {
                    tracing::error!(volume = %name, why, "a volume that goes does not");
                    Left::Stuck(why)
                })
            }
        };
        if let Some(left) = left {
            registry.restore(spec, created_ns, left);
        }
    }
    if is_all_known {
        match volumes.clean(&known) {
            Ok(cleaned) => tracing::debug!(?cleaned, "what belongs to no volume is gone"),
            Err(error) => {
                tracing::error!(error = chain(&error), "what belongs to no volume is left");
            }
        }
    }
    for (job, attachments) in live {
        registry.restore_holder(job, attachments);
    }
    Ok(registry)
}

/// Deletes the row of a volume of which nothing is left.
fn forget(writer: &Writer, name: &VolumeName) -> Result<(), String> {
    let (sender, answer) = mpsc::channel();
    let name = name.clone();
    let done = move |answer| _ = sender.send(answer);
    writer
        .submit(Change::DeleteVolume { name }, Box::new(done))
        .map_err(|_| "the store takes nothing".to_owned())?;
    match answer.recv() {
        Ok(answer) => answer.map(drop).map_err(|error| chain(&error)),
        Err(_) => Err("the store has ended".to_owned()),
    }
}
