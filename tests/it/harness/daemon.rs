//! A private daemon: its directory, its helpers, and the proof that it left nothing behind.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::thread::panicking;

use serde_json::Value;

use super::rnx::{Output, Rnx, Running};
use super::wait::{LONG, SHORT, Waiting, wait_until};
use super::{Process, joblet_binary, leftovers, process::all};

/// A daemon of its own for one test or one file of tests.
///
/// Dropping it ends the daemon, runs `joblet down`, and fails the test if a cgroup, process, mount or loop
/// device of the instance is left. A guard process does the same (without the verdict) when the test binary
/// itself is killed.
#[derive(Debug)]
pub(crate) struct Daemon {
    /// Its base directory.
    pub(crate) base: PathBuf,
    /// Client configuration of its admin.
    pub(crate) config: PathBuf,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its instance id, 8 hex digits.
    pub(crate) instance: String,
    pub(super) served: Mutex<Served>,
    guard: Guard,
}

/// The process that is served, and all that were ever seen of the instance.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) child: Option<Child>,
    seen: BTreeSet<Process>,
}

impl Daemon {
    /// Starts one with its configuration as `joblet init` writes it.
    pub(crate) fn start() -> Self {
        Self::start_with(|config| config)
    }

    /// Starts one whose configuration text goes through `edit` first.
    pub(crate) fn start_with(edit: impl FnOnce(String) -> String) -> Self {
        Self::start_in(&std::env::temp_dir(), edit)
    }

    /// Starts one whose base directory lies in `place`.
    pub(crate) fn start_in(place: &Path, edit: impl FnOnce(String) -> String) -> Self {
        let base = tempfile::Builder::new()
            .prefix("joblet-it-")
            .tempdir_in(place)
            .unwrap()
            .keep();
        let daemon = Self::set_up(base, edit);
        daemon.serve();
        daemon
    }

    /// One that is not served yet, with `base` as its directory: a new one, or what another life of this machine
    /// has left there.
    pub(crate) fn set_up(base: PathBuf, edit: impl FnOnce(String) -> String) -> Self {
        let config = base.join("client.yml");
        let guard = Guard::watch(&base);
        let path = daemon_config(&base);
        if !path.exists() {
            init(&base, &config);
            let text = edit(fs::read_to_string(&path).unwrap());
            fs::write(&path, text).unwrap();
        }
        // Whoever serves it may write somewhere else.
        let log = base.with_extension("log");
        File::options().create(true).append(true).open(log).unwrap();
        let instance = read_instance(&base);
        let served = Mutex::new(Served {
            child: None,
            seen: BTreeSet::new(),
        });
        Self {
            address: listens_at(&path),
            base,
            config,
            instance,
            served,
            guard,
        }
    }

    /// Runs `joblet serve` and returns once it accepts.
    pub(crate) fn serve(&self) {
        self.serve_with(&[]);
    }

    /// Runs `joblet serve` with more flags and returns once it accepts.
    pub(crate) fn serve_with(&self, flags: &[&str]) {
        let already = self.spawn_serve(flags);
        wait_until(SHORT, "the daemon says that it is ready", || {
            let text = self.said_since(already);
            if text.contains("ready") {
                return Waiting::Done(());
            }
            let mut served = self.served.lock().unwrap();
            match served.child.as_mut().unwrap().try_wait().unwrap() {
                Some(status) => Waiting::Never(format!("it ended with {status}: {text}")),
                None => Waiting::Seen(text),
            }
        });
    }

    /// Begins to run `joblet serve`; where in its log this run begins.
    pub(super) fn spawn_serve(&self, flags: &[&str]) -> usize {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        let already = log.metadata().unwrap().len();
        // With the soft limit that login shells and systemd give: raising it is the daemon's business.
        let child = Command::new("prlimit")
            .arg("--nofile=1024:")
            .arg(joblet_binary())
            .arg("serve")
            .args(flags)
            .arg("--base")
            .arg(&self.base)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut served = self.served.lock().unwrap();
        served.seen.extend(Process::of(child.id()));
        served.child = Some(child);
        usize::try_from(already).unwrap()
    }

    /// What it has written to its log from `already` on.
    pub(super) fn said_since(&self, already: usize) -> String {
        let text = fs::read(self.log_path()).unwrap();
        String::from_utf8_lossy(&text[already..]).into_owned()
    }

    /// The process of `joblet serve`.
    pub(crate) fn process(&self) -> Process {
        let served = self.served.lock().unwrap();
        Process::of(
            served
                .child
                .as_ref()
                .expect("the daemon is being served")
                .id(),
        )
        .expect("it is alive")
    }

    /// Its helpers: every descendant that is no job, found by `argv[0]`.
    pub(crate) fn helpers(&self, name: &str) -> Vec<Process> {
        self.remember();
        self.process()
            .descendants()
            .into_iter()
            .filter(|p| p.name().contains(name))
            .collect()
    }

    /// Its helpers by the names they give themselves: two of them are forked and not executed.
    pub(crate) fn helpers_by_short_name(&self, name: &str) -> Vec<Process> {
        self.remember();
        self.process()
            .descendants()
            .into_iter()
            .filter(|p| p.short_name() == name)
            .collect()
    }

    /// Notes all processes of the instance, so that the end can prove that none of them is left.
    pub(crate) fn remember(&self) {
        let mut served = self.served.lock().unwrap();
        let Some(child) = &served.child else { return };
        let Some(process) = Process::of(child.id()) else {
            return;
        };
        let mut found = process.descendants();
        found.extend(self.members());
        served.seen.extend(found);
    }

    /// SIGKILL for `joblet serve`; its helpers stay.
    pub(crate) fn kill(&self) {
        self.remember();
        let mut served = self.served.lock().unwrap();
        let mut child = served.child.take().expect("the daemon is being served");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM for `joblet serve`, until it has ended; its exit code.
    pub(crate) fn terminate(&self) -> Option<i32> {
        self.remember();
        let mut served = self.served.lock().unwrap();
        let mut child = served.child.take().expect("the daemon is being served");
        if let Some(process) = Process::of(child.id()) {
            process.signal(nix::sys::signal::Signal::SIGTERM);
        }
        exit_code(&mut child)
    }

    /// Waits until `joblet serve` has ended by itself; its exit code.
    pub(crate) fn ends(&self) -> Option<i32> {
        let mut served = self.served.lock().unwrap();
        let mut child = served.child.take().expect("the daemon is being served");
        exit_code(&mut child)
    }

    /// `joblet VERB --base …`.
    pub(crate) fn joblet(&self, verb: &[&str]) -> Output {
        let mut command = Command::new(joblet_binary());
        command.args(verb).arg("--base").arg(&self.base);
        Running::start(command).finish()
    }

    /// `rnx ARGS…` as the admin.
    pub(crate) fn rnx<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.client().args(args).run()
    }

    /// The client, to be given arguments, as the admin.
    pub(crate) fn client(&self) -> Rnx {
        Rnx::new(&self.config)
    }

    /// `rnx job run -- COMMAND…`, attached, until it has ended.
    pub(crate) fn job<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Output {
        self.client().args(["job", "run", "--"]).args(command).run()
    }

    /// `sh -c SCRIPT` as an attached job that must end with code 0; its standard output.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.job(["sh", "-c", script]);
        output.assert_code(0);
        output.text()
    }

    /// `rnx job run --json FLAGS… -- COMMAND…`; the id.
    #[track_caller]
    pub(crate) fn submit(&self, flags: &[&str], command: &[&str]) -> String {
        let run = self
            .client()
            .args(["job", "run", "--json"])
            .args(flags)
            .arg("--")
            .args(command)
            .run();
        run.assert_code(0);
        run.json()["id"].as_str().expect("an id").to_owned()
    }

    /// `rnx job status --json ID`.
    #[track_caller]
    pub(crate) fn status(&self, id: &str) -> Value {
        let status = self.rnx(["job", "status", "--json", id]);
        status.assert_code(0);
        status.json()
    }

    /// The state in which a job is.
    #[track_caller]
    pub(crate) fn state(&self, id: &str) -> String {
        self.status(id)["status"]
            .as_str()
            .expect("a status")
            .to_owned()
    }

    /// Waits until a job is in `state`; fails at once when it has ended in another one.
    #[track_caller]
    pub(crate) fn wait_state(&self, id: &str, state: &str) {
        wait_until(SHORT, &format!("job {id} is {state}"), || {
            let status = self.status(id);
            let seen = status["status"].as_str().unwrap_or_default();
            if seen == state {
                return Waiting::Done(());
            }
            match seen {
                "COMPLETED" | "FAILED" | "STOPPED" | "TIMEOUT" | "CANCELED" => {
                    Waiting::Never(status.to_string())
                }
                _ => Waiting::Seen(status.to_string()),
            }
        });
    }

    /// Waits until a job has written `text` to its output.
    #[track_caller]
    pub(crate) fn wait_output(&self, id: &str, text: &str) {
        wait_until(SHORT, &format!("job {id} writes {text:?}"), || {
            let log = self.rnx(["job", "log", "--no-follow", id]);
            Waiting::when(log.text().contains(text), || format!("{log:?}"))
        });
    }

    /// Waits until a job has ended; `rnx job status --json` of it then.
    #[track_caller]
    pub(crate) fn ended(&self, id: &str) -> Value {
        self.rnx(["job", "wait", id]);
        let status = self.status(id);
        let state = status["status"].as_str().unwrap_or_default();
        assert!(
            matches!(
                state,
                "COMPLETED" | "FAILED" | "STOPPED" | "TIMEOUT" | "CANCELED"
            ),
            "job wait returned before the end: {status}"
        );
        status
    }

    /// Processes of one job, init included, oldest first.
    pub(crate) fn pids(&self, id: &str) -> Vec<Process> {
        self.members_below(Some(id))
    }

    /// Directory of one job in the cgroup2 tree.
    pub(crate) fn leaves(&self, id: &str) -> Vec<PathBuf> {
        leftovers::cgroups(&self.instance)
            .into_iter()
            .map(|top| top.join(id))
            .filter(|p| p.exists())
            .collect()
    }

    /// Names of all jobs' leaves.
    pub(crate) fn all_leaves(&self) -> Vec<PathBuf> {
        let tops = leftovers::cgroups(&self.instance);
        let dirs = tops
            .iter()
            .flat_map(|top| fs::read_dir(top).into_iter().flatten().flatten());
        dirs.map(|entry| entry.path())
            .filter(|path| path.is_dir() && !path.ends_with("helpers"))
            // Those that wait for a job.
            .filter(|path| {
                let name = path.file_name().unwrap_or_default();
                !name.to_string_lossy().starts_with("ready-")
            })
            .collect()
    }

    fn members(&self) -> Vec<Process> {
        self.members_below(None)
    }

    fn members_below(&self, id: Option<&str>) -> Vec<Process> {
        let wanted = match id {
            Some(id) => format!("joblet-{}/{id}", self.instance),
            None => format!("joblet-{}", self.instance),
        };
        let is_member = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/cgroup"))
                .is_ok_and(|text| text.contains(&wanted))
        };
        let mut found: Vec<Process> = all()
            .into_iter()
            .filter(is_member)
            .filter_map(Process::of)
            .collect();
        found.sort();
        found
    }

    /// Everything that explains a failure: the daemon's words, its jobs, its cgroups.
    pub(crate) fn dump(&self) {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(60).collect();
        eprintln!("---- daemon {} in {}", self.address, self.base.display());
        for line in tail.iter().rev() {
            eprintln!("{line}");
        }
        let jobs = self
            .client()
            .args(["job", "list", "--limit", "20"])
            .output();
        eprintln!("---- jobs\n{}{}", jobs.text(), jobs.stderr);
        eprintln!("---- left");
        let seen = self
            .served
            .lock()
            .map(|served| served.seen.clone())
            .unwrap_or_default();
        for line in leftovers::find(&self.base, &self.instance, &seen) {
            eprintln!("{line}");
        }
        for leaf in self.all_leaves() {
            eprintln!("{}", leaf.display());
        }
        eprintln!("----");
    }

    fn log_path(&self) -> PathBuf {
        self.base.with_extension("log")
    }

    /// Ends the daemon and proves that nothing is left.
    fn end(&mut self) {
        if self.served.lock().unwrap().child.is_some() {
            assert_eq!(
                self.terminate(),
                Some(0),
                "exit code of joblet serve after SIGTERM"
            );
        }
        self.joblet(&["down"]).assert_code(0);
        let seen = self.served.lock().unwrap().seen.clone();
        leftovers::assert_none(&self.base, &self.instance, &seen);
        self.guard.dismiss();
        fs::remove_dir_all(&self.base).unwrap();
        fs::remove_file(self.log_path()).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if panicking() {
            // The test has failed already; a second panic would abort and hide why. The guard cleans up.
            self.dump();
            return;
        }
        self.end();
    }
}

/// A process that outlives the test binary and cleans up when that was killed: it reads a pipe whose other
/// end only the test binary holds. A word before the end means that there is nothing to do.
#[derive(Debug)]
struct Guard(Option<(Child, ChildStdin)>);

impl Guard {
    fn watch(base: &Path) -> Self {
        let script = r#"read -r word && exit 0; "$1" down --base "$2"; rm -rf -- "$2" "$2.log""#;
        let mut child = Command::new("sh")
            .args(["-c", script, "joblet-it-guard"])
            .arg(joblet_binary())
            .arg(base)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().expect("its standard input is a pipe");
        Self(Some((child, stdin)))
    }

    fn dismiss(&mut self) {
        use std::io::Write;
        if let Some((mut child, mut stdin)) = self.0.take() {
            stdin.write_all(b"done\n").unwrap();
            drop(stdin);
            child.wait().unwrap();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some((mut child, stdin)) = self.0.take() {
            drop(stdin);
            // It reports to nobody; the wait keeps two daemons of one test from overlapping.
            let _ = child.wait();
        }
    }
}

fn exit_code(child: &mut Child) -> Option<i32> {
    wait_until(LONG, "the daemon ends", || {
        match child.try_wait().unwrap() {
            Some(status) => Waiting::Done(status.code()),
            None => Waiting::Seen("still running".to_owned()),
        }
    })
}

/// An address of loopback that nobody uses: the kernel gives each bind to port 0 another one.
fn free_address() -> SocketAddr {
    UdpSocket::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
}

/// `joblet init`, with an address that nobody uses.
fn init(base: &Path, config: &Path) {
    let init = Command::new(joblet_binary())
        .args([
            OsStr::new("init"),
            "--base".as_ref(),
            base.as_os_str(),
            "--listen".as_ref(),
        ])
        .arg(free_address().to_string())
        .args([OsStr::new("--client-config"), config.as_os_str()])
        .output()
        .unwrap();
    assert!(
        init.status.success(),
        "joblet init: {}",
        String::from_utf8_lossy(&init.stderr)
    );
}

/// Where a daemon with this configuration listens.
fn listens_at(config: &Path) -> SocketAddr {
    let text = fs::read_to_string(config).unwrap();
    let value: Value = serde_saphyr::from_str(&text).unwrap();
    value["server"]["listen"].as_str().unwrap().parse().unwrap()
}

/// The configuration file that `joblet init` wrote.
fn daemon_config(base: &Path) -> PathBuf {
    base.join("joblet.yml")
}

/// The instance id, which stands in `BASE/instance` beside other things.
fn read_instance(base: &Path) -> String {
    let text = fs::read_to_string(base.join("instance")).unwrap();
    let is_id = |word: &&str| word.len() == 8 && word.chars().all(|c| c.is_ascii_hexdigit());
    text.split(|c: char| !c.is_ascii_alphanumeric())
        .find(is_id)
        .expect("8 hex digits in BASE/instance")
        .to_owned()
}
