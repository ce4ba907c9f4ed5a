//! Killing a process at its n-th system call, with ptrace.
//!
//! ```text
//! seize every thread ─► runs from stop to stop, counts entries once armed ─► SIGKILL before the n-th ─► all gone
//! ```
//! A tracer has a thread of its own, because the kernel ties a tracee to the thread that seized it. The process
//! that was seized always ends killed: at the call that was chosen, or when the tracer is finished.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::sync::oneshot;

use super::Process;

/// A process that is stopped at each of its system calls.
#[derive(Debug)]
pub(crate) struct Tracer {
    process: Process,
    shared: Arc<Shared>,
    thread: JoinHandle<Option<KilledAt>>,
    over: Option<oneshot::Receiver<()>>,
}

/// The system call before which a process was killed.
#[derive(Debug, Clone)]
pub(crate) struct KilledAt {
    /// Its number in the kernel's table; 0 where this program cannot tell.
    pub(crate) call: u64,
    /// Short name of the thread that was about to make it.
    pub(crate) thread: String,
}

#[derive(Debug, Default)]
struct Shared {
    /// Entries are counted, up to this one, which is the last; 0 while nothing is counted.
    last: AtomicU64,
    count: AtomicU64,
    /// Whether the first call that removes a file is the last.
    is_at_unlink: AtomicBool,
    is_over: AtomicBool,
}

impl Tracer {
    /// Seizes every thread of `process`; returns when all of them stop at each call from now on.
    ///
    /// # Panics
    /// If the process cannot be traced.
    pub(crate) fn seize(process: Process) -> Self {
        let shared = Arc::<Shared>::default();
        let (seized, is_seized) = mpsc::channel();
        let (ended, over) = oneshot::channel();
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let killed = Seized::of(process, &shared).run(seized);
                shared.is_over.store(true, Ordering::SeqCst);
                // Nobody waits for it when the tracer is being finished.
                let _ = ended.send(());
                killed
            }
        });
        is_seized.recv().expect("the process was seized");
        Self {
            process,
            shared,
            thread,
            over: Some(over),
        }
    }

    /// Counts calls from now on, and kills the process before call number `last`, from 1.
    pub(crate) fn arm(&self, last: u64) {
        self.shared.last.store(last, Ordering::SeqCst);
    }

    /// Kills the process before it removes a file for the first time from now on.
    pub(crate) fn arm_at_unlink(&self) {
        self.shared.is_at_unlink.store(true, Ordering::SeqCst);
    }

    /// How many calls were counted so far.
    pub(crate) fn count(&self) -> u64 {
        self.shared.count.load(Ordering::SeqCst)
    }

    /// Whether the process is gone.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.is_over.load(Ordering::SeqCst)
    }

    /// Waits until the process is gone; to be asked once.
    pub(crate) fn over(&mut self) -> impl Future<Output = ()> + use<> {
        let over = self.over.take().expect("nobody has asked before");
        async { over.await.expect("the tracer's thread says so") }
    }

    /// Kills the process if it still runs, waits until it is gone, and says at which call it was killed, if it was
    /// at one.
    pub(crate) fn finish(self) -> Option<KilledAt> {
        if !self.is_over() {
            self.process.kill();
        }
        self.thread.join().expect("the tracer's thread")
    }
}

/// Lives on the thread that traces.
struct Seized<'a> {
    process: Process,
    shared: &'a Shared,
    /// Threads, and whether each is inside a call.
    threads: BTreeMap<Pid, bool>,
    /// Those that have not stopped for the first time.
    awaited: usize,
}

impl<'a> Seized<'a> {
    fn of(process: Process, shared: &'a Shared) -> Self {
        let mut seized = Self {
            process,
            shared,
            threads: BTreeMap::new(),
            awaited: 0,
        };
        // Threads that begin meanwhile are found by the next look, or are traced because their maker is.
        while seized.seize_new() {}
        assert!(!seized.threads.is_empty(), "no thread of {process:?}");
        seized.awaited = seized.threads.len();
        seized
    }

    fn seize_new(&mut self) -> bool {
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE;
        let mut is_new = false;
        let tasks = format!("/proc/{}/task", self.process.pid);
        for entry in fs::read_dir(tasks).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let tid = Pid::from_raw(name.to_str().unwrap().parse().unwrap());
            // Workers of io_uring make no calls and cannot be stopped.
            if self.threads.contains_key(&tid) || comm(tid).starts_with("iou-") {
                continue;
            }
            if ptrace::seize(tid, options).is_ok() {
                // Gone in the meantime is no error: its end is reported.
                let _ = ptrace::interrupt(tid);
                self.threads.insert(tid, false);
                is_new = true;
            }
        }
        is_new
    }

    fn run(mut self, seized: mpsc::Sender<()>) -> Option<KilledAt> {
        let mut seized = Some(seized);
        let mut killed = None;
        // Only what this very thread traces, never the children of other tests.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            if self.awaited == 0
                && let Some(seized) = seized.take()
            {
                // The receiver waits for nothing else.
                let _ = seized.send(());
            }
            match waitpid(None, Some(flags)) {
                Ok(WaitStatus::PtraceSyscall(tid)) => {
                    if let Some(at) = self.on_call(tid) {
                        self.process.kill();
                        killed = Some(at);
                    }
                    resume(tid);
                }
                Ok(WaitStatus::PtraceEvent(tid, ..)) => self.on_event(tid),
                Ok(WaitStatus::Stopped(tid, signal)) => {
                    // Killed in the meantime, else it has been resumed.
                    let _ = ptrace::syscall(tid, signal);
                }
                Ok(WaitStatus::Exited(tid, _) | WaitStatus::Signaled(tid, ..)) => {
                    if self.threads.remove(&tid).is_some() {
                        self.awaited = self.awaited.saturating_sub(1);
                    }
                }
                Ok(WaitStatus::Continued(_) | WaitStatus::StillAlive) | Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => return killed,
                Err(error) => panic!("wait for {:?}: {error}", self.process),
            }
        }
    }

    /// A thread enters or leaves a call. Says which, when the process is to be killed before it.
    fn on_call(&mut self, tid: Pid) -> Option<KilledAt> {
        let inside = self.threads.entry(tid).or_default();
        *inside = !*inside;
        if *inside && self.shared.is_at_unlink.load(Ordering::SeqCst) && is_unlink(number(tid)) {
            return Some(KilledAt {
                call: number(tid),
                thread: comm(tid),
            });
        }
        let last = self.shared.last.load(Ordering::SeqCst);
        if !*inside || last == 0 {
            return None;
        }
        let count = self.shared.count.fetch_add(1, Ordering::SeqCst) + 1;
        (count == last).then(|| KilledAt {
            call: number(tid),
            thread: comm(tid),
        })
    }

    fn on_event(&mut self, tid: Pid) {
        self.awaited = self.awaited.saturating_sub(1);
        let task = format!("/proc/{}/task/{tid}", self.process.pid);
        if !self.threads.contains_key(&tid) && !Path::new(&task).exists() {
            // A process that it started: not ours to watch.
            let _ = ptrace::detach(tid, None);
            return;
        }
        self.threads.entry(tid).or_default();
        resume(tid);
    }
}

fn resume(tid: Pid) {
    // Killed in the meantime is reported by the next wait.
    let _ = ptrace::syscall(tid, None);
}

fn comm(tid: Pid) -> String {
    let text = fs::read_to_string(format!("/proc/{tid}/comm")).unwrap_or_default();
    text.trim_end().to_owned()
}

fn is_unlink(call: u64) -> bool {
    #[cfg(target_arch = "x86_64")]
    const UNLINK: libc::c_long = libc::SYS_unlink;
    #[cfg(not(target_arch = "x86_64"))]
    const UNLINK: libc::c_long = libc::SYS_unlinkat;
    [UNLINK, libc::SYS_unlinkat].contains(&libc::c_long::try_from(call).unwrap_or(-1))
}

/// The call that a stopped thread is about to make.
fn number(tid: Pid) -> u64 {
    #[cfg(target_arch = "x86_64")]
    let number = ptrace::getregs(tid).map_or(0, |registers| registers.orig_rax);
    #[cfg(target_arch = "aarch64")]
    let number = ptrace::getregs(tid).map_or(0, |registers| registers.regs[8]);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let number = 0;
    number
}
