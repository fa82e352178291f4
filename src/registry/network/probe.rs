//! Whether a port speaks TLS: for registries that may be asked by plain http, on this machine or by the user's word.
//!
//! `kubectl port-forward` and `ssh -L` put a registry with TLS on a port of loopback; `docker run registry` puts one
//! without TLS there. A handshake is begun, and nothing of a request is sent. Whatever answers it with a record of
//! TLS, an alert among them, speaks TLS: its certificate is then verified as any other, and http is not used.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection};

use super::verifier::{self, ClientCertificate, broken};
use crate::error::{Error, Kind, Result};

/// How a port answers the beginning of a TLS handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::registry) enum Answer {
    /// A record of TLS.
    Tls,
    /// Another protocol.
    Other,
    /// None: the connection ended, or was refused. A server that is just starting does so too.
    Nothing,
}

/// Begins a TLS handshake on a new connection.
///
/// # Errors
/// [`Kind::Timeout`] if the other end stays silent for `limit`.
pub(super) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    host: &str,
    limit: Duration,
) -> Result<Answer> {
    let hello = hello(host)?;
    let asked = async {
        // A server that answers and closes at once may do so before all is written.
        if stream.write_all(&hello).await.is_ok() {
            drop(stream.flush().await);
        }
        let mut record = [0; 2];
        match stream.read_exact(&mut record).await {
            // A record's type, then the major version of TLS (RFC 8446, section 5.1).
            Ok(_) if matches!(record, [HANDSHAKE | ALERT, 3]) => Answer::Tls,
            Ok(_) => Answer::Other,
            Err(_) => Answer::Nothing,
        }
    };
    let silent = || {
        let what = format!("{host} did not answer in {} s, neither by TLS nor by HTTP", limit.as_secs());
        Error::new(Kind::Timeout, what)
    };
    tokio::time::timeout(limit, asked).await.map_err(|_| silent())
}

/// The first message of a handshake.
fn hello(host: &str) -> Result<Vec<u8>> {
    let config: ClientConfig =
        verifier::config(verifier::accept_all(), ClientCertificate::new(None), &[b"http/1.1", END_OF_HEAD])?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| broken(&error))?;
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(|error| broken(&error))?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).map_err(|error| broken(&error))?;
    Ok(hello)
}

const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;
/// Offered as a protocol (RFC 7301 allows any bytes, and a server ignores those that it does not know), so that an
/// HTTP server that waits for the end of a request's head finds one, and answers.
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(answer: &[u8]) -> Result<Answer> {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        theirs.write_all(answer).await.expect("room");
        let (mut reading, mut writing) = tokio::io::split(theirs);
        writing.shutdown().await.expect("open");
        let spoke = ask(ours, "localhost", Duration::from_secs(5)).await;
        let mut sent = Vec::new();
        reading.read_to_end(&mut sent).await.expect("what was sent");
        assert_eq!(sent[0], HANDSHAKE);
        assert!(sent.windows(4).any(|four| four == END_OF_HEAD), "an HTTP server sees the end of a head");
        assert!(!sent.windows(4).any(|four| four == b"HTTP" || four == b"GET "), "nothing of a request is sent");
        spoke
    }

    #[tokio::test]
    async fn only_records_of_tls_are_tls() {
        for answer in [&b"\x16\x03\x03\x00\x7a"[..], b"\x15\x03\x03\x00\x02\x02\x28", b"\x15\x03\x01\x00\x02\x02\x46"] {
            assert_eq!(answered(answer).await.expect("an answer"), Answer::Tls, "{answer:?}");
        }
        for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"\x05\x00", b"SSH-2.0-x\r\n"] {
            assert_eq!(answered(answer).await.expect("an answer"), Answer::Other, "{answer:?}");
        }
        for answer in [&b""[..], b"\x16"] {
            assert_eq!(answered(answer).await.expect("an answer"), Answer::Nothing, "{answer:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_no_answer() {
        let (ours, _theirs) = tokio::io::duplex(4096);
        let error = ask(ours, "localhost", Duration::from_secs(5)).await.expect_err("silence");
        assert!(error.is_transient() && error.kind() == Kind::Timeout, "{error}");
    }
}
