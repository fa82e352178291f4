//! Runs a listener: limits of connections, and a graceful shutdown.

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
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::access_log::{AccessLog, Line};
use super::connections::{Activity, Busy, ConnectionSlot, Connections};
use super::head_filter::HeadFilter;
use super::listen::{Connected, Listener, Stream};
use super::request_body::request_body;
use super::write_timeout::WriteTimeout;
use super::{Handler, ResponseBody};
use crate::error::Result;

/// The limits of a listener.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Connections at one time. A further one replaces the connection that has been idle longest. If all are busy, it
    /// waits.
    pub(crate) connections: usize,
    /// Connections of one client address at one time; `None` for no limit. A further one replaces an idle connection of
    /// that address. If all are busy, it is closed.
    pub(crate) per_address: Option<usize>,
    /// How long a connection may be open before the first byte of a request arrives. Not longer than `head`.
    pub(crate) first_byte: Duration,
    /// How long a connection may take to send a request's head, or be idle between requests.
    /// The default is longer than the 30 s for which containerd keeps an idle connection, so that containerd closes it first.
    pub(crate) head: Duration,
    /// How long a client may accept no bytes of its response.
    pub(crate) stalled: Duration,
    /// How long running requests may continue after the stop signal.
    pub(crate) drain: Duration,
    /// Bytes of responses that may be queued on one connection, besides the piece that is being sent. Also the limit of a
    /// request's head.
    pub(crate) buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            per_address: None,
            first_byte: Duration::from_secs(60),
            head: Duration::from_secs(60),
            stalled: Duration::from_secs(120),
            // Kubernetes kills after 30 s.
            drain: Duration::from_secs(25),
            buffer: 400 << 10,
        }
    }
}

/// The client's address, in the extensions of a request; `None` on a Unix socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) Option<SocketAddr>);

/// Serves the connections of `listener` by `handler` until `shutdown` is ready. Then it accepts no new connections, closes
/// idle ones, and waits for running requests up to [`Limits::drain`].
///
/// # Errors
/// None at present: an error of a connection ends that connection only.
pub(crate) async fn run<H: Handler>(
    listener: impl Into<Listener>,
    handler: H,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let (listener, handler) = (listener.into(), Arc::new(handler));
    let graceful = GracefulShutdown::new();
    let room = Connections::new(limits.connections, limits.per_address);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    // Accepted, but without a slot yet.
    let mut waiting: Option<(Connected, Option<SocketAddr>)> = None;
    loop {
        let peer = waiting.as_ref().and_then(|(_, peer)| *peer);
        tokio::select! {
            () = &mut shutdown => break,
            // Finished tasks are removed, so that the set does not grow.
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener, &room), if waiting.is_none() => waiting = Some(accepted),
            slot = room.admit(peer), if waiting.is_some() => {
                let (Some((stream, peer)), Some(slot)) = (waiting.take(), slot) else {
                    tracing::debug!("{}: too many connections of this address", peer_name(peer));
                    continue;
                };
                let greeting = stream.greet(listener.acceptor());
                let client = Client { peer, log: listener.log(), activity: slot.activity() };
                let connection = connection(greeting, client, handler.clone(), &limits, graceful.watcher());
                connections.spawn(until_closed(slot, limits.first_byte.min(limits.head), peer, connection));
            }
        }
    }
    drop((listener, waiting));
    if timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            "closed {} connections that were still busy after {} s",
            connections.len(),
            limits.drain.as_secs()
        );
    }
    Ok(())
}

/// The next connection.
async fn accept(listener: &Listener, room: &Connections) -> (Connected, Option<SocketAddr>) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // Probably out of file descriptors, which passes when a connection ends.
            Err(error) => {
                room.close_idle();
                tracing::error!("cannot accept a connection: {error}");
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Runs a connection until it ends, its slot is needed for another client, or no request has started in time.
async fn until_closed(
    slot: ConnectionSlot,
    first_byte: Duration,
    peer: Option<SocketAddr>,
    connection: impl Future<Output = ()>,
) {
    let activity = slot.activity();
    let silent = async {
        sleep(first_byte).await;
        if !activity.is_new() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        () = activity.closed() => tracing::debug!("{}: closed while idle, for another client", peer_name(peer)),
        () = connection => {}
        () = silent => tracing::debug!("{}: no request within {} s", peer_name(peer), first_byte.as_secs()),
    }
}

/// The other end of a connection.
struct Client {
    peer: Option<SocketAddr>,
    log: Option<AccessLog>,
    activity: Activity,
}

fn peer_name(peer: Option<SocketAddr>) -> String {
    peer.map_or_else(|| "a local client".to_owned(), |peer| peer.to_string())
}

fn connection<H: Handler, G: Future<Output = io::Result<Stream>> + Send>(
    greeting: G,
    Client { peer, log, activity }: Client,
    handler: Arc<H>,
    limits: &Limits,
    graceful: Watcher,
) -> impl Future<Output = ()> + Send + use<H, G> {
    // HTTP/1.1 only, which all registry clients use. Detection of HTTP/2 would wait for the first bytes without a time
    // limit, before hyper's own limit on a request's head.
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(limits.buffer);
    let (handshake, stalled, buffer) = (limits.head.min(HANDSHAKE_TIMEOUT), limits.stalled, limits.buffer);
    async move {
        let name = || peer_name(peer);
        let stream = match timeout(handshake, greeting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!("{}: TLS handshake failed: {error}", name()),
            Err(_) => return tracing::debug!("{}: no TLS handshake within {} s", name(), handshake.as_secs()),
        };
        let pipe = stream.pipe();
        let watched = HeadFilter::new(WriteTimeout::new(stream, stalled), activity.clone(), buffer);
        let service = service_fn(move |mut request: Request<Incoming>| {
            let (handler, log, busy) = (handler.clone(), log.clone(), activity.busy());
            request.extensions_mut().insert(Peer(peer));
            if let Some(pipe) = &pipe {
                request.extensions_mut().insert(pipe.clone());
            }
            async move { Ok::<_, Infallible>(answer(&*handler, request, log, busy).await) }
        });
        let served = graceful.watch(builder.serve_connection(TokioIo::new(watched), service).into_owned());
        if let Err(error) = served.await {
            // Clients often close a connection early.
            tracing::debug!("{}: {error}", name());
        }
    }
}

async fn answer<H: Handler>(
    handler: &H,
    request: Request<Incoming>,
    log: Option<AccessLog>,
    busy: Busy,
) -> Response<ResponseBody> {
    let (head, body) = request.into_parts();
    let line = Line::new(&head, log, Some(busy));
    line.follow(handler.handle(Request::from_parts(head, request_body(body))).await)
}

/// How long the TLS handshake may take, in addition to [`Limits::head`]: it needs two round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
