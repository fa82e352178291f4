//! Lists in each form: what is refused, and at which line; what is recognised. What the fixtures mean in
//! full is in tests/it/mirror_check.rs.

use proptest::prelude::*;

use super::*;
use crate::error::Result;

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn read(text: &str) -> Result<List> {
    List::read(text, "list")
}

fn good(text: &str) -> List {
    read(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Reads what must be refused: at this line, with this in the error or its hint.
#[track_caller]
fn refused(text: &str, line: usize, why: &str) {
    let error = read(text).err().unwrap_or_else(|| panic!("is taken:\n{text}"));
    let place = if line == 0 { "local: list: ".to_owned() } else { format!("local: list:{line}: ") };
    let said = format!("{error} ({})", error.hint_text().unwrap_or("no hint"));
    assert!(said.starts_with(&place), "not at line {line}: {said}\n{text}");
    assert!(said.contains(why), "nothing of {why:?}: {said}");
    assert!(!said.contains('\n'), "{said}");
    assert_eq!(error.exit_code(), 2, "{said}");
}

/// Where its images go, in a word each.
fn places(list: &List, to: &[&str]) -> Vec<String> {
    let to: Vec<DestinationBase> = to.iter().map(|base| base.parse().expect("a base")).collect();
    let mut all = Vec::new();
    for entry in &list.entries {
        for exact in &entry.pick.exact {
            for (repository, tag) in entry.places(&to, exact.tag.as_deref()).expect("places") {
                all.push(format!("{repository}:{}", tag.map(String::from).unwrap_or_default()));
            }
        }
    }
    all
}

#[test]
fn forms_are_recognised() {
    let image = format!("images:\n  - a/b@{DIGEST}\n");
    for (text, form) in [
        ("nginx:1.27\n", ListFormat::Lines),
        ("\u{feff}# a comment\r\n\r\nquay.io/a/b:v1 c.io/d # to: there\r\n", ListFormat::Lines),
        ("localhost:5000/a:b\n", ListFormat::Lines),
        ("images: [nginx]\n", ListFormat::Native),
        ("# c\nto: a.b\nimages:\n- nginx\n", ListFormat::Native),
        ("---\nimages:\n- nginx\n", ListFormat::Native),
        ("{\"images\": [\"nginx\"]}", ListFormat::Native),
        (&image, ListFormat::Native),
        ("a.io:\n  images: {b: []}\n", ListFormat::Skopeo),
        ("a.io:5000:\n  images-by-semver: {b: '>=1'}\n", ListFormat::Skopeo),
        ("{\"a.io\": {\"images\": {\"b\": [\"1\"]}}}", ListFormat::Skopeo),
        ("version: 1\nsync:\n- {source: a, target: b.io/a, type: image}\n", ListFormat::Regsync),
        ("defaults: {interval: 1h}\nsync:\n- {source: a, target: b.io/a, type: image}\n", ListFormat::Regsync),
        ("quay.io/a/b: c.io/a/b\n", ListFormat::ImageSyncer),
        ("{\"quay.io/a/b:1,2\": [\"c.io/a/b\"]}", ListFormat::ImageSyncer),
        ("nginx: c.io/nginx\nredis:1,2: [c.io/redis, d.io/redis]\n", ListFormat::ImageSyncer),
        ("images: {nginx: c.io/a}\n", ListFormat::ImageSyncer),
        ("auth: {}\nimages: {nginx: c.io/a}\n", ListFormat::ImageSyncer),
        (
            "tasks:\n- source: {registry: a.io}\n  target: {registry: b.io}\n  mappings: [{from: c}]\n",
            ListFormat::Dregsy,
        ),
    ] {
        assert_eq!(good(text).form, form, "{text}");
    }
}

#[test]
fn what_is_no_list() {
    for (text, line, why) in [
        ("", 0, "names no images"),
        ("# nothing\n\n", 0, "names no images"),
        ("images: []\n", 0, "names no images"),
        ("sync: []\n", 0, "names no images"),
        ("- nginx\n- redis\n", 1, "a list without a name"),
        ("\nimagse: [nginx]\n", 2, "none of the known forms"),
        ("imagse: [quay.io/a/b]\n", 1, "none of the known forms"),
        ("{}", 1, "none of the known forms"),
        ("\"nginx\"", 1, "no list of images"),
        ("images: [nginx\n", 1, "never closed"),
    ] {
        refused(text, line, why);
    }
    let long = "a".repeat(read::MAX_BYTES + 1);
    refused(&long, 0, "too large");
    let many = "nginx\n".repeat(super::node::MAX_ENTRIES + 1);
    refused(&many, super::node::MAX_ENTRIES + 1, "more than 100000 entries");
}

#[test]
fn keys_may_be_long() {
    let tags: Vec<String> = (0..500).map(|number| format!("v1.0.{number}")).collect();
    for text in [
        format!("quay.io/a/b:{}: c.io/d\n", tags.join(",")),
        format!("{{\"quay.io/a/b:{}\": \"c.io/d\"}}", tags.join(",")),
    ] {
        assert_eq!(good(&text).entries[0].pick.exact.len(), 500);
    }
}

#[test]
fn json_with_tabs_and_lines_with_returns() {
    let list = good(
        "{\n\t\"images\": [\n\t\t\"nginx:1.27\",\n\t\t{\"source\": \"redis\", \"tags\": [\"7\\u002e4\"]}\n\t]\n}\n",
    );
    assert_eq!(places(&list, &["a.io"]), ["a.io/library/nginx:1.27", "a.io/library/redis:7.4"]);
    refused("images:\r\n  - nginx\r\n  - source: redis\r\n    x: 1\r\n", 4, "has no \"x\"");
}

#[test]
fn lines_refused() {
    for (text, line, why) in [
        ("nginx\nNginx\n", 2, "lower case"),
        ("nginx\n\n# x\nnginx:-\n", 4, "not a tag"),
        ("a b c", 1, "3 words"),
        ("nginx@sha256:12\n", 1, "sha256: and 64"),
        ("https://quay.io/a/b\n", 1, "written as a URL"),
        ("oci:dir\n", 1, "is a directory"),
        ("nginx oci:dir\n", 1, "no place in a registry"),
        ("nginx reg:5000\n", 1, "may be a registry"),
        ("nginx a.io/B\n", 1, "lower case"),
        ("nginx {nope}\n", 1, "there is no {nope}"),
        ("nginx x/{tag}\n", 1, "there is no {tag} in a path"),
        ("nginx x:{tag\n", 1, "without its '}'"),
        (&format!("nginx x@{DIGEST}\n"), 1, "not a digest"),
        (&format!("nginx@{DIGEST} x:{{tag}}-y\n"), 1, "has no {tag}"),
        ("nginx docker.io/library/nginx\n", 1, "onto itself"),
        ("a.io/x:1 b.io/y\nc.io/z:1 b.io/y\n", 2, "would overwrite a.io/x:1 of line 1 at b.io/y:1"),
        ("a.io/x:1\nredis\nc.io/x:1\n", 3, "would overwrite a.io/x:1 of line 1"),
        ("a.io/x:1\na.io/x:2 x:1\n", 2, "would overwrite a.io/x:1 of line 1"),
        (&format!("x:1\nx:1@{DIGEST}\n"), 2, "would overwrite docker.io/library/x:1 of line 1"),
    ] {
        refused(text, line, why);
    }
    // The same again, or nothing but its digest, overwrites nothing.
    good(&format!("x:1\nx:1\na.io/x@{DIGEST}\nb.io/x@{DIGEST}\na.io/x:1 y\n"));
}

#[test]
fn our_form_refused() {
    for (item, line, why) in [
        ("- nginx:-", 1, "not a tag"),
        ("- [nginx]", 1, "a reference or a mapping"),
        ("- ", 1, "a reference or a mapping, and this is nothing"),
        ("- {tags: [a]}", 1, "without a `source`"),
        ("- source: nginx\n  tag: 1.27", 2, "an image has no \"tag\""),
        ("- source: nginx\n  tags: {a: b}", 2, "a list of texts"),
        ("- source: nginx\n  tags:\n  - a\n  - b c", 4, "\"b c\" is not a tag"),
        ("- source: nginx\n  tags: [a:b]", 2, "is not a tag"),
        ("- source: nginx\n  tags: [a/b]", 2, "is not a tag"),
        ("- source: nginx\n  tags: ['1@sha256:1']", 2, "is not a tag"),
        ("- source: nginx\n  tags: [null]", 2, "is a text, and this is nothing"),
        ("- source: nginx:1\n  tags: [a]", 1, "the source names \"1\""),
        ("- source: nginx:1\n  newest: 1", 1, "the source names \"1\""),
        ("- source: nginx\n  glob: '[a'", 2, "not a pattern"),
        ("- source: nginx\n  glob: nginx:*", 2, "fits no tag"),
        ("- source: nginx\n  glob: []", 2, "`glob` is empty"),
        ("- source: nginx\n  regex: '('", 2, "not a pattern"),
        ("- source: nginx\n  semver: latest", 2, "not a range"),
        ("- source: nginx\n  newest: 0", 2, "from 1 to 100000"),
        ("- source: nginx\n  newest: all", 2, "from 1 to 100000"),
        ("- source: nginx\n  exclude: a*", 1, "nothing that `exclude`"),
        ("- source: nginx\n  platforms: [linux]", 2, "not a platform"),
        ("- source: nginx\n  referrers: maybe", 2, "true or false"),
        ("- source: nginx\n  target: []", 2, "`target` is empty"),
        ("- source: nginx\n  target: [a.io/b, c]", 2, "names no registry"),
        ("- source: nginx\n  target: a:b\n  glob: '*'", 1, "several images would get one tag"),
        ("- source: nginx\n  target: a.io/b:c\n  tags: [a, b]", 1, "several images would get one tag"),
        ("- source: nginx\n  target: '{namespace}'\n  strip-library: true", 1, "no repository name"),
        ("- a.io/b\n- source: c.io/d\n  target: b", 2, "would overwrite a.io/b:latest of line 2"),
    ] {
        refused(&format!("images:\n{item}\n"), line + 1, why);
    }
    for (text, line, why) in [
        ("images: [nginx]\nimage: []\n", 2, "a list has no \"image\""),
        ("images: nginx\n", 1, "`images` is a list"),
        ("to: nginx\nimages: [nginx]\n", 1, "names no registry"),
        ("to: [a.io, 'b.io/x:1']\nimages: [nginx]\n", 1, "has a tag or digest"),
        ("to: a.io\n", 1, "has no `images`"),
        ("defaults: {source: a}\nimages: [nginx]\n", 1, "`defaults` has no \"source\""),
        ("defaults:\n  target: a.io/b\nimages: [nginx]\n", 2, "names a registry"),
        ("defaults: [a]\nimages: [nginx]\n", 1, "`defaults` is a mapping"),
        ("images: [nginx]\nimages: [redis]\n", 2, "at line 1 already"),
        // The destinations that it names are held to, too.
        ("to: docker.io\nimages: [nginx]\n", 2, "onto itself"),
    ] {
        refused(text, line, why);
    }
}

#[test]
fn other_tools_files_refused() {
    let regsync = |step: &str| format!("version: 1\nsync:\n- {step}\n");
    let dregsy = |mapping: &str| {
        format!("tasks:\n- source: {{registry: a.io}}\n  target: {{registry: b.io}}\n  mappings:\n  - {mapping}\n")
    };
    for (text, line, why) in [
        ("version: 2\nsync: []\n".to_owned(), 1, "only version 1"),
        (regsync("{target: b.io/a, type: image}"), 3, "without `source`"),
        (regsync("{source: a, type: image}"), 3, "without `target`"),
        (regsync("{source: a, target: b.io/a}"), 3, "image or repository"),
        (regsync("source: a.io\n  target: b.io\n  type: registry"), 3, "a whole registry"),
        (regsync("{source: 'a:1', target: b.io/a, type: repository}"), 3, "has a tag"),
        (regsync("{source: a, target: 'b.io/a:1', type: repository}"), 3, "copied with all its tags"),
        (regsync("source: '{{env \"A\"}}/a'\n  target: b.io/a\n  type: image"), 3, "can't be evaluated"),
        (regsync("source: a\n  target: ocidir://a\n  type: image"), 4, "is a directory"),
        (regsync("source: a\n  target: b.io/a\n  type: repository\n  tags:\n    allow: ['(']"), 7, "not a pattern"),
        (regsync("source: a\n  target: b.io/a\n  type: repository\n  tags: {semverRange: [y]}"), 6, "not a range"),
        (regsync("source: a\n  target: b.io/a\n  type: image\n  referrerTarget: c.io/d"), 6, "can't be copied"),
        (regsync("source: a\n  target: b.io/a\n  type: image\n  platform: x"), 6, "not a platform"),
        (dregsy("{to: a}"), 5, "without `from`"),
        (dregsy("{from: 'regex:a.*', to: b}"), 5, "by pattern"),
        (dregsy("{from: a, to: 'regex:b'}"), 5, "without a replacement"),
        (dregsy("{from: a, to: 'regex:(,b'}"), 5, "not a pattern"),
        (dregsy("from: a\n    tags:\n    - 'semver: y'"), 7, "not a range"),
        (dregsy("{from: a, tags: ['keep: latest x']}"), 5, "keeps no number"),
        (dregsy("{from: a, tags: ['keep:latest 5']}"), 5, "keep: latest 5"),
        (dregsy("{from: a, tags: ['semver: >=1.20']}"), 5, "three numbers"),
        (dregsy("{from: a, digests: [b]}"), 5, "not a digest"),
        ("tasks:\n- source: {}\n  target: {registry: b.io}\n".to_owned(), 2, "has no `registry`"),
        ("tasks:\n- target: {registry: b.io}\n".to_owned(), 2, "without a `source`"),
        ("a.io/b: c.io/d:1\n".to_owned(), 1, "as many tags"),
        ("a.io/b:1,2: c.io/d:1\n".to_owned(), 1, "as many tags"),
        ("a.io/b:/x/: c.io/d:1\n".to_owned(), 1, "as many tags"),
        ("a.io/b:/x: c.io/d\n".to_owned(), 1, "is no source"),
        ("a.io/b:/(/: c.io/d\n".to_owned(), 1, "not a pattern"),
        ("a.io/b:1: [c.io/d]\na.io/c: '${X}/d'\n".to_owned(), 2, "has the variable X"),
        ("a.io/b@sha256:1: c.io/d\n".to_owned(), 1, "not a digest"),
        ("a.io/b:1: c.io/D\n".to_owned(), 1, "lower case"),
        ("a.io:\n  images:\n    b: [1, 'x y']\n".to_owned(), 3, "not a tag"),
        ("a.io:\n  images:\n    B: []\n".to_owned(), 3, "lower case"),
        ("a:\n  images:\n    b: []\n".to_owned(), 3, "is no registry"),
        ("a.io:\n  images-by-tag-regex:\n    b: '('\n".to_owned(), 3, "not a pattern"),
        ("a.io:\n  images-by-semver:\n    b: '>>1'\n".to_owned(), 3, "not a range"),
        ("a.io:\n  images: {b: []}\n  tls-verify: 3\n".to_owned(), 3, "true or false"),
        (
            "a.io:\n  images: {x/b: ['1']}\nc.io:\n  images: {y/b: ['1']}\n".to_owned(),
            4,
            "would overwrite a.io/x/b:1 of line 2",
        ),
    ] {
        refused(&text, line, why);
    }
}

#[test]
fn templates() {
    let entry = |source: &str, strip_library| {
        let mut list = good(source);
        list.entries[0].strip_library = strip_library;
        list.entries.remove(0)
    };
    let to = |text: &str| vec![text.parse::<DestinationBase>().expect("a base")];
    for (source, template, strip, place) in [
        ("nginx:1.27", "{repository}", false, "a.io/library/nginx:1.27"),
        ("nginx:1.27", "{repository}", true, "a.io/nginx:1.27"),
        ("nginx:1.27", "{registry}/{repository}", false, "a.io/docker.io/library/nginx:1.27"),
        ("nginx:1.27", "{namespace}/x-{name}", true, "a.io/x-nginx:1.27"),
        ("nginx:1.27", "/hub/{namespace}/{name}/:v{tag}-x", false, "a.io/hub/library/nginx:v1.27-x"),
        ("quay.io/a/b/c:1", "{namespace}-{name}:latest", true, "a.io/a/b-c:latest"),
        ("quay.io/library/c:1", "{repository}", true, "a.io/library/c:1"),
        ("localhost:5000/c:1", "{registry}/{name}:{name}-{tag}", false, "a.io/localhost-5000/c:c-1"),
        ("[::1]:5000/c:1", "{registry}/{namespace}/{name}", false, "a.io/1-5000/c:1"),
    ] {
        let mut entry = entry(source, strip);
        entry.target = DestinationRule::Below(template.parse().unwrap_or_else(|error| panic!("{template}: {error}")));
        let tag = entry.pick.exact.first().and_then(|exact| exact.tag.clone());
        let places = entry.places(&to("a.io"), tag.as_deref()).unwrap_or_else(|error| panic!("{template}: {error}"));
        let shown: Vec<String> =
            places.iter().map(|(to, tag)| format!("{to}:{}", tag.as_deref().unwrap_or("-"))).collect();
        assert_eq!(shown, [place], "{template}");
    }
    // What only comes out of a source or a tag.
    let mut long = entry("nginx:1", false);
    long.target = DestinationRule::Below("x:{tag}-y".parse().expect("a template"));
    assert!(
        long.places(&to("a.io"), Some(&"1".repeat(127))).is_err_and(|error| error.to_string().contains("not a tag"))
    );
    long.target = DestinationRule::Below(format!("{}/{{name}}", "x".repeat(252)).parse().expect("a template"));
    assert!(long.places(&to("a.io"), Some("1")).is_err_and(|error| error.to_string().contains("255")));
    assert!(
        long.places(&[], Some("1")).is_err_and(|error| error.hint_text().is_some_and(|hint| hint.contains("--to")))
    );
}

#[test]
fn bases() {
    for (text, shown) in [
        ("myreg.azurecr.io", "myreg.azurecr.io"),
        ("MyReg.azurecr.io/", "myreg.azurecr.io"),
        ("a.io/b/c/", "a.io/b/c"),
        ("docker://localhost:5000/x", "localhost:5000/x"),
        ("reg:5000", "reg:5000"),
        ("index.docker.io/me", "docker.io/me"),
    ] {
        assert_eq!(text.parse::<DestinationBase>().map(|base| base.to_string()).ok().as_deref(), Some(shown), "{text}");
    }
    for wrong in ["", "nginx", "https://a.io", "a.io/x:1", "a.io/X", "a.io//x", "a.io/x@y", "a.io:0/x", "-a.io"] {
        let error = wrong.parse::<DestinationBase>().err().unwrap_or_else(|| panic!("{wrong:?} is a base"));
        assert_eq!(error.exit_code(), 2, "{error}");
    }
}

#[test]
fn destinations_each_once_and_defaults_of_the_command_line() {
    let list = good("nginx:1\nredis:2 x.io/redis\n");
    assert_eq!(
        places(&list, &["a.io/p", "b.io", "a.io/p/"]),
        ["a.io/p/library/nginx:1", "b.io/library/nginx:1", "x.io/redis:2"]
    );
    let defaults =
        Defaults { target: Some("{name}".parse().expect("a template")), strip_library: true, environment: None };
    let own = "defaults: {target: '{registry}/{name}', strip-library: false}\nimages:\n- nginx:1\n- {source: 'redis:1', target: '{repository}'}\n";
    for (text, expected) in [
        ("nginx:1\nredis:1 {repository}", ["a.io/nginx:1", "a.io/redis:1"]),
        (own, ["a.io/nginx:1", "a.io/redis:1"]),
        ("docker.io:\n  images: {library/nginx: ['1'], o/redis: ['1']}", ["a.io/nginx:1", "a.io/redis:1"]),
    ] {
        let list = List::read_with(text, "list", &defaults).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(places(&list, &["a.io"]), expected, "{text}");
    }
    assert_eq!(places(&good(own), &["a.io"]), ["a.io/docker.io/nginx:1", "a.io/library/redis:1"]);
}

#[test]
fn claims_hold_between_patterns_too() {
    let list = good(
        "images:\n- {source: a.io/x, glob: '*', target: z}\n- {source: b.io/x, glob: '*', target: z}\n- {source: c.io/x, glob: '*', target: 'z:{tag}-c'}\n",
    );
    let to = ["d.io".parse().expect("a base")];
    let notes: Vec<(usize, String)> =
        list.overlaps(&to).expect("places").into_iter().map(|note| (note.line, note.text)).collect();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].0 == 3 && notes[0].1.starts_with("line 2 goes to d.io/z too"), "{notes:?}");

    let mut claims = Claims::default();
    let exact = SelectedImage { tag: Some("1".into()), digest: None };
    let place = |entry: &Entry| entry.places(&to, Some("1")).expect("places").remove(0);
    let [first, second, third] = &list.entries[..] else { panic!("three entries") };
    assert!(claims.claim(&place(first), first, &exact).is_ok_and(|new| new));
    assert!(claims.claim(&place(first), first, &exact).is_ok_and(|new| !new), "the same again");
    assert!(claims.claim(&place(third), third, &exact).is_ok_and(|new| new));
    let error = claims.claim(&place(second), second, &exact).expect_err("another image");
    assert_eq!(error.to_string(), "b.io/x:1 would overwrite a.io/x:1 of line 2 at d.io/z:1");
}

#[test]
fn notes_are_counted_not_repeated() {
    let step = "- {source: 'a:N', target: 'b.io/a:N', type: image, interval: 1h}\n";
    let text = format!("sync:\n{}{}{}", step.replace('N', "1"), step.replace('N', "2"), step.replace('N', "3"));
    let notes = good(&text).notes;
    assert_eq!(notes.len(), 1);
    assert!(notes[0].line == 2 && notes[0].text.ends_with("(and at 2 other lines)"), "{notes:?}");
}

proptest! {
    #[test]
    fn no_text_panics(text in "([a-z:/@ \\n#{}\\[\\]*&!'\"<,.1-]|images:|- |sync:|tasks:|source: |\\n  ){0,60}") {
        match read(&text) {
            Ok(list) => prop_assert!(!list.entries.is_empty()),
            Err(error) => prop_assert_eq!(error.exit_code(), 2),
        }
    }

    #[test]
    fn what_is_written_is_read(
        names in proptest::collection::btree_set("[a-z][a-z0-9]{0,6}(/[a-z][a-z0-9]{0,6}){1,2}", 1..8),
        tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,8}",
    ) {
        let lines: Vec<String> = names.iter().map(|name| format!("quay.io/{name}:{tag}")).collect();
        let expected: Vec<String> = names.iter().map(|name| format!("a.io/{name}:{tag}")).collect();
        let yaml = format!("images:\n{}", lines.iter().map(|line| format!("- {line}\n")).collect::<String>());
        let json = serde_json::json!({ "images": lines }).to_string();
        let tagged = format!(
            "images:\n{}",
            names.iter().map(|name| format!("- source: quay.io/{name}\n  tags: ['{tag}']\n")).collect::<String>()
        );
        for text in [lines.join("\n"), yaml, json, tagged] {
            prop_assert_eq!(&places(&good(&text), &["a.io"]), &expected, "{}", text);
        }
    }
}
