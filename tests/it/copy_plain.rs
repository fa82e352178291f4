//! `transload copy` from registry to registry and to directories, where nothing goes wrong.

use serde_json::{Value, json};

use super::support::images::OCI_INDEX;
use super::support::registry::PASSWORD;
use super::support::{Fault, Front, Image, Registry, Rule, Run, TempDir, Tool, http, skopeo, transload};

#[test]
fn every_platform_byte_for_byte_in_few_requests() {
    let (source, destination) = (Registry::start(), Registry::start());
    let tiny = Image::tiny(1);
    tiny.push(source.addr(), "library/hello-world", "latest");
    source.reset_log();
    let from = format!("{}/library/hello-world", source.addr());
    let to = format!("{}/hello", destination.addr());
    let report = copy_json(&[&from, &to]);
    let (asked, written) = (source.requests().len(), destination.requests().len());
    assert!(asked + written <= 200, "{asked} at the source and {written} at the destination");
    // HEAD of the tag, 25 manifests and 48 blobs; and each blob and manifest written in two and one.
    assert_eq!(asked, 1 + 25 + 48);
    let writes = ["POST", "PUT", "PATCH"].map(|method| destination.count(method, ""));
    assert_eq!(writes, [48, 48 + 25, 0]);
    assert_eq!(report["summary"]["requests"], json!(asked + written));
    tiny.assert_at(destination.addr(), "hello", "latest");

    // Skopeo finds every platform there, and the digests agree.
    let directory = TempDir::new();
    let (remote, local) = (format!("docker://{to}:latest"), format!("dir:{}", directory.join("out")));
    skopeo(&["copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--insecure-policy", &remote, &local])
        .ok();
    assert_eq!(directory.read("out/manifest.json").as_bytes(), tiny.bytes());
}

#[test]
fn nothing_to_do_takes_two_requests() {
    let (source, destination) = (Registry::start(), Registry::start());
    let image = Image::tiny(1);
    for registry in [&source, &destination] {
        image.push(registry.addr(), "a", "v1");
        registry.reset_log();
    }
    let run = copy(&[&format!("{}/a:v1", source.addr()), &format!("{}/a", destination.addr())]).ok();
    assert!(run.stdout.starts_with("unchanged: "), "{}", run.stdout);
    for registry in [&source, &destination] {
        assert_eq!(registry.requests(), [("HEAD".to_owned(), "/v2/a/manifests/v1".to_owned(), 200)]);
    }
}

#[test]
fn the_document_has_a_stable_shape() {
    let (source, destination) = (Registry::start(), Registry::start());
    let image = Image::index(1, 2, &[4000, 5000]);
    image.push(source.addr(), "a", "v1");
    let (from, to) = (format!("{}/a:v1", source.addr()), format!("{}/b:v2", destination.addr()));
    let mut document = copy_json(&[&from, &to]);
    let blobs: usize = image.blobs.iter().map(|blob| blob.bytes.len()).sum();
    let seconds = document["images"][0]["duration_seconds"].take();
    assert!(seconds.as_f64().is_some_and(|seconds| seconds > 0.0));
    assert!(document["summary"]["duration_seconds"].take().as_f64().is_some_and(|seconds| seconds > 0.0));
    let requests = document["summary"]["requests"].take();
    for name in [&source, &destination].map(|registry| registry.addr().to_string()) {
        let uses = document["registries"].as_array().expect("a list");
        let used = uses.iter().find(|used| used["name"] == name.as_str()).expect("both registries");
        assert!(used["requests"].as_u64() < requests.as_u64() && used["pull_limit"].is_null(), "{used}");
    }
    assert_eq!(document["schema"], 1);
    let wanted = json!([{
        "source": from, "destination": to, "status": "copied", "digest": image.digest(),
        "platforms": ["linux/amd64", "linux/arm/v5"],
        "manifests_written": 3, "manifests_present": 0, "pulls": 3,
        "blobs_uploaded": 6, "blobs_mounted": 0, "blobs_present": 0, "blobs_foreign": 0,
        "bytes_uploaded": blobs, "bytes_skipped": 0, "blobs_retried": 0, "referrers": 0, "duration_seconds": null,
    }]);
    assert_eq!(document["images"], wanted);
    let wanted = json!({
        "copied": 1, "unchanged": 0, "planned": 0, "failed": 0,
        "blobs_uploaded": 6, "blobs_mounted": 0, "blobs_present": 0, "pulls": 3, "bytes_uploaded": blobs, "bytes_skipped": 0,
        "requests": null, "duration_seconds": null,
    });
    assert_eq!(document["summary"], wanted);

    let failed = copy(&[&format!("{}/none:v1", source.addr()), &to, "--output", "json"]).exits(1);
    let entry = &failed.json()["images"][0];
    assert_eq!((&entry["status"], &entry["error"]["side"]), (&json!("failed"), &json!("source")));
    assert_eq!(entry["error"]["kind"], "not-found");
    assert!(entry["error"]["hint"].is_string() && entry["error"]["message"].is_string());
}

#[test]
fn some_platforms_with_their_attestations() {
    let source = Registry::start();
    let tiny = Image::tiny(1);
    tiny.push(source.addr(), "a", "v1");
    source.reset_log();
    let from = format!("{}/a:v1", source.addr());
    // A registry that takes a sparse index: our own.
    let directory = TempDir::new();
    let (_serving, writable) = serve(&directory.join("images"));
    let to = format!("{writable}/a:v1");
    let args = [&from, &to, "--platform", "linux/amd64,linux/arm64", "--platform", "linux/s390x"];
    let report = copy_json(&args);
    let entry = &report["images"][0];
    assert_eq!(entry["platforms"], json!(["linux/amd64", "linux/arm64/v8", "linux/s390x"]));
    assert_eq!((&entry["manifests_written"], &entry["blobs_uploaded"]), (&json!(7), &json!(12)));
    assert_eq!(source.count("GET", "/manifests/"), 7);
    // The index as it was, with the three platforms and their attestations, and nothing else.
    let index = get(&writable, "/v2/a/manifests/v1", 200);
    assert!(index.body == tiny.bytes());
    let there: Vec<bool> = tiny.manifests[..24]
        .iter()
        .map(|child| head(&writable, &format!("/v2/a/manifests/{}", child.digest)) == 200)
        .collect();
    let chosen = |nth: usize| [0, 4, 9].contains(&(nth % 12));
    assert_eq!(there, (0..24).map(chosen).collect::<Vec<_>>());

    // The second time there is nothing to move.
    source.reset_log();
    let again = copy_json(&args);
    assert_eq!(again["images"][0]["status"], "unchanged");
    assert_eq!((&again["images"][0]["digest"], &again["summary"]["pulls"]), (&json!(tiny.digest()), &json!(0)));
    let asked: Vec<_> = source.requests().into_iter().map(|(method, path, _)| (method, path)).collect();
    assert_eq!(asked, [("HEAD".to_owned(), "/v2/a/manifests/v1".to_owned())]);
    // What is asked for besides is read, and what was removed: the index is known.
    let more = copy_json(&[&from, &to, "--platform", "linux/amd64,linux/386"]);
    assert_eq!((&more["images"][0]["status"], &more["summary"]["pulls"]), (&json!("copied"), &json!(2)));
    assert_eq!(head(&writable, &format!("/v2/a/manifests/{}", tiny.manifests[5].digest)), 200);
    let forced = copy_json(&[&from, &to, "--platform", "linux/amd64", "--force"]);
    assert_eq!((&forced["images"][0]["status"], &forced["summary"]["pulls"]), (&json!("copied"), &json!(3)));
}

#[test]
fn a_registry_without_sparse_indexes_gets_a_hint_and_one_child() {
    let (source, destination) = (Registry::start(), Registry::start());
    let tiny = Image::tiny(1);
    tiny.push(source.addr(), "a", "v1");
    let (from, to) = (format!("{}/a:v1", source.addr()), format!("{}/a:v1", destination.addr()));
    let run = copy(&[&from, &to, "--platform", "linux/amd64"]).exits(1);
    assert!(run.stderr.contains("error: destination: cannot write manifest"), "{}", run.stderr);
    assert!(run.stderr.contains("\nhint: ") && run.stderr.contains("--flatten"), "{}", run.stderr);
    assert_eq!(head(&destination.addr().to_string(), "/v2/a/manifests/v1"), 404, "what failed leaves no tag");

    copy(&[&from, &to, "--platform", "linux/amd64", "--flatten"]).ok();
    let amd64 = &tiny.manifests[0];
    assert!(get(&destination.addr().to_string(), "/v2/a/manifests/v1", 200).body == amd64.bytes);
    let again = copy_json(&[&from, &to, "--platform", "linux/amd64", "--flatten"]);
    assert_eq!((&again["images"][0]["status"], &again["summary"]["pulls"]), (&json!("unchanged"), &json!(1)));

    let absent = copy(&[&from, &to, "--platform", "linux/sparc"]).exits(1);
    assert!(absent.stderr.contains(": the image has no platform linux/sparc"), "{}", absent.stderr);
    assert!(absent.stderr.contains("hint: it has linux/amd64, linux/arm/v5"), "{}", absent.stderr);
    copy(&[&from, &to, "--platform", "linux/amd64,linux/arm64", "--flatten"]).exits(2);
    copy(&[&from, &to, "--flatten"]).exits(2);
}

#[test]
fn a_single_image_is_checked_for_its_platform() {
    let (source, destination) = (Registry::start(), Registry::start());
    Image::single(1, &[2000]).push(source.addr(), "a", "v1");
    let (from, to) = (format!("{}/a:v1", source.addr()), format!("{}/a:v1", destination.addr()));
    copy(&[&from, &to, "--platform", "linux/arm64"]).exits(1);
    copy(&[&from, &to, "--platform", "linux/amd64"]).ok();
    copy(&[&from, &to, "--platform", "linux/amd64"]).ok();
    copy(&[&from, &to, "--platform", "linux/arm64"]).exits(1);
}

#[test]
fn all_tags_of_a_repository() {
    let (source, destination) = (Registry::start(), Registry::start());
    let images =
        [("v1", Image::single(1, &[3000])), ("v2", Image::single(2, &[3000])), ("v3", Image::index(3, 2, &[2000]))];
    for (tag, image) in &images {
        image.push(source.addr(), "team/app", tag);
    }
    images[0].1.push(source.addr(), "team/app", "stable");
    let from = format!("{}/team/app", source.addr());
    let report = copy_json(&[&from, &destination.addr().to_string(), "--all-tags"]);
    assert_eq!(report["summary"]["copied"], 4);
    for (tag, image) in &images {
        image.assert_at(destination.addr(), "team/app", tag);
    }
    images[0].1.assert_at(destination.addr(), "team/app", "stable");
    let again = copy(&[&from, &destination.addr().to_string(), "--all-tags"]).ok();
    assert_eq!(again.stdout.matches("unchanged: ").count(), 4, "{}", again.stdout);
    for wrong in
        [[format!("{from}:v1"), format!("{}", destination.addr())], [from, format!("{}/x:v1", destination.addr())]]
    {
        copy(&[&wrong[0], &wrong[1], "--all-tags"]).exits(2);
    }
}

#[test]
fn all_tags_follows_pages() {
    let (source, destination) = (Registry::start(), Registry::start());
    let image = Image::single(1, &[3000]);
    for tag in ["a", "b", "c", "d", "e"] {
        image.push(source.addr(), "app", tag);
    }
    // A registry with two tags a page, whatever was asked for, and tokens of its own, as ECR's.
    let page = |tags: Value, token: Option<&'static str>, next: Option<&str>| {
        let body = json!({"name": "app", "tags": tags}).to_string();
        let next = next.map(|next| format!("/v2/app/tags/list?next_token={next}"));
        let asked = move |query: &str| query.strip_prefix("next_token=").map(str::to_owned);
        Rule::on("GET", "/tags/list", Fault::Page { body, next })
            .when(move |seen| asked(&seen.query).as_deref() == token)
    };
    let front = Front::before(source.addr())
        .rule(page(json!(["a", "b"]), None, Some("x1")))
        .rule(page(json!(["c", "d"]), Some("x1"), Some("x2")))
        .rule(page(json!(["e"]), Some("x2"), None))
        .start();
    let report = copy_json(&[&format!("{}/app", front.addr()), &destination.addr().to_string(), "--all-tags"]);
    assert_eq!(front.struck(), 3);
    assert_eq!(report["summary"]["copied"], 5);
    for tag in ["a", "b", "c", "d", "e"] {
        image.assert_at(destination.addr(), "app", tag);
    }
}

#[test]
fn destinations_are_named_in_many_ways() {
    let (source, destination) = (Registry::start(), Registry::start());
    let image = Image::single(1, &[3000]);
    for repository in ["team/app", "library/app"] {
        image.push(source.addr(), repository, "v1");
    }
    let team = format!("{}/team/app:v1", source.addr());
    let to = destination.addr();
    let digest = image.digest();
    for (from, goal, repository, tag) in [
        (team.clone(), to.to_string(), "team/app", "v1"),
        (team.clone(), format!("{to}/mirror/"), "mirror/team/app", "v1"),
        (team.clone(), format!("{to}/other"), "other", "v1"),
        (team.clone(), format!("docker://{to}/deep/er/other:v2"), "deep/er/other", "v2"),
        (format!("{}/team/app:v7@{digest}", source.addr()), to.to_string(), "team/app", "v7"),
        (format!("{}/team/app@{digest}", source.addr()), format!("{to}/only-by-digest"), "only-by-digest", digest),
    ] {
        let report = copy_json(&[&from, &goal]);
        let mark = if tag.contains(':') { '@' } else { ':' };
        assert_eq!(report["images"][0]["destination"], format!("{to}/{repository}{mark}{tag}"));
        image.assert_at(to, repository, tag);
    }
    let listed = get(&to.to_string(), "/v2/team/app/tags/list", 200).json();
    assert_eq!(listed["tags"], json!(["v1", "v7"]));
}

/// `library/` is Docker Hub's own: so this goes by a Hub look-alike.
#[test]
fn docker_hubs_library_stays_or_goes() {
    let (source, destination) = (Registry::start(), Registry::start());
    let image = Image::single(1, &[3000]);
    image.push(source.addr(), "library/hello-world", "latest");
    let front = Front::before(source.addr()).hub(|_| {}).tls().start();
    let to = destination.addr().to_string();
    for (more, repository) in [(&[][..], "library/hello-world"), (&["--strip-library"][..], "hello-world")] {
        let flags = front.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        copy(&[&["hello-world", &to], &flags[..], more].concat()).ok();
        image.assert_at(destination.addr(), repository, "latest");
    }
}

#[test]
fn several_destinations_at_once_and_partly_done() {
    let (source, one, two) = (Registry::start(), Registry::start(), Registry::start());
    let image = Image::index(1, 2, &[3000, 40_000]);
    image.push(source.addr(), "app", "v1");
    let from = format!("{}/app:v1", source.addr());
    let (first, second) = (one.addr().to_string(), format!("{}/x/app", two.addr()));
    copy(&[&from, &first, &second]).ok();
    image.assert_at(one.addr(), "app", "v1");
    image.assert_at(two.addr(), "x/app", "v1");

    // One of two can't be reached: the other is done all the same, and the exit code says so.
    let front = Front::before(two.addr()).rule(Rule::on("*", "", Fault::status(403))).start();
    let (good, bad) = (format!("{}/y", one.addr()), format!("{}/y", front.addr()));
    for more in [&[][..], &["--quiet"], &["--output", "json"]] {
        let run = copy(&[&[from.as_str(), &good, &bad][..], more].concat()).exits(3);
        let error = format!("failed: {from} to {bad}:v1: destination: cannot look for {bad}:v1: ");
        assert!(run.stderr.starts_with(&error) && run.stderr.contains("(hint: "), "{}", run.stderr);
    }
    assert!(front.struck() > 0);
    image.assert_at(one.addr(), "y", "v1");
    let document = copy(&[&from, &good, &bad, "--output", "json"]).exits(3).json();
    assert_eq!((&document["summary"]["unchanged"], &document["summary"]["failed"]), (&json!(1), &json!(1)));

    // None of them: failed.
    let run = copy(&[&from, &bad, &format!("{}/z", front.addr())]).exits(1);
    assert_eq!(run.stderr.matches("failed: ").count(), 2, "{}", run.stderr);
}

#[test]
fn exit_codes_and_their_words() {
    let (source, destination) = (Registry::start(), Registry::with_basic("mirror"));
    Image::single(1, &[3000]).push(source.addr(), "app", "v1");
    let from = format!("{}/app:v1", source.addr());
    let to = destination.addr().to_string();
    let (none, plain) = (format!("{}/app:v2", source.addr()), format!("{}/other", source.addr()));
    for (args, code, error, hint) in [
        (vec![from.as_str()], 2, "there is no destination", "name one behind the source"),
        (vec!["Upper", &to], 2, "\"Upper\" is not an image reference", "lower case"),
        (vec![&from, "no-registry"], 2, "names no registry", "myregistry.azurecr.io"),
        (vec![&none, &plain], 1, ": there is no tag \"v2\"", "check the name and the tag"),
        (vec![&from, &to], 1, "destination: cannot look for", "transload login"),
    ] {
        let run = copy(&args).exits(code);
        assert!(run.stderr.contains("error: ") && run.stderr.contains(error), "{}", run.stderr);
        assert!(run.stderr.lines().any(|line| line.starts_with("hint: ") && line.contains(hint)), "{}", run.stderr);
        assert!(run.stdout.is_empty() || code == 1, "{}", run.stdout);
    }
    // Wrong credentials are another thing than none, and than too few rights.
    let name = format!("TRANSLOAD_AUTH_{}", to.replace(['.', ':'], "_"));
    let with = |password: &str| {
        let tool = Tool::transload().args(&["copy", &from, &to]).env(&name, &format!("mirror:{password}"));
        tool.run()
    };
    let run = with("wrong").exits(1);
    let hint = "hint: the password or token of 'mirror' is not taken";
    assert!(run.stderr.contains("answered 401") && run.stderr.contains(hint), "{}", run.stderr);
    with(PASSWORD).ok();
}

#[test]
fn force_repairs_what_was_lost() {
    let (source, destination) = (Registry::start(), Registry::start());
    let image = Image::index(1, 2, &[30_000, 40_000]);
    image.push(source.addr(), "app", "v1");
    let (from, to) = (format!("{}/app:v1", source.addr()), format!("{}/app", destination.addr()));
    copy(&[&from, &to]).ok();
    let lost = [&image.blobs[1].digest, &image.manifests[0].digest];
    for digest in lost {
        let hex = &digest["sha256:".len()..];
        let path = format!("registry/docker/registry/v2/blobs/sha256/{}/{hex}", &hex[..2]);
        std::fs::remove_dir_all(destination.storage().path().join(path)).expect("it was there");
    }
    // Without it, equal tags are believed.
    copy(&[&from, &to]).ok();
    assert_eq!(head(&to.replace("/app", ""), &format!("/v2/app/blobs/{}", lost[0])), 404);
    source.reset_log();
    destination.reset_log();
    let report = copy_json(&[&from, &to, "--force"]);
    image.assert_at(destination.addr(), "app", "v1");
    assert_eq!((&report["images"][0]["blobs_uploaded"], &report["images"][0]["blobs_present"]), (&json!(1), &json!(5)));
    assert_eq!(source.count("GET", "/blobs/"), 1);
}

#[test]
fn a_dry_run_moves_nothing() {
    let (source, destination) = (Registry::start(), Registry::start());
    let image = Image::index(1, 2, &[30_000, 40_000]);
    image.push(source.addr(), "app", "v1");
    let (from, to) = (format!("{}/app:v1", source.addr()), format!("{}/app", destination.addr()));
    source.reset_log();
    let run = copy(&[&from, &to, "--dry-run"]).ok();
    assert!(run.stdout.starts_with("would copy: "), "{}", run.stdout);
    assert!(run.stdout.contains("3 manifests, 6 blobs to send;"), "{}", run.stdout);
    let document = copy_json(&[&from, &to, &format!("{}/other", destination.addr()), "--dry-run"]);
    assert_eq!(document["summary"]["planned"], 2);
    assert_eq!((&document["summary"]["blobs_uploaded"], &document["summary"]["blobs_mounted"]), (&json!(6), &json!(6)));
    assert!(document["images"].as_array().expect("a list").iter().all(|image| image["status"] == "planned"));
    assert_eq!(source.count("GET", "/blobs/"), 0);
    let wrote = destination.requests().iter().filter(|seen| !["GET", "HEAD"].contains(&seen.0.as_str())).count();
    assert_eq!(wrote, 0);
    // Not even a directory is made.
    let directory = TempDir::new();
    let layout = directory.join("images");
    let run = copy(&[&from, &format!("oci:{layout}"), "--dry-run"]).ok();
    assert!(run.stdout.contains("6 blobs to send;"), "{}", run.stdout);
    assert!(!std::path::Path::new(&layout).exists());
}

#[test]
fn a_child_that_is_there_ends_its_subtree() {
    let (source, destination) = (Registry::start(), Registry::start());
    let (old, new) = (Image::single(1, &[3000, 4000]), Image::single(2, &[5000]));
    old.push(destination.addr(), "app", "v1");
    let index = Image::index_of(vec![(old.clone(), json!({})), (new, json!({}))], false);
    index.push(source.addr(), "app", "v2");
    source.reset_log();
    destination.reset_log();
    let report = copy_json(&[&format!("{}/app:v2", source.addr()), &destination.addr().to_string()]);
    let entry = &report["images"][0];
    assert_eq!((&entry["manifests_written"], &entry["manifests_present"]), (&json!(2), &json!(1)));
    assert_eq!(entry["blobs_uploaded"], 2);
    assert_eq!(about(&source, old.digest()), 0);
    for blob in &old.blobs {
        assert_eq!(about(&source, &blob.digest) + about(&destination, &blob.digest), 0);
    }
    index.assert_at(destination.addr(), "app", "v2");
}

#[test]
fn to_a_directory_and_back() {
    let (source, destination) = (Registry::start(), Registry::start());
    let (tiny, docker) = (Image::tiny(1), Image::docker(2, &[5000]));
    tiny.push(source.addr(), "app", "v1");
    docker.push(source.addr(), "app", "v2");
    let directory = TempDir::new();
    let layout = directory.join("images");
    for tag in ["v1", "v2"] {
        copy(&[&format!("{}/app:{tag}", source.addr()), &format!("oci:{layout}")]).ok();
    }
    let again = copy(&[&format!("{}/app:v1", source.addr()), &format!("oci:{layout}")]).ok();
    assert!(again.stdout.starts_with("unchanged: "), "{}", again.stdout);

    // Skopeo reads it.
    let (local, out) = (format!("oci:{layout}:v1"), format!("dir:{}", directory.join("out")));
    skopeo(&["copy", "--all", "--preserve-digests", "--insecure-policy", &local, &out]).ok();
    assert_eq!(directory.read("out/manifest.json").as_bytes(), tiny.bytes());

    let to = format!("{}/back", destination.addr());
    copy(&[&format!("oci:{layout}:v1"), &to]).ok();
    copy(&[&format!("oci:{layout}:v2"), &format!("{to}:other")]).ok();
    tiny.assert_at(destination.addr(), "back", "v1");
    docker.assert_at(destination.addr(), "back", "other");
    let two = copy(&[&format!("oci:{layout}"), &to]).exits(2);
    assert!(two.stderr.contains("v1") && two.stderr.contains("v2"), "{}", two.stderr);

    // And ours reads skopeo's.
    let theirs = directory.join("theirs");
    let remote = format!("docker://{}/app:v1", source.addr());
    let args = ["copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--insecure-policy", &remote];
    skopeo(&[&args[..], &[&format!("oci:{theirs}:x")]].concat()).ok();
    copy(&[&format!("oci:{theirs}"), &format!("{}/theirs", destination.addr())]).ok();
    tiny.assert_at(destination.addr(), "theirs", "x");
}

/// A tag that points elsewhere by now is moved, and only what changed is sent.
#[test]
fn a_moved_tag_moves() {
    let (source, destination) = (Registry::start(), Registry::start());
    let (old, new) = (Image::single(1, &[3000, 4000]), Image::single(2, &[5000]));
    old.push(destination.addr(), "app", "v1");
    new.push(source.addr(), "app", "v1");
    copy(&[&format!("{}/app:v1", source.addr()), &destination.addr().to_string()]).ok();
    new.assert_at(destination.addr(), "app", "v1");
    let index = get(&destination.addr().to_string(), "/v2/app/manifests/v1", 200);
    assert_ne!(index.header("content-type"), Some(OCI_INDEX));
}

pub(super) fn copy(args: &[&str]) -> Run {
    transload(&[&["copy"], args].concat())
}

#[track_caller]
pub(super) fn copy_json(args: &[&str]) -> Value {
    copy(&[args, &["--output", "json"]].concat()).ok().json()
}

/// How many requests named a digest.
pub(super) fn about(registry: &Registry, digest: &str) -> usize {
    registry.requests().iter().filter(|seen| seen.1.contains(digest)).count()
}

/// `transload serve --writable` on a directory: a registry that takes sparse indexes, and goes on
/// with a broken upload.
pub(super) fn serve(directory: &str) -> (super::support::Process, String) {
    let args = ["serve", directory, "--writable", "--listen", "127.0.0.1:0"];
    let process = Tool::transload().args(&args).spawn();
    let line = process.stderr.wait_line(" on http://", super::support::process::RUN_TIMEOUT);
    let address = line.split(" on http://").nth(1).and_then(|rest| rest.split_whitespace().next());
    let address = address.expect("an address").to_owned();
    (process, address)
}

#[track_caller]
fn get(at: &str, path: &str, status: u16) -> http::Reply {
    http::get(at.parse().expect("an address"), path).expect(status)
}

fn head(at: &str, path: &str) -> u16 {
    http::send(at.parse().expect("an address"), "HEAD", path, &[], &[]).status
}
