use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Mutex;

use tokio::time::sleep;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// A file whose content the test sets.
struct Fake(Mutex<Result<String, String>>);

impl Fake {
    fn new(text: &str) -> Self {
        Self(Mutex::new(Ok(text.into())))
    }

    fn set(&self, text: &str) {
        *self.0.lock().expect("no panic while held") = Ok(text.into());
    }

    fn lose(&self) {
        *self.0.lock().expect("no panic while held") = Err("gone".into());
    }
}

impl ListOrigin for Fake {
    async fn read(&self) -> Result<Vec<u8>> {
        let content = self.0.lock().expect("no panic while held").clone();
        content.map(String::into_bytes).map_err(|why| Error::new(Kind::Local, why))
    }
}

fn parse(bytes: &[u8]) -> Result<String> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    if text.starts_with("bad") { Err(Error::new(Kind::Usage, text)) } else { Ok(text) }
}

/// An event, with the seconds since the beginning.
#[derive(Clone)]
struct Log(Rc<RefCell<Vec<(f64, String)>>>, Instant);

impl Log {
    fn new() -> Self {
        Self(Rc::default(), Instant::now())
    }

    fn note(&self, what: impl Into<String>) {
        self.0.borrow_mut().push((self.1.elapsed().as_secs_f64(), what.into()));
    }

    fn record(&self, event: &Event<'_>) {
        match event {
            Event::Loaded => self.note("loaded"),
            Event::Rejected(error) => self.note(format!("rejected {error}")),
            Event::Begun | Event::Ended | Event::Next(_) => {}
        }
    }

    fn words(&self) -> Vec<String> {
        self.0.borrow().iter().map(|(_, what)| what.clone()).collect()
    }

    fn times(&self, what: &str) -> Vec<f64> {
        self.0.borrow().iter().filter(|(_, noted)| noted == what).map(|(at, _)| *at).collect()
    }
}

/// Runs every hour, each for `took`, while `script` works; then stops.
async fn scripted(fake: &Fake, took: Duration, hangup: &Notify, script: impl Future<Output = ()>) -> Log {
    let log = Log::new();
    let run = async |list: &String| {
        log.note(list.as_str());
        sleep(took).await;
        log.note(format!("/{list}"));
    };
    run_every(&Schedule::new(HOUR), fake, parse, run, hangup, script, |event| log.record(&event))
        .await
        .expect("a good list");
    log
}

#[tokio::test(start_paused = true)]
async fn runs_begin_an_interval_apart() {
    let log = scripted(&Fake::new("a"), Duration::from_secs(600), &Notify::new(), sleep(HOUR * 24)).await;
    let starts = log.times("a");
    assert!((23..=25).contains(&starts.len()), "{starts:?}");
    let apart: Vec<f64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(apart.iter().all(|seconds| (3492.0..3708.5).contains(seconds)), "{apart:?}");
    assert!(apart.iter().any(|seconds| (seconds - apart[0]).abs() > 1.0), "spread: {apart:?}");
    assert_eq!(log.times("loaded").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_long_run_delays_the_next() {
    let log = scripted(&Fake::new("a"), HOUR * 3, &Notify::new(), sleep(HOUR * 8)).await;
    assert_eq!(log.words(), ["loaded", "a", "/a", "a", "/a", "a"], "one after the other; the last was dropped");
    let starts = log.times("a");
    assert!((starts[1] - 3.0 * 3600.0).abs() < 1.0, "{starts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_new_list_runs_at_once_when_it_is_settled() {
    let fake = Fake::new("a");
    let script = async {
        sleep(Duration::from_secs(100)).await;
        // Written in three steps: no step is read as a list.
        for part in ["b", "bb", "bbb"] {
            fake.set(part);
            sleep(Duration::from_secs(5)).await;
        }
        sleep(Duration::from_secs(100)).await;
    };
    let log = scripted(&fake, Duration::from_secs(1), &Notify::new(), script).await;
    assert_eq!(log.words(), ["loaded", "a", "/a", "loaded", "bbb", "/bbb"]);
    let at = log.times("bbb")[0];
    assert!((114.0..=121.0).contains(&at), "{at}");
}

#[tokio::test(start_paused = true)]
async fn a_change_during_a_run_is_seen_after_it() {
    let fake = Fake::new("a");
    let script = async {
        sleep(Duration::from_secs(100)).await;
        fake.set("b");
        sleep(Duration::from_secs(1000)).await;
    };
    let log = scripted(&fake, Duration::from_secs(500), &Notify::new(), script).await;
    assert_eq!(log.words(), ["loaded", "a", "/a", "loaded", "b", "/b"]);
}

#[tokio::test(start_paused = true)]
async fn a_bad_list_keeps_the_old_one_and_is_reported_once() {
    let fake = Fake::new("a");
    let script = async {
        sleep(Duration::from_secs(100)).await;
        fake.set("bad 1");
        sleep(Duration::from_secs(100)).await;
        fake.lose();
        sleep(Duration::from_secs(100)).await;
        fake.set("a");
        sleep(HOUR).await;
    };
    let log = scripted(&fake, Duration::from_secs(1), &Notify::new(), script).await;
    let expected = ["loaded", "a", "/a", "rejected bad 1", "rejected gone", "loaded", "a", "/a"];
    assert_eq!(log.words(), expected, "the second run is due by the hour");
    assert!(log.times("a")[1] > 3400.0);
}

#[tokio::test(start_paused = true)]
async fn a_hangup_reads_and_runs_now() {
    let (fake, hangup) = (Fake::new("a"), Notify::new());
    let script = async {
        // A notice during the run takes effect after it.
        sleep(Duration::from_secs(10)).await;
        hangup.notify_one();
        sleep(Duration::from_secs(90)).await;
        fake.set("b");
        hangup.notify_one();
        sleep(Duration::from_secs(100)).await;
        fake.set("bad");
        hangup.notify_one();
        sleep(Duration::from_secs(100)).await;
    };
    let log = scripted(&fake, Duration::from_secs(20), &hangup, script).await;
    let expected = ["loaded", "a", "/a", "loaded", "a", "/a", "loaded", "b", "/b", "rejected bad"];
    assert_eq!(log.words(), expected);
    assert!((99.9..=100.1).contains(&log.times("b")[0]), "at once");
}

#[tokio::test]
async fn a_bad_list_in_the_beginning_is_an_error() {
    let run = async |_: &String| panic!("nothing to run");
    let stop = std::future::pending();
    let ended = run_every(&Schedule::new(HOUR), &Fake::new("bad"), parse, run, &Notify::new(), stop, |_| {}).await;
    assert_eq!(ended.expect_err("a bad list").to_string(), "bad");
}

/// Kubernetes: the file is a link into a linked directory, which is swapped by a rename.
#[tokio::test]
async fn a_swapped_config_map_is_read() {
    let dir = std::env::temp_dir().join(format!("transload-schedule-{}", std::process::id()));
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, dir.join(at)).expect("a link");
    for (version, text) in [("1", "a"), ("2", "b")] {
        std::fs::create_dir_all(dir.join(version)).expect("a directory");
        std::fs::write(dir.join(version).join("list"), text).expect("a file");
    }
    link("1", "..data");
    link("..data/list", "list");
    let file = ListFile(dir.join("list"));
    assert_eq!(file.read().await.expect("a list"), b"a");
    link("2", "..new");
    std::fs::rename(dir.join("..new"), dir.join("..data")).expect("a swap");
    assert_eq!(file.read().await.expect("a list"), b"b");
    std::fs::remove_dir_all(&dir).expect("ours");
    assert!(file.read().await.expect_err("gone").to_string().contains("/list"));
}

#[test]
fn durations_as_people_write_them() {
    for (text, seconds) in [
        ("90s", 90),
        ("6h", 21600),
        ("1d", 86400),
        ("1h30m", 5400),
        ("2 weeks", 14 * 86400),
        ("PT6H", 21600),
        ("0s", 0),
    ] {
        assert_eq!(parse_duration(text).ok(), Some(Duration::from_secs(seconds)), "{text}");
    }
    for text in ["", "6", "six hours", "-6h", "1mo", "6h ago"] {
        let error = parse_duration(text).expect_err(text);
        assert!(error.to_string().contains("is not a duration") && error.exit_code() == 2, "{error}");
    }
}
