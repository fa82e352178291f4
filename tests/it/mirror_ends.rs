//! `transload mirror` between several sources and destinations: each goes at its own pace, and gets the same.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::mirror_run::mirror;
use super::support::layer::layer;
use super::support::{Fault, Front, Image, Registry, Rule, TempDir, Tool, http};

fn image(seed: u64) -> Image {
    Image::labelled(seed, &[layer(500, 2_000)])
}

fn failed(document: &Value) -> Vec<&Value> {
    document["images"].as_array().expect("images").iter().filter(|image| image["status"] == "failed").collect()
}

/// Of two patterns whose tags meet, the list's first one has the tag, however fast the other one is; and all the
/// other tags arrive.
#[test]
fn a_tag_that_two_entries_want_fails_alone() {
    let (source, destination, dir) = (Registry::start(), Registry::start(), TempDir::new());
    let late = Rule::on("GET", "/v2/one/tags/list", Fault::Delay(Duration::from_millis(400)));
    let front = Front::before(source.addr()).rule(late).start();
    for (repository, tag, seed) in
        [("first", "0", 0), ("one", "1", 1), ("one", "2", 2), ("two", "2", 3), ("two", "3", 4)]
    {
        image(seed).push(source.addr(), repository, tag);
    }
    let (from, to) = (front.host(), destination.addr());
    let entry = |name: &str| format!("  - {{source: {from}/{name}, glob: '*', target: {to}/all}}\n");
    // All wait for the answer to the first request: that's not to be the late one.
    let first = format!("  - {{source: {from}/first, glob: '*', target: {to}/first}}\n");
    let list = dir.write("list.yaml", format!("images:\n{first}{}{}", entry("one"), entry("two")));
    let run = Tool::transload().args(&["mirror", &list, "--output", "json"]).run().exits(3);
    let document = run.json();
    let failed = failed(&document);
    assert_eq!((failed.len(), &document["summary"]["copied"]), (1, &json!(4)), "{document}");
    assert_eq!(failed[0]["source"], format!("{from}/two:2"));
    let message = failed[0]["error"]["message"].as_str().expect("a message");
    assert!(message.contains(&format!("would overwrite {from}/one:2 of line 3 at {to}/all:2")), "{message}");
    let arrived = |what: &[(&str, u64)]| {
        what.iter().for_each(|(tag, seed)| image(*seed).assert_at(destination.addr(), "all", tag));
    };
    arrived(&[("1", 1), ("2", 2), ("3", 4)]);

    // Nor does it get it when it's done alone: again, or by another machine than that of the first.
    image(5).push(source.addr(), "two", "3");
    let report = dir.write("report.json", run.stdout);
    Tool::transload().args(&["mirror", &list, "--retry-failed", &report]).run().exits(1);
    let shard = alone(&format!("{from}/two"), &format!("{from}/one"));
    let run = Tool::transload().args(&["mirror", &list, "--shard", &shard, "--output", "json"]).run().exits(3);
    assert!(run.json()["summary"]["failed"] == 1 && run.json()["summary"]["copied"] == 1, "{run:?}");
    arrived(&[("1", 1), ("2", 2), ("3", 5)]);
}

/// A shard that has the one and hasn't the other.
fn alone(one: &str, other: &str) -> String {
    let [one, other] = [one, other].map(|name| name.parse().expect("a repository"));
    let mut all = (2..99).flat_map(|of| (1..=of).map(move |number| format!("{number}/{of}")));
    let fits = |text: &String| {
        let asked: transload::mirror::shard::ShardSpec = text.parse().expect("a shard");
        let shard = asked.settle(None).expect("a shard");
        shard.contains(&one) && !shard.contains(&other)
    };
    all.find(fits).expect("they aren't in one shard of whatever number")
}

/// One destination's name for it may be wrong, and that of another one right.
#[test]
fn a_tag_too_long_for_one_target_fails_there_alone() {
    let (source, destination, dir) = (Registry::start(), Registry::start(), TempDir::new());
    let long = "t".repeat(126);
    [long.as_str(), "u"].iter().for_each(|tag| image(1).push(source.addr(), "app", tag));
    let (from, to) = (source.addr(), destination.addr());
    let targets = format!("['{to}/{{name}}:{{tag}}-hub', '{to}/plain/{{name}}']");
    let list = dir.write("list.yaml", format!("images: [{{source: {from}/app, glob: '*', target: {targets}}}]\n"));
    let run = Tool::transload().args(&["mirror", &list, "--output", "json"]).run().exits(3);
    let document = run.json();
    let failed = failed(&document);
    assert_eq!((failed.len(), &document["summary"]["copied"]), (1, &json!(3)), "{document}");
    assert_eq!(failed[0]["destination"], format!("{to}/app:{long}-hub"));
    for (repository, tag) in [("app", "u-hub"), ("plain/app", "u"), ("plain/app", long.as_str())] {
        image(1).assert_at(destination.addr(), repository, tag);
    }
}

/// One that takes connections and answers none, or wants to be left alone, keeps nothing from the other: not the images
/// behind as many as are worked on at once, nor those of an entry that it isn't meant to have.
#[test]
fn a_dead_destination_starves_no_other() {
    let (source, dir) = (Registry::start(), TempDir::new());
    let tags: Vec<String> = (0..150).map(|nth| format!("v{nth}")).collect();
    tags.iter().for_each(|tag| image(1).push(source.addr(), "app", tag));
    image(2).push(source.addr(), "other", "v1");
    for fault in [Fault::Stall, Fault::too_many(100)] {
        let good = Registry::start();
        let dead = Front::before(good.addr()).rule(Rule::on("*", "", fault)).start();
        let (from, to) = (source.addr(), good.addr());
        let other = format!("{{source: {from}/other, glob: 'v*', target: {to}/more/other}}");
        let list = format!("images:\n  - {{source: {from}/app, glob: 'v*'}}\n  - {other}\n");
        let (list, host) = (dir.write("list.yaml", list), to.to_string());
        let more = ["--to", &host, "--to", dead.host()];
        let mut running = Tool::transload().args(&["mirror", &list]).args(&more).spawn();
        let limit = Instant::now() + Duration::from_secs(60);
        let there = tags.iter().map(|tag| format!("/v2/app/manifests/{tag}"));
        for path in there.chain(["/v2/more/other/manifests/v1".to_owned()]) {
            while http::get(to, &path).status != 200 {
                assert!(running.is_running(), "{:?}", running.finish(Duration::ZERO));
                assert!(Instant::now() < limit, "{path} waits for the other destination");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        assert!(!dead.log().is_empty() && running.is_running());
    }
}

/// With nothing to do the source is asked once for each tag, however many destinations there are.
#[test]
fn a_tag_is_resolved_once_for_all_destinations() {
    let (source, one, two, dir) = (Registry::start(), Registry::start(), Registry::start(), TempDir::new());
    let tags: Vec<String> = (0..20).map(|nth| format!("v{nth}")).collect();
    tags.iter().for_each(|tag| image(1).push(source.addr(), "app", tag));
    let lines: Vec<String> = tags.iter().map(|tag| format!("{}/app:{tag}", source.addr())).collect();
    let (list, second) = (dir.write("list", lines.join("\n")), two.addr().to_string());
    let run = || mirror(&list, &one.addr().to_string(), &["--to", &second, "--output", "json"]).ok().json();
    run();
    [&source, &one, &two].iter().for_each(|registry| registry.reset_log());
    assert_eq!(run()["summary"]["unchanged"], 40);
    for registry in [&source, &one, &two] {
        assert_eq!((registry.requests().len(), registry.count("HEAD", "/manifests/v")), (20, 20));
    }
    source.reset_log();
    Tool::transload().args(&["diff", &list, "--to", &one.addr().to_string(), "--to", &second]).run().ok();
    assert_eq!(source.requests().len(), 20);
}

/// Never more requests under way at a registry than 32, though more images than that are worked on.
#[test]
fn so_many_requests_at_once_and_no_more() {
    let (source, behind, dir) = (Registry::start(), Registry::start(), TempDir::new());
    let lasts = Duration::from_millis(300);
    let slow = Front::before(behind.addr()).rule(Rule::on("*", "", Fault::Delay(lasts))).start();
    let lines: Vec<String> = (0..160).map(|nth| format!("{}/none{nth}:v1", source.addr())).collect();
    mirror(&dir.write("list", lines.join("\n")), slow.host(), &["--quiet"]).exits(1);
    let mut came: Vec<Instant> = slow.log().iter().map(|seen| seen.at).collect();
    came.sort_unstable();
    assert!(came.len() >= 160, "{}", came.len());
    // Each lasts so long at least: of 33 in less, the first is under way when the last one comes.
    let most = came.windows(33).map(|some| some[32] - some[0]).min().expect("more than 33");
    assert!(most >= lasts, "33 requests came within {most:?}");
}

/// From stdin, and as another tool wrote it.
#[test]
fn a_list_by_stdin_and_one_of_another_tool() {
    let (source, destination, dir) = (Registry::start(), Registry::start(), TempDir::new());
    ["v1", "v2"].iter().for_each(|tag| image(1).push(source.addr(), "team/app", tag));
    let (from, to) = (source.addr(), destination.addr().to_string());
    Tool::transload().args(&["mirror", "-", "--to", &to]).stdin(&format!("{from}/team/app:v1\n")).run().ok();
    image(1).assert_at(destination.addr(), "team/app", "v1");
    let list = format!("\"{from}\":\n  tls-verify: false\n  images:\n    team/app: [v1, v2]\n");
    let run = mirror(&dir.write("sync.yaml", list), &format!("{to}/skopeo"), &["--output", "json"]).ok();
    assert_eq!(run.json()["summary"]["copied"], 2);
    ["v1", "v2"].iter().for_each(|tag| image(1).assert_at(destination.addr(), "skopeo/app", tag));
}

/// What can't be compared is no "nothing has drifted"; as text, with why.
#[test]
fn diff_says_what_it_could_not_compare() {
    let (source, destination, dir) = (Registry::start(), Registry::start(), TempDir::new());
    ["same", "mute"].iter().for_each(|name| image(1).push(source.addr(), name, "v1"));
    let broken = Rule::on("HEAD", "/v2/mute/", Fault::status(403));
    let (front, to) = (Front::before(source.addr()).rule(broken).start(), destination.addr());
    let (from, both) = (front.host(), ["same", "mute"]);
    both.iter().for_each(|name| image(1).push(to, name, "v1"));
    let list = dir.write("list", format!("{from}/same:v1\n{from}/mute:v1\n"));
    let diff = |more: &[&str]| Tool::transload().args(&["diff", &list, "--to", &to.to_string()]).args(more).run();
    let run = diff(&[]).exits(3);
    let (first, rest) = run.stdout.split_once('\n').expect("lines");
    assert!(first.starts_with(&format!("failed   {from}/mute:v1 {to}/mute:v1: source: ")), "{first}");
    assert!(rest.starts_with("1 same, 0 missing, 0 differ, 1 failed; "), "{rest}");
    assert_eq!(failed(&diff(&["--output", "json"]).exits(3).json())[0]["error"]["kind"], "denied");
    image(2).push(source.addr(), "same", "v1");
    let run = diff(&[]).exits(3);
    assert!(run.stdout.contains(&format!("differs  {from}/same:v1 {to}/same:v1\n")), "{}", run.stdout);
}

/// Of a repository whose images all went well not even the tags are listed again.
#[test]
fn what_did_not_fail_is_not_looked_at_again() {
    let (source, destination, dir) = (Registry::start(), Registry::start(), TempDir::new());
    ["good", "bad"].iter().for_each(|name| image(1).push(source.addr(), name, "v1"));
    let broken = Rule::on("GET", "/v2/bad/manifests/", Fault::status(403));
    let (front, to) = (Front::before(source.addr()).rule(broken).start(), destination.addr().to_string());
    let entry = |name: &str| format!("  - {{source: {}/{name}, glob: 'v*'}}\n", front.host());
    let list = dir.write("list.yaml", format!("images:\n{}{}", entry("good"), entry("bad")));
    let report = dir.join("report.json");
    mirror(&list, &to, &["--report", &report]).exits(3);
    front.clear_rules();
    front.reset_log();
    let run = mirror(&list, &to, &["--retry-failed", &report, "--output", "json"]).ok();
    assert_eq!(run.json()["summary"]["copied"], 1);
    image(1).assert_at(destination.addr(), "bad", "v1");
    assert!(front.log().iter().all(|seen| seen.path.starts_with("/v2/bad/")), "{:?}", front.log());
}
