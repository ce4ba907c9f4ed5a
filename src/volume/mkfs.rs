//! The two programs of e2fsprogs that are used: mkfs.ext4 makes a file system, e2fsck mends one.

use std::{
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

/// Makes an ext4 file system on the whole of `image`, as `arguments` say. Blocks for some milliseconds.
pub(super) fn make<S: AsRef<str>>(image: &Path, arguments: &[S]) -> Result<(), ToolError> {
    const PROGRAM: &str = "mkfs.ext4";
    let arguments = ["-q", "-F"]
        .into_iter()
        .chain(arguments.iter().map(AsRef::as_ref));
    let output = run(PROGRAM, arguments, image)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(PROGRAM, &output, &output.stderr))
    }
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
    let output = run(PROGRAM, ["-p"], device)?;
    match output.status.code() {
        Some(0) => Ok(Mended::Clean),
        // Bit 1 asks for a reboot, which is for file systems that are mounted.
        Some(1..=3) => Ok(Mended::Repaired),
        _ => Err(failed(PROGRAM, &output, &output.stdout)),
    }
}

fn run<'a>(
    program: &'static str,
    arguments: impl IntoIterator<Item = &'a str>,
    target: &Path,
) -> Result<Output, ToolError> {
    let path = DIRECTORIES
        .into_iter()
        .map(|directory| Path::new(directory).join(program))
        .find(|path| path.exists())
        .ok_or(ToolError::Missing { program })?;
    #[expect(
        clippy::disallowed_methods,
        reason = "a short-lived program, waited for on the blocking pool"
    )]
    Command::new(path)
        .env_clear()
        .args(arguments)
        .arg(target)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ToolError::Start { program, source })
}

fn failed(program: &'static str, output: &Output, words: &[u8]) -> ToolError {
    let words = String::from_utf8_lossy(words);
    let last = words.lines().rev().find(|line| !line.trim().is_empty());
    ToolError::Failed {
        program,
        status: output.status,
        words: last.unwrap_or("it said nothing").trim().to_owned(),
    }
}
