//! Resolves names to addresses.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

type Addresses = dyn Fn(&str) -> Vec<IpAddr> + Send + Sync;

/// Resolves names. The default uses the system's resolver.
#[derive(Clone, Default)]
pub struct Resolver(Option<Arc<Addresses>>);

impl Resolver {
    /// A resolver that uses this function: for tests, and for programs with a resolver of their own.
    pub fn new(addresses: impl Fn(&str) -> Vec<IpAddr> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(addresses)))
    }

    /// The addresses of a host, with this port.
    ///
    /// # Errors
    /// That of the system's resolver; [`io::ErrorKind::NotFound`] if the function knows no address.
    pub(super) async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let Some(addresses) = &self.0 else { return Ok(tokio::net::lookup_host((host, port)).await?.collect()) };
        let found: Vec<_> = addresses(host).into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        if found.is_empty() { Err(io::Error::new(io::ErrorKind::NotFound, "the name is unknown")) } else { Ok(found) }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Resolver(function)" } else { "Resolver(system)" })
    }
}
