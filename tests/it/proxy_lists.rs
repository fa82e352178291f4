//! `transload proxy`: lists of tags and of referrers, and upstreams that can't be asked for them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::http::Reply;
use super::support::process::RUN_TIMEOUT;
use super::support::{Fault, Front, Image, ProxyProcess, Registry, Rule, http};

struct World {
    registry: Registry,
    front: Front,
    image: Image,
    proxy: ProxyProcess,
}

impl World {
    /// An image with two tags, and a list of what it's about by the tag schema.
    fn new() -> Self {
        let registry = Registry::start();
        let image = Image::single(31, &[3000]);
        image.push(registry.addr(), "library/app", "v1");
        image.push(registry.addr(), "library/app", "v2");
        let sbom = Image::artifact(32, "application/spdx+json", Some(&image));
        Image::referrers(&[sbom]).push(registry.addr(), "library/app", &image.referrers_tag());
        let front = Front::before(registry.addr()).start();
        let proxy = ProxyProcess::hub(front.addr(), &["--upstream-timeout", "5"]);
        Self { registry, front, image, proxy }
    }

    fn tags(&self, query: &str) -> Reply {
        http::get(self.proxy.addr(), &format!("/v2/library/app/tags/list{query}"))
    }

    fn referrers(&self) -> Reply {
        http::get(self.proxy.addr(), &format!("/v2/library/app/referrers/{}", self.image.digest()))
    }
}

/// The list, which must not be said to be old.
#[track_caller]
fn fresh(reply: Reply) -> Value {
    let reply = reply.expect(200);
    assert_eq!(reply.header("warning"), None, "{}", reply.text());
    reply.json()
}

/// The list, which must be said to be old.
#[track_caller]
fn stale(reply: Reply) -> Value {
    let reply = reply.expect(200);
    assert_eq!(reply.header("warning"), Some("110 - \"Response is Stale\""), "{}", reply.text());
    reply.json()
}

#[test]
fn lists_are_the_upstreams_while_it_answers_and_old_ones_while_it_does_not() {
    let world = World::new();
    let sbom = |list: &Value| list["manifests"][0]["artifactType"] == "application/spdx+json";
    let before = fresh(world.tags(""));
    assert!(before["tags"].as_array().is_some_and(|tags| tags.contains(&json!("v2"))), "{before}");
    assert!(sbom(&fresh(world.referrers())));
    // What is new is there at once.
    world.image.push(world.registry.addr(), "library/app", "v3");
    let tags = fresh(world.tags(""));
    assert!(tags["tags"].as_array().is_some_and(|tags| tags.contains(&json!("v3"))), "{tags}");
    // It's down: by its last answers, page by page, and to clients that ask for a part.
    world.front.add(Rule::on("*", "/v2/", Fault::status(502)));
    assert_eq!(stale(world.tags("")), tags);
    assert_eq!(stale(world.tags("?n=1&last=v1"))["tags"], json!(["v2"]));
    assert!(world.tags("?n=1&last=v1").header("link").is_some_and(|link| link.contains("last=v2")));
    assert!(sbom(&stale(world.referrers())));
    // What nobody asked for isn't known.
    let status = http::get(world.proxy.addr(), "/v2/library/other/tags/list").status;
    assert!(matches!(status, 502 | 504), "{status}");
    // It's back, with news.
    world.image.push(world.registry.addr(), "library/app", "v4");
    world.front.clear_rules();
    let deadline = Instant::now() + RUN_TIMEOUT;
    while world.tags("").header("warning").is_some() {
        assert!(Instant::now() < deadline, "old for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
    let tags = fresh(world.tags(""));
    assert!(tags["tags"].as_array().is_some_and(|tags| tags.contains(&json!("v4"))), "{tags}");
    // That there is no such repository is news too.
    world.front.add(Rule::on("*", "/tags/", Fault::status(404)));
    world.tags("").expect(404);
    world.front.clear_rules();
    world.front.add(Rule::on("*", "/v2/", Fault::status(502)));
    let status = world.tags("").status;
    assert!(matches!(status, 502 | 504), "{status}");
}

#[test]
fn lists_of_an_upstream_that_is_gone() {
    let world = World::new();
    let (tags, referrers) = (fresh(world.tags("")), fresh(world.referrers()));
    let World { registry, front, image, proxy } = world;
    drop((front, registry));
    let get = |path: &str| http::get(proxy.addr(), path);
    assert_eq!(stale(get("/v2/library/app/tags/list")), tags);
    assert_eq!(stale(get(&format!("/v2/library/app/referrers/{}", image.digest()))), referrers);
}

#[test]
fn lists_of_an_upstream_that_limits() {
    let world = World::new();
    let (tags, referrers) = (fresh(world.tags("")), fresh(world.referrers()));
    world.front.add(Rule::on("*", "/v2/", Fault::too_many(60)));
    let begun = Instant::now();
    for _ in 0..3 {
        assert_eq!(stale(world.tags("")), tags);
        assert_eq!(stale(world.referrers()), referrers);
    }
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert_eq!(world.front.struck(), 1, "left alone after the first: {:?}", world.front.log());
    let other = http::get(world.proxy.addr(), "/v2/library/other/tags/list").expect(503);
    assert!(other.header("retry-after").is_some());
    assert_eq!(other.json()["errors"][0]["code"], "TOOMANYREQUESTS");
}
