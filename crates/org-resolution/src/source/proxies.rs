//! Whose forwarding headers are believed, and who the client is.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Once;

use http::HeaderMap;
use ipnet::{IpNet, Ipv4Net};
use metrics::counter;

/// Networks whose forwarding headers are believed, and the header that they write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    header: ForwardingHeader,
}

/// The header to which trusted proxies append their client's address. Only this one is read: the other is passed on as
/// the client wrote it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForwardingHeader {
    /// `X-Forwarded-For`: addresses in a list.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239): `for=` in a list.
    Forwarded,
}

/// Not an address and not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither an address nor a network such as 10.0.0.0/8")]
pub struct NotANetwork(String);

impl TrustedProxies {
    /// Sets the header that these proxies write.
    #[must_use]
    pub fn writing(mut self, header: ForwardingHeader) -> Self {
        self.header = header;
        self
    }

    /// Whether this peer is one of them.
    #[must_use]
    pub fn contains(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.networks.iter().any(|network| network.contains(&peer))
    }

    /// The client's address: the peer's, or when that is trusted the last address in the forwarding header that is
    /// not. Counted from the right: what stands further left was written by the client.
    ///
    /// A hop that cannot be read (`unknown`, nothing at all, no address) ends the walk at the proxy that wrote it: then
    /// that proxy is the client.
    #[must_use]
    pub fn client_ip(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        let name = match self.header {
            ForwardingHeader::XForwardedFor => "x-forwarded-for",
            ForwardingHeader::Forwarded => "forwarded",
        };
        for hop in headers.get_all(name).iter().rev().flat_map(|line| self.hops(line.as_bytes())) {
            if !self.contains(client) {
                break;
            }
            let address = match self.header {
                ForwardingHeader::XForwardedFor => address(hop),
                ForwardingHeader::Forwarded => forwarded_for(hop).and_then(address),
            };
            let Some(address) = address else {
                unreadable(name, client);
                break;
            };
            client = address;
        }
        client
    }

    /// The hops of a line, the last one first, as bytes: one that is no text must not hide those right of it.
    fn hops<'a>(&self, line: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        from_the_right(line, b',', self.header == ForwardingHeader::Forwarded)
    }
}

/// Counts hops that could not be read, and says so once: most likely a proxy is not set up as it was meant.
fn unreadable(header: &'static str, proxy: IpAddr) {
    static SAID: Once = Once::new();
    counter!("org_unreadable_hops_total").increment(1);
    SAID.call_once(|| {
        tracing::warn!(header, %proxy, "a trusted proxy names no readable client: it counts as the client itself");
    });
}

/// The parts of a line between separators, the last one first. Separators in quotes are none, if quotes count: seen from
/// the right a quotation that a client left open encloses only what the client wrote.
///
/// By hand: parsers of this header work from the left and on text, where such a quotation, or one byte that is no text,
/// takes the proxy's part along.
fn from_the_right(line: &[u8], separator: u8, quotes: bool) -> impl Iterator<Item = &[u8]> {
    let mut left = Some(line);
    std::iter::from_fn(move || {
        let line = left?;
        let mut quoted = false;
        let at = line.iter().rposition(|byte| {
            quoted ^= quotes && *byte == b'"';
            !quoted && *byte == separator
        });
        let (rest, part) = match at {
            Some(at) => (Some(&line[..at]), &line[at + 1..]),
            None => (None, line),
        };
        left = rest;
        Some(part.trim_ascii())
    })
}

/// The node of the only `for=` of an element of `Forwarded`.
fn forwarded_for(element: &[u8]) -> Option<&[u8]> {
    let mut nodes = from_the_right(element, b';', true).filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        pair[..at].eq_ignore_ascii_case(b"for").then(|| &pair[at + 1..])
    });
    let node = nodes.next()?;
    nodes.next().is_none().then_some(node)
}

/// An address, with a port or without, in brackets, in quotes.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?;
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = match bracketed {
        Some(text) => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip())),
    };
    address.map(|address| address.to_canonical())
}

/// A network of addresses that are mapped into IPv6 is that of the addresses: peers are compared in that form.
fn canonical(network: IpNet) -> IpNet {
    const MAPPED: u8 = 96;
    match (network.addr().to_canonical(), network.prefix_len().checked_sub(MAPPED)) {
        (IpAddr::V4(address), Some(length)) if matches!(network, IpNet::V6(_)) => {
            Ipv4Net::new(address, length).map_or(network, IpNet::V4)
        }
        _ => network,
    }
}

impl FromStr for TrustedProxies {
    type Err = NotANetwork;

    /// Addresses and networks, separated by commas; empty for nobody.
    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let network = |part: &str| {
            let address = part.parse::<IpAddr>().map(IpNet::from);
            let network = address.or_else(|_| part.parse::<IpNet>()).map(canonical);
            network.map_err(|_| NotANetwork(part.to_owned()))
        };
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let networks = parts.map(network).collect::<Result<_, _>>()?;
        Ok(Self { networks, header: ForwardingHeader::default() })
    }
}

impl fmt::Display for TrustedProxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.networks.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// G3, K1: the client's address is counted from the right, through trusted proxies only.
    #[test]
    fn the_client_is_counted_from_the_right() {
        let trusted: TrustedProxies = "10.0.0.0/8".parse().expect("a network");
        let client = |peer: &str, lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-forwarded-for", line.parse().expect("a value"));
            }
            trusted.client_ip(peer.parse().expect("an address"), &headers).to_string()
        };
        assert_eq!(client("192.0.2.1", &["203.0.113.9"]), "192.0.2.1", "an untrusted peer is the client");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(client("10.0.0.1", &["1.2.3.4, 203.0.113.9, 10.0.0.2"]), "203.0.113.9");
        assert_eq!(client("10.0.0.1", &["1.2.3.4", "203.0.113.9"]), "203.0.113.9", "lines are one list");
        assert_eq!(client("10.0.0.1", &["1.2.3.4, rubbish, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]:4711"]), "2001:db8::1");
    }

    fn client_of(trusted: &TrustedProxies, name: &'static str, lines: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, http::HeaderValue::from_bytes(line).expect("a value"));
        }
        trusted.client_ip("10.0.0.1".parse().expect("an address"), &headers).to_string()
    }

    /// What cannot be read, or is empty, ends the walk where it stands: nothing left of it is believed, and what is
    /// right of it stays.
    #[test]
    fn an_unreadable_hop_ends_the_walk() {
        let trusted: TrustedProxies = "10.0.0.0/8".parse().expect("a network");
        let client = |lines: &[&[u8]]| client_of(&trusted, "x-forwarded-for", lines);
        assert_eq!(client(&[b"\xff, 203.0.113.9"]), "203.0.113.9", "the proxy's word stays");
        assert_eq!(client(&[b"6.6.6.6", b"\xff, 203.0.113.9"]), "203.0.113.9");
        assert_eq!(client(&[b"6.6.6.6, \xff, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(client(&[b"6.6.6.6, \xff"]), "10.0.0.1", "the proxy wrote nothing readable");
        for nothing in [&b"6.6.6.6,"[..], b"6.6.6.6, ", b",", b"", b"6.6.6.6, unknown", b"6.6.6.6, [::1"] {
            assert_eq!(client(&[nothing]), "10.0.0.1", "{}", nothing.escape_ascii());
        }
        assert_eq!(client(&[b"6.6.6.6", b""]), "10.0.0.1", "an empty line is a hop that says nothing");
    }

    /// An address stands bare, in brackets, in quotes, with a port or without.
    #[test]
    fn every_form_of_address_is_read() {
        let trusted: TrustedProxies = "10.0.0.0/8".parse().expect("a network");
        for form in [
            "2001:db8::1",
            "[2001:db8::1]",
            "[2001:db8::1]:4711",
            "\"[2001:db8::1]\"",
            "\"[2001:db8::1]:4711\"",
            "\t2001:db8::1 ",
        ] {
            assert_eq!(client_of(&trusted, "x-forwarded-for", &[form.as_bytes()]), "2001:db8::1", "{form}");
        }
        for form in ["203.0.113.9", "203.0.113.9:80", "\"203.0.113.9\"", "::ffff:203.0.113.9"] {
            assert_eq!(client_of(&trusted, "x-forwarded-for", &[form.as_bytes()]), "203.0.113.9", "{form}");
        }
    }

    /// RFC 7239, where it is configured; each header counts only where the proxies write it.
    #[test]
    fn forwarded_is_read_where_proxies_write_it() {
        let trusted: TrustedProxies = "10.0.0.0/8".parse().expect("a network");
        let standard = trusted.clone().writing(ForwardingHeader::Forwarded);
        let client = |lines: &[&[u8]]| client_of(&standard, "forwarded", lines);
        for (line, expected) in [
            ("for=203.0.113.9", "203.0.113.9"),
            ("For=\"203.0.113.9:80\";proto=https;by=10.0.0.1", "203.0.113.9"),
            ("proto=http; FOR = 203.0.113.9", "10.0.0.1"),
            ("proto=http; for=203.0.113.9", "203.0.113.9"),
            ("for=6.6.6.6, for=\"[2001:db8::1]:4711\", for=10.0.0.2", "2001:db8::1"),
            ("for=\"[2001:db8::1]\";host=\"a,b;c\"", "2001:db8::1"),
            ("for=\"6.6.6.6, for=203.0.113.9", "203.0.113.9"),
            ("for=6.6.6.6, for=unknown", "10.0.0.1"),
            ("for=6.6.6.6, for=_hidden", "10.0.0.1"),
            ("for=6.6.6.6, proto=https", "10.0.0.1"),
            ("for=6.6.6.6, for=203.0.113.9;for=203.0.113.8", "10.0.0.1"),
            ("for=6.6.6.6,", "10.0.0.1"),
        ] {
            assert_eq!(client(&[line.as_bytes()]), expected, "{line}");
        }
        assert_eq!(client(&[b"for=6.6.6.6", b"for=203.0.113.9"]), "203.0.113.9", "lines are one list");
        assert_eq!(client_of(&trusted, "forwarded", &[b"for=6.6.6.6"]), "10.0.0.1");
        assert_eq!(client_of(&standard, "x-forwarded-for", &[b"6.6.6.6"]), "10.0.0.1");
    }

    /// A network of mapped addresses is that of the addresses which are mapped.
    #[test]
    fn mapped_networks_are_those_they_map() {
        let trusted: TrustedProxies = "::ffff:10.0.0.0/104, ::ffff:192.0.2.1".parse().expect("networks");
        for peer in ["10.1.2.3", "::ffff:10.1.2.3", "192.0.2.1"] {
            assert!(trusted.contains(peer.parse().expect("an address")), "{peer}");
        }
        assert!(!trusted.contains("11.0.0.1".parse().expect("an address")));
        assert_eq!(trusted.to_string(), "10.0.0.0/8,192.0.2.1/32");
    }

    proptest! {
        /// Whatever a client writes, what the proxy appends is what counts.
        #[test]
        fn a_client_cannot_change_the_proxys_word(
            lines in prop::collection::vec(prop::collection::vec(prop::num::u8::ANY, 0..40), 0..3),
            marks in "[,;\"= \\\\a-f0-9.:]{0,40}",
        ) {
            let ours: TrustedProxies = "10.0.0.0/8".parse().expect("a network");
            let of_client = lines.into_iter().chain([marks.into_bytes()]);
            let plain = |line: Vec<u8>| http::HeaderValue::from_bytes(&line).is_ok().then_some(line);
            let mut lines: Vec<Vec<u8>> = of_client.filter_map(plain).collect();
            let mut appended = lines.pop().unwrap_or_default();
            let mut standard = appended.clone();
            appended.extend(b", 203.0.113.9");
            standard.extend(b", for=\"203.0.113.9:80\"");
            let with = |last: &Vec<u8>| lines.iter().chain([last]).cloned().collect::<Vec<_>>();
            let (appended, standard) = (with(&appended), with(&standard));
            let slices = |lines: &[Vec<u8>], name, trusted: &TrustedProxies| {
                client_of(trusted, name, &lines.iter().map(Vec::as_slice).collect::<Vec<_>>())
            };
            prop_assert_eq!(slices(&appended, "x-forwarded-for", &ours), "203.0.113.9");
            let ours = ours.writing(ForwardingHeader::Forwarded);
            prop_assert_eq!(slices(&standard, "forwarded", &ours), "203.0.113.9");
        }

        /// K1: a list of networks reads as itself.
        #[test]
        fn networks_read_as_themselves(parts in prop::collection::vec((any::<IpAddr>(), 0_u8..=32), 0..4)) {
            let text: Vec<String> = parts.iter().map(|(ip, bits)| format!("{ip}/{bits}")).collect();
            let networks: TrustedProxies = text.join(" , ").parse().expect("networks");
            prop_assert_eq!(networks.to_string().parse(), Ok(networks.clone()));
            for (ip, _) in parts {
                prop_assert!(networks.contains(ip) || ip != ip.to_canonical());
            }
        }
    }

    /// A7: what is no network is refused by name.
    #[test]
    fn what_is_no_network_is_named() {
        let error = "10.0.0.0/8,nonsense".parse::<TrustedProxies>().expect_err("no network");
        assert!(error.to_string().contains("`nonsense`"), "{error}");
        assert_eq!("".parse::<TrustedProxies>(), Ok(TrustedProxies::default()));
    }
}
