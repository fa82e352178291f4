//! `NO_PROXY`, by the rules of Go. All of its forms are in a table beside the code.

use super::{NAME, Secure};
use crate::support::ForwardProxy;

/// Lists that exempt the registry, and lists that do not.
#[test]
fn hosts_that_need_no_proxy_are_reached_directly() {
    let registry = Secure::start();
    let proxy = ForwardProxy::to("registry.example.test:443", registry.front.addr()).start();
    let resolve = format!("{NAME}={}", registry.front.addr());
    for (list, direct) in [
        ("*", true),
        (NAME, true),
        ("example.test", true),
        (".example.test", true),
        ("*.example.test", true),
        ("registry.example.test:443", true),
        (" other.test , REGISTRY.Example.Test ", true),
        ("10.0.0.0/8,[2001:db8::1]:443,*.test", true),
        ("registry.example.test:5000", false),
        ("other.test,*.registry.example.test", false),
        ("127.0.0.0/8", false),
        ("", false),
    ] {
        let before = proxy.log().len();
        for name in ["NO_PROXY", "no_proxy"] {
            let variables = [("HTTPS_PROXY", proxy.url()), (name, list.to_owned())];
            let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
            registry.inspect_with(&["--resolve", &resolve], &variables).ok();
        }
        assert_eq!(proxy.log().len() == before, direct, "NO_PROXY={list}: {:?}", proxy.log());
    }
}
