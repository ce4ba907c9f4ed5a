//! What daemon and maker say to each other: fixed-size, little-endian.
//!
//! A request is version, three zeros, first host id. An answer is version, step (0 = made), two zeros, first
//! host id, errno; one that was made brings the user and the network namespace, in this order.

use std::fmt;

use crate::sandbox::identity::IdRange;

const VERSION: u8 = 1;
pub(super) const REQUEST_BYTES: usize = 8;
pub(super) const ANSWER_BYTES: usize = 12;

/// What a maker can fail at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MakeStep {
    /// Clone the process that holds the new user namespace.
    CloneUser = 1,
    /// Forbid user namespaces below it.
    Seal = 2,
    /// Map user ids.
    MapUids = 3,
    /// Map group ids.
    MapGids = 4,
    /// Open the user namespace.
    OpenUser = 5,
    /// Make the network namespace.
    UnshareNet = 6,
    /// Bring `lo` up.
    LoopbackUp = 7,
    /// Open the ports below 1024.
    OpenPorts = 8,
    /// Open the network namespace.
    OpenNet = 9,
    /// Go back to the maker's own network namespace.
    GoHome = 10,
    /// Send the descriptors.
    Send = 11,
}

impl MakeStep {
    const ALL: [Self; 11] = [
        Self::CloneUser,
        Self::Seal,
        Self::MapUids,
        Self::MapGids,
        Self::OpenUser,
        Self::UnshareNet,
        Self::LoopbackUp,
        Self::OpenPorts,
        Self::OpenNet,
        Self::GoHome,
        Self::Send,
    ];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u8 == number)
    }
}

impl fmt::Display for MakeStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CloneUser => "make a user namespace",
            Self::Seal => "seal the user namespace",
            Self::MapUids => "map user ids",
            Self::MapGids => "map group ids",
            Self::OpenUser => "open the user namespace",
            Self::UnshareNet => "make a network namespace",
            Self::LoopbackUp => "bring lo up",
            Self::OpenPorts => "open the ports below 1024",
            Self::OpenNet => "open the network namespace",
            Self::GoHome => "return to the maker's network namespace",
            Self::Send => "send the namespaces",
        })
    }
}

pub(super) fn encode_request(ids: IdRange) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    bytes[0] = VERSION;
    bytes[4..8].copy_from_slice(&ids.base().to_le_bytes());
    bytes
}

pub(super) fn decode_request(bytes: &[u8]) -> Option<IdRange> {
    let bytes: &[u8; REQUEST_BYTES] = bytes.try_into().ok()?;
    let [VERSION, 0, 0, 0, base @ ..] = *bytes else { return None };
    IdRange::from_base(u32::from_le_bytes(base))
}

pub(super) fn encode_answer(ids: IdRange, failure: Option<(MakeStep, i32)>) -> [u8; ANSWER_BYTES] {
    let mut bytes = [0; ANSWER_BYTES];
    bytes[0] = VERSION;
    bytes[4..8].copy_from_slice(&ids.base().to_le_bytes());
    if let Some((step, errno)) = failure {
        bytes[1] = step as u8;
        bytes[8..12].copy_from_slice(&errno.to_le_bytes());
    }
    bytes
}

pub(super) fn decode_answer(bytes: &[u8]) -> Option<(IdRange, Option<(MakeStep, i32)>)> {
    let bytes: &[u8; ANSWER_BYTES] = bytes.try_into().ok()?;
    let [VERSION, step, 0, 0, b0, b1, b2, b3, errno @ ..] = *bytes else { return None };
    let ids = IdRange::from_base(u32::from_le_bytes([b0, b1, b2, b3]))?;
    match (step, i32::from_le_bytes(errno)) {
        (0, 0) => Some((ids, None)),
        (step, errno) => Some((ids, Some((MakeStep::from_number(step)?, errno)))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = IdRange> {
        (1..u32::from(u16::MAX)).prop_map(|number| IdRange::from_base(number << 16).unwrap())
    }

    proptest! {
        #[test]
        fn messages_survive_the_wire(ids in ranges(), step in 1..=11_u8, errno in any::<i32>()) {
            prop_assert_eq!(decode_request(&encode_request(ids)), Some(ids));
            prop_assert_eq!(decode_answer(&encode_answer(ids, None)), Some((ids, None)));
            let failure = Some((MakeStep::from_number(step).unwrap(), errno));
            prop_assert_eq!(decode_answer(&encode_answer(ids, failure)), Some((ids, failure)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..16)) {
            if let Some(ids) = decode_request(&bytes) {
                prop_assert_eq!(&encode_request(ids)[..], &bytes[..]);
            }
            if let Some((ids, failure)) = decode_answer(&bytes) {
                prop_assert_eq!(&encode_answer(ids, failure)[..], &bytes[..]);
            }
        }
    }
}
