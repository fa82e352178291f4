//! `certs.d`: certificates for one registry, in the directories of Docker and of podman, skopeo and buildah.
//!
//! A directory `HOST` or `HOST:PORT`, as the registry is named in references, holds authorities to trust (`*.crt`) and
//! client certificates (`*.cert`, each with its key in `*.key`).
//!
//! Sources: <https://docs.docker.com/engine/security/certificates/>, containers-certs.d(5).

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::pem::{MAX_FILE, certificates, usable};
use crate::error::{Error, Kind, Result, Side};
use crate::regular_file::{self, Links};

/// The certificates for one registry.
#[derive(Debug, Default)]
pub(super) struct OwnFiles {
    pub(super) authorities: Vec<CertificateDer<'static>>,
    pub(super) identity: Option<Identity>,
}

/// A client certificate.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) key: Arc<CertifiedKey>,
    /// The file of the certificate.
    pub(super) path: PathBuf,
}

/// The searched directories, the user's before the system's.
pub(super) fn directories(home: Option<&Path>, config: Option<&Path>) -> Vec<PathBuf> {
    let own = [
        config.map(|config| config.join("containers/certs.d")),
        config.map(|config| config.join("docker/certs.d")),
        home.map(|home| home.join(".docker/certs.d")),
    ];
    let system = ["/etc/containers/certs.d", "/etc/docker/certs.d"];
    own.into_iter().flatten().chain(system.map(PathBuf::from)).collect()
}

/// Reads the certificates for a registry with these names: all authorities, and the first client certificate.
///
/// # Errors
/// If a file has the wrong content, or cannot be read. A directory without read permission is skipped, as in podman.
pub(super) fn read(directories: &[PathBuf], names: &[String]) -> Result<OwnFiles> {
    let mut found = OwnFiles::default();
    for directory in directories.iter().flat_map(|directory| names.iter().map(|name| directory.join(name))) {
        let files = match list(&directory) {
            Ok(files) => files,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!("{} is not used: {error}", directory.display());
                }
                continue;
            }
        };
        for file in &files {
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => {
                    let trusted = usable(&content(file)?).map_err(|why| unusable(file, &why))?;
                    found.authorities.extend(trusted);
                }
                Some("cert") => {
                    let identity = identity(file)?;
                    found.identity.get_or_insert(identity);
                }
                Some("key") if !files.contains(&file.with_extension("cert")) => {
                    let missing = file.with_extension("cert");
                    return Err(unusable(
                        file,
                        &format!("the client certificate of this key, {}, is missing", missing.display()),
                    )
                    .hint("a client certificate is a pair of files, NAME.cert and NAME.key"));
                }
                _ => {}
            }
        }
    }
    Ok(found)
}

fn list(directory: &Path) -> io::Result<BTreeSet<PathBuf>> {
    std::fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect()
}

/// Reads the client certificate in this file, and its key in the same directory.
fn identity(path: &Path) -> Result<Identity> {
    let key_path = path.with_extension("key");
    if !key_path.exists() {
        let why = format!("its key, {}, is missing", key_path.display());
        return Err(unusable(path, &why).hint(
            "a client certificate is a pair of files, NAME.cert and NAME.key; an authority to trust is NAME.crt",
        ));
    }
    let chain = certificates(&content(path)?).map_err(|why| unusable(path, &why))?;
    let key = PrivateKeyDer::from_pem_slice(&content(&key_path)?)
        .map_err(|_| unusable(&key_path, "it holds no private key in PEM that is not encrypted"))?;
    let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(|error| {
        use tokio_rustls::rustls::Error as Tls;
        match error {
            Tls::InconsistentKeys(_) => {
                unusable(path, &format!("{} is the key of another certificate", key_path.display()))
            }
            other => unusable(path, &other.to_string()),
        }
    })?;
    Ok(Identity { key: Arc::new(key), path: path.to_owned() })
}

fn content(path: &Path) -> Result<Vec<u8>> {
    regular_file::read(path, Links::Follow, MAX_FILE)
        .map_err(|error| Error::unreadable(format!("read {}", path.display()), &error))
}

fn unusable(path: &Path, why: &str) -> Error {
    Error::new(Kind::Local, format!("{} cannot be used: {why}", path.display())).on(Side::Local)
}
