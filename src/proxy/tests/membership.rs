//! Which repository may have what is cached.

use super::*;
use crate::proxy::cache::GcOptions;

impl Bench {
    fn sizes(&self) -> usize {
        self.world.0.sizes.load(Ordering::Relaxed)
    }
}

/// Everybody who asks at the same time waits for one question.
#[tokio::test]
async fn a_repository_is_asked_once_whether_it_holds_a_cached_blob() {
    let bench = Bench::new(|_| {}).await;
    let content = content(1, 3 * FRAME);
    let digest = bench.world.put("r", &content);
    bench.get("r", &digest).await.expect("whole");
    bench.settled().await;
    bench.world.put("too", &content);
    let (before, reads) = (bench.sizes(), bench.world.reads());
    *bench.world.0.delay.lock().expect("lock") = Duration::from_millis(20);
    let all = futures_util::future::join_all((0..5).map(|_| bench.get("too", &digest))).await;
    assert!(all.into_iter().all(|got| got.expect("confirmed") == content));
    assert_eq!((bench.sizes() - before, bench.world.reads()), (1, reads));
    assert_eq!(bench.get("lacks", &digest).await.expect_err("it does not hold it").kind(), Kind::NotFound);
}

/// A registry that says that it has a blob of this digest, in another size, does not have it.
#[tokio::test]
async fn another_size_confirms_nothing() {
    let bench = Bench::new(|_| {}).await;
    let secret = content(1, 3 * FRAME);
    let digest = bench.world.put("private", &secret);
    bench.get("private", &digest).await.expect("whole");
    bench.settled().await;
    bench.world.0.blobs.lock().expect("lock").insert(("liar".to_owned(), digest), Bytes::from_static(b"short"));
    assert_eq!(bench.get("liar", &digest).await.expect_err("a lie").kind(), Kind::Registry);
    assert_eq!(bench.proxy.size_of(&place("liar"), &digest).await.expect_err("a lie").kind(), Kind::Registry);
}

/// A manifest that lies about a size makes its blob a member all the same, and the lie is forgotten for good.
#[tokio::test]
async fn what_a_manifest_names_needs_no_question_for_another_repositorys_blob() {
    let bench = Bench::new(|_| {}).await;
    let content = content(1, 3 * FRAME);
    let digest = bench.world.put("other", &content);
    bench.get("other", &digest).await.expect("whole");
    bench.settled().await;
    let before = bench.sizes();
    bench.tell_size(digest, content.len() as u64).await;
    assert_eq!(bench.get("r", &digest).await.expect("named"), content);
    assert_eq!(bench.proxy.size_of(&place("r"), &digest).await.expect("named"), Some(content.len() as u64));
    assert_eq!(bench.sizes(), before);
}

/// A record goes when none of its manifests is left, and not before the manifest had time to follow.
#[tokio::test]
async fn records_go_with_their_manifests() {
    let bench = Bench::new(|_| {}).await;
    for (repository, nth) in [("r", 1), ("s", 2)] {
        bench.world.publish(repository, "v1", &manifest(nth));
        let found = bench.proxy.manifest(&place(repository), &tag()).await.expect("an answer");
        found.expect("is there");
    }
    let records = || -> Vec<PathBuf> {
        let shards = std::fs::read_dir(bench.dir.join("repositories")).expect("read").flatten();
        shards.flat_map(|shard| std::fs::read_dir(shard.path()).expect("read").flatten()).map(|e| e.path()).collect()
    };
    assert_eq!(records().len(), 2);
    let gone = cache::offline::Item::Content(manifest(1).digest());
    bench.proxy.admin().remove(gone).await.expect("removed");
    bench.proxy.admin().gc(GcOptions::default()).await.expect("collects");
    assert_eq!(records().len(), 2, "too early");
    for record in records() {
        let file = std::fs::File::options().append(true).open(record).expect("opens");
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(7200)).expect("set");
    }
    bench.proxy.admin().gc(GcOptions::default()).await.expect("collects");
    let left = records();
    let text = std::fs::read_to_string(&left[0]).expect("readable");
    assert_eq!((left.len(), text), (1, format!("a.io a.io s\n{}", manifest(2).digest())));
}

/// With a negative TTL of zero nothing remembers the answer "not found": it is the answer all the same.
#[tokio::test(start_paused = true)]
async fn a_repository_without_the_cached_blob_gets_404_after_one_head() {
    let bench = Bench::new(at_once).await;
    let digest = bench.world.put("r", &content(1, FRAME));
    bench.get("r", &digest).await.expect("right");
    bench.settled().await;
    *bench.world.0.delay.lock().expect("lock") = Duration::from_secs(1);
    let before = bench.world.0.sizes.load(Ordering::Relaxed);
    assert!(bench.proxy.blob(&place("other"), &digest).await.expect("an answer").is_none());
    assert_eq!(bench.world.0.sizes.load(Ordering::Relaxed) - before, 1);
}
