//! What a running proxy tells those who operate it, on an address of its own.

use std::future::pending;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::cli::{interval, told};
use crate::error::Result;
use crate::ops::{self, Health};
use crate::proxy::events::Observer;
use crate::proxy::metrics::{Live, Metrics, PREFIX, Shown};
use crate::proxy::writeback::Queue;
use crate::proxy::{Origins, Proxy};
use crate::registry::Registries;

/// Where it's told.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Answer /healthz, /readyz and /metrics at this address, such as 127.0.0.1:9090
    #[arg(long, value_name = "ADDRESS", help_heading = "Operation")]
    listen_ops: Option<String>,
}

impl Args {
    /// Binds the address, where there is one, and begins to count.
    ///
    /// # Errors
    /// If the address can't be bound.
    pub(super) async fn open(&self, registries: &Registries) -> Result<Ops> {
        let listener = match &self.listen_ops {
            Some(address) => Some(interval::listen(address).await?),
            None => None,
        };
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        Live::register(&mut registry, "transload_registry", {
            let registries = registries.clone();
            move || quotas(&registries)
        });
        Ok(Ops { listener, registry, metrics, health: Health::unready_since("the cache is being opened") })
    }
}

/// What is told, and where.
pub(super) struct Ops {
    listener: Option<TcpListener>,
    registry: Registry,
    metrics: Metrics,
    health: Health,
}

impl Ops {
    /// Where more figures can be shown.
    pub(super) fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// Who is to hear of what happens: the figures, where someone can ask for them, and the queue.
    pub(super) fn observer(&self, queue: Option<Queue>) -> Arc<dyn Observer> {
        let mut all: Vec<Arc<dyn Observer>> = Vec::new();
        if self.listener.is_some() {
            all.push(Arc::new(self.metrics.clone()));
        }
        if let Some(queue) = queue {
            all.push(Arc::new(queue));
        }
        Arc::new(all)
    }

    /// The proxy is there: it can be pulled from, whether or not its upstreams answer. A proxy with a
    /// full cache and no upstream is of use, and one that is taken away is of none.
    pub(super) fn watch<O: Origins>(&mut self, proxy: &Proxy<O>) {
        let proxy = proxy.clone();
        Live::register(&mut self.registry, PREFIX, move || {
            let (blobs, bytes) = proxy.cache().blobs.count();
            let up = proxy.health().into_iter().map(|(registry, well)| (Some(registry), u64::from(well))).collect();
            vec![
                ("cache_blobs", "Blobs in the cache", vec![(None, blobs as u64)]),
                ("cache_bytes", "Bytes of the blobs in the cache", vec![(None, bytes)]),
                ("upstream_up", "1 if the registry is asked, 0 while it is left alone for its faults", up),
            ]
        });
        self.health.ready();
    }

    /// Answers, for ever.
    ///
    /// # Errors
    /// Those of [`ops::serve`].
    pub(super) async fn serve(self) -> Result<()> {
        match self.listener {
            Some(listener) => ops::serve(listener, self.health, Arc::new(self.registry), pending()).await,
            None => pending().await,
        }
    }
}

/// Requests sent, and pulls left where registries tell.
fn quotas(registries: &Registries) -> Vec<Shown> {
    let (mut requests, mut left, mut limits) = (Vec::new(), Vec::new(), Vec::new());
    for used in told::uses(registries) {
        requests.push((Some(used.name.clone()), used.requests));
        if let Some(quota) = used.pull_quota {
            left.push((Some(used.name.clone()), quota.remaining));
            limits.push((Some(used.name), quota.limit));
        }
    }
    vec![
        ("requests_sent", "Requests, each redirect and token request counted", requests),
        ("pulls_left", "Pulls left in the window, where the registry tells", left),
        ("pulls_limit", "Pulls allowed in a window, where the registry tells", limits),
    ]
}
