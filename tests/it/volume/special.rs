//! What is in a volume beside files: FIFOs, sockets and files with several names, and how they travel.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::Command,
};

use nix::{sys::stat::Mode, unistd::mkfifo};

use super::start;
use crate::harness::{Daemon, Output, Running, rnx_binary};

const MIB: usize = 1 << 20;

#[test]
fn fifos_and_names_of_one_file_travel_and_what_cannot_is_named() {
    let Some(daemon) = start() else { return };
    daemon.create("data", "16MB");
    let root = daemon.root_of("data");
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/first"), vec![7; 9 * MIB]).unwrap();
    fs::hard_link(root.join("d/first"), root.join("second")).unwrap();
    mkfifo(&root.join("fifo"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let here = tempfile::tempdir().unwrap();
    bind(&root.join("so\nerror: forged"), here.path());

    let exported = daemon.rnx(["volume", "export", "data"]);
    exported.assert_code(0);
    named(&exported, "is left out: it is a socket");
    assert!(exported.stderr.contains("1 entry was left out"));
    let archive = here.path().join("data.tar");
    fs::write(&archive, &exported.stdout).unwrap();
    // As tar itself reads it.
    let listed = Running::start(tar(&["-tvf", archive.to_str().unwrap()])).finish();
    listed.assert_code(0);
    let listed = listed.text();
    assert!(listed.contains("second link to d/first"), "{listed}");
    assert!(
        listed.lines().any(|line| line.starts_with("prw-------")),
        "{listed}"
    );
    assert_eq!(listed.lines().count(), 4, "{listed}");

    // Twice what the file has would not fit.
    daemon.create("again", "16MB");
    daemon.import("again", &archive).assert_code(0);
    let seen =
        "cd /volumes/again; stat -c '%u %h %s %n' d/first second; test -p fifo && stat -c %u fifo";
    let expected = "1000 2 9437184 d/first\n1000 2 9437184 second\n1000\n";
    assert_eq!(daemon.with("again", seen).ok(), expected);

    let copy = here.path().join("copy");
    let copied = daemon
        .client()
        .args(["volume", "cp", "data:/"])
        .arg(&copy)
        .run();
    copied.assert_code(0);
    named(&copied, "is left out: it is a socket");
    named(&copied, "fifo is left out: it is a FIFO");
    assert!(
        copied.stderr.contains("2 entries were left out"),
        "{copied:?}"
    );
    let inode = |name: &str| fs::metadata(copy.join(name)).unwrap().ino();
    assert_eq!(inode("d/first"), inode("second"));

    let made = "mkfifo fifo; echo text > one; ln one two";
    let id = daemon.submit(&["--work-size=100MB"], &["sh", "-c", made]);
    assert_eq!(daemon.ended(&id)["status"], "COMPLETED");
    let work = here.path().join("work");
    let copied = daemon
        .client()
        .args(["job", "cp", &format!("{id}:/work")])
        .arg(&work)
        .run();
    copied.assert_code(0);
    named(&copied, "fifo is left out: it is a FIFO");
    assert_eq!(fs::metadata(work.join("two")).unwrap().nlink(), 2);
}

#[test]
fn an_archive_with_a_name_of_a_file_that_is_not_there_says_what_helps() {
    let Some(daemon) = start() else { return };
    daemon.create("data", "10MB");
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name);
    fs::write(at("first"), "text").unwrap();
    fs::hard_link(at("first"), at("second")).unwrap();
    let archive = at("all.tar");
    let (shown, dir) = (archive.to_str().unwrap(), here.path().to_str().unwrap());
    let names = ["-C", dir, "-cf", shown, "first", "second"];
    Running::start(tar(&names)).finish().assert_code(0);
    daemon.import("data", &archive).assert_code(0);
    let seen = "cd /volumes/*; cat second; stat -c %h first";
    assert_eq!(daemon.with("data", seen).ok(), "text2\n");
    Running::start(tar(&["--delete", "-f", shown, "first"]))
        .finish()
        .assert_code(0);
    daemon.create("other", "10MB");
    let refused = daemon.import("other", &archive);
    refused.assert_refused(
        3,
        "volume other has no /first, of which /second is a hard link",
    );
    assert!(
        refused.stderr.contains("tar --hard-dereference"),
        "{refused:?}"
    );
    let names = [&["--hard-dereference"], &names[..]].concat();
    Running::start(tar(&names)).finish().assert_code(0);
    daemon.import("other", &archive).assert_code(0);
    assert_eq!(daemon.with("other", seen).ok(), "text1\n");
}

#[test]
fn what_is_in_the_way_has_the_same_words_and_code_whichever_way_files_go() {
    let Some(daemon) = start() else { return };
    daemon.create("data", "10MB");
    let root = daemon.root_of("data");
    fs::write(root.join("file"), "text").unwrap();
    symlink("/etc", root.join("link")).unwrap();
    let here = tempfile::tempdir().unwrap();
    let local = |path: &str| here.path().join(path);
    for way in ["file", "link"] {
        fs::create_dir(local(way)).unwrap();
        fs::write(local(way).join("evil"), "evil").unwrap();
    }
    let evil = local("file/evil");
    let cp = |from: &Path, to: &Path| {
        let client = daemon.client().args(["volume", "cp"]);
        client.arg(from).arg(to).run()
    };
    for way in ["file", "link"] {
        let archive = local("archive.tar");
        let (dir, shown) = (here.path().to_str().unwrap(), archive.to_str().unwrap());
        let name = format!("{way}/evil");
        Running::start(tar(&["-C", dir, "-cf", shown, &name]))
            .finish()
            .assert_code(0);
        let remote = PathBuf::from(format!("data:/{way}/evil"));
        let words =
            format!("volume data: /{way}/evil leads through something that is not a directory");
        daemon.import("data", &archive).assert_refused(5, &words);
        cp(&evil, &remote).assert_refused(5, &words);
        cp(&remote, &local("back")).assert_refused(5, &words);
        let words = format!("volume data: /{way} is not a directory");
        let dir = local(way);
        let archived = ["-C", here.path().to_str().unwrap(), "-cf", shown, way];
        Running::start(tar(&archived)).finish().assert_code(0);
        daemon.import("data", &archive).assert_refused(5, &words);
        cp(&dir, Path::new(&format!("data:/{way}"))).assert_refused(5, &words);
    }
    cp(Path::new("data:/none"), &local("back")).assert_refused(3, "volume data has no /none");
    let untouched = fs::read_to_string(root.join("file")).unwrap();
    assert_eq!(untouched, "text");
    assert!(!Path::new("/etc/evil").exists());
}

/// That an omission is told, on a line that begins with our words.
#[track_caller]
fn named(output: &Output, words: &str) {
    let mut lines = output.stderr.lines();
    assert!(output.stderr.contains(words), "{output:?}");
    assert!(
        lines.all(|line| !line.starts_with("error")),
        "a name has begun a line: {output:?}"
    );
}

/// Makes a socket, whatever the length of its path.
fn bind(path: &Path, through: &Path) {
    let dir = through.join("dir");
    symlink(path.parent().unwrap(), &dir).unwrap();
    let _listener = UnixListener::bind(dir.join(path.file_name().unwrap())).unwrap();
    assert!(fs::symlink_metadata(path).unwrap().file_type().is_socket());
}

fn tar(args: &[&str]) -> Command {
    let mut tar = Command::new("tar");
    tar.args(args);
    tar
}

impl Daemon {
    /// Where a volume is seen on the host.
    fn root_of(&self, volume: &str) -> PathBuf {
        self.base.join("volumes").join(volume).join("data")
    }

    fn import(&self, volume: &str, archive: &Path) -> Output {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", r#"exec "$0" --config "$1" volume import "$2" < "$3""#])
            .arg(rnx_binary())
            .arg(&self.config)
            .arg(volume)
            .arg(archive)
            .env_remove("RNX_CONFIG")
            .env("NO_COLOR", "1");
        Running::start(shell).finish()
    }
}
