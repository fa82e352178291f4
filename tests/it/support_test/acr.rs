//! The ACR look-alike behaves as docs/protocol.md, section 2 have it.

use std::time::Duration;

use serde_json::json;

use super::{OCTETS, basic, bearer, token};
use crate::support::http::{Reply, get, send, try_send};
use crate::support::images::Blob;
use crate::support::layer::random_bytes;
use crate::support::{Fault, Front, Image, Registry, Rule, TempDir, skopeo};

const ADMIN: (&str, &str) = ("admin", "admin-secret");

fn acr_token(front: &Front, scope: &str, credentials: (&str, &str)) -> String {
    bearer(token(front, front.host(), scope, Some(credentials)))
}

/// A started upload: the headers for it, and its location.
fn acr_session(front: &Front) -> (String, String) {
    let auth = acr_token(front, "repository:a:pull,push", ADMIN);
    let session = send(front.addr(), "POST", "/v2/a/blobs/uploads/", &[("authorization", &auth)], &[]).expect(202);
    let location = session.header("location").expect("a location").to_owned();
    (auth, location)
}

fn patch(front: &Front, auth: &str, at: &str, start: usize, bytes: &[u8]) -> Reply {
    let range = format!("{start}-{}", start + bytes.len() - 1);
    let headers = [("authorization", auth), ("content-range", &range), OCTETS];
    send(front.addr(), "PATCH", at, &headers, bytes)
}

#[test]
fn acr_takes_an_upload_in_chunks() {
    let registry = Registry::start();
    let front = Front::before(registry.addr()).acr(|_| {}).start();
    let (auth, first) = acr_session(&front);
    assert!(first.starts_with("/v2/a/blobs/uploads/"), "relative: {first}");
    assert!(first.contains("?_nouploadcache=false&_state="));
    let blob = Blob::new(random_bytes(1, 300_000));
    let second = patch(&front, &auth, &first, 0, &blob.bytes[..200_000]).expect(202);
    assert_eq!(second.header("range"), Some("0-199999"));
    let second = second.header("location").expect("a location").to_owned();
    assert_ne!(first, second);

    // Out of order, the old state, a wrong format: all refused, and the session lives on.
    let wrong = patch(&front, &auth, &second, 100, b"x").expect(416);
    assert_eq!(wrong.header("range"), Some("0-199999"));
    patch(&front, &auth, &first, 200_000, b"x").expect(404);
    let format = [("authorization", auth.as_str()), ("content-range", "bytes 200000-200000/*"), OCTETS];
    send(front.addr(), "PATCH", &second, &format, b"x").expect(400);
    let state = send(front.addr(), "GET", &first, &[("authorization", &auth)], &[]).expect(204);
    assert_eq!((state.header("range"), state.header("location")), (Some("0-199999"), Some(second.as_str())));

    let third = patch(&front, &auth, &second, 200_000, &blob.bytes[200_000..]).expect(202);
    let finish = format!("{}&digest={}", third.header("location").expect("a location"), blob.digest);
    let done = send(front.addr(), "PUT", &finish, &[("authorization", &auth), OCTETS], &[]).expect(201);
    assert_eq!(done.header("location"), Some(format!("/v2/a/blobs/{}", blob.digest).as_str()));
    assert_eq!(get(registry.addr(), &format!("/v2/a/blobs/{}", blob.digest)).expect(200).body, blob.bytes);
}

#[test]
fn acr_refuses_chunked_encoding_and_large_bodies() {
    let registry = Registry::start();
    let front = Front::before(registry.addr()).acr(|config| config.body_limit = 100_000).start();
    let (auth, location) = acr_session(&front);
    let chunked = [("authorization", auth.as_str()), ("transfer-encoding", "chunked"), OCTETS];
    let refused = send(front.addr(), "PATCH", &location, &chunked, b"hello").expect(400);
    assert_eq!(refused.json()["errors"][0]["code"], "CONTENT_LENGTH_INVALID");

    let body = random_bytes(1, 100_001);
    let refused = patch(&front, &auth, &location, 0, &body).expect(413);
    assert!(
        refused.text().contains("413 Request Entity Too Large") && refused.text().contains("AzureContainerRegistry")
    );
    let put = format!("{location}&digest={}", Blob::new(body.clone()).digest);
    send(front.addr(), "PUT", &put, &[("authorization", &auth), OCTETS], &body).expect(413);
    send(front.addr(), "PUT", &put, &chunked, &body).expect(413);
    assert_eq!(registry.count("PATCH", "") + registry.count("PUT", ""), 0);
    patch(&front, &auth, &location, 0, &body[..100_000]).expect(202);
    let bare = location.split('?').next().expect("a path");
    send(front.addr(), "PUT", bare, &[("authorization", &auth)], b"").expect(404);
}

#[test]
fn acr_sessions_after_a_reset() {
    use transload::demo::persona::AfterReset::{Kept, Lost404, Lost416, Partial};
    let registry = Registry::start();
    for (after, status, range) in
        [(Kept, 204, Some("0-0")), (Partial, 204, Some("0-69999")), (Lost404, 404, None), (Lost416, 416, Some("0-0"))]
    {
        let front = Front::before(registry.addr())
            .acr(move |config| config.after_reset = after)
            .rule(Rule::on("PATCH", "", Fault::ResetRequestAfter(70_000)).once())
            .start();
        let (auth, location) = acr_session(&front);
        let body = random_bytes(1, 200_000);
        let headers = [("authorization", auth.as_str()), ("content-range", "0-199999"), OCTETS];
        assert!(try_send(front.addr(), "PATCH", &location, &headers, &body).is_err(), "{after:?}");
        let state = send(front.addr(), "GET", &location, &[("authorization", &auth)], &[]).expect(status);
        assert_eq!(state.header("range"), range, "{after:?}");
        if status == 204 {
            let from = if after == Partial { 70_000 } else { 0 };
            let at = state.header("location").expect("a location").to_owned();
            let more = patch(&front, &auth, &at, from, &body[from..]).expect(202);
            let digest = Blob::new(body.clone()).digest;
            let finish = format!("{}&digest={digest}", more.header("location").expect("a location"));
            send(front.addr(), "PUT", &finish, &[("authorization", &auth), OCTETS], &[]).expect(201);
        }
    }
}

#[test]
fn acr_keeps_a_session_whose_answer_was_lost() {
    let registry = Registry::start();
    let front =
        Front::before(registry.addr()).acr(|_| {}).rule(Rule::on("PATCH", "", Fault::LoseResponse).once()).start();
    let (auth, location) = acr_session(&front);
    let headers = [("authorization", auth.as_str()), ("content-range", "0-4"), OCTETS];
    assert!(try_send(front.addr(), "PATCH", &location, &headers, b"hello").is_err());
    let state = send(front.addr(), "GET", &location, &[("authorization", &auth)], &[]).expect(204);
    assert_eq!(state.header("range"), Some("0-4"));
    patch(&front, &auth, state.header("location").expect("a location"), 5, b" world").expect(202);
}

#[test]
fn acr_redirects_blobs_to_storage_and_counts_writes() {
    let registry = Registry::start();
    let image = Image::single(1, &[3000]);
    image.push(registry.addr(), "a", "v1");
    let front = Front::before(registry.addr())
        .acr(|config| {
            config.writes = Some(1);
            config.chunk_min = Some(100);
        })
        .start();
    let auth = acr_token(&front, "repository:a:pull,push", ADMIN);
    let header = [("authorization", auth.as_str())];
    let path = format!("/v2/a/blobs/{}", image.blobs[1].digest);
    let moved = send(front.addr(), "GET", &path, &header, &[]).expect(307);
    let link = moved.header("location").expect("a link").split(&front.side().to_string()).nth(1).expect("the storage");
    let refused = send(front.side(), "GET", link, &header, &[]).expect(400);
    assert!(refused.text().contains("InvalidAuthenticationInfo"));
    assert_eq!(get(front.side(), link).expect(200).body, image.blobs[1].bytes);
    front.persona().advance(Duration::from_secs(1201));
    get(front.side(), link).expect(403);

    let start = send(front.addr(), "POST", "/v2/a/blobs/uploads/", &header, &[]).expect(202);
    assert_eq!(start.header("oci-chunk-min-length"), Some("100"));
    let limited = send(front.addr(), "POST", "/v2/a/blobs/uploads/", &header, &[]).expect(429);
    let wait: u64 = limited.header("retry-after").expect("a wait").parse().expect("seconds");
    assert!((50..=60).contains(&wait), "{wait}");
    front.persona().advance(Duration::from_secs(wait));
    send(front.addr(), "POST", "/v2/a/blobs/uploads/", &header, &[]).expect(202);
}

#[test]
fn acr_exchanges_an_entra_token() {
    let registry = Registry::start();
    Image::single(1, &[2000]).push(registry.addr(), "a", "v1");
    let front = Front::before(registry.addr()).acr(|_| {}).start();
    let form = |path: &str, body: &str| {
        send(front.addr(), "POST", path, &[("content-type", "application/x-www-form-urlencoded")], body.as_bytes())
    };
    let entra = "/entra/11111111-2222-3333-4444-555555555555/oauth2/v2.0/token";
    let client = "grant_type=client_credentials&client_id=99999999-8888-7777-6666-555555555555\
                  &scope=https%3A%2F%2Fcontainerregistry.azure.net%2F.default";
    form(entra, &format!("{client}&client_secret=wrong")).expect(401);
    let reply = form(entra, &format!("{client}&client_secret=entra-secret")).expect(200).json();
    assert_eq!(reply["expires_in"], 3600);
    let assertion = "client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer";
    let federated = |token: &str| form(entra, &format!("{client}&{assertion}&client_assertion={token}"));
    federated("federated-token-1").expect(200);
    front.acr().entra().rotate("federated-token-2");
    federated("federated-token-1").expect(401);
    federated("federated-token-2").expect(200);

    let service = front.host();
    let entra_token = reply["access_token"].as_str().expect("a token");
    let exchange = format!("grant_type=access_token&service={service}&tenant=t&access_token=");
    form("/oauth2/exchange", &format!("{exchange}forged")).expect(401);
    let refresh = form("/oauth2/exchange", &format!("{exchange}{entra_token}")).expect(200).json();
    let refresh = refresh["refresh_token"].as_str().expect("a token").to_owned();
    let ask = format!("grant_type=refresh_token&service={service}&scope=repository%3Aa%3Apull&refresh_token={refresh}");
    let access = form("/oauth2/token", &ask).expect(200);
    assert_eq!(access.json().as_object().map(|all| all.len()), Some(1), "no expires_in");
    let manifest = |auth: &str| send(front.addr(), "GET", "/v2/a/manifests/v1", &[("authorization", auth)], &[]);
    manifest(&bearer(access)).expect(200);
    manifest(&basic("00000000-0000-0000-0000-000000000000", &refresh)).expect(200);
    manifest(&format!("Bearer {entra_token}")).expect(401);
}

#[test]
fn imds_wants_its_header() {
    let registry = Registry::start();
    let front = Front::before(registry.addr()).acr(|_| {}).start();
    let path = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://containerregistry.azure.net";
    get(front.side(), path).expect(400);
    let reply = send(front.side(), "GET", path, &[("metadata", "true")], &[]).expect(200).json();
    assert_eq!((&reply["token_type"], &reply["expires_in"]), (&json!("Bearer"), &json!("3600")));
}

#[test]
fn acr_narrows_denies_and_refuses() {
    let registry = Registry::start();
    let front = Front::before(registry.addr()).acr(|config| config.abac = true).start();
    let at = front.addr();
    let reader = ("reader", "reader-secret");
    // A token narrowed without an error, then refused; Basic straight away is 403.
    let auth = acr_token(&front, "repository:public/a:pull,push", reader);
    let start = "/v2/public/a/blobs/uploads/";
    let refused = send(at, "POST", start, &[("authorization", &auth)], &[]).expect(401);
    assert!(refused.header("www-authenticate").expect("a challenge").contains("insufficient_scope"));
    let denied = send(at, "POST", start, &[("authorization", &basic(reader.0, reader.1))], &[]).expect(403);
    assert_eq!(denied.json()["errors"][0]["code"], "DENIED");
    send(at, "POST", start, &[("authorization", &basic(ADMIN.0, ADMIN.1))], &[]).expect(202);
    token(&front, front.host(), "repository:*:pull", Some(ADMIN)).expect(401);
    token(&front, front.host(), "repository:a:pull", None).expect(401);

    let long = format!("Bearer {}", "x".repeat(8200));
    let refused = send(at, "GET", "/v2/", &[("authorization", &long)], &[]).expect(400);
    assert!(refused.text().contains("Request Header Or Cookie Too Large"));
}

#[test]
fn skopeo_copies_from_hub_to_acr() {
    // A second opinion on the personas: skopeo pulls from the Hub look-alike, redirects and all.
    let registry = Registry::start();
    let image = Image::single(1, &[40_000]);
    image.push(registry.addr(), "library/nginx", "latest");
    let front = Front::before(registry.addr()).hub(|_| {}).start();
    let directory = TempDir::new();
    let from = format!("docker://{}/library/nginx:latest", front.host());
    let to = format!("dir:{}", directory.join("out"));
    skopeo(&["copy", "--src-tls-verify=false", "--insecure-policy", "--preserve-digests", &from, &to]).ok();
    assert_eq!(directory.read("out/manifest.json").as_bytes(), image.bytes());
    assert!(front.log().iter().any(|seen| seen.side && seen.scheme().is_none()), "by way of the CDN");
    assert_eq!(front.hub().pulls().len(), 1);

    // And pushes to the ACR look-alike, which must be told to take streams for that.
    let acr = Front::before(registry.addr()).acr(|config| config.refuse_streamed = false).start();
    let to = format!("docker://{}/copied/nginx:v1", acr.host());
    let from = format!("dir:{}", directory.join("out"));
    let args = ["copy", "--dest-tls-verify=false", "--insecure-policy", "--preserve-digests"];
    skopeo(&[&args[..], &["--dest-creds", "admin:admin-secret", &from, &to]].concat()).ok();
    image.assert_at(registry.addr(), "copied/nginx", "v1");
}

#[test]
fn acr_lists_referrers() {
    let registry = Registry::start();
    let front = Front::before(registry.addr()).acr(|config| config.referrers_page = Some(2)).start();
    let admin = basic(ADMIN.0, ADMIN.1);
    let header = [("authorization", admin.as_str())];
    let subject = Image::single(1, &[2000]);
    subject.push_as(front.addr(), "a", "v1", &header);
    let list = |query: &str| {
        let path = format!("/v2/a/referrers/{}{query}", subject.digest());
        send(front.addr(), "GET", &path, &header, &[]).expect(200)
    };
    assert_eq!(list("").json()["manifests"], json!([]));
    for (seed, kind) in [(1, "application/sbom"), (2, "application/other"), (3, "application/sbom")] {
        let artifact = Image::artifact(seed, kind, Some(&subject));
        artifact.push_as(front.addr(), "a", "x", &header);
        let path = format!("/v2/a/manifests/{}", artifact.digest());
        let put = [header[0], ("content-type", artifact.media_type())];
        let again = send(front.addr(), "PUT", &path, &put, artifact.bytes()).expect(201);
        assert_eq!(again.header("oci-subject"), Some(subject.digest()));
    }
    let first = list("");
    assert_eq!(first.json()["manifests"].as_array().map(Vec::len), Some(2));
    let link = first.header("link").and_then(|link| link.split(['<', '>']).nth(1)).expect("a next page");
    let second = send(front.addr(), "GET", link, &header, &[]).expect(200);
    assert_eq!(second.json()["manifests"].as_array().map(Vec::len), Some(1));
    assert_eq!(second.header("link"), None);
    let filtered = list("?artifactType=application/other");
    assert_eq!(filtered.header("oci-filters-applied"), Some("artifactType"));
    let found = filtered.json()["manifests"].clone();
    assert_eq!((found.as_array().map(Vec::len), &found[0]["artifactType"]), (Some(1), &json!("application/other")));

    let path = format!("/v2/a/manifests/{}", found[0]["digest"].as_str().expect("a digest"));
    send(front.addr(), "DELETE", &path, &header, &[]).expect(202);
    assert_eq!(list("?artifactType=application/other").json()["manifests"], json!([]));
}
