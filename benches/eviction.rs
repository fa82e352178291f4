//! What stays in a proxy's cache: the policy of its index against LRU and FIFO, on a month of made-up pulls.
//! Run by `cargo bench --bench eviction [-- SEED]`; needs nothing, moves no bytes, and gives the same each time.
//!
//! No registry's trace with sizes is at hand, so the trace follows what is published of them (Anwar et al.,
//! FAST 2018: 65 % of layers below 1 MB, 80 % below 10 MB, a heavy tail; a strong skew by image) and how
//! clusters pull:
//! - images share base layers, and a new version of an application changes its last layers only;
//! - applications are started by a Zipf law, by nodes that have the base already or don't;
//! - a deployment is a herd: a new version, by many nodes within minutes;
//! - each night all of a random part of the registry is read once, as a mirror or a scanner does.
//!
//! "Farthest" throws out what is asked for last, which only who knows the future can; with sizes it is no
//! strict bound, but near one.
#![expect(clippy::print_stdout, reason = "a benchmark's own output")]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use transload::descriptor::Digest;
use transload::proxy::cache::index::Index;

const BASES: usize = 60;
const APPLICATIONS: usize = 500;
const DAYS: usize = 30;
/// Starts of containers in a day.
const STARTS: usize = 600;
/// New versions in a day, and the nodes that pull each at once.
const DEPLOYMENTS: usize = 25;
const HERD: usize = 20;
/// Images that are read once each night.
const SCANNED: usize = 250;
/// Parts of the bytes of all blobs, in percent.
const SIZES: [u64; 4] = [2, 5, 10, 20];

fn main() {
    let seed = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(1);
    let (sizes, trace) = Registry::new(seed).month();
    let footprint: u64 = sizes.iter().sum();
    let asked: u64 = trace.iter().map(|blob| sizes[*blob]).sum();
    let small = |most: u64| 100 * sizes.iter().filter(|size| **size < most).count() / sizes.len();
    let gib = |bytes: u64| bytes >> 30;
    println!(
        "{} blobs of {} GiB ({} % below 1 MB, {} % below 10 MB); {} requests for {} GiB\n",
        sizes.len(),
        gib(footprint),
        small(1_000_000),
        small(10_000_000),
        trace.len(),
        gib(asked)
    );
    println!("| cache | policy | requests that hit | bytes that hit | GiB fetched |");
    println!("|---|---|---|---|---|");
    for percent in SIZES {
        let capacity = footprint * percent / 100;
        let policies: [(&str, Box<dyn Policy>); 4] = [
            ("S3-FIFO, as the proxy's", Box::new(Ours::new(capacity, sizes.len()))),
            ("LRU", Box::new(Line::new(capacity, true))),
            ("FIFO", Box::new(Line::new(capacity, false))),
            ("farthest", Box::new(Farthest::new(capacity, &trace))),
        ];
        for (name, mut policy) in policies {
            let (mut hits, mut bytes) = (0, 0);
            for blob in &trace {
                let size = sizes[*blob];
                if policy.ask(*blob, size) {
                    hits += 1;
                    bytes += size;
                }
            }
            let part = |some: u64, all: u64| 100.0 * some as f64 / all as f64;
            let (hit, moved) = (part(hits, trace.len() as u64), part(bytes, asked));
            println!("| {percent} % | {name} | {hit:.1} % | {moved:.1} % | {} |", gib(asked - bytes));
        }
    }
}

/// A cache as far as its policy goes.
trait Policy {
    /// Whether it's there; now it is, if it ever fits.
    fn ask(&mut self, blob: usize, size: u64) -> bool;
}

/// The proxy's own index.
struct Ours {
    index: Index,
    digests: Vec<Digest>,
}

impl Ours {
    fn new(capacity: u64, blobs: usize) -> Self {
        let digests = (0..blobs).map(|blob| Digest::of(&blob.to_be_bytes())).collect();
        Self { index: Index::new(capacity), digests }
    }
}

impl Policy for Ours {
    fn ask(&mut self, blob: usize, size: u64) -> bool {
        let digest = &self.digests[blob];
        if self.index.pin(digest).is_some() {
            return true;
        }
        loop {
            if let Some(room) = self.index.reserve(size) {
                drop(self.index.add(*digest, room));
                return false;
            }
            if self.index.victim().is_none() {
                return false;
            }
        }
    }
}

/// FIFO, or LRU.
struct Line {
    capacity: u64,
    used: u64,
    renewed: bool,
    clock: u64,
    /// When it came, or was asked for last, and its size.
    here: HashMap<usize, (u64, u64)>,
    order: BTreeMap<u64, usize>,
}

impl Line {
    fn new(capacity: u64, renewed: bool) -> Self {
        Self { capacity, used: 0, renewed, clock: 0, here: HashMap::new(), order: BTreeMap::new() }
    }
}

impl Policy for Line {
    fn ask(&mut self, blob: usize, size: u64) -> bool {
        self.clock += 1;
        if let Some((at, _)) = self.here.get_mut(&blob) {
            if self.renewed {
                self.order.remove(at);
                *at = self.clock;
                self.order.insert(self.clock, blob);
            }
            return true;
        }
        if size > self.capacity {
            return false;
        }
        while self.used + size > self.capacity {
            let (_, victim) = self.order.pop_first().expect("it holds something");
            self.used -= self.here.remove(&victim).expect("both know it").1;
        }
        self.used += size;
        self.here.insert(blob, (self.clock, size));
        self.order.insert(self.clock, blob);
        false
    }
}

/// Belady's: what is asked for last goes first, be it what just came.
struct Farthest {
    capacity: u64,
    used: u64,
    now: usize,
    /// Of each request, when the same blob is asked for next.
    next: Vec<usize>,
    here: HashMap<usize, (usize, u64)>,
    order: BTreeSet<(usize, usize)>,
}

impl Farthest {
    fn new(capacity: u64, trace: &[usize]) -> Self {
        let (mut next, mut seen) = (vec![usize::MAX; trace.len()], HashMap::new());
        for (at, blob) in trace.iter().enumerate().rev() {
            next[at] = seen.insert(*blob, at).unwrap_or(usize::MAX);
        }
        Self { capacity, used: 0, now: 0, next, here: HashMap::new(), order: BTreeSet::new() }
    }
}

impl Policy for Farthest {
    fn ask(&mut self, blob: usize, size: u64) -> bool {
        let next = self.next[self.now];
        self.now += 1;
        let known = self.here.insert(blob, (next, size));
        if let Some((before, _)) = known {
            self.order.remove(&(before, blob));
        } else {
            self.used += size;
        }
        self.order.insert((next, blob));
        while self.used > self.capacity {
            let (_, victim) = self.order.pop_last().expect("it holds something");
            self.used -= self.here.remove(&victim).expect("both know it").1;
        }
        known.is_some()
    }
}

/// What is in the registry, and who pulls it.
struct Registry {
    random: Random,
    sizes: Vec<u64>,
    bases: Vec<Vec<usize>>,
    applications: Vec<Application>,
    trace: Vec<usize>,
}

struct Application {
    base: usize,
    /// Layers that stay over its versions, and those of each version.
    common: Vec<usize>,
    versions: Vec<Vec<usize>>,
}

impl Registry {
    fn new(seed: u64) -> Self {
        let mut made = Self {
            random: Random(seed),
            sizes: Vec::new(),
            bases: Vec::new(),
            applications: Vec::new(),
            trace: Vec::new(),
        };
        for _ in 0..BASES {
            let base = made.layers(1, 4);
            made.bases.push(base);
        }
        for _ in 0..APPLICATIONS {
            let base = made.random.zipf(BASES);
            let common = made.layers(1, 5);
            made.applications.push(Application { base, common, versions: Vec::new() });
        }
        for nth in 0..APPLICATIONS {
            // What is old is there too, and read by nobody but the scanner.
            for _ in 0..=made.random.below(4) {
                made.release(nth);
            }
        }
        made
    }

    /// All blobs' sizes, and the requests of a month.
    fn month(mut self) -> (Vec<u64>, Vec<usize>) {
        for _ in 0..DAYS {
            // Starts, with deployments among them; what pulls at once is interleaved.
            for hour in 0..24 {
                let mut pulls = Vec::new();
                for _ in 0..STARTS / 24 {
                    let application = self.random.zipf(APPLICATIONS);
                    let fresh = self.random.below(3) == 0;
                    // A tenth runs the version before.
                    let back = usize::from(self.random.below(10) == 0);
                    pulls.push(self.pull(application, back, fresh));
                }
                let deployed = DEPLOYMENTS * (hour + 1) / 24 - DEPLOYMENTS * hour / 24;
                for _ in 0..deployed {
                    let application = self.random.zipf(APPLICATIONS);
                    self.release(application);
                    pulls.extend((0..HERD).map(|_| self.pull(application, 0, false)));
                }
                self.interleave(pulls);
            }
            for _ in 0..SCANNED {
                let application = self.random.below(APPLICATIONS);
                let back = self.random.below(self.applications[application].versions.len());
                let all = self.pull(application, back, true);
                self.trace.extend(all);
            }
        }
        (self.sizes, self.trace)
    }

    fn layers(&mut self, least: usize, more: usize) -> Vec<usize> {
        (0..least + self.random.below(more)).map(|_| self.blob()).collect()
    }

    fn blob(&mut self) -> usize {
        let (least, most) = match self.random.below(100) {
            0..65 => (200.0, 1e6),
            65..80 => (1e6, 1e7),
            80..98 => (1e7, 2e8),
            _ => (2e8, 2e9),
        };
        let size: f64 = least * f64::powf(most / least, self.random.part());
        self.sizes.push(size as u64);
        self.sizes.len() - 1
    }

    fn release(&mut self, application: usize) {
        let mut own = self.layers(1, 3);
        // Its config.
        self.sizes.push(2000 + self.random.below(10_000) as u64);
        own.push(self.sizes.len() - 1);
        self.applications[application].versions.push(own);
    }

    /// What a node asks for: of a version so far back, by a fresh node its base and all.
    fn pull(&mut self, application: usize, back: usize, fresh: bool) -> Vec<usize> {
        let Application { base, common, versions } = &self.applications[application];
        let own = &versions[versions.len() - 1 - back.min(versions.len() - 1)];
        let before = if fresh { [&self.bases[*base][..], common].concat() } else { Vec::new() };
        [&before[..], own].concat()
    }

    /// Puts the pulls into the trace, a few at a time going on at once.
    fn interleave(&mut self, mut pulls: Vec<Vec<usize>>) {
        pulls.iter_mut().for_each(|pull| pull.reverse());
        while !pulls.is_empty() {
            let nth = self.random.below(pulls.len().min(30));
            match pulls[nth].pop() {
                Some(blob) => self.trace.push(blob),
                None => drop(pulls.swap_remove(nth)),
            }
        }
    }
}

/// SplitMix64: the same on each machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        (self.part() * end as f64) as usize
    }

    /// By Zipf's law with an exponent of 1, near enough: the first is the most popular.
    fn zipf(&mut self, end: usize) -> usize {
        (f64::powf(end as f64 + 1.0, self.part()) as usize - 1).min(end - 1)
    }
}
