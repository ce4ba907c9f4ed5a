//! A witness that a command ran which nobody of the product can ask or fool: inotify on a file of the host that
//! only the jobs of one test open.

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Counts how often a file was opened.
#[derive(Debug)]
pub(crate) struct Witness {
    inotify: Inotify,
    path: &'static str,
    opened: u64,
}

impl Witness {
    /// Over `path`, which jobs see as well: a file below `/usr` that nothing else uses.
    pub(crate) fn over(path: &'static str) -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
        // With closings in between, two openings one after the other are not told as one.
        let flags = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_CLOSE_NOWRITE;
        inotify.add_watch(path, flags).unwrap();
        Self {
            inotify,
            path,
            opened: 0,
        }
    }

    /// Shell words that open the file once.
    pub(crate) fn script(path: &str) -> String {
        format!(": <{path}")
    }

    /// How often it was opened so far. Openings at the same moment may count as one.
    pub(crate) fn opened(&mut self) -> u64 {
        loop {
            match self.inotify.read_events() {
                Ok(events) => {
                    let opened = events.iter().filter(|event| {
                        assert!(
                            !event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW),
                            "{} was opened faster than it was looked at",
                            self.path
                        );
                        event.mask.contains(AddWatchFlags::IN_OPEN)
                    });
                    self.opened += opened.count() as u64;
                }
                Err(Errno::EAGAIN) => return self.opened,
                Err(error) => panic!("watch {}: {error}", self.path),
            }
        }
    }
}
