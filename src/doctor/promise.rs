//! Promises that a job's own view of itself shows: what it is read for, and what must be there.

use std::{collections::HashMap, fs};

use crate::job::{Finding, Verdict};

/// Prints one fact a line, `name value`. Only what every root with a shell and coreutils has is used; an
/// attempt that succeeds prints `yes`.
pub(super) const SCRIPT: &str = r#"
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo "$name yes"; else echo "$name no"; fi; }
for n in mnt pid ipc uts net user cgroup; do echo "ns_$n $(readlink /proc/self/ns/$n)"; done
while read -r key value; do case $key in
  Uid:) echo "uid ${value%%	*}";; CapEff:|CapPrm:|CapInh:|CapBnd:|CapAmb:) echo "${key%:} $value";;
  NoNewPrivs:) echo "no_new_privs $value";; esac; done < /proc/self/status
read -r first last count < /proc/self/uid_map; echo "host_uid $last"
echo "interfaces $(ls /sys/class/net 2>/dev/null | tr '\n' ' ')$(tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' \n')"
echo "processes $(ls -d /proc/[0-9]* | wc -l)"
try write_usr sh -c ': > /usr/.joblet-doctor'
try read_shadow cat /etc/shadow
try see_root ls /root
try signal_init kill -0 1
try user_namespace unshare -U true
try mount_tmpfs mount -t tmpfs none /tmp
try make_device mknod /tmp/null c 1 3
"#;

/// What one process sees of itself.
#[derive(Debug, Default)]
pub(super) struct Facts(HashMap<String, String>);

impl Facts {
    pub(super) fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        Self(
            pairs
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect(),
        )
    }

    /// The namespaces of the daemon, to compare with.
    pub(super) fn of_this_process() -> Self {
        let names = ["mnt", "pid", "ipc", "uts", "net", "user", "cgroup"];
        let links = names.into_iter().filter_map(|name| {
            let link = fs::read_link(format!("/proc/self/ns/{name}")).ok()?;
            Some((format!("ns_{name}"), link.to_string_lossy().into_owned()))
        });
        Self(links.collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn is(&self, name: &str, value: &str) -> bool {
        self.get(name) == Some(value)
    }
}

/// What holds of the job that `seen` is from, beside the daemon's own `ours`.
pub(super) fn judge(seen: &Facts, ours: &Facts) -> Vec<Finding> {
    let kinds = ["mnt", "pid", "ipc", "uts", "net", "user", "cgroup"];
    let shared: Vec<&str> = kinds
        .into_iter()
        .filter(|kind| {
            let name = format!("ns_{kind}");
            seen.get(&name).is_none() || seen.get(&name) == ours.get(&name)
        })
        .collect();
    let is_empty = |name: &&str| {
        seen.get(name)
            .is_some_and(|set| !set.is_empty() && set.bytes().all(|byte| byte == b'0'))
    };
    let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    let held: Vec<&str> = sets.into_iter().filter(|set| !is_empty(set)).collect();
    let host_uid = seen.get("host_uid").unwrap_or("nobody knows which");
    let processes: u32 = seen
        .get("processes")
        .and_then(|count| count.parse().ok())
        .unwrap_or(u32::MAX);
    vec![
        finding(
            "separate-namespaces",
            shared.is_empty(),
            "mount, pid, ipc, uts, net, user and cgroup namespaces",
            if shared.is_empty() {
                "a job shares none with the daemon".to_owned()
            } else {
                format!("a job shares {}", shared.join(", "))
            },
        ),
        finding(
            "own-processes",
            processes <= 8,
            "pid namespace",
            format!("a job sees {processes} processes, its own"),
        ),
        finding(
            "own-user-range",
            host_uid != "0" && host_uid.parse::<u32>().is_ok(),
            "user namespace",
            format!("id 0 of a job is {host_uid} on the host"),
        ),
        finding(
            "no-capabilities",
            held.is_empty(),
            "capset and bounding set",
            if held.is_empty() {
                "all five sets are empty".to_owned()
            } else {
                format!("{} not empty", held.join(", "))
            },
        ),
        finding(
            "no-new-privileges",
            seen.is("no_new_privs", "1"),
            "no_new_privs",
            format!(
                "NoNewPrivs is {}",
                seen.get("no_new_privs").unwrap_or("unknown")
            ),
        ),
        refused(
            seen,
            "read-only-system",
            "write_usr",
            "read-only bind mounts",
            "write to /usr",
        ),
        refused(
            seen,
            "no-host-secrets",
            "read_shadow",
            "a root of its own",
            "read /etc/shadow",
        ),
        refused(
            seen,
            "no-host-files",
            "see_root",
            "a root of its own",
            "list /root",
        ),
        refused(
            seen,
            "no-mounts",
            "mount_tmpfs",
            "no capability over its namespaces",
            "mount",
        ),
        refused(
            seen,
            "no-devices",
            "make_device",
            "no capability, nodev",
            "make a device",
        ),
        refused(
            seen,
            "sealed-user-namespace",
            "user_namespace",
            "max_user_namespaces of its own namespace",
            "make a user namespace",
        ),
        refused(
            seen,
            "protected-init",
            "signal_init",
            "an id of its own for PID 1",
            "signal PID 1",
        ),
        finding(
            "no-network",
            seen.is("interfaces", "lo"),
            "network namespace",
            format!(
                "interfaces: {}",
                seen.get("interfaces").unwrap_or("unknown")
            ),
        ),
    ]
}

fn refused(seen: &Facts, promise: &str, fact: &str, mechanism: &str, act: &str) -> Finding {
    let holds = seen.is(fact, "no");
    let detail = if holds {
        format!("a job tried to {act} and was refused")
    } else {
        format!("a job could {act}")
    };
    finding(promise, holds, mechanism, detail)
}

fn finding(promise: &str, holds: bool, mechanism: &str, detail: String) -> Finding {
    Finding {
        promise: promise.to_owned(),
        verdict: if holds {
            Verdict::Enforced
        } else {
            Verdict::NotEnforced
        },
        mechanism: mechanism.to_owned(),
        detail,
        remedy: (!holds).then(|| {
            "do not run untrusted jobs here, and report this with `rnx doctor --json`".to_owned()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "ns_mnt mnt:[2]\nns_pid pid:[2]\nns_ipc ipc:[2]\nns_uts uts:[2]\nns_net net:[2]\n\
        ns_user user:[2]\nns_cgroup cgroup:[2]\nuid 1000\nCapInh 0000\nCapPrm 0000\nCapEff 0000\nCapBnd 0000\n\
        CapAmb 0000\nno_new_privs 1\nhost_uid 2147483648\ninterfaces lo\nprocesses 3\nwrite_usr no\n\
        read_shadow no\nsee_root no\nsignal_init no\nuser_namespace no\nmount_tmpfs no\nmake_device no\n";

    fn verdicts(text: &str) -> Vec<(String, Verdict)> {
        let ours = Facts::parse("ns_mnt mnt:[1]\nns_net net:[1]");
        let findings = judge(&Facts::parse(text), &ours);
        findings
            .into_iter()
            .map(|f| (f.promise, f.verdict))
            .collect()
    }

    #[test]
    fn a_sandboxed_job_keeps_every_promise() {
        assert!(
            verdicts(GOOD)
                .iter()
                .all(|(_, verdict)| *verdict == Verdict::Enforced)
        );
    }

    #[test]
    fn each_fact_that_is_wrong_or_missing_breaks_its_promise() {
        for (from, to, promise) in [
            ("net:[2]", "net:[1]", "separate-namespaces"),
            ("ns_pid pid:[2]\n", "", "separate-namespaces"),
            ("CapBnd 0000", "CapBnd 0020", "no-capabilities"),
            ("CapAmb 0000\n", "", "no-capabilities"),
            ("no_new_privs 1", "no_new_privs 0", "no-new-privileges"),
            ("host_uid 2147483648", "host_uid 0", "own-user-range"),
            ("interfaces lo", "interfaces eth0lo", "no-network"),
            ("processes 3", "processes 300", "own-processes"),
            ("write_usr no", "write_usr yes", "read-only-system"),
            ("see_root no\n", "", "no-host-files"),
            ("signal_init no", "signal_init yes", "protected-init"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let broken: Vec<String> = verdicts(&GOOD.replace(from, to))
                .into_iter()
                .filter(|(_, verdict)| *verdict != Verdict::Enforced)
                .map(|(promise, _)| promise)
                .collect();
            assert_eq!(broken, [promise]);
        }
    }
}
