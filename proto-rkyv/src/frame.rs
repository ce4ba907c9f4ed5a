//! Frames: a fixed header and raw payload, and the incremental reader for both sides.
//!
//! The header is an rkyv archive of alignment 1 and 40 bytes, so it is valid at any position of a packet.
//! bytecheck refuses an unknown [`Kind`] and nothing else, because every integer is valid to it: version,
//! length and flags are checked by hand in [`Header::parse`]. Payload is passed on as slices of the very
//! chunks it came in.

use bytes::{Buf, Bytes, BytesMut};
use rkyv::{Archive, Deserialize, Serialize, rancor::Failure, ser::writer::Buffer};
use thiserror::Error;

use crate::{CONTROL_BYTES_MAX, DATA_BYTES_MAX, Id, VERSION};

/// Size of a header.
pub const HEADER_BYTES: usize = size_of::<ArchivedWireHeader>();
const _: () = assert!(HEADER_BYTES == 40 && align_of::<ArchivedWireHeader>() == 1);

/// What a payload is.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// One rkyv archive of a message.
    Control = 1,
    /// Standard output of a job; `offset` is its position in that stream.
    Stdout = 2,
    /// Standard error of a job; `offset` is its position in that stream.
    Stderr = 3,
    /// Part of an argument list ([`crate::join`]).
    Argv = 4,
    /// Part of an environment, `NAME=value` entries.
    Env = 5,
    /// Part of an environment whose values are never shown.
    SecretEnv = 6,
    /// Part of a file's contents.
    File = 7,
}

/// The header as it is on the wire: 16 + 8 + 8 + 4 + 1 + 1 + 2 bytes, no padding. Little-endian, so that the
/// bytes of an id stand there in their own order.
#[derive(Archive, Serialize)]
struct WireHeader {
    job: u128,
    offset: u64,
    time_ns: u64,
    len: u32,
    kind: Kind,
    version: u8,
    flags: u16,
}

/// A header, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: Kind,
    /// Payload size.
    pub len: u32,
    /// The job it belongs to; all zero where the stream says so.
    pub job: Id,
    /// Position of the first payload byte, for output.
    pub offset: u64,
    /// When it was captured, nanoseconds since the epoch, for output.
    pub time_ns: u64,
}

/// Why bytes are not a frame. The stream cannot go on after one of these.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The kind is none that this version knows.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// Another version than the one negotiated.
    #[error("frame version {0}, expected {VERSION}")]
    Version(u8),
    /// Reserved bits are set.
    #[error("reserved frame flags {0:#06x} are set")]
    Flags(u16),
    /// The length is beyond the limit of its kind.
    #[error("{kind:?} frame of {len} bytes, at most {max} are allowed")]
    TooLarge {
        /// Kind.
        kind: Kind,
        /// What the header says.
        len: u32,
        /// The limit.
        max: u32,
    },
    /// A control frame does not hold a valid archive of the expected message.
    #[error("malformed control message")]
    Control,
}

const KIND_AT: usize = 36;

impl Header {
    /// A header for `len` bytes of `kind` that belong to no particular job or position.
    #[must_use]
    pub const fn new(kind: Kind, len: u32) -> Self {
        Self {
            kind,
            len,
            job: [0; 16],
            offset: 0,
            time_ns: 0,
        }
    }

    /// Reads a header from exactly [`HEADER_BYTES`] bytes.
    ///
    /// # Errors
    /// [`FrameError`] when the kind, version, flags or length is not allowed.
    pub fn parse(raw: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let wire = rkyv::access::<ArchivedWireHeader, Failure>(raw)
            .map_err(|_| FrameError::Kind(raw[KIND_AT]))?;
        if wire.version != VERSION {
            return Err(FrameError::Version(wire.version));
        }
        if wire.flags != 0 {
            return Err(FrameError::Flags(wire.flags.to_native()));
        }
        let kind = match wire.kind {
            ArchivedKind::Control => Kind::Control,
            ArchivedKind::Stdout => Kind::Stdout,
            ArchivedKind::Stderr => Kind::Stderr,
            ArchivedKind::Argv => Kind::Argv,
            ArchivedKind::Env => Kind::Env,
            ArchivedKind::SecretEnv => Kind::SecretEnv,
            ArchivedKind::File => Kind::File,
        };
        let max = if kind == Kind::Control {
            CONTROL_BYTES_MAX
        } else {
            DATA_BYTES_MAX
        };
        let len = wire.len.to_native();
        if len > max {
            return Err(FrameError::TooLarge { kind, len, max });
        }
        Ok(Self {
            kind,
            len,
            job: wire.job.to_native().to_le_bytes(),
            offset: wire.offset.to_native(),
            time_ns: wire.time_ns.to_native(),
        })
    }
}

/// The 40 bytes of a header.
#[must_use]
pub fn header_bytes(header: &Header) -> [u8; HEADER_BYTES] {
    let wire = WireHeader {
        job: u128::from_le_bytes(header.job),
        offset: header.offset,
        time_ns: header.time_ns,
        len: header.len,
        kind: header.kind,
        version: VERSION,
        flags: 0,
    };
    let mut raw = [0u8; HEADER_BYTES];
    rkyv::api::high::to_bytes_in::<_, Failure>(&wire, Buffer::from(&mut raw[..]))
        .expect("a header has a fixed size and the buffer is exactly that");
    raw
}

/// One control message as a whole frame.
///
/// # Errors
/// [`FrameError::TooLarge`] when the archive is larger than [`CONTROL_BYTES_MAX`].
pub fn encode<T>(message: &T) -> Result<Bytes, FrameError>
where
    T: for<'a> Serialize<
        rkyv::api::high::HighSerializer<
            rkyv::util::AlignedVec,
            rkyv::ser::allocator::ArenaHandle<'a>,
            Failure,
        >,
    >,
{
    let archive = rkyv::to_bytes::<Failure>(message).map_err(|_| FrameError::Control)?;
    let len = u32::try_from(archive.len()).unwrap_or(u32::MAX);
    if len > CONTROL_BYTES_MAX {
        return Err(FrameError::TooLarge {
            kind: Kind::Control,
            len,
            max: CONTROL_BYTES_MAX,
        });
    }
    let mut out = BytesMut::with_capacity(HEADER_BYTES + archive.len());
    out.extend_from_slice(&header_bytes(&Header::new(Kind::Control, len)));
    out.extend_from_slice(&archive);
    Ok(out.freeze())
}

/// What [`Reader::next`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A whole control frame: its archive.
    Control(Bytes),
    /// The header of a data frame; its payload follows as [`Piece::Data`], also when it is empty.
    Begin(Header),
    /// Some payload of the frame that was begun, never empty; `left` bytes are still to come.
    Data {
        /// The bytes, a slice of a chunk that was fed.
        bytes: Bytes,
        /// What is still missing of this frame.
        left: u32,
    },
}

/// Turns chunks of a stream into frames. Data payload is never copied; a control archive only when it
/// straddles chunks. Holds at most one control frame beside what was fed.
#[derive(Debug, Default)]
pub struct Reader {
    chunk: Bytes,
    partial: BytesMut,
    state: Expect,
}

#[derive(Debug, Default, Clone, Copy)]
enum Expect {
    #[default]
    Header,
    Control(u32),
    Data(u32),
}

impl Reader {
    /// Gives the next chunk of the stream.
    ///
    /// # Panics
    /// If the last chunk was not used up: call [`Reader::next`] until it returns `None` first.
    pub fn feed(&mut self, chunk: Bytes) {
        assert!(
            self.chunk.is_empty(),
            "feed only after next() returned None"
        );
        self.chunk = chunk;
    }

    /// The next piece, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError`]; the stream is then out of step for good.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would end at the first None, this goes on"
    )]
    pub fn next(&mut self) -> Result<Option<Piece>, FrameError> {
        match self.state {
            Expect::Header => {
                let Some(raw) = self.take(HEADER_BYTES) else {
                    return Ok(None);
                };
                let raw: &[u8; HEADER_BYTES] =
                    raw[..].try_into().expect("take gives what was asked");
                let header = Header::parse(raw)?;
                if header.kind == Kind::Control {
                    self.state = Expect::Control(header.len);
                    return self.next();
                }
                self.state = if header.len == 0 {
                    Expect::Header
                } else {
                    Expect::Data(header.len)
                };
                Ok(Some(Piece::Begin(header)))
            }
            Expect::Control(len) => {
                let Some(archive) = self.take(len as usize) else {
                    return Ok(None);
                };
                self.state = Expect::Header;
                Ok(Some(Piece::Control(archive)))
            }
            Expect::Data(len) => {
                if self.chunk.is_empty() {
                    return Ok(None);
                }
                let take = self.chunk.len().min(len as usize);
                let bytes = self.chunk.split_to(take);
                let left = len - u32::try_from(take).expect("take is at most len");
                self.state = if left == 0 {
                    Expect::Header
                } else {
                    Expect::Data(left)
                };
                Ok(Some(Piece::Data { bytes, left }))
            }
        }
    }

    /// Whether the stream may end here: no frame is half read.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        matches!(self.state, Expect::Header) && self.partial.is_empty() && self.chunk.is_empty()
    }

    fn take(&mut self, want: usize) -> Option<Bytes> {
        if self.partial.is_empty() && self.chunk.len() >= want {
            return Some(self.chunk.split_to(want));
        }
        let missing = (want - self.partial.len()).min(self.chunk.len());
        self.partial.extend_from_slice(&self.chunk[..missing]);
        self.chunk.advance(missing);
        (self.partial.len() == want).then(|| self.partial.split().freeze())
    }
}
