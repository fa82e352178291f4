//! What `transload mirror` reads at a source that counts it, and says of it; platforms, referrers and pins of a list.

use std::time::Duration;

use serde_json::{Value, json};
use transload::copy::{Engine, Mode, NoObserver, Options};
use transload::reference::Target;
use transload::registry::Registries;

use super::copy_plain::serve;
use super::limits_hub::options;
use super::mirror_limits::{hub, hub_to_acr};
use super::mirror_run::mirror;
use super::support::images::{Document, OCI_INDEX};
use super::support::process::RUN_TIMEOUT;
use super::support::{Fault, Front, Image, Process, Registry, Rule, Run, SeenRequest, TempDir, Tool, http};

/// Docker Hub, and ACR as it takes sparse indexes: with a registry of our own behind it.
struct Stage {
    hub: Front,
    acr: Front,
    behind: Registry,
    dir: TempDir,
    _served: Process,
}

impl Stage {
    fn new() -> Self {
        let (behind, dir) = (Registry::start(), TempDir::new());
        let (served, at) = serve(&dir.join("images"));
        let hub = Front::before(behind.addr()).hub(|_| {}).tls().start();
        let acr = Front::before(at.parse().expect("an address")).acr(|_| {}).tls().start();
        Self { hub, acr, behind, dir, _served: served }
    }

    fn mirror(&self, list: &str) -> Run {
        let list = self.dir.write("list.yaml", list);
        hub_to_acr(&self.hub, &self.acr, &self.dir, &list).args(&["--output", "json"]).run()
    }

    /// Tokens that were given, at the Hub and at ACR, and pulls that the Hub counted.
    fn given(&self) -> [usize; 3] {
        let tokens = |front: &Front, path: &str| front.log().iter().filter(|seen| seen.path.contains(path)).count();
        [tokens(&self.hub, "/token"), tokens(&self.acr, "/oauth2/token"), self.hub.hub().pulls().len()]
    }
}

/// What a run says of pulls: in all, and of the Hub.
fn pulls(run: &Run) -> [Value; 2] {
    [run.json()["summary"]["pulls"].clone(), hub(run)["pulls"].clone()]
}

/// Some platforms of an image, or its signatures, cost no more than all of it: what is there is read there.
#[test]
fn nothing_to_do_costs_no_pull_whatever_is_asked_for() {
    let stage = Stage::new();
    let (app, tool, other) = (Image::index(1, 3, &[3000]), Image::single(2, &[3000]), Image::index(3, 2, &[3000]));
    for (image, name) in [(&app, "acme/app"), (&tool, "acme/tool"), (&other, "acme/other")] {
        image.push(stage.behind.addr(), name, "v1");
        Image::signature(image).push(stage.behind.addr(), name, &image.cosign_tag());
    }
    app.push(stage.behind.addr(), "acme/app", "v2");
    let list = |platforms: &str| {
        let entries = ["acme/app, tags: [v1, v2]", "acme/tool, tags: [v1]"];
        let some = entries.map(|entry| format!("  - {{source: {entry}, platforms: [{platforms}], referrers: true}}\n"));
        format!("images:\n{}  - {{source: acme/other, tags: [v1], referrers: true}}\n", some.concat())
    };
    let run = stage.mirror(&list("linux/amd64")).ok();
    // Of `app` the index by each tag and one child, `tool`, `other` with two children, three signatures.
    assert_eq!((stage.given()[2], pulls(&run)), (2 + 1 + 1 + 3 + 3, [json!(10), json!(10)]));

    [&stage.hub, &stage.acr].iter().for_each(|front| front.reset_log());
    let run = stage.mirror(&list("linux/amd64")).ok();
    let (document, asked) = (run.json(), stage.hub.log().len() + stage.acr.log().len());
    assert_eq!((&document["summary"]["unchanged"], &document["summary"]["requests"]), (&json!(4), &json!(asked)));
    let [hub, acr, spent] = stage.given();
    assert_eq!((spent, pulls(&run)), (10, [json!(0), json!(0)]));
    assert!(hub <= 3 && acr <= 3, "{hub} and {acr} tokens for three repositories");
    for front in [&stage.hub, &stage.acr] {
        let tags = |seen: &&SeenRequest| ["/v1", "/v2"].iter().any(|tag| seen.path.ends_with(tag));
        let (log, such) = (front.log(), |seen: &&SeenRequest| seen.method == "HEAD" && seen.status != Some(401));
        assert_eq!(log.iter().filter(such).filter(tags).count(), 4, "one look at each tag");
    }
    assert_eq!(stage.hub.log().iter().filter(|seen| seen.method == "GET" && seen.status == Some(200)).count(), hub);
    // The children of `app` are looked for once for both of its tags.
    assert_eq!(stage.acr.count("HEAD", &format!("/acme/app/manifests/{}", app.manifests[0].digest)), 1);

    // One more platform costs its own manifest, and nothing besides.
    let run = stage.mirror(&list("linux/amd64, linux/arm/v5")).ok();
    assert_eq!((stage.given()[2], pulls(&run)), (11, [json!(1), json!(1)]));
}

/// What Docker Hub counted for images that then failed is told too.
#[test]
fn pulls_of_failed_images_are_told() {
    let stage = Stage::new();
    stage.acr.add(Rule::on("POST", "/blobs/uploads/", Fault::status(403)));
    let image = |nth: u64| Image::index(10 + nth, 3, &[3000]);
    (0..4).for_each(|nth| image(nth).push(stage.behind.addr(), &format!("acme/{nth}"), "v1"));
    let list: Vec<String> = (0..4).map(|nth| format!("acme/{nth}:v1\n")).collect();
    let run = stage.mirror(&list.concat()).exits(1);
    assert_eq!((stage.given()[2], pulls(&run)[1].clone()), (16, json!(16)));
}

/// An image that two sources have is brought by one of them while the other one is held back, as Docker Hub is
/// without pulls.
#[tokio::test]
async fn a_source_that_is_held_back_holds_up_no_other() {
    let (behind, to) = (Registry::start(), Registry::start());
    let image = Image::index(20, 2, &[3000]);
    image.push(behind.addr(), "app", "v1");
    let child = &image.manifests[0].digest;
    let held = Front::before(behind.addr()).rule(Rule::on("GET", child, Fault::Stall)).start();
    let registries = Registries::new(options(&held));
    let repository = |at: String| registries.repository(&at.parse().expect("a repository")).expect("a registry");
    let (engine, tag) = (
        Engine::new(2, std::sync::Arc::new(NoObserver)).with_mode(Mode::List),
        Target::Tag("v1".parse().expect("a tag")),
    );
    let options = Options::default();
    let (first, there) = (repository(format!("{}/app", held.host())), repository(format!("{}/one", to.addr())));
    let other = async {
        while held.count("GET", child) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for name in ["one", "two"] {
            let (second, at) =
                (repository(format!("{}/app", behind.addr())), repository(format!("{}/{name}", to.addr())));
            engine.copy(&second, &tag, &at, &tag, &options).await.expect("nothing holds it back");
        }
    };
    tokio::select! {
        ended = engine.copy(&first, &tag, &there, &tag, &options) => panic!("it's held back: {ended:?}"),
        in_time = tokio::time::timeout(RUN_TIMEOUT, other) => in_time.expect("waits for nobody"),
    }
    ["one", "two"].iter().for_each(|name| image.assert_at(to.addr(), name, "v1"));
}

/// An index may refer to an image and hold it too. And of an image's tags one brings what refers to it.
#[test]
fn an_index_may_hold_its_own_subject() {
    let (source, behind, dir) = (Registry::start(), Registry::start(), TempDir::new());
    let image = Image::index(30, 2, &[3000]);
    let mut about = Image::index_of(vec![(image.clone(), json!({}))], false);
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX, "artifactType": "application/vnd.example",
        "manifests": [image.descriptor()], "subject": image.descriptor(),
    });
    *about.manifests.last_mut().expect("the index") = Document::new(OCI_INDEX, &index);
    about.push(source.addr(), "app", "about");
    Image::referrers(std::slice::from_ref(&about)).push(source.addr(), "app", &image.referrers_tag());
    ["v1", "v2", "v3", "v4"].iter().for_each(|tag| image.push(source.addr(), "app", tag));
    source.reset_log();
    // Long enough for all of the tags to be there at once.
    let slow = Rule::on("PUT", about.digest(), Fault::Delay(Duration::from_millis(300)));
    let to = Front::before(behind.addr()).rule(slow).start();
    let list =
        dir.write("list.yaml", format!("images: [{{source: {}/app, glob: 'v*', referrers: true}}]", source.addr()));
    let run = mirror(&list, to.host(), &["--output", "json"]).ok();
    about.assert_at(behind.addr(), "app", about.digest());
    let document = run.json();
    assert!(document["images"].as_array().expect("images").iter().all(|image| image["referrers"] == 1), "{document}");
    assert_eq!((to.count("PUT", about.digest()), source.count("GET", about.digest())), (1, 1));

    let from = format!("{}/app:v1", source.addr());
    Tool::transload().args(&["copy", &from, &format!("{}/copied", to.host()), "--referrers"]).run().ok();
    about.assert_at(behind.addr(), "copied", about.digest());
}

#[test]
fn platforms_referrers_and_pins_are_as_the_list_says() {
    let (source, dir) = (Registry::start(), TempDir::new());
    let (_served, at) = serve(&dir.join("images"));
    let to = at.parse().expect("an address");
    let (multi, signed, moved) = (Image::index(40, 3, &[3000]), Image::single(41, &[3000]), Image::single(42, &[3000]));
    let (old, bare, sbom) =
        (Image::single(43, &[3000]), Image::single(44, &[3000]), Image::artifact(45, "x/y", Some(&signed)));
    multi.push(source.addr(), "multi", "v1");
    signed.push(source.addr(), "signed", "v1");
    Image::referrers(std::slice::from_ref(&sbom)).push(source.addr(), "signed", &signed.referrers_tag());
    old.push(source.addr(), "pinned", "v1");
    moved.push(source.addr(), "pinned", "v1");
    bare.push(source.addr(), "pinned", "gone");
    let from = |name: &str| format!("source: {}/{name}", source.addr());
    let list = format!(
        "images:\n  - {{{}, tags: [v1], platforms: [linux/arm/v5]}}\n  - {{{}, tags: [v1], referrers: true}}\n  \
         - {{{}, tags: ['v1@{}', '{}']}}\n",
        from("multi"),
        from("signed"),
        from("pinned"),
        old.digest(),
        bare.digest()
    );
    let list = dir.write("list.yaml", list);
    for _ in 0..2 {
        mirror(&list, &at, &[]).ok();
        let status = |name: &str, what: &str| http::get(to, &format!("/v2/{name}/manifests/{what}")).status;
        assert_eq!(http::get(to, "/v2/multi/manifests/v1").expect(200).body, multi.bytes());
        let children = multi.manifests[..3].iter().map(|child| status("multi", &child.digest));
        assert_eq!(children.collect::<Vec<_>>(), [404, 200, 404]);
        sbom.assert_at(to, "signed", sbom.digest());
        let listed = http::get(to, &format!("/v2/signed/referrers/{}", signed.digest())).expect(200).json();
        assert_eq!(listed["manifests"][0]["digest"], sbom.digest());
        old.assert_at(to, "pinned", "v1");
        bare.assert_at(to, "pinned", bare.digest());
        assert_eq!([status("pinned", moved.digest()), status("pinned", "gone")], [404, 404]);
    }
}
