//! Readers of what is being fetched, and what must not come of faults.

use super::*;

/// Bytes as they come, until there are so many.
async fn some(body: &mut Body, many: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < many {
        got.extend(body.try_next().await.expect("bytes").expect("not its end"));
    }
    got
}

/// Also where the bytes before it are read beside the writer, far ahead of it. If those came damaged, the answer is cut.
#[tokio::test]
async fn the_last_byte_waits_for_the_digest_whoever_brings_it() {
    for damaged in [false, true] {
        let bench = Bench::new(|settings| settings.cache.size = 100 << 20).await;
        let content = content(1, 9 << 20);
        let (digest, size) = (bench.world.put("r", &content), content.len());
        let gate = bench.world.gate();
        let whole = bench.body("r", &digest, None).await.expect("opens");
        // What is opened from now on waits for nothing.
        *bench.world.0.gate.lock().expect("lock") = None;
        let from = size - 1500;
        if damaged {
            bench.world.fault(Fault::Flip(from as u64 + 700));
        }
        let mut end = bench.body("r", &digest, Some(from as u64..size as u64)).await.expect("joins");
        assert_eq!(some(&mut end, 1499).await == content[from..size - 1], !damaged);
        assert_eq!(bench.world.reads(), 2);
        gate.add_permits(size);
        let last = all(end).await;
        if damaged {
            assert_eq!(last.expect_err("cut").kind(), Kind::Mismatch);
        } else {
            assert_eq!(last.expect("right"), content[size - 1..]);
        }
        assert!(all(whole).await.expect("right") == content);
    }
}

#[tokio::test]
async fn a_range_of_what_is_filling_ends_where_it_should() {
    let bench = Bench::new(|_| {}).await;
    let content = content(2, 4 * FRAME);
    let digest = bench.world.put("r", &content);
    let gate = bench.world.gate();
    let mut whole = bench.body("r", &digest, None).await.expect("opens");
    gate.add_permits(3);
    some(&mut whole, 3 * FRAME).await;
    for (from, to) in [(0, 10), (500, 700), (990, 1010), (1500, 2999)] {
        let range = bench.body("r", &digest, Some(from as u64..to as u64)).await.expect("joins");
        assert_eq!(all(range).await.expect("there already"), content[from..to]);
    }
    gate.add_permits(1);
    all(whole).await.expect("right");
}

/// When the disk fails, each reader continues from the upstream at its byte. Wrong bytes are found even so, also where only
/// the bytes that came before the disk failed are wrong.
#[tokio::test]
async fn past_a_failing_disk_each_reader_gets_its_range() {
    for (at, flips) in [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2)] {
        let bench = Bench::new(|_| {}).await;
        let content = content(3, 4 * FRAME);
        let digest = bench.world.put("r", &content);
        bench.world.fault(Fault::DiskAt(at * FRAME as u64));
        (0..flips).for_each(|_| bench.world.fault(Fault::Flip(10)));
        let gate = bench.world.gate();
        let whole = bench.body("r", &digest, None).await.expect("opens");
        let part = bench.body("r", &digest, Some(500..2500)).await.expect("joins");
        gate.add_permits(100);
        let (whole, part) = tokio::join!(all(whole), all(part));
        assert_eq!(part.expect("its part"), content[500..2500]);
        if flips > 0 {
            assert_eq!(whole.expect_err("cut").kind(), Kind::Mismatch);
        } else {
            assert_eq!(whole.expect("all of it"), content);
        }
        bench.settled().await;
        assert_eq!(bench.cached(), 0);
    }
}

#[tokio::test]
async fn what_is_only_passed_on_is_verified_too() {
    let bench = Bench::new(|settings| settings.cache.size = 10).await;
    let content = content(4, 3 * FRAME);
    let digest = bench.world.put("r", &content);
    assert_eq!(bench.get("r", &digest).await.expect("right"), content);
    for range in [None, Some(0..3 * FRAME as u64)] {
        bench.world.fault(Fault::Flip(10));
        let body = bench.body("r", &digest, range).await.expect("opens");
        let (got, error) = broken(body).await;
        assert_eq!(error.kind(), Kind::Mismatch);
        assert!(got < content.len());
    }
}

/// A range with the blob's last byte needs all of the blob, to be verified. Any other range is requested as it is.
#[tokio::test]
async fn a_range_of_an_uncached_blob_is_requested_alone_unless_it_has_the_last_byte() {
    let bench = Bench::new(|settings| settings.cache.size = 10).await;
    let content = content(4, 3 * FRAME);
    let digest = bench.world.put("r", &content);
    for (from, to, alone) in [(0, 1500, true), (500, 1500, true), (0, 3000, false), (500, 3000, false)] {
        bench.world.fault(if alone { Fault::None } else { Fault::Flip(10) });
        let body = bench.body("r", &digest, Some(from as u64..to as u64)).await.expect("opens");
        let parts = std::mem::take(&mut *bench.world.0.parts.lock().expect("lock"));
        if alone {
            assert_eq!(all(body).await.expect("its part"), content[from..to]);
            assert_eq!(parts, std::slice::from_ref(&(from as u64..to as u64)));
        } else {
            assert_eq!(all(body).await.expect_err("wrong").kind(), Kind::Mismatch);
            assert_eq!(parts, []);
        }
    }
}

#[tokio::test]
async fn the_upstream_is_asked_once_for_what_it_lacks_and_never_for_what_it_sends() {
    let bench = Bench::new(|_| {}).await;
    let (place, lacking) = (place("r"), Digest::of(b"nowhere"));
    let asked = || bench.world.0.sizes.load(Ordering::Relaxed);
    for _ in 0..3 {
        assert!(bench.proxy.blob(&place, &lacking).await.expect("an answer").is_none());
        assert_eq!(bench.proxy.size_of(&place, &lacking).await.expect("an answer"), None);
    }
    assert_eq!(asked(), 1);
    let digest = bench.world.put("r", &content(6, 2 * FRAME));
    let gate = bench.world.gate();
    let body = bench.body("r", &digest, None).await.expect("opens");
    let before = asked();
    assert_eq!(bench.proxy.size_of(&place, &digest).await.expect("an answer"), Some(2 * FRAME as u64));
    assert_eq!(asked(), before);
    gate.add_permits(2);
    all(body).await.expect("right");
}

#[tokio::test]
async fn so_many_are_fetched_at_once() {
    let bench = Bench::new(|settings| settings.fills = 2).await;
    let digests: Vec<_> = (0..8).map(|seed| bench.world.put("r", &content(seed, 3 * FRAME))).collect();
    // None ends before two are open: so many at least there are, and no more may be.
    let gate = bench.world.gate();
    let all = futures_util::future::join_all(digests.iter().map(|digest| bench.get("r", digest)));
    let two = async {
        while bench.world.0.open.0.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        gate.add_permits(8 * 3);
    };
    let (all, ()) = tokio::join!(all, two);
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(bench.world.0.open.1.load(Ordering::Relaxed), 2);
}

/// A large blob from a connection that is waited for: several requests, whose failures all end somewhere.
#[tokio::test(start_paused = true)]
async fn lanes_bring_all_of_it_or_an_error() {
    let large = |settings: &mut Settings| (settings.cache.size, settings.parallel_from) = (100 << 20, 1 << 20);
    let content = content(5, 20 << 20);
    // None; while it's one request; in some lanes; far too often.
    for (faults, at) in [(0, 0), (1, 10_000), (3, 9 << 20), (100, 100_000)] {
        let bench = Bench::new(large).await;
        bench.world.0.slow.store(true, Ordering::Relaxed);
        let digest = bench.world.put("r", &content);
        (0..faults).for_each(|_| bench.world.fault(Fault::BreakAt(at)));
        let got = tokio::time::timeout(Duration::from_secs(3600), bench.get("r", &digest)).await.expect("an end");
        if faults > 10 {
            assert_eq!(got.expect_err("too many faults").kind(), Kind::Network);
        } else {
            assert!(got.expect("whole") == content);
            assert!(bench.world.reads() > 2 && bench.world.0.open.1.load(Ordering::Relaxed) > 1);
        }
        bench.settled().await;
        assert_eq!(bench.cached(), usize::from(faults < 10));
    }
}

/// Pieces are for those who wait: as long as bytes come faster than we take them, the second request is for all the
/// rest. It may be waited for later all the same.
#[tokio::test(start_paused = true)]
async fn a_fast_connection_is_asked_for_all_the_rest() {
    const MIB: usize = 1 << 20;
    let large = |settings: &mut Settings| (settings.cache.size, settings.parallel_from) = (100 << 20, 1 << 20);
    let content = content(7, 40 * MIB);
    for slows in [false, true] {
        let bench = Bench::new(large).await;
        let digest = bench.world.put("r", &content);
        let gate = bench.world.gate();
        let mut body = bench.body("r", &digest, None).await.expect("opens");
        gate.add_permits(12 * MIB / FRAME);
        let mut got = some(&mut body, 11 * MIB).await;
        bench.world.0.slow.store(slows, Ordering::Relaxed);
        gate.add_permits(content.len());
        got.extend(all(body).await.expect("the rest"));
        assert!(got == content);
        let opened: Vec<u64> = bench.world.0.opened.lock().expect("lock").iter().map(|(_, at)| *at).collect();
        assert_eq!(opened[..2], [0, 8 << 20]);
        assert_eq!(opened.len() > 2, slows, "{opened:?}");
        bench.settled().await;
        assert_eq!(bench.cached(), 1);
    }
}

/// In the piece that the first request brings, and in one that a later lane does.
#[tokio::test(start_paused = true)]
async fn what_lanes_bring_wrong_is_cut_before_its_last_byte() {
    let large = |settings: &mut Settings| (settings.cache.size, settings.parallel_from) = (100 << 20, 1 << 20);
    let content = content(5, 20 << 20);
    for wrong in [100, 9 << 20, (20 << 20) - 1] {
        let bench = Bench::new(large).await;
        bench.world.0.slow.store(true, Ordering::Relaxed);
        let digest = bench.world.put("r", &content);
        // Of whichever request has that byte.
        (0..3).for_each(|_| bench.world.fault(Fault::Flip(wrong)));
        let body = bench.body("r", &digest, None).await.expect("opens");
        if wrong + 1 == content.len() as u64 {
            // Nobody was given it: so it is fetched again, and this reader goes on.
            assert!(all(body).await.expect("mended") == content);
        } else {
            let (got, error) = broken(body).await;
            assert!(error.kind() == Kind::Mismatch && got < content.len(), "{wrong}: {got} bytes, {error}");
        }
        assert!(bench.world.0.open.1.load(Ordering::Relaxed) > 1, "one request was enough");
        bench.settled().await;
        assert!(bench.get("r", &digest).await.expect("mended") == content);
    }
}

/// A byte that was damaged on the way and that no client has yet costs one attempt, and no client's pull. Who has it
/// is cut: it can't be taken back.
#[tokio::test(start_paused = true)]
async fn damage_on_the_way_is_fetched_again_and_who_has_wrong_bytes_is_cut() {
    let content = content(7, 900 * FRAME);
    let (early, late) = (10, 899 * FRAME as u64);
    for wrong in [early, late] {
        let bench = Bench::new(|_| {}).await;
        let digest = bench.world.put("r", &content);
        bench.world.fault(Fault::Flip(wrong));
        let gate = bench.world.gate();
        let mut reader = bench.body("r", &digest, None).await.expect("opens");
        let waits = bench.body("r", &digest, None).await.expect("opens");
        gate.add_permits(500);
        // Some of it has come, and been passed on.
        let mut got = reader.try_next().await.expect("bytes").expect("bytes").to_vec();
        gate.add_permits(10_000);
        let rest = all(reader).await;
        // Who has not begun to read knows nothing of it.
        assert!(all(waits).await.expect("mended") == content, "{wrong}");
        match rest {
            Ok(rest) => {
                got.extend(rest);
                assert!(wrong == late && got == content, "{wrong}: a wrong byte was served");
            }
            Err(error) => assert!(wrong == early && error.kind() == Kind::Mismatch, "{wrong}: {error}"),
        }
        assert_eq!(bench.world.reads(), 2, "one more attempt");
        bench.settled().await;
        assert_eq!(bench.cached(), 1);
    }
}

/// A registry that crawls takes no place of another one, and what has no place is passed through.
#[tokio::test(start_paused = true)]
async fn one_registry_that_crawls_takes_no_place_of_another() {
    let bench = Bench::new(|settings| {
        settings.fills = 2;
        settings.upstreams.push("b.io".parse().expect("a spec"));
    })
    .await;
    *bench.world.0.gated.lock().expect("lock") = Some("slow".to_owned());
    let gate = bench.world.gate();
    let slow: Vec<_> = (0..3).map(|seed| bench.world.put("slow", &content(seed, 3 * FRAME))).collect();
    let first = [bench.body("slow", &slow[0], None).await, bench.body("slow", &slow[1], None).await];
    assert!(first.iter().all(Result::is_ok));
    // Nobody waits for them any more; they are fetched all the same.
    drop(first);
    let begun = tokio::time::Instant::now();
    let (quick, digest) = (content(9, 3 * FRAME), bench.world.put("r", &content(9, 3 * FRAME)));
    let place = RepositoryPath { name: "r".into(), ns: Some("b.io".to_owned()) };
    let found = bench.proxy.blob(&place, &digest).await.expect("answers").expect("is there");
    assert!(all(found.read(0..3 * FRAME as u64, None).await.expect("reads")).await.expect("whole") == quick);
    assert_eq!(begun.elapsed().as_secs(), 0);
    let third = bench.body("slow", &slow[2], None).await.expect("in a client's patience");
    assert!(begun.elapsed().as_secs() < 25);
    gate.add_permits(100);
    assert!(all(third).await.expect("whole") == content(2, 3 * FRAME));
    bench.settled().await;
    assert!(bench.proxy.cache().blobs.size_of(&slow[2]).is_none(), "it was passed through");
    assert_eq!(bench.cached(), 3);
}

/// A durable tier that ends in the middle of a blob is gone on from by the original, at the same byte.
#[tokio::test(start_paused = true)]
async fn a_tier_that_ends_in_the_middle_is_gone_on_from_by_the_next() {
    let content = content(6, 20 * FRAME);
    for cached in [true, false] {
        let bench = Bench::new(|settings| {
            two_tiers(settings, false);
            settings.cache.size = if cached { 1 << 20 } else { 10 };
        })
        .await;
        let digest = bench.world.put("mirror/r", &content);
        bench.world.put("r", &content);
        // As often as it's forgiven, and once more.
        (0..7).for_each(|_| bench.world.fault(Fault::BreakAt(9 * FRAME as u64)));
        assert_eq!(bench.get("r", &digest).await.expect("whole"), content);
        let opened = std::mem::take(&mut *bench.world.0.opened.lock().expect("lock"));
        let at = 9 * FRAME as u64;
        let mut expected = vec![("mirror/r".to_owned(), 0)];
        expected.extend((0..6).map(|_| ("mirror/r".to_owned(), at)));
        expected.push(("r".to_owned(), at));
        assert_eq!(opened, expected);
    }
    // Verified all the same: what the next one has may be wrong.
    let bench = Bench::new(|settings| two_tiers(settings, false)).await;
    let digest = bench.world.put("mirror/r", &content);
    bench.world.put("r", &content);
    (0..7).for_each(|_| bench.world.fault(Fault::BreakAt(9 * FRAME as u64)));
    (0..7).for_each(|_| bench.world.fault(Fault::Flip(15 * FRAME as u64)));
    assert_eq!(bench.get("r", &digest).await.expect_err("wrong").kind(), Kind::Mismatch);
    bench.settled().await;
    bench.assert_nothing_left();
}

/// The bytes of two tiers are verified as one blob: if they are damaged, nobody knows by which tier. The first tier is asked
/// again as before.
#[tokio::test(start_paused = true)]
async fn damage_is_charged_to_no_tier_when_two_of_them_sent_the_blob() {
    let content = content(6, 20 * FRAME);
    for cached in [true, false] {
        let bench = Bench::new(|settings| {
            two_tiers(settings, false);
            settings.negative_ttl = Duration::from_secs(3600);
            settings.cache.size = if cached { 1 << 20 } else { 10 };
        })
        .await;
        let digest = bench.world.put("mirror/r", &content);
        bench.world.put("r", &content);
        bench.world.ends("mirror/r", 9 * FRAME as u64);
        (0..200).for_each(|_| bench.world.fault(Fault::Flip(15 * FRAME as u64)));
        for _ in 0..damage_limit() {
            assert_eq!(bench.get("r", &digest).await.expect_err("wrong").kind(), Kind::Mismatch);
            bench.settled().await;
        }
        bench.world.0.ends.lock().expect("lock").clear();
        bench.world.0.faults.lock().expect("lock").clear();
        bench.world.0.opened.lock().expect("lock").clear();
        assert_eq!(bench.get("r", &digest).await.expect("whole"), content);
        assert_eq!(*bench.world.0.opened.lock().expect("lock"), [("mirror/r".to_owned(), 0)]);
    }
}

/// Damaged fetches after which a registry is not asked for a blob.
fn damage_limit() -> u32 {
    crate::content::MAX_DAMAGED
}

/// Two tiers with `content`, which is large enough for several requests. The first tier ends at the byte `end`.
async fn two_tiers_in_parts(content: &[u8], end: u64) -> (Bench, Digest) {
    let bench = Bench::new(|settings| {
        two_tiers(settings, false);
        (settings.cache.size, settings.parallel_from) = (100 << 20, 1 << 20);
    })
    .await;
    bench.world.0.slow.store(true, Ordering::Relaxed);
    let digest = bench.world.put("mirror/r", content);
    bench.world.put("r", content);
    bench.world.ends("mirror/r", end);
    (bench, digest)
}

/// Where it's fetched by several requests, too: the rest comes by one.
#[tokio::test(start_paused = true)]
async fn lanes_that_end_are_gone_on_from_by_the_next_tier() {
    let content = content(7, 20 << 20);
    // While it's one request, and when it's several.
    for at in [10_000, 9 << 20] {
        let (bench, digest) = two_tiers_in_parts(&content, at).await;
        assert!(bench.get("r", &digest).await.expect("whole") == content);
        let opened = bench.world.0.opened.lock().expect("lock").clone();
        let next: Vec<_> = opened.iter().filter(|(repository, _)| repository == "r").collect();
        assert!(next.len() == 1 && next[0].1 > 0, "{opened:?}");
        bench.settled().await;
        assert_eq!(bench.cached(), 1);
    }
}

/// A byte of the first tier is damaged on the way, shortly before that tier ends and the next one continues. The damaged
/// byte is in the file: the answer is cut, and the file is not served to others.
#[tokio::test(start_paused = true)]
async fn what_was_damaged_before_the_next_tier_continued_is_found() {
    let content = content(7, 10 << 20);
    // Which byte is the last one of the first tier, and how many requests it takes, is known after a run without damage.
    let mut damage = None;
    for _ in 0..2 {
        let (bench, digest) = two_tiers_in_parts(&content, 9 << 20).await;
        if let Some((wrong, requests)) = damage {
            (0..requests).for_each(|_| bench.world.fault(Fault::Flip(wrong)));
        }
        let body = bench.body("r", &digest, None).await.expect("opens");
        if damage.is_some() {
            let (got, error) = broken(body).await;
            assert!(error.kind() == Kind::Mismatch && got < content.len(), "{got} bytes, {error}");
            bench.settled().await;
            assert!(bench.get("r", &digest).await.expect("fetched again") == content);
        } else {
            assert!(all(body).await.expect("whole") == content);
            let opened = bench.world.0.opened.lock().expect("lock").clone();
            let next = opened.iter().position(|(repository, _)| repository == "r").expect("the next tier");
            let wrong = opened[next].1 - 1;
            let brought = opened[..next].iter().rposition(|(_, from)| *from <= wrong).expect("who brought it");
            damage = Some((wrong, brought + 1));
        }
    }
}

/// The upstream announces a blob that would need all of the cache, and sends nothing, or little. What is cached stays
/// until bytes arrive that need its room.
#[tokio::test]
async fn a_size_that_is_only_announced_evicts_nothing() {
    const MIB: usize = 1 << 20;
    for parallel_from in [1 << 20, 1 << 40] {
        let small = |settings: &mut Settings| {
            (settings.cache.size, settings.parallel_from) = (16 * MIB as u64, parallel_from);
        };
        let bench = Bench::new(small).await;
        let held: Vec<_> = (0..5).map(|seed| bench.world.put("r", &content(seed, 2 * MIB))).collect();
        for digest in &held {
            bench.get("r", digest).await.expect("whole");
        }
        bench.settled().await;
        let large = content(9, 15 * MIB);
        let digest = bench.world.put("r", &large);
        let gate = bench.world.gate();
        let mut body = bench.body("r", &digest, None).await.expect("opens");
        assert_eq!(bench.cached(), 5, "nothing has come");
        // Several requests at once share the gate, and bring what nobody waits for yet.
        if parallel_from > large.len() as u64 {
            gate.add_permits(3 * MIB / FRAME + 1);
            some(&mut body, 3 * MIB).await;
            // It has taken 4 MiB of 16, of which 10 are held.
            assert_eq!(bench.cached(), 5, "it fits");
            gate.add_permits(2 * MIB / FRAME);
            some(&mut body, 2 * MIB - FRAME).await;
            // 8 MiB: as much as is needed goes.
            assert_eq!(bench.cached(), 4);
        }
        gate.add_permits(large.len());
        all(body).await.expect("the rest");
        bench.settled().await;
        assert_eq!(bench.proxy.cache().blobs.list(), [(digest, 15 * MIB as u64)]);
        assert_eq!(std::fs::read_dir(bench.dir.join("fills")).expect("a directory").count(), 0);
    }
}

/// Two blobs that do not fit together: the one that finds no room in the middle of it goes on uncached, and its client
/// gets all of it.
#[tokio::test]
async fn who_finds_no_room_in_the_middle_goes_on_uncached() {
    const MIB: usize = 1 << 20;
    let bench = Bench::new(|settings| settings.cache.size = 16 * MIB as u64).await;
    let blobs = [content(1, 10 * MIB), content(2, 10 * MIB)];
    let digests: Vec<_> = blobs.iter().map(|blob| bench.world.put("r", blob)).collect();
    let gate = bench.world.gate();
    let mut bodies = Vec::new();
    for digest in &digests {
        bodies.push(bench.body("r", digest, None).await.expect("opens"));
    }
    gate.add_permits(100 * MIB);
    let got = futures_util::future::join_all(bodies.into_iter().map(all)).await;
    for (got, blob) in got.into_iter().zip(&blobs) {
        assert!(got.expect("whole") == *blob);
    }
    bench.settled().await;
    assert!(bench.cached() <= 1 && bench.proxy.cache().blobs.count().1 <= 16 * MIB as u64);
}

/// Damage that does not pass is found by three fetches; after them the registry is asked no more for a while.
#[tokio::test(start_paused = true)]
async fn a_blob_that_is_damaged_each_time_fails_soon_and_then_at_once() {
    let bench = Bench::new(|_| {}).await;
    let content = content(8, 5 * FRAME);
    let digest = bench.world.put("r", &content);
    (0..100).for_each(|_| bench.world.fault(Fault::Flip(10)));
    let begun = Instant::now();
    assert_eq!(bench.get("r", &digest).await.expect_err("damaged").kind(), Kind::Mismatch);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let begun = Instant::now();
    for _ in 0..10 {
        assert_eq!(bench.get("r", &digest).await.expect_err("known").kind(), Kind::Damaged);
    }
    assert_eq!((bench.world.reads(), begun.elapsed().as_millis()), (3, 0));
    // Later one fetch looks again.
    tokio::time::sleep(Duration::from_secs(10)).await;
    bench.get("r", &digest).await.expect_err("damaged");
    bench.get("r", &digest).await.expect_err("known");
    assert_eq!(bench.world.reads(), 4);
    tokio::time::sleep(Duration::from_secs(10)).await;
    bench.world.0.faults.lock().expect("lock").clear();
    assert!(bench.get("r", &digest).await.expect("mended") == content);
}

/// The durable tier has it damaged, and the original has it whole: the client gets it, and so do those after it.
#[tokio::test(start_paused = true)]
async fn a_tier_that_has_a_blob_damaged_gives_way_to_the_next() {
    let bench = Bench::new(|settings| {
        two_tiers(settings, false);
        settings.negative_ttl = Duration::from_secs(10);
    })
    .await;
    let content = content(9, 5 * FRAME);
    let digest = bench.world.put("mirror/r", &content);
    bench.world.put("r", &content);
    (0..3).for_each(|_| bench.world.fault(Fault::Flip(10)));
    assert!(bench.get("r", &digest).await.expect("from the next tier") == content);
    let opened = bench.world.0.opened.lock().expect("lock").clone();
    let tiers: Vec<_> = opened.iter().map(|(repository, _)| repository.as_str()).collect();
    assert_eq!(tiers, ["mirror/r", "mirror/r", "mirror/r", "r"]);
    bench.settled().await;
    assert_eq!(bench.cached(), 1);
}

/// What is passed on uncached is remembered too. Each client is cut, until the registry is asked no more.
#[tokio::test(start_paused = true)]
async fn damage_of_what_is_only_passed_on_is_remembered_too() {
    let bench = Bench::new(|settings| settings.cache.size = 10).await;
    let digest = bench.world.put("r", &content(10, 5 * FRAME));
    (0..100).for_each(|_| bench.world.fault(Fault::Flip(10)));
    for expected in [Kind::Mismatch, Kind::Mismatch, Kind::Mismatch, Kind::Damaged, Kind::Damaged] {
        assert_eq!(bench.get("r", &digest).await.expect_err("damaged").kind(), expected);
    }
    assert_eq!(bench.world.reads(), 3);
}
