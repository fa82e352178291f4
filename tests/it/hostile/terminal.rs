//! Control characters from outside in terminals and logs.

use serde_json::{Value, json};

use crate::support::images::{Document, OCI_INDEX, OCI_MANIFEST};
use crate::support::{
    FakeRegistry, FakeRequest, FakeResponse, Image, ProxyProcess, Registry, Run, TempDir, Tool, http, transload,
};

/// Sets a terminal's title, clears the screen, turns the text's direction, begins a line of its own, and hides text:
/// C0, C1, bidirectional marks, separators, tag characters.
const EVIL: &str =
    "x\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}\u{2066}\u{200f}\u{2028}\u{feff}\u{e0041}\r\nforged: line\ty";

/// What acts on a terminal, or isn't seen, as the Unicode standard's categories Cc, Cf, Zl and Zp have it.
fn acts(c: char) -> bool {
    c != '\n'
        && (c.is_control()
            || ('\u{200b}'..='\u{200f}').contains(&c)
            || ('\u{2028}'..='\u{202e}').contains(&c)
            || ('\u{2060}'..='\u{206f}').contains(&c)
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}'))
}

/// Nothing in this text acts on a terminal, and no line of it was made by someone else.
#[track_caller]
fn is_harmless(text: &str) {
    assert!(!text.chars().any(acts), "{text:?}");
    assert!(!text.lines().any(|line| line.trim_start().starts_with("forged")), "{text}");
}

#[track_caller]
fn all_harmless(run: &Run) {
    is_harmless(&run.stdout);
    is_harmless(&run.stderr);
}

/// A registry with one manifest, by this tag or any digest.
fn registry_of(manifest: Document) -> FakeRegistry {
    FakeRegistry::start(move |asked: &FakeRequest| {
        let path = asked.target.as_str();
        if path == "/v2/" {
            FakeResponse::new(200, "{}")
        } else if path.ends_with("/manifests/v1") || path.ends_with(&manifest.digest) {
            FakeResponse::new(200, &manifest.bytes)
                .with("content-type", &manifest.media_type)
                .with("docker-content-digest", &manifest.digest)
        } else {
            FakeResponse::error(404, "MANIFEST_UNKNOWN", "no")
        }
    })
}

/// A registry that refuses everything with this answer.
fn refusing(answer: FakeResponse) -> FakeRegistry {
    FakeRegistry::start(move |_| answer.clone())
}

/// Tags are printed as a list; a tag with a newline would be two of them.
#[test]
fn tags_of_a_registry_are_printed_harmlessly() {
    let registry =
        FakeRegistry::start(|_| FakeResponse::new(200, json!({"name": "app", "tags": ["v1", EVIL, "v2"]}).to_string()));
    let name = format!("{}/app", registry.addr());
    let run = transload(&["tags", &name]);
    all_harmless(&run);
    assert!(run.stdout.lines().any(|line| line == "v1") && run.stdout.lines().any(|line| line == "v2"), "{run:?}");
    all_harmless(&transload(&["tags", &name, "--output", "json"]));
}

/// Annotations, media types, artifact types and platforms are whatever the image's maker wrote.
#[test]
fn an_image_is_shown_harmlessly() {
    let image = Image::single(1, &[1000]);
    let mut manifest: Value = serde_json::from_slice(image.bytes()).expect("JSON");
    manifest["annotations"] = json!({ "plain": EVIL, EVIL: "plain" });
    manifest["artifactType"] = json!(format!("a/{EVIL}"));
    manifest["config"]["mediaType"] = json!(format!("c/{EVIL}"));
    let registry = registry_of(Document::new(OCI_MANIFEST, &manifest));
    let name = format!("{}/app:v1", registry.addr());
    all_harmless(&transload(&["inspect", &name]).ok());
    // A document's data stays exact, and its text is harmless all the same.
    let run = transload(&["inspect", &name, "--output", "json"]).ok();
    all_harmless(&run);
    assert_eq!(run.json()["annotations"]["plain"], EVIL);
    assert_eq!(run.json()["annotations"][EVIL], "plain");

    let child = json!({
        "mediaType": OCI_MANIFEST, "digest": image.digest(), "size": image.bytes().len(),
        "platform": { "os": EVIL, "architecture": EVIL, "variant": EVIL }, "artifactType": EVIL
    });
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child] });
    let registry = registry_of(Document::new(OCI_INDEX, &index));
    let name = format!("{}/app:v1", registry.addr());
    all_harmless(&transload(&["inspect", &name]));
    all_harmless(&transload(&["inspect", &name, "--output", "json"]));
}

/// Error codes, messages, pages and challenges are printed with our own errors. A forged `hint:` would be typed by
/// somebody.
#[test]
fn what_a_registry_says_in_an_error_stays_in_its_line() {
    let evil_header = "Bearer realm=\"http://127.0.0.1:1/\u{9b}31m\u{202e}\",service=\"\u{9b}31m\"";
    for answer in [
        FakeResponse::error(403, EVIL, EVIL),
        FakeResponse::error(404, "MANIFEST_UNKNOWN", EVIL),
        FakeResponse::error(500, EVIL, ""),
        FakeResponse::new(403, EVIL),
        FakeResponse::new(403, format!("<html><title>{EVIL}</title></html>")),
        FakeResponse::new(401, "").with("www-authenticate", evil_header),
        FakeResponse::new(200, format!("{{\"schemaVersion\": \"{}\"}}", "\u{9b}31m\u{202e}"))
            .with("content-type", OCI_MANIFEST),
        FakeResponse::new(200, "{}").with("content-type", "a/\u{9b}31m\u{202e}"),
    ] {
        let registry = refusing(answer.clone());
        let name = format!("{}/app:v1", registry.addr());
        for flag in ["-q", "-vv"] {
            let run = transload(&["inspect", &name, flag, "--idle-timeout", "5"]).exits(1);
            all_harmless(&run);
            let errors = run.stderr.lines().filter(|line| line.starts_with("error:")).count();
            assert_eq!(errors, 1, "{answer:?}: {}", run.stderr);
        }
    }
}

/// A registry whose manifests may be looked up by `HEAD`, and are refused with this answer when they are read. The
/// answer to a `HEAD` has no body, so a text that is to be printed must come with one to a `GET`.
fn refusing_to_read(answer: FakeResponse) -> FakeRegistry {
    let digest = Image::single(1, &[1000]).digest().to_owned();
    FakeRegistry::start(move |asked: &FakeRequest| {
        if asked.method == "GET" && asked.target.contains("/manifests/") {
            return answer.clone();
        }
        FakeResponse::new(200, "{}").with("content-type", OCI_MANIFEST).with("docker-content-digest", &digest)
    })
}

/// Reports are read by people and by CI systems; XML can't even have most control characters.
#[test]
fn reports_of_a_mirror_are_harmless() {
    let (registry, destination) = (refusing_to_read(FakeResponse::error(403, EVIL, EVIL)), Registry::start());
    let directory = TempDir::new();
    let list = directory.write("images.txt", format!("{}/app:v1\n{}/b:v1\n", registry.addr(), registry.addr()));
    let (report, junit) = (directory.join("report.json"), directory.join("junit.xml"));
    let to = format!("{}/x", destination.addr());
    let args = ["mirror", &list, "--to", &to, "--retries", "0", "--report", &report, "--junit", &junit];
    for output in ["text", "json"] {
        all_harmless(&Tool::transload().args(&args).args(&["--output", output]).run().exits(1));
        let junit = directory.read("junit.xml");
        is_harmless(&junit);
        let text = directory.read("report.json");
        is_harmless(&text);
        for text in [&junit, &text] {
            assert!(text.contains("owned"), "the registry's text is there: {text}");
        }
        let document: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(document["images"].as_array().map(Vec::len), Some(2), "{text}");
    }
}

/// Names in a layout's index are whatever its maker wrote.
#[test]
fn names_in_a_layout_are_printed_harmlessly() {
    let image = Image::single(1, &[1000]);
    let home = TempDir::new();
    home.write("layout/oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    let hex = image.digest().trim_start_matches("sha256:").to_owned();
    home.write(&format!("layout/blobs/sha256/{hex}"), image.bytes());
    let named = |name: &str| {
        let mut entry = image.descriptor();
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        entry
    };
    let index = json!({ "schemaVersion": 2, "manifests": [named("v1"), named(EVIL), named(&format!("a/b:{EVIL}"))] });
    home.write("layout/index.json", index.to_string());
    let layout = format!("oci:{}", home.join("layout"));
    for command in [["tags", &layout], ["inspect", &layout]] {
        all_harmless(&transload(&command));
        all_harmless(&Tool::transload().args(&command).args(&["--output", "json", "-v"]).run());
    }
}

/// The proxy's log is read by people and by programs that look for lines. Neither an upstream nor a client may add one.
#[test]
fn neither_an_upstream_nor_a_client_writes_lines_of_the_proxys_log() {
    for answer in [
        FakeResponse::error(403, EVIL, EVIL),
        FakeResponse::error(404, EVIL, EVIL),
        FakeResponse::error(429, EVIL, EVIL),
    ] {
        let upstream = refusing(answer);
        let proxy = ProxyProcess::hub(upstream.addr(), &["-vv", "--upstream-timeout", "1"]);
        let agent = "agent\u{9b}31m\u{202e}";
        let path = "/v2/library/app/manifests/v1%0d%0aforged:%1b[2J?ns=docker.io%0aforged%1b";
        http::send(proxy.addr(), "GET", path, &[("user-agent", agent)], b"");
        let reply = http::get(proxy.addr(), "/v2/library/app/manifests/v1");
        assert!(reply.status >= 400, "{reply:?}");
        let text = reply.text();
        is_harmless(&text);
        // Clients print the message that the document holds.
        assert!(!reply.json()["errors"][0]["message"].as_str().expect("a message").chars().any(acts), "{text}");
        proxy.process.stderr.wait_line("manifests/v1", std::time::Duration::from_secs(20));
        is_harmless(&proxy.process.stderr.text());
    }
}
