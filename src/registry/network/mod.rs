//! The way to a registry: which proxy leads there, which certificates are trusted, and the connections.
//!
//! ```text
//!  HttpClient ── Connector ─┬─ proxies, no_proxy ── which proxy, if any
//!                           ├─ tunnel, socks ────── through the proxy
//!                           ├─ dial ─────────────── TCP, at addresses that the address rule allows
//!                           └─ trust, certs_d, verifier ── TLS, with errors by tls_error
//! ```
//!
//! An HTTP library could do most of this. Ours does it here since an error must say whose fault it is (the proxy's,
//! the certificate's, the registry's), a client certificate must reach one registry only, and the addresses of names
//! that a registry sends us to are checked, while those of a proxy that the user configured are not.

mod certs_d;
mod client;
mod connector;
mod der;
mod dial;
mod no_proxy;
mod pem;
mod probe;
mod proxies;
mod socks;
mod tls_error;
mod trust;
mod tunnel;
mod verifier;

pub(super) use self::client::{HttpClient, PROBE_TIMEOUT, PeerName, Settings, library_tls};
pub(super) use self::probe::Answer as ProbeAnswer;
pub use self::proxies::Proxies;
pub use self::trust::Trust;

use std::error::Error as StdError;

/// `User-Agent`, to registries and proxies.
const AGENT: &str = concat!("transload/", env!("CARGO_PKG_VERSION"));

/// The first error of type `T` among an error and its sources. An [`std::io::Error`] hides the error that it was made
/// of from [`StdError::source`], so it is opened.
pub(super) fn find_source<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}
