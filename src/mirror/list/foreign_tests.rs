//! Lists of other tools: inputs, and the tags that those tools select. Each table cites its source.

use super::*;
use crate::reference::Tag;

fn read(text: &str) -> List {
    List::read(text, "list").unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The tags that the first entry of a list selects, in order.
fn picked(list: &str, tags: &str) -> Vec<String> {
    let list = read(list);
    let chosen = list.entries[0].pick.choose(tags.split(' ').map(Tag::from)).expect("patterns");
    let mut chosen: Vec<String> = chosen.iter().map(SelectedImage::to_string).collect();
    chosen.sort();
    chosen.dedup();
    chosen
}

#[track_caller]
fn picks(list: &str, tags: &str, expected: &str) {
    let mut expected: Vec<&str> = expected.split_whitespace().collect();
    expected.sort_unstable();
    assert_eq!(picked(list, tags), expected, "{list}\nof {tags}");
}

fn notes(list: &str) -> Vec<String> {
    read(list).notes.into_iter().map(|note| format!("{}: {}", note.line, note.text)).collect()
}

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn dregsy(tags: &str) -> String {
    format!(
        "tasks:\n- name: t\n  source: {{registry: a.io}}\n  target: {{registry: b.io}}\n  mappings:\n  - from: x/y\n    platform: all\n    tags: {tags}\n"
    )
}

/// <https://github.com/xelalexv/dregsy#tag-filtering>,
/// <https://github.com/xelalexv/dregsy/blob/master/internal/pkg/tags/tagset.go>
#[test]
fn dregsys_tags() {
    let releases = "latest 1.29.4 1.30.0 1.31.0 1.31.8 1.31.9 1.26.1-glibc 1.26.1-alpine 1.31-alpine";
    for (tags, of, expected) in [
        ("[]", releases, releases),
        ("['semver: >=1.31.0 <1.31.9']", releases, "1.31.0 1.31.8"),
        (
            r"['semver: >=1.31.0 <1.31.9', 'regex: 1\.26\.[0-9]-(glibc|musl)', '1.29.4', latest]",
            releases,
            "1.31.0 1.31.8 1.26.1-glibc 1.29.4 latest",
        ),
        (r"['regex: !1\..*']", releases, "latest"),
        (r"['regex: ^1\.3.*$']", releases, "1.30.0 1.31.0 1.31.8 1.31.9 1.31-alpine"),
        ("['semver: 1.31.x']", releases, "1.31.0 1.31.8 1.31.9"),
        ("['semver: 1.20.x']", "1.20.0 1.20.15 1.21.0", "1.20.0 1.20.15"),
        // Tags that are not versions by dregsy's rules.
        ("['semver: >=1.20.0']", "1.21.0 1.21-alpine3.18 2-alpine 3.9-slim 1.2.3.4 3.14rc1 v1_amd64 v2", "1.21.0 v2"),
        // `keep` does not apply to named tags.
        (
            "['semver: >=2.0.0', 'keep: .+-(alpine|buster)']",
            "2.0.0 2.1.0-alpine 2.2.0-buster 1.0.0-alpine",
            "2.1.0-alpine 2.2.0-buster",
        ),
        ("[latest, 'semver: >=2.0.0', 'keep: .+-alpine']", "2.1.0-alpine 2.2.0 latest", "2.1.0-alpine latest"),
        ("[a, 'keep: b.+']", "a b", "a"),
        ("['keep: 1.*', 'keep: .*9']", releases, "1.31.9"),
        // `keep: latest N`
        ("['keep: latest 2']", "latest edge 1.0.0 2.0.0 3.0.0 1.5-alpine", "1.5-alpine 2.0.0 3.0.0 edge latest"),
        ("['keep: latest 2']", "a b c", "b c"),
        ("['regex: r.*', 'keep: latest 1']", "r9 r10 x", "r9"),
        (
            "[glibc-tests, 'semver: >=1.34.0 <=1.36.0', 'keep: latest 2']",
            "1.33.0 1.34.0 1.35.0 1.36.0",
            "glibc-tests 1.35.0 1.36.0",
        ),
        ("['1.0.0', '2.0.0', qa, 'keep: latest 1']", "9.9.9", "2.0.0 qa"),
        ("['keep: latest 5', 'keep: latest 1']", "1.0.0 2.0.0", "2.0.0"),
        ("['keep: latest 0']", "1.0.0 2.0.0", "1.0.0 2.0.0"),
        ("['keep: latest 1', 'keep: 1.*']", "1.0.0 1.1.0 2.0.0", "1.1.0"),
        ("['keep: latest']", "1.0.0 latest", "latest"),
        // Alternatives without a group.
        (r"['regex: 1\.0|latest']", "1.0 1.0-alpine latest my-latest 2", "1.0 1.0-alpine latest my-latest"),
        (r"['regex: (1\.0|latest)']", "1.0 1.0-alpine latest my-latest 2", "1.0 latest"),
    ] {
        picks(&dregsy(tags), of, expected);
    }
    picks(
        &dregsy(&format!("['1.35.0-uclibc@{DIGEST}', '{DIGEST}', 'keep: all.+']")),
        "1.35.0-uclibc",
        &format!("1.35.0-uclibc@{DIGEST} @{DIGEST}"),
    );
}

fn regsync(tags: &str) -> String {
    format!("sync:\n- {{source: a.io/x/y, target: b.io/y, type: repository, {tags}}}\n")
}

/// <https://regclient.org/usage/regsync/>, <https://github.com/regclient/regclient/blob/main/pkg/regsync/root.go>
#[test]
fn regsyncs_tags() {
    let alpine = "latest edge 3 3.0 3.5 3.10 3.5.1 3-rc v3.5";
    for (tags, of, expected) in [
        ("tags: {}", alpine, alpine),
        (r#"tags: {allow: [latest, edge, "3", "3\\.\\d+"], deny: ["3\\.0"]}"#, alpine, "latest edge 3 3.5 3.10"),
        (r#"tags: {deny: ["3.*"]}"#, alpine, "latest edge v3.5"),
        (r#"tags: {semverRange: [">=3.5"]}"#, alpine, "3.5 3.10 3.5.1 v3.5"),
        (r#"tags: {semverRange: ["^1.20"]}"#, "1.19 1.20 1.21-alpine3.18 2-alpine 2", "1.20 1.21-alpine3.18 2-alpine"),
        (r#"tags: {semverRange: [">=1.0.0 <2.0.0", ">=4.0.0"]}"#, "1.5.0 2.5.0 4.1", "1.5.0 4.1"),
        (r#"tags: {semverRange: [">=3.5"], allow: ["v.*"]}"#, alpine, "v3.5"),
        (r#"tags: {semverRange: [""]}"#, alpine, alpine),
        (
            r#"tagSets: [{allow: [edge]}, {semverRange: ["=3.10"]}], tags: {allow: [latest]}"#,
            alpine,
            "edge 3.10 latest",
        ),
        (r#"tags: {allow: ["1\\.0|latest"]}"#, "1.0 1.0-alpine latest my-latest 2", "1.0 1.0-alpine latest my-latest"),
        (r#"tags: {allow: ["(1\\.0|latest)"]}"#, "1.0 1.0-alpine latest my-latest 2", "1.0 latest"),
        (r#"tags: {allow: [""]}"#, alpine, ""),
    ] {
        picks(&regsync(tags), of, expected);
    }
}

/// <https://github.com/containers/skopeo/blob/main/docs/skopeo-sync.1.md>,
/// <https://github.com/containers/skopeo/blob/main/cmd/skopeo/sync.go>
#[test]
fn skopeos_tags() {
    for (images, of, expected) in [
        ("images: {x: []}", "a b", "a b"),
        ("images: {x: }", "a b", "a b"),
        ("images: {x: [\"1.0\", a]}", "1.0 a b", "1.0 a"),
        ("images-by-tag-regex: {x: '^1\\.13\\.[12]-alpine-perl$'}", "1.13.1-alpine-perl 1.13.1", "1.13.1-alpine-perl"),
        ("images-by-tag-regex: {x: alpine}", "1-alpine 2-alpine3 x", "1-alpine 2-alpine3"),
        ("images-by-semver: {x: '>= 3.12.0'}", "3.11 3.12 3.13.1 3.13-rc1 edge 20240101", "3.12 3.13.1 20240101"),
        ("images-by-semver: {x: '>=1.20.0'}", "1.21 1.21-alpine3.18 2-alpine 1.2.3.4 3.14rc1 v1_amd64 v2", "1.21 v2"),
        ("images-by-semver: {x: '>=1.20.0-0'}", "1.21-alpine3.18 2-alpine 1.2.3.4 3.14rc1", "1.21-alpine3.18 2-alpine"),
        ("images-by-semver: {x: 1.2.x}", "1.2.0 1.2.9 1.3.0", "1.2.0 1.2.9"),
    ] {
        picks(&format!("a.io:\n  {images}\n"), of, expected);
    }
}

/// <https://github.com/AliyunContainerService/image-syncer#configure-files>,
/// <https://github.com/AliyunContainerService/image-syncer/blob/master/pkg/utils/url.go>
#[test]
fn image_syncers_tags() {
    for (key, of, expected) in [
        ("a.io/x/y".to_owned(), "1 2", "1 2".to_owned()),
        ("a.io/x/y:1".to_owned(), "1 2", "1".to_owned()),
        ("a.io/x/y:1,2".to_owned(), "1 2 3", "1 2".to_owned()),
        ("a.io/x/y:/^v[12]/".to_owned(), "v1 v2-a v3", "v1 v2-a".to_owned()),
        (format!("a.io/x/y@{DIGEST}"), "1", format!("@{DIGEST}")),
        // If both are given, the digest counts.
        (format!("a.io/x/y:1@{DIGEST}"), "1", format!("@{DIGEST}")),
        (format!("a.io:5000/x/y:1@{DIGEST}"), "1", format!("@{DIGEST}")),
    ] {
        picks(&format!("\"{key}\": b.io/z\n"), of, &expected);
    }
    let list = read(&format!("a.io/x:1@{DIGEST}: b.io/x:two\na.io/y:\n"));
    let to = ["c.io".parse().expect("a base")];
    let place = |at: usize, tag: Option<&str>| {
        let (repository, tag) = list.entries[at].places(&to, tag).expect("places").remove(0);
        format!("{repository}:{}", tag.map(String::from).unwrap_or_default())
    };
    assert_eq!((place(0, None), place(1, Some("3"))), ("b.io/x:two".to_owned(), "c.io/y:3".to_owned()));
}

/// Go's yaml.v2 and encoding/json use the last of equal keys; yaml.v3, which skopeo uses, refuses them.
#[test]
fn the_last_of_equal_keys_counts_where_the_tool_has_it_so() {
    let list = read("a.io/x:1: b.io/first\na.io/y:1: b.io/y\na.io/x:1: b.io/second\n");
    let places = |list: &List| -> Vec<String> {
        list.entries.iter().map(|entry| entry.places(&[], Some("1")).expect("places")[0].0.to_string()).collect()
    };
    assert_eq!(places(&list), ["b.io/y", "b.io/second"]);
    assert_eq!(list.notes.len(), 1);
    assert!(list.notes[0].line == 1 && list.notes[0].text.contains("line 3"), "{:?}", list.notes);
    assert_eq!(places(&read("{\"a.io/x:1\": \"b.io/a\", \"a.io/x:1\": \"b.io/b\"}")), ["b.io/b"]);
    let regsync = "sync:\n- {source: 'a:1', target: b.io/a, target: 'b.io/b:1', type: image}\n";
    assert_eq!(places(&read(regsync)), ["b.io/b"]);
    for text in ["a.io:\n  images:\n    x: ['1']\n    x: ['2']\n", "images: [a]\nimages: [b]\n"] {
        let error = List::read(text, "list").expect_err(text);
        assert!(error.to_string().contains("already"), "{error}");
    }
}

/// skopeo warns about a registry without images, and goes on.
#[test]
fn skopeo_passes_over_a_registry_without_images() {
    for empty in ["b.io:\n", "b.io: {}\n", "b.io:\n  images: {}\n", "b.io:\n  tls-verify: true\n"] {
        let text = format!("a.io:\n  images: {{x: ['1']}}\n{empty}");
        assert_eq!(read(&text).entries.len(), 1, "{text}");
        assert!(notes(&text).iter().any(|note| note.starts_with("3: b.io has no images")), "{:?}", notes(&text));
    }
}

#[test]
fn regsyncs_templates_are_evaluated() {
    let environment: Environment = |name| (name == "REGISTRY").then(|| "r.example.org".to_owned());
    let defaults = Defaults { environment: Some(environment), ..Defaults::default() };
    let step =
        |source: &str, target: &str| format!("sync:\n- source: '{source}'\n  target: '{target}'\n  type: image\n");
    for (source, target, expected) in [
        ("nginx:1", "{{env \"REGISTRY\"}}/nginx:1", "r.example.org/nginx:1"),
        ("quay.io/a/b:1", "{{ env \"REGISTRY\" }}/{{ .Sync.Source }}", "r.example.org/quay.io/a/b:1"),
        ("{{env \"REGISTRY\"}}/a:1", "b.io/{{.Sync.Source}}", "b.io/r.example.org/a:1"),
        ("a.io/b:V1", "b.io/{{ .Sync.Source | lower }}", "b.io/a.io/b:v1"),
        ("a/b:1", "{{ env \"NONE\" | default \"c.io\" }}/b:1", "c.io/b:1"),
        ("a/b:1", "b.io/x:{{ index (split .Sync.Source \":\") 1 }}", "b.io/x:1"),
    ] {
        let list = List::read_with(&step(source, target), "list", &defaults);
        let list = list.unwrap_or_else(|error| panic!("{target}: {error}"));
        let (repository, tag) = list.entries[0].places(&[], Some("1")).expect("places").remove(0);
        assert_eq!(format!("{repository}:{}", tag.map(String::from).unwrap_or_default()), expected, "{target}");
    }
    let several = "sync:\n- {source: a, target: 'b.io/{{ time.Now }}', type: image}\n- {source: a, target: b.io/a, type: image}\n\
                   - {source: '{{file \"x\"}}', target: b.io/c, type: image}\n- {source: a, target: '{{ if 1 }}', type: image}\n";
    let error = List::read_with(several, "list", &defaults).expect_err("templates");
    let said = error.to_string();
    assert!(said.starts_with("local: list:2: the templates at lines 2, 4 and 5 can't"), "{said}");
    let unset = step("a:1", "{{env \"NONE\"}}/a:1");
    let error = List::read_with(&unset, "list", &defaults).expect_err("a variable");
    assert!(error.to_string().contains("the variable NONE is not set"), "{error}");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("NONE=")), "{error:?}");
}

#[test]
fn image_syncers_variables_are_put_in() {
    let environment: Environment = |name| (name == "REGISTRY").then(|| "r.example.org".to_owned());
    let defaults = Defaults { environment: Some(environment), ..Defaults::default() };
    for text in ["a.io/x:1: $REGISTRY/x\n", "a.io/x:1: ['${REGISTRY}/x']\n"] {
        let list = List::read_with(text, "list", &defaults).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(list.entries[0].places(&[], Some("1")).expect("places")[0].0.to_string(), "r.example.org/x");
    }
    let error = List::read_with("a.io/x:1: $OTHER/x\n", "list", &defaults).expect_err("a variable");
    assert!(error.to_string().contains("the variable OTHER"), "{error}");
}

#[test]
fn a_pattern_whose_alternatives_are_loose_is_noted() {
    let said = notes(&regsync(r#"tags: {allow: ["1\\.0|latest", "(a|b)", "[a|b]"]}"#));
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains(r"/^1\.0/ or /latest$/") && said[0].ends_with(r"write (1\.0|latest)"), "{said:?}");
    for list in [
        dregsy("['regex: a|b']"),
        dregsy("['keep: a|b']"),
        "a.io:\n  images-by-tag-regex: {x: '^a|b$'}\n".to_owned(),
        "\"a.io/x:/^a|b$/\": b.io/x\n".to_owned(),
    ] {
        assert!(notes(&list).iter().any(|note| note.contains("/^a/ or /b$/")), "{:?}", notes(&list));
    }
}

/// TLS settings of lists are ignored; each note names the flag and the registry.
#[test]
fn tls_settings_are_noted() {
    let step = "sync: [{source: 'a:1', target: 'b.io/a:1', type: image}]\n";
    for (list, wanted) in [
        (format!("creds:\n- registry: b.io:5000\n  tls: disabled\n{step}"), "3: `tls: disabled` is ignored: use --insecure-registry b.io:5000"),
        (format!("creds: [{{registry: c.io, tls: insecure}}]\n{step}"), "1: `tls: insecure` is ignored: use --insecure-registry c.io"),
        ("auth:\n  b.io/team:\n    insecure: true\nimages: {a.io/x: b.io/x}\n".to_owned(), "3: `insecure: true` is ignored: use --insecure-registry b.io"),
        ("a.io:\n  images: {x: ['1']}\n  tls-verify: false\n".to_owned(), "3: `tls-verify: false` is ignored: use --insecure-registry a.io"),
        (
            "tasks:\n- source: {registry: a.io, skip-tls-verify: true}\n  target: {registry: b.io}\n  mappings: [{from: x, platform: all}]\n".to_owned(),
            "2: `skip-tls-verify` is ignored: use --insecure-registry a.io",
        ),
    ] {
        assert!(notes(&list).iter().any(|note| note == wanted), "{wanted}: {:?}", notes(&list));
    }
    assert_eq!(
        notes(&format!("creds: [{{registry: c.io, tls: enabled}}]\n{step}")).len(),
        1,
        "only that creds aren't used"
    );
}

#[test]
fn tags_beside_an_image_are_noted() {
    let said = notes("sync:\n- {source: a.io/x, target: b.io/x, type: image, tags: {allow: ['1']}}\n");
    assert!(said.len() == 1 && said[0].contains("`tags` are for a repository"), "{said:?}");
}

#[test]
fn images_that_are_there_twice_are_counted() {
    let list = read("nginx:1\nredis:7\nnginx:1\nnginx:1 web/nginx\n");
    let to = ["a.io".parse().expect("a base")];
    let note = list.repeated(&to).expect("places").expect("a note");
    assert_eq!(
        (note.line, note.text.as_str()),
        (3, "the image is at line 1 already: of 4 images in the list 3 are different")
    );
    assert_eq!(read("nginx:1\nredis:7\n").repeated(&to).expect("places"), None);
}

#[test]
fn a_host_without_a_path_is_noted() {
    for line in ["ghcr.io", "registry.k8s.io\nnginx", "localhost:5000"] {
        let said = notes(&format!("{line}\n"));
        assert!(
            line.contains(':')
                || said
                    .iter()
                    .any(|note| note.starts_with("1: ") && note.contains("a path for that registry is missing")),
            "{said:?}"
        );
    }
    assert!(notes("nginx:1\nghcr.io/a/b:1\n").is_empty());
}
