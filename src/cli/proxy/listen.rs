//! Listeners by the configuration, and what of them can change while they listen.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto::aws_lc_rs};

use super::config::{ListenAddress, ListenerConfig, TlsFiles};
use crate::cli::serve::bind;
use crate::error::{Error, Kind, Result, Side};
use crate::regular_file::{self, Links};
use crate::server::{AccessControl, Listener, TlsConfig, Tokens, Users};

/// An open listener.
pub(super) struct OpenListener {
    pub(super) listener: Listener,
    pub(super) handle: ListenerHandle,
    /// Where it listens: `https://127.0.0.1:5443`.
    pub(super) url: String,
    /// Whether it can be reached from elsewhere, by whoever wants.
    pub(super) exposed: Option<SocketAddr>,
    /// Removed at the end.
    pub(super) socket: Option<SocketFile>,
}

/// What of it can be changed.
#[derive(Clone)]
pub(super) struct ListenerHandle {
    tls: Option<TlsConfig>,
    access: AccessControl,
}

/// What files say, before it is taken over.
pub(super) struct ListenerSecrets {
    tls: Option<ServerConfig>,
    tokens: Option<Tokens>,
    users: Option<Users>,
}

/// The file of a Unix socket.
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl ListenerHandle {
    pub(super) fn access(&self) -> AccessControl {
        self.access.clone()
    }

    pub(super) fn set(&self, secrets: ListenerSecrets) {
        if let (Some(tls), Some(config)) = (&self.tls, secrets.tls) {
            tls.set(config);
        }
        self.access.set(secrets.tokens, secrets.users);
    }
}

impl ListenerSecrets {
    /// Reads the files of a listener.
    pub(super) fn read(listener_config: &ListenerConfig) -> Result<Self> {
        let tokens = listener_config.token.as_deref().map(|path| parse(path, Tokens::read)).transpose()?;
        let users = listener_config.users.as_deref().map(|path| parse(path, Users::read)).transpose()?;
        Ok(Self { tls: listener_config.tls.as_ref().map(tls_config).transpose()?, tokens, users })
    }
}

fn parse<T>(path: &Path, read: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    let doing = || format!("read {}", path.display());
    let text =
        regular_file::read_text(path, Links::Follow, MAX_FILE).map_err(|error| Error::unreadable(doing(), &error))?;
    read(&text).map_err(|error| error.doing(doing()).on(Side::Local))
}

/// Opens a listener, for those whom its files admit.
pub(super) async fn open(listener_config: &ListenerConfig, access: AccessControl) -> Result<OpenListener> {
    let secrets = ListenerSecrets::read(listener_config)?;
    access.set(secrets.tokens, secrets.users);
    let tls = secrets.tls.map(TlsConfig::new);
    match &listener_config.at {
        ListenAddress::Tcp(address) => {
            let listener = bind(address).await?;
            let address = listener.local_addr().map_err(|error| Error::io("listen", &error))?;
            let url = format!("{}://{address}", if tls.is_some() { "https" } else { "http" });
            let open = listener_config.token.is_none()
                && listener_config.users.is_none()
                && listener_config.tls.as_ref().is_none_or(|tls| tls.client_ca.is_none());
            let exposed = (open && !address.ip().to_canonical().is_loopback()).then_some(address);
            let listener = match &tls {
                Some(tls) => Listener::tls(listener, tls.clone()),
                None => listener.into(),
            };
            Ok(OpenListener { listener, handle: ListenerHandle { tls, access }, url, exposed, socket: None })
        }
        ListenAddress::Unix(path) => {
            let listener = bind_unix(path)?;
            let socket = Some(SocketFile(path.clone()));
            let url = format!("unix:{}", path.display());
            Ok(OpenListener {
                listener: listener.into(),
                handle: ListenerHandle { tls, access },
                url,
                exposed: None,
                socket,
            })
        }
    }
}

/// A socket that a former run left is replaced; one at which someone listens is not.
fn bind_unix(path: &Path) -> Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt as _;
    let wrong = |error: &std::io::Error| Error::io(format!("listen at {}", path.display()), error);
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(Error::new(Kind::Usage, format!("something listens at {} already", path.display()))
                .hint("give each proxy a socket of its own"));
        }
        std::fs::remove_file(path).map_err(|error| wrong(&error))?;
    }
    UnixListener::bind(path).map_err(|error| wrong(&error))
}

/// TLS by files.
fn tls_config(files: &TlsFiles) -> Result<ServerConfig> {
    let wrong = |path: &Path, error: &dyn std::fmt::Display| {
        Error::new(Kind::Usage, format!("{} can't be used for TLS: {error}", path.display()))
            .on(Side::Local)
            .hint(PEM_HINT)
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&files.certificate, &error))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in read_certificates(path)? {
                roots.add(certificate).map_err(|error| wrong(path, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| wrong(path, &error))?)
        }
    };
    let key = {
        let pem = read_pem(&files.key)?;
        PrivateKeyDer::from_pem_slice(&pem).map_err(|error| wrong(&files.key, &error))?
    };
    let mut config = builder
        .with_single_cert(read_certificates(&files.certificate)?, key)
        .map_err(|error| wrong(&files.certificate, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read_pem(path)?;
    let read = || -> Result<Vec<_>, tokio_rustls::rustls::pki_types::pem::Error> {
        CertificateDer::pem_slice_iter(&pem).collect()
    };
    let found = read().map_err(|error| error.to_string());
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err("there is no certificate in it".to_owned()),
        Err(error) => Err(error),
    }
    .map_err(|why| Error::new(Kind::Usage, format!("{}: {why}", path.display())).on(Side::Local).hint(PEM_HINT))
}

/// The bytes of a file of certificates or a key.
fn read_pem(path: &Path) -> Result<Vec<u8>> {
    regular_file::read(path, Links::Follow, MAX_FILE).map_err(|error| {
        Error::new(Kind::Usage, format!("{} can't be used for TLS: {error}", path.display()))
            .on(Side::Local)
            .hint(PEM_HINT)
    })
}

/// The largest file of a listener (certificates, key, tokens, users) that is read, in bytes.
pub(super) const MAX_FILE: u64 = 16 << 20;

const PEM_HINT: &str = "certificates and keys are files in PEM: the server's certificate before its authority's, its key not \
    encrypted";
