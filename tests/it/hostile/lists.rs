//! Lists from a registry: cut short, or without an end.
//!
//! A list that may be incomplete is an error, because `mirror --prune` removes tags that a list lacks. A list is
//! bounded by pages, by entries, by links that were followed before, and by pages without anything new.

use serde_json::{Value, json};

use super::super::support::{
    FakeRegistry, FakeResponse, Front, Image, ProxyProcess, Registry, Run, TempDir, Tool, http, transload,
};
use super::super::support::{Fault, Rule};

/// The value of a query's parameter.
fn parameter<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    let query = target.split_once('?')?.1;
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// A registry whose repository `app` has the tags `v1` to `v5`, two a page; `link` writes the header to the page
/// after this tag.
fn five_tags(link: impl Fn(&str) -> String + Send + Sync + 'static) -> FakeRegistry {
    FakeRegistry::start(move |asked| {
        let target = asked.target.as_str();
        if !target.starts_with("/v2/app/tags/list") {
            return FakeResponse::absent();
        }
        let after = parameter(target, "last").map_or(0, |last| last.trim_start_matches('v').parse().unwrap_or(9));
        let page: Vec<String> = (after + 1..=(after + 2).min(5)).map(|nth| format!("v{nth}")).collect();
        let answer = FakeResponse::json(&json!({"name": "app", "tags": page}));
        match page.last().filter(|last| *last != "v5") {
            Some(last) => answer.with("link", &link(last)),
            None => answer,
        }
    })
}

fn tags(registry: &FakeRegistry) -> Run {
    transload(&["tags", &format!("{}/app", registry.addr())])
}

#[track_caller]
fn fails(run: Run, why: &str) -> Run {
    let run = run.exits(1);
    assert!(run.stderr.contains(why), "{}", run.stderr);
    run
}

/// Registries write the link to the next page in many forms. Who takes an unknown form for the end has 2 of 5 tags.
#[test]
fn every_form_of_link_leads_to_the_whole_list() {
    for form in [
        r#"</v2/app/tags/list?n=2&last=LAST>; rel="next""#,
        r#"/v2/app/tags/list?n=2&last=LAST; rel="next""#,
        r#"<https://registry.internal/v2/app/tags/list?last=LAST&n=2>; rel="next""#,
        r#"<http://10.0.0.7:5000/v2/app/tags/list?last=LAST>; rel="next""#,
        r#"<?last=LAST>;REL=NEXT"#,
        r#"<?last=LAST> ; title="x, y" ; Rel = "last next""#,
        r#"<?last=v0>; rel="first", <?last=LAST&token=a,b;c>; rel="next""#,
        "<?last=v0>; rel=\"prev\"\r\nLink: <?last=LAST>; rel='next'",
    ] {
        let registry = five_tags(move |last| form.replace("LAST", last));
        assert_eq!(tags(&registry).ok().stdout, "v1\nv2\nv3\nv4\nv5\n", "{form}");
        assert_eq!(registry.count("/tags/list"), 3, "{form}");
    }
}

/// A link that is not understood, or that leads to another list, is no end of this one.
#[test]
fn a_link_that_is_not_understood_is_an_error() {
    for form in [
        "</v2/app/tags/list?last=LAST",
        "</v2/app/tags/list?last=LAST>",
        "</v2/other/tags/list?last=LAST>; rel=next",
        "</v2/app/manifests/LAST?x>; rel=next",
        "<data:,LAST>; rel=next",
        "</v2/app/tags/list>; rel=next",
        "<?last=LAST>; rel=next, <?last=v1>; rel=next",
    ] {
        let registry = five_tags(move |last| form.replace("LAST", last));
        fails(tags(&registry), "so the list may be incomplete");
        assert_eq!(registry.count("GET /v2/app/"), 1, "{form}");
    }
}

/// The answer with the list is another document, is a part of one, or is cut.
#[test]
fn a_page_that_is_no_list_is_an_error() {
    for (status, body) in
        [(200, "{}"), (200, r#"{"errors":[]}"#), (200, r#"{"tags":["v1""#), (206, r#"{"tags":[]}"#), (204, "")]
    {
        let registry = FakeRegistry::start(move |_| FakeResponse::new(status, body));
        fails(tags(&registry), "the answer is not a list");
    }
    let registry = FakeRegistry::start(|_| FakeResponse::json(&json!({"name": "app", "tags": null})));
    assert_eq!(tags(&registry).ok().stdout, "", "distribution writes null for no tags");
}

/// The spec lets a registry leave out the link of a full page. Then the next page is asked for by the last tag.
#[test]
fn a_full_page_without_a_link_is_no_end() {
    let page = |from: usize, to: usize| json!({"tags": (from..to).map(|nth| format!("v{nth:05}")).collect::<Vec<_>>()});
    for all in [999, 1000, 1001, 2000, 2345] {
        let spec = FakeRegistry::start(move |asked| {
            let target = asked.target.as_str();
            let from = parameter(target, "last").map_or(0, |last| last[1..].parse::<usize>().unwrap_or(0) + 1);
            FakeResponse::json(&page(from, all.min(from + 1000)))
        });
        assert_eq!(tags(&spec).ok().stdout.lines().count(), all);
        assert_eq!(spec.count("/tags/list"), all / 1000 + 1, "{all}");
        // One that knows neither `n` nor `last`, as distribution 2.8.
        let whole = FakeRegistry::start(move |_| FakeResponse::json(&page(0, all)));
        assert_eq!(tags(&whole).ok().stdout.lines().count(), all);
    }
}

/// The destination's or the source's list of tags is cut by a link that leads away. The wanted tags stay.
#[test]
fn nothing_is_pruned_after_an_incomplete_list() {
    let (source, target, home) = (Registry::start(), Registry::start(), TempDir::new());
    let image = Image::single(1, &[3000]);
    for tag in ["v1", "v2", "v3", "v4", "v5"] {
        image.push(source.addr(), "app", tag);
        image.push(target.addr(), "app", tag);
    }
    image.push(target.addr(), "app", "obsolete");
    for next in ["/v2/else/tags/list?last=v2", "/v2/app/tags/list?n=1000"] {
        let cut = |behind: &Registry| {
            let body = json!({"name": "app", "tags": ["v1", "v2"]}).to_string();
            let page = Fault::Page { body, next: Some(next.to_owned()) };
            Front::before(behind.addr()).rule(Rule::on("GET", "/tags/list", page)).start()
        };
        let (cut_source, cut_target) = (cut(&source), cut(&target));
        for (from, to) in [(cut_source.addr(), target.addr()), (source.addr(), cut_target.addr())] {
            let list = home
                .write("list.yaml", format!("images:\n  - {{source: {from}/app, glob: 'v*', target: '{to}/app'}}\n"));
            let flags = ["--prune=delete", "--prune-older-than", "0s", "--prune-manifests", "--prune-max", "100"];
            let run = Tool::transload().args(&["mirror", &list]).args(&flags).run();
            assert!(run.code != 0 && run.stdout.contains("cannot list the tags"), "{run:?}");
            assert!(run.stdout.contains("0 obsolete tags removed"), "{}", run.stdout);
        }
        assert!(cut_source.struck() == 1 && cut_target.struck() >= 1);
    }
    assert_eq!(target.count("DELETE", ""), 0);
    let left: Value = http::get(target.addr(), "/v2/app/tags/list").expect(200).json();
    assert_eq!(left["tags"].as_array().map(Vec::len), Some(6), "{left}");
}

/// How a list goes on for ever.
#[derive(Clone, Copy, Debug)]
enum Endless {
    /// Each page links to the first one.
    Circle,
    /// Each page is empty, and links to a new one.
    Empty,
    /// Each page has the same entry, and links to a new one.
    Same,
    /// Each page has a new entry, and links to a new one.
    New,
}

/// A registry whose lists of tags and of referrers have no end.
fn endless(how: Endless) -> FakeRegistry {
    FakeRegistry::start(move |asked| {
        let target = asked.target.as_str();
        let nth: u64 = parameter(target, "token").map_or(0, |token| token.parse().unwrap_or(0));
        let entry = if matches!(how, Endless::New) { nth } else { 1 };
        let some = !matches!(how, Endless::Empty);
        let answer = if target.contains("/tags/list") {
            let tags: Vec<String> = some.then(|| format!("v{entry}")).into_iter().collect();
            FakeResponse::json(&json!({"name": "app", "tags": tags}))
        } else if target.contains("/referrers/") {
            let digest = format!("sha256:{entry:064x}");
            let entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 2, "digest": digest});
            let manifests: Vec<Value> = some.then_some(entry).into_iter().collect();
            FakeResponse::json(&json!({"schemaVersion": 2, "manifests": manifests}))
        } else if target.contains("/manifests/v1") || target.contains("/manifests/sha256:") {
            let body = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
            let made = FakeResponse::new(200, body);
            return made.with("content-type", "application/vnd.oci.image.index.v1+json");
        } else {
            return FakeResponse::absent();
        };
        let next = if matches!(how, Endless::Circle) { 0 } else { nth + 1 };
        answer.with("link", &format!("<?n=1000&token={next}>; rel=\"next\""))
    })
}

/// Requests that a list costs at most, of tags and of referrers.
fn most(how: Endless) -> (usize, usize) {
    match how {
        Endless::Circle => (2, 2),
        Endless::Empty | Endless::Same => (12, 12),
        Endless::New => (1000, 100),
    }
}

const ALL: [Endless; 4] = [Endless::Circle, Endless::Empty, Endless::Same, Endless::New];

/// A registry that links page to page for ever. The list is an error, and never a part of it.
#[test]
fn a_list_of_tags_without_an_end_is_an_error() {
    for how in ALL {
        let registry = endless(how);
        fails(tags(&registry), "the list is not read to its end");
        assert!(registry.count("/tags/list") <= most(how).0, "{how:?}: {}", registry.count("/tags/list"));
        let to = Registry::start();
        let home = TempDir::new();
        let list = home.write("list.yaml", format!("images:\n  - {{source: {}/app, glob: 'x*'}}\n", registry.addr()));
        let run = transload(&["mirror", &list, "--to", &to.addr().to_string()]);
        assert!(run.code != 0 && run.stdout.contains("the list is not read to its end"), "{run:?}");
        assert!(registry.count("/tags/list") <= 2 * most(how).0, "{how:?}: {}", registry.count("/tags/list"));
    }
}

/// The tags that came before the fault are copied; the exit code says that it was not all.
#[test]
fn all_tags_of_a_list_without_an_end_is_an_error() {
    let registry = endless(Endless::Circle);
    let to = Registry::start();
    let run = transload(&["copy", &format!("{}/app", registry.addr()), &to.addr().to_string(), "--all-tags"]);
    assert!(run.code != 0 && run.stderr.contains("the list is not read to its end"), "{run:?}");
    assert_eq!(registry.count("/tags/list"), 2);
}

/// The same with the referrers of an image, which `inspect` and `copy` read.
#[test]
fn a_list_of_referrers_without_an_end_is_an_error() {
    for how in ALL {
        let (to, most) = (Registry::start(), most(how).1);
        let registry = endless(how);
        let image = format!("{}/app:v1", registry.addr());
        fails(transload(&["inspect", &image, "--referrers"]), "the list is not read to its end");
        assert!(registry.count("/referrers/") <= most, "{how:?}: {}", registry.count("/referrers/"));
        let registry = endless(how);
        let image = format!("{}/app:v1", registry.addr());
        let run = transload(&["copy", &image, &to.addr().to_string(), "--referrers"]);
        assert!(run.code != 0 && run.stderr.contains("the list is not read to its end"), "{run:?}");
        assert!(registry.count("/referrers/") <= most, "{how:?}: {}", registry.count("/referrers/"));
    }
}

/// A list of referrers that is no longer than others by its entries, but whose entries have as large annotations as they may.
#[test]
fn a_list_of_referrers_is_bounded_by_its_bytes() {
    let long = "x".repeat(200 << 10);
    let registry = FakeRegistry::start(move |asked| {
        let target = asked.target.as_str();
        let media_type = "application/vnd.oci.image.index.v1+json";
        if !target.contains("/referrers/") {
            return FakeResponse::json(&json!({"schemaVersion": 2, "manifests": []})).with("content-type", media_type);
        }
        let nth: u64 = parameter(target, "token").map_or(0, |token| token.parse().unwrap_or(0));
        let entry =
            |digest: String| json!({"mediaType": media_type, "size": 2, "digest": digest, "annotations": {"a": long}});
        let entries: Vec<_> = (0..26).map(|entry_of| entry(format!("sha256:{:064x}", 100 * nth + entry_of))).collect();
        let next = format!("<?token={}>; rel=next", nth + 1);
        FakeResponse::json(&json!({"schemaVersion": 2, "manifests": entries})).with("link", &next)
    });
    fails(transload(&["inspect", &format!("{}/app:v1", registry.addr()), "--referrers"]), "more than 16777216 bytes");
    assert_eq!(registry.count("/referrers/"), 4);
}

/// A document that is past a limit came as the registry has it: to ask for it again is in vain.
#[test]
fn a_list_that_is_past_a_limit_is_asked_for_once() {
    let registry = FakeRegistry::start(move |asked| {
        let target = asked.target.as_str();
        let media_type = "application/vnd.oci.image.index.v1+json";
        if !target.contains("/referrers/") {
            return FakeResponse::json(&json!({"schemaVersion": 2, "manifests": []})).with("content-type", media_type);
        }
        let digest = format!("sha256:{:064x}", 1);
        let entry = json!({"mediaType": "x".repeat(256), "size": 2, "digest": digest});
        FakeResponse::json(&json!({"schemaVersion": 2, "manifests": [entry]}))
    });
    fails(transload(&["inspect", &format!("{}/app:v1", registry.addr()), "--referrers"]), "255");
    assert_eq!(registry.count("/referrers/"), 1);
}

/// A referrers list whose first page is well and whose second is not must not pass as the first page alone, nor as a
/// registry without the referrers API.
#[test]
fn a_referrers_list_that_breaks_off_is_an_error() {
    for status in [404, 403, 400] {
        let registry = FakeRegistry::start(move |asked| match asked.target.as_str() {
            target if target.contains("page=2") => FakeResponse::new(status, ""),
            target if target.contains("/referrers/") => {
                FakeResponse::json(&json!({"schemaVersion": 2, "manifests": []})).with("link", "<?page=2>; rel=next")
            }
            target if target.contains("/manifests/v1") => {
                let body = json!({"schemaVersion": 2, "manifests": []});
                FakeResponse::json(&body).with("content-type", "application/vnd.oci.image.index.v1+json")
            }
            _ => FakeResponse::absent(),
        });
        fails(transload(&["inspect", &format!("{}/app:v1", registry.addr()), "--referrers"]), "list the referrers");
    }
}

/// One request of a client to the proxy caused 92,818 requests to the upstream.
#[test]
fn one_client_request_causes_a_bounded_number_of_upstream_requests() {
    for how in ALL {
        let registry = endless(how);
        let proxy = ProxyProcess::hub(registry.addr(), &[]);
        http::get(proxy.addr(), "/v2/library/app/tags/list").expect(502);
        assert!(registry.count("/tags/list") <= 101, "{how:?}: {}", registry.count("/tags/list"));
        let subject = format!("sha256:{:064x}", 7);
        http::get(proxy.addr(), &format!("/v2/library/app/referrers/{subject}")).expect(502);
        assert!(registry.count("/referrers/") <= 100, "{how:?}: {}", registry.count("/referrers/"));
    }
}

/// The proxy passed the first 100 pages of a longer list on as if they were all.
#[test]
fn the_proxy_passes_no_part_of_a_list_on() {
    let registry = FakeRegistry::start(|asked| {
        let target = asked.target.as_str();
        let nth: u64 = parameter(target, "token").map_or(0, |token| token.parse().unwrap_or(0));
        let answer = FakeResponse::json(&json!({"tags": [format!("v{nth}")]}));
        if nth < 150 { answer.with("link", &format!("<?token={}>; rel=next", nth + 1)) } else { answer }
    });
    let proxy = ProxyProcess::hub(registry.addr(), &[]);
    http::get(proxy.addr(), "/v2/library/app/tags/list").expect(502);
    assert_eq!(registry.count("/tags/list"), 101);
}
