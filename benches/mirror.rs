//! `transload mirror` beside `skopeo sync`, interleaved, medians: wall seconds, CPU seconds, peak
//! memory, requests, bytes that the source gave. Run by `cargo bench --bench mirror [-- CASE…]`; needs
//! Debian's docker-registry, skopeo and time. Absolute times on a shared machine mean nothing, ratios do.
#![allow(clippy::disallowed_methods, reason = "tests start tasks and read the environment")]
#![expect(clippy::print_stdout, reason = "a benchmark's own output")]

mod measure;
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::net::SocketAddr;

use measure::Sample;
use support::layer::{Layer, layer};
use support::{Image, Registry, TempDir};

#[derive(Clone, Copy, PartialEq)]
enum Case {
    /// 60 images in 60 repositories, which share 4 of their 6 layers: 868 MiB unique, 4526 MiB with repeats.
    Bulk,
    /// The same when the destination has them.
    BulkAgain,
    /// 200 tags of one repository, 20 KiB each, which share a config.
    Tags,
    /// The same, each with a config of its own.
    TagsApart,
}

const CASES: [(&str, Case, usize); 4] = [
    ("bulk", Case::Bulk, 3),
    ("bulk-again", Case::BulkAgain, 5),
    ("tags", Case::Tags, 5),
    ("tags-apart", Case::TagsApart, 3),
];

const MIB: usize = 1 << 20;
const UNIQUE_BULK: f64 = 868.0 / 1024.0;

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    println!("| case | tool | wall s | CPU s | CPU s/unique GiB | peak MiB | requests from + to |");
    println!("|---|---|---|---|---|---|---|");
    for (name, case, rounds) in CASES {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            run(name, case, rounds);
        }
    }
}

fn run(name: &str, case: Case, rounds: usize) {
    let source = Registry::start();
    let images = case.push(source.addr());
    let lists = TempDir::new();
    let plain: String =
        images.iter().map(|(repository, tag)| format!("{}/{repository}:{tag}\n", source.addr())).collect();
    let plain = lists.write("list.txt", plain);
    let yaml = lists.write("list.yaml", skopeo_list(source.addr(), &images));
    let tools = [("transload", &plain), ("skopeo", &yaml)];
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for ((tool, list), samples) in tools.iter().zip(&mut samples) {
            samples.push(once(case, tool, list, &source));
        }
    }
    for ((tool, _), samples) in tools.iter().zip(&samples) {
        println!("{}", Sample::median(samples).row(name, tool, (case == Case::Bulk).then_some(UNIQUE_BULK)));
    }
}

impl Case {
    /// Fills the source; gives each image's repository and tag.
    fn push(self, to: SocketAddr) -> Vec<(String, String)> {
        match self {
            Self::Bulk | Self::BulkAgain => {
                let shared: Vec<Layer> = (0..4).map(|nth| layer(1000 + nth, 31 * MIB / 2)).collect();
                let push = |nth: u64| {
                    let own = (0..2).map(|half| layer(2000 + 2 * nth + half, 672 * MIB / 100));
                    let layers: Vec<Layer> = shared.iter().cloned().chain(own).collect();
                    let repository = format!("bench/app{nth}");
                    let image = Image::layered(nth, &layers);
                    image.push_mounting(to, &repository, "latest", (nth > 0).then_some("bench/app0"));
                    (repository, "latest".to_owned())
                };
                (0..60).map(push).collect()
            }
            Self::Tags | Self::TagsApart => {
                let push = |nth: u64| {
                    let seed = if self == Self::Tags { 0 } else { nth };
                    Image::labelled(seed, &[layer(3000 + nth, 20 << 10)]).push(to, "bench/tags", &format!("v{nth}"));
                    ("bench/tags".to_owned(), format!("v{nth}"))
                };
                (0..200).map(push).collect()
            }
        }
    }
}

fn skopeo_list(source: SocketAddr, images: &[(String, String)]) -> String {
    let mut repositories: Vec<(&str, Vec<&str>)> = Vec::new();
    for (repository, tag) in images {
        match repositories.last_mut() {
            Some((last, tags)) if last == repository => tags.push(tag),
            _ => repositories.push((repository, vec![tag])),
        }
    }
    let lines: String =
        repositories.iter().map(|(repository, tags)| format!("    {repository}: [{}]\n", tags.join(", "))).collect();
    format!("\"{source}\":\n  tls-verify: false\n  images:\n{lines}")
}

/// One run into a registry of its own.
fn once(case: Case, tool: &str, list: &str, source: &Registry) -> Sample {
    let destination = Registry::start();
    if case == Case::BulkAgain {
        measured(tool, list, destination.addr());
    }
    source.reset_log();
    destination.reset_log();
    let sample = measured(tool, list, destination.addr());
    sample.counted(source, &destination)
}

/// Runs the tool.
fn measured(tool: &str, list: &str, to: SocketAddr) -> Sample {
    Sample::of(tool, |command| {
        if tool == "transload" {
            command.arg(env!("CARGO_BIN_EXE_transload")).args(["mirror", "--quiet", list, "--to", &to.to_string()]);
        } else {
            command.args(["skopeo", "--insecure-policy", "sync", "--all", "--src", "yaml", "--dest", "docker"]);
            command.args(["--dest-tls-verify=false", list, &to.to_string()]);
        }
    })
}
