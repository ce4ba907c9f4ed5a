//! What a volume takes of the host: its size and the file system's own part, and nothing once it is gone.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::mount::{MsFlags, mount, umount};
use nix::sys::stat::{Mode, SFlag, mknod};

use crate::harness::{
    Daemon, Host, SHORT, Waiting, free, loop_devices, on_a_disk_of, wait_until, with_reserve,
};

const DISK: u64 = 512 << 20;
const NAMED: u64 = 64 << 20;
/// What the daemon may write into its own files meanwhile.
const OWN_FILES: u64 = 2 << 20;

#[test]
fn a_full_volume_takes_its_size_of_the_host_and_gives_back_what_is_deleted_and_all_when_removed() {
    if !Host::Any.is_here() {
        return;
    }
    on_a_disk_of(DISK, |disk| {
        let daemon = Daemon::start_in(disk, |config| with_reserve(&config, 0));
        // What the daemon makes once is there.
        daemon.create("other", "10MB");
        daemon.with("other", "echo kept > /volumes/other/x").ok();
        let before = free(disk);
        daemon.create("data", "64MB");
        let fill = "dd if=/dev/urandom of=/volumes/data/fill bs=64k 2>&1; sync /volumes/data/fill; \
                    stat -c %s /volumes/data/fill";
        let filled = daemon.with("data", fill).ok();
        assert!(filled.contains("No space left on device"), "{filled}");
        let stored: u64 = filled.lines().last().unwrap().parse().unwrap();
        assert!(stored >= NAMED * 9 / 10, "{filled}");
        let taken = before - free(disk);
        // Beside the size there is the journal, a tenth of the size at most for tables and bitmaps, and the 2 % that the
        // kernel never hands out are never written.
        let most = NAMED + (4 << 20) + NAMED / 10 + OWN_FILES;
        assert!(
            taken >= stored && taken <= most,
            "{taken} of {most} for {stored}"
        );
        assert_eq!(daemon.with("other", "cat /volumes/other/x").ok(), "kept\n");

        // A job that deletes gives the host its space, once it has ended.
        daemon
            .with("data", "rm /volumes/data/fill; echo rest > /volumes/data/x")
            .ok();
        let least = before - (taken - stored) - OWN_FILES;
        wait_until(SHORT, "what was deleted is the host's again", || {
            let left = free(disk);
            Waiting::when(left >= least, || format!("{left} of {least}"))
        });
        assert_eq!(daemon.with("data", "cat /volumes/data/x").ok(), "rest\n");

        daemon.remove("data").assert_code(0);
        wait_until(SHORT, "all of it is the host's again", || {
            let left = free(disk);
            Waiting::when(left + OWN_FILES >= before, || format!("{left} of {before}"))
        });
        assert!(loop_devices(&daemon.base.join("volumes/data")).is_empty());
    });
}

#[test]
fn a_daemon_that_may_not_use_loop_devices_makes_no_volume_on_disk_and_says_so_in_the_guides_words()
{
    if !Host::Any.is_here() {
        return;
    }
    on_a_disk_of(DISK, |disk| {
        let daemon = Daemon::start_in(disk, |config| with_reserve(&config, 0));
        // As in a container that was given no devices: the node is there, and opening it is not permitted.
        let control = Path::new("/dev/loop-control");
        let nodes = disk.join("nodes");
        let (none, flags) = (None::<&str>, MsFlags::MS_NODEV);
        fs::create_dir(&nodes).unwrap();
        mount(Some("nodes"), &nodes, Some("tmpfs"), flags, none).unwrap();
        let node = nodes.join("loop-control");
        let number = fs::metadata(control).unwrap().rdev();
        mknod(&node, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, number).unwrap();
        mount(Some(&node), control, none, MsFlags::MS_BIND, none).unwrap();
        let refused = daemon.rnx(["volume", "create", "data", "--size=1MB"]);
        refused.assert_code(1);
        let said: Vec<&str> = refused.stderr.lines().collect();
        assert_eq!(
            said[0],
            "error: failed to create volume: operation not permitted"
        );
        assert!(said[1].contains("/dev/loop-control"), "{refused:?}");
        assert!(daemon.volumes().is_empty());
        let left = fs::read_dir(daemon.base.join("volumes")).unwrap().count();
        assert_eq!(left, 0);
        umount(control).unwrap();
        daemon.create("data", "1MB");
        assert_eq!(
            daemon
                .with("data", "echo x > /volumes/data/x; cat /volumes/data/x")
                .ok(),
            "x\n"
        );
    });
}
