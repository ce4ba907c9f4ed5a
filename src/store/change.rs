//! What may be asked of the store, and what it answers.

use super::{Key, StoredVolume, VolumeState};
use crate::{
    job::{JobId, JobView, VolumeName},
    limits,
};

/// One change, made whole or not at all.
#[derive(Debug, Clone)]
pub enum Change {
    /// Writes down a job that was accepted; whoever submitted it is told after this. With a key, only if that key
    /// is not remembered. The job's first transition is the moment that decides whether a key has expired.
    Accept {
        /// The job.
        job: Box<JobView>,
        /// What makes a repeated submit the same one.
        key: Option<Key>,
    },
    /// Overwrites what changes in the life of a job that has not ended: state, transitions, output so far, caveats,
    /// what its `/work` is. What was asked of it stays.
    Update {
        /// The job.
        job: Box<JobView>,
    },
    /// Writes down how a job ended, whether it is known or not, and forgets its sealed secrets. The first end of a
    /// job is the one that stays; a second one changes nothing.
    End {
        /// The job, with its outcome.
        job: Box<JobView>,
        /// Its output, when that is small.
        output: Option<SmallOutput>,
    },
    /// Deletes jobs, with output and keys. Ids that are unknown are skipped; whether they live is the caller's to
    /// know. At most [`limits::STORE_DELETE_JOBS`].
    Delete {
        /// Which.
        ids: Vec<JobId>,
    },
    /// Deletes the jobs that ended first, at most [`limits::STORE_DELETE_JOBS`]: as long as it answers so many, ask
    /// again. It walks an index of all ended jobs, which takes milliseconds when there are 100,000: for a timer.
    Prune {
        /// Ended jobs that stay at most.
        keep_jobs: usize,
        /// Jobs that ended before that go, nanoseconds since the epoch.
        ended_before_ns: Option<i64>,
        /// Bytes of stored output of ended jobs that stay at most.
        keep_bytes: Option<u64>,
    },
    /// Deletes keys that have expired, at most [`limits::STORE_FORGET_KEYS`].
    ForgetKeys {
        /// Now, nanoseconds since the epoch.
        now_ns: i64,
    },
    /// Writes down a volume that is about to be made.
    PutVolume {
        /// The volume; its name is free.
        volume: Box<StoredVolume>,
    },
    /// Overwrites how far a volume is.
    SetVolume {
        /// Which.
        name: VolumeName,
        /// How far it is.
        state: VolumeState,
    },
    /// Forgets a volume, of which nothing is left. One that is unknown is skipped.
    DeleteVolume {
        /// Which.
        name: VolumeName,
    },
}

/// That a change was made. It is on its way to the disk as far as `store.durability` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// The job is written down.
    Accepted,
    /// Nothing was changed: the same request came before.
    Duplicate {
        /// Its job.
        id: JobId,
    },
    /// The job is overwritten.
    Updated,
    /// The end is written down, now or before.
    Ended {
        /// Whether the job's output is with it, so that its files may go.
        has_output: bool,
    },
    /// The jobs are gone.
    Deleted {
        /// How many there were.
        count: usize,
    },
    /// The jobs are gone; their files can follow.
    Pruned {
        /// Which, the one that ended first in front.
        ids: Vec<JobId>,
    },
    /// The keys are gone.
    Forgotten {
        /// How many there were.
        count: usize,
    },
    /// The volume is written down, overwritten or forgotten.
    VolumeNoted,
}

/// Whole output of an ended job, small enough not to need files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SmallOutput {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Records of the index, as in its file.
    pub index: Vec<u8>,
}

impl SmallOutput {
    /// Whether output of so many bytes, both streams together, and an index of so many may be in the store.
    #[must_use]
    pub const fn fits(bytes: usize, index_bytes: usize) -> bool {
        bytes <= limits::SMALL_OUTPUT_BYTES && index_bytes <= limits::SMALL_OUTPUT_INDEX_BYTES
    }

    /// Bytes of both streams.
    pub(super) const fn bytes(&self) -> usize {
        self.stdout.len() + self.stderr.len()
    }
}
