//! Serving: from the arguments to the listener.

use std::future::Future;
use std::time::Duration;

use tokio::net::TcpListener;

use super::Args;
use crate::cli::global::Global;
use crate::descriptor::Digest;
use crate::error::{Error, Result};
use crate::proxy::{Origins, Proxy};
use crate::reference::Repository;
use crate::registry::{Registries, Repo};
use crate::server::{self, Limits, Server};

/// The registry client as the proxy's upstreams.
struct Upstreams(Registries);

impl Origins for Upstreams {
    type Source = Repo;

    fn source(&self, repository: &Repository) -> Result<Repo> {
        self.0.repository(repository)
    }

    async fn size_of(&self, source: &Repo, digest: &Digest) -> Result<Option<u64>> {
        source.size_of(digest).await
    }
}

/// Serves until `shutdown` is ready.
///
/// # Errors
/// If an upstream makes no sense, the cache can't be used, or the address can't be bound.
pub(in crate::cli) async fn run(args: Args, global: &Global, shutdown: impl Future<Output = ()>) -> Result<()> {
    let registries = global.registries_with(|options| {
        // What may be tried again, and waited for, is decided by the proxy: within its clients' patience.
        options.retries = 0;
        options.patience = Duration::ZERO;
        options.concurrency = 64;
        options.idle = options.idle.min(Duration::from_secs(30));
    })?;
    let listener = super::super::serve::bind(&args.listen).await?;
    let address = listener.local_addr().map_err(|error| Error::io("listen", &error))?;
    let settings = args.settings()?;
    let mut ops = args.ops.open(&registries).await?;
    let write_back = args.write_back.open(&settings, global, ops.registry())?;
    let queue = write_back.as_ref().map(|write_back| write_back.queue.clone());
    let proxy = Proxy::open(settings, Upstreams(registries), ops.observer(queue)).await?;
    ops.watch(&proxy);
    super::announce(&args, &proxy, address);
    tokio::select! {
        ended = serve(listener, proxy, shutdown) => ended,
        ended = ops.serve() => ended,
        Some(()) = async { Some(write_back.as_ref()?.run().await) } => Ok(()),
    }
}

async fn serve<O: Origins>(listener: TcpListener, proxy: Proxy<O>, shutdown: impl Future<Output = ()>) -> Result<()> {
    // Nodes may pull many images each, by several connections.
    let limits = Limits { connections: 4096, buffer: 64 << 10, ..Limits::default() };
    server::run(listener, Server::new(proxy), limits, shutdown).await
}
