//! Which certificates of servers are accepted, and which one a client shows.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, OtherError, SignatureScheme,
};

use super::certs_d::Identity;
use super::der::Facts;
use super::trust::Roots;
use crate::error::{Error, Kind, Result};

/// The cryptography of all connections.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// Decides about the certificates of servers.
pub(super) type ServerVerifier = Arc<dyn ServerCertVerifier>;

/// Accepts what these certificates vouch for.
pub(super) fn by_roots(roots: &Arc<Roots>) -> Result<ServerVerifier> {
    let chains = WebPkiServerVerifier::builder_with_provider(roots.store.clone(), PROVIDER.clone());
    let chains = chains.build().map_err(|error| broken(&error))?;
    Ok(Arc::new(Verifier { chains, roots: roots.clone() }))
}

/// Accepts every certificate.
pub(super) fn accept_all() -> ServerVerifier {
    Arc::new(AcceptAll(PROVIDER.clone()))
}

/// A client's TLS. `client` answers a request for a certificate.
pub(super) fn config(verifier: ServerVerifier, client: Arc<ClientCertificate>, alpn: &[&[u8]]) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(PROVIDER.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| broken(&error))?.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = builder.with_client_cert_resolver(client);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// The error for a TLS configuration that the library refuses.
pub(super) fn broken(error: &dyn fmt::Display) -> Error {
    Error::new(Kind::Local, format!("TLS cannot be set up: {error}"))
}

/// The common verification, and besides it certificates that are trusted as themselves.
///
/// `openssl req -x509` makes a self-signed certificate that may sign others (CA:TRUE), which webpki never accepts from
/// a server (`CaUsedAsEndEntity`). Nor does it accept a server's certificate that is in the list without its issuer.
/// Go, OpenSSL and browsers accept both: a user who lists the very certificate has said enough.
#[derive(Debug)]
struct Verifier {
    chains: Arc<WebPkiServerVerifier>,
    roots: Arc<Roots>,
}

impl Verifier {
    /// Whether this very certificate is trusted, is valid now, and has the server's name.
    fn is_trusted_itself(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<bool, TlsError> {
        if !self.roots.certificates.contains(certificate) {
            return Ok(false);
        }
        let facts = Facts::read(certificate).ok_or(CertificateError::BadEncoding)?;
        let at =
            |seconds: i64| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds.try_into().unwrap_or(0)));
        let (not_before, not_after) = (at(facts.valid.0), at(facts.valid.1));
        if now < not_before {
            return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
        }
        if now > not_after {
            return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
        }
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(true)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let error = match self.chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Ok(verified) => return Ok(verified),
            Err(error) => error,
        };
        let TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::Other(_)) = error else {
            return Err(error);
        };
        if self.is_trusted_itself(end_entity, server_name, now)? {
            return Ok(ServerCertVerified::assertion());
        }
        // The authority is above the last certificate that the server shows.
        let last = intermediates.last().unwrap_or(end_entity);
        let facts = Facts::read(last);
        let unknown = UnknownAuthority {
            issuer: facts.as_ref().and_then(|facts| facts.issuer.clone()),
            self_signed: intermediates.is_empty() && facts.is_some_and(|facts| facts.self_issued),
        };
        Err(CertificateError::Other(OtherError(Arc::new(unknown))).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chains.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chains.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Why a certificate is not trusted: who signed it, where it says that.
#[derive(Debug)]
pub(super) struct UnknownAuthority {
    pub(super) issuer: Option<String>,
    pub(super) self_signed: bool,
}

impl fmt::Display for UnknownAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.issuer, self.self_signed) {
            (_, true) => f.write_str("it is self-signed"),
            (Some(issuer), false) => write!(f, "it is signed by an unknown authority, {issuer:?}"),
            (None, false) => f.write_str("it is signed by an unknown authority"),
        }
    }
}

impl std::error::Error for UnknownAuthority {}

/// Accepts every certificate: for registries that the user called insecure, and to see whether TLS is spoken at all.
#[derive(Debug)]
struct AcceptAll(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificate that is shown to a server which asks for one; it is known afterwards whether one did.
#[derive(Debug, Default)]
pub(super) struct ClientCertificate {
    identity: Option<Identity>,
    asked: AtomicBool,
}

impl ClientCertificate {
    pub(super) fn new(identity: Option<Identity>) -> Arc<Self> {
        Arc::new(Self { identity, asked: AtomicBool::new(false) })
    }

    /// Whether a server asked for a certificate.
    pub(super) fn was_asked_for(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// The file of the certificate that is shown.
    pub(super) fn path(&self) -> Option<&PathBuf> {
        self.identity.as_ref().map(|identity| &identity.path)
    }
}

impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.identity.as_ref().map(|identity| identity.key.clone())
    }

    fn has_certs(&self) -> bool {
        self.identity.is_some()
    }
}
