//! Servers on a thread and a runtime of their own, stopped on Drop.

use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;

use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// A future that runs until this is dropped, together with all that it spawned.
#[derive(Debug)]
pub struct Background {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    pub fn spawn<F: Future<Output = ()>>(make: impl FnOnce() -> F + Send + 'static) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = async { make().await } => {}
                }
            });
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("a background server panicked");
        }
    }
}

/// A listener on a free loopback port, bound before anyone is told of it.
pub fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a non-blocking listener");
    let addr = listener.local_addr().expect("an address");
    (listener, addr)
}

/// Serves each connection to a free loopback port, until what this returns is dropped. An error ends its connection.
pub fn serve_connections<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> (SocketAddr, Background)
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let (listener, addr) = listen();
    let background = Background::spawn(move || async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let mut connections = JoinSet::new();
        loop {
            if let Ok((client, _)) = listener.accept().await {
                connections.spawn(serve(client));
            }
            while connections.try_join_next().is_some() {}
        }
    });
    (addr, background)
}
