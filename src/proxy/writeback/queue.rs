//! The queue. It is bounded, and stored in a file, so that it survives restarts. A try is counted there before it starts.

use std::borrow::Cow;
use std::fs;
use std::future::Future;
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
use tokio::sync::Notify;
use tokio::time::Instant;

use super::state::{State, WaitingJob};
use super::{CopyOutcome, Job, saved};
use crate::error::{Error, Kind, Result, Side};
use crate::panics;
use crate::pool::run_blocking;
use crate::proxy::events::{Event, Observer};
use crate::proxy::metrics::NAME_PREFIX;

/// The queue. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Queue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    state: Mutex<State>,
    changed: Notify,
    ended: Family<[(&'static str, Cow<'static, str>); 1], Counter>,
    waiting: Gauge,
}

impl Queue {
    /// Opens the queue in `dir`, and registers its metrics in `registry`. A file that cannot be read is logged, and the queue is
    /// empty then: its images are queued again when they are pulled.
    pub(crate) fn open(dir: &Path, registry: &mut Registry) -> Self {
        let file = dir.join(QUEUE_FILE);
        let saved = saved::load(&file).unwrap_or_else(|error| {
            tracing::warn!("{error}: starting with an empty write-back queue");
            Vec::new()
        });
        let (ended, waiting) = (Family::default(), Gauge::default());
        let proxy = registry.sub_registry_with_prefix(NAME_PREFIX);
        proxy.register("write_back_images", "Images copied into the first tier, by result", ended.clone());
        proxy.register("write_back_queue_length", "Images that wait to be copied into the first tier", waiting.clone());
        let saved = saved.into_iter().filter(|saved| saved.job.is_valid()).collect();
        let state = Mutex::new(State::of(saved));
        let queue = Self(Arc::new(Inner { file, state, changed: Notify::new(), ended, waiting }));
        let crashed: Vec<Job> = {
            let state = queue.lock();
            let crashed = state.jobs.iter().filter(|waiting| waiting.unended >= MAX_CRASHES);
            crashed.map(|waiting| waiting.job.clone()).collect()
        };
        for job in crashed {
            queue.give_up(&job, &format!("the proxy was killed {MAX_CRASHES} times while it was copied"));
        }
        queue.count(&queue.lock());
        queue
    }

    /// Runs `copy` for the queued images, forever. `copy` adds the bytes that it moves to its counter. When this future is
    /// dropped, the queue is kept, and running tries are not counted. A panic in a copy fails that copy only.
    pub(crate) async fn run<F: Future<Output = Result<CopyOutcome>>>(&self, copy: impl Fn(Job, Arc<AtomicU64>) -> F) {
        let mut running = FuturesUnordered::new();
        let _stopping = StopGuard(self);
        loop {
            self.save().await;
            let changed = self.0.changed.notified();
            let next = if running.len() < CONCURRENT_COPIES { self.next() } else { None };
            let until = match next {
                Some((job, None)) => {
                    if !self.save().await {
                        self.finish(
                            &job,
                            Err(Error::new(Kind::Local, "the queue's file cannot be written to count the try")),
                        );
                        continue;
                    }
                    let moved = Arc::new(AtomicU64::new(0));
                    let copied = with_time_limit(panics::catch_panic(copy(job.clone(), moved.clone())), moved);
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
                Some((job, result)) = running.next(), if !running.is_empty() => self.finish(&job, result),
                () = changed => {}
                () = due => {}
            }
        }
    }

    /// The number of queued images.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Whether no image is queued.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&self, job: Job) {
        let mut state = self.lock();
        if state.known.contains(&job) || state.is_given_up(&job) {
            return;
        }
        if !state.has_space(&job) {
            self.count_result("dropped");
            // The job that has failed most often is replaced.
            let idle = state.jobs.iter().filter(|waiting| waiting.tries > 0 && !waiting.running);
            let worst = idle.max_by_key(|waiting| waiting.tries).map(|waiting| waiting.job.clone());
            match worst {
                Some(worst) => drop(state.remove(&worst)),
                None => return,
            }
        }
        if !state.add(WaitingJob::new(job)) {
            return;
        }
        self.count(&state);
        drop(state);
        self.0.changed.notify_one();
    }

    /// The next job, and the time when it is due. Without a time it is due now: it is marked as running, and its try is counted
    /// but not saved yet. Images of the same repository are copied one after the other: the second finds the blobs that it
    /// shares with the first.
    fn next(&self) -> Option<(Job, Option<Instant>)> {
        let mut state = self.lock();
        let running: Vec<_> = state.jobs.iter().filter(|waiting| waiting.running).collect();
        if running.iter().any(|waiting| waiting.is_suspect()) {
            return None;
        }
        let may = |waiting: &WaitingJob| match waiting.is_suspect() {
            true => running.is_empty(),
            false => !running.iter().any(|one| one.job.has_same_repository(&waiting.job)),
        };
        let idle = state.jobs.iter().enumerate().filter(|(_, waiting)| !waiting.running && may(waiting));
        let (at, due) = idle.map(|(at, waiting)| (at, waiting.due)).min_by_key(|(_, due)| *due)?;
        let first = &mut state.jobs[at];
        if due > Instant::now() {
            return Some((first.job.clone(), Some(due)));
        }
        first.running = true;
        first.tries += 1;
        first.unended += 1;
        let job = first.job.clone();
        state.unsaved = true;
        Some((job, None))
    }

    fn finish(&self, job: &Job, result: Result<CopyOutcome>) {
        let what = format!("{}/{} {}", job.upstream, job.repository, job.target);
        let mut max_tries = MAX_TRIES;
        let gone = match result {
            Ok(done) => {
                tracing::info!("{what} is in the first tier");
                self.count_result(if done == CopyOutcome::Copied { "copied" } else { "present" });
                true
            }
            Err(error) => {
                tracing::warn!("{what} was not copied into the first tier: {error}");
                self.count_result("failed");
                // Probably an error of the image itself, unless a proxy on the way has changed it.
                if matches!(error.kind(), Kind::Invalid | Kind::Unsupported | Kind::Internal) {
                    max_tries = MAX_TRIES_INVALID;
                }
                // The source no longer has the image. "Not found" at the destination may pass.
                error.kind() == Kind::NotFound && error.side() != Some(Side::Destination)
            }
        };
        let mut state = self.lock();
        if gone {
            state.remove(job);
        } else if let Some(waiting) = state.jobs.iter_mut().find(|waiting| waiting.job == *job) {
            waiting.due = Instant::now() + pause(waiting.tries.saturating_sub(1));
            waiting.running = false;
            waiting.unended = 0;
            let tries = waiting.tries;
            state.unsaved = true;
            if tries >= max_tries {
                drop(state);
                self.give_up(job, &format!("it failed {tries} times"));
                state = self.lock();
            }
        }
        self.count(&state);
    }

    /// Removes a job from the queue, and records that it was given up.
    fn give_up(&self, job: &Job, why: &str) {
        let Job { upstream, repository, target } = job;
        tracing::error!("{upstream}/{repository} {target} is given up and not copied into the first tier: {why}");
        self.count_result("given-up");
        let mut state = self.lock();
        state.remove(job);
        state.give_up(job.clone());
    }

    /// Saves changes. False if that failed, and the file may still contain an outdated queue.
    async fn save(&self) -> bool {
        let saved = {
            let mut state = self.lock();
            if !std::mem::take(&mut state.unsaved) {
                return true;
            }
            state.saved()
        };
        let file = self.0.file.clone();
        let stored = run_blocking(move || match saved::store(&file, &saved) {
            Ok(()) => Ok(true),
            Err(error) => {
                tracing::warn!("{error}: the write-back queue will not survive a restart");
                let removed = fs::remove_file(&file);
                Ok(removed.is_ok() || removed.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound))
            }
        });
        stored.await.unwrap_or(false)
    }

    fn count_result(&self, result: &'static str) {
        self.0.ended.get_or_create(&[("result", result.into())]).inc();
    }

    fn count(&self, state: &State) {
        self.0.waiting.set(i64::try_from(state.jobs.len()).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The orderly end of [`Queue::run`]: interrupted tries are not counted.
struct StopGuard<'a>(&'a Queue);

impl Drop for StopGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        for waiting in state.jobs.iter_mut().filter(|waiting| waiting.running) {
            waiting.running = false;
            waiting.tries -= 1;
            waiting.unended -= 1;
        }
        let saved = state.saved();
        drop(state);
        // Blocks for a moment: the process is ending.
        if let Err(error) = saved::store(&self.0.0.file, &saved) {
            tracing::debug!("{error}");
        }
    }
}

impl Observer for Queue {
    fn event(&self, event: &Event<'_>) {
        if let Event::OnlyOriginal { upstream, repository, target } = event {
            let target = target.to_string();
            let (upstream, repository) = ((*upstream).to_owned(), (*repository).to_owned());
            self.push(Job { upstream, repository, target });
        }
    }
}

/// Ends a copy that moves too few bytes: otherwise a copy that hangs would block others.
async fn with_time_limit(
    copy: impl Future<Output = Result<CopyOutcome>>,
    moved: Arc<AtomicU64>,
) -> Result<CopyOutcome> {
    let begun = Instant::now();
    let late = async {
        loop {
            let until = begun + MIN_COPY_TIME + Duration::from_secs(moved.load(Ordering::Relaxed) / MIN_RATE);
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    };
    tokio::select! {
        done = copy => done,
        () = late => {
            let what = format!("too slow: {} bytes moved in {} s", moved.load(Ordering::Relaxed), begun.elapsed().as_secs());
            Err(Error::new(Kind::Timeout, what))
        }
    }
}

fn pause(tries: u32) -> Duration {
    MIN_PAUSE.saturating_mul(1 << tries.min(16)).min(MAX_PAUSE)
}

/// The file in the cache's directory.
const QUEUE_FILE: &str = "write-back.json";
/// Tries of one image: with the pauses between them, about a day.
const MAX_TRIES: u32 = 300;
/// Tries of an image that cannot be copied as it is.
const MAX_TRIES_INVALID: u32 = 8;
/// Tries in a row that ended the process.
const MAX_CRASHES: u32 = 3;
/// Images that are copied at once.
const CONCURRENT_COPIES: usize = 4;
/// What an image may take however small it is, and how many bytes of it give it another second.
const MIN_COPY_TIME: Duration = Duration::from_secs(300);
const MIN_RATE: u64 = 64 << 10;
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::proxy::writeback::state::{GIVEN_UP_TTL, MAX_WAITING};
    use crate::reference::Target;

    fn pulled(queue: &Queue, tag: &str) {
        pulled_of(queue, "a/b", tag);
    }

    fn pulled_of(queue: &Queue, repository: &str, tag: &str) {
        let target = &Target::Tag(tag.into());
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
            if job.target == "v1" { Ok(CopyOutcome::Copied) } else { Err(Error::new(Kind::NotFound, "gone")) }
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
                            moved.fetch_add(MIN_RATE, Ordering::Relaxed);
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                        Ok(CopyOutcome::Copied)
                    }
                    _ => Ok(CopyOutcome::Copied),
                }
            }
        };
        let _ = tokio::time::timeout(MIN_COPY_TIME - MIN_PAUSE, queue.run(copy)).await;
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
        assert_eq!((of("slow:v1").len(), of("hangs:v2")), (1, vec![MIN_COPY_TIME.as_secs()]));
        assert_eq!(of("hangs:v1"), [0, MIN_COPY_TIME.as_secs() + 1, 2 * MIN_COPY_TIME.as_secs() + 3]);
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
                Ok(CopyOutcome::Copied)
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(60), queue.run(copy)).await;
        assert!(queue.is_empty());
        assert_eq!(most.into_inner(), CONCURRENT_COPIES as u64);
    }

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("transload-writeback-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a directory");
        dir
    }

    /// Runs the queue until `killed` is copied, which kills the process: nothing is dropped.
    async fn run_until_killed(queue: &Queue, killed: &str) -> Vec<String> {
        let log = Arc::new(Mutex::new(Vec::new()));
        let (seen, killed) = (log.clone(), killed.to_owned());
        let owned = queue.clone();
        let mut run = Box::pin(async move {
            let copy = |job: Job, _| {
                seen.lock().expect("alone").push(job.repository.clone());
                let dies = job.repository == killed;
                async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    if dies { std::future::pending().await } else { Ok(CopyOutcome::Copied) }
                }
            };
            owned.run(copy).await;
        });
        let _ = tokio::time::timeout(Duration::from_secs(60), &mut run).await;
        std::mem::forget(run);
        log.lock().expect("alone").clone()
    }

    /// What was copied with the one that kills is copied the next time, when the suspects are copied alone.
    #[tokio::test(start_paused = true)]
    async fn what_kills_the_process_is_given_up_and_takes_nothing_with_it() {
        let dir = dir("kills");
        let mut registry = Registry::default();
        let open = |registry: &mut Registry| Queue::open(&dir, registry);
        let queue = open(&mut registry);
        pulled_of(&queue, "kills", "v1");
        // Pulled just before the end.
        assert_eq!(run_until_killed(&queue, "kills").await, ["kills"]);
        pulled_of(&queue, "other", "v1");
        queue.next().expect("it begins when the process is killed");
        assert!(queue.save().await);
        drop(queue);
        let queue = open(&mut registry);
        assert_eq!(queue.lock().saved().iter().map(|saved| saved.unended).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(run_until_killed(&queue, "kills").await, ["kills"], "alone");
        // Whichever comes first: the innocent one ends, and is no suspect any more.
        let queue = open(&mut registry);
        assert_eq!(queue.len(), 2);
        queue.lock().jobs.reverse();
        assert_eq!(run_until_killed(&queue, "kills").await, ["other", "kills"]);
        let mut registry = Registry::default();
        let queue = open(&mut registry);
        assert_eq!(queue.len(), 0, "three times");
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).expect("memory");
        assert!(page.contains("transload_proxy_write_back_images_total{result=\"given-up\"} 1"), "{page}");
        pulled_of(&queue, "kills", "v1");
        pulled_of(&queue, "kills", "v2");
        assert_eq!(queue.len(), 1, "for a day it isn't taken again; another tag is");
        assert!(queue.save().await);
        let queue = open(&mut Registry::default());
        pulled_of(&queue, "kills", "v1");
        assert_eq!(queue.len(), 1, "over a restart too");
        queue.lock().given_up.values_mut().for_each(|at| *at -= GIVEN_UP_TTL.as_secs());
        pulled_of(&queue, "kills", "v1");
        assert_eq!(queue.len(), 2);
        let _ = fs::remove_dir_all(&dir);
    }

    /// As a rollout does.
    #[tokio::test(start_paused = true)]
    async fn an_orderly_end_in_the_middle_of_a_try_counts_for_nothing() {
        let dir = dir("ends");
        for _ in 0..5 {
            let queue = Queue::open(&dir, &mut Registry::default());
            pulled(&queue, "v1");
            let _ = tokio::time::timeout(Duration::from_secs(9), queue.run(|_, _| std::future::pending())).await;
            assert_eq!(queue.len(), 1);
        }
        let saved = saved::load(&dir.join(QUEUE_FILE)).expect("reads");
        assert_eq!((saved.len(), saved[0].tries, saved[0].unended), (1, 0, 0));
        let _ = fs::remove_dir_all(&dir);
    }

    /// A panic, or an image that can't be copied, is tried some times; a registry that is down for a day.
    #[tokio::test(start_paused = true)]
    async fn tries_are_bounded() {
        let queue = Queue::open(Path::new("/nonexistent"), &mut Registry::default());
        for repository in ["panics", "invalid", "down"] {
            pulled_of(&queue, repository, "v1");
        }
        let tries = Mutex::new(HashMap::<String, u32>::new());
        let copy = |job: Job, _| {
            *tries.lock().expect("alone").entry(job.repository.clone()).or_default() += 1;
            async move {
                match &*job.repository {
                    "panics" => panic!("by a test"),
                    "invalid" => Err(Error::new(Kind::Invalid, "too large")),
                    _ => Err(Error::new(Kind::Network, "down")),
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(48 * 3600), queue.run(copy)).await;
        assert!(queue.is_empty());
        let tries = tries.into_inner().expect("alone");
        let of = |name: &str| tries[name];
        assert_eq!((of("panics"), of("invalid"), of("down")), (MAX_TRIES_INVALID, MAX_TRIES_INVALID, MAX_TRIES));
    }

    /// What can't be counted isn't tried: a file of an earlier run stands, and can't be replaced or removed.
    #[tokio::test(start_paused = true)]
    async fn a_try_that_cannot_be_counted_is_not_made() {
        let dir = dir("stuck");
        fs::create_dir_all(dir.join(QUEUE_FILE).join("in the way")).expect("a directory");
        let queue = Queue::open(&dir, &mut Registry::default());
        pulled(&queue, "v1");
        let tried = AtomicU64::new(0);
        let copy = |_, _| {
            tried.fetch_add(1, Ordering::Relaxed);
            async { Ok(CopyOutcome::Copied) }
        };
        let _ = tokio::time::timeout(Duration::from_secs(60), queue.run(copy)).await;
        assert_eq!((tried.load(Ordering::Relaxed), queue.len()), (0, 1));
        let _ = fs::remove_dir_all(&dir);
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
        queue.finish(&job, gone(Side::Destination));
        assert_eq!(queue.len(), 1);
        queue.finish(&job, gone(Side::Source));
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
        (0..=MAX_WAITING).for_each(|n| pulled(&queue, &format!("v{n}")));
        assert_eq!(queue.len(), MAX_WAITING);
        shows("transload_proxy_write_back_images_total{result=\"dropped\"} 1");
        let (job, _) = queue.next().expect("one");
        queue.finish(&job, Err(Error::new(Kind::Network, "down")));
        pulled(&queue, "new");
        shows("transload_proxy_write_back_images_total{result=\"dropped\"} 2");
        shows("transload_proxy_write_back_images_total{result=\"failed\"} 1");
        shows(&format!("transload_proxy_write_back_queue_length {MAX_WAITING}"));
        let state = queue.lock();
        assert!(state.jobs.len() == MAX_WAITING && state.jobs.iter().any(|waiting| waiting.job.target == "new"));
        assert!(!state.jobs.iter().any(|waiting| waiting.job == job));
    }
}
