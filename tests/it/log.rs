//! Output: every byte, in order, once; attached, live, afterwards, and within its limit.

use std::convert::Infallible;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ChildStdout;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use joblet::sys::scm;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use ring::digest::{Context, SHA256};

use crate::harness::{
    Daemon, Host, LONG, Running, SHORT, Shared, Waiting, daemon_memory, now, patient, wait_until,
};

static DAEMON: Shared = Shared::new();

const BIG: u64 = 300_000_000;
/// What of it one follower reads, at a megabyte a second; `JOBLET_TEST_SLOW_LOG_BYTES` is instead of it.
const SLOW: u64 = 20_000_000;
/// What four readers may cost the daemon: windows and pieces on their way, not output that waits for a slow one.
const MEMORY: u64 = 16 << 20;
const _: () = assert!(MEMORY < SLOW);

#[test]
fn three_hundred_megabytes_arrive_unchanged_at_fast_slow_and_late_readers() {
    if !Host::Any.is_here() {
        return;
    }
    // Of its own, so that its memory is that of this test.
    let daemon = Daemon::start();
    daemon.job(["true"]).assert_code(0);
    let process = daemon.process();
    let before = daemon_memory(process.pid, "VmRSS");
    let slow: u64 =
        std::env::var("JOBLET_TEST_SLOW_LOG_BYTES").map_or(SLOW, |bytes| bytes.parse().unwrap());
    let script = format!(
        "head -c {BIG} /dev/urandom > x; sha256sum x >&2; tail -c {slow} x | sha256sum >&2; cat x"
    );
    let flags = [
        "job",
        "run",
        "--name",
        "big",
        "--work-size",
        "400M",
        "--",
        "sh",
        "-c",
    ];
    let (attached, stdout) = Running::streaming(&daemon.client().args(flags).arg(&script));
    let attached_sum = hash(stdout, Pace::Full);

    let id = wait_until(SHORT, "the job is listed", || {
        let list = daemon.rnx(["job", "list", "--json"]).json();
        let job = list
            .as_array()
            .unwrap()
            .iter()
            .find(|job| job["name"] == "big")
            .cloned();
        job.map_or(Waiting::Seen(list.to_string()), |job| {
            Waiting::Done(job["id"].as_str().unwrap().to_owned())
        })
    });
    let follow = |flags: &[&str]| {
        let flags = ["job", "log", "--stream=stdout"].iter().chain(flags);
        Running::streaming(&daemon.client().args(flags).arg(&id))
    };
    let (slow_running, stdout) = follow(&["--offset", &(BIG - slow).to_string()]);
    let (others_are_done, done) = channel();
    let slow_sum = hash(stdout, Pace::MegabyteASecond { bytes: slow, done });
    let followers: Vec<_> = (0..2)
        .map(|_| {
            let (running, stdout) = follow(&[]);
            (running, hash(stdout, Pace::Full))
        })
        .collect();

    let run = attached.finish();
    run.assert_code(0);
    let mut sums = run.stderr.lines().map(|line| line[..64].to_owned());
    let [expected, expected_slow] = [(); 2].map(|()| sums.next().unwrap());
    assert_eq!(
        attached_sum.join().unwrap(),
        (BIG, expected.clone()),
        "attached"
    );
    for (running, sum) in followers {
        assert_eq!(sum.join().unwrap(), (BIG, expected.clone()), "follower");
        running.finish().assert_code(0);
    }
    let (late, stdout) = Running::streaming(&daemon.client().args(["job", "log", &id]));
    assert_eq!(
        hash(stdout, Pace::Full).join().unwrap(),
        (BIG, expected),
        "afterwards"
    );
    late.finish().assert_code(0);
    // The slow one still reads: it keeps its last bytes until nobody else is left.
    let memory = daemon_memory(process.pid, "VmHWM").saturating_sub(before);
    drop(others_are_done);
    assert_eq!(slow_sum.join().unwrap(), (slow, expected_slow), "slow");
    slow_running.finish().assert_code(0);
    eprintln!("memory of the daemon grew by at most {memory} bytes");
    assert!(memory <= MEMORY, "{memory} bytes more than before");
    let log = &daemon.ended(&id)["log"];
    assert_eq!(log["stdout_bytes"], BIG, "{log}");
    assert_eq!(log["dropped_bytes"], 0, "{log}");
}

#[test]
fn history_and_live_output_are_one() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let script =
        "trap 'echo third; exit 0' USR1; echo first; echo second >&2; while :; do sleep 0.05; done";
    let id = daemon.submit(&[], &["sh", "-c", script]);
    daemon.wait_output(&id, "first");
    let running = daemon.client().args(["job", "log", &id]).spawn();
    let without_end = daemon.rnx(["job", "log", "--no-follow", &id]);
    without_end.assert_code(0);
    assert_eq!(without_end.text(), "first\n");
    // The shell is the second process of the job, after its init.
    daemon.pids(&id)[1].signal(nix::sys::signal::Signal::SIGUSR1);
    let log = running.finish();
    log.assert_code(0);
    assert_eq!(log.text(), "first\nthird\n");
    assert_eq!(log.stderr, "second\n");
}

#[test]
fn options_choose_what_is_shown() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(
        &[],
        &["sh", "-c", "seq 1 10; sleep 0.2; echo e1 >&2; echo e2 >&2"],
    );
    daemon.ended(&id);
    let log = |flags: &[&str]| {
        daemon
            .client()
            .args(["job", "log"])
            .args(flags)
            .arg(&id)
            .run()
    };
    let check = |flags: &[&str], stdout: &str, stderr: &str| {
        let output = log(flags);
        output.assert_code(0);
        assert_eq!(
            (output.text().as_str(), output.stderr.as_str()),
            (stdout, stderr),
            "{flags:?}"
        );
    };
    let all = "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n";
    check(&[], all, "e1\ne2\n");
    check(&["--stream", "stdout"], all, "");
    check(&["--stream=stderr"], "", "e1\ne2\n");
    check(&["--stream", "all"], all, "e1\ne2\n");
    check(&["--stream", "stdout", "--tail", "3"], "8\n9\n10\n", "");
    check(&["--tail", "1"], "", "e2\n");
    check(&["--tail", "100"], all, "e1\ne2\n");
    check(&["--tail", "0"], "", "");
    check(&["--stream", "stdout", "--offset", "4"], &all[4..], "");
    check(&["--stream", "stdout", "--offset", "21"], "", "");
    check(&["--since", "2001-01-01T00:00:00Z"], all, "e1\ne2\n");
    check(&["--since", "2199-01-01T00:00:00Z"], "", "");
    assert_eq!(log(&["--stream", "nothing"]).code, 2);
}

#[test]
fn timestamps_stand_before_every_line() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(&[], &["sh", "-c", "echo one; echo two"]);
    daemon.ended(&id);
    let log = daemon.rnx(["job", "log", "--timestamps", &id]);
    log.assert_code(0);
    let lines: Vec<String> = log.text().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 2, "{log:?}");
    for (line, word) in lines.iter().zip(["one", "two"]) {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(
            time.parse::<jiff::Timestamp>().is_ok(),
            "{line:?} does not begin with a time"
        );
        assert_eq!(rest, word);
    }
}

#[test]
fn json_is_a_record_a_line_and_base64_where_it_is_no_text() {
    use base64::Engine;
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(
        &[],
        &[
            "sh",
            "-c",
            r"printf 'text\n'; sleep 0.2; printf '\377\000\376' >&2",
        ],
    );
    daemon.ended(&id);
    let log = daemon.rnx(["job", "log", "--json", &id]);
    log.assert_code(0);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    for line in log.text().lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let data = record["data"].as_str().unwrap();
        let bytes = if record["encoding"] == "base64" {
            base64::engine::general_purpose::STANDARD
                .decode(data)
                .unwrap()
        } else {
            data.as_bytes().to_vec()
        };
        let into = if record["stream"] == "stdout" {
            &mut stdout
        } else {
            &mut stderr
        };
        assert_eq!(
            record["offset"].as_u64().unwrap(),
            u64::try_from(into.len()).unwrap(),
            "{line}"
        );
        assert!(!record["time"].is_null(), "{line}");
        into.extend(bytes);
    }
    assert_eq!(stdout, b"text\n");
    assert_eq!(stderr, b"\xff\0\xfe");
}

#[test]
fn a_job_whose_stdout_was_passed_to_another_job_ends_and_its_log_with_it() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let giver = r#"
import os, socket
peer = listen()
os.write(1, b"up\n")
socket.send_fds(peer, [b"mine"], [1])
peer.recv(1)
"#;
    let holder = r#"
import os, socket
peer = listen()
_, fds, _, _ = socket.recv_fds(peer, 16, 4)
peer.send(str(os.fstat(fds[0]).st_ino).encode())
peer.recv(1)
try:
    os.write(fds[0], b"not mine\n")
except BrokenPipeError:
    pass
"#;
    let [giver, holder] = [giver, holder].map(|script| {
        let listen = r#"
import socket
def listen():
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind("/work/door")
    server.listen()
    return server.accept()[0]
"#;
        let script = format!("{listen}{script}");
        daemon.submit(&[], &["/usr/bin/python3", "-c", &script])
    });
    let follower = daemon.client().args(["job", "log", &giver]).spawn();
    let [to_giver, to_holder] = [&giver, &holder].map(|id| connect_to_work(&daemon, id, "door"));

    // No path is in both jobs: the host carries the descriptor from one's socket to the other's.
    let (mut buffer, mut fds) = ([0; 16], Vec::new());
    scm::recv(to_giver.as_fd(), &mut buffer, &mut fds).unwrap();
    scm::send(to_holder.as_fd(), b"theirs", &[fds[0].as_fd()]).unwrap();
    drop(fds);
    let length = scm::recv(to_holder.as_fd(), &mut buffer, &mut Vec::new()).unwrap();
    let held = String::from_utf8(buffer[..length].to_vec()).unwrap();
    // Its command is the second process of the job, after its init.
    let stdout = std::fs::read_link(format!("/proc/{}/fd/1", daemon.pids(&giver)[1].pid)).unwrap();
    assert_eq!(stdout.to_str().unwrap(), format!("pipe:[{held}]"));

    scm::send(to_giver.as_fd(), b".", &[]).unwrap();
    assert_eq!(daemon.ended(&giver)["status"], "COMPLETED");
    let log = follower.finish();
    log.assert_code(0);
    assert_eq!(log.text(), "up\n");
    assert_eq!(daemon.state(&holder), "RUNNING");
    scm::send(to_holder.as_fd(), b".", &[]).unwrap();
    assert_eq!(daemon.ended(&holder)["status"], "COMPLETED");
    let log = daemon.rnx(["job", "log", &giver]);
    assert_eq!(
        log.text(),
        "up\n",
        "what comes after the end is not its output"
    );
}

/// A connection to the socket that a job listens on in its `/work`, once it does.
fn connect_to_work(daemon: &Daemon, id: &str, name: &str) -> OwnedFd {
    wait_until(SHORT, "the job listens", || {
        // Its command sees its `/work`; init may not have been executed yet.
        let Some(command) = daemon.pids(id).get(1).copied() else {
            return Waiting::Seen("no command".to_owned());
        };
        let path = format!("/proc/{}/root/work/{name}", command.pid);
        let ours = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        match connect(ours.as_raw_fd(), &UnixAddr::new(path.as_str()).unwrap()) {
            Ok(()) => Waiting::Done(ours),
            Err(error) => Waiting::Seen(format!("{path}: {error}")),
        }
    })
}

#[test]
fn a_child_left_behind_does_not_keep_the_job_alive() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    assert_eq!(daemon.sh("setsid sleep 600 & echo done"), "done\n");
}

#[test]
fn beyond_its_limit_output_is_dropped_and_counted() {
    if !Host::Any.is_here() {
        return;
    }
    let daemon = Daemon::start_with(|config| limit_log(&config, "drop"));
    let id = daemon.submit(
        &[],
        &[
            "sh",
            "-c",
            "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2",
        ],
    );
    let status = daemon.ended(&id);
    assert_eq!(status["status"], "COMPLETED", "{status}");
    let count = |name: &str| status["log"][name].as_u64().unwrap();
    assert_eq!(
        count("stdout_bytes") + count("stderr_bytes"),
        LIMIT,
        "{status}"
    );
    assert_eq!(count("dropped_bytes"), 5_000_000 - LIMIT, "{status}");
    let log = daemon.rnx(["job", "log", "--stream=stdout", &id]);
    assert_eq!(
        u64::try_from(log.stdout.len()).unwrap(),
        count("stdout_bytes")
    );
    assert!(log.stdout.iter().all(|byte| *byte == 0));

    let yes = daemon.submit(&[], &["yes"]);
    wait_until(SHORT, "yes goes on beyond the limit", || {
        let log = daemon.status(&yes)["log"].clone();
        let beyond = log["stdout_bytes"] == LIMIT
            && log["dropped_bytes"]
                .as_u64()
                .is_some_and(|n| n > 10 * LIMIT);
        Waiting::when(beyond, || log.to_string())
    });
    daemon.rnx(["job", "stop", &yes]).assert_code(0);
    assert_eq!(daemon.ended(&yes)["log"]["stdout_bytes"], LIMIT);
}

#[test]
fn beyond_its_limit_the_job_is_stopped_under_that_policy() {
    if !Host::Any.is_here() {
        return;
    }
    let daemon = Daemon::start_with(|config| limit_log(&config, "stop"));
    let id = daemon.submit(&[], &["yes"]);
    let status = daemon.ended(&id);
    assert_eq!(status["status"], "FAILED", "{status}");
    assert_eq!(status["outcome"]["reason"], "log_limit", "{status}");
    assert_eq!(status["log"]["stdout_bytes"], LIMIT, "{status}");
    let log = daemon.rnx(["job", "log", &id]);
    assert_eq!(u64::try_from(log.stdout.len()).unwrap(), LIMIT);
    daemon.job(["true"]).assert_code(0);
}

const LIMIT: u64 = 1 << 20;

/// The configuration with a small `limits.log_bytes` and this policy.
fn limit_log(config: &str, policy: &str) -> String {
    let mut value: serde_json::Value = serde_saphyr::from_str(config).unwrap();
    value["limits"]["log_bytes"] = LIMIT.into();
    value["limits"]["log_policy"] = policy.into();
    // Every JSON document is a YAML document.
    value.to_string()
}

/// How fast a reader reads.
enum Pace {
    Full,
    /// 1 MB/s, and the last one of `bytes` only when the other end of `done` is gone.
    MegabyteASecond {
        bytes: u64,
        done: Receiver<Infallible>,
    },
}

/// Reads a pipe to its end on a thread: how many bytes, and their SHA-256 in hex.
fn hash(mut from: ChildStdout, pace: Pace) -> thread::JoinHandle<(u64, String)> {
    thread::spawn(move || {
        let begin = now();
        let mut sum = Context::new(&SHA256);
        let mut total = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = from.read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            sum.update(&buffer[..count]);
            total += u64::try_from(count).unwrap();
            if let Pace::MegabyteASecond { bytes, done } = &pace {
                // This is the speed of a slow reader, not a wait for something: a byte a microsecond.
                thread::sleep(Duration::from_micros(total).saturating_sub(begin.elapsed()));
                if (*bytes - MEGABYTE..*bytes).contains(&total) {
                    let waited = done.recv_timeout(patient(LONG));
                    assert_eq!(waited, Err(RecvTimeoutError::Disconnected));
                }
            } else {
                assert!(begin.elapsed() < patient(LONG), "{total} bytes so far");
            }
        }
        (
            total,
            sum.finish()
                .as_ref()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        )
    })
}

const MEGABYTE: u64 = 1_000_000;
