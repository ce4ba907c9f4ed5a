//! Named volumes on real loop devices and mounts: what is made, attached, shared, removed.

use std::{
    fs::{File, Permissions},
    io::{Read, Write},
    os::unix::fs::{FileExt, PermissionsExt},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::{stat::fstat, statvfs::statvfs},
};

use super::*;
use crate::volume::testing::{
    TestBase, as_user, disk, open_in, owner, path_of, spec, words, write,
};

mod damage;

const MIB: u64 = 1 << 20;
/// Host ids of the users of three jobs.
const ONE: u32 = 70_000;
const TWO: u32 = 80_000;
const THREE: u32 = 90_000;
const CREATED_NS: i64 = 1_754_215_200_000_000_000;

/// The kinds of volume, and a memory volume as it is where the owners of a tmpfs cannot be mapped.
fn each_kind(mut check: impl FnMut(&TestBase, VolumeKind)) {
    check(&TestBase::new(), VolumeKind::Filesystem);
    check(&TestBase::new(), VolumeKind::Memory);
    check(&without_mapped_tmpfs(), VolumeKind::Memory);
}

fn without_mapped_tmpfs() -> TestBase {
    let base = TestBase::new();
    base.volumes.maps_tmpfs.set(false).unwrap();
    base
}

#[test]
fn a_volume_shows_the_size_that_was_asked_and_an_empty_one_costs_next_to_nothing() {
    let base = TestBase::new();
    let sizes = [
        ("16KB", 1),
        ("17KB", 1),
        ("16900", 1),
        ("50KB", 1),
        ("100KB", 1),
        ("128KB", 1),
        ("129KB", 1),
        ("200KB", 1),
        ("1MB", 1),
        ("7.9MB", 1),
        ("8MB", 2),
        ("31.9MB", 2),
        ("32MB", 2),
        ("100MB", 2),
        ("129MB", 2),
        ("256MB", 2),
        ("500MB", 2),
        ("1GB", 4),
        ("1073741824", 4),
        ("5GB", 4),
        ("10GB", 4),
        ("20GB", 4),
        ("50GB", 8),
        ("100GB", 8),
        ("1TB", 64),
        ("8TB", 256),
    ];
    for (size, host_mib_max) in sizes {
        let spec = disk("sized", size);
        let bytes = spec.size.bytes();
        let started = std::time::SystemTime::now();
        base.volumes.create(&spec, CREATED_NS).unwrap();
        let took: Duration = started.elapsed().unwrap();
        let data = base.path("sized", "data");
        assert_eq!(base.names(&data), [""; 0], "{size}");
        let seen = statvfs(&data).unwrap();
        let total = seen.blocks() * seen.fragment_size();
        let available = seen.blocks_available() * seen.fragment_size();
        let image = fs::metadata(base.path("sized", "disk.img")).unwrap();
        let host = image.blocks() * 512;
        println!(
            "{size}: made in {took:?}, total {total}, available {available}, inodes {}, image {}, on the host {host}",
            seen.files(),
            image.len()
        );
        for shown in [total, available] {
            assert!(shown.abs_diff(bytes) * 10 <= bytes, "{size}: {shown}");
        }
        assert!(host <= host_mib_max * MIB, "{size}: {host}");
        assert_eq!(image.len(), Geometry::of(bytes).image_bytes, "{size}");
        let usage = base.volumes.usage(&spec).unwrap();
        assert!(usage.used_bytes <= 16 << 10, "{size}: {usage:?}");
        assert_eq!(
            usage.unallocated_bytes,
            image.len().saturating_sub(image.blocks() * 512)
        );
        assert!(!usage.is_failing);
        base.volumes.remove(&spec.name).unwrap();
        base.until_no_device();
    }
    assert_eq!(base.names(&base.directory()), [""; 0]);
}

#[test]
fn a_fresh_root_is_empty_and_its_owners_alone_nosuid_nodev_and_shut_to_the_host() {
    each_kind(|base, kind| {
        let spec = spec("fresh", "1MB", kind);
        base.volumes.create(&spec, CREATED_NS).unwrap();
        let root = base.volumes.root(&spec).unwrap();
        let found = fstat(&root).unwrap();
        assert_eq!(
            (found.st_uid, found.st_gid, found.st_mode & 0o7777),
            (DISK_OWNER, DISK_OWNER, 0o755)
        );
        let flags = fstatvfs(&root).unwrap().flags();
        assert!(
            flags.contains(FsFlags::ST_NOSUID | FsFlags::ST_NODEV),
            "{flags:?}"
        );
        assert_eq!(base.names(&path_of(&root)), [""; 0]);
        let shut = fs::metadata(base.directory()).unwrap().permissions().mode();
        assert_eq!(shut & 0o777, 0o700);
        let meta = fs::read_to_string(base.path("fresh", ".joblet_volume_meta.json")).unwrap();
        let meta: serde_json::Value = serde_json::from_str(&meta).unwrap();
        let expected = json!({"name": "fresh", "size": "1MB", "size_bytes": MIB, "type": kind.word(),
            "created": "2025-08-03T10:00:00Z"});
        assert_eq!(meta, expected);
    });
}

#[test]
fn the_size_is_enforced_and_another_volume_does_not_notice() {
    each_kind(|base, kind| {
        let (small, other) = (spec("small", "2MB", kind), spec("other", "2MB", kind));
        base.volumes.create(&small, CREATED_NS).unwrap();
        base.volumes.create(&other, CREATED_NS).unwrap();
        let tree = base.volumes.attach(&small, owner(ONE), false).unwrap();
        let mut big = open_in(&tree, ONE, "big", OFlag::O_CREAT | OFlag::O_RDWR).unwrap();
        let block = [7_u8; 16 << 10];
        let mut written = 0;
        let full = loop {
            match big.write(&block) {
                Ok(count) => written += count as u64,
                Err(error) => break error,
            }
            assert!(written <= 3 * MIB, "more than the size");
        };
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        assert!(written.abs_diff(2 * MIB) * 10 <= 2 * MIB, "{written}");
        let usage = base.volumes.usage(&small).unwrap();
        assert!(
            usage.used_bytes.abs_diff(2 * MIB) * 10 <= 2 * MIB,
            "{usage:?}"
        );
        assert!(base.volumes.usage(&other).unwrap().used_bytes < 64 << 10);
    });
}

#[test]
fn files_of_one_jobs_user_are_the_next_ones_own_whatever_their_ids() {
    each_kind(|base, kind| {
        let spec = spec("shared", "4MB", kind);
        base.volumes.create(&spec, CREATED_NS).unwrap();
        let first = base.volumes.attach(&spec, owner(ONE), false).unwrap();
        let second = base.volumes.attach(&spec, owner(TWO), false).unwrap();
        let made = as_user(ONE, || {
            let mut file = open_in(&first, ONE, "file", OFlag::O_CREAT | OFlag::O_RDWR).unwrap();
            file.write_all(b"written by one").unwrap();
            file.set_permissions(Permissions::from_mode(0o600)).unwrap();
            i32::from(fstat(&file).unwrap().st_uid != ONE)
        });
        assert_eq!(made, 0);
        let seen = as_user(TWO, || {
            let mut file = open_in(&second, TWO, "file", OFlag::O_RDWR).unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            file.set_permissions(Permissions::from_mode(0o640)).unwrap();
            file.write_all(b", then by two").unwrap();
            let found = fstat(&file).unwrap();
            i32::from(text != "written by one" || (found.st_uid, found.st_gid) != (TWO, TWO))
        });
        assert_eq!(seen, 0);
        // The first sees it at once, and a third, that is neither, may not open it.
        let mut text = String::new();
        open_in(&first, ONE, "file", OFlag::O_RDONLY)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "written by one, then by two");
        let third = as_user(THREE, || {
            i32::from(open_in(&first, THREE, "file", OFlag::O_RDONLY).unwrap_err() != Errno::EACCES)
        });
        assert_eq!(third, 0);
        let disk = fs::metadata(base.path("shared", "data/file")).unwrap();
        assert_eq!((disk.uid(), disk.gid()), (DISK_OWNER, DISK_OWNER));
    });
}

#[test]
fn locks_of_both_kinds_exclude_across_attachments() {
    each_kind(|base, kind| {
        let spec = spec("locked", "4MB", kind);
        base.volumes.create(&spec, CREATED_NS).unwrap();
        let first = base.volumes.attach(&spec, owner(ONE), false).unwrap();
        let second = base.volumes.attach(&spec, owner(TWO), false).unwrap();
        let create = OFlag::O_CREAT | OFlag::O_RDWR;
        let held = open_in(&first, ONE, "lock", create).unwrap();
        let held = Flock::lock(held, FlockArg::LockExclusiveNonblock).unwrap();
        let taken = open_in(&second, TWO, "lock", create).unwrap();
        let (taken, errno) = Flock::lock(taken, FlockArg::LockExclusiveNonblock).unwrap_err();
        assert_eq!(errno, Errno::EWOULDBLOCK);
        drop(held);
        assert!(Flock::lock(taken, FlockArg::LockExclusiveNonblock).is_ok());
        // POSIX locks are between processes.
        let whole = libc::flock {
            l_type: i16::try_from(libc::F_WRLCK).unwrap(),
            l_whence: i16::try_from(libc::SEEK_SET).unwrap(),
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        let lock = nix::fcntl::FcntlArg::F_SETLK(&whole);
        let file = open_in(&first, ONE, "posix", create).unwrap();
        nix::fcntl::fcntl(&file, lock).unwrap();
        let code = as_user(TWO, || {
            let file = open_in(&second, TWO, "posix", create).unwrap();
            let lock = nix::fcntl::FcntlArg::F_SETLK(&whole);
            i32::from(nix::fcntl::fcntl(&file, lock) != Err(Errno::EAGAIN))
        });
        assert_eq!(code, 0);
    });
}

#[test]
fn a_read_only_attachment_takes_nothing_and_shows_what_others_write() {
    each_kind(|base, kind| {
        let spec = spec("config", "4MB", kind);
        base.volumes.create(&spec, CREATED_NS).unwrap();
        let writer = base.volumes.attach(&spec, owner(ONE), false).unwrap();
        let reader = base.volumes.attach(&spec, owner(ONE), true).unwrap();
        let create = OFlag::O_CREAT | OFlag::O_RDWR;
        assert_eq!(
            open_in(&reader, ONE, "new", create).unwrap_err(),
            Errno::EROFS
        );
        let file = open_in(&writer, ONE, "settings.json", create).unwrap();
        file.write_all_at(b"{}", 0).unwrap();
        let mut text = String::new();
        let mut seen = open_in(&reader, ONE, "settings.json", OFlag::O_RDONLY).unwrap();
        seen.read_to_string(&mut text).unwrap();
        assert_eq!(text, "{}");
        assert_eq!(
            open_in(&reader, ONE, "settings.json", OFlag::O_WRONLY).unwrap_err(),
            Errno::EROFS
        );
        assert!(
            base.volumes
                .usage(&spec)
                .is_ok_and(|usage| !usage.is_failing)
        );
    });
}

#[test]
fn an_existing_name_is_refused_and_nothing_of_it_is_touched() {
    each_kind(|base, kind| {
        let old = spec("mydata", "4MB", kind);
        base.volumes.create(&old, CREATED_NS).unwrap();
        write(base.path("mydata", "data/kept"), "kept");
        let new = spec("mydata", "8MB", VolumeKind::Filesystem);
        let refused = base.volumes.create(&new, CREATED_NS + 1).unwrap_err();
        assert_eq!(words(&refused), "volume mydata already exists");
        let kept = fs::read_to_string(base.path("mydata", "data/kept")).unwrap();
        assert_eq!(kept, "kept");
        assert_eq!(
            base.mounts(),
            1 + usize::from(base.path("mydata", "memory").exists())
        );
    });
}

#[test]
fn a_removed_volume_is_gone_at_once_and_its_device_with_the_last_job() {
    each_kind(|base, kind| {
        let spec = spec("gone", "4MB", kind);
        base.volumes.create(&spec, CREATED_NS).unwrap();
        let job = base.volumes.attach(&spec, owner(ONE), false).unwrap();
        let mut file = open_in(&job, ONE, "file", OFlag::O_CREAT | OFlag::O_RDWR).unwrap();
        base.volumes.remove(&spec.name).unwrap();
        assert_eq!((base.mounts(), base.names(&base.directory())), (0, vec![]));
        file.write_all(b"a job that has it may go on").unwrap();
        // One in memory has lost its path with the tmpfs it lies in.
        let seen = usize::from(kind == VolumeKind::Filesystem);
        assert_eq!(base.devices().len(), seen);
        drop((file, job));
        base.until_no_device();
        base.volumes.remove(&spec.name).unwrap();
        assert!(matches!(
            base.volumes.usage(&spec),
            Err(VolumeError::Damaged { .. })
        ));
        // The name is free again.
        base.volumes.create(&spec, CREATED_NS).unwrap();
        assert_eq!(base.names(&base.path("gone", "data")), [""; 0]);
    });
}

#[test]
fn files_that_are_not_ours_are_not_removed_with_a_volume() {
    let base = TestBase::new();
    let spec = disk("mixed", "1MB");
    base.volumes.create(&spec, CREATED_NS).unwrap();
    write(base.path("mixed", "notes.txt"), "somebody's");
    let refused = words(&base.volumes.remove(&spec.name).unwrap_err());
    assert!(
        refused.contains("remove") && refused.contains("/volumes/mixed: "),
        "{refused}"
    );
    let kept = fs::read_to_string(base.path("mixed", "notes.txt")).unwrap();
    assert_eq!(kept, "somebody's");
    fs::remove_file(base.path("mixed", "notes.txt")).unwrap();
    base.volumes.remove(&spec.name).unwrap();
}

#[test]
fn what_is_deleted_inside_is_free_again_on_the_host_after_a_trim() {
    let base = TestBase::new();
    let spec = disk("trimmed", "64MB");
    base.volumes.create(&spec, CREATED_NS).unwrap();
    let path = base.path("trimmed", "data/big");
    let on_host = || {
        let image = fs::metadata(base.path("trimmed", "disk.img")).unwrap();
        image.blocks() * 512
    };
    let before = on_host();
    write(&path, vec![7; 32 << 20]);
    nix::unistd::syncfs(File::open(&path).unwrap()).unwrap();
    assert!(on_host() >= before + (32 << 20));
    let unallocated = base.volumes.usage(&spec).unwrap().unallocated_bytes;
    fs::remove_file(&path).unwrap();
    assert!(base.volumes.trim(&spec).unwrap() >= 32 << 20);
    assert!(on_host() <= before + (4 << 20), "{before}, {}", on_host());
    let usage = base.volumes.usage(&spec).unwrap();
    assert!(usage.unallocated_bytes >= unallocated + (28 << 20));
    let memory = self::spec("memory", "4MB", VolumeKind::Memory);
    base.volumes.create(&memory, CREATED_NS).unwrap();
    if !base.path("memory", "memory").exists() {
        assert_eq!(base.volumes.trim(&memory).unwrap(), 0);
    }
}

#[test]
fn memory_that_the_host_has_not_is_refused_with_how_much_there_is() {
    let base = TestBase::new();
    let huge = spec("huge", "8TB", VolumeKind::Memory);
    let refused = base.volumes.create(&huge, CREATED_NS).unwrap_err();
    let VolumeError::Memory {
        bytes, available, ..
    } = refused
    else {
        panic!("{refused:?}")
    };
    assert_eq!(bytes, 8 << 40);
    assert!(available > 0 && words(&refused).contains(&available.to_string()));
    assert_eq!(base.names(&base.directory()), [""; 0]);
    // What one volume may still take is not there for another.
    let most = spec("most", &(available / 4 * 3).to_string(), VolumeKind::Memory);
    base.volumes.create(&most, CREATED_NS).unwrap();
    let second = spec("second", &(available / 2).to_string(), VolumeKind::Memory);
    assert!(matches!(
        base.volumes.create(&second, CREATED_NS),
        Err(VolumeError::Memory { .. })
    ));
    base.volumes.remove(&most.name).unwrap();
    base.volumes.create(&second, CREATED_NS).unwrap();
}

#[test]
fn a_memory_volume_has_bounds_for_bytes_and_files() {
    let base = TestBase::new();
    let spec = spec("cache", "512MB", VolumeKind::Memory);
    base.volumes.create(&spec, CREATED_NS).unwrap();
    let seen = statvfs(&base.path("cache", "data")).unwrap();
    let bytes = seen.blocks() * seen.fragment_size();
    assert!(seen.files() >= 512 * MIB / 4096);
    if base.path("cache", "memory").exists() {
        // An image in a tmpfs, as any other image.
        assert!(bytes.abs_diff(512 * MIB) * 10 <= 512 * MIB, "{bytes}");
        return;
    }
    assert_eq!(bytes, 512 * MIB);
    assert_eq!(seen.blocks_available(), seen.blocks());
    assert_eq!(seen.files(), 512 * MIB / 4096);
    assert_eq!(base.devices(), []);
}

#[test]
fn nine_volumes_need_more_loop_devices_than_a_host_begins_with() {
    let base = TestBase::new();
    let specs: Vec<_> = (0..9).map(|n| disk(&format!("v{n}"), "100KB")).collect();
    for spec in &specs {
        base.volumes.create(spec, CREATED_NS).unwrap();
    }
    assert_eq!((base.devices().len(), base.mounts()), (9, 9));
    assert_eq!(base.volumes.unmount_all().unwrap(), 9);
    base.until_no_device();
    assert_eq!(base.names(&base.directory()).len(), 9);
}

#[test]
fn a_volume_whose_image_lies_in_memory_is_made_like_any_other() {
    // Where direct I/O may not be possible.
    let base = TestBase::on_tmpfs(64 << 20);
    let spec = disk("buffered", "16MB");
    base.volumes.create(&spec, CREATED_NS).unwrap();
    write(base.path("buffered", "data/file"), "kept");
    assert_eq!(base.volumes.unmount_all().unwrap(), 1);
    base.until_no_device();
    assert_eq!(base.volumes.restore(&spec).unwrap(), Restored::Mounted);
    let kept = fs::read_to_string(base.path("buffered", "data/file")).unwrap();
    assert_eq!(kept, "kept");
}
