//! Connections to registries: proxies, certificates, TCP and TLS.
//!
//! ```text
//!  HttpClient ── Connector ─┬─ proxies, no_proxy ── which proxy, if any
//!                           ├─ tunnel, socks ────── through the proxy
//!                           ├─ dial ─────────────── TCP, at addresses that the address rule allows
//!                           ├─ address_pin ──────── at the same address for one image's push
//!                           └─ trust, certs_d, verifier ── TLS, with errors by tls_error
//! ```
//!
//! An HTTP library does most of this too. There are three reasons for code of our own: an error names the faulty part
//! (the proxy, the certificate or the registry); a client certificate goes to one registry only; and the addresses of
//! names that a registry sends us to are checked, while those of a configured proxy are not.

mod address_pin;
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

/// The first error of type `T` in a chain of sources. [`std::io::Error`] hides its inner error from
/// [`StdError::source`], so that one is opened.
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
