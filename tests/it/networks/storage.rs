//! Storage and registries to which a registry sends us, and which a rule refuses: the error names the option that
//! allows them, and the option works.

use super::failed_at_once;
use crate::support::{Fault, Front, Image, Registry, Rule, Tool};

const PUBLIC: &str = "registry.example";

/// An https registry whose storage is plain http. The hint names the option, and with it the image is copied.
#[test]
fn storage_by_plain_http_can_be_allowed() {
    let behind = Registry::start();
    let image = Image::single(1, &[3000]);
    image.push(behind.addr(), "a/b", "v1");
    let front = Front::before(behind.addr()).name(PUBLIC).tls().start();
    let storage = format!("storage.example:{}", behind.addr().port());
    for blob in &image.blobs {
        let path = format!("/v2/a/b/blobs/{}", blob.digest);
        front.add(Rule::on("GET", &path, Fault::Redirect(format!("http://{storage}{path}"))).host(PUBLIC));
    }
    let to = Registry::start();
    let copy = || {
        let args = ["copy", &format!("{PUBLIC}/a/b:v1"), &to.addr().to_string()];
        let at = format!("storage.example={}", behind.addr());
        Tool::transload().args(&args).args(&front.flags_only(PUBLIC)).args(&["--resolve", &at])
    };
    let allow = format!("--insecure-registry {storage}");
    failed_at_once(copy().run(), &[&format!("sends us to http://{storage}, which is refused"), "leave https", &allow]);
    copy().args(&["--insecure-registry", &storage]).run().ok();
    image.assert_at(to.addr(), "a/b", "v1");
}

/// A public registry whose storage has a private address from here. The hint names the option, and with it the image
/// is copied; addresses at which clouds keep secrets are allowed by nothing.
#[test]
fn storage_at_a_private_address_can_be_allowed() {
    let behind = Registry::start();
    let image = Image::single(1, &[3000]);
    image.push(behind.addr(), "a/b", "v1");
    let front = Front::before(behind.addr()).name(PUBLIC).name("localhost").tls().start();
    let port = front.addr().port();
    let copy = |to: &Registry| {
        let args = ["copy", &format!("{PUBLIC}/a/b:v1"), &to.addr().to_string()];
        Tool::transload().args(&args).args(&front.flags_only(PUBLIC))
    };
    for (host, allow) in [
        ("127.0.0.1", Some(format!("127.0.0.1=127.0.0.1:{port}"))),
        ("localhost", Some(format!("localhost=127.0.0.1:{port}"))),
        ("169.254.169.254", None),
    ] {
        front.clear_rules();
        let to = Registry::start();
        for blob in &image.blobs {
            let path = format!("/v2/a/b/blobs/{}", blob.digest);
            front.add(Rule::on("GET", &path, Fault::Redirect(format!("https://{host}:{port}{path}"))).host(PUBLIC));
        }
        let hint = allow.as_ref().map_or("nothing allows it".to_owned(), |allow| format!("--resolve {allow}"));
        failed_at_once(copy(&to).run(), &["private address", &hint]);
        match allow {
            Some(allow) => drop(copy(&to).args(&["--resolve", &allow]).run().ok()),
            None => drop(copy(&to).args(&["--resolve", &format!("{host}=127.0.0.1:{port}")]).run().exits(1)),
        }
    }
}

/// A front sends us to another registry, which requires a token of its own. No credentials are given there, and it is not
/// asked again and again; the hint names the reference to use.
#[test]
fn another_registry_is_named_in_the_hint() {
    let behind = Registry::start();
    let other = Registry::with_basic("me");
    let front = Front::before(behind.addr()).start();
    let at = other.addr();
    front.add(Rule::on("*", "/v2/a/b/manifests/", Fault::Redirect(format!("http://{at}/v2/a/b/manifests/v1"))));
    let run = Tool::transload().args(&["inspect", &format!("{}/a/b:v1", front.addr())]).run();
    failed_at_once(run, &[&format!("sends us to http://{at}, another registry"), &format!("as in {at}/a/b")]);
}
