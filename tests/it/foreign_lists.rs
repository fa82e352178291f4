//! Lists as people have them: mistakes of form are told in a sentence with the right form, what is ignored is noted,
//! and a file of credentials that has nothing for a registry is named.

use base64::Engine as _;

use super::support::registry::PASSWORD;
use super::support::{Registry, Run, Tool};

fn check(list: &str, more: &[&str]) -> Run {
    Tool::transload().args(&[&["mirror", "check", "-"], more].concat()).stdin(list).run()
}

/// Words of the YAML library that no user should have to read.
const LIBRARY: [&str; 9] =
    ["while parsing", "did not find", "mapping values", "expected ", "block ", "flow ", "scalar", "token", "duplicate"];

/// Each mistake, the line that is told, and the right form.
#[test]
fn a_mistake_of_form_is_told_with_its_line_and_the_right_form() {
    for (list, said, hint) in [
        ("images: [nginx]\n---\nimages: [redis]\n", "stdin:2: another YAML document begins", "remove the line ---"),
        ("images: [nginx]\nimages: [redis]\n", "stdin:2: the key \"images\" is at line 1 already", "merge them"),
        ("images:\n- nginx:{{ .Values.tag }}\n", "stdin:2: ", "render it first"),
        ("image: {{ .Values.image }}\n", "stdin:1: ", "render it first"),
        ("{{ .Values.image }}\n", "stdin:1: a template was not rendered", "render it first"),
        ("nginx:{{ .Values.tag }}\n", "stdin:1: \"nginx:{{ .Values.tag }}\" has a template", "render it first"),
        ("{% for x in y %}\nimages: []\n", "stdin:1: a template was not rendered", "render it first"),
        ("nginx:${TAG}\n", "stdin:1: \"nginx:${TAG}\" has a variable", "envsubst"),
        ("images:\n\t- nginx\n", "stdin:2: the line begins with a tab", "put spaces"),
        ("images:\n- nginx\n- [redis\n", "stdin:3: the [ here is never closed", "close it"),
        ("images:\n- \"nginx\n- redis\n", "stdin:2: the \" here is never closed", "close it"),
        ("images: a: b\n", "stdin:1: there are two colons", "put the value in quotes"),
        ("images:\n- @nginx\n", "stdin:2: a value begins with \"@\"", "put the value in quotes"),
        ("images:\n- *nginx\n", "stdin:2: an alias (*) has no anchor", "in quotes"),
        ("images:\n- \"a\" b\n", "stdin:2: something follows a text in quotes", "put the whole value in quotes"),
        ("images:\n  - nginx\n redis\n", "stdin:3: ", "indent"),
        ("images:\n  - source: nginx\n   tags: [a]\n", "stdin:3: ", "indent"),
        (
            "images:\n- nginx:1\n  - redis:7\n",
            "stdin:2: \"nginx:1 - redis:7\" is more than one reference",
            "same column",
        ),
        ("a.io:\n  images-by-tag-regex: {x: ^1[12]$}\n", "stdin:2: something between these brackets", "in quotes"),
        ("{\"images\": [\"nginx\" \"redis\"]}", "stdin:1: ", "comma"),
        ("REPOSITORY TAG IMAGE\n", "stdin:1: 3 words", "docker images --format"),
        ("--all nginx\n", "stdin:1: \"--all\" is not an option of a line", "--platform="),
        ("nginx 1.27\n", "stdin:1: \"1.27\" is a version, not a target", "nginx:1.27"),
        ("nginx v1.27-alpine\n", "stdin:1: \"v1.27-alpine\" is a version", "nginx:v1.27-alpine"),
        ("redis 7\n", "stdin:1: \"7\" is a version", "nginx:7"),
        ("images: [{source: nginx, target: '1.27'}]\n", "stdin:1: \"1.27\" is a version", "nginx:1.27"),
    ] {
        let run = check(list, &["--to", "a.io"]).exits(2);
        assert!(run.stderr.contains(&format!("error: local: {said}")), "{said}: {run:?}");
        let told = run.stderr.lines().find(|line| line.starts_with("hint: ")).unwrap_or_default();
        assert!(told.contains(hint), "{hint}: {run:?}");
        assert_eq!(run.stderr.lines().count(), 2, "{run:?}");
        for word in LIBRARY {
            assert!(!run.stderr.contains(word), "{word}: {run:?}");
        }
    }
}

/// Forms of other programs that can mean one thing only.
#[test]
fn what_is_unambiguous_is_read() {
    for (list, expected) in [
        (
            "nginx:1\rredis:7\r",
            "1  docker.io/library/nginx:1 -> a.io/library/nginx:1\n2  docker.io/library/redis:7 -> a.io/library/redis:7\n",
        ),
        (
            "        image: nginx:1\n      - image: \"quay.io/a/b:2\"\n",
            "1  docker.io/library/nginx:1 -> a.io/library/nginx:1\n2  quay.io/a/b:2 -> a.io/a/b:2\n",
        ),
        (
            "nginx:1 => b.io/nginx\nredis:7 -> b.io/redis\n",
            "1  docker.io/library/nginx:1 -> b.io/nginx:1\n2  docker.io/library/redis:7 -> b.io/redis:7\n",
        ),
        ("--platform=linux/arm64 nginx:1\n", "1  docker.io/library/nginx:1 -> a.io/library/nginx:1 (linux/arm64/v8)\n"),
        ("--platform linux/amd64 nginx:1\n", "1  docker.io/library/nginx:1 -> a.io/library/nginx:1 (linux/amd64)\n"),
        ("oci://ghcr.io/o/x:1\n", "1  ghcr.io/o/x:1 -> a.io/o/x:1\n"),
        (
            "// a list\n{\"images\": [\"nginx:1\"] /* all */}\n",
            "2  docker.io/library/nginx:1 -> a.io/library/nginx:1\n",
        ),
    ] {
        let fixed = list.contains("b.io");
        let run = check(list, if fixed { &[] } else { &["--to", "a.io"] }).ok();
        let rows = run.stdout.split_once('\n').map_or("", |(_, rows)| rows);
        assert_eq!(
            rows.replace("linux/arm64/v8", "linux/arm64"),
            expected.replace("linux/arm64/v8", "linux/arm64"),
            "{list}"
        );
    }
}

/// Windows' tools write UTF-16, with a mark or without.
#[test]
fn utf_16_is_told_by_its_name() {
    let tool = Tool::transload();
    let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    for (name, bytes) in
        [("marked", [b"\xff\xfe".to_vec(), wide("nginx:1\r\n")].concat()), ("plain", wide("nginx:1\r\n"))]
    {
        std::fs::write(tool.home().join(name), bytes).expect("a file");
    }
    let home = tool.home().path().to_owned();
    for name in ["marked", "plain"] {
        let run =
            Tool::transload().args(&["mirror", "check", home.join(name).to_str().expect("a path")]).run().exits(2);
        assert!(run.stderr.contains(": it is UTF-16\nhint: save it as UTF-8"), "{run:?}");
    }
}

#[test]
fn a_word_without_a_slash_is_noted() {
    let run = check("redis latest\nnginx:1 web/nginx\n", &["--to", "a.io"]).ok();
    assert!(run.stdout.contains("1  docker.io/library/redis:latest -> a.io/latest:latest\n"), "{run:?}");
    let notes: Vec<&str> = run.stdout.lines().filter(|line| line.starts_with("note: ")).collect();
    assert_eq!(notes.len(), 1, "{run:?}");
    assert!(notes[0].contains("line 1: \"latest\" is the repository") && notes[0].contains("redis:latest"), "{run:?}");
}

const STEP: &str = "sync:\n- {source: 'quay.io/a/b:1', target: 'b.io/a/b:1', type: image}\n";

/// Pushing to the registries that a file names, while --to names another, is hardly meant.
#[test]
fn destinations_without_effect_are_an_error() {
    for flags in [&["--to", "a.io"][..], &["--target", "{name}"]] {
        let run = check(STEP, flags).exits(2);
        let flag = flags[0];
        assert!(
            run.stderr.contains(&format!(
                "stdin: {flag} has no effect: all entries name their own registry, such as b.io/a/b"
            )),
            "{run:?}"
        );
        assert!(
            run.stderr.contains(&format!("remove {flag} to copy there")) && run.stderr.contains("--keep-targets"),
            "{run:?}"
        );
    }
    let run = Tool::transload().args(&["mirror", "-", "--to", "a.io", "--dry-run"]).stdin(STEP).run().exits(2);
    assert!(run.stderr.contains("--to has no effect"), "{run:?}");
    for flags in [&[][..], &["--to", "a.io", "--keep-targets"]] {
        let run = check(STEP, flags).ok();
        assert!(run.stdout.starts_with("stdin: a list (regsync) of 1 entry\n"), "the heading names no other: {run:?}");
        assert!(run.stdout.contains("quay.io/a/b:1 -> b.io/a/b:1\n"), "{run:?}");
        let json = check(STEP, &[flags, &["--output", "json"]].concat()).ok().json();
        assert_eq!(json["to"], serde_json::json!([]));
    }
    let mixed = check("nginx:1\nredis:7 b.io/redis\n", &["--to", "a.io"]).ok();
    assert!(
        mixed.stdout.contains("note: 1 of 2 entries name their own registry: they are copied there, and not to a.io\n"),
        "{mixed:?}"
    );
}

#[test]
fn variables_of_the_environment_are_put_into_templates_only() {
    let list = "sync:\n- source: nginx:1\n  target: '{{env \"MIRROR_AT\"}}/{{.Sync.Source}}'\n  type: image\n";
    let tool = || Tool::transload().args(&["mirror", "check", "-"]).stdin(list);
    let run = tool().env("MIRROR_AT", "r.example.org").run().ok();
    assert!(run.stdout.contains("docker.io/library/nginx:1 -> r.example.org/nginx:1\n"), "{run:?}");
    let run = tool().run().exits(2);
    assert!(run.stderr.contains("stdin:3: ") && run.stderr.contains("the variable MIRROR_AT is not set"), "{run:?}");
    assert!(run.stderr.contains("hint: set it, as in MIRROR_AT="), "{run:?}");
}

#[test]
fn images_that_are_listed_twice_are_told_in_numbers() {
    let run = check("nginx:1\nredis:7\nnginx:1\n", &["--to", "a.io"]).ok();
    assert!(
        run.stdout.contains("note: line 3: the image is at line 1 already: of 3 images in the list 2 are different\n"),
        "{run:?}"
    );
}

#[test]
fn a_file_of_credentials_that_has_nothing_for_the_registry_is_named() {
    let registry = Registry::with_basic("alice");
    let at = registry.addr().to_string();
    let other = r#"{"auths": {"a.example.org": {"auth": "dTpw"}, "b.example.org": {"auth": "dTpw"}}}"#;
    let source = format!("{at}/x:1");
    let run =
        Tool::transload().file("other.json", other).args(&["inspect", &source, "--auth-file", "other.json"]).run();
    assert_ne!(run.code, 0, "{run:?}");
    let hint = run.stderr.lines().find(|line| line.starts_with("hint: ")).unwrap_or_default();
    let said = format!("other.json (--auth-file) has nothing for {at}, only for a.example.org, b.example.org; ");
    assert!(hint.contains(&said) && hint.contains("transload login"), "{run:?}");
    assert!(!run.stderr.contains("dTpw"), "{run:?}");
    // Without such a file nothing is said of one, and a wrong password is another matter.
    let run = Tool::transload().args(&["inspect", &source]).run();
    assert!(!run.stderr.contains("--auth-file"), "{run:?}");
    let wrong = format!(r#"{{"auths": {{"{at}": {{"auth": "YWxpY2U6d3Jvbmc="}}}}}}"#);
    let run =
        Tool::transload().file("wrong.json", &wrong).args(&["inspect", &source, "--auth-file", "wrong.json"]).run();
    assert!(!run.stderr.contains("has nothing for"), "{run:?}");
}

#[test]
fn a_secret_of_kubernetes_is_read_as_the_manifest_that_it_is() {
    let registry = Registry::with_basic("alice");
    let at = registry.addr().to_string();
    let base64 = base64::engine::general_purpose::STANDARD;
    let auth = base64.encode(format!("alice:{PASSWORD}"));
    let config = base64.encode(format!(r#"{{"auths": {{"{at}": {{"auth": "{auth}"}}}}}}"#));
    let yaml = format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: pull\ndata:\n  .dockerconfigjson: {config}\ntype: kubernetes.io/dockerconfigjson\n"
    );
    let json = format!(r#"{{"apiVersion": "v1", "kind": "Secret", "data": {{".dockerconfigjson": "{config}"}}}}"#);
    for secret in [yaml, json] {
        let tool = Tool::transload().file("secret.yaml", &secret);
        // The repository isn't there: the registry takes the login, and says so.
        let run = tool.args(&["inspect", &format!("{at}/x:1"), "--auth-file", "secret.yaml"]).run();
        assert!(run.stderr.contains("404") || run.stderr.contains("not found"), "{run:?}");
    }
    let run = Tool::transload()
        .file("secret.yaml", "kind: Secret\ndata: {password: aHVudGVyMg==}\n")
        .args(&["inspect", &format!("{at}/x:1"), "--auth-file", "secret.yaml"])
        .run();
    assert!(run.stderr.contains("has no .dockerconfigjson") && run.stderr.contains("kubectl create secret"), "{run:?}");
}
