//! Requests to registries over HTTPS, one connection each. No redirect is followed.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::settings::Network;
use crate::support::http::{self, Reply};

pub struct Client {
    resolve: Vec<(String, SocketAddr)>,
    tls: Arc<ClientConfig>,
}

impl Client {
    pub fn new(network: &Network) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
        for file in &network.ca_files {
            let certificates = CertificateDer::pem_file_iter(file).expect("a file of authorities");
            roots.add_parsable_certificates(certificates.map(|certificate| certificate.expect("PEM")));
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider's versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { resolve: network.resolve.clone(), tls: Arc::new(config) }
    }

    /// Sends a request to an `https://` URL.
    ///
    /// # Errors
    /// If the connection breaks before there is an answer.
    pub fn send(&self, method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
        let (host, path) = split_url(url).ok_or_else(|| io::Error::other(format!("{url} is no https URL")))?;
        let name = host.split(':').next().unwrap_or_default();
        let stream = TcpStream::connect_timeout(&self.address(host, name)?, Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_write_timeout(Some(Duration::from_secs(60)))?;
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(Arc::clone(&self.tls), name).map_err(io::Error::other)?;
        http::exchange(&mut StreamOwned::new(connection, stream), host, method, path, headers, body)
    }

    fn address(&self, host: &str, name: &str) -> io::Result<SocketAddr> {
        if let Some((_, address)) = self.resolve.iter().find(|(known, _)| known == name) {
            return Ok(*address);
        }
        let port = host.split_once(':').map_or("443", |(_, port)| port).parse().map_err(io::Error::other)?;
        let found = (name, port).to_socket_addrs()?.next();
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{name} has no address")))
    }
}

/// The host with its port, and the path with its query.
pub fn split_url(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("https://")?;
    Some(rest.split_at(rest.find('/').unwrap_or(rest.len())))
}
