//! Spawner and init for real, without a daemon: each promise seen from inside a job.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use super::{
    init::record::{ANSWER_BYTES, Record, entry, step},
    plan::{Step, tag},
};
use crate::{
    job::User,
    sys::{affinity::CpuMask, mount as trees},
};

pub(super) mod bench;
mod volumes;

use bench::{Bench, Report, Request};

/// Runs a script as uid 1000 and returns its output, which it must have written without complaint.
fn output(script: &str) -> String {
    let report = Bench::new().run(&Request::shell(script));
    assert_eq!(
        (report.code(), report.stderr.as_str()),
        (0, ""),
        "{script}: {report:?}"
    );
    report.stdout
}

fn run(request: &Request) -> Report {
    Bench::new().run(request)
}

#[test]
fn an_exit_code_and_both_streams_arrive() {
    let report = run(&Request::shell("echo out; echo err >&2; exit 7"));
    assert_eq!(report.code(), 7);
    assert_eq!(
        (report.stdout.as_str(), report.stderr.as_str()),
        ("out\n", "err\n")
    );
    assert!(report.birth.failure.is_none() && report.birth.pid > 0);
    let Record::Started {
        mono_ns: started, ..
    } = report.records[0]
    else {
        panic!()
    };
    let Record::Exited {
        mono_ns: ended,
        maxrss_kb,
        ..
    } = report.records[1]
    else {
        panic!()
    };
    assert!(started < ended && maxrss_kb > 100);
}

#[test]
fn one_spawner_makes_one_job_after_another() {
    let bench = Bench::new();
    for code in 0..20 {
        assert_eq!(
            bench.run(&Request::shell(&format!("exit {code}"))).code(),
            code
        );
    }
}

#[test]
fn a_command_that_is_not_there_or_not_executable_says_so() {
    let check = |argv: &[&str], errno| {
        assert_eq!(
            run(&Request::new(argv)).start_error(),
            (step::EXECUTE, errno),
            "{argv:?}"
        );
    };
    check(&["no-such-command"], libc::ENOENT);
    check(&["/no/such/command"], libc::ENOENT);
    check(&[""], libc::ENOENT);
    check(&["/etc/passwd"], libc::EACCES);
    check(&["/etc/passwd/x"], libc::ENOTDIR);
    check(&["/etc"], libc::EACCES);
}

#[test]
fn the_search_goes_on_behind_a_file_that_may_not_be_executed() {
    let mut request = Request::new(&["passwd"]);
    request.env = vec![b"PATH=/etc".to_vec()];
    assert_eq!(run(&request).start_error(), (step::EXECUTE, libc::EACCES));
    let mut request = Request::new(&["true"]);
    request.env = vec![b"PATH=/etc:/nowhere::/usr/bin".to_vec()];
    assert_eq!(run(&request).code(), 0);
    request.env = Vec::new();
    assert_eq!(run(&request).code(), 0);
}

#[test]
fn an_abort_is_reported_as_its_signal() {
    let status = run(&Request::shell("kill -ABRT $$")).wait_status();
    assert!(libc::WIFSIGNALED(status));
    assert_eq!(libc::WTERMSIG(status), libc::SIGABRT);
}

#[test]
fn arguments_and_environment_arrive_byte_for_byte() {
    let mut request = Request::new(&["sh", "-c", r#"printf '<%s>' "$@"; printf '[%s]' "$X""#, "0"]);
    request
        .argv
        .extend([b"a\nb".to_vec(), Vec::new(), b"'\"\\".to_vec(), vec![0xff]]);
    request.env.push(b"X= y=z\n".to_vec());
    let report = run(&request);
    assert_eq!(report.stdout, "<a\nb><><'\"\\><\u{fffd}>[ y=z\n]");
}

fn assert_no_privilege(status: &str, uid: u32) {
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("{name}"));
        line.trim_start_matches(':')
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for set in [
        "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "SigBlk", "SigIgn", "SigCgt",
    ] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs"), ["1"]);
    let id = uid.to_string();
    assert!(
        field("Uid")
            .iter()
            .chain(&field("Gid"))
            .all(|one| *one == id),
        "{status}"
    );
    assert!(field("Groups").is_empty());
}

#[test]
fn the_command_has_no_capability_whatever_its_user() {
    assert_no_privilege(
        &run(&Request::new(&["cat", "/proc/self/status"])).stdout,
        1000,
    );
    for uid in [0, 65_534, 65_535] {
        let mut request = Request::new(&["cat", "/proc/self/status"]);
        request.user = User { uid, gid: uid };
        assert_no_privilege(&run(&request).stdout, uid);
    }
}

#[test]
fn root_of_the_job_may_nothing_of_root() {
    let script =
        "mount -t tmpfs x /tmp; umount /tmp; mknod /tmp/d c 1 3; chroot / true; hostname x;
        mount -o remount,rw /; unshare -m true; echo x > /proc/sys/kernel/hostname; chown 1 /usr;
        nice -n -5 true; kill -0 1; echo done";
    let mut request = Request::shell(script);
    request.user = User { uid: 0, gid: 0 };
    let report = run(&request);
    assert_eq!(report.stdout, "done\n");
    // Each complains once, nice included, which goes on without.
    let complaints = report
        .stderr
        .lines()
        .filter(|line| line.contains(": "))
        .count();
    assert_eq!(complaints, 11, "{}", report.stderr);
}

#[test]
fn three_descriptors_and_nothing_else() {
    assert_eq!(output("sleep 60 & ls /proc/$!/fd; kill $!"), "0\n1\n2\n");
    assert_eq!(output("readlink /proc/self/fd/0"), "/dev/null\n");
}

#[test]
fn the_pid_namespace_is_empty_but_for_init() {
    assert_eq!(output("echo $$ /proc/[0-9]*"), "2 /proc/1 /proc/2\n");
}

#[test]
fn init_cannot_be_signalled_looked_into_limited_or_moved() {
    let script = "for c in 'kill -0 1' 'kill -9 1' 'ls /proc/1/fd' 'cat /proc/1/environ' 'cat /proc/1/maps' \
        'readlink /proc/1/exe' 'ls /proc/1/root/' 'prlimit --pid 1 --nofile=1:1' 'taskset -p 1 1' 'renice -n 5 -p 1' \
        'readlink /proc/1/ns/mnt' 'cat /proc/1/mem'; do $c >/dev/null 2>&1 && echo \"$c\"; done; true";
    assert_eq!(output(script), "");
}

#[test]
fn the_root_is_read_only_and_the_rest_is_the_jobs() {
    let script = "for d in / /usr /etc /dev /proc /volumes /usr/local; do touch $d/x 2>/dev/null && echo $d; done
        for d in /work /tmp /dev/shm; do touch $d/x || echo $d; done; stat -c '%u:%g %a' /work; pwd";
    assert_eq!(output(script), "1000:1000 755\n/work\n");
    assert_eq!(
        output("dd if=/dev/zero of=/work/f bs=1M count=2 2>/dev/null || stat -c %s /work/f"),
        "1048576\n"
    );
}

#[test]
fn a_mount_below_usr_is_read_only_too() {
    let mounts = output("cat /proc/self/mountinfo");
    let lines: Vec<Vec<&str>> = mounts
        .lines()
        .map(|line| line.split(' ').collect())
        .collect();
    assert!(lines.len() >= 7, "{mounts}");
    for line in lines {
        let (target, options) = (line[4], line[5]);
        assert!(options.contains("nosuid"), "{target} {options}");
        let writable = ["/proc", "/tmp", "/dev/shm", "/dev/pts", "/work"];
        assert_eq!(
            options.contains("ro,"),
            !writable.contains(&target),
            "{target} {options}"
        );
        let expected = target == "/" || target.starts_with("/usr") || writable.contains(&target);
        assert!(
            expected || target.starts_with("/lib") || target.ends_with("bin"),
            "{target} is the host's"
        );
    }
}

#[test]
fn no_namespace_can_be_made() {
    let report = run(&Request::shell(
        "unshare -Ur true; unshare -U true; echo $?",
    ));
    assert_eq!(report.stdout, "1\n");
    assert_eq!(
        report.stderr.matches("No space left on device").count(),
        2,
        "{}",
        report.stderr
    );
}

#[test]
fn what_is_inherited_is_that_of_a_fresh_system() {
    let mask = CpuMask::of_this_thread().unwrap();
    let script = "nproc; umask; hostname; cut -d' ' -f1,5,6 /proc/self/stat | sed \"s/^[0-9]* $$ $$/leader/\";
        cat /proc/self/personality /proc/self/oom_score_adj; cut -d' ' -f19 /proc/self/stat; id -un";
    let inside = format!(
        "{}\n0022\njob\nleader\n00000000\n500\n0\njob\n",
        mask.cpus().count()
    );
    // /proc/self/personality is for those who may trace: oneself included.
    assert_eq!(output(script), inside);
    assert_eq!(
        output("grep -c : /proc/net/dev; cut -d: -f1 /proc/net/dev | tail -1 | tr -d ' '"),
        "1\nlo\n"
    );
    assert_eq!(output("cat /proc/self/cgroup | grep ^0"), "0::/\n");
}

#[test]
fn a_pipe_can_be_reopened_for_writing_only() {
    let script =
        "echo a > /dev/stdout; echo b >> /proc/self/fd/1; cat < /dev/stdout && echo readable";
    let report = run(&Request::shell(script));
    assert_eq!(report.stdout, "a\nb\n");
    assert!(
        report.stderr.contains("Permission denied"),
        "{}",
        report.stderr
    );
    let report = run(&Request::shell("echo x > /dev/stderr"));
    assert_eq!((report.code(), report.stderr.as_str()), (0, "x\n"));
    assert_eq!(output("yes | head -1"), "y\n");
}

#[test]
fn tools_of_the_host_work() {
    assert_eq!(
        output("python3 -c 'import ssl, tempfile, os; print(len(os.openpty()))'"),
        "2\n"
    );
    assert_eq!(
        output("test -c /dev/full && test -r /etc/ssl/certs && head -c 3 /dev/urandom | wc -c"),
        "3\n"
    );
    assert_eq!(
        output("ls -A /etc/ssl | grep private; ls /etc | grep -c shadow; true"),
        "0\n"
    );
}

#[test]
fn a_working_directory_that_is_not_there_is_named() {
    let mut request = Request::new(&["true"]);
    request.workdir = "/work/none";
    assert_eq!(run(&request).start_error(), (step::WORKDIR, libc::ENOENT));
    assert_eq!(
        Step::name(u16::from(step::WORKDIR)),
        "enter the working directory"
    );
}

#[test]
fn signals_reach_the_command_and_only_it() {
    let bench = Bench::new();
    let job = bench.start(&Request::shell(
        "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.01; done",
    ));
    job.go();
    assert!(matches!(
        job.record(),
        Some(Record::Started { errno: 0, .. })
    ));
    let mut ready = [0; 6];
    File::from(job.fds.stdout.try_clone().unwrap())
        .read_exact(&mut ready)
        .unwrap();
    job.signal(0); // no signal: ignored
    job.signal(u8::try_from(libc::SIGTERM).unwrap());
    let Some(Record::Exited { wait_status, .. }) = job.record() else {
        panic!()
    };
    assert_eq!(libc::WEXITSTATUS(wait_status), 3);
    assert_eq!(job.finish().stdout, "got\n");
}

#[test]
fn a_signal_before_go_is_not_lost() {
    let bench = Bench::new();
    let job = bench.start(&Request::new(&["sleep", "1000"]));
    job.signal(u8::try_from(libc::SIGINT).unwrap());
    job.go();
    assert_eq!(libc::WTERMSIG(job.finish().wait_status()), libc::SIGINT);
}

#[test]
fn a_second_go_is_harmless_whenever_it_comes_and_whichever_end_it_comes_through() {
    let bench = Bench::new();
    // Both before the command starts: the second lies unread until it has.
    let job = bench.start(&Request::shell("echo once"));
    job.go();
    job.go();
    let report = job.finish();
    assert_eq!((report.code(), report.stdout.as_str()), (0, "once\n"));
    // By the keeper's end alone, as a later daemon does, and again while the command runs.
    let mut job = bench.start(&Request::shell(
        "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done",
    ));
    job.control = job.fds.control.try_clone().unwrap();
    job.go();
    assert!(matches!(
        job.record(),
        Some(Record::Started { errno: 0, .. })
    ));
    let mut ready = [0; 6];
    File::from(job.fds.stdout.try_clone().unwrap())
        .read_exact(&mut ready)
        .unwrap();
    job.go();
    job.go();
    job.signal(u8::try_from(libc::SIGTERM).unwrap());
    let Some(Record::Exited { wait_status, .. }) = job.record() else {
        panic!("a second start")
    };
    assert_eq!(libc::WEXITSTATUS(wait_status), 5);
    assert_eq!(job.finish().stdout, "");
    // And where the command cannot start.
    let job = bench.start(&Request::new(&["/no/such/command"]));
    job.go();
    job.go();
    assert_eq!(job.finish().start_error(), (step::EXECUTE, libc::ENOENT));
}

#[test]
fn the_ids_of_a_job_are_read_off_its_init() {
    let bench = Bench::new();
    let request = Request::new(&["true"]);
    let job = bench.start(&request);
    let range = super::identity::range_of(job.birth.pid);
    assert_eq!(range.map(|range| range.base()), Some(request.ids_base));
    job.go();
    assert_eq!(job.finish().code(), 0);
}

#[test]
fn a_closed_control_socket_before_go_ends_init_and_after_go_does_not_end_the_command() {
    let bench = Bench::new();
    let mut job = bench.start(&Request::shell("echo never"));
    let (other, _) = bench::seqpacket();
    job.control = other.try_clone().unwrap();
    job.fds.control = other;
    let report = job.finish();
    assert!(report.records.is_empty());
    assert_eq!(report.stdout, "");

    let mut job = bench.start(&Request::shell(
        "read x < /work/fifo 2>/dev/null; sleep 0.1; echo on",
    ));
    job.go();
    assert!(matches!(
        job.record(),
        Some(Record::Started { errno: 0, .. })
    ));
    let (other, _) = bench::seqpacket();
    job.control = other.try_clone().unwrap();
    job.fds.control = other;
    assert_eq!(job.finish().stdout, "on\n");
}

#[test]
fn orphans_are_reaped_and_end_with_the_command() {
    let script = "(true &); (sleep 1000 &); i=0
        while [ $i -lt 200 ] && ls -d /proc/[0-9]* | xargs -I@ cat @/stat 2>/dev/null | grep -q ') Z 1 '; do
          i=$((i+1)); sleep 0.01; done; [ $i -lt 200 ] && echo reaped";
    assert_eq!(output(script), "reaped\n");
}

/// One entry of an upload.
fn entry_bytes(kind: u8, mode: u32, path: &str, target: &str, contents: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(mode.to_le_bytes());
    bytes.extend(u32::try_from(path.len()).unwrap().to_le_bytes());
    bytes.extend(u32::try_from(target.len()).unwrap().to_le_bytes());
    bytes.extend(u64::try_from(contents.len()).unwrap().to_le_bytes());
    bytes.extend([path.as_bytes(), target.as_bytes(), contents].concat());
    bytes
}

/// Starts a job with these entries; returns the uploader's answer and the report.
fn upload(script: &str, entries: &[Vec<u8>]) -> ((i32, u32), Report) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut request = Request::shell(script);
    request.upload = Some(theirs.into());
    let bench = Bench::new();
    let job = bench.start(&request);
    drop(request);
    job.go();
    for entry in entries {
        // After a failure nobody reads any more.
        let _ = ours.write_all(entry);
    }
    let _ = ours.write_all(&entry_bytes(entry::END, 0, "", "", b""));
    let mut answer = [0; ANSWER_BYTES];
    ours.read_exact(&mut answer).unwrap();
    let [e0, e1, e2, e3, i0, i1, i2, i3] = answer;
    (
        (
            i32::from_le_bytes([e0, e1, e2, e3]),
            u32::from_le_bytes([i0, i1, i2, i3]),
        ),
        job.finish(),
    )
}

#[test]
fn an_upload_lands_in_work_with_its_modes_and_its_owner() {
    let big = vec![b'x'; 300_000];
    let entries = [
        entry_bytes(entry::DIR, 0o555, "dir", "", b""),
        entry_bytes(entry::FILE, 0o4755, "dir/run", "", b"#!/bin/sh\necho ran\n"),
        entry_bytes(entry::DIR, 0o555, "dir", "", b""),
        entry_bytes(entry::FILE, 0o664, "big", "", &big),
        entry_bytes(entry::SYMLINK, 0, "link", "dir/run", b""),
    ];
    let script =
        "stat -c '%a %u %g %s %n' dir dir/run big; ./link; readlink link; ls /proc/self/fd | wc -l";
    let (answer, report) = upload(script, &entries);
    assert_eq!(answer, (0, 5));
    let rest = "ran\ndir/run\n4\n";
    let expected = format!("755 1000 1000 19 dir/run\n664 1000 1000 300000 big\n{rest}");
    let (dir, files) = report.stdout.split_once('\n').unwrap();
    assert!(dir.starts_with("555 1000 1000"), "{dir}");
    assert_eq!(files, expected, "{report:?}");
}

#[test]
fn an_upload_that_leaves_work_is_refused_and_the_command_does_not_start() {
    let link = entry_bytes(entry::SYMLINK, 0, "out", "/tmp", b"");
    let inner = entry_bytes(entry::SYMLINK, 0, "in", ".", b"");
    let file = |path: &str| entry_bytes(entry::FILE, 0o644, path, "", b"x");
    let dir = |path: &str| entry_bytes(entry::DIR, 0o755, path, "", b"");
    let check = |entries: &[Vec<u8>], expected: (i32, u32)| {
        let (answer, report) = upload("echo started", entries);
        assert_eq!(answer, expected);
        assert_eq!(report.start_error(), (step::UPLOAD, expected.0));
        assert_eq!(report.stdout, "");
    };
    check(&[link.clone(), file("out/f")], (libc::ELOOP, 1));
    check(&[inner, file("in/f")], (libc::ELOOP, 1));
    check(&[link.clone(), file("out")], (libc::ELOOP, 1));
    check(&[link.clone(), dir("out/d")], (libc::ELOOP, 1));
    check(&[link, dir("out")], (libc::ELOOP, 1));
    check(&[file("../f")], (libc::EXDEV, 0));
    check(&[file("/tmp/f")], (libc::EXDEV, 0));
    check(&[dir("../d")], (libc::EXDEV, 0));
    check(&[dir("/d")], (libc::ENOENT, 0));
    check(&[file("")], (libc::ENOENT, 0));
    check(&[file("a\0b")], (libc::EINVAL, 0));
    check(&[file(&"x".repeat(4096))], (libc::ENAMETOOLONG, 0));
    check(&[entry_bytes(9, 0, "x", "", b"")], (libc::EINVAL, 0));
    check(
        &[entry_bytes(
            entry::FILE,
            0o644,
            "full",
            "",
            &vec![0; 2 << 20],
        )],
        (libc::ENOSPC, 0),
    );
}

#[test]
fn an_upload_that_breaks_off_ends_the_job() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut request = Request::shell("echo started");
    request.upload = Some(theirs.into());
    let bench = Bench::new();
    let job = bench.start(&request);
    drop(request);
    job.go();
    drop(ours);
    assert_eq!(job.finish().start_error(), (step::UPLOAD, libc::EPIPE));
}

#[test]
fn a_mount_that_comes_along_becomes_work() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(
        dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    let path = std::ffi::CString::new(dir.path().to_str().unwrap()).unwrap();
    let mut request = Request::shell("echo kept > file; pwd");
    request.tree = Some(trees::clone_tree(&path).unwrap());
    assert_eq!(run(&request).stdout, "/work\n");
    assert_eq!(
        fs::read_to_string(dir.path().join("file")).unwrap(),
        "kept\n"
    );
}

#[test]
fn a_failed_step_is_named_and_leaves_nothing() {
    let bench = Bench::new();
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let check = |request: &Request, step: u16, errno: i32, has_process: bool| {
        let job = bench.start(request);
        job.go();
        let failure = job.birth.failure.expect("a failure");
        assert_eq!(
            (failure.step, failure.errno),
            (step, errno),
            "{}",
            Step::name(failure.step)
        );
        assert_eq!(job.birth.pid != 0, has_process);
        assert!(job.finish().records.is_empty());
    };
    let mut request = Request::shell("echo never");
    request.net_ns = Some(null());
    check(&request, Step::EnterNet.tag(), libc::EINVAL, true);
    let mut request = Request::shell("echo never");
    request.tree = Some(null());
    check(&request, Step::AttachWork.tag(), libc::EINVAL, true);
    let mut request = Request::shell("echo never");
    request.cgroup = Some(null());
    check(&request, tag::CLONE, libc::EBADF, false);
    let mut request = Request::shell("echo never");
    request.plan = Some(b"no plan".to_vec());
    check(&request, tag::PLAN, libc::EINVAL, false);
    // A plan that wants a mount which does not come.
    let mut request = Request::shell("echo never");
    request.tree = Some(null());
    let plan = request.plan().bytes().to_vec();
    request.tree = None;
    request.plan = Some(plan);
    check(&request, tag::PLAN, libc::EINVAL, false);
    let mut request = Request::new(&["true"]);
    request
        .argv
        .extend(std::iter::repeat_n(vec![b'x'; 100_000], 40));
    check(&request, Step::Execute.tag(), libc::E2BIG, true);
    // And it goes on as if nothing had been.
    assert_eq!(bench.run(&Request::shell("exit 4")).code(), 4);
}

#[test]
fn ten_thousand_arguments_arrive() {
    let mut request = Request::shell("echo $#");
    request
        .argv
        .extend(std::iter::repeat_n(b"x".to_vec(), 10_000));
    assert_eq!(run(&request).stdout, "9999\n");
}

#[test]
fn the_host_keeps_its_mounts_and_its_name() {
    let name = nix::unistd::gethostname().unwrap();
    assert_eq!(output("cat /etc/hostname"), "job\n");
    assert_eq!(nix::unistd::gethostname().unwrap(), name);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.lines().any(|line| line.contains(" - tmpfs joblet ")),
        "{mounts}"
    );
}
