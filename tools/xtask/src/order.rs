//! In which order the functions of `rnx` are first called.
//!
//! A breakpoint on each of them; the one that is hit is taken away and noted. That is exact, needs no counters of the
//! processor, and makes a run of a few thousand functions a tenth of a second longer.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    fs::{self, File},
    os::unix::fs::FileExt,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    dist::{self, Function, ORDER},
    root, run,
};

/// What the order is made for, the most frequent first.
const COMMANDS: [&[&str]; 3] = [
    &["job", "run", "true"],
    &["job", "run", "-d", "true"],
    &["job", "list"],
];
/// `int3`: one byte, and the kernel reports the address behind it.
const BREAKPOINT: u8 = 0xcc;
const HEADER: &str = "\
# Functions of rnx in the order in which a job first calls them, for the linker. Written by `cargo xtask order`.
";

/// Builds what is installed, records it and writes the order file. Needs the rights that `joblet` needs.
pub(crate) fn record() -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the order is recorded on x86_64 only");
    }
    let dir = dist::build()?;
    let scratch = std::env::temp_dir().join(format!("joblet-order-{}", std::process::id()));
    let program = dir.join("rnx");
    let functions = dist::functions(&program)?;
    let rnx = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--local").args(words);
        command.env("RNX_LOCAL_DIR", &scratch);
        command
    };
    // The daemon is started by a run that nobody watches.
    run(&mut rnx(COMMANDS[0]))?;
    let recorded = COMMANDS.iter().try_fold(Vec::new(), |mut all, words| {
        all.extend(first_calls(&rnx(words), &functions).with_context(|| words.join(" "))?);
        anyhow::Ok(all)
    });
    run(&mut rnx(&["shutdown"]))?;
    fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))?;

    let mut text = HEADER.to_owned();
    let mut seen = HashSet::new();
    for name in recorded?
        .into_iter()
        .filter(|name| seen.insert(name.clone()))
    {
        writeln!(text, "{name}")?;
    }
    let path = root()?.join(ORDER);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    eprintln!("xtask: {} functions in {ORDER}", seen.len());
    Ok(())
}

/// Runs a command and gives the names of the functions that were called, in the order of their first calls.
fn first_calls(command: &Command, functions: &[Function]) -> Result<Vec<String>> {
    let mut child = stopped(command)?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let options =
        Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).context("trace it")?;
    kill(pid, Signal::SIGCONT)?;
    let mut traps = Traps::default();
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL))? {
            WaitStatus::Exited(ended, code) if ended == pid => {
                ensure!(code == 0, "it ended with {code}");
                // Reaped already: there is nothing to wait for.
                let _ = child.try_wait();
                return Ok(traps.hit);
            }
            WaitStatus::Signaled(ended, signal, _) if ended == pid => {
                bail!("it was killed by {signal}")
            }
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {}
            WaitStatus::PtraceEvent(thread, _, libc::PTRACE_EVENT_EXEC) => {
                traps = Traps::set(thread, functions)?;
                ptrace::cont(thread, None)?;
            }
            WaitStatus::Stopped(thread, Signal::SIGTRAP) if traps.take(thread)? => {
                ptrace::cont(thread, None)?;
            }
            WaitStatus::Stopped(thread, signal) => ptrace::cont(thread, signal)?,
            WaitStatus::PtraceEvent(thread, ..) => ptrace::cont(thread, None)?,
            WaitStatus::PtraceSyscall(..) | WaitStatus::Continued(_) | WaitStatus::StillAlive => {}
        }
    }
}

/// A shell that has stopped itself and becomes the command when it goes on.
fn stopped(command: &Command) -> Result<Child> {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "kill -STOP $$; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    let child = shell.spawn().context("start a shell")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED))?;
    ensure!(
        matches!(status, WaitStatus::Stopped(..)),
        "the shell did not stop but {status:?}"
    );
    Ok(child)
}

/// Breakpoints in a process.
#[derive(Debug, Default)]
struct Traps {
    memory: Option<File>,
    /// What was where a breakpoint is or was, and the names of what begins there.
    places: HashMap<u64, (u8, Vec<String>)>,
    hit: Vec<String>,
}

impl Traps {
    fn set(pid: Pid, functions: &[Function]) -> Result<Self> {
        let path = format!("/proc/{pid}/mem");
        let memory = File::options().read(true).write(true).open(&path);
        let memory = memory.with_context(|| format!("open {path}"))?;
        let mut places: HashMap<u64, (u8, Vec<String>)> = HashMap::new();
        for Function { address, name } in functions {
            if let Some((_, names)) = places.get_mut(address) {
                names.push(name.clone());
                continue;
            }
            let mut byte = [0];
            memory.read_exact_at(&mut byte, *address)?;
            memory.write_all_at(&[BREAKPOINT], *address)?;
            places.insert(*address, (byte[0], vec![name.clone()]));
        }
        Ok(Self {
            memory: Some(memory),
            places,
            hit: Vec::new(),
        })
    }

    /// Takes away the breakpoint that a thread has run into; `false` when it was none of ours.
    #[cfg(target_arch = "x86_64")]
    fn take(&mut self, thread: Pid) -> Result<bool> {
        let mut registers = ptrace::getregs(thread)?;
        let address = registers.rip.wrapping_sub(1);
        let (Some(memory), Some((byte, names))) = (&self.memory, self.places.get_mut(&address))
        else {
            return Ok(false);
        };
        memory.write_all_at(&[*byte], address)?;
        // Another thread may have been first.
        self.hit.append(names);
        registers.rip = address;
        ptrace::setregs(thread, registers)?;
        Ok(true)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn take(&mut self, _: Pid) -> Result<bool> {
        Ok(false)
    }
}
