//! A SOCKS 5 server (RFC 1928, RFC 1929).

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;

use super::background::{Background, serve_connections};

/// A running server. Stops on Drop.
pub struct SocksProxy {
    addr: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    background: Background,
}

struct Rules {
    hosts: HashMap<String, SocketAddr>,
    user: Option<(String, String)>,
}

impl SocksProxy {
    /// Knows that each `host:port` is at its address, and reaches nothing else. Wants the user and the password, if any.
    pub fn start(hosts: &[(&str, SocketAddr)], user: Option<(&str, &str)>) -> Self {
        let rules = Arc::new(Rules {
            hosts: hosts.iter().map(|(host, at)| ((*host).to_owned(), *at)).collect(),
            user: user.map(|(user, password)| (user.to_owned(), password.to_owned())),
        });
        let log = Arc::<Mutex<Vec<String>>>::default();
        let seen = log.clone();
        let (addr, background) = serve_connections(move |client| {
            let (rules, seen) = (rules.clone(), seen.clone());
            async move { rules.serve(client, &seen).await }
        });
        Self { addr, log, background }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What was asked for: `name HOST:PORT` or `address HOST:PORT`.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("no panic while held").clone()
    }
}

impl Rules {
    async fn serve(&self, mut client: TcpStream, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
        if client.read_u8().await? != 5 {
            return Ok(());
        }
        let count = usize::from(client.read_u8().await?);
        let methods = exactly(&mut client, count).await?;
        let method = if self.user.is_some() { 2 } else { 0 };
        if !methods.contains(&method) {
            return client.write_all(&[5, 0xff]).await;
        }
        client.write_all(&[5, method]).await?;
        if let Some((user, password)) = &self.user {
            client.read_u8().await?;
            let mut parts = Vec::new();
            for _ in 0..2 {
                let length = usize::from(client.read_u8().await?);
                parts.push(exactly(&mut client, length).await?);
            }
            let right = parts == [user.as_bytes(), password.as_bytes()];
            client.write_all(&[1, u8::from(!right)]).await?;
            if !right {
                return Ok(());
            }
        }
        exactly(&mut client, 3).await?;
        let (kind, host) = match client.read_u8().await? {
            1 => ("address", Ipv4Addr::from(client.read_u32().await?).to_string()),
            4 => ("address", format!("[{}]", Ipv6Addr::from(client.read_u128().await?))),
            _ => {
                let length = usize::from(client.read_u8().await?);
                ("name", String::from_utf8_lossy(&exactly(&mut client, length).await?).into_owned())
            }
        };
        let target = format!("{host}:{}", client.read_u16().await?);
        log.lock().expect("no panic while held").push(format!("{kind} {target}"));
        let Some(to) = self.hosts.get(&target) else {
            return client.write_all(&[5, 4, 0, 1, 0, 0, 0, 0, 0, 0]).await;
        };
        let mut server = TcpStream::connect(to).await?;
        client.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0]).await?;
        copy_bidirectional(&mut client, &mut server).await.map(drop)
    }
}

async fn exactly(client: &mut TcpStream, count: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}
