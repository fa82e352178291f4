//! `transload mirror` by its flags, from Docker Hub to ACR: pulls kept, several accounts, deadlines,
//! the limit of requests, several destinations.

use std::time::Duration;

use serde_json::{Value, json};
use transload::demo::persona::{Account, Grant, HubConfig};

use super::support::{Fault, Front, Image, Registry, Rule, Run, TempDir, Tool, http};

const ACR: &str = "myregistry.azurecr.io";

/// Docker Hub with `acme/0` and so on, ACR, and a plain registry as another source.
struct Stage {
    hub: Front,
    acr: Front,
    images: Vec<Image>,
    other: Registry,
    target: Registry,
    dir: TempDir,
    _behind: Registry,
}

impl Stage {
    fn new(number: u64, adapt: impl FnOnce(&mut HubConfig) + 'static) -> Self {
        let (behind, target) = (Registry::start(), Registry::start());
        let images: Vec<Image> = (0..number).map(|nth| Image::single(nth + 1, &[500])).collect();
        for (nth, image) in images.iter().enumerate() {
            image.push(behind.addr(), &format!("acme/{nth}"), "v1");
        }
        let hub = Front::before(behind.addr()).hub(adapt).tls().start();
        let acr = Front::before(target.addr()).acr(|_| {}).tls().start();
        Self { hub, acr, images, other: Registry::start(), target, dir: TempDir::new(), _behind: behind }
    }

    /// All of the Hub's images, then these lines.
    fn list(&self, more: &[String]) -> String {
        let hub = (0..self.images.len()).map(|nth| format!("acme/{nth}:v1"));
        self.dir.write("images.txt", hub.chain(more.iter().cloned()).collect::<Vec<_>>().join("\n"))
    }

    fn mirror(&self, list: &str, more: &[&str]) -> Tool {
        hub_to_acr(&self.hub, &self.acr, &self.dir, list).args(more)
    }

    /// How many of the Hub's images are whole at the destination.
    fn arrived(&self) -> usize {
        let there = |nth: usize| {
            let found = http::get(self.target.addr(), &format!("/v2/acme/{nth}/manifests/v1")).status == 200;
            if found {
                self.images[nth].assert_at(self.target.addr(), &format!("acme/{nth}"), "v1");
            }
            found
        };
        (0..self.images.len()).filter(|nth| there(*nth)).count()
    }

    fn refused(&self) -> usize {
        self.hub.log().iter().filter(|seen| seen.status == Some(429)).count()
    }
}

/// `transload mirror LIST` between these look-alikes.
pub(super) fn hub_to_acr(hub: &Front, acr: &Front, dir: &TempDir, list: &str) -> Tool {
    let authorities = [hub, acr].map(|front| dir.read(&front.ca_file().expect("TLS")));
    let authorities = dir.write("ca.pem", authorities.concat());
    let flags = [hub.flags(), acr.flags()].concat();
    let resolve: Vec<&str> = flags.iter().map(String::as_str).filter(|flag| flag.contains('=')).collect();
    Tool::transload()
        .args(&["mirror", list, "--to", ACR])
        .env("TRANSLOAD_CA_FILE", &authorities)
        .env("TRANSLOAD_RESOLVE", &resolve.join(","))
        .env("TRANSLOAD_AUTH_MYREGISTRY_AZURECR_IO", "admin:admin-secret")
}

fn account(name: &str) -> Account {
    Account::new(name, &format!("{name}-secret"), vec![Grant::new("*", "pull")])
}

fn images<'a>(document: &'a Value, status: &str) -> Vec<&'a Value> {
    document["images"].as_array().expect("images").iter().filter(|image| image["status"] == status).collect()
}

/// What the JSON report says of Docker Hub.
pub(super) fn hub(run: &Run) -> Value {
    let document = run.json();
    let registries = document["registries"].as_array().expect("registries");
    registries.iter().find(|used| used["name"] == "docker.io").expect("it was asked").clone()
}

#[test]
fn when_one_account_is_spent_the_next_one_reads() {
    let stage = Stage::new(9, |config| {
        config.accounts = vec![account("ann"), account("bob")];
        config.plans = vec![("ann".to_owned(), Some(3)), ("bob".to_owned(), Some(30))];
    });
    let accounts = stage.dir.write("accounts", "# whose\nann:ann-secret\n\nbob:bob-secret\n");
    let run = stage.mirror(&stage.list(&[]), &["--hub-accounts", &accounts, "--output", "json"]).run().ok();
    assert_eq!(stage.arrived(), 9);
    let by = ["ann", "bob", ""].map(|name| stage.hub.hub().pulls_by(name));
    assert_eq!((by[0] + by[1], by[2]), (9, 0), "{by:?}");
    assert!((1..=3).contains(&by[0]), "ann's three first: {by:?}");
    // Without a reserve to keep, ann's quota is learnt by her first pulls: a few more are under way then.
    assert!(stage.refused() <= 8, "{}", stage.refused());
    assert_eq!((&hub(&run)["pulls"], &hub(&run)["pull_limit"]["remaining"]), (&json!(9), &json!(33 - 9)));
    // No secret is told anywhere.
    assert!(!run.stdout.contains("-secret") && !run.stderr.contains("-secret"), "{run:?}");

    let wrong = stage.dir.write("wrong", "ann:ann-secret\nonly-a-token\n");
    let run = stage.mirror(&stage.list(&[]), &["--hub-accounts", &wrong]).run().exits(2);
    assert!(run.stderr.contains("wrong:2 is not USER:TOKEN") && !run.stderr.contains("only-a-token"), "{}", run.stderr);
}

/// The Hub's images wait until the deadline, and are skipped; other sources go on. The next run brings
/// just those.
#[test]
fn kept_pulls_stay_and_the_rest_is_for_the_next_run() {
    let stage = Stage::new(8, |config| config.anonymous_pulls = Some(10));
    Image::single(77, &[700]).push(stage.other.addr(), "tools/app", "v1");
    let (list, report) = (stage.list(&[format!("{}/tools/app:v1", stage.other.addr())]), stage.dir.join("report.json"));
    let flags = ["--reserve-pulls", "4", "--deadline", "3s", "--report", &report];
    let run = stage.mirror(&list, &flags).run().exits(3);
    assert_eq!((stage.arrived(), stage.hub.hub().pulls().len(), stage.refused()), (6, 6, 0));
    http::get(stage.target.addr(), "/v2/tools/app/manifests/v1").expect(200);
    assert!(run.stdout.contains("7 copied, 2 skipped; "), "{}", run.stdout);
    assert!(run.stdout.contains("4 pulls left, 4 are kept"), "{}", run.stdout);
    assert!(run.stderr.contains("docker.io: 4 pulls left, 4 are kept: waiting"), "{}", run.stderr);
    let document: Value = serde_json::from_str(&stage.dir.read("report.json")).expect("JSON");
    let skipped = images(&document, "skipped");
    assert_eq!(
        (skipped.len(), &document["summary"]["skipped"], &document["summary"]["failed"]),
        (2, &json!(2), &json!(0))
    );
    assert!(skipped.iter().all(|image| image["error"]["kind"] == "limited"), "{skipped:?}");

    stage.hub.persona().advance(Duration::from_secs(6 * 3600));
    let flags = ["--reserve-pulls", "4", "--deadline", "60s", "--retry-failed", &report, "--output", "json"];
    let run = stage.mirror(&list, &flags).run().ok();
    assert_eq!(run.json()["summary"]["copied"], 2, "{run:?}");
    assert_eq!((stage.arrived(), stage.hub.hub().pulls().len()), (8, 8));
}

/// What was begun has failed, what was not is skipped, and what another source has is there.
#[test]
fn a_deadline_ends_a_run() {
    let stage = Stage::new(60, |config| config.anonymous_pulls = None);
    Image::single(77, &[700]).push(stage.other.addr(), "tools/app", "v1");
    stage.hub.add(Rule::on("GET", "/manifests/", Fault::Stall));
    let stuck = Front::before(stage.other.addr()).rule(Rule::on("GET", "/tags/list", Fault::Stall)).start();
    let mut list = String::from("images:\n");
    for nth in 0..60 {
        list += &format!("  - docker.io/acme/{nth}:v1\n");
    }
    list += &format!("  - {}/tools/app:v1\n", stage.other.addr());
    list += &format!("  - {{source: {}/tools/app, glob: '*', target: 'globbed/{{name}}'}}\n", stuck.host());
    let (list, junit) = (stage.dir.write("list.yaml", list), stage.dir.join("junit.xml"));
    let run = stage.mirror(&list, &["--deadline", "4s", "--junit", &junit, "--output", "json"]).run().exits(3);
    assert!(run.took >= Duration::from_secs(4) && run.took < Duration::from_secs(30), "{:?}", run.took);
    let document = run.json();
    assert_eq!(images(&document, "copied").len(), 1, "that of the other source");
    let (failed, skipped) = (images(&document, "failed"), images(&document, "skipped"));
    assert_eq!(failed.len() + skipped.len(), 61);
    assert!(!failed.is_empty() && skipped.len() >= 2, "{} failed, {} skipped", failed.len(), skipped.len());
    for image in failed.iter().chain(&skipped) {
        let message = image["error"]["message"].as_str().expect("a message");
        assert!(message.ends_with("the deadline has passed"), "{message}");
    }
    // An entry whose tags aren't known is skipped as a whole.
    let whole = skipped.iter().find(|image| image["destination"] == "").expect("the glob's");
    assert_eq!(whole["source"], format!("{}/tools/app", stuck.host()));
    // What failed is told at once, what was skipped isn't.
    assert_eq!(run.stderr.matches("failed: ").count(), failed.len(), "{}", run.stderr);
    assert!(stage.dir.read("junit.xml").contains(&format!("skipped=\"{}\"", skipped.len())));
}

/// As text, why something failed is told once: in the table.
#[test]
fn a_failure_is_told_once() {
    let (source, target, dir) = (Registry::start(), Registry::start(), TempDir::new());
    Image::single(1, &[500]).push(source.addr(), "app", "v1");
    let list = dir.write("list", format!("{0}/app:v1\n{0}/gone:v1\n", source.addr()));
    let mirror = |more: &[&str]| super::mirror_run::mirror(&list, &target.addr().to_string(), more).exits(3);
    let hint = "check the name and the tag";
    let run = mirror(&[]);
    let mut at_once: Vec<&str> = run.stderr.lines().collect();
    at_once.sort_unstable();
    let [copied, failed] = at_once[..] else { panic!("{}", run.stderr) };
    assert!(
        copied.starts_with(&format!("copied: {0}/app:v1 to {1}/app:v1 ", source.addr(), target.addr())),
        "{copied}"
    );
    assert_eq!(failed, format!("failed: {0}/gone:v1 to {1}/gone:v1", source.addr(), target.addr()));
    assert_eq!(run.stdout.matches(hint).count(), 1, "{}", run.stdout);
    for quiet in [&["--quiet"][..], &["--output", "json"]] {
        let run = mirror(quiet);
        assert!(run.stderr.contains("gone:v1") && run.stderr.matches(hint).count() == 1, "{}", run.stderr);
    }
}

/// Plain 429s by address, to requests of all kinds: the run is slower, and nothing fails.
#[test]
fn the_limit_of_requests_costs_time_only() {
    let stage = Stage::new(24, |config| (config.abuse_after, config.abuse_seconds) = (Some(20), Some(2)));
    let run = stage.mirror(&stage.list(&[]), &["--output", "json"]).run().ok();
    assert_eq!((stage.arrived(), &run.json()["summary"]["failed"]), (24, &json!(0)));
    // Of each image manifest, config and layer: more than 72 requests, at 20 in 2 s.
    assert!(run.took >= Duration::from_secs(4), "{:?}", run.took);
    let refused = stage.refused();
    assert!((1..=150).contains(&refused), "{refused}");
}

/// To several destinations by one run: a failing one keeps nothing from the other.
#[test]
fn several_destinations() {
    let stage = Stage::new(4, |config| config.anonymous_pulls = Some(100));
    let second = Registry::start();
    let to = second.addr().to_string();
    let list = stage.list(&[]);
    let run = stage.mirror(&list, &["--to", &format!("{to}/hub"), "--output", "json"]).run().ok();
    assert_eq!((&run.json()["summary"]["copied"], stage.arrived()), (&json!(8), 4));
    for (nth, image) in stage.images.iter().enumerate() {
        image.assert_at(second.addr(), &format!("hub/acme/{nth}"), "v1");
    }
    // A manifest is read once for all of its destinations.
    assert_eq!((stage.hub.hub().pulls().len(), &run.json()["summary"]["pulls"]), (4, &json!(4)));

    let run = stage.mirror(&list, &["--to", "127.0.0.1:1", "--output", "json"]).run().exits(3);
    let document = run.json();
    assert_eq!((images(&document, "unchanged").len(), images(&document, "failed").len()), (4, 4), "{document}");
}

/// What a run would spend, against what is left of it.
#[test]
fn a_dry_run_tells_the_pulls_against_what_is_left() {
    let stage = Stage::new(4, |config| config.anonymous_pulls = Some(100));
    let run = stage.mirror(&stage.list(&[]), &["--dry-run"]).run().ok();
    assert_eq!((stage.arrived(), stage.hub.hub().pulls().len()), (0, 4));
    let told: Vec<&str> = run.stdout.lines().rev().take(2).collect();
    assert_eq!(told[0], "docker.io: 4 pulls counted; 96 of 100 left in 6 h");
    assert!(told[1].starts_with("a run would make about ") && told[1].contains("and cost 4 pulls"), "{}", told[1]);
}

/// A reserve as large as the limit leaves nothing to wait for.
#[test]
fn a_reserve_of_the_whole_limit_fails_at_once() {
    let stage = Stage::new(2, |config| config.anonymous_pulls = Some(20));
    let run = stage.mirror(&stage.list(&[]), &["--reserve-pulls", "20"]).run().exits(1);
    let told = "docker.io allows 20 pulls in 6 h, which is not more than the reserve of 20";
    assert!(run.stdout.contains(told) && run.stdout.contains("--reserve-pulls"), "{}", run.stdout);
    assert_eq!(stage.hub.hub().pulls().len(), 0);
}

/// Tier, rates and share are those by which the registries are asked.
#[test]
fn limits_reach_the_registries() {
    let stage = Stage::new(1, |config| config.anonymous_pulls = None);
    let source = "docker.io/acme/0".parse().expect("a repository");
    let shards = (1..=900).map(|number| format!("{number}/900"));
    let holds = |text: &String| {
        let asked: transload::mirror::shard::ShardSpec = text.parse().expect("a shard");
        asked.settle(None).expect("a shard").contains(&source)
    };
    let shard = shards.into_iter().find(holds).expect("one has it");
    let (list, shared) = (stage.list(&[]), ["--shard", shard.as_str(), "--force", "-v"]);
    for (flags, told) in [
        // Nine tenths of 2,000 writes a minute, by 900.
        (["--acr-sku", "premium"], "myregistry.azurecr.io: at most 2 writes a minute: waiting"),
        (["--acr-sku", "standard"], "myregistry.azurecr.io: at most 1 writes a minute: waiting"),
        (["--rate", "docker.io=1800"], "docker.io: at most 2 requests a minute: waiting"),
    ] {
        let running = stage.mirror(&list, &[&flags[..], &shared[..]].concat()).spawn();
        running.stderr.wait_line(told, Duration::from_secs(50));
    }
}
