//! Serving: from the arguments to the listeners.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use tokio::sync::watch;

use super::config::ProxyConfig;
use super::listen::{self, OpenListener};
use super::origins::RegistryOrigins;
use super::reload::{ConfigWatcher, IgnoredHangups};
use super::{Args, announce, rlimit};
use crate::body::Body;
use crate::cli::global::Global;
use crate::error::{Result, Side};
use crate::ops::Health;
use crate::pool::run_blocking;
use crate::proxy::Proxy;
use crate::proxy::writeback::{self, Queue};
use crate::server::{self, AccessControl, AccessLog, Guarded, Handler, ResponseBody, Server};

/// Serves until `shutdown` is ready.
///
/// # Errors
/// If the configuration or an upstream makes no sense, the cache can't be used, or an address can't be bound.
pub(in crate::cli) async fn run(args: Args, global: &Global, shutdown: impl Future<Output = ()>) -> Result<()> {
    // What ends a proxy is never its upstreams.
    start(args, global, shutdown).await.map_err(|error| error.on(Side::Local))
}

async fn start(args: Args, global: &Global, shutdown: impl Future<Output = ()>) -> Result<()> {
    let proxy_config = args.plan()?;
    rlimit::raise();
    let upstreams = RegistryOrigins::new(global, &proxy_config)?;
    let (mut listeners, access) = (Vec::new(), AccessControl::new()?);
    for config in &proxy_config.listen {
        listeners.push(listen::open(config, access.beside()).await?);
    }
    let mut ops = args.ops.open(proxy_config.listen_admin.as_ref(), &upstreams).await?;
    let queue = Queue::open(&proxy_config.settings.cache.dir, ops.registry());
    let proxy = Proxy::open(proxy_config.settings.clone(), upstreams, ops.observer(queue.clone())).await;
    let proxy = proxy.map_err(|error| error.hint("the cache must be a directory that this user can write to"))?;
    ops.watch(&proxy);
    let handles = listeners.iter().map(|listener| listener.handle.clone()).collect();
    // Data is on stdout; what the program says for itself is on stderr: each can be had without the other.
    let log = AccessLog::new(std::io::stdout(), proxy_config.access_log.form())?;
    let watch = match args.config {
        Some(path) => ReloadTask::File(Box::new(ConfigWatcher::new(path, proxy_config.clone(), handles, log.clone())?)),
        None => ReloadTask::Nothing(IgnoredHangups::new()?),
    };
    announce(&proxy_config, &listeners, &proxy);
    let server = Arc::new(Server::new(proxy));
    let watching = async {
        match watch {
            ReloadTask::File(watch) => watch.run(server.backend(), global).await,
            ReloadTask::Nothing(hangups) => hangups.run().await,
        }
    };
    let ended = tokio::select! {
        done = serve(listeners, &server, &proxy_config, &log, stop_after_delay(shutdown, ops.health(), proxy_config.shutdown_delay)) => done,
        () = watching => Ok(()),
        ended = ops.serve() => ended,
        () = writeback::run(&queue, server.backend()) => Ok(()),
    };
    let _ = run_blocking(move || {
        log.flush(Duration::from_secs(1));
        Ok(())
    })
    .await;
    ended
}

/// What is read again.
enum ReloadTask {
    File(Box<ConfigWatcher>),
    Nothing(IgnoredHangups),
}

/// Has each answer counted, also those that never came as far as to the proxy.
struct CountedHandler<H>(H, Arc<Server<Proxy<RegistryOrigins>>>);

impl<H: Handler> Handler for CountedHandler<H> {
    async fn handle(&self, request: Request<Body>) -> Response<ResponseBody> {
        let response = self.0.handle(request).await;
        self.1.backend().report_status(response.status());
        response
    }
}

/// Ready when no more connections are to be accepted.
///
/// Whoever sends connections here, such as kube-proxy, hears later than the proxy that it stops (Kubernetes, "Pod
/// Lifecycle", "Termination of Pods"): what comes in the meantime is still answered.
async fn stop_after_delay(shutdown: impl Future<Output = ()>, health: Health, delay: Duration) {
    shutdown.await;
    health.ends();
    tokio::time::sleep(delay).await;
}

/// At all of them, until `shutdown`; each then ends in its own time.
async fn serve(
    listeners: Vec<OpenListener>,
    server: &Arc<Server<Proxy<RegistryOrigins>>>,
    proxy_config: &ProxyConfig,
    log: &AccessLog,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let (stop, stopped) = watch::channel(());
    let runs = listeners.into_iter().map(|open| {
        let guarded = Guarded::new(server.clone(), open.handle.access());
        let (handler, limits) = (CountedHandler(guarded, server.clone()), proxy_config.limits.clone());
        let (mut stopped, listener) = (stopped.clone(), open.listener.logged(log.clone()));
        async move {
            let _socket = open.socket;
            // It's never sent: it ends.
            server::run(listener, handler, limits, async move { while stopped.changed().await.is_ok() {} }).await
        }
    });
    let stopping = async {
        shutdown.await;
        drop(stop);
    };
    let (done, ()) = tokio::join!(futures_util::future::join_all(runs), stopping);
    done.into_iter().collect()
}
