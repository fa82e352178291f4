//! SIGINT and SIGTERM in the middle of a copy: cleaned up, told, and gone on from.

use std::time::Duration;

use super::support::{Fault, Front, Image, Process, Registry, Rule, Run, SeenRequest, Tool, http};

const DONE: usize = 1;
const SLOW: usize = 2;

/// A copy of an image with two layers, of which the second one goes up slowly.
struct Stage {
    image: Image,
    from: Registry,
    to: Front,
    behind: Registry,
}

impl Stage {
    fn new(seed: u64) -> Self {
        let image = Image::single(seed, &[1_500_000, 3_000_000]);
        let (from, behind) = (Registry::start(), Registry::start());
        image.push(from.addr(), "a/b", "v1");
        let slow = Rule::on("PUT", hex(&image, SLOW), Fault::Throttle(300_000));
        let to = Front::before(behind.addr()).rule(slow).start();
        Self { image, from, to, behind }
    }

    fn tool(&self, more: &[&str]) -> Tool {
        let source = format!("{}/a/b:v1", self.from.addr());
        Tool::transload().args(&["copy", &source, self.to.host()]).args(more)
    }

    /// A copy whose first layer is there and whose second one is on its way.
    #[track_caller]
    fn started(&self, more: &[&str]) -> Process {
        let process = self.tool(more).spawn();
        self.to.wait_for("that stored the first layer", |seen| {
            seen.target().contains(hex(&self.image, DONE)) && seen.status == Some(201)
        });
        self.to.wait_for("with half of the second layer", |seen| {
            seen.target().contains(hex(&self.image, SLOW)) && seen.received() > 200_000
        });
        process
    }

    /// What an interrupt leaves behind: no tag, and no session that wasn't deleted.
    #[track_caller]
    fn assert_cleaned(&self, run: &Run, signal: &str) {
        // Both are true: what the registry has stored, and what it has not.
        let stored = |blob: &usize| {
            let stored =
                |seen: &SeenRequest| seen.target().contains(hex(&self.image, *blob)) && seen.status == Some(201);
            self.to.log().iter().any(stored)
        };
        let kept: Vec<usize> = [0, DONE].into_iter().filter(stored).collect();
        let bytes: usize = kept.iter().map(|blob| self.image.blobs[*blob].bytes.len()).sum();
        let verb = if kept.len() == 1 { "blob (1.4 MiB) is" } else { "blobs (1.4 MiB) are" };
        assert!((1_468_006..1_572_864).contains(&bytes), "1.4 MiB: {bytes}");
        let start = format!(
            "error: interrupted by {signal}\nhint: {} {verb} finished and kept; 1 unfinished blob (",
            kept.len()
        );
        let so_far = run.stderr.strip_prefix(&start).and_then(|rest| rest.split_once(" read so far) "));
        let (so_far, end) = so_far.unwrap_or_else(|| panic!("{start}: {}", run.stderr));
        assert_eq!(end, "starts again; run the same command to go on\n");
        assert!(so_far.ends_with(" KiB") || so_far.ends_with(" MiB"), "{so_far}");
        assert_eq!(run.stdout, "");
        assert!(self.to.struck() > 0);
        http::get(self.behind.addr(), "/v2/a/b/manifests/v1").expect(404);
        let put = self
            .to
            .log()
            .into_iter()
            .find(|seen| seen.method == "PUT" && seen.target().contains(hex(&self.image, SLOW)));
        let session = put.expect("an upload").path;
        assert_eq!(self.to.count("DELETE", &session), 1, "{:?}", self.to.log());
        self.behind.assert_no_open_uploads();
    }

    /// The same command again: the first layer is neither read nor sent again.
    #[track_caller]
    fn assert_goes_on(&self) {
        self.to.clear_rules();
        self.to.reset_log();
        self.from.reset_log();
        self.tool(&[]).run().ok();
        self.image.assert_at(self.behind.addr(), "a/b", "v1");
        assert_eq!(self.from.count("GET", &self.image.blobs[DONE].digest), 0, "{:?}", self.from.requests());
        assert_eq!(self.from.count("GET", &self.image.blobs[SLOW].digest), 1);
        assert_eq!(self.to.count("PUT", hex(&self.image, DONE)), 0);
    }
}

/// A blob's digest as it stands in an encoded query.
fn hex(image: &Image, blob: usize) -> &str {
    image.blobs[blob].digest.trim_start_matches("sha256:")
}

#[test]
fn ctrl_c_deletes_the_upload_and_the_next_run_goes_on() {
    let stage = Stage::new(1);
    let process = stage.started(&[]);
    process.interrupt();
    let run = process.finish(Duration::from_secs(20)).exits(130);
    stage.assert_cleaned(&run, "SIGINT");
    stage.assert_goes_on();
}

#[test]
fn sigterm_does_the_same() {
    let stage = Stage::new(2);
    let process = stage.started(&[]);
    process.terminate();
    let run = process.finish(Duration::from_secs(20)).exits(130);
    stage.assert_cleaned(&run, "SIGTERM");
    stage.assert_goes_on();
}

#[test]
fn chunks_that_were_taken_are_deleted_too() {
    let stage = Stage::new(3);
    stage.to.add(Rule::on("PATCH", "", Fault::Throttle(300_000)).nth(3..));
    let process = stage.tool(&["--chunk-size", "1MiB"]).spawn();
    stage.to.wait_for("in the third chunk", |seen| {
        seen.header("content-range").is_some_and(|range| range.starts_with("1048576-")) && seen.received() > 100_000
    });
    process.interrupt();
    process.finish(Duration::from_secs(20)).exits(130);
    assert!(stage.to.struck() > 0);
    http::get(stage.behind.addr(), "/v2/a/b/manifests/v1").expect(404);
    stage.behind.assert_no_open_uploads();
}

#[test]
fn a_session_that_is_being_opened_is_deleted() {
    let stage = Stage::new(4);
    stage.to.add(Rule::on("POST", "/uploads/", Fault::Delay(Duration::from_millis(1500))));
    let process = stage.tool(&[]).spawn();
    stage.to.wait_for("that begins an upload", |seen| seen.method == "POST");
    process.interrupt();
    process.finish(Duration::from_secs(20)).exits(130);
    let posts = stage.to.count("POST", "");
    assert!((1..=3).contains(&posts) && stage.to.struck() == posts, "{:?}", stage.to.log());
    assert_eq!((stage.to.count("PUT", ""), stage.to.count("DELETE", "")), (0, posts));
    stage.behind.assert_no_open_uploads();
}

#[test]
fn a_registry_that_does_not_answer_holds_nobody_up() {
    let stage = Stage::new(5);
    stage.to.add(Rule::on("DELETE", "", Fault::Stall));
    let process = stage.started(&[]);
    process.interrupt();
    // The clean-up has five seconds.
    let begun = std::time::Instant::now();
    process.finish(Duration::from_secs(20)).exits(130);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(stage.to.log().iter().any(|seen| seen.fault == Some(Fault::Stall)));
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    let stage = Stage::new(6);
    stage.to.add(Rule::on("DELETE", "", Fault::Stall));
    let process = stage.started(&[]);
    process.interrupt();
    stage.to.wait_for("that deletes the session", |seen| seen.method == "DELETE");
    let begun = std::time::Instant::now();
    process.interrupt();
    process.finish(Duration::from_secs(20)).exits(130);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[test]
fn waiting_for_a_limit_can_be_interrupted() {
    let image = Image::single(7, &[2000]);
    let (behind, to) = (Registry::start(), Registry::start());
    image.push(behind.addr(), "a/b", "v1");
    let from = Front::before(behind.addr()).rule(Rule::on("GET", "/manifests/", Fault::too_many(100))).start();
    let source = format!("{}/a/b:v1", from.host());
    let process = Tool::transload().args(&["copy", &source, &to.addr().to_string()]).spawn();
    from.wait_for("that is told to wait", |seen| seen.status == Some(429));
    process.interrupt();
    let run = process.finish(Duration::from_secs(10)).exits(130);
    assert!(run.stderr.ends_with("hint: no blob was finished; run the same command to go on\n"), "{}", run.stderr);
    assert_eq!(from.struck(), 1);
}
