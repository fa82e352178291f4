//! Serving: from the arguments to the listeners.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::{Request, Response};
use tokio::sync::watch;

use super::listen::{self, Open};
use super::plan::Plan;
use super::reload::{Hangups, Watch};
use super::{Args, announce, limits, writeback};
use crate::cli::global::Global;
use crate::content::Body;
use crate::credentials::Credentials;
use crate::descriptor::Digest;
use crate::error::{Result, Side};
use crate::ops::Health;
use crate::pool::blocking;
use crate::proxy::writeback::Queue;
use crate::proxy::{Origins, Proxy};
use crate::reference::Repository;
use crate::registry::{MinRate, Options, Registries, Repo};
use crate::server::{self, Access, AccessLog, Guarded, Handler, ResponseBody, Server};

/// The registry client as the proxy's upstreams. Clones share it.
#[derive(Clone)]
pub(super) struct Upstreams(Arc<RwLock<Known>>);

/// The client for all upstreams, and those of upstreams with credentials of their own.
pub(super) struct Known {
    common: Registries,
    own: BTreeMap<String, Registries>,
    /// For writing back: connections and limits of their own, since pulls come first.
    writing: BTreeMap<String, Registries>,
}

impl Upstreams {
    /// The clients for a configuration. Credentials are read again.
    pub(super) fn registries(global: &Global, plan: &Plan) -> Result<Known> {
        let mut own = BTreeMap::new();
        for (name, file) in &plan.auth {
            own.insert(name.clone(), Registries::new(adapt(options(global, Some(file))?, plan)));
        }
        let mut writing = BTreeMap::new();
        for spec in plan.settings.upstreams.iter().filter(|spec| spec.write_back) {
            let file = plan.write_auth.get(&spec.name).or_else(|| plan.auth.get(&spec.name));
            writing.insert(spec.name.clone(), Registries::new(options(global, file)?));
        }
        let common = Registries::new(adapt(global.options()?, plan));
        Ok(Known { common, own, writing })
    }

    /// All clients that there are now.
    pub(super) fn all(&self) -> Vec<Registries> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        std::iter::once(&known.common).chain(known.own.values()).cloned().collect()
    }

    /// A repository of `upstream`'s durable tier, to be written.
    pub(super) fn to_write(&self, upstream: &str, repository: &Repository) -> Result<Repo> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.writing.get(upstream).unwrap_or(&known.common).repository(repository)
    }

    /// From now on these.
    pub(super) fn set(&self, known: Known) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = known;
    }
}

/// How registries are asked, with the credentials of `file` first.
fn options(global: &Global, file: Option<&PathBuf>) -> Result<Options> {
    let mut settings = global.settings()?;
    if let Some(file) = file {
        settings.auth_files.insert(0, file.clone());
    }
    Ok(Options { credentials: Credentials::load(&settings)?, ..global.options()? })
}

/// What may be tried again, and waited for, is decided by the proxy: within its clients' patience.
fn adapt(given: Options, plan: &Plan) -> Options {
    let min_rate = MinRate {
        bytes: plan.min_rate.unwrap_or(given.min_rate.bytes),
        window: plan.min_rate_window.unwrap_or(given.min_rate.window),
    };
    Options {
        min_rate,
        share_list_room: true,
        // Less than the time that a client waits, so that it is over for a client that does.
        longest_pause: Duration::from_secs(5).min(plan.settings.upstream_timeout / 5),
        retries: 0,
        patience: Duration::ZERO,
        concurrency: 64,
        idle: given.idle.min(Duration::from_secs(30)),
        ..given
    }
}

impl Origins for Upstreams {
    type Source = Repo;

    fn source(&self, upstream: &str, repository: &Repository) -> Result<Repo> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.own.get(upstream).unwrap_or(&known.common).repository(repository)
    }

    async fn size_of(&self, source: &Repo, digest: &Digest) -> Result<Option<u64>> {
        source.size_of(digest).await
    }
}

/// Serves until `shutdown` is ready.
///
/// # Errors
/// If the configuration or an upstream makes no sense, the cache can't be used, or an address can't be bound.
pub(in crate::cli) async fn run(args: Args, global: &Global, shutdown: impl Future<Output = ()>) -> Result<()> {
    // What ends a proxy is never its upstreams.
    begin(args, global, shutdown).await.map_err(|error| error.on(Side::Local))
}

async fn begin(args: Args, global: &Global, shutdown: impl Future<Output = ()>) -> Result<()> {
    let plan = args.plan()?;
    limits::raise();
    let upstreams = Upstreams(Arc::new(RwLock::new(Upstreams::registries(global, &plan)?)));
    let (mut doors, access) = (Vec::new(), Access::new()?);
    for door in &plan.listen {
        doors.push(listen::open(door, access.beside()).await?);
    }
    let mut ops = args.ops.open(plan.listen_admin.as_ref(), &upstreams).await?;
    let queue = Queue::open(&plan.settings.cache.dir, ops.registry());
    let proxy = Proxy::open(plan.settings.clone(), upstreams, ops.observer(queue.clone())).await;
    let proxy = proxy.map_err(|error| error.hint("the cache must be a directory that this user can write to"))?;
    ops.watch(&proxy);
    let handles = doors.iter().map(|door| door.handle.clone()).collect();
    // Data is on stdout; what the program says for itself is on stderr: each can be had without the other.
    let log = AccessLog::new(std::io::stdout(), plan.access_log.form())?;
    let watch = match args.config {
        Some(path) => Watching::File(Box::new(Watch::new(path, plan.clone(), handles, log.clone())?)),
        None => Watching::Nothing(Hangups::new()?),
    };
    announce(&plan, &doors, &proxy);
    let server = Arc::new(Server::new(proxy));
    let watching = async {
        match watch {
            Watching::File(watch) => watch.run(server.backend(), global).await,
            Watching::Nothing(hangups) => hangups.run().await,
        }
    };
    let ended = tokio::select! {
        done = serve(doors, &server, &plan, &log, stopping(shutdown, ops.health(), plan.shutdown_delay)) => done,
        () = watching => Ok(()),
        ended = ops.serve() => ended,
        () = writeback::run(&queue, server.backend()) => Ok(()),
    };
    let _ = blocking(move || {
        log.flush(Duration::from_secs(1));
        Ok(())
    })
    .await;
    ended
}

/// What is read again.
enum Watching {
    File(Box<Watch>),
    Nothing(Hangups),
}

/// Has each answer counted, also those that never came as far as to the proxy.
struct Counted<H>(H, Arc<Server<Proxy<Upstreams>>>);

impl<H: Handler> Handler for Counted<H> {
    async fn handle(&self, request: Request<Body>) -> Response<ResponseBody> {
        let response = self.0.handle(request).await;
        self.1.backend().answered(response.status());
        response
    }
}

/// Ready when no more connections are to be accepted.
///
/// Whoever sends connections here, such as kube-proxy, hears later than the proxy that it stops (Kubernetes, "Pod
/// Lifecycle", "Termination of Pods"): what comes in the meantime is still answered.
async fn stopping(shutdown: impl Future<Output = ()>, health: Health, delay: Duration) {
    shutdown.await;
    health.ends();
    tokio::time::sleep(delay).await;
}

/// At all of them, until `shutdown`; each then ends in its own time.
async fn serve(
    doors: Vec<Open>,
    server: &Arc<Server<Proxy<Upstreams>>>,
    plan: &Plan,
    log: &AccessLog,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let (stop, stopped) = watch::channel(());
    let runs = doors.into_iter().map(|door| {
        let guarded = Guarded::new(server.clone(), door.handle.access());
        let (handler, limits) = (Counted(guarded, server.clone()), plan.limits.clone());
        let (mut stopped, listener) = (stopped.clone(), door.listener.logged(log.clone()));
        async move {
            let _socket = door.socket;
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
