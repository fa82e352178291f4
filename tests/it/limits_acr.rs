//! ACR's limits: requests a minute by class, `Retry-After` that counts down, tokens.

use std::time::Duration;

use tokio::time::Instant;
use transload::content::{Destination as _, Source as _};
use transload::credentials::{Credential, Credentials};
use transload::demo::persona::AcrConfig;
use transload::reference::Target;
use transload::registry::{Options, Registries, Repo};

use super::limits_hub::options;
use super::support::{Front, Image, Registry, Tool};

const ACR: &str = "myregistry.azurecr.io";

fn acr(behind: &Registry, adapt: impl FnOnce(&mut AcrConfig) + 'static) -> Front {
    Front::before(behind.addr()).acr(adapt).tls().start()
}

fn registries(acr: &Front, adapt: impl FnOnce(&mut Options)) -> Registries {
    let admin = Credential::basic("admin", "admin-secret");
    let credentials = Credentials::fixed(ACR, admin).expect("a registry");
    let mut options = Options { credentials, ..options(acr) };
    adapt(&mut options);
    Registries::new(options)
}

fn repo(registries: &Registries, name: &str) -> Repo {
    let name = format!("{ACR}/{name}").parse().expect("a repository");
    registries.repository(&name).expect("a registry")
}

fn writes(acr: &Front) -> usize {
    acr.count("POST", "/blobs/") + acr.count("PUT", "/v2/") + acr.count("PATCH", "/v2/")
}

/// Copies an image to `names`, one after another, and returns the token requests.
fn tokens(names: &[String], image: &Image) -> usize {
    let (source, behind) = (Registry::start(), Registry::start());
    image.push(source.addr(), "app", "v1");
    let acr = acr(&behind, |_| {});
    let mut args = ["copy", "--jobs", "1"].map(str::to_owned).to_vec();
    args.push(format!("{}/app:v1", source.addr()));
    args.extend(names.iter().map(|name| format!("{ACR}/{name}")));
    Tool::transload()
        .args(&args)
        .args(&acr.flags())
        .env("TRANSLOAD_AUTH_MYREGISTRY_AZURECR_IO", "admin:admin-secret")
        .run()
        .ok();
    for name in names {
        image.assert_at(behind.addr(), name, "v1");
    }
    let mounts = acr.log().iter().filter(|seen| seen.query.contains("mount=") && seen.status == Some(201)).count();
    assert_eq!(mounts, (names.len() - 1) * image.blobs.len());
    acr.count("GET", "/oauth2/token")
}

/// A mount's token is the repository's own, and was asked for with where it's mounted from.
#[test]
fn mounts_cost_few_tokens() {
    let image = Image::single(1, &[3000, 4000, 5000]);
    let names: Vec<String> = (0..12).map(|nth| format!("app{nth}")).collect();
    let asked = tokens(&names, &image);
    // One for each repository, and now and then another: those that begin in one moment don't know of each
    // other yet, and how many do is the scheduler's. Without foresight it's one more for each that mounts.
    // What one knows of the others is counted exactly in `what_others_were_mounted_from_needs_no_token_later`.
    assert!((12..12 + 11).contains(&asked), "{asked} tokens");
}

#[tokio::test]
async fn what_others_were_mounted_from_needs_no_token_later() {
    let behind = Registry::start();
    let images: Vec<Image> = (0..3).map(|nth| Image::single(nth + 1, &[3000])).collect();
    for (nth, image) in images.iter().enumerate() {
        image.push(behind.addr(), &format!("base{nth}"), "v1");
    }
    let acr = acr(&behind, |_| {});
    let registries = registries(&acr, |_| {});
    let layer = |nth: usize| {
        let blob = &images[nth].blobs[1];
        let text = format!(r#"{{"mediaType":"x/y","digest":"{}","size":{}}}"#, blob.digest, blob.bytes.len());
        serde_json::from_str(&text).expect("a descriptor")
    };
    let from = |nth: usize| format!("{ACR}/base{nth}").parse().expect("a repository");
    let mut asked = Vec::new();
    for name in ["one", "two", "three"] {
        let repo = repo(&registries, name);
        assert!(repo.resolve_existing(&Target::Tag("v1".parse().expect("a tag"))).await.expect("it answers").is_none());
        for nth in 0..3 {
            let started = repo.start_upload(&layer(nth), Some(&from(nth))).await.expect("it mounts");
            assert!(matches!(started, transload::content::UploadStart::Mounted));
        }
        asked.push(acr.count("GET", "/oauth2/token"));
    }
    // The first repository's token grows with each one that it mounts from; the others' are had whole.
    assert_eq!(asked, [4, 5, 6]);
    let last = acr.log().into_iter().rfind(|seen| seen.path == "/oauth2/token").expect("it was asked");
    let scopes = ["three%3Apull%2Cpush", "base0%3Apull", "base1%3Apull", "base2%3Apull", "one%3Apull", "two%3Apull"];
    assert!(scopes.iter().all(|scope| last.query.contains(&format!("scope=repository%3A{scope}"))), "{}", last.query);
    assert_eq!(last.query.matches("scope=").count(), scopes.len(), "{}", last.query);
}

/// So many in a minute and no more: reads go on where writes wait, and tokens are neither.
#[tokio::test]
async fn the_limits_by_the_minute_are_kept_by_class() {
    let behind = Registry::start();
    let acr = acr(&behind, |_| {});
    // 900 writes a minute, for one of 60.
    let registries = registries(&acr, |options| options.share = 60);
    let repo = repo(&registries, "app");
    let blob = serde_json::from_str(
        r#"{"mediaType":"x/y","digest":"sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae","size":3}"#,
    )
    .expect("a descriptor");
    let starts = (0..25).map(|_| repo.start_upload(&blob, None));
    let all = tokio::time::timeout(Duration::from_secs(2), futures_util::future::join_all(starts)).await;
    assert!(all.is_err(), "the rest waits for the next minute");
    assert_eq!(writes(&acr), 15, "with the one that was challenged, which counts");
    let begun = Instant::now();
    assert!(repo.resolve_existing(&Target::Tag("v1".parse().expect("a tag"))).await.expect("it answers").is_none());
    assert!(begun.elapsed() < Duration::from_secs(2));
}

/// Any registry, as the user wants it.
#[tokio::test]
async fn a_rate_for_any_registry() {
    let behind = Registry::start();
    Image::single(1, &[500]).push(behind.addr(), "app", "v1");
    behind.reset_log();
    let name = behind.addr().to_string();
    let rates = std::sync::Arc::new([(name.clone(), 20)].into());
    let registries = Registries::new(Options { rates, ..Options::default() });
    let repo = registries.repository(&format!("{name}/app").parse().expect("a repository")).expect("a registry");
    let tag = Target::Tag("v1".parse().expect("a tag"));
    let heads = (0..30).map(|_| repo.resolve(&tag));
    let all = tokio::time::timeout(Duration::from_secs(2), futures_util::future::join_all(heads)).await;
    assert!(all.is_err());
    assert_eq!(behind.count("HEAD", "/manifests/v1"), 20);
}

/// The registry's own word counts, in reads, writes and tokens alike; and no request's silence is held
/// against a registry that told us to be silent.
#[test]
fn retry_after_counts_down_and_no_idle_time() {
    let (source, behind) = (Registry::start(), Registry::start());
    let image = Image::single(1, &[300_000, 300_000, 300_000, 300_000]);
    image.push(source.addr(), "app", "v1");
    let acr = acr(&behind, |config| {
        (config.writes, config.reads, config.oauth, config.window) = (Some(6), Some(5), Some(1), 4);
        // Of six blobs, some wait with their stream open.
        config.body_limit = 100_000_000;
    });
    let from = format!("{}/app:v1", source.addr());
    let goals = ["a", "b"].map(|name| format!("{ACR}/{name}"));
    let run = Tool::transload()
        .args(&["copy", &from, &goals[0], &goals[1], "--idle-timeout", "1"])
        .args(&acr.flags())
        .env("TRANSLOAD_AUTH_MYREGISTRY_AZURECR_IO", "admin:admin-secret")
        .run()
        .ok();
    for name in ["a", "b"] {
        image.assert_at(behind.addr(), name, "v1");
    }
    assert!(!run.stderr.contains("neither accepted bytes nor responded for"), "{}", run.stderr);
    let refused = acr.log().iter().filter(|seen| seen.status == Some(429)).count();
    assert!((1..=40).contains(&refused), "{refused}");
}
