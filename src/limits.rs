//! Every bound, with its unit and its reason, and how bounds relate.

use std::time::Duration;

// ---- jobs -------------------------------------------------------------------------------------------

/// Argument list and environment of one submit together, bytes. The kernel's own limit is lower for most.
pub const SUBMIT_BYTES_MAX: usize = 4 << 20;
/// One argument or variable, bytes: MAX_ARG_STRLEN of execve(2), with its NUL.
pub const ARGUMENT_BYTES_MAX: usize = 128 << 10;
/// Ids that a job's user namespace maps, from 0.
pub const IDS_PER_JOB: u32 = 65_536;
/// Default time between SIGTERM and SIGKILL.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// Longest grace that may be asked for.
pub const GRACE_MAX: Duration = Duration::from_secs(3_600);
/// Longest timeout that may be asked for: a year.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(366 * 24 * 3_600);
/// Ended jobs a daemon remembers; the oldest is forgotten, with its output, when there are more.
pub const HISTORY_JOBS_DEFAULT: usize = 10_000;
/// Jobs of one shard whose sandbox is being made at once; more wait their turn in the order of arrival.
pub const STARTS_IN_FLIGHT_MAX: usize = 64;

// ---- helper processes -------------------------------------------------------------------------------

/// A spawner that has not answered for so long is stuck in a step and replaced.
pub const SPAWNER_STUCK: Duration = Duration::from_secs(4);
/// Fresh namespace pairs a shard keeps ready.
pub const NAMESPACES_READY: usize = 64;

// ---- log --------------------------------------------------------------------------------------------

/// Output of one job that is stored, bytes, unless configured.
pub const LOG_BYTES_DEFAULT: u64 = 1 << 30;
/// Free space of the base directory's file system that is never used up, bytes, unless configured.
pub const DISK_RESERVE_DEFAULT: u64 = 1 << 30;

// ---- front ------------------------------------------------------------------------------------------

/// Concurrent request streams of one connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 8_192;
/// Requests of one shard that are served at once; more are refused as busy. Twice what a full host of idle,
/// attached jobs needs.
pub const REQUESTS_PER_SHARD_MAX: usize = 20_000;
/// Bytes that all requests of one shard may hold while they come in or while their answer waits for the peer:
/// argument lists, environments, lists of jobs. More are refused as busy.
pub const REQUEST_BYTES_PER_SHARD_MAX: usize = 256 << 20;
/// What one job in a list is counted as, bytes.
pub const LISTED_JOB_BYTES: usize = 1 << 10;
/// Turns of the endpoint's loop, with traffic that never ends, before a closing server closes all the same.
pub const CLOSING_TURNS_MAX: u32 = 64;
/// Connections of one shard. With the windows below it bounds what peers with a certificate can make the
/// daemon hold; peers without one never get that far.
pub const CONNECTIONS_PER_SHARD_MAX: usize = 1_024;
/// Unfinished handshakes of one shard; further attempts are refused.
pub const HANDSHAKES_MAX: usize = 1_024;
/// From so many unfinished handshakes on a peer must first prove its address (Retry), which costs it a round
/// trip and us no memory.
pub const HANDSHAKES_BEFORE_RETRY: usize = 256;
/// A handshake that takes longer is given up.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent connection is given up after so long. Clients that wait for something send a sign each second.
pub const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(30);
/// A request stream must have brought its first frame by then.
pub const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that owes us bytes (argument list, upload) may be silent on that stream for so long.
pub const STREAM_STALL_MAX: Duration = Duration::from_secs(60);
/// Bytes a peer may have on the way to us on one stream: 1 GB/s at 1 ms, and 8 times that over loopback.
pub const STREAM_RECEIVE_WINDOW_BYTES: u32 = 1_310_720;
/// The same for all streams of a connection, so that a dozen stalled uploads leave room for requests.
pub const CONNECTION_RECEIVE_WINDOW_BYTES: u32 = 16 << 20;
/// Bytes of a connection that are sent and not yet acknowledged, or wait to be sent.
pub const CONNECTION_SEND_WINDOW_BYTES: u64 = 2 << 20;
/// Largest datagram tried on a network, bytes: Ethernet less IPv6 and UDP headers.
pub const MTU_NETWORK_BYTES: u16 = 1_452;
/// Largest datagram tried on loopback, bytes: the largest that UDP over IPv4 carries.
pub const MTU_LOOPBACK_BYTES: u16 = 65_507;
/// Most bytes of one send with segmentation offload; the kernel allows no more.
pub const SEND_BATCH_BYTES_MAX: usize = 65_507;
/// Most segments of one send; kernels before 6.9 allow no more.
pub const SEND_BATCH_SEGMENTS_MAX: usize = 64;
/// Sends of one connection before the others get their turn.
pub const SEND_BURST: usize = 4;
/// Receive batches of a shard before it sends.
pub const RECEIVE_BURST: usize = 4;
/// Kernel buffers of each UDP socket, bytes: loopback has no back-pressure and the default loses packets.
pub const UDP_BUFFER_BYTES: usize = 4 << 20;
/// Datagrams from other shards that wait to be looked at; more are lost, as datagrams may be.
pub const FORWARDED_DATAGRAMS_MAX: usize = 1_024;
/// Stateless resets are at least so far apart: clients of a killed daemon learn it at once, a flood does not
/// echo.
pub const RESET_INTERVAL: Duration = Duration::from_millis(1);
/// How long a bind is tried again: after a crash the kernel frees the port some milliseconds late.
pub const BIND_RETRY: Duration = Duration::from_secs(1);
/// Small pieces of output are copied together up to so many bytes, because each piece costs a scan in QUIC.
pub const OUTPUT_SLAB_BYTES_MAX: usize = 32 << 10;
/// Pieces of output from this size on are passed on as they are.
pub const OUTPUT_COPY_BYTES_MAX: usize = 8 << 10;
/// Output handed to QUIC at once, bytes.
pub const OUTPUT_BATCH_BYTES_MAX: usize = 256 << 10;
/// Jobs in one list.
pub const LIST_JOBS_MAX: usize = 10_000;

// ---- requests ---------------------------------------------------------------------------------------

/// Arguments and variables of one submit: more would not fit the kernel's own limit at nine bytes each.
pub const SUBMIT_ENTRIES_MAX: usize = 262_144;
/// Name of a job, bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Labels of a job.
pub const LABELS_MAX: usize = 32;
/// Key of a label, bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 64;
/// Value of a label, bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 256;
/// Smallest `/work`: a file system needs some room for itself.
pub const WORK_BYTES_MIN: u64 = 1 << 20;
/// Largest `/work`.
pub const WORK_BYTES_MAX: u64 = 1 << 40;
/// A path, bytes: PATH_MAX with its NUL.
pub const PATH_BYTES_MAX: usize = 4_095;
/// One component of a path, bytes: NAME_MAX.
pub const PATH_COMPONENT_BYTES_MAX: usize = 255;
/// Entries of one upload. Each costs an inode of the job's `/work`.
pub const UPLOAD_ENTRIES_MAX: u64 = 1 << 20;
/// Owner's name in a certificate, bytes.
pub const OWNER_BYTES_MAX: usize = 128;

const _: () = assert!(ARGUMENT_BYTES_MAX < SUBMIT_BYTES_MAX);
const _: () = assert!(16 * SUBMIT_BYTES_MAX <= REQUEST_BYTES_PER_SHARD_MAX);
const _: () = assert!(16 * LIST_JOBS_MAX * LISTED_JOB_BYTES <= REQUEST_BYTES_PER_SHARD_MAX);
const _: () = assert!(HANDSHAKES_BEFORE_RETRY < HANDSHAKES_MAX);
const _: () = assert!(8 * STREAM_RECEIVE_WINDOW_BYTES <= CONNECTION_RECEIVE_WINDOW_BYTES);
const _: () = assert!(OUTPUT_COPY_BYTES_MAX < OUTPUT_SLAB_BYTES_MAX && OUTPUT_SLAB_BYTES_MAX <= OUTPUT_BATCH_BYTES_MAX);
const _: () = assert!(FIRST_FRAME_TIMEOUT.as_secs() < CONNECTION_IDLE_MAX.as_secs());
// One job with everything at its largest is one control frame of 64 KiB.
const _: () = assert!(
    NAME_BYTES_MAX + LABELS_MAX * (LABEL_KEY_BYTES_MAX + LABEL_VALUE_BYTES_MAX + 16) + PATH_BYTES_MAX + 2 * OWNER_BYTES_MAX
        < 32 << 10
);
