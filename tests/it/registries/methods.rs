//! Requests that a registry does not support, or answers with another challenge than it began with.

use crate::support::layer;
use crate::support::{
    FakeRegistry, FakeResponse, Fault, Front, Image, ProxyProcess, Registry, Rule, Tool, http, transload,
};

/// GitHub Enterprise Server and Nexus answer HEAD of a manifest with 405 or 501. GET is asked instead, and HEAD never
/// again.
#[test]
fn manifests_are_read_where_a_registry_has_no_head_for_them() {
    let image = Image::index(501, 3, &[2000]);
    for status in [405, 501] {
        for at_source in [true, false] {
            let (from, to) = (Registry::start(), Registry::start());
            image.push(from.addr(), "app", "v1");
            Image::single(502, &[900]).push(to.addr(), "app", "old");
            let odd = if at_source { from.addr() } else { to.addr() };
            let front = Front::before(odd).rule(Rule::on("HEAD", "/manifests/", Fault::status(status))).start();
            let (source, goal) = if at_source { (front.addr(), to.addr()) } else { (from.addr(), front.addr()) };
            transload(&["copy", &format!("{source}/app:v1"), &format!("{goal}/app:v1")]).ok();
            image.assert_at(to.addr(), "app", "v1");
            assert_eq!(front.count("HEAD", "/manifests/"), 1, "{status}: {:#?}", front.log());
        }
    }
}

/// A blob's HEAD is answered with 405: one byte of it is asked for, and what is there is not sent again.
#[test]
fn blobs_are_looked_for_by_one_byte_where_a_registry_has_no_head_for_them() {
    let shared = [layer::layer(503, 900_000)];
    let digest = layer::sha256(&shared[0].bytes);
    let (old, new) = (Image::labelled(1, &shared), Image::labelled(2, &shared));
    for status in [405, 501] {
        let (from, to) = (Registry::start(), Registry::start());
        new.push(from.addr(), "app", "v2");
        old.push(to.addr(), "app", "v1");
        let front = Front::before(to.addr()).rule(Rule::on("HEAD", "/blobs/", Fault::status(status))).start();
        transload(&["copy", &format!("{}/app:v2", from.addr()), &format!("{}/app:v2", front.addr())]).ok();
        new.assert_at(to.addr(), "app", "v2");
        let asked: Vec<_> = front.log().into_iter().filter(|seen| seen.path.contains(&digest)).collect();
        let get = asked.iter().find(|seen| seen.method == "GET").expect("a GET");
        assert_eq!((get.header("range"), get.sent()), (Some("bytes=0-0"), 1), "{asked:#?}");
        assert_eq!(front.count("POST", "/blobs/uploads/"), 1, "the config alone: {:#?}", front.log());
    }
}

/// Neither HEAD nor GET says whether a blob is there: so it is sent. Each is asked once.
#[test]
fn a_blob_that_cannot_be_looked_up_is_sent() {
    let image = Image::single(504, &[900_000, 4000]);
    let (from, to) = (Registry::start(), Registry::start());
    image.push(from.addr(), "app", "v1");
    Image::single(505, &[900]).push(to.addr(), "app", "old");
    let front = Front::before(to.addr())
        .rule(Rule::on("HEAD", "/blobs/", Fault::status(405)))
        .rule(Rule::on("GET", "/blobs/", Fault::status(405)))
        .start();
    transload(&["copy", &format!("{}/app:v1", from.addr()), &format!("{}/app:v1", front.addr())]).ok();
    image.assert_at(to.addr(), "app", "v1");
}

/// A web page in the place of a blob's first byte does not mean that the blob is there.
#[test]
fn a_web_page_in_the_place_of_a_blob_is_no_blob() {
    let image = Image::single(509, &[900_000]);
    let (from, to) = (Registry::start(), Registry::start());
    image.push(from.addr(), "app", "v1");
    Image::single(505, &[900]).push(to.addr(), "app", "old");
    let front = Front::before(to.addr())
        .rule(Rule::on("HEAD", "/blobs/", Fault::status(405)))
        .rule(Rule::on("GET", "/blobs/", Fault::page(200, "Sign in")))
        .start();
    let run = transload(&["copy", &format!("{}/app:v1", from.addr()), &format!("{}/app:v1", front.addr())]).exits(1);
    assert!(run.stderr.contains("answered 200 with a web page (text/html)"), "{}", run.stderr);
    assert_eq!(front.count("PUT", "/manifests/"), 0, "{:#?}", front.log());
}

/// A registry that supports neither for manifests is an error, after one request of each.
#[test]
fn a_manifest_that_cannot_be_read_at_all_is_an_error() {
    let from = Registry::start();
    let front = Front::before(from.addr()).rule(Rule::on("*", "/manifests/", Fault::status(405))).start();
    let run = transload(&["inspect", &format!("{}/app:v1", front.addr())]).exits(1);
    assert!(run.stderr.contains("answered 405"), "{}", run.stderr);
    let run = transload(&["copy", &format!("{}/app:v1", front.addr()), &format!("{}/x:v1", from.addr())]).exits(1);
    assert!(run.stderr.contains("answered 405"), "{}", run.stderr);
    assert!(front.count("*", "/manifests/") <= 3, "{:#?}", front.log());
}

/// A node asks the proxy by HEAD, as containerd does. The proxy's upstream has no HEAD.
#[test]
fn the_proxy_answers_head_though_its_upstream_has_none() {
    let registry = Registry::start();
    let image = Image::single(506, &[70_000]);
    image.push(registry.addr(), "library/app", "v1");
    for status in [405, 501] {
        let front = Front::before(registry.addr()).rule(Rule::on("HEAD", "", Fault::status(status))).start();
        let proxy = ProxyProcess::hub(front.addr(), &[]);
        let head = |path: &str| http::send(proxy.addr(), "HEAD", path, &[], &[]);
        let by_tag = head("/v2/library/app/manifests/v1?ns=docker.io").expect(200);
        assert_eq!(by_tag.header("docker-content-digest"), Some(image.digest()));
        let blob = &image.blobs[1];
        let reply = head(&format!("/v2/library/app/blobs/{}?ns=docker.io", blob.digest)).expect(200);
        assert_eq!(reply.header("content-length"), Some(blob.bytes.len().to_string().as_str()));
        head("/v2/library/app/manifests/none?ns=docker.io").expect(404);
        assert!(front.count("HEAD", "") <= 2, "{:#?}", front.log());
    }
}

/// A registry whose answers depend on how a request is signed: without, by a token, by a password.
fn harbor(image: &Image, by_token: fn(&str) -> bool, by_password: bool) -> FakeRegistry {
    let (digest, bytes, media_type) =
        (image.digest().to_owned(), image.bytes().to_vec(), image.media_type().to_owned());
    FakeRegistry::start(move |asked| {
        if asked.target.starts_with("/token") {
            return FakeResponse::new(200, r#"{"token":"t"}"#);
        }
        let scheme = asked.authorization.split(' ').next().unwrap_or_default();
        let denied =
            |challenge: &str| FakeResponse::error(401, "UNAUTHORIZED", "no").with("www-authenticate", challenge);
        match scheme {
            "Bearer" if by_token(&asked.target) => {}
            "Basic" if by_password => {}
            "" => {
                let realm = format!("http://{}/token", asked.host);
                return denied(&format!("Bearer realm=\"{realm}\",service=\"harbor\""));
            }
            _ => return denied("Basic realm=\"harbor\""),
        }
        FakeResponse::new(200, &bytes).with("content-type", &media_type).with("docker-content-digest", &digest)
    })
}

/// Harbor gives a token, and answers a request that has it with a Basic challenge (goharbor/harbor issue 18856). The
/// password is the answer.
#[test]
fn a_basic_challenge_to_a_token_is_answered_with_the_password() {
    let image = Image::single(507, &[2000]);
    let registry = harbor(&image, |_| false, true);
    let inspect = Tool::transload().args(&["inspect", &format!("{}/app:v1", registry.addr())]);
    inspect.env(&variable(&registry), "carol:sesame").run().ok();
    let schemes: Vec<String> = registry
        .seen()
        .into_iter()
        .filter(|asked| !asked.target.starts_with("/token"))
        .map(|asked| asked.authorization.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(schemes, ["", "Bearer", "Basic"]);
}

/// It takes neither the token nor the password: an error, and no loop.
#[test]
fn a_registry_that_takes_neither_token_nor_password_is_asked_no_more() {
    let image = Image::single(508, &[2000]);
    for user in [Some("carol:sesame"), None] {
        let registry = harbor(&image, |_| false, false);
        let tool = Tool::transload().args(&["inspect", &format!("{}/app:v1", registry.addr())]);
        let tool = match user {
            Some(user) => tool.env(&variable(&registry), user),
            None => tool,
        };
        let run = tool.run().exits(1);
        assert!(run.stderr.contains("answered 401"), "{}", run.stderr);
        let requests = registry.seen().iter().filter(|asked| !asked.target.starts_with("/token")).count();
        assert!(requests <= 3, "{:#?}", registry.seen());
    }
}

/// The variable with the credentials of this registry.
fn variable(registry: &FakeRegistry) -> String {
    format!("TRANSLOAD_AUTH_{}", registry.addr().to_string().replace(['.', ':'], "_"))
}
