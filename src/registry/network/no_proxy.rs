//! `NO_PROXY`: hosts that are reached without a proxy.
//!
//! The rules are those of Go's `golang.org/x/net/http/httpproxy`, which docker, podman, skopeo and crane use.

use std::net::IpAddr;

use crate::reference::is_loopback;
use crate::registry::address::without_brackets;

/// The list of `NO_PROXY`.
#[derive(Clone, Debug, Default)]
pub(super) struct NoProxy {
    all: bool,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    /// Any port if `None`.
    Address(IpAddr, Option<u16>),
    /// A network and the length of its prefix in bits.
    Network(IpAddr, u8),
    /// A name without a leading dot; whether the name itself matches, or only those below it; any port if `None`.
    Domain { name: String, itself: bool, port: Option<u16> },
}

impl NoProxy {
    /// Reads a list, separated by commas or spaces. An entry that makes no sense matches nothing, as in Go.
    pub(super) fn parse(list: &str) -> Self {
        let entries = || list.split([',', ' ', '\t', '\n']).map(str::trim).filter(|entry| !entry.is_empty());
        Self { all: entries().any(|entry| entry == "*"), rules: entries().filter_map(rule).collect() }
    }

    /// Whether this host is reached without a proxy. `host` is a name or an address, an IPv6 one with or without
    /// brackets.
    pub(super) fn matches(&self, host: &str, port: u16) -> bool {
        let host = bare(host);
        if self.all || is_own_machine(&host) {
            return true;
        }
        let address = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        self.rules.iter().any(|rule| match (rule, address) {
            (Rule::Address(own, of), Some(address)) => *own == address && of.is_none_or(|of| of == port),
            (Rule::Network(network, length), Some(address)) => contains(*network, *length, address),
            (Rule::Domain { name, itself, port: of }, None) => {
                let below = host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                (below || *itself && host == *name) && of.is_none_or(|of| of == port)
            }
            _ => false,
        })
    }
}

/// In lower case, without brackets and without the dot at the end.
fn bare(host: &str) -> String {
    without_brackets(host).trim_end_matches('.').to_ascii_lowercase()
}

/// No proxy can reach what is on this machine.
fn is_own_machine(host: &str) -> bool {
    is_loopback(host) || host.ends_with(".localhost")
}

fn rule(entry: &str) -> Option<Rule> {
    if let Some((address, length)) = entry.split_once('/') {
        let (network, length) = (address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?);
        let longest = if network.is_ipv4() { 32 } else { 128 };
        return (length <= longest).then_some(Rule::Network(network, length));
    }
    if let Ok(address) = bare(entry).parse::<IpAddr>() {
        return Some(Rule::Address(address.to_canonical(), None));
    }
    let (host, port) = match entry.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse::<u16>().ok()?)),
        None => (entry, None),
    };
    let name = bare(host);
    if let Ok(address) = name.parse::<IpAddr>() {
        return Some(Rule::Address(address.to_canonical(), port));
    }
    let below = name.strip_prefix("*.").or_else(|| name.strip_prefix('.'));
    let itself = below.is_none();
    let name = below.unwrap_or(&name).to_owned();
    (!name.is_empty()).then_some(Rule::Domain { name, itself, port })
}

/// Whether the first `length` bits of both are the same.
fn contains(network: IpAddr, length: u8, address: IpAddr) -> bool {
    let same = |difference: u32| difference >= u32::from(length);
    match (network, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same((u32::from(a) ^ u32::from(b)).leading_zeros()),
        (IpAddr::V6(a), IpAddr::V6(b)) => same((u128::from(a) ^ u128::from(b)).leading_zeros()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each list with the hosts that it exempts, and hosts that it does not.
    #[test]
    fn the_rules_are_those_of_go() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("", &["localhost:5000", "127.0.0.1:443", "127.9.9.9:443", "[::1]:443", "a.localhost:80"], &["a.test:443"]),
            ("*", &["a.test:443", "10.0.0.1:443", "[2001:db8::1]:443"], &[]),
            ("x.test,*", &["a.test:443"], &[]),
            (
                "a.test",
                &["a.test:443", "a.test:5000", "b.a.test:443", "A.TEST:443", "a.test.:443"],
                &["xa.test:443", "test:443"],
            ),
            (".a.test", &["b.a.test:443", "c.b.a.test:443"], &["a.test:443", "xa.test:443"]),
            ("*.a.test", &["b.a.test:443", "c.b.a.test:443"], &["a.test:443", "xa.test:443"]),
            ("a.test:5000", &["a.test:5000", "b.a.test:5000"], &["a.test:443"]),
            ("*.a.test:5000", &["b.a.test:5000"], &["b.a.test:443", "a.test:5000"]),
            (".a.test:5000", &["b.a.test:5000"], &["b.a.test:443", "a.test:5000"]),
            (" b.test , A.Test ", &["a.test:443", "b.test:1"], &["c.test:443"]),
            ("b.test a.test", &["a.test:443", "b.test:1"], &["c.test:443"]),
            ("10.1.2.3", &["10.1.2.3:443", "[::ffff:10.1.2.3]:443"], &["10.1.2.4:443", "10.1.2.3.a.test:443"]),
            ("10.1.2.3:5000", &["10.1.2.3:5000"], &["10.1.2.3:443"]),
            ("10.0.0.0/8", &["10.1.2.3:443", "10.255.255.255:1"], &["11.0.0.0:443", "a.test:443"]),
            ("10.1.2.0/23", &["10.1.3.255:443"], &["10.1.4.0:443"]),
            ("0.0.0.0/0", &["8.8.8.8:443"], &["[2001:db8::1]:443", "a.test:443"]),
            ("2001:db8::1", &["[2001:db8::1]:443"], &["[2001:db8::2]:443"]),
            ("[2001:db8::1]", &["[2001:db8::1]:443"], &["[2001:db8::2]:443"]),
            ("[2001:db8::1]:5000", &["[2001:db8::1]:5000"], &["[2001:db8::1]:443"]),
            ("2001:db8::/32", &["[2001:db8:ffff::1]:443"], &["[2001:db9::1]:443"]),
            (
                "10.0.0.0/33,a.test:x,:5000,.,/8,*a.test",
                &[],
                &["10.0.0.1:443", "a.test:443", "b.test:5000", "xa.test:443"],
            ),
        ];
        for (list, exempt, other) in table {
            let rules = NoProxy::parse(list);
            let matches = |host: &&str| {
                let (host, port) = host.rsplit_once(':').expect("a port");
                rules.matches(host, port.parse().expect("a number"))
            };
            for host in *exempt {
                assert!(matches(host), "NO_PROXY={list:?} exempts {host}");
            }
            for host in *other {
                assert!(!matches(host), "NO_PROXY={list:?} does not exempt {host}");
            }
        }
    }
}
