//! `--local`: a private server on this machine, made and started when none runs.
//!
//! Everything about it is in one directory (`$RNX_LOCAL_DIR`, else `/var/lib/joblet-local` for root and the
//! user's state directory for others): `joblet`'s own state, the client file, the port that was chosen once,
//! the log. The usual case reads the client file and connects. Only when that fails is the lock of the
//! directory taken, so of two first commands one starts the server and the other finds it.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    net::UdpSocket,
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rnx::{Client, Config, ConnectError, Node};
use tokio::time;

use crate::{
    exit::{Failure, code},
    out::Out,
};

/// Name of the hidden command that leaves the caller's session before it executes the server.
pub(crate) const DETACH_VERB: &str = "become-local-server";
/// How long a server may take from its start to being ready.
const START_MAX: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// What `joblet serve` says on standard error when it accepts.
const READY: &[u8] = b"joblet: ready";
/// Lines of the log that are shown when the server did not start.
const LOG_LINES_SHOWN: usize = 5;

/// The server of `--local`, running or not.
#[derive(Debug)]
pub(crate) struct Local {
    dir: PathBuf,
}

impl Local {
    pub(crate) fn new() -> Self {
        let set = |name| {
            env::var_os(name)
                .filter(|value: &OsString| !value.is_empty())
                .map(PathBuf::from)
        };
        let dir = set("RNX_LOCAL_DIR").unwrap_or_else(|| {
            if nix::unistd::geteuid().is_root() {
                return "/var/lib/joblet-local".into();
            }
            let state =
                set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
            state.unwrap_or_else(env::temp_dir).join("joblet-local")
        });
        // The server has another working directory.
        Self {
            dir: std::path::absolute(&dir).unwrap_or(dir),
        }
    }

    fn client_file(&self) -> PathBuf {
        self.dir.join("rnx-config.yml")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("joblet.log")
    }

    /// The running server's client file.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        Config::load(Some(&self.client_file())).map_err(Failure::from)
    }

    /// Connects, starting the server when none answers; the node is how it was found.
    pub(crate) async fn connect(&self, out: Out) -> Result<(Node, Client), Failure> {
        if let Some(found) = self.connect_if_running().await? {
            return Ok(found);
        }
        let _lock = self.lock()?;
        if let Some(found) = self.connect_if_running().await? {
            return Ok(found);
        }
        let program = find_program()?;
        out.note(&format!(
            "starting a private server in {}",
            self.dir.display()
        ));
        self.init(&program)?;
        self.start(&program).await?;
        let node = self.config()?.node(None)?.clone();
        let client = Client::connect(&node).await?;
        Ok((node, client))
    }

    /// Stops the server and every job of it; `joblet down` says how that went.
    pub(crate) fn shutdown(&self) -> Result<u8, Failure> {
        if !self.client_file().exists() {
            return Err(Failure {
                code: code::NOT_FOUND,
                ..Failure::new(format!("no private server in {}", self.dir.display()))
            });
        }
        let _lock = self.lock()?;
        let status = self
            .command(&find_program()?)
            .arg("down")
            .arg("--base")
            .arg(&self.dir)
            .status();
        let status = status.map_err(|error| Failure::new(format!("run joblet down: {error}")))?;
        if status.success() {
            Ok(code::DONE)
        } else {
            Err(Failure::new(format!("joblet down: {status}")))
        }
    }

    /// `None` when nothing is set up or nobody answers: then it has to be started.
    async fn connect_if_running(&self) -> Result<Option<(Node, Client)>, Failure> {
        if !self.client_file().exists() {
            return Ok(None);
        }
        let node = self.config()?.node(None)?.clone();
        match Client::connect(&node).await {
            Ok(client) => Ok(Some((node, client))),
            Err(ConnectError::Unreachable { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the directory and waits for its lock, which ends with the file.
    fn lock(&self) -> Result<File, Failure> {
        let failed =
            |what: &str, error| Failure::new(format!("{what} {}: {error}", self.dir.display()));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|error| failed("make", error))?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options
            .open(self.dir.join("rnx.lock"))
            .map_err(|error| failed("lock", error))?;
        file.lock().map_err(|error| failed("lock", error))?;
        Ok(file)
    }

    /// `joblet init`, which keeps what exists.
    fn init(&self, program: &Path) -> Result<(), Failure> {
        if self.client_file().exists() {
            return Ok(());
        }
        let listen = format!("127.0.0.1:{}", self.port()?);
        let mut init = self.command(program);
        init.arg("init")
            .arg("--base")
            .arg(&self.dir)
            .args(["--listen", &listen]);
        init.arg("--client-config")
            .arg(self.client_file())
            .stdin(Stdio::null());
        let output = init
            .output()
            .map_err(|error| Failure::new(format!("run {}: {error}", program.display())))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr)
            .trim()
            .trim_start_matches("error: ")
            .to_owned();
        Err(Failure::new(format!(
            "joblet init: {}: {said}",
            output.status
        )))
    }

    /// A port that was free when it was chosen; the same one ever after, because it stands in both files.
    fn port(&self) -> Result<u16, Failure> {
        let path = self.dir.join("port");
        if let Some(port) = fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
        {
            return Ok(port);
        }
        let chosen = UdpSocket::bind(("127.0.0.1", 0)).and_then(|socket| socket.local_addr());
        let port = chosen
            .map_err(|error| Failure::new(format!("find a free port: {error}")))?
            .port();
        let written = File::create(&path).and_then(|mut file| writeln!(file, "{port}"));
        written.map_err(|error| Failure::new(format!("write {}: {error}", path.display())))?;
        Ok(port)
    }

    /// Starts `joblet serve` in a session of its own and waits until it accepts.
    async fn start(&self, program: &Path) -> Result<(), Failure> {
        let path = self.log_file();
        let failed =
            |error: io::Error| Failure::new(format!("start {}: {error}", program.display()));
        let mut log = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let begin = log.seek(SeekFrom::End(0)).map_err(failed)?;
        let ourselves = env::current_exe().map_err(failed)?;
        let mut serve = self.command(&ourselves);
        serve.arg(DETACH_VERB).arg(program).args([
            OsStr::new("serve"),
            OsStr::new("--base"),
            self.dir.as_os_str(),
        ]);
        serve.current_dir("/").stdin(Stdio::null());
        serve
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log.try_clone().map_err(failed)?);
        let mut child = serve.spawn().map_err(failed)?;
        time::timeout(START_MAX, ready(&mut child, &mut log, begin))
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(format!(
                    "the server did not get ready within {} s",
                    START_MAX.as_secs()
                )))
            })
            .map_err(|failure| failure.hint(format!("its log is {}", path.display())))
    }

    /// A command with nothing in its environment that would point it at another server.
    #[expect(
        clippy::disallowed_methods,
        reason = "--local is what starts the server; nothing else does here"
    )]
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_remove("JOBLET_BASE")
            .env_remove("JOBLET_LISTEN");
        command
    }
}

/// Waits until the server says so in its log, from `begin` on, or has ended.
async fn ready(child: &mut Child, log: &mut File, begin: u64) -> Result<(), Failure> {
    loop {
        // In this order: what it said before it ended is then complete.
        let ended = child
            .try_wait()
            .map_err(|error| Failure::new(format!("wait for the server: {error}")))?;
        let mut said = Vec::new();
        let read = log
            .seek(SeekFrom::Start(begin))
            .and_then(|_| log.read_to_end(&mut said));
        read.map_err(|error| Failure::new(format!("read the server's log: {error}")))?;
        if said
            .split(|byte| *byte == b'\n')
            .any(|line| line.starts_with(READY))
        {
            return Ok(());
        }
        if let Some(status) = ended {
            let text = String::from_utf8_lossy(&said);
            let lines: Vec<_> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
            return Err(Failure::new(format!(
                "the server did not start ({status}):\n{last}"
            )));
        }
        time::sleep(LOOK_AGAIN).await;
    }
}

/// The server's program: `$JOBLET_BIN`, else beside our own, else the first in `PATH`.
fn find_program() -> Result<PathBuf, Failure> {
    if let Some(path) = env::var_os("JOBLET_BIN").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let beside = env::current_exe()
        .ok()
        .and_then(|path| path.parent().map(Path::to_path_buf));
    let search = env::var_os("PATH").unwrap_or_default();
    let dirs = beside
        .into_iter()
        .chain(env::split_paths(&search).filter(|dir| dir.is_absolute()));
    let executable = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    dirs.map(|dir| dir.join("joblet"))
        .find(executable)
        .ok_or_else(|| {
            Failure {
                code: code::NOT_FOUND,
                ..Failure::new("the program joblet was not found beside rnx nor in PATH")
            }
            .hint("set JOBLET_BIN to its path; it runs on Linux only")
        })
}

/// Leaves the caller's session, so that neither its terminal nor its Ctrl-C reaches the server, and becomes
/// `program`. Returns only when that failed.
#[expect(
    clippy::disallowed_methods,
    reason = "this process becomes the server of --local"
)]
pub(crate) fn become_server(program: &[OsString]) -> Failure {
    if let Err(errno) = nix::unistd::setsid() {
        return Failure::new(format!("start a session: {errno}"));
    }
    let Some((program, arguments)) = program.split_first() else {
        return Failure::usage("no program");
    };
    let error = Command::new(program).args(arguments).exec();
    Failure::new(format!("execute {}: {error}", Path::new(program).display()))
}
