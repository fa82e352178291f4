//! 1,000 nodes that start one image at once: the requests that reach ACR, without and with the proxy, and
//! what ACR's limits make of them. Run by `cargo bench --bench nodes [-- NODES]`; needs Debian's
//! docker-registry and containerd.
//!
//! One containerd pulls the image for real, straight from the look-alike of ACR: its requests are the route
//! that each node takes. Then that many nodes take it through one, two and four running proxies, and what
//! the look-alike sees is counted. How long it takes is computed, not measured: by ACR's published limits,
//! with containerd's and the kubelet's ways to try again. Networks and disks are left out.
#![allow(clippy::disallowed_methods, reason = "tests start tasks and read the environment")]
#![expect(clippy::print_stdout, reason = "a benchmark's own output")]

#[path = "../tests/it/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::containerd::Containerd;
use support::{Front, Image, ProxyProcess, Registry, SeenRequest, TempDir, http};

/// As many layers as a usual image has.
const LAYERS: [usize; 8] = [20_000; 8];

/// Reads a minute for one identity: Basic and Standard, Premium (docs/protocol.md, section 2).
const LIMITS: [(&str, f64); 2] = [("Standard", 5_000.0), ("Premium", 10_000.0)];

fn main() {
    let asked = std::env::args().skip(1).find_map(|arg| arg.parse().ok());
    let nodes: usize = asked.unwrap_or(1_000);
    let behind = Registry::start();
    let image = Image::index(1, 2, &LAYERS);
    image.push(behind.addr(), "docker.io/library/app", "v1");
    let route = route(&behind);
    println!("One node: {} requests to ACR: {}", route.len(), summary(&route));

    println!("\n| {nodes} nodes, through | requests of nodes | reads at ACR | tokens | blobs from storage |");
    println!("|---|---|---|---|---|");
    let tokens = route.iter().filter(|seen| is_token(seen)).count();
    let (reads, storage) = (route.iter().filter(|seen| is_read(seen)).count(), blobs(&route));
    println!("| nothing | {} | {} | {} | {} |", nodes * reads, nodes * reads, nodes * tokens, nodes * storage);
    let mut through = Vec::new();
    for replicas in [1, 2, 4] {
        let acr = look_alike(&behind);
        let asked = pull_through(&acr, &route, nodes, replicas);
        let log = acr.log();
        let reads = log.iter().filter(|seen| is_read(seen)).count();
        let tokens = log.iter().filter(|seen| is_token(seen)).count();
        println!("| proxies: {replicas} | {asked} | {reads} | {tokens} | {} |", blobs(&log));
        through.push((replicas, reads));
    }
    let one = through[0].1;
    println!("| one proxy a node | | {} | | |", nodes * one);

    println!("\n| ACR | through | all nodes have it after | pulls that failed on the way |");
    println!("|---|---|---|---|");
    for (sku, limit) in LIMITS {
        let (after, failed) = throttled(nodes, reads, limit);
        println!("| {sku} | nothing | {after:.0} s | {failed} |");
        // A proxy waits as ACR says, and tries again; its nodes wait for it.
        for (replicas, reads) in &through {
            let over = (*reads as f64 - limit).max(0.0);
            println!("| {sku} | proxies: {replicas} | {:.0} s | 0 |", over / limit * 60.0);
        }
    }
}

fn look_alike(behind: &Registry) -> Front {
    Front::before(behind.addr()).acr(|acr| acr.anonymous_pull = true).start()
}

/// What a real containerd asks ACR for.
fn route(behind: &Registry) -> Vec<SeenRequest> {
    let acr = look_alike(behind);
    let certs = TempDir::new();
    let host = format!("http://{}", acr.addr());
    let hosts = format!("server = \"{host}\"\n[host.\"{host}/v2/docker.io\"]\n  override_path = true\n");
    certs.write("docker.io/hosts.toml", hosts);
    Containerd::start().pull(certs.path(), "docker.io/library/app:v1").ok();
    acr.log()
}

/// Takes the route for each node, some at a time, each node through one of the replicas; returns how many
/// requests that were.
fn pull_through(acr: &Front, route: &[SeenRequest], nodes: usize, replicas: usize) -> usize {
    let upstream = format!("docker.io={}/docker.io", acr.addr());
    let proxies: Vec<ProxyProcess> = (0..replicas).map(|_| ProxyProcess::start(&upstream, &[])).collect();
    let at: Vec<SocketAddr> = proxies.iter().map(ProxyProcess::addr).collect();
    // What was refused is asked for again with a token: the proxy asks nobody for one.
    let route: Vec<&SeenRequest> = route.iter().filter(|seen| is_read(seen) && seen.status != Some(401)).collect();
    let (next, asked) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                loop {
                    let node = next.fetch_add(1, Ordering::Relaxed);
                    if node >= nodes {
                        return;
                    }
                    for seen in &route {
                        let path = seen.path.replace("/v2/docker.io/", "/v2/") + "?ns=docker.io";
                        let accept = seen.header("accept").unwrap_or("*/*");
                        let headers = [("accept", accept)];
                        http::send(at[node % at.len()], &seen.method, &path, &headers, &[]).expect(200);
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    asked.into_inner()
}

/// All nodes straight at a registry with this limit: seconds until the last one has the image, and how many
/// pulls failed before.
///
/// The limit is a bucket of a minute's requests, refilled steadily. A node has one request under way at a
/// time, of 20 ms. Who finds the bucket empty gets 429: containerd asks five times at once, then the pull
/// fails; the kubelet tries again after 10 s, 20 s, … 300 s, and what was fetched is kept.
fn throttled(nodes: usize, reads: usize, limit: f64) -> (f64, usize) {
    const STEP: f64 = 0.02;
    let (mut bucket, mut now, mut failed) = (limit, 0.0, 0);
    // Requests left, when it goes on, and the pause after the next failure.
    let mut state = vec![(reads, 0.0, 10.0_f64); nodes];
    while state.iter().any(|node| node.0 > 0) {
        for (left, at, pause) in state.iter_mut().filter(|(left, at, _)| *left > 0 && *at <= now) {
            if bucket >= 1.0 {
                bucket -= 1.0;
                *left -= 1;
            } else {
                failed += 1;
                *at = now + *pause;
                *pause = (*pause * 2.0).min(300.0);
            }
        }
        now += STEP;
        bucket = (bucket + limit / 60.0 * STEP).min(limit);
    }
    (now, failed)
}

/// A read as ACR counts it: of its API, not of its storage.
fn is_read(seen: &SeenRequest) -> bool {
    seen.path.starts_with("/v2/")
}

fn is_token(seen: &SeenRequest) -> bool {
    seen.path.starts_with("/oauth2/")
}

fn blobs(log: &[SeenRequest]) -> usize {
    log.iter().filter(|seen| !is_read(seen) && !is_token(seen)).count()
}

fn summary(route: &[SeenRequest]) -> String {
    let part = |what: &str, such: &dyn Fn(&SeenRequest) -> bool| {
        let count = route.iter().filter(|seen| such(seen)).count();
        format!("{count} {what}")
    };
    [
        part("HEAD", &|seen| is_read(seen) && seen.method == "HEAD"),
        part("GET of manifests", &|seen| seen.method == "GET" && seen.path.contains("/manifests/")),
        part("GET of blobs", &|seen| is_read(seen) && seen.path.contains("/blobs/")),
        part("of them refused until there was a token", &|seen| seen.status == Some(401)),
        part("tokens", &is_token),
        part("from storage", &|seen| !is_read(seen) && !is_token(seen)),
    ]
    .join(", ")
}
