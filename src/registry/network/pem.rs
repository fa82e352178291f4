//! Reads certificates from files in PEM or DER.

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

/// The certificates of a file that the user trusts.
///
/// # Errors
/// The reason, if the file has no certificate, or one that cannot be used.
pub(super) fn usable(file: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = certificates(file)?;
    let mut store = RootCertStore::empty();
    let mut wrong = None;
    let usable: Vec<_> = found
        .into_iter()
        .filter(|certificate| store.add(certificate.clone()).map_err(|error| wrong = Some(error)).is_ok())
        .collect();
    match (usable.is_empty(), wrong) {
        (true, wrong) => Err(wrong.map_or_else(
            || "it holds no certificate".to_owned(),
            |wrong| format!("its certificate cannot be used: {wrong}"),
        )),
        (false, Some(wrong)) => {
            tracing::warn!("a certificate is left out of those to trust: {wrong}");
            Ok(usable)
        }
        (false, None) => Ok(usable),
    }
}

/// The certificates of a file: any number in PEM, or one in DER.
///
/// # Errors
/// The reason, if the file has no certificate.
pub(super) fn certificates(file: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
    let file = file.strip_prefix(BYTE_ORDER_MARK).unwrap_or(file);
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(file).collect();
    match found {
        Ok(found) if !found.is_empty() => return Ok(found),
        Ok(_) => {}
        Err(error) => return Err(format!("its PEM is damaged: {error}")),
    }
    let whole = CertificateDer::from(file.to_vec());
    if RootCertStore::empty().add(whole.clone()).is_ok() {
        return Ok(vec![whole]);
    }
    let text = String::from_utf8_lossy(file);
    let other = text.lines().find_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----"));
    Err(match (file.is_empty(), other) {
        (true, _) => "it is empty".to_owned(),
        (_, Some(other)) => format!("it holds no certificate, but {other}"),
        _ => "it holds no certificate in PEM".to_owned(),
    })
}

/// The limit for a file of certificates, in bytes. All public authorities together have 250 KiB.
pub(super) const MAX_FILE: u64 = 16 << 20;
