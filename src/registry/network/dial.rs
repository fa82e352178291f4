//! TCP connections to one of several addresses.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// Connects to the first of the addresses that answers.
///
/// The addresses of the family that the resolver names first are tried in turn. After [`HEAD_START`], or once they have
/// failed, those of the other family are tried too (RFC 8305, section 5: "Happy Eyeballs").
///
/// # Errors
/// That of the last address of the first family; [`io::ErrorKind::AddrNotAvailable`] if there is none.
pub(super) async fn dial(addresses: &[SocketAddr], limit: Duration) -> io::Result<TcpStream> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (preferred, others): (Vec<_>, Vec<_>) =
        addresses.iter().copied().partition(|address| address.is_ipv6() == first_is_v6);
    if others.is_empty() {
        return in_turn(&preferred, limit).await;
    }
    race(in_turn(&preferred, limit), in_turn(&others, limit)).await
}

/// The result of the first of two futures that succeeds; `others` starts [`HEAD_START`] later, or when `preferred`
/// fails. If both fail, the error is that of `preferred`.
async fn race<T>(
    preferred: impl Future<Output = io::Result<T>>,
    others: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    tokio::pin!(preferred, others);
    tokio::select! {
        biased;
        first = &mut preferred => return match first {
            Ok(stream) => Ok(stream),
            Err(error) => others.await.map_err(|_| error),
        },
        () = tokio::time::sleep(HEAD_START) => {}
    }
    tokio::select! {
        biased;
        first = &mut preferred => match first {
            Ok(stream) => Ok(stream),
            Err(error) => others.await.map_err(|_| error),
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    async fn after<T>(wait: Duration, result: Result<T, &str>) -> io::Result<T> {
        tokio::time::sleep(wait).await;
        result.map_err(io::Error::other)
    }

    /// Runs a race of two attempts, each with its time in milliseconds: the result, and the time that it took.
    async fn raced(first: (u64, Result<u8, &str>), second: (u64, Result<u8, &str>)) -> (Result<u8, String>, u128) {
        let began = Instant::now();
        let of = |(wait, result)| after(Duration::from_millis(wait), result);
        let result = race(of(first), of(second)).await;
        (result.map_err(|error| error.to_string()), began.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn the_other_family_is_tried_at_once_when_the_first_one_fails() {
        assert_eq!(raced((0, Err("v6")), (10, Ok(4))).await, (Ok(4), 10));
        assert_eq!(raced((100, Err("v6")), (10, Ok(4))).await, (Ok(4), 110));
        assert_eq!(raced((10, Ok(6)), (0, Ok(4))).await, (Ok(6), 10));
        assert_eq!(raced((9000, Ok(6)), (10, Ok(4))).await, (Ok(4), 260));
        assert_eq!(raced((300, Ok(6)), (0, Err("v4"))).await, (Ok(6), 300));
    }

    #[tokio::test(start_paused = true)]
    async fn the_error_is_that_of_the_first_family() {
        for first in [0, 400] {
            assert_eq!(raced((first, Err("v6")), (10, Err("v4"))).await.0, Err("v6".to_owned()));
        }
    }
}
