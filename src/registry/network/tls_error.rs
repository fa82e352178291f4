//! From an error of TLS to one that says what is wrong with which certificate, and what to do.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error as TlsError, PeerIncompatible};

use super::verifier::{ClientCertificate, UnknownAuthority};
use crate::error::{Error, Kind};

/// The other end of a TLS connection, as errors name it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer<'a> {
    /// The registry, the host of its storage, or the proxy.
    pub(super) name: &'a str,
    /// The host in the certificate's names.
    pub(super) host: &'a str,
    pub(super) client: &'a ClientCertificate,
}

fn permanent(what: String) -> Error {
    Error::new(Kind::Network, what).permanent()
}

/// The error that one of TLS stands for. Trying again helps none of them.
pub(super) fn explain(error: &TlsError, peer: Peer<'_>) -> Error {
    let name = peer.name;
    match error {
        TlsError::InvalidCertificate(wrong) => certificate(wrong, peer),
        TlsError::AlertReceived(alert) => alerted(*alert, peer),
        TlsError::InvalidMessage(_) => permanent(format!("{name} does not speak TLS, but perhaps plain HTTP: {error}"))
            .hint(format!("if it is plain http, allow that by --insecure-registry {name}")),
        TlsError::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13 | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => permanent(format!("{name} speaks no TLS 1.2 or 1.3, and older versions are not secure")).hint(UPDATE_TLS),
        other => permanent(format!("{name}: the TLS handshake failed: {other}")),
    }
}

/// The peer ended the connection with an alert (RFC 8446, section 6).
fn alerted(alert: AlertDescription, peer: Peer<'_>) -> Error {
    use AlertDescription as A;
    let name = peer.name;
    let about_certificates = matches!(
        alert,
        A::HandshakeFailure
            | A::NoCertificate
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::CertificateRequired
            | A::UnknownCA
            | A::AccessDenied
    );
    match alert {
        _ if about_certificates && (peer.client.was_asked_for() || alert == A::CertificateRequired) => {
            client_certificate(peer, &format!("TLS alert {alert:?}"))
        }
        A::ProtocolVersion | A::InsufficientSecurity => permanent(format!(
            "{name} speaks no TLS 1.2 or 1.3, and older versions are not secure (TLS alert {alert:?})"
        ))
        .hint(UPDATE_TLS),
        A::HandshakeFailure => {
            permanent(format!("{name} has no version or cipher suite of TLS in common with us (TLS alert {alert:?})"))
                .hint(UPDATE_TLS)
        }
        A::UnrecognisedName => {
            permanent(format!("{name} has no certificate for the name {} (TLS alert {alert:?})", peer.host))
                .hint("is the registry's name spelled as its certificate has it?")
        }
        _ => permanent(format!("{name} ended the TLS handshake (TLS alert {alert:?})")),
    }
}

/// The registry does not go on without a client certificate, or with the one that it got.
pub(super) fn client_certificate(peer: Peer<'_>, how: &str) -> Error {
    let name = peer.name;
    match peer.client.path() {
        Some(path) => {
            permanent(format!("{name} does not accept the client certificate {} ({how})", path.display()))
                .hint("has it expired, and is its issuer one that the registry trusts?")
        }
        None => permanent(format!("{name} asks for a client certificate, and there is none for it ({how})")).hint(format!(
            "put it into /etc/containers/certs.d/{name}/ or ~/.config/containers/certs.d/{name}/ as client.cert and client.key"
        )),
    }
}

fn certificate(wrong: &CertificateError, Peer { name, host, .. }: Peer<'_>) -> Error {
    use CertificateError as C;
    let made = |what: String| permanent(format!("the TLS certificate of {name} {what}"));
    let not_trusted = |why: &dyn std::fmt::Display| {
        made(format!("is not trusted: {why}")).hint(format!(
            "give its issuer's certificate by --ca-file, or allow any certificate by --insecure-registry {name}"
        ))
    };
    let clock = "is the clock of this machine right?";
    match wrong {
        C::ExpiredContext { not_after, .. } => made(format!("expired on {}", day(*not_after)))
            .hint(format!("it must be renewed on the server; {clock}")),
        C::NotValidYetContext { not_before, time } => {
            made(format!("is not valid before {}, and it is {} here", day(*not_before), day(*time))).hint(clock)
        }
        C::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            made(format!("has no subject alternative name, so it is not for {host}")).hint(
                "it must be issued again with the name as subjectAltName: a common name alone is not used any more (RFC 9525)",
            )
        }
        C::NotValidForNameContext { presented, .. } => {
            made(format!("is for {}, not {host}", names(presented)))
                .hint(format!("name the registry as its certificate does, with --resolve NAME=ADDRESS:PORT where that is not its name in DNS; or allow any certificate by --insecure-registry {name}"))
        }
        C::Other(other) if other.0.downcast_ref::<UnknownAuthority>().is_some() => {
            not_trusted(other)
        }
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => {
            made("is not one for servers (its extended key usage lacks serverAuth)".to_owned())
        }
        other => not_trusted(other),
    }
}

/// The day in UTC.
fn day(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let stamp = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
    stamp.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d").to_string()
}

/// A few of the names of a certificate, which TLS's library shows as `DnsName("other.example")`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| match name.split_once('(') {
        Some((_, inner)) => inner.trim_end_matches(')').trim_matches('"').to_owned(),
        None => name.clone(),
    };
    let mut names: Vec<String> = presented.iter().take(MAX_NAMES).map(bare).collect();
    if presented.len() > MAX_NAMES {
        names.push(format!("{} more", presented.len() - MAX_NAMES));
    }
    names.join(", ")
}

const MAX_NAMES: usize = 5;
const UPDATE_TLS: &str = "its TLS must be updated; or put a TLS proxy before it";
