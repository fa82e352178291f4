//! The programs that stay: proxies and `serve --writable`. They are killed, and started again on what they left.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::support::Process;
use super::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Proxy,
    /// With a cache on a disk that is too small.
    SmallProxy,
    Serve,
}

/// A program on a directory that outlives it.
pub(crate) struct Service {
    kind: Kind,
    dir: PathBuf,
    process: Mutex<Option<Process>>,
    /// Of the last one that started: it answers no more while the next one starts.
    addr: Mutex<SocketAddr>,
    starts: Mutex<u64>,
}

impl Service {
    pub(crate) fn new(kind: Kind, dir: PathBuf) -> Self {
        std::fs::create_dir_all(&dir).expect("a directory");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        Self { kind, dir, process: Mutex::new(None), addr: Mutex::new(nowhere), starts: Mutex::new(0) }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        *self.addr.lock().expect("no panic while held")
    }

    pub(crate) fn name(&self) -> String {
        format!("{:?}", self.kind)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cache's directory.
    pub(crate) fn cache(&self) -> PathBuf {
        self.dir.join("cache")
    }

    pub(crate) fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().expect("no panic while held")
    }

    /// Starts it. Faults of the disk may keep it from starting, for some times.
    pub(crate) fn start(&self, world: &World) {
        for _ in 0..30 {
            let mut process = self.spawn(world);
            if let Some(addr) = address(&mut process) {
                *self.addr.lock().expect("no panic while held") = addr;
                if self.kind == Kind::Serve {
                    world.serve_front.lead_to(addr);
                }
                *self.process() = Some(process);
                return;
            }
            let told = process.stderr.text();
            if told.contains("panicked") {
                world.report.violation(format!("{:?} panicked: {told}", self.kind));
            }
            if world.dir.read("disk/rate").trim() == "0" {
                world.report.violation(format!("{:?} does not start: {told}", self.kind));
                return;
            }
            world.report.count(format!("start of {:?} failed by the disk", self.kind));
        }
        world.report.violation(format!("{:?} does not start", self.kind));
    }

    fn spawn(&self, world: &World) -> Process {
        let number = {
            let mut starts = self.starts.lock().expect("no panic while held");
            *starts += 1;
            *starts
        };
        if self.kind == Kind::Serve {
            let dir = self.dir.to_str().expect("a path in UTF-8");
            return world.tool(&["serve", dir, "--writable", "--listen", "127.0.0.1:0"]).spawn();
        }
        let config = self.configure(world, number);
        let faults = format!("{}:{}", world.seed.wrapping_add(number), world.dir.join("disk"));
        world.tool(&["proxy", "--config", &config]).env("TRANSLOAD_TEST_DISK_FAULTS", &faults).spawn()
    }

    /// Writes the configuration; each time another one, so that reading it again changes something.
    fn configure(&self, world: &World, number: u64) -> String {
        let size = if self.kind == Kind::Proxy { "80MiB" } else { "50GiB" };
        // Beside the cache, whose disk may be full.
        world.dir.write(
            &format!("{:?}.yaml", self.kind),
            format!(
                "listen: [{{ http: 127.0.0.1:0 }}]\nlisten-admin: 127.0.0.1:0\n\
                 cache: {{ dir: {}, size: {size}, keep-free: 0, scrub: 16MiB }}\n\
                 upstreams: [{{ name: docker.io, tiers: [{}/hub, docker.io], write-back: {}, tag-ttl: {}, \
                 negative-ttl: 1 }}]\n",
                self.cache().display(),
                world.target_front.addr(),
                self.kind == Kind::Proxy,
                1 + number % 2
            ),
        )
    }

    /// kill -9, then a start.
    pub(crate) fn restart(&self, world: &World) {
        self.stop(world);
        self.start(world);
    }

    /// kill -9. It must have run until then, without a panic.
    pub(crate) fn stop(&self, world: &World) {
        let Some(mut process) = self.process().take() else { return };
        let ran = process.is_running();
        process.kill();
        let told = process.stderr.text();
        if !ran || told.contains("panicked") {
            let end: String = told.chars().skip(told.chars().count().saturating_sub(3000)).collect();
            world.report.violation(format!("{:?} ended by itself or panicked: {end}", self.kind));
        }
        world.report.count(format!("kill {:?}", self.kind));
    }

    /// A changed configuration, and SIGHUP.
    pub(crate) fn hang_up(&self, world: &World) {
        let mut process = self.process();
        if let Some(process) = process.as_mut()
            && process.is_running()
        {
            let mut starts = self.starts.lock().expect("no panic while held");
            *starts += 1;
            self.configure(world, *starts);
            process.hang_up();
            world.report.count("hang-up proxy");
        }
    }

    /// Where `proxy verify --admin` asks.
    pub(crate) fn admin(&self) -> String {
        let process = self.process();
        let process = process.as_ref().expect("a running proxy");
        let line = process.stderr.wait_line("--admin on http://", Duration::from_secs(60));
        line.split("http://").nth(1).expect("an address").trim().to_owned()
    }

    /// Open file descriptors, and KiB of memory in RAM (proc_pid_status(5), `VmRSS`).
    pub(crate) fn usage(&self) -> (usize, u64) {
        let id = self.process().as_ref().map_or(0, Process::id);
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        let memory = line.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        let open = std::fs::read_dir(format!("/proc/{id}/fd")).map_or(0, Iterator::count);
        (open, memory)
    }
}

/// The address that a starting program tells. None if it ends.
fn address(process: &mut Process) -> Option<SocketAddr> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let text = process.stderr.text();
        // Both programs tell it after all else that could go wrong.
        let line = text.lines().find(|line| line.contains("proxying ") || line.contains("serving /"));
        let addr = line.and_then(|line| line.split(" on http://").nth(1)?.split_whitespace().next()?.parse().ok());
        if addr.is_some() {
            return addr;
        }
        if !process.is_running() || Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A small disk in memory. Unmounted on Drop.
pub(crate) struct Tmpfs(PathBuf);

impl Tmpfs {
    /// None without the right to mount.
    pub(crate) fn mount(at: PathBuf, size: u64) -> Option<Self> {
        std::fs::create_dir_all(&at).ok()?;
        let size = format!("size={size}");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).output().ok()?;
        done.status.success().then_some(Self(at))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).output());
    }
}
