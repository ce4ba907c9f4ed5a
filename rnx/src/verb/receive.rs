//! A tree from the server, taken by something on this machine.

use std::{io::Write, sync::Arc};

use rnx::{Arrival, Arrivals, Landing, Omission, Pack, RequestError, proto::Upload};
use tokio::{sync::mpsc, task};

use crate::{
    exit::Failure,
    out::{Out, Progress},
};

/// Pieces that wait for the disk.
const PIECES_AHEAD: usize = 64;

/// What a tree is written with.
pub(super) trait Taker: Send + 'static {
    fn entry(&mut self, entry: &Upload) -> Result<Option<Omission>, Failure>;
    fn data(&mut self, bytes: &[u8]) -> Result<(), Failure>;
}

impl Taker for Landing {
    fn entry(&mut self, entry: &Upload) -> Result<Option<Omission>, Failure> {
        Ok(Landing::entry(self, entry)?)
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(Landing::data(self, bytes)?)
    }
}

impl<W: Write + Send + 'static> Taker for Pack<W> {
    fn entry(&mut self, entry: &Upload) -> Result<Option<Omission>, Failure> {
        Ok(Pack::entry(self, entry)?)
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(Pack::data(self, bytes)?)
    }
}

/// Receives here and writes on a thread of its own, so that a slow disk does not stop the connection. Gives the taker
/// back when all of the tree was written; says what was not taken as it is there.
pub(super) async fn receive<T: Taker>(
    mut arrivals: Arrivals,
    mut taker: T,
    out: Out,
) -> Result<T, Failure> {
    let (pieces, mut waiting) = mpsc::channel::<Arrival>(PIECES_AHEAD);
    let bar = Arc::new(out.progress(Progress::Receive));
    let beside = Arc::clone(&bar);
    let writing = task::spawn_blocking(move || {
        let mut left_out = 0;
        while let Some(piece) = waiting.blocking_recv() {
            match piece {
                Arrival::Entry(entry) => {
                    if let Some(omission) = taker.entry(&entry)? {
                        beside.aside(|| out.omission(&omission));
                        left_out += usize::from(omission.is_left_out());
                    }
                }
                Arrival::Data(bytes) => taker.data(&bytes)?,
            }
        }
        beside.aside(|| out.left_out_count(left_out));
        Ok(taker)
    });
    let mut contents = 0;
    let received: Result<(), RequestError> = loop {
        match arrivals.next().await {
            Ok(Some(piece)) => {
                if let Arrival::Data(bytes) = &piece {
                    contents += bytes.len() as u64;
                    bar.set(contents);
                }
                // Sending fails only when writing did, and that says why.
                if pieces.send(piece).await.is_err() {
                    break Ok(());
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    drop(pieces);
    let written: Result<T, Failure> = writing
        .await
        .map_err(|error| Failure::new(format!("write: {error}")))?;
    received?;
    written
}
