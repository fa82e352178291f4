//! Listeners: TCP, TLS over TCP, or a Unix socket.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use super::access_log::AccessLog;
use super::sendfile::{FilePipe, PipedStream};

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Socket,
    tls: Option<TlsConfig>,
    log: Option<AccessLog>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The TLS configuration of a listener. Clones share it. A change applies to new connections.
#[derive(Clone, Debug)]
pub(crate) struct TlsConfig(Arc<RwLock<Arc<ServerConfig>>>);

/// An accepted connection, before the TLS handshake.
pub(super) enum Connected {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// An established connection.
pub(super) enum Stream {
    Tcp(PipedStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Listener {
    /// A listener with TLS over TCP.
    pub(crate) fn tls(listener: TcpListener, tls: TlsConfig) -> Self {
        Self { socket: Socket::Tcp(listener), tls: Some(tls), log: None }
    }

    /// Logs each request of this listener to `log`.
    #[must_use]
    pub(crate) fn logged(self, log: AccessLog) -> Self {
        Self { log: Some(log), ..self }
    }

    pub(super) fn log(&self) -> Option<AccessLog> {
        self.log.clone()
    }

    /// Accepts the next connection. Returns it before the TLS handshake, with the client's address.
    pub(super) async fn accept(&self) -> io::Result<(Connected, Option<SocketAddr>)> {
        match &self.socket {
            Socket::Tcp(listener) => listener.accept().await.map(|(stream, peer)| (Connected::Tcp(stream), Some(peer))),
            Socket::Unix(listener) => listener.accept().await.map(|(stream, _)| (Connected::Unix(stream), None)),
        }
    }

    /// The TLS acceptor for the next connection; `None` without TLS.
    pub(super) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.tls.as_ref().map(|tls| tls.0.read().unwrap_or_else(PoisonError::into_inner).clone().into())
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self { socket: Socket::Tcp(listener), tls: None, log: None }
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self { socket: Socket::Unix(listener), tls: None, log: None }
    }
}

impl TlsConfig {
    pub(crate) fn new(config: ServerConfig) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(config))))
    }

    /// Replaces the configuration for new connections.
    pub(crate) fn set(&self, config: ServerConfig) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }
}

impl Connected {
    /// Performs the TLS handshake, if there is an acceptor.
    pub(super) async fn greet(self, acceptor: Option<TlsAcceptor>) -> io::Result<Stream> {
        if let Self::Tcp(stream) = &self {
            stream.set_nodelay(true)?;
        }
        Ok(match (self, acceptor) {
            (Self::Tcp(stream), Some(acceptor)) => Stream::Tls(Box::new(acceptor.accept(stream).await?)),
            (Self::Tcp(stream), None) => Stream::Tcp(PipedStream::new(stream)),
            (Self::Unix(stream), _) => Stream::Unix(stream),
        })
    }
}

impl Stream {
    /// The pipe for parts of files, if the kernel can send them on this connection.
    pub(super) fn pipe(&self) -> Option<FilePipe> {
        match self {
            Self::Tcp(stream) => stream.pipe(),
            Self::Unix(_) | Self::Tls(_) => None,
        }
    }
}

macro_rules! on_each {
    ($stream:expr, $io:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Tcp($io) => $call,
            Stream::Unix($io) => $call,
            Stream::Tls($io) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_each!(self, io => Pin::new(io).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        on_each!(self, io => Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_each!(self, io => Pin::new(io).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(io) => io.is_write_vectored(),
            Self::Unix(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_each!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
