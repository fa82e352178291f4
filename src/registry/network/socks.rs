//! Opens tunnels through SOCKS 5 proxies (RFC 1928), with a user and a password if the proxy requires them (RFC 1929).

use std::fmt;
use std::io;
use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The target of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Address(IpAddr),
    /// A name, which the proxy resolves.
    Name(String),
}

/// Why there is no tunnel.
#[derive(Debug)]
pub(super) enum Fault {
    /// The connection to the proxy failed.
    Io(io::Error),
    /// The proxy does not speak SOCKS 5.
    NotSocks,
    /// The proxy requires a user and a password, or another authentication.
    WantsUser,
    /// The proxy refused the user and the password.
    WrongUser,
    /// The proxy could not connect: a code of RFC 1928, section 6.
    Refused(u8),
    /// The host's name has more than 255 bytes.
    LongName,
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Opens a tunnel to a host and port.
pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    host: &Host,
    port: u16,
    user: Option<(&str, &str)>,
) -> Result<(), Fault> {
    let methods: &[u8] = if user.is_some() { &[VERSION, 2, NO_PROOF, USER] } else { &[VERSION, 1, NO_PROOF] };
    stream.write_all(methods).await?;
    stream.flush().await?;
    let [version, method] = read(stream).await?;
    if version != VERSION {
        return Err(Fault::NotSocks);
    }
    match (method, user) {
        (NO_PROOF, _) => {}
        (USER, Some((user, password))) => sign_in(stream, user, password).await?,
        _ => return Err(Fault::WantsUser),
    }
    let mut request = vec![VERSION, CONNECT, 0];
    match host {
        Host::Address(IpAddr::V4(v4)) => {
            request.push(IPV4);
            request.extend_from_slice(&v4.octets());
        }
        Host::Address(IpAddr::V6(v6)) => {
            request.push(IPV6);
            request.extend_from_slice(&v6.octets());
        }
        Host::Name(name) => {
            request.extend_from_slice(&[NAME, u8::try_from(name.len()).map_err(|_| Fault::LongName)?]);
            request.extend_from_slice(name.as_bytes());
        }
    }
    request.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&request).await?;
    stream.flush().await?;
    answered(stream).await
}

/// RFC 1929, section 2.
async fn sign_in<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, user: &str, password: &str) -> Result<(), Fault> {
    let mut request = vec![1];
    for part in [user, password] {
        request.push(u8::try_from(part.len()).map_err(|_| Fault::WrongUser)?);
        request.extend_from_slice(part.as_bytes());
    }
    stream.write_all(&request).await?;
    stream.flush().await?;
    let [_, status] = read(stream).await?;
    if status == 0 { Ok(()) } else { Err(Fault::WrongUser) }
}

/// Reads the reply, and ignores the proxy's address in it.
async fn answered<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(), Fault> {
    let [version, reply, _, kind] = read(stream).await?;
    if version != VERSION {
        return Err(Fault::NotSocks);
    }
    if reply != 0 {
        return Err(Fault::Refused(reply));
    }
    let length = match kind {
        IPV4 => 4,
        IPV6 => 16,
        NAME => {
            let [length] = read(stream).await?;
            usize::from(length)
        }
        _ => return Err(Fault::NotSocks),
    };
    stream.read_exact(&mut vec![0; length + 2]).await?;
    Ok(())
}

async fn read<const N: usize>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// The text after "the proxy X".
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = |code: u8| match code {
            1 => "general failure",
            2 => "not allowed by its rules",
            3 => "network unreachable",
            4 => "host unreachable",
            5 => "connection refused",
            6 => "TTL expired",
            7 => "command not supported",
            8 => "kind of address not supported",
            _ => "unknown reason",
        };
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("closed the connection: does it speak SOCKS 5?")
            }
            Self::Io(error) => write!(f, "failed: {error}"),
            Self::NotSocks => f.write_str("does not speak SOCKS 5"),
            Self::WantsUser => f.write_str("wants a user name and a password"),
            Self::WrongUser => f.write_str("does not accept the user name and password"),
            Self::Refused(code) => write!(f, "could not connect: {} (SOCKS reply {code})", refused(*code)),
            Self::LongName => f.write_str("takes no host name of more than 255 bytes"),
        }
    }
}

const VERSION: u8 = 5;
const NO_PROOF: u8 = 0;
const USER: u8 = 2;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent to a proxy that answers so, and how it ends.
    async fn asked(host: &Host, user: Option<(&str, &str)>, answer: &[u8]) -> (Vec<u8>, Result<(), String>) {
        let (mut ours, theirs) = tokio::io::duplex(4096);
        let (mut reading, mut writing) = tokio::io::split(theirs);
        writing.write_all(answer).await.expect("room");
        writing.shutdown().await.expect("open");
        let ended = connect(&mut ours, host, 443, user).await.map_err(|fault| fault.to_string());
        drop(ours);
        let mut sent = Vec::new();
        reading.read_to_end(&mut sent).await.expect("what was sent");
        (sent, ended)
    }

    #[tokio::test]
    async fn tunnels_by_name_and_by_address() {
        let name = Host::Name("r.test".into());
        let (sent, ended) = asked(&name, None, b"\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00").await;
        assert_eq!((sent.as_slice(), ended), (&b"\x05\x01\x00\x05\x01\x00\x03\x06r.test\x01\xbb"[..], Ok(())));
        let user = Some(("me", "pw"));
        let bound = [&b"\x05\x02\x01\x00\x05\x00\x00\x03\x01x\x00\x00"[..]].concat();
        let (sent, ended) = asked(&Host::Address([10, 0, 0, 1].into()), user, &bound).await;
        let expected = b"\x05\x02\x00\x02\x01\x02me\x02pw\x05\x01\x00\x01\x0a\x00\x00\x01\x01\xbb";
        assert_eq!((sent.as_slice(), ended), (&expected[..], Ok(())));
        let v6 = Host::Address("::1".parse().expect("an address"));
        let mut reply = b"\x05\x00\x05\x00\x00\x04".to_vec();
        reply.extend_from_slice(&[0; 18]);
        assert_eq!(asked(&v6, None, &reply).await.1, Ok(()));
    }

    #[tokio::test]
    async fn faults_say_what_is_wrong() {
        let name = Host::Name("r.test".into());
        let user = Some(("me", "pw"));
        for (user, answer, expected) in [
            (None, &b"\x05\xff"[..], "wants a user name and a password"),
            (user, b"\x05\x02\x01\x01", "does not accept the user name and password"),
            (None, b"\x05\x00\x05\x05\x00\x01", "could not connect: connection refused (SOCKS reply 5)"),
            (None, b"\x05\x00\x05\x02\x00\x01", "could not connect: not allowed by its rules (SOCKS reply 2)"),
            (None, b"HTTP/1.1 400 Bad Request\r\n", "does not speak SOCKS 5"),
            (None, b"", "closed the connection: does it speak SOCKS 5?"),
        ] {
            assert_eq!(asked(&name, user, answer).await.1, Err(expected.to_owned()));
        }
        let long = Host::Name("x".repeat(256));
        assert!(asked(&long, None, b"\x05\x00").await.1.is_err());
    }
}
