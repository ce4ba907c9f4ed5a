//! The mounts of a job's volumes, made for one start and given away with it.

use std::{os::fd::OwnedFd, rc::Rc, sync::Arc};

use super::KEEPER;
use crate::{
    job::{JobId, Spec, VolumeName},
    rt,
    shard::{desk::chain, driver::Shard, effect::StartFailure},
    volume::{HostOwner, VolumeError},
};

impl Shard {
    /// Makes a detached mount of each volume of a job, in the order in which they were asked for. `owner` is who
    /// the job's user is on the host.
    ///
    /// # Errors
    /// The step, which names the volume. Its damage is noted.
    pub(in crate::shard) async fn attach_volumes(
        self: &Rc<Self>,
        id: JobId,
        spec: &Spec,
        owner: HostOwner,
    ) -> Result<Vec<OwnedFd>, StartFailure> {
        if spec.volumes.is_empty() {
            return Ok(Vec::new());
        }
        let failure = |step| StartFailure { step, errno: 0 };
        let held = self.on(KEEPER, move |there| {
            let held = there.shelf.registry.borrow().held_by(id);
            Box::pin(async move { held })
        });
        let held = held.await.map_err(|refusal| failure(refusal.message))?;
        let mut mounts = Vec::with_capacity(spec.volumes.len());
        for attachment in &spec.volumes {
            let name = &attachment.volume;
            let Some((volume, is_damaged)) = held.iter().find(|(volume, _)| volume.name == *name)
            else {
                return Err(failure(format!("attach volume {name}: it is gone")));
            };
            let (host, volume) = (Arc::clone(&self.host), volume.clone());
            let is_read_only = attachment.is_read_only;
            let attach = move || host.volumes.attach(&volume, owner, is_read_only);
            let attached = rt::blocking("attach a volume", attach).await;
            let attached =
                attached.map_err(|error| failure(format!("attach volume {name}: {error}")))?;
            match attached {
                Ok(mount) => {
                    if *is_damaged {
                        self.note_damage(name, None);
                    }
                    mounts.push(mount);
                }
                Err(error) => {
                    let why = chain(&error);
                    tracing::warn!(job_id = %id, volume = %name, why, "a volume is not attached");
                    let step = format!("attach volume {name}: {why}");
                    if let VolumeError::Damaged { .. } = error {
                        self.note_damage(name, Some(why));
                    }
                    return Err(failure(step));
                }
            }
        }
        Ok(mounts)
    }

    /// Has the registry say what is wrong with a volume, or that nothing is.
    fn note_damage(self: &Rc<Self>, name: &VolumeName, damage: Option<String>) {
        let name = name.clone();
        self.post_or_run(KEEPER, move |there| {
            there.shelf.registry.borrow_mut().note_damage(&name, damage);
        });
    }
}
