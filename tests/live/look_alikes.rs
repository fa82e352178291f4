//! The same code against the look-alikes of Docker Hub and ACR, on loopback and by their real names.

use transload::demo::persona::{AcrConfig, HubConfig};

use crate::facts::CHECKS;
use crate::live::{Report, Seen};
use crate::settings::{Account, Hub, Network, Settings};
use crate::support::{Front, Image, Registry};

/// Docker Hub with `hello-world`, and an ACR that is in use already.
struct Stage {
    hub: Front,
    acr: Front,
    behind_acr: Registry,
    image: Image,
    _behind_hub: Registry,
}

impl Stage {
    fn new(
        hub: impl FnOnce(&mut HubConfig) + 'static,
        acr: impl FnOnce(&mut AcrConfig) + 'static,
        hub_names: &[&str],
    ) -> Self {
        let (behind_hub, behind_acr) = (Registry::start(), Registry::start());
        let image = Image::tiny(7);
        image.push(behind_hub.addr(), "library/hello-world", "latest");
        image.push(behind_hub.addr(), "hello-world", "latest");
        image.push(behind_acr.addr(), "app", "v1");
        image.push(behind_acr.addr(), "live/earlier/hello-world", "latest");
        let front = Front::before(behind_hub.addr());
        let hub = match hub_names {
            [] => front.hub(hub).tls().start(),
            names => names.iter().fold(front, |front, name| front.name(name)).tls().start(),
        };
        let acr = Front::before(behind_acr.addr()).acr(acr).tls().start();
        Self { hub, acr, behind_acr, image, _behind_hub: behind_hub }
    }

    fn settings(&self, hub: Hub) -> Settings {
        let mut network = Network::default();
        for flags in [self.hub.flags(), self.acr.flags()] {
            for pair in flags.chunks(2) {
                match pair[0].as_str() {
                    "--ca-file" => network.ca_files.push(pair[1].clone()),
                    _ => {
                        let (name, address) = pair[1].split_once('=').expect("NAME=ADDRESS");
                        network.resolve.push((name.to_owned(), address.parse().expect("an address")));
                    }
                }
            }
        }
        Settings {
            acr: self.acr.host().to_owned(),
            acr_account: account("admin", "admin-secret"),
            prefix: "live".to_owned(),
            hub,
            network,
        }
    }

    /// What was there before is there still, nothing of the run is left, and each write was below its name.
    fn assert_safe(&self, report: &Report) {
        self.image.assert_at(self.behind_acr.addr(), "app", "v1");
        self.image.assert_at(self.behind_acr.addr(), "live/earlier/hello-world", "latest");
        let run = report.lines[0].split_once("myregistry.azurecr.io/").expect("the name of the run").1;
        assert!(run.starts_with("live/run-") && run.len() == "live/run-".len() + 16, "{run}");
        for seen in self.acr.log() {
            let own = seen.path.starts_with(&format!("/v2/{run}/")) || seen.path.starts_with("/oauth2/");
            assert!(own || matches!(&*seen.method, "GET" | "HEAD"), "{} {}", seen.method, seen.path);
        }
        let hello_world = format!("/v2/{run}/hello-world/manifests/latest");
        crate::support::http::get(self.behind_acr.addr(), &hello_world).expect(404);
        let kept: Vec<&String> = report.lines.iter().filter(|line| line.starts_with("not removed")).collect();
        assert!(kept.is_empty(), "{kept:?}");
    }
}

fn account(user: &str, password: &str) -> Account {
    Account { user: user.to_owned(), password: password.to_owned() }
}

/// The ids of the facts that were seen so.
fn ids(report: &Report, wanted: Seen) -> Vec<&'static str> {
    let seen = |id: &&str| report.facts.get(id) == Some(&wanted);
    CHECKS.iter().map(|(id, _)| *id).filter(seen).collect()
}

/// The look-alikes behave as the page says, and the check sees that. No secret is in the report.
#[test]
fn the_look_alikes_behave_as_the_page_says() {
    let stage = Stage::new(|hub| hub.account_pulls = Some(200), |_| {}, &[]);
    let report = crate::run(stage.settings(Hub::Account(account("alice", "wonderland"))));
    assert_eq!(ids(&report, Seen::AsWritten), CHECKS.map(|(id, _)| id), "{:#?}", report.lines);
    stage.assert_safe(&report);
    let told = report.lines.join("\n");
    for secret in ["admin-secret", "YWRtaW46YWRtaW4tc2VjcmV0", "wonderland", "YWxpY2U6d29uZGVybGFuZA==", "eyJ", "sig="]
    {
        assert!(!told.contains(secret), "{secret} in {told}");
    }
    let lines = ["copied: sha256:", "copied again, unchanged: ", "pulled through a proxy for the second time: "];
    for line in lines {
        assert!(told.contains(&format!("\n{line}")), "no {line:?} in {told}");
    }
}

/// Services that behave otherwise: the check names each fact, and ends well.
#[test]
fn what_differs_from_the_page_is_reported() {
    let hub = |hub: &mut HubConfig| {
        hub.token_seconds = 60;
        hub.link_seconds = 7200;
        // Anonymous pulls without a limit.
        hub.anonymous_pulls = None;
    };
    let acr = |acr: &mut AcrConfig| {
        acr.access_seconds = 600;
        acr.refuse_streamed = false;
        acr.body_limit = 64_000_000;
        acr.refuse_mounts = true;
        acr.link_seconds = 60;
        acr.referrers = false;
    };
    let stage = Stage::new(hub, acr, &[]);
    let report = crate::run(stage.settings(Hub::Anonymous));
    let different = [
        "hub-token-lifetime",
        "hub-link-lifetime",
        "acr-token-lifetime",
        "acr-streamed-chunk",
        "acr-body-limit",
        "acr-mount",
        "acr-blob-link",
        "acr-referrers",
    ];
    assert_eq!(ids(&report, Seen::Different), different, "{:#?}", report.lines);
    assert_eq!(ids(&report, Seen::Unknown), ["hub-head-is-free", "hub-index-is-a-pull"], "{:#?}", report.lines);
    stage.assert_safe(&report);
}

/// Everything fails, each failure is named, and none of them has the password.
#[test]
fn a_wrong_password_is_not_printed() {
    let stage = Stage::new(|_| {}, |_| {}, &[]);
    let mut settings = stage.settings(Hub::Anonymous);
    settings.acr_account = account("admin", "hunter2");
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| crate::run(settings))).err();
    let text = panic.and_then(|panic| panic.downcast_ref::<String>().cloned()).expect("a message");
    let failed: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once(" failed: ")?.0)).collect();
    let acr = CHECKS.map(|(id, _)| id).into_iter().filter(|id| id.starts_with("acr-") && *id != "acr-basic");
    assert_eq!(failed, ["copy and pull"].into_iter().chain(acr).collect::<Vec<_>>(), "{text}");
    assert!(text.contains("gives no token: status 401"), "{text}");
    assert!(!text.contains("hunter2") && !text.contains("YWRtaW46aHVudGVyMg=="), "{text}");
}

/// Without Docker Hub the image comes from Microsoft's registry.
#[test]
fn docker_hub_is_optional() {
    let stage = Stage::new(|_| {}, |_| {}, &["mcr.microsoft.com"]);
    let report = crate::run(stage.settings(Hub::Unused));
    let hub = CHECKS.map(|(id, _)| id).into_iter().filter(|id| id.starts_with("hub-"));
    assert_eq!(ids(&report, Seen::Unknown), hub.collect::<Vec<_>>());
    assert_eq!(ids(&report, Seen::Different), [""; 0], "{:#?}", report.lines);
    stage.assert_safe(&report);
}
