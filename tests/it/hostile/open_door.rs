//! A proxy that anyone can reach.
//!
//! The chart's side, a Service that is open to everyone, is tested with helm by `deploy/check.py`.

use crate::proxy_config::user;
use crate::support::process::RUN_TIMEOUT;
use crate::support::{TempDir, Tool};

/// The warnings that a proxy with these listeners and upstreams prints at start-up.
#[track_caller]
fn warnings(listen: &str, upstreams: &str) -> Vec<String> {
    let dir = TempDir::new();
    let config = format!("listen: {listen}\ncache: {{ dir: cache, keep-free: 0 }}\nupstreams: {upstreams}\n");
    dir.write("users", user("anna", "secret"));
    dir.write("tokens", "0123456789abcdef0123456789abcdef\n");
    let process = Tool::transload().args(&["proxy", "--config", &dir.write("proxy.yaml", config)]).spawn();
    // The warnings come right after this line; the end of the program shows that there are no more.
    process.stderr.wait_line("the cache ", RUN_TIMEOUT);
    process.terminate();
    let said = process.finish(RUN_TIMEOUT).ok().stderr;
    said.lines().filter_map(|line| Some(line[line.find("warning: ")?..].to_owned())).collect()
}

const HUB: &str = "{ name: docker.io, tiers: [\"127.0.0.1:1\"] }";
const GITHUB: &str = "{ name: ghcr.io, tiers: [\"127.0.0.1:1\"] }";

/// Whoever can reach the proxy pulls private images with the proxy's own credentials. Whoever started it may not know.
#[test]
fn a_proxy_that_is_open_to_the_network_says_so_once() {
    for listen in ["[{ http: 0.0.0.0:0 }]", "[{ http: '[::]:0' }]", "[{ http: 0.0.0.0:0 }, { http: 127.0.0.1:0 }]"] {
        let said = warnings(listen, &format!("[{HUB}]"));
        let [warning] = &said[..] else { panic!("{listen}: {said:?}") };
        assert!(warning.contains("whoever can reach it can pull everything of docker.io"), "{warning}");
        assert!(warning.contains("users-file") && warning.contains("`allow`"), "it says what to type: {warning}");
        assert!(!warning.contains("127.0.0.1"), "{warning}");
    }
    // Of several upstreams, those without an `allow` list.
    let both = format!("[{HUB}, {}]", GITHUB.replace(" }", ", allow: ['team/*'] }"));
    let said = warnings("[{ http: 0.0.0.0:0 }, { http: '[::]:0' }]", &both);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("everything of docker.io that") && !said[0].contains("ghcr.io"), "{said:?}");
    // A `deny` list keeps out only what somebody thought of.
    let said = warnings("[{ http: 0.0.0.0:0 }]", &format!("[{}]", HUB.replace(" }", ", deny: ['secret/*'] }")));
    assert_eq!(said.len(), 1, "{said:?}");
}

/// A warning that comes without a reason is not read when there is one.
#[test]
fn a_proxy_that_is_not_open_does_not_warn() {
    let allowed = HUB.replace(" }", ", allow: ['library/*'] }");
    for (listen, upstream) in [
        ("[{ http: 127.0.0.1:0 }]", HUB),
        ("[{ http: '[::1]:0' }]", HUB),
        ("[{ http: '[::ffff:127.0.0.1]:0' }]", HUB),
        ("[{ unix: proxy.sock }]", HUB),
        ("[{ http: 0.0.0.0:0, users-file: users }]", HUB),
        ("[{ http: 0.0.0.0:0, token-file: tokens }]", HUB),
        ("[{ http: 0.0.0.0:0 }]", &allowed),
    ] {
        let said = warnings(listen, &format!("[{upstream}]"));
        assert!(said.is_empty(), "{listen}, {upstream}: {said:?}");
    }
}
