//! What a hostile or careless registry must not get out of us: credentials, private addresses,
//! memory; and what must never be shown.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::support::front::Builder;
use super::support::images::{Document, OCI_INDEX, OCI_MANIFEST};
use super::support::registry::PASSWORD;
use super::support::{Fault, Front, Image, Registry, Rule, Run, Tool, http};

const PUBLIC: &str = "registry.example";
const HUB: &str = "registry-1.docker.io";

/// As `docker login` leaves it, for one registry.
fn docker_config(registry: &str, user: &str, password: &str) -> String {
    let auth = STANDARD.encode(format!("{user}:{password}"));
    json!({"auths": {registry: {"auth": auth}}}).to_string()
}

fn pushed(image: &Image) -> Registry {
    let registry = Registry::start();
    image.push(registry.addr(), "a/b", "v1");
    registry
}

/// A registry with a public name, speaking TLS. Connections go to loopback by `--resolve`.
fn public(behind: &Registry) -> Builder {
    Front::before(behind.addr()).name(PUBLIC).tls()
}

fn copy(from: &str, to: &str, flags: &[String]) -> Tool {
    Tool::transload().args(&["copy", from, to]).args(flags)
}

fn resolve(host: &str, to: std::net::SocketAddr) -> [String; 2] {
    ["--resolve".to_owned(), format!("{host}={to}")]
}

/// Requests that came for a host.
fn count(front: &Front, host: &str) -> usize {
    front.log().iter().filter(|seen| seen.host == host).count()
}

/// Fails with one error and what it says.
#[track_caller]
fn refused(tool: Tool, error: &str) -> Run {
    let run = tool.run().exits(1);
    assert!(run.stderr.contains(error), "{}", run.stderr);
    assert_eq!(run.stderr.matches("error: ").count(), 1, "{}", run.stderr);
    run
}

#[test]
fn a_public_registry_leads_to_no_private_address() {
    let image = Image::single(1, &[3000]);
    let behind = pushed(&image);
    let front = public(&behind).name("10.0.0.1").start();
    let to = Registry::start();
    let port = front.addr().port();
    let path = format!("/v2/a/b/blobs/{}", image.blobs[1].digest);
    // The first two would be served: their names are in the certificate, the blob is there.
    for (host, why) in [
        (format!("127.0.0.1:{port}"), "it is a private address, and the registry is a public one"),
        (format!("localhost:{port}"), "has a private address, and the registry that sends us there is a public one"),
        ("169.254.169.254".to_owned(), "it is a private address"),
        ("[::ffff:10.1.2.3]".to_owned(), "it is a private address"),
    ] {
        front.clear_rules();
        front.reset_log();
        front.add(Rule::on("GET", "/blobs/", Fault::Redirect(format!("https://{host}{path}"))).host(PUBLIC));
        let run = refused(copy(&format!("{PUBLIC}/a/b:v1"), &to.addr().to_string(), &front.flags_only(PUBLIC)), why);
        assert!(run.stderr.contains("error: source: cannot read blob"), "{}", run.stderr);
        assert!(front.struck() >= 1);
        assert_eq!(count(&front, &host), 0, "{host} was asked");
        assert!(front.struck() <= 2, "a refusal is final");
    }
    http::get(to.addr(), "/v2/a/b/manifests/v1").expect(404);
}

#[test]
fn a_redirect_never_leaves_https() {
    let image = Image::single(2, &[3000]);
    let behind = pushed(&image);
    let front = public(&behind).start();
    let to = Registry::start();
    // To another host, and to the same one.
    for host in ["cdn.example", PUBLIC] {
        front.clear_rules();
        let port = front.side().port();
        front.add(Rule::on("GET", "/blobs/", Fault::Redirect(format!("http://{host}:{port}/v2/a/b/x"))));
        let mut flags = front.flags_only(PUBLIC);
        flags.extend(resolve("cdn.example", front.side()));
        let tool = copy(&format!("{PUBLIC}/a/b:v1"), &to.addr().to_string(), &flags);
        refused(tool, &format!("{PUBLIC} sends us to http://{host}:{port}, which is refused: it would leave https"));
        assert!(front.struck() >= 1);
        assert!(front.log().iter().all(|seen| !seen.side), "it was asked by plain http");
    }
}

#[test]
fn authorization_stays_with_its_scheme_host_and_port() {
    let image = Image::single(3, &[3000, 40_000]);
    let behind = Registry::with_basic("mirror");
    let auth = format!("Basic {}", STANDARD.encode(format!("mirror:{PASSWORD}")));
    image.push_as(behind.addr(), "a/b", "v1", &[("authorization", &auth)]);
    let open = pushed(&image);
    let front = public(&behind).start();
    // The same blobs for everyone: by another name, and by the same name at another port.
    let elsewhere = Front::before(open.addr()).name("cdn.example").name(PUBLIC).tls().start();
    let at = |host: &str| format!("https://{host}:{}/v2/a/b/blobs/", elsewhere.addr().port());
    for (nth, host) in ["cdn.example", PUBLIC].into_iter().enumerate() {
        front.clear_rules();
        front.reset_log();
        elsewhere.reset_log();
        for blob in &image.blobs {
            let target = format!("{}{}", at(host), blob.digest);
            front.add(Rule::on("GET", &blob.digest, Fault::Redirect(target)));
        }
        let to = Registry::start();
        let mut flags = front.flags_only(PUBLIC);
        flags.extend(["--ca-file".to_owned(), elsewhere.ca_file().expect("an authority")]);
        flags.extend(resolve("cdn.example", elsewhere.addr()));
        let tool = copy(&format!("{PUBLIC}/a/b:v1"), &to.addr().to_string(), &flags);
        tool.file(".docker/config.json", &docker_config(PUBLIC, "mirror", PASSWORD)).run().ok();
        image.assert_at(to.addr(), "a/b", "v1");
        assert_eq!(front.struck(), image.blobs.len(), "run {nth}");
        let signed = front.log().iter().filter(|seen| seen.scheme() == Some("Basic")).count();
        assert!(signed >= 2 + image.blobs.len(), "{signed} of {}", front.log().len());
        assert_eq!(elsewhere.log().len(), image.blobs.len());
        assert!(elsewhere.log().iter().all(|seen| seen.header("authorization").is_none()), "{:?}", elsewhere.log());
    }
}

#[test]
fn authorization_is_dropped_over_plain_http_too() {
    let image = Image::single(4, &[3000]);
    let behind = Registry::with_basic("mirror");
    let auth = format!("Basic {}", STANDARD.encode(format!("mirror:{PASSWORD}")));
    image.push_as(behind.addr(), "a/b", "v1", &[("authorization", &auth)]);
    let there = pushed(&image);
    let open = Front::before(there.addr()).start();
    let path = format!("/v2/a/b/blobs/{}", image.blobs[1].digest);
    let rule = Rule::on("GET", &path, Fault::Redirect(format!("http://{}{path}", open.addr())));
    let front = Front::before(behind.addr()).rule(rule).start();
    let to = Registry::start();
    let tool = copy(&format!("{}/a/b:v1", front.host()), &to.addr().to_string(), &[]);
    tool.file(".docker/config.json", &docker_config(front.host(), "mirror", PASSWORD)).run().ok();
    assert_eq!((front.struck(), open.log().len()), (1, 1));
    assert_eq!(open.log()[0].header("authorization"), None, "another port is another origin");
    image.assert_at(to.addr(), "a/b", "v1");
}

#[test]
fn what_a_redirect_leads_to_gets_no_credentials_by_asking() {
    let image = Image::single(5, &[3000]);
    let behind = pushed(&image);
    // The CDN asks for credentials, as if it were a registry, at its own token endpoint.
    for challenge in
        ["Basic realm=\"x\"", "Bearer realm=\"https://production.cloudflare.docker.com/token\",service=\"s\""]
    {
        let cdn = "production.cloudflare.docker.com";
        let front = Front::before(behind.addr())
            .hub(|_| {})
            .tls()
            .rule(Rule::on("GET", "/data", Fault::Demand(challenge)).host(cdn))
            .start();
        let to = Registry::start();
        image.push(behind.addr(), "a/b", "v1");
        let tool = copy("a/b:v1", &to.addr().to_string(), &front.flags()).args(&["--retries", "1"]);
        let tool =
            tool.file(".docker/config.json", &docker_config("https://index.docker.io/v1/", "alice", "wonderland"));
        let told = format!("docker.io sends us to https://{cdn}, which answered 401 (after 2 attempts in ");
        let run = refused(tool, &told);
        assert!(!run.stderr.contains("log in"), "the credentials are not at fault: {}", run.stderr);
        assert!(front.struck() >= 2);
        let at_cdn: Vec<_> = front.log().into_iter().filter(|seen| seen.host == cdn).collect();
        assert!(at_cdn.iter().all(|seen| seen.header("authorization").is_none() && !seen.path.contains("token")));
        assert!(front.log().iter().all(|seen| seen.host != HUB || seen.scheme() != Some("Basic")), "{challenge}");
    }
}

#[test]
fn a_token_realm_of_another_site_gets_no_password() {
    let image = Image::single(6, &[3000]);
    let behind = pushed(&image);
    let realm = "tokens.example";
    let hub = || {
        let front = Front::before(behind.addr()).name(realm);
        front.hub(|config| config.realm = "https://tokens.example/token".to_owned()).tls().start()
    };
    let to = Registry::start();
    let at = to.addr().to_string();
    let login = docker_config("https://index.docker.io/v1/", "alice", "wonderland");

    let front = hub();
    let tool = copy("a/b:v1", &at, &front.flags()).file(".docker/config.json", &login);
    let run =
        refused(tool, "docker.io requests that its credentials are sent to tokens.example, which is another site");
    assert!(run.stderr.contains("hint: if that is right, allow it by --allow-realm tokens.example"), "{}", run.stderr);
    assert_eq!(count(&front, realm), 0);

    // Who has no credentials has nothing to lose; who says so gives them.
    let front = hub();
    copy("a/b:v1", &at, &front.flags()).run().ok();
    assert_eq!(count(&front, realm), 1);
    let front = hub();
    let tool = copy("a/b:v1", &at, &front.flags()).args(&["--allow-realm", realm, "--force"]);
    tool.file(".docker/config.json", &login).run().ok();
    let asked: Vec<_> = front.log().into_iter().filter(|seen| seen.host == realm).collect();
    assert_eq!(asked.iter().map(|seen| seen.scheme()).collect::<Vec<_>>(), [Some("Basic")]);
}

#[test]
fn a_token_realm_by_http_or_at_a_private_address_is_not_asked() {
    let image = Image::single(7, &[3000]);
    let behind = pushed(&image);
    let to = Registry::start();
    let login = docker_config("https://index.docker.io/v1/", "alice", "wonderland");
    for (realm, why) in [
        ("http://auth.docker.io/token", "it would leave https"),
        ("https://127.0.0.1/token", "it is a private address"),
        ("https://169.254.169.254/metadata/identity/oauth2/token", "it is a private address"),
        ("file:///etc/passwd", "it is neither http nor https"),
    ] {
        for account in [false, true] {
            let front = Front::before(behind.addr()).hub(|config| config.realm = realm.to_owned()).tls().start();
            let mut flags = front.flags_only(HUB);
            flags.extend(resolve("auth.docker.io", front.side()));
            let tool = copy("a/b:v1", &to.addr().to_string(), &flags);
            let tool = if account { tool.file(".docker/config.json", &login) } else { tool };
            refused(tool, why);
            assert_eq!(front.log().len(), 1, "the challenge, and no more: {:?}", front.log());
        }
    }
}

#[test]
fn a_name_that_only_contains_acrs_is_no_acr() {
    let image = Image::single(8, &[3000]);
    let behind = pushed(&image);
    let evil = "x.azurecr.io.attacker.com";
    let entra = |tool: Tool| {
        let config = transload::demo::persona::EntraConfig::default();
        tool.env("AZURE_TENANT_ID", &config.tenant)
            .env("AZURE_CLIENT_ID", &config.client)
            .env("AZURE_CLIENT_SECRET", &config.secret)
    };
    let acr = |name: &'static str| {
        let url = format!("https://{name}");
        Front::before(behind.addr()).acr(move |config| config.url = url).tls().name(name).start()
    };
    let to = Registry::start();
    let at = to.addr().to_string();

    // The real thing gets Entra's token for a refresh token.
    let front = acr("x.azurecr.io");
    entra(copy("x.azurecr.io/a/b:v1", &at, &front.flags())).run().ok();
    assert_eq!(front.count("POST", "/oauth2/exchange"), 1);
    assert_eq!(count(&front, "login.microsoftonline.com"), 1);

    // The other gets neither that nor what is stored for the real one.
    let front = acr(evil);
    let tool = entra(copy(&format!("{evil}/a/b:v1"), &at, &front.flags()));
    let tool = tool.file(".docker/config.json", &docker_config("x.azurecr.io", "admin", "admin-secret"));
    refused(tool, &format!("error: source: cannot get a token for repository:a/b:pull of {evil}"));
    assert_eq!(count(&front, "login.microsoftonline.com"), 0);
    assert_eq!(front.count("POST", "/oauth2/exchange"), 0);
    assert!(front.log().iter().all(|seen| seen.header("authorization").is_none()));
}

#[test]
fn an_upload_at_another_origin_gets_the_bytes_but_no_credentials() {
    let image = Image::single(9, &[3000]);
    let source = pushed(&image);
    let behind = Registry::with_basic("mirror");
    let unused = Registry::start();
    let other = Front::before(unused.addr()).rule(Rule::on("PUT", "", Fault::status(400))).start();
    let location = format!("http://{}/v2/a/b/blobs/uploads/1?_state=x", other.addr());
    let rule = Rule::on("POST", "/uploads/", Fault::Header("location", Some(location)));
    let to = Front::before(behind.addr()).rule(rule).start();
    let tool = copy(&format!("{}/a/b:v1", source.addr()), to.host(), &[]);
    let tool = tool.file(".docker/config.json", &docker_config(to.host(), "mirror", PASSWORD));
    refused(tool, "error: destination: cannot write blob");
    assert!(to.struck() > 0);
    assert!(to.log().iter().any(|seen| seen.method == "POST" && seen.scheme() == Some("Basic")));
    assert!(other.count("PUT", "") > 0, "it got nothing at all");
    assert!(other.log().iter().all(|seen| seen.header("authorization").is_none()), "{:?}", other.log());
}

#[test]
fn an_upload_of_a_public_registry_goes_to_no_private_address() {
    let image = Image::single(10, &[3000]);
    let source = pushed(&image);
    let behind = Registry::start();
    for (to, why) in
        [("https://169.254.169.254/x", "it is a private address"), ("http://other.example/x", "it would leave https")]
    {
        let rule = Rule::on("POST", "/uploads/", Fault::Header("location", Some(to.to_owned())));
        let front = public(&behind).rule(rule).start();
        let tool = copy(&format!("{}/a/b:v1", source.addr()), PUBLIC, &front.flags_only(PUBLIC));
        let run = refused(tool, why);
        assert!(run.stderr.contains("error: destination: "), "{}", run.stderr);
        assert!(front.struck() > 0);
    }
}

#[test]
fn secrets_are_shown_nowhere() {
    let image = Image::index(11, 2, &[3000, 400_000]);
    let behind = Registry::start();
    image.push(behind.addr(), "a/b", "v1");
    let cdn = "production.cloudflare.docker.com";
    let rules = |front: Builder| {
        front
            .rule(Rule::on("GET", "/data", Fault::TruncateAt(1000)).host(cdn).nth(2..=3))
            .rule(Rule::on("GET", "/data", Fault::status(503)).host(cdn).nth(5..=5))
            .rule(Rule::on("GET", "/manifests/", Fault::ExpireTokens).nth(2..=2))
            .rule(Rule::on("GET", "/token", Fault::status(503)).once())
    };
    for (fails, log) in [(false, None), (false, Some("trace")), (true, None)] {
        let acr_behind = Registry::start();
        let acr = Front::before(acr_behind.addr()).acr(|_| {}).tls().start();
        let front = rules(Front::before(behind.addr()).hub(|_| {}).tls()).start();
        if fails {
            front.add(Rule::on("GET", "/data", Fault::FlipByteAt(7)).host(cdn).nth(7..));
        }
        let mut flags = front.flags();
        flags.extend(acr.flags());
        let tool = copy("a/b:v1", "myregistry.azurecr.io", &flags).args(&["-vv", "--force"]);
        let auth = |user: &str, password: &str| json!({"auth": STANDARD.encode(format!("{user}:{password}"))});
        let auths = json!({"auths": {
            "https://index.docker.io/v1/": auth("alice", "wonderland"),
            "myregistry.azurecr.io": auth("admin", "admin-secret"),
        }});
        let tool = tool.file(".docker/config.json", &auths.to_string());
        let tool = if let Some(level) = log { tool.env("TRANSLOAD_LOG", level) } else { tool };
        let run = tool.run().exits(i32::from(fails));
        assert!(front.struck() >= 5, "{}", front.struck());
        assert!(run.stderr.contains("GET https://registry-1.docker.io/v2/a/b/"), "-vv tells requests: {}", run.stderr);

        let mut secrets: Vec<String> =
            ["wonderland", "admin-secret", "signature=", "_state=", "sig="].map(str::to_owned).into();
        for seen in front.log().iter().chain(&acr.log()) {
            // Basic's and tokens' text, and the values of queries that are signatures or states.
            secrets.extend(seen.header("authorization").and_then(|value| Some(value.split_once(' ')?.1.to_owned())));
            let values = seen.query.split('&').filter_map(|pair| pair.split_once('='));
            secrets.extend(
                values
                    .filter(|(name, _)| ["signature", "_state", "sig"].contains(name))
                    .map(|(_, value)| value.to_owned()),
            );
        }
        assert!(secrets.len() > 20, "{}", secrets.len());
        for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
            let shown = run.stderr.lines().chain(run.stdout.lines()).find(|line| line.contains(secret));
            assert_eq!(shown, None, "{secret} is shown");
        }
    }
}

/// A source that answers every manifest request with this.
fn source_of(code: u16, content_type: &str, body: String) -> (Registry, Front) {
    let behind = Registry::start();
    let fault = Fault::Status { code, retry_after: None, content_type: content_type.to_owned(), body };
    let front = Front::before(behind.addr()).rule(Rule::on("*", "/manifests/", fault)).start();
    (behind, front)
}

#[test]
fn an_oversized_manifest_is_refused() {
    let padding = "x".repeat(5 << 20);
    let body = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [], "config": null, "annotations": {"x": padding}});
    let (_behind, front) = source_of(200, OCI_MANIFEST, body.to_string());
    let to = Registry::start();
    let tool = copy(&format!("{}/a/b:v1", front.host()), &to.addr().to_string(), &[]);
    let run = refused(tool, "has more than 4194304 bytes");
    assert!(run.stderr.contains("error: source: cannot read manifest"), "{}", run.stderr);
    assert_eq!(front.count("GET", "/manifests/"), 1, "it is not tried again");
    assert!(front.struck() > 0);
}

#[test]
fn schema_1_is_told_as_what_it_is() {
    let kind = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let body = json!({"schemaVersion": 1, "name": "a/b", "tag": "v1", "fsLayers": [], "history": []});
    let (_behind, front) = source_of(200, kind, body.to_string());
    let to = Registry::start();
    let tool = copy(&format!("{}/a/b:v1", front.host()), &to.addr().to_string(), &[]);
    let run = refused(tool, "the image has a Docker schema 1 manifest, which is obsolete and not copied");
    assert!(run.stderr.contains("error: source: ") && run.stderr.contains("\nhint: "), "{}", run.stderr);
    assert!(front.struck() > 0);
}

#[test]
fn a_layer_that_lies_about_its_size_is_refused() {
    let honest = Image::single(12, &[3000]);
    // Too small, too large, larger than any memory.
    for size in [2999_u64, 3001, 1 << 50] {
        let mut body: Value = serde_json::from_slice(honest.bytes()).expect("a manifest");
        body["layers"][0]["size"] = json!(size);
        let liar = Image { blobs: honest.blobs.clone(), manifests: vec![Document::new(OCI_MANIFEST, &body)] };
        let behind = pushed(&liar);
        let to = Registry::start();
        let tool = copy(&format!("{}/a/b:v1", behind.addr()), &to.addr().to_string(), &[]);
        let run = refused(tool, &format!("the manifest says {size} bytes, the registry 3000"));
        assert!(run.stderr.contains("error: source: "), "{}", run.stderr);
        http::get(to.addr(), "/v2/a/b/manifests/v1").expect(404);
        http::get(to.addr(), &format!("/v2/a/b/blobs/{}", liar.blobs[1].digest)).expect(404);
    }
}

#[test]
fn an_index_that_lies_about_a_child_is_refused() {
    let child = Image::single(13, &[3000]);
    let real = child.bytes().len();
    for (size, told) in [
        (real + 1, format!("has {real} bytes, but its descriptor says {}", real + 1)),
        (5 << 20, "claims 5242880 bytes".to_owned()),
    ] {
        let liar = Image::index_of(vec![(child.clone(), json!({"size": size}))], false);
        let behind = pushed(&liar);
        let to = Registry::start();
        let tool = copy(&format!("{}/a/b:v1", behind.addr()), &to.addr().to_string(), &[]);
        let run = refused(tool, &told);
        assert!(run.stderr.contains("error: source: "), "{}", run.stderr);
        assert_eq!(to.count("POST", ""), 0);
    }
}

#[test]
fn indexes_may_not_nest_without_end() {
    let mut nested = Image::single(14, &[3000]);
    for _ in 0..7 {
        nested = Image::index_of(vec![(nested, json!({}))], false);
    }
    let behind = pushed(&nested);
    let to = Registry::start();
    let at = to.addr().to_string();
    copy(&format!("{}/a/b:v1", behind.addr()), &at, &[]).run().ok();
    nested.assert_at(to.addr(), "a/b", "v1");
    let deeper = Image::index_of(vec![(nested, json!({}))], false);
    deeper.push(behind.addr(), "a/b", "v2");
    let run = refused(
        copy(&format!("{}/a/b:v2", behind.addr()), &at, &["--force".to_owned()]),
        "its indexes nest deeper than 8",
    );
    assert!(run.stderr.contains("error: source: "), "{}", run.stderr);
    http::get(to.addr(), "/v2/a/b/manifests/v2").expect(404);
}

#[test]
fn an_index_wider_than_its_bound_is_refused() {
    let child = Image::single(15, &[3000]).descriptor();
    let children: Vec<Value> = (0..10_001).map(|_| child.clone()).collect();
    let body = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children});
    let (_behind, front) = source_of(200, OCI_INDEX, body.to_string());
    let to = Registry::start();
    let tool = copy(&format!("{}/a/b:v1", front.host()), &to.addr().to_string(), &[]);
    refused(tool, "names more than 10000 parts");
    assert_eq!(front.count("GET", "/manifests/"), 1);
}
