//! `rnx job log ID`.

use rnx::{
    FollowEvent, Line,
    proto::{self, Streams},
};

use super::Session;
use crate::{
    exit::{Failure, code},
    flags::{LogFlags, StreamName},
    out::sink::{Shape, Sink},
    text,
};

pub(crate) async fn log(flags: &LogFlags, session: &Session) -> Result<u8, Failure> {
    if session.out.json && flags.timestamps {
        return Err(Failure::usage("--timestamps and --json exclude each other")
            .hint("JSON records carry their time"));
    }
    let line = session.line().await?;
    let printed = print(&line, flags, session).await;
    line.close().await;
    printed
}

async fn print(line: &Line, flags: &LogFlags, session: &Session) -> Result<u8, Failure> {
    let request = proto::Log {
        job: flags.job.id.clone(),
        streams: match flags.stream {
            StreamName::All => Streams::All,
            StreamName::Stdout => Streams::Stdout,
            StreamName::Stderr => Streams::Stderr,
        },
        follow: !flags.no_follow,
        offset: flags.offset,
        tail_lines: flags.tail,
        since_ns: flags.since.map(|since| since.nanos(text::now_ns())),
    };
    let mut logs = line.log(request);
    let shape = Shape {
        raw: flags.raw,
        timestamps: flags.timestamps,
        json: session.out.json,
    };
    let mut sink = Sink::new(session.out, shape);
    let dropped = loop {
        let event = match logs.ready()? {
            Some(event) => Some(event),
            None => {
                sink.flush().await?;
                logs.next().await?
            }
        };
        match event {
            Some(FollowEvent::Output(output)) => sink.push(&output).await?,
            Some(FollowEvent::LogEnd { dropped }) => break dropped,
            Some(FollowEvent::Ended(_)) | None => break 0,
        }
    };
    sink.finish().await?;
    if dropped > 0 {
        session.out.warn(&format!(
            "{dropped} bytes of output were not stored because of a limit"
        ));
    }
    Ok(code::DONE)
}
