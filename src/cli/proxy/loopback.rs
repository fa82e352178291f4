//! Addresses that only this machine can connect to.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use tokio::net::TcpListener;

use crate::cli::serve::bind;
use crate::error::{Error, Kind, Result};

/// An address and port that only this machine can connect to, as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loopback(String);

impl Loopback {
    /// Binds it.
    ///
    /// # Errors
    /// If it can't be bound; or if `localhost` isn't this machine here.
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

    /// `127.0.0.1:9091`, `[::1]:9091`, `localhost:9091`. No other name: who knows where it leads to tomorrow.
    fn from_str(text: &str) -> Result<Self> {
        let named = |(host, port): (&str, &str)| host.eq_ignore_ascii_case("localhost") && port.parse::<u16>().is_ok();
        match text.parse::<SocketAddr>() {
            Ok(address) if !is_loopback_only(address.ip()) => Err(not_loopback(text)),
            Err(_) if !text.rsplit_once(':').is_some_and(named) => {
                Err(Error::new(Kind::Usage, format!("{text:?} is no address of loopback with a port"))
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
    let why = "can be reached from elsewhere, and who reaches it may empty the cache";
    Error::new(Kind::Usage, format!("{what} {why}")).hint(LOOPBACK_HINT)
}

const LOOPBACK_HINT: &str = "orders are taken from this machine alone: write 127.0.0.1:9091, [::1]:9091 or localhost:9091; \
    what others may read is at --listen-ops";

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
            assert!(error.to_string().starts_with(&format!("{wrong} can be reached from elsewhere")), "{error}");
            assert!(error.hint_text().is_some_and(|hint| hint.contains("127.0.0.1:9091")), "{wrong}");
        }
        for wrong in
            ["", "127.0.0.1", "9091", ":9091", "localhost", "localhost:http", "node.example:9091", "127.1:9091"]
        {
            let error = wrong.parse::<Loopback>().expect_err(wrong);
            assert!(error.to_string().contains("is no address of loopback with a port"), "{error}");
        }
    }
}
