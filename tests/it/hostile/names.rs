//! Tags, names and digests from outside that become part of a URL, a path or a reference.
//!
//! The hostile part is a registry whose list of tags, or whose answer to an upload, is replaced; a layout
//! directory whose index was written by someone else; or a file that the proxy reads back from its disk.
//! In all of them the target is the image `victim/app:latest` at the destination.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::super::support::process::RUN_TIMEOUT;
use super::super::support::proxied::{assert_metric_line, ops_addr};
use super::super::support::{
    Fault, Front, Image, Process, ProxyProcess, Registry, Rule, Run, TempDir, Tool, http, transload,
};

/// Leads from a repository's manifests to another repository's, by any client that resolves `..`.
const TRAVERSAL: &str = "../../../victim/app/manifests/latest";

/// What no tag may be, each with a trick of its own.
fn bad_tags() -> Vec<String> {
    let depth = |depth: usize| format!("{}victim/app/manifests/latest", "../".repeat(depth));
    let mut bad: Vec<String> = (1..6).map(depth).collect();
    bad.extend(
        [
            "..",
            ".",
            "",
            "a/b",
            "a\\b",
            "..\\..\\..\\victim\\app\\manifests\\latest",
            "latest?x=1",
            "latest#x",
            "%2e%2e%2f%2e%2e%2f%2e%2e%2fvictim%2fapp%2fmanifests%2flatest",
            "%2e%2e/%2e%2e/%2e%2e/victim/app/manifests/latest",
            "/v2/victim/app/manifests/latest",
            "//victim/app",
            "http://victim/app",
            "a b",
            "a\nb",
            "a\r\nHost: x",
            "a\0b",
            "a\u{1b}[2Jb",
            "\u{202e}latest",
            "sha256:00",
            "latest@sha256:00",
            "-x",
            ".x",
            "étiquette",
            "．．",
            " latest",
        ]
        .map(str::to_owned),
    );
    bad.push("a".repeat(129));
    bad.push("x".repeat(100_000));
    bad
}

/// A registry that the attacker controls. Its `evil/x` has the good tags `v1` and `v2`, and lists `bad` too;
/// what a traversal finds there is the attacker's image as well.
struct Attacker {
    registry: Registry,
    front: Front,
    good: Image,
    evil: Image,
}

impl Attacker {
    fn listing(bad: &[&str]) -> Self {
        let registry = Registry::start();
        let (good, evil) = (Image::single(1, &[2000]), Image::single(2, &[2000]));
        good.push(registry.addr(), "evil/x", "v1");
        good.push(registry.addr(), "evil/x", "v2");
        evil.push(registry.addr(), "victim/app", "latest");
        let tags: Vec<&str> = ["v1"].iter().chain(bad).chain(&["v2"]).copied().collect();
        let body = json!({ "name": "evil/x", "tags": tags }).to_string();
        let rule = Rule::on("GET", "/v2/evil/x/tags/list", Fault::Page { body, next: None });
        let front = Front::before(registry.addr()).rule(rule).start();
        Self { registry, front, good, evil }
    }

    fn repository(&self) -> String {
        format!("{}/evil/x", self.front.addr())
    }
}

/// A destination with the victim's image.
struct Destination {
    _process: Option<Process>,
    _kept: (Option<Registry>, TempDir),
    at: SocketAddr,
    front: Front,
    victim: Image,
}

impl Destination {
    fn docker_registry() -> Self {
        let registry = Registry::start();
        let at = registry.addr();
        Self::with((Some(registry), TempDir::new()), None, at)
    }

    /// `transload serve --writable`.
    fn serve() -> Self {
        let directory = TempDir::new();
        let (process, at) = serving(&directory.join("images"), &["--writable"]);
        Self::with((None, directory), Some(process), at)
    }

    fn with(kept: (Option<Registry>, TempDir), process: Option<Process>, at: SocketAddr) -> Self {
        let victim = Image::single(9, &[3000]);
        // An older image, with known holes: what an attacker would put in place of the newest one.
        Image::single(2, &[2000]).push(at, "victim/app", "old");
        victim.push(at, "victim/app", "latest");
        let front = Front::before(at).start();
        Self { _process: process, _kept: kept, at, front, victim }
    }

    fn both() -> [Self; 2] {
        [Self::docker_registry(), Self::serve()]
    }

    fn host(&self) -> String {
        self.front.addr().to_string()
    }

    /// The victim's image is what it was, and no request even named its repository.
    #[track_caller]
    fn assert_untouched(&self) {
        let named: Vec<String> =
            self.front.log().iter().map(|seen| seen.target()).filter(|at| at.contains("victim")).collect();
        assert_eq!(named, Vec::<String>::new());
        self.victim.assert_at(self.at, "victim/app", "latest");
    }
}

fn serving(directory: &str, flags: &[&str]) -> (Process, SocketAddr) {
    let process = Tool::transload().args(&["serve", directory, "--listen", "127.0.0.1:0"]).args(flags).spawn();
    let line = process.stderr.wait_line(" on http://", RUN_TIMEOUT);
    let at = line.rsplit("http://").next().and_then(|at| at.trim().parse().ok()).expect("an address");
    (process, at)
}

/// One report names the bad tag, as a quoted literal; nothing raw of it reaches the terminal.
#[track_caller]
fn assert_reported(run: &Run, bad: &[&str]) {
    let all = format!("{}{}", run.stdout, run.stderr);
    for tag in bad.iter().take(10).filter(|tag| tag.len() < 200) {
        assert!(all.contains(&format!("{tag:?}")), "{tag:?} is not reported:\n{all}");
    }
    let raw = |c: char| c.is_control() && c != '\n';
    assert!(!all.contains(raw) && !all.contains('\u{202e}'), "raw control characters: {all:?}");
    assert!(all.len() < 20_000, "{} bytes of report", all.len());
}

/// The attack that was found: a tag is a path to another repository of the destination, and the attacker's
/// registry has an image at the end of that path too.
#[test]
fn a_tag_that_is_a_path_overwrites_no_other_repository() {
    let attacker = Attacker::listing(&[TRAVERSAL]);
    for to in Destination::both() {
        let run = transload(&["copy", &attacker.repository(), &format!("{}/untrusted/x", to.host()), "--all-tags"]);
        to.assert_untouched();
        assert_reported(&run.exits(3), &[TRAVERSAL]);
        attacker.good.assert_at(to.front.addr(), "untrusted/x", "v1");
        attacker.good.assert_at(to.front.addr(), "untrusted/x", "v2");
    }
    assert_eq!(attacker.front.count("*", "victim"), 0, "the attacker's image was not even asked for");
    attacker.evil.assert_at(attacker.registry.addr(), "victim/app", "latest");
}

/// The same by escapes, other slashes, queries, fragments, control characters, length.
#[test]
fn no_text_but_a_tag_is_ever_asked_for_or_written() {
    let bad = bad_tags();
    let bad: Vec<&str> = bad.iter().map(String::as_str).collect();
    let attacker = Attacker::listing(&bad);
    let to = Destination::docker_registry();
    let source = attacker.repository();
    let run = transload(&["copy", &source, &format!("{}/untrusted/x", to.host()), "--all-tags"]).exits(3);
    assert_reported(&run, &bad);
    to.assert_untouched();
    let tags = http::get(to.front.addr(), "/v2/untrusted/x/tags/list").expect(200).json();
    assert_eq!(tags["tags"], json!(["v1", "v2"]));
    // What was asked for at either end are the two tags, and digests.
    let manifests = |front: &Front| -> Vec<String> {
        let names = front
            .log()
            .iter()
            .filter_map(|seen| Some(seen.target().split_once("/manifests/")?.1.to_owned()))
            .collect::<Vec<_>>();
        names.into_iter().filter(|name| !name.starts_with("sha256:") && name != "v1" && name != "v2").collect()
    };
    assert_eq!((manifests(&attacker.front), manifests(&to.front)), (vec![], vec![]));
}

/// A list of nothing but bad tags is a failure, not an empty success.
#[test]
fn a_list_of_bad_tags_alone_fails() {
    let registry = Registry::start();
    let body = json!({ "tags": [TRAVERSAL, ".."] }).to_string();
    let rule = Rule::on("GET", "/v2/evil/x/tags/list", Fault::Page { body, next: None });
    let front = Front::before(registry.addr()).rule(rule).start();
    let to = Destination::docker_registry();
    let from = format!("{}/evil/x", front.addr());
    let run = transload(&["copy", &from, &format!("{}/untrusted/x", to.host()), "--all-tags"]).exits(1);
    assert_reported(&run, &[TRAVERSAL, ".."]);
    to.assert_untouched();
}

/// The same attack on a mirror that picks tags: by a glob, by regular expressions (which could match a
/// path), by versions, and the newest ones, of which a bad tag takes no place.
#[test]
fn a_mirror_that_picks_tags_writes_to_no_other_repository() {
    let bad = [TRAVERSAL, "9.9.9/../../../../victim/app/manifests/latest", "v3\n"];
    let attacker = Attacker::listing(&bad);
    for pick in ["glob: '*'", "regex: '.*'", "regex: 'victim|v'", "semver: '*'", "glob: '*'\n    newest: 2"] {
        let to = Destination::docker_registry();
        let directory = TempDir::new();
        let list = format!("images:\n  - source: {}\n    target: untrusted/x\n    {pick}\n", attacker.repository());
        let list = directory.write("list.yaml", list);
        let run = transload(&["mirror", &list, "--to", &to.host()]);
        to.assert_untouched();
        assert_reported(&run.exits(3), &bad);
        attacker.good.assert_at(to.front.addr(), "untrusted/x", "v1");
        attacker.good.assert_at(to.front.addr(), "untrusted/x", "v2");
    }
}

/// The report of such a run, read back by `--retry-failed`, asks for the repository again and for nothing else.
#[test]
fn a_report_with_a_bad_tag_is_read_back_as_text() {
    let (attacker, to, directory) = (Attacker::listing(&[TRAVERSAL]), Destination::docker_registry(), TempDir::new());
    let list = directory
        .write("list.yaml", format!("images: [{{source: {}, target: u/x, glob: '*'}}]\n", attacker.repository()));
    let report = directory.join("report.json");
    transload(&["mirror", &list, "--to", &to.host(), "--report", &report]).exits(3);
    let again = transload(&["mirror", &list, "--to", &to.host(), "--retry-failed", &report]).exits(3);
    assert_reported(&again, &[TRAVERSAL]);
    // A report that was forged names what the list does not: nothing is done.
    let forged = json!({"schema": 1, "started": "2026-01-01T00:00:00Z", "images": [
        {"source": format!("{}:{TRAVERSAL}", attacker.repository()), "destination": format!("{}/u/x:{TRAVERSAL}", to.host()), "status": "failed"}]});
    let forged = directory.write("forged.json", forged.to_string());
    transload(&["mirror", &list, "--to", &to.host(), "--retry-failed", &forged]);
    to.assert_untouched();
}

/// A bad tag at the destination is not deleted, and not the reason to delete a good one: where the list of
/// tags is not certain, nothing is removed.
#[test]
fn pruning_deletes_nothing_where_a_list_has_bad_tags() {
    let source = Registry::start();
    let image = Image::single(1, &[2000]);
    image.push(source.addr(), "app", "v1");
    let to = Destination::docker_registry();
    Image::single(3, &[2000]).push(to.front.addr(), "app", "old");
    let directory = TempDir::new();
    let list = directory.write("list.txt", format!("{}/app:v1\n", source.addr()));
    let body = json!({ "tags": ["v1", "old", TRAVERSAL] }).to_string();
    to.front.add(Rule::on("GET", "/v2/app/tags/list", Fault::Page { body, next: None }));
    to.front.reset_log();
    let flags = ["--prune=delete", "--prune-older-than", "0s", "--prune-manifests"];
    let run = Tool::transload().args(&["mirror", &list, "--to", &to.host()]).args(&flags).run().exits(3);
    assert_reported(&run, &[TRAVERSAL]);
    assert_eq!(to.front.count("DELETE", ""), 0);
    to.assert_untouched();
    // With a proper list the same run removes the old tag: it was the bad one that spared it.
    to.front.clear_rules();
    Tool::transload().args(&["mirror", &list, "--to", &to.host()]).args(&flags).run().ok();
    assert!(to.front.count("DELETE", "/v2/app/manifests/sha256:") > 0);
    to.assert_untouched();
}

/// Names in a terminal: `tags` shows the tags, reports what is none, and ends with 3.
#[test]
fn a_list_of_tags_shows_the_good_ones_and_reports_the_others() {
    let bad = [TRAVERSAL, "a\u{1b}]0;owned\u{7}", "x\ny"];
    let attacker = Attacker::listing(&bad);
    let run = transload(&["tags", &attacker.repository()]).exits(3);
    assert_eq!(run.stdout, "v1\nv2\n");
    assert_reported(&run, &bad);
    let run = transload(&["tags", &attacker.repository(), "--output", "json"]).exits(3);
    assert_eq!(run.json()["tags"], json!(["v1", "v2"]));
    assert_eq!(run.json()["malformed"].as_array().map(Vec::len), Some(3));
}

/// The proxy passes an upstream's list on to its clients: without what is no tag.
#[test]
fn the_proxy_passes_on_no_bad_tag() {
    let attacker = Attacker::listing(&[TRAVERSAL, "a\r\nx: y", "%2e%2e"]);
    let proxy = ProxyProcess::hub(attacker.front.addr(), &[]);
    let tags = http::get(proxy.addr(), "/v2/evil/x/tags/list").expect(200).json();
    assert_eq!(tags["tags"], json!(["v1", "v2"]));
    proxy.process.stderr.wait_line(&format!("{TRAVERSAL:?}"), RUN_TIMEOUT);
    // And asks for none: what a client names is held to the same grammar.
    for path in [
        "/v2/evil/x/manifests/..%2f..%2f..%2fvictim%2fapp%2fmanifests%2flatest",
        "/v2/evil/x/manifests/%2e%2e",
        "/v2/evil/..%2f..%2fvictim/app/manifests/latest",
        "/v2/evil/x/manifests/../../../victim/app/manifests/latest",
        "/v2/evil/x/blobs/sha256:..%2f..%2fmanifests%2flatest",
        "/v2/a/b/manifests/latest?ns=..%2f..",
    ] {
        let reply = http::get(proxy.addr(), path);
        assert!(reply.status == 404 || reply.status == 400, "{path}: {}", reply.status);
    }
    assert_eq!(attacker.front.count("*", "victim"), 0);
}

/// A layout directory with one image, under this name.
fn layout(names: &[&str]) -> TempDir {
    let directory = TempDir::new();
    directory.write("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    let mut entries: Vec<Value> = Vec::new();
    for (nth, name) in names.iter().enumerate() {
        let image = Image::single(20 + nth as u64, &[700]);
        for blob in &image.blobs {
            directory.write(&format!("blobs/sha256/{}", &blob.digest[7..]), &blob.bytes);
        }
        directory.write(&format!("blobs/sha256/{}", &image.digest()[7..]), image.bytes());
        let mut entry = image.descriptor();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        entries.push(entry);
    }
    directory.write("index.json", json!({"schemaVersion": 2, "manifests": entries}).to_string());
    directory
}

fn oci(directory: &TempDir) -> String {
    format!("oci:{}", directory.path().display())
}

/// A layout's only image has a path as its name, which `copy` would keep as the tag.
#[test]
fn a_layouts_name_is_no_path_at_the_destination() {
    for bad in [TRAVERSAL, "..", "a/../b", "latest?x", "a\u{1b}[2Jb", "%2e%2e/x", "é"] {
        let (directory, to) = (layout(&[bad]), Destination::docker_registry());
        for goal in [format!("{}/untrusted/x", to.host()), format!("{}/untrusted/", to.host())] {
            let run = transload(&["copy", &oci(&directory), &goal]).exits(1);
            to.assert_untouched();
            assert_reported(&run, &[bad]);
        }
        assert_eq!(to.front.log().iter().filter(|seen| seen.method != "GET" && seen.method != "HEAD").count(), 0);
        to.assert_untouched();
    }
}

/// A full name (`registry/repository:tag`) is legal in a layout, but no tag: it is refused before anything is
/// written, and taken where the destination names a tag, or is a directory.
#[test]
fn a_layouts_full_name_is_refused_as_a_tag_before_any_write() {
    let name = "registry.example/team/app:v7";
    let (directory, to, copied) = (layout(&[name]), Destination::docker_registry(), TempDir::new());
    let run = transload(&["copy", &oci(&directory), &format!("{}/mine/app", to.host())]).exits(2);
    assert!(run.stderr.contains(name) && run.stderr.contains(":v7"), "{}", run.stderr);
    assert_eq!(to.front.log().len(), 0);
    transload(&["copy", &oci(&directory), &format!("{}/mine/app:v7", to.host())]).ok();
    Image::single(20, &[700]).assert_at(to.front.addr(), "mine/app", "v7");
    let kept = format!("oci:{}", copied.join("kept"));
    transload(&["copy", &oci(&directory), &kept]).ok();
    assert_eq!(transload(&["tags", &kept]).ok().stdout, format!("{name}\nv7\n"));
    to.assert_untouched();
}

/// One bad name does not hide the good images of the directory, and `tags` reports it.
#[test]
fn a_bad_name_in_a_layout_leaves_the_others() {
    let directory = layout(&["v1", TRAVERSAL]);
    let run = transload(&["tags", &oci(&directory)]).exits(3);
    assert_eq!(run.stdout, "v1\n");
    assert_reported(&run, &[TRAVERSAL]);
    let to = Destination::docker_registry();
    let run = transload(&["copy", &oci(&directory), &format!("{}/mine/app", to.host())]).ok();
    assert_reported(&run, &[TRAVERSAL]);
    Image::single(20, &[700]).assert_at(to.front.addr(), "mine/app", "v1");
    to.assert_untouched();
}

/// `serve` over such a directory: the good image is there, the bad name is in no list, and said at the start.
#[test]
fn serve_offers_no_bad_name_of_its_directory() {
    let directory = layout(&["app:v1", "../../etc:v1", "app:../x", "App:v1", TRAVERSAL]);
    let (process, at) = serving(&directory.join(""), &[]);
    process.stderr.wait_line(&format!("{TRAVERSAL:?}"), RUN_TIMEOUT);
    assert_eq!(http::get(at, "/v2/_catalog").expect(200).json()["repositories"], json!(["app"]));
    assert_eq!(http::get(at, "/v2/app/tags/list").expect(200).json()["tags"], json!(["v1"]));
    Image::single(20, &[700]).assert_at(at, "app", "v1");
}

/// The registry that takes an upload says where its bytes go (`Location`), and the request has our
/// credentials: at its own host that must not be another endpoint, or another repository's session.
#[test]
fn an_upload_is_not_led_to_another_endpoint_of_the_registry() {
    let source = Registry::start();
    Image::single(1, &[2000]).push(source.addr(), "app", "v1");
    for location in [
        "/v2/victim/app/manifests/latest",
        "/v2/victim/app/manifests/latest/",
        "/v2/untrusted/x/blobs/uploads/../../../../victim/app/manifests/latest",
        "/v2/untrusted/x/blobs/uploads/..%2f..%2f..%2f..%2fvictim%2fapp%2fmanifests%2flatest",
        "/v2/victim/app/blobs/uploads/1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed",
        "../../../../victim/app/manifests/latest",
    ] {
        let to = Destination::docker_registry();
        let rule = Fault::Header("location", Some(location.to_owned()));
        to.front.add(Rule::on("POST", "/v2/untrusted/x/blobs/uploads/", rule));
        let from = format!("{}/app:v1", source.addr());
        let run = transload(&["copy", &from, &format!("{}/untrusted/x:v1", to.host())]).exits(1);
        assert!(run.stderr.contains("no upload session"), "{location}: {}", run.stderr);
        assert!(to.front.struck() > 0, "{location}");
        to.assert_untouched();
    }
}

/// The same by the answer to a chunk, which may move the session.
#[test]
fn a_chunk_does_not_move_an_upload_to_another_endpoint() {
    let (source, to) = (Registry::start(), Destination::docker_registry());
    Image::single(1, &[3 << 20]).push(source.addr(), "app", "v1");
    let rule = Fault::Header("location", Some("/v2/victim/app/manifests/latest".to_owned()));
    to.front.add(Rule::on("PATCH", "/v2/untrusted/x/blobs/uploads/", rule));
    let from = format!("{}/app:v1", source.addr());
    let goal = format!("{}/untrusted/x:v1", to.host());
    let run = transload(&["copy", &from, &goal, "--chunk-size", "1MiB"]).exits(1);
    assert!(run.stderr.contains("no upload session") && to.front.struck() > 0, "{}", run.stderr);
    to.assert_untouched();
}

/// Lists name repositories: as a reference, as a target, as a template, in every form that is read.
#[test]
fn a_list_names_no_repository_that_is_a_path() {
    let directory = TempDir::new();
    let host = "127.0.0.1:1";
    for (name, text) in [
        ("a.txt", format!("{host}/evil/../victim/app:v1\n")),
        ("b.txt", format!("{host}/evil/x:../../../victim/app/manifests/latest\n")),
        ("c.txt", format!("{host}/evil/x:v1?y\n")),
        ("d.yaml", format!("images: [{{source: {host}/evil/x, target: '../victim/app', tags: [v1]}}]\n")),
        ("e.yaml", format!("images: [{{source: {host}/evil/x, tags: ['../../../victim/app/manifests/latest']}}]\n")),
        ("f.yaml", format!("images: [{{source: {host}/evil/x, target: 'a/{{name}}:../{{tag}}', glob: '*'}}]\n")),
        ("g.yaml", format!("{host}:\n  images:\n    evil/../x: [v1]\n")),
        ("h.yaml", format!("{host}:\n  images:\n    evil/x: ['../../../victim/app/manifests/latest']\n")),
        ("i.yaml", format!("'{host}/evil/x:v1': ['127.0.0.1:2/a/../victim/app']\n")),
    ] {
        let list = directory.write(name, text);
        let run = transload(&["mirror", &list, "--to", "127.0.0.1:2"]);
        assert!(run.code == 2, "{name}: {} {}", run.code, run.stderr);
    }
    for (from, to) in [
        ("127.0.0.1:1/evil/../x:v1", "127.0.0.1:2/a"),
        ("127.0.0.1:1/evil/x:v1", "127.0.0.1:2/a/../victim/"),
        ("127.0.0.1:1/evil/x:v1", "127.0.0.1:2/a:../x"),
        ("127.0.0.1:1/evil/x:v1", "user@127.0.0.1:2/a"),
        ("127.0.0.1:1/evil/x%2f..:v1", "127.0.0.1:2/a"),
    ] {
        transload(&["copy", from, to]).exits(2);
    }
}

/// The queue of what is to be copied into the durable tier is a file in the cache's directory. An entry of it
/// that names a path is dropped, and never asked for; the others are copied.
#[test]
fn a_forged_write_back_queue_names_no_path() {
    let (attacker, durable) = (Attacker::listing(&[]), Destination::docker_registry());
    let upstream = attacker.front.addr().to_string();
    let start = |cache| {
        let flags = ["--write-back", "--listen-ops", "127.0.0.1:0"];
        ProxyProcess::start_in(cache, &format!("{upstream}={},{upstream}", durable.front.addr()), &flags)
    };
    let cache = start(TempDir::new()).kill();
    let job =
        |repository: &str, target: &str| json!({"upstream": upstream, "repository": repository, "target": target});
    let jobs = json!([
        job("evil/x", TRAVERSAL),
        job("evil/../victim", "latest"),
        job("evil/x", "sha256:..%2f"),
        {"upstream": "../x", "repository": "a", "target": "b"},
        job("evil/x", "v1"),
    ]);
    cache.write("cache/write-back.json", jobs.to_string());
    let proxy = start(cache);
    let ops = ops_addr(&proxy);
    assert_metric_line(ops, "transload_proxy_write_back_images_total{result=\"copied\"} 1");
    assert_metric_line(ops, "transload_proxy_write_back_queue_length 0");
    attacker.good.assert_at(durable.front.addr(), "evil/x", "v1");
    assert_eq!(attacker.front.count("*", "victim"), 0);
    assert_eq!(proxy.process.stderr.text().matches("write-back queue is dropped").count(), 4);
    durable.assert_untouched();
}
