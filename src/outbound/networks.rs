//! The addresses that are not public: IANA's registries of special-purpose addresses, and metadata
//! services beside them.
//!
//! In: an address. Out: whether it routes publicly. Pure.
//!
//! May use: no other module.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Returns whether the address is one of the public internet.
///
/// A translated address is judged by the IPv4 address it leads to.
pub(crate) fn routes_publicly(address: IpAddr) -> bool {
    match (embedded_ipv4(address), address) {
        (Some(IpAddr::V4(inner)), _) | (None, IpAddr::V4(inner)) => v4_routes_publicly(inner),
        (Some(IpAddr::V6(_)), _) => false,
        (None, IpAddr::V6(address)) => v6_routes_publicly(address),
    }
}

/// Returns the IPv4 address embedded in an IPv6 address: mapped, or of a NAT64 or 6to4 gateway.
///
/// Forms without a gateway today (`::127.0.0.1`, `::ffff:0:127.0.0.1`, Teredo) are not translated:
/// they are not public as IPv6 addresses either.
pub(crate) fn embedded_ipv4(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else { return None };
    let bits = address.to_bits();
    let is_in =
        |network, prefix| matches_prefix(bits, u128::BITS, Ipv6Addr::to_bits(network), prefix);
    let inner = if is_in(V4_MAPPED, 96) || is_in(NAT64, 96) {
        bits
    } else if is_in(SIX_TO_FOUR, 16) {
        // 6to4 has the IPv4 address in bits 16 to 47, the other two in the last 32.
        bits >> 80
    } else {
        return None;
    };
    let inner = u32::try_from(inner & u128::from(u32::MAX)).ok()?;
    Some(IpAddr::V4(Ipv4Addr::from_bits(inner)))
}

fn v4_routes_publicly(address: Ipv4Addr) -> bool {
    let bits = u128::from(address.to_bits());
    let is_in = |(network, prefix): &(Ipv4Addr, u32)| {
        matches_prefix(bits, u32::BITS, network.to_bits().into(), *prefix)
    };
    !SPECIAL_V4.iter().any(is_in)
}

fn v6_routes_publicly(address: Ipv6Addr) -> bool {
    let bits = address.to_bits();
    let is_in = |(network, prefix): &(Ipv6Addr, u32)| {
        matches_prefix(bits, u128::BITS, network.to_bits(), *prefix)
    };
    is_in(&GLOBAL_UNICAST) && !SPECIAL_V6.iter().any(is_in)
}

/// Returns whether two addresses of `width` bits begin with the same `prefix` bits.
fn matches_prefix(address: u128, width: u32, network: u128, prefix: u32) -> bool {
    (address ^ network) >> (width - prefix) == 0
}

/// IPv4 in the form of IPv6 (RFC 4291, section 2.5.5.2).
const V4_MAPPED: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);

/// The well-known prefix of NAT64 (RFC 6052); `64:ff9b:1::/48` is for private use, so it is not
/// here.
const NAT64: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

/// 6to4 (RFC 3056).
const SIX_TO_FOUR: Ipv6Addr = Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0);

/// All public IPv6 addresses are in this network; loopback, unique local, link-local and multicast
/// addresses are not.
const GLOBAL_UNICAST: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Networks within [`GLOBAL_UNICAST`] that are not public.
const SPECIAL_V6: [(Ipv6Addr, u32); 3] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // protocols: Teredo, benchmarks, ORCHID
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // documentation
];

/// IPv4 networks that are not public.
const SPECIAL_V4: [(Ipv4Addr, u32); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8), // this host: Linux dials 0.0.0.0 as loopback
    (Ipv4Addr::new(10, 0, 0, 0), 8), // private
    (Ipv4Addr::new(100, 64, 0, 0), 10), // carriers' NAT, and Alibaba's metadata
    (Ipv4Addr::new(127, 0, 0, 0), 8), // loopback
    (Ipv4Addr::new(168, 63, 129, 16), 32), // Azure's wire server, on the host itself
    (Ipv4Addr::new(169, 254, 0, 0), 16), // link-local, and most clouds' metadata
    (Ipv4Addr::new(172, 16, 0, 0), 12), // private
    (Ipv4Addr::new(192, 0, 0, 0), 24), // protocol assignments, and Oracle's metadata
    (Ipv4Addr::new(192, 0, 2, 0), 24), // documentation
    (Ipv4Addr::new(192, 88, 99, 0), 24), // 6to4 relays, gone
    (Ipv4Addr::new(192, 168, 0, 0), 16), // private
    (Ipv4Addr::new(198, 18, 0, 0), 15), // benchmarks
    (Ipv4Addr::new(198, 51, 100, 0), 24), // documentation
    (Ipv4Addr::new(203, 0, 113, 0), 24), // documentation
    (Ipv4Addr::new(224, 0, 0, 0), 4), // multicast
    (Ipv4Addr::new(240, 0, 0, 0), 4), // reserved, and broadcast
];

#[cfg(test)]
mod tests {
    use super::*;

    fn text_routes_publicly(text: &str) -> bool {
        routes_publicly(text.parse().unwrap())
    }

    #[test]
    fn first_and_last_address_of_every_special_network_are_refused_and_their_neighbours_are_not() {
        let networks = [
            ("0.0.0.0", "0.255.255.255", "1.0.0.0"),
            ("10.0.0.0", "10.255.255.255", "11.0.0.0"),
            ("100.64.0.0", "100.127.255.255", "100.128.0.0"),
            ("127.0.0.0", "127.255.255.255", "128.0.0.0"),
            ("168.63.129.16", "168.63.129.16", "168.63.129.17"),
            ("169.254.0.0", "169.254.255.255", "169.255.0.0"),
            ("172.16.0.0", "172.31.255.255", "172.32.0.0"),
            ("192.0.0.0", "192.0.0.255", "192.0.1.0"),
            ("192.0.2.0", "192.0.2.255", "192.0.3.0"),
            ("192.88.99.0", "192.88.99.255", "192.88.100.0"),
            ("192.168.0.0", "192.168.255.255", "192.169.0.0"),
            ("198.18.0.0", "198.19.255.255", "198.20.0.0"),
            ("198.51.100.0", "198.51.100.255", "198.51.101.0"),
            ("203.0.113.0", "203.0.113.255", "203.0.114.0"),
            ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::"),
            ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::"),
            ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"),
        ];
        for (first, last, behind) in networks {
            assert!(!text_routes_publicly(first), "{first}");
            assert!(!text_routes_publicly(last), "{last}");
            assert!(text_routes_publicly(behind), "{behind}");
        }
    }

    #[test]
    fn neighbours_before_special_networks_are_public() {
        for text in [
            "9.255.255.255",
            "100.63.255.255",
            "126.255.255.255",
            "168.63.129.15",
            "169.253.255.255",
            "172.15.255.255",
            "191.255.255.255",
            "192.0.1.255",
            "192.88.98.255",
            "192.167.255.255",
            "198.17.255.255",
            "198.51.99.255",
            "203.0.112.255",
            "223.255.255.255",
            "2000::",
            "2001:db7:ffff::",
            "3ffe:ffff::",
            "2606:4700:4700::1111",
        ] {
            assert!(text_routes_publicly(text), "{text}");
        }
    }

    #[test]
    fn nothing_outside_global_unicast_is_public() {
        for text in [
            "::",
            "::1",
            "::127.0.0.1",
            "::8.8.8.8",
            "::ffff:0:8.8.8.8",
            "64:ff9b:1::8.8.8.8",
            "100::1",
            "1fff:ffff::",
            "4000::",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!text_routes_publicly(text), "{text}");
        }
        for text in ["224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"] {
            assert!(!text_routes_publicly(text), "{text}");
        }
    }

    #[test]
    fn a_translated_address_is_judged_by_where_it_leads() {
        for text in ["::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"] {
            assert!(text_routes_publicly(text), "{text}");
        }
        for text in [
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::1",
            "2002:a9fe:a9fe::",
        ] {
            assert!(!text_routes_publicly(text), "{text}");
        }
    }
}
