//! Application error codes of QUIC: why a server closes a connection, why either side gives up a stream.
//!
//! The reason text beside a connection code is for people; programs go by the code.

/// The server shuts down. Jobs go on; connect again later.
pub const CONNECTION_SHUTDOWN: u32 = 1;
/// The certificate names no role or no owner, so nothing could be permitted.
pub const CONNECTION_NOT_PERMITTED: u32 = 2;
/// The handshake took too long.
pub const CONNECTION_TOO_SLOW: u32 = 3;

/// Nothing went wrong; the rest is not needed.
pub const STREAM_DONE: u32 = 0;
/// The side that sends this has given the request up.
pub const STREAM_CANCELED: u32 = 1;
/// What came is not a sequence of frames that answers to the protocol.
pub const STREAM_MALFORMED: u32 = 2;
/// The other side took too long.
pub const STREAM_STALLED: u32 = 3;
/// The request was refused; the reply on the same stream says why.
pub const STREAM_REFUSED: u32 = 4;
