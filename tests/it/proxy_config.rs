//! `transload proxy --config`: what the file says, who may ask, and that it's read again.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;

use super::support::process::RUN_TIMEOUT;
use super::support::{Fault, Front, Image, Process, Registry, Rule, Run, TempDir, Tool, http, transload};

/// A registry with one image, a front before it, a directory for the configuration.
pub(super) struct World {
    #[expect(dead_code, reason = "what the front stands before")]
    registry: Registry,
    pub(super) front: Front,
    pub(super) image: Image,
    pub(super) dir: TempDir,
}

impl World {
    pub(super) fn new(layers: &[usize]) -> Self {
        let registry = Registry::start();
        let image = Image::single(21, layers);
        image.push(registry.addr(), "library/app", "v1");
        image.push(registry.addr(), "team/app", "v1");
        let front = Front::before(registry.addr()).start();
        Self { registry, front, image, dir: TempDir::new() }
    }

    /// Writes the configuration: these listeners, this more for the upstream.
    pub(super) fn write(&self, listen: &str, upstream: &str) -> String {
        let at = self.front.addr();
        let text = format!(
            "listen:\n{listen}\ncache: {{ dir: cache, keep-free: 0 }}\nupstreams:\n  - name: docker.io\n    tiers: [\"{at}\"]\n{upstream}"
        );
        self.dir.write("proxy.yaml", text)
    }

    pub(super) fn start(&self, listen: &str, upstream: &str) -> Process {
        start(&self.write(listen, upstream))
    }
}

pub(super) fn start(config: &str) -> Process {
    let tool = Tool::transload().env("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1");
    let process = tool.args(&["proxy", "--config", config]).spawn();
    process.stderr.wait_line("the cache ", RUN_TIMEOUT);
    process
}

/// Where it listens by this scheme.
pub(super) fn addr(process: &Process, scheme: &str) -> SocketAddr {
    let line = process.stderr.wait_line(&format!(" on {scheme}://"), RUN_TIMEOUT);
    line.split("://").nth(1).and_then(|addr| addr.parse().ok()).expect("an address")
}

pub(super) const HTTP: &str = "  - http: 127.0.0.1:0";
pub(super) const LIBRARY: &str = "/v2/library/app/manifests/v1";
pub(super) const TEAM: &str = "/v2/team/app/manifests/v1";

/// An authority of one test.
pub(super) struct Authority(Issuer<'static, KeyPair>, pub(super) String);

impl Authority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self(Issuer::new(params, key), pem)
    }

    /// A certificate and its key.
    pub(super) fn issue(&self) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
        (params.signed_by(&key, &self.0).expect("a certificate").pem(), key.serialize_pem())
    }
}

/// skopeo, with the certificates of a directory as containers' tools have it.
pub(super) fn pull(at: SocketAddr, certs: &TempDir) -> Run {
    let out = TempDir::new();
    let (from, to) = (format!("docker://{at}/library/app:v1"), format!("oci:{}", out.join("out")));
    let certs = certs.path().to_str().expect("UTF-8");
    Tool::new("skopeo").args(&["--insecure-policy", "copy", "--src-cert-dir", certs, &from, &to]).run()
}

/// A proxy with a certificate of `authority`, for clients with one of another.
pub(super) fn for_clients_of(world: &World, authority: &Authority, clients: &Authority) -> Process {
    let (certificate, key) = authority.issue();
    world.dir.write("tls.crt", &certificate);
    world.dir.write("tls.key", &key);
    world.dir.write("clients.crt", &clients.1);
    world.start("  - https: 127.0.0.1:0\n    certificate: tls.crt\n    key: tls.key\n    client-ca: clients.crt", "")
}

#[test]
fn https_with_client_certificates_and_their_renewal() {
    let world = World::new(&[3000]);
    let (authority, clients, stranger) = (Authority::new(), Authority::new(), Authority::new());
    let proxy = for_clients_of(&world, &authority, &clients);
    let at = addr(&proxy, "https");
    let certs = TempDir::new();
    certs.write("ca.crt", &authority.1);
    assert_ne!(pull(at, &certs).code, 0, "without a certificate");
    let give = |issuer: &Authority| {
        let (certificate, key) = issuer.issue();
        certs.write("client.cert", certificate);
        certs.write("client.key", key);
    };
    give(&stranger);
    assert_ne!(pull(at, &certs).code, 0, "with a stranger's certificate");
    give(&clients);
    pull(at, &certs).ok();
    // Another authority's certificate is taken when its files change, without any signal.
    let renewed = Authority::new();
    let (certificate, key) = renewed.issue();
    world.dir.write("tls.key", &key);
    world.dir.write("tls.crt", &certificate);
    proxy.stderr.wait_line("reloaded ", RUN_TIMEOUT);
    assert_ne!(pull(at, &certs).code, 0, "the old authority's certificate is still shown");
    certs.write("ca.crt", &renewed.1);
    pull(at, &certs).ok();
    // What isn't a certificate is not taken.
    world.dir.write("tls.crt", "nonsense");
    proxy.hang_up();
    proxy.stderr.wait_line("the old configuration stays in use", RUN_TIMEOUT);
    pull(at, &certs).ok();
}

#[test]
fn tokens_as_bearer_and_as_password() {
    let world = World::new(&[3000]);
    world.dir.write("tokens", "# ours\n0123456789abcdef0123456789abcdef\n");
    let proxy = world.start("  - http: 127.0.0.1:0\n    token-file: tokens", "");
    let at = addr(&proxy, "http");
    let refused = http::get(at, LIBRARY).expect(401);
    assert_eq!(refused.header("www-authenticate"), Some("Basic realm=\"transload\""));
    let with = |value: &str| http::send(at, "GET", LIBRARY, &[("authorization", value)], &[]).status;
    assert_eq!(with("Bearer 0123456789abcdef0123456789abcdef"), 200);
    assert_eq!(with("Bearer 0123456789abcdef0123456789abcdeF"), 401);
    let out = TempDir::new();
    let (from, to) = (format!("docker://{at}/library/app:v1"), format!("oci:{}", out.join("out")));
    let copy = |password: &str| {
        let who = format!("node:{password}");
        let args = ["--insecure-policy", "copy", "--src-tls-verify=false", "--src-creds", &who, &from, &to];
        Tool::new("skopeo").args(&args).run()
    };
    assert_ne!(copy("wrong").code, 0);
    copy("0123456789abcdef0123456789abcdef").ok();
    assert!(world.front.log().iter().all(|seen| seen.header("authorization").is_none()), "it was passed on");
    // A new token holds at once, the old one no more.
    world.dir.write("tokens", "fedcba9876543210fedcba9876543210\n");
    proxy.hang_up();
    proxy.stderr.wait_line("reloaded ", RUN_TIMEOUT);
    assert_eq!(with("Bearer 0123456789abcdef0123456789abcdef"), 401);
    assert_eq!(with("Bearer fedcba9876543210fedcba9876543210"), 200);
}

/// A line as `htpasswd -B` writes it.
pub(super) fn user(name: &str, password: &str) -> String {
    let hash = bcrypt::hash_with_result(password, 4).expect("a hash").format_for_version(bcrypt::Version::TwoY);
    format!("{name}:{hash}\n")
}

#[test]
fn users_by_name_and_password_until_they_are_gone() {
    let world = World::new(&[3000]);
    world.dir.write("users", user("anna", "right") + &user("bert", "other"));
    let listen = "  - http: 127.0.0.1:0\n    users-file: users";
    let proxy = world.start(listen, "logs: { access: json }\n");
    let at = addr(&proxy, "http");
    let refused = http::get(at, LIBRARY).expect(401);
    assert_eq!(refused.header("www-authenticate"), Some("Basic realm=\"transload\""));
    assert_eq!(refused.json()["errors"][0]["code"], "UNAUTHORIZED");
    let copy = |who: &[&str]| {
        let out = TempDir::new();
        let (from, to) = (format!("docker://{at}/library/app:v1"), format!("oci:{}", out.join("out")));
        let args = [&["--insecure-policy", "copy", "--src-tls-verify=false"], who, &[&from, &to]].concat();
        Tool::new("skopeo").args(&args).run()
    };
    for wrong in
        [&[][..], &["--src-creds", "anna:wrong"], &["--src-creds", "anna:other"], &["--src-creds", "carl:right"]]
    {
        let run = copy(wrong);
        assert!(run.code != 0 && run.stderr.contains("unauthorized"), "{wrong:?}: {run:?}");
    }
    assert!(world.front.log().is_empty(), "a stranger was answered from upstream");
    copy(&["--src-creds", "anna:right"]).ok();
    copy(&["--src-creds", "bert:other"]).ok();
    assert!(world.front.log().iter().all(|seen| seen.header("authorization").is_none()), "it was passed on");
    // Who is remembered, but in the file no more, is a stranger at once; the other one stays.
    let changed = |users: String| {
        let before = proxy.stderr.text().matches("reloaded ").count();
        world.dir.write("users", users);
        proxy.hang_up();
        let deadline = std::time::Instant::now() + RUN_TIMEOUT;
        while proxy.stderr.text().matches("reloaded ").count() == before {
            assert!(std::time::Instant::now() < deadline, "never read");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    changed(user("bert", "other"));
    assert_ne!(copy(&["--src-creds", "anna:right"]).code, 0);
    copy(&["--src-creds", "bert:other"]).ok();
    // A file with other hashes changes nothing.
    world.dir.write("users", "bert:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n");
    proxy.hang_up();
    let said = proxy.stderr.wait_line("the hash is not a bcrypt hash", RUN_TIMEOUT);
    assert!(said.contains("line 1") && !said.contains("W6ph"), "{said}");
    copy(&["--src-creds", "bert:other"]).ok();
    proxy.terminate();
    let said = proxy.finish(RUN_TIMEOUT).stdout;
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for line in &lines {
        let (status, user) = (line["status"].as_u64(), line["user"].as_str());
        match status {
            Some(401) => assert_eq!(user, None, "{line}"),
            _ => assert!(matches!(user, Some("anna" | "bert")), "{line}"),
        }
    }
    assert!(lines.iter().any(|line| line["user"] == "anna") && !said.contains("right"), "{said}");
}

#[test]
fn a_unix_socket_comes_and_goes() {
    let world = World::new(&[3000]);
    let socket = world.dir.path().join("proxy.sock");
    // What a killed one left.
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    let listen = format!("{HTTP}\n  - unix: proxy.sock");
    let proxy = world.start(&listen, "");
    let ask = || {
        let mut stream = UnixStream::connect(&socket).expect("a connection");
        stream
            .write_all(format!("GET {LIBRARY} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        text
    };
    assert!(ask().starts_with("HTTP/1.1 200 "), "{}", ask());
    http::get(addr(&proxy, "http"), LIBRARY).expect(200);
    // A second one doesn't take it away.
    let other = world
        .dir
        .write("other.yaml", "listen: [{ unix: proxy.sock }]\ncache: { dir: other }\nupstreams: [{ name: ghcr.io }]\n");
    let second = transload(&["proxy", "--config", &other]).exits(2);
    assert!(second.stderr.contains("another process listens at"), "{second:?}");
    assert!(ask().starts_with("HTTP/1.1 200 "));
    proxy.terminate();
    proxy.finish(RUN_TIMEOUT).ok();
    assert!(!socket.exists());
}

#[test]
fn patterns_and_a_reload_in_the_middle_of_a_pull() {
    let world = World::new(&[8 << 20]);
    let proxy = world.start(HTTP, "    deny: [\"team/**\"]\n");
    let at = addr(&proxy, "http");
    http::get(at, LIBRARY).expect(200);
    http::get(at, TEAM).expect(404);
    assert_eq!(world.front.count("GET", "/team/"), 0, "it was asked for");
    // Slow enough that it's under way while all of this happens.
    let layer = &world.image.blobs[1];
    world.front.add(Rule::on("GET", "/blobs/", Fault::Throttle(1 << 20)));
    let path = format!("/v2/library/app/blobs/{}", layer.digest);
    let pulling = std::thread::spawn(move || http::get(at, &path));
    world.front.wait_for("the layer", |seen| seen.path.contains("/blobs/"));
    // Broken: it stays as it was.
    let good = std::fs::read_to_string(world.dir.path().join("proxy.yaml")).expect("the file");
    world.dir.write("proxy.yaml", format!("{good}    colour: red\n"));
    proxy.hang_up();
    let said = proxy.stderr.wait_line("unknown field", RUN_TIMEOUT);
    assert!(said.contains("proxy.yaml:8: ") && said.contains("colour"), "{said}");
    proxy.stderr.wait_line("the old configuration stays in use", RUN_TIMEOUT);
    http::get(at, LIBRARY).expect(200);
    http::get(at, TEAM).expect(404);
    // The other way round; and what can't change is said.
    let text = world.write(HTTP, "    allow: [\"team/*\"]\nlisten-admin: 127.0.0.1:0\n");
    let other = std::fs::read_to_string(&text).expect("the file").replace("dir: cache", "dir: elsewhere");
    world.dir.write("proxy.yaml", other);
    proxy.hang_up();
    proxy.stderr.wait_line("changes of `listen-admin` need a restart", RUN_TIMEOUT);
    proxy.stderr.wait_line("changes of `cache` need a restart", RUN_TIMEOUT);
    proxy.stderr.wait_line("reloaded ", RUN_TIMEOUT);
    http::get(at, LIBRARY).expect(404);
    http::get(at, TEAM).expect(200);
    assert!(!world.dir.path().join("elsewhere").exists());
    assert!(!pulling.is_finished(), "too fast a pull: nothing was tested");
    let pulled = pulling.join().expect("a client").expect(200);
    assert!(pulled.whole && pulled.body == layer.bytes);
    assert_eq!(world.front.count("GET", &layer.digest), 1);
}

#[test]
fn the_access_log_is_turned_on_and_off_while_it_serves() {
    let world = World::new(&[3000]);
    let proxy = world.start(HTTP, "");
    let at = addr(&proxy, "http");
    http::get(at, LIBRARY).expect(200);
    let file = world.write(HTTP, "");
    let text = std::fs::read_to_string(&file).expect("the file");
    let reload = |text: String| {
        world.dir.write("proxy.yaml", text);
        let before = proxy.stderr.text().matches("reloaded ").count();
        proxy.hang_up();
        let deadline = std::time::Instant::now() + RUN_TIMEOUT;
        while proxy.stderr.text().matches("reloaded ").count() == before {
            assert!(std::time::Instant::now() < deadline, "never read");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    reload(format!("{text}logs: {{ access: json }}\n"));
    let headers = [("authorization", "Basic c2VjcmV0"), ("user-agent", "evil\" \t")];
    http::send(at, "GET", &format!("{LIBRARY}?ns=docker.io&token=secret"), &headers, &[]).expect(200);
    let line = proxy.stdout.wait_line("{\"time\":", RUN_TIMEOUT);
    let told: Value = serde_json::from_str(&line).expect("JSON");
    let of = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
    assert_eq!((of("method"), of("path"), of("ns")), ("GET".into(), LIBRARY.into(), "docker.io".into()));
    assert_eq!((of("outcome"), of("end"), told["status"].as_u64()), ("hit".into(), "complete".into(), Some(200)));
    assert_eq!(told["bytes"].as_u64(), Some(world.image.bytes().len() as u64));
    assert!(of("client").starts_with("127.0.0.1:") && told["duration_ms"].is_u64(), "{line}");
    assert!(of("user_agent").starts_with("evil\""), "{line}");
    reload(text);
    http::get(at, TEAM).expect(200);
    proxy.terminate();
    let said = proxy.finish(RUN_TIMEOUT).stdout;
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!said.contains("ecret") && !said.contains("c2Vj"), "{said}");
}

/// All that a file may have.
const FULL: &str = "\
listen:
  - http: 127.0.0.1:5000
  - https: 0.0.0.0:5443
    certificate: tls.crt
    key: tls.key
    client-ca: ca.crt
    token-file: tokens
  - unix: proxy.sock
    users-file: users
cache:
  dir: /var/cache/transload
  size: 200GiB
  keep-free: 1073741824
  scrub: 8MiB
upstreams:
  - name: docker.io
    tiers: [myregistry.azurecr.io/docker.io,
            docker.io]
    auth-file: auth.json
    write-back: true
    write-back-auth-file: push.json
    tag-ttl: 300
    negative-ttl: 5
    allow: [library/*, team/**]
    deny: [library/nginx]
  - name: ghcr.io
limits: { connections: 100, fills: 8, head-timeout: 30, upstream-timeout: 20, parallel-fetch: 2, min-rate: 2KiB, min-rate-window: 30, shutdown-delay: 5, drain-timeout: 50 }
logs: { access: json }
listen-admin: 127.0.0.1:9091
";

fn check(text: &str) -> Run {
    Tool::transload().file("proxy.yaml", text).args(&["proxy", "check", "proxy.yaml"]).run()
}

#[test]
fn check_says_what_a_file_means() {
    assert_eq!(
        check(FULL).ok().stdout,
        "listens on http://127.0.0.1:5000: access for everyone who can connect\n\
         listens on https://0.0.0.0:5443: access with a client certificate and a token\n\
         listens on unix:proxy.sock: access with user name and password\n\
         serves proxy ls, rm, gc and verify --admin on http://127.0.0.1:9091\n\
         caches up to 204800 MiB in /var/cache/transload, and keeps 1024 MiB of the disk free\n\
         \x20 reads 8.0 MiB per second to find corrupt content\n\
         docker.io is read from myregistry.azurecr.io/docker.io, then docker.io \
         (only library/*, team/**; without library/nginx)\n  \
         a cached tag stays fresh for 300 s, \"not found\" for 5 s\n  \
         with the credentials of auth.json\n  \
         write-back: images that only a later tier has are copied into myregistry.azurecr.io, with the credentials of push.json\n\
         ghcr.io is read from ghcr.io\n  \
         a cached tag stays fresh for 60 s, \"not found\" for 10 s\n\
         limits: 100 connections per listener, 8 fills per registry, 30 s for the head of a request, 20 s for an upstream\n\
         logs requests on stdout as Json\n"
    );
}

/// YAML 1.1 reads some words as booleans, Helm writes them as such, and a number is a duration in seconds.
#[test]
fn words_that_yaml_takes_for_booleans_mean_what_they_say() {
    let said = |from: &str, to: &str| {
        let text = FULL.replace(from, to);
        assert!(text.contains(to), "{to}");
        check(&text).ok().stdout
    };
    for off in ["off", "Off", "OFF", "no", "false", "'off'", "\"no\""] {
        let said = said("scrub: 8MiB", &format!("scrub: {off}"));
        assert!(!said.contains("to find corrupt content"), "{off}: {said}");
    }
    for on in ["on", "yes", "true", "\"on\""] {
        let said = said("scrub: 8MiB", &format!("scrub: {on}"));
        assert!(said.contains("reads 4.0 MiB per second"), "{on}: {said}");
    }
    for (access, form) in [("off", None), ("no", None), ("false", None), ("on", Some("Text")), ("text", Some("Text"))] {
        let said = said("access: json", &format!("access: {access}"));
        let line = said.lines().find(|line| line.starts_with("logs requests"));
        assert_eq!(line.and_then(|line| line.rsplit(' ').next()), form, "{access}: {said}");
    }
    for (word, written_back) in [("on", true), ("yes", true), ("off", false), ("no", false)] {
        let from = "    write-back: true\n    write-back-auth-file: push.json\n";
        let said = said(from, &format!("    write-back: {word}\n"));
        assert_eq!(said.contains("are copied into myregistry.azurecr.io"), written_back, "{word}: {said}");
    }
    for (ttl, seconds) in [("5m", 300), ("90", 90), ("'90'", 90), ("1h30m", 5400), ("0", 0), ("3e+02", 300)] {
        let said = said("tag-ttl: 300", &format!("tag-ttl: {ttl}"));
        assert!(said.contains(&format!("a cached tag stays fresh for {seconds} s,")), "{ttl}: {said}");
    }
    assert!(said("head-timeout: 30", "head-timeout: 2m").contains("120 s for the head of a request"));
    assert!(said("keep-free: 1073741824", "keep-free: 1.073741824e+09").contains("keeps 1024 MiB of the disk free"));
    // Where a word of that kind is no value, or a name, nothing is guessed.
    check(&FULL.replace("size: 200GiB", "size: on")).exits(2);
    check(&FULL.replace("tag-ttl: 300", "tag-ttl: off")).exits(2);
    check(&FULL.replace("tag-ttl: 300", "tag-ttl: -1")).exits(2);
    assert!(said("deny: [library/nginx]", "deny: [no, on, 1.20]").contains("without no, on, 1.20"));
}

#[test]
fn errors_point_at_the_line() {
    for (from, to, said) in [
        ("    tag-ttl: 300", "    tag-tll: 300", "proxy.yaml:22: unknown field"),
        ("  size: 200GiB", "  size: 200 cows", "proxy.yaml:12: "),
        ("  scrub: 8MiB", "  scrub: fast", "proxy.yaml:14: invalid rate \"fast\""),
        ("    tiers: [my", "    tiers: [m.io/Upper/", "proxy.yaml:17: "),
        ("    deny: [library/nginx]", "    deny: [\"library/[\"]", "proxy.yaml:25: "),
        ("  - name: ghcr.io", "  - name: docker.io", "proxy.yaml:26: two upstreams have the name docker.io"),
        ("    key: tls.key\n", "", "proxy.yaml:3: https needs a `certificate` and a `key`"),
        ("fills: 8", "fills: 0", "proxy.yaml:27: 0 is not between 1 and 10000"),
        (",\n            docker.io]", "\n    ]", "proxy.yaml:16: `write-back` needs a second tier"),
        ("    write-back: true\n", "", "proxy.yaml:16: `write-back-auth-file` needs"),
        ("cache:\n", "cache: [\n", "proxy.yaml:"),
        (
            "listen-admin: 127.0.0.1",
            "listen-admin: 0.0.0.0",
            "proxy.yaml:29: 0.0.0.0:9091 is reachable from other machines",
        ),
        ("listen-admin: 127.0.0.1:9091", "listen-admin: 9091", "proxy.yaml:29: "),
        (
            "  - unix: proxy.sock",
            "  - unix: proxy.sock\n    http: a:1",
            "proxy.yaml:8: each item of `listen` needs one of",
        ),
    ] {
        let text = FULL.replace(from, to);
        assert_ne!(text, FULL, "{from}");
        let run = check(&text).exits(2);
        assert!(run.stderr.starts_with("error: local: proxy.yaml"), "{run:?}");
        assert!(run.stderr.contains(said), "{said}: {run:?}");
    }
    check("").exits(2);
    // File and flags don't mix.
    transload(&["proxy", "--config", "proxy.yaml", "--tag-ttl", "1"]).exits(2);
    transload(&["proxy", "--config", "proxy.yaml", "--listen-admin", "127.0.0.1:0"]).exits(2);
    transload(&["proxy", "--upstream", "docker.io"]).exits(2);
}

/// The schema and the reader know the same keys.
#[test]
fn the_schema_is_printed_and_right() {
    let schema = transload(&["proxy", "schema"]).ok().json();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/proxy.schema.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(file).expect("the schema")).expect("JSON");
    assert_eq!(schema, file);
    let keys = |part: &Value| part["properties"].as_object().expect("properties").keys().cloned().collect::<Vec<_>>();
    for (part, wrong, at) in [
        (&schema, "zzz: 1\n", FULL.len()),
        (&schema["$defs"]["listen"], "    zzz: 1\n", FULL.find("cache:").expect("it")),
        (&schema["$defs"]["cache"], "  zzz: 1\n", FULL.find("upstreams:").expect("it")),
        (&schema["$defs"]["upstream"], "    zzz: 1\n", FULL.find("limits:").expect("it")),
    ] {
        // The reader names all that it knows.
        let mut text = FULL.to_owned();
        text.insert_str(at, wrong);
        let said = check(&text).exits(2).stderr;
        for key in keys(part) {
            assert!(said.contains(&key), "{key}: {said}");
            assert!(
                key == "$schema" || FULL.contains(&format!("{key}: ")) || FULL.contains(&format!("{key}:\n")),
                "{key}"
            );
        }
    }
    let said = check(&FULL.replace("fills: 8", "zzz: 8")).exits(2).stderr;
    for key in keys(&schema["$defs"]["limits"]) {
        assert!(said.contains(&key), "{key}: {said}");
    }
    let default = |key: &str| schema["$defs"]["limits"]["properties"][key]["default"].to_string();
    let [connections, fills, head] = ["connections", "fills", "head-timeout"].map(default);
    let without = FULL.lines().filter(|line| !line.starts_with("limits: ")).collect::<Vec<_>>().join("\n");
    let line = format!("limits: {connections} connections per listener, {fills} fills per registry, {head} s for");
    assert!(check(&without).ok().stdout.contains(&line), "{line}");
    let said = check(&FULL.replace("access: json", "zzz: 8")).exits(2).stderr;
    assert_eq!(keys(&schema["$defs"]["logs"]), ["access"]);
    assert!(said.contains("access"), "{said}");
    check(&FULL.replace("access: json", "access: xml")).exits(2);
}

/// The guide's file: what it means as printed; and that a proxy runs by it, on free ports.
#[test]
fn the_guide_has_a_file_that_works() {
    let guide = super::docs::file("docs/guides/proxy.md");
    let text = guide.split("```yaml\nlisten:").nth(1).and_then(|rest| rest.split("```").next()).expect("a file");
    let text = format!("listen:{text}");
    let said = check(&text).ok().stdout;
    assert!(
        said.contains("listens on https://0.0.0.0:5443: access with a token, or user name and password\n"),
        "{said}"
    );
    assert!(said.contains("docker.io is read from myregistry.azurecr.io/docker.io, then docker.io"), "{said}");
    let world = World::new(&[3000]);
    let (certificate, key) = Authority::new().issue();
    let users = user("node", "secret");
    for (name, content) in
        [("tls.crt", &*certificate), ("tls.key", &key), ("tokens", "0123456789abcdef0123456789"), ("users", &users)]
    {
        world.dir.write(name, content);
    }
    let text =
        text.replace(":5000", ":0").replace("0.0.0.0:5443", "127.0.0.1:0").replace("/var/cache/transload", "cache");
    let text = text.replace("myregistry.azurecr.io/docker.io", &world.front.addr().to_string());
    let proxy = start(&world.dir.write("proxy.yaml", text));
    http::get(addr(&proxy, "http"), LIBRARY).expect(200);
    http::get(addr(&proxy, "http"), TEAM).expect(404);
}

/// The reference lists the keys of the schema, and no others.
#[test]
fn the_reference_has_all_keys() {
    let schema = transload(&["proxy", "schema"]).ok().json();
    let documented = |head: &str| {
        let rows = super::docs::table("docs/reference/proxy-config.md", head);
        let mut keys: Vec<String> =
            rows.iter().flat_map(|row| row.0.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
        keys.sort();
        keys
    };
    for (head, part) in [
        ("key of `listen`", "listen"),
        ("key of `cache`", "cache"),
        ("key of `upstreams`", "upstream"),
        ("key in `limits`", "limits"),
        ("key of `logs`", "logs"),
    ] {
        let mut keys: Vec<String> =
            schema["$defs"][part]["properties"].as_object().expect("properties").keys().cloned().collect();
        keys.sort();
        assert_eq!(documented(head), keys, "{part}");
    }
    let page = super::docs::file("docs/reference/proxy-config.md");
    for key in schema["properties"].as_object().expect("properties").keys().filter(|key| !key.starts_with('$')) {
        assert!(page.contains(&format!("`{key}`")), "{key}");
    }
}
