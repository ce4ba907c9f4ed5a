//! Kernels: Debian's cloud packages, fetched once, unpacked and never installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{command, output};

/// A line of kernels that the product promises to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Series {
    /// The oldest one.
    V6_1,
    /// The one after it that Debian calls stable.
    V6_12,
}

impl Series {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// By its name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|series| series.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

/// A kernel on this host's disk.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// What `uname -r` says in it.
    pub(crate) release: String,
    /// The bootable image.
    pub(crate) image: PathBuf,
    /// Its modules, with their index.
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// The newest of `series` that apt offers, or the one fetched earlier.
    ///
    /// The unsigned package is the same kernel as the signed one; its dependencies are not needed to boot it.
    pub(crate) fn get(series: Series, cache: &Path) -> Result<Self> {
        let home = cache.join(format!("kernel-{}", series.name()));
        if !home.exists() {
            let package = match newest(series)? {
                Some(package) => package,
                None => {
                    output(command("apt-get", ["update", "--quiet"]))?;
                    newest(series)?
                        .with_context(|| format!("apt offers no cloud kernel {}", series.name()))?
                }
            };
            fetch(&package, &home)?;
        }
        let modules = only_entry(&home.join("lib/modules"))?;
        let release = modules
            .file_name()
            .and_then(|name| name.to_str())
            .context("the name of a kernel release")?
            .to_owned();
        Ok(Self {
            image: home.join(format!("boot/vmlinuz-{release}")),
            release,
            modules,
        })
    }
}

/// The name of the newest cloud image package of a series, as apt's lists have it now.
fn newest(series: Series) -> Result<Option<String>> {
    let prefix = format!("linux-image-{}.", series.name());
    let names = output(command("apt-cache", ["pkgnames", prefix.as_str()]))?;
    Ok(names
        .lines()
        .filter_map(|name| {
            let version = name
                .strip_prefix(&prefix)?
                .strip_suffix("-cloud-amd64-unsigned")?;
            let numbers: Vec<u32> = version
                .split(|c: char| !c.is_ascii_digit())
                .filter_map(|number| number.parse().ok())
                .collect();
            Some((numbers, name))
        })
        .max()
        .map(|(_, name)| name.to_owned()))
}

/// Unpacks a package at `home`, which is there completely or not at all.
fn fetch(package: &str, home: &Path) -> Result<()> {
    eprintln!("vm: fetching {package}");
    let fresh = home.with_extension("fresh");
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh)?;
    let download = || {
        // As root: apt's own user may not write here.
        let args = [
            "--quiet",
            "-o",
            "APT::Sandbox::User=root",
            "download",
            package,
        ];
        let mut get = command("apt-get", args);
        get.current_dir(&fresh);
        output(get)
    };
    // Lists that are older than the last security update name files that are gone.
    if download().is_err() {
        output(command("apt-get", ["update", "--quiet"]))?;
        download()?;
    }
    let archive = only_entry(&fresh)?;
    output(command("dpkg", [Path::new("-x"), &archive, &fresh]))?;
    fs::remove_file(archive)?;
    let modules = only_entry(&fresh.join("lib/modules"))?;
    let release = modules.file_name().context("the name of a release")?;
    let mut index = command("depmod", ["--basedir"]);
    index.arg(&fresh).arg(release);
    output(index)?;
    fs::rename(&fresh, home).with_context(|| format!("make {}", home.display()))
}

/// The only thing in a directory.
fn only_entry(directory: &Path) -> Result<PathBuf> {
    let mut entries =
        fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    let entry = entries
        .next()
        .with_context(|| format!("{} is empty", directory.display()))??;
    Ok(entry.path())
}
