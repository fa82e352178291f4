//! `--listen-ops`: the proxy's metrics, probes and status page.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::error::Result;
use crate::ops::{self, Health, Page};
use crate::proxy::metrics::{Metrics, PAGE};
use crate::proxy::{Origins, Proxy};
use crate::registry::Registries;
use crate::server::Server;

/// Answers at `listener` about the proxy behind `server` until `shutdown` is ready.
///
/// # Errors
/// Those of [`ops::serve_with`].
pub(super) async fn serve<O: Origins>(
    listener: TcpListener,
    server: Arc<Server<Proxy<O>>>,
    registries: Registries,
    (metrics, shown): (Metrics, Registry),
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let health = Health::unready_since("it is starting");
    // The cache was opened; upstreams may be down: what is cached is served all the same.
    health.ready();
    let pages = {
        let (server, metrics) = (server.clone(), metrics.clone());
        move |path: &str| page(path, server.backend(), &metrics)
    };
    let looks = async {
        loop {
            look(server.backend(), &registries, &metrics);
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        ended = ops::serve_with(listener, health, Arc::new(shown), pages, shutdown) => ended,
        () = looks => Ok(()),
    }
}

/// Takes down what is measured and not counted.
fn look<O: Origins>(proxy: &Proxy<O>, registries: &Registries, metrics: &Metrics) {
    let (blobs, bytes) = proxy.cache().blobs.count();
    metrics.cache(blobs as u64, bytes, proxy.settings().cache.size);
    let health = proxy.health();
    metrics.health(health.iter().map(|(registry, well)| (registry.as_str(), *well)));
    for (name, registry) in registries.known() {
        if let Some(quota) = registry.quota() {
            metrics.pulls_left(&name, quota.remaining);
        }
    }
}

fn page<O: Origins>(path: &str, proxy: &Proxy<O>, metrics: &Metrics) -> Option<Page> {
    match path {
        "/" => Some(("text/html; charset=utf-8", Bytes::from_static(PAGE.as_bytes()))),
        "/status.json" => {
            let filling = proxy.filling().into_iter().map(|(digest, got, size)| (digest.to_string(), got, size));
            let status = metrics.status(proxy.health(), filling);
            let json = serde_json::to_vec(&status).unwrap_or_default();
            Some(("application/json", Bytes::from(json)))
        }
        _ => None,
    }
}

/// How old figures may be that nobody tells us of.
const LOOK: Duration = Duration::from_secs(2);
