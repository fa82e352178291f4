//! `transload mirror check`: what each form of list means in full, without any network; and its schema.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::support::{Tool, transload};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lists")
}

fn fixture(name: &str) -> String {
    std::fs::read_to_string(fixtures().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Checks a list from stdin; proxies and resolvers that would be used if it asked anyone are traps.
fn check(list: &str, more: &[&str]) -> Tool {
    Tool::transload()
        .args(&[&["mirror", "check", "-"], more].concat())
        .env("HTTPS_PROXY", "http://127.0.0.1:1")
        .stdin(list)
}

/// Each list and what is said of it, which `NAME.check` holds: read against the tools' own documents.
#[test]
fn each_form_means_what_its_tool_means() {
    let mut lists: Vec<String> = std::fs::read_dir(fixtures())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .filter(|name| !name.ends_with(".check") && !name.ends_with(".md"))
        .collect();
    lists.sort();
    assert_eq!(
        lists,
        [
            "dregsy.yaml",
            "image-syncer-config.json",
            "image-syncer.yaml",
            "images.json",
            "images.txt",
            "images.yaml",
            "regsync.yaml",
            "skopeo.yaml",
        ]
    );
    for list in lists {
        let said = check(&fixture(&list), &[]).run().ok();
        let expected = format!("{list}.check");
        if std::env::var_os("TRANSLOAD_WRITE_FIXTURES").is_some() {
            std::fs::write(fixtures().join(&expected), &said.stdout).expect("a file");
        }
        assert_eq!(said.stdout, fixture(&expected), "{list}");
        assert_eq!(said.stderr, "", "{list}");
    }
}

#[test]
fn destinations_of_the_command_line_stand_instead() {
    let list = fixture("images.yaml");
    let said = check(&list, &["--to", "a.io/x/", "--to", "b.io"]).run().ok().stdout;
    assert!(said.contains("entries, to a.io/x, b.io\n"), "{said}");
    assert!(said.contains("docker.io/library/nginx:1.27 -> a.io/x/nginx:1.27, b.io/nginx:1.27 ("), "{said}");
    assert!(!said.contains("myregistry.azurecr.io"), "{said}");
    // A target of an entry's own that names registries stays.
    assert!(said.contains("registry.k8s.io/pause:3.10 -> other.azurecr.io/k8s/pause:3.10"), "{said}");

    let plain = check("nginx:1.27\nquay.io/a/b/c:1\n", &["--to", "a.io", "--strip-library"]).run().ok().stdout;
    assert_eq!(
        plain,
        "stdin: a list (lines) of 2 entries, to a.io\n\
         1  docker.io/library/nginx:1.27 -> a.io/nginx:1.27\n\
         2  quay.io/a/b/c:1 -> a.io/a/b/c:1\n"
    );
    let scoped = check(&fixture("skopeo.yaml"), &["--to", "a.io/m", "--target", "{registry}/{repository}"]).run().ok();
    assert!(scoped.stdout.contains("team/app:v1 -> a.io/m/registry.example.com/team/app:v1\n"), "{scoped:?}");
    assert!(!scoped.stdout.contains("--scoped"), "{scoped:?}");
}

/// What a note tells the user to give, there is.
#[test]
fn notes_name_flags_that_there_are() {
    let help = transload(&["mirror", "--help"]).ok().stdout;
    let mut named = 0;
    for list in ["dregsy.yaml", "image-syncer-config.json", "regsync.yaml", "skopeo.yaml"] {
        let said = fixture(&format!("{list}.check"));
        let notes = said.lines().filter(|line| line.starts_with("note: "));
        let words: Vec<&str> = notes.flat_map(str::split_whitespace).collect();
        // Other flags are those of the other tool.
        for pair in words.windows(2).filter(|pair| ["use", "add"].contains(&pair[0]) && pair[1].starts_with("--")) {
            let flag = pair[1].trim_end_matches([',', ':', ';']);
            assert!(help.contains(&format!("{flag} <")), "{list} names {flag}");
            named += 1;
        }
    }
    assert!(named > 5, "only {named} flags are named");
}

/// It needs none, so it doesn't care.
#[test]
fn broken_credentials_are_nothing_to_it() {
    let tool = Tool::transload().file(".docker/config.json", "{");
    tool.args(&["mirror", "check", "-", "--to", "a.io"]).stdin("nginx\n").run().ok();
}

#[test]
fn as_json() {
    let document = check(&fixture("images.yaml"), &["--output", "json"]).run().ok().json();
    assert_eq!(document["schema"], 1);
    assert_eq!(document["format"], "transload");
    assert_eq!(document["to"], json!(["myregistry.azurecr.io/hub", "backup.azurecr.io"]));
    assert_eq!(document["notes"], json!([]));
    let redis = &document["entries"][2];
    let hex = "0123456789abcdef".repeat(4);
    assert_eq!((&redis["line"], &redis["source"]), (&json!(14), &json!("docker.io/library/redis")));
    assert_eq!(
        redis["images"][1],
        json!({
            "tag": "7.2",
            "digest": format!("sha256:{hex}"),
            "to": ["myregistry.azurecr.io/hub/redis:7.2", "backup.azurecr.io/redis:7.2"],
        })
    );
    assert_eq!(
        document["entries"][3],
        json!({
            "line": 17,
            "source": "quay.io/prometheus/prometheus",
            "images": [],
            "tags": {
                "select": r"versions >=2.50 <4, without *-distroless, *busybox*, /^v2\.5[0-3]/, the newest 5",
                "to": [
                    "myregistry.azurecr.io/hub/monitoring/prometheus:TAG-quay",
                    "backup.azurecr.io/monitoring/prometheus:TAG-quay",
                ],
            },
            "platforms": ["linux/amd64", "linux/arm64/v8"],
            "referrers": true,
        })
    );
    let notes = check(&fixture("skopeo.yaml"), &["--to", "a.io", "--output", "json"]).run().ok().json();
    let lines: Vec<&Value> = notes["notes"].as_array().expect("notes").iter().map(|note| &note["line"]).collect();
    assert_eq!(lines, [0, 0, 11, 15, 17]);
}

#[test]
fn errors_point_at_the_line_and_end_with_2() {
    let tool = Tool::transload().file("images.yaml", "images:\n  - nginx\n  - source: redis\n    tag: 7\n");
    let run = tool.args(&["mirror", "check", "images.yaml", "--to", "a.io"]).run().exits(2);
    assert_eq!(
        run.stderr,
        "error: local: images.yaml:4: an image has no \"tag\"\n\
         hint: there are source, target, tags, glob, regex, semver, newest, exclude, exclude-regex, platforms, referrers, \
         strip-library\n"
    );
    assert_eq!(run.stdout, "");
    for (list, to, said) in [
        (
            "nginx:1\nghcr.io/a/nginx:1 library/nginx\n",
            "a.io",
            "stdin:2: ghcr.io/a/nginx:1 would overwrite docker.io/library/nginx:1 of line 1",
        ),
        // Only with this destination.
        ("nginx:1 a.io/nginx\nredis:1\nquay.io/nginx:1 nginx\n", "a.io", "stdin:3: quay.io/nginx:1 would overwrite"),
        ("a.io/x:1\n", "a.io", "stdin:1: a.io/x would be copied onto itself"),
        ("nginx\n\u{fffd}\n", "a.io", "stdin:2: "),
        ("images: [*a]\n", "a.io", "stdin:1: an alias (*) has no anchor"),
        ("", "a.io", "stdin: it names no images"),
    ] {
        let run = check(list, &["--to", to]).run().exits(2);
        assert!(run.stderr.contains(said), "{said}: {run:?}");
        assert!(run.stderr.contains("error: local: "), "{run:?}");
    }
    check("nginx:1 a.io/nginx\nredis:1\nquay.io/nginx:1 nginx\n", &["--to", "b.io"]).run().ok();
    transload(&["mirror", "check", "no-such-file"]).exits(1);
    transload(&["mirror", "check"]).exits(2);
    transload(&["mirror", "check", "-", "--to", "nginx"]).exits(2);
    transload(&["mirror", "check", "-", "--target", "{nope}"]).exits(2);
}

#[test]
fn a_large_list_is_checked_quickly_and_a_larger_one_refused() {
    let images: String =
        (0..50_000).map(|number| format!("  - quay.io/team{}/app:v{number}\n", number % 700)).collect();
    let run = check(&format!("images:\n{images}"), &["--to", "a.io"]).run().ok();
    assert_eq!(run.stdout.lines().count(), 50_001);
    let run = check(&format!("images:\n{}", "  - nginx:1.27\n".repeat(700_000)), &[]).run().exits(2);
    assert!(run.stderr.contains("too large for a list"), "{run:?}");
}

/// The guide's list, and the keys and placeholders of the reference.
#[test]
fn the_documents_are_right_about_lists() {
    let guide = super::docs::file("docs/guides/mirror.md");
    let list = guide.split("```yaml\nto:").nth(1).and_then(|rest| rest.split("```").next()).expect("a list");
    let list = &format!("to:{list}");
    let said = check(list, &[]).run().ok().stdout;
    assert_eq!(
        said,
        "stdin: a list (transload) of 3 entries, to myregistry.azurecr.io/hub\n\
         6  docker.io/library/nginx:1.27 -> myregistry.azurecr.io/hub/nginx:1.27 (linux/amd64, linux/arm64)\n\
         7  docker.io/library/redis:7.2@sha256:0123456789ab… -> myregistry.azurecr.io/hub/redis:7.2 (linux/amd64, linux/arm64)\n   \
         docker.io/library/redis:7.4 -> myregistry.azurecr.io/hub/redis:7.4 (linux/amd64, linux/arm64)\n\
         9  quay.io/prometheus/prometheus: versions >=2.50 <4, without *-distroless, the newest 5 -> \
         myregistry.azurecr.io/hub/monitoring/prometheus (linux/amd64, linux/arm64, with referrers)\n"
    );
    let rows = |head| super::docs::table("docs/reference/list.md", head);
    for (keys, _) in rows("key") {
        for key in keys.split('`').skip(1).step_by(2) {
            let value = if key == "newest" { "1" } else { "\"1\"" };
            check(
                &format!("images: [{{source: nginx, glob: '*', {key}: {value}}}]").replace("glob: '*', glob", "glob"),
                &[],
            )
            .run()
            .ok();
        }
    }
    let placeholders = rows("placeholder");
    assert_eq!(placeholders.len(), 5);
    for (placeholder, made) in placeholders {
        let placeholder = placeholder.trim_matches('`').to_owned();
        let made = made.split('`').nth(1).expect("an example").to_owned();
        let template = if placeholder == "{tag}" { "x:{tag}" } else { &placeholder };
        let said = check("nginx:1.27", &["--to", "a.io", "--target", template]).run().ok().stdout;
        let expected = if placeholder == "{tag}" { format!("a.io/x:{made}\n") } else { format!("a.io/{made}:1.27\n") };
        assert!(said.ends_with(&expected), "{placeholder}: {said}");
    }
}

#[test]
fn the_schema_is_printed() {
    let schema = transload(&["mirror", "schema"]).ok().json();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/mirror.schema.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(file).expect("the schema")).expect("JSON");
    assert_eq!(schema, file);
    // Every key of it is in the fixture that is ours.
    let own = fixture("images.yaml") + &fixture("images.json");
    for part in [&schema, &schema["$defs"]["defaults"], &schema["$defs"]["image"]] {
        for key in part["properties"].as_object().expect("properties").keys() {
            assert!(own.contains(&format!("{key}:")) || own.contains(&format!("\"{key}\":")), "{key}");
        }
    }
}
