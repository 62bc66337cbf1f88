//! The address of a client, in one spelling, and the block of addresses that limits count it by.
//!
//! In: the peer of a connection and `X-Forwarded-For`. Out: a [`ClientAddress`]. All code
//! that counts or names clients by address uses this type: limits, quotas, lists, log lines.
//!
//! May use: `config`.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use hyper::{HeaderMap, header::HeaderValue};

use crate::config::Network;

/// Address of a client. An IPv4 address that a dual-stack socket or a proxy writes as IPv6
/// (`::ffff:192.0.2.1`, RFC 4291, section 2.5.5.2) is the IPv4 address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ClientAddress(IpAddr);

/// Addresses that limits count as one client: an IPv4 address, or the /64 of an IPv6 address.
///
/// A host chooses freely among the addresses of its /64 (RFC 4291, section 2.5.4; RFC 8981), so a
/// limit by single addresses would limit nothing.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct AddressBlock(IpAddr);

impl ClientAddress {
    /// Returns the address in its one spelling.
    pub(crate) fn new(address: IpAddr) -> Self {
        let address = address.to_canonical();
        match address {
            // All IPv4 clients behind a NAT64 (RFC 6052, section 2.1) would be one /64.
            IpAddr::V6(v6) if v6.to_bits() >> 32 == NAT64_PREFIX => {
                let [.., a, b, c, d] = v6.octets();
                Self(IpAddr::from([a, b, c, d]))
            }
            _ => Self(address),
        }
    }

    /// Returns the address of a request's client: the peer's, or the one that trusted proxies
    /// report in `X-Forwarded-For`.
    pub(crate) fn of_request(
        peer: IpAddr,
        headers: &HeaderMap,
        trusted_proxies: &[Network],
    ) -> Self {
        let is_trusted =
            |address: IpAddr| trusted_proxies.iter().any(|network| network.contains(address));
        if !is_trusted(peer) {
            return Self::new(peer);
        }
        let mut client = peer;
        let fields = headers.get_all("x-forwarded-for").iter().map(HeaderValue::as_bytes);
        // By bytes: a client may send any, and one hop that is no text must not hide the others.
        let hops = fields.flat_map(|field| field.split(|byte| *byte == b','));
        // An empty element of a list counts for nothing (RFC 9110, section 5.6.1.2).
        let hops: Vec<&[u8]> = hops.map(<[u8]>::trim_ascii).filter(|hop| !hop.is_empty()).collect();
        for hop in hops.into_iter().rev() {
            // From the right: each hop was written by the proxy after it, so the first untrusted
            // address is the client's; the client itself may have written the hops before it.
            if !is_trusted(client) {
                break;
            }
            let Some(address) = parse_hop(hop) else { break };
            client = address;
        }
        Self::new(client)
    }

    /// Returns the block that limits count this address by.
    pub(crate) fn block(self) -> AddressBlock {
        AddressBlock(match self.0 {
            IpAddr::V4(_) => self.0,
            IpAddr::V6(address) => {
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & FIRST_64_BITS))
            }
        })
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// Parses an address as proxies write it: bare, in brackets, or either with a port, which may be
/// empty; quoted as in `Forwarded` (RFC 7239, section 6), or with a zone (RFC 4007), too.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?;
    let hop = hop.strip_prefix('"').and_then(|hop| hop.strip_suffix('"')).unwrap_or(hop);
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let bare = match bare.strip_suffix(':') {
        Some(v4) if !v4.contains(':') => v4,
        _ => bare,
    };
    let bare = bare.split_once('%').map_or(bare, |(address, _zone)| address);
    bare.parse().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|socket| socket.ip()))
}

const FIRST_64_BITS: u128 = !0 << 64;

/// `64:ff9b::/96`, without its last 32 bits.
const NAT64_PREFIX: u128 = 0x0064_ff9b << 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, forwarded: &[&str]) -> String {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| Network::parse(network).unwrap());
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        ClientAddress::of_request(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn an_address_has_one_spelling_wherever_it_comes_from() {
        assert_eq!(client("::ffff:192.0.2.1", &[]), "192.0.2.1");
        for hop in [
            "192.0.2.1",
            "192.0.2.1:4711",
            "::ffff:192.0.2.1",
            "[::ffff:192.0.2.1]:80",
            "\"192.0.2.1:80\"",
            " 192.0.2.1 ,",
            "192.0.2.1,, ,10.1.1.1",
            "192.0.2.1:",
            "64:ff9b::192.0.2.1",
            "192.0.2.1, [::ffff:10.1.1.1]:443,",
        ] {
            assert_eq!(client("10.0.0.1", &[hop]), "192.0.2.1", "{hop}");
            assert_eq!(client("::ffff:10.0.0.1", &[hop]), "192.0.2.1", "{hop}");
        }
        for hop in [
            "2001:db8::1%eth0",
            "2001:db8::1",
            "[2001:DB8:0::1]",
            "[2001:db8::1]:443",
            "\"[2001:db8::1]\",",
        ] {
            assert_eq!(client("fd00::1", &[hop]), "2001:db8::1", "{hop}");
        }
        assert_eq!(client("10.0.0.1", &["192.0.2.1", "10.2.2.2", ""]), "192.0.2.1", "by field");
    }

    #[test]
    fn only_trusted_proxies_count_and_a_malformed_hop_ends_the_chain() {
        assert_eq!(client("192.0.2.9", &["192.0.2.1"]), "192.0.2.9");
        assert_eq!(client("10.0.0.1", &["6.6.6.6, 192.0.2.1"]), "192.0.2.1");
        for hop in ["unknown", "[192.0.2.1", "192.0.2.1]", "192.0.2.1:x", "_hidden", "[]", "1.2.3"]
        {
            assert_eq!(client("10.0.0.1", &[&format!("{hop}, 10.3.3.3")]), "10.3.3.3", "{hop}");
        }
        assert_eq!(client("10.0.0.1", &[","]), "10.0.0.1");
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", HeaderValue::from_bytes(b"\xe9, 192.0.2.1").unwrap());
        let trusted = [Network::parse("10.0.0.0/8").unwrap()];
        let client = ClientAddress::of_request([10, 0, 0, 1].into(), &headers, &trusted);
        assert_eq!(client.to_string(), "192.0.2.1", "a hop that is no text hides no other");
    }

    #[test]
    fn a_block_is_one_ipv4_address_or_a_64() {
        let block = |address: &str| ClientAddress::new(address.parse().unwrap()).block();
        assert_eq!(block("2001:db8:0:1::1"), block("2001:db8:0:1:ffff:ffff:ffff:ffff"));
        assert_ne!(block("2001:db8:0:1::1"), block("2001:db8:0:2::1"));
        assert_eq!(block("::ffff:192.0.2.1"), block("192.0.2.1"));
        assert_ne!(block("::ffff:192.0.2.1"), block("::ffff:192.0.2.2"));
    }
}
