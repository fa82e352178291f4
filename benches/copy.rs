//! `transload copy` beside `skopeo copy`, interleaved, medians: wall seconds, CPU seconds, peak
//! memory, requests. Run by `cargo bench --bench copy [-- CASE…]`; needs Debian's docker-registry,
//! skopeo and time. Absolute times on a shared machine mean nothing, ratios do.
#![allow(clippy::disallowed_methods, reason = "tests start tasks and read the environment")]
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark's own output and faults")]

mod floor;
mod measure;
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use measure::Sample;
use support::{Front, Image, Registry, SlowLink};

struct Case {
    name: &'static str,
    rounds: usize,
    image: fn() -> Image,
    /// Bytes of all blobs, for CPU seconds per GiB.
    bytes: u64,
    way: Way,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Straight, into an empty registry.
    Cold,
    /// The destination has it.
    Again,
    /// Both ends behind 40 ms of round trip.
    Far,
    /// TLS at both ends.
    Tls,
}

const GIB: f64 = (1_u64 << 30) as f64;
/// The name under which this program runs itself, as the measure of what is possible.
const FLOOR: &str = "floor";

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if let [role, from, to] = &asked[..]
        && role == FLOOR
    {
        return floor::relay(from, to, "bench/image");
    }
    println!("| case | tool | wall s | CPU s | CPU s/GiB | peak MiB | requests from + to |");
    println!("|---|---|---|---|---|---|---|");
    for case in cases() {
        if asked.is_empty() || asked.iter().any(|name| name == case.name) {
            run(&case);
        }
    }
}

fn cases() -> Vec<Case> {
    let tiny = || Image::tiny(1);
    let typical = || Image::single(2, &[50 << 20; 8]);
    let big = || Image::single(3, &[1 << 30]);
    let case = |name, rounds, image, bytes, way| Case { name, rounds, image, bytes, way };
    vec![
        case("tiny", 7, tiny, 0, Way::Cold),
        case("tiny-again", 7, tiny, 0, Way::Again),
        case("tiny-far", 3, tiny, 0, Way::Far),
        case("typical", 5, typical, 400 << 20, Way::Cold),
        case("big", 5, big, 1 << 30, Way::Cold),
        case("big-tls", 3, big, 1 << 30, Way::Tls),
    ]
}

fn run(case: &Case) {
    let source = Registry::start();
    (case.image)().push(source.addr(), "bench/image", "latest");
    let tools: &[&str] = match case.way {
        Way::Tls => &["transload"],
        Way::Cold if case.bytes > 0 => &["transload", FLOOR, "skopeo"],
        _ => &["transload", "skopeo"],
    };
    let mut samples = vec![Vec::new(); tools.len()];
    for _ in 0..case.rounds {
        for (tool, samples) in tools.iter().zip(&mut samples) {
            samples.push(once(case, tool, &source));
        }
    }
    for (tool, samples) in tools.iter().zip(&samples) {
        println!("{}", Sample::median(samples).row(case.name, tool, (case.bytes > 0).then(|| case.bytes as f64 / GIB)));
    }
}

/// One copy into a registry of its own.
fn once(case: &Case, tool: &str, source: &Registry) -> Sample {
    let destination = Registry::start();
    let mut flags: Vec<String> = Vec::new();
    let copy =
        |flags: &[String], from: SocketAddr, to: SocketAddr| measured(tool, flags, &from.to_string(), &to.to_string());
    if case.way == Way::Again {
        copy(&flags, source.addr(), destination.addr());
    }
    source.reset_log();
    destination.reset_log();
    let sample = match case.way {
        Way::Cold | Way::Again => copy(&flags, source.addr(), destination.addr()),
        Way::Far => {
            let rtt = Duration::from_millis(40);
            let (from, to) =
                (SlowLink::start(source.addr(), rtt, 25 << 20), SlowLink::start(destination.addr(), rtt, 25 << 20));
            copy(&flags, from.addr(), to.addr())
        }
        Way::Tls => {
            let from = Front::before(source.addr()).name("source.test").tls().start();
            let to = Front::before(destination.addr()).name("destination.test").tls().start();
            flags.extend(from.flags());
            flags.extend(to.flags());
            measured(tool, &flags, "source.test", "destination.test")
        }
    };
    sample.counted(source, &destination)
}

/// Runs the tool.
fn measured(tool: &str, flags: &[String], from: &str, to: &str) -> Sample {
    Sample::of(tool, |command| {
        if tool == "transload" {
            command.arg(env!("CARGO_BIN_EXE_transload")).args(["copy", "--quiet"]).args(flags);
            command.args([format!("{from}/bench/image"), format!("{to}/bench/image")]);
        } else if tool == FLOOR {
            command.arg(std::env::current_exe().unwrap()).args([FLOOR, from, to]);
        } else {
            command.args([
                "skopeo",
                "--insecure-policy",
                "copy",
                "--all",
                "--quiet",
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
            ]);
            command.args([format!("docker://{from}/bench/image"), format!("docker://{to}/bench/image")]);
        }
    })
}
