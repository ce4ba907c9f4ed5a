//! From the flags of `job run` to what is submitted.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use rnx::{
    Spec, Tree,
    proto::{After, Submit},
};

use crate::{environment, exit::Failure, flags::RunFlags, out::Out};

pub(super) fn spec(flags: &RunFlags, after: After, out: Out) -> Result<Spec, Failure> {
    let variables = environment::collect(&flags.env_file, &flags.env, &flags.secret_env, |name| {
        env::var_os(name)
    })?;
    let uploads = uploads(&flags.upload)?;
    out.left_out(uploads.as_ref().map_or(&[], Tree::skipped));
    let submit = Submit {
        name: flags.name.clone(),
        labels: flags.label.clone(),
        workdir: flags.workdir.clone(),
        user: flags.user,
        work_bytes: flags.work_size,
        timeout_ms: flags.timeout,
        grace_ms: flags.grace,
        uploads: None,
        max_cpu: flags.max_cpu,
        max_memory_bytes: flags.max_memory,
        max_iobps: flags.max_iobps,
        max_pids: flags.max_pids,
        cpu_cores: flags.cpu_cores.as_ref().map(|cores| cores.0.clone()),
        schedule: flags.schedule.clone(),
        priority: flags.priority,
        volumes: flags.volume.clone(),
        idempotency_key: flags.idempotency_key.clone(),
        after,
    };
    let argv = flags
        .command
        .iter()
        .map(|word| word.as_bytes().to_vec())
        .collect();
    Ok(Spec {
        submit,
        argv,
        env: variables.plain,
        secret_env: variables.secret,
        uploads,
    })
}

fn uploads(named: &[OsString]) -> Result<Option<Tree>, Failure> {
    if named.is_empty() {
        return Ok(None);
    }
    let mut tree = Tree::new();
    for upload in named {
        let (path, destination) = split(upload, |path| path.symlink_metadata().is_ok());
        tree.add(path, destination)?;
    }
    Ok(Some(tree))
}

/// `PATH[:DEST]`, split at the last colon unless there is a file of that whole name.
fn split(upload: &OsStr, exists: impl Fn(&Path) -> bool) -> (&Path, Option<&OsStr>) {
    let bytes = upload.as_bytes();
    match bytes.iter().rposition(|byte| *byte == b':') {
        Some(colon) if !exists(Path::new(upload)) => (
            Path::new(OsStr::from_bytes(&bytes[..colon])),
            Some(OsStr::from_bytes(&bytes[colon + 1..])),
        ),
        Some(_) | None => (Path::new(upload), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_is_split_at_its_last_colon_unless_it_exists_whole() {
        let check = |text: &str, exists: bool, path: &str, destination: Option<&str>| {
            let expected = (Path::new(path), destination.map(OsStr::new));
            assert_eq!(split(OsStr::new(text), |_| exists), expected, "{text}");
        };
        check("a/b", false, "a/b", None);
        check("a/b:c", false, "a/b", Some("c"));
        check("a:b:c/", false, "a:b", Some("c/"));
        check("a:b", true, "a:b", None);
        check("a:", false, "a", Some(""));
    }
}
