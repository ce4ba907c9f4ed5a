//! What reaches an attached run from its surroundings: signals, and an input that nobody will read.

use std::{
    fs::File,
    io::{self, Seek},
    os::{fd::AsFd, unix::fs::FileTypeExt},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rnx::proto::StopSignal;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

/// Ctrl-C and SIGTERM, which end us no longer once this exists.
#[derive(Debug)]
pub(super) struct Interrupts {
    int: Signal,
    term: Signal,
}

impl Interrupts {
    pub(super) fn new() -> Result<Self, Failure> {
        let catch =
            |kind| signal(kind).map_err(|error| Failure::new(format!("catch signals: {error}")));
        Ok(Self {
            int: catch(SignalKind::interrupt())?,
            term: catch(SignalKind::terminate())?,
        })
    }

    /// The next one, as what to pass on.
    pub(super) async fn next(&mut self) -> StopSignal {
        tokio::select! {
            _ = self.int.recv() => StopSignal::Int,
            _ = self.term.recv() => StopSignal::Term,
        }
    }
}

/// Whether somebody feeds us data that the job will not get. Does not wait: a pipe that is still empty is
/// not worth a remark.
pub(super) fn stdin_has_data() -> bool {
    fed(&io::stdin()).unwrap_or(false)
}

fn fed(stdin: &impl AsFd) -> io::Result<bool> {
    let mut file = File::from(stdin.as_fd().try_clone_to_owned()?);
    let meta = file.metadata()?;
    if meta.is_file() {
        return Ok(file.stream_position()? < meta.len());
    }
    if !meta.file_type().is_fifo() {
        return Ok(false);
    }
    let mut ready = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    poll(&mut ready, PollTimeout::ZERO)?;
    Ok(ready[0]
        .revents()
        .is_some_and(|events| events.contains(PollFlags::POLLIN)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_an_input_with_data_in_it_is_worth_a_remark() {
        let (reader, mut writer) = io::pipe().unwrap();
        assert!(!fed(&reader).unwrap());
        writer.write_all(b"x").unwrap();
        assert!(fed(&reader).unwrap());
        let (reader, writer) = io::pipe().unwrap();
        drop(writer);
        assert!(!fed(&reader).unwrap());
        assert!(!fed(&File::open("/dev/null").unwrap()).unwrap());
        let mut file = tempfile::tempfile().unwrap();
        assert!(!fed(&file).unwrap());
        file.write_all(b"x").unwrap();
        assert!(!fed(&file).unwrap(), "everything was read");
        file.rewind().unwrap();
        assert!(fed(&file).unwrap());
    }
}
