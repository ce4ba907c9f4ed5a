//! The two programs of e2fsprogs that are used: mkfs.ext4 makes a file system, e2fsck mends one.

use std::{
    fs::File,
    io,
    path::Path,
    process::{Command, ExitStatus, Output, Stdio},
};

use thiserror::Error;

/// Where Debian and others keep them; a daemon's PATH often lacks these.
const DIRECTORIES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Why one of them did not do its work.
#[derive(Debug, Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("{program} is not installed (Debian package e2fsprogs)")]
    Missing {
        /// Which.
        program: &'static str,
    },
    /// It could not be started.
    #[error("start {program}")]
    Start {
        /// Which.
        program: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It gave up.
    #[error("{program}: {status}: {words}")]
    Failed {
        /// Which.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The last line of what it said.
        words: String,
    },
}

/// Makes an ext4 file system on `image`, as `arguments` say, of the blocks said: else it is the whole, to the last
/// page. Blocks for some milliseconds.
pub(super) fn make<S: AsRef<str>>(
    image: &Path,
    arguments: &[S],
    blocks: Option<u64>,
) -> Result<(), ToolError> {
    const PROGRAM: &str = "mkfs.ext4";
    let start = |source| ToolError::Start {
        program: PROGRAM,
        source,
    };
    let open = File::options().read(true).write(true).open(image);
    let mut command = command(PROGRAM)?;
    command.args(["-q", "-F"]);
    command.args(arguments.iter().map(AsRef::as_ref));
    // Not by its name: it may outlive a daemon that is killed, and would make the image anew that the next one has
    // removed.
    command.stdin(open.map_err(start)?).arg("/proc/self/fd/0");
    command.args(blocks.map(|blocks| blocks.to_string()));
    let output = run(PROGRAM, &mut command)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(PROGRAM, &output))
    }
}

/// Which mkfs.ext4 there is: its name and version.
pub(super) fn version() -> Result<String, ToolError> {
    const PROGRAM: &str = "mkfs.ext4";
    let output = run(PROGRAM, command(PROGRAM)?.arg("-V"))?;
    if !output.status.success() {
        return Err(failed(PROGRAM, &output));
    }
    // "mke2fs 1.47.0 (5-Feb-2023)", on standard error.
    let said = String::from_utf8_lossy(&output.stderr);
    let number = said.split_whitespace().nth(1).unwrap_or("of no version");
    Ok(format!("{PROGRAM} {number}"))
}

/// What [`mend`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mended {
    /// Nothing.
    Clean,
    /// Something, and it is right again.
    Repaired,
}

/// Checks the file system of `device`, which nobody has mounted, and repairs what can be repaired without losing
/// anything. Blocks, for seconds when the file system is large and full.
pub(super) fn mend(device: &Path) -> Result<Mended, ToolError> {
    const PROGRAM: &str = "e2fsck";
    let output = run(PROGRAM, command(PROGRAM)?.arg("-p").arg(device))?;
    match output.status.code() {
        Some(0) => Ok(Mended::Clean),
        // Bit 1 asks for a reboot, which is for file systems that are mounted.
        Some(1..=3) => Ok(Mended::Repaired),
        _ => Err(failed(PROGRAM, &output)),
    }
}

fn command(program: &'static str) -> Result<Command, ToolError> {
    let path = DIRECTORIES
        .into_iter()
        .map(|directory| Path::new(directory).join(program))
        .find(|path| path.exists())
        .ok_or(ToolError::Missing { program })?;
    #[expect(
        clippy::disallowed_methods,
        reason = "a short-lived program, waited for on the blocking pool"
    )]
    let mut command = Command::new(path);
    command.env_clear().stdin(Stdio::null());
    Ok(command)
}

fn run(program: &'static str, command: &mut Command) -> Result<Output, ToolError> {
    let output = command.output();
    output.map_err(|source| ToolError::Start { program, source })
}

/// What it said last, on the stream that has something: mkfs.ext4 complains on either, e2fsck on its output.
fn failed(program: &'static str, output: &Output) -> ToolError {
    let last = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let line = text.lines().rev().find(|line| !line.trim().is_empty());
        line.map(|line| line.trim().to_owned())
    };
    let words = last(&output.stderr).or_else(|| last(&output.stdout));
    ToolError::Failed {
        program,
        status: output.status,
        words: words.unwrap_or_else(|| "it said nothing".to_owned()),
    }
}
