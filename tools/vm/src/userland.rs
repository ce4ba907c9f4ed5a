//! The guest's programs: files of Debian packages of this host, and nothing else of it.
//!
//! No configuration, no user and no secret of the host goes along: what packages make when they are installed
//! is made anew from what they ship.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};

use crate::{command, output, root};

/// Never read by a test, and most of the files.
const LEFT_OUT: [&str; 5] = [
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/share/locale",
    "/usr/share/info",
    "/usr/share/lintian",
];

/// Directories that packages do not ship, or not all of them.
const DIRECTORIES: [&str; 11] = [
    "proc",
    "sys",
    "dev",
    "run",
    "tmp",
    "mnt",
    "root",
    "home",
    "var/tmp",
    "usr/local/bin",
    "etc",
];

/// The packages of the guest with their versions, a line each: Debian's essential ones, what the tests use
/// according to `tools/packages`, and all they depend on.
pub(crate) fn packages() -> Result<Vec<String>> {
    let wanted = output(command(
        root()?
            .join("tools/packages")
            .to_str()
            .context("a path in UTF-8")?,
        ["--guest"],
    ))?;
    // Status, whether it is essential, name; then what identifies it.
    let format =
        "--showformat=${db:Status-Status}:${Essential}:${Package}\t${binary:Package} ${Version}\n";
    let all = output(command("dpkg-query", ["--show", format]))?;
    let installed: Vec<(&str, &str)> = all
        .lines()
        .filter_map(|line| line.strip_prefix("installed:")?.split_once('\t'))
        .collect();
    let essential = installed
        .iter()
        .filter_map(|(name, _)| name.strip_prefix("yes:"));
    let mut args = vec!["depends", "--recurse", "--installed"];
    args.extend(["--no-recommends", "--no-suggests", "--no-enhances"]);
    args.extend(["--no-conflicts", "--no-breaks", "--no-replaces"]);
    args.extend(essential.chain(wanted.lines()));
    // Names at the beginning of a line; some are alternatives that are not installed.
    let closure = output(command("apt-cache", args))?;
    let closure: BTreeSet<&str> = closure.lines().collect();
    Ok(installed
        .into_iter()
        .filter_map(|(key, package)| {
            let (_, name) = key.split_once(':')?;
            closure.contains(name).then(|| package.to_owned())
        })
        .collect())
}

/// Lays the files of `packages` out below `stage`, with the few that their installation would make.
pub(crate) fn lay_out(packages: &[String], stage: &Path) -> Result<()> {
    let mut list = vec!["--listfiles"];
    list.extend(packages.iter().filter_map(|line| line.split(' ').next()));
    let listed = output(command("dpkg-query", list))?;
    let mut paths = BTreeSet::new();
    for line in listed.lines().filter(|line| line.starts_with('/')) {
        let path = Path::new(line);
        if !LEFT_OUT.iter().any(|out| path.starts_with(out)) {
            paths.extend(on_disk(path));
        }
    }
    paths.extend(compiled(&paths));
    paths.extend(alternatives(&paths)?);
    copy(&paths, stage)?;

    for directory in DIRECTORIES {
        fs::create_dir_all(stage.join(directory))?;
    }
    for (link, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ] {
        if stage.join(link).symlink_metadata().is_err() {
            symlink(target, stage.join(link))?;
        }
    }
    for (from, to) in [
        ("usr/share/base-passwd/passwd.master", "etc/passwd"),
        ("usr/share/base-passwd/group.master", "etc/group"),
        ("usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf"),
    ] {
        fs::copy(stage.join(from), stage.join(to)).with_context(|| format!("copy {from}"))?;
    }
    fs::write(
        stage.join("etc/hosts"),
        "127.0.0.1 localhost\n::1 localhost\n",
    )?;
    fs::write(stage.join("etc/hostname"), "guest\n")?;
    // Empty: a system that was set up, with a new id at each boot. systemd asks questions at a first one.
    fs::write(stage.join("etc/machine-id"), "")?;
    let mut cache = command("ldconfig", ["-r"]);
    cache.arg(stage);
    output(cache)?;
    Ok(())
}

/// Where a path of a package lies: with /bin and its like being links, and if it is there at all.
fn on_disk(path: &Path) -> Option<PathBuf> {
    let path = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize().ok()?.join(name),
        _ => return None,
    };
    path.symlink_metadata().ok()?;
    Some(path)
}

/// Python's compiled modules, which are made when a package is installed: without them every start compiles.
fn compiled(paths: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let caches: BTreeSet<PathBuf> = paths
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "py"))
        .filter_map(|path| Some(path.parent()?.join("__pycache__")))
        .collect();
    caches
        .iter()
        .filter_map(|cache| fs::read_dir(cache).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .collect()
}

/// Commands with several implementations (`awk`), when one of ours is the chosen one.
fn alternatives(paths: &BTreeSet<PathBuf>) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for directory in ["/usr/bin", "/usr/sbin"] {
        for entry in fs::read_dir(directory)? {
            let link = entry?.path();
            let Ok(chosen) = fs::read_link(&link) else {
                continue;
            };
            if chosen.starts_with("/etc/alternatives")
                && fs::read_link(&chosen).is_ok_and(|target| paths.contains(&target))
            {
                found.extend([link, chosen]);
            }
        }
    }
    Ok(found)
}

/// Copies files, links and directories as they are, directories without what is in them.
fn copy(paths: &BTreeSet<PathBuf>, stage: &Path) -> Result<()> {
    let mut pack = command(
        "tar",
        [
            "--create",
            "--directory=/",
            "--no-recursion",
            "--null",
            "--files-from=-",
        ],
    )
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .spawn()
    .context("start tar")?;
    let mut names = pack.stdin.take().context("tar reads names")?;
    let archive = pack.stdout.take().context("tar writes an archive")?;
    let mut unpack = command(
        "tar",
        ["--extract", "--preserve-permissions", "--directory"],
    );
    let mut unpack = unpack
        .arg(stage)
        .stdin(archive)
        .spawn()
        .context("start tar")?;
    for path in paths {
        let name = path.strip_prefix("/").context("paths are absolute")?;
        names.write_all(name.as_os_str().as_encoded_bytes())?;
        names.write_all(b"\0")?;
    }
    drop(names);
    let (packed, unpacked) = (pack.wait()?, unpack.wait()?);
    ensure!(
        packed.success() && unpacked.success(),
        "tar: {packed}, {unpacked}"
    );
    Ok(())
}
