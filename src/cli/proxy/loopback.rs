//! Loopback addresses, which only this machine can connect to.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use tokio::net::TcpListener;

use crate::cli::serve::bind;
use crate::error::{Error, Kind, Result};

/// A loopback address with a port, as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loopback(String);

impl Loopback {
    /// Binds the address.
    ///
    /// # Errors
    /// If it cannot be bound, or `localhost` does not resolve to a loopback address.
    pub(super) async fn bind(&self) -> Result<TcpListener> {
        let listener = bind(&self.0).await?;
        let bound = listener.local_addr().map_err(|error| Error::io("listen", &error))?;
        if is_loopback_only(bound.ip()) {
            Ok(listener)
        } else {
            Err(not_loopback(&format!("{} is {bound}, which", self.0)))
        }
    }
}

impl FromStr for Loopback {
    type Err = Error;

    /// `127.0.0.1:9091`, `[::1]:9091`, `localhost:9091`. Other names are refused, because they may resolve to other addresses later.
    fn from_str(text: &str) -> Result<Self> {
        let named = |(host, port): (&str, &str)| host.eq_ignore_ascii_case("localhost") && port.parse::<u16>().is_ok();
        match text.parse::<SocketAddr>() {
            Ok(address) if !is_loopback_only(address.ip()) => Err(not_loopback(text)),
            Err(_) if !text.rsplit_once(':').is_some_and(named) => {
                Err(Error::new(Kind::Usage, format!("{text:?} is not a loopback address with a port"))
                    .hint(LOOPBACK_HINT))
            }
            _ => Ok(Self(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Loopback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_loopback_only(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn not_loopback(what: &str) -> Error {
    let why = "is reachable from other machines, and whoever can reach it can empty the cache";
    Error::new(Kind::Usage, format!("{what} {why}")).hint(LOOPBACK_HINT)
}

const LOOPBACK_HINT: &str = "the admin API is for this machine only: use 127.0.0.1:9091, [::1]:9091 or localhost:9091; \
    metrics and status for other machines are at --listen-ops";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_nothing_else() {
        for good in ["127.0.0.1:9091", "127.9.9.9:0", "[::1]:9091", "localhost:9091", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(good.parse::<Loopback>().expect(good).to_string(), good);
        }
        for wrong in ["0.0.0.0:9091", "[::]:9091", "10.0.0.1:9091", "[::ffff:10.0.0.1]:1"] {
            let error = wrong.parse::<Loopback>().expect_err(wrong);
            assert!(error.to_string().starts_with(&format!("{wrong} is reachable from other machines")), "{error}");
            assert!(error.hint_text().is_some_and(|hint| hint.contains("127.0.0.1:9091")), "{wrong}");
        }
        for wrong in
            ["", "127.0.0.1", "9091", ":9091", "localhost", "localhost:http", "node.example:9091", "127.1:9091"]
        {
            let error = wrong.parse::<Loopback>().expect_err(wrong);
            assert!(error.to_string().contains("is not a loopback address with a port"), "{error}");
        }
    }
}
