//! Volumes, tried: one of each type is made, given to a job that writes more than fits, and removed.
//!
//! The names that these have are no user's: what a daemon that was killed meanwhile has left is removed by the next
//! trial.

use std::{collections::HashMap, time::Duration};

use super::{MIB, run, spec};
use crate::{
    job::{
        Attachment, Finding, Limits, Peer, Refusal, RefusalCode, Verdict, VolumeKind, VolumeName,
        VolumeSize, VolumeSpec,
    },
    rt,
    shard::Handle,
};

/// As large as a volume is that is tried.
const SIZE: &str = "2MB";
/// A trial takes less, so one that is older is nobody's.
const STALE: Duration = Duration::from_secs(300);

/// Prints one fact a line, `name value`, of the volume that is its only one.
const SCRIPT: &str = r#"
cd /volumes/* || exit 1
here=$PWD
while read -r source on kind options rest; do
  if [ "$on" = "$here" ]; then echo "mount $kind $options"; fi
done < /proc/self/mounts
echo "owner $(stat -c %u .) $(id -u)"
if dd if=/dev/zero of=fill bs=64k count=64 2>&1 | grep -q 'No space left on device'; then echo "full yes"; fi
echo "bytes $(stat -c %s fill)"
"#;

/// Tries both types, as `peer`.
///
/// # Errors
/// The refusal of a job that should have been taken.
pub(super) async fn examine(handle: &Handle, peer: &Peer) -> Result<Vec<Finding>, Refusal> {
    remove_stale(handle).await?;
    Ok(vec![
        attempt(handle, peer, VolumeKind::Filesystem).await?,
        attempt(handle, peer, VolumeKind::Memory).await?,
    ])
}

async fn remove_stale(handle: &Handle) -> Result<(), Refusal> {
    let now_ns = i64::try_from(rt::wall_ns()).unwrap_or(i64::MAX);
    for volume in handle.volumes().await? {
        let age_ns = now_ns.saturating_sub(volume.created_ns);
        let name = volume.spec.name;
        if name.is_of_trial() && i128::from(age_ns) > STALE.as_nanos().cast_signed() {
            // One that is removed by another trial, or in use, is not ours to remove.
            if let Err(refusal) = handle.remove_volume(&name).await {
                tracing::warn!(volume = %name, %refusal, "what is left of a trial is not removed");
            }
        }
    }
    Ok(())
}

async fn attempt(handle: &Handle, peer: &Peer, kind: VolumeKind) -> Result<Finding, Refusal> {
    let name = VolumeName::of_trial();
    let volume = VolumeSpec {
        name: name.clone(),
        size: VolumeSize::parse(SIZE).map_err(broken)?,
        kind,
    };
    let size_bytes = volume.size.bytes();
    let mechanism = match handle.volume_mechanism(kind).await {
        Ok(mechanism) => mechanism,
        Err(refusal) => return Ok(finding(kind, "none", Err(refusal))),
    };
    if let Err(refusal) = handle.create_volume(volume).await {
        return Ok(finding(kind, &mechanism, Err(refusal)));
    }
    let mut spec = spec(SCRIPT, Limits::default(), MIB, Duration::from_secs(30));
    spec.volumes.push(Attachment {
        volume: name.clone(),
        is_read_only: false,
    });
    let ran = run(handle, peer, spec).await;
    let removed = handle.remove_volume(&name).await;
    let judged = ran.and_then(|(_, output)| {
        removed?;
        judge(&output, size_bytes).map_err(|wrong| {
            Refusal::new(RefusalCode::Failed, wrong)
                .hint("do not give volumes to untrusted jobs here, and report this with `rnx doctor --json`")
        })
    });
    Ok(finding(kind, &mechanism, judged))
}

fn broken(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(RefusalCode::Failed, error.to_string())
}

/// What a job that was given a volume of `size_bytes` says of it.
fn judge(output: &str, size_bytes: u64) -> Result<String, String> {
    let facts: HashMap<&str, &str> = output
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    let get = |name| facts.get(name).copied().unwrap_or("unknown");
    let Some((kind, options)) = facts.get("mount").and_then(|mount| mount.split_once(' ')) else {
        return Err("the job does not have its volume".to_owned());
    };
    for wanted in ["rw", "nosuid", "nodev"] {
        if !options.split(',').any(|option| option == wanted) {
            return Err(format!("it is mounted {options}: without {wanted}"));
        }
    }
    match get("owner").split_once(' ') {
        Some((owner, user)) if owner == user => {}
        _ => {
            let owner = get("owner");
            return Err(format!("its owner and the job's user are {owner}"));
        }
    }
    let bytes: u64 = get("bytes").parse().unwrap_or(u64::MAX);
    // What df shows may be a tenth more.
    if get("full") != "yes" || bytes > size_bytes + size_bytes / 10 {
        let bytes = get("bytes");
        return Err(format!(
            "a job could write {bytes} bytes to one of {size_bytes}"
        ));
    }
    let (bytes, size) = (bytes / 1_024, size_bytes / 1_024);
    Ok(format!(
        "{kind}, nosuid, nodev; its owner is the job's user; no space was left after {bytes} KiB of {size}"
    ))
}

fn finding(kind: VolumeKind, mechanism: &str, tried: Result<String, Refusal>) -> Finding {
    let promise = match kind {
        VolumeKind::Filesystem => "filesystem-volumes",
        VolumeKind::Memory => "memory-volumes",
    };
    let (verdict, detail, remedy) = match tried {
        Ok(detail) => (Verdict::Enforced, detail, None),
        Err(refusal) => {
            let remedy = refusal
                .hint
                .unwrap_or_else(|| "see the daemon's log".to_owned());
            (Verdict::NotEnforced, refusal.message, Some(remedy))
        }
    };
    Finding {
        promise: promise.to_owned(),
        verdict,
        mechanism: mechanism.to_owned(),
        detail,
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "mount ext4 rw,nosuid,nodev,relatime\nowner 1000 1000\nfull yes\nbytes 2031616\n";

    #[test]
    fn a_volume_that_is_full_at_its_size_and_its_users_keeps_its_promise() {
        let said = judge(GOOD, 2 << 20).unwrap();
        assert!(said.contains("1984 KiB of 2048"), "{said}");
    }

    #[test]
    fn each_fact_that_is_wrong_or_missing_breaks_it() {
        for (from, to) in [
            ("rw,", "ro,"),
            ("nosuid,", ""),
            ("nodev,", ""),
            ("mount ext4", "other ext4"),
            ("owner 1000 1000", "owner 65534 1000"),
            ("owner 1000 1000\n", ""),
            ("full yes\n", ""),
            ("bytes 2031616", "bytes 4194304"),
            ("bytes 2031616", "bytes"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            assert!(judge(&GOOD.replace(from, to), 2 << 20).is_err(), "{from}");
        }
    }

    #[test]
    fn what_is_in_the_way_is_the_finding_with_its_remedy() {
        let refusal = Refusal::new(RefusalCode::Failed, "no mkfs").hint("install e2fsprogs");
        let found = finding(VolumeKind::Filesystem, "none", Err(refusal));
        assert_eq!(found.promise, "filesystem-volumes");
        assert_eq!(found.verdict, Verdict::NotEnforced);
        assert_eq!(found.detail, "no mkfs");
        assert_eq!(found.remedy.as_deref(), Some("install e2fsprogs"));
    }
}
