//! A job sees a root of its own: system trees read-only, a few places of its own to write, nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use super::DAEMON;
use crate::harness::{Daemon, Host, in_private_mounts};

#[test]
fn the_root_holds_the_promised_directories_and_nothing_else() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let allowed = [
        "bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "tmp", "usr",
        "volumes", "work",
    ];
    for name in daemon.sh("ls -A /").lines() {
        assert!(allowed.contains(&name), "/{name} is visible");
    }
    for absent in [
        "/sys",
        "/home",
        "/root",
        "/opt",
        "/var",
        "/boot",
        "/run",
        "/mnt",
        "/etc/shadow",
        "/etc/gshadow",
    ] {
        daemon.sh(&format!("test ! -e {absent}"));
    }
    daemon.sh("test -z \"$(find /etc -name '*.key' -o -path '*ssl/private*' | head -1)\"");
    let base = daemon.base.display();
    daemon.sh(&format!("test ! -e {base}"));
}

#[test]
fn only_work_tmp_and_shm_can_be_written() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    for user in ["1000", "0"] {
        let script = "for d in /work /tmp /dev/shm; do echo x > $d/f && cat $d/f || exit 1; done; \
                      for d in / /usr /usr/bin /usr/local /etc /bin /lib /sbin /dev /proc /volumes; do \
                      if (echo x > $d/joblet-it-probe) 2>/dev/null; then echo wrote $d; exit 1; fi; done";
        let run = daemon.rnx(["job", "run", "--user", user, "sh", "-c", script]);
        run.assert_code(0);
        assert_eq!(run.text(), "x\nx\nx\n");
    }
}

#[test]
fn mount_options_keep_devices_and_setuid_out() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let info = daemon.sh("cat /proc/self/mountinfo");
    for line in info.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (point, options) = (fields[4], fields[5]);
        let has = |option: &str| options.split(',').any(|o| o == option);
        assert!(has("nosuid"), "{line}");
        let writable = ["/work", "/tmp", "/dev/shm", "/dev/pts", "/proc"];
        assert!(has("ro") || writable.contains(&point), "{line}");
        assert!(
            has("nodev") || point == "/" || point == "/dev" || point == "/dev/pts",
            "{line}"
        );
        assert!(
            !line.contains("shared:") && !line.contains("master:"),
            "propagates: {line}"
        );
    }
}

#[test]
fn a_tmpfs_below_usr_local_of_the_host_is_read_only_inside() {
    if !Host::Any.is_here() {
        return;
    }
    in_private_mounts(|| {
        let (local, below) = ("/usr/local", "/usr/local/below");
        for point in [local, below] {
            fs::create_dir_all(point).unwrap();
            let plain = MsFlags::empty();
            mount(Some("tmpfs"), point, Some("tmpfs"), plain, None::<&str>).unwrap();
            fs::set_permissions(point, fs::Permissions::from_mode(0o777)).unwrap();
            fs::write(Path::new(point).join("there"), "seen\n").unwrap();
        }
        // A daemon of its own: what is mounted when its spawners start is what its jobs see.
        let daemon = Daemon::start();
        for (user, point) in [("1000", local), ("1000", below), ("0", local), ("0", below)] {
            let script = format!("cat {point}/there; echo x > {point}/new");
            let run = daemon.rnx(["job", "run", "--user", user, "sh", "-c", &script]);
            assert_ne!(run.code, 0, "{run:?}");
            assert_eq!(run.text(), "seen\n");
            assert!(run.stderr.contains("Read-only"), "{run:?}");
        }
    });
}

#[test]
fn mounting_unsharing_device_nodes_and_chroot_are_refused() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let attempts = [
        "mount -t tmpfs x /tmp",
        "mount -o remount,rw /usr",
        "mount --bind /tmp /usr",
        "umount /proc",
        "umount -l /usr",
        "unshare -Ur true",
        "unshare -U true",
        "unshare -m true",
        "unshare -n true",
        "unshare -p true",
        "mknod /tmp/node c 1 3",
        "mknod /work/node b 7 0",
        "chroot /usr /bin/true",
        "hostname other",
        "nsenter -t 1 -m true",
        "nsenter -t 1 -p true",
    ];
    for user in ["1000", "0"] {
        for attempt in attempts {
            let program = attempt.split(' ').next().unwrap();
            let script = format!(
                "command -v {program} >/dev/null || exit 60; if {attempt}; then exit 61; fi"
            );
            let run = daemon.rnx(["job", "run", "--user", user, "sh", "-c", &script]);
            assert_eq!(
                run.code, 0,
                "{attempt} as {user} (60: not there, 61: allowed): {run:?}"
            );
        }
    }
}

#[test]
fn devices_are_the_harmless_ones_and_work() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let allowed = [
        "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    ];
    for name in daemon.sh("ls -A /dev").lines() {
        assert!(allowed.contains(&name), "/dev/{name} is visible");
    }
    let script = "echo x > /dev/null; head -c 3 /dev/zero | od -An -tx1; head -c 4 /dev/urandom | wc -c; \
                  (echo x > /dev/full) 2>/dev/null || echo full";
    assert_eq!(daemon.sh(script), " 00 00 00\n4\nfull\n");
    // A terminal of the job's own: /dev/ptmx gives one, and it belongs to the job's user.
    let script = "import os; m, s = os.openpty(); f = os.fstat(s); os.write(s, b'x'); \
                  print(f.st_uid, f.st_gid, oct(f.st_mode), os.read(m, 1))";
    let run = daemon.job(["python3", "-c", script]);
    run.assert_code(0);
    assert_eq!(run.text(), "1000 1000 0o20620 b'x'\n");
}

#[test]
fn etc_is_the_jobs_own_and_has_what_programs_need() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    assert_eq!(
        daemon.sh("hostname; cat /etc/hostname; id -un; getent passwd 0 | cut -d: -f1"),
        "job\njob\njob\nroot\n"
    );
    daemon.sh(
        "grep -q localhost /etc/hosts && test -e /etc/ld.so.cache && test -e /etc/nsswitch.conf",
    );
}

#[test]
fn work_is_empty_bounded_and_gone_afterwards() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    assert_eq!(
        daemon.sh("ls -A /work | wc -l; stat -c %u /work; echo x > /work/mine"),
        "0\n1000\n"
    );
    assert_eq!(daemon.sh("ls -A /work | wc -l"), "0\n");
    let run = daemon.rnx([
        "job",
        "run",
        "--work-size",
        "300M",
        "sh",
        "-c",
        "ls -A /work | wc -l; df -Pm /work | tail -1",
    ]);
    run.assert_code(0);
    let text = run.text();
    assert!(text.starts_with("0\n"), "{text}");
    let size: u64 = text
        .lines()
        .last()
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!((270..=330).contains(&size), "asked for 300 MiB: {text}");
    let run = daemon.rnx([
        "job",
        "run",
        "--work-size",
        "300M",
        "sh",
        "-c",
        "head -c 400M /dev/zero > x",
    ]);
    assert_ne!(run.code, 0);
    assert!(run.stderr.contains("No space left"), "{run:?}");
}
