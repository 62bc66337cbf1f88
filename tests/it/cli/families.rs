//! IPv4 and IPv6: one listener for both, and machines that have one of them only.

use std::{net::Ipv4Addr, process::Command};

use crate::common::{http, process::Process, relay::Setup};

/// Takes the served addresses from the log, and sends a request to each.
#[test]
fn both_families_are_served_by_one_listener() {
    let relay = Setup::new()
        .server("listen = '[::]:0'\nprobe_listen = '[::]:0'")
        .auth("allow_anonymous = false")
        .start();
    let probe = relay.probe.unwrap();
    for host in ["127.0.0.1", "[::1]"] {
        let at = |port: u16| format!("{host}:{port}").parse().unwrap();
        http::get(at(relay.public.port()), "/nowhere", &[]).problem(404);
        assert_eq!(http::get(at(probe.port()), "/healthz", &[]).status(), 200, "{host}");
    }
}

#[test]
fn an_address_of_ipv4_serves_ipv4_alone() {
    let relay = Setup::new().server("listen = '0.0.0.0:0'").auth("allow_anonymous = false").start();
    let port = relay.public.port();
    http::get((Ipv4Addr::LOCALHOST, port).into(), "/nowhere", &[]).problem(404);
    assert!(std::net::TcpStream::connect(("::1", port)).is_err());
}

/// Starts with default addresses in a network without IPv4, even on loopback.
#[test]
fn the_default_addresses_work_with_ipv6_only() {
    in_network(
        "ip link set lo up && ip -6 addr add 2001:db8::1/128 dev lo nodad && ip addr del 127.0.0.1/8 dev lo",
        &["http://[2001:db8::1]:8080/nowhere 404", "http://[::1]:9090/readyz 200"],
    );
}

#[test]
fn the_default_addresses_work_with_ipv4_only() {
    in_network(
        "ip link set lo up && sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1",
        &["http://127.0.0.1:8080/nowhere 404", "http://127.0.0.1:9090/readyz 200"],
    );
}

/// Starts the relay with default addresses in its own network namespace, and sends requests there.
fn in_network(prepare: &str, expected: &[&str]) {
    let (_directory, file) = Setup::new().auth("allow_anonymous = false").write();
    let text = std::fs::read_to_string(&file).unwrap();
    let kept = text.lines().filter(|line| !line.contains("listen ="));
    std::fs::write(&file, kept.collect::<Vec<_>>().join("\n")).unwrap();
    let asks = expected.iter().map(|line| {
        let (url, status) = line.split_once(' ').unwrap();
        format!(
            "got=000; n=0; while [ $got = 000 ] && [ $n -lt 100 ]; do \
             got=$(curl -s -g -o /dev/null -w '%{{http_code}}' --max-time 5 '{url}'); n=$((n + 1)); \
             [ $got != 000 ] || sleep 0.1; done; \
             [ $got = {status} ] || {{ echo \"{url}: $got\"; exit 1; }}"
        )
    });
    let script = format!(
        "{prepare} || exit 9; \"$0\" serve --config {} & relay=$!; trap 'kill $relay' EXIT; {}",
        file.display(),
        asks.collect::<Vec<_>>().join("; ")
    );
    let finished = Command::new("unshare")
        .args(["-Urn", "sh", "-c", &script, env!("CARGO_BIN_EXE_autoplay-relay")])
        .output()
        .unwrap();
    let shown = format!("{finished:?}");
    assert_ne!(finished.status.code(), Some(9), "the kernel refuses such a network: {shown}");
    assert!(finished.status.success(), "{shown}");
}

#[test]
fn a_listener_of_all_interfaces_clashes_with_one_of_either_family() {
    let setup = Setup::new().server("listen = '[::]:4711'\nprobe_listen = '127.0.0.1:4711'");
    let (_directory, file) = setup.auth("allow_anonymous = false").write();
    let finished = Process::run(&["check", "--config", file.to_str().unwrap()], &[]);
    assert_eq!(finished.code, Some(2));
    assert!(finished.stderr.contains("clashes with server.listen"), "{}", finished.stderr);
}
