//! Volumes: what is asked of them, checked, and how they are shown.

use std::collections::HashSet;

use proto_rkyv::{Reply, Volume, VolumeCreate};

use super::{cut, invalid, too_large};
use crate::{
    job::{
        Attachment, JobId, Refusal, VolumeKind, VolumeName, VolumeSize, VolumeSizeError,
        VolumeSpec, VolumeView,
    },
    limits,
};

/// Longest text about damage that is sent.
const DAMAGE_BYTES_MAX: usize = 512;
/// Longest that a size is written, as [`VolumeSize`] has it.
const SIZE_BYTES_MAX: usize = 32;
/// What one frame holds: volumes with their texts, and jobs that have them.
const VOLUMES_PER_FRAME: usize = 32;
const JOBS_PER_FRAME: usize = 1_024;
/// What one volume takes in a frame without its jobs: texts, and numbers and pointers.
const VOLUME_BYTES: usize = limits::VOLUME_NAME_MAX + SIZE_BYTES_MAX + DAMAGE_BYTES_MAX + 128;
const _: () = assert!(
    VOLUMES_PER_FRAME * VOLUME_BYTES + JOBS_PER_FRAME * size_of::<proto_rkyv::Id>()
        < proto_rkyv::CONTROL_BYTES_MAX as usize
);

/// The volume that is to be made.
///
/// # Errors
/// A refusal that says what is wrong with name or size.
pub(in crate::front) fn volume_spec(create: &VolumeCreate) -> Result<VolumeSpec, Refusal> {
    let name = volume_name(&create.name)?;
    if name.is_of_trial() {
        let message = format!("volume name {name} is kept for what `rnx doctor` tries");
        return Err(invalid(message).hint("choose another beginning"));
    }
    Ok(VolumeSpec {
        name,
        size: volume_size(&create.size)?,
        kind: match create.kind {
            proto_rkyv::VolumeKind::Filesystem => VolumeKind::Filesystem,
            proto_rkyv::VolumeKind::Memory => VolumeKind::Memory,
        },
    })
}

/// The name of a volume.
///
/// # Errors
/// A refusal that says what is wrong with it.
pub(in crate::front) fn volume_name(name: &str) -> Result<VolumeName, Refusal> {
    let hint = "a name is a letter, then letters, digits, - and _, as in ml-models-2024";
    VolumeName::parse(name).map_err(|error| invalid(error.to_string()).hint(hint))
}

fn volume_size(size: &str) -> Result<VolumeSize, Refusal> {
    VolumeSize::parse(size).map_err(|error| {
        let hint = match error {
            VolumeSizeError::Malformed(_) => {
                "write a number and B, KB, MB, GB or TB, as in 512MB; each is 1,024 of the one before"
            }
            VolumeSizeError::Range { .. } => "16KB to 8TB are possible",
        };
        invalid(error.to_string()).hint(hint)
    })
}

/// The volumes of a job.
///
/// # Errors
/// A refusal for a name that is none, one that is given twice, and too many.
pub(super) fn attachments(asked: Vec<proto_rkyv::Attachment>) -> Result<Vec<Attachment>, Refusal> {
    if asked.len() > limits::JOB_VOLUMES_MAX {
        return Err(too_large(format!(
            "{} volumes, at most {} are allowed",
            asked.len(),
            limits::JOB_VOLUMES_MAX
        )));
    }
    let mut seen = HashSet::new();
    let mut attachments = Vec::with_capacity(asked.len());
    for attachment in asked {
        let volume = volume_name(&attachment.volume)?;
        if !seen.insert(volume.clone()) {
            return Err(invalid(format!("volume {volume} is given twice")));
        }
        attachments.push(Attachment {
            volume,
            is_read_only: attachment.is_read_only,
        });
    }
    Ok(attachments)
}

/// A volume of a job as it is shown.
pub(super) fn attachment(attachment: &Attachment) -> proto_rkyv::Attachment {
    proto_rkyv::Attachment {
        volume: attachment.volume.as_str().to_owned(),
        is_read_only: attachment.is_read_only,
    }
}

/// About how many bytes these volumes take as they are shown.
pub(in crate::front) fn volumes_bytes(volumes: &[VolumeView]) -> usize {
    let one = |view: &VolumeView| VOLUME_BYTES + size_of_val(view.jobs.as_slice());
    volumes.iter().map(one).sum()
}

/// Volumes in as many replies as it takes, at least one. One whose jobs do not fit a frame goes on in the next.
pub(in crate::front) fn volumes(volumes: &[VolumeView]) -> Vec<Reply> {
    let (mut replies, mut frame, mut jobs_left) = (Vec::new(), Vec::new(), JOBS_PER_FRAME);
    for view in volumes {
        let mut rest = view.jobs.as_slice();
        loop {
            if frame.len() == VOLUMES_PER_FRAME || jobs_left == 0 {
                replies.push(Reply::Volumes(std::mem::take(&mut frame)));
                jobs_left = JOBS_PER_FRAME;
            }
            let (some, later) = rest.split_at(rest.len().min(jobs_left));
            jobs_left -= some.len();
            frame.push(volume(view, some));
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
    }
    replies.push(Reply::Volumes(frame));
    replies
}

fn volume(view: &VolumeView, jobs: &[JobId]) -> Volume {
    let VolumeSpec { name, size, kind } = &view.spec;
    Volume {
        name: name.as_str().to_owned(),
        size: size.text().to_owned(),
        size_bytes: size.bytes(),
        kind: match kind {
            VolumeKind::Filesystem => proto_rkyv::VolumeKind::Filesystem,
            VolumeKind::Memory => proto_rkyv::VolumeKind::Memory,
        },
        created_ns: view.created_ns,
        used_bytes: view.used_bytes,
        jobs: jobs.iter().map(|id| id.to_bytes()).collect(),
        damage: view.damage.as_ref().map(|damage| {
            let mut damage = damage.clone();
            cut(&mut damage, DAMAGE_BYTES_MAX);
            damage
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::RefusalCode;

    fn create(name: &str, size: &str) -> VolumeCreate {
        VolumeCreate {
            name: name.into(),
            size: size.into(),
            kind: proto_rkyv::VolumeKind::Memory,
        }
    }

    #[test]
    fn a_name_that_trials_have_is_refused() {
        let refusal = volume_spec(&create("joblet-doctor-mine", "1MB")).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Invalid);
        assert!(volume_spec(&create("joblet-data", "1MB")).is_ok());
    }

    fn asked(names: &[&str]) -> Vec<proto_rkyv::Attachment> {
        let asked = |name: &&str| proto_rkyv::Attachment {
            volume: (*name).into(),
            is_read_only: false,
        };
        names.iter().map(asked).collect()
    }

    fn view(name: &str, jobs: usize) -> VolumeView {
        VolumeView {
            spec: VolumeSpec {
                name: VolumeName::parse(name).unwrap(),
                size: VolumeSize::parse("1.5gb").unwrap(),
                kind: VolumeKind::Filesystem,
            },
            created_ns: 7,
            used_bytes: Some(9),
            jobs: (0..jobs).map(|_| JobId::random()).collect(),
            damage: None,
        }
    }

    fn sent(replies: &[Reply]) -> Vec<&[Volume]> {
        fn one(reply: &Reply) -> &[Volume] {
            let Reply::Volumes(some) = reply else {
                panic!("{reply:?}")
            };
            some
        }
        replies.iter().map(one).collect()
    }

    #[test]
    fn a_volume_is_made_as_it_was_asked_for() {
        let spec = volume_spec(&create("cache", "512MB")).unwrap();
        assert_eq!(spec.name.as_str(), "cache");
        assert_eq!((spec.size.text(), spec.size.bytes()), ("512MB", 512 << 20));
        assert_eq!(spec.kind, VolumeKind::Memory);
    }

    #[test]
    fn a_name_or_size_that_is_none_is_refused_with_what_is_possible() {
        for (name, size) in [
            ("123data", "1GB"),
            ("", "1GB"),
            ("my data", "1GB"),
            ("../data", "1GB"),
            (&"a".repeat(64), "1GB"),
            ("data", ""),
            ("data", "1 gigabyte"),
            ("data", "0"),
            ("data", "9223372036854775808"),
        ] {
            let refusal = volume_spec(&create(name, size)).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::Invalid, "{name} {size}");
            assert!(refusal.hint.is_some(), "{name} {size}");
        }
    }

    #[test]
    fn the_hint_says_the_bounds_of_a_size() {
        let hint = volume_spec(&create("data", "1")).unwrap_err().hint;
        let (min, max) = (limits::VOLUME_BYTES_MIN, limits::VOLUME_BYTES_MAX);
        let expected = format!("{}KB to {}TB are possible", min >> 10, max >> 40);
        assert_eq!(hint, Some(expected));
    }

    #[test]
    fn a_job_has_each_volume_once_and_not_too_many() {
        let kept = attachments(asked(&["b", "a"])).unwrap();
        let names: Vec<_> = kept.iter().map(|a| a.volume.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        let refusal = attachments(asked(&["data", "a", "data"])).unwrap_err();
        assert_eq!(
            (refusal.code, refusal.message.as_str()),
            (RefusalCode::Invalid, "volume data is given twice")
        );
        assert!(attachments(asked(&["my.data"])).is_err());
        let names: Vec<_> = (0..=limits::JOB_VOLUMES_MAX)
            .map(|n| format!("v{n}"))
            .collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        assert_eq!(
            attachments(asked(&names)).unwrap_err().message,
            "65 volumes, at most 64 are allowed"
        );
        assert!(attachments(asked(&names[1..])).is_ok());
    }

    #[test]
    fn any_number_of_volumes_with_any_number_of_jobs_fits_frames() {
        let check = |views: &[VolumeView], frames: usize| {
            let replies = volumes(views);
            assert_eq!(replies.len(), frames);
            for reply in &replies {
                assert!(proto_rkyv::encode(reply).is_ok());
            }
            // Put together as a client does: one that is sent again right behind goes on.
            let mut together: Vec<Volume> = Vec::new();
            for volume in sent(&replies).concat() {
                match together.last_mut() {
                    Some(last) if last.name == volume.name => last.jobs.extend(volume.jobs),
                    Some(_) | None => together.push(volume),
                }
            }
            let expected: Vec<_> = views.iter().map(|view| volume(view, &view.jobs)).collect();
            assert_eq!(together, expected);
        };
        let several = |count: usize, jobs: usize| -> Vec<_> {
            let name = |n| format!("v{n:0>w$}", w = limits::VOLUME_NAME_MAX - 1);
            let long = |view| VolumeView {
                damage: Some("ü".repeat(DAMAGE_BYTES_MAX / 2)),
                ..view
            };
            (0..count).map(|n| long(view(&name(n), jobs))).collect()
        };
        check(&[], 1);
        check(&several(1, 0), 1);
        check(&several(VOLUMES_PER_FRAME, 0), 1);
        check(&several(VOLUMES_PER_FRAME + 1, 1), 2);
        check(&several(1, JOBS_PER_FRAME), 1);
        check(&several(1, JOBS_PER_FRAME + 1), 2);
        check(&several(3, 5_000), 15);
    }

    #[test]
    fn damage_is_cut_to_a_line() {
        let damaged = VolumeView {
            damage: Some("x".repeat(10_000)),
            ..view("data", 0)
        };
        let replies = volumes(&[damaged]);
        let damage = sent(&replies)[0][0].damage.clone().unwrap();
        assert!(damage.len() <= DAMAGE_BYTES_MAX && damage.ends_with('…'));
    }
}
