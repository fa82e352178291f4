//! What is to be copied into the durable tier: a bounded queue that survives restarts.
//!
//! Who pulls never waits for this: an event puts an image into the queue, and a worker elsewhere
//! (`cli::proxy`, which has the copy engine) takes some at once, of each repository one. What failed, or
//! got on too slowly, is tried again later, with growing pauses, until it's there or its source is gone.

use std::borrow::Cow;
use std::fs::{self, File};
use std::future::Future;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::events::{Event, Observer};
use crate::error::{Error, Kind, Result, Side};
use crate::pool::blocking;
use crate::reference::Target;
use crate::regular_file::{self, Links};

/// One image to be copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The upstream's name.
    pub upstream: String,
    /// The repository there.
    pub repository: String,
    /// The tag, or the digest.
    pub target: String,
}

impl Job {
    /// Which manifest.
    ///
    /// # Errors
    /// If it's no digest, though it looks like one.
    pub fn target(&self) -> Result<Target> {
        // A tag has no colon.
        if self.target.contains(':') {
            self.target.parse().map(Target::Digest)
        } else {
            Ok(Target::Tag(self.target.clone()))
        }
    }
}

/// How a copy ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was copied.
    Copied,
    /// The durable tier had it.
    Present,
}

/// The queue. Clones share it.
#[derive(Clone, Debug)]
pub struct Queue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    state: Mutex<State>,
    changed: Notify,
    ended: Family<[(&'static str, Cow<'static, str>); 1], Counter>,
    waiting: Gauge,
}

#[derive(Debug, Default)]
struct State {
    jobs: Vec<Waiting>,
    unsaved: bool,
}

#[derive(Debug)]
struct Waiting {
    job: Job,
    tries: u32,
    due: Instant,
    running: bool,
}

impl Waiting {
    fn new(job: Job) -> Self {
        Self { job, tries: 0, due: Instant::now(), running: false }
    }
}

impl Queue {
    /// The queue that `dir` keeps, with its figures shown by `registry`. One that can't be read is told
    /// and begun anew: its images come again when they are pulled again.
    pub fn open(dir: &Path, registry: &mut Registry) -> Self {
        let file = dir.join(FILE);
        let jobs = load(&file).unwrap_or_else(|error| {
            tracing::warn!("{error}: the write-back queue begins anew");
            Vec::new()
        });
        let jobs: Vec<Waiting> = jobs.into_iter().take(BOUND).map(Waiting::new).collect();
        let (ended, waiting) = (Family::default(), Gauge::default());
        let proxy = registry.sub_registry_with_prefix(super::metrics::PREFIX);
        proxy.register("write_back", "Images for the durable tier by how it ended", ended.clone());
        proxy.register("write_back_waiting", "Images that wait for the durable tier", waiting.clone());
        let queue = Self(Arc::new(Inner {
            file,
            state: Mutex::new(State { jobs, unsaved: false }),
            changed: Notify::new(),
            ended,
            waiting,
        }));
        queue.count(&queue.lock());
        queue
    }

    /// Has `copy` copy what is in the queue, for ever; it counts the bytes that it moved. Dropped, what is
    /// left is kept.
    pub async fn run<F: Future<Output = Result<Done>>>(&self, copy: impl Fn(Job, Arc<AtomicU64>) -> F) {
        let mut running = FuturesUnordered::new();
        loop {
            self.save().await;
            let changed = self.0.changed.notified();
            let next = if running.len() < AT_ONCE { self.next() } else { None };
            let until = match next {
                Some((job, None)) => {
                    let moved = Arc::new(AtomicU64::new(0));
                    let copied = in_time(copy(job.clone(), moved.clone()), moved);
                    running.push(async move { (job, copied.await) });
                    continue;
                }
                Some((_, until)) => until,
                None => None,
            };
            let due = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((job, result)) = running.next(), if !running.is_empty() => self.ended(&job, result),
                () = changed => {}
                () = due => {}
            }
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&self, job: Job) {
        let mut state = self.lock();
        if state.jobs.iter().any(|waiting| waiting.job == job) {
            return;
        }
        if state.jobs.len() >= BOUND {
            self.told("dropped");
            // What fails again and again makes room for what may not.
            let worst = (0..state.jobs.len()).max_by_key(|&n| state.jobs[n].tries);
            match worst.filter(|&n| state.jobs[n].tries > 0) {
                Some(n) => drop(state.jobs.remove(n)),
                None => return,
            }
        }
        state.jobs.push(Waiting::new(job));
        state.unsaved = true;
        self.count(&state);
        drop(state);
        self.0.changed.notify_one();
    }

    /// What is next, and when, if not now: then it's marked. Images of one repository have much in common:
    /// the second one finds it there.
    fn next(&self) -> Option<(Job, Option<Instant>)> {
        let mut state = self.lock();
        let place = |job: &Job| (job.upstream.clone(), job.repository.clone());
        let busy: Vec<_> = state.jobs.iter().filter(|waiting| waiting.running).map(|one| place(&one.job)).collect();
        let idle = state.jobs.iter_mut().filter(|waiting| !busy.contains(&place(&waiting.job)));
        let first = idle.min_by_key(|waiting| waiting.due)?;
        if first.due > Instant::now() {
            return Some((first.job.clone(), Some(first.due)));
        }
        first.running = true;
        Some((first.job.clone(), None))
    }

    fn ended(&self, job: &Job, result: Result<Done>) {
        let mut state = self.lock();
        let what = format!("{}/{} {}", job.upstream, job.repository, job.target);
        let gone = match result {
            Ok(done) => {
                tracing::info!("{what} is in the durable tier");
                self.told(if done == Done::Copied { "copied" } else { "present" });
                true
            }
            Err(error) => {
                tracing::warn!("{what} was not copied into the durable tier: {error}");
                self.told("failed");
                // The source has it no more. What the destination lacks is another matter, and may pass.
                error.kind() == Kind::NotFound && error.side() != Some(Side::Destination)
            }
        };
        if gone {
            state.jobs.retain(|waiting| waiting.job != *job);
            state.unsaved = true;
        } else if let Some(waiting) = state.jobs.iter_mut().find(|waiting| waiting.job == *job) {
            waiting.due = Instant::now() + pause(waiting.tries);
            waiting.tries += 1;
            waiting.running = false;
        }
        self.count(&state);
    }

    async fn save(&self) {
        let jobs: Vec<Job> = {
            let mut state = self.lock();
            if !std::mem::take(&mut state.unsaved) {
                return;
            }
            state.jobs.iter().map(|waiting| waiting.job.clone()).collect()
        };
        let file = self.0.file.clone();
        if let Err(error) = blocking(move || store(&file, &jobs)).await {
            tracing::warn!("{error}: a restart forgets what was to be copied into the durable tier");
        }
    }

    fn told(&self, result: &'static str) {
        self.0.ended.get_or_create(&[("result", result.into())]).inc();
    }

    fn count(&self, state: &State) {
        self.0.waiting.set(i64::try_from(state.jobs.len()).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Queue {
    fn event(&self, event: &Event<'_>) {
        if let Event::OnlyOriginal { upstream, repository, target } = event {
            let target = match target {
                Target::Tag(tag) => tag.clone(),
                Target::Digest(digest) => digest.to_string(),
            };
            let (upstream, repository) = ((*upstream).to_owned(), (*repository).to_owned());
            self.push(Job { upstream, repository, target });
        }
    }
}

/// Gives a copy up that moves less than it should: one that hangs holds a place.
async fn in_time(copy: impl Future<Output = Result<Done>>, moved: Arc<AtomicU64>) -> Result<Done> {
    let begun = Instant::now();
    let late = async {
        loop {
            let until = begun + GRACE + Duration::from_secs(moved.load(Ordering::Relaxed) / SLOWEST);
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    };
    tokio::select! {
        done = copy => done,
        () = late => {
            let what = format!("{} bytes moved in {} s: it hangs", moved.load(Ordering::Relaxed), begun.elapsed().as_secs());
            Err(Error::new(Kind::Timeout, what))
        }
    }
}

fn pause(tries: u32) -> Duration {
    LEAST.saturating_mul(1 << tries.min(16)).min(MOST)
}

fn load(file: &Path) -> Result<Vec<Job>> {
    let bytes = match regular_file::read(file, Links::Refuse, MAX_FILE) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|error| Error::io(format!("read {}", file.display()), &error))?,
    };
    serde_json::from_slice(&bytes).map_err(|error| Error::new(Kind::Local, format!("{}: {error}", file.display())))
}

/// Writes it beside, and renames it: a process may be killed at any moment. Blocks.
fn store(file: &Path, jobs: &[Job]) -> Result<()> {
    let beside = file.with_extension("new");
    let bytes = serde_json::to_vec(jobs).map_err(|error| Error::new(Kind::Local, error.to_string()))?;
    // What could not be read back would end all jobs: then the file stays as it was.
    regular_file::check_size(bytes.len() as u64, MAX_FILE)
        .map_err(|error| Error::io(format!("write {}", file.display()), &error))?;
    // What a killed process left; it may be another kind of file.
    let _ = fs::remove_file(&beside);
    let written = File::create_new(&beside).and_then(|mut to| {
        to.write_all(&bytes)?;
        to.sync_all()?;
        fs::rename(&beside, file)
    });
    written.map_err(|error| Error::io(format!("write {}", file.display()), &error))
}

/// The file in the cache's directory.
const FILE: &str = "write-back.json";
/// The largest file of jobs that is read or written, in bytes.
const MAX_FILE: u64 = 64 << 20;
/// Images that wait at most.
const BOUND: usize = 10_000;
/// Images that are copied at once.
const AT_ONCE: usize = 4;
/// What an image may take however small it is, and how many bytes of it give it another second.
const GRACE: Duration = Duration::from_secs(300);
const SLOWEST: u64 = 64 << 10;
const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    fn pulled(queue: &Queue, tag: &str) {
        pulled_of(queue, "a/b", tag);
    }

    fn pulled_of(queue: &Queue, repository: &str, tag: &str) {
        let target = &Target::Tag(tag.to_owned());
        queue.event(&Event::OnlyOriginal { upstream: "docker.io", repository, target });
    }

    #[tokio::test(start_paused = true)]
    async fn retried_until_it_is_there_and_kept_over_restarts() {
        let dir = std::env::temp_dir().join(format!("transload-writeback-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let open = || Queue::open(&dir, &mut Registry::default());
        let queue = open();
        for tag in ["v1", "v2", "v1"] {
            pulled(&queue, tag);
        }
        assert_eq!(queue.len(), 2, "the same image once");
        // The first try of each fails, and the program ends: dropped in the middle of the second.
        let seen = Mutex::new(Vec::new());
        let fails = |job: Job, _| {
            seen.lock().expect("alone").push(job.target);
            async { Err(Error::new(Kind::Network, "down")) }
        };
        let _ = tokio::time::timeout(Duration::from_millis(1500), queue.run(fails)).await;
        let tries = seen.into_inner().expect("alone");
        assert_eq!(tries, ["v1", "v2", "v1", "v2"], "again after a second, not before");
        drop(queue);
        let queue = open();
        assert_eq!(queue.len(), 2, "kept");
        let works = |job: Job, _| async move {
            if job.target == "v1" { Ok(Done::Copied) } else { Err(Error::new(Kind::NotFound, "gone")) }
        };
        let _ = tokio::time::timeout(Duration::from_secs(5), queue.run(works)).await;
        assert!(queue.is_empty());
        assert!(open().is_empty(), "and so is the file");
        let _ = fs::remove_dir_all(&dir);
    }

    /// One that hangs holds its place, not the others; and of a repository one is copied at a time.
    #[tokio::test(start_paused = true)]
    async fn what_hangs_is_given_up_and_holds_nobody() {
        let queue = Queue::open(Path::new("/nonexistent"), &mut Registry::default());
        for repository in ["hangs", "slow", "c", "d", "e", "f"] {
            pulled_of(&queue, repository, "v1");
        }
        pulled_of(&queue, "hangs", "v2");
        let (begun, log) = (Instant::now(), Mutex::new(Vec::new()));
        let copy = |job: Job, moved: Arc<AtomicU64>| {
            log.lock().expect("alone").push((format!("{}:{}", job.repository, job.target), begun.elapsed().as_secs()));
            async move {
                match &*job.repository {
                    "hangs" if job.target == "v1" => std::future::pending().await,
                    // Slow, but not too slow: for longer than the grace.
                    "slow" => {
                        for _ in 0..600 {
                            moved.fetch_add(SLOWEST, Ordering::Relaxed);
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                        Ok(Done::Copied)
                    }
                    _ => Ok(Done::Copied),
                }
            }
        };
        let _ = tokio::time::timeout(GRACE - LEAST, queue.run(copy)).await;
        assert_eq!(queue.len(), 3, "two run, and one waits for the same repository");
        drop(queue);
        let queue = Queue::open(Path::new("/nonexistent"), &mut Registry::default());
        log.lock().expect("alone").clear();
        for (repository, tag) in [("hangs", "v1"), ("hangs", "v2"), ("slow", "v1")] {
            pulled_of(&queue, repository, tag);
        }
        let begun_again = begun.elapsed().as_secs();
        let _ = tokio::time::timeout(Duration::from_secs(650), queue.run(copy)).await;
        assert_eq!(queue.len(), 1, "only what hangs is left");
        let log = log.into_inner().expect("alone");
        let of = |name: &str| -> Vec<u64> {
            log.iter().filter(|(image, _)| image == name).map(|(_, at)| at - begun_again).collect()
        };
        assert_eq!((of("slow:v1").len(), of("hangs:v2")), (1, vec![GRACE.as_secs()]));
        assert_eq!(of("hangs:v1"), [0, GRACE.as_secs() + 1, 2 * GRACE.as_secs() + 3]);
    }

    /// Pulls come first: of all that waits some is copied at once, and of each repository one.
    #[tokio::test(start_paused = true)]
    async fn some_are_copied_at_once() {
        let queue = Queue::open(Path::new("/nonexistent"), &mut Registry::default());
        for repository in ["a", "b", "c", "d", "e", "f", "g"] {
            pulled_of(&queue, repository, "v1");
            pulled_of(&queue, repository, "v2");
        }
        let (running, most) = (Mutex::new(Vec::new()), AtomicU64::new(0));
        let copy = |job: Job, _| {
            let (running, most) = (&running, &most);
            let mut now = running.lock().expect("alone");
            assert!(!now.contains(&job.repository), "two of {}", job.repository);
            now.push(job.repository.clone());
            most.fetch_max(now.len() as u64, Ordering::Relaxed);
            async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                running.lock().expect("alone").retain(|name| *name != job.repository);
                Ok(Done::Copied)
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(60), queue.run(copy)).await;
        assert!(queue.is_empty());
        assert_eq!(most.into_inner(), AT_ONCE as u64);
    }

    /// What the source has no more is given up; what the destination lacks may come.
    #[test]
    fn only_a_source_that_is_gone_ends_it() {
        let queue = Queue::open(Path::new("/nonexistent"), &mut Registry::default());
        let digest = crate::descriptor::Digest::of(b"x");
        let target = &Target::Digest(digest);
        queue.event(&Event::OnlyOriginal { upstream: "docker.io", repository: "a/b", target });
        let (job, _) = queue.next().expect("one");
        assert_eq!(job.target().expect("a digest"), Target::Digest(digest));
        let gone = |side| Err(Error::new(Kind::NotFound, "gone").on(side));
        queue.ended(&job, gone(Side::Destination));
        assert_eq!(queue.len(), 1);
        queue.ended(&job, gone(Side::Source));
        assert!(queue.is_empty());
    }

    #[test]
    fn bounded_and_what_fails_makes_room() {
        let mut registry = Registry::default();
        let queue = Queue::open(Path::new("/nonexistent"), &mut registry);
        let shows = |line: &str| {
            let mut page = String::new();
            prometheus_client::encoding::text::encode(&mut page, &registry).expect("memory");
            assert!(page.lines().any(|shown| shown == line), "no {line} in\n{page}");
        };
        (0..=BOUND).for_each(|n| pulled(&queue, &format!("v{n}")));
        assert_eq!(queue.len(), BOUND);
        shows("transload_proxy_write_back_total{result=\"dropped\"} 1");
        let (job, _) = queue.next().expect("one");
        queue.ended(&job, Err(Error::new(Kind::Network, "down")));
        pulled(&queue, "new");
        shows("transload_proxy_write_back_total{result=\"dropped\"} 2");
        shows("transload_proxy_write_back_total{result=\"failed\"} 1");
        shows(&format!("transload_proxy_write_back_waiting {BOUND}"));
        let state = queue.lock();
        assert!(state.jobs.len() == BOUND && state.jobs.iter().any(|waiting| waiting.job.target == "new"));
        assert!(!state.jobs.iter().any(|waiting| waiting.job == job));
    }
}
