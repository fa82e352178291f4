//! `transload proxy`: what is wrong is told with the side that it's on, and with what to do.

use super::support::{TempDir, Tool};

/// A configuration with this for `listen`, and this behind it.
fn config(listen: &str, more: &str) -> String {
    format!("listen: [{listen}]\ncache: {{ dir: c, keep-free: 0 }}\nupstreams: [{{ name: docker.io }}]\n{more}")
}

const HTTP: &str = "{ http: 127.0.0.1:0 }";

/// The errors' files, of one directory.
fn files() -> TempDir {
    let dir = TempDir::new();
    for (name, text) in [
        ("unknown.yaml", config("{ http: 127.0.0.1:0, colour: red }", "")),
        ("type.yaml", config(HTTP, "").replace("listen: [{ http: 127.0.0.1:0 }]", "listen: 7")),
        ("empty.yaml", config("", "")),
        ("nothing.yaml", String::new()),
        ("missing.yaml", "listen: [{ http: 127.0.0.1:0 }]\ncache: { dir: c }\n".to_owned()),
        ("none.yaml", "listen: [{ http: 127.0.0.1:0 }]\ncache: { dir: c }\nupstreams: []\n".to_owned()),
        ("twice.yaml", config(HTTP, "").replace("name: docker.io", "name: a.io }, { name: a.io")),
        ("bounds.yaml", config(HTTP, "limits: { fills: 0 }\n")),
        ("large.yaml", " ".repeat(2 << 20)),
        ("address.yaml", config("{ http: 127.0.0.1:99999 }", "")),
        ("nobody.yaml", config("{ http: 127.0.0.1:0, token-file: nowhere }", "")),
        ("tokens.yaml", config("{ http: 127.0.0.1:0, token-file: short }", "")),
        ("users.yaml", config("{ http: 127.0.0.1:0, users-file: short }", "")),
        ("pem.yaml", config("{ https: 127.0.0.1:0, certificate: short, key: short }", "")),
        ("key.yaml", config("{ https: 127.0.0.1:0, certificate: nowhere, key: nowhere }", "")),
        ("auth.yaml", config(HTTP, "").replace("name: docker.io", "name: a.io, auth-file: nowhere")),
        ("short", "abc\n".to_owned()),
        ("words", "a b c d\n".to_owned()),
    ] {
        dir.write(name, text);
    }
    dir
}

#[test]
fn errors_say_what_where_and_what_to_do() {
    let dir = files();
    let at = |name: &str| dir.join(name);
    let check = |name: &str| vec!["check".to_owned(), at(name)];
    let run = |name: &str| vec!["--config".to_owned(), at(name)];
    let warm = |name: &str| vec!["warm".to_owned(), at(name)];
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let hub = |more: &[&str]| [words(&["--upstream", "docker.io", "--cache", &at("c")]), words(more)].concat();
    let of_schema = "`transload proxy schema` prints the schema of the file";
    let of_paths = "check the path: one that does not begin with / is looked for in the directory that transload runs";
    for (args, code, said, hint) in [
        (check("unknown.yaml"), 2, "unknown.yaml:1: unknown field `colour`, expected one of http", of_schema),
        (check("type.yaml"), 2, "type.yaml:1: ", of_schema),
        (check("empty.yaml"), 2, "empty.yaml: `listen` is empty", "add an item such as - http: 127.0.0.1:5000"),
        (check("nothing.yaml"), 2, "nothing.yaml", of_schema),
        (check("missing.yaml"), 2, "missing field `upstreams`", of_schema),
        (check("none.yaml"), 2, "none.yaml:3: no upstream is configured", "add one, such as docker.io"),
        (check("twice.yaml"), 2, "twice.yaml:3: two upstreams have the name a.io", "remove one of them"),
        (check("bounds.yaml"), 2, "bounds.yaml:4: 0 is not between 1 and 10000", of_schema),
        (
            check("large.yaml"),
            2,
            "large.yaml is too large for a configuration file",
            "check that this is the right file",
        ),
        (check("nowhere"), 1, "nowhere: No such file", of_paths),
        (check(""), 1, "Is a directory", "name a file"),
        (run("nowhere"), 1, "nowhere: No such file", of_paths),
        (run("address.yaml"), 2, "cannot listen on \"127.0.0.1:99999\"", "use an address and a free port"),
        (run("nobody.yaml"), 1, "nowhere: No such file", of_paths),
        (run("tokens.yaml"), 2, "short: tokens need 20 characters or more", "openssl rand -hex 32"),
        (run("users.yaml"), 2, "short: line 1: ", "htpasswd -nB NAME"),
        (run("pem.yaml"), 2, "short cannot be used for TLS", "files in PEM"),
        (run("key.yaml"), 2, "nowhere cannot be used for TLS", "files in PEM"),
        (run("auth.yaml"), 1, "the credentials in", of_paths),
        (warm("nowhere"), 1, "nowhere: No such file", of_paths),
        (warm(""), 1, "Is a directory", "name a file"),
        (warm("words"), 2, "words:1: ", "a comment begins with #"),
        (warm("short/list"), 1, "Not a directory", of_paths),
        (hub(&["--upstream", "docker.io"]), 2, "two upstreams have the name docker.io", "remove one of them"),
        (
            hub(&["--upstream", "ghcr.io=a.io,a.io"]),
            2,
            "the upstream ghcr.io has the tier a.io twice",
            "remove one of them",
        ),
        (
            hub(&["--write-back"]),
            2,
            "--write-back needs an upstream with several tiers",
            "--upstream docker.io=myregistry.azurecr.io/docker.io,docker.io",
        ),
        (hub(&["--scrub", "fast"]), 2, "invalid rate \"fast\"", "use bytes per second"),
        (hub(&["--listen", "127.0.0.1"]), 2, "cannot listen on \"127.0.0.1\"", "use an address and a free port"),
        (
            hub(&["--listen-ops", "127.0.0.1:x"]),
            2,
            "cannot listen on \"127.0.0.1:x\"",
            "use an address and a free port",
        ),
        (
            words(&["--upstream", "docker.io", "--listen", "127.0.0.1:0", "--cache", &at("short")]),
            1,
            "short/blobs: ",
            "the cache must be a directory that this user can write to",
        ),
        (
            words(&["ls", "--cache", &at("nowhere")]),
            2,
            "is not the directory of a cache",
            "use the directory of `transload proxy --cache`",
        ),
        (words(&["rm", "--cache", &at("nowhere"), "a b"]), 2, "is not an image reference", "a repository's name has"),
        (
            words(&["gc", "--admin", "127.0.0.1:1"]),
            1,
            "cannot connect to the proxy at http://127.0.0.1:1",
            "--listen-admin",
        ),
    ] {
        let run = Tool::transload().args(&["proxy"]).args(&args).run().exits(code);
        // The lines of a program that stays begin with a time.
        let lines = run.stderr.lines().map(|line| line.split_once("Z ").map_or(line, |(_, rest)| rest));
        let mut lines = lines.skip_while(|line| !line.starts_with("error: "));
        let (error, told) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        assert!(error.starts_with("error: local: ") && error.contains(said), "{args:?}: {}", run.stderr);
        assert!(told.starts_with("hint: ") && told.contains(hint), "{args:?}: {}", run.stderr);
        assert!(!run.stderr.contains("local: local") && run.stdout.is_empty(), "{args:?}: {run:?}");
    }
}
