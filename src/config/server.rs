//! `[server]`: listeners and limits of the relay.
//!
//! In: the section. Out: [`ServerConfig`], in which 0 and "" are [`None`] where they mean "no
//! limit" or "not set".
//!
//! May use: no other module.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::{
    address::{HostAndPort, Origin},
    certificate::{CERT_FILE_KEY, KEY_FILE_KEY, TlsFiles},
    entry::ConfigEntry,
    findings::quoted,
    keys::config_keys,
    network::Network,
    section::Section,
};

config_keys! {
    /// Listeners, limits and times of the public side.
    struct ServerConfig |section, key, entry, default_listen: SocketAddr| {
        /// Address for subscribers and publishers.
        listen: SocketAddr =
            AtRestart(entry().parse_with(parse_socket_address).unwrap_or(default_listen));
        /// Address for health, metrics, admin API and console.
        admin_listen: SocketAddr = AtRestart(read_admin_listen(&entry()));
        /// Address for health and metrics alone, for kubelet and Prometheus.
        probe_listen: Option<SocketAddr> = AtRestart(entry().optional(parse_socket_address));
        /// Accepted values of `Host`, beside addresses and `localhost`, where no credential is
        /// required.
        allowed_hosts: Vec<HostAndPort> =
            AtReload(entry().parse_list(HostAndPort::parse).unwrap_or_default());
        /// Peers whose `X-Forwarded-For` names the client.
        trusted_proxies: Vec<Network> =
            AtReload(entry().parse_list(Network::parse).unwrap_or_default());
        /// Silence after which a subscriber gets a heartbeat.
        // The interval of the connector: under the minute after which most proxies cut a silent
        // connection.
        heartbeat_interval: Duration =
            AtReload(entry().duration(MIN_TIMEOUT).unwrap_or(Duration::from_secs(30)));
        /// Time for which a subscriber's socket may take nothing.
        // One heartbeat interval: a socket that cannot take even a heartbeat has no live peer.
        write_timeout: Duration =
            AtRestart(entry().duration(MIN_TIMEOUT).unwrap_or(Duration::from_secs(30)));
        /// Time that the first byte, the TLS handshake and the request head may each take.
        // Enough for a handshake over a bad mobile link, and short against a slow-loris attack.
        head_timeout: Duration =
            AtRestart(entry().duration(MIN_TIMEOUT).unwrap_or(Duration::from_secs(10)));
        /// Maximum size of a published event, in bytes.
        // The same as the default of an upstream's `max_event_bytes`: both sides accept events of
        // the same size.
        max_publish_bytes: u64 = AtReload(entry().size(EVENT_BYTES_RANGE).unwrap_or(1 << 20));
        /// Age at which a stream ends, plus or minus a fifth; [`None`] = no limit.
        max_connection_age: Option<Duration> =
            AtReload(entry().duration(Duration::ZERO).filter(|age| !age.is_zero()));
        /// Maximum new subscribers per second; [`None`] = no limit.
        max_connects_per_second: Option<u32> = AtReload(entry().limit());
        /// Maximum concurrent subscribers with one key; [`None`] = no limit.
        max_subscribers_per_key: Option<usize> = AtReload(entry().limit());
        /// Maximum reads of the store at one time. The store has two reader threads.
        // Each replay reads the disk; more concurrent replays would only slow each other down.
        max_concurrent_replays: usize = AtRestart(entry().number(1..=u32::MAX).unwrap_or(64));
        /// Maximum concurrent subscribers.
        // Fits the memory of a small machine (1 GiB).
        max_subscribers: usize = AtReload(entry().number(1..=u32::MAX).unwrap_or(100_000));
        /// Maximum concurrent subscribers from one address; [`None`] = no limit.
        max_subscribers_per_ip: Option<usize> = AtReload(entry().limit());
        /// Time over which subscribers are disconnected when the relay shuts down.
        // A third of the 30 s that Kubernetes gives a pod to stop.
        drain_window: Duration =
            AtReload(entry().duration(Duration::ZERO).unwrap_or(Duration::from_secs(10)));
        /// Origins whose pages may read events and open WebSockets.
        cors_allowed_origins: Vec<Origin> =
            AtReload(entry().parse_list(Origin::parse).unwrap_or_default());
        /// Certificate and key, if the public side uses HTTPS.
        tls: Option<TlsFiles> = AtRestart(read_tls_files(section));
    }
}

/// All interfaces, of IPv4 and IPv6: in a container, where the relay usually runs, nothing narrower
/// could be reached. Where the kernel has no IPv6, the listener serves IPv4 alone.
pub(super) const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8080);
/// Loopback, because it is open without an admin key.
const DEFAULT_ADMIN_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// The resolution of the timer wheel behind heartbeats and deadlines.
const MIN_TIMEOUT: Duration = Duration::from_millis(100);
/// Accepted range of event size limits: a lower limit would be useless, and a higher one is too
/// much for memory, which holds each event whole.
pub(super) const EVENT_BYTES_RANGE: std::ops::RangeInclusive<u64> = 1 << 10..=64 << 20;

impl ServerConfig {
    /// Reads the section. `default_listen` depends on the way in which the relay is started.
    pub(super) fn read(section: &mut Section<'_>, default_listen: SocketAddr) -> Self {
        let server = Self::read_keys(section, default_listen);
        server.check_listeners_differ(section);
        server
    }

    fn check_listeners_differ(&self, section: &mut Section<'_>) {
        let listeners = [
            ("listen", Some(self.listen)),
            ("admin_listen", Some(self.admin_listen)),
            ("probe_listen", self.probe_listen),
        ];
        let configured =
            listeners.iter().filter_map(|(name, address)| address.map(|address| (*name, address)));
        let mut earlier: Vec<(&str, SocketAddr)> = Vec::new();
        for (name, address) in configured {
            let entry = section.entry(name);
            if let Some((other, _)) =
                earlier.iter().find(|(_, other)| addresses_clash(*other, address))
            {
                let other = section.entry(other);
                // Neither a default nor the replacement of an invalid address is reported.
                let (at_fault, conflicting) =
                    if entry.is_given() { (&entry, &other) } else { (&other, &entry) };
                if entry.is_free_of_findings() && other.is_free_of_findings() {
                    at_fault.report(format!(
                        "clashes with {}; each listener needs its own address",
                        conflicting.key()
                    ));
                }
            }
            earlier.push((name, address));
        }
    }
}

/// Returns whether two listeners cannot both be bound. Port 0 is a new port for each.
fn addresses_clash(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |all: SocketAddr, other: SocketAddr| match all.ip() {
        IpAddr::V4(all) => all.is_unspecified() && other.ip().to_canonical().is_ipv4(),
        // `[::]` serves IPv4, too: see `net::Listener`.
        IpAddr::V6(all) => all.is_unspecified(),
    };
    let is_same = one.ip().to_canonical() == other.ip().to_canonical();
    let overlap = is_same || covers(one, other) || covers(other, one);
    one.port() != 0 && one.port() == other.port() && overlap
}

fn read_tls_files(section: &mut Section<'_>) -> Option<TlsFiles> {
    let (cert, key) = (&section.entry(CERT_FILE_KEY), &section.entry(KEY_FILE_KEY));
    let report_missing = |missing: &ConfigEntry<'_>, given: &ConfigEntry<'_>| {
        missing.report(format!("is required with {}; give both keys or neither", given.key()));
    };
    match (cert.is_given(), key.is_given()) {
        (true, false) => report_missing(key, cert),
        (false, true) => report_missing(cert, key),
        (true, true) | (false, false) => {}
    }
    let (cert_file, key_file) = (cert.readable_path(), key.readable_path());
    let files = TlsFiles { cert_file: cert_file?, key_file: key_file? };
    if let Err(error) = files.read() {
        let at_fault = if error.is_key_file_error() { key } else { cert };
        at_fault.report(error.message());
        return None;
    }
    Some(files)
}

/// Reads the address of the admin listener.
pub(super) fn read_admin_listen(entry: &ConfigEntry<'_>) -> SocketAddr {
    entry.parse_with(parse_socket_address).unwrap_or(DEFAULT_ADMIN_LISTEN)
}

fn parse_socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{} is not an address; write IP:port, e.g. 127.0.0.1:8080", quoted(text))
    })
}

#[cfg(test)]
mod tests {
    use crate::config::{
        certificate::tests::{P256_OPTIONS, generate_certificate},
        tests::{findings, parsed},
    };
    use std::{path::Path, time::Duration};

    #[test]
    fn an_invalid_address_is_reported_with_a_correction() {
        let expected = "relay.toml:2: server.listen: \"foo\" is not an address; write IP:port, e.g. 127.0.0.1:8080";
        assert_eq!(findings("[server]\nlisten = 'foo'"), expected);
        assert!(findings("[server]\nadmin_listen = ''").contains("\"\" is not an address"));
    }

    #[test]
    fn every_key_of_the_section_is_checked_and_all_findings_come_together() {
        let bad = [
            ("probe_listen", "'x'"),
            ("allowed_hosts", "['http://x']"),
            ("trusted_proxies", "['10.0.0.1/8']"),
            ("heartbeat_interval", "'99ms'"),
            ("write_timeout", "'0s'"),
            ("head_timeout", "'10'"),
            ("max_publish_bytes", "'1023B'"),
            ("max_connection_age", "0"),
            ("max_connects_per_second", "-1"),
            ("max_subscribers_per_key", "4294967296"),
            ("max_concurrent_replays", "0"),
            ("max_subscribers", "0"),
            ("max_subscribers_per_ip", "''"),
            ("drain_window", "'11years'"),
            ("cors_allowed_origins", "['*']"),
        ];
        let text: String = bad.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        let found = findings(&format!("[server]\n{text}"));
        assert_eq!(found.lines().count(), bad.len(), "{found}");
        for (line, (key, _)) in found.lines().zip(bad) {
            assert!(line.contains(&format!(": server.{key}")), "{line}");
        }
    }

    #[test]
    fn zero_is_no_limit() {
        let text = "[server]\nmax_connection_age = '0s'\nmax_connects_per_second = 0\nmax_subscribers_per_ip = 9";
        let server = parsed(text).server;
        assert_eq!((server.max_connection_age, server.max_connects_per_second), (None, None));
        assert_eq!(
            (server.max_subscribers_per_key, server.max_subscribers_per_ip),
            (None, Some(9))
        );
        let text = "[server]\nmax_connection_age = '1h'";
        assert_eq!(parsed(text).server.max_connection_age, Some(Duration::from_secs(3600)));
    }

    #[test]
    fn listeners_must_differ_unless_the_port_is_zero() {
        let text = "[server]\nlisten = '127.0.0.1:9090'";
        let expected = "relay.toml:2: server.listen: clashes with server.admin_listen; each listener needs its own address";
        assert_eq!(findings(text), expected);
        let text = "[server]\nlisten = '0.0.0.0:80'\nprobe_listen = '127.0.0.1:80'";
        assert!(
            findings(text)
                .starts_with("relay.toml:3: server.probe_listen: clashes with server.listen"),
            "{}",
            findings(text)
        );
        parsed(
            "[server]\nlisten = '127.0.0.1:0'\nadmin_listen = '127.0.0.1:0'\nprobe_listen = '127.0.0.1:0'",
        );
        parsed("[server]\nlisten = '127.0.0.1:80'\nprobe_listen = '127.0.0.2:80'");
        // All interfaces of IPv6 are those of IPv4, too; one address of IPv6 is not.
        for (listen, probe) in [
            ("[::]", "0.0.0.0"),
            ("[::]", "127.0.0.1"),
            ("[::1]", "[::]"),
            ("[::ffff:127.0.0.1]", "127.0.0.1"),
        ] {
            let text = format!("[server]\nlisten = '{listen}:80'\nprobe_listen = '{probe}:80'");
            assert!(findings(&text).contains("clashes with server.listen"), "{text}");
        }
        parsed("[server]\nlisten = '0.0.0.0:80'\nprobe_listen = '[::1]:80'");
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let (_folder, files) = generate_certificate(P256_OPTIONS);
        let readable = &files.cert_file;
        let expected = "relay.toml:1: server.tls_key_file: is required with server.tls_cert_file; give both keys or neither";
        assert_eq!(
            findings(&format!("[server]\ntls_cert_file = '{}'", readable.display())),
            expected
        );
        assert!(
            findings(&format!("[server]\ntls_key_file = '{}'", readable.display()))
                .contains("server.tls_cert_file: is req")
        );
        let both = |cert: &Path, key: &Path| {
            format!(
                "[server]\ntls_cert_file = '{}'\ntls_key_file = '{}'",
                cert.display(),
                key.display()
            )
        };
        assert_eq!(
            parsed(&both(&files.cert_file, &files.key_file)).server.tls,
            Some(files.clone())
        );
        let found = findings(&both(&files.key_file, &files.key_file));
        assert!(
            found.starts_with("relay.toml:2: server.tls_cert_file: ")
                && found.contains("no CERTIFICATE"),
            "{found}"
        );
        let found = findings(&both(&files.cert_file, &files.cert_file));
        assert!(
            found.starts_with("relay.toml:3: server.tls_key_file: ")
                && found.contains("no private key"),
            "{found}"
        );
        let missing = findings("[server]\ntls_cert_file = '/no/cert'\ntls_key_file = '/no/key'");
        assert!(
            missing.contains("cannot read /no/cert") && missing.contains("cannot read /no/key"),
            "{missing}"
        );
    }
}
