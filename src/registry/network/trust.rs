//! Which certificates are trusted: the system's or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`, those of `--ca-file`,
//! and for one registry those of its directory in `certs.d`.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::certs_d::{self, OwnFiles};
use super::pem::{MAX_FILE, certificates, usable};
use crate::error::{Error, Kind, Result, Side};
use crate::regular_file::{self, Links};

/// The certificates that a run trusts. The default trusts the system's, and looks at no variable and no `certs.d`.
#[derive(Debug, Default)]
pub struct Trust {
    /// Of `--ca-file`.
    given: Vec<CertificateDer<'static>>,
    /// `SSL_CERT_FILE`.
    file: Option<PathBuf>,
    /// `SSL_CERT_DIR`.
    directories: Vec<PathBuf>,
    /// Directories with one directory for each registry.
    certs_d: Vec<PathBuf>,
    /// All but those of `certs_d`; read when they are first needed.
    roots: OnceLock<Result<Arc<Roots>>>,
}

/// Trusted certificates.
#[derive(Clone, Debug)]
pub(super) struct Roots {
    pub(super) store: Arc<RootCertStore>,
    /// The same, whole: a server may show one of them as its own.
    pub(super) certificates: HashSet<CertificateDer<'static>>,
}

impl Trust {
    /// The usual places, by the process's environment variables, which the caller passes in.
    pub fn from_environment(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let all: std::collections::HashMap<_, _> =
            variables.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let value = |name: &str| all.get(std::ffi::OsStr::new(name));
        let home = value("HOME").map(PathBuf::from);
        let config = value("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| home.as_ref().map(|at| at.join(".config")));
        let directories = value("SSL_CERT_DIR").map(|list| std::env::split_paths(list).collect()).unwrap_or_default();
        Self {
            file: value("SSL_CERT_FILE").map(PathBuf::from),
            directories: Vec::into_iter(directories).filter(|at: &PathBuf| !at.as_os_str().is_empty()).collect(),
            certs_d: certs_d::directories(home.as_deref(), config.as_deref()),
            ..Self::default()
        }
    }

    /// Trusts the certificates of a file too, whose content is `pem`.
    ///
    /// # Errors
    /// If there is no certificate in it, or one that cannot be read; `path` is named.
    pub fn add_file(&mut self, path: &Path, pem: &[u8]) -> Result<()> {
        let found = usable(pem).map_err(|why| not_certificates(&path.display().to_string(), &why))?;
        self.given.extend(found);
        Ok(())
    }

    /// What is trusted for every registry.
    ///
    /// # Errors
    /// If `SSL_CERT_FILE` or `SSL_CERT_DIR` name no certificates.
    pub(super) fn roots(&self) -> Result<Arc<Roots>> {
        let roots = self.roots.get_or_init(|| self.load().map(Arc::new));
        roots.as_ref().map(Arc::clone).map_err(Error::duplicate)
    }

    /// What `certs.d` has for the registry of these names, the most exact name first.
    ///
    /// # Errors
    /// If it has files that are not what their names say.
    pub(super) fn own_files(&self, names: &[String]) -> Result<OwnFiles> {
        certs_d::read(&self.certs_d, names)
    }

    fn load(&self) -> Result<Roots> {
        let mut roots = Roots { store: Arc::new(RootCertStore::empty()), certificates: HashSet::new() };
        if self.file.is_some() || !self.directories.is_empty() {
            self.load_named(&mut roots)?;
        } else {
            load_system(&mut roots);
            if roots.certificates.is_empty() {
                // An image without a CA store ("from scratch"): Mozilla's roots are built in.
                roots.add(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
            }
        }
        roots.add(self.given.iter().cloned());
        Ok(roots)
    }

    /// Those of `SSL_CERT_FILE` and `SSL_CERT_DIR`, which stand in for the system's, as everywhere.
    fn load_named(&self, roots: &mut Roots) -> Result<()> {
        if let Some(path) = &self.file {
            let shown = format!("SSL_CERT_FILE={}", path.display());
            let pem = regular_file::read_named(path, MAX_FILE)
                .map_err(|error| Error::unreadable(format!("read {shown}"), &error))?;
            roots.add(usable(&pem).map_err(|why| not_certificates(&shown, &why))?);
        }
        let (mut seen, mut problems) = (HashSet::new(), Vec::new());
        for directory in &self.directories {
            match read_directory(directory, &mut seen) {
                Ok(found) if found.is_empty() => problems.push(format!("{}: no certificate", directory.display())),
                Ok(found) => roots.add(found),
                Err(error) => problems.push(format!("{}: {error}", directory.display())),
            }
        }
        let problems = problems.join(", ");
        if roots.certificates.is_empty() {
            let what = format!("SSL_CERT_DIR names no directory with certificates in PEM ({problems})");
            return Err(Error::new(Kind::Local, what).on(Side::Local).hint(UNSET));
        }
        if !problems.is_empty() {
            tracing::warn!("SSL_CERT_DIR: {problems}");
        }
        Ok(())
    }
}

impl Roots {
    /// Adds certificates; one that cannot be read is left out.
    pub(super) fn add(&mut self, certificates: impl IntoIterator<Item = CertificateDer<'static>>) {
        let store = Arc::make_mut(&mut self.store);
        for certificate in certificates {
            if self.certificates.contains(&certificate) {
                continue;
            }
            match store.add(certificate.clone()) {
                Ok(()) => drop(self.certificates.insert(certificate)),
                Err(error) => tracing::debug!("a trusted certificate cannot be used: {error}"),
            }
        }
    }
}

fn not_certificates(shown: &str, why: &str) -> Error {
    Error::new(Kind::Local, format!("{shown} cannot be used: {why}")).on(Side::Local).hint(
        "name a file with the certificates of authorities in PEM, each between -----BEGIN CERTIFICATE----- and \
         -----END CERTIFICATE-----",
    )
}

/// The certificates of all files in a directory, whatever their names: `openssl rehash` makes names of hashes. Files
/// without certificates are left out.
fn read_directory(directory: &Path, seen: &mut HashSet<(u64, u64)>) -> io::Result<Vec<CertificateDer<'static>>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        // Several links lead to one file.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        if metadata.is_file() && seen.insert((metadata.dev(), metadata.ino())) {
            found.extend(read_if_readable(&path));
        }
    }
    Ok(found)
}

fn read_if_readable(path: &Path) -> Vec<CertificateDer<'static>> {
    let read = regular_file::read(path, Links::Follow, MAX_FILE).map_err(|error| error.to_string());
    read.and_then(|file| certificates(&file)).unwrap_or_else(|why| {
        tracing::debug!("{} has no certificates: {why}", path.display());
        Vec::new()
    })
}

/// Those of the system: of the first bundle, and of the directories, as Go's crypto/x509 does.
#[cfg(target_os = "linux")]
fn load_system(roots: &mut Roots) {
    const FILES: [&str; 6] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/pki/tls/cacert.pem",
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    const DIRECTORIES: [&str; 2] = ["/etc/ssl/certs", "/etc/pki/tls/certs"];
    let mut seen = HashSet::new();
    if let Some(file) = FILES.map(Path::new).into_iter().find(|file| file.exists()) {
        if let Ok(metadata) = file.metadata() {
            seen.insert((metadata.dev(), metadata.ino()));
        }
        roots.add(read_if_readable(file));
    }
    for directory in DIRECTORIES {
        roots.add(read_directory(Path::new(directory), &mut seen).unwrap_or_default());
    }
}

#[cfg(not(target_os = "linux"))]
fn load_system(roots: &mut Roots) {
    roots.add(rustls_native_certs::load_native_certs().certs);
}

const UNSET: &str = "correct the variable, or unset it to trust the system's certificates";

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    #[test]
    fn a_file_without_a_certificate_says_what_it_holds() {
        let key = KeyPair::generate().expect("a key");
        let made = CertificateParams::new(vec!["r.test".to_owned()]).expect("a name").self_signed(&key).expect("made");
        let damaged = made.pem().replace("MII", "!!!");
        for (file, why) in [
            (String::new(), "it is empty"),
            ("hello\n".to_owned(), "it holds no certificate in PEM"),
            (key.serialize_pem(), "it holds no certificate, but PRIVATE KEY"),
            (damaged, "its PEM is damaged"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
                "its certificate cannot be used",
            ),
        ] {
            let error = Trust::default().add_file(Path::new("/x/ca.pem"), file.as_bytes()).expect_err(why);
            assert!(error.to_string().contains(&format!("/x/ca.pem cannot be used: {why}")), "{error}");
        }
        let windows = format!("\u{feff}{}", made.pem().replace('\n', "\r\n"));
        for file in [
            made.pem().into_bytes(),
            windows.into_bytes(),
            made.der().to_vec(),
            [key.serialize_pem(), made.pem()].concat().into_bytes(),
        ] {
            assert_eq!(usable(&file), Ok(vec![made.der().clone()]));
        }
    }
}
