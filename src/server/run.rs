//! The listener: connections within bounds, and an orderly end.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::access::{AccessLog, Line};
use super::incoming::incoming;
use super::listen::{Connected, Listener, Stream};
use super::stall::Stall;
use super::{Handler, ResponseBody};
use crate::error::Result;

/// What clients may use up.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at one time; more wait to be accepted.
    pub connections: usize,
    /// How long a connection may take to send a request's head, or be idle between requests.
    /// Longer than the 30 s that containerd keeps an idle one, so that it is the one to close it.
    pub head: Duration,
    /// How long a client may take nothing of its answer.
    pub stalled: Duration,
    /// How long requests may go on after the stop signal.
    pub drain: Duration,
    /// Bytes of answers that may wait to be sent on one connection, beside the piece that is being sent;
    /// and of a request's head.
    pub buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            head: Duration::from_secs(60),
            stalled: Duration::from_secs(120),
            // Kubernetes kills after 30 s.
            drain: Duration::from_secs(25),
            buffer: 400 << 10,
        }
    }
}

/// Who sent a request, where that has an address: in its extensions.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub Option<SocketAddr>);

/// Answers what comes in at `listener` by `handler`, until `shutdown` is ready; then takes no new
/// connections, ends idle ones, and lets requests end for a while.
///
/// # Errors
/// None so far: what goes wrong with a connection ends that connection.
pub async fn run<H: Handler>(
    listener: impl Into<Listener>,
    handler: H,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let (listener, handler) = (listener.into(), Arc::new(handler));
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            // Reaped, so that the set doesn't grow.
            Some(_) = connections.join_next() => {}
            (stream, peer, place) = accept(&listener, &room) => {
                let connection = connection(stream.greet(listener.acceptor()), (peer, listener.log()), handler.clone(), &limits, graceful.watcher());
                connections.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
        }
    }
    drop(listener);
    if timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("{} connections were cut, still busy after {} s", connections.len(), limits.drain.as_secs());
    }
    Ok(())
}

/// The next connection, when there is room for one.
async fn accept(
    listener: &Listener,
    room: &Arc<Semaphore>,
) -> (Connected, Option<SocketAddr>, Option<OwnedSemaphorePermit>) {
    // It's never closed.
    let place = room.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, place),
            // Out of file descriptors, most likely: it passes when a connection ends.
            Err(error) => {
                tracing::error!("cannot accept a connection: {error}");
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

fn connection<H: Handler, G: Future<Output = io::Result<Stream>> + Send>(
    greeting: G,
    (peer, log): (Option<SocketAddr>, Option<AccessLog>),
    handler: Arc<H>,
    limits: &Limits,
    graceful: Watcher,
) -> impl Future<Output = ()> + Send + use<H, G> {
    // Clients of registries speak HTTP/1.1 only. Looking whether it's HTTP/2 would
    // wait for the first bytes without a limit, before hyper's own limit on a request's head.
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(limits.buffer);
    let (head, stalled) = (limits.head, limits.stalled);
    async move {
        let name = || peer.map_or_else(|| "a local client".to_owned(), |peer| peer.to_string());
        let stream = match timeout(head, greeting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!("{}: no TLS: {error}", name()),
            Err(_) => return tracing::debug!("{}: no TLS within {} s", name(), head.as_secs()),
        };
        let pipe = stream.pipe();
        let service = service_fn(move |mut request: Request<Incoming>| {
            let (handler, log) = (handler.clone(), log.clone());
            request.extensions_mut().insert(Peer(peer));
            if let Some(pipe) = &pipe {
                request.extensions_mut().insert(pipe.clone());
            }
            async move { Ok::<_, Infallible>(answer(&*handler, request, log).await) }
        });
        let io = TokioIo::new(Stall::new(stream, stalled));
        let served = graceful.watch(builder.serve_connection(io, service).into_owned());
        if let Err(error) = served.await {
            // A client that hangs up in the middle is nothing unusual.
            tracing::debug!("{}: {error}", name());
        }
    }
}

async fn answer<H: Handler>(handler: &H, request: Request<Incoming>, log: Option<AccessLog>) -> Response<ResponseBody> {
    let (head, body) = request.into_parts();
    let line = Line::new(&head, log);
    line.follow(handler.handle(Request::from_parts(head, incoming(body))).await)
}
