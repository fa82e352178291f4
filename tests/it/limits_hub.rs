//! Docker Hub's limits, with the registry client as a library: pulls kept in reserve, the pause, several
//! accounts, and the limit of requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use transload::content::Source as _;
use transload::credentials::Credential;
use transload::demo::persona::{Account, Grant, HubConfig};
use transload::error::Kind;
use transload::reference::Target;
use transload::registry::{Options, Registries, Repo};

use super::support::{Fault, Front, Image, Registry, Rule};

const HUB: &str = "registry-1.docker.io";
const AUTH: &str = "auth.docker.io";

/// A front's names and certificate, as options.
pub(super) fn options(front: &Front) -> Options {
    let flags = front.flags();
    let names = flags.iter().filter_map(|flag| flag.split_once('='));
    let resolve = names.map(|(name, at)| (name.to_owned(), at.parse().expect("an address"))).collect();
    let trust = Arc::new(front.trust());
    Options { resolve: Arc::new(resolve), trust, ..Options::default() }
}

/// Docker Hub with so many images, `acme/0` and so on.
struct Stage {
    hub: Front,
    images: Vec<Image>,
    _behind: Registry,
}

impl Stage {
    fn new(number: u64, adapt: impl FnOnce(&mut HubConfig) + 'static, rules: Vec<Rule>) -> Self {
        let behind = Registry::start();
        let images: Vec<Image> = (0..number).map(|nth| Image::single(nth + 1, &[500])).collect();
        for (nth, image) in images.iter().enumerate() {
            image.push(behind.addr(), &format!("acme/{nth}"), "v1");
        }
        let front = Front::before(behind.addr()).hub(adapt).tls();
        let hub = rules.into_iter().fold(front, super::support::front::Builder::rule).start();
        Self { hub, images, _behind: behind }
    }

    fn registries(&self, adapt: impl FnOnce(&mut Options)) -> Registries {
        // As often as a test wants to know whether the window has opened.
        let pull_poll = (Duration::from_millis(30), Duration::from_millis(200));
        let mut options = Options { pull_poll, ..options(&self.hub) };
        adapt(&mut options);
        Registries::new(options)
    }

    fn repo(&self, registries: &Registries, nth: usize) -> Repo {
        let name = format!("docker.io/acme/{nth}").parse().expect("a repository");
        registries.repository(&name).expect("a registry")
    }

    /// Looks for the image, then reads its manifest.
    async fn pull(&self, registries: &Registries, nth: usize) -> transload::error::Result<()> {
        let (repo, tag) = (self.repo(registries, nth), Target::Tag("v1".parse().expect("a tag")));
        let found = repo.resolve(&tag).await?.expect("it's there");
        let manifest = repo.manifest(&Target::Digest(found.digest)).await?;
        assert_eq!(manifest.digest().to_string(), self.images[nth].digest());
        Ok(())
    }

    /// All of them at once.
    async fn pull_all(&self, registries: &Registries) -> Vec<transload::error::Result<()>> {
        let pulls = (0..self.images.len()).map(|nth| self.pull(registries, nth));
        futures_util::future::join_all(pulls).await
    }

    fn count(&self, host: &str, method: &str, path: &str) -> usize {
        let log = self.hub.log();
        log.iter().filter(|seen| seen.host == host && seen.method == method && seen.target().contains(path)).count()
    }
}

fn account(name: &str, grants: &str) -> Account {
    Account::new(name, &format!("{name}-secret"), vec![Grant::new(grants, "pull")])
}

fn credential(name: &str) -> Credential {
    Credential::basic(name, format!("{name}-secret"))
}

fn in_a_minute(options: &mut Options) {
    options.deadline = Some(Instant::now() + Duration::from_secs(60));
}

#[tokio::test]
async fn the_reserve_stays_and_all_but_pulls_goes_on() {
    let stage = Stage::new(12, |config| config.anonymous_pulls = Some(10), vec![]);
    let registries = stage.registries(|options| {
        options.reserve_pulls = Some(4);
        in_a_minute(options);
    });
    let watch = async {
        // Until the pause has been asked about a few times.
        while stage.count(HUB, "HEAD", "/manifests/sha256") < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(stage.hub.hub().pulls().len(), 6, "of 10 pulls, 4 are kept");
        let registry = registries.registry("docker.io").expect("it's known");
        assert_eq!((registry.pulls(), registry.quota().map(|quota| quota.remaining)), (6, Some(4)));
        // Tokens, HEADs and blobs cost nothing.
        let other = stage.repo(&registries, 3);
        assert!(other.resolve(&Target::Tag("v1".parse().expect("a tag"))).await.is_ok());
        let blob = &stage.images[3].blobs[1];
        let text = format!(r#"{{"mediaType":"x/y","digest":"{}","size":{}}}"#, blob.digest, blob.bytes.len());
        let descriptor = serde_json::from_str(&text).expect("a descriptor");
        assert!(other.blob(&descriptor, 0).await.is_ok());
        assert_eq!(stage.hub.hub().pulls().len(), 6);
        stage.hub.persona().advance(Duration::from_secs(6 * 3600));
    };
    let (done, ()) = tokio::join!(stage.pull_all(&registries), watch);
    // The second window has 10 again, of which 4 are kept.
    let failed: Vec<_> = done.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(stage.hub.hub().pulls().len(), 12);
    let refused = stage.hub.log().iter().filter(|seen| seen.status == Some(429)).count();
    assert_eq!(refused, 0);
}

#[tokio::test]
async fn the_deadline_ends_it_with_a_hint() {
    let stage = Stage::new(6, |config| config.anonymous_pulls = Some(5), vec![]);
    let registries = stage.registries(|options| {
        options.reserve_pulls = Some(3);
        options.deadline = Some(Instant::now() + Duration::from_millis(1500));
    });
    let begun = Instant::now();
    let failed: Vec<_> = stage.pull_all(&registries).await.into_iter().filter_map(Result::err).collect();
    assert!(begun.elapsed() >= Duration::from_millis(1500) && begun.elapsed() < Duration::from_secs(20));
    assert_eq!((failed.len(), stage.hub.hub().pulls().len()), (4, 2));
    for error in failed {
        assert!(error.is_quota() && error.kind() == Kind::Limited, "{error:?}");
        assert!(error.to_string().ends_with(": docker.io: 3 pulls left, 3 are kept"), "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("several accounts")), "{error:?}");
    }
}

/// The first pull of all mayn't be one too many either.
#[tokio::test]
async fn what_is_left_is_asked_before_the_first_pull() {
    let stage = Stage::new(1, |config| config.anonymous_pulls = Some(6), vec![]);
    let root = Target::Digest(stage.images[0].digest().parse().expect("a digest"));
    stage.repo(&stage.registries(|_| {}), 0).manifest(&root).await.expect("somebody else's");
    let read = stage.count(HUB, "GET", "/manifests/");
    let registries = stage.registries(|options| {
        options.reserve_pulls = Some(5);
        options.deadline = Some(Instant::now() + Duration::from_millis(100));
    });
    let refused = stage.repo(&registries, 0).manifest(&root).await;
    assert!(refused.is_err_and(|error| error.is_quota()));
    assert_eq!(stage.count(HUB, "GET", "/manifests/"), read);
}

/// What else is spent from the same address: the Hub has to refuse, and is left alone then.
#[tokio::test]
async fn a_refused_pull_waits_too() {
    let text =
        r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your unauthenticated pull rate limit."}]}"#;
    let fault = Fault::Status {
        code: 429,
        retry_after: None,
        content_type: "application/json".to_owned(),
        body: text.to_owned(),
    };
    let stage = Stage::new(2, |_| {}, vec![Rule::on("GET", "/manifests/", fault).nth(1..=2)]);
    let registries = stage.registries(in_a_minute);
    assert!(stage.pull_all(&registries).await.iter().all(Result::is_ok));
    assert_eq!((stage.hub.struck(), stage.hub.hub().pulls().len()), (2, 2));
}

#[tokio::test]
async fn accounts_are_spent_one_after_another_and_reported() {
    let adapt = |config: &mut HubConfig| {
        config.accounts = ["ann", "bob", "cy"].map(|name| account(name, "*")).into();
        config.plans = vec![("ann".to_owned(), Some(4)), ("bob".to_owned(), Some(30)), ("cy".to_owned(), Some(5))];
    };
    let stage = Stage::new(24, adapt, vec![]);
    let registries = stage.registries(|options| {
        options.reserve_pulls = Some(2);
        options.hub_accounts = ["ann", "bob", "cy"].map(credential).into();
        in_a_minute(options);
    });
    assert!(!format!("{registries:?}").contains("-secret"));
    let failed: Vec<_> = stage.pull_all(&registries).await.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{failed:?}");
    let by = ["ann", "bob", "cy", ""].map(|name| stage.hub.hub().pulls_by(name));
    assert!(by[0] <= 2 && by[2] <= 3 && by[1] >= 19 && by[3] == 0, "{by:?}");
    let registry = registries.registry("docker.io").expect("it's known");
    for told in registry.account_pulls() {
        let name = told.account.expect("all of them have names");
        assert_eq!(told.pulls, stage.hub.hub().pulls_by(&name) as u64, "{name}");
        let quota = told.quota.expect("each has a limit");
        assert_eq!(quota.remaining, quota.limit - told.pulls, "{name}");
    }
    assert_eq!(registry.quota().map(|quota| (quota.limit, quota.remaining)), Some((39, 15)));
    // One token a repository, but for those whose account was spent before their turn.
    let tokens = stage.count(AUTH, "GET", "/token");
    assert!((24..=24 + 16).contains(&tokens), "{tokens}");
}

#[tokio::test]
async fn an_account_that_is_not_taken_or_may_not_read_is_passed_over() {
    let adapt = |config: &mut HubConfig| {
        config.accounts = vec![account("ann", "acme/0"), account("bob", "acme/*")];
        config.anonymous = vec![];
    };
    let stage = Stage::new(3, adapt, vec![]);
    let registries = stage.registries(|options| {
        options.hub_accounts = vec![Credential::basic("eve", "wrong"), credential("ann"), credential("bob")];
    });
    for nth in 0..3 {
        stage.pull(&registries, nth).await.expect("bob may");
    }
    let by = ["ann", "bob", "eve"].map(|name| stage.hub.hub().pulls_by(name));
    assert_eq!((by[0] + by[1], by[2]), (3, 0));
    let wrong = stage.hub.log().iter().filter(|seen| seen.host == AUTH && seen.status == Some(401)).count();
    assert_eq!(wrong, 1, "eve is asked once");
    // Where nobody may, it's the registry's error.
    let error = stage.repo(&registries, 7).resolve(&Target::Tag("v1".parse().expect("a tag"))).await;
    let private = Registries::new(Options { hub_accounts: vec![credential("ann")], ..options(&stage.hub) });
    let denied = stage.repo(&private, 2).resolve(&Target::Tag("v1".parse().expect("a tag"))).await;
    assert!(error.is_ok_and(|found| found.is_none()));
    assert_eq!(denied.map_err(|error| error.kind()).err(), Some(Kind::Unauthorized));
}

/// Plain 429s, for requests of all kinds from this address: everything waits, and nothing fails by them.
#[tokio::test]
async fn the_limit_of_requests_is_backed_off_from() {
    let adapt = |config: &mut HubConfig| {
        (config.abuse_after, config.abuse_seconds) = (Some(30), Some(2));
    };
    let stage = Stage::new(40, adapt, vec![]);
    let registries = stage.registries(in_a_minute);
    let begun = Instant::now();
    let failed: Vec<_> = stage.pull_all(&registries).await.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{failed:?}");
    // 80 requests and the first challenge: at 30 in 2 s.
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    let refused = stage.hub.log().iter().filter(|seen| seen.status == Some(429)).count();
    assert!((1..=120).contains(&refused), "{refused}");
}

#[tokio::test]
async fn one_challenge_and_one_token_for_each_repository() {
    let stage = Stage::new(60, |_| {}, vec![]);
    let registries = stage.registries(|_| {});
    assert!(stage.pull_all(&registries).await.iter().all(Result::is_ok));
    let challenged = stage.hub.log().iter().filter(|seen| seen.status == Some(401)).count();
    assert_eq!((challenged, stage.count(AUTH, "GET", "/token")), (1, 60));
    assert_eq!(stage.hub.log().len(), 1 + 60 + 2 * 60);
}
