//! What a front may ask of its shard. Requests for jobs of other shards go through the mailbox.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::job::{Chunk, JobId, JobView, LogQuery, NodeView, Peer, Refusal, Spec, State, StopSignal, TreeEntry};

/// The door of one shard, for code on the same thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle(());

/// Configured values that the front needs to complete a request.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// `/work` in memory when a submit asks for no size, bytes.
    pub work_memory_bytes: u64,
    /// `/work` on disk when uploads need more than memory and no size was asked, bytes.
    pub work_disk_bytes: u64,
    /// Time between SIGTERM and SIGKILL when a submit asks for none.
    pub grace: Duration,
}

impl Handle {
    /// Configured values.
    pub fn settings(&self) -> Settings {
        unimplemented!()
    }
    /// Makes a job of `owner`. Returns once the job exists; with uploads, once it can take them.
    /// `arrived` is when the request came in, for `start_micros`.
    pub async fn submit(&self, _owner: &Peer, _spec: Spec, _arrived: Instant) -> Result<Submission, Refusal> {
        unimplemented!()
    }
    /// The job whose id starts with `prefix`; not found or ambiguous (the hint lists candidates) otherwise.
    pub async fn resolve(&self, _prefix: &str) -> Result<JobId, Refusal> {
        unimplemented!()
    }
    /// One job as it is now.
    pub async fn view(&self, _id: JobId) -> Result<JobView, Refusal> {
        unimplemented!()
    }
    /// Jobs of all shards, newest first, at most `limit`.
    pub async fn list(&self, _state: Option<State>, _limit: usize) -> Vec<JobView> {
        unimplemented!()
    }
    /// Asks a job to stop. Asking twice, or after it has ended, is not an error.
    pub async fn stop(&self, _id: JobId, _by: &str, _signal: StopSignal) -> Result<JobView, Refusal> {
        unimplemented!()
    }
    /// Waits until the job has ended.
    pub async fn ended(&self, _id: JobId) -> Result<JobView, Refusal> {
        unimplemented!()
    }
    /// The output of a job: history and live as one.
    pub async fn follow(&self, _id: JobId, _query: LogQuery) -> Result<Output, Refusal> {
        unimplemented!()
    }
    /// A file or tree below a job's `/work`. `path` is relative.
    pub async fn copy_out(&self, _id: JobId, _path: &[u8]) -> Result<Tree, Refusal> {
        unimplemented!()
    }
    /// What this daemon is.
    pub async fn node(&self) -> NodeView {
        unimplemented!()
    }
}

/// A job that has been made. Dropping it before [`Submission::accept`] discards the job.
#[derive(Debug)]
pub struct Submission(());

impl Submission {
    /// Its id.
    pub fn id(&self) -> JobId {
        unimplemented!()
    }
    /// Where its uploads go, when its spec announced any.
    pub fn upload(&mut self) -> Option<&mut UploadSink> {
        unimplemented!()
    }
    /// The client has given everything: the job is accepted and will run. With uploads this waits until
    /// they are written and fails if they could not be.
    pub async fn accept(self) -> Result<JobId, Refusal> {
        unimplemented!()
    }
}

/// Takes a tree entry by entry; a file's bytes follow its entry. Holds no more than one socket buffer.
#[derive(Debug)]
pub struct UploadSink(());

impl UploadSink {
    /// The next entry. The last file must be complete.
    pub async fn entry(&mut self, _entry: &TreeEntry) -> Result<(), Refusal> {
        unimplemented!()
    }
    /// Some bytes of the last file.
    pub async fn data(&mut self, _bytes: Bytes) -> Result<(), Refusal> {
        unimplemented!()
    }
}

/// A cursor over a job's output.
#[derive(Debug)]
pub struct Output(());

impl Output {
    /// The next piece, in the order of capture; `None` when all that was asked for has been given.
    pub async fn next(&mut self) -> Result<Option<Chunk>, Refusal> {
        unimplemented!()
    }
}

/// A tree that is read out of a job's `/work`.
#[derive(Debug)]
pub struct Tree(());

/// A piece of a tree.
#[derive(Debug)]
pub enum TreeItem {
    /// The next entry.
    Entry(TreeEntry),
    /// Some bytes of the last file.
    Data(Bytes),
}

impl Tree {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<TreeItem>, Refusal> {
        unimplemented!()
    }
}
