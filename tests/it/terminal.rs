//! What is seen in a terminal and in a log while images are copied.

use std::time::Duration;

use super::support::process::RUN_TIMEOUT;
use super::support::{Fault, Front, Image, Registry, Rule, TempDir, Terminal, Tool};

const MIB: usize = 1 << 20;

/// A source behind a front that makes trouble, and a destination.
struct Stage {
    front: Front,
    _behind: Registry,
    to: Registry,
}

impl Stage {
    /// A source with this image as `a/b:v1`.
    fn new(image: &Image, rule: Rule) -> Self {
        let (behind, to) = (Registry::start(), Registry::start());
        image.push(behind.addr(), "a/b", "v1");
        let front = Front::before(behind.addr()).rule(rule).start();
        Self { front, _behind: behind, to }
    }

    fn source(&self) -> String {
        format!("{}/a/b:v1", self.front.host())
    }

    fn destination(&self) -> String {
        self.to.addr().to_string()
    }

    /// A copy in a terminal.
    fn copy(&self, width: usize) -> Terminal {
        Terminal::transload(width, &["copy", &self.source(), &self.destination()])
    }
}

/// Blobs' answers that come slowly.
fn slow() -> Rule {
    Rule::on("GET", "/blobs/", Fault::Throttle(400_000))
}

/// At any width a bar is one line, with how much there is.
#[test]
fn bars_fit_terminals_of_any_width() {
    let image = Image::single(1, &[3 * MIB, 2 * MIB]);
    let stage = Stage::new(&image, slow());
    for width in [20, 40, 80, 200] {
        let terminal = stage.copy(width);
        let screen = terminal.wait_for("bars", |screen| {
            screen.lines().filter(|line| line.contains('[') && line.contains('>')).count() == 3
        });
        // A line that wraps would be two, of which each lacks something.
        let whole = |line: &str| line.contains('[') && line.contains(']') && line.ends_with(['%', 'B', 's', 't']);
        assert!(screen.lines().all(whole), "{screen}");
        assert!(screen.lines().all(|line| line.chars().count() <= width - 3), "{screen}");
        assert!(screen.contains('%') && !screen.contains("100%"), "{screen}");
    }
}

/// A registry that asks to be left alone is named, with the reason and the seconds that are left.
#[test]
fn a_wait_for_a_registry_is_shown_with_its_reason_and_its_end() {
    let stage = Stage::new(&Image::single(2, &[2000]), Rule::on("GET", "/manifests/", Fault::too_many(90)));
    for width in [20, 40, 80] {
        let terminal = stage.copy(width);
        // A second before the wait began is not shown for long.
        let end = |screen: &str| {
            screen.lines().any(|line| {
                line.rsplit_once(", ").is_some_and(|(before, end)| {
                    before.starts_with("waiting fo") && end.ends_with(" s") && end.len() == 4
                })
            })
        };
        let screen = terminal.wait_for("wait", end);
        assert!(!screen.contains(" left"), "{screen}");
        if width == 80 {
            let text = format!("waiting for {} (429), ", stage.front.host());
            assert!(screen.contains(&text), "{screen}");
        }
    }
}

#[test]
fn a_retry_is_shown_with_the_registry_and_the_reason() {
    let stage = Stage::new(&Image::single(3, &[2 * MIB]), Rule::on("GET", "/blobs/", Fault::status(500)));
    let terminal = stage.copy(80);
    let text = format!("{}: 500, retrying in ", stage.front.host());
    terminal.wait_for("retry", |screen| screen.lines().any(|line| line.starts_with(&text) && line.ends_with(" s")));
}

#[test]
fn a_stall_is_shown_with_its_seconds() {
    let image = Image::single(4, &[3 * MIB]);
    let stage = Stage::new(&image, Rule::on("GET", &image.blobs[1].digest, Fault::StallAfter(1_500_000)));
    for width in [20, 80] {
        let screen = stage.copy(width).wait_text("stalled for 3 s");
        assert!(screen.contains('%') && !screen.contains(" left"), "{screen}");
    }
}

#[test]
fn a_mirror_shows_the_image_and_how_many_failed() {
    let image = Image::single(5, &[3 * MIB]);
    let stage = Stage::new(&image, slow());
    let directory = TempDir::new();
    let host = stage.front.host();
    let list = directory.write("list.txt", format!("{host}/a/b:v1\n{host}/a/b:no-such-tag\n{host}/c/d:v1\n"));
    let terminal = Terminal::transload(40, &["mirror", &list, "--to", &stage.destination()]);
    let screen =
        terminal.wait_for("images", |screen| screen.contains("image 3 of 3, 2 failed") && screen.contains('>'));
    assert!(screen.contains(&format!("failed: {host}/c/d:v1")[..30]), "{screen}");
    terminal.wait_text("exit 3");
}

/// A mirror in a CI job: each image has its line when it is done, not at the end, and the status comes in between.
#[test]
fn without_a_terminal_a_mirror_says_each_image_and_from_time_to_time_how_it_goes() {
    let (image, small) = (Image::single(6, &[3 * MIB]), Image::single(60, &[2000]));
    let stage = Stage::new(&image, Rule::on("GET", &image.blobs[1].digest, Fault::Stall));
    small.push(stage._behind.addr(), "c/d", "v1");
    let host = stage.front.host();
    let tool = Tool::transload().file("list.txt", &format!("{host}/a/b:v1\n{host}/c/d:v1\n"));
    let tool = tool.env("TRANSLOAD_TEST_STATUS_INTERVAL", "50");
    let process = tool.args(&["mirror", "list.txt", "--to", &stage.destination()]).spawn();
    process.stderr.wait_line(&format!("copied: {host}/c/d:v1 to {}/c/d:v1", stage.destination()), RUN_TIMEOUT);
    let status = process.stderr.wait_line("status: image 2 of 2; ", RUN_TIMEOUT);
    assert!(status.contains(" MiB sent (  0%), "), "{status}");
    stage.front.clear_rules();
    process.interrupt();
    let run = process.finish(Duration::from_secs(20)).exits(130);
    assert_eq!(run.stdout, "");
    assert!(run.stderr.contains(" blobs (2.3 KiB) are finished and kept; "), "{}", run.stderr);
    assert!(
        run.stderr.contains("1 unfinished blob (0 B read so far) starts again; run the same command"),
        "{}",
        run.stderr
    );
}

#[test]
fn quiet_has_no_status_and_no_lines() {
    let stage = Stage::new(&Image::single(7, &[2 * MIB]), slow());
    let tool = Tool::transload().env("TRANSLOAD_TEST_STATUS_INTERVAL", "20");
    let run = tool.args(&["copy", &stage.source(), &stage.destination(), "--quiet"]).run().ok();
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
}

/// `-v` says what is done with each blob; `-vv` says of each request when it was answered, by what, and how long it took.
#[test]
fn verbose_output_has_blobs_and_requests() {
    let image = Image::single(8, &[2000]);
    let stage = Stage::new(&image, Rule::on("GET", "/never/", Fault::Stall));
    let copy =
        |flag| Tool::transload().args(&["copy", &stage.source(), &stage.destination(), "--force", flag]).run().ok();
    let size = image.blobs[1].bytes.len();
    let layer = &image.blobs[1].digest["sha256:".len()..][..12];
    let run = copy("-v");
    assert!(run.stderr.contains(&format!(" INFO blob {layer}: {size} bytes sent\n")), "{}", run.stderr);
    let run = copy("-vv");
    let request = run.stderr.lines().find(|line| line.contains("/a/b/manifests/v1: 200, ")).expect(&run.stderr);
    let (time, rest) = request.split_once(' ').expect("a time");
    assert!(time.len() == "2026-01-01T00:00:00.000Z".len() && time.ends_with('Z'), "{request}");
    assert!(rest.starts_with("DEBUG ") && rest.ends_with(" ms") && rest.contains(" bytes, "), "{request}");
}

#[test]
fn each_line_of_a_json_log_is_an_object() {
    let stage = Stage::new(&Image::single(9, &[2000]), Rule::on("GET", "/manifests/", Fault::status(500)).once());
    let missing = stage.source().replace("a/b", "no/such");
    for (source, code) in [(stage.source(), 0), (missing, 1)] {
        let args = ["copy", &source, &stage.destination(), "-vv", "--log-format", "json"];
        let run = Tool::transload().args(&args).run().exits(code);
        let lines: Vec<serde_json::Value> =
            run.stderr.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        assert!(lines.iter().all(|line| ["timestamp", "level", "message"].iter().all(|name| line[name].is_string())));
        let level = if code == 0 { "WARN" } else { "ERROR" };
        let found: Vec<_> = lines.iter().filter(|line| line["level"] == level).collect();
        assert_eq!(found.len(), 1, "{}", run.stderr);
        let text = if code == 0 { "retrying in" } else { "no/such" };
        assert!(found[0]["message"].as_str().is_some_and(|message| message.contains(text)), "{found:?}");
    }
}

/// Reports of a mirror that stays are told apart, and its log lines have times.
#[test]
fn runs_of_an_interval_are_separated_and_the_log_has_times() {
    let stage = Stage::new(&Image::single(10, &[2000]), Rule::on("GET", "/never/", Fault::Stall));
    let tool = Tool::transload().file("list.txt", &format!("{}\n", stage.source()));
    let process = tool.args(&["mirror", "list.txt", "--to", &stage.destination(), "--interval", "1s"]).spawn();
    for run in ["--- run 1, 20", "--- run 2, 20"] {
        let line = process.stdout.wait_line(run, RUN_TIMEOUT);
        assert!(line.ends_with(" UTC ---"), "{line}");
    }
    process.terminate();
    let run = process.finish(Duration::from_secs(20)).exits(0);
    let dated = |line: &str| line.split(' ').next().is_some_and(|time| time.len() == 24 && time.ends_with('Z'));
    assert!(run.stderr.lines().count() >= 2 && run.stderr.lines().all(dated), "{}", run.stderr);
}

#[test]
fn ctrl_c_at_the_password_prompt_ends_with_130() {
    let registry = Registry::with_basic("user");
    let terminal = Terminal::transload(80, &["login", &registry.addr().to_string(), "--username", "user"]);
    terminal.wait_text("Password:");
    terminal.press("C-c");
    let screen = terminal.wait_text("exit ");
    assert!(screen.contains("exit 130") && screen.contains("error: interrupted by SIGINT"), "{screen}");
}

/// What a copy into a directory has of a blob stays, and the next copy asks for the rest.
#[test]
fn an_interrupted_copy_into_a_directory_goes_on_in_the_blob() {
    let image = Image::single(11, &[4 * MIB]);
    let layer = image.blobs[1].digest.clone();
    let stage = Stage::new(&image, Rule::on("GET", &layer, Fault::StallAfter(3_000_000)));
    let directory = TempDir::new();
    let layout = format!("oci:{}", directory.join("layout"));
    let process = Tool::transload().args(&["copy", &stage.source(), &layout]).spawn();
    stage.front.wait_for("with most of the layer", |seen| seen.target().contains(&layer) && seen.sent() >= 3_000_000);
    let partial = wait_for_partial(&directory, 2 * MIB);
    process.interrupt();
    let run = process.finish(Duration::from_secs(20)).exits(130);
    assert!(
        run.stderr.contains(" MiB read so far) ")
            && run.stderr.ends_with(" continued; run the same command to go on\n"),
        "{}",
        run.stderr
    );
    stage.front.clear_rules();
    stage.front.reset_log();
    Tool::transload().args(&["copy", &stage.source(), &layout]).run().ok();
    let ranges: Vec<String> =
        stage.front.log().iter().filter_map(|seen| seen.header("range").map(str::to_owned)).collect();
    let from: u64 =
        ranges[0].trim_start_matches("bytes=").split('-').next().and_then(|at| at.parse().ok()).expect("a range");
    assert!(ranges.len() == 1 && from >= partial, "{ranges:?}");
    let blob = std::fs::read(directory.join(&format!("layout/blobs/{}", layer.replace(':', "/")))).expect("the layer");
    assert!(blob == image.blobs[1].bytes);
    assert_eq!(temporary_files(&directory), Vec::<String>::new());
}

/// Waits until so many bytes are in the temporary file of a layer.
#[track_caller]
fn wait_for_partial(directory: &TempDir, least: usize) -> u64 {
    let deadline = std::time::Instant::now() + RUN_TIMEOUT;
    loop {
        let sizes = temporary_files(directory)
            .iter()
            .filter_map(|name| std::fs::metadata(directory.join(&format!("layout/{name}"))).ok().map(|data| data.len()))
            .max();
        if let Some(size) = sizes.filter(|size| *size >= least as u64) {
            return size;
        }
        assert!(std::time::Instant::now() < deadline, "no file of {least} bytes: {sizes:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn temporary_files(directory: &TempDir) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory.join("layout")) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(".transload-")).collect()
}

/// A limit that is far away is reported with the time of day when to try again.
#[test]
fn a_long_retry_after_is_told_with_the_time_of_day() {
    let stage = Stage::new(&Image::single(12, &[2000]), Rule::on("GET", "/manifests/", Fault::too_many(7200)));
    let tool = Tool::transload().env("TZ", "UTC").args(&["copy", &stage.source(), &stage.destination()]);
    let run = tool.run().exits(1);
    let hint = run.stderr.lines().last().expect("a hint");
    let host = stage.front.host();
    let start = format!("hint: too many requests: {host} asks to wait for 2 h 0 min: try again at ");
    assert!(hint.starts_with(&start) && hint.ends_with(" UTC"), "{}", run.stderr);
}
