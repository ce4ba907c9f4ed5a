//! Frames over the two halves of a stream.

use bytes::Bytes;
use proto_rkyv::{
    DATA_BYTES_MAX, FrameError, HEADER_BYTES, Header, Job, Kind, Piece, Reader, Reply, Request,
    header_bytes,
};

use super::{Broken, race};
use crate::{
    front::{
        convert,
        quic::{RecvHalf, SendHalf, StreamError},
    },
    limits,
};

/// Jobs that are tried in one list frame; fewer when they are large.
const JOBS_PER_FRAME: usize = 64;

/// Frames from the peer.
pub(super) struct Incoming {
    recv: RecvHalf,
    reader: Reader,
}

impl Incoming {
    pub(super) fn new(recv: RecvHalf) -> Self {
        Self {
            recv,
            reader: Reader::default(),
        }
    }

    /// The first frame, which must be a request and must come soon.
    pub(super) async fn request(&mut self) -> Result<Request, Broken> {
        let first = race::within(limits::FIRST_FRAME_TIMEOUT, self.next())
            .await
            .ok_or(Broken::Stalled)??;
        match first {
            Some(Piece::Control(archive)) => Ok(Request::decode(&archive)?),
            Some(Piece::Begin(header)) => Err(Broken::Malformed(convert::invalid(format!(
                "{:?} frame before any request",
                header.kind
            )))),
            Some(Piece::Data { .. }) | None => Err(Broken::Malformed(convert::invalid(
                "a stream without a request",
            ))),
        }
    }

    /// The next piece; `None` when the peer has finished the stream between two frames.
    ///
    /// # Cancel
    /// Loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>, Broken> {
        loop {
            if let Some(piece) = self.reader.next()? {
                return Ok(Some(piece));
            }
            match self.recv.read_chunk().await? {
                Some(chunk) => self.reader.feed(chunk),
                None if self.reader.is_between_frames() => return Ok(None),
                None => {
                    return Err(Broken::Malformed(convert::invalid(
                        "the stream ends inside a frame",
                    )));
                }
            }
        }
    }

    /// The rest is not wanted.
    pub(super) fn stop(&mut self, code: u32) {
        self.recv.stop(code);
    }
}

/// Frames to the peer.
pub(super) struct Outgoing {
    send: SendHalf,
}

impl Outgoing {
    pub(super) fn new(send: SendHalf) -> Self {
        Self { send }
    }

    /// One control message.
    pub(super) async fn reply(&mut self, reply: &Reply) -> Result<(), Broken> {
        let frame = proto_rkyv::encode(reply).map_err(unsendable)?;
        self.write(&mut [frame]).await
    }

    /// One entry of a tree.
    pub(super) async fn upload(&mut self, upload: &proto_rkyv::Upload) -> Result<(), Broken> {
        let frame = proto_rkyv::encode(upload).map_err(unsendable)?;
        self.write(&mut [frame]).await
    }

    /// A list of jobs, in as many frames as it takes; at least one.
    pub(super) async fn jobs(&mut self, jobs: &[Job]) -> Result<(), Broken> {
        for frame in job_frames(jobs).map_err(unsendable)? {
            self.write(&mut [frame]).await?;
        }
        Ok(())
    }

    /// A list of byte strings, in as many frames as it takes; none for an empty list.
    pub(super) async fn bulk(&mut self, kind: Kind, entries: &[Vec<u8>]) -> Result<(), Broken> {
        self.data(Header::new(kind, 0), Bytes::from(proto_rkyv::join(entries)))
            .await
    }

    /// Payload of any length as data frames like `header`.
    pub(super) async fn data(&mut self, header: Header, mut payload: Bytes) -> Result<(), Broken> {
        while !payload.is_empty() {
            let (header, piece) = split_frame(header, &mut payload);
            self.write(&mut [header, piece]).await?;
        }
        Ok(())
    }

    /// Bytes that are whole frames already.
    pub(super) async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), Broken> {
        Ok(self.send.write_chunks(chunks).await?)
    }

    /// What `future` gives, unless the peer goes away first.
    pub(super) async fn unless_gone<T>(
        &self,
        future: impl Future<Output = T>,
    ) -> Result<T, StreamError> {
        race::unless(self.send.gone(), future).await
    }

    /// Ends the stream in order.
    pub(super) fn finish(&mut self) {
        self.send.finish();
    }

    /// Gives the stream up.
    pub(super) fn reset(&mut self, code: u32) {
        self.send.reset(code);
    }
}

/// Takes as much of `payload` as one frame may have: the frame's header and that.
pub(super) fn split_frame(header: Header, payload: &mut Bytes) -> (Bytes, Bytes) {
    let piece = payload.split_to(payload.len().min(DATA_BYTES_MAX as usize));
    let len = u32::try_from(piece.len()).expect("at most DATA_BYTES_MAX");
    (
        Bytes::copy_from_slice(&header_bytes(&Header { len, ..header })),
        piece,
    )
}

fn job_frames(jobs: &[Job]) -> Result<Vec<Bytes>, FrameError> {
    let mut frames = Vec::new();
    let mut left = jobs;
    loop {
        let mut count = left.len().min(JOBS_PER_FRAME);
        let frame = loop {
            match proto_rkyv::encode(&Reply::Jobs(left[..count].to_vec())) {
                Err(FrameError::TooLarge { .. }) if count > 1 => count /= 2,
                result => break result?,
            }
        };
        debug_assert!(frame.len() > HEADER_BYTES, "a control frame has an archive");
        frames.push(frame);
        left = &left[count..];
        if left.is_empty() {
            return Ok(frames);
        }
    }
}

/// A message of ours that does not fit a frame: limits are set so that this cannot happen.
fn unsendable(error: FrameError) -> Broken {
    tracing::error!(%error, "a reply does not fit a frame");
    Broken::Refused(crate::job::Refusal::new(
        crate::job::RefusalCode::Failed,
        "the answer does not fit a frame",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::convert::largest_job;

    fn decode(frames: &[Bytes]) -> Vec<Vec<Job>> {
        let one = |frame: &Bytes| {
            let mut reader = Reader::default();
            reader.feed(frame.clone());
            let Ok(Some(Piece::Control(archive))) = reader.next() else {
                panic!("no control frame")
            };
            let Ok(Reply::Jobs(jobs)) = Reply::decode(&archive) else {
                panic!("no jobs")
            };
            jobs
        };
        frames.iter().map(one).collect()
    }

    #[test]
    fn lists_of_any_size_fit_frames_and_keep_their_order() {
        assert_eq!(decode(&job_frames(&[]).unwrap()), [Vec::new()]);
        let large = convert::job(&largest_job());
        let small = Job {
            labels: Vec::new(),
            workdir: String::new(),
            ..large.clone()
        };
        let number = |job: &Job, n: usize| Job {
            command: n.to_string(),
            ..job.clone()
        };
        let jobs: Vec<Job> = (0..300)
            .map(|n| number(if n % 7 == 0 { &large } else { &small }, n))
            .collect();
        let frames = decode(&job_frames(&jobs).unwrap());
        assert!(frames.len() > 5 && frames.iter().all(|jobs| !jobs.is_empty()));
        assert_eq!(frames.concat(), jobs);
    }

    #[test]
    fn long_payload_is_split_at_the_limit_of_a_frame() {
        let limit = DATA_BYTES_MAX as usize;
        let mut payload = Bytes::from(vec![7; 2 * limit + 1]);
        let lens: Vec<usize> = std::iter::from_fn(|| {
            (!payload.is_empty()).then(|| {
                let (header, piece) = split_frame(Header::new(Kind::File, 0), &mut payload);
                let header = Header::parse(header[..].try_into().unwrap()).unwrap();
                assert_eq!(
                    (header.kind, header.len as usize),
                    (Kind::File, piece.len())
                );
                piece.len()
            })
        })
        .collect();
        assert_eq!(lens, [limit, limit, 1]);
    }
}
