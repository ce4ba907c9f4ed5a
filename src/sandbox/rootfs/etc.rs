//! `/etc` of a job: which entries of the host's are copied, and why; and the files that are our own.
//!
//! Copied, not mounted: what the host changes later, or keeps beside them, no job sees. Links are copied as
//! links, also dangling ones; nothing is followed. What not everybody on the host may read is not copied, nor is
//! anything that looks like a private key, whatever its mode.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt, symlink},
    },
    path::Path,
};

use super::{RootfsError, failed, make_dir, make_file};
use crate::limits;

/// Which names of the host's `/etc` an entry of the list means.
enum Names {
    /// This one.
    Exactly(&'static str),
    /// All that begin like this.
    Beginning(&'static str),
}

use Names::{Beginning, Exactly};

/// What programs need of the host's `/etc`.
const COPIED: &[(Names, &str)] = &[
    (
        Exactly("ssl"),
        "certificates of authorities and the configuration of openssl; its private/ is skipped",
    ),
    (
        Exactly("ca-certificates"),
        "where some programs look for authorities first",
    ),
    (Exactly("pki"), "the same on other distributions"),
    (
        Exactly("alternatives"),
        "java, editor, awk and others are links through it",
    ),
    (
        Beginning("ld.so."),
        "the linker's cache and the directories it searches",
    ),
    (
        Beginning("java"),
        "a JVM does not start without its security configuration",
    ),
    (Beginning("maven"), "mvn reads its settings here"),
    (
        Beginning("python3"),
        "site configuration of the system's python",
    ),
    (Exactly("perl"), "site configuration of the system's perl"),
    (Exactly("fonts"), "fontconfig: anything that draws text"),
    (Exactly("mime.types"), "web servers and python's mimetypes"),
    (Exactly("magic"), "file(1)"),
    (Exactly("services"), "names of ports: getservbyname"),
    (Exactly("protocols"), "names of protocols: getprotobyname"),
    (Exactly("nsswitch.conf"), "where libc looks names up"),
    (Exactly("gai.conf"), "order of addresses: getaddrinfo"),
    (
        Exactly("localtime"),
        "the host's time zone; a link into /usr",
    ),
    (Exactly("timezone"), "its name, for the JVM"),
    (
        Exactly("os-release"),
        "which distribution /usr is; a link into /usr",
    ),
    (Exactly("debian_version"), "the same, for older scripts"),
    (
        Exactly("locale.alias"),
        "names of locales; a link into /usr",
    ),
    (Exactly("terminfo"), "local descriptions of terminals"),
    (Exactly("inputrc"), "readline: python, bash"),
];

/// Names that are never copied, at any depth.
const NEVER: &[&str] = &["private"];

/// Our own files: name and contents.
const OWN: &[(&str, &str)] = &[
    (
        "passwd",
        "root:x:0:0:root:/root:/bin/sh\njob:x:1000:1000:job:/work:/bin/sh\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    (
        "group",
        "root:x:0:\ntty:x:5:\njob:x:1000:\nnogroup:x:65534:\n",
    ),
    (
        "hosts",
        "127.0.0.1 localhost job\n::1 localhost ip6-localhost ip6-loopback job\n",
    ),
    ("hostname", "job\n"),
    // Without a network nobody answers: fail at once, not after the usual ten seconds.
    ("resolv.conf", "options timeout:1 attempts:1\n"),
];

/// Fills `target` from `host` by the list, then with our own files.
pub(super) fn copy_from_host(host: &Path, target: &Path) -> Result<(), RootfsError> {
    let entries = fs::read_dir(host).map_err(|error| failed("list", host, error))?;
    for entry in entries {
        let name = entry
            .map_err(|error| failed("list", host, error))?
            .file_name();
        if is_listed(&name) {
            copy(
                &host.join(&name),
                &target.join(&name),
                limits::TEMPLATE_DEPTH_MAX,
            )?;
        }
    }
    for (name, contents) in OWN {
        make_file(&target.join(name), 0o644, contents.as_bytes())?;
    }
    // df, mount and others read it.
    symlink("/proc/self/mounts", target.join("mtab"))
        .map_err(|error| failed("link", "etc/mtab", error))
}

fn is_listed(name: &OsStr) -> bool {
    COPIED.iter().any(|(names, _)| match names {
        Exactly(exact) => name == OsStr::new(exact),
        Beginning(start) => name.as_bytes().starts_with(start.as_bytes()),
    })
}

/// Copies one entry of the host; silently nothing when it is not for everybody, or has gone meanwhile.
fn copy(from: &Path, to: &Path, depth_left: usize) -> Result<(), RootfsError> {
    let Ok(metadata) = fs::symlink_metadata(from) else {
        return Ok(());
    };
    let mode = metadata.mode() & 0o777;
    if metadata.is_symlink() {
        let target = fs::read_link(from).map_err(|error| failed("read the link", from, error))?;
        symlink(target, to).map_err(|error| failed("link", to, error))
    } else if metadata.is_dir() {
        if mode & 0o005 != 0o005 || depth_left == 0 {
            return Ok(());
        }
        make_dir(to, 0o755)?;
        for entry in fs::read_dir(from).map_err(|error| failed("list", from, error))? {
            let name = entry
                .map_err(|error| failed("list", from, error))?
                .file_name();
            if !NEVER.iter().any(|never| name == OsStr::new(never)) {
                copy(&from.join(&name), &to.join(&name), depth_left - 1)?;
            }
        }
        Ok(())
    } else if metadata.is_file()
        && mode & 0o004 != 0
        && metadata.len() <= limits::TEMPLATE_FILE_BYTES_MAX
    {
        copy_file(from, to, mode & 0o755)
    } else {
        Ok(())
    }
}

fn copy_file(from: &Path, to: &Path, mode: u32) -> Result<(), RootfsError> {
    let mut contents = Vec::new();
    // No link: it was none a moment ago. Never more than a file may have, should it grow.
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(from);
    opened
        .and_then(|file| {
            file.take(limits::TEMPLATE_FILE_BYTES_MAX)
                .read_to_end(&mut contents)
        })
        .map_err(|error| failed("read", from, error))?;
    if holds_private_key(&contents) {
        Ok(())
    } else {
        make_file(to, mode, &contents)
    }
}

fn holds_private_key(contents: &[u8]) -> bool {
    const MARK: &[u8] = b"PRIVATE KEY-----";
    contents.windows(MARK.len()).any(|window| window == MARK)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn links_stay_links_and_keys_and_secrets_stay_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (host, target) = (dir.path().join("host"), dir.path().join("etc"));
        for path in [&host, &target, &host.join("ssl"), &host.join("ssl/private")] {
            make_dir(path, 0o755).unwrap();
        }
        make_file(
            &host.join("ssl/ok.pem"),
            0o644,
            b"-----BEGIN CERTIFICATE-----",
        )
        .unwrap();
        make_file(
            &host.join("ssl/open.key"),
            0o644,
            b"x\n-----BEGIN RSA PRIVATE KEY-----\n",
        )
        .unwrap();
        make_file(&host.join("ssl/shut"), 0o640, b"secret").unwrap();
        make_file(&host.join("ssl/private/k"), 0o644, b"secret").unwrap();
        make_file(&host.join("shadow"), 0o644, b"secret").unwrap();
        symlink("/nowhere/at/all", host.join("ssl/dangling")).unwrap();
        symlink("/etc/shadow", host.join("localtime")).unwrap();
        fs::set_permissions(host.join("ssl"), fs::Permissions::from_mode(0o755)).unwrap();

        copy_from_host(&host, &target).unwrap();

        let mut ssl: Vec<_> = fs::read_dir(target.join("ssl"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        ssl.sort();
        assert_eq!(ssl, ["dangling", "ok.pem"]);
        assert_eq!(
            fs::read_link(target.join("ssl/dangling")).unwrap(),
            Path::new("/nowhere/at/all")
        );
        assert!(target.join("localtime").is_symlink());
        assert!(!target.join("shadow").exists());
        assert_eq!(
            fs::read_to_string(target.join("hostname")).unwrap(),
            "job\n"
        );
    }
}
