//! `rnx volume`: made, listed, looked at, removed; `files` is about what is in them.

pub(crate) mod files;
mod place;

use rnx::{
    Client,
    proto::{Volume, VolumeCreate, VolumeKind},
};
use serde_json::{Value, json};

use super::{FirstFailure, Session, page::Page};
use crate::{
    exit::{Failure, code},
    flags::{VolumeCreateFlags, VolumeListFlags, VolumeName, VolumeNames, VolumeType},
    json,
    out::Out,
    text,
};

pub(crate) async fn create(flags: &VolumeCreateFlags, session: &Session) -> Result<u8, Failure> {
    let create = VolumeCreate {
        name: flags.name.clone(),
        size: flags.size.clone(),
        kind: match flags.kind {
            VolumeType::Filesystem => VolumeKind::Filesystem,
            VolumeType::Memory => VolumeKind::Memory,
        },
    };
    let client = session.connect().await?;
    let made = client.create_volume(create).await;
    client.close().await;
    let volume = made?;
    if session.out.json {
        session.out.json(&json::volume(&volume))?;
    } else {
        let (name, kind) = (&volume.name, text::volume_kind(volume.kind));
        let size = text::plain(&volume.size);
        session
            .out
            .line(&format!("Name: {name}\nSize: {size}\nType: {kind}"))?;
    }
    Ok(code::DONE)
}

pub(crate) async fn list(flags: &VolumeListFlags, session: &Session) -> Result<u8, Failure> {
    let client = session.connect().await?;
    let volumes = client.volumes().await;
    client.close().await;
    let (volumes, out) = (volumes?, session.out);
    if out.json {
        let volumes: Vec<_> = volumes.iter().map(json::volume).collect();
        out.json(&json!({"volumes": volumes}))?;
    } else if volumes.is_empty() {
        out.line("No volumes found")?;
    } else {
        let columns = ["NAME", "SIZE", "TYPE", "CREATED", "USED", "JOBS"];
        let shown = if flags.wide { columns.len() } else { 4 };
        let row = |volume| row(volume).into_iter().take(shown).collect();
        out.table(&columns[..shown], volumes.iter().map(row).collect())?;
        volumes.iter().for_each(|volume| warn(volume, out));
    }
    Ok(code::DONE)
}

fn row(volume: &Volume) -> [String; 6] {
    [
        volume.name.clone(),
        volume.size.clone(),
        text::volume_kind(volume.kind).to_owned(),
        text::local_time(volume.created_ns),
        used(volume),
        volume.jobs.len().to_string(),
    ]
}

fn used(volume: &Volume) -> String {
    volume.used_bytes.map_or_else(|| "-".into(), text::bytes)
}

/// A table has no room for what is wrong.
fn warn(volume: &Volume, out: Out) {
    if let Some(damage) = &volume.damage {
        out.warn(&format!("volume {}: {damage}", volume.name));
    }
}

pub(crate) async fn inspect(volume: &VolumeName, session: &Session) -> Result<u8, Failure> {
    let client = session.connect().await?;
    let volume = client.volume(&volume.name).await;
    client.close().await;
    let volume = volume?;
    if session.out.json {
        session.out.json(&json::volume(&volume))?;
    } else {
        session.out.data(sections(&volume).as_bytes())?;
    }
    Ok(code::DONE)
}

fn sections(volume: &Volume) -> String {
    let mut page = Page::default();
    page.section("Volume");
    page.line("Name", &volume.name);
    page.line(
        "Size",
        &format!("{} ({} bytes)", volume.size, volume.size_bytes),
    );
    page.line("Type", text::volume_kind(volume.kind));
    page.line("Created", &text::local_time(volume.created_ns));
    page.line("Used", &used(volume));
    page.line("In jobs", &text::volume_path(&volume.name));
    if let Some(damage) = &volume.damage {
        page.line("Damage", damage);
    }
    if !volume.jobs.is_empty() {
        page.section("Jobs");
        for id in &volume.jobs {
            page.line("Job", &text::id(*id));
        }
    }
    page.into_text()
}

pub(crate) async fn remove(volumes: &VolumeNames, session: &Session) -> Result<u8, Failure> {
    let client = session.connect().await?;
    let removed = remove_each(&client, &volumes.names, session.out).await;
    client.close().await;
    removed
}

/// Every volume is tried, whatever becomes of the others; the first failure decides the exit code.
async fn remove_each(client: &Client, names: &[String], out: Out) -> Result<u8, Failure> {
    let (mut failed, mut removed) = (FirstFailure::none(), Vec::new());
    for name in names {
        match client.remove_volume(name).await {
            Ok(()) if out.json => removed.push(Value::from(name.as_str())),
            Ok(()) => out.line(&format!("{name} removed"))?,
            Err(error) => failed.note(error, out),
        }
    }
    if out.json {
        out.json(&json!({"removed": removed}))?;
    }
    Ok(failed.code())
}
