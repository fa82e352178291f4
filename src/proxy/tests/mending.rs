//! What is removed under a running proxy, and what is told of it.

use std::fs::{File, FileTimes};
use std::time::SystemTime;

use super::*;
use crate::proxy::cache::offline::{Item, gc};
use crate::proxy::cache::{CachedTag, GcOptions, Removal, TagName};

const HOUR: Duration = Duration::from_secs(3600);

/// What was not used for a minute.
fn old() -> GcOptions {
    GcOptions { older_than: Some(Duration::from_secs(60)), ..GcOptions::default() }
}

/// As if it had been written and read last then.
fn date(path: impl AsRef<std::path::Path>, then: SystemTime) {
    let file = File::options().append(true).open(path).expect("opens");
    file.set_times(FileTimes::new().set_accessed(then).set_modified(then)).expect("set");
}

fn aged(path: impl AsRef<std::path::Path>) {
    date(path, SystemTime::now() - 2 * HOUR);
}

#[tokio::test]
async fn what_is_on_its_way_is_not_left_over() {
    let bench = Bench::new(|_| {}).await;
    let content = content(1, 2 * FRAME);
    let digest = bench.world.put("r", &content);
    let gate = bench.world.gate();
    let body = bench.body("r", &digest, None).await.expect("opens");
    std::fs::write(bench.dir.join("fills/0-0"), b"of one that is dead").expect("written");
    let freed = bench.proxy.admin().gc(GcOptions::default()).await.expect("collects");
    assert_eq!(freed.sum().count, 1, "{freed:?}");
    gate.add_permits(2);
    assert_eq!(all(body).await.expect("right"), content);
    bench.settled().await;
    assert_eq!(bench.cached(), 1);
}

#[tokio::test]
async fn a_tag_that_was_removed_is_asked_for() {
    let bench = Bench::new(|_| {}).await;
    let tag = Target::Tag("v1".into());
    let digest = async || bench.proxy.manifest(&place("r"), &tag).await.expect("an answer").expect("is there").digest();
    bench.world.publish("r", "v1", &manifest(1));
    assert_eq!(digest().await, manifest(1).digest());
    bench.world.publish("r", "v1", &manifest(2));
    assert_eq!(digest().await, manifest(1).digest(), "believed");
    let item = || Item::Tag { upstream: "a.io".to_owned(), repository: "r".to_owned(), tag: "v1".to_owned() };
    assert_eq!(bench.proxy.admin().remove(item()).await.expect("removes"), Removal::Gone);
    assert_eq!(bench.proxy.admin().remove(item()).await.expect("removes"), Removal::Absent);
    assert_eq!(digest().await, manifest(2).digest());
}

/// The file system says so once a day at most: the proxy knows better.
#[tokio::test]
async fn what_was_used_lately_is_not_old() {
    let bench = Bench::new(|_| {}).await;
    let (used, unused) = (bench.world.put("r", &content(1, 500)), bench.world.put("r", &content(2, 600)));
    let blobs = &bench.proxy.cache().blobs;
    for digest in [&used, &unused] {
        bench.get("r", digest).await.expect("right");
    }
    bench.settled().await;
    // From the disk.
    bench.get("r", &used).await.expect("right");
    let kept = manifest(1);
    bench.proxy.cache().manifest_store.put(&kept).await;
    aged(blobs.path(&used, 500));
    aged(blobs.path(&unused, 600));
    aged(bench.proxy.cache().manifest_store.content_store().path(&kept.digest(), kept.bytes().len() as u64));
    bench.proxy.admin().gc(old()).await.expect("collects");
    assert_eq!(blobs.list(), [(used, 500)]);
    assert_eq!(bench.proxy.cache().manifest_store.content_store().count().0, 1);
}

/// Nor is a manifest that a tag names. Notes of media types go when nothing has followed them.
#[tokio::test]
async fn only_what_nobody_wants_is_collected() {
    let bench = Bench::new(|_| {}).await;
    let (named, unnamed, dropped) = (manifest(1), manifest(2), manifest(3));
    let manifest_store = &bench.proxy.cache().manifest_store;
    for (manifest, tag) in [(&named, Some("v1")), (&unnamed, None), (&dropped, Some("v2"))] {
        manifest_store.put(manifest).await;
        aged(manifest_store.content_store().path(&manifest.digest(), manifest.bytes().len() as u64));
        if let Some(tag) = tag {
            let name = TagName::new("a.io", "r", tag);
            manifest_store.put_tag(&name, CachedTag::new(&name, manifest.descriptor(), 0)).await;
        }
    }
    let tags = |dir: &std::path::Path| -> Vec<PathBuf> {
        let shards = std::fs::read_dir(dir.join("tags")).expect("read").flatten();
        shards
            .flat_map(|shard| std::fs::read_dir(shard.path()).expect("read").flatten())
            .map(|tag| tag.path())
            .collect()
    };
    for tag in tags(&bench.dir) {
        if std::fs::read_to_string(&tag).expect("read").contains("r v2") {
            aged(tag);
        }
    }
    let types = bench.dir.join("manifests/types");
    std::fs::create_dir_all(&types).expect("made");
    for note in ["new", "old"] {
        std::fs::write(types.join(note), "a type").expect("written");
    }
    aged(types.join("old"));
    let dir = bench.dir.clone();
    // From outside, by whoever knows nothing of what is in memory.
    let Bench { proxy, .. } = &bench;
    assert_eq!(gc(&dir, &old()).expect_err("a proxy uses it").kind(), Kind::Usage);
    let copy = dir.with_extension("copy");
    let copied = std::process::Command::new("cp").arg("-a").args([&dir, &copy]).status();
    assert!(copied.is_ok_and(|status| status.success()));
    gc(&copy, &old()).expect("collects");
    let listing = crate::proxy::cache::offline::list(&copy).expect("lists");
    let left: Vec<_> = listing.tags.iter().map(|tag| (tag.tag.as_str(), tag.digest)).collect();
    assert_eq!((left, listing.manifests.0), (vec![("v1", named.digest())], 1));
    assert!(copy.join("manifests/types/new").exists() && !copy.join("manifests/types/old").exists());
    std::fs::remove_dir_all(copy).expect("removed");
    assert_eq!(proxy.cache().manifest_store.content_store().count().0, 3);
}

#[tokio::test]
async fn what_is_being_read_makes_no_room() {
    let bench = Bench::new(|_| {}).await;
    let (read, idle) = (bench.world.put("r", &content(1, 500)), bench.world.put("r", &content(2, 500)));
    let blobs = &bench.proxy.cache().blobs;
    for digest in [&read, &idle] {
        bench.get("r", digest).await.expect("right");
    }
    bench.settled().await;
    let _pin = blobs.pin(&read);
    // It would go first.
    date(blobs.path(&idle, 500), SystemTime::now() + HOUR);
    let freed = bench.proxy.admin().gc(GcOptions { size: Some(500), ..GcOptions::default() }).await.expect("collects");
    assert_eq!((freed.busy, freed.sum().count, blobs.list()), (1, 1, vec![(read, 500)]));
}

/// Paced by the clock; what is corrupt goes, and what was evicted or removed meanwhile is no fault.
#[tokio::test(start_paused = true)]
async fn the_scrubber_drops_what_is_corrupt_and_takes_its_time() {
    let bench = Bench::new(|_| {}).await;
    let contents: Vec<_> = (1..4).map(|seed| content(seed, 5000)).collect();
    let digests: Vec<_> = contents.iter().map(|content| bench.world.put("r", content)).collect();
    for digest in &digests {
        bench.get("r", digest).await.expect("whole");
    }
    bench.settled().await;
    let blobs = &bench.proxy.cache().blobs;
    let mut wrong = contents[1].clone();
    wrong[77] ^= 1;
    std::fs::write(blobs.path(&digests[1], 5000), wrong).expect("written");
    std::fs::remove_file(blobs.path(&digests[2], 5000)).expect("removed");
    let stores = bench.proxy.cache().online().stores();
    let (begun, read) = (tokio::time::Instant::now(), AtomicU64::new(0));
    let mut dropped = Vec::new();
    let count = |bytes| {
        read.fetch_add(bytes, Ordering::Relaxed);
    };
    let mut pace = scrub::RateLimiter::new(1000);
    let done = scrub::scrub_pass(&stores, Some(&mut pace), count, |digest| dropped.push(*digest)).await;
    assert_eq!((done.files, done.bytes, done.dropped), (2, 10_000, 1));
    assert_eq!((dropped, read.into_inner()), (vec![digests[1]], 10_000));
    assert!(begun.elapsed() >= Duration::from_secs(9), "{:?}", begun.elapsed());
    assert_eq!(blobs.list(), [(digests[0], 5000)]);
    assert!(!blobs.path(&digests[1], 5000).exists());
    let asked = bench.world.reads();
    assert_eq!(bench.get("r", &digests[1]).await.expect("fetched again"), contents[1]);
    assert_eq!(bench.world.reads(), asked + 1);
}

/// A file that was fetched anew while the bad one of its name was read stays.
#[tokio::test]
async fn only_the_file_that_was_read_is_dropped() {
    let bench = Bench::new(|_| {}).await;
    let digest = bench.world.put("r", &content(1, 5000));
    bench.get("r", &digest).await.expect("whole");
    bench.settled().await;
    let blobs = &bench.proxy.cache().blobs;
    let path = blobs.path(&digest, 5000);
    let old = std::fs::File::open(&path).expect("opens");
    let inode = std::os::unix::fs::MetadataExt::ino(&old.metadata().expect("read"));
    std::fs::write(path.with_extension("new"), content(1, 5000)).expect("written");
    std::fs::rename(path.with_extension("new"), &path).expect("renamed");
    assert!(!blobs.discard_same(&digest, 5000, inode) && path.exists());
}

#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Observer for Told {
    fn event(&self, event: &Event<'_>) {
        let said = match event {
            Event::FillBegan { size, .. } => format!("began {size}"),
            Event::FillEnded { failed, .. } => format!("ended {:?}", failed.map(Error::kind)),
            Event::Evicted { bytes, .. } => format!("evicted {bytes}"),
            _ => return,
        };
        self.0.lock().expect("lock").push(said);
    }
}

#[tokio::test]
async fn each_fetch_and_what_had_to_go_for_it_is_told() {
    let told = Arc::new(Told::default());
    let bench = Bench::observed(|settings| settings.cache.size = 1000, told.clone()).await;
    let (first, second) = (bench.world.put("r", &content(1, 600)), bench.world.put("r", &content(2, 700)));
    bench.get("r", &first).await.expect("right");
    bench.settled().await;
    bench.world.fault(Fault::Flip(10));
    // Nothing has to go for bytes that are wrong.
    bench.get("r", &second).await.expect("fetched again");
    bench.settled().await;
    let failed = ["began 700", "ended Some(Mismatch)"];
    let expected = [&["began 600", "ended None"][..], &failed, &["began 700", "evicted 600", "ended None"]].concat();
    // The last one comes when it's off the list already.
    let all = async {
        while told.0.lock().expect("lock").len() < expected.len() {
            tokio::task::yield_now().await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(10), all).await;
    assert_eq!(*told.0.lock().expect("lock"), expected);
}
