//! TCP connections to one of several addresses.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// Connects to the first of the addresses that answers.
///
/// Those of the family that the resolver names first are tried in turn. After [`HEAD_START`] those of the other family
/// are tried beside them (RFC 8305, section 5: "Happy Eyeballs").
///
/// # Errors
/// That of the last address; [`io::ErrorKind::AddrNotAvailable`] if there is none.
pub(super) async fn dial(addresses: &[SocketAddr], limit: Duration) -> io::Result<TcpStream> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (preferred, others): (Vec<_>, Vec<_>) =
        addresses.iter().copied().partition(|address| address.is_ipv6() == first_is_v6);
    if others.is_empty() {
        return in_turn(&preferred, limit).await;
    }
    let preferred = in_turn(&preferred, limit);
    let others = async {
        tokio::time::sleep(HEAD_START).await;
        in_turn(&others, limit).await
    };
    tokio::pin!(preferred, others);
    tokio::select! {
        biased;
        first = &mut preferred => match first {
            Ok(stream) => Ok(stream),
            Err(_) => others.await,
        },
        second = &mut others => match second {
            Ok(stream) => Ok(stream),
            Err(_) => preferred.await,
        },
    }
}

/// Tries one address after another. Each has an equal share of the time.
async fn in_turn(addresses: &[SocketAddr], limit: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "there is no address to connect to");
    let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    for address in addresses {
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return tuned(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {address}")),
        }
    }
    Err(last)
}

/// Small writes leave at once, and a peer that is gone is noticed.
fn tuned(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_PROBES)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(&stream, USER_TIMEOUT)?;
    Ok(stream)
}

/// RFC 8305, section 8, recommends 250 ms.
const HEAD_START: Duration = Duration::from_millis(250);
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 3;
/// How long sent bytes may stay without an acknowledgement, in milliseconds.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: u32 = 30_000;
