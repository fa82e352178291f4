//! The live check: copies `hello-world` to a real Azure Container Registry, and observes the facts that
//! `docs/protocol.md` marks as uncertain. `docs/testing.md` says how to run it.
//!
//! ```text
//!   settings ── variables of the environment
//!       │
//!     live ──── one run: requests, tokens, the guard, the report, the removal of what was written
//!       │
//!       ├── flow ───────────── copy, copy again, pull through a proxy
//!       └── facts ── hub, acr  one check for each uncertain fact
//! ```
//! The check itself is ignored by default. The other tests here run the same code against the look-alikes on loopback.
//!
//! It is safe to run against a registry in use. All repositories that it writes are below a fresh name below one
//! prefix; [`live::Live`] refuses any other write, and deletes only what it wrote.
#![allow(clippy::disallowed_methods, reason = "tests start tasks and read the environment")]
#![allow(unreachable_pub, reason = "the tests are the only users")]
#![allow(clippy::print_stdout, reason = "the report is the result")]

#[path = "live/acr.rs"]
mod acr;
#[path = "live/client.rs"]
mod client;
#[path = "live/facts.rs"]
mod facts;
#[path = "live/flow.rs"]
mod flow;
#[path = "live/hub.rs"]
mod hub;
#[path = "live/live.rs"]
mod live;
#[path = "live/look_alikes.rs"]
mod look_alikes;
#[path = "live/settings.rs"]
mod settings;
#[path = "it/support/mod.rs"]
mod support;

use live::Live;
use settings::Settings;

/// Run it with `cargo test --test live -- --ignored --nocapture`.
#[test]
#[ignore = "needs a real Azure Container Registry: docs/testing.md"]
fn the_services_behave_as_docs_protocol_md_says() {
    match Settings::read(&|name| std::env::var(name).ok()) {
        Ok(settings) => drop(run(settings)),
        Err(refusal) => panic!("{refusal}"),
    }
}

/// Runs everything, and returns the report.
///
/// A fact that differs from the page does not fail the run, since transload works in both cases. A copy or pull that
/// fails does, and so does a check that cannot finish.
fn run(settings: Settings) -> live::Report {
    let live = Live::new(settings);
    let failed = [flow::run(&live), facts::run(&live)].concat();
    live.remove_written();
    let report = live.report();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    report
}
