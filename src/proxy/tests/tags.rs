//! Tags: what is believed, and for how long; who is asked, and what is told of it.

use super::*;
use crate::proxy::cache::{CachedTag, TagName};

impl Bench {
    fn asked(&self) -> usize {
        self.world.0.asked.load(Ordering::Relaxed)
    }
}

/// A clock that was set back makes it old, not young until then.
#[tokio::test]
async fn a_tag_from_the_future_is_asked_for() {
    let bench = Bench::new(|_| {}).await;
    let (old, new) = (manifest(1), manifest(2));
    bench.world.publish("r", "v1", &new);
    let manifest_store = &bench.proxy.cache().manifest_store;
    let name = TagName::new("a.io", "r", "v1");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    manifest_store.put(&old).await;
    manifest_store.put_tag(&name, CachedTag::new(&name, old.descriptor(), now)).await;
    assert_eq!(bench.tagged().await.expect("known"), Some(old.digest()));
    manifest_store.put_tag(&name, CachedTag::new(&name, old.descriptor(), now + 3600)).await;
    assert_eq!(bench.tagged().await.expect("asked for"), Some(new.digest()));
}

#[tokio::test]
async fn an_upstreams_own_times_hold() {
    let bench = Bench::new(|settings| {
        settings.upstreams[0].tag_ttl = Some(Duration::ZERO);
        settings.upstreams[0].negative_ttl = Some(Duration::ZERO);
    })
    .await;
    assert_eq!(bench.tagged().await.expect("an answer"), None);
    for nth in 0..3 {
        bench.world.publish("r", "v1", &manifest(nth));
        assert_eq!(bench.tagged().await.expect("an answer"), Some(manifest(nth).digest()));
    }
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_asked_is_left_alone_for_a_while() {
    let bench = Bench::new(at_once).await;
    bench.world.publish("r", "v1", &manifest(1));
    bench.tagged().await.expect("an answer");
    bench.world.fail("r", &tag(), Ill::Down(usize::MAX));
    assert_eq!(bench.tagged().await.expect("stale"), Some(manifest(1).digest()));
    let asked = bench.asked();
    for _ in 0..3 {
        assert_eq!(bench.tagged().await.expect("stale"), Some(manifest(1).digest()));
    }
    assert_eq!(bench.asked(), asked);
    tokio::time::advance(Duration::from_secs(10)).await;
    bench.tagged().await.expect("stale");
    assert!(bench.asked() > asked);
}

/// A tag that moved to what can't be had now is what it was; one that is gone isn't what it was.
#[tokio::test(start_paused = true)]
async fn news_are_believed_but_not_to_everybodys_harm() {
    let bench = Bench::new(at_once).await;
    let (old, new) = (manifest(1), manifest(2));
    bench.world.publish("r", "v1", &old);
    bench.tagged().await.expect("an answer");
    bench.world.publish("r", "v1", &new);
    bench.world.fail("r", &Target::Digest(new.digest()), Ill::Down(usize::MAX));
    assert_eq!(bench.tagged().await.expect("what there is"), Some(old.digest()));
    // The registry is left alone until then, since it failed so often.
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.world.withdraw("r", "v1");
    assert_eq!(bench.tagged().await.expect("an answer"), None);
    bench.world.fail("r", &Target::Digest(new.digest()), Ill::Down(0));
    bench.world.fail("r", &tag(), Ill::Down(usize::MAX));
    assert_eq!(bench.tagged().await.expect_err("nobody knows").kind(), Kind::Network);
}

#[tokio::test(start_paused = true)]
async fn a_fault_is_no_answer_and_silence_leaves_time_for_the_next_tier() {
    let bench = Bench::new(|settings| two_tiers(settings, false)).await;
    bench.world.publish("mirror/r", "v1", &manifest(1));
    bench.world.publish("r", "v1", &manifest(2));
    bench.world.fail("mirror/r", &tag(), Ill::Down(2));
    assert_eq!(bench.tagged().await.expect("tried again"), Some(manifest(1).digest()));
    let bench = Bench::new(|settings| two_tiers(settings, false)).await;
    bench.world.publish("r", "v1", &manifest(2));
    bench.world.fail("mirror/r", &tag(), Ill::Silent);
    assert_eq!(bench.tagged().await.expect("the other's"), Some(manifest(2).digest()));
    // When all fail, it's told why the first did: that is the owner's.
    let bench = Bench::new(|settings| two_tiers(settings, false)).await;
    for repository in ["r", "mirror/r"] {
        bench.world.fail(repository, &tag(), Ill::Down(usize::MAX));
    }
    let error = bench.tagged().await.expect_err("both fail").to_string();
    assert!(error.contains("no way to mirror/r "), "{error}");
}

/// Who is to be told that only the original has something.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Observer for Told {
    fn event(&self, event: &Event<'_>) {
        if let Event::OnlyOriginal { upstream, repository, target } = event {
            self.0.lock().expect("lock").push(format!("{upstream} {repository} {target}"));
        }
    }
}

/// A client that asks by `HEAD` for the tag reads by digest: the tag is to be copied too.
#[tokio::test]
async fn what_only_the_original_has_is_told_for_each_way_to_ask() {
    for write_back in [true, false] {
        let told = Arc::new(Told::default());
        let bench = Bench::observed(|settings| two_tiers(settings, write_back), told.clone()).await;
        bench.world.publish("mirror/r", "v1", &manifest(1));
        bench.tagged().await.expect("an answer");
        bench.proxy.resolve(&place("r"), &tag()).await.expect("an answer");
        assert!(told.0.lock().expect("lock").is_empty(), "the durable tier has it");
        bench.world.publish("r", "v2", &manifest(2));
        let (named, by_digest) = (Target::Tag("v2".into()), Target::Digest(manifest(2).digest()));
        bench.proxy.resolve(&place("r"), &named).await.expect("an answer").expect("is there");
        bench.proxy.manifest(&place("r"), &by_digest).await.expect("an answer").expect("is there");
        let expected = ["a.io r v2".to_owned(), format!("a.io r {by_digest}")];
        assert_eq!(*told.0.lock().expect("lock"), if write_back { &expected[..] } else { &[] });
    }
}

/// Who was asked before it was there, and answered after it was, ends what was believed in between.
#[tokio::test(start_paused = true)]
async fn what_is_found_is_absent_no_more() {
    let bench = Bench::new(|settings| settings.tag_ttl = Duration::ZERO).await;
    bench.world.fail("r", &tag(), Ill::Limited(1, 3));
    let looks = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(bench.proxy.resolve(&place("r"), &tag()).await.expect("an answer").is_none());
        bench.world.publish("r", "v1", &manifest(1));
    };
    let (read, ()) = tokio::join!(bench.tagged(), looks);
    let found = Some(manifest(1).digest());
    assert_eq!((read.expect("in time"), bench.tagged().await.expect("an answer")), (found, found));
}

/// A GET of a tag that was asked before the tag moved, and is answered after a HEAD that saw the move.
#[tokio::test]
async fn an_answer_to_an_older_question_replaces_no_newer_one() {
    let bench = Bench::new(|settings| settings.negative_ttl = Duration::ZERO).await;
    let manifest = |name: &str| {
        let text = serde_json::json!({"schemaVersion": 2, "layers": [], "annotations": {"name": name}}).to_string();
        Manifest::read(text.into(), None, None).expect("a manifest")
    };
    let (old, new) = (manifest("old"), manifest("new"));
    bench.world.publish("r", "v1", &old);
    let late = Arc::new(Semaphore::new(0));
    *bench.world.0.late.lock().expect("lock") = Some(late.clone());
    let slow = tokio::spawn({
        let proxy = bench.proxy.clone();
        async move { proxy.manifest(&place("r"), &tag()).await.expect("answers").expect("is there").digest() }
    });
    while bench.world.0.asked.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    bench.world.publish("r", "v1", &new);
    let head = bench.proxy.resolve(&place("r"), &tag()).await.expect("answers").expect("is there");
    assert_eq!(head.digest, new.digest());
    late.add_permits(1);
    assert_eq!(slow.await.expect("no panic"), old.digest(), "its own question was older");
    let head = bench.proxy.resolve(&place("r"), &tag()).await.expect("answers").expect("is there");
    assert_eq!(head.digest, new.digest(), "the older answer is not the tag's for its TTL");
}

/// As before, where the tag was made between the two questions.
#[tokio::test]
async fn an_older_answer_that_a_tag_is_absent_hides_no_newer_one() {
    let bench = Bench::new(|_| {}).await;
    bench.world.publish(
        "r",
        "v1",
        &Manifest::read(r#"{"schemaVersion":2,"layers":[]}"#.into(), None, None).expect("one"),
    );
    let (now, before) = (Instant::now(), Instant::now() - Duration::from_secs(1));
    let (repo, target) = (bench.proxy.0.tiers.upstreams().repository("a.io", "r").expect("a spot"), tag());
    let descriptor = Descriptor::new("x", Digest::of(b"x"), 1);
    bench.proxy.0.remember_answer(&repo, &target, Some(&descriptor), now).await;
    bench.proxy.0.remember_answer(&repo, &target, None, before).await;
    let found = bench.proxy.resolve(&place("r"), &target).await.expect("answers").expect("is there");
    assert_eq!(found.digest, descriptor.digest);
}
