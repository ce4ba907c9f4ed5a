//! Whoever reads the guide and types what it says.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use super::block::Block;
use crate::harness::{Daemon, Host, Output, Running, rnx_binary};

/// A daemon, and a directory in which a reader of the guide types.
#[derive(Debug)]
pub(super) struct Guide {
    pub(super) daemon: Daemon,
    here: PathBuf,
    /// Blocks that were run.
    tried: RefCell<Vec<&'static str>>,
}

impl Guide {
    pub(super) fn open() -> Option<Self> {
        let daemon = Host::Any.is_here().then(Daemon::start)?;
        let here = daemon.base.join("reader");
        fs::create_dir(&here).unwrap();
        let tried = RefCell::default();
        Some(Self {
            daemon,
            here,
            tried,
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.here.join(name)
    }

    pub(super) fn file(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(super) fn volumes(&self, names: &[&str]) {
        for name in names {
            self.daemon
                .rnx(["volume", "create", name, "--size=1GB"])
                .assert_code(0);
        }
    }

    pub(super) fn list(&self) -> Vec<serde_json::Value> {
        let listed = self.daemon.rnx(["volume", "list", "--json"]).json();
        listed["volumes"].as_array().unwrap().clone()
    }

    /// What a block says, or what is run instead, for who runs it at once.
    pub(super) fn tried(&self, block: &Block) -> String {
        self.tried.borrow_mut().push(block.text);
        let mut tried = block.text.to_owned();
        for (printed, instead) in block.changes {
            assert!(tried.contains(printed), "{printed:?} is not in\n{tried}");
            tried = tried.replacen(printed, instead, 1);
        }
        tried
    }

    pub(super) fn has_tried(&self, block: &Block) -> bool {
        self.tried.borrow().contains(&block.text)
    }

    /// Runs what a block says, or what is run instead.
    pub(super) fn run(&self, block: &Block) -> Output {
        self.shell(&self.tried(block))
    }

    pub(super) fn shell(&self, text: &str) -> Output {
        let bin = rnx_binary();
        let bin = bin.parent().unwrap().display().to_string();
        let path = std::env::var("PATH").unwrap();
        let mut shell = Command::new("bash");
        shell.args(["-c", text]).current_dir(&self.here);
        shell.env("PATH", format!("{bin}:{path}"));
        shell.env("RNX_CONFIG", &self.daemon.config);
        Running::start(shell).finish()
    }

    /// What a shell in a job with these volumes prints.
    pub(super) fn job_text(&self, script: &str, volumes: &str) -> String {
        let mut run = self.daemon.client().args(["job", "run"]);
        for volume in volumes.split(',') {
            run = run.args(["--volume", volume]);
        }
        let output = run.args(["bash", "-c", script]).run();
        output.assert_code(0);
        output.text()
    }

    #[track_caller]
    pub(super) fn job(&self, script: &str, volumes: &str, expected: &str) {
        assert_eq!(self.job_text(script, volumes), expected);
    }

    /// A block that has something run in a week: its volumes are in use until it is canceled.
    pub(super) fn scheduled(&self, block: &Block, volumes: &[&str]) {
        let output = self.run(block);
        output.assert_ok();
        assert!(output.text().contains("Status: SCHEDULED"), "{output:?}");
        let text = output.text();
        let id = text
            .lines()
            .find_map(|line| line.strip_prefix("ID: "))
            .unwrap();
        for volume in volumes {
            let refused = self.daemon.rnx(["volume", "remove", volume]);
            refused.assert_refused(5, "Volume is in use by active jobs");
        }
        self.daemon.rnx(["job", "cancel", id]).assert_code(0);
    }
}

impl Output {
    #[track_caller]
    pub(super) fn assert_ok(&self) {
        self.assert_code(0);
        assert!(!self.stderr.contains("error:"), "{self:?}");
    }

    /// Without what `volume create` says of what it has made.
    #[track_caller]
    pub(super) fn text_of_jobs(&self) -> String {
        self.assert_ok();
        let made = ["Name: ", "Size: ", "Type: "];
        let text = self.text();
        let lines = text
            .lines()
            .filter(|line| !made.iter().any(|word| line.starts_with(word)));
        lines.map(|line| format!("{line}\n")).collect()
    }
}
