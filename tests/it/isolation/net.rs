//! A job has a network of its own, with loopback and nothing else.

use super::DAEMON;
use crate::harness::Host;

#[test]
fn loopback_is_the_only_interface_and_it_is_up() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let devices = daemon.sh("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '");
    assert_eq!(devices, "lo\n");
    assert_eq!(daemon.sh("tail -n +2 /proc/net/route | wc -l").trim(), "0");
    let script = r#"use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
        bind($s, sockaddr_in(0, inet_aton("127.0.0.1"))) or die "bind $!"; listen($s, 1) or die; \
        my ($port) = sockaddr_in(getsockname($s)); socket(my $c, PF_INET, SOCK_STREAM, 0) or die; \
        connect($c, sockaddr_in($port, inet_aton("127.0.0.1"))) or die "connect $!"; print "connected\n""#;
    let run = daemon.job(["perl", "-e", &script.replace("\\\n", "\n")]);
    run.assert_code(0);
    assert_eq!(run.text(), "connected\n");
}

#[test]
fn low_ports_need_no_privilege() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let script = r#"use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0) or die;
        bind($s, sockaddr_in(80, INADDR_ANY)) or die "bind $!""#;
    daemon.job(["perl", "-e", script]).assert_code(0);
}

#[test]
fn the_daemon_cannot_be_reached_from_a_job() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let script = format!(
        r#"use Socket; for my $host ("127.0.0.1", "169.254.169.254", "1.1.1.1") {{
        socket(my $c, PF_INET, SOCK_STREAM, 0) or die;
        connect($c, sockaddr_in({port}, inet_aton($host))) and die "reached $host" }}"#
    );
    daemon.job(["perl", "-e", &script]).assert_code(0);
}

#[test]
fn abstract_sockets_of_the_host_are_out_of_sight() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let name = format!("joblet-it-{}", std::process::id());
    let _listener =
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let script = format!(
        r#"use Socket; socket(my $c, PF_UNIX, SOCK_STREAM, 0) or die;
        connect($c, pack("S a*", AF_UNIX, "\0{name}")) and die "reached the host""#
    );
    daemon.job(["perl", "-e", &script]).assert_code(0);
    assert_eq!(daemon.sh("tail -n +2 /proc/net/unix | wc -l").trim(), "0");
}
