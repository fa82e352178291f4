//! A long way: a TCP proxy that adds a round trip's time and limits the rate of each connection.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::background::{Background, listen};

/// A running proxy. Stops on Drop, and cuts what is open.
#[derive(Debug)]
pub struct SlowLink {
    addr: SocketAddr,
    background: Background,
}

#[derive(Debug, Clone, Copy)]
struct Way {
    one_way: Duration,
    /// Bytes a second of one connection, in each direction.
    rate: u64,
}

impl SlowLink {
    /// A way to `to` with this round-trip time and this many bytes a second for each connection
    /// and direction.
    pub fn start(to: SocketAddr, rtt: Duration, bytes_per_second: u64) -> Self {
        let (listener, addr) = listen();
        let way = Way { one_way: rtt / 2, rate: bytes_per_second.max(1) };
        let background = Background::spawn(move || async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let mut connections = JoinSet::new();
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    continue;
                };
                while connections.try_join_next().is_some() {}
                connections.spawn(way.relay(client, to));
            }
        });
        Self { addr, background }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Way {
    async fn relay(self, client: TcpStream, to: SocketAddr) {
        // The kernel's handshake with us took no time; a real one costs a round trip before the
        // first byte can leave.
        let open = Instant::now() + self.one_way * 2;
        let Ok(server) = TcpStream::connect(to).await else {
            return;
        };
        drop((client.set_nodelay(true), server.set_nodelay(true)));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::join!(self.carry(from_client, to_server, open), self.carry(from_server, to_client, open));
    }

    /// One direction: what is read waits on the way, as long as the way can hold it.
    async fn carry(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, open: Instant) {
        let on_the_way = self.rate as f64 * self.one_way.as_secs_f64() / CHUNK as f64;
        let (enter, mut leave) = mpsc::channel::<(Instant, Vec<u8>)>(on_the_way as usize + 4);
        let read = async move {
            let mut free_at = open;
            loop {
                let mut chunk = vec![0; CHUNK];
                let Ok(size @ 1..) = from.read(&mut chunk).await else {
                    return;
                };
                chunk.truncate(size);
                // The narrow place is at the start; an idle link saves up no rate.
                let now = Instant::now();
                free_at = free_at.max(now) + Duration::from_secs_f64(size as f64 / self.rate as f64);
                if enter.send((free_at + self.one_way, chunk)).await.is_err() {
                    return;
                }
                sleep_until(free_at.checked_sub(SLACK).unwrap_or(free_at)).await;
            }
        };
        let write = async move {
            while let Some((due, chunk)) = leave.recv().await {
                sleep_until(due).await;
                if to.write_all(&chunk).await.is_err() {
                    return;
                }
            }
            drop(to.shutdown().await);
        };
        tokio::join!(read, write);
    }
}

/// Small enough for an even flow at a megabyte a second.
const CHUNK: usize = 16 << 10;

/// tokio's timer counts milliseconds, so the reader may run ahead by a few.
const SLACK: Duration = Duration::from_millis(5);
