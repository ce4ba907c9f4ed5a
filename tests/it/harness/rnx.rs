//! The client's binary: run, watched, given up on.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::wait::{LONG, patient};
use super::{Process, rnx_binary};

/// A command line of `rnx` in the making.
#[derive(Debug)]
pub(crate) struct Rnx {
    config: PathBuf,
    args: Vec<OsString>,
    zone: Option<&'static str>,
    timeout: Duration,
}

/// What a finished process left.
#[derive(Clone)]
pub(crate) struct Output {
    /// Exit code, or 128 + n after signal n.
    pub(crate) code: i32,
    /// Standard output, byte for byte.
    pub(crate) stdout: Vec<u8>,
    /// Standard error.
    pub(crate) stderr: String,
}

impl Rnx {
    /// With this configuration file.
    pub(crate) fn new(config: &Path) -> Self {
        Self {
            config: config.to_owned(),
            args: Vec::new(),
            zone: None,
            timeout: patient(LONG),
        }
    }

    /// In this time zone, as `TZ` says it.
    pub(crate) fn zone(mut self, zone: &'static str) -> Self {
        self.zone = Some(zone);
        self
    }

    /// One more argument.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Starts it and leaves it to the caller.
    pub(crate) fn spawn(self) -> Running {
        let mut command = Command::new(rnx_binary());
        command.arg("--config").arg(&self.config).args(&self.args);
        command.env_remove("RNX_CONFIG").env("NO_COLOR", "1");
        command.envs(self.zone.map(|zone| ("TZ", zone)));
        let mut running = Running::start(command);
        running.timeout = self.timeout;
        running
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// If it takes longer than its timeout.
    #[track_caller]
    pub(crate) fn run(self) -> Output {
        self.spawn().finish()
    }

    /// Runs it to its end for a dump: short, and never panics twice.
    pub(crate) fn output(mut self) -> Output {
        self.timeout = Duration::from_secs(5);
        let running = self.spawn();
        running.try_finish().unwrap_or_else(|what| Output {
            code: -1,
            stdout: Vec::new(),
            stderr: what,
        })
    }
}

/// A process that runs; killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stdout: Option<Receiver<Vec<u8>>>,
    stderr: Receiver<Vec<u8>>,
    timeout: Duration,
}

impl Running {
    /// Starts a command with its output captured and nothing to read.
    pub(crate) fn start(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = drain(child.stderr.take().expect("standard error is a pipe"));
        let stdout = Some(drain(
            child.stdout.take().expect("standard output is a pipe"),
        ));
        Self {
            child,
            stdout,
            stderr,
            timeout: patient(LONG),
        }
    }

    /// Starts `rnx` and hands its standard output to the caller.
    pub(crate) fn streaming(rnx: &Rnx) -> (Self, ChildStdout) {
        let mut command = Command::new(rnx_binary());
        command
            .arg("--config")
            .arg(&rnx.config)
            .args(&rnx.args)
            .env_remove("RNX_CONFIG");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = drain(child.stderr.take().expect("standard error is a pipe"));
        let stdout = child.stdout.take().expect("standard output is a pipe");
        (
            Self {
                child,
                stdout: None,
                stderr,
                timeout: patient(LONG),
            },
            stdout,
        )
    }

    /// Its process.
    pub(crate) fn process(&self) -> Process {
        Process::of(self.child.id()).expect("it was not waited for")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it takes longer than its timeout.
    #[track_caller]
    pub(crate) fn finish(self) -> Output {
        self.try_finish().unwrap_or_else(|what| panic!("{what}"))
    }

    fn try_finish(mut self) -> Result<Output, String> {
        let late = |_| {
            format!(
                "pid {} did not end within {:?}",
                self.child.id(),
                self.timeout
            )
        };
        let stdout = match &self.stdout {
            Some(stdout) => stdout.recv_timeout(self.timeout).map_err(late)?,
            None => Vec::new(),
        };
        let stderr = self.stderr.recv_timeout(self.timeout).map_err(late)?;
        let status = self.child.wait().map_err(|e| e.to_string())?;
        let code = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ok(Output {
            code,
            stdout,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a pipe to its end on a thread, so that neither pipe can fill up and block the process.
fn drain(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A read error ends the capture; what was read shows in the assertion.
        let _ = from.read_to_end(&mut bytes);
        let _ = send.send(bytes);
    });
    receive
}

impl Output {
    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as one JSON value.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// Fails with everything there is when the exit code is another one.
    #[track_caller]
    pub(crate) fn assert_code(&self, code: i32) {
        assert_eq!(self.code, code, "{self:?}");
    }

    /// Fails unless this is a refusal: `code`, a line `error: …` on stderr that holds `words`, no output.
    #[track_caller]
    pub(crate) fn assert_refused(&self, code: i32, words: &str) {
        self.assert_code(code);
        assert!(self.stdout.is_empty(), "a refusal has no output: {self:?}");
        assert!(self.stderr.contains("error:"), "{self:?}");
        assert!(
            self.stderr.to_lowercase().contains(&words.to_lowercase()),
            "no {words:?} in {self:?}"
        );
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.text();
        let shown: String = text.chars().take(2_000).collect();
        write!(
            f,
            "exit code {}\nstdout ({} bytes): {shown}\nstderr: {}",
            self.code,
            self.stdout.len(),
            self.stderr
        )
    }
}
