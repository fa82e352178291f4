//! Certificates as tests want them, and servers that show them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use tokio::io::{AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};

use super::background::{Background, serve_connections};

/// A certificate and its key.
pub struct Identity {
    pub certificate: String,
    pub key: String,
    der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

/// What is special about a certificate.
#[derive(Clone, Copy, Default)]
pub struct Special {
    /// It may sign others.
    pub authority: bool,
    /// It is valid from the first day of this year to that of the other.
    pub years: Option<(i32, i32)>,
    /// Its name is its common name alone.
    pub without_names: bool,
}

/// An authority that signs certificates.
pub struct Authority {
    pub certificate: String,
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

fn params(names: &[&str], special: Special) -> CertificateParams {
    let named = if special.without_names { Vec::new() } else { names.iter().map(|name| (*name).to_owned()).collect() };
    let mut params = CertificateParams::new(named).expect("names for a certificate");
    params.distinguished_name.push(DnType::CommonName, names[0]);
    if special.authority {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    if let Some((first, last)) = special.years {
        params.not_before = date_time_ymd(first, 1, 1);
        params.not_after = date_time_ymd(last, 1, 1);
    }
    params
}

/// A certificate that signs itself, as `openssl req -x509` makes it with [`Special::authority`].
pub fn self_signed(names: &[&str], special: Special) -> Identity {
    let key = KeyPair::generate().expect("a key");
    let made = params(names, special).self_signed(&key).expect("a certificate");
    Identity {
        certificate: made.pem(),
        key: key.serialize_pem(),
        der: made.der().clone(),
        key_der: key.serialize_der(),
    }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let made = params.self_signed(&key).expect("a certificate");
        Self { certificate: made.pem(), der: made.der().clone(), issuer: Issuer::new(params, key) }
    }

    pub fn issue(&self, names: &[&str], special: Special) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let made = params(names, special).signed_by(&key, &self.issuer).expect("a certificate");
        Identity {
            certificate: made.pem(),
            key: key.serialize_pem(),
            der: made.der().clone(),
            key_der: key.serialize_der(),
        }
    }

    /// A certificate for a client.
    pub fn client(&self, name: &str) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let made = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity {
            certificate: made.pem(),
            key: key.serialize_pem(),
            der: made.der().clone(),
            key_der: key.serialize_der(),
        }
    }
}

impl Identity {
    /// A server that shows this certificate.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.config(&[&TLS12, &TLS13], None, false)
    }

    /// One that wants a certificate of this authority from clients, by this version of TLS.
    pub fn server_for_clients_of(
        &self,
        authority: &Authority,
        version: &'static SupportedProtocolVersion,
    ) -> Arc<ServerConfig> {
        self.config(&[version], Some(authority), false)
    }

    /// One that takes a certificate of this authority, and clients without one.
    pub fn server_that_asks_clients_of(&self, authority: &Authority) -> Arc<ServerConfig> {
        self.config(&[&TLS12, &TLS13], Some(authority), true)
    }

    fn config(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        clients: Option<&Authority>,
        optional: bool,
    ) -> Arc<ServerConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions);
        let builder = builder.expect("the provider's versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.der.clone()).expect("an authority");
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = if optional { verifier.allow_unauthenticated() } else { verifier };
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key_der.clone()));
        Arc::new(builder.with_single_cert(vec![self.der.clone()], key).expect("a usable certificate"))
    }
}

/// TLS before a server without it. Stops on Drop.
pub struct TlsFront {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    clients: Arc<Mutex<Vec<bool>>>,
    background: Background,
}

impl TlsFront {
    pub fn start(config: Arc<ServerConfig>, to: SocketAddr) -> Self {
        let (connections, clients) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<bool>>>::default());
        let (counted, seen, acceptor) = (connections.clone(), clients.clone(), TlsAcceptor::from(config));
        let (addr, background) = serve_connections(move |client| {
            counted.fetch_add(1, Ordering::Relaxed);
            let (acceptor, seen) = (acceptor.clone(), seen.clone());
            async move {
                let mut client = acceptor.accept(client).await?;
                let certified = client.get_ref().1.peer_certificates().is_some();
                seen.lock().expect("no panic while held").push(certified);
                let mut server = TcpStream::connect(to).await?;
                copy_bidirectional(&mut client, &mut server).await?;
                client.shutdown().await
            }
        });
        Self { addr, connections, clients, background }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// For each handshake that succeeded, whether the client showed a certificate.
    pub fn clients(&self) -> Vec<bool> {
        self.clients.lock().expect("no panic while held").clone()
    }
}
