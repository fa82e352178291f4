//! The proxy over a source in memory, whose faults are chosen exactly.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::Semaphore;

use super::*;
use crate::body::Body;
use crate::content::{Source, TagPage, TagPages, take_bytes};
use crate::descriptor::{Descriptor, Digest};
use crate::file_access::Files;
use crate::manifest::Manifest;
use crate::reference::{Repository, Tag, Target};
use crate::server::{Backend, Blob as _, Referrers, RepositoryPath};

/// What the backend finds, without how.
impl<O: Origins> Proxy<O> {
    async fn resolve(&self, at: &RepositoryPath, target: &Target) -> Result<Option<Descriptor>> {
        Backend::resolve(self, at, target).await.found
    }

    async fn manifest(&self, at: &RepositoryPath, target: &Target) -> Result<Option<Manifest>> {
        Backend::manifest(self, at, target).await.found
    }

    async fn size_of(&self, at: &RepositoryPath, digest: &Digest) -> Result<Option<u64>> {
        Backend::size_of(self, at, digest).await.found
    }

    async fn blob(&self, at: &RepositoryPath, digest: &Digest) -> Result<Option<backend::BlobContent<O>>> {
        Backend::blob(self, at, digest).await.found
    }

    async fn tags(&self, at: &RepositoryPath, after: Option<&str>, most: usize) -> Result<Option<Vec<Tag>>> {
        Backend::tags(self, at, after, most).await.found
    }

    async fn referrers(&self, at: &RepositoryPath, subject: &Digest) -> Result<Arc<Referrers>> {
        Backend::referrers(self, at, subject).await.found
    }
}

/// What a registry of these tests has, by repository and digest; and how it behaves.
#[derive(Clone, Default)]
struct World(Arc<Content>);

#[derive(Default)]
struct Content {
    blobs: Mutex<HashMap<(String, Digest), Bytes>>,
    /// By repository and target.
    manifests: Mutex<HashMap<String, Manifest>>,
    /// What can't be asked for, likewise.
    ill: Mutex<HashMap<String, Ill>>,
    /// How often manifests were asked for.
    asked: AtomicUsize,
    /// What befalls the next reads, in turn.
    faults: Mutex<VecDeque<Fault>>,
    reads: AtomicUsize,
    /// Where bodies of a repository end, whoever reads them.
    ends: Mutex<HashMap<String, u64>>,
    /// Of which repository, and from which byte on.
    opened: Mutex<Vec<(String, u64)>>,
    /// Parts of blobs that were requested as such.
    parts: Mutex<Vec<std::ops::Range<u64>>>,
    /// How long each question about a blob takes.
    delay: Mutex<Duration>,
    sizes: AtomicUsize,
    lists: AtomicUsize,
    /// Bodies don't tell how long they are.
    sizeless: AtomicBool,
    /// Each frame takes a millisecond.
    slow: AtomicBool,
    /// Bodies that are open now, and the most that were.
    open: (AtomicUsize, AtomicUsize),
    /// Answers to GETs of manifests wait for one, if there is a gate: what they say was looked up before.
    late: Mutex<Option<Arc<Semaphore>>>,
    /// Each frame of a blob and each page of tags takes one, if there is a gate.
    gate: Mutex<Option<Arc<Semaphore>>>,
    /// The gate is before this repository only.
    gated: Mutex<Option<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The body breaks after so many bytes.
    BreakAt(u64),
    /// This byte is wrong.
    Flip(u64),
    /// As if our own disk failed after so many bytes.
    DiskAt(u64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ill {
    /// So many requests fail.
    Down(usize),
    /// So many requests are too many, each for so many seconds.
    Limited(usize, u64),
    /// No answer comes.
    Silent,
    /// Until then all fails.
    Away(Instant),
}

#[derive(Clone)]
struct Shop(World, String);

impl World {
    fn put(&self, repository: &str, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        let content = Bytes::copy_from_slice(content);
        self.0.blobs.lock().expect("lock").insert((repository.to_owned(), digest), content);
        digest
    }

    /// Has a manifest under a tag and its digest.
    fn publish(&self, repository: &str, tag: &str, manifest: &Manifest) {
        let mut all = self.0.manifests.lock().expect("lock");
        for target in [Target::Tag(tag.into()), Target::Digest(manifest.digest())] {
            all.insert(format!("{repository} {target}"), manifest.clone());
        }
    }

    fn withdraw(&self, repository: &str, tag: &str) {
        self.0.manifests.lock().expect("lock").remove(&format!("{repository} {tag}"));
    }

    fn fail(&self, repository: &str, target: &Target, ill: Ill) {
        self.0.ill.lock().expect("lock").insert(format!("{repository} {target}"), ill);
    }

    fn fault(&self, fault: Fault) {
        self.0.faults.lock().expect("lock").push_back(fault);
    }

    /// From now on nothing behind this byte comes from `repository`.
    fn ends(&self, repository: &str, at: u64) {
        self.0.ends.lock().expect("lock").insert(repository.to_owned(), at);
    }

    fn gate(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.0.gate.lock().expect("lock") = Some(gate.clone());
        gate
    }

    fn reads(&self) -> usize {
        self.0.reads.load(Ordering::Relaxed)
    }
}

impl Shop {
    async fn lookup(&self, target: &Target) -> Result<Manifest> {
        self.0.0.asked.fetch_add(1, Ordering::Relaxed);
        let key = format!("{} {target}", self.1);
        let ill = self.0.0.ill.lock().expect("lock").get_mut(&key).map(|ill| {
            let before = *ill;
            if let Ill::Down(left) | Ill::Limited(left, _) = ill {
                *left = left.saturating_sub(1);
            }
            before
        });
        match ill {
            Some(Ill::Silent) => std::future::pending().await,
            Some(Ill::Away(until)) if Instant::now() < until => {
                return Err(Error::new(Kind::Network, format!("no way to {key}")));
            }
            Some(Ill::Down(left)) if left > 0 => return Err(Error::new(Kind::Network, format!("no way to {key}"))),
            Some(Ill::Limited(left, seconds)) if left > 0 => {
                return Err(Error::new(Kind::Limited, "429").transient(Some(Duration::from_secs(seconds))));
            }
            _ => {}
        }
        let all = self.0.0.manifests.lock().expect("lock");
        all.get(&key).cloned().ok_or_else(|| Error::new(Kind::NotFound, "no such manifest"))
    }

    fn content(&self, digest: &Digest) -> Result<Bytes> {
        let found = self.0.0.blobs.lock().expect("lock").get(&(self.1.clone(), *digest)).cloned();
        found.ok_or_else(|| Error::new(Kind::NotFound, "no such blob"))
    }
}

/// Counts a body while it's open.
struct Opened(World);

impl Opened {
    fn new(world: &World) -> Self {
        let (open, most) = &world.0.open;
        most.fetch_max(open.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        Self(world.clone())
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.0.open.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Origins for World {
    type Source = Shop;

    fn source(&self, _: &str, repository: &Repository) -> Result<Shop> {
        Ok(Shop(self.clone(), repository.name.to_string()))
    }

    async fn size_of(&self, source: &Shop, digest: &Digest) -> Result<Option<u64>> {
        self.0.sizes.fetch_add(1, Ordering::Relaxed);
        let delay = *self.0.delay.lock().expect("lock");
        tokio::time::sleep(delay).await;
        Ok(source.content(digest).ok().map(|bytes| bytes.len() as u64))
    }
}

impl Source for Shop {
    async fn resolve(&self, target: &Target) -> Result<Option<Descriptor>> {
        Ok(Some(self.lookup(target).await?.descriptor().clone()))
    }

    async fn manifest(&self, target: &Target) -> Result<Manifest> {
        let found = self.lookup(target).await?;
        let late = self.0.0.late.lock().expect("lock").clone();
        if let Some(late) = late {
            late.acquire().await.expect("open").forget();
        }
        Ok(found)
    }

    async fn blob(&self, blob: &Descriptor, from: u64) -> Result<Body> {
        let delay = *self.0.0.delay.lock().expect("lock");
        tokio::time::sleep(delay).await;
        let content = self.content(&blob.digest)?;
        if content.len() as u64 != blob.size && !self.0.0.sizeless.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Mismatch, "another size"));
        }
        self.0.0.reads.fetch_add(1, Ordering::Relaxed);
        self.0.0.opened.lock().expect("lock").push((self.1.clone(), from));
        let fault = self.0.0.faults.lock().expect("lock").pop_front();
        let fault = fault.unwrap_or(Fault::None);
        let ends = self.0.0.ends.lock().expect("lock").get(&self.1).copied();
        let gated = self.0.0.gated.lock().expect("lock").as_ref().is_none_or(|only| *only == self.1);
        let gate = self.0.0.gate.lock().expect("lock").clone().filter(|_| gated);
        let frames: Vec<_> = content[usize::try_from(from).expect("small").min(content.len())..]
            .chunks(FRAME)
            .enumerate()
            .map(|(n, frame)| (from + (n * FRAME) as u64, Bytes::copy_from_slice(frame)))
            .collect();
        let (opened, world) = (Opened::new(&self.0), self.0.clone());
        let body = stream::iter(frames).then(move |(at, frame)| {
            let (gate, slow, _) = (gate.clone(), world.0.slow.load(Ordering::Relaxed), &opened);
            async move {
                if let Some(gate) = gate {
                    gate.acquire().await.expect("open").forget();
                }
                if slow {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                match fault {
                    _ if ends.is_some_and(|end| at >= end) => Err(Error::new(Kind::Network, "reset")),
                    Fault::BreakAt(end) if at >= end => Err(Error::new(Kind::Network, "reset")),
                    Fault::DiskAt(end) if at >= end => Err(Error::new(Kind::Local, "full")),
                    Fault::Flip(byte) if (at..at + frame.len() as u64).contains(&byte) => {
                        let mut wrong = frame.to_vec();
                        wrong[usize::try_from(byte - at).expect("small")] ^= 0xff;
                        Ok(wrong.into())
                    }
                    _ => Ok(frame),
                }
            }
        });
        Ok(body.boxed())
    }

    async fn blob_range(&self, blob: &Descriptor, part: std::ops::Range<u64>) -> Result<Body> {
        self.0.0.parts.lock().expect("lock").push(part.clone());
        Ok(take_bytes(self.blob(blob, part.start).await?, part.end - part.start))
    }

    async fn referrers(&self, _: &Digest) -> Result<Vec<Descriptor>> {
        Ok(Vec::new())
    }

    fn tags(&self) -> TagPages {
        let holder = self.clone();
        let page = async move {
            let nth = holder.0.0.lists.fetch_add(1, Ordering::Relaxed);
            let gate = holder.0.0.gate.lock().expect("lock").clone();
            if let Some(gate) = gate {
                gate.acquire().await.expect("open").forget();
            }
            Ok(TagPage::new([format!("v{nth}")]))
        };
        stream::once(page).boxed()
    }
}

/// A proxy of `a.io` with a cache of its own, which goes away.
struct Bench {
    proxy: Proxy<World>,
    world: World,
    dir: PathBuf,
}

impl Bench {
    async fn new(adapt: impl FnOnce(&mut Settings)) -> Self {
        Self::observed(adapt, Arc::new(())).await
    }

    async fn observed(adapt: impl FnOnce(&mut Settings), observer: Arc<dyn Observer>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("transload-proxy-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&dir);
        let world = World::default();
        let cache = cache::Settings { dir: dir.clone(), size: 1 << 20, keep_free: 0, files: Files::default() };
        let mut settings = Settings::new(vec!["a.io".parse().expect("a spec")], cache);
        adapt(&mut settings);
        let proxy = Proxy::open(settings, world.clone(), observer).await.expect("opens");
        Self { proxy, world, dir }
    }

    async fn body(&self, repository: &str, digest: &Digest, range: Option<std::ops::Range<u64>>) -> Result<Body> {
        let found = self.proxy.blob(&place(repository), digest).await?;
        let blob = found.ok_or_else(|| Error::new(Kind::NotFound, "404"))?;
        let range = range.unwrap_or(0..blob.size());
        blob.read(range, None).await
    }

    async fn get(&self, repository: &str, digest: &Digest) -> Result<Vec<u8>> {
        all(self.body(repository, digest, None).await?).await
    }

    /// Has the proxy read a manifest that says so.
    async fn tell_size(&self, digest: Digest, size: u64) {
        let layer = Descriptor::new("application/octet-stream", digest, size);
        let text = serde_json::json!({"schemaVersion": 2, "layers": [layer]}).to_string();
        let manifest = Manifest::read(text.into(), None, None).expect("a manifest");
        let tag = format!("v{}", manifest.digest().hex());
        self.world.publish("r", &tag, &manifest);
        self.proxy.manifest(&place("r"), &Target::Tag(tag.as_str().into())).await.expect("answers").expect("is there");
    }

    /// What `v1` of `r` is.
    async fn tagged(&self) -> Result<Option<Digest>> {
        Ok(self.proxy.manifest(&place("r"), &tag()).await?.map(|found| found.digest()))
    }

    /// Nothing of what was on its way is left.
    fn assert_nothing_left(&self) {
        assert_eq!(std::fs::read_dir(self.dir.join("fills")).expect("a directory").count(), 0);
        assert_eq!(self.cached(), 0);
    }

    fn cached(&self) -> usize {
        self.proxy.cache().blobs.count().0
    }

    /// Waits until nothing is being fetched.
    async fn settled(&self) {
        while !self.proxy.filling().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn at_once(settings: &mut Settings) {
    (settings.tag_ttl, settings.negative_ttl) = (Duration::ZERO, Duration::ZERO);
}

/// As `mirror/r` first, else as `r`.
fn two_tiers(settings: &mut Settings, write_back: bool) {
    at_once(settings);
    let base =
        |registry: &str, prefix: &str| upstreams::RegistryPath { registry: registry.into(), prefix: prefix.to_owned() };
    settings.upstreams[0].tiers = vec![base("my.io", "mirror"), base("a.io", "")];
    settings.upstreams[0].write_back = write_back;
}

fn tag() -> Target {
    Target::Tag("v1".into())
}

fn manifest(nth: u8) -> Manifest {
    let layer = Descriptor::new("application/octet-stream", Digest::of(&[nth]), 1);
    let text = serde_json::json!({"schemaVersion": 2, "layers": [layer]}).to_string();
    Manifest::read(text.into(), None, None).expect("a manifest")
}

fn place(repository: &str) -> RepositoryPath {
    RepositoryPath { name: repository.into(), ns: Some("a.io".to_owned()) }
}

/// How many bytes came before the error that ends it.
async fn broken(mut body: Body) -> (usize, Error) {
    let mut got = 0;
    let error = loop {
        match body.try_next().await {
            Ok(Some(bytes)) => got += bytes.len(),
            Ok(None) => panic!("it ended well"),
            Err(error) => break error,
        }
    };
    (got, error)
}

async fn all(body: Body) -> Result<Vec<u8>> {
    body.try_fold(Vec::new(), |mut all, bytes| async move {
        all.extend_from_slice(&bytes);
        Ok(all)
    })
    .await
}

fn content(seed: u8, size: usize) -> Vec<u8> {
    (0..size).map(|n| (n % 251) as u8 ^ seed).collect()
}

const FRAME: usize = 1000;

mod counted;
mod disk;
mod fills;
mod lists;
mod membership;
mod mending;
mod patience;
mod tags;

#[tokio::test]
async fn readers_follow_one_writer_and_the_last_byte_waits_for_the_digest() {
    let bench = Bench::new(|_| {}).await;
    let content = content(1, 5 * FRAME);
    let digest = bench.world.put("r", &content);
    let gate = bench.world.gate();
    let mut first = bench.body("r", &digest, None).await.expect("its head comes before its bytes");
    assert!(first.try_next().now_or_never().is_none());
    gate.add_permits(4);
    let mut got = Vec::new();
    while got.len() < 4 * FRAME {
        got.extend(first.try_next().await.expect("bytes").expect("bytes"));
    }
    // Who comes later gets it from the beginning; a range with the last byte in it waits too.
    let mut second = bench.body("r", &digest, None).await.expect("joins");
    let mut range = bench.body("r", &digest, Some(4 * FRAME as u64 + 500..5 * FRAME as u64)).await.expect("joins");
    assert!(second.try_next().await.expect("bytes").is_some());
    assert!(range.try_next().now_or_never().is_none());
    gate.add_permits(1);
    assert_eq!(all(range).await.expect("right"), content[4 * FRAME + 500..]);
    got.extend(all(first).await.expect("right"));
    assert_eq!(got, content);
    bench.settled().await;
    assert_eq!((bench.world.reads(), bench.cached()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_each_time_is_cut_before_its_last_byte() {
    // Nothing is remembered.
    let bench = Bench::new(at_once).await;
    let content = content(2, 3 * FRAME);
    let digest = bench.world.put("r", &content);
    // As often as it is forgiven, and once more.
    (0..3).for_each(|_| bench.world.fault(Fault::Flip(10)));
    let body = bench.body("r", &digest, None).await.expect("opens");
    let (got, error) = broken(body).await;
    assert_eq!(error.kind(), Kind::Mismatch);
    assert!(got < content.len());
    bench.settled().await;
    assert_eq!(bench.cached(), 0);
    assert_eq!(std::fs::read_dir(bench.dir.join("fills")).expect("a directory").count(), 0);
    assert_eq!(bench.get("r", &digest).await.expect("mended"), content);
}

#[tokio::test(start_paused = true)]
async fn a_broken_body_goes_on_where_it_broke() {
    let bench = Bench::new(|_| {}).await;
    let content = content(3, 20 * FRAME);
    let digest = bench.world.put("r", &content);
    for at in [3, 9, 15] {
        bench.world.fault(Fault::BreakAt(at * FRAME as u64));
    }
    assert_eq!(bench.get("r", &digest).await.expect("whole"), content);
    assert_eq!(bench.world.reads(), 4);
}

#[tokio::test]
async fn when_all_clients_left_it_is_still_fetched() {
    let bench = Bench::new(|_| {}).await;
    let digest = bench.world.put("r", &content(4, 3 * FRAME));
    let gate = bench.world.gate();
    {
        // Hung up before there was an answer, and after it.
        let body = bench.body("r", &digest, None);
        tokio::pin!(body);
        assert!((&mut body).now_or_never().is_none());
    }
    drop(bench.body("r", &digest, None).await.expect("joins"));
    gate.add_permits(3);
    bench.settled().await;
    assert_eq!((bench.world.reads(), bench.cached()), (1, 1));
}

#[tokio::test]
async fn a_repository_that_has_it_is_not_told_what_another_lacks() {
    let bench = Bench::new(|_| {}).await;
    let content = content(5, 10);
    let digest = bench.world.put("has", &content);
    let lacks = bench.get("lacks", &digest);
    let has = bench.get("has", &digest);
    let (lacks, has) = tokio::join!(lacks, has);
    assert_eq!(lacks.expect_err("it hasn't").kind(), Kind::NotFound);
    assert_eq!(has.expect("it has"), content);
}

#[tokio::test]
async fn a_manifest_may_lie_about_a_size() {
    let bench = Bench::new(|_| {}).await;
    let content = content(6, 700);
    let digest = bench.world.put("r", &content);
    bench.tell_size(digest, 5).await;
    assert_eq!(bench.get("r", &digest).await.expect("whole"), content);
    assert_eq!(bench.world.0.sizes.load(Ordering::Relaxed), 1, "asked after all");
}

/// Not by a size that only a manifest says, be it one that fits or not.
#[tokio::test]
async fn nothing_has_to_go_for_a_lie() {
    let bench = Bench::new(|settings| settings.cache.size = 10_000).await;
    let (good, small) = (content(1, 6000), content(2, 700));
    let held = bench.world.put("r", &good);
    bench.get("r", &held).await.expect("whole");
    bench.settled().await;
    for size in [9000, 20_000, crate::descriptor::MAX_SIZE] {
        let digest = bench.world.put("r", &[&small[..], &size.to_be_bytes()].concat());
        bench.tell_size(digest, size).await;
        assert_eq!(bench.get("r", &digest).await.expect("whole").len(), 708, "{size}");
        bench.settled().await;
        assert_eq!(bench.proxy.cache().blobs.size_of(&held), Some(6000), "{size}");
        assert_eq!(bench.proxy.cache().blobs.size_of(&digest), Some(708), "{size}");
    }
}

/// Where the upstream's answer has no length a lie shows only at the end: it isn't believed again.
#[tokio::test(start_paused = true)]
async fn a_lie_that_shows_late_costs_one_try() {
    for size in [5, 900] {
        let bench = Bench::new(|_| {}).await;
        bench.world.0.sizeless.store(true, Ordering::Relaxed);
        let content = content(3, 700);
        let digest = bench.world.put("r", &content);
        bench.tell_size(digest, size).await;
        bench.get("r", &digest).await.expect_err("another size");
        bench.settled().await;
        assert_eq!(bench.get("r", &digest).await.expect("whole"), content, "{size}");
    }
}

#[tokio::test]
async fn an_end_is_told_to_those_who_wait() {
    let Bench { proxy, world, dir } = &Bench::new(|_| {}).await;
    let digest = world.put("r", &content(8, 10 * FRAME));
    let _gate = world.gate();
    let found = proxy.blob(&place("r"), &digest).await.expect("opens").expect("is there");
    let body = found.read(0..10 * FRAME as u64, None).await.expect("reads");
    let ends = async { proxy.0.tasks.abort() };
    let (ended, ()) = tokio::join!(all(body), ends);
    assert_eq!(ended.expect_err("cut").kind(), Kind::Interrupted);
    while std::fs::read_dir(dir.join("fills")).expect("a directory").count() > 0 {
        tokio::task::yield_now().await;
    }
}

/// Whatever the kernel sends itself need not be read: from the cache, and while it's being fetched.
#[tokio::test]
async fn a_connection_that_takes_files_gets_parts_of_them() {
    let bench = Bench::new(|_| {}).await;
    let digest = bench.world.put("r", &content(12, 5000));
    for _ in 0..2 {
        let found = bench.proxy.blob(&place("r"), &digest).await.expect("opens").expect("is there");
        let pipe = crate::server::FilePipe::default();
        let body = all(found.read(10..5000, Some(pipe.clone())).await.expect("reads")).await.expect("whole");
        // Nobody sends them here: what is in their place is never read.
        assert_eq!((body, pipe.waiting()), (vec![0; 4990], 4990));
        bench.settled().await;
    }
    assert_eq!(bench.get("r", &digest).await.expect("whole"), content(12, 5000));
}

/// A clone that goes, such as that of a page that was looked at, ends nothing.
#[tokio::test]
async fn the_last_clone_ends_what_is_fetched() {
    let bench = Bench::new(|_| {}).await;
    let digest = bench.world.put("r", &content(9, 3 * FRAME));
    let gate = bench.world.gate();
    let found = bench.proxy.blob(&place("r"), &digest).await.expect("opens").expect("is there");
    let body = found.read(0..3 * FRAME as u64, None).await.expect("reads");
    drop(bench.proxy.clone());
    gate.add_permits(3);
    assert_eq!(all(body).await.expect("whole"), content(9, 3 * FRAME));
}

#[tokio::test]
async fn many_at_once_on_many_blobs_in_a_small_cache() {
    let bench = Arc::new(Bench::new(|settings| settings.cache.size = 40_000).await);
    let blobs: Vec<_> = (0..20).map(|n| content(n, 3000 + usize::from(n) * 100)).collect();
    let digests: Vec<_> = blobs.iter().map(|blob| bench.world.put("r", blob)).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..40_usize {
        let (bench, blobs, digests) = (bench.clone(), blobs.clone(), digests.clone());
        tasks.spawn(async move {
            for step in 0..30 {
                let n = (client * 7 + step * 3) % blobs.len();
                assert!(bench.get("r", &digests[n]).await.expect("a blob") == blobs[n]);
                assert!(bench.proxy.cache().blobs.count().1 <= 40_000);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a client");
    }
    bench.settled().await;
    assert_eq!(std::fs::read_dir(bench.dir.join("fills")).expect("a directory").count(), 0);
}
