//! Where a registry's answers may lead us: redirects, upload Locations and token realms.
//!
//! A registry that is out on the internet must not send us to a private, loopback or link-local
//! address (server-side request forgery; the cloud's metadata service at 169.254.169.254 is the
//! prize). A registry which is in such a network itself may. The check is made on the addresses
//! that are connected to, so a name that resolves differently the second time gains nothing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::error::{Error, Kind, Result};

/// What one registry may lead us to. Clones share what was learned.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// The registry's own host, which may be anywhere.
    own: Arc<str>,
    overrides: Arc<HashMap<String, SocketAddr>>,
    /// Whether the registry itself is in a private network.
    private: Arc<AtomicBool>,
}

impl Policy {
    /// The policy of the registry at `base`; `overrides` are the user's own word of where a host is.
    pub(super) fn new(base: &Url, overrides: Arc<HashMap<String, SocketAddr>>, allow_private: bool) -> Self {
        let private = allow_private || literal(base).is_some_and(|ip| !is_public(ip));
        let own = base.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        Self { private: Arc::new(AtomicBool::new(private || own == "localhost")), own: own.into(), overrides }
    }

    /// Whether `to`, which a response from `from` named, may be asked at all.
    ///
    /// # Errors
    /// [`Kind::Refused`] for a step from https to http, other schemes, and private addresses.
    pub(super) fn check(&self, from: &Url, to: &Url) -> Result<()> {
        let refused = |why: &str| {
            Err(Error::new(
                Kind::Refused,
                format!("{} sends us to {}, which is refused: {why}", host(from), origin(to)),
            ))
        };
        match to.scheme() {
            "https" => {}
            "http" if from.scheme() == "http" => {}
            "http" => return refused("it would leave https"),
            _ => return refused("it is neither http nor https"),
        }
        match literal(to) {
            Some(ip) if !self.may_reach(&ip.to_string(), ip) => {
                refused("it is a private address, and the registry is a public one")
            }
            _ => Ok(()),
        }
    }

    fn may_reach(&self, name: &str, ip: IpAddr) -> bool {
        // Even from a private network nothing but the registry itself is reached by link-local
        // addresses: that's where a cloud's metadata service is.
        name == &*self.own || is_public(ip) || (self.private.load(Ordering::Relaxed) && !is_link_local(ip))
    }

    async fn addresses(self, name: String) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
        if let Some(address) = self.overrides.get(&name) {
            return Ok(vec![*address]);
        }
        let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
        if name == *self.own && found.iter().any(|address| !is_public(address.ip())) {
            self.private.store(true, Ordering::Relaxed);
        }
        let allowed: Vec<_> = found.iter().copied().filter(|address| self.may_reach(&name, address.ip())).collect();
        if allowed.is_empty() && !found.is_empty() {
            let text = format!("{name} has a private address, and the registry that sends us there is a public one");
            return Err(Box::new(Error::new(Kind::Refused, text)));
        }
        Ok(allowed)
    }
}

impl Resolve for Policy {
    fn resolve(&self, name: Name) -> Resolving {
        let addresses = self.clone().addresses(name.as_str().to_owned());
        Box::pin(async move { Ok(Box::new(addresses.await?.into_iter()) as Addrs) })
    }
}

/// Whether both URLs have the same scheme, host and port: the only place where credentials go.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host_str() == b.host_str() && a.port_or_known_default() == b.port_or_known_default()
}

/// Scheme, host and port: all of a URL that may be shown. Paths and queries may hold signatures.
pub(super) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

fn host(url: &Url) -> &str {
    url.host_str().unwrap_or("?")
}

fn literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

fn is_link_local(ip: IpAddr) -> bool {
    match canonical(ip) {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Whether the address is one of the public internet (IANA's special-purpose registries).
fn is_public(ip: IpAddr) -> bool {
    match canonical(ip) {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || a == 0
                || shared)
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || v6.is_multicast())
        }
    }
}

/// The IPv4 address inside of a mapped (`::ffff:a.b.c.d`) or NAT64 (`64:ff9b::a.b.c.d`, RFC 6052) one.
fn canonical(ip: IpAddr) -> IpAddr {
    let embedded = |v6: Ipv6Addr| match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            IpAddr::from([a, b, c, d])
        }
        _ => v6.to_canonical(),
    };
    match ip {
        IpAddr::V6(v6) => embedded(v6),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    fn allows(from: &str, to: &str) -> bool {
        let from = url(from);
        Policy::new(&from, Arc::default(), false).check(&from, &url(to)).is_ok()
    }

    #[test]
    fn a_public_registry_leads_to_no_private_address() {
        for to in [
            "https://127.0.0.1/x",
            "https://10.1.2.3",
            "https://169.254.169.254/metadata",
            "https://[::1]/",
            "https://[fd00::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://[64:ff9b::a9fe:a9fe]/",
            "https://100.64.0.1/",
            "https://0.0.0.0/",
            "ftp://a.b/",
            "http://cdn.example.com/",
            "https://2130706433/",
        ] {
            assert!(!allows("https://registry.example.com", to), "{to}");
        }
        assert!(allows("https://registry.example.com", "https://cdn.example.net:8443/x"));
        assert!(allows("https://registry.example.com", "https://1.1.1.1/x"));
    }

    #[test]
    fn a_private_registry_may_but_never_to_the_metadata_service() {
        assert!(allows("http://127.0.0.1:5000", "http://127.0.0.1:5001/x"));
        assert!(allows("http://10.0.0.1:5000", "http://10.0.0.2/x"));
        assert!(!allows("http://10.0.0.1:5000", "http://169.254.169.254/metadata"));
        assert!(!allows("https://10.0.0.1", "http://10.0.0.1/x"));
    }

    #[tokio::test]
    async fn names_are_checked_by_their_addresses() {
        let policy = Policy::new(&url("https://registry.example.com"), Arc::default(), false);
        assert!(policy.clone().addresses("localhost".into()).await.is_err());
        let overrides =
            Arc::new(HashMap::from([("cdn.example.com".to_owned(), SocketAddr::from(([127, 0, 0, 1], 9)))]));
        let policy = Policy::new(&url("https://registry.example.com"), overrides, false);
        assert_eq!(policy.addresses("cdn.example.com".into()).await.map(|a| a.len()).ok(), Some(1));
    }

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        let a = url("https://r.io/x");
        assert!(same_origin(&a, &url("https://r.io:443/y?z")));
        for other in ["http://r.io/", "https://r.io:8443/", "https://r.io.evil.com/", "https://s.io/"] {
            assert!(!same_origin(&a, &url(other)), "{other}");
        }
    }
}
