//! What a daemon and a keeper that it did not start say to each other first.
//!
//! ```text
//! daemon ─► keeper  hello: the version I would speak
//! keeper ─► daemon  hello: the version I speak          another one: say hello again, or go
//! keeper ─► daemon  one job, with its descriptors; again for each; then the end
//! keeper ─► daemon  events, of each job that is not released from its birth on
//! ```
//! A hello is the same for ever, so that any two versions understand at least that they do not understand
//! each other. All else belongs to the version that was agreed on.

use crate::{
    job::JobId,
    sandbox::wire::{self, ID_AT, PAYLOAD_AT, VERSION, WireError},
};

/// Versions that this program speaks as a daemon, the one it prefers first.
pub const SPOKEN: [u8; 1] = [VERSION];
/// Length of a hello, bytes.
pub const HELLO_BYTES: usize = 8;
/// Length of an [`Inventory`], bytes: as an event, with a payload of eight.
pub const INVENTORY_BYTES: usize = PAYLOAD_AT + 8;

const MAGIC: [u8; 7] = *b"jobkeep";
/// Tags go on where those of events end, so that neither is ever taken for the other.
const TAG_JOB: u8 = 8;
const TAG_END: u8 = 9;

const _: () = assert!(SPOKEN[0] == VERSION && INVENTORY_BYTES != wire::EVENT_BYTES);

/// The version that one side would speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// See [`SPOKEN`].
    pub version: u8,
}

impl Hello {
    /// The message.
    #[must_use]
    pub fn encode(self) -> [u8; HELLO_BYTES] {
        let mut bytes = [self.version; HELLO_BYTES];
        bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
        bytes
    }

    /// Reads a message; `None` when it is none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HELLO_BYTES] = bytes.try_into().ok()?;
        bytes.starts_with(&MAGIC).then_some(Self {
            version: bytes[MAGIC.len()],
        })
    }
}

/// What a keeper knows of a job when it lists it. Events tell it once more, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeldState {
    /// Init's record of the command's execve has come.
    pub started: bool,
    /// Init's record of the command's end has come.
    pub exited: bool,
    /// Its PID namespace is empty.
    pub gone: bool,
    /// A step of the plan failed, or the keeper could not take it over.
    pub failed: bool,
    /// A daemon has said that its outcome is stored: no event of it will come.
    pub released: bool,
}

/// What comes along with a listed job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Passed {
    /// The read ends of its standard output and standard error, in this order.
    pub output: bool,
    /// The keeper's end of init's control socket, last.
    pub control: bool,
    /// The keeper has descriptors that it could not send now. A daemon that connects anew is sent them again.
    pub is_incomplete: bool,
}

impl Passed {
    /// How many descriptors that is.
    #[must_use]
    pub fn count(self) -> usize {
        2 * usize::from(self.output) + usize::from(self.control)
    }
}

/// One message of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inventory {
    /// A job that the keeper holds.
    Job {
        /// The job.
        id: JobId,
        /// Process id of its init, 0 when there never was one.
        pid: u32,
        /// What is known of it.
        state: HeldState,
        /// What comes along.
        passed: Passed,
    },
    /// All are listed, and none will be born any more: the spawner is gone.
    End {
        /// How many they were.
        jobs: u32,
    },
}

impl Inventory {
    /// The message.
    #[must_use]
    pub fn encode(&self) -> [u8; INVENTORY_BYTES] {
        let mut bytes = [0; INVENTORY_BYTES];
        match *self {
            Self::Job {
                id,
                pid,
                state,
                passed,
            } => {
                wire::head(&mut bytes, TAG_JOB, Some(id));
                wire::put(&mut bytes, PAYLOAD_AT, &pid.to_le_bytes());
                bytes[PAYLOAD_AT + 4] = bits([
                    state.started,
                    state.exited,
                    state.gone,
                    state.failed,
                    state.released,
                    passed.output,
                    passed.control,
                    passed.is_incomplete,
                ]);
            }
            Self::End { jobs } => {
                wire::head(&mut bytes, TAG_END, None);
                wire::put(&mut bytes, PAYLOAD_AT, &jobs.to_le_bytes());
            }
        }
        bytes
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`WireError`] when it is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() != INVENTORY_BYTES {
            return Err(WireError::Length(bytes.len()));
        }
        let (tag, id) = wire::open(bytes)?;
        let number = u32::from_le_bytes(wire::array(bytes, PAYLOAD_AT));
        match tag {
            TAG_JOB => {
                wire::zeros(&bytes[PAYLOAD_AT + 5..])?;
                let is_set = |bit: u8| bytes[PAYLOAD_AT + 4] & (1 << bit) != 0;
                Ok(Self::Job {
                    id,
                    pid: number,
                    state: HeldState {
                        started: is_set(0),
                        exited: is_set(1),
                        gone: is_set(2),
                        failed: is_set(3),
                        released: is_set(4),
                    },
                    passed: Passed {
                        output: is_set(5),
                        control: is_set(6),
                        is_incomplete: is_set(7),
                    },
                })
            }
            TAG_END => {
                wire::zeros(&bytes[ID_AT..PAYLOAD_AT])?;
                wire::zeros(&bytes[PAYLOAD_AT + 4..])?;
                Ok(Self::End { jobs: number })
            }
            other => Err(WireError::Tag(other)),
        }
    }
}

/// The first of `flags` is the lowest bit.
fn bits(flags: [bool; 8]) -> u8 {
    flags
        .iter()
        .rev()
        .fold(0, |byte, flag| byte << 1 | u8::from(*flag))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sandbox::wire::{KeeperCommand, KeeperEvent};

    fn messages() -> impl Strategy<Value = Inventory> {
        let job = (any::<[u8; 16]>(), any::<u32>(), any::<[bool; 8]>()).prop_map(
            |(
                id,
                pid,
                [
                    started,
                    exited,
                    gone,
                    failed,
                    released,
                    output,
                    control,
                    is_incomplete,
                ],
            )| {
                Inventory::Job {
                    id: JobId::from_bytes(id),
                    pid,
                    state: HeldState {
                        started,
                        exited,
                        gone,
                        failed,
                        released,
                    },
                    passed: Passed {
                        output,
                        control,
                        is_incomplete,
                    },
                }
            },
        );
        prop_oneof![job, any::<u32>().prop_map(|jobs| Inventory::End { jobs })]
    }

    proptest! {
        #[test]
        fn a_message_survives_the_wire(message in messages(), version in any::<u8>()) {
            prop_assert_eq!(Inventory::decode(&message.encode()), Ok(message));
            let hello = Hello { version };
            prop_assert_eq!(Hello::decode(&hello.encode()), Some(hello));
        }

        #[test]
        fn bytes_that_decode_are_the_only_ones_of_their_value(
            message in messages(), at in 0..INVENTORY_BYTES, byte in any::<u8>(),
        ) {
            let mut bytes = message.encode();
            bytes[at] = byte;
            if let Ok(read) = Inventory::decode(&bytes) {
                prop_assert_eq!(read.encode(), bytes);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused_and_no_message_is_one_of_another_kind(
            bytes in prop::collection::vec(any::<u8>(), 0..80), message in messages(),
        ) {
            let _ = (Inventory::decode(&bytes), Hello::decode(&bytes));
            let bytes = message.encode();
            prop_assert!(KeeperEvent::decode(&bytes).is_err() && KeeperCommand::decode(&bytes).is_err());
            prop_assert!(Hello::decode(&bytes).is_none());
        }
    }

    #[test]
    fn the_golden_bytes_of_a_hello_and_a_job_do_not_change() {
        assert_eq!(&Hello { version: 1 }.encode(), b"jobkeep\x01");
        let job = Inventory::Job {
            id: JobId::from_bytes([7; 16]),
            pid: 0x0102_0304,
            state: HeldState {
                started: true,
                ..HeldState::default()
            },
            passed: Passed {
                output: true,
                control: true,
                is_incomplete: false,
            },
        };
        let mut golden = vec![1, 8, 0, 0];
        golden.extend([7; 16]);
        golden.extend([4, 3, 2, 1, 0b0110_0001, 0, 0, 0]);
        assert_eq!(&job.encode()[..], &golden[..]);
    }

    #[test]
    fn another_version_tag_or_length_is_named() {
        let good = Inventory::End { jobs: 3 }.encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            Inventory::decode(&bytes).unwrap_err()
        };
        assert_eq!(with(0, 2), WireError::Version(2));
        assert_eq!(with(1, 7), WireError::Tag(7));
        assert_eq!(with(ID_AT, 1), WireError::Padding);
        assert_eq!(
            Inventory::decode(&good[1..]),
            Err(WireError::Length(INVENTORY_BYTES - 1))
        );
        assert_eq!(Hello::decode(b"jobkeep"), None);
        assert_eq!(Hello::decode(b"jobleep\x01"), None);
    }
}
