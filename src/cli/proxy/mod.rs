//! `transload proxy`: a pull-through cache in front of registries.

mod admin;
mod ops;
mod serve;

use std::path::PathBuf;
use std::time::Duration;

use super::global::{Global, parse_bytes};
use crate::error::{Error, Kind, Result};
use crate::proxy::world::{Base, Spec};
use crate::proxy::{Origins, Proxy, Settings, cache};

pub(super) use serve::run;

/// Run a pull-through cache in front of registries
///
/// Clients ask it as a mirror (containerd, podman, CRI-O, Docker) or by path: ADDRESS/docker.io/library/nginx.
/// It answers from its directory, else from the upstream, storing while it streams. Credentials for
/// upstreams are looked for as everywhere; those of clients are not looked at. There is no authentication.
#[derive(clap::Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<admin::Action>,
    /// Where to listen: address and port; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    listen: String,
    /// What clients may ask for, and where it's read from (repeatable); NAME alone is that registry itself
    #[arg(long, value_name = "NAME=REGISTRY[/PREFIX]", required = true)]
    upstream: Vec<Spec>,
    /// Read what the upstream of this name doesn't have from the registry NAME itself (repeatable)
    #[arg(long, value_name = "NAME")]
    original: Vec<String>,
    /// The directory of the cache; made if it doesn't exist
    #[arg(long, value_name = "DIR", required = true)]
    cache: Option<PathBuf>,
    /// Bytes of blobs to keep at most
    #[arg(long, value_name = "SIZE", default_value = "50GiB", value_parser = parse_bytes)]
    cache_size: u64,
    /// Bytes to leave free on the disk
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_bytes)]
    keep_free: u64,
    /// Believe for so long what a tag is, before asking the upstream again
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    tag_ttl: u64,
    /// Believe for so long that something isn't there
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    negative_ttl: u64,
    /// Fetch a blob of 64 MiB or more by so many requests at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    parallel_fetch: u8,
    #[command(flatten)]
    ops: ops::Args,
}

impl Args {
    /// Runs what asks no registry, and needs no credentials. `None` for the proxy itself.
    pub(super) fn offline(&self, global: &Global) -> Option<Result<u8>> {
        self.action.as_ref().map(|action| admin::run(action, global))
    }

    /// The cache's directory: clap has seen to it that there is one.
    fn dir(&self) -> PathBuf {
        self.cache.clone().unwrap_or_default()
    }

    fn settings(&self) -> Result<Settings> {
        let mut upstreams = self.upstream.clone();
        for name in &self.original {
            let original: Base = name.parse()?;
            let spec = upstreams.iter_mut().find(|spec| spec.name == original.registry).ok_or_else(|| {
                Error::new(Kind::Usage, format!("--original {name} names no upstream"))
                    .hint("it is for what an --upstream of the same name does not have")
            })?;
            if !spec.tiers.contains(&original) {
                spec.tiers.push(original);
            }
        }
        let cache = cache::Settings { dir: self.dir(), size: self.cache_size, keep_free: self.keep_free };
        Ok(Settings {
            tag_ttl: Duration::from_secs(self.tag_ttl),
            negative_ttl: Duration::from_secs(self.negative_ttl),
            parallel: self.parallel_fetch.into(),
            ..Settings::new(upstreams, cache)
        })
    }
}

#[expect(clippy::print_stderr, reason = "it's what the user waits for, and scripts read it")]
fn announce<O: Origins>(args: &Args, proxy: &Proxy<O>, address: std::net::SocketAddr) {
    let names: Vec<&str> = args.upstream.iter().map(|spec| spec.name.as_str()).collect();
    let (blobs, bytes) = proxy.cache().blobs.count();
    eprintln!("proxying {} on http://{address}", names.join(", "));
    eprintln!("the cache {} has {blobs} blobs, {} MiB", args.dir().display(), bytes >> 20);
    if !address.ip().is_loopback() {
        eprintln!("warning: there is no authentication: whoever can connect to {address} can pull from it");
    }
}

const AFTER_HELP: &str = "\
Examples:
  transload proxy --upstream docker.io=myregistry.azurecr.io/docker.io --cache /var/cache/transload
  transload proxy --upstream docker.io=myregistry.azurecr.io/docker.io --original docker.io --cache DIR
  transload proxy --upstream docker.io --upstream ghcr.io --cache DIR --cache-size 200GiB
  transload proxy verify --cache /var/cache/transload";
