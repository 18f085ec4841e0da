//! Whose forwarding headers are believed, and who the client is.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use http::HeaderMap;
use ipnet::IpNet;

/// Networks whose forwarding headers are believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

/// Not an address and not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither an address nor a network such as 10.0.0.0/8")]
pub struct NotANetwork(String);

impl TrustedProxies {
    /// Whether this peer is one of them.
    #[must_use]
    pub fn contains(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.0.iter().any(|network| network.contains(&peer))
    }

    /// The client's address: the peer's, or when that is trusted the last address in `X-Forwarded-For` that is
    /// not. Counted from the right: what stands further left was written by the client.
    #[must_use]
    pub fn client_ip(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        let lines: Vec<&str> =
            headers.get_all("x-forwarded-for").iter().filter_map(|line| line.to_str().ok()).collect();
        for hop in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
            if !self.contains(client) {
                break;
            }
            let hop = hop.trim();
            let address = hop.parse().or_else(|_| hop.parse::<SocketAddr>().map(|address| address.ip()));
            // What cannot be read cannot be trusted, nor anything left of it.
            let Ok(address) = address else { break };
            client = address.to_canonical();
        }
        client
    }
}

impl FromStr for TrustedProxies {
    type Err = NotANetwork;

    /// Addresses and networks, separated by commas; empty for nobody.
    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let network = |part: &str| {
            let address = part.parse::<IpAddr>().map(IpNet::from);
            address.or_else(|_| part.parse::<IpNet>()).map_err(|_| NotANetwork(part.to_owned()))
        };
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(network).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for TrustedProxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
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

    proptest! {
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
