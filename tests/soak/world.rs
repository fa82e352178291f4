//! What runs: registries, fronts, proxies, a server; and what can be done to it.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::faults::Faults;
use super::images::Truth;
use super::report::Report;
use super::services::{Kind, Service, Tmpfs};
use super::support::{Front, Process, Registry, TempDir, Tool};

pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) report: Report,
    pub(crate) truth: Truth,
    pub(crate) faults: Faults,
    pub(crate) stopping: AtomicBool,
    source: Registry,
    pub(crate) target: Registry,
    pub(crate) source_front: Front,
    pub(crate) target_front: Front,
    pub(crate) serve_front: Front,
    pub(crate) proxy: Service,
    pub(crate) small_proxy: Service,
    pub(crate) serve: Service,
    /// The copies that run, then the mirror.
    pub(crate) jobs: [Mutex<Option<Process>>; COPIES + 1],
    next_image: AtomicUsize,
    pub(crate) dir: TempDir,
    // Unmounted last.
    _tmpfs: Option<Tmpfs>,
}

impl World {
    pub(crate) fn start(seed: u64, seconds: u64) -> Self {
        let report = Report::new(seed, seconds);
        let (dir, truth) = (TempDir::new(), Truth::new());
        let (source, target) = (Registry::start(), Registry::start());
        truth.push(source.addr());
        let hub = Front::before(source.addr()).hub(|hub| {
            hub.anonymous_pulls = None;
            hub.redirect_head = false;
        });
        let source_front = if seed.is_multiple_of(2) { hub.h2() } else { hub.tls() }.start();
        let target_front = Front::before(target.addr()).start();
        let serve_front = Front::before(target.addr()).start();
        for (name, content) in [("clock", "0"), ("disk/rate", "0"), ("disk/faults", "")] {
            dir.write(name, content);
        }
        let tmpfs = Tmpfs::mount(dir.path().join("small"), SMALL_DISK);
        if tmpfs.is_none() {
            report.count("skipped: no tmpfs can be mounted here");
        }
        let world = Self {
            seed,
            report,
            truth,
            faults: Faults::new(seed),
            stopping: AtomicBool::new(false),
            source,
            target,
            source_front,
            target_front,
            serve_front,
            proxy: Service::new(Kind::Proxy, dir.path().join("main")),
            small_proxy: Service::new(Kind::SmallProxy, dir.path().join("small")),
            serve: Service::new(Kind::Serve, dir.path().join("served")),
            jobs: std::array::from_fn(|_| Mutex::new(None)),
            next_image: AtomicUsize::new(0),
            dir,
            _tmpfs: tmpfs,
        };
        for service in [&world.proxy, &world.small_proxy, &world.serve] {
            service.start(&world);
        }
        world
    }

    /// Lets the fronts' faults begin, as soon as their rate is not 0.
    pub(crate) fn inject(&self) {
        self.faults.install(&self.source_front, "source");
        self.faults.install(&self.target_front, "target");
        self.faults.install(&self.serve_front, "serve");
    }

    /// Ends all faults, and counts them.
    pub(crate) fn calm(&self) {
        self.faults.set_rate(0);
        self.set_disk_faults(0);
        self.set_clock(0);
        for (kind, number) in self.faults.struck() {
            self.report.add(format!("fault {kind}"), number);
        }
        for line in self.dir.read("disk/faults").lines() {
            self.report.count(format!("fault disk {line}"));
        }
    }

    /// Runs a thread's work. A panic in it is a violation.
    pub(crate) fn guarded(&self, name: &str, work: impl FnOnce()) {
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(work)) {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            self.report.violation(format!("{name}: {}", text.unwrap_or_default()));
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stopping.load(Ordering::Relaxed) || self.report.has_violation()
    }

    /// transload, which meets this world's clock, names and time limits.
    pub(crate) fn tool(&self, args: &[&str]) -> Tool {
        let tool = Tool::transload().args(args).args(&["--idle-timeout", "3"]).args(&self.source_front.flags());
        tool.env("TRANSLOAD_TEST_CLOCK", &self.dir.join("clock"))
    }

    pub(crate) fn kill_job(&self, number: usize) {
        let mut job = self.jobs[number].lock().expect("no panic while held");
        if let Some(process) = job.as_mut()
            && process.is_running()
        {
            process.kill();
            self.report.count(if number == MIRROR { "kill mirror" } else { "kill copy" });
        }
    }

    pub(crate) fn hang_up_mirror(&self) {
        let mut job = self.jobs[MIRROR].lock().expect("no panic while held");
        // Only one that stays, and that has got as far as to expect the signal.
        if let Some(process) = job.as_mut()
            && process.is_running()
            && process.stderr.text().contains("/metrics on ")
        {
            process.hang_up();
            self.report.count("hang-up mirror");
        }
    }

    pub(crate) fn refuse(&self, source: bool, time: Duration) {
        let front = if source { &self.source_front } else { &self.target_front };
        front.refuse(true);
        std::thread::sleep(time);
        front.refuse(false);
        self.report.count("fault connection refused for a while");
    }

    pub(crate) fn move_tag(&self) {
        let moving = self.truth.moving();
        let next = self.next_image.fetch_add(1, Ordering::Relaxed) + 1;
        moving.images[next % moving.images.len()].push(self.source.addr(), moving.repository, moving.tag);
        self.report.count("fault tag moved");
    }

    /// The digest that the tag that moves has at the source.
    pub(crate) fn moved_to(&self) -> &str {
        let images = &self.truth.moving().images;
        images[self.next_image.load(Ordering::Relaxed) % images.len()].digest()
    }

    pub(crate) fn set_clock(&self, seconds: i64) {
        self.dir.write("clock", seconds.to_string());
        self.report.count("fault clock set");
    }

    pub(crate) fn set_disk_faults(&self, rate: u64) {
        self.dir.write("disk/rate", rate.to_string());
    }

    pub(crate) fn expire_tokens(&self) {
        self.source_front.persona().revoke();
        self.report.count("fault all tokens expired");
    }

    /// Registries where copies arrive, as they are behind their fronts.
    pub(crate) fn destinations(&self) -> [(&'static str, SocketAddr); 2] {
        [("target", self.target.addr()), ("serve", self.serve.addr())]
    }
}

/// Copies that run at the same time.
pub(crate) const COPIES: usize = 3;

/// The mirror's number among the jobs.
pub(crate) const MIRROR: usize = COPIES;

/// Bytes of the disk that is too small: less than the largest image.
pub(crate) const SMALL_DISK: u64 = 5 << 20;
