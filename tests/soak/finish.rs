//! What must hold after the faults have ended: all can be completed, nothing is left over, nothing is corrupt.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::checks::{self, Depth};
use super::clients::Client;
use super::jobs::{destination, is_large, source};
use super::random::Random;
use super::services::Service;
use super::world::World;

/// Open files and KiB of memory of the proxy, after it has served everything once without a fault.
static BASE: Mutex<(usize, u64)> = Mutex::new((0, 0));

impl World {
    /// Pulls everything once through the proxy, and notes what that costs it.
    pub(crate) fn base(&self) {
        pull_all(self, &self.proxy, false);
        *BASE.lock().expect("no panic while held") = self.proxy.usage();
    }
}

/// All checks of the end.
pub(crate) fn check(world: &World) {
    if world.report.has_violation() {
        return;
    }
    pull_all(world, &world.proxy, false);
    pull_all(world, &world.small_proxy, true);
    complete(world);
    for (name, _) in world.destinations() {
        match checks::walk_all(world, name, Depth::Hash) {
            Ok(0) => world.report.violation(format!("{name} holds nothing")),
            Ok(_) => {}
            Err(why) => world.report.violation(format!("{name}: {why}")),
        }
    }
    for service in [&world.proxy, &world.small_proxy] {
        caches(world, service);
    }
    served(world);
}

/// Pulls each image completely, waiting for circuit breakers and limits to end.
fn pull_all(world: &World, service: &Service, small: bool) {
    let mut random = Random::of(world.seed, "finish");
    let client = Client { world, at: service.addr(), small };
    let deadline = Instant::now() + Duration::from_secs(180);
    for tagged in world.truth.tags.iter().filter(|tagged| !small || !is_large(tagged)) {
        let mut until = |what: &str, works: &mut dyn FnMut(&mut Random) -> bool| {
            while !works(&mut random) && !world.report.has_violation() {
                if Instant::now() > deadline {
                    let told = service.process().as_ref().map(|process| process.stderr.text()).unwrap_or_default();
                    let told: String = told.chars().skip(told.chars().count().saturating_sub(2000)).collect();
                    world.report.violation(format!("{what} cannot be pulled after the faults: {told}"));
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        };
        let mut digest = None;
        until(tagged.tag, &mut |random| {
            digest = client.tag(tagged, random);
            digest.is_some()
        });
        let Some(image) = digest.and_then(|digest| tagged.named(&digest)) else { return };
        for manifest in &image.manifests {
            until(&manifest.digest, &mut |random| client.manifest(tagged, &manifest.digest, random));
        }
        for blob in &image.blobs {
            until(&blob.digest, &mut |random| client.blob(tagged, blob, random));
        }
    }
}

/// Every copy and the mirror complete now, and leave no upload session open.
fn complete(world: &World) {
    world.target.reset_log();
    for serve in [false, true] {
        for tagged in &world.truth.tags {
            let to = destination(world, tagged, serve, "copied");
            let run = world.tool(&["copy", &source(world, tagged, true), &to, "--force"]).run();
            if run.code != 0 {
                world.report.violation(format!("the last copy to {to} exited with {}: {}", run.code, run.stderr));
            }
        }
    }
    let (list, to) = (world.dir.join("list"), format!("{}/mirrored", world.target_front.addr()));
    let run = world.tool(&["mirror", &list, "--to", &to]).run();
    if run.code != 0 {
        world.report.violation(format!("the last mirror exited with {}: {}", run.code, run.stderr));
    }
    if let Err(why) = checks::mirrored(world).and_then(|()| newest(world)) {
        world.report.violation(format!("after the last mirror: {why}"));
    }
    let sessions = || {
        let requests = world.target.requests();
        let begun = requests.iter().filter(|seen| seen.0 == "POST" && seen.2 == 202).count();
        let ended = |seen: &&(String, String, u16)| {
            seen.1.contains("/uploads/") && (seen.0 == "DELETE" || seen.0 == "PUT" && seen.2 == 201)
        };
        (begun, requests.iter().filter(ended).count())
    };
    if !soon(|| sessions().0 <= sessions().1) {
        world.report.violation(format!("upload sessions are open: (begun, ended) = {:?}", sessions()));
    }
}

/// Whether the tag that moves is what it is at the source.
fn newest(world: &World) -> Result<(), String> {
    let moving = world.truth.moving();
    let path = format!("/v2/mirrored/{}/manifests/{}", moving.repository, moving.tag);
    let reply = super::support::http::get(world.target.addr(), &path);
    let digest = super::support::layer::sha256(&reply.body);
    match digest == world.moved_to() {
        true => Ok(()),
        false => Err(format!("{path} is {digest} instead of {}", world.moved_to())),
    }
}

/// A cache is sound while its proxy runs and after kill -9, and what the proxy used is back at its base.
fn caches(world: &World, service: &Service) {
    let cache = service.cache();
    let path = cache.to_str().expect("a path in UTF-8");
    let verify = |how: &[&str]| {
        let run = world.tool(&[&["proxy", "verify"], how].concat()).run();
        if run.code != 0 {
            let (code, out, told) = (run.code, run.stdout, run.stderr);
            world.report.violation(format!("proxy verify {how:?} exited with {code}: {out}{told}"));
        }
        world.report.count("proxy verify");
    };
    verify(&["--admin", &service.admin()]);
    if !soon(|| count(&cache.join("fills"), "") == 0) {
        world.report.violation(format!("{path}/fills has files that nobody writes"));
    }
    let (files, memory) = *BASE.lock().expect("no panic while held");
    let within = || {
        let now = service.usage();
        now.0 <= files + MORE_FILES && now.1 <= memory + MORE_MEMORY
    };
    let back = soon(within);
    let (open, resident) = service.usage();
    world.report.event(format!("{path}: {open} files (base {files}), {resident} KiB (base {memory})"));
    world.report.add(format!("open files at the end of {} (base {files})", service.name()), open as u64);
    world.report.add(format!("KiB of memory at the end of {} (base {memory})", service.name()), resident);
    if !back {
        world.report.violation(format!("{path}: {open} files (base {files}), {resident} KiB (base {memory})"));
    }
    service.stop(world);
    verify(&["--cache", path]);
}

/// A server that starts a day later removes what killed ones left.
fn served(world: &World) {
    world.serve.stop(world);
    world.set_clock(2 * 24 * 3600);
    world.serve.start(world);
    let left = || count(world.serve.dir(), ".transload-");
    if !soon(|| left() == 0) {
        world.report.violation(format!("{} temporary files are left in the served directory", left()));
    }
    world.serve.stop(world);
}

/// The files in a directory whose names begin like this.
fn count(dir: &Path, prefix: &str) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).count()
}

/// Whether it is so within some time.
fn soon(so: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(45);
    while !so() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

/// Connections that are kept open for the next request.
const MORE_FILES: usize = 40;

/// KiB: what the allocator keeps, and what the runtime's threads need.
const MORE_MEMORY: u64 = 48 << 10;
