//! What pruning asks of registries: a real one, which deletes by digest only, and a look-alike of ACR.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use transload::credentials::{Credential, Credentials};
use transload::demo::persona::{Account, Grant};
use transload::mirror::prune::{KeepSet, Options, Plan, execute, plan};
use transload::reference::{Repository, Target};
use transload::registry;
use transload::registry::Registries;

use super::support::{Fault, Front, Image, Registry, Rule, TempDir, Tool, http};

fn ago(days: i64) -> String {
    (Timestamp::now() - SignedDuration::from_hours(24 * days)).to_string()
}

fn claims(repository: &str, tags: &[&str]) -> KeepSet {
    let repository: Repository = repository.parse().expect("a repository");
    let mut claims = KeepSet::default();
    tags.iter().for_each(|tag| claims.keep(&repository, &Target::Tag(tag.parse().expect("a tag"))));
    claims
}

async fn prune(registries: &Registries, claims: &KeepSet, options: &Options) -> Plan {
    let open = |repository: &Repository| registries.repository(repository);
    let mut plan = plan(claims, open, options, Timestamp::now()).await;
    execute(&mut plan, open, options).await;
    plan
}

fn plain() -> Registries {
    Registries::new(registry::Options::default())
}

/// Registries that know the look-alike and this user of it.
fn knowing(acr: &Front, user: &str, password: &str) -> Registries {
    let resolve = HashMap::from([(acr.host().to_owned(), acr.addr())]);
    let credentials = Credentials::fixed(acr.host(), Credential::basic(user, password)).expect("a registry");
    Registries::new(registry::Options {
        credentials,
        trust: Arc::new(acr.trust()),
        resolve: Arc::new(resolve),
        ..Default::default()
    })
}

fn tags(registry: &Registry, repository: &str) -> Vec<String> {
    let listed = http::get(registry.addr(), &format!("/v2/{repository}/tags/list")).expect(200).json();
    let mut tags: Vec<String> = serde_json::from_value(listed["tags"].clone()).unwrap_or_default();
    tags.sort();
    tags
}

/// distribution 2.8: 400 DIGEST_INVALID to a tag, so nothing goes without consent; then by digest, but for
/// what a tag that stays is or holds. Ages are those of the images, of an index the youngest's.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_deletes_by_tag() {
    let registry = Registry::start();
    let push = |image: &Image, tag: &str| image.push(registry.addr(), "a/b", tag);
    let (kept, old) = (Image::made(1, &ago(90)), Image::made(2, &ago(60)));
    push(&kept, "kept");
    push(&kept, "kept-too");
    push(&old, "old");
    push(&Image::signature(&old), &old.cosign_tag());
    push(&Image::signature(&kept), &kept.cosign_tag());
    push(&Image::made(3, &ago(2)), "young");
    push(&Image::made(4, "1980-01-01T00:00:01Z"), "reproducible");
    push(&Image::single(5, &[100]), "silent");
    let child = |image: Image| (image, json!({"platform": {"os": "linux", "architecture": "amd64"}}));
    let mixed = Image::index_of(vec![child(Image::made(6, &ago(60))), child(Image::made(7, &ago(1)))], false);
    push(&mixed, "mixed");
    let part = Image::made(8, &ago(60));
    push(&part, "part");
    push(&Image::index_of(vec![child(part)], false), "whole");
    let before = tags(&registry, "a/b");

    let held = claims(&format!("{}/a/b", registry.addr()), &["kept", "whole"]);
    let plan = prune(&plain(), &held, &Options::default()).await;
    let going: Vec<&str> = plan.repositories[0].deletions.iter().map(|going| going.tag.as_str()).collect();
    assert_eq!(going, ["kept-too", "old", "part", old.cosign_tag().as_str()]);
    assert_eq!((plan.repositories[0].too_young, plan.repositories[0].tags), (4, 9));
    let error = plan.repositories[0].error.as_ref().expect("refused");
    assert!(error.message.contains("cannot delete a tag by itself"), "{error:?}");
    assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("--prune-manifests")), "{error:?}");
    assert_eq!(tags(&registry, "a/b"), before);

    let plan = prune(&plain(), &held, &Options { manifests: true, ..Options::default() }).await;
    assert!(!plan.failed(), "{plan:?}");
    let mut left = before;
    left.retain(|tag| *tag != "old" && *tag != old.cosign_tag());
    assert_eq!(tags(&registry, "a/b"), left);
    let stayed: Vec<_> =
        plan.repositories[0].deletions.iter().filter_map(|going| going.kept_reason.as_deref()).collect();
    assert_eq!(stayed, ["its manifest is needed by tag \"kept\"", "its manifest is needed by tag \"whole\""]);
    kept.assert_at(registry.addr(), "a/b", "kept");
}

/// The distribution spec's way, where a registry takes it; and what is refused ends that repository's turn.
#[tokio::test(flavor = "multi_thread")]
async fn tags_are_deleted_by_the_spec() {
    let registry = Registry::start();
    for (tag, seed) in [("keep", 1), ("x", 2), ("y", 3)] {
        Image::made(seed, &ago(60)).push(registry.addr(), "a", tag);
    }
    let front = Front::before(registry.addr())
        .rule(Rule::on("DELETE", "/v2/a/manifests/x", Fault::status(202)))
        .rule(Rule::on("DELETE", "/v2/a/manifests/y", Fault::status(403)))
        .start();
    let held = claims(&format!("{}/a", front.host()), &["keep"]);
    let plan = prune(&plain(), &held, &Options::default()).await;
    let part = &plan.repositories[0];
    assert_eq!(part.deletions.iter().map(|going| going.deleted).collect::<Vec<_>>(), [true, false]);
    let error = part.error.as_ref().expect("refused");
    assert!(error.message.starts_with("destination: cannot delete tag"), "{error:?}");
    assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("right to delete")), "{error:?}");
    assert_eq!(front.count("DELETE", ""), 2);
}

/// No repository that the list names is there yet: nothing to do, no error.
#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_not_there_has_nothing_to_prune() {
    let registry = Registry::start();
    let held = claims(&format!("{}/new", registry.addr()), &["1"]);
    let plan = prune(&plain(), &held, &Options::default()).await;
    assert!(!plan.failed() && plan.planned_deletions() == 0, "{plan:?}");
}

/// ACR by its own API: the tag goes and the manifest with its other tags stays; its times count, not the
/// image's; a locked tag stays.
#[tokio::test(flavor = "multi_thread")]
async fn acr_deletes_a_tag_alone() {
    let behind = Registry::start();
    let image = Image::made(1, &ago(1));
    for tag in ["keep", "same", "locked"] {
        image.push(behind.addr(), "hub/app", tag);
    }
    let rights = vec![Grant::new("hub/*", "pull,push,delete,metadata_read")];
    let acr = Front::before(behind.addr())
        .acr(|acr| {
            acr.abac = true;
            acr.tag_hours = 24 * 8;
            acr.locked_tags = vec!["locked".into()];
            acr.accounts = vec![Account::new("pruner", "secret", rights)];
        })
        .tls()
        .start();
    let held = claims(&format!("{}/hub/app", acr.host()), &["keep"]);
    let plan = prune(&knowing(&acr, "pruner", "secret"), &held, &Options::default()).await;
    assert!(!plan.failed(), "{plan:?}");
    assert_eq!(plan.repositories[0].deletions.iter().map(|going| going.tag.as_str()).collect::<Vec<_>>(), ["same"]);
    assert_eq!((plan.deletions(), plan.repositories[0].too_young), (1, 1));
    assert_eq!(acr.count("DELETE", "/acr/v1/hub/app/_tags/same"), 1);
    assert_eq!(acr.count("DELETE", "/v2/"), 0, "no manifest");
    let again = prune(
        &knowing(&acr, "pruner", "secret"),
        &held,
        &Options { older_than: std::time::Duration::ZERO, ..Options::default() },
    )
    .await;
    let error = again.repositories[0].error.as_ref().expect("the locked one");
    assert!(error.message.contains("The operation is disallowed"), "{error:?}");
}

/// A tag written lately is young, however old its image is.
#[tokio::test(flavor = "multi_thread")]
async fn acr_tells_when_a_tag_was_written() {
    let behind = Registry::start();
    Image::made(1, &ago(500)).push(behind.addr(), "app", "lately");
    let acr = Front::before(behind.addr()).acr(|acr| acr.tag_hours = 24 * 6).tls().start();
    let held = claims(&format!("{}/app", acr.host()), &["keep"]);
    let plan = prune(&knowing(&acr, "admin", "admin-secret"), &held, &Options::default()).await;
    assert_eq!((plan.planned_deletions(), plan.repositories[0].too_young, plan.failed()), (0, 1, false), "{plan:?}");
}

/// Who may push needn't be one who may delete: said in words, and nothing is changed.
#[tokio::test(flavor = "multi_thread")]
async fn acr_without_the_right_to_delete() {
    let behind = Registry::start();
    Image::made(1, &ago(60)).push(behind.addr(), "app", "old");
    let pusher = vec![Grant::new("*", "pull,push,metadata_read")];
    let acr = Front::before(behind.addr())
        .acr(|acr| {
            acr.tag_hours = 24 * 60;
            acr.accounts = vec![Account::new("pusher", "secret", pusher)];
        })
        .tls()
        .start();
    let held = claims(&format!("{}/app", acr.host()), &["keep"]);
    let plan = prune(&knowing(&acr, "pusher", "secret"), &held, &Options::default()).await;
    let error = plan.repositories[0].error.as_ref().expect("denied");
    assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("AcrDelete")), "{error:?}");
    assert_eq!((plan.deletions(), plan.planned_deletions()), (0, 1));
}

/// The command: says what would go, removes it when told to, and spares what is in doubt.
#[test]
fn the_command_prunes_when_told_to() {
    let (source, target) = (Registry::start(), Registry::start());
    Image::made(1, &ago(60)).push(source.addr(), "app", "keep");
    for (tag, seed) in [("old", 2), ("older", 3)] {
        Image::made(seed, &ago(60)).push(target.addr(), "app", tag);
        Image::made(seed, &ago(60)).push(target.addr(), "other", tag);
    }
    let home = TempDir::new();
    let mirror = |lines: &str, more: &[&str]| {
        let lines = lines.replace("SRC", &source.addr().to_string());
        let list = home.write("list", lines);
        Tool::transload().args(&["mirror", &list, "--to", &target.addr().to_string()]).args(more).run()
    };
    let run = mirror("SRC/app:keep\n", &["--prune"]).ok();
    assert!(run.stdout.contains(&format!("obsolete   {}/app:old\n", target.addr())), "{}", run.stdout);
    assert!(run.stdout.contains("2 obsolete tags, which --prune=delete removes"), "{}", run.stdout);
    let run = mirror("SRC/app:keep\n", &["--prune=delete", "--dry-run"]).ok();
    assert!(run.stdout.contains("which --prune=delete removes"), "{}", run.stdout);
    let run = mirror("SRC/app:keep\nSRC/app:gone\n", &["--prune=delete", "--prune-manifests"]).exits(3);
    assert!(run.stdout.contains("spared     ") && run.stdout.contains("app:gone failed"), "{}", run.stdout);
    let run = mirror("SRC/app:keep\n", &["--prune=delete", "--prune-max", "1"]).exits(3);
    assert!(run.stdout.contains("refused    2 tags would go, and --prune-max allows 1"), "{}", run.stdout);
    let run = mirror("SRC/app:keep\n", &["--prune=delete"]).exits(3);
    assert!(run.stdout.contains("by --prune-manifests"), "{}", run.stdout);
    assert_eq!(tags(&target, "app"), ["keep", "old", "older"], "nothing was removed so far");
    assert_eq!(target.count("DELETE", "sha256:"), 0);

    let run = mirror("SRC/app:keep\n", &["--prune=delete", "--prune-manifests", "--output", "json"]).ok();
    assert_eq!(tags(&target, "app"), ["keep"]);
    assert_eq!(tags(&target, "other"), ["old", "older"], "a repository that the list doesn't name");
    let part = &run.json()["prune"]["repositories"][0];
    assert_eq!(
        (&part["deletions"][0]["tag"], &part["deletions"][0]["deleted"]),
        (&json!("old"), &json!(true)),
        "{part}"
    );
    let report = home.write("report.json", "{}");
    let run = mirror("SRC/app:keep\n", &["--prune", "--retry-failed", &report]).exits(2);
    assert!(run.stderr.contains("cannot be used with"), "{}", run.stderr);
}

/// It isn't known what all the list holds in the repository: nothing of it goes, though one of its entries is whole.
#[test]
fn a_repository_whose_source_cannot_be_listed_is_spared() {
    let (source, target, home) = (Registry::start(), Registry::start(), TempDir::new());
    ["one", "two"].iter().for_each(|name| Image::made(1, &ago(60)).push(source.addr(), name, "v1"));
    Image::made(2, &ago(60)).push(target.addr(), "app", "of-two");
    let front = Front::before(source.addr()).rule(Rule::on("GET", "/v2/two/tags/list", Fault::status(403))).start();
    let (from, to) = (front.host(), target.addr());
    let list = home.write(
        "list.yaml",
        format!(
            "images:\n  - {{source: '{from}/one:v1', target: '{to}/app'}}\n  - {{source: {from}/two, glob: 'o*', target: '{to}/app'}}\n"
        ),
    );
    let flags = ["--prune=delete", "--prune-older-than", "0s", "--prune-manifests"];
    let mirror = || Tool::transload().args(&["mirror", &list]).args(&flags).run();
    let run = mirror().exits(3);
    let told = format!("spared     {to}/app: not all tags of its source are known\n");
    assert!(run.stdout.contains(&told), "{}", run.stdout);
    assert_eq!(tags(&target, "app"), ["of-two", "v1"]);
    front.clear_rules();
    mirror().ok();
    assert_eq!(tags(&target, "app"), ["v1"]);
}

/// The deadline is that of the whole run.
#[test]
fn a_deadline_ends_the_pruning_too() {
    let (source, target, home) = (Registry::start(), Registry::start(), TempDir::new());
    let keep = Image::made(1, &ago(60));
    [&source, &target].iter().for_each(|registry| keep.push(registry.addr(), "app", "keep"));
    Image::made(2, &ago(60)).push(target.addr(), "app", "old");
    let stuck = Front::before(target.addr()).rule(Rule::on("GET", "/tags/list", Fault::Stall)).start();
    let list = home.write("list", format!("{}/app:keep\n", source.addr()));
    let flags = ["--prune=delete", "--deadline", "6s", "--output", "json"];
    let run = Tool::transload().args(&["mirror", &list, "--to", stuck.host()]).args(&flags).run();
    let document = run.json();
    assert_ne!(run.code, 0, "{document}");
    let message = document["prune"]["refused"]["message"].as_str().expect("why");
    assert!(message.contains("the deadline has passed"), "{message}");
    assert_eq!(tags(&target, "app"), ["keep", "old"]);
}
