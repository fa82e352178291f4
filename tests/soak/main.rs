//! A soak test of the whole program: copies, mirrors, two proxies, a writable server and many clients, under faults of
//! the network, the registries, the disk and the clock, with kill -9 and SIGHUP. `docs/testing.md` says how to run and
//! replay it.
//!
//! ```text
//!   docker-registry ── front (Docker Hub, TLS) ──┬── copy, mirror ──┬── front ── docker-registry
//!                                                └── proxy ── ⋯ ────┤
//!                       clients ── proxy ⋯                          └── front ── serve --writable
//! ```
//! - `plan`: which events happen when, from the seed
//! - `faults`: which request meets which fault, from the seed
//! - `images`: the truth that every answer is compared to
//! - `world`, `services`: what runs, and how it is killed and started again
//! - `clients`, `jobs`: who pulls, and who copies and mirrors
//! - `checks`, `finish`: what must hold meanwhile and at the end
//! - `report`: what is counted, and what a failure prints
#![allow(clippy::disallowed_methods, reason = "tests start tasks and read the environment")]

mod checks;
mod clients;
mod faults;
mod finish;
mod images;
mod jobs;
mod plan;
mod random;
mod report;
mod services;
#[path = "../it/support/mod.rs"]
mod support;
mod world;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use plan::{Event, Plan};
use random::Random;
use world::World;

#[test]
fn nothing_breaks_under_faults() {
    let number = |name: &str, default| std::env::var(name).ok().map_or(default, |text| text.parse().expect(name));
    let seed = number("TRANSLOAD_SOAK_SEED", 1);
    let seconds = number("TRANSLOAD_SOAK_SECONDS", 60);
    let plan = Plan::new(seed, Duration::from_secs(seconds));
    let world = World::start(seed, seconds);
    world.base();
    world.inject();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let world = &world;
            scope.spawn(move || {
                world.guarded("client", || clients::run(world, Random::of(seed, &format!("c{number}"))))
            });
        }
        for number in 0..world::COPIES {
            let world = &world;
            scope.spawn(move || world.guarded("copy", || jobs::copies(world, number)));
        }
        scope.spawn(|| world.guarded("mirror", || jobs::mirrors(&world)));
        scope.spawn(|| world.guarded("walker", || checks::watch(&world)));
        world.guarded("events", || run(&world, &plan));
        world.stopping.store(true, Ordering::Relaxed);
    });
    world.calm();
    world.guarded("finish", || finish::check(&world));
    world.report.conclude();
}

/// Lets the plan's events happen at their times, until the end or the first violation.
fn run(world: &World, plan: &Plan) {
    let begun = Instant::now();
    for (at, event) in &plan.events {
        while begun.elapsed() < *at {
            if world.report.has_violation() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5).min(at.saturating_sub(begun.elapsed())));
        }
        world.report.event(format!("{event:?}"));
        happen(world, event);
        world.report.progress();
    }
}

fn happen(world: &World, event: &Event) {
    match *event {
        Event::KillProxy => world.proxy.restart(world),
        Event::KillSmallProxy => world.small_proxy.restart(world),
        Event::KillServe => world.serve.restart(world),
        Event::KillCopy(number) => world.kill_job(number % world::COPIES),
        Event::KillMirror => world.kill_job(world::MIRROR),
        Event::HangUpProxy => world.proxy.hang_up(world),
        Event::HangUpMirror => world.hang_up_mirror(),
        Event::Refuse { source, millis } => world.refuse(source, Duration::from_millis(millis)),
        Event::MoveTag => world.move_tag(),
        Event::SetClock(seconds) => world.set_clock(seconds),
        Event::SetDiskFaults(rate) => world.set_disk_faults(rate),
        Event::SetFaults(rate) => world.faults.set_rate(rate),
        Event::ExpireTokens => world.expire_tokens(),
    }
}

/// Clients that pull at the same time.
const CLIENTS: usize = 8;
