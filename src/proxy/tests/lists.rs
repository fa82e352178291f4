//! Lists of tags: who is asked for them, and when they are old.

use super::*;

/// Who asks while a list is on its way gets the same one.
#[tokio::test]
async fn a_herd_asks_for_a_list_once() {
    let bench = Bench::new(|_| {}).await;
    let repo = bench.proxy.0.tiers.upstreams().find(&place("r")).expect("a spot");
    let gate = bench.world.gate();
    // Its client leaves.
    assert!(bench.proxy.0.tags(&repo, false).now_or_never().is_none());
    let herd = futures_util::future::join_all((0..5).map(|_| bench.proxy.0.tags(&repo, false)));
    let (herd, ()) = tokio::join!(herd, async { gate.add_permits(1) });
    for (found, how) in herd {
        assert_eq!(
            ((*found.expect("a list").expect("tags")).as_ref(), how),
            (&["v0".into()][..], CacheOutcome::Passed)
        );
    }
    assert_eq!(bench.world.0.lists.load(Ordering::Relaxed), 1);
}

/// An upstream that doesn't answer costs who asks for a known list seconds, and those after it nothing.
#[tokio::test(start_paused = true)]
async fn a_list_is_old_while_the_upstream_is_silent_and_only_then() {
    let bench = Bench::new(|_| {}).await;
    let repo = bench.proxy.0.tiers.upstreams().find(&place("r")).expect("a spot");
    let list = async || {
        let (found, how) = bench.proxy.0.tags(&repo, false).await;
        ((*found.expect("a list").expect("tags")).as_ref()[0].clone(), how)
    };
    assert_eq!(list().await, ("v0".into(), CacheOutcome::Passed));
    assert_eq!(list().await, ("v1".into(), CacheOutcome::Passed));
    let gate = bench.world.gate();
    let begun = tokio::time::Instant::now();
    for _ in 0..5 {
        assert_eq!(list().await, ("v1".into(), CacheOutcome::Stale));
    }
    let took = begun.elapsed();
    assert!((Duration::from_secs(3)..Duration::from_secs(4)).contains(&took), "{took:?}");
    // What comes late is known, and the upstream is asked again.
    gate.add_permits(1);
    let late = loop {
        match list().await {
            (tag, _) if tag == "v1" => tokio::task::yield_now().await,
            late => break late,
        }
    };
    assert_eq!((late, bench.world.0.lists.load(Ordering::Relaxed)), (("v2".into(), CacheOutcome::Stale), 4));
}

/// A client that reads a list by pages costs the upstream one list, not one for each page; a new reader is told of news.
#[tokio::test(start_paused = true)]
async fn pages_of_tags_are_cut_from_one_list() {
    let bench = Bench::new(|_| {}).await;
    let asked = || bench.world.0.lists.load(Ordering::Relaxed);
    for nth in 1..=2 {
        bench.proxy.tags(&place("r"), None, 1).await.expect("an answer").expect("is there");
        for _ in 0..50 {
            bench.proxy.tags(&place("r"), Some("v"), 1).await.expect("an answer").expect("is there");
        }
        assert_eq!(asked(), nth);
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.proxy.tags(&place("r"), Some("v"), 1).await.expect("an answer").expect("is there");
    assert_eq!(asked(), 3, "what is older than a tag's TTL is asked for again");
}
