//! `rnx job cp ID:/work/PATH LOCAL`.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use rnx::{Client, Landing};

use super::{Session, receive::receive};
use crate::{
    exit::{Failure, code},
    flags::CpFlags,
    out::Out,
    text,
};

pub(crate) async fn cp(flags: &CpFlags, session: &Session) -> Result<u8, Failure> {
    let (job, path) = source(&flags.from)?;
    let landing = Landing::new(&path, "work", &flags.to)?;
    let client = session.connect().await?;
    let copied = copy(&client, job, path, landing, session.out).await;
    client.close().await;
    copied.map(|()| code::DONE)
}

async fn copy(
    client: &Client,
    job: String,
    path: Vec<u8>,
    landing: Landing,
    out: Out,
) -> Result<(), Failure> {
    let arrivals = client.copy(job, path).await?;
    let landing = receive(arrivals, landing, out).await?;
    Ok(landing.finish()?)
}

/// `ID:/work/PATH` as the job and the path relative to `/work`; `ID:PATH` is the same.
fn source(from: &OsStr) -> Result<(String, Vec<u8>), Failure> {
    let usage = || {
        Failure::usage(format!("{} is not ID:/work/PATH", from.display()))
            .hint("only /work of a job can be copied from, for example 1f3a:/work/result.txt")
    };
    let bytes = from.as_bytes();
    let colon = bytes
        .iter()
        .position(|byte| *byte == b':')
        .ok_or_else(usage)?;
    let job = str::from_utf8(&bytes[..colon]).map_err(|_| usage())?;
    let path = match &bytes[colon + 1..] {
        b"/work" => &[][..],
        absolute if absolute.starts_with(b"/") => {
            absolute.strip_prefix(b"/work/").ok_or_else(usage)?
        }
        relative => relative,
    };
    match text::clean_path(path) {
        Some(path) if !job.is_empty() => Ok((job.to_owned(), path)),
        Some(_) | None => Err(usage()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_job_and_a_path_below_work() {
        let check = |text: &str, expected: Option<(&str, &str)>| {
            let found = source(OsStr::new(text)).ok();
            assert_eq!(
                found,
                expected.map(|(job, path)| (job.to_owned(), path.as_bytes().to_vec())),
                "{text}"
            );
        };
        check("1f3a:/work/a/b", Some(("1f3a", "a/b")));
        check("1f3a:/work//a/./b/", Some(("1f3a", "a/b")));
        check("1f3a:a:b", Some(("1f3a", "a:b")));
        check("1f3a:/work", Some(("1f3a", "")));
        check("1f3a:/work/", Some(("1f3a", "")));
        check("1f3a:", Some(("1f3a", "")));
        for refused in [
            "1f3a",
            ":/work/a",
            "1f3a:/etc/passwd",
            "1f3a:/workshop",
            "1f3a:/work/../etc",
            "1f3a:../x",
            "",
        ] {
            check(refused, None);
        }
    }
}
