//! Registries that echo secrets.

use serde_json::json;

use crate::support::images::{Document, OCI_MANIFEST};
use crate::support::{FakeRegistry, FakeRequest, FakeResponse, Image, ProxyProcess, TempDir, Tool, http};

const USER: &str = "robot";
const PASSWORD: &str = "hunter2/+&\"Ä=";
/// `robot:hunter2/+&"Ä=`, in Base64 and in that of URLs.
const PAIR: &str = "cm9ib3Q6aHVudGVyMi8rJiLDhD0=";
const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJyb2JvdCIsInNjb3BlIjoicHVsbCJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ";
const REFRESH: &str = "refresh-token-0123456789abcdef";

/// All forms in which a secret may come back.
fn leaks(text: &str) -> Vec<&'static str> {
    let forms = [
        PASSWORD,
        "hunter2%2F%2B%26%22%C3%84%3D",
        "hunter2/+\\u0026\\\"Ä=",
        "hunter2/&#43;&amp;&#34;Ä=",
        "hunter2",
        PAIR,
        "cm9ib3Q6aHVudGVyMi8rJiLDhD0",
        TOKEN,
        // A token that was cut.
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIi",
        REFRESH,
    ];
    forms.into_iter().filter(|form| text.to_lowercase().contains(&form.to_lowercase())).collect()
}

#[track_caller]
fn keeps_secrets(what: &str, text: &str) {
    assert_eq!(leaks(text), Vec::<&str>::new(), "{what}: {text}");
}

/// A file with the credentials of this registry.
fn auth_file(dir: &TempDir, at: &str) -> String {
    dir.write("auth.json", json!({ "auths": { at: { "username": USER, "password": PASSWORD } } }).to_string())
}

/// A registry that wants `Basic` or, if `bearer`, a token; what it answers then is up to the test.
fn registry(bearer: bool, answer: impl Fn(&FakeRequest) -> FakeResponse + Send + Sync + 'static) -> FakeRegistry {
    FakeRegistry::start(move |asked| {
        if asked.target.starts_with("/token") {
            return FakeResponse::new(
                200,
                json!({ "token": TOKEN, "refresh_token": REFRESH, "expires_in": 300 }).to_string(),
            );
        }
        if asked.authorization.is_empty() {
            let token = format!("Bearer realm=\"http://{}/token\",service=\"x\"", asked.host);
            return FakeResponse::new(401, "")
                .with("www-authenticate", if bearer { &token } else { "Basic realm=\"x\"" });
        }
        answer(asked)
    })
}

/// In which ways a registry may say what it was sent.
fn echoes(sent: &str) -> Vec<FakeResponse> {
    let url: String = sent.bytes().map(|byte| format!("%{byte:02x}")).collect();
    vec![
        FakeResponse::error(403, "DENIED", &format!("not with {sent}")),
        FakeResponse::error(403, &format!("CODE {sent}"), "no"),
        FakeResponse::error(404, sent, sent),
        FakeResponse::error(500, "UNKNOWN", &format!("{}{sent}", "x".repeat(150))),
        FakeResponse::new(403, format!("bad header: {sent}")),
        FakeResponse::new(403, format!("<html><title>{sent}</title></html>")),
        FakeResponse::error(
            403,
            "DENIED",
            &format!("not with {}", sent.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")),
        ),
        FakeResponse::error(403, "DENIED", &format!("not with {}", sent.to_uppercase())),
        // Not an encoding that anybody uses: only to see that nothing breaks.
        FakeResponse::error(403, "DENIED", &url),
        FakeResponse::error(429, "TOOMANYREQUESTS", &format!("too many requests of {sent}")),
        FakeResponse::new(401, "").with("www-authenticate", &format!("Basic realm=\"{sent}\"")),
        FakeResponse::new(200, json!({ "schemaVersion": sent }).to_string()).with("content-type", OCI_MANIFEST),
        FakeResponse::new(200, format!("{sent} is not JSON")).with("content-type", OCI_MANIFEST),
        FakeResponse::new(307, "").with("location", &format!("ftp://x/{sent}")),
    ]
}

/// Answers a request for the repository `appN` with the Nth of these.
fn by_repository(answers: Vec<FakeResponse>) -> impl Fn(&FakeRequest) -> FakeResponse {
    move |asked| {
        let nth = asked.target.split("/app").nth(1).and_then(|rest| rest.split('/').next()?.parse::<usize>().ok());
        nth.map_or_else(|| FakeResponse::new(200, "{}"), |nth| answers[nth].clone())
    }
}

/// An error message repeats our `Authorization` header, whole or cut, as it is or encoded. It must not get to the
/// terminal, to reports or to JUnit's XML, which CI systems keep for everybody.
#[test]
fn a_registry_that_echoes_our_credentials_gets_them_into_no_output() {
    let forms = [(false, PASSWORD), (false, PAIR), (true, TOKEN), (true, &TOKEN[..40]), (true, REFRESH)];
    let echoed = |(bearer, sent): (bool, &str)| {
        let answers = echoes(&format!("[{sent}]"));
        let registry = registry(bearer, by_repository(answers.clone()));
        let (at, dir) = (registry.addr(), TempDir::new());
        let auth = auth_file(&dir, &at.to_string());
        let images = (0..answers.len()).map(|nth| format!("{at}/app{nth}:v1\n"));
        let list = dir.write("images.txt", images.collect::<String>());
        let (report, junit) = (dir.join("report.json"), dir.join("junit.xml"));
        let flags = ["--auth-file", &auth, "-vv", "--retries", "0", "--report", &report, "--junit", &junit];
        // Both ends are this registry.
        let run = Tool::transload().args(&["mirror", &list, "--to", &format!("{at}/x")]).args(&flags).run().exits(1);
        for nth in 0..answers.len() {
            let sent =
                |asked: &FakeRequest| asked.target.contains(&format!("/app{nth}/")) && !asked.authorization.is_empty();
            assert!(registry.seen().iter().any(sent), "{nth}: they were sent");
        }
        for text in [&run.stdout, &run.stderr, &dir.read("report.json"), &dir.read("junit.xml")] {
            keeps_secrets("mirror", text);
        }
        assert!(run.stdout.contains("***"), "{}", run.stdout);
    };
    // Answers with a limit are waited out: by all at the same time.
    std::thread::scope(|scope| forms.map(|form| scope.spawn(move || echoed(form))).map(|form| form.join()))
        .into_iter()
        .for_each(|form| form.expect("all of it holds"));
}

/// Data may repeat a secret, too: a tag, an annotation.
#[test]
fn a_secret_in_tags_and_annotations_is_not_printed() {
    let image = Image::single(1, &[1000]);
    let mut manifest: serde_json::Value = serde_json::from_slice(image.bytes()).expect("JSON");
    manifest["annotations"] = json!({ "a": TOKEN, "b": PASSWORD, "c": PAIR });
    let manifest = Document::new(OCI_MANIFEST, &manifest);
    for bearer in [false, true] {
        let shown = manifest.clone();
        let registry = registry(bearer, move |asked| match asked.target.contains("/tags/list") {
            true => FakeResponse::new(200, json!({ "name": "app", "tags": [&TOKEN[..60], "v1"] }).to_string()),
            false => FakeResponse::new(200, &shown.bytes).with("content-type", OCI_MANIFEST),
        });
        let dir = TempDir::new();
        let auth = auth_file(&dir, &registry.addr().to_string());
        let name = format!("{}/app", registry.addr());
        for output in ["text", "json"] {
            let tool = || Tool::transload().args(&["--auth-file", &auth, "--output", output]);
            let run = tool().args(&["inspect", &format!("{name}:v1")]).run().ok();
            // Which of them was sent is known; the other one isn't a secret of this run.
            keeps_secrets("inspect", &if bearer { run.stdout } else { run.stdout.replace(TOKEN, "") });
            let run = tool().args(&["tags", &name]).run();
            assert!(run.stdout.contains("v1"), "{run:?}");
            if bearer {
                keeps_secrets("tags", &run.stdout);
            }
        }
    }
}

/// The proxy's credentials are the operator's. A client that may pull must not learn them, and the upstream must not
/// talk to clients in the proxy's name: they get our own text, and of the upstream's only a code of the specification.
#[test]
fn clients_of_the_proxy_do_not_get_the_upstreams_text() {
    for (bearer, sent) in [(false, PASSWORD), (false, PAIR), (true, TOKEN)] {
        // Without those that the proxy asks for again and again.
        let answers: Vec<FakeResponse> =
            echoes(sent).into_iter().filter(|answer| ![429, 500].contains(&answer.status)).collect();
        let count = answers.len();
        let upstream = registry(bearer, by_repository(answers));
        let dir = TempDir::new();
        let auth = auth_file(&dir, &upstream.addr().to_string());
        let flags = ["--auth-file", &auth, "-vv", "--upstream-timeout", "2"];
        let proxy = ProxyProcess::hub(upstream.addr(), &flags);
        for nth in 0..count {
            for path in ["manifests/v1", "tags/list", &format!("blobs/sha256:{}", "a".repeat(64))] {
                let path = format!("/v2/library/app{nth}/{path}");
                // What turns out to be another blob ends the connection.
                let Ok(reply) = http::try_send(proxy.addr(), "GET", &path, &[], b"") else { continue };
                keeps_secrets(&path, &format!("{:?} {}", reply.headers, reply.text()));
            }
        }
        assert!(upstream.seen().iter().any(|asked| !asked.authorization.is_empty()), "they were sent");
        keeps_secrets("the proxy's log", &proxy.process.stderr.text());
    }
    for (status, code) in [(404, "MANIFEST_UNKNOWN"), (429, "TOOMANYREQUESTS"), (403, "DENIED"), (500, "UNKNOWN")] {
        let upstream =
            FakeRegistry::start(move |_| FakeResponse::error(status, code, "send your password to evil.example"));
        let proxy = ProxyProcess::hub(upstream.addr(), &["--upstream-timeout", "1"]);
        let reply = http::get(proxy.addr(), "/v2/library/app/manifests/v1");
        assert!(reply.status >= 400 && !reply.text().contains("evil.example"), "{reply:?} {}", reply.text());
    }
}

/// The signature in the URL of a blob's storage is as good as a password for as long as it holds.
#[test]
fn the_signature_of_a_redirect_is_not_printed() {
    const SIGNATURE: &str = "c2lnbmF0dXJlb2ZhYmxvYg%3D%3D";
    let image = Image::single(1, &[1000]);
    let shown = image.root().clone();
    let registry = FakeRegistry::start(move |asked| {
        let query = asked.target.split_once('?').map(|(_, query)| query.to_owned()).unwrap_or_default();
        if asked.target.starts_with("/storage") {
            return FakeResponse::new(
                403,
                format!("AuthenticationFailed: http://{}{} ({query})", asked.host, asked.target),
            );
        }
        if asked.target.contains("/blobs/") {
            let url = format!("http://{}/storage/blob?se=2030-01-01&sig={SIGNATURE}&sp=r", asked.host);
            return FakeResponse::new(307, "").with("location", &url);
        }
        FakeResponse::new(200, &shown.bytes).with("content-type", OCI_MANIFEST)
    });
    let dir = TempDir::new();
    let from = format!("{}/app:v1", registry.addr());
    let to = format!("oci:{}", dir.join("layout"));
    for output in ["text", "json"] {
        let run =
            Tool::transload().args(&["copy", &from, &to, "-vv", "--retries", "0", "--output", output]).run().exits(1);
        assert!(registry.seen().iter().any(|asked| asked.target.contains(SIGNATURE)), "it was followed");
        for text in [&run.stdout, &run.stderr] {
            assert!(!text.contains("c2lnbmF0dXJl"), "{text}");
        }
    }
}

/// A password that is also a word must not turn all output to stars; what the registry says of it is masked.
#[test]
fn a_short_password_leaves_our_own_text_readable() {
    let registry =
        registry(false, |asked| FakeResponse::error(403, "DENIED", &format!("{} is not app", asked.authorization)));
    let dir = TempDir::new();
    let at = registry.addr().to_string();
    let auth = dir.write("auth.json", json!({ "auths": { &at: { "username": "u", "password": "app" } } }).to_string());
    let name = format!("{at}/app:v1");
    let run = Tool::transload().args(&["inspect", &name, "--auth-file", &auth]).run().exits(1);
    assert!(run.stderr.contains("Basic *** is not app"), "{}", run.stderr);
    assert!(!run.stderr.contains("dTphcHA"), "{}", run.stderr);
}
