//! `transload mirror` over lists of images: each blob once, no image stops another, nothing repeated.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::layer::{Layer, layer};
use super::support::process::RUN_TIMEOUT;
use super::support::{Fault, Front, Image, Registry, Rule, Run, SeenRequest, TempDir, Tool, http, skopeo};

/// Images that share `shared` layers and have one of their own, each in a repository of its own.
fn family(count: u64, shared: u64, size: usize) -> Vec<Image> {
    let common: Vec<Layer> = (0..shared).map(|nth| layer(100 + nth, size)).collect();
    let member = |nth: u64| {
        let layers: Vec<Layer> = common.iter().cloned().chain([layer(200 + nth, size / 2)]).collect();
        Image::layered(nth, &layers)
    };
    (0..count).map(member).collect()
}

fn name(nth: usize) -> String {
    format!("team/app{nth}")
}

/// Pushes the images, and writes a plain list of them.
fn listed(images: &[Image], source: &Registry, host: &str, directory: &TempDir) -> String {
    let mut list = String::from("# all of them\n\n");
    for (nth, image) in images.iter().enumerate() {
        image.push(source.addr(), &name(nth), "v1");
        list += &format!("{host}/{}:v1\n", name(nth));
    }
    directory.write("images.txt", list)
}

#[track_caller]
pub(crate) fn mirror(list: &str, to: &str, more: &[&str]) -> Run {
    Tool::transload().args(&["mirror", list, "--to", to]).args(more).run()
}

#[track_caller]
fn report(run: &Run) -> Value {
    run.json()
}

fn statuses(document: &Value) -> Vec<&str> {
    document["images"].as_array().expect("images").iter().filter_map(|image| image["status"].as_str()).collect()
}

#[test]
fn each_blob_is_read_once_and_mounted_elsewhere() {
    let (source, destination, directory) = (Registry::start(), Registry::start(), TempDir::new());
    let images = family(12, 3, 700_000);
    let list = listed(&images, &source, &source.addr().to_string(), &directory);
    source.reset_log();
    let document = report(&mirror(&list, &destination.addr().to_string(), &["--output", "json"]).ok());
    for (nth, image) in images.iter().enumerate() {
        image.assert_at(destination.addr(), &name(nth), "v1");
    }
    // Manifest, config and own layer of each; the shared layers. No image is asked for by HEAD.
    assert_eq!(source.requests().len(), 12 * 3 + 3);
    let mounted = |nth: &(String, String, u16)| nth.1.contains("mount=sha256:") && nth.2 == 201;
    assert_eq!(destination.requests().iter().filter(|seen| mounted(seen)).count(), 11 * 3);
    assert_eq!(document["summary"]["copied"], 12);
    assert_eq!(document["summary"]["blobs_mounted"], 33);
    assert_eq!(document["summary"]["pulls"], 12);

    // Nothing to do costs two requests an image, and no pull.
    source.reset_log();
    destination.reset_log();
    let document = report(&mirror(&list, &destination.addr().to_string(), &["--output", "json"]).ok());
    assert_eq!(document["summary"]["unchanged"], 12);
    for registry in [&source, &destination] {
        assert_eq!((registry.requests().len(), registry.count("HEAD", "/manifests/v1")), (12, 12));
    }
    // An outsider finds them too.
    let image = format!("docker://{}/{}:v1", destination.addr(), name(7));
    let run = skopeo(&["inspect", "--tls-verify=false", "--raw", &image]).ok();
    assert_eq!(run.stdout.as_bytes(), images[7].bytes());
}

/// Tags of one repository that isn't there yet: once that is known, none of them is looked for.
#[test]
fn many_tags_of_a_new_repository_cost_few_requests() {
    let (source, destination, directory) = (Registry::start(), Registry::start(), TempDir::new());
    let images: Vec<Image> = (0..100).map(|nth| Image::labelled(0, &[layer(300 + nth, 3_000)])).collect();
    let tag = |nth: usize| format!("v{nth}");
    images.iter().enumerate().for_each(|(nth, image)| image.push(source.addr(), "tags", &tag(nth)));
    let list = directory.write("list.yaml", format!("images: [{{source: {}/tags, glob: 'v*'}}]\n", source.addr()));
    source.reset_log();
    mirror(&list, &destination.addr().to_string(), &[]).ok();
    images.iter().enumerate().for_each(|(nth, image)| image.assert_at(destination.addr(), "tags", &tag(nth)));
    // The list of tags; each manifest; the layers and their config.
    assert_eq!(source.requests().len(), 1 + 100 + 101);
    assert_eq!(destination.count("PUT", "/manifests/"), 100);
    assert_eq!(destination.count("POST", "") + destination.count("PUT", "/blobs/"), 2 * 101);
    let heads = destination.count("HEAD", "/manifests/");
    assert!(heads < 60, "{heads} of the tags were looked for");
}

/// Of the tags that need a blob in one repository, one mounts it, and the others wait for that.
#[test]
fn a_blob_is_mounted_into_a_repository_once() {
    let (source, behind, directory) = (Registry::start(), Registry::start(), TempDir::new());
    let slow = Rule::on("POST", "/tags/blobs/uploads/", Fault::Delay(Duration::from_millis(100)));
    let destination = Front::before(behind.addr()).rule(slow).start();
    let image = |nth: u64| Image::labelled(0, &[layer(400, 3_000), layer(401 + nth, 3_000)]);
    let mut list = format!("{}/base:v1\n", source.addr());
    image(99).push(source.addr(), "base", "v1");
    for nth in 0..12 {
        image(nth).push(source.addr(), "tags", &format!("v{nth}"));
        list += &format!("{}/tags:v{nth}\n", source.addr());
    }
    mirror(&directory.write("list", list), destination.host(), &[]).ok();
    (0..12).for_each(|nth| image(nth).assert_at(behind.addr(), "tags", &format!("v{nth}")));
    // The config and the layer that all of them have, from whichever repository had it first.
    let mounts = destination.log().iter().filter(|seen| seen.query.contains("mount=")).count();
    assert_eq!(mounts, 2);
}

/// What an unchanged image holds is mounted from it: a new image of the list sends its own layer alone.
#[test]
fn layers_of_unchanged_images_are_mounted() {
    let (source, destination, directory) = (Registry::start(), Registry::start(), TempDir::new());
    let images = family(5, 2, 700_000);
    let to = destination.addr().to_string();
    let list = listed(&images, &source, &source.addr().to_string(), &directory);
    let all = directory.read(&list);
    let first: Vec<&str> = all.lines().take(6).collect();
    mirror(&directory.write("first", first.join("\n")), &to, &[]).ok();
    let dry = report(&mirror(&list, &to, &["--dry-run", "--output", "json"]).ok());
    source.reset_log();
    destination.reset_log();
    let document = report(&mirror(&list, &to, &["--output", "json"]).ok());
    assert_eq!((&document["summary"]["unchanged"], &document["summary"]["copied"]), (&json!(4), &json!(1)));
    images[4].assert_at(destination.addr(), &name(4), "v1");
    let own: usize = [0, 3].iter().map(|nth| images[4].blobs[*nth].bytes.len()).sum();
    for told in [&document, &dry] {
        assert_eq!((&told["summary"]["bytes_uploaded"], &told["summary"]["blobs_mounted"]), (&json!(own), &json!(2)));
    }
    assert_eq!(source.count("GET", "/blobs/"), 2, "its config and its own layer");
    assert_eq!(document["summary"]["pulls"], 1, "the unchanged ones are read at the destination");

    // And where nothing large is to be sent, they aren't read at all.
    destination.reset_log();
    let dry = report(&mirror(&list, &to, &["--dry-run", "--output", "json"]).ok());
    assert_eq!(destination.requests().len(), 5);
    assert_eq!((&dry["summary"]["requests_planned"], &dry["summary"]["requests"]), (&json!(10), &json!(10)));
}

#[test]
fn one_failing_image_stops_no_other() {
    let (source, destination, directory) = (Registry::start(), Registry::start(), TempDir::new());
    let images = family(6, 1, 20_000);
    let broken = images[2].blobs[2].digest.clone();
    let front = Front::before(source.addr()).rule(Rule::on("GET", &broken, Fault::FlipByteAt(77))).start();
    listed(&images, &source, front.host(), &directory);
    let gone = format!("{}/team/gone:v9", front.host());
    let list = directory.write("more.txt", directory.read("images.txt") + &gone + "\n");
    let run = mirror(&list, &destination.addr().to_string(), &["--output", "json", "--retries", "1"]).exits(3);
    let document = report(&run);
    assert_eq!(document["summary"]["copied"], 5);
    assert_eq!(document["summary"]["failed"], 2);
    let failed: Vec<&Value> =
        document["images"].as_array().expect("images").iter().filter(|image| image["status"] == "failed").collect();
    let error = |line: u64| failed.iter().find(|image| image["line"] == line).map(|image| &image["error"]);
    let corrupt = error(5).expect("the third image is in line 5");
    assert_eq!((&corrupt["side"], &corrupt["kind"]), (&json!("source"), &json!("mismatch")), "{corrupt}");
    let absent = error(9).expect("the last line");
    assert_eq!(absent["kind"], "not-found", "{absent}");
    assert!(run.stderr.contains(&gone), "{}", run.stderr);
    http::get(destination.addr(), "/v2/team/app2/manifests/v1").expect(404);
    images[5].assert_at(destination.addr(), &name(5), "v1");
}

/// Docker, crane and skopeo would copy parts of both images, or fail.
#[test]
fn a_tag_that_moves_is_copied_as_one_image() {
    let (source, destination, directory) = (Registry::start(), Registry::start(), TempDir::new());
    let (before, after) = (Image::index(1, 3, &[30_000]), Image::index(2, 3, &[30_000]));
    before.push(source.addr(), "app", "v1");
    let slow = Rule::on("GET", &before.manifests[0].digest, Fault::Delay(Duration::from_millis(700)));
    let front = Front::before(source.addr()).rule(slow).start();
    let list = directory.write("list", format!("{}/app:v1\n", front.host()));
    let running = Tool::transload().args(&["mirror", &list, "--to", &destination.addr().to_string()]).spawn();
    front.wait_for("of the first child", |seen| seen.target().contains(&before.manifests[0].digest));
    after.push(source.addr(), "app", "v1");
    running.finish(Duration::from_secs(60)).ok();
    before.assert_at(destination.addr(), "app", "v1");
    mirror(&list, &destination.addr().to_string(), &[]).ok();
    after.assert_at(destination.addr(), "app", "v1");
}

#[test]
fn small_images_pass_a_slow_one() {
    let (source, destination, directory) = (Registry::start(), Registry::start(), TempDir::new());
    let large = Image::single(9, &[600_000]);
    large.push(source.addr(), "large", "v1");
    let images = family(8, 1, 20_000);
    let stuck = Rule::on("GET", &large.blobs[1].digest, Fault::StallAfter(1000));
    let front = Front::before(source.addr()).rule(stuck).start();
    let list = listed(&images, &source, front.host(), &directory);
    let list = directory.write("list", format!("{}/large:v1\n{}", front.host(), directory.read(&list)));
    let to = destination.addr().to_string();
    let mut running = Tool::transload().args(&["mirror", &list, "--to", &to]).args(&["--jobs", "1"]).spawn();
    let limit = Instant::now() + Duration::from_secs(30);
    for nth in 0..images.len() {
        while http::get(destination.addr(), &format!("/v2/{}/manifests/v1", name(nth))).status != 200 {
            assert!(Instant::now() < limit && running.is_running(), "image {nth} waits behind the large one");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    http::get(destination.addr(), "/v2/large/manifests/v1").expect(404);
    running.kill();
}

/// Killed at twenty points, spread over runs: whatever tag is there is whole, the next run goes on, and sends again
/// nothing that was stored.
#[test]
fn killed_at_any_moment_it_goes_on() {
    let (source, directory) = (Registry::start(), TempDir::new());
    let images = family(8, 2, 1_100_000);
    let list = listed(&images, &source, &source.addr().to_string(), &directory);
    let mut kills = 0;
    while kills < 20 {
        let destination = Registry::start();
        // Slow enough for the kills to fall into all phases.
        let slow = Rule::on("PUT", "/blobs/uploads/", Fault::Throttle(4_000_000));
        let slow = Front::before(destination.addr()).rule(slow).start();
        // Until all is there.
        while killed(&list, &slow, kills) {
            kills += 1;
            let there = |nth: &usize| {
                let found = http::get(destination.addr(), &format!("/v2/{}/manifests/v1", name(*nth))).status == 200;
                if found {
                    images[*nth].assert_at(destination.addr(), &name(*nth), "v1");
                }
                found
            };
            if (0..images.len()).filter(there).count() == images.len() {
                break;
            }
        }
        for (nth, image) in images.iter().enumerate() {
            image.assert_at(destination.addr(), &name(nth), "v1");
        }
        // What was stored is not sent again: of each image its own layer once, in all of the runs.
        for own in images.iter().map(|image| &image.blobs[3].digest) {
            let hex = own.trim_start_matches("sha256:");
            let stored =
                |seen: &&SeenRequest| seen.method == "PUT" && seen.target().contains(hex) && seen.status == Some(201);
            assert_eq!(slow.log().iter().filter(stored).count(), 1, "{own}");
        }
    }
}

/// Runs the list, and kills it after some more requests than after the kill before, and a few milliseconds. Whether it
/// was killed; else it ended well.
fn killed(list: &str, to: &Front, kills: u64) -> bool {
    let mut running = Tool::transload().args(&["mirror", list, "--to", to.host(), "--quiet"]).spawn();
    let enough = to.log().len() + usize::try_from(kills % 10 * 6 + 1).expect("small");
    let limit = Instant::now() + RUN_TIMEOUT;
    while to.log().len() < enough && running.is_running() {
        assert!(Instant::now() < limit, "it asks for nothing: {:#?}", to.log());
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(kills * 7 % 30));
    running.kill();
    // Else the next run looks for a blob that is being stored, and rightly sends it again.
    to.wait_idle();
    let ended = running.finish(RUN_TIMEOUT);
    let killed = ended.code == -1;
    if !killed {
        ended.ok();
    }
    killed
}

#[test]
fn a_dry_run_moves_nothing_and_says_what_it_would_cost() {
    let (source, destination, directory) = (Registry::start(), Registry::start(), TempDir::new());
    let images = family(4, 2, 600_000);
    let list = listed(&images, &source, &source.addr().to_string(), &directory);
    let to = destination.addr().to_string();
    let document = report(&mirror(&list, &to, &["--dry-run", "--output", "json"]).ok());
    assert_eq!(statuses(&document), ["planned"; 4]);
    let unique: usize =
        images.iter().flat_map(|image| &image.blobs).map(|blob| blob.bytes.len()).sum::<usize>() - 3 * 2 * 600_000;
    assert_eq!(document["summary"]["bytes_uploaded"], unique, "shared layers are counted once");
    assert_eq!(document["summary"]["pulls"], 4);
    assert_eq!(destination.count("POST", "") + destination.count("PUT", ""), 0);
}

/// What a dry run foretold, a run then makes, within a few looks for large layers.
#[test]
fn a_dry_run_foretells_the_requests() {
    let (source, destination, directory) = (Registry::start(), Registry::start(), TempDir::new());
    let list = listed(&family(4, 2, 20_000), &source, &source.addr().to_string(), &directory);
    let to = destination.addr().to_string();
    let dry = report(&mirror(&list, &to, &["--dry-run", "--output", "json"]).ok());
    let planned = dry["summary"]["requests_planned"].as_u64().expect("a number");
    let run = report(&mirror(&list, &to, &["--output", "json"]).ok());
    let made = run["summary"]["requests"].as_u64().expect("a number");
    assert!(made.abs_diff(planned) <= 4, "{made} were made, {planned} foretold");
}

/// As the pods of an indexed Job: each image by one of them, and none by two.
#[test]
fn the_pods_of_a_job_share_a_list() {
    let (source, destination, directory) = (Registry::start(), Registry::start(), TempDir::new());
    let images = family(9, 1, 5_000);
    let list = listed(&images, &source, &source.addr().to_string(), &directory);
    let to = destination.addr().to_string();
    let mut copied = Vec::new();
    for index in ["0", "1", "2"] {
        let run = Tool::transload()
            .args(&["mirror", &list, "--to", &to, "--shard", "/3", "--output", "json"])
            .env("JOB_COMPLETION_INDEX", index)
            .run()
            .ok();
        let document = report(&run);
        assert_eq!(document["shard"], format!("{}/3", index.parse::<u8>().expect("a number") + 1));
        assert!(statuses(&document).iter().all(|status| *status == "copied"), "{document}");
        copied.push(statuses(&document).len());
    }
    assert_eq!(copied.iter().sum::<usize>(), 9);
    for (nth, image) in images.iter().enumerate() {
        image.assert_at(destination.addr(), &name(nth), "v1");
    }
    let run = mirror(&list, &to, &["--shard", "/3"]).exits(2);
    assert!(run.stderr.contains("JOB_COMPLETION_INDEX"), "{}", run.stderr);
}

#[test]
fn diff_tells_what_has_drifted() {
    let (source, destination, directory) = (Registry::start(), Registry::start(), TempDir::new());
    let images = family(3, 1, 20_000);
    let list = listed(&images, &source, &source.addr().to_string(), &directory);
    let to = destination.addr().to_string();
    mirror(&list, &to, &[]).ok();
    let diff = |code| {
        let run = Tool::transload().args(&["diff", &list, "--to", &to, "--output", "json"]).run().exits(code);
        report(&run)
    };
    assert_eq!(statuses(&diff(0)), ["same"; 3]);
    Image::single(77, &[5000]).push(source.addr(), &name(1), "v1");
    Image::single(78, &[5000]).push(source.addr(), "team/new", "v1");
    let list = directory.write("list", directory.read(&list) + &format!("{}/team/new:v1\n", source.addr()));
    source.reset_log();
    let run = Tool::transload().args(&["diff", &list, "--to", &to, "--output", "json"]).run().exits(3);
    let document = report(&run);
    let mut found = statuses(&document);
    found.sort_unstable();
    assert_eq!(found, ["differs", "missing", "same", "same"]);
    assert_eq!(source.count("GET", "/manifests/"), 0, "no pull is spent on a look");
}

/// `latest`, `1`, `1.27` and `1.27.3`: what they are is read, and written, once; and nothing is written of it while
/// another one writes it.
#[test]
fn tags_of_one_image_cost_it_once() {
    for (image, children) in [(Image::index(7, 3, &[20_000]), 3), (Image::single(7, &[20_000]), 0)] {
        let (source, destination, directory) = (Registry::start(), Registry::start(), TempDir::new());
        let tags: Vec<String> = (0..5).map(|nth| format!("v{nth}")).collect();
        tags.iter().for_each(|tag| image.push(source.addr(), "app", tag));
        // Long enough for all of them to be there at once.
        let pause = Duration::from_millis(50);
        let slow = Rule::on("PUT", "/manifests/", Fault::Delay(pause));
        let front = Front::before(destination.addr()).rule(slow).start();
        let (from, to) = (source.addr(), front.host());
        let list = format!("images: [{{source: {from}/app, glob: 'v*', target: [{to}/one, {to}/two]}}]\n");
        let list = directory.write("list.yaml", list);
        let run = |more: &[&str]| {
            report(&mirror(&list, "unused.example", &[&["--keep-targets", "--output", "json"], more].concat()).ok())
        };
        let dry = run(&["--dry-run"]);
        assert_eq!((&dry["summary"]["planned"], &dry["summary"]["pulls"]), (&json!(10), &json!(5 + children)), "{dry}");
        source.reset_log();
        let document = run(&[]);
        for tag in &tags {
            ["one", "two"].iter().for_each(|repository| image.assert_at(destination.addr(), repository, tag));
        }
        assert_eq!(source.count("GET", "/manifests/"), 5 + children);
        let summary = &document["summary"];
        assert_eq!((&summary["copied"], &summary["pulls"]), (&json!(10), &json!(5 + children)));
        assert_eq!(front.count("PUT", "/manifests/sha256:"), 2 * children);
        // The first one is there before any other comes: no registry is asked to take what it's just storing.
        let log = front.log();
        let puts: Vec<_> =
            log.iter().filter(|seen| seen.method == "PUT" && seen.path.contains("/manifests/v")).collect();
        assert!(puts.len() == 10 && puts[1].at - puts[0].at >= pause, "{puts:?}");
    }
}

/// Just what failed, and the list must still have it: else a wrong destination would end as if all were done.
#[test]
fn what_failed_is_done_again() {
    let (source, destination, directory) = (Registry::start(), Registry::start(), TempDir::new());
    let images = family(2, 1, 5_000);
    let list = listed(&images, &source, &source.addr().to_string(), &directory);
    let missing = format!("{}/late:v1", source.addr());
    let list = directory.write("more.txt", directory.read(&list) + &missing + "\n");
    let (to, before) = (destination.addr().to_string(), directory.join("before.json"));
    mirror(&list, &to, &["--report", &before]).exits(3);
    images[0].push(source.addr(), "late", "v1");
    let again = |list: &str, to: &str| {
        let run = mirror(list, to, &["--retry-failed", &before, "--output", "json"]).ok();
        (report(&run)["summary"]["copied"].clone(), run.stderr)
    };
    let elsewhere = again(&list, &format!("{to}/elsewhere"));
    assert_eq!(elsewhere.0, 0);
    let told = format!("isn't in the list, or goes elsewhere now: {missing} to {to}/late:v1\n");
    assert!(elsewhere.1.contains(&told), "{}", elsewhere.1);
    let (copied, stderr) = again(&directory.write("less.txt", format!("{}/{}:v1\n", source.addr(), name(0))), &to);
    assert!(copied == 0 && stderr.contains(&told), "{stderr}");
    source.reset_log();
    let (copied, stderr) = again(&list, &to);
    assert!(copied == 1 && stderr.is_empty(), "{stderr}");
    assert!(source.requests().iter().all(|seen| seen.1.starts_with("/v2/late/")), "{:?}", source.requests());
}
