//! Job output on its way to our own standard output and error.
//!
//! A thread writes, because whoever reads us may take its time (a pager) and the connection must be kept
//! alive meanwhile; it starts with the first byte. At most a few buffers wait for it, so a slow reader slows
//! the stream down and nothing piles up. Both streams share the thread: what was captured first is written
//! first.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    thread::{self, JoinHandle},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rnx::{Output, Stream};
use tokio::sync::mpsc;

use super::{
    Out,
    escape::{Escaper, Stamper},
};
use crate::{exit::Failure, text};

/// A buffer is handed over when it is about this large, or when nothing else is there to be added.
const BUFFER_BYTES: usize = 128 << 10;
/// Buffers that wait for the writer.
const BUFFERS_AHEAD: usize = 4;

/// How output is changed for a person.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Shape {
    /// Leave control sequences alone on a terminal.
    pub(crate) raw: bool,
    /// A time before each line.
    pub(crate) timestamps: bool,
    /// JSON records instead of output.
    pub(crate) json: bool,
}

/// Takes output and writes it.
#[derive(Debug)]
pub(crate) struct Sink {
    json: bool,
    stdout: Lane,
    stderr: Lane,
    buffer: Vec<u8>,
    target: Stream,
    record: Vec<u8>,
    writer: Option<Writer>,
}

/// What is done to one stream.
#[derive(Debug, Default)]
struct Lane {
    escaper: Option<Escaper>,
    stamper: Option<Stamper>,
}

#[derive(Debug)]
struct Writer {
    buffers: mpsc::Sender<(Stream, Vec<u8>)>,
    thread: JoinHandle<io::Result<()>>,
}

impl Sink {
    pub(crate) fn new(out: Out, shape: Shape) -> Self {
        let lane = |tty: bool| Lane {
            escaper: (tty && !shape.raw).then(Escaper::default),
            stamper: shape.timestamps.then(Stamper::default),
        };
        Self {
            json: shape.json,
            stdout: lane(out.stdout_tty),
            stderr: lane(out.stderr_tty),
            buffer: Vec::new(),
            target: Stream::Stdout,
            record: Vec::new(),
            writer: None,
        }
    }

    /// Takes some output; it is written at the next [`Sink::flush`] or before.
    ///
    /// # Errors
    /// A closed pipe, or what else writing met.
    pub(crate) async fn push(&mut self, output: &Output) -> Result<(), Failure> {
        if self.json {
            return self.push_record(output).await;
        }
        if self.target != output.stream {
            self.flush().await?;
            self.target = output.stream;
        }
        let lane = match output.stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        lane.push(output, &mut self.buffer);
        if self.buffer.len() < BUFFER_BYTES {
            Ok(())
        } else {
            self.flush().await
        }
    }

    /// Collects the pieces of a record into one line of JSON.
    async fn push_record(&mut self, output: &Output) -> Result<(), Failure> {
        self.record.extend_from_slice(&output.bytes);
        if output.left > 0 {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.record);
        let before = (bytes.len() - output.bytes.len()) as u64;
        let whole = Output {
            bytes: bytes.into(),
            offset: output.offset.wrapping_sub(before),
            ..*output
        };
        self.buffer
            .extend_from_slice(crate::json::record(&whole).to_string().as_bytes());
        self.buffer.push(b'\n');
        if self.buffer.len() < BUFFER_BYTES {
            Ok(())
        } else {
            self.flush().await
        }
    }

    /// Hands over what was taken.
    ///
    /// # Errors
    /// As [`Sink::push`].
    pub(crate) async fn flush(&mut self) -> Result<(), Failure> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let buffer = (self.target, std::mem::take(&mut self.buffer));
        if self.writer.is_none() {
            self.writer = Some(Writer::start()?);
        }
        let writer = self.writer.as_ref().expect("started above");
        if writer.buffers.send(buffer).await.is_ok() {
            return Ok(());
        }
        // The writer gives up only with an error.
        self.join()
    }

    /// Writes everything and ends.
    ///
    /// # Errors
    /// As [`Sink::push`].
    pub(crate) async fn finish(mut self) -> Result<(), Failure> {
        for (stream, lane) in [
            (Stream::Stdout, &mut self.stdout),
            (Stream::Stderr, &mut self.stderr),
        ] {
            let mut rest = Vec::new();
            if let Some(escaper) = &mut lane.escaper {
                escaper.finish(&mut rest);
            }
            if !rest.is_empty() && self.target == stream {
                self.buffer.append(&mut rest);
            } else if !rest.is_empty() {
                // Only half a character of the other stream: nothing that has an order.
                let writer = match self.writer.take() {
                    Some(writer) => writer,
                    None => Writer::start()?,
                };
                let _ = writer.buffers.send((stream, rest)).await;
                self.writer = Some(writer);
            }
        }
        self.flush().await?;
        self.join()
    }

    fn join(&mut self) -> Result<(), Failure> {
        let Some(Writer { buffers, thread }) = self.writer.take() else {
            return Ok(());
        };
        drop(buffers);
        match thread.join() {
            Ok(written) => written.map_err(Failure::from),
            Err(_) => Err(Failure::new("write output: the writing thread died")),
        }
    }
}

impl Lane {
    fn push(&mut self, output: &Output, out: &mut Vec<u8>) {
        let stamped;
        let mut bytes = &output.bytes[..];
        let Some(stamper) = &mut self.stamper else {
            return Self::escape(self.escaper.as_mut(), bytes, out);
        };
        if let Some(escaper) = &mut self.escaper {
            // Escaped first: newlines pass, and the time itself is ours.
            let mut safe = Vec::with_capacity(bytes.len());
            escaper.push(bytes, &mut safe);
            stamped = safe;
            bytes = &stamped;
        }
        stamper.push(&text::utc_time(output.time_ns.into()), bytes, out);
    }

    fn escape(escaper: Option<&mut Escaper>, bytes: &[u8], out: &mut Vec<u8>) {
        match escaper {
            Some(escaper) => escaper.push(bytes, out),
            None => out.extend_from_slice(bytes),
        }
    }
}

impl Writer {
    fn start() -> Result<Self, Failure> {
        let (buffers, mut waiting) = mpsc::channel::<(Stream, Vec<u8>)>(BUFFERS_AHEAD);
        let write = move || {
            // Not through std's standard output, which would look for newlines in every buffer.
            let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            let mut stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
            while let Some((stream, buffer)) = waiting.blocking_recv() {
                match stream {
                    Stream::Stdout => write_all(&mut stdout, &buffer)?,
                    Stream::Stderr => write_all(&mut stderr, &buffer)?,
                }
            }
            Ok(())
        };
        let thread = thread::Builder::new()
            .name("rnx-output".into())
            .spawn(write);
        let thread = thread.map_err(|error| Failure::new(format!("start a thread: {error}")))?;
        Ok(Self { buffers, thread })
    }
}

/// Writes all of it, also when another process has made the descriptor we share with it non-blocking.
fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut ready = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
                poll(&mut ready, PollTimeout::NONE)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
