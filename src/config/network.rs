//! Networks in CIDR notation.
//!
//! In: `10.0.0.0/8`, `fd00::/8`, or a bare address. Out: whether an address is in the network. An
//! IPv4 address in IPv6 form (`::ffff:10.0.0.1`) counts as the IPv4 address, both in the network
//! and in the address to check: otherwise its spelling would bypass a list of networks.
//!
//! May use: no other module.

use std::fmt;
use std::net::IpAddr;

use super::findings::quoted;

/// A network: all addresses that share the first `prefix` bits. Its host bits are zero.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Network {
    first: IpAddr,
    prefix: u32,
}

impl Network {
    /// Parses a network; a bare address is the network of that address alone.
    ///
    /// # Errors
    ///
    /// A message that says what to write instead, if the text is no address, the prefix is too
    /// long, or host bits are set.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (address, prefix) =
            text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let invalid = || {
            format!(
                "{} is not a network; write an address and a prefix, e.g. 10.0.0.0/8",
                quoted(text)
            )
        };
        let written: IpAddr = address.parse().map_err(|_| invalid())?;
        let written_width = AddressBits::of(written).width;
        let prefix = match prefix {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| invalid())?
            }
            Some(_) => return Err(invalid()),
            None => written_width,
        };
        if prefix > written_width {
            return Err(format!("{} has a prefix longer than its address", quoted(text)));
        }
        Self::canonical(written, prefix)
            .ok_or_else(|| format!("{} has host bits set; write its first address", quoted(text)))
    }

    /// Returns whether the address is in this network.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let (network, address) =
            (AddressBits::of(self.first), AddressBits::of(address.to_canonical()));
        let host_bits = network.width.saturating_sub(self.prefix);
        network.width == address.width
            && network.without_host_bits(host_bits) == address.without_host_bits(host_bits)
    }

    /// Returns the network with IPv4 in its own form; [`None`] if bits beyond the prefix are set.
    fn canonical(written: IpAddr, written_prefix: u32) -> Option<Self> {
        let first = written.to_canonical();
        let dropped = AddressBits::of(written).width - AddressBits::of(first).width;
        // A mapped address has all bits set just above its IPv4 part, so a shorter prefix would
        // leave host bits set.
        let prefix = written_prefix.checked_sub(dropped)?;
        let bits = AddressBits::of(first);
        let host_bits = bits.width - prefix;
        let has_host_bits =
            bits.without_host_bits(host_bits).checked_shl(host_bits).unwrap_or(0) != bits.value;
        (!has_host_bits).then_some(Self { first, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.first, self.prefix)
    }
}

/// An address as a number of 32 or 128 bits.
struct AddressBits {
    value: u128,
    width: u32,
}

impl AddressBits {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self { value: u128::from(address.to_bits()), width: 32 },
            IpAddr::V6(address) => Self { value: address.to_bits(), width: 128 },
        }
    }

    /// Returns the leading bits alone. `checked_shr` is needed because a shift by the whole width
    /// would overflow.
    fn without_host_bits(&self, host_bits: u32) -> u128 {
        self.value.checked_shr(host_bits).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        Network::parse(network).unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn a_network_contains_the_addresses_that_share_its_prefix() {
        assert!(contains("10.0.0.0/8", "10.255.1.2"));
        assert!(!contains("10.0.0.0/8", "11.0.0.0"));
        assert!(contains("192.168.4.0/22", "192.168.7.255"));
        assert!(!contains("192.168.4.0/22", "192.168.8.0"));
        assert!(contains("0.0.0.0/0", "255.255.255.255"));
        assert!(contains("fd00::/8", "fdff::1"));
        assert!(!contains("fd00::/8", "fe80::1"));
        assert!(contains("::/0", "2001:db8::1"));
    }

    #[test]
    fn a_bare_address_contains_itself_only() {
        assert!(contains("10.0.0.1", "10.0.0.1"));
        assert!(!contains("10.0.0.1", "10.0.0.0"));
        assert!(contains("::1", "::1"));
        assert!(!contains("::1", "::2"));
    }

    #[test]
    fn a_mapped_address_is_its_ipv4_address_on_both_sides() {
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(contains("::ffff:10.0.0.0/104", "10.1.2.3"));
        assert!(contains("::ffff:10.0.0.1", "::ffff:10.0.0.1"));
        assert_eq!(Network::parse("::ffff:10.0.0.0/104").unwrap().to_string(), "10.0.0.0/8");
    }

    #[test]
    fn the_families_do_not_mix() {
        assert!(!contains("::/0", "10.0.0.1"));
        assert!(!contains("0.0.0.0/0", "::1"));
    }

    #[test]
    fn host_bits_and_nonsense_are_refused() {
        for text in ["10.0.0.1/8", "fd00::1/64", "::ffff:0:0/90", "0.0.0.1/0"] {
            assert!(Network::parse(text).unwrap_err().contains("host bits"), "{text}");
        }
        for text in ["10.0.0.0/33", "::/129", "::ffff:10.0.0.0/130"] {
            assert!(
                Network::parse(text).unwrap_err().contains("longer than its address"),
                "{text}"
            );
        }
        for text in [
            "",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "example.com",
            "10.0.0/8",
            "10.0.0.0/999999999999",
        ] {
            assert!(Network::parse(text).unwrap_err().contains("is not a network"), "{text}");
        }
    }
}
