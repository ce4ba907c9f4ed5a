//! A submit becomes a [`Spec`]: defaults filled in, every range checked.

use std::{collections::HashSet, time::Duration};

use proto_rkyv::{BulkError, Kind, Submit};

use super::{
    invalid,
    limit::job_limits,
    schedule::{priority, schedule},
    too_large,
    tree::check_components,
    volume::attachments,
};
use crate::{
    job::{ByteString, EnvEntry, Refusal, Spec, User},
    limits,
    shard::Settings,
};

const JOB_USER: User = User {
    uid: 1_000,
    gid: 1_000,
};
const WORKDIR: &str = "/work";

/// Argument list and environment as they came: payloads of each kind put together.
#[derive(Debug, Default)]
pub(in crate::front) struct Bulk {
    pub(super) argv: Vec<u8>,
    pub(super) env: Vec<u8>,
    pub(super) secret_env: Vec<u8>,
}

impl Bulk {
    /// Adds some payload of one kind.
    ///
    /// # Errors
    /// When all of it together is larger than a submit may be, or the kind has no place in one.
    pub(in crate::front) fn push(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), Refusal> {
        if self.argv.len() + self.env.len() + self.secret_env.len() + bytes.len()
            > limits::SUBMIT_BYTES_MAX
        {
            let message = format!(
                "arguments and environment are larger than {} bytes",
                limits::SUBMIT_BYTES_MAX
            );
            return Err(too_large(message).hint("put large data into a file and upload it"));
        }
        match kind {
            Kind::Argv => self.argv.extend_from_slice(bytes),
            Kind::Env => self.env.extend_from_slice(bytes),
            Kind::SecretEnv => self.secret_env.extend_from_slice(bytes),
            Kind::Control | Kind::Stdout | Kind::Stderr | Kind::File => {
                return Err(invalid(format!(
                    "{kind:?} frame before the job was submitted"
                )));
            }
        }
        Ok(())
    }
}

/// The specification that a submit asks for at `now_ns`.
///
/// # Errors
/// A refusal that names the first value which makes no sense.
pub(in crate::front) fn spec(
    submit: Submit,
    bulk: &Bulk,
    settings: &Settings,
    now_ns: i64,
) -> Result<Spec, Refusal> {
    let argv = arguments(&bulk.argv)?;
    let mut env = variables(&bulk.env, false)?;
    env.append(&mut variables(&bulk.secret_env, true)?);
    if argv.len() + env.len() > limits::SUBMIT_ENTRIES_MAX {
        return Err(too_many_entries());
    }
    let limits = job_limits(&submit, settings)?;
    let volumes = attachments(submit.volumes)?;
    Ok(Spec {
        name: submit.name.map(name).transpose()?,
        labels: labels(submit.labels)?,
        argv,
        env,
        workdir: workdir(submit.workdir)?,
        user: user(submit.user)?,
        work_bytes: work_bytes(
            submit.work_bytes,
            submit.uploads,
            !volumes.is_empty(),
            settings,
        )?,
        volumes,
        limits,
        timeout: submit.timeout_ms.map(timeout).transpose()?,
        grace: submit.grace_ms.map_or(Ok(settings.grace), grace)?,
        uploads: submit.uploads,
        schedule: submit
            .schedule
            .map(|asked| schedule(asked, now_ns))
            .transpose()?,
        priority: priority(submit.priority)?,
    })
}

fn arguments(payload: &[u8]) -> Result<Vec<ByteString>, Refusal> {
    let entries = entries(payload, "argument list")?;
    if entries.is_empty() {
        return Err(invalid("the command is empty")
            .hint("say what to run: rnx job run COMMAND [ARGUMENT]..."));
    }
    for (index, argument) in entries.iter().enumerate() {
        check_string(argument, || format!("argument {index}"))?;
    }
    Ok(entries.into_iter().map(<[u8]>::to_vec).collect())
}

fn variables(payload: &[u8], is_secret: bool) -> Result<Vec<EnvEntry>, Refusal> {
    let entries = entries(payload, "environment")?;
    entries
        .into_iter()
        .enumerate()
        .map(|(index, entry)| variable(index, entry, is_secret))
        .collect()
}

/// Messages say the name, never the value: it may be a secret.
fn variable(index: usize, entry: &[u8], is_secret: bool) -> Result<EnvEntry, Refusal> {
    let at = entry.iter().position(|byte| *byte == b'=');
    let Some(at) = at else {
        return Err(
            invalid(format!("environment variable {index} has no value")).hint("write NAME=VALUE"),
        );
    };
    let (name, value) = (&entry[..at], &entry[at + 1..]);
    let is_name = name
        .first()
        .is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_')
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let text = std::str::from_utf8(name).ok().filter(|_| is_name);
    let Some(text) = text else {
        let shown: String = String::from_utf8_lossy(name).chars().take(64).collect();
        let hint = "names are letters, digits and underscores and do not begin with a digit";
        return Err(invalid(format!(
            "environment variable name {shown:?} is not allowed"
        ))
        .hint(hint));
    };
    let shown: String = text.chars().take(64).collect();
    check_string(entry, || format!("environment variable {shown}"))?;
    Ok(EnvEntry {
        name: text.to_owned(),
        value: value.to_vec(),
        is_secret,
    })
}

/// What execve(2) would refuse or cut: NUL bytes and strings beyond MAX_ARG_STRLEN.
fn check_string(bytes: &[u8], what: impl Fn() -> String) -> Result<(), Refusal> {
    if bytes.contains(&0) {
        return Err(
            invalid(format!("{} has a NUL byte", what())).hint("no program can be given one")
        );
    }
    if bytes.len() >= limits::ARGUMENT_BYTES_MAX {
        let message = format!(
            "{} has {} bytes, at most {} are possible",
            what(),
            bytes.len(),
            limits::ARGUMENT_BYTES_MAX - 1
        );
        return Err(too_large(message).hint("put large data into a file and upload it"));
    }
    Ok(())
}

fn entries<'a>(payload: &'a [u8], what: &str) -> Result<Vec<&'a [u8]>, Refusal> {
    let malformed = |error: BulkError| invalid(format!("malformed {what}: {error}"));
    // Counted first: an empty entry takes four bytes here and sixteen in the list.
    if proto_rkyv::count(payload).map_err(malformed)? > limits::SUBMIT_ENTRIES_MAX {
        return Err(too_many_entries());
    }
    proto_rkyv::split(payload).map_err(malformed)
}

fn too_many_entries() -> Refusal {
    too_large(format!(
        "more than {} arguments and variables",
        limits::SUBMIT_ENTRIES_MAX
    ))
    .hint("put long lists into a file and upload it")
}

/// Text that is shown in tables and messages: not empty, bounded, one line.
fn check_text(text: &str, what: &str, bytes_max: usize) -> Result<(), Refusal> {
    if text.len() > bytes_max {
        return Err(too_large(format!(
            "{what} has {} bytes, at most {bytes_max} are allowed",
            text.len()
        )));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid(format!("{what} {text:?} has control characters")));
    }
    Ok(())
}

fn name(name: String) -> Result<String, Refusal> {
    if name.is_empty() {
        return Err(invalid("the job name is empty").hint("leave --name out for a job without one"));
    }
    check_text(&name, "job name", limits::NAME_BYTES_MAX)?;
    Ok(name)
}

fn labels(labels: Vec<(String, String)>) -> Result<Vec<(String, String)>, Refusal> {
    if labels.len() > limits::LABELS_MAX {
        return Err(too_large(format!(
            "{} labels, at most {} are allowed",
            labels.len(),
            limits::LABELS_MAX
        )));
    }
    let mut seen = HashSet::new();
    for (key, value) in &labels {
        if key.is_empty() || key.contains('=') {
            return Err(invalid(format!(
                "label key {:?} is empty or has a '='",
                key.chars().take(64).collect::<String>()
            )));
        }
        check_text(key, "label key", limits::LABEL_KEY_BYTES_MAX)?;
        check_text(
            value,
            &format!("value of label {key}"),
            limits::LABEL_VALUE_BYTES_MAX,
        )?;
        if !seen.insert(key) {
            return Err(invalid(format!("label {key} is given twice")));
        }
    }
    Ok(labels)
}

fn workdir(workdir: Option<String>) -> Result<ByteString, Refusal> {
    let Some(workdir) = workdir else {
        return Ok(WORKDIR.into());
    };
    if !workdir.starts_with('/') {
        let shown: String = workdir.chars().take(64).collect();
        return Err(
            invalid(format!("working directory {shown:?} is not absolute"))
                .hint("begin it with /, as in /work"),
        );
    }
    check_components(workdir.as_bytes(), "working directory")?;
    Ok(workdir.into_bytes())
}

fn user(user: Option<(u32, u32)>) -> Result<User, Refusal> {
    let Some((uid, gid)) = user else {
        return Ok(JOB_USER);
    };
    for (what, id) in [("user", uid), ("group", gid)] {
        if id >= limits::IDS_PER_JOB {
            let hint = format!("ids inside a job are 0 to {}", limits::IDS_PER_JOB - 1);
            return Err(invalid(format!("{what} id {id} does not exist in a job")).hint(hint));
        }
    }
    Ok(User { uid, gid })
}

fn work_bytes(
    asked: Option<u64>,
    uploads: Option<u64>,
    has_volumes: bool,
    settings: &Settings,
) -> Result<u64, Refusal> {
    let uploads = uploads.unwrap_or(0);
    let work_bytes = match asked {
        Some(bytes) if !limits::WORK_BYTES_RANGE.contains(&bytes) => {
            let hint = "between 1 MiB and 1 TiB are possible";
            return Err(invalid(format!("/work of {bytes} bytes")).hint(hint));
        }
        Some(bytes) => bytes,
        // Work with volumes is work with much data: backups, archives, unpacked trees.
        None if has_volumes => settings.work_disk_bytes,
        // Half is left to the job: what it makes of its files is rarely smaller than they are.
        None if uploads <= settings.work_memory_bytes / 2 => settings.work_memory_bytes,
        None => settings.work_disk_bytes,
    };
    if uploads > work_bytes {
        let message =
            format!("uploads of {uploads} bytes do not fit into /work of {work_bytes} bytes");
        return Err(too_large(message).hint("ask for more with --work-size"));
    }
    Ok(work_bytes)
}

fn timeout(ms: u64) -> Result<Duration, Refusal> {
    let timeout = Duration::from_millis(ms);
    if ms == 0 || timeout > limits::TIMEOUT_MAX {
        let hint = "between 1 ms and 366 days are possible; leave --timeout out for none";
        return Err(invalid(format!("timeout of {ms} ms")).hint(hint));
    }
    Ok(timeout)
}

fn grace(ms: u64) -> Result<Duration, Refusal> {
    let grace = Duration::from_millis(ms);
    if grace > limits::GRACE_MAX {
        return Err(invalid(format!("grace of {ms} ms")).hint("at most one hour is possible"));
    }
    Ok(grace)
}

#[cfg(test)]
mod tests {
    use proto_rkyv::join;

    use super::*;
    use crate::job::{Limits, RefusalCode};

    const NOW: i64 = 1_800_000_000_000_000_000;

    fn settings() -> Settings {
        Settings {
            work_memory_bytes: 64 << 20,
            work_disk_bytes: 10 << 30,
            grace: Duration::from_secs(10),
            default_limits: Limits {
                pids: Some(4_096),
                ..Limits::default()
            },
            ..Settings::default()
        }
    }

    fn bulk(argv: &[&[u8]], env: &[&[u8]], secret_env: &[&[u8]]) -> Bulk {
        Bulk {
            argv: join(argv),
            env: join(env),
            secret_env: join(secret_env),
        }
    }

    fn refused(submit: Submit) -> Refusal {
        spec(submit, &bulk(&[b"true"], &[], &[]), &settings(), NOW).unwrap_err()
    }

    fn granted(submit: Submit) -> Spec {
        spec(submit, &bulk(&[b"true"], &[], &[]), &settings(), NOW).unwrap()
    }

    #[test]
    fn a_submit_that_asks_for_nothing_gets_the_defaults() {
        let expected = Spec {
            name: None,
            labels: Vec::new(),
            argv: vec![b"true".to_vec()],
            env: Vec::new(),
            workdir: b"/work".to_vec(),
            user: User {
                uid: 1_000,
                gid: 1_000,
            },
            work_bytes: 64 << 20,
            volumes: Vec::new(),
            limits: settings().default_limits,
            timeout: None,
            grace: Duration::from_secs(10),
            uploads: None,
            schedule: None,
            priority: 0,
        };
        assert_eq!(granted(Submit::default()), expected);
    }

    #[test]
    fn arguments_and_variables_travel_byte_for_byte() {
        let argv: [&[u8]; 5] = [b"sh", b"", b"a\nb", b"\xff\"'", b"--"];
        let bulk = bulk(&argv, &[b"A=", b"_b1=x=y\n\xfe"], &[b"TOKEN=s"]);
        let spec = spec(Submit::default(), &bulk, &settings(), NOW).unwrap();
        assert_eq!(spec.argv, argv);
        let entry = |name: &str, value: &[u8], is_secret| EnvEntry {
            name: name.into(),
            value: value.to_vec(),
            is_secret,
        };
        assert_eq!(
            spec.env,
            [
                entry("A", b"", false),
                entry("_b1", b"x=y\n\xfe", false),
                entry("TOKEN", b"s", true)
            ]
        );
    }

    #[test]
    fn arguments_that_no_program_can_be_given_are_refused() {
        let check = |argv: &[&[u8]], expected: &str| {
            let refusal =
                spec(Submit::default(), &bulk(argv, &[], &[]), &settings(), NOW).unwrap_err();
            assert_eq!(refusal.message, expected);
        };
        check(&[], "the command is empty");
        check(&[b"echo", b"a\0b"], "argument 1 has a NUL byte");
        let long = vec![b'x'; limits::ARGUMENT_BYTES_MAX];
        check(
            &[b"echo", &long],
            "argument 1 has 131072 bytes, at most 131071 are possible",
        );
        assert!(
            spec(
                Submit::default(),
                &bulk(&[b"echo", &long[1..]], &[], &[]),
                &settings(),
                NOW
            )
            .is_ok()
        );
        let many: Vec<&[u8]> = vec![b""; limits::SUBMIT_ENTRIES_MAX + 1];
        check(&many, "more than 262144 arguments and variables");
        assert!(
            spec(
                Submit::default(),
                &bulk(&many[1..], &[], &[]),
                &settings(),
                NOW
            )
            .is_ok()
        );
        let lying = Bulk {
            argv: vec![9, 0, 0, 0, b'x'],
            ..Bulk::default()
        };
        let refusal = spec(Submit::default(), &lying, &settings(), NOW).unwrap_err();
        assert_eq!(
            refusal.message,
            "malformed argument list: entry 0 claims 9 bytes and 1 are left"
        );
    }

    #[test]
    fn variables_have_names_and_refusals_never_say_their_values() {
        let check = |entry: &[u8], expected: &str| {
            let refusal = spec(
                Submit::default(),
                &bulk(&[b"true"], &[], &[entry]),
                &settings(),
                NOW,
            )
            .unwrap_err();
            assert_eq!(refusal.message, expected);
            assert!(!format!("{refusal:?}").contains("hunter2"), "{refusal:?}");
        };
        check(b"hunter2", "environment variable 0 has no value");
        check(b"=hunter2", "environment variable name \"\" is not allowed");
        check(
            b"1A=hunter2",
            "environment variable name \"1A\" is not allowed",
        );
        check(
            b"A-B=hunter2",
            "environment variable name \"A-B\" is not allowed",
        );
        check(
            "Ä=hunter2".as_bytes(),
            "environment variable name \"Ä\" is not allowed",
        );
        check(
            b"\xff=hunter2",
            "environment variable name \"\u{fffd}\" is not allowed",
        );
        check(b"A=hunter2\0", "environment variable A has a NUL byte");
    }

    #[test]
    fn names_and_labels_are_one_short_line() {
        let named = |name: &str| Submit {
            name: Some(name.into()),
            ..Submit::default()
        };
        assert_eq!(granted(named(&"x".repeat(128))).name.unwrap().len(), 128);
        assert_eq!(
            refused(named(&"x".repeat(129))).message,
            "job name has 129 bytes, at most 128 are allowed"
        );
        assert_eq!(refused(named("")).message, "the job name is empty");
        assert_eq!(
            refused(named("a\0")).message,
            "job name \"a\\0\" has control characters"
        );
        let labelled = |labels: &[(&str, &str)]| Submit {
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect(),
            ..Submit::default()
        };
        assert_eq!(
            granted(labelled(&[("a", ""), ("b", "c d")])).labels.len(),
            2
        );
        assert_eq!(
            refused(labelled(&[("a", "1"), ("a", "2")])).message,
            "label a is given twice"
        );
        assert_eq!(
            refused(labelled(&[("", "1")])).message,
            "label key \"\" is empty or has a '='"
        );
        assert_eq!(
            refused(labelled(&[("a", "\n")])).message,
            "value of label a \"\\n\" has control characters"
        );
        let many: Vec<String> = (0..=limits::LABELS_MAX).map(|n| n.to_string()).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|key| (key.as_str(), "")).collect();
        assert_eq!(
            refused(labelled(&many)).message,
            "33 labels, at most 32 are allowed"
        );
        assert_eq!(granted(labelled(&many[1..])).labels.len(), 32);
    }

    #[test]
    fn the_working_directory_is_an_absolute_path() {
        let inside = |workdir: &str| Submit {
            workdir: Some(workdir.into()),
            ..Submit::default()
        };
        for good in ["/", "/work/a", "/usr/../tmp/"] {
            assert_eq!(granted(inside(good)).workdir, good.as_bytes());
        }
        assert_eq!(
            refused(inside("")).message,
            "working directory \"\" is not absolute"
        );
        assert_eq!(
            refused(inside("a/b")).message,
            "working directory \"a/b\" is not absolute"
        );
        assert_eq!(
            refused(inside("/a\0")).message,
            "working directory has a NUL byte"
        );
        assert_eq!(
            refused(inside(&format!("/{}", "x".repeat(256)))).code,
            RefusalCode::TooLarge
        );
        assert_eq!(
            refused(inside(&"/x".repeat(2_048))).code,
            RefusalCode::TooLarge
        );
    }

    #[test]
    fn both_sides_of_each_number() {
        let user = |uid, gid| Submit {
            user: Some((uid, gid)),
            ..Submit::default()
        };
        assert_eq!(
            granted(user(0, 65_535)).user,
            User {
                uid: 0,
                gid: 65_535
            }
        );
        assert_eq!(
            refused(user(65_536, 0)).message,
            "user id 65536 does not exist in a job"
        );
        assert_eq!(
            refused(user(0, u32::MAX)).message,
            "group id 4294967295 does not exist in a job"
        );
        let timeout = |ms| Submit {
            timeout_ms: Some(ms),
            ..Submit::default()
        };
        assert_eq!(granted(timeout(1)).timeout, Some(Duration::from_millis(1)));
        let max = u64::try_from(limits::TIMEOUT_MAX.as_millis()).unwrap();
        assert_eq!(granted(timeout(max)).timeout, Some(limits::TIMEOUT_MAX));
        for bad in [0, max + 1, u64::MAX] {
            assert_eq!(
                refused(timeout(bad)).message,
                format!("timeout of {bad} ms")
            );
        }
        let grace = |ms| Submit {
            grace_ms: Some(ms),
            ..Submit::default()
        };
        assert_eq!(granted(grace(0)).grace, Duration::ZERO);
        assert_eq!(granted(grace(3_600_000)).grace, limits::GRACE_MAX);
        assert_eq!(refused(grace(3_600_001)).message, "grace of 3600001 ms");
        let work = |bytes| Submit {
            work_bytes: Some(bytes),
            ..Submit::default()
        };
        assert_eq!(
            granted(work(limits::WORK_BYTES_MIN)).work_bytes,
            limits::WORK_BYTES_MIN
        );
        assert_eq!(
            granted(work(limits::WORK_BYTES_MAX)).work_bytes,
            limits::WORK_BYTES_MAX
        );
        for bad in [
            0,
            limits::WORK_BYTES_MIN - 1,
            limits::WORK_BYTES_MAX + 1,
            u64::MAX,
        ] {
            assert_eq!(refused(work(bad)).message, format!("/work of {bad} bytes"));
        }
        // What is configured for memory may be less than what may be asked for.
        let small = Settings {
            work_memory_bytes: 64 << 10,
            ..settings()
        };
        let spec = spec(Submit::default(), &bulk(&[b"true"], &[], &[]), &small, NOW);
        assert_eq!(spec.unwrap().work_bytes, 64 << 10);
    }

    #[test]
    fn uploads_that_need_more_than_half_of_the_memory_get_the_disk() {
        let upload = |bytes| Submit {
            uploads: Some(bytes),
            ..Submit::default()
        };
        assert_eq!(granted(upload(32 << 20)).work_bytes, 64 << 20);
        assert_eq!(granted(upload((32 << 20) + 1)).work_bytes, 10 << 30);
        assert_eq!(granted(upload(0)).uploads, Some(0));
        assert_eq!(refused(upload((10 << 30) + 1)).code, RefusalCode::TooLarge);
        let asked = Submit {
            work_bytes: Some(2 << 20),
            uploads: Some((2 << 20) + 1),
            ..Submit::default()
        };
        assert_eq!(
            refused(asked).message,
            "uploads of 2097153 bytes do not fit into /work of 2097152 bytes"
        );
    }

    #[test]
    fn a_job_with_volumes_has_its_work_on_disk_unless_it_asks_for_a_size() {
        let with_volume = Submit {
            volumes: vec![proto_rkyv::Attachment {
                volume: "data".into(),
                is_read_only: true,
            }],
            ..Submit::default()
        };
        let spec = granted(with_volume.clone());
        assert_eq!(spec.work_bytes, settings().work_disk_bytes);
        let [attachment] = &spec.volumes[..] else {
            panic!("{:?}", spec.volumes)
        };
        assert_eq!(
            (attachment.volume.as_str(), attachment.is_read_only),
            ("data", true)
        );
        let asked = Submit {
            work_bytes: Some(2 << 20),
            ..with_volume
        };
        assert_eq!(granted(asked).work_bytes, 2 << 20);
    }

    #[test]
    fn a_submit_is_bounded_while_it_comes_in() {
        let mut bulk = Bulk::default();
        let half = vec![0; limits::SUBMIT_BYTES_MAX / 2];
        bulk.push(Kind::Argv, &half).unwrap();
        bulk.push(Kind::SecretEnv, &half).unwrap();
        assert_eq!(
            bulk.push(Kind::Env, &[0]).unwrap_err().code,
            RefusalCode::TooLarge
        );
        assert_eq!(
            Bulk::default().push(Kind::File, b"x").unwrap_err().message,
            "File frame before the job was submitted"
        );
    }
}
