//! An HTTP proxy that tunnels every CONNECT to one address: lets a program that knows no
//! `--resolve`, such as skopeo, meet a look-alike by its real name.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::background::{Background, listen};

/// A running proxy. Stops on Drop.
#[derive(Debug)]
pub struct ConnectProxy {
    addr: SocketAddr,
    background: Background,
}

impl ConnectProxy {
    /// Whatever host is asked for, it is at `to`.
    pub fn start(to: SocketAddr) -> Self {
        let (listener, addr) = listen();
        let background = Background::spawn(move || async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let mut tunnels = JoinSet::new();
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    tunnels.spawn(tunnel(client, to));
                }
            }
        });
        Self { addr, background }
    }

    /// For `HTTPS_PROXY`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

async fn tunnel(mut client: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    if !head.starts_with(b"CONNECT ") {
        return client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n").await;
    }
    let mut server = TcpStream::connect(to).await?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
