//! Where a reader of a job's output is, so that it can go on there over another connection. Pure.
//!
//! A server is asked for output from a *position*: a count of bytes of the selected streams in the order of their
//! capture. A reader that began at a known position, or reads one stream, or has had bytes of both, knows its
//! position exactly. One that began at the last lines or at a time and has had bytes of one stream only does not:
//! it asks for output from before the last byte that it had, and throws away everything up to that byte. The order
//! of capture is the same for every reader, so what follows is what it has not had.

use proto_rkyv::{JobRef, Log, Streams};

use crate::stream::{Output, Stream};

/// The place of one reader.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// What was asked for at first.
    ask: Log,
    /// Position of the next byte, when it is known.
    position: Option<u64>,
    /// Of each stream, the end of what was had.
    ends: [Option<u64>; 2],
    /// The stream of the last byte that was had, and its end there.
    last: Option<(Stream, u64)>,
    /// Everything up to this was had, and comes again.
    until: Option<(Stream, u64)>,
}

const fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

impl Place {
    /// The place of a reader that asks for `ask`.
    pub(crate) fn new(ask: Log) -> Self {
        let is_known = ask.tail_lines.is_none() && ask.since_ns.is_none();
        Self {
            position: is_known.then_some(ask.offset),
            ask,
            ends: [None; 2],
            last: None,
            until: None,
        }
    }

    /// Whose output it is, in full: a prefix may mean several jobs when it is asked for again.
    pub(crate) fn of_job(&mut self, job: JobRef) {
        self.ask.job = job;
    }

    /// What to ask for over another connection. Nothing that was asked for before may be given to
    /// [`Place::take`] afterwards.
    pub(crate) fn resume(&mut self) -> Log {
        let Some((_, end)) = self.last else {
            return self.ask.clone();
        };
        self.until = self.last.filter(|_| self.position.is_none());
        Log {
            // The last byte that was had is at or behind this, so it comes again and can be recognised.
            offset: self.position.unwrap_or(end.saturating_sub(1)),
            tail_lines: None,
            ..self.ask.clone()
        }
    }

    /// What of some output was not had yet.
    pub(crate) fn take(&mut self, mut output: Output) -> Option<Output> {
        let end = output.offset.saturating_add(output.bytes.len() as u64);
        if let Some((stream, had)) = self.until {
            if output.stream != stream || end < had {
                let known = &mut self.ends[index(output.stream)];
                *known = Some(known.map_or(end, |known| known.max(end)));
                return None;
            }
            self.until = None;
        }
        let had = self.ends[index(output.stream)].unwrap_or(0);
        if output.offset < had {
            let skipped = usize::try_from(had - output.offset).unwrap_or(usize::MAX);
            if skipped >= output.bytes.len() {
                return None;
            }
            output.bytes = output.bytes.slice(skipped..);
            output.offset = had;
        }
        self.had(&output, end);
        Some(output)
    }

    fn had(&mut self, output: &Output, end: u64) {
        self.ends[index(output.stream)] = Some(end);
        self.last = Some((output.stream, end));
        let count = output.bytes.len() as u64;
        self.position = match (self.ask.streams, self.ends) {
            (Streams::Stdout | Streams::Stderr, _) => Some(end),
            (Streams::All, [Some(stdout), Some(stderr)]) => Some(stdout.saturating_add(stderr)),
            (Streams::All, _) => self.position.map(|position| position.saturating_add(count)),
        };
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    /// Captured output: records of a stream each, in order.
    type Captured = Vec<(Stream, Vec<u8>, u64)>;

    fn ask(streams: Streams) -> Log {
        Log {
            job: "1234".into(),
            streams,
            follow: true,
            offset: 0,
            tail_lines: None,
            since_ns: None,
        }
    }

    fn is_wanted(streams: Streams, stream: Stream) -> bool {
        match streams {
            Streams::All => true,
            Streams::Stdout => stream == Stream::Stdout,
            Streams::Stderr => stream == Stream::Stderr,
        }
    }

    /// What a server sends for `log`, as pieces of at most `piece` bytes. `tail_lines` is a count of records here,
    /// and times are whole nanoseconds.
    fn served(captured: &Captured, log: &Log, piece: usize) -> Vec<Output> {
        let (mut ends, mut position, mut outputs) = ([0u64; 2], 0u64, Vec::new());
        let wanted = captured
            .iter()
            .filter(|record| is_wanted(log.streams, record.0))
            .count();
        let skipped = log.tail_lines.map_or(0, |lines| {
            wanted.saturating_sub(usize::try_from(lines).unwrap())
        });
        let mut number = 0;
        for (stream, bytes, time_ns) in captured {
            let mut offset = ends[index(*stream)];
            ends[index(*stream)] += bytes.len() as u64;
            if !is_wanted(log.streams, *stream) {
                continue;
            }
            number += 1;
            let start = position;
            position += bytes.len() as u64;
            let is_late = log
                .since_ns
                .is_some_and(|since| i64::try_from(*time_ns).unwrap() < since);
            if number <= skipped || is_late || position <= log.offset {
                continue;
            }
            let cut = log.offset.saturating_sub(start);
            offset += cut;
            for part in bytes[usize::try_from(cut).unwrap()..].chunks(piece) {
                outputs.push(Output {
                    stream: *stream,
                    offset,
                    time_ns: *time_ns,
                    bytes: Bytes::copy_from_slice(part),
                    left: 0,
                });
                offset += part.len() as u64;
            }
        }
        outputs
    }

    /// All bytes in order, each with its stream.
    fn flat(outputs: &[Output]) -> Vec<(Stream, u8)> {
        outputs
            .iter()
            .flat_map(|output| output.bytes.iter().map(|byte| (output.stream, *byte)))
            .collect()
    }

    fn captured() -> impl Strategy<Value = Captured> {
        let record = (
            any::<bool>(),
            prop::collection::vec(any::<u8>(), 1..6),
            0u64..9,
        );
        prop::collection::vec(record, 0..14).prop_map(|records| {
            records
                .into_iter()
                .map(|(is_stdout, bytes, time_ns)| {
                    let stream = if is_stdout {
                        Stream::Stdout
                    } else {
                        Stream::Stderr
                    };
                    (stream, bytes, time_ns)
                })
                .collect()
        })
    }

    fn any_ask() -> impl Strategy<Value = Log> {
        let streams = prop::sample::select(&[Streams::All, Streams::Stdout, Streams::Stderr][..]);
        let start = prop_oneof![
            (0u64..30).prop_map(|offset| (offset, None, None)),
            (0u64..8).prop_map(|lines| (0, Some(lines), None)),
            (0i64..9).prop_map(|since| (0, None, Some(since))),
        ];
        (streams, start).prop_map(|(streams, (offset, tail_lines, since_ns))| Log {
            offset,
            tail_lines,
            since_ns,
            ..ask(streams)
        })
    }

    proptest! {
        #[test]
        fn output_is_the_same_wherever_connections_are_lost(
            captured in captured(), log in any_ask(), pieces in prop::collection::vec((1usize..7, 0usize..5), 1..12),
        ) {
            let whole = flat(&served(&captured, &log, 1_000));
            let (mut place, mut had, mut asked) = (Place::new(log.clone()), Vec::new(), log);
            for (piece, count) in pieces {
                for output in served(&captured, &asked, piece).into_iter().take(count) {
                    had.extend(place.take(output));
                }
                prop_assert!(whole.starts_with(&flat(&had)), "{:?} of {:?}", flat(&had), whole);
                asked = place.resume();
            }
            for output in served(&captured, &asked, 3) {
                had.extend(place.take(output));
            }
            prop_assert_eq!(flat(&had), whole);
        }
    }

    #[test]
    fn a_known_position_is_asked_for_and_an_unknown_one_is_found_again() {
        let output = |stream, offset, bytes: &'static [u8]| Output {
            stream,
            offset,
            time_ns: 0,
            bytes: Bytes::from_static(bytes),
            left: 0,
        };
        let mut place = Place::new(Log {
            tail_lines: Some(3),
            ..ask(Streams::All)
        });
        assert_eq!(place.resume().tail_lines, Some(3), "nothing was had");
        place.take(output(Stream::Stdout, 100, b"abc")).unwrap();
        let log = place.resume();
        assert_eq!((log.offset, log.tail_lines), (102, None));
        // Bytes 102 to 105 of stderr come first there, were had or never asked for, and tell where we are.
        assert_eq!(place.take(output(Stream::Stderr, 40, b"xyz")), None);
        assert_eq!(
            place.take(output(Stream::Stdout, 90, b"0123456789ab")),
            None
        );
        let rest = place.take(output(Stream::Stdout, 102, b"cd")).unwrap();
        assert_eq!((rest.offset, &rest.bytes[..]), (103, &b"d"[..]));
        assert_eq!(place.resume().offset, 104 + 43);
    }
}
