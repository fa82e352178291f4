//! `transload copy` to an Azure Container Registry look-alike, by its real name and over TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use transload::demo::persona::{Account, AcrConfig, AfterReset, Grant};

use super::copy_plain::serve;
use super::support::{Fault, Front, Image, Registry, Rule, Run, SeenRequest, TempDir, Tool, http, skopeo};

const ADMIN: &str = "admin:admin-secret";
const MIB: usize = 1 << 20;

/// A source that holds an image as `app:v1`, and a look-alike of ACR before an empty registry.
struct Stage {
    source: Registry,
    behind: Registry,
    acr: Front,
}

impl Stage {
    fn new(image: &Image, adapt: impl FnOnce(&mut AcrConfig) + 'static, rules: Vec<Rule>) -> Self {
        let (source, behind) = (Registry::start(), Registry::start());
        image.push(source.addr(), "app", "v1");
        source.reset_log();
        let front = Front::before(behind.addr()).acr(adapt).tls();
        let acr = rules.into_iter().fold(front, super::support::front::Builder::rule).start();
        Self { source, behind, acr }
    }

    /// Copies `app:v1` to the look-alike's `app:v1`, as its admin.
    fn copy(&self, more: &[&str]) -> Run {
        self.copy_as(Some(ADMIN), more)
    }

    fn copy_as(&self, user: Option<&str>, more: &[&str]) -> Run {
        let tool = self.tool("app", more);
        match user {
            Some(user) => tool.env("TRANSLOAD_AUTH_MYREGISTRY_AZURECR_IO", user).run(),
            None => tool.run(),
        }
    }

    fn tool(&self, repository: &str, more: &[&str]) -> Tool {
        let from = format!("{}/app:v1", self.source.addr());
        let to = format!("{}/{repository}", self.acr.host());
        Tool::transload().args(&["copy", &from, &to]).args(&self.acr.flags()).args(more)
    }

    /// The requests of one method to upload sessions, in their order.
    fn uploads(&self, method: &str) -> Vec<SeenRequest> {
        let matches = |seen: &SeenRequest| seen.method == method && seen.path.contains("/blobs/uploads/");
        self.acr.log().into_iter().filter(matches).collect()
    }

    /// Answers other than 2xx that the rules or the look-alike's strictness made, but for challenges.
    fn refusals(&self) -> Vec<(String, Option<u16>)> {
        let log = self.acr.log().into_iter();
        log.filter(|seen| seen.fault.is_none() && !matches!(seen.status, Some(200..300 | 401 | 404)))
            .map(|seen| (format!("{} {}", seen.method, seen.path), seen.status))
            .collect()
    }
}

fn ranges(sent: &[SeenRequest]) -> Vec<&str> {
    sent.iter().map(|seen| seen.header("content-range").unwrap_or("none")).collect()
}

#[test]
fn large_blobs_go_in_chunks_and_small_ones_whole() {
    let image = Image::single(1, &[7 * MIB / 2, 40_000]);
    let stage = Stage::new(&image, |_| {}, vec![]);
    let run = stage.copy(&["--chunk-size", "1MiB"]).ok();
    assert!(run.stdout.contains("copied: ") && run.stdout.contains("myregistry.azurecr.io/app:v1"), "{}", run.stdout);
    image.assert_at(stage.behind.addr(), "app", "v1");
    let patches = stage.uploads("PATCH");
    // "a-b" and nothing else, each with its length: the look-alike refuses other forms.
    assert_eq!(ranges(&patches), ["0-1048575", "1048576-2097151", "2097152-3145727", "3145728-3670015"]);
    assert!(patches.iter().all(|seen| seen.header("content-length").is_some()));
    assert!(patches.iter().all(|seen| seen.query.starts_with("_nouploadcache=false&_state=")), "the query is kept");
    let puts = stage.uploads("PUT");
    assert!(puts.iter().all(|seen| seen.query.contains("&digest=sha256:") || seen.query.contains("&digest=sha256%3A")));
    let mut sizes: Vec<u64> = puts.iter().map(SeenRequest::received).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [0, image.blobs[0].bytes.len() as u64, 40_000]);
    assert_eq!(stage.uploads("POST").len(), 3);
    assert_eq!(stage.refusals(), []);

    // Skopeo pulls it from there, by the same name and the redirects to storage.
    let directory = TempDir::new();
    let from = format!("docker://{}/app:v1", stage.behind.addr());
    let out = format!("dir:{}", directory.join("out"));
    skopeo(&["copy", "--preserve-digests", "--src-tls-verify=false", "--insecure-policy", &from, &out]).ok();
    assert_eq!(directory.read("out/manifest.json").as_bytes(), image.bytes());
}

/// Without a flag: 16 MiB, below what ACR refuses (20 MB).
#[test]
fn the_default_chunk_is_small_enough() {
    let image = Image::single(1, &[21 * MIB]);
    let stage = Stage::new(&image, |_| {}, vec![]);
    stage.copy(&[]).ok();
    image.assert_at(stage.behind.addr(), "app", "v1");
    assert_eq!(ranges(&stage.uploads("PATCH")), ["0-16777215", "16777216-22020095"]);
    assert_eq!(stage.refusals(), []);
}

#[test]
fn chunks_are_as_long_as_the_registry_wants() {
    let image = Image::single(1, &[7 * MIB]);
    let stage = Stage::new(&image, |acr| acr.chunk_min = Some(3 << 20), vec![]);
    stage.copy(&["--chunk-size", "1MiB"]).ok();
    image.assert_at(stage.behind.addr(), "app", "v1");
    assert_eq!(ranges(&stage.uploads("PATCH")), ["0-3145727", "3145728-6291455", "6291456-7340031"]);
    assert_eq!(stage.refusals(), []);
}

/// openresty's 413 in HTML: chunks get smaller until they pass.
#[test]
fn too_large_makes_chunks_smaller() {
    let image = Image::single(1, &[5 * MIB]);
    let stage = Stage::new(&image, |acr| acr.body_limit = 1_500_000, vec![]);
    let run = stage.copy(&[]).ok();
    image.assert_at(stage.behind.addr(), "app", "v1");
    assert!(stage.acr.log().iter().any(|seen| seen.status == Some(413)), "{}", run.stderr);
    let patches = stage.uploads("PATCH");
    assert!(patches.iter().filter(|seen| seen.status == Some(202)).all(|seen| seen.received() <= 1_500_000));
    // What is refused even at the smallest size is an error, not a loop.
    let stage = Stage::new(&image, |acr| acr.body_limit = 500_000, vec![]);
    let run = stage.copy(&[]).exits(1);
    assert!(run.stderr.contains("413 Request Entity Too Large") && run.stderr.contains("hint: "), "{}", run.stderr);
    assert!(stage.acr.log().len() < 60, "{} requests", stage.acr.log().len());
}

/// The same at a registry of another name, behind which one large PUT is tried first.
#[test]
fn a_registry_that_refuses_one_large_body_gets_chunks() {
    for limit in [20_000_000, 3_000_000] {
        let image = Image::single(1, &[21 * MIB, 9 * MIB]);
        let (source, behind) = (Registry::start(), Registry::start());
        image.push(source.addr(), "app", "v1");
        let front = Front::before(behind.addr()).acr(move |acr| acr.body_limit = limit).start();
        let (from, to) = (format!("{}/app:v1", source.addr()), format!("{}/app", front.addr()));
        let name = format!("TRANSLOAD_AUTH_{}", front.addr().to_string().replace(['.', ':'], "_"));
        Tool::transload().args(&["copy", &from, &to]).env(&name, ADMIN).run().ok();
        image.assert_at(behind.addr(), "app", "v1");
        let refused = front.log().iter().filter(|seen| seen.status == Some(413)).count();
        assert!((1..=8).contains(&refused), "{refused} times 413");
    }
}

/// What is known to the session is not sent again.
#[test]
fn a_broken_chunk_goes_on_where_the_session_is() {
    let image = Image::single(1, &[4 * MIB]);
    for (after, want) in [
        // The chunk that broke counts for nothing.
        (
            AfterReset::Kept,
            vec!["0-1048575", "1048576-2097151", "1048576-2097151", "2097152-3145727", "3145728-4194303"],
        ),
        // What came of it counts.
        (
            AfterReset::Partial,
            vec!["0-1048575", "1048576-2097151", "1348576-2397151", "2397152-3445727", "3445728-4194303"],
        ),
    ] {
        let rule = Rule::on("PATCH", "", Fault::ResetRequestAfter(300_000)).nth(2..=2);
        let stage = Stage::new(&image, move |acr| acr.after_reset = after, vec![rule]);
        let document = stage.copy(&["--chunk-size", "1MiB", "--output", "json"]).ok().json();
        assert_eq!(stage.acr.struck(), 1);
        image.assert_at(stage.behind.addr(), "app", "v1");
        assert_eq!(ranges(&stage.uploads("PATCH")), want, "{after:?}");
        assert_eq!((stage.uploads("POST").len(), stage.uploads("GET").len()), (2, 1), "no new session: {after:?}");
        assert_eq!(document["images"][0]["blobs_retried"], 1);
        // Read on by Range, from a mark before the place.
        assert_eq!(stage.source.count("GET", &image.blobs[1].digest), 2);
    }
}

/// ACR loses sessions: 404 by azure-sdk-for-net#35322, 416 by Azure/acr#866.
#[test]
fn a_lost_session_is_begun_anew() {
    let image = Image::single(1, &[3 * MIB]);
    for after in [AfterReset::Lost404, AfterReset::Lost416] {
        let rule = Rule::on("PATCH", "", Fault::ResetRequestAfter(300_000)).nth(2..=2);
        let stage = Stage::new(&image, move |acr| acr.after_reset = after, vec![rule]);
        stage.copy(&["--chunk-size", "1MiB"]).ok();
        assert_eq!(stage.acr.struck(), 1);
        image.assert_at(stage.behind.addr(), "app", "v1");
        let want = ["0-1048575", "1048576-2097151", "0-1048575", "1048576-2097151", "2097152-3145727"];
        let patches = stage.uploads("PATCH");
        assert_eq!(ranges(&patches), want, "{after:?}");
        assert_ne!(patches[1].path, patches[2].path, "a new session");
    }
}

/// Whatever the session's 404 looks like.
#[test]
fn a_session_that_is_not_found_is_begun_anew() {
    let image = Image::single(1, &[3 * MIB]);
    let coded = Fault::Status {
        code: 404,
        retry_after: None,
        content_type: "application/json".to_owned(),
        body: r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"blob upload unknown to registry"}]}"#.to_owned(),
    };
    for fault in [coded, Fault::page(404, "404 Not Found"), Fault::page(502, "502 Bad Gateway"), Fault::status(500)] {
        let rule = Rule::on("PATCH", "", fault.clone()).nth(2..=2);
        let stage = Stage::new(&image, |_| {}, vec![rule]);
        stage.copy(&["--chunk-size", "1MiB"]).ok();
        assert_eq!(stage.acr.struck(), 1);
        image.assert_at(stage.behind.addr(), "app", "v1");
        assert!(stage.uploads("PATCH").len() <= 5, "{fault:?}");
    }
}

#[test]
fn a_lost_answer_is_not_sent_twice() {
    let image = Image::single(1, &[3 * MIB]);
    // Of the last PUT: the blob is there, nothing more is to do.
    let lost = || Fault::LoseResponse;
    let last = |seen: &SeenRequest| seen.header("content-length") == Some("0");
    let stage = Stage::new(&image, |_| {}, vec![Rule::on("PUT", "/blobs/uploads/", lost()).when(last).once()]);
    stage.copy(&["--chunk-size", "1MiB"]).ok();
    assert_eq!(stage.acr.struck(), 1);
    image.assert_at(stage.behind.addr(), "app", "v1");
    assert_eq!((stage.uploads("PATCH").len(), stage.uploads("POST").len()), (3, 2));
    // Of a chunk: the session has it.
    let stage = Stage::new(&image, |_| {}, vec![Rule::on("PATCH", "", lost()).nth(2..=2)]);
    stage.copy(&["--chunk-size", "1MiB"]).ok();
    assert_eq!(stage.acr.struck(), 1);
    image.assert_at(stage.behind.addr(), "app", "v1");
    assert_eq!(ranges(&stage.uploads("PATCH")), ["0-1048575", "1048576-2097151", "2097152-3145727"]);
    // Of a small blob's PUT, and of the manifest's.
    let small = Image::single(2, &[40_000]);
    let rules = ["/blobs/uploads/", "/manifests/"].map(|path| Rule::on("PUT", path, lost()).once());
    let stage = Stage::new(&small, |_| {}, rules.into());
    stage.copy(&[]).ok();
    assert_eq!(stage.acr.struck(), 2);
    small.assert_at(stage.behind.addr(), "app", "v1");
    assert_eq!((stage.uploads("PUT").len(), stage.uploads("POST").len()), (2, 2));
}

#[test]
fn retry_after_is_waited_for() {
    let image = Image::index(1, 3, &[20_000, 30_000]);
    let rule = Rule::on("POST", "/blobs/uploads/", Fault::CountDown(Duration::from_millis(2900)));
    let stage = Stage::new(&image, |_| {}, vec![rule]);
    let run = stage.copy(&[]).ok();
    image.assert_at(stage.behind.addr(), "app", "v1");
    assert!(run.took >= Duration::from_millis(2900), "{:?}", run.took);
    let struck: Vec<SeenRequest> = stage.acr.log().into_iter().filter(|seen| seen.fault.is_some()).collect();
    let (first, last) = (struck[0].at, struck[struck.len() - 1].at);
    // All were under way when the first 429 came; nobody asks again before the time is up.
    assert!(last.duration_since(first) < Duration::from_secs(2), "{:?}", last.duration_since(first));
    assert!(struck.len() <= 9, "{} times 429", struck.len());
}

#[test]
fn a_limit_of_writes_is_kept() {
    let image = Image::index(1, 3, &[20_000]);
    let stage = Stage::new(
        &image,
        |acr| {
            acr.writes = Some(10);
            acr.window = 2;
        },
        vec![],
    );
    stage.copy(&[]).ok();
    image.assert_at(stage.behind.addr(), "app", "v1");
    let limited = stage.acr.log().iter().filter(|seen| seen.status == Some(429)).count();
    assert!((1..=15).contains(&limited), "{limited} times 429");
}

#[test]
fn tokens_that_expire_in_the_middle_are_renewed() {
    let image = Image::single(1, &[3 * MIB, 40_000]);
    for abrupt in [false, true] {
        let (source, behind) = (Registry::start(), Registry::start());
        image.push(source.addr(), "app", "v1");
        let front = Front::before(behind.addr()).acr(|_| {}).tls();
        let front = if abrupt { front.abrupt() } else { front };
        let acr = front
            .rule(Rule::on("PATCH", "", Fault::ExpireTokens).nth(2..=2))
            .rule(Rule::on("PUT", "/manifests/", Fault::ExpireTokens).once())
            .start();
        let stage = Stage { source, behind, acr };
        stage.copy(&["--chunk-size", "1MiB"]).ok();
        assert_eq!(stage.acr.struck(), 2);
        image.assert_at(stage.behind.addr(), "app", "v1");
        let patches = stage.uploads("PATCH");
        let want = ["0-1048575", "1048576-2097151", "1048576-2097151", "2097152-3145727"];
        assert_eq!(ranges(&patches), want, "abrupt: {abrupt}");
        assert_eq!(stage.acr.acr().tokens(), 3, "abrupt: {abrupt}");
    }
}

/// One token for all of a repository, for no more than that.
#[test]
fn tokens_are_shared_and_name_no_more_than_is_needed() {
    let image = Image::tiny(1);
    let stage = Stage::new(&image, |acr| acr.abac = true, vec![]);
    stage.copy(&[]).ok();
    image.assert_at(stage.behind.addr(), "app", "v1");
    let asked: Vec<SeenRequest> = stage.acr.log().into_iter().filter(|seen| seen.path == "/oauth2/token").collect();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].scheme(), Some("Basic"));
    let query = asked[0].query.replace("%3A", ":").replace("%2C", ",");
    assert_eq!(query, "service=myregistry.azurecr.io&scope=repository:app:pull,push");
    // One challenge, and no request without a token after it.
    assert_eq!(stage.acr.log().iter().filter(|seen| seen.status == Some(401)).count(), 1);
}

/// In ABAC mode a mount needs a token for both repositories, and no wildcards.
#[test]
fn a_mount_asks_for_both_repositories() {
    let image = Image::single(1, &[40_000, 50_000]);
    let stage = Stage::new(&image, |acr| acr.abac = true, vec![]);
    let second = format!("{}/other", stage.acr.host());
    let run = stage.copy(&[&second, "--output", "json"]).ok();
    assert_eq!(run.json()["summary"]["blobs_mounted"], 3);
    image.assert_at(stage.behind.addr(), "app", "v1");
    image.assert_at(stage.behind.addr(), "other", "v1");
    let tokens: Vec<SeenRequest> = stage.acr.log().into_iter().filter(|seen| seen.path == "/oauth2/token").collect();
    assert!(tokens.iter().all(|seen| !seen.query.contains('*') && !seen.query.contains("%2A")));
    assert!(tokens.iter().any(|seen| seen.query.matches("scope=").count() == 2));
}

/// A token for less than was asked, then 401; or 403 straight away by Basic.
#[test]
fn readers_are_told_what_they_lack() {
    let image = Image::single(1, &[40_000]);
    let stage = Stage::new(&image, |_| {}, vec![]);
    let reader = |repository: &str| {
        stage.tool(repository, &[]).env("TRANSLOAD_AUTH_MYREGISTRY_AZURECR_IO", "reader:reader-secret").run().exits(1)
    };
    let hint = "hint: 'reader' may pull but not push: it needs AcrPush or Container Registry Repository Writer";
    let run = reader("public/app");
    assert!(run.stderr.contains("error: destination: cannot begin the upload of blob sha256:"), "{}", run.stderr);
    assert!(run.stderr.contains("myregistry.azurecr.io answered 401 UNAUTHORIZED"), "{}", run.stderr);
    assert!(run.stderr.contains(&format!("{hint}; if the registry was switched to ABAC mode")), "{}", run.stderr);
    let run = reader("private/app");
    assert!(run.stderr.contains("hint: 'reader' may neither pull nor push here: "), "{}", run.stderr);
    assert_eq!(stage.behind.count("PUT", "") + stage.behind.count("POST", ""), 0);

    let denied = Fault::Status {
        code: 403,
        retry_after: None,
        content_type: "application/json".to_owned(),
        body: r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#.to_owned(),
    };
    stage.acr.add(Rule::on("POST", "/blobs/uploads/", denied));
    let run = stage.copy(&[]).exits(1);
    assert!(run.stderr.contains("answered 403 DENIED: requested access to the resource is denied\n"), "{}", run.stderr);
    assert!(run.stderr.ends_with(&format!("{}\n", hint.replace("reader", "admin"))), "{}", run.stderr);
    assert!(stage.acr.struck() > 0);

    // A wrong password and no password are other matters.
    let wrong = stage.copy_as(Some("admin:wrong"), &[]).exits(1);
    assert!(wrong.stderr.contains("hint: the password or token of 'admin' is not taken"), "{}", wrong.stderr);
    assert!(!wrong.stderr.contains("wrong"), "{}", wrong.stderr);
}

/// Admins, service principals and repository tokens are names and passwords to ACR.
#[test]
fn service_principals_and_repository_tokens() {
    let image = Image::single(1, &[40_000]);
    let id = "0f1e2d3c-1111-2222-3333-444455556666";
    let stage = Stage::new(
        &image,
        move |acr| {
            acr.abac = true;
            acr.accounts = vec![
                Account::new(id, "sp~Secret/+=%", Grant::everything()),
                Account::new("mirror-token", "t0ken", vec![Grant::new("app", "pull,push")]),
            ];
        },
        vec![],
    );
    for user in [format!("{id}:sp~Secret/+=%"), "mirror-token:t0ken".to_owned()] {
        stage.copy_as(Some(&user), &["--force"]).ok();
        let asked: Vec<SeenRequest> = stage.acr.log().into_iter().filter(|seen| seen.path == "/oauth2/token").collect();
        assert!(asked.iter().all(|seen| seen.scheme() == Some("Basic") && seen.method == "GET"));
        assert!(
            stage
                .acr
                .log()
                .iter()
                .filter(|seen| seen.path.starts_with("/v2/"))
                .all(|seen| seen.scheme() != Some("Basic"))
        );
    }
    image.assert_at(stage.behind.addr(), "app", "v1");
}

/// `az acr login` leaves a refresh token in Docker's file, as `identitytoken`.
#[test]
fn a_refresh_token_from_dockers_file() {
    let image = Image::single(1, &[40_000]);
    let stage = Stage::new(&image, |_| {}, vec![]);
    let refresh = refresh_token(&stage.acr);
    let auth = base64::engine::general_purpose::STANDARD.encode("00000000-0000-0000-0000-000000000000:");
    let config = json!({"auths": {"myregistry.azurecr.io": {"auth": auth, "identitytoken": refresh}}});
    stage.acr.reset_log();
    stage.tool("app", &[]).file(".docker/config.json", &config.to_string()).run().ok();
    image.assert_at(stage.behind.addr(), "app", "v1");
    let asked: Vec<SeenRequest> = stage.acr.log().into_iter().filter(|seen| seen.path == "/oauth2/token").collect();
    assert_eq!(asked.iter().map(|seen| seen.method.as_str()).collect::<Vec<_>>(), ["POST"]);

    // One that has expired says so.
    stage.acr.persona().revoke();
    let run = stage.tool("app", &["--force"]).file(".docker/config.json", &config.to_string()).run().exits(1);
    assert!(
        run.stderr.contains("hint: ") && run.stderr.contains("transload login myregistry.azurecr.io"),
        "{}",
        run.stderr
    );
    assert!(!run.stderr.contains(&refresh), "{}", run.stderr);
}

/// A refresh token, as `az acr login` gets it.
fn refresh_token(acr: &Front) -> String {
    let form = |host: &str, path: &str, body: &str| -> Value {
        let headers = [("host", host), ("content-type", "application/x-www-form-urlencoded")];
        http::send(acr.side(), "POST", path, &headers, body.as_bytes()).expect(200).json()
    };
    let client = "grant_type=client_credentials&client_id=99999999-8888-7777-6666-555555555555&client_secret=entra-secret\
                  &scope=https%3A%2F%2Fcontainerregistry.azure.net%2F.default";
    let path = "/11111111-2222-3333-4444-555555555555/oauth2/v2.0/token";
    let entra = form("login.microsoftonline.com", path, client);
    let entra = entra["access_token"].as_str().expect("a token");
    let exchange = format!("grant_type=access_token&service={}&access_token={entra}", acr.host());
    let answer = form(acr.host(), "/oauth2/exchange", &exchange);
    answer["refresh_token"].as_str().expect("a token").to_owned()
}

/// Geo-replicas: one took the blob, another does not know it yet. The status is 400 by
/// distribution's table, 404 elsewhere.
#[test]
fn a_blob_unknown_to_a_replica_is_waited_for() {
    let image = Image::single(1, &[40_000]);
    for code in [400, 404] {
        let unknown = Fault::Status {
            code,
            retry_after: None,
            content_type: "application/json".to_owned(),
            body: r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#.to_owned(),
        };
        let stage = Stage::new(&image, |_| {}, vec![Rule::on("PUT", "/manifests/", unknown).nth(1..=2)]);
        stage.copy(&[]).ok();
        assert_eq!(stage.acr.struck(), 2);
        image.assert_at(stage.behind.addr(), "app", "v1");
    }
}

/// A session's address is followed on ACR's own host only with credentials.
#[test]
fn a_location_elsewhere_gets_no_credentials() {
    let image = Image::single(1, &[40_000]);
    for (to, refused) in [("https://10.1.2.3/upload?x=1", true), ("http://myregistry.azurecr.io/upload", false)] {
        let rule = Rule::on("POST", "/blobs/uploads/", Fault::Header("location", Some(to.to_owned())));
        let stage = Stage::new(&image, |_| {}, vec![rule]);
        let run = stage.copy(&[]).exits(1);
        assert!(stage.acr.struck() > 0);
        assert_eq!(run.stderr.contains("which is refused: it is a private address"), refused, "{}", run.stderr);
    }
}

/// A failed copy leaves neither a tag nor open sessions: not the one that failed, nor the other one
/// that was under way.
#[test]
fn a_failure_leaves_nothing_open() {
    let image = Image::single(1, &[5 * MIB / 2, 3 * MIB]);
    let stalled = Arc::new(AtomicBool::new(false));
    let last_of = |end: &'static str| move |seen: &SeenRequest| seen.header("content-range") == Some(end);
    let (shorter, longer) = (last_of("2097152-2621439"), last_of("2097152-3145727"));
    let (set, is_set, is_unset) = (stalled.clone(), stalled.clone(), stalled);
    let on = |fault| Rule::on("PATCH", "", fault);
    let rules = vec![
        on(Fault::Stall).when(move |seen| shorter(seen) && !set.swap(true, Ordering::Relaxed)),
        on(Fault::status(503)).when(move |seen| longer(seen) && !is_unset.load(Ordering::Relaxed)),
        on(Fault::status(403)).when(move |seen| longer(seen) && is_set.load(Ordering::Relaxed)),
    ];
    let stage = Stage::new(&image, |_| {}, rules);
    let run = stage.copy(&["--chunk-size", "1MiB"]).exits(1);
    assert!(run.stderr.contains("answered 403"), "{}", run.stderr);
    for seen in stage.uploads("PATCH").iter().filter(|seen| seen.fault.is_some()) {
        let deleted = stage.uploads("DELETE").iter().filter(|delete| delete.path == seen.path).count();
        assert_eq!(deleted, 1, "{:?}", seen.fault);
    }
    assert!(stage.acr.struck() >= 2);
    assert_eq!(stage.acr.count("PUT", "/manifests/"), 0);
}

/// A registry that keeps what came before a break, and one that does not.
#[test]
fn a_reset_in_the_middle_of_one_body() {
    let image = Image::single(1, &[9_000_000]);
    let source = Registry::start();
    image.push(source.addr(), "app", "v1");
    source.reset_log();
    let from = format!("{}/app:v1", source.addr());
    let directory = TempDir::new();
    let (_serving, ours) = serve(&directory.join("images"));
    let theirs = Registry::start();
    for (at, resumes) in [(ours.parse().expect("an address"), true), (theirs.addr(), false)] {
        let rule = Rule::on("PUT", "/blobs/uploads/", Fault::ResetRequestAfter(4_000_000));
        let large = |seen: &SeenRequest| seen.header("content-length") == Some("9000000");
        let front = Front::before(at).rule(rule.when(large).once()).start();
        Tool::transload().args(&["copy", &from, &format!("{}/app", front.addr())]).run().ok();
        assert_eq!(front.struck(), 1);
        image.assert_at(at, "app", "v1");
        let puts: Vec<SeenRequest> = front.log().into_iter().filter(|seen| seen.method == "PUT").collect();
        let sizes: Vec<u64> = puts.iter().filter(|seen| seen.received() > 100_000).map(SeenRequest::received).collect();
        assert_eq!(sizes[0], 4_000_000);
        if resumes {
            assert!(sizes.len() == 2 && (5_000_000..9_000_000).contains(&sizes[1]), "{sizes:?}");
        } else {
            assert_eq!(sizes[1..], [9_000_000]);
        }
    }
}
