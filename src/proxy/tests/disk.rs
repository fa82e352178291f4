//! A disk that fails: what clients get meanwhile, and what the cache keeps.

use rustix::io::Errno;

use super::*;
use crate::file_access::faults::{Call, Faults};

async fn bench(faults: &Faults) -> (Bench, Arc<Counted>) {
    let counted = Arc::new(Counted::default());
    let files = faults.files();
    let bench = Bench::observed(|settings| settings.cache.files = files, counted.clone()).await;
    (bench, counted)
}

/// Counts cached blobs that could not be read.
#[derive(Default)]
struct Counted(AtomicUsize);

impl Observer for Counted {
    fn event(&self, event: &Event<'_>) {
        if matches!(event, Event::CacheReadFailed { .. }) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One call fails, whichever it is, and the next ones work: the client's answer is right, nothing half-written is
/// cached, and the next pull caches the blob.
#[tokio::test]
async fn a_write_that_fails_once_changes_no_answer() {
    for (nth, error) in [Errno::NOSPC, Errno::IO, Errno::DQUOT].into_iter().enumerate() {
        for (call, skip) in [(Call::Create, 0), (Call::Write, 0), (Call::Write, 2), (Call::Sync, 0), (Call::Rename, 0)]
        {
            let faults = Faults::default();
            let (bench, _) = bench(&faults).await;
            let content = content(nth as u8, 9 * FRAME);
            let digest = bench.world.put("r", &content);
            faults.plan(call, error, skip, 1);
            for client in futures_util::future::join_all((0..4).map(|_| bench.get("r", &digest))).await {
                assert!(client.expect("an answer") == content, "{call:?} {error}: other bytes");
            }
            bench.settled().await;
            assert_eq!(std::fs::read_dir(bench.dir.join("fills")).expect("a directory").count(), 0, "{call:?}");
            assert!(bench.get("r", &digest).await.expect("an answer") == content);
            bench.settled().await;
            let reads = bench.world.reads();
            assert!(bench.get("r", &digest).await.expect("an answer") == content);
            assert_eq!((bench.cached(), bench.world.reads()), (1, reads), "{call:?} {error}: not cached afterwards");
        }
    }
}

/// The answer goes on from the upstream at the byte where the file failed. The file is dropped, and the blob cached anew.
#[tokio::test]
async fn a_cached_blob_that_cannot_be_read_comes_from_the_upstream() {
    let faults = Faults::default();
    let (bench, counted) = bench(&faults).await;
    let content = content(7, 5 << 10);
    let digest = bench.world.put("r", &content);
    bench.get("r", &digest).await.expect("an answer");
    bench.settled().await;
    for (from, nth) in [(0, 1), (2000, 2)] {
        faults.plan(Call::Read, Errno::IO, 0, 1);
        let range = from as u64..content.len() as u64;
        let body = bench.body("r", &digest, Some(range)).await.expect("opens");
        assert!(all(body).await.expect("whole") == content[from..], "other bytes");
        bench.settled().await;
        assert_eq!((bench.world.reads(), counted.0.load(Ordering::Relaxed)), (1 + nth, nth));
        assert_eq!(bench.cached(), 1, "it is cached again");
    }
    assert!(bench.get("r", &digest).await.expect("an answer") == content);
    assert_eq!(bench.world.reads(), 3, "and served from there");
}

/// As by a truncation, or a disk that lost the end of a file, between two reads of one answer.
#[tokio::test]
async fn a_file_that_becomes_short_while_it_is_read_cuts_no_answer() {
    let (bench, counted) = bench(&Faults::default()).await;
    let content = content(8, 900 << 10);
    let digest = bench.world.put("r", &content);
    bench.get("r", &digest).await.expect("an answer");
    bench.settled().await;
    let mut body = bench.body("r", &digest, None).await.expect("opens");
    let path = bench.proxy.cache().blobs.path(&digest, content.len() as u64);
    let file = std::fs::File::options().write(true).open(path).expect("opens");
    file.set_len(500 << 10).expect("cut");
    let mut got = Vec::new();
    while let Some(bytes) = body.try_next().await.expect("no fault") {
        got.extend(bytes);
    }
    assert!(got == content, "other bytes");
    bench.settled().await;
    assert_eq!((counted.0.load(Ordering::Relaxed), bench.cached(), bench.world.reads()), (1, 1, 2));
}

/// A disk that takes everything and gives nothing back: each answer is right all the same.
#[tokio::test]
async fn a_disk_that_only_writes_serves_from_the_upstream() {
    let faults = Faults::default();
    let (bench, _) = bench(&faults).await;
    let content = content(9, 9 * FRAME);
    let digest = bench.world.put("r", &content);
    faults.plan(Call::Read, Errno::IO, 0, usize::MAX);
    for _ in 0..3 {
        assert!(bench.get("r", &digest).await.expect("an answer") == content);
        bench.settled().await;
    }
}

/// What an fsync failed for may be gone at the next look, though it can be read at first.
#[tokio::test]
async fn nobody_reads_a_file_whose_fsync_failed() {
    let faults = Faults::default();
    let (bench, _) = bench(&faults).await;
    let content = content(10, 4 * FRAME);
    let digest = bench.world.put("r", &content);
    faults.plan(Call::Sync, Errno::IO, 0, 1);
    let gate = bench.world.gate();
    let late = bench.body("r", &digest, None).await.expect("opens");
    let whole = bench.body("r", &digest, None).await.expect("joins");
    gate.add_permits(1000);
    let whole = all(whole).await.expect("an answer");
    bench.settled().await;
    let (reads, before) = (faults.count(Call::Read), bench.world.reads());
    assert!(all(late).await.expect("whole") == content && whole == content);
    assert_eq!((faults.count(Call::Read), bench.world.reads()), (reads, before + 1), "it is read past the file");
    assert_eq!(bench.cached(), 0);
}

/// The directory, or the part with temporary files, is removed by somebody while the proxy runs.
#[tokio::test]
async fn a_cache_directory_that_was_removed_is_created_again() {
    for part in ["fills", "blobs", ""] {
        let (bench, _) = bench(&Faults::default()).await;
        let (first, second) = (bench.world.put("r", &content(1, 3000)), bench.world.put("r", &content(2, 3000)));
        bench.get("r", &first).await.expect("an answer");
        bench.settled().await;
        std::fs::remove_dir_all(bench.dir.join(part)).expect("removed");
        for digest in [first, second] {
            bench.get("r", &digest).await.expect("an answer");
            bench.settled().await;
        }
        let reads = bench.world.reads();
        for digest in [first, second] {
            bench.get("r", &digest).await.expect("an answer");
        }
        assert_eq!((bench.world.reads(), bench.cached()), (reads, 2), "{part:?}: cached again");
        assert_eq!(bench.proxy.cache().dir().restored(), u64::from(part != "blobs"), "{part:?}");
        bench.proxy.cache().dir().check_writable().expect("it can be written");
        let other = cache::Settings { dir: bench.dir.clone(), size: 1 << 20, keep_free: 0, files: Files::default() };
        let other = cache::Cache::open(other, |_, _| {}).await.expect_err("the lock is held");
        assert_eq!(other.kind(), Kind::Usage, "{part:?}: {other}");
    }
}

/// A directory that is in the way of the cache's cannot be mended: that is told, and everything is passed on.
#[tokio::test]
async fn a_cache_directory_that_cannot_be_created_again_is_told() {
    let (bench, _) = bench(&Faults::default()).await;
    let content = content(3, 3000);
    let digest = bench.world.put("r", &content);
    std::fs::remove_dir_all(&bench.dir).expect("removed");
    std::fs::write(&bench.dir, b"a file").expect("written");
    assert!(bench.get("r", &digest).await.expect("an answer") == content);
    let error = bench.proxy.cache().dir().check_writable().expect_err("it cannot be written");
    assert!(error.to_string().contains("fills"), "{error}");
    std::fs::remove_file(&bench.dir).expect("removed");
    bench.proxy.cache().dir().check_writable().expect("it is there again");
    bench.get("r", &digest).await.expect("an answer");
    bench.settled().await;
    assert_eq!(bench.cached(), 1);
}

/// A disk without inodes: files of the cache go, as they do where bytes are missing, but not all of them for nothing.
#[tokio::test]
async fn cached_blobs_are_evicted_where_inodes_are_missing() {
    let faults = Faults::default();
    let (bench, _) = bench(&faults).await;
    let digests: Vec<_> = (0..40).map(|nth| bench.world.put("r", &content(nth, 1000 + usize::from(nth)))).collect();
    for digest in &digests[..30] {
        bench.get("r", digest).await.expect("an answer");
        bench.settled().await;
    }
    faults.plan(Call::Create, Errno::NOSPC, 0, 2);
    bench.get("r", &digests[30]).await.expect("an answer");
    bench.settled().await;
    assert_eq!(bench.cached(), 29, "two went, one came");
    faults.plan(Call::Create, Errno::NOSPC, 0, usize::MAX);
    bench.get("r", &digests[31]).await.expect("an answer");
    bench.settled().await;
    assert!((1..29).contains(&bench.cached()), "{} are left", bench.cached());
}

/// Nothing could be written: the one client takes the body that is open. The first byte's room may be refused as well.
#[tokio::test]
async fn what_cannot_be_cached_is_requested_once() {
    for call in [Call::Create, Call::Write] {
        let faults = Faults::default();
        let (bench, _) = bench(&faults).await;
        faults.plan(call, Errno::NOSPC, 0, usize::MAX);
        for nth in 1..=5 {
            let content = content(nth, 9 * FRAME);
            let digest = bench.world.put("r", &content);
            bench.tell_size(digest, content.len() as u64).await;
            assert!(bench.get("r", &digest).await.expect("an answer") == content, "{call:?}: other bytes");
            bench.settled().await;
            assert_eq!(bench.world.reads(), usize::from(nth), "{call:?}");
        }
    }
}

/// A blob that is fetched in parts, likewise: each byte is requested once. Where the parts are given up for another tier,
/// the rest comes from that one.
#[tokio::test(start_paused = true)]
async fn what_would_be_fetched_in_parts_and_cannot_be_cached_is_requested_once() {
    let large = |settings: &mut Settings| (settings.cache.size, settings.parallel_from) = (100 << 20, 1 << 20);
    let (content, first) = (content(11, 20 << 20), 8 << 20);
    for (tiers, size) in [(1, true), (1, false), (2, true)] {
        let faults = Faults::default();
        let files = faults.files();
        let bench = Bench::new(|settings| {
            if tiers == 2 {
                two_tiers(settings, false);
            }
            large(settings);
            settings.cache.files = files;
        })
        .await;
        // Slow enough to be split, if there were a file for the parts.
        bench.world.0.slow.store(true, Ordering::Relaxed);
        faults.plan(Call::Write, Errno::NOSPC, 0, usize::MAX);
        let names = if tiers == 2 { vec!["mirror/r", "r"] } else { vec!["r"] };
        let digests: Vec<_> = names.iter().map(|name| bench.world.put(name, &content)).collect();
        if size {
            bench.tell_size(digests[0], content.len() as u64).await;
        }
        if tiers == 2 {
            bench.world.ends("mirror/r", first);
        }
        assert!(bench.get("r", &digests[0]).await.expect("an answer") == content, "other bytes");
        bench.settled().await;
        let opened = bench.world.0.opened.lock().expect("lock").clone();
        let at = |name: &str, from: u64| (name.to_owned(), from);
        let (begun, last) = (&opened[..2], opened.last().expect("some"));
        if tiers == 1 {
            assert_eq!(opened, [at("r", 0), at("r", first)]);
        } else {
            assert!(begun == [at("mirror/r", 0), at("mirror/r", first)] && *last == at("r", first), "{opened:?}");
            assert_eq!(opened.iter().filter(|(_, from)| *from < first).count(), 1, "{opened:?}");
        }
    }
}
