//! The machine: QEMU, its console on our standard output, and a limit after which it is killed.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    command,
    disk::{Disks, SYSTEM_PARTITION},
    kernel::Kernel,
};

/// From power on to the last line. Whoever waits for a commit waits for two of these.
const LIMIT: Duration = Duration::from_secs(290);
const MEMORY_MIB: &str = "3072";
const CPUS: &str = "2";
/// What the lines of the guest's init begin with.
const MARK: &str = "joblet-vm: ";

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The tests' exit code.
    Exit(i32),
    /// The machine stopped without one.
    Died,
    /// It was killed at the limit.
    Late,
}

impl Verdict {
    /// Whether every test passed.
    pub(crate) fn is_pass(self) -> bool {
        self == Self::Exit(0)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(0) => write!(f, "passed"),
            Self::Exit(code) => write!(f, "FAILED, exit code {code}"),
            Self::Died => write!(f, "FAILED, the machine stopped without a result"),
            Self::Late => write!(f, "FAILED, no result after {} s", LIMIT.as_secs()),
        }
    }
}

/// What one machine did.
#[derive(Debug)]
pub(crate) struct Run {
    /// How it ended.
    pub(crate) verdict: Verdict,
    /// From power on to the first program of ours.
    pub(crate) boot: Duration,
    /// From there to the end.
    pub(crate) tests: Duration,
}

/// Boots a kernel and passes its console on until it stops.
/// `home` is where the guest has its programs.
pub(crate) fn run(kernel: &Kernel, disks: &Disks, home: &Path) -> Result<Run> {
    let begin = Instant::now();
    let mut machine = Machine(
        qemu(kernel, disks, home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start qemu-system-x86_64; tools/packages vm installs it")?,
    );
    let console = machine.0.stdout.take().context("the console is a pipe")?;
    let lines = read_lines(console);
    let mut run = Run {
        verdict: Verdict::Died,
        boot: LIMIT,
        tests: Duration::ZERO,
    };
    loop {
        match lines.recv_timeout(LIMIT.saturating_sub(begin.elapsed())) {
            Ok(line) => {
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end_matches(['\r', '\n']);
                // A reader that has gone away is no reason to lose the result.
                let _ = writeln!(io::stdout(), "{text}");
                let Some(word) = text.strip_prefix(MARK) else {
                    continue;
                };
                if word.starts_with("up") {
                    run.boot = begin.elapsed();
                } else if let Some(code) = word.strip_prefix("exit ") {
                    run.verdict = code.parse().map_or(Verdict::Died, Verdict::Exit);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                run.verdict = Verdict::Late;
                break;
            }
        }
    }
    run.tests = begin.elapsed().saturating_sub(run.boot);
    Ok(run)
}

fn qemu(kernel: &Kernel, disks: &Disks, home: &Path) -> Command {
    // It dies with us, however we die.
    let mut qemu = command("setpriv", ["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    qemu.args([
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-machine",
        "q35",
    ]);
    qemu.args(["-smp", CPUS, "-m", MEMORY_MIB, "-nodefaults", "-no-reboot"]);
    qemu.args(["-display", "none", "-serial", "stdio", "-nic", "none"]);
    qemu.arg("-kernel").arg(&kernel.image);
    qemu.arg("-append").arg(format!(
        "console=ttyS0 quiet panic=-1 root={SYSTEM_PARTITION} rootfstype=ext4 rootwait rw init=/init \
         PROGRAMS=\"{}\"",
        home.display()
    ));
    for (index, file) in disks.files.iter().enumerate() {
        // NVMe, because Debian's kernels have that driver built in and need no initramfs then. What the
        // guest writes goes to a file that has no name.
        qemu.arg("-drive").arg(format!(
            "file={},format=raw,if=none,id=disk{index},snapshot=on,cache=unsafe",
            file.display()
        ));
        qemu.arg("-device")
            .arg(format!("nvme,drive=disk{index},serial=joblet{index}"));
    }
    if let Some(place) = disks.files[0].parent() {
        qemu.env("TMPDIR", place);
    }
    qemu
}

/// Lines as they come; the channel closes when the console does.
fn read_lines(console: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    thread::spawn(move || {
        let mut console = BufReader::new(console);
        loop {
            let mut line = Vec::new();
            match console.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if send.send(line).is_err() {
                return;
            }
        }
    });
    receive
}

/// A running machine; it ends with this.
#[derive(Debug)]
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only when it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
