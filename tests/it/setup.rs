//! Setting up: what `init` makes and keeps, what `cert issue` gives, whom `down` ends.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A base directory of a test's own, and a home beside it.
struct Place {
    dir: tempfile::TempDir,
}

struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    fn client_file(&self) -> PathBuf {
        self.dir.path().join(".rnx/rnx-config.yml")
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the program under test is a process"
    )]
    fn joblet(&self, args: &[&str]) -> Said {
        let output = Command::new(env!("CARGO_BIN_EXE_joblet"))
            .args(args)
            .env_clear()
            .env("JOBLET_BASE", self.base())
            .env("HOME", self.dir.path())
            .output()
            .unwrap();
        Said {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn ok(&self, args: &[&str]) -> Said {
        let said = self.joblet(args);
        assert_eq!(said.code, 0, "joblet {args:?}: {}", said.stderr);
        said
    }

    fn refused(&self, code: i32, args: &[&str], words: &str) {
        let said = self.joblet(args);
        assert_eq!(said.code, code, "joblet {args:?}: {}", said.stderr);
        assert!(
            said.stderr.contains(words),
            "joblet {args:?} said {:?}, not {words:?}",
            said.stderr
        );
        assert_eq!(said.stdout, "");
    }

    /// Every file below, with its mode and contents.
    fn files(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        fn walk(dir: &Path, found: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let mode = fs::symlink_metadata(&path).unwrap().mode() & 0o7777;
                if path.is_dir() {
                    assert_eq!(mode, 0o700, "{}", path.display());
                    walk(&path, found);
                } else {
                    found.insert(path.clone(), (mode, fs::read(&path).unwrap()));
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(self.dir.path(), &mut found);
        found
    }

    fn client(&self, path: &Path) -> serde_json::Value {
        let said: serde_json::Value =
            serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        said["nodes"]["default"].clone()
    }
}

#[test]
fn init_makes_private_files_once_and_then_keeps_them() {
    let place = Place::new();
    place.ok(&["init", "--listen", "127.0.0.1:0"]);
    let first = place.files();
    for (path, (mode, _)) in &first {
        assert_eq!(*mode, 0o600, "{}", path.display());
    }
    for file in [
        "instance",
        "joblet.yml",
        "pki/ca.pem",
        "pki/ca.key",
        "pki/server.pem",
        "pki/server.key",
    ] {
        assert!(first.contains_key(&place.base().join(file)), "{file}");
    }
    let node = place.client(&place.client_file());
    let address = node["address"].as_str().unwrap();
    assert!(
        address.starts_with("127.0.0.1:") && !address.ends_with(":0"),
        "{address}"
    );
    assert_eq!(node["isDefault"], true);
    assert_eq!(
        format!("{}\n", node["nodeId"].as_str().unwrap()).into_bytes(),
        first[&place.base().join("instance")].1
    );

    let again = place.ok(&["init"]);
    assert_eq!(place.files(), first);
    assert!(!again.stderr.contains("made "), "{}", again.stderr);
    let other = place.ok(&["init", "--listen", "127.0.0.1:9"]);
    assert!(
        other.stderr.contains("not on 127.0.0.1:9"),
        "{}",
        other.stderr
    );
    assert_eq!(place.files(), first);
}

#[test]
fn init_leaves_a_foreign_client_file_alone() {
    let place = Place::new();
    let foreign = "nodes: {mine: {address: \"a:1\", ca: x}} # precious\n";
    fs::create_dir(place.client_file().parent().unwrap()).unwrap();
    fs::set_permissions(
        place.client_file().parent().unwrap(),
        fs::Permissions::from_mode(0o700),
    )
    .unwrap();
    fs::copy(tempfile_with(&place, foreign), place.client_file()).unwrap();
    let said = place.ok(&["init"]);
    let spare = place.base().join("rnx-config.yml");
    assert!(
        said.stderr
            .contains(&format!("use rnx --config {}", spare.display())),
        "{}",
        said.stderr
    );
    assert_eq!(fs::read_to_string(place.client_file()).unwrap(), foreign);
    assert_eq!(place.client(&spare)["address"], "127.0.0.1:50051");
    let before = place.files();
    place.ok(&["init"]);
    assert_eq!(place.files(), before);
}

fn tempfile_with(place: &Place, text: &str) -> PathBuf {
    let path = place.dir.path().join("text");
    std::io::Write::write_all(&mut fs::File::create(&path).unwrap(), text.as_bytes()).unwrap();
    path
}

#[test]
fn a_certificate_is_printed_or_written_and_bad_requests_are_refused() {
    let place = Place::new();
    place.refused(
        1,
        &["cert", "issue", "--role", "admin", "--name", "x"],
        "joblet init --base",
    );
    place.ok(&["init"]);

    let said = place.ok(&[
        "cert",
        "issue",
        "--role",
        "Viewer",
        "--name",
        "ann",
        "--address",
        "node-1:7",
    ]);
    let file: serde_json::Value = serde_saphyr::from_str(&said.stdout).unwrap();
    assert_eq!(file["version"], "3.0");
    assert_eq!(file["nodes"]["default"]["address"], "node-1:7");
    assert!(
        file["nodes"]["default"]["key"]
            .as_str()
            .unwrap()
            .contains("PRIVATE KEY")
    );
    let ca = place.client(&place.client_file())["ca"].clone();
    assert_eq!(file["nodes"]["default"]["ca"], ca);

    let out = place.dir.path().join("bob.yml");
    let issue = [
        "cert",
        "issue",
        "--role",
        "developer",
        "--name",
        "bob",
        "--out",
        out.to_str().unwrap(),
    ];
    assert_eq!(place.ok(&issue).stdout, "");
    assert_eq!(fs::metadata(&out).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(place.client(&out)["address"], "127.0.0.1:50051");
    let before = place.files();
    place.refused(1, &issue, "exists and is not replaced");

    let refused = |code, flags: &[&str], words| {
        place.refused(code, &[&["cert", "issue"], flags].concat(), words)
    };
    refused(
        2,
        &["--role", "king", "--name", "x"],
        "roles are reader (or viewer), developer, maintainer, admin",
    );
    refused(2, &["--role", "admin"], "--name");
    refused(
        2,
        &["--role", "admin", "--name", "x", "--days", "0"],
        "not in 1..=3650",
    );
    refused(
        2,
        &["--role", "admin", "--name", "x", "--days", "3651"],
        "not in 1..=3650",
    );
    refused(
        1,
        &["--role", "admin", "--name", "a\nb"],
        "is no name for a certificate",
    );
    refused(
        1,
        &["--role", "admin", "--name", "x", "--node", "a b"],
        "is no name for a node",
    );
    refused(
        1,
        &["--role", "admin", "--name", "x", "--address", "here"],
        "write HOST:PORT",
    );
    assert_eq!(place.files(), before);
}

#[test]
fn serve_refuses_before_it_starts_anything() {
    let place = Place::new();
    place.refused(
        1,
        &["serve"],
        &format!("{} is not set up; run: joblet init", place.base().display()),
    );
    place.ok(&["init"]);
    place.refused(6, &["doctor"], "error: ");
    place.refused(2, &["serve", "--fast"], "--fast");
    place.refused(1, &["keeper"], "only joblet serve starts keepers");

    let config = place.base().join("joblet.yml");
    let text = fs::read_to_string(&config).unwrap();
    let set =
        |more: &str| fs::copy(tempfile_with(&place, &format!("{text}{more}")), &config).unwrap();
    set("netwrok: {}\n");
    place.refused(1, &["serve"], "unknown key netwrok");
    set("  durability: some\n");
    place.refused(1, &["serve"], "store.durability is \"some\"");
    set("");
    fs::set_permissions(place.base(), fs::Permissions::from_mode(0o777)).unwrap();
    place.refused(1, &["serve"], "can be written by others");
}

#[test]
fn version_goes_to_stdout() {
    let place = Place::new();
    assert_eq!(
        place.ok(&["version"]).stdout,
        concat!("joblet ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

/// A process that holds the lock of a base directory as a daemon does, under the name `name`.
#[expect(
    clippy::disallowed_methods,
    reason = "somebody else has to hold the lock"
)]
fn lock_holder(place: &Place, name: &str, script: &str) -> Child {
    let shell = place.dir.path().join(name);
    fs::copy("/bin/sh", &shell).unwrap();
    let lock = place.base().join("lock");
    let mut child = Command::new("flock")
        .args([
            "--no-fork".as_ref(),
            lock.as_os_str(),
            shell.as_os_str(),
            "-c".as_ref(),
        ])
        .arg(format!(
            "echo $$ > '{}'; {script} echo locked; read line",
            lock.display()
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 7];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .unwrap();
    child
}

#[test]
fn down_works_without_a_daemon() {
    let place = Place::new();
    place.refused(1, &["down"], "is not set up");
    place.ok(&["init"]);
    place.ok(&["down"]);
    place.ok(&["down"]);
}

#[test]
fn down_ends_the_daemon_that_holds_the_lock_and_nobody_else() {
    let place = Place::new();
    place.ok(&["init"]);
    let mut foreign = lock_holder(&place, "backup", "");
    let words = format!("is locked by process {}, which is", foreign.id());
    place.refused(1, &["down"], &words);
    assert!(foreign.try_wait().unwrap().is_none(), "it must live");
    foreign.kill().unwrap();
    foreign.wait().unwrap();

    let mut daemon = lock_holder(&place, "joblet", "");
    place.refused(
        1,
        &["serve"],
        &format!("is in use by process {}", daemon.id()),
    );
    let said = place.ok(&["down"]);
    assert!(
        said.stderr.contains(&format!(
            "asking the daemon, process {}, to end",
            daemon.id()
        )),
        "{}",
        said.stderr
    );
    assert!(!daemon.wait().unwrap().success());
}

#[test]
fn down_does_not_believe_an_old_pid() {
    let place = Place::new();
    place.ok(&["init"]);
    let mut daemon = lock_holder(&place, "joblet", "");
    let lock = place.base().join("lock");
    std::io::Write::write_all(
        &mut fs::OpenOptions::new().write(true).open(&lock).unwrap(),
        b"1\n        ",
    )
    .unwrap();
    place.refused(1, &["down"], "find it with: fuser");
    assert!(daemon.try_wait().unwrap().is_none(), "it must live");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    place.ok(&["down"]);
}
