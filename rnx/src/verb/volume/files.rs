//! `rnx volume cp`, `export` and `import`: files into and out of volumes.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, Seek},
    os::fd::AsFd,
    path::Path,
};

use rnx::{
    Arrival, Client, Landing, Pack, RequestError, Tree,
    proto::{RefusalCode, Upload},
};

use super::{
    super::{Session, receive::receive},
    place::{self, Direction, Found, Landed, Remote},
};
use crate::{
    exit::{Failure, code},
    flags::{VolumeCpFlags, VolumeName},
    json,
    out::{Out, Progress},
    text,
};

/// What is written to the archive at once, bytes.
const WRITE_BYTES: usize = 256 << 10;

pub(crate) async fn cp(flags: &VolumeCpFlags, session: &Session) -> Result<u8, Failure> {
    match place::direction(&flags.from, &flags.to)? {
        Direction::Out { from, to } => {
            let landing = Landing::new(&from.path, &from.volume, &to)?;
            let client = session.connect().await?;
            let copied = copy_out(&client, &from, landing, session.out).await;
            client.close().await;
            copied
        }
        Direction::In { from, to } => {
            let is_dir = std::fs::metadata(&from).is_ok_and(|meta| meta.is_dir());
            let client = session.connect().await?;
            let copied = copy_in(&client, &from, is_dir, &to, session.out).await;
            client.close().await;
            copied
        }
    }
}

async fn copy_out(
    client: &Client,
    from: &Remote,
    landing: Landing,
    out: Out,
) -> Result<u8, Failure> {
    let arrivals = client
        .read_volume(&from.volume, from.path.as_slice())
        .await?;
    receive(arrivals, landing, out).await?.finish()?;
    Ok(code::DONE)
}

async fn copy_in(
    client: &Client,
    from: &Path,
    is_dir: bool,
    to: &Remote,
    out: Out,
) -> Result<u8, Failure> {
    let found = look(client, to).await?;
    let mut tree = Tree::new();
    match place::destination(from, is_dir, to, found)? {
        Landed::As(name) if is_dir => tree.add_dir(from, &name)?,
        Landed::As(name) | Landed::In(name) => tree.add(from, Some(&name))?,
    }
    out.left_out(tree.skipped());
    let bar = out.progress(Progress::Send(Some(tree.bytes())));
    client
        .write_volume(&to.volume, &tree, |sent| bar.set(sent))
        .await?;
    Ok(code::DONE)
}

/// What is at the destination now. Nothing is harmed when it is something else a moment later.
async fn look(client: &Client, to: &Remote) -> Result<Found, Failure> {
    if to.path.is_empty() {
        return Ok(Found::Dir);
    }
    let mut arrivals = client.read_volume(&to.volume, to.path.as_slice()).await?;
    match arrivals.next().await {
        Ok(Some(Arrival::Entry(Upload::Dir { .. }))) => Ok(Found::Dir),
        Ok(Some(_) | None) => Ok(Found::Other),
        Err(RequestError::Refused(refusal)) if refusal.code == RefusalCode::NotFound => {
            Ok(Found::Nothing)
        }
        Err(error) => Err(error.into()),
    }
}

pub(crate) async fn export(volume: &VolumeName, session: &Session) -> Result<u8, Failure> {
    let (name, out) = (&volume.name, session.out);
    if out.json {
        return Err(Failure::usage(
            "--json makes no sense here: the archive goes to standard output",
        ));
    }
    if out.stdout_tty {
        return Err(
            Failure::usage("an archive is not written to a terminal").hint(format!(
                "send it elsewhere: `rnx volume export {name} > {name}.tar`"
            )),
        );
    }
    // Not through std's buffer, which looks for line ends.
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let seconds = u64::try_from(text::now_ns() / 1_000_000_000).unwrap_or(0);
    let pack = Pack::new(BufWriter::with_capacity(WRITE_BYTES, stdout), seconds);
    let client = session.connect().await?;
    let exported = async {
        let arrivals = client.read_volume(name, "").await?;
        receive(arrivals, pack, out).await
    };
    let exported = exported.await;
    client.close().await;
    exported?.finish()?;
    Ok(code::DONE)
}

pub(crate) async fn import(volume: &VolumeName, session: &Session) -> Result<u8, Failure> {
    let (name, out) = (&volume.name, session.out);
    if io::stdin().is_terminal() {
        return Err(
            Failure::usage("an archive is not read from a terminal").hint(format!(
                "take it from elsewhere: `rnx volume import {name} < {name}.tar`"
            )),
        );
    }
    let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let bar = out.progress(Progress::Send(size(&stdin)));
    let client = session.connect().await?;
    let imported = client
        .import_volume(name, stdin, |sent| bar.set(sent))
        .await;
    client.close().await;
    drop(bar);
    let imported = imported?;
    out.left_out(&imported.skipped);
    if out.json {
        out.json(&json::imported(name, &imported))?;
    }
    Ok(code::DONE)
}

/// What is left of a file; what comes through a pipe has no size.
fn size(input: &File) -> Option<u64> {
    let meta = input.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let mut input = input;
    Some(meta.len().saturating_sub(input.stream_position().ok()?))
}
