//! Properties of the frame reader: any chunking gives the same frames, and no bytes make it lie or grow.

use bytes::Bytes;
use proptest::prelude::*;
use proto_rkyv::{
    CONTROL_BYTES_MAX, DATA_BYTES_MAX, FrameError, HEADER_BYTES, Header, Kind, Node, Piece, Reader,
    Reply, Request, Schedule, Submit, VERSION, encode, header_bytes,
};

const DATA_KINDS: [Kind; 6] = [
    Kind::Stdout,
    Kind::Stderr,
    Kind::Argv,
    Kind::Env,
    Kind::SecretEnv,
    Kind::File,
];

/// A frame with its payload in one piece, whatever the chunks were.
#[derive(Debug, Clone, PartialEq)]
enum Whole {
    Control(Bytes),
    Data(Header, Vec<u8>),
}

fn read_all(chunks: impl IntoIterator<Item = Bytes>) -> Result<(Vec<Whole>, bool), FrameError> {
    let mut reader = Reader::default();
    let mut frames = Vec::new();
    for chunk in chunks {
        reader.feed(chunk);
        while let Some(piece) = reader.next()? {
            match piece {
                Piece::Control(archive) => frames.push(Whole::Control(archive)),
                Piece::Begin(header) => frames.push(Whole::Data(header, Vec::new())),
                Piece::Data { bytes, left } => {
                    assert!(!bytes.is_empty(), "data pieces are never empty");
                    let Some(Whole::Data(header, payload)) = frames.last_mut() else {
                        panic!("data without a frame")
                    };
                    payload.extend_from_slice(&bytes);
                    assert_eq!(payload.len() + left as usize, header.len as usize);
                }
            }
        }
    }
    Ok((frames, reader.is_between_frames()))
}

fn bytes_of(frames: &[Whole]) -> Vec<u8> {
    let mut out = Vec::new();
    for frame in frames {
        match frame {
            Whole::Control(archive) => {
                let len = u32::try_from(archive.len()).expect("test frames are small");
                out.extend_from_slice(&header_bytes(&Header::new(Kind::Control, len)));
                out.extend_from_slice(archive);
            }
            Whole::Data(header, payload) => {
                out.extend_from_slice(&header_bytes(header));
                out.extend_from_slice(payload);
            }
        }
    }
    out
}

fn frame() -> impl Strategy<Value = Whole> {
    let payload = prop::collection::vec(any::<u8>(), 0..600);
    prop_oneof![
        payload
            .clone()
            .prop_map(|archive| Whole::Control(archive.into())),
        (
            prop::sample::select(&DATA_KINDS[..]),
            payload,
            any::<[u8; 16]>(),
            any::<u64>(),
            any::<u64>()
        )
            .prop_map(|(kind, payload, job, offset, time_ns)| {
                let len = u32::try_from(payload.len()).expect("test frames are small");
                Whole::Data(
                    Header {
                        kind,
                        len,
                        job,
                        offset,
                        time_ns,
                    },
                    payload,
                )
            }),
    ]
}

fn cut(mut bytes: Bytes, cuts: &[usize]) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    for cut in cuts.iter().cycle() {
        if bytes.is_empty() || cuts.is_empty() {
            break;
        }
        chunks.push(bytes.split_to((*cut).min(bytes.len())));
    }
    chunks.push(bytes);
    chunks
}

proptest! {
    #[test]
    fn frames_are_the_same_however_the_stream_is_cut(
        frames in prop::collection::vec(frame(), 0..12),
        cuts in prop::collection::vec(1usize..200, 1..20),
    ) {
        let bytes = Bytes::from(bytes_of(&frames));
        let (read, ended_well) = read_all(cut(bytes, &cuts)).unwrap();
        prop_assert_eq!(read, frames);
        prop_assert!(ended_well);
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_noticed(frames in prop::collection::vec(frame(), 1..4), at: prop::sample::Index) {
        let bytes = bytes_of(&frames);
        let at = at.index(bytes.len());
        let boundaries: Vec<usize> = (0..=frames.len()).map(|n| bytes_of(&frames[..n]).len()).collect();
        let (_, ended_well) = read_all([Bytes::copy_from_slice(&bytes[..at])]).unwrap();
        prop_assert_eq!(ended_well, boundaries.contains(&at));
    }

    #[test]
    fn a_header_is_read_back_as_it_was_written(
        kind in prop::sample::select(&DATA_KINDS[..]), len in 0..=DATA_BYTES_MAX,
        job: [u8; 16], offset: u64, time_ns: u64,
    ) {
        let header = Header { kind, len, job, offset, time_ns };
        prop_assert_eq!(Header::parse(&header_bytes(&header)), Ok(header));
    }

    #[test]
    fn any_forty_bytes_are_a_valid_header_or_an_error(raw in prop::array::uniform20(any::<[u8; 2]>())) {
        let raw: [u8; HEADER_BYTES] = raw.concat().try_into().unwrap();
        if let Ok(header) = Header::parse(&raw) {
            prop_assert_eq!(header_bytes(&header), raw);
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(archive in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Request::decode(&archive);
        let _ = Reply::decode(&archive);
        let _ = proto_rkyv::Upload::decode(&archive);
    }

    #[test]
    fn a_submit_is_read_back_as_it_was_written(
        schedule in prop::option::of(schedule()), priority: Option<i32>, key in prop::option::of(".{0,140}"), ms: Option<u64>,
    ) {
        let request = Request::Submit(Box::new(Submit {
            schedule,
            priority,
            idempotency_key: key,
            timeout_ms: ms,
            ..Submit::default()
        }));
        let frame = encode(&request).unwrap();
        prop_assert_eq!(Request::decode(&frame[HEADER_BYTES..]), Ok(request));
    }

    #[test]
    fn a_message_with_flipped_bits_is_a_message_or_an_error(at: prop::sample::Index, bit in 0u8..8) {
        let frame = encode(&Reply::Node(Box::new(node()))).unwrap();
        let mut archive = frame[HEADER_BYTES..].to_vec();
        let at = at.index(archive.len());
        archive[at] ^= 1 << bit;
        let _ = Reply::decode(&archive);
    }
}

fn schedule() -> impl Strategy<Value = Schedule> {
    prop_oneof![
        any::<u64>().prop_map(|ms| Schedule::After { ms }),
        any::<i64>().prop_map(|ns| Schedule::At { ns }),
        any::<u64>().prop_map(|ms| Schedule::Every { ms }),
        (".{0,40}", ".{0,40}").prop_map(|(expression, zone)| Schedule::Cron { expression, zone }),
    ]
}

fn node() -> Node {
    Node {
        version: "0.1.0".into(),
        instance: "0badcafe".into(),
        hostname: "a host with a long name".into(),
        kernel: "6.18.44".into(),
        shards: 2,
        jobs_live: 7,
        you: "alice".into(),
        role: "admin".into(),
        work_memory_bytes: 64 << 20,
        start_ns: (1, 2, 3),
    }
}

#[test]
fn both_sides_of_each_length_limit() {
    let check = |kind, max| {
        let at = Header::new(kind, max);
        assert_eq!(Header::parse(&header_bytes(&at)), Ok(at));
        let over = Header::new(kind, max + 1);
        assert_eq!(
            Header::parse(&header_bytes(&over)),
            Err(FrameError::TooLarge {
                kind,
                len: max + 1,
                max
            })
        );
        let absurd = Header::new(kind, u32::MAX);
        assert_eq!(
            Header::parse(&header_bytes(&absurd)),
            Err(FrameError::TooLarge {
                kind,
                len: u32::MAX,
                max
            })
        );
    };
    check(Kind::Control, CONTROL_BYTES_MAX);
    DATA_KINDS
        .into_iter()
        .for_each(|kind| check(kind, DATA_BYTES_MAX));
}

#[test]
fn unknown_kinds_versions_and_flags_are_named() {
    let good = header_bytes(&Header::new(Kind::File, 1));
    let with = |at: usize, value: u8| {
        let mut raw = good;
        raw[at] = value;
        Header::parse(&raw)
    };
    for kind in [0, 8, 255] {
        assert_eq!(with(36, kind), Err(FrameError::Kind(kind)));
    }
    for version in [0, VERSION + 1, 255] {
        assert_eq!(with(37, version), Err(FrameError::Version(version)));
    }
    assert_eq!(with(38, 1), Err(FrameError::Flags(1)));
    assert_eq!(with(39, 0x80), Err(FrameError::Flags(0x8000)));
}

#[test]
fn a_message_beyond_the_limit_is_not_encoded() {
    let reply = |len| {
        Reply::Refused(proto_rkyv::Refusal {
            code: proto_rkyv::RefusalCode::Failed,
            message: "x".repeat(len),
            hint: None,
        })
    };
    assert!(encode(&reply(CONTROL_BYTES_MAX as usize - 200)).is_ok());
    assert!(matches!(
        encode(&reply(CONTROL_BYTES_MAX as usize)),
        Err(FrameError::TooLarge { .. })
    ));
}

#[test]
fn a_lying_length_makes_the_reader_hold_only_what_came() {
    let mut reader = Reader::default();
    reader.feed(Bytes::copy_from_slice(&header_bytes(&Header::new(
        Kind::Control,
        CONTROL_BYTES_MAX,
    ))));
    assert_eq!(reader.next(), Ok(None));
    reader.feed(Bytes::from_static(b"only this"));
    assert_eq!(reader.next(), Ok(None));
    assert!(!reader.is_between_frames());
}
