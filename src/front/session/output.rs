//! A job's output as frames: small pieces copied together, large ones passed on by reference.
//!
//! Each piece of output is a 40-byte header and raw bytes. QUIC looks through its list of pieces for every
//! packet, so hundreds of small ones would cost more than the copy: five times, at 256 bytes a piece.

use bytes::{BufMut, Bytes, BytesMut};
use proto_rkyv::{HEADER_BYTES, Header, Kind, header_bytes};

use super::{Broken, frames::Outgoing, frames::split_frame, race};
use crate::{
    job::{Chunk, JobId, Stream},
    limits,
    shard::Output,
};

/// Sends everything that `output` gives, as soon as it gives it, as fast as the peer takes it.
pub(super) async fn send(
    id: JobId,
    mut output: Output,
    outgoing: &mut Outgoing,
) -> Result<(), Broken> {
    let mut batch = Batch::new(id);
    loop {
        // Pinned across the flush: a cursor that was asked is not asked anew.
        let mut next = std::pin::pin!(output.next());
        let chunk = match race::now(&mut next).await {
            Some(chunk) => chunk,
            None => {
                // Nothing more is there at this moment: what is there must not wait for it.
                outgoing.write(&mut batch.take()).await?;
                outgoing.unless_gone(next).await?
            }
        };
        let Some(chunk) = chunk? else { break };
        batch.push(chunk);
        if batch.is_full() {
            outgoing.write(&mut batch.take()).await?;
        }
    }
    outgoing.write(&mut batch.take()).await
}

/// Frames that wait to be written together.
#[derive(Debug)]
struct Batch {
    id: JobId,
    slab: BytesMut,
    ready: Vec<Bytes>,
    ready_bytes: usize,
}

impl Batch {
    fn new(id: JobId) -> Self {
        Self {
            id,
            slab: BytesMut::new(),
            ready: Vec::new(),
            ready_bytes: 0,
        }
    }

    fn push(&mut self, chunk: Chunk) {
        let Chunk {
            stream,
            mut offset,
            time_ns,
            mut bytes,
        } = chunk;
        let kind = match stream {
            Stream::Stdout => Kind::Stdout,
            Stream::Stderr => Kind::Stderr,
        };
        while !bytes.is_empty() {
            let header = Header {
                kind,
                len: 0,
                job: self.id.to_bytes(),
                offset,
                time_ns,
            };
            if bytes.len() < limits::OUTPUT_COPY_BYTES_MAX {
                return self.copy(header, &bytes);
            }
            let (header, piece) = split_frame(header, &mut bytes);
            offset += piece.len() as u64;
            self.seal();
            self.add(header);
            self.add(piece);
        }
    }

    fn copy(&mut self, header: Header, bytes: &[u8]) {
        if self.slab.len() + HEADER_BYTES + bytes.len() > limits::OUTPUT_SLAB_BYTES_MAX {
            self.seal();
        }
        let len = u32::try_from(bytes.len()).expect("below OUTPUT_COPY_BYTES_MAX");
        self.slab.reserve(HEADER_BYTES + bytes.len());
        self.slab
            .put_slice(&header_bytes(&Header { len, ..header }));
        self.slab.put_slice(bytes);
    }

    /// Closes the slab, so that what comes next comes after it.
    fn seal(&mut self) {
        if !self.slab.is_empty() {
            let slab = self.slab.split().freeze();
            self.add(slab);
        }
    }

    fn add(&mut self, bytes: Bytes) {
        self.ready_bytes += bytes.len();
        self.ready.push(bytes);
    }

    fn is_full(&self) -> bool {
        self.ready_bytes + self.slab.len() >= limits::OUTPUT_BATCH_BYTES_MAX
    }

    /// All of it, in order.
    fn take(&mut self) -> Vec<Bytes> {
        self.seal();
        self.ready_bytes = 0;
        std::mem::take(&mut self.ready)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto_rkyv::{DATA_BYTES_MAX, Piece, Reader};

    use super::*;

    fn chunk(stream: Stream, offset: u64, bytes: Vec<u8>) -> Chunk {
        Chunk {
            stream,
            offset,
            time_ns: offset + 1,
            bytes: bytes.into(),
        }
    }

    /// The frames in `pieces`, each with its payload.
    fn frames(pieces: Vec<Bytes>) -> Vec<(Header, Vec<u8>)> {
        let mut reader = Reader::default();
        let mut frames: Vec<(Header, Vec<u8>)> = Vec::new();
        for piece in pieces {
            reader.feed(piece);
            while let Some(piece) = reader.next().unwrap() {
                match piece {
                    Piece::Begin(header) => frames.push((header, Vec::new())),
                    Piece::Data { bytes, .. } => {
                        frames.last_mut().unwrap().1.extend_from_slice(&bytes)
                    }
                    Piece::Control(_) => panic!("output has no control frames"),
                }
            }
        }
        assert!(reader.is_between_frames());
        frames
    }

    #[test]
    fn small_pieces_share_slabs_and_large_ones_are_not_copied() {
        let id = JobId::random();
        let mut batch = Batch::new(id);
        for n in 0..100 {
            batch.push(chunk(Stream::Stdout, n * 10, vec![b'x'; 10]));
        }
        let large = Bytes::from(vec![b'y'; limits::OUTPUT_COPY_BYTES_MAX]);
        batch.push(Chunk {
            stream: Stream::Stderr,
            offset: 5,
            time_ns: 6,
            bytes: large.clone(),
        });
        let pieces = batch.take();
        assert_eq!(pieces.len(), 3, "one slab, one header, one payload");
        assert_eq!(pieces[2].as_ptr(), large.as_ptr());
        let frames = frames(pieces);
        assert_eq!(frames.len(), 101);
        assert_eq!(
            frames[99].0,
            Header {
                kind: Kind::Stdout,
                len: 10,
                job: id.to_bytes(),
                offset: 990,
                time_ns: 991
            }
        );
        assert_eq!(batch.take(), Vec::<Bytes>::new());
    }

    #[test]
    fn a_piece_beyond_a_frame_is_split_with_offsets_that_go_on() {
        let limit = DATA_BYTES_MAX as usize;
        let mut batch = Batch::new(JobId::random());
        batch.push(chunk(Stream::Stderr, 7, vec![1; 2 * limit + 3]));
        assert!(batch.is_full());
        let offsets: Vec<_> = frames(batch.take())
            .iter()
            .map(|(header, _)| (header.offset, header.len))
            .collect();
        assert_eq!(
            offsets,
            [
                (7, DATA_BYTES_MAX),
                (7 + limit as u64, DATA_BYTES_MAX),
                (7 + 2 * limit as u64, 3)
            ]
        );
    }

    proptest! {
        #[test]
        fn output_arrives_byte_for_byte_and_in_order(
            pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 1..20_000)), 0..20),
            takes in prop::collection::vec(any::<bool>(), 20),
        ) {
            let mut batch = Batch::new(JobId::random());
            let mut offset = 0;
            let (mut sent, mut expected) = (Vec::new(), Vec::new());
            for ((is_stdout, bytes), take) in pieces.into_iter().zip(takes) {
                let stream = if is_stdout { Stream::Stdout } else { Stream::Stderr };
                expected.push((stream, offset, bytes.clone()));
                let len = bytes.len() as u64;
                batch.push(chunk(stream, offset, bytes));
                offset += len;
                if take {
                    sent.extend(batch.take());
                }
            }
            sent.extend(batch.take());
            prop_assert!(sent.iter().all(|piece| piece.len() <= limits::OUTPUT_SLAB_BYTES_MAX));
            let got: Vec<_> = frames(sent).into_iter().map(|(header, bytes)| {
                let stream = if header.kind == Kind::Stdout { Stream::Stdout } else { Stream::Stderr };
                (stream, header.offset, bytes)
            }).collect();
            prop_assert_eq!(got, expected);
        }
    }
}
