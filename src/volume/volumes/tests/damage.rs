//! What is left of a volume after a crash, and what is done about it.

use std::os::unix::fs::symlink;

use super::*;
use crate::volume::{
    DISK_OWNER, loops,
    testing::{overwrite, without, without_rights},
};

/// Where the super block has its state, and that of one that was unmounted.
const STATE_AT: u64 = 1024 + 0x3A;
const VALID: [u8; 2] = [1, 0];

fn made(size: &str) -> (TestBase, VolumeSpec) {
    let base = TestBase::new();
    let spec = disk("vol", size);
    base.volumes.create(&spec, CREATED_NS).unwrap();
    let kept = base.path("vol", "data/kept");
    write(&kept, "kept");
    nix::unistd::syncfs(File::open(&kept).unwrap()).unwrap();
    (base, spec)
}

/// As after the power went and came.
fn unmounted(size: &str) -> (TestBase, VolumeSpec) {
    let (mut base, spec) = made(size);
    assert_eq!(base.volumes.unmount_all().unwrap(), 1);
    base.until_no_device();
    base.reopen();
    (base, spec)
}

fn assert_kept(base: &TestBase) {
    assert_eq!(base.names(&base.path("vol", "data")), ["kept"]);
    let kept = fs::read_to_string(base.path("vol", "data/kept")).unwrap();
    assert_eq!(kept, "kept");
}

#[test]
fn a_mounted_volume_is_left_alone_by_the_next_daemon() {
    let (mut base, spec) = made("16MB");
    base.reopen();
    assert_eq!(base.volumes.restore(&spec).unwrap(), Restored::Kept);
    assert_eq!((base.mounts(), base.devices().len()), (1, 1));
    assert_kept(&base);
}

#[test]
fn a_volume_is_mounted_again_with_what_was_in_it() {
    for size in ["50KB", "1MB", "16MB", "64MB"] {
        let (base, spec) = unmounted(size);
        assert_eq!(base.volumes.restore(&spec).unwrap(), Restored::Mounted);
        assert_kept(&base);
        assert_eq!(base.volumes.restore(&spec).unwrap(), Restored::Kept);
    }
}

#[test]
fn attaching_mounts_what_nobody_restored() {
    let (base, spec) = unmounted("16MB");
    let tree = base.volumes.attach(&spec, owner(ONE), false).unwrap();
    assert!(open_in(&tree, ONE, "kept", OFlag::O_RDONLY).is_ok());
    assert_kept(&base);
}

#[test]
fn a_volume_is_whole_after_the_machine_stopped_in_the_middle_of_writing() {
    // A copy of the image while it is mounted and written to is what a power cut leaves.
    for size in ["7MB", "64MB"] {
        let (base, spec) = made(size);
        let data = base.path("vol", "data");
        for index in 0..500 {
            let path = data.join(format!("file-{index}"));
            write(&path, vec![7; 1000]);
            if index % 2 == 0 {
                fs::remove_file(&path).unwrap();
            }
            if index == 250 {
                nix::unistd::syncfs(File::open(&data).unwrap()).unwrap();
            }
        }
        let image = base.path("vol", "disk.img");
        let copy = base.path("vol", "copy.img");
        fs::copy(&image, &copy).unwrap();
        base.volumes.unmount_all().unwrap();
        base.until_no_device();
        fs::rename(&copy, &image).unwrap();
        base.volumes.restore(&spec).unwrap();
        let kept = fs::read_to_string(data.join("kept")).unwrap();
        assert_eq!(kept, "kept", "{size}");
        for index in (1..250).step_by(2) {
            let bytes = fs::read(data.join(format!("file-{index}"))).unwrap();
            assert_eq!(bytes, [7; 1000], "{size}");
        }
        base.volumes.unmount_all().unwrap();
        base.until_no_device();
        let mut state = [0; 2];
        let image = File::open(image).unwrap();
        image.read_exact_at(&mut state, STATE_AT).unwrap();
        assert_eq!(state, VALID, "{size}");
    }
}

#[test]
fn what_was_whole_on_the_disk_survives_that_a_journal_is_given_up() {
    let (base, spec) = made("64MB");
    let data = base.path("vol", "data");
    let sync = || nix::unistd::syncfs(File::open(&data).unwrap()).unwrap();
    sync();
    // Replaced, but not yet for good: the old one is what is left.
    write(data.join("new"), "new");
    sync();
    fs::rename(data.join("new"), data.join("kept")).unwrap();
    let root = base.volumes.root(&spec).unwrap();
    note_error(&root);
    drop(root);
    base.attach_when_checked(&spec, owner(ONE));
    let kept = fs::read_to_string(data.join("kept")).unwrap();
    assert_eq!(kept, "kept");
}

/// Has the kernel note an error in the file system of `root`, as it does itself.
fn note_error(root: &OwnedFd) {
    let node = loops::node_of(fstat(root).unwrap().st_dev).unwrap();
    let noted = Path::new("/sys/fs/ext4").join(node.file_name().unwrap());
    write(noted.join("trigger_fs_error"), "a test");
}

#[test]
fn a_noted_error_is_repaired_before_the_next_attachment() {
    for size in ["1MB", "64MB"] {
        let (base, spec) = made(size);
        let job = base.volumes.attach(&spec, owner(ONE), false).unwrap();
        note_error(&job);
        assert!(base.volumes.usage(&spec).unwrap().is_failing);
        let create = OFlag::O_CREAT | OFlag::O_RDWR;
        // Some kernels (6.1.113 to 6.14) go on writing where there is no journal to give up.
        if size == "64MB" {
            assert!(open_in(&job, ONE, "new", create).is_err());
        }
        // While a job holds it nothing can be checked.
        let refused = base.volumes.attach(&spec, owner(TWO), false);
        let Err(VolumeError::Damaged { damage, .. }) = refused else {
            panic!("{refused:?}")
        };
        assert!(matches!(damage, Damage::Failing), "{damage:?}");
        assert_eq!(base.mounts(), 1);
        drop(job);
        let job = base.attach_when_checked(&spec, owner(TWO));
        assert!(open_in(&job, TWO, "new", create).is_ok());
        assert!(!base.volumes.usage(&spec).unwrap().is_failing);
        assert_eq!(base.devices().len(), 1);
        assert_eq!(base.names(&base.path("vol", "data")), ["kept", "new"]);
        let kept = fs::read_to_string(base.path("vol", "data/kept")).unwrap();
        assert_eq!(kept, "kept");
    }
}

#[test]
fn a_ruined_image_is_said_so_stays_as_it_is_and_harms_no_other() {
    let (base, spec) = unmounted("1MB");
    let other = disk("other", "1MB");
    base.volumes.create(&other, CREATED_NS).unwrap();
    let image = base.path("vol", "disk.img");
    overwrite(&image, 0, &[0x55; 64 << 10]);
    let before = fs::read(&image).unwrap();
    for _ in 0..2 {
        let error = base.volumes.restore(&spec).unwrap_err();
        assert!(
            words(&error).starts_with("volume vol is damaged: its image "),
            "{error:?}"
        );
        assert!(error.hint().unwrap().contains("e2fsck"));
        assert!(base.volumes.attach(&spec, owner(ONE), false).is_err());
    }
    assert!(fs::read(&image).unwrap() == before, "it was written to");
    assert_eq!(base.volumes.restore(&other).unwrap(), Restored::Kept);
    assert_eq!(base.devices().len(), 1, "that of the other");
    base.volumes.remove(&spec.name).unwrap();
}

#[test]
fn an_image_that_was_deleted_is_said_so_mounted_or_not_and_never_made_anew() {
    let (base, spec) = made("1MB");
    fs::remove_file(base.path("vol", "disk.img")).unwrap();
    let check = || {
        let refused = base.volumes.restore(&spec);
        let Err(VolumeError::Damaged { damage, .. }) = refused else {
            panic!("{refused:?}")
        };
        assert!(matches!(damage, Damage::ImageGone(_)), "{damage:?}");
        assert!(base.volumes.attach(&spec, owner(ONE), false).is_err());
        assert!(base.volumes.usage(&spec).is_err());
        assert!(base.volumes.root(&spec).is_err());
    };
    check();
    base.volumes.unmount_all().unwrap();
    base.until_no_device();
    check();
    assert!(!base.path("vol", "disk.img").exists());
    base.volumes.remove(&spec.name).unwrap();
    check();
    assert_eq!(base.names(&base.directory()), [""; 0]);
}

#[test]
fn something_else_in_its_place_is_not_taken_for_the_volume() {
    let (base, spec) = unmounted("1MB");
    let other = disk("other", "1MB");
    base.volumes.create(&other, CREATED_NS).unwrap();
    let none = None::<&str>;
    let (theirs, ours) = (base.path("other", "data"), base.path("vol", "data"));
    nix::mount::mount(
        Some(&theirs),
        &ours,
        none,
        nix::mount::MsFlags::MS_BIND,
        none,
    )
    .unwrap();
    let refused = base.volumes.attach(&spec, owner(ONE), false);
    let Err(VolumeError::Damaged { damage, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(matches!(damage, Damage::Covered(_)), "{damage:?}");
    base.volumes.unmount_all().unwrap();
    // Nor is a link that leads elsewhere.
    fs::remove_dir(&ours).unwrap();
    symlink("/", &ours).unwrap();
    assert!(base.volumes.attach(&spec, owner(ONE), false).is_err());
    fs::remove_file(&ours).unwrap();
    assert_eq!(base.volumes.restore(&spec).unwrap(), Restored::Mounted);
    assert_kept(&base);
}

#[test]
fn a_volume_that_a_job_still_holds_is_mounted_again_and_not_beside_itself() {
    let (base, spec) = made("16MB");
    let job = base.volumes.attach(&spec, owner(ONE), false).unwrap();
    base.volumes.unmount_all().unwrap();
    assert_eq!(base.volumes.restore(&spec).unwrap(), Restored::Mounted);
    assert_eq!(base.devices().len(), 1);
    open_in(&job, ONE, "live", OFlag::O_CREAT | OFlag::O_RDWR).unwrap();
    assert_eq!(base.names(&base.path("vol", "data")), ["kept", "live"]);
}

#[test]
fn a_memory_volume_is_empty_after_the_machine_was_started_anew_and_stays_otherwise() {
    for mut base in [TestBase::new(), without_mapped_tmpfs()] {
        let spec = spec("vol", "4MB", VolumeKind::Memory);
        base.volumes.create(&spec, CREATED_NS).unwrap();
        write(base.path("vol", "data/file"), "lost");
        assert_eq!(base.volumes.restore(&spec).unwrap(), Restored::Kept);
        base.volumes.unmount_all().unwrap();
        base.until_no_device();
        let maps = *base.volumes.maps_tmpfs.get().unwrap();
        base.reopen();
        base.volumes.maps_tmpfs.set(maps).unwrap();
        assert_eq!(base.volumes.restore(&spec).unwrap(), Restored::Emptied);
        let root = fs::metadata(base.path("vol", "data")).unwrap();
        assert_eq!(root.uid(), DISK_OWNER);
        assert_eq!(base.names(&base.path("vol", "data")), [""; 0]);
    }
}

#[test]
fn what_nobody_knows_is_cleaned_and_what_is_known_or_no_volume_stays() {
    let (base, spec) = made("1MB");
    let lost = disk("lost", "1MB");
    base.volumes.create(&lost, CREATED_NS).unwrap();
    fs::create_dir(base.path("halfmade", "")).unwrap();
    write(base.path("halfmade", "disk.img"), "");
    fs::create_dir(base.path("no volume", "")).unwrap();
    let known = HashSet::from([spec.name.clone()]);
    let cleaned = base.volumes.clean(&known).unwrap();
    assert_eq!((cleaned.volumes, cleaned.devices), (2, 1));
    assert_eq!(base.names(&base.directory()), ["no volume", "vol"]);
    assert_kept(&base);
    base.volumes.clean(&known).unwrap();
    assert_eq!(base.names(&base.directory()), ["no volume", "vol"]);
}

#[test]
fn nothing_is_left_of_a_volume_that_could_not_be_made() {
    // A disk with too little space for the file system's own part; the host's own is never filled.
    let base = TestBase::on_tmpfs(256 << 10);
    let error = base
        .volumes
        .create(&disk("large", "1TB"), CREATED_NS)
        .unwrap_err();
    assert!(words(&error).contains("large"), "{error:?}");
    assert_eq!(
        error.hint().unwrap(),
        "free space on the daemon's disk",
        "{error:?}"
    );
    assert_eq!(base.names(&base.directory()), [""; 0]);
    base.until_no_device();
    assert_eq!(base.mounts(), 0);
}

#[test]
fn without_the_right_to_mount_the_guides_words_are_said_and_nothing_is_left() {
    let base = TestBase::new();
    let check = |spec: &VolumeSpec| {
        let code = without_rights(|| {
            let refusal = base.volumes.create(spec, CREATED_NS).unwrap_err().refusal();
            let hint = refusal.hint.unwrap_or_default();
            i32::from(
                refusal.message != "failed to create volume: operation not permitted"
                    || !hint.contains("CAP_SYS_ADMIN"),
            )
        });
        assert_eq!(code, 0);
        assert_eq!(base.names(&base.directory()), [""; 0]);
        base.until_no_device();
    };
    check(&disk("denied", "1MB"));
    check(&spec("denied", "1MB", VolumeKind::Memory));
}

#[test]
fn a_host_without_mkfs_or_without_loop_devices_is_told_what_it_lacks_and_nothing_is_left() {
    let base = TestBase::new();
    let check = |hidden: &[&str], message: &str, hint: &str| {
        let code = without(hidden, || {
            let refused = base.volumes.create(&disk("lacking", "1MB"), CREATED_NS);
            let refusal = refused.unwrap_err().refusal();
            let is_told = refusal.message.contains(message)
                && refusal
                    .hint
                    .as_ref()
                    .is_some_and(|said| said.contains(hint));
            if !is_told {
                // Past the capture of the test's output, which has a lock.
                let _ = nix::unistd::write(io::stderr(), format!("{refusal:?}\n").as_bytes());
            }
            i32::from(!is_told)
        });
        assert_eq!(code, 0, "{hidden:?}");
        assert_eq!(base.names(&base.directory()), [""; 0]);
        base.until_no_device();
    };
    let programs = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
    check(&programs, "mkfs.ext4 is not installed", "install e2fsprogs");
    check(
        &["/dev"],
        "find a loop device for volume lacking",
        "kernel module loop",
    );
}

#[test]
fn a_host_disk_that_is_full_all_the_same_costs_what_was_not_written_and_nothing_else() {
    let base = TestBase::on_tmpfs(24 << 20);
    let spec = disk("vol", "64MB");
    base.volumes.create(&spec, CREATED_NS).unwrap();
    let job = base.volumes.attach(&spec, owner(ONE), false).unwrap();
    let create = OFlag::O_CREAT | OFlag::O_RDWR;
    let mut kept = open_in(&job, ONE, "kept", create).unwrap();
    kept.write_all(b"kept").unwrap();
    kept.sync_all().unwrap();
    let mut failed = false;
    for index in 0..48 {
        let Ok(mut file) = open_in(&job, ONE, &format!("f{index}"), create) else {
            failed = true;
            break;
        };
        failed |= file.write_all(&[7; 1 << 20]).is_err() || file.sync_all().is_err();
    }
    assert!(failed, "48 MiB in 24");
    drop((kept, job));
    // Space is back.
    base.resize(128 << 20);
    let job = base.attach_when_checked(&spec, owner(TWO));
    assert!(!base.volumes.usage(&spec).unwrap().is_failing);
    let mut text = String::new();
    let mut kept = open_in(&job, TWO, "kept", OFlag::O_RDWR).unwrap();
    kept.read_to_string(&mut text).unwrap();
    assert_eq!(text, "kept");
    let mut more = open_in(&job, TWO, "more", create).unwrap();
    more.write_all(&[7; 16 << 20]).unwrap();
    more.sync_all().unwrap();
}
