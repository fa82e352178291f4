use super::*;
use crate::copy::{Quota, Status};
use crate::descriptor::Digest;

fn which(line: usize, source: &str, destination: &str) -> ImageId {
    ImageId { source: source.into(), destination: destination.into(), line }
}

fn report(status: Status) -> Report {
    Report {
        status,
        digest: Some(Digest::of(b"x")),
        platforms: ["linux/amd64", "linux/arm64/v8"].into_iter().collect(),
        pulls: if status == Status::Copied { 3 } else { 0 },
        bytes_uploaded: if status == Status::Copied { 1000 } else { 0 },
        bytes_skipped: 24,
        duration_seconds: 1.5,
        ..Report::default()
    }
}

fn used(name: &str, requests: u64, remaining: Option<u64>) -> RegistryUsage {
    let pull_limit = remaining.map(|remaining| Quota { limit: 100, remaining, window_seconds: 21600, source: None });
    RegistryUsage { name: name.into(), requests, pulls: requests / 4, pull_limit }
}

fn failure() -> Error {
    Error::new(Kind::Limited, "docker.io answered 429: \"slow\" <down> & wait\u{1b}[0m\nnow")
        .on(Side::Source)
        .hint("log in & try again")
}

/// Ended out of the list's order, as they do.
fn run() -> RunReport {
    let mut run = RunReport::start(
        "2/3".parse::<crate::mirror::shard::ShardSpec>().and_then(|asked| asked.settle(None)).ok().as_ref(),
        false,
        &[used("docker.io", 40, Some(90))],
    );
    run.add(which(3, "docker.io/a/c:1", "b.example.com/a/c:1"), Err(&failure()));
    run.add(which(2, "docker.io/a/b:1", "a.example.com/a/b:1"), Ok(report(Status::Unchanged)));
    run.add(which(1, "docker.io/a/a:1", "a.example.com/a/a:1"), Ok(report(Status::Copied)));
    run.add(which(1, "ghcr.io/a/a:1", "a.example.com/a/a:g"), Ok(report(Status::Copied)));
    run.skip(which(4, "docker.io/a/d:1", "a.example.com/a/d:1"), &Error::new(Kind::Timeout, "the deadline passed"));
    run.finish(Duration::from_secs(7), vec![used("a.example.com", 9, None), used("docker.io", 52, Some(87))]);
    run
}

fn json(run: &RunReport) -> serde_json::Value {
    let mut text = Vec::new();
    run.json(&mut text).expect("memory");
    serde_json::from_slice(&text).expect("JSON")
}

#[test]
fn the_document_is_flat_and_in_the_lists_order() {
    let document = json(&run());
    assert_eq!(document["schema"], 1);
    assert_eq!(document["shard"], "2/3");
    let lines: Vec<String> = document["images"]
        .as_array()
        .expect("images")
        .iter()
        .map(|image| format!("{} {} {}", image["line"], image["status"].as_str().expect("a status"), image["source"]))
        .collect();
    assert_eq!(
        lines,
        [
            "1 copied \"docker.io/a/a:1\"",
            "1 copied \"ghcr.io/a/a:1\"",
            "2 unchanged \"docker.io/a/b:1\"",
            "3 failed \"docker.io/a/c:1\"",
            "4 skipped \"docker.io/a/d:1\""
        ]
    );
    let copied = &document["images"][0];
    assert_eq!((&copied["bytes_uploaded"], &copied["pulls"]), (&1000.into(), &3.into()));
    assert_eq!(copied["platforms"], serde_json::json!(["linux/amd64", "linux/arm64/v8"]));
    let error = &document["images"][3]["error"];
    assert_eq!((&error["side"], &error["kind"]), (&"source".into(), &"limited".into()));
    assert_eq!(error["hint"], "log in & try again");
    let started: Timestamp = document["started"].as_str().expect("a time").parse().expect("RFC 3339");
    assert!(started <= document["ended"].as_str().expect("a time").parse().expect("RFC 3339"));
}

#[test]
fn only_this_runs_requests_and_pulls_count() {
    let document = json(&run());
    let summary = &document["summary"];
    assert_eq!((&summary["copied"], &summary["unchanged"]), (&2.into(), &1.into()));
    assert_eq!((&summary["failed"], &summary["skipped"]), (&1.into(), &1.into()));
    assert_eq!((&summary["bytes_uploaded"], &summary["bytes_skipped"]), (&2000.into(), &72.into()));
    assert_eq!(summary["requests"], 9 + 12);
    let hub = &document["registries"][1];
    assert_eq!((&hub["requests"], &hub["pulls"], &hub["pull_limit"]["remaining"]), (&12.into(), &3.into(), &87.into()));
}

#[test]
fn exit_codes() {
    assert_eq!(run().exit_code(), 3);
    let ended = |results: &[bool]| {
        let mut run = RunReport::start(None, false, &[]);
        for good in results {
            let failure = failure();
            let result = if *good { Ok(report(Status::Copied)) } else { Err(&failure) };
            run.add(which(1, "a", "b"), result);
        }
        run.exit_code()
    };
    assert_eq!([ended(&[]), ended(&[true]), ended(&[false]), ended(&[true, false])], [0, 0, 1, 3]);
}

#[test]
fn what_failed_is_read_back() {
    let mut text = Vec::new();
    run().json(&mut text).expect("memory");
    let failed = PreviousFailures::read("r.json", &text).expect("a report");
    assert_eq!(failed.len(), 2);
    assert!(failed.holds("docker.io/a/c:1", "b.example.com/a/c:1"));
    assert!(failed.holds("docker.io/a/d:1", "a.example.com/a/d:1"), "skipped ones aren't done either");
    assert!(!failed.holds("docker.io/a/c:1", "a.example.com/a/c:1"));
    assert!(!failed.holds("docker.io/a/b:1", "a.example.com/a/b:1"));
}

/// Its tags could not be listed: all of them are to be tried again.
#[test]
fn a_repository_that_failed_as_a_whole_is_retried_as_a_whole() {
    let mut run = RunReport::start(None, false, &[]);
    run.add(which(1, "127.0.0.1:5000/a/b", ""), Err(&failure()));
    let (mut text, mut junit) = (Vec::new(), Vec::new());
    run.json(&mut text).expect("memory");
    run.junit(&mut junit).expect("memory");
    let failed = PreviousFailures::read("r.json", &text).expect("a report");
    assert!(failed.holds("127.0.0.1:5000/a/b:1", "r.io/x:1"));
    assert!(failed.holds(&format!("127.0.0.1:5000/a/b@{}", Digest::of(b"x")), "r.io/x:1"));
    assert!(!failed.holds("127.0.0.1:5000/a/bc:1", "r.io/x:1") && !failed.holds("127.0.0.1:5000/a:1", "r.io/x:1"));
    let junit = String::from_utf8(junit).expect("UTF-8");
    assert!(junit.contains("<testsuite name=\"127.0.0.1:5000\""), "{junit}");
}

#[test]
fn other_files_are_no_reports() {
    let mut junit = Vec::new();
    run().junit(&mut junit).expect("memory");
    for (bytes, why) in [
        (&b""[..], "EOF"),
        (b"images: []", "line 1"),
        (b"[]", "line 1"),
        (b"{}", "no \"schema\""),
        (br#"{"schema":2,"started":"","images":[]}"#, "schema is 2"),
        (br#"{"schema":1,"images":[],"summary":{}}"#, "no \"started\""),
        (br#"{"schema":1,"started":"","images":[{"source":"a"}]}"#, "destination"),
        (&junit, "XML"),
    ] {
        let error = PreviousFailures::read("r.json", bytes).expect_err("not a report");
        assert!(error.to_string().contains("r.json is not the report") && error.to_string().contains(why), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn junit_has_a_suite_for_each_registry() {
    let mut text = Vec::new();
    run().junit(&mut text).expect("memory");
    let text = String::from_utf8(text).expect("UTF-8");
    assert!(
        text.contains("<testsuites name=\"transload mirror\" tests=\"5\" failures=\"1\" errors=\"0\" skipped=\"1\"")
    );
    assert!(text.contains("<testsuite name=\"a.example.com\" tests=\"4\" failures=\"0\" errors=\"0\" skipped=\"1\""));
    assert!(text.contains("<testsuite name=\"b.example.com\" tests=\"1\" failures=\"1\""));
    assert!(text.contains("<testcase classname=\"a.example.com/a/a:1\" name=\"docker.io/a/a:1\" time=\"1.500\">"));
    assert!(text.contains("<system-out>copied: 1000 bytes moved, 24 saved, 3 pulls</system-out></testcase>"), "{text}");
    assert!(text.contains("<system-out>unchanged: 0 bytes moved, 24 saved, 0 pulls</system-out></testcase>"), "{text}");
    let message = "429: &quot;slow&quot; &lt;down&gt; &amp; wait\\u{1b}[0m\\nnow";
    assert!(text.contains(&format!("{message}\">source: ")), "{text}");
    assert!(text.contains("\nhint: log in &amp; try again</failure></testcase>"), "{text}");
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn ten_thousand_images_are_small() {
    let entry = size_of::<Entry>() + size_of::<Report>();
    assert!(entry < 448, "{entry} bytes for each image");
    let mut run = RunReport::start(None, false, &[]);
    for line in 0..1000 {
        run.add(which(line, "docker.io/a/a:1", "a.example.com/a/a:1"), Ok(report(Status::Unchanged)));
    }
    assert_eq!(run.platforms.len(), 1);
    let first = run.images()[0].ended.report().expect("a report").platforms.clone();
    assert!(run.images().iter().all(|image| image.ended.report().is_some_and(|r| r.platforms.is_same(&first))));
}

#[test]
fn a_file_is_whole_or_as_before() {
    let dir = std::env::temp_dir().join(format!("transload-report-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let path = dir.join("report.json");
    save(&path, |to| to.write_all(b"one")).expect("a file");
    let broken = save(&path, |to| {
        to.write_all(&[b'x'; 100_000])?;
        Err(std::io::Error::other("no more"))
    });
    assert!(broken.expect_err("broken off").to_string().contains("report.json: no more"));
    assert_eq!(std::fs::read(&path).expect("the file"), b"one");
    assert_eq!(std::fs::read_dir(&dir).expect("a directory").count(), 1, "nothing is left beside it");
    let link = dir.join("link");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    save(&link, |to| to.write_all(b"two")).expect("a file");
    assert_eq!(std::fs::read(&path).expect("the file"), b"two");
    assert!(std::fs::symlink_metadata(&link).expect("the link").is_symlink());
    save(std::path::Path::new("/dev/null"), |to| to.write_all(b"gone")).expect("a device");
    let nowhere = save(&dir.join("no/such"), |_| Ok(())).expect_err("no directory");
    assert!(nowhere.to_string().contains("no/such"), "{nowhere}");
    std::fs::remove_dir_all(&dir).expect("ours");
}
