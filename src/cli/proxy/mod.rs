//! `transload proxy`: a pull-through cache in front of registries.

mod admin;
mod check;
mod config;
mod limits;
mod listen;
mod loopback;
mod ops;
mod orders;
mod plan;
mod reload;
mod remote;
mod scalars;
mod serve;
mod warm;
mod writeback;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use self::listen::Open;
use self::plan::{AccessLines, At, Door, Plan};
use super::global::parse_bytes;
use super::output::note;
use crate::cli::faults::cache_files;
use crate::error::{Error, Kind, Result};
use crate::proxy::world::{Base, Spec};
use crate::proxy::{Origins, Proxy, Settings, cache, scrub};
use crate::server::Limits;

pub(super) use admin::run as admin;
pub(super) use serve::run;
pub(super) use warm::run as warm;

/// Run a pull-through cache in front of registries
///
/// Clients ask it as a mirror (containerd, podman, CRI-O, Docker) or by path: ADDRESS/docker.io/library/nginx.
/// It answers from its directory, else from the upstream, storing while it streams. Credentials for
/// upstreams are looked for as everywhere; those of clients are not looked at. A configuration file has more:
/// TLS, client certificates, users, tokens, patterns; it's read again on SIGHUP and when it changes.
#[derive(clap::Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Read all of it from this file, instead of the flags below
    #[arg(long, value_name = "FILE", conflicts_with_all = BY_FILE)]
    config: Option<PathBuf>,
    /// Where to listen: address and port; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    listen: String,
    /// What clients may ask for, and where it's read from (repeatable); NAME alone is that registry itself
    #[arg(long, value_name = "NAME=REGISTRY[/PREFIX]", required_unless_present = "config")]
    upstream: Vec<Spec>,
    /// Read what the upstream of this name doesn't have from the registry NAME itself (repeatable)
    #[arg(long, value_name = "NAME")]
    original: Vec<String>,
    /// The directory of the cache; made if it doesn't exist
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    cache: Option<PathBuf>,
    /// Bytes of blobs to keep at most
    #[arg(long, value_name = "SIZE", default_value = "50GiB", value_parser = parse_bytes)]
    cache_size: u64,
    /// Bytes to leave free on the disk
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_bytes)]
    keep_free: u64,
    /// Read so many bytes of the cache in a second, to find and drop what a broken disk has changed; once
    /// through, it begins again after a day; or off
    #[arg(long, value_name = "RATE|off", default_value = "4MiB")]
    scrub: String,
    /// Believe for so long what a tag is, before asking the upstream again
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    tag_ttl: u64,
    /// Believe for so long that something isn't there
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    negative_ttl: u64,
    /// Fetch a blob of 64 MiB or more by so many requests at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    parallel_fetch: u8,
    /// Tell each request on stdout, when its answer is out: time, client, user, method, path, ns, status, bytes,
    /// milliseconds, how it was served, how it ended, and the client's name
    #[arg(long, value_name = "FORM", value_enum, default_value_t = AccessLines::Off)]
    access_log: AccessLines,
    /// After SIGTERM, say at /readyz that it stops, and accept connections for so long before it drains: as long as
    /// load balancers take to hear of it
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=3600), help_heading = "Operation")]
    shutdown_delay: u64,
    /// Then let requests go on for so long before their connections are cut
    #[arg(long, value_name = "SECONDS", default_value_t = 25, value_parser = clap::value_parser!(u64).range(0..=86400), help_heading = "Operation")]
    drain_timeout: u64,
    #[command(flatten)]
    ops: ops::Args,
    #[command(flatten)]
    write_back: writeback::Args,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Action {
    Check(check::CheckArgs),
    #[command(flatten)]
    Cache(admin::Action),
    Warm(warm::WarmArgs),
    /// Print the JSON schema of the configuration file
    Schema,
}

impl Args {
    /// Runs what asks nobody. `None` for the proxy itself.
    pub(super) fn offline(&self) -> Option<Result<u8>> {
        match self.action.as_ref()? {
            Action::Check(args) => Some(check::run(args)),
            Action::Cache(_) | Action::Warm(_) => None,
            Action::Schema => Some(check::schema()),
        }
    }

    /// What is to be done to a cache, if that is what is asked for. It needs no credentials.
    pub(super) fn admin(&self) -> Option<&admin::Action> {
        match &self.action {
            Some(Action::Cache(action)) => Some(action),
            _ => None,
        }
    }

    /// The list to fill a running proxy with, if that is what is asked for: no proxy runs here then.
    pub(super) fn warm(&self) -> Option<&warm::WarmArgs> {
        match &self.action {
            Some(Action::Warm(args)) => Some(args),
            _ => None,
        }
    }

    /// What file or flags say.
    fn plan(&self) -> Result<Plan> {
        if let Some(path) = &self.config {
            return config::load(path);
        }
        let door = Door { at: At::Tcp(self.listen.clone()), tls: None, token: None, users: None };
        Ok(Plan {
            listen: vec![door],
            settings: self.settings()?,
            write_auth: self.write_auth(),
            auth: BTreeMap::new(),
            // Nodes may pull many images each, by several connections.
            limits: Limits {
                connections: 4096,
                buffer: 64 << 10,
                drain: Duration::from_secs(self.drain_timeout),
                ..Limits::default()
            },
            min_rate: None,
            min_rate_window: None,
            shutdown_delay: Duration::from_secs(self.shutdown_delay),
            access_log: self.access_log,
            listen_admin: self.ops.admin()?,
        })
    }

    fn write_auth(&self) -> BTreeMap<String, PathBuf> {
        let file = self.write_back.write_back_auth_file.iter();
        file.flat_map(|file| self.upstream.iter().map(|spec| (spec.name.clone(), file.clone()))).collect()
    }

    fn settings(&self) -> Result<Settings> {
        let mut upstreams = self.upstream.clone();
        for name in &self.original {
            let original: Base = name.parse()?;
            let spec = upstreams.iter_mut().find(|spec| *spec.name == *original.registry).ok_or_else(|| {
                Error::new(Kind::Usage, format!("--original {name} names no upstream"))
                    .hint("it is for what an --upstream of the same name does not have")
            })?;
            if !spec.tiers.contains(&original) {
                spec.tiers.push(original);
            }
        }
        self.write_back.mark(&mut upstreams);
        let dir = self.cache.clone().unwrap_or_default();
        let cache = cache::Settings { dir, size: self.cache_size, keep_free: self.keep_free, files: cache_files() };
        Ok(Settings {
            tag_ttl: Duration::from_secs(self.tag_ttl),
            negative_ttl: Duration::from_secs(self.negative_ttl),
            parallel: self.parallel_fetch.into(),
            scrub: scrub::rate(&self.scrub, parse_bytes)?,
            ..Settings::new(upstreams, cache)
        })
    }
}

fn announce<O: Origins>(plan: &Plan, doors: &[Open], proxy: &Proxy<O>) {
    let names: Vec<&str> = plan.settings.upstreams.iter().map(|spec| spec.name.as_str()).collect();
    let (blobs, bytes) = proxy.cache().blobs.count();
    for door in doors {
        note(&format!("proxying {} on {}", names.join(", "), door.url));
    }
    note(&format!("the cache {} has {blobs} blobs, {} MiB", plan.settings.cache.dir.display(), bytes >> 20));
    let exposed: Vec<String> = doors.iter().filter_map(|door| Some(door.exposed?.to_string())).collect();
    let open = plan.settings.upstreams.iter().filter(|spec| spec.rules.allow.is_empty());
    let open: Vec<&str> = open.map(|spec| spec.name.as_str()).collect();
    if !exposed.is_empty() && !open.is_empty() {
        note(&format!(
            "warning: there is no authentication at {}: whoever can reach it can pull everything of {} that this \
             proxy's own credentials can pull; add users-file, token-file or client-ca to the listener, or `allow` \
             to each upstream",
            exposed.join(", "),
            open.join(", ")
        ));
    }
}

const AFTER_HELP: &str = "\
Examples:
  transload proxy --upstream docker.io=myregistry.azurecr.io/docker.io --cache /var/cache/transload
  transload proxy --upstream docker.io=myregistry.azurecr.io/docker.io --original docker.io --cache DIR
  transload proxy --upstream docker.io --upstream ghcr.io --cache DIR --cache-size 200GiB
  transload proxy check proxy.yaml
  transload proxy warm images.yaml --proxy 127.0.0.1:5000
  transload proxy gc --admin 127.0.0.1:9091 --older-than 30d --dry-run
  transload proxy --config proxy.yaml";

/// What stands in the file, where there is one.
const BY_FILE: [&str; 16] = [
    "shutdown_delay",
    "drain_timeout",
    "listen_admin",
    "parallel_fetch",
    "access_log",
    "listen",
    "upstream",
    "original",
    "cache",
    "cache_size",
    "keep_free",
    "scrub",
    "tag_ttl",
    "negative_ttl",
    "write_back",
    "write_back_auth_file",
];
