//! The Docker Hub look-alike behaves as docs/protocol.md, section 1 has it.

use std::time::Duration;

use super::{bearer, token};
use crate::support::http::{Reply, get, send};
use crate::support::{Fault, Front, Image, Registry, Rule, Tool};

#[test]
fn hub_wants_a_token_that_fits() {
    let registry = Registry::start();
    let image = Image::single(1, &[5000]);
    image.push(registry.addr(), "library/nginx", "latest");
    let front = Front::before(registry.addr()).hub(|_| {}).start();
    let at = front.addr();
    let manifest = "/v2/library/nginx/manifests/latest";
    let challenge = get(at, manifest).expect(401);
    let wanted = format!(
        "Bearer realm=\"http://{at}/token\",service=\"registry.docker.io\",scope=\"repository:library/nginx:pull\""
    );
    assert_eq!(challenge.header("www-authenticate"), Some(wanted.as_str()));

    let reply = token(&front, "registry.docker.io", "repository:library/nginx:pull,push", None).expect(200);
    assert_eq!(reply.json()["expires_in"], 300);
    let auth = bearer(reply);
    let with = |path: &str, method: &str| send(at, method, path, &[("authorization", &auth)], &[]);
    assert_eq!(with(manifest, "GET").expect(200).body, image.bytes());
    // Granted less than was asked for, without an error.
    let push = with("/v2/library/nginx/blobs/uploads/", "POST").expect(401);
    assert!(push.header("www-authenticate").expect("a challenge").contains("error=\"insufficient_scope\""));
    with("/v2/library/redis/manifests/latest", "GET").expect(401);
    token(&front, "registry.docker.io", "repository:x:pull", Some(("alice", "wrong"))).expect(401);

    front.persona().advance(Duration::from_secs(301));
    let expired = with(manifest, "GET").expect(401);
    assert!(expired.header("www-authenticate").expect("a challenge").contains("error=\"invalid_token\""));
}

#[test]
fn hub_lets_an_account_push_to_its_own() {
    let registry = Registry::start();
    let front = Front::before(registry.addr()).hub(|_| {}).start();
    let scope = "repository:alice/app:pull,push";
    let auth = bearer(token(&front, "registry.docker.io", scope, Some(("alice", "wonderland"))));
    let image = Image::single(1, &[5000]);
    image.push_as(front.addr(), "alice/app", "v1", &[("authorization", &auth)]);
    image.assert_at(registry.addr(), "alice/app", "v1");
    let mount = "/v2/alice/app/blobs/uploads/?mount=sha256:00&from=library/nginx";
    let refused = send(front.addr(), "POST", mount, &[("authorization", &auth)], &[]).expect(401);
    let challenge = refused.header("www-authenticate").expect("a challenge").to_owned();
    assert!(challenge.contains("scope=\"repository:alice/app:pull,push repository:library/nginx:pull\""));
}

#[test]
fn hub_serves_blobs_from_a_cdn_that_wants_no_authorization() {
    let registry = Registry::start();
    let image = Image::single(1, &[50_000]);
    image.push(registry.addr(), "library/nginx", "latest");
    let front = Front::before(registry.addr()).hub(|_| {}).start();
    let auth = bearer(token(&front, "registry.docker.io", "repository:library/nginx:pull", None));
    let header = [("authorization", auth.as_str())];
    let path = format!("/v2/library/nginx/blobs/{}", image.blobs[1].digest);
    let moved = send(front.addr(), "GET", &path, &header, &[]).expect(307);
    let prefix = format!("http://{}", front.side());
    let link = moved.header("location").and_then(|to| to.strip_prefix(&prefix)).expect("the CDN").to_owned();

    send(front.side(), "GET", &link, &header, &[]).expect(400);
    assert_eq!(get(front.side(), &link).expect(200).body, image.blobs[1].bytes);
    let part = send(front.side(), "GET", &link, &[("range", "bytes=49990-")], &[]).expect(206);
    assert_eq!(part.body, image.blobs[1].bytes[49_990..]);
    get(front.side(), &link.replace("signature=", "signature=x")).expect(403);
    front.persona().advance(Duration::from_secs(601));
    get(front.side(), &link).expect(403);

    let auth = bearer(token(&front, "registry.docker.io", "repository:library/nginx:pull", None));
    let missing = format!("/v2/library/nginx/blobs/sha256:{}", "0".repeat(64));
    let missing = send(front.addr(), "GET", &missing, &[("authorization", &auth)], &[]).expect(404);
    assert_eq!(missing.json()["errors"][0]["code"], "BLOB_UNKNOWN");
}

#[test]
fn hub_counts_pulls_and_stops_them() {
    let registry = Registry::start();
    Image::single(1, &[2000]).push(registry.addr(), "library/nginx", "latest");
    let front = Front::before(registry.addr()).hub(|config| config.anonymous_pulls = Some(2)).start();
    let auth = bearer(token(&front, "registry.docker.io", "repository:library/nginx:pull", None));
    let ask = |method: &str, reference: &str| {
        let path = format!("/v2/library/nginx/manifests/{reference}");
        send(front.addr(), method, &path, &[("authorization", &auth)], &[])
    };
    let left = |reply: Reply| reply.header("ratelimit-remaining").map(str::to_owned);
    assert_eq!(left(ask("HEAD", "latest").expect(200)).as_deref(), Some("2;w=21600"));
    assert_eq!(left(ask("GET", "latest").expect(200)).as_deref(), Some("1;w=21600"));
    ask("GET", "none").expect(404);
    assert_eq!(left(ask("GET", "latest").expect(200)).as_deref(), Some("0;w=21600"));
    let refused = ask("GET", "latest").expect(429);
    assert_eq!(refused.json()["errors"][0]["code"], "TOOMANYREQUESTS");
    assert!(refused.text().contains("You have reached your pull rate limit"));
    ask("HEAD", "latest").expect(200);
    assert_eq!(front.hub().pulls(), ["library/nginx:latest", "library/nginx:latest"]);
    front.hub().refill();
    ask("GET", "latest").expect(200);

    let front = Front::before(registry.addr()).hub(|config| config.abuse_after = Some(1)).start();
    get(front.addr(), "/v2/").expect(401);
    assert_eq!(get(front.addr(), "/v2/").expect(429).text(), "Too Many Requests (HAP429)\n");
}

#[test]
fn tokens_can_be_revoked_in_mid_run() {
    let registry = Registry::start();
    let front = Front::before(registry.addr())
        .hub(|_| {})
        .rule(Rule::on("GET", "/v2/", Fault::ExpireTokens).nth(2..=2))
        .start();
    let auth = bearer(token(&front, "registry.docker.io", "", None));
    let ping = || send(front.addr(), "GET", "/v2/", &[("authorization", &auth)], &[]);
    ping().expect(200);
    ping().expect(401);
    let auth = bearer(token(&front, "registry.docker.io", "", None));
    send(front.addr(), "GET", "/v2/", &[("authorization", &auth)], &[]).expect(200);
}

#[test]
fn hub_stands_under_its_real_names() {
    let registry = Registry::start();
    let front = Front::before(registry.addr()).hub(|_| {}).tls().start();
    let (ca, to) = (front.ca_file().expect("an authority"), format!("::{}", front.addr()));
    let curl = |url: &str| {
        let args = ["-sSi", "--http1.1", "--cacert", &ca, "--connect-to", &to, url];
        Tool::new("curl").args(&args).run().ok().stdout.to_lowercase()
    };
    let challenge = curl("https://registry-1.docker.io/v2/");
    let wanted = "www-authenticate: bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\"\r";
    assert!(challenge.contains(wanted), "{challenge}");
    let token = curl("https://auth.docker.io/token?service=registry.docker.io");
    assert!(token.starts_with("http/1.1 200") && token.contains("access_token"), "{token}");
    let refused = curl("https://production.cloudflare.docker.com/x?expires=1&signature=no");
    assert!(refused.starts_with("http/1.1 403"), "{refused}");
    let flags = front.flags().join(" ");
    assert!(flags.contains(&format!("--resolve auth.docker.io={}", front.addr())), "{flags}");
}
