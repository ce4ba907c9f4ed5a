//! What outlives the daemon: an append-only journal of jobs, one file a shard.
//!
//! A record is one line of JSON, so people can read it and a torn write can be told from a whole one. The
//! store makes lines and reads them; the shard appends them through its own I/O, many at once. The types of
//! the job room stay free of any format: `record` mirrors them privately, and does not compile when they
//! and their mirror differ.

mod journal;
mod record;

pub use journal::{
    Damage, History, JournalError, Moment, Replay, compact, open_shard, replay, shard_file,
};
pub use record::{encode_accepted, encode_ended};
