//! The machine: QEMU, and what it says on its console.

use std::{
    cell::Cell,
    io::{self, BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    command,
    disk::{Disks, SYSTEM_PARTITION, SYSTEMD_UNIT, Scratch},
    kernel::Kernel,
};

/// From power on to the last line. Whoever waits for a commit waits for a few of these.
pub(crate) const LIMIT: Duration = Duration::from_secs(290);
const MEMORY_MIB: &str = "3072";
const CPUS: &str = "2";
/// What the lines begin with that are meant for us: of the guest's init, and of tests that keep a book.
const MARK: &str = "joblet-vm: ";
/// The first word of the guest's init.
const UP: &str = "up,";
/// What the kernel says when an emulated processor has lost a race that real ones cannot lose: it runs into the
/// breakpoint that another one has set for a moment while the kernel patches itself. That is QEMU's, and none of ours.
const LOST_RACE: &str = "Oops: int3";
/// How often a machine is switched on that has lost that race, or dies before our init speaks.
pub(crate) const TRIES: usize = 3;
/// A word on the kernel's command line that no other machine has: tests that set the clock and the like look for it.
/// With its dot it is a module's parameter to the kernel, and of no module.
const OWN_MACHINE: &str = "joblet.machine=thrown-away";

/// What PID 1 of the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Init {
    /// Our own script.
    Own,
    /// systemd, which starts our script as a unit.
    Systemd,
}

impl Init {
    fn on_command_line(self) -> String {
        match self {
            Self::Own => "init=/init".to_owned(),
            Self::Systemd => format!(
                "init=/usr/lib/systemd/systemd systemd.unit={SYSTEMD_UNIT} systemd.show_status=no"
            ),
        }
    }
}

/// A running machine; its power is cut with this.
#[derive(Debug)]
pub(crate) struct Machine {
    qemu: Child,
    lines: Receiver<Vec<u8>>,
    on: Instant,
    has_lost_race: Cell<bool>,
}

/// What comes next from a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A line of its console that is meant for us, without the mark.
    Word(String),
    /// Its console is closed.
    Stopped,
    /// Nothing, and the time is over.
    Late,
}

impl Machine {
    /// Switches it on and waits until our init speaks. `home` is where the guest has its programs.
    pub(crate) fn boot(kernel: &Kernel, disks: &Disks, home: &Path, init: Init) -> Result<Self> {
        for _ in 0..TRIES {
            let machine = Self::start(kernel, disks, home, init)?;
            match machine.next(LIMIT) {
                Heard::Word(word) if word.starts_with(UP) => return Ok(machine),
                what @ (Heard::Word(_) | Heard::Stopped | Heard::Late) => {
                    eprintln!("vm: it does not come up: {what:?}");
                }
            }
        }
        bail!("Linux {} did not come up {TRIES} times", kernel.release)
    }

    fn start(kernel: &Kernel, disks: &Disks, home: &Path, init: Init) -> Result<Self> {
        let mut qemu = qemu(kernel, disks, home, init)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start qemu-system-x86_64; tools/packages vm installs it")?;
        let console = qemu.stdout.take().context("the console is a pipe")?;
        Ok(Self {
            qemu,
            lines: read_lines(console),
            on: Instant::now(),
            has_lost_race: Cell::new(false),
        })
    }

    /// Whether it has died of [`LOST_RACE`].
    pub(crate) fn has_lost_race(&self) -> bool {
        self.has_lost_race.get()
    }

    /// How long it has been on.
    pub(crate) fn age(&self) -> Duration {
        self.on.elapsed()
    }

    /// Passes its console on until there is something for us, or it has been on for `limit`. What tests keep, which
    /// are many lines, is not passed on.
    pub(crate) fn next(&self, limit: Duration) -> Heard {
        loop {
            match self.lines.recv_timeout(limit.saturating_sub(self.age())) {
                Ok(line) => {
                    let text = String::from_utf8_lossy(&line);
                    let text = text.trim_end_matches(['\r', '\n']);
                    let word = text.strip_prefix(MARK);
                    if text.contains(LOST_RACE) {
                        self.has_lost_race.set(true);
                    }
                    if !word.is_some_and(|word| word.starts_with("keep ")) {
                        // A reader that has gone away is no reason to lose the result.
                        let _ = writeln!(io::stdout(), "{text}");
                    }
                    if let Some(word) = word {
                        return Heard::Word(word.to_owned());
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Heard::Stopped,
                Err(RecvTimeoutError::Timeout) => return Heard::Late,
            }
        }
    }

    /// Cuts its power. What it had said until then is still to be heard.
    pub(crate) fn cut(&mut self) {
        // Both fail only when it has ended, which is what is wanted.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cut();
    }
}

fn qemu(kernel: &Kernel, disks: &Disks, home: &Path, init: Init) -> Command {
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
        "console=ttyS0 quiet panic=-1 oops=panic root={SYSTEM_PARTITION} rootfstype=ext4 rootwait rw {} {OWN_MACHINE} \
         PROGRAMS=\"{}\"",
        init.on_command_line(),
        home.display()
    ));
    // What the guest writes to a disk that is thrown away goes to a file that has no name. One that is kept
    // acknowledges a flush when the data has left QEMU, and before that promises nothing.
    const THROWN: &str = "snapshot=on,cache=unsafe";
    const KEPT: &str = "cache=writeback";
    let scratch = match &disks.scratch {
        Scratch::Thrown(file) => (file, THROWN),
        Scratch::Kept(file) => (file, KEPT),
    };
    let all = [(&disks.system, THROWN), (&disks.programs, THROWN), scratch];
    for (index, (file, how)) in all.into_iter().enumerate() {
        // NVMe, because Debian's kernels have that driver built in and need no initramfs then.
        qemu.arg("-drive").arg(format!(
            "file={},format=raw,if=none,id=disk{index},{how}",
            file.display()
        ));
        qemu.arg("-device")
            .arg(format!("nvme,drive=disk{index},serial=joblet{index}"));
    }
    if let Some(place) = disks.system.parent() {
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
