//! A job gets three descriptors and no other.

use super::DAEMON;
use crate::harness::Host;

#[test]
fn descriptors_are_0_1_and_2() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    // perl opens one of its own to read the directory: it is the only one beyond 2 and says so.
    let script = r#"opendir(my $d, "/proc/self/fd") or die; for (sort grep { /^\d/ } readdir $d) {
        my $to = readlink "/proc/self/fd/$_"; print "$_ $to\n" unless $to =~ m{^/proc/\d+/fd$} }"#;
    let run = daemon.job(["perl", "-e", script]);
    run.assert_code(0);
    let text = run.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[0], "0 /dev/null");
    assert!(
        lines[1].starts_with("1 pipe:") && lines[2].starts_with("2 pipe:"),
        "{text}"
    );
}

#[test]
fn shared_pipe_flags_do_no_harm() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    // F_SETFL O_NONBLOCK and F_SETPIPE_SZ (1031) on its own standard output.
    let script = r#"use Fcntl; fcntl(STDOUT, 1031, 4096); fcntl(STDOUT, F_SETFL, O_NONBLOCK|O_WRONLY) or die;
        my $left = 300000; while ($left > 0) { my $n = syswrite(STDOUT, "x" x ($left > 1000 ? 1000 : $left));
        if (defined $n) { $left -= $n } else { select(undef, undef, undef, 0.001) } }"#;
    let run = daemon.job(["perl", "-e", script]);
    run.assert_code(0);
    assert_eq!(run.stdout.len(), 300_000);
    daemon.job(["true"]).assert_code(0);
}
