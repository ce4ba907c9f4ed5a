//! `rnx job log ID`.

use rnx::{
    Client, LogEvent,
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
    let client = session.connect().await?;
    let printed = print(&client, flags, session).await;
    client.close().await;
    printed
}

async fn print(client: &Client, flags: &LogFlags, session: &Session) -> Result<u8, Failure> {
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
    let mut logs = client.log(request).await?;
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
            Some(LogEvent::Output(output)) => sink.push(&output).await?,
            Some(LogEvent::End { dropped }) => break dropped,
            None => break 0,
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
