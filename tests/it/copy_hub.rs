//! Docker Hub as the source: tokens, pulls counted and not, the CDN, both kinds of 429.

use std::time::Duration;

use transload::demo::persona::{Grant, HubConfig};

use super::support::front::Builder;
use super::support::{Fault, Front, Image, Registry, Rule, Run, Tool, http, skopeo};

const CDN: &str = "production.cloudflare.docker.com";
const AUTH: &str = "auth.docker.io";
const HUB: &str = "registry-1.docker.io";

/// Docker Hub with one image, and an empty registry to copy to.
struct Stage {
    hub: Front,
    to: Registry,
    behind: Registry,
}

impl Stage {
    fn new(image: &Image, repository: &str, adapt: impl FnOnce(&mut HubConfig) + 'static) -> Self {
        Self::with(image, repository, adapt, |front| front)
    }

    fn with(
        image: &Image,
        repository: &str,
        adapt: impl FnOnce(&mut HubConfig) + 'static,
        rules: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let behind = Registry::start();
        image.push(behind.addr(), repository, "latest");
        let hub = rules(Front::before(behind.addr()).hub(adapt).tls()).start();
        Self { hub, to: Registry::start(), behind }
    }

    /// `transload copy NAME REGISTRY …`, anonymous.
    fn tool(&self, name: &str, more: &[&str]) -> Tool {
        let to = self.to.addr().to_string();
        Tool::transload().args(&["copy", name, &to]).args(more).args(&self.hub.flags())
    }

    fn copy(&self, name: &str, more: &[&str]) -> Run {
        self.tool(name, more).run()
    }

    /// Requests to one of the Hub's hosts.
    fn count(&self, host: &str, method: &str, path: &str) -> usize {
        let log = self.hub.log();
        log.iter().filter(|seen| seen.host == host && seen.method == method && seen.target().contains(path)).count()
    }

    #[track_caller]
    fn assert_absent(&self, repository: &str) {
        http::get(self.to.addr(), &format!("/v2/{repository}/manifests/latest")).expect(404);
    }
}

/// As `docker login` leaves it.
fn docker_config(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!(r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{auth}"}}}}}}"#)
}

fn abuse(retry_after: Option<u64>) -> Fault {
    Fault::Status {
        code: 429,
        retry_after,
        content_type: "text/plain".to_owned(),
        body: "Too Many Requests (HAP429)\n".to_owned(),
    }
}

#[test]
fn hello_world_is_copied_anonymously() {
    let image = Image::tiny(1);
    let stage = Stage::new(&image, "library/hello-world", |_| {});
    let run = stage.copy("hello-world", &["--output", "json"]).ok();
    image.assert_at(stage.to.addr(), "library/hello-world", "latest");
    let at = format!("docker://{}/library/hello-world:latest", stage.to.addr());
    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &at]).ok();
    assert_eq!(raw.stdout.as_bytes(), image.bytes());

    // One token; one free HEAD besides the one that was challenged; each manifest and blob read once.
    let document = run.json();
    assert_eq!(stage.hub.hub().tokens(), 1);
    assert_eq!(stage.count(AUTH, "GET", "/token"), 1);
    assert_eq!(stage.count(HUB, "HEAD", "/manifests/latest"), 2);
    assert_eq!(stage.count(HUB, "GET", "/manifests/"), 25);
    assert_eq!(stage.count(HUB, "GET", "/manifests/latest"), 0, "by digest, so that a moving tag mixes nothing");
    assert_eq!(stage.count(HUB, "GET", "/blobs/"), 48);
    assert_eq!(stage.count(CDN, "GET", ""), 48);
    assert_eq!(stage.hub.hub().pulls().len(), 25);
    let quota = &document["registries"][1]["pull_limit"];
    assert_eq!(document["registries"][1]["name"], "docker.io");
    assert_eq!((&quota["limit"], &quota["remaining"]), (&100.into(), &75.into()), "{document}");
    assert_eq!(document["registries"][1]["requests"], stage.hub.log().len());

    // The CDN refuses Authorization, and got none.
    assert!(stage.hub.log().iter().filter(|seen| seen.host == CDN).all(|seen| seen.scheme().is_none()));
    let statuses: Vec<_> = stage.hub.log().iter().filter_map(|seen| seen.status).filter(|code| *code >= 400).collect();
    assert_eq!(statuses, [401], "the first challenge only");
}

#[test]
fn nothing_to_do_costs_two_requests_and_no_pull() {
    let image = Image::tiny(2);
    let stage = Stage::new(&image, "library/hello-world", |_| {});
    image.push(stage.to.addr(), "library/hello-world", "latest");
    stage.to.reset_log();
    let run = stage.copy("hello-world", &[]).ok();
    assert!(run.stdout.starts_with("unchanged: "), "{}", run.stdout);
    assert!(run.stdout.contains("docker.io: 0 pulls counted; 100 of 100 left in 6 h"), "{}", run.stdout);
    // Two requests, and what the Hub asks before it answers the first one: a challenge, a token.
    let seen: Vec<_> = stage.hub.log().iter().map(|seen| (seen.method.clone(), seen.host.clone())).collect();
    let expected = [("HEAD", HUB), ("GET", AUTH), ("HEAD", HUB)].map(|(method, host)| (method.into(), host.into()));
    assert_eq!(seen, expected);
    let there: Vec<_> = stage.to.requests().into_iter().map(|(method, path, _)| (method, path)).collect();
    assert_eq!(there, [("HEAD".to_owned(), "/v2/library/hello-world/manifests/latest".to_owned())]);
    assert_eq!(stage.hub.hub().pulls(), Vec::<String>::new());
}

#[test]
fn an_account_is_used_for_tokens_only() {
    let image = Image::single(3, &[4000]);
    let stage = Stage::new(&image, "library/nginx", |config| config.account_pulls = Some(200));
    let run = stage
        .tool("docker.io/nginx", &[])
        .file(".docker/config.json", &docker_config("alice", "wonderland"))
        .run()
        .ok();
    image.assert_at(stage.to.addr(), "library/nginx", "latest");
    assert!(run.stdout.contains("docker.io: 1 pull counted; 199 of 200 left in 6 h"), "{}", run.stdout);
    for seen in stage.hub.log() {
        let expected = match seen.host.as_str() {
            AUTH => Some("Basic"),
            CDN => None,
            _ if seen.status == Some(401) => None,
            _ => Some("Bearer"),
        };
        assert_eq!(seen.scheme(), expected, "{} {}{}", seen.method, seen.host, seen.target());
    }
    assert_eq!(stage.hub.hub().tokens(), 1);
    let token = stage.hub.log().into_iter().find(|seen| seen.host == AUTH).expect("a token was asked");
    assert!(token.query.contains("scope=repository%3Alibrary%2Fnginx%3Apull"), "{}", token.query);
    assert!(!token.query.contains("push"), "{}", token.query);
}

#[test]
fn each_scope_has_one_token() {
    let image = Image::index(4, 3, &[3000, 50_000]);
    let stage = Stage::new(&image, "library/nginx", |_| {});
    let flags = stage.hub.flags();
    Tool::transload()
        .args(&["copy", "nginx", "docker.io/alice/nginx"])
        .args(&flags)
        .file(".docker/config.json", &docker_config("alice", "wonderland"))
        .run()
        .ok();
    image.assert_at(stage.behind.addr(), "alice/nginx", "latest");
    // Reading one repository, writing another: two tokens, whatever the number of requests; a mount needs one for both.
    let mounts = usize::from(stage.count(HUB, "POST", "mount=") > 0);
    assert_eq!(stage.count(AUTH, "GET", "/token"), 2 + mounts);
}

#[test]
fn a_wrong_password_is_told_with_its_user() {
    let stage = Stage::new(&Image::single(5, &[2000]), "library/nginx", |_| {});
    let run = stage.tool("nginx", &[]).file(".docker/config.json", &docker_config("alice", "rabbit-hole")).run();
    let run = run.exits(1);
    assert!(
        run.stderr.contains("error: source: cannot get a token for repository:library/nginx:pull"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("hint: the password or token of 'alice'"), "{}", run.stderr);
    assert!(!run.stderr.contains("rabbit-hole"));
    assert_eq!(stage.count(AUTH, "GET", "/token"), 1, "a wrong password is not tried again");
}

#[test]
fn unknown_and_private_images_are_told_apart_where_the_hub_does() {
    let image = Image::single(6, &[2000]);
    let stage = Stage::new(&image, "acme/private", |config| config.anonymous = vec![Grant::new("library/*", "pull")]);
    // The Hub doesn't say whether a repository that one may not see exists.
    let run = stage.copy("acme/private", &[]).exits(1);
    assert_eq!(
        run.stderr,
        "error: source: cannot look for docker.io/acme/private:latest: docker.io answered 401\n\
         hint: the repository does not exist, or is private: check its name, or log in by transload login docker.io\n"
    );
    assert_eq!(stage.count(AUTH, "GET", "/token"), 1, "a denied scope is not asked for again");
    let run = stage.copy("helo-world", &[]).exits(1);
    assert_eq!(
        run.stderr,
        "error: source: cannot copy docker.io/library/helo-world:latest: there is no tag \"latest\"\n\
         hint: check the name and the tag; transload tags REPOSITORY lists what there is\n"
    );
    stage.assert_absent("acme/private");
    let json = stage.copy("acme/private", &["--output", "json"]).exits(1).json();
    assert_eq!(json["images"][0]["error"]["kind"], "unauthorized");
    assert_eq!(json["images"][0]["error"]["side"], "source");
}

#[test]
fn a_spent_pull_limit_ends_the_copy_at_once() {
    let image = Image::single(7, &[2000]);
    let stage = Stage::new(&image, "library/nginx", |config| config.anonymous_pulls = Some(0));
    let run = stage.copy("nginx", &[]).exits(1);
    assert_eq!(stage.count(HUB, "GET", "/manifests/"), 1, "no spinning");
    assert!(
        run.stderr.contains("docker.io answered 429 TOOMANYREQUESTS: You have reached your pull rate limit"),
        "{}",
        run.stderr
    );
    assert_eq!(run.stderr.matches("error: ").count(), 1, "{}", run.stderr);
    assert!(run.stderr.contains("hint: Docker Hub's pull limit is spent: log in"), "{}", run.stderr);
    stage.assert_absent("library/nginx");
}

#[test]
fn a_pull_limit_in_the_middle_leaves_no_tag() {
    let image = Image::tiny(8);
    let stage = Stage::new(&image, "library/hello-world", |config| config.anonymous_pulls = Some(9));
    let run = stage.copy("hello-world", &["--output", "json"]).exits(1);
    let document = run.json();
    assert_eq!(document["images"][0]["error"]["kind"], "limited", "{document}");
    assert_eq!(document["registries"][1]["pull_limit"]["remaining"], 0, "{document}");
    assert_eq!(stage.hub.hub().pulls().len(), 9);
    assert!(stage.count(HUB, "GET", "/manifests/") <= 9 + 16, "none is asked again");
    stage.assert_absent("library/hello-world");
}

#[test]
fn the_abuse_limit_is_waited_out() {
    let image = Image::single(9, &[2000, 3000]);
    // Without Retry-After by backoff, with it as told; at manifests, blobs and HEAD alike.
    let rules = |front: Builder| {
        front
            .rule(Rule::on("HEAD", "/manifests/", abuse(None)).nth(2..=2))
            .rule(Rule::on("GET", "/manifests/", abuse(Some(1))).once())
            .rule(Rule::on("GET", "/blobs/", abuse(None)).host(HUB).nth(2..=2))
    };
    let stage = Stage::with(&image, "library/nginx", |_| {}, rules);
    let run = stage.copy("nginx", &[]).ok();
    assert_eq!(stage.hub.struck(), 3);
    image.assert_at(stage.to.addr(), "library/nginx", "latest");
    let gets: Vec<_> =
        stage.hub.log().into_iter().filter(|s| s.method == "GET" && s.path.contains("/manifests/")).collect();
    assert_eq!(gets.len(), 2);
    assert!(gets[1].at - gets[0].at >= Duration::from_secs(1), "{:?}", gets[1].at - gets[0].at);
    assert!(run.stderr.contains("trying again in"), "it says why it waits: {}", run.stderr);
}

#[test]
fn an_abuse_limit_without_end_is_given_up_and_told() {
    let image = Image::single(10, &[2000]);
    let stage = Stage::new(&image, "library/nginx", |config| config.abuse_after = Some(2));
    let run = stage.copy("nginx", &["--quiet"]).exits(1);
    assert!(
        run.stderr.contains("docker.io answered 429: Too Many Requests (HAP429) (after 6 attempts in"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("hint: too many requests: try later, or with fewer --jobs"), "{}", run.stderr);
    assert_eq!(stage.count(HUB, "GET", "/manifests/"), 6);
}

#[test]
fn a_pull_limit_that_names_no_quota_is_known_by_its_text() {
    let image = Image::single(11, &[2000]);
    let text =
        r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your unauthenticated pull rate limit."}]}"#;
    let fault = Fault::Status {
        code: 429,
        retry_after: Some(3600),
        content_type: "application/json".to_owned(),
        body: text.to_owned(),
    };
    let rules = |front: Builder| front.rule(Rule::on("GET", "/manifests/", fault));
    let stage = Stage::with(&image, "library/nginx", |config| config.anonymous_pulls = None, rules);
    let run = stage.copy("nginx", &[]).exits(1);
    assert_eq!((stage.hub.struck(), stage.count(HUB, "GET", "/manifests/")), (1, 1));
    assert!(run.stderr.contains("hint: Docker Hub's pull limit is spent"), "{}", run.stderr);
}

#[test]
fn tokens_that_expire_in_the_middle_are_renewed() {
    let image = Image::tiny(12);
    let rules = |front: Builder| {
        front
            .rule(Rule::on("GET", "/manifests/", Fault::ExpireTokens).nth(7..=7))
            .rule(Rule::on("GET", "/blobs/", Fault::ExpireTokens).host(HUB).nth(5..=5))
    };
    let stage = Stage::with(&image, "library/hello-world", |_| {}, rules);
    stage.copy("hello-world", &[]).ok();
    assert_eq!(stage.hub.struck(), 2);
    image.assert_at(stage.to.addr(), "library/hello-world", "latest");
    assert_eq!(stage.count(AUTH, "GET", "/token"), 3, "one for all who need it, each time");
}

#[test]
fn a_token_is_renewed_before_its_end() {
    let image = Image::tiny(13);
    // Tokens of a second, of which the endpoint says nothing but what is in them.
    let slow = |front: Builder| {
        front.rule(Rule::on("GET", "/blobs/", Fault::Delay(Duration::from_millis(1300))).host(HUB).nth(3..=3))
    };
    let stage = Stage::with(
        &image,
        "library/hello-world",
        |config| {
            config.token_seconds = 1;
            config.tell_expiry = false;
        },
        slow,
    );
    stage.copy("hello-world", &["--jobs", "1"]).ok();
    assert_eq!(stage.hub.struck(), 1);
    image.assert_at(stage.to.addr(), "library/hello-world", "latest");
    assert!(stage.count(AUTH, "GET", "/token") >= 2);
}

#[test]
fn an_expired_link_is_asked_for_again() {
    let image = Image::single(14, &[400_000]);
    let layer = &image.blobs[1];
    // The CDN falls silent for longer than its link lives, which is long enough for a busy machine to follow it.
    let rule = Rule::on("GET", &layer.digest, Fault::StallAfter(100_000)).host(CDN).once();
    let rules = |front: Builder| front.rule(rule);
    let stage = Stage::with(&image, "library/nginx", |config| config.link_seconds = 5, rules);
    stage.copy("nginx", &["--idle-timeout", "6"]).ok();
    assert_eq!(stage.hub.struck(), 1);
    image.assert_at(stage.to.addr(), "library/nginx", "latest");
    let reads: Vec<_> = stage.hub.log().into_iter().filter(|seen| seen.path.contains(&layer.digest)).collect();
    let hosts: Vec<_> = reads.iter().map(|seen| (seen.host.as_str(), seen.header("range"), seen.status)).collect();
    let rest = Some("bytes=100000-");
    assert_eq!(
        hosts,
        [(HUB, None, Some(307)), (CDN, None, Some(200)), (HUB, rest, Some(307)), (CDN, rest, Some(206))],
        "through the registry again, and only the rest"
    );
    assert_ne!(reads[1].query, reads[3].query);
}

#[test]
fn all_tags_need_one_token_and_one_pull_a_changed_tag() {
    let stage = Stage::new(&Image::single(15, &[2000]), "acme/app", |_| {});
    Image::single(16, &[2000]).push(stage.behind.addr(), "acme/app", "v1");
    let same = Image::single(17, &[2000]);
    same.push(stage.behind.addr(), "acme/app", "v2");
    same.push(stage.to.addr(), "acme/app", "v2");
    let document = stage.copy("acme/app", &["--all-tags", "--output", "json"]).ok().json();
    assert_eq!((&document["summary"]["copied"], &document["summary"]["unchanged"]), (&2.into(), &1.into()));
    assert_eq!(stage.count(AUTH, "GET", "/token"), 1);
    assert_eq!(stage.hub.hub().pulls().len(), 2);
}
