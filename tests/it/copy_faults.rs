//! Faults of the source in the middle of a copy: gone on from, or told in full.

use std::time::Duration;

use super::support::front::Builder;
use super::support::{Fault, Front, Image, Registry, Rule, Run, SeenRequest, TempDir, Tool, http};

/// A source with one image behind a front that errs, and an empty registry to copy to.
struct Stage {
    image: Image,
    from: Front,
    to: Registry,
    _behind: Registry,
}

impl Stage {
    fn new(image: Image, rules: impl FnOnce(Builder) -> Builder) -> Self {
        let behind = Registry::start();
        image.push(behind.addr(), "a/b", "v1");
        let from = rules(Front::before(behind.addr())).start();
        Self { image, from, to: Registry::start(), _behind: behind }
    }

    /// With one layer of this size, which the fault befalls when it is read first.
    fn layer(seed: u64, size: usize, fault: Fault) -> Self {
        let image = Image::single(seed, &[size]);
        let rule = Rule::on("GET", &image.blobs[1].digest, fault).once();
        Self::new(image, |front| front.rule(rule))
    }

    fn tool(&self, more: &[&str]) -> Tool {
        let (from, to) = (format!("{}/a/b:v1", self.from.host()), self.to.addr().to_string());
        Tool::transload().args(&["copy", &from, &to, "--output", "json"]).args(more)
    }

    /// Copies in spite of the fault, which must have struck.
    #[track_caller]
    fn copies(&self, more: &[&str]) -> Run {
        let run = self.tool(more).run().ok();
        assert!(self.from.struck() > 0, "the rule never matched");
        self.image.assert_at(self.to.addr(), "a/b", "v1");
        run
    }

    /// Fails because of the fault: no tag, no manifest, and no blob of a wrong kind.
    #[track_caller]
    fn fails(&self, more: &[&str]) -> Run {
        let run = self.tool(more).run().exits(1);
        assert!(self.from.struck() > 0, "the rule never matched");
        http::get(self.to.addr(), "/v2/a/b/manifests/v1").expect(404);
        assert_eq!(self.to.count("PUT", "/manifests/"), 0);
        run
    }

    /// The layer is not at the destination, and no upload session is left open.
    #[track_caller]
    fn assert_nothing_of_the_layer(&self) {
        http::get(self.to.addr(), &format!("/v2/a/b/blobs/{}", self.image.blobs[1].digest)).expect(404);
        self.to.assert_no_open_uploads();
    }

    /// The layer's digest without its algorithm, as it stands in an encoded query.
    fn hex(&self) -> &str {
        self.image.blobs[1].digest.trim_start_matches("sha256:")
    }

    /// How the layer was read: each request's Range, and the bytes that it sent.
    fn reads(&self) -> Vec<(Option<String>, u64)> {
        let layer = |seen: &SeenRequest| seen.method == "GET" && seen.path.contains(&self.image.blobs[1].digest);
        let read = |seen: SeenRequest| (seen.header("range").map(str::to_owned), seen.sent());
        self.from.log().into_iter().filter(layer).map(read).collect()
    }

    /// Asserts that the layer was read in two parts, the second of which starts where the first one
    /// ended, and that both went up as one request.
    #[track_caller]
    fn assert_resumed(&self, at: std::ops::RangeInclusive<u64>) {
        let size = self.image.blobs[1].bytes.len() as u64;
        let reads = self.reads();
        let [(None, _), (Some(range), rest)] = &reads[..] else { panic!("{reads:?}") };
        let from = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')?.parse::<u64>().ok());
        let from = from.unwrap_or_else(|| panic!("{range}"));
        assert!(at.contains(&from), "went on at {from}");
        assert_eq!(*rest, size - from, "no byte is read twice");
        assert_eq!((self.to.count("POST", "/uploads/"), self.to.count("PATCH", "")), (2, 0));
        assert_eq!(self.to.count("PUT", self.hex()), 1, "the upload did not notice");
    }
}

#[test]
fn a_truncated_download_goes_on_where_it_ended() {
    let stage = Stage::layer(1, 6_000_000, Fault::TruncateAt(2_345_678));
    let run = stage.copies(&[]);
    stage.assert_resumed(2_345_678..=2_345_678);
    assert_eq!(run.json()["images"][0]["blobs_retried"], 1);
    assert!(run.stderr.contains("trying again in"), "{}", run.stderr);
}

#[test]
fn a_reset_download_goes_on() {
    // What the kernel had not yet given out is lost with a reset.
    let stage = Stage::layer(2, 6_000_000, Fault::ResetAfter(3_000_000));
    stage.copies(&[]);
    let reads = stage.reads();
    assert_eq!(reads.len(), 2, "{reads:?}");
    let whole = reads[1].0.is_none() && reads[1].1 == 6_000_000;
    if !whole {
        stage.assert_resumed(1..=3_000_000);
    }
}

#[test]
fn a_silent_download_is_given_up_and_goes_on() {
    let stage = Stage::layer(3, 2_000_000, Fault::StallAfter(1_000_000));
    let run = stage.copies(&["--idle-timeout", "1"]);
    stage.assert_resumed(1_000_000..=1_000_000);
    assert!(run.stderr.contains("for 1 s; trying again"), "{}", run.stderr);
}

#[test]
fn silence_before_an_answer_is_given_up_too() {
    let image = Image::single(4, &[5000]);
    let layer = image.blobs[1].digest.clone();
    let stage = Stage::new(image, |front| {
        front
            .rule(Rule::on("HEAD", "/manifests/", Fault::Stall).once())
            .rule(Rule::on("GET", "/manifests/", Fault::StallAfter(100)).once())
            .rule(Rule::on("GET", &layer, Fault::Stall).once())
    });
    stage.copies(&["--idle-timeout", "1"]);
    assert_eq!(stage.from.struck(), 3);
}

#[test]
fn many_breaks_are_survived() {
    let image = Image::single(5, &[3_000_000]);
    let layer = image.blobs[1].digest.clone();
    // Each answer has 700,000 bytes: of 3 MB that makes five.
    let stage = Stage::new(image, |front| front.rule(Rule::on("GET", &layer, Fault::TruncateAt(700_000)).nth(1..=4)));
    stage.copies(&[]);
    let starts: Vec<_> = stage.reads().into_iter().map(|read| read.0.unwrap_or_default()).collect();
    assert_eq!(starts, ["", "bytes=700000-", "bytes=1400000-", "bytes=2100000-", "bytes=2800000-"]);
    assert_eq!(stage.to.count("PUT", stage.hex()), 1);
}

#[test]
fn a_server_without_ranges_is_read_from_its_start_and_skipped() {
    let image = Image::single(6, &[1_000_000]);
    let layer = image.blobs[1].digest.clone();
    let stage = Stage::new(image, |front| {
        front
            .rule(Rule::on("GET", &layer, Fault::TruncateAt(400_000)).once())
            // It answers a Range with all of it, as it may (RFC 9110 §14.2).
            .rule(Rule::on("GET", &layer, Fault::IgnoreRange).nth(2..=2))
    });
    stage.copies(&[]);
    assert_eq!(stage.from.struck(), 2);
    assert_eq!(stage.reads(), [(None, 400_000), (Some("bytes=400000-".to_owned()), 1_000_000)]);
}

/// Damage on the way passes: it costs one attempt. The last byte is the one that an unguarded stream would have sent
/// already.
#[test]
fn a_byte_that_was_flipped_on_the_way_costs_one_attempt() {
    for (seed, at) in [(7, 0), (8, 1_234_567), (9, 1_999_999)] {
        let stage = Stage::layer(seed, 2_000_000, Fault::FlipByteAt(at));
        let run = stage.copies(&[]);
        assert!(run.stderr.contains("is corrupt: its bytes have sha256:"), "{}", run.stderr);
        assert_eq!(stage.reads().len(), 2);
        stage.to.assert_no_open_uploads();
    }
}

#[test]
fn a_byte_that_is_flipped_each_time_is_found_and_nothing_is_stored() {
    for (seed, at) in [(7, 0), (9, 1_999_999)] {
        let image = Image::single(seed, &[2_000_000]);
        let rule = Rule::on("GET", &image.blobs[1].digest, Fault::FlipByteAt(at));
        let stage = Stage::new(image, |front| front.rule(rule));
        let run = stage.fails(&["--retries", "2"]);
        let digest = &stage.image.blobs[1].digest;
        let error = format!(": blob {digest} is corrupt: its bytes have sha256:");
        assert!(run.stderr.contains("error: source: cannot ") && run.stderr.contains(&error), "{}", run.stderr);
        assert!(run.stderr.contains("hint: nothing of it was stored"), "{}", run.stderr);
        assert!(run.stderr.contains("after 3 attempts"), "{}", run.stderr);
        assert_eq!(run.json()["images"][0]["error"]["kind"], "mismatch");
        assert_eq!(stage.reads().len(), 3);
        stage.assert_nothing_of_the_layer();
    }
}

/// Damage that does not pass is no matter of more retries: a large blob would be read whole seven times.
#[test]
fn a_blob_that_is_wrong_each_time_is_read_three_times_at_most() {
    for fault in [Fault::FlipByteAt(7), Fault::WrongLength(-3)] {
        let image = Image::single(16, &[100_000]);
        let rule = Rule::on("GET", &image.blobs[1].digest, fault);
        let stage = Stage::new(image, |front| front.rule(rule));
        let run = stage.fails(&[]);
        assert!(run.stderr.contains("after 3 attempts"), "{}", run.stderr);
        assert_eq!(stage.from.struck(), 3);
        stage.assert_nothing_of_the_layer();
    }
}

/// What was read before the break was right, and what came after it was not: nothing of it is gone on from.
#[test]
fn a_flipped_byte_after_a_break_is_read_again_from_the_beginning() {
    let image = Image::single(10, &[2_000_000]);
    let layer = image.blobs[1].digest.clone();
    let stage = Stage::new(image, |front| {
        front
            .rule(Rule::on("GET", &layer, Fault::TruncateAt(1_500_000)).once())
            .rule(Rule::on("GET", &layer, Fault::FlipByteAt(9)).nth(2..=2))
    });
    stage.copies(&[]);
    assert_eq!(stage.from.struck(), 2);
    let begins: Vec<_> = stage.reads().into_iter().map(|(range, _)| range).collect();
    assert_eq!(begins, [None, Some("bytes=1500000-".to_owned()), None]);
}

#[test]
fn a_wrong_length_once_costs_one_attempt_and_each_time_is_refused() {
    for (seed, by) in [(11, -3), (12, 5)] {
        Stage::layer(seed, 100_000, Fault::WrongLength(by)).copies(&[]);
        let image = Image::single(seed, &[100_000]);
        let rule = Rule::on("GET", &image.blobs[1].digest, Fault::WrongLength(by));
        let stage = Stage::new(image, |front| front.rule(rule));
        let run = stage.fails(&["--retries", "1"]);
        let has = 100_000 + by;
        let told = format!("is not as described: the manifest says 100000 bytes, the registry {has}");
        assert!(run.stderr.contains(&told), "{}", run.stderr);
        assert!(run.stderr.contains("error: source: "), "{}", run.stderr);
        stage.assert_nothing_of_the_layer();
    }
}

/// A page that something before the registry writes in its place, with status 200.
#[test]
fn a_page_where_a_manifest_or_a_list_is_due_costs_one_attempt() {
    let page = || Fault::page(200, "Please wait");
    for fault in [Fault::FlipByteAt(30), page()] {
        let rule = Rule::on("GET", "/manifests/", fault).once();
        Stage::new(Image::single(13, &[5000]), |front| front.rule(rule)).copies(&[]);
    }
    let stage = Stage::new(Image::tiny(14), |front| front.rule(Rule::on("GET", "/tags/list", page()).once()));
    let run = Tool::transload().args(&["tags", &format!("{}/a/b", stage.from.host())]).run().ok();
    assert_eq!((run.stdout.trim(), stage.from.struck()), ("v1", 1));
}

/// The session of a blob that cannot be had is deleted, though the registry fails at first.
#[test]
fn the_delete_of_an_upload_session_is_tried_again() {
    let image = Image::single(15, &[100_000]);
    let rule = Rule::on("GET", &image.blobs[1].digest, Fault::FlipByteAt(9));
    let stage = Stage::new(image, |front| front.rule(rule));
    let to = Front::before(stage.to.addr()).rule(Rule::on("DELETE", "", Fault::status(503)).nth(1..=2)).start();
    let from = format!("{}/a/b:v1", stage.from.host());
    Tool::transload().args(&["copy", &from, to.host(), "--retries", "0"]).run().exits(1);
    assert_eq!((to.count("DELETE", "/uploads/"), to.struck()), (3, 2));
    stage.to.assert_no_open_uploads();
}

#[test]
fn a_manifest_that_is_not_what_its_digest_says_is_refused() {
    let rule = Rule::on("GET", "/manifests/", Fault::FlipByteAt(30));
    let stage = Stage::new(Image::single(13, &[5000]), |front| front.rule(rule));
    let run = stage.fails(&[]);
    assert!(run.stderr.contains("error: source: cannot read manifest"), "{}", run.stderr);
    assert!(run.stderr.contains("the manifest's digest is wrong: expected sha256:"), "{}", run.stderr);
    assert_eq!(stage.to.count("POST", ""), 0);
}

#[test]
fn server_errors_are_tried_again() {
    let image = Image::index(14, 2, &[5000]);
    let stage = Stage::new(image, |front| {
        front
            .rule(Rule::on("HEAD", "/manifests/", Fault::status(503)).once())
            .rule(Rule::on("GET", "/manifests/", Fault::page(502, "Bad Gateway")).nth(1..=2))
            .rule(Rule::on("GET", "/blobs/", Fault::status(500)).nth(2..=3))
            .rule(Rule::on("GET", "/blobs/", Fault::page(504, "Gateway Time-out")).nth(5..=5))
    });
    stage.copies(&[]);
    assert_eq!(stage.from.struck(), 6);
}

#[test]
fn a_manifest_that_breaks_off_is_read_again() {
    let image = Image::tiny(15);
    let stage = Stage::new(image, |front| {
        front
            .rule(Rule::on("GET", "/manifests/", Fault::TruncateAt(200)).once())
            .rule(Rule::on("GET", "/manifests/", Fault::ResetAfter(100)).nth(5..=6))
            .rule(Rule::on("HEAD", "/manifests/", Fault::LoseResponse).once())
    });
    stage.copies(&[]);
    assert_eq!(stage.from.struck(), 4);
}

#[test]
fn a_manifest_that_never_comes_is_told_with_the_attempts() {
    let rule = Rule::on("GET", "/manifests/", Fault::page(502, "Bad Gateway"));
    let stage = Stage::new(Image::single(16, &[5000]), |front| front.rule(rule));
    let run = stage.fails(&[]);
    assert_eq!(stage.from.struck(), 6);
    assert!(run.stderr.contains("error: source: cannot read manifest"), "{}", run.stderr);
    assert!(run.stderr.contains(" answered 502: Bad Gateway (after 6 attempts in "), "{}", run.stderr);
}

#[test]
fn a_blob_that_never_comes_is_told_with_the_attempts() {
    let image = Image::single(17, &[500_000]);
    let layer = image.blobs[1].digest.clone();
    let stage = Stage::new(image, |front| {
        front.rule(Rule::on("GET", &layer, Fault::status(503)).nth(2..=2)).rule(Rule::on(
            "GET",
            &layer,
            Fault::TruncateAt(70_000),
        ))
    });
    let run = stage.fails(&["--retries", "3"]);
    assert_eq!(stage.from.struck(), 4, "one budget for opening and reading");
    let error = format!("error: source: cannot read blob {layer}: ");
    assert!(run.stderr.contains(&error), "{}", run.stderr);
    assert!(run.stderr.contains(" (after 4 attempts in "), "{}", run.stderr);
    stage.assert_nothing_of_the_layer();
}

#[test]
fn an_unknown_blob_is_not_tried_again() {
    let image = Image::single(18, &[5000]);
    let layer = image.blobs[1].digest.clone();
    let stage = Stage::new(image, |front| front.rule(Rule::on("GET", &layer, Fault::status(404))));
    let run = stage.fails(&[]);
    assert_eq!(stage.from.struck(), 1);
    assert!(run.stderr.contains(&format!("error: source: cannot read blob {layer}: ")), "{}", run.stderr);
    stage.assert_nothing_of_the_layer();
}

#[test]
fn a_source_that_hangs_up_on_a_slow_destination_is_opened_again() {
    let stage = Stage::layer(19, 8_000_000, Fault::ResetAfter(4_000_000));
    // The destination takes 4 MB a second, so that the source waits for it.
    let slow = Front::before(stage.to.addr()).rule(Rule::on("PUT", stage.hex(), Fault::Throttle(4_000_000))).start();
    let from = format!("{}/a/b:v1", stage.from.host());
    Tool::transload().args(&["copy", &from, slow.host(), "--idle-timeout", "1"]).run().ok();
    assert_eq!((slow.struck(), stage.from.struck()), (1, 1));
    stage.image.assert_at(stage.to.addr(), "a/b", "v1");
    assert_eq!(slow.count("PUT", "/uploads/"), 2, "one for each blob");
    assert!(stage.reads()[1].0.is_some(), "{:?}", stage.reads());
}

/// A least rate that a test can wait for.
const RATE: [&str; 4] = ["--min-rate", "200KiB", "--min-rate-window", "1"];

#[test]
fn a_download_that_crawls_is_given_up_and_goes_on() {
    let stage = Stage::layer(20, 2_000_000, Fault::Throttle(50_000));
    let run = stage.copies(&RATE);
    stage.assert_resumed(1..=1_000_000);
    assert!(run.stderr.contains("less than 204800 a second; trying again in"), "{}", run.stderr);
    assert_eq!(run.json()["images"][0]["blobs_retried"], 1);
}

/// Copies a layer to a destination that takes 50 kB a second of the first upload. The layer is larger than what the
/// buffers of both systems take in.
#[test]
fn a_destination_that_crawls_costs_one_attempt() {
    for mirror in [false, true] {
        let stage = Stage::new(Image::single(21, &[40 << 20]), |front| front);
        let slow = Rule::on("PUT", stage.hex(), Fault::Throttle(50_000)).once();
        let to = Front::before(stage.to.addr()).rule(slow).start();
        let from = format!("{}/a/b:v1", stage.from.host());
        let run = if mirror {
            let dir = TempDir::new();
            let list = format!("images: [{{source: {from}, target: {}/a/b}}]\n", to.host());
            Tool::transload().args(&["mirror", &dir.write("list.yaml", list)]).args(&RATE).run().ok()
        } else {
            Tool::transload().args(&["copy", &from, to.host()]).args(&RATE).run().ok()
        };
        assert_eq!((to.struck(), to.count("PUT", stage.hex())), (1, 2), "{}", run.stderr);
        let told = format!("bytes were taken by {} in ", to.host());
        assert!(run.stderr.contains(&told) && run.stderr.contains(" trying again in "), "{}", run.stderr);
        stage.image.assert_at(stage.to.addr(), "a/b", "v1");
        stage.to.assert_no_open_uploads();
    }
}

/// The source breaks off, and takes four windows to answer again: in that time the destination has nothing to take.
#[test]
fn a_destination_that_waits_for_the_source_does_not_crawl() {
    let image = Image::single(22, &[2_000_000]);
    let layer = image.blobs[1].digest.clone();
    let stage = Stage::new(image, |front| {
        front
            .rule(Rule::on("GET", &layer, Fault::TruncateAt(1_000_000)).once())
            .rule(Rule::on("GET", &layer, Fault::Delay(Duration::from_secs(4))).nth(2..=2))
    });
    let run = stage.copies(&RATE);
    stage.assert_resumed(1_000_000..=1_000_000);
    assert_eq!(run.json()["images"][0]["blobs_retried"], 1, "{}", run.stderr);
}

/// A page that something before the token endpoint writes in its place, or damage.
#[test]
fn a_token_answer_that_is_not_json_costs_one_attempt() {
    for fault in [Fault::page(200, "Please wait"), Fault::FlipByteAt(0), Fault::TruncateAt(20)] {
        let rule = Rule::on("GET", "/token", fault).once();
        let stage = Stage::new(Image::single(23, &[5000]), |front| front.hub(|_| {}).rule(rule));
        stage.copies(&[]);
        assert_eq!((stage.from.struck(), stage.from.count("GET", "/token")), (1, 2));
    }
}

fn refused_with(code: &str) -> Fault {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"injected by the test"}}]}}"#);
    Fault::Status { code: 400, retry_after: None, content_type: "application/json".to_owned(), body }
}

/// What is sent was verified: if the registry finds it wrong, it was damaged on its way.
#[test]
fn a_manifest_that_is_damaged_on_its_way_to_the_registry_costs_one_attempt() {
    // By a tag, some bytes are as good to the registry as others: it says which ones it got.
    let other = Fault::Header("docker-content-digest", Some(format!("sha256:{}", "0".repeat(64))));
    for fault in [refused_with("DIGEST_INVALID"), refused_with("MANIFEST_INVALID"), other] {
        let stage = Stage::new(Image::single(24, &[5000]), |front| front);
        let to = Front::before(stage.to.addr()).rule(Rule::on("PUT", "/manifests/", fault).once()).start();
        let run = Tool::transload().args(&["copy", &format!("{}/a/b:v1", stage.from.host()), to.host()]).run().ok();
        assert_eq!((to.struck(), to.count("PUT", "/manifests/")), (1, 2), "{}", run.stderr);
        stage.image.assert_at(stage.to.addr(), "a/b", "v1");
    }
}

/// It may also be a kind of manifest that the registry never takes.
#[test]
fn a_manifest_that_is_invalid_twice_is_refused() {
    let stage = Stage::new(Image::single(25, &[5000]), |front| front);
    let to =
        Front::before(stage.to.addr()).rule(Rule::on("PUT", "/manifests/", refused_with("MANIFEST_INVALID"))).start();
    let run = Tool::transload().args(&["copy", &format!("{}/a/b:v1", stage.from.host()), to.host()]).run().exits(1);
    assert_eq!(to.count("PUT", "/manifests/"), 2, "{}", run.stderr);
    assert!(run.stderr.contains("answered 400 MANIFEST_INVALID"), "{}", run.stderr);
}

/// The same for a blob, whose bytes are verified on their way too.
#[test]
fn a_blob_that_is_damaged_on_its_way_to_the_registry_costs_one_attempt() {
    for code in ["DIGEST_INVALID", "SIZE_INVALID"] {
        let stage = Stage::new(Image::single(26, &[5000]), |front| front);
        let to = Front::before(stage.to.addr()).rule(Rule::on("PUT", stage.hex(), refused_with(code)).once()).start();
        let run = Tool::transload().args(&["copy", &format!("{}/a/b:v1", stage.from.host()), to.host()]).run().ok();
        assert_eq!((to.struck(), to.count("PUT", stage.hex())), (1, 2), "{}", run.stderr);
        stage.image.assert_at(stage.to.addr(), "a/b", "v1");
    }
}
