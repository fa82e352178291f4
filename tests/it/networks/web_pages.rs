//! Web pages in the place of a registry's answer: captive portals, login pages, block pages.

use std::net::SocketAddr;

use super::failed_at_once;
use crate::support::http::{self, Reply};
use crate::support::{FakeRegistry, FakeResponse, Fault, Front, Image, Registry, Rule, Run, TempDir, Tool};

const PAGE: &str = "<html><head><title>Sign in to Example Wi-Fi</title></head></html>";

/// A server that answers so to what has `part` in its path, and otherwise as a registry with one image.
fn portal(part: &'static str, answer: impl Fn() -> FakeResponse + Send + Sync + 'static) -> (FakeRegistry, Registry) {
    let behind = Registry::start();
    Image::single(1, &[3000]).push(behind.addr(), "app", "v1");
    let at = behind.addr();
    let front = FakeRegistry::start(move |asked| {
        if asked.target.contains(part) {
            return answer();
        }
        let reply = behind_it(at, &asked.target);
        let mut answer = FakeResponse::new(reply.status, &reply.body);
        for name in ["content-type", "docker-content-digest"] {
            if let Some(value) = reply.header(name) {
                answer = answer.with(name, value);
            }
        }
        answer
    });
    (front, behind)
}

/// What the registry answers. Its answer to a GET has the length that an answer to a HEAD claims.
fn behind_it(at: SocketAddr, target: &str) -> Reply {
    http::send(at, "GET", target, &[("accept", "application/vnd.oci.image.manifest.v1+json")], b"")
}

fn page(status: u16) -> FakeResponse {
    FakeResponse::new(status, PAGE).with("content-type", "text/html; charset=utf-8")
}

/// Copies the image out of it.
fn copied(from: &FakeRegistry) -> Run {
    let to = Registry::start();
    Tool::transload()
        .args(&["copy", &format!("{}/app:v1", from.addr()), &to.addr().to_string(), "--retries", "1"])
        .run()
}

/// The error names the page. One with status 200 may be passing, and costs more attempts.
#[track_caller]
fn said_page(run: Run, status: u16, said: &str) {
    if status == 200 {
        let run = run.exits(1);
        assert!(run.stderr.contains(said) && run.stderr.contains("no answer of a registry"), "{}", run.stderr);
    } else {
        failed_at_once(run, &[said, "no answer of a registry"]);
    }
}

/// Whatever is asked for, and whatever the status, the page is called one, with status and type, at once.
#[test]
fn a_page_in_the_place_of_an_answer_is_called_one() {
    for part in ["/manifests/", "/blobs/"] {
        for status in [200, 403, 511] {
            let (front, _behind) = portal(part, move || page(status));
            let said = format!("answered {status} with a web page (text/html)");
            said_page(copied(&front), status, &said);
        }
    }
    for status in [200, 403, 511] {
        let (front, _behind) = portal("/", move || page(status));
        let said = format!("answered {status} with a web page (text/html)");
        let at = front.addr().to_string();
        said_page(Tool::transload().args(&["tags", &format!("{at}/app")]).run(), status, &said);
        let login = Tool::transload().args(&["login", &at, "-u", "me", "--password-stdin"]).stdin("pw");
        failed_at_once(login.run(), &[&said]);
    }
    let (front, _behind) = portal("/tags/", || page(403));
    let run = Tool::transload().args(&["tags", &format!("{}/app", front.addr())]).run();
    failed_at_once(run, &["Sign in to Example Wi-Fi"]);
}

/// A page in the place of a HEAD's answer may be gone by the next request: the manifest is read by GET, as where a HEAD
/// says too little.
#[test]
fn a_page_in_the_place_of_a_head_is_asked_again() {
    let (from, to) = (Registry::start(), Registry::start());
    let image = Image::single(1, &[3000]);
    image.push(from.addr(), "app", "v1");
    image.push(to.addr(), "app", "v1");
    let rule = Rule::on("HEAD", "/manifests/", Fault::page(200, "Please wait")).once();
    let front = Front::before(to.addr()).rule(rule).start();
    let (source, goal) = (format!("{}/app:v1", from.addr()), format!("{}/app:v1", front.addr()));
    Tool::transload().args(&["copy", &source, &goal]).run().ok();
    assert_eq!(front.struck(), 1, "{:#?}", front.log());
}

/// A login page at another host, to which all is redirected.
#[test]
fn a_redirect_to_a_login_page_is_called_one() {
    let login = FakeRegistry::start(|_| page(200));
    let target = format!("http://{}/login?from=x", login.addr());
    for part in ["/manifests/", "/blobs/"] {
        let target = target.clone();
        let (front, _behind) = portal(part, move || FakeResponse::new(302, "").with("location", &target));
        let said = format!("sends us to http://{}, which answered 200 with a web page (text/html)", login.addr());
        failed_at_once(copied(&front), &[&said]);
    }
}

/// The token endpoint is behind the page, not the registry.
#[test]
fn a_page_at_the_token_endpoint_is_called_one() {
    for status in [200, 302, 403, 511] {
        let tokens = FakeRegistry::start(move |_| page(status));
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"x\"", tokens.addr());
        let front = FakeRegistry::start(move |_| FakeResponse::new(401, "").with("www-authenticate", &challenge));
        let run = Tool::transload().args(&["tags", &format!("{}/app", front.addr())]).run();
        said_page(run, status, &format!("the token endpoint answered {status} with a web page (text/html)"));
    }
}

/// Labels alone are no error: some registries call their empty answers HTML, and storage may call a blob so.
#[test]
fn a_label_alone_is_no_error() {
    let files = TempDir::new();
    let quay = FakeRegistry::start(|_| FakeResponse::new(200, "true").with("content-type", "text/html; charset=utf-8"));
    let at = quay.addr().to_string();
    let login = Tool::transload().args(&["login", &at, "-u", "me", "--password-stdin"]).stdin("pw");
    login.env("DOCKER_CONFIG", &files.join("docker")).run().ok();

    let behind = Registry::start();
    let image = Image::single(1, &[3000]);
    image.push(behind.addr(), "app", "v1");
    let at = behind.addr();
    let front = FakeRegistry::start(move |asked| {
        let reply = behind_it(at, &asked.target);
        let labelled = if asked.target.contains("/blobs/") { Some("text/html") } else { reply.header("content-type") };
        let mut answer = FakeResponse::new(reply.status, &reply.body);
        if let Some(digest) = reply.header("docker-content-digest") {
            answer = answer.with("docker-content-digest", digest);
        }
        answer.with("content-type", labelled.unwrap_or("text/plain"))
    });
    copied(&front).ok();
    // A proxy before a registry has pages for its own passing faults: those are tried again as ever.
    let rule = Rule::on("GET", "/tags/", Fault::page(502, "Bad Gateway")).once();
    let front = Front::before(behind.addr()).rule(rule).start();
    Tool::transload().args(&["tags", &format!("{}/app", front.addr())]).run().ok();
    assert_eq!(front.struck(), 1);
}
