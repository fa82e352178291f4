//! What is told of requests and bytes.

use super::*;
use crate::proxy::events::UNKNOWN_UPSTREAM;

/// Who was asked for what and how it was served; and which bytes came from where.
#[derive(Default)]
struct Heard {
    served: Mutex<Vec<String>>,
    moved: Mutex<HashMap<String, u64>>,
}

impl Observer for Heard {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Served { upstream, what, how, .. } => {
                self.served.lock().expect("lock").push(format!("{upstream} {what:?} {how:?}"));
            }
            Event::Moved { registry, bytes } => {
                *self.moved.lock().expect("lock").entry((*registry).to_owned()).or_default() += bytes;
            }
            _ => {}
        }
    }
}

impl Heard {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.served.lock().expect("lock"))
    }

    fn moved(&self, registry: &str) -> u64 {
        self.moved.lock().expect("lock").get(registry).copied().unwrap_or_default()
    }
}

/// Also those that go round the fetch: ranges far ahead of it, and of what isn't cached.
#[tokio::test]
async fn all_bytes_of_an_upstream_are_counted() {
    let heard = Arc::new(Heard::default());
    let bench = Bench::observed(|settings| settings.cache.size = 100 << 20, heard.clone()).await;
    let large = content(1, 9 << 20);
    let (digest, size) = (bench.world.put("r", &large), large.len() as u64);
    let gate = bench.world.gate();
    let whole = bench.body("r", &digest, None).await.expect("opens");
    *bench.world.0.gate.lock().expect("lock") = None;
    let aside = bench.body("r", &digest, Some(size - 2000..size - 500)).await.expect("joins");
    all(aside).await.expect("its part");
    assert_eq!(heard.moved("a.io"), 1500);
    gate.add_permits(large.len());
    all(whole).await.expect("right");
    assert_eq!(heard.moved("a.io"), 1500 + size);

    let heard = Arc::new(Heard::default());
    let bench = Bench::observed(|settings| settings.cache.size = 10, heard.clone()).await;
    let digest = bench.world.put("r", &content(2, 3 * FRAME));
    let part = bench.body("r", &digest, Some(1000..1700)).await.expect("opens");
    all(part).await.expect("its part");
    assert_eq!(heard.moved("a.io"), 700);
    bench.get("r", &digest).await.expect("whole");
    assert_eq!(heard.moved("a.io"), 700 + 3 * FRAME as u64);
}

#[tokio::test]
async fn of_a_herd_one_misses_and_the_others_join() {
    let heard = Arc::new(Heard::default());
    let bench = Bench::observed(|_| {}, heard.clone()).await;
    let digest = bench.world.put("r", &content(1, 3 * FRAME));
    let gate = bench.world.gate();
    let herd = futures_util::future::join_all((0..20).map(|_| bench.body("r", &digest, None))).await;
    gate.add_permits(3);
    for body in herd {
        all(body.expect("opens")).await.expect("whole");
    }
    let count = |how: CacheOutcome| {
        let line = format!("a.io Blob {how:?}");
        heard.served.lock().expect("lock").iter().filter(|served| **served == line).count()
    };
    assert_eq!((count(CacheOutcome::Miss), count(CacheOutcome::Coalesced)), (1, 19));
    bench.settled().await;
    bench.get("r", &digest).await.expect("whole");
    assert_eq!((count(CacheOutcome::Hit), bench.world.reads()), (1, 1));
}

/// Whatever is asked for, and also where there is no upstream for it: without its name, which clients make up.
#[tokio::test]
async fn each_request_is_counted() {
    let heard = Arc::new(Heard::default());
    let bench = Bench::observed(|_| {}, heard.clone()).await;
    let Bench { proxy, world, .. } = &bench;
    let (digest, nowhere) = (world.put("r", &content(1, 700)), Digest::of(b"nowhere"));
    let known = place("r");
    proxy.size_of(&known, &digest).await.expect("an answer");
    proxy.size_of(&known, &nowhere).await.expect("an answer");
    proxy.tags(&known, None, 10).await.expect("an answer");
    proxy.referrers(&known, &digest).await.expect("an answer");
    bench.get("r", &digest).await.expect("whole");
    bench.settled().await;
    proxy.size_of(&known, &digest).await.expect("an answer");
    let told = ["Head Passed", "Head Absent", "Tags Passed", "Referrers Passed", "Blob Miss", "Head Hit"];
    assert_eq!(heard.take(), told.map(|told| format!("a.io {told}")));
    let unknown = RepositoryPath { name: "r".into(), ns: Some("made-up.io".to_owned()) };
    assert!(proxy.size_of(&unknown, &digest).await.expect("an answer").is_none());
    assert!(proxy.blob(&unknown, &digest).await.expect("an answer").is_none());
    assert!(proxy.tags(&unknown, None, 10).await.expect("an answer").is_none());
    assert!((*proxy.referrers(&unknown, &digest).await.expect("an answer")).as_ref().is_empty());
    assert!(proxy.resolve(&unknown, &tag()).await.expect("an answer").is_none());
    assert!(proxy.manifest(&unknown, &tag()).await.expect("an answer").is_none());
    let told = ["Head", "Blob", "Tags", "Referrers", "Manifest", "Manifest"];
    assert_eq!(heard.take(), told.map(|told| format!("{UNKNOWN_UPSTREAM} {told} Absent")));
}

/// The durable tier gets what was asked for, no more and nothing else; and it's told how much that was.
#[tokio::test]
async fn what_is_written_back_is_counted_and_of_the_size_that_it_should_have() {
    let heard = Arc::new(Heard::default());
    let bench = Bench::observed(|settings| two_tiers(settings, true), heard.clone()).await;
    let digest = bench.world.put("r", &content(1, 700));
    bench.world.publish("r", "v1", &manifest(1));
    let moved = Arc::new(AtomicU64::new(0));
    let (through, durable) = bench.proxy.cached_source("a.io", "r", moved.clone()).expect("a durable tier");
    assert_eq!((&*durable.registry, &*durable.name), ("my.io", "mirror/r"));
    let document = through.manifest(&tag()).await.expect("is there");
    let counted = document.bytes().len() as u64;
    assert_eq!(moved.load(Ordering::Relaxed), counted);
    let blob = |size| Descriptor::new("application/octet-stream", digest, size);
    let error = through.blob(&blob(699), 0).await.err().expect("another size");
    assert_eq!((error.kind(), moved.load(Ordering::Relaxed)), (Kind::Mismatch, counted));
    let body = all(through.blob(&blob(700), 100).await.expect("opens")).await.expect("whole");
    assert_eq!((body.len(), moved.load(Ordering::Relaxed)), (600, counted + 600));
    assert_eq!(heard.take(), Vec::<String>::new(), "nobody's request");
    // Where nothing is to be written there's nobody to read for.
    let bench = Bench::new(|settings| two_tiers(settings, false)).await;
    assert!(bench.proxy.cached_source("a.io", "r", moved).is_none());
}
