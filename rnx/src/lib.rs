//! Client of the joblet daemon: one connection, thousands of concurrent requests.
//!
//! ```text
//! config ──► Node ──► connect ──► Client ──► one stream a request ──► Run · Output · Samples · Arrivals
//!                                   │
//!               upload: Tree ──► frames        receive: Landing ◄── frames
//!               archive: tar ──► frames        archive: Pack ◄── frames
//!
//! Line: a Client that is made anew when its connection is lost ──► Follow: output that goes on at its byte
//! ```
//! A [`Client`] is cheap to clone and may be used from any number of tasks at once; each request has a QUIC
//! stream of its own, so a slow reader of one holds up no other until the connection's receive window
//! (8 MB) is full of output that nobody takes.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use rnx::{Client, Config, RunEvent, Spec};
//! let config = Config::load(None)?;
//! let client = Client::connect(config.node(None)?).await?;
//! let mut run = client.submit(&Spec::attached(["echo", "hello"])).await?;
//! while let Some(event) = run.next().await? {
//!     match event {
//!         RunEvent::Output(output) => println!("{:?} {:?}", output.stream, output.bytes),
//!         RunEvent::Ended(job) => println!("{:?}", job.outcome),
//!     }
//! }
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! This crate knows no kernel feature of a job and nothing of the daemon but the wire (`proto-rkyv`, here
//! as [`proto`]). It prints nothing and reads no environment variable but through [`Places`].
#![forbid(unsafe_code)]

mod archive;
mod blob;
mod client;
mod config;
mod connect;
mod conversation;
mod error;
mod follow;
mod line;
mod loopback;
mod omission;
mod place;
mod receive;
mod stream;
mod tls;
mod upload;
mod volumes;

pub use proto_rkyv as proto;

pub use archive::{ArchiveError, Pack, PackError};
pub use client::{Client, Deleted, Page, Spec, Status};
pub use config::{Config, ConfigError, Node, Places, Warning};
pub use connect::{ConnectError, Distrust, Side, Unreachable};
pub use error::RequestError;
pub use follow::{Follow, FollowEvent};
pub use line::{Line, Pace};
pub use omission::{Omission, Omitted};
pub use receive::{Landing, LandingError};
pub use stream::{Arrival, Arrivals, LogEvent, Logs, Output, Run, RunEvent, Samples, Stream};
pub use tls::{Credential, CredentialError};
pub use upload::{Tree, UploadError};
pub use volumes::Imported;
