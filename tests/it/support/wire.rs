//! A TCP connection that knows what it has written, and can end with a reset.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// A handle on a [`Wire`] for whoever sees only the HTTP above it.
#[derive(Debug)]
pub struct Control {
    reset: AtomicBool,
    unwritten: watch::Sender<bool>,
}

impl Control {
    /// Of no connection: there is never anything to wait for.
    pub fn idle() -> Arc<Self> {
        Arc::new(Self { reset: AtomicBool::new(false), unwritten: watch::Sender::new(false) })
    }

    /// Lets the connection end with RST instead of FIN.
    pub fn reset_on_close(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    /// Waits until everything above was handed to the kernel. What is still on its way to a task
    /// counts for nothing: this relies on the one thread that all of a front runs on.
    pub async fn written(&self) {
        drop(self.unwritten.subscribe().wait_for(|unwritten| !unwritten).await);
    }
}

/// The connection.
#[derive(Debug)]
pub struct Wire {
    tcp: TcpStream,
    control: Arc<Control>,
}

impl Wire {
    pub fn new(tcp: TcpStream) -> (Self, Arc<Control>) {
        drop(tcp.set_nodelay(true));
        let control = Control::idle();
        (Self { tcp, control: Arc::clone(&control) }, control)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.control.reset.load(Ordering::Relaxed) {
            drop(self.tcp.set_zero_linger());
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.control.unwritten.send_replace(true);
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.tcp).poll_flush(context);
        if flushed.is_ready() {
            self.control.unwritten.send_replace(false);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
