//! `transload proxy`: a pull-through cache in front of registries.

mod admin_api;
mod admin_client;
mod cache_commands;
mod check;
mod config;
mod config_file;
mod listen;
mod loopback;
mod ops;
mod origins;
mod reload;
mod rlimit;
mod scalars;
mod serve;
mod warm;
mod writeback;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use self::config::{AccessLogFormat, ListenAddress, ListenerConfig, ProxyConfig};
use self::listen::OpenListener;
use super::global::parse_bytes;
use super::output::note;
use crate::cli::faults::cache_files;
use crate::error::Result;
use crate::proxy::upstreams::{UpstreamConfig, Upstreams};
use crate::proxy::{Origins, Proxy, Settings, cache, scrub};
use crate::server::Limits;

pub(super) use cache_commands::run as admin;
pub(super) use serve::run;
pub(super) use warm::run as warm;

/// Run a pull-through cache in front of registries
///
/// Clients use it as a mirror (containerd, podman, CRI-O, Docker) or by path: ADDRESS/docker.io/library/nginx.
/// It answers from its cache directory, else from the upstream, and stores the answer while it streams it. It finds
/// credentials for upstreams as all commands do, and never forwards credentials of clients. A configuration file has
/// more settings: TLS, client certificates, users, tokens, patterns. It is read again on SIGHUP and when it changes.
#[derive(clap::Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Read the settings from this file instead of options
    #[arg(long, value_name = "FILE", conflicts_with_all = FLAGS_SET_BY_FILE)]
    config: Option<PathBuf>,
    /// Address and port to listen on; port 0 selects a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    listen: String,
    /// Registry that clients may pull from, and its tiers: the registries to ask for its images, in this order, each
    /// with an optional path (repeatable). NAME alone asks that registry itself
    #[arg(long, value_name = "NAME[=TIER,…]", required_unless_present = "config")]
    upstream: Vec<UpstreamConfig>,
    /// Cache directory; created if it does not exist
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    cache: Option<PathBuf>,
    /// Maximum size of the cache
    #[arg(long, value_name = "SIZE", default_value = "50GiB", value_parser = parse_bytes)]
    cache_size: u64,
    /// Space to leave free on the disk
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_bytes)]
    keep_free: u64,
    /// Bytes per second to read from the cache, to find and remove what a broken disk has changed; a full check
    /// starts each day; or off
    #[arg(long, value_name = "RATE|off", default_value = "4MiB")]
    scrub: String,
    /// How long a cached tag stays fresh
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    tag_ttl: u64,
    /// How long "not found" stays fresh, and how long a blob that arrived corrupt is not requested again
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    negative_ttl: u64,
    /// How long a client's request may wait for the upstreams, with all retries, before it gets an error (504).
    /// containerd waits 30 s for the head of a response
    #[arg(long, value_name = "SECONDS", default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..=600))]
    upstream_timeout: u64,
    /// Parallel requests for a blob of 64 MiB or more
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    parallel_fetch: u8,
    /// Log requests on stdout when their response is complete: time, client, user, method, path, ns, status, bytes,
    /// duration in milliseconds, outcome, end, user agent
    #[arg(long, value_name = "FORM", value_enum, default_value_t = AccessLogFormat::Off)]
    access_log: AccessLogFormat,
    /// After SIGTERM, fail /readyz and accept connections for this time, so that load balancers notice, before
    /// draining
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=3600), help_heading = "Operation")]
    shutdown_delay: u64,
    /// After that, time for requests in progress before their connections are closed
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
    Cache(cache_commands::Action),
    Warm(warm::WarmArgs),
    /// Print the JSON schema of the configuration file
    Schema,
}

impl Args {
    /// Runs a command that needs no network. `None` for other commands and the proxy itself.
    pub(super) fn run_offline(&self) -> Option<Result<u8>> {
        match self.action.as_ref()? {
            Action::Check(args) => Some(check::run(args)),
            Action::Cache(_) | Action::Warm(_) => None,
            Action::Schema => Some(check::schema()),
        }
    }

    /// The command on a cache, if there is one. It needs no credentials.
    pub(super) fn admin(&self) -> Option<&cache_commands::Action> {
        match &self.action {
            Some(Action::Cache(action)) => Some(action),
            _ => None,
        }
    }

    /// Whether it is to serve, until it is asked to stop.
    pub(super) fn stays(&self) -> bool {
        self.action.is_none()
    }

    /// The list to fill a running proxy with, if that is what is asked for: no proxy runs here then.
    pub(super) fn warm(&self) -> Option<&warm::WarmArgs> {
        match &self.action {
            Some(Action::Warm(args)) => Some(args),
            _ => None,
        }
    }

    /// The configuration from the file or the flags.
    fn plan(&self) -> Result<ProxyConfig> {
        if let Some(path) = &self.config {
            return config_file::load(path);
        }
        let listener_config =
            ListenerConfig { at: ListenAddress::Tcp(self.listen.clone()), tls: None, token: None, users: None };
        Ok(ProxyConfig {
            listen: vec![listener_config],
            settings: self.settings()?,
            write_auth: self.write_auth(),
            auth: BTreeMap::new(),
            // Each node may pull many images, with several connections.
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
        self.write_back.mark(&mut upstreams)?;
        // Before anything is opened, as for a configuration file.
        Upstreams::new(upstreams.clone())?;
        let dir = self.cache.clone().unwrap_or_default();
        let cache = cache::Settings { dir, size: self.cache_size, keep_free: self.keep_free, files: cache_files() };
        Ok(Settings {
            tag_ttl: Duration::from_secs(self.tag_ttl),
            negative_ttl: Duration::from_secs(self.negative_ttl),
            upstream_timeout: Duration::from_secs(self.upstream_timeout),
            parallel: self.parallel_fetch.into(),
            scrub: scrub::parse_rate(&self.scrub, parse_bytes)?,
            ..Settings::new(upstreams, cache)
        })
    }
}

fn announce<O: Origins>(proxy_config: &ProxyConfig, listeners: &[OpenListener], proxy: &Proxy<O>) {
    let names: Vec<&str> = proxy_config.settings.upstreams.iter().map(|spec| spec.name.as_str()).collect();
    let (blobs, bytes) = proxy.cache().blobs.count();
    for listener in listeners {
        note(&format!("proxying {} on {}", names.join(", "), listener.url));
    }
    note(&format!("the cache {} has {blobs} blobs, {} MiB", proxy_config.settings.cache.dir.display(), bytes >> 20));
    let exposed: Vec<String> = listeners.iter().filter_map(|listener| Some(listener.exposed?.to_string())).collect();
    let open = proxy_config.settings.upstreams.iter().filter(|spec| spec.rules.allow.is_empty());
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
  transload proxy --upstream docker.io=myregistry.azurecr.io/docker.io,docker.io --cache DIR
  transload proxy --upstream docker.io --upstream ghcr.io --cache DIR --cache-size 200GiB
  transload proxy check proxy.yaml
  transload proxy warm images.yaml --proxy 127.0.0.1:5000
  transload proxy gc --admin 127.0.0.1:9091 --older-than 30d --dry-run
  transload proxy --config proxy.yaml";

/// The flags that a configuration file replaces.
const FLAGS_SET_BY_FILE: [&str; 16] = [
    "upstream_timeout",
    "shutdown_delay",
    "drain_timeout",
    "listen_admin",
    "parallel_fetch",
    "access_log",
    "listen",
    "upstream",
    "cache",
    "cache_size",
    "keep_free",
    "scrub",
    "tag_ttl",
    "negative_ttl",
    "write_back",
    "write_back_auth_file",
];
