//! `--local` with a stand-in for the daemon's program: a script that answers `init` and `serve`, while the
//! wire is spoken by the server of the test.

use std::{
    fs,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto_rkyv::Reply;

use crate::server::{Server, asked, reply, say};

struct Local {
    dir: tempfile::TempDir,
    _server: Server,
}

impl Local {
    /// `serve` is the script of that verb; `$base` is the directory.
    fn new(serve: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(|mut send, mut recv| async move {
            asked(&mut recv).await;
            say(&mut send, [reply(&Reply::Jobs(Vec::new()))]).await;
        });
        server.client_file(dir.path());
        let script = format!(
            "#!/bin/sh\nhere={}\nverb=$1\nbase=$3\necho \"$*\" >> \"$here/calls\"\ncase $verb in\n\
             init) cp \"$here/rnx-config.yml\" \"$7\" ;;\nserve) {serve} ;;\ndown) echo down says hello >&2 ;;\nesac\n",
            dir.path().display()
        );
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o755)
            .open(dir.path().join("joblet"))
            .unwrap();
        file.write_all(script.as_bytes()).unwrap();
        Self {
            dir,
            _server: server,
        }
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join("state/of/local")
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the program itself is what is tested"
    )]
    fn start(&self, words: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rnx"));
        command.arg("--local").args(words);
        command
            .env("RNX_LOCAL_DIR", self.base())
            .env("JOBLET_BIN", self.dir.path().join("joblet"));
        command.env("JOBLET_LISTEN", "1.2.3.4:5");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("calls")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn pid(&self) -> Pid {
        let text = fs::read_to_string(self.dir.path().join("pid")).unwrap();
        Pid::from_raw(text.trim().parse().unwrap())
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if Path::new(&self.dir.path().join("pid")).exists() {
            let _ = kill(self.pid(), Signal::SIGKILL);
        }
    }
}

/// Says its process id, then that it is ready, and lives on like a server.
const READY: &str = "echo $$ > \"$here/pid\"; test -z \"$JOBLET_LISTEN\" || exit 9; echo 'joblet: ready on 127.0.0.1' >&2; exec sleep 600";

#[test]
fn two_first_commands_start_one_server() {
    let local = Local::new(READY);
    let children = [local.start(&["job", "list"]), local.start(&["job", "list"])];
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.stdout, b"No jobs found\n");
    }
    let (calls, base) = (local.calls(), local.base());
    let base = base.display();
    let port = fs::read_to_string(local.base().join("port")).unwrap();
    let init = format!(
        "init --base {base} --listen 127.0.0.1:{} --client-config {base}/rnx-config.yml",
        port.trim()
    );
    assert_eq!(calls, [init, format!("serve --base {base}")]);
    assert_eq!(
        fs::metadata(local.base()).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let pid = local.pid();
    assert_eq!(
        nix::unistd::getsid(Some(pid)).unwrap(),
        pid,
        "the server has a session of its own"
    );
    let output = local.start(&["job", "list"]).wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), &output.stderr[..]),
        (Some(0), &b""[..]),
        "later ones just use it"
    );
    assert_eq!(local.calls().len(), 2);
    let output = local.start(&["shutdown"]).wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), &output.stderr[..]),
        (Some(0), &b"down says hello\n"[..])
    );
    assert_eq!(local.calls()[2], format!("down --base {base}"));
}

#[test]
fn a_server_that_does_not_start_is_shown_by_its_last_words() {
    let local = Local::new("echo 'error: port is taken' >&2; exit 3");
    let output = local.start(&["job", "list"]).wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("the server did not start (exit status: 3):\nerror: port is taken\n"),
        "{stderr}"
    );
    assert!(stderr.contains("joblet.log"), "{stderr}");
}

#[test]
fn nothing_to_shut_down_is_said() {
    let local = Local::new(READY);
    let output = local.start(&["shutdown"]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(!local.base().exists(), "and nothing is made");
}
