//! Disks for `/work`, on real loop devices.

use std::{
    io::{Read, Write},
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
};

use nix::{
    fcntl::openat,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
        statvfs::{FsFlags, fstatvfs},
        wait::waitpid,
    },
    unistd::{Pid, chroot},
};
use tempfile::TempDir;

use super::*;
use crate::sys::{descriptors::close_all_but, mount::attach, process};

const MIB: u64 = 1 << 20;

fn options(base: &TempDir, bytes: u64) -> WorkOptions<'_> {
    WorkOptions {
        base_dir: base.path(),
        job: JobId::random(),
        bytes,
        uid: 70_001,
        gid: 70_002,
    }
}

fn devices(base: &TempDir) -> Vec<PathBuf> {
    devices_backed_below(&base.path().canonicalize().unwrap()).unwrap()
}

fn file_of(image: &WorkImage, name: &str, flags: OFlag) -> File {
    openat(&image.tree, name, flags, Mode::from_bits_retain(0o644))
        .unwrap()
        .into()
}

#[test]
fn a_fresh_disk_is_empty_owned_by_the_job_and_in_no_mount_table() {
    let base = TempDir::new().unwrap();
    let image = WorkImage::create(&options(&base, 64 * MIB)).unwrap();
    let root = fstat(&image.tree).unwrap();
    assert_eq!(
        (root.st_uid, root.st_gid, root.st_mode & 0o7777),
        (70_001, 70_002, 0o755)
    );
    let entries = fs::read_dir(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&image.tree)
    ));
    assert_eq!(entries.unwrap().count(), 0);
    let flags = fstatvfs(&image.tree).unwrap().flags();
    assert!(
        flags.contains(FsFlags::ST_NOSUID | FsFlags::ST_NODEV),
        "{flags:?}"
    );
    let device = image.device.to_str().unwrap().to_owned();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(&format!(" {device} ")), "{table}");
    assert_eq!(
        fs::read_dir(base.path().join(DIRECTORY)).unwrap().count(),
        0,
        "the image has no name"
    );
    image.discard();
}

#[test]
fn the_size_is_enforced_and_what_was_written_before_is_there() {
    let base = TempDir::new().unwrap();
    let image = WorkImage::create(&options(&base, 16 * MIB)).unwrap();
    let mut file = file_of(&image, "big", OFlag::O_CREAT | OFlag::O_RDWR);
    let block = vec![7_u8; 256 << 10];
    let mut written = 0;
    let error = loop {
        match file.write(&block) {
            Ok(count) => written += count as u64,
            Err(error) => break error,
        }
        assert!(written <= 16 * MIB, "more than the size");
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(written >= 14 * MIB, "{written} of 16 MiB usable");
    assert_eq!(file.metadata().unwrap().size(), written);
    drop(file);
    image.discard();
}

#[test]
fn ten_gibibytes_that_nobody_writes_cost_next_to_nothing() {
    let base = TempDir::new().unwrap();
    let before = fstatvfs(File::open(base.path()).unwrap()).unwrap();
    let image = WorkImage::create(&options(&base, 10 << 30)).unwrap();
    let inside = fstatvfs(&image.tree).unwrap();
    let bytes = inside.blocks_available() * inside.fragment_size();
    assert!(bytes > 9_800 << 20, "{bytes} usable");
    // The file has no name to ask; its device knows it.
    let device = image.device.file_name().unwrap().to_str().unwrap();
    let size: u64 = fs::read_to_string(format!("/sys/block/{device}/size"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(size * 512, 10 << 30);
    let after = fstatvfs(File::open(base.path()).unwrap()).unwrap();
    let used = before.blocks_free().saturating_sub(after.blocks_free()) * before.fragment_size();
    assert!(
        used < 1 << 30,
        "{used} bytes of the host used (others write here too)"
    );
    image.discard();
}

#[test]
fn a_discarded_disk_leaves_no_device_and_one_in_use_stays_until_its_last_user() {
    let base = TempDir::new().unwrap();
    let image = WorkImage::create(&options(&base, 8 * MIB)).unwrap();
    assert_eq!(devices(&base), std::slice::from_ref(&image.device));
    let used = file_of(&image, "file", OFlag::O_CREAT | OFlag::O_RDWR);
    image.discard();
    assert_eq!(devices(&base).len(), 1, "a file of it is open");
    drop(used);
    until_gone(&base);
}

/// The kernel clears a device right after its last close, not always before that returns.
fn until_gone(base: &TempDir) {
    for _ in 0..1_000 {
        if devices(base).is_empty() {
            return;
        }
        nix::poll::poll(&mut [], 10_u16).unwrap();
    }
    panic!("left: {:?}", devices(base));
}

#[test]
fn what_a_crash_left_is_cleaned_and_nothing_of_another_base() {
    let (ours, theirs) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let other = WorkImage::create(&options(&theirs, 8 * MIB)).unwrap();
    let crashed = WorkImage::create(&options(&ours, 8 * MIB)).unwrap();
    File::create(ours.path().join(DIRECTORY).join("half-made.img")).unwrap();
    File::create(ours.path().join(DIRECTORY).join("no image")).unwrap();
    assert_eq!(
        clean(ours.path(), &HashSet::new()).unwrap(),
        Cleaned {
            devices: 1,
            images: 1
        }
    );
    drop(crashed);
    until_gone(&ours);
    assert_eq!(
        clean(ours.path(), &HashSet::new()).unwrap(),
        Cleaned::default()
    );
    assert_eq!(devices(&theirs), std::slice::from_ref(&other.device));
    assert_eq!(
        clean(Path::new("/nonexistent"), &HashSet::new()).unwrap(),
        Cleaned::default()
    );
    other.discard();
    until_gone(&theirs);
}

/// A process with a mount namespace of its own whose `/work`, below a root of its own, is `tree` if there is one.
struct Holder {
    pid: Pid,
    /// Not removed before it has ended: that would take the mount away from it.
    _root: TempDir,
}

impl Holder {
    fn new(tree: Option<&OwnedFd>) -> Self {
        let root = TempDir::new().unwrap();
        fs::create_dir(root.path().join("work")).unwrap();
        let (ready, is_ready) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let work = root.path().join("work").into_os_string().into_vec();
        let work = CString::new(work).unwrap();
        let pid = process::fork_child(|| {
            // What tests beside this one have open must not stay open here.
            let mut kept = vec![is_ready.as_fd()];
            kept.extend(tree.map(AsFd::as_fd));
            close_all_but(&kept).expect("Linux 5.9");
            set_pdeathsig(Signal::SIGKILL).expect("a signal");
            unshare(CloneFlags::CLONE_NEWNS).expect("root");
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("root");
            if let Some(tree) = tree {
                attach(tree.as_fd(), &work).expect("a detached mount");
            }
            chroot(root.path()).expect("root");
            nix::unistd::write(&is_ready, b"r").expect("our parent lives");
            loop {
                nix::unistd::pause();
            }
        });
        nix::unistd::read(&ready, &mut [0]).unwrap();
        Self {
            pid: pid.unwrap(),
            _root: root,
        }
    }

    fn pid(&self) -> u32 {
        u32::try_from(self.pid.as_raw()).unwrap()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

#[test]
fn a_disk_whose_job_outlived_its_daemon_is_found_spared_and_goes_with_its_last_user() {
    let base = TempDir::new().unwrap();
    let options = options(&base, 8 * MIB);
    let image = WorkImage::create(&options).unwrap();
    file_of(&image, "file", OFlag::O_CREAT | OFlag::O_RDWR)
        .write_all(b"kept")
        .unwrap();
    let job = Holder::new(Some(&image.tree));
    let device = image.device.clone();
    drop(image); // the death of the daemon
    let spared = HashSet::from([options.job]);
    assert_eq!(clean(base.path(), &spared).unwrap(), Cleaned::default());

    let other = JobId::random();
    assert!(
        WorkImage::adopt(base.path(), other, job.pid())
            .unwrap()
            .is_none()
    );
    let elsewhere = TempDir::new().unwrap();
    let found = WorkImage::adopt(elsewhere.path(), options.job, job.pid());
    assert!(found.unwrap().is_none(), "of another base directory");
    let adopt = |holder: &Holder| WorkImage::adopt(base.path(), options.job, holder.pid()).unwrap();
    let adopted = adopt(&job).unwrap();
    assert_eq!(adopted.device, device);
    let pid = job.pid();
    drop(job);
    // The job is gone: its disk is kept for as long as it is asked for.
    assert!(
        WorkImage::adopt(base.path(), options.job, pid)
            .unwrap()
            .is_none()
    );
    let mut text = String::new();
    file_of(&adopted, "file", OFlag::O_RDONLY)
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "kept");
    adopted.discard();
    until_gone(&base);

    assert!(
        adopt(&Holder::new(None)).is_none(),
        "no disk under its /work"
    );
}

#[test]
fn sizes_out_of_bounds_and_a_second_image_of_a_job_are_refused() {
    let base = TempDir::new().unwrap();
    for bytes in [0, WORK_BYTES_MIN - 1, WORK_BYTES_MAX + 1] {
        let refused = WorkImage::create(&options(&base, bytes)).unwrap_err();
        assert!(matches!(refused, WorkError::Size { .. }), "{refused}");
    }
    let smallest = WorkImage::create(&options(&base, WORK_BYTES_MIN)).unwrap();
    smallest.discard();
    let options = options(&base, 8 * MIB);
    File::create(
        base.path()
            .join(DIRECTORY)
            .join(format!("{}.img", options.job)),
    )
    .unwrap();
    assert!(matches!(
        WorkImage::create(&options),
        Err(WorkError::Make { .. })
    ));
    until_gone(&base);
}
