//! Where a registry's answers may lead us: redirects, upload Locations and token realms.
//!
//! A registry that is out on the internet must not send us to a private, loopback or link-local
//! address (server-side request forgery; the cloud's metadata service at 169.254.169.254 is the
//! prize). A registry which is in such a network itself may. The check is made on the addresses
//! that are connected to, so a name that resolves differently the second time gains nothing.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::error::{Error, Kind, Result};

/// What one registry may lead us to. Clones share what was learned.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// The registry's own host, which may be anywhere.
    own: Arc<str>,
    overrides: Arc<HashMap<String, SocketAddr>>,
    /// Hosts, with or without a port, that the user allows to be asked by plain http or with any certificate.
    insecure: Arc<[String]>,
    /// In which network the registry is, as far as its own addresses have told: [`UNKNOWN`], [`PRIVATE`], [`PUBLIC`].
    network: Arc<AtomicU8>,
}

impl Policy {
    /// The policy of the registry at `base`; `overrides` are the user's own word of where a host is.
    pub(super) fn new(base: &Url, overrides: Arc<HashMap<String, SocketAddr>>, allow_private: bool) -> Self {
        let own = bare_host(base).to_owned();
        let private = allow_private || is_this_machine(&own) || literal(base).is_some_and(|ip| !is_public(ip));
        let network = if private { PRIVATE } else { UNKNOWN };
        Self { network: Arc::new(AtomicU8::new(network)), own: own.into(), overrides, insecure: Arc::default() }
    }

    /// The same with hosts that the user called insecure: steps from https to http are allowed there.
    #[must_use]
    pub(super) fn with_insecure(self, insecure: &[String]) -> Self {
        Self { insecure: insecure.into(), ..self }
    }

    /// Whether the user allows plain http and any certificate at this host. An IPv6 address has no brackets.
    pub(super) fn is_insecure(&self, host: &str, port: u16) -> bool {
        let with_port = authority(host, port);
        let host = with_port.rsplit_once(':').map_or(host, |(host, _)| host);
        self.insecure.iter().any(|allowed| *allowed == host || *allowed == with_port)
    }

    /// Where a host is by the user's own word.
    pub(super) fn given_address(&self, host: &str) -> Option<SocketAddr> {
        self.overrides.get(host).or_else(|| self.overrides.get(&format!("[{host}]"))).copied()
    }

    /// Whether `to`, which a response from `from` named, may be asked at all.
    ///
    /// # Errors
    /// [`Kind::Refused`] for a step from https to http, other schemes, and private addresses.
    pub(super) fn check(&self, from: &Url, to: &Url) -> Result<()> {
        let refused = |why: &str| {
            Error::new(Kind::Refused, format!("{} sends us to {}, which is refused: {why}", host(from), origin(to)))
        };
        let port = to.port_or_known_default().unwrap_or_default();
        match to.scheme() {
            "https" => {}
            "http" if from.scheme() == "http" || self.is_insecure(bare_host(to), port) => {}
            "http" => {
                return Err(refused("it would leave https").hint(format!(
                    "if that host may be asked by plain http, allow it by --insecure-registry {}:{port}",
                    host(to)
                )));
            }
            _ => return Err(refused("it is neither http nor https")),
        }
        let given = self.given_address(host(to)).is_some();
        let network = self.network.load(Ordering::Relaxed);
        if network != PRIVATE && is_this_machine(host(to)) && !given {
            let own = IpAddr::V4(Ipv4Addr::LOCALHOST);
            return Err(private(host(to)).hint(allow_by_resolve(host(to), own, port)));
        }
        match literal(to) {
            Some(ip) if !self.may_reach(&ip.to_string(), ip) && (!given || keeps_secrets(ip)) => {
                let why = "it is a private address, and the registry is a public one";
                Err(refused(why).hint(allow_by_resolve(host(to), ip, port)))
            }
            _ => Ok(()),
        }
    }

    fn may_reach(&self, name: &str, ip: IpAddr) -> bool {
        // Even from a private network nothing but the registry itself is reached by link-local
        // addresses: that's where a cloud's metadata service is.
        name == &*self.own || is_public(ip) || (self.network.load(Ordering::Relaxed) == PRIVATE && !keeps_secrets(ip))
    }

    /// Learns from the registry's own addresses in which network it is: in a private one only if all of them are, at
    /// each time. Its owner chooses them: a private one beside the one that answers must not open our network.
    fn learn(&self, own: &[SocketAddr]) {
        let public = own.iter().any(|address| is_public(address.ip()));
        let to = if public { PUBLIC } else { PRIVATE };
        if public {
            self.network.store(to, Ordering::Relaxed);
        } else if !own.is_empty() {
            let _ = self.network.compare_exchange(UNKNOWN, to, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Those of the addresses of `name` that may be connected to.
    fn allowed(&self, name: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>> {
        if name == &*self.own {
            self.learn(&found);
        }
        let any = !found.is_empty();
        let allowed: Vec<_> = found.into_iter().filter(|address| self.may_reach(name, address.ip())).collect();
        if allowed.is_empty() && any {
            return Err(private(name));
        }
        Ok(allowed)
    }

    /// The addresses of a host to connect to, where the user does not say them.
    ///
    /// # Errors
    /// Whether a rule forbids them, with the option that allows them, or the resolver failed.
    pub(super) async fn addresses_of(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Lookup> {
        // An address as it stands was checked where it came from.
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let found: Vec<_> = tokio::net::lookup_host((host, port)).await.map_err(Lookup::Failed)?.collect();
        let first = found.first().map(SocketAddr::ip);
        self.allowed(host, found).map_err(|error| {
            Lookup::Refused(match first {
                Some(first) => error.hint(allow_by_resolve(host, first, port)),
                None => error,
            })
        })
    }

    async fn addresses(self, name: String) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
        if let Some(address) = self.overrides.get(&name) {
            return Ok(vec![*address]);
        }
        let found = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
        Ok(self.allowed(&name, found)?)
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

/// The host without the brackets of an IPv6 address.
pub(super) fn without_brackets(host: &str) -> &str {
    host.trim_matches(['[', ']'])
}

/// The host of a URL, an IPv6 address without brackets; empty if there is none.
pub(super) fn bare_host(url: &Url) -> &str {
    without_brackets(url.host_str().unwrap_or_default())
}

/// `host:port`, with brackets around an IPv6 address.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Why a name has no address to connect to.
#[derive(Debug)]
pub(super) enum Lookup {
    /// It has, but a rule forbids them.
    Refused(Error),
    /// The resolver found none.
    Failed(io::Error),
}

/// What to type so that a host is asked although a rule refuses its address.
fn allow_by_resolve(host: &str, ip: IpAddr, port: u16) -> String {
    if keeps_secrets(ip) {
        return "nothing allows it: clouds give secrets to their machines at such addresses".to_owned();
    }
    format!("if it may be asked, allow it by --resolve {host}={}", SocketAddr::new(ip, port))
}

/// Whether it is an address at which a cloud gives secrets to its machines.
fn keeps_secrets(ip: IpAddr) -> bool {
    is_link_local(ip) || is_of_the_cloud(ip)
}

fn private(name: &str) -> Error {
    let text = format!("{name} has a private address, and the registry that sends us there is a public one");
    Error::new(Kind::Refused, text)
}

/// Whether it is a name of this machine, whatever the resolver says of it (RFC 6761 §6.3).
fn is_this_machine(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host == "localhost" || host.ends_with(".localhost")
}

fn host(url: &Url) -> &str {
    url.host_str().unwrap_or("?")
}

fn literal(url: &Url) -> Option<IpAddr> {
    bare_host(url).parse().ok()
}

fn is_link_local(ip: IpAddr) -> bool {
    match canonical(ip) {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Whether a cloud gives secrets to its machines there. None of these is link-local.
fn is_of_the_cloud(ip: IpAddr) -> bool {
    match canonical(ip) {
        IpAddr::V4(v4) => v4 == AZURE_WIRE_SERVER || v4 == ALIBABA_METADATA,
        IpAddr::V6(v6) => v6 == AWS_METADATA,
    }
}

/// Whether the address is one of the public internet.
///
/// Sources: IANA's IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890), its IPv4 multicast registry, and its
/// IPv6 Global Unicast Address Assignments.
fn is_public(ip: IpAddr) -> bool {
    match canonical(ip) {
        IpAddr::V4(v4) => v4 != AZURE_WIRE_SERVER && !within(&NOT_PUBLIC_V4, u32::from(v4)),
        // Nothing else is global unicast. So this leaves out ::/96 and ::ffff:0:0:0/96 (old forms of an IPv4
        // address), 64:ff9b:1::/48 (local NAT64), 100::/64 (discard), 5f00::/16 (SRv6), fc00::/7, fe80::/10,
        // fec0::/10 (site-local, deprecated) and ff00::/8 (multicast).
        IpAddr::V6(v6) => v6.segments()[0] >> 13 == 1 && !within(&NOT_PUBLIC_V6, u128::from(v6) >> 96),
    }
}

/// Whether one of the networks (its address, and the length of its prefix) has the address, both of 32 bits.
fn within(networks: &[(u32, u32)], address: impl TryInto<u32>) -> bool {
    let Ok(address) = address.try_into() else { return true };
    networks.iter().any(|(network, length)| (address ^ network).leading_zeros() >= *length)
}

const fn v4(a: u8, b: u8, c: u8) -> u32 {
    u32::from_be_bytes([a, b, c, 0])
}

/// All of IANA's registry but for what is globally reachable (AS112, AMT, PCP's and TURN's anycast addresses: no
/// registry is there either, so 192.0.0.0/24 is left out whole).
const NOT_PUBLIC_V4: [(u32, u32); 15] = [
    (v4(0, 0, 0), 8),
    (v4(10, 0, 0), 8),
    (v4(100, 64, 0), 10),
    (v4(127, 0, 0), 8),
    (v4(169, 254, 0), 16),
    (v4(172, 16, 0), 12),
    (v4(192, 0, 0), 24),
    (v4(192, 0, 2), 24),
    (v4(192, 88, 99), 24),
    (v4(192, 168, 0), 16),
    (v4(198, 18, 0), 15),
    (v4(198, 51, 100), 24),
    (v4(203, 0, 113), 24),
    // Multicast, and what is reserved up to 255.255.255.255.
    (v4(224, 0, 0), 4),
    (v4(240, 0, 0), 4),
];

/// Within 2000::/3, by the first 32 bits of each.
const NOT_PUBLIC_V6: [(u32, u32); 4] = [
    // IETF protocol assignments: Teredo, benchmarking, ORCHID and others.
    (0x2001_0000, 23),
    (0x2001_0db8, 32),
    // 6to4: an IPv4 address is inside, and no host needs it any more (RFC 7526).
    (0x2002_0000, 16),
    (0x3fff_0000, 20),
];

/// Azure's virtual public address of the host: DHCP, DNS, health probes and the VM's goal state with its secrets
/// (Microsoft Learn, "What is IP address 168.63.129.16?").
const AZURE_WIRE_SERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
/// Alibaba Cloud's metadata service.
const ALIBABA_METADATA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);
/// EC2's metadata service by IPv6.
const AWS_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

const UNKNOWN: u8 = 0;
const PRIVATE: u8 = 1;
/// For good: one public address was seen.
const PUBLIC: u8 = 2;

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
            "https://0x7f000001/",
            "https://0177.0.0.1/",
            "https://0x7f.1/",
            "https://127.1/",
            "https://127.0.0.1./",
            "https://localhost/",
            "https://LOCALHOST./",
            "https://a.localhost/",
            "https://169.254.169.254./metadata",
            "https://0xa9fea9fe/metadata",
            "https://168.63.129.16/machine",
            "https://[::7f00:1]/",
            "https://[::ffff:0:7f00:1]/",
            "https://[2002:7f00:1::]/",
            "https://[64:ff9b:1::7f00:1]/",
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
        for secret in ["169.254.169.254", "168.63.129.16", "100.100.100.200", "[fd00:ec2::254]", "[fe80::1]"] {
            assert!(!allows("http://10.0.0.1:5000", &format!("http://{secret}/metadata")), "{secret}");
        }
        assert!(allows("http://168.63.129.16:5000", "http://168.63.129.16:5001/"), "the registry's own host");
        assert!(!allows("https://10.0.0.1", "http://10.0.0.1/x"));
    }

    /// The first and the last address of each block of IANA's registries, and their neighbours.
    #[test]
    fn special_purpose_addresses_are_not_public() {
        let public = |text: &str| is_public(text.parse().expect("an address"));
        for block in [
            "0.0.0.0-0.255.255.255",
            "10.0.0.0-10.255.255.255",
            "100.64.0.0-100.127.255.255",
            "127.0.0.0-127.255.255.255",
            "169.254.0.0-169.254.255.255",
            "172.16.0.0-172.31.255.255",
            "192.0.0.0-192.0.0.255",
            "192.0.2.0-192.0.2.255",
            "192.88.99.0-192.88.99.255",
            "192.168.0.0-192.168.255.255",
            "198.18.0.0-198.19.255.255",
            "198.51.100.0-198.51.100.255",
            "203.0.113.0-203.0.113.255",
            "224.0.0.0-239.255.255.255",
            "240.0.0.0-255.255.255.255",
            "168.63.129.16-168.63.129.16",
            "::-::ffff:ffff",
            "::ffff:10.0.0.0-::ffff:10.255.255.255",
            "::ffff:0:0:0-::ffff:0:ffff:ffff",
            "64:ff9b::10.0.0.0-64:ff9b::10.255.255.255",
            "64:ff9b::168.63.129.16-64:ff9b::168.63.129.16",
            "64:ff9b:1::-64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
            "100::-100::ffff:ffff:ffff:ffff",
            "100:0:0:1::-100:0:0:1:ffff:ffff:ffff:ffff",
            "2001::-2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
            "2002::-2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "3fff::-3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
            "4000::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ] {
            let (first, last) = block.split_once('-').expect("a block");
            assert!(!public(first) && !public(last), "{block}");
        }
        for open in [
            "1.0.0.0",
            "9.255.255.255",
            "100.63.255.255",
            "100.128.0.0",
            "168.63.129.15",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2000::",
            "2001:200::",
            "2001:db7:ffff::",
            "2001:db9::",
            "2003::",
            "2606:4700::1111",
            "3fff:1000::",
        ] {
            assert!(public(open), "{open}");
        }
    }

    fn socket(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().expect("an address"), 0)
    }

    /// The owner of a public registry adds a private address to its name: that opens nothing. Neither does a name
    /// that has private addresses only at first.
    #[test]
    fn one_private_address_of_several_does_not_make_a_registry_private() {
        const OWN: &str = "registry.example.com";
        let policy = || Policy::new(&url("https://registry.example.com"), Arc::default(), false);
        let reaches = |policy: &Policy| {
            let literal = policy.check(&url("https://registry.example.com"), &url("https://10.0.0.7/")).is_ok();
            assert_eq!(literal, policy.allowed("other.example.com", vec![socket("10.0.0.7")]).is_ok());
            literal
        };
        let mixed = policy();
        let own = vec![socket("10.0.0.1"), socket("1.1.1.1")];
        assert_eq!(mixed.allowed(OWN, own.clone()).expect("its own"), own);
        assert!(!reaches(&mixed));
        let rebound = policy();
        rebound.allowed(OWN, vec![socket("10.0.0.1")]).expect("its own");
        assert!(reaches(&rebound), "as a registry in a private network");
        rebound.allowed(OWN, vec![socket("1.1.1.1")]).expect("its own");
        assert!(!reaches(&rebound));
        rebound.allowed(OWN, vec![socket("10.0.0.1")]).expect("its own");
        assert!(!reaches(&rebound), "for good");
        let unknown = policy();
        assert!(!reaches(&unknown));
        // Of another name's addresses, only the public ones are connected to.
        let some = unknown.allowed("cdn.example.com", vec![socket("10.0.0.7"), socket("1.1.1.1"), socket("::1")]);
        assert_eq!(some.expect("one"), [socket("1.1.1.1")]);
    }

    #[tokio::test]
    async fn names_are_checked_by_their_addresses() {
        let policy = Policy::new(&url("https://registry.example.com"), Arc::default(), false);
        assert!(policy.clone().addresses("localhost".into()).await.is_err());
        assert!(policy.clone().addresses("localhost.".into()).await.is_err());
        let Err(Lookup::Refused(refused)) = policy.addresses_of("localhost", 8443).await else { panic!("refused") };
        assert!(refused.hint_text().is_some_and(|hint| hint.contains("--resolve localhost=")), "{refused}");
        let secret = policy.check(&url("https://registry.example.com"), &url("https://169.254.169.254/x"));
        let hint = secret.expect_err("refused").hint_text().map(str::to_owned);
        assert!(hint.is_some_and(|hint| hint.starts_with("nothing allows it")));
        let overrides =
            Arc::new(HashMap::from([("cdn.example.com".to_owned(), SocketAddr::from(([127, 0, 0, 1], 9)))]));
        let policy = Policy::new(&url("https://registry.example.com"), overrides, false);
        assert_eq!(policy.addresses("cdn.example.com".into()).await.map(|a| a.len()).ok(), Some(1));
    }

    /// The user's own word: plain http at a host, and the address of a host.
    #[test]
    fn what_the_user_allows_is_followed() {
        let from = url("https://registry.example.com");
        let insecure = ["minio.test:9000".to_owned(), "other.test".to_owned(), "[fd00::1]:9000".to_owned()];
        let policy = Policy::new(&from, Arc::default(), true).with_insecure(&insecure);
        for (to, allowed) in [
            ("http://minio.test:9000/x", true),
            ("http://minio.test/x", false),
            ("http://other.test:1234/x", true),
            ("http://[fd00::1]:9000/x", true),
            ("http://a.test/x", false),
        ] {
            let checked = policy.check(&from, &url(to));
            assert_eq!(checked.is_ok(), allowed, "{to}");
            let hint = checked.err().and_then(|error| error.hint_text().map(str::to_owned));
            assert!(allowed || hint.is_some_and(|hint| hint.contains("--insecure-registry ")), "{to}");
        }
        let given = |host: &str| {
            let overrides = HashMap::from([(host.to_owned(), SocketAddr::from(([10, 0, 0, 5], 443)))]);
            Policy::new(&from, Arc::new(overrides), false)
        };
        assert!(given("10.0.0.5").check(&from, &url("https://10.0.0.5/x")).is_ok());
        assert!(given("[fd00::5]").check(&from, &url("https://[fd00::5]/x")).is_ok());
        assert!(given("10.0.0.5").check(&from, &url("https://10.0.0.6/x")).is_err());
        assert!(given("169.254.169.254").check(&from, &url("https://169.254.169.254/x")).is_err());
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
