//! The guest's three disks, as files below `target/vm`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{command, kernel::Kernel, output, userland};

/// The guest's PID 1.
const INIT: &str = include_str!("../init");
/// What runs it where systemd is PID 1.
const UNIT: &str = include_str!("../joblet-vm.service");
/// Changes whenever this file makes the system disk in another way.
const LAYOUT: u32 = 3;
/// Where the first partition begins: the kernel finds it by its id, whatever number its disk gets.
const PARTITION_OFFSET: &str = "1048576";
/// The partition with the system, as `root=` wants it.
pub(crate) const SYSTEM_PARTITION: &str = "PARTUUID=6a6f6201-01";
/// The unit that runs the tests where systemd is PID 1.
pub(crate) const SYSTEMD_UNIT: &str = "joblet-vm.service";
/// Sizes, of which only what is written takes room: the system with space for what tests put there, programs
/// with debug information, and disk images of a few hundred MiB several times at once.
const SYSTEM_SIZE: &str = "1G";
const PROGRAMS_SIZE: &str = "512M";
const SCRATCH_SIZE: &str = "4G";

/// What runs in the guest.
#[derive(Debug)]
pub(crate) struct Programs {
    /// Where `joblet` and `rnx` lie, here and in the guest: cargo has told the tests where that is.
    pub(crate) home: PathBuf,
    /// The test binary.
    pub(crate) tests: PathBuf,
    /// How often it runs, one time after the other, and with which arguments.
    pub(crate) runs: Vec<Vec<String>>,
    /// What an earlier life of the machine had kept, for the tests to read.
    pub(crate) book: Vec<String>,
}

/// Image files.
#[derive(Debug)]
pub(crate) struct Disks {
    /// Packages, modules and init.
    pub(crate) system: PathBuf,
    /// What was built.
    pub(crate) programs: PathBuf,
    /// Where the guest writes.
    pub(crate) scratch: Scratch,
}

/// The disk that the guest writes to.
#[derive(Debug, Clone)]
pub(crate) enum Scratch {
    /// What is written goes with the machine.
    Thrown(PathBuf),
    /// What is written and flushed stays in the file.
    Kept(PathBuf),
}

/// The disks of a machine whose scratch is thrown away. The system is made only when packages, kernel or init have
/// changed.
pub(crate) fn make(kernel: &Kernel, programs: &Programs, cache: &Path) -> Result<Disks> {
    let image = cache.join("scratch.img");
    if !image.exists() {
        mkfs(&image, "scratch", SCRATCH_SIZE, &[], None)?;
    }
    with_scratch(kernel, programs, cache, Scratch::Thrown(image))
}

/// The disks of a machine with this scratch.
pub(crate) fn with_scratch(
    kernel: &Kernel,
    programs: &Programs,
    cache: &Path,
    scratch: Scratch,
) -> Result<Disks> {
    Ok(Disks {
        system: system(kernel, cache)?,
        programs: self::programs(programs, cache)?,
        scratch,
    })
}

/// An empty scratch that is kept, at `image`.
pub(crate) fn fresh_scratch(image: &Path) -> Result<Scratch> {
    let _ = fs::remove_file(image);
    mkfs(image, "scratch", SCRATCH_SIZE, &[], None)?;
    Ok(Scratch::Kept(image.to_owned()))
}

fn system(kernel: &Kernel, cache: &Path) -> Result<PathBuf> {
    let image = cache.join(format!("system-{}.img", kernel.release));
    let key_file = image.with_extension("key");
    let packages = userland::packages()?;
    let key = format!("{LAYOUT}\n{}\n{INIT}\n{UNIT}", packages.join("\n"));
    if image.exists() && fs::read_to_string(&key_file).is_ok_and(|text| text == key) {
        return Ok(image);
    }
    eprintln!("vm: making {}", image.display());
    let _ = fs::remove_file(&key_file);
    let stage = empty_directory(cache.join("stage"))?;
    userland::lay_out(&packages, &stage)?;
    let modules = stage.join("usr/lib/modules");
    fs::create_dir_all(&modules)?;
    let mut copy = command("cp", ["--archive", "--link"]);
    copy.arg(&kernel.modules).arg(&modules);
    output(copy)?;
    let init = stage.join("init");
    fs::write(&init, INIT)?;
    output(command("chmod", [Path::new("755"), &init]))?;
    let units = stage.join("etc/systemd/system");
    fs::create_dir_all(&units)?;
    fs::write(units.join(SYSTEMD_UNIT), UNIT)?;

    let _ = fs::remove_file(&image);
    output(command("truncate", [Path::new("--size=1025M"), &image]))?;
    let table = cache.join("stage.table");
    let (_, id) = SYSTEM_PARTITION.split_once('=').context("a partition id")?;
    let id = id.trim_end_matches("-01");
    fs::write(
        &table,
        format!("label: dos\nlabel-id: 0x{id}\nstart=2048, type=83\n"),
    )?;
    let mut partition = command("sfdisk", ["--quiet"]);
    partition.arg(&image).stdin(fs::File::open(&table)?);
    output(partition)?;
    let offset = format!("offset={PARTITION_OFFSET}");
    mkfs(
        &image,
        "system",
        SYSTEM_SIZE,
        &["-E", &offset],
        Some(&stage),
    )?;
    fs::remove_dir_all(stage)?;
    fs::remove_file(table)?;
    fs::write(key_file, key)?;
    Ok(image)
}

/// What was just built is always written anew: it takes less than a second, and usually it has changed.
fn programs(programs: &Programs, cache: &Path) -> Result<PathBuf> {
    let stage = empty_directory(cache.join("stage"))?;
    let floor = programs.home.join("floor");
    let mut files = vec![
        (programs.home.join("joblet"), "joblet"),
        (programs.home.join("rnx"), "rnx"),
        (programs.tests.clone(), "it"),
    ];
    // What the bench compares with.
    files.extend(floor.exists().then_some((floor, "floor")));
    for (from, to) in &files {
        let to = stage.join(to);
        fs::hard_link(from, to).with_context(|| format!("link {}", from.display()))?;
    }
    let lines = |lines: &[String]| lines.iter().map(|line| format!("{line}\n")).collect();
    let runs: Vec<String> = programs.runs.iter().map(|run| lines(run)).collect();
    fs::write(stage.join("runs"), runs.join("\n"))?;
    let book: String = lines(&programs.book);
    fs::write(stage.join("book"), book)?;
    let image = cache.join("programs.img");
    let _ = fs::remove_file(&image);
    mkfs(&image, "programs", PROGRAMS_SIZE, &[], Some(&stage))?;
    fs::remove_dir_all(stage)?;
    Ok(image)
}

/// Makes an ext4 file system of `size` in a file, with what is below `content`.
fn mkfs(
    image: &Path,
    label: &str,
    size: &str,
    options: &[&str],
    content: Option<&Path>,
) -> Result<()> {
    let mut mkfs = command("mkfs.ext4", ["-q", "-F", "-m", "0", "-L", label]);
    // Whole inode tables: the guest would write them while it tests.
    mkfs.args(["-E", "lazy_itable_init=0,lazy_journal_init=0"])
        .args(options);
    if let Some(content) = content {
        mkfs.arg("-d").arg(content);
    }
    mkfs.arg(image).arg(size);
    output(mkfs)?;
    Ok(())
}

fn empty_directory(path: PathBuf) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    fs::create_dir_all(&path)?;
    Ok(path)
}
