//! How long a client waits, and for what.

use tokio::time::Instant;

use super::*;

/// How many seconds have passed since then.
fn since(begun: Instant) -> u64 {
    begun.elapsed().as_secs()
}

/// Also when that takes longer than one question may; but not for nothing.
#[tokio::test(start_paused = true)]
async fn a_limit_that_ends_in_time_is_waited_out() {
    for (ill, seconds) in [(Ill::Limited(2, 8), 16), (Ill::Limited(1, 11), 11), (Ill::Limited(1, 22), 22)] {
        let bench = Bench::new(at_once).await;
        bench.world.publish("r", "v1", &manifest(1));
        bench.world.fail("r", &tag(), ill);
        let begun = Instant::now();
        assert_eq!(bench.tagged().await.expect("in time"), Some(manifest(1).digest()), "{ill:?}");
        assert_eq!(since(begun), seconds, "{ill:?}");
    }
    for ill in [Ill::Limited(1, 25), Ill::Limited(1, u64::MAX)] {
        let bench = Bench::new(at_once).await;
        bench.world.fail("r", &tag(), ill);
        let begun = Instant::now();
        let error = bench.tagged().await.expect_err("too long");
        assert_eq!((error.kind(), since(begun)), (Kind::Limited, 0), "{ill:?}");
        assert!(error.retry_after().is_some());
    }
}

/// Who knows what a tag was waits only as long as he would for an answer.
#[tokio::test(start_paused = true)]
async fn a_limit_is_not_waited_out_by_who_has_an_answer() {
    let bench = Bench::new(at_once).await;
    bench.world.publish("r", "v1", &manifest(1));
    bench.tagged().await.expect("an answer");
    bench.world.publish("r", "v1", &manifest(2));
    bench.world.fail("r", &tag(), Ill::Limited(1, 5));
    let begun = Instant::now();
    assert_eq!(bench.tagged().await.expect("stale"), Some(manifest(1).digest()));
    assert_eq!(since(begun), 0);
}

/// Finding it and opening it are one wait for the client.
#[tokio::test(start_paused = true)]
async fn what_is_passed_on_takes_one_patience() {
    let bench = Bench::new(|settings| {
        two_tiers(settings, false);
        settings.cache.size = 10;
    })
    .await;
    let digest = bench.world.put("r", &content(1, 3 * FRAME));
    // Both tiers are asked how large it is, then for it: 44 s.
    *bench.world.0.delay.lock().expect("lock") = Duration::from_secs(11);
    let begun = Instant::now();
    let error = bench.get("r", &digest).await.expect_err("too slow");
    assert_eq!((error.kind(), since(begun)), (Kind::Timeout, 25));
}

/// The client below holds requests back where another was answered 429: that is no silence.
#[tokio::test(start_paused = true)]
async fn who_is_held_back_hears_of_the_limit() {
    let bench = Bench::new(at_once).await;
    let other = Target::Tag("v2".into());
    bench.world.fail("r", &tag(), Ill::Silent);
    bench.world.fail("r", &other, Ill::Limited(1, 60));
    let limited = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bench.proxy.manifest(&place("r"), &other).await.expect_err("limited").kind()
    };
    let (held, limited) = tokio::join!(bench.tagged(), limited);
    assert_eq!((held.expect_err("held back").kind(), limited), (Kind::Limited, Kind::Limited));
    // Without a limit it's silence.
    let bench = Bench::new(at_once).await;
    bench.world.fail("r", &tag(), Ill::Silent);
    assert_eq!(bench.tagged().await.expect_err("silent").kind(), Kind::Timeout);
}

/// The client would wait for 30 s: whatever is over before that is no reason to fail it.
#[tokio::test(start_paused = true)]
async fn an_outage_that_ends_in_time_is_waited_out() {
    for (seconds, tiers) in [(1, 1), (5, 1), (12, 1), (20, 1), (5, 2), (20, 2)] {
        let bench =
            Bench::new(|settings| if tiers == 2 { two_tiers(settings, false) } else { at_once(settings) }).await;
        let repository = if tiers == 2 { "mirror/r" } else { "r" };
        bench.world.publish(repository, "v1", &manifest(1));
        let begun = Instant::now();
        bench.world.fail(repository, &tag(), Ill::Away(begun + Duration::from_secs(seconds)));
        assert_eq!(bench.tagged().await.expect("in time"), Some(manifest(1).digest()), "{seconds} s, {tiers} tiers");
        assert!(since(begun) < 25, "{seconds} s: after {} s", since(begun));
    }
    let bench = Bench::new(at_once).await;
    bench.world.fail("r", &tag(), Ill::Down(usize::MAX));
    let begun = Instant::now();
    assert_eq!(bench.tagged().await.expect_err("never back").kind(), Kind::Network);
    assert!((20..=25).contains(&since(begun)), "{}", since(begun));
}

/// Many clients wait for one registry: it is asked by one of them at a time, and by all when it is back.
#[tokio::test(start_paused = true)]
async fn while_the_circuit_is_open_one_question_probes_for_all_who_wait() {
    let bench = Bench::new(at_once).await;
    let tags: Vec<_> = (0..200).map(|nth| format!("t{nth}")).collect();
    let until = Instant::now() + Duration::from_secs(14);
    for tag in &tags {
        bench.world.publish("r", tag, &manifest(1));
        bench.world.fail("r", &Target::Tag(tag.as_str().into()), Ill::Away(until));
    }
    let place = place("r");
    let pulls =
        tags.iter().map(async |tag| bench.proxy.manifest(&place, &Target::Tag(tag.as_str().into())).await.is_ok());
    let asked = || bench.world.0.asked.load(Ordering::Relaxed);
    let count = async {
        // All had their first try, and the quick ones after it.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = asked();
        tokio::time::sleep(Duration::from_secs(11)).await;
        asked() - before
    };
    let (pulls, between) = tokio::join!(futures_util::future::join_all(pulls), count);
    assert!(pulls.into_iter().all(|ok| ok));
    assert!(between <= 12, "{between} questions in 11 s of outage");
}

/// Whatever befalls one of them.
#[tokio::test(start_paused = true)]
async fn breakers_and_limits_are_each_upstreams_own() {
    for ill in [Ill::Down(usize::MAX), Ill::Limited(1, 60)] {
        let bench = Bench::new(|settings| {
            at_once(settings);
            settings.upstreams.push("b.io".parse().expect("a spec"));
        })
        .await;
        bench.world.publish("r", "v1", &manifest(1));
        bench.world.publish("ill", "v1", &manifest(2));
        bench.world.fail("ill", &tag(), ill);
        let of_b = |name: &str| RepositoryPath { name: name.into(), ns: Some("b.io".to_owned()) };
        let is_well = || bench.proxy.health().iter().any(|health| health.registry == "b.io" && health.well);
        let noticed = async {
            while is_well() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let (place, target) = (of_b("ill"), tag());
        tokio::select! {
            answer = bench.proxy.manifest(&place, &target) => drop(answer.expect_err("ill")),
            () = noticed => {}
        }
        let asked = bench.world.0.asked.load(Ordering::Relaxed);
        let answer = bench.proxy.manifest(&of_b("r"), &tag()).now_or_never();
        assert!(answer.is_none_or(|answer| answer.is_err()), "left alone, whatever is asked for");
        assert_eq!(bench.world.0.asked.load(Ordering::Relaxed), asked, "{ill:?}");
        assert_eq!(bench.tagged().await.expect("well"), Some(manifest(1).digest()), "{ill:?}");
        let health = bench.proxy.health().into_iter().map(|health| (health.registry, health.well)).collect::<Vec<_>>();
        assert_eq!(health, [("a.io".to_owned(), true), ("b.io".to_owned(), false)], "{ill:?}");
    }
}

/// What can't be cached is fetched for each client, but not for any number at a time.
#[tokio::test(start_paused = true)]
async fn so_much_is_passed_on_at_once() {
    let bench = Bench::new(|settings| (settings.cache.size, settings.fills) = (10, 2)).await;
    let digests: Vec<_> = (0..8).map(|seed| bench.world.put("r", &content(seed, 3 * FRAME))).collect();
    bench.world.0.slow.store(true, Ordering::Relaxed);
    let all = futures_util::future::join_all(digests.iter().map(|digest| bench.get("r", digest))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(bench.world.0.open.1.load(Ordering::Relaxed), 2);
    // Who reads slowly keeps his place: the others hear of it in time.
    let held = [bench.body("r", &digests[0], None).await, bench.body("r", &digests[1], None).await];
    let begun = Instant::now();
    let error = bench.get("r", &digests[2]).await.expect_err("no place");
    assert!(error.kind() == Kind::Limited && error.retry_after().is_some() && since(begun) < 25, "{error}");
    drop(held);
    bench.get("r", &digests[2]).await.expect("a place");
}
