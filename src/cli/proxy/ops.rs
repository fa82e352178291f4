//! What a running proxy tells those who operate it, on an address of its own.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use super::admin_api::{admin_handler, moved_handler};
use super::loopback::Loopback;
use super::origins::RegistryOrigins;
use crate::cli::{interval, output, render};
use crate::error::{Error, Result, Side};
use crate::ops::{self, Health, Page};
use crate::pool::run_blocking;
use crate::proxy::cache::CacheDir;
use crate::proxy::events::Observer;
use crate::proxy::metrics::{LiveMetrics, MetricFamily, Metrics, NAME_PREFIX};
use crate::proxy::status::{PAGE, RecentActivity};
use crate::proxy::writeback::Queue;
use crate::proxy::{Origins, Proxy};
use crate::registry::Registries;

/// Where it's told.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Serve /healthz, /readyz, /metrics and a status page at this address, such as 127.0.0.1:9090; on loopback
    /// also the requests of `proxy ls`, `rm`, `gc` and `verify --admin`, unless --listen-admin is set
    #[arg(long, value_name = "ADDRESS", help_heading = "Operation")]
    listen_ops: Option<String>,
    /// Serve only the requests of `proxy ls`, `rm`, `gc` and `verify --admin` at this loopback address, such as
    /// 127.0.0.1:9091
    #[arg(long, value_name = "ADDRESS", help_heading = "Operation")]
    listen_admin: Option<String>,
}

impl Args {
    /// Where orders are taken, if they have an address of their own.
    ///
    /// # Errors
    /// If others can connect to it.
    pub(super) fn admin(&self) -> Result<Option<Loopback>> {
        let parsed = self.listen_admin.as_deref().map(str::parse).transpose();
        parsed.map_err(|error: Error| error.doing("use --listen-admin").on(Side::Local))
    }

    /// Binds the addresses, where there are any, and begins to count.
    ///
    /// # Errors
    /// If an address can't be bound.
    pub(super) async fn open(&self, admin: Option<&Loopback>, upstreams: &RegistryOrigins) -> Result<OpsServer> {
        let listener = match &self.listen_ops {
            Some(address) => Some(interval::listen(address).await?),
            None => None,
        };
        let orders = match admin {
            Some(address) => {
                let listener = address.bind().await.map_err(|error| error.on(Side::Local))?;
                let bound = listener.local_addr().map_err(|error| Error::io("listen", &error))?;
                output::note(&format!("taking the orders of proxy ls, rm, gc and verify --admin on http://{bound}"));
                Some(listener)
            }
            None => None,
        };
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        LiveMetrics::register(&mut registry, "transload_registry", {
            let upstreams = upstreams.clone();
            move || quotas(&upstreams.clients())
        });
        let health = Health::unready_from_start("the cache is being opened");
        Ok(OpsServer {
            listener,
            orders,
            registry,
            metrics,
            recent: RecentActivity::default(),
            pages: None,
            admin: None,
            health,
            cache: None,
        })
    }
}

/// What is told, and where.
pub(super) struct OpsServer {
    listener: Option<TcpListener>,
    /// Where orders are taken, if not there.
    orders: Option<TcpListener>,
    registry: Registry,
    metrics: Metrics,
    recent: RecentActivity,
    pages: Option<Pages>,
    admin: Option<ops::AdminHandler>,
    health: Health,
    cache: Option<CacheDir>,
}

type Pages = Box<dyn Fn(&str) -> Option<Page> + Send + Sync>;

impl OpsServer {
    /// Whether the proxy is of use now.
    pub(super) fn health(&self) -> Health {
        self.health.clone()
    }

    /// Where more figures can be shown.
    pub(super) fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// Who is to hear of what happens: figures and page, where someone can ask for them, and the queue.
    pub(super) fn observer(&self, queue: Queue) -> Arc<dyn Observer> {
        let mut all: Vec<Arc<dyn Observer>> = Vec::new();
        if self.listener.is_some() {
            all.push(Arc::new(self.metrics.clone()));
            all.push(Arc::new(self.recent.clone()));
        }
        all.push(Arc::new(queue));
        Arc::new(all)
    }

    /// The proxy is there: it can be pulled from, whether or not its upstreams answer. A proxy with a
    /// full cache and no upstream is of use, and one that is taken away is of none.
    pub(super) fn watch<O: Origins>(&mut self, proxy: &Proxy<O>) {
        let (proxy, proxy_again) = (proxy.clone(), proxy.clone());
        LiveMetrics::register(&mut self.registry, NAME_PREFIX, move || {
            let (blobs, bytes) = proxy.cache().blobs.count();
            let restored = proxy.cache().dir().restored();
            let up = proxy.health().into_iter().map(|health| (Some(health.registry), u64::from(health.well))).collect();
            vec![
                ("cache_blobs", "Blobs in the cache", vec![(None, blobs as u64)]),
                ("cache_bytes", "Bytes of the blobs in the cache", vec![(None, bytes)]),
                (
                    "cache_recreated_total",
                    "Times that the cache directory had to be created again",
                    vec![(None, restored)],
                ),
                ("upstream_up", "0 while the circuit breaker of the registry is open, else 1", up),
            ]
        });
        let (proxy, recent) = (proxy_again, self.recent.clone());
        self.admin = Some(admin_handler(proxy.admin()));
        self.cache = Some(proxy.cache().dir().clone());
        self.pages = Some(Box::new(move |path| page(path, &proxy, &recent)));
        self.health.set_ready();
    }

    /// Answers, for ever.
    ///
    /// # Errors
    /// Those of [`ops::serve`].
    pub(super) async fn serve(self) -> Result<()> {
        let (shared, own) = match (self.orders, self.admin) {
            (Some(listener), Some(admin)) => (Some(moved_handler()), Some((listener, admin))),
            (_, admin) => (admin, None),
        };
        let ops = async {
            match self.listener {
                Some(listener) => {
                    let pages = self.pages.unwrap_or_else(|| Box::new(|_| None));
                    ops::serve_with(listener, self.health.clone(), Arc::new(self.registry), pages, shared, pending())
                        .await
                }
                None => pending().await,
            }
        };
        let orders = async {
            match own {
                Some((listener, admin)) => ops::serve_admin(listener, admin, pending()).await,
                None => pending().await,
            }
        };
        let health = self.health.clone();
        let cache = async {
            match self.cache {
                Some(dir) => watch_cache(dir, health).await,
                None => pending().await,
            }
        };
        tokio::try_join!(ops, orders, cache).map(drop)
    }
}

/// Not ready while nothing can be cached: each pull would cost one of the upstream. Never returns.
async fn watch_cache(dir: CacheDir, health: Health) -> Result<()> {
    let mut failed = false;
    loop {
        let checked = dir.clone();
        match run_blocking(move || checked.check_writable()).await {
            Err(error) => {
                if !failed {
                    tracing::error!("{error}: not ready, nothing can be cached");
                }
                failed = true;
                health.set_unready(format!("nothing can be cached: {error}"));
            }
            Ok(()) if failed => {
                failed = false;
                tracing::info!("the cache can be written again: ready");
                health.set_ready();
            }
            Ok(()) => {}
        }
        tokio::time::sleep(CACHE_CHECK_INTERVAL).await;
    }
}

/// How often it is checked that the cache's directory can be written.
const CACHE_CHECK_INTERVAL: Duration = Duration::from_secs(5);

fn page<O: Origins>(path: &str, proxy: &Proxy<O>, recent: &RecentActivity) -> Option<Page> {
    match path {
        "/" => Some(("text/html; charset=utf-8", Bytes::from_static(PAGE.as_bytes()))),
        "/status.json" => {
            let json = serde_json::to_vec(&recent.status(proxy)).unwrap_or_default();
            Some(("application/json", Bytes::from(json)))
        }
        _ => None,
    }
}

/// Requests sent, and pulls left where registries tell;
/// with several accounts at one registry those of the first.
fn quotas(registries: &[Registries]) -> Vec<MetricFamily> {
    let (mut requests, mut left, mut limits) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for used in registries.iter().flat_map(render::registry_usage) {
        if !seen.insert(used.name.clone()) {
            continue;
        }
        requests.push((Some(used.name.clone()), used.requests));
        if let Some(quota) = used.pull_limit {
            left.push((Some(used.name.clone()), quota.remaining));
            limits.push((Some(used.name), quota.limit));
        }
    }
    vec![
        ("requests_sent", "Requests, each redirect and token request counted", requests),
        ("pulls_left", "Pulls left in the window, as the registry reports them", left),
        ("pulls_limit", "Pulls allowed in a window, as the registry reports them", limits),
    ]
}
