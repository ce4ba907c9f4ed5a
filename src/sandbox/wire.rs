//! The messages between a daemon and a keeper, and the records that a job's init writes.
//!
//! Fixed size, little-endian, no padding that is not zero: one byte string per value and one value per byte
//! string. The version stands in front, because a keeper outlives the daemon that started it.

use thiserror::Error;

use crate::{job::JobId, sandbox::init::record::Record};

/// Version of everything a daemon and a keeper say to each other but the hello, which is the same for ever.
pub const VERSION: u8 = 1;
/// Length of a [`KeeperEvent`], bytes: version, tag, two zeros, job id, 32 bytes of payload.
pub const EVENT_BYTES: usize = 52;
/// Length of a [`KeeperCommand`], bytes: version, tag, two zeros, job id, signal number.
pub const COMMAND_BYTES: usize = 24;
/// Length of a started record, bytes.
pub const STARTED_BYTES: usize = 16;
/// Length of an exited record, bytes.
pub const EXITED_BYTES: usize = 32;
/// Step of a [`KeeperEvent::StepFailed`] that no plan has: the keeper could not take the job over (it is out
/// of descriptors). The job's processes may still be there: kill its cgroup.
pub const STEP_TAKE_OVER: u16 = u16::MAX;
/// The message that lets init start the command.
pub const GO: &[u8] = b"G";
/// First byte of the message that asks init to pass a signal on; the second is the signal's number.
pub const SIGNAL: u8 = b'S';

pub(super) const ID_AT: usize = 4;
pub(super) const PAYLOAD_AT: usize = 20;

const _: () = assert!(PAYLOAD_AT + EXITED_BYTES == EVENT_BYTES && PAYLOAD_AT + 4 == COMMAND_BYTES);

/// Why bytes are no message.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum WireError {
    /// Another length than the type has.
    #[error("message of {0} bytes")]
    Length(usize),
    /// A version this program does not speak.
    #[error("message of version {0}, not {VERSION}")]
    Version(u8),
    /// No message has this tag.
    #[error("message with tag {0}")]
    Tag(u8),
    /// Bytes that mean nothing are not zero.
    #[error("message with bytes that mean nothing")]
    Padding,
    /// No such signal.
    #[error("signal number {0}")]
    Signal(i32),
}

/// Written by init once the command's execve has succeeded or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartedRecord {
    /// What failed, as init numbers its steps; 0 when nothing did.
    pub step: u8,
    /// Its errno; 0 when nothing failed.
    pub errno: i32,
    /// When, on CLOCK_MONOTONIC, nanoseconds.
    pub mono_ns: u64,
}

/// Written by init when the command has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitedRecord {
    /// As waitpid(2) encodes it.
    pub wait_status: i32,
    /// User time of the command and what it waited for, microseconds.
    pub utime_us: u64,
    /// System time of the same, microseconds.
    pub stime_us: u64,
    /// Largest resident set of one of those processes, KiB.
    pub maxrss_kb: u64,
}

/// Either record, as init writes it on its control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitRecord {
    /// Tag 1.
    Started(StartedRecord),
    /// Tag 2.
    Exited(ExitedRecord),
}

impl StartedRecord {
    /// As init writes it.
    #[must_use]
    pub fn encode(&self) -> [u8; STARTED_BYTES] {
        let mut bytes = [0; STARTED_BYTES];
        (bytes[0], bytes[1]) = (1, self.step);
        bytes[4..8].copy_from_slice(&self.errno.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.mono_ns.to_le_bytes());
        bytes
    }
}

impl ExitedRecord {
    /// As init writes it.
    #[must_use]
    pub fn encode(&self) -> [u8; EXITED_BYTES] {
        let mut bytes = [0; EXITED_BYTES];
        bytes[0] = 2;
        bytes[4..8].copy_from_slice(&self.wait_status.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.utime_us.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.stime_us.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.maxrss_kb.to_le_bytes());
        bytes
    }
}

/// As init wrote it; when it saw the end is not passed on, the keeper's word of that comes as soon.
impl From<Record> for InitRecord {
    fn from(record: Record) -> Self {
        match record {
            Record::Started {
                step,
                errno,
                mono_ns,
            } => Self::Started(StartedRecord {
                step,
                errno,
                mono_ns,
            }),
            Record::Exited {
                wait_status,
                utime_us,
                stime_us,
                maxrss_kb,
                ..
            } => Self::Exited(ExitedRecord {
                wait_status,
                utime_us,
                stime_us,
                maxrss_kb,
            }),
        }
    }
}

impl InitRecord {
    /// Reads a record as a keeper's event carries it.
    ///
    /// # Errors
    /// [`WireError`] when it is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        match (bytes.first(), bytes.len()) {
            (Some(1), STARTED_BYTES) => {
                zeros(&bytes[2..4])?;
                Ok(Self::Started(StartedRecord {
                    step: bytes[1],
                    errno: i32::from_le_bytes(array(bytes, 4)),
                    mono_ns: u64::from_le_bytes(array(bytes, 8)),
                }))
            }
            (Some(2), EXITED_BYTES) => {
                zeros(&bytes[1..4])?;
                Ok(Self::Exited(ExitedRecord {
                    wait_status: i32::from_le_bytes(array(bytes, 4)),
                    utime_us: u64::from_le_bytes(array(bytes, 8)),
                    stime_us: u64::from_le_bytes(array(bytes, 16)),
                    maxrss_kb: u64::from_le_bytes(array(bytes, 24)),
                }))
            }
            (None | Some(1 | 2), length) => Err(WireError::Length(length)),
            (Some(tag), _) => Err(WireError::Tag(*tag)),
        }
    }
}

/// What a keeper tells its daemon. For one job they come in this order, each at most once; `Gone` comes
/// for every job and is the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeeperEvent {
    /// The keeper is confined and listens. The first of all events, once.
    Ready,
    /// The job's PID 1 exists and the keeper holds its descriptors.
    Born {
        /// The job.
        id: JobId,
        /// Process id of its init, for printing.
        pid: u32,
    },
    /// A step of the plan failed; nothing of the job will run.
    StepFailed {
        /// The job.
        id: JobId,
        /// The step's tag, or [`STEP_TAKE_OVER`].
        step: u16,
        /// The step's errno.
        errno: i32,
    },
    /// Init's record of the command's execve.
    Started {
        /// The job.
        id: JobId,
        /// The record.
        record: StartedRecord,
    },
    /// Init's record of the command's end.
    Exited {
        /// The job.
        id: JobId,
        /// The record.
        record: ExitedRecord,
    },
    /// The PID namespace of the job is empty and its init is reaped; every record has been forwarded.
    Gone {
        /// The job.
        id: JobId,
    },
    /// The spawner has closed its socket, or the daemon said that it was killed: it has ended. Births that it
    /// had sent come before this.
    SpawnerGone,
}

impl KeeperEvent {
    /// The message.
    #[must_use]
    pub fn encode(&self) -> [u8; EVENT_BYTES] {
        let mut bytes = [0; EVENT_BYTES];
        let (tag, id) = match *self {
            Self::Ready => (1, None),
            Self::Born { id, pid } => {
                put(&mut bytes, PAYLOAD_AT, &pid.to_le_bytes());
                (2, Some(id))
            }
            Self::StepFailed { id, step, errno } => {
                put(&mut bytes, PAYLOAD_AT, &step.to_le_bytes());
                put(&mut bytes, PAYLOAD_AT + 4, &errno.to_le_bytes());
                (3, Some(id))
            }
            Self::Started { id, record } => {
                put(&mut bytes, PAYLOAD_AT, &record.encode());
                (4, Some(id))
            }
            Self::Exited { id, record } => {
                put(&mut bytes, PAYLOAD_AT, &record.encode());
                (5, Some(id))
            }
            Self::Gone { id } => (6, Some(id)),
            Self::SpawnerGone => (7, None),
        };
        head(&mut bytes, tag, id);
        bytes
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`WireError`] when it is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() != EVENT_BYTES {
            return Err(WireError::Length(bytes.len()));
        }
        let (tag, id) = open(bytes)?;
        let payload = &bytes[PAYLOAD_AT..];
        let (event, used) = match tag {
            1 => (Self::Ready, 0),
            2 => (
                Self::Born {
                    id,
                    pid: u32::from_le_bytes(array(payload, 0)),
                },
                4,
            ),
            3 => {
                zeros(&payload[2..4])?;
                let step = u16::from_le_bytes(array(payload, 0));
                (
                    Self::StepFailed {
                        id,
                        step,
                        errno: i32::from_le_bytes(array(payload, 4)),
                    },
                    8,
                )
            }
            4 => match InitRecord::decode(&payload[..STARTED_BYTES])? {
                InitRecord::Started(record) => (Self::Started { id, record }, STARTED_BYTES),
                InitRecord::Exited(_) => return Err(WireError::Tag(tag)),
            },
            5 => match InitRecord::decode(payload)? {
                InitRecord::Exited(record) => (Self::Exited { id, record }, EXITED_BYTES),
                InitRecord::Started(_) => return Err(WireError::Tag(tag)),
            },
            6 => (Self::Gone { id }, 0),
            7 => (Self::SpawnerGone, 0),
            other => return Err(WireError::Tag(other)),
        };
        zeros(&payload[used..])?;
        if matches!(event, Self::Ready | Self::SpawnerGone) {
            zeros(&bytes[ID_AT..PAYLOAD_AT])?;
        }
        Ok(event)
    }
}

/// What a daemon tells a keeper. One that names a job the keeper does not have is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeeperCommand {
    /// Ask init to send the command a signal.
    Signal {
        /// The job.
        id: JobId,
        /// Signal number, 1 to 64.
        signo: i32,
    },
    /// The outcome is stored: close all that is held of the job.
    Release {
        /// The job.
        id: JobId,
    },
    /// End as soon as no job is held.
    Exit,
    /// The spawner was killed and sends no more. What it had sent is still to be heard, and then that it is
    /// gone: its socket may stay open in a child of it that is stuck.
    SpawnerKilled,
}

impl KeeperCommand {
    /// The message.
    #[must_use]
    pub fn encode(&self) -> [u8; COMMAND_BYTES] {
        let mut bytes = [0; COMMAND_BYTES];
        let (tag, id) = match *self {
            Self::Signal { id, signo } => {
                put(&mut bytes, PAYLOAD_AT, &signo.to_le_bytes());
                (1, Some(id))
            }
            Self::Release { id } => (2, Some(id)),
            Self::Exit => (3, None),
            Self::SpawnerKilled => (4, None),
        };
        head(&mut bytes, tag, id);
        bytes
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`WireError`] when it is none, or names no signal.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() != COMMAND_BYTES {
            return Err(WireError::Length(bytes.len()));
        }
        let (tag, id) = open(bytes)?;
        let signo = i32::from_le_bytes(array(bytes, PAYLOAD_AT));
        match (tag, signo) {
            (1, 1..=64) => Ok(Self::Signal { id, signo }),
            (1, _) => Err(WireError::Signal(signo)),
            (2, 0) => Ok(Self::Release { id }),
            (3 | 4, 0) => {
                zeros(&bytes[ID_AT..PAYLOAD_AT])?;
                Ok(if tag == 3 {
                    Self::Exit
                } else {
                    Self::SpawnerKilled
                })
            }
            (2..=4, _) => Err(WireError::Padding),
            (other, _) => Err(WireError::Tag(other)),
        }
    }
}

pub(super) fn head(bytes: &mut [u8], tag: u8, id: Option<JobId>) {
    (bytes[0], bytes[1]) = (VERSION, tag);
    if let Some(id) = id {
        put(bytes, ID_AT, &id.to_bytes());
    }
}

pub(super) fn open(bytes: &[u8]) -> Result<(u8, JobId), WireError> {
    if bytes[0] != VERSION {
        return Err(WireError::Version(bytes[0]));
    }
    zeros(&bytes[2..ID_AT])?;
    Ok((bytes[1], JobId::from_bytes(array(bytes, ID_AT))))
}

pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}

pub(super) fn zeros(bytes: &[u8]) -> Result<(), WireError> {
    if bytes.iter().all(|byte| *byte == 0) {
        Ok(())
    } else {
        Err(WireError::Padding)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids() -> impl Strategy<Value = JobId> {
        any::<[u8; 16]>().prop_map(JobId::from_bytes)
    }

    fn started() -> impl Strategy<Value = StartedRecord> {
        (any::<u8>(), any::<i32>(), any::<u64>()).prop_map(|(step, errno, mono_ns)| StartedRecord {
            step,
            errno,
            mono_ns,
        })
    }

    fn exited() -> impl Strategy<Value = ExitedRecord> {
        (any::<i32>(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
            |(wait_status, utime_us, stime_us, maxrss_kb)| ExitedRecord {
                wait_status,
                utime_us,
                stime_us,
                maxrss_kb,
            },
        )
    }

    fn events() -> impl Strategy<Value = KeeperEvent> {
        prop_oneof![
            Just(KeeperEvent::Ready),
            (ids(), any::<u32>()).prop_map(|(id, pid)| KeeperEvent::Born { id, pid }),
            (ids(), any::<u16>(), any::<i32>())
                .prop_map(|(id, step, errno)| KeeperEvent::StepFailed { id, step, errno }),
            (ids(), started()).prop_map(|(id, record)| KeeperEvent::Started { id, record }),
            (ids(), exited()).prop_map(|(id, record)| KeeperEvent::Exited { id, record }),
            ids().prop_map(|id| KeeperEvent::Gone { id }),
            Just(KeeperEvent::SpawnerGone),
        ]
    }

    fn commands() -> impl Strategy<Value = KeeperCommand> {
        prop_oneof![
            (ids(), 1..=64_i32).prop_map(|(id, signo)| KeeperCommand::Signal { id, signo }),
            ids().prop_map(|id| KeeperCommand::Release { id }),
            Just(KeeperCommand::Exit),
            Just(KeeperCommand::SpawnerKilled),
        ]
    }

    proptest! {
        #[test]
        fn an_event_survives_the_wire(event in events()) {
            prop_assert_eq!(KeeperEvent::decode(&event.encode()), Ok(event));
        }

        #[test]
        fn a_command_survives_the_wire(command in commands()) {
            prop_assert_eq!(KeeperCommand::decode(&command.encode()), Ok(command));
        }

        #[test]
        fn a_record_survives_the_wire(one in started(), two in exited()) {
            prop_assert_eq!(InitRecord::decode(&one.encode()), Ok(InitRecord::Started(one)));
            prop_assert_eq!(InitRecord::decode(&two.encode()), Ok(InitRecord::Exited(two)));
        }

        #[test]
        fn bytes_that_decode_are_the_only_ones_of_their_value(
            event in events(), at in 0..EVENT_BYTES, byte in any::<u8>(),
        ) {
            let mut bytes = event.encode();
            bytes[at] = byte;
            if let Ok(read) = KeeperEvent::decode(&bytes) {
                prop_assert_eq!(read.encode(), bytes);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = KeeperEvent::decode(&bytes);
            let _ = InitRecord::decode(&bytes);
            if let Ok(read) = KeeperCommand::decode(&bytes) {
                prop_assert_eq!(&read.encode()[..], &bytes[..]);
            }
        }
    }

    #[test]
    fn another_version_length_tag_or_signal_is_named() {
        let id = JobId::from_bytes([7; 16]);
        let good = KeeperCommand::Signal { id, signo: 15 }.encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            KeeperCommand::decode(&bytes).unwrap_err()
        };
        assert_eq!(
            KeeperCommand::decode(&good[1..]),
            Err(WireError::Length(COMMAND_BYTES - 1))
        );
        assert_eq!(with(0, 2), WireError::Version(2));
        assert_eq!(with(1, 9), WireError::Tag(9));
        assert_eq!(with(3, 1), WireError::Padding);
        assert_eq!(with(PAYLOAD_AT, 65), WireError::Signal(65));
        assert_eq!(with(PAYLOAD_AT, 0), WireError::Signal(0));
        assert_eq!(InitRecord::decode(&[]), Err(WireError::Length(0)));
        assert_eq!(InitRecord::decode(&[9; 16]), Err(WireError::Tag(9)));
    }
}
