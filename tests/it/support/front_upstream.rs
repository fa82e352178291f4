//! The front as a client of the registry behind it.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderValue};
use hyper::http::request;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::front_body::{Cut, FrontBody};
use super::wire::{Control, Wire};

/// Sends a request to the registry, on a connection of its own.
pub async fn send(
    to: SocketAddr,
    secure: bool,
    mut head: request::Parts,
    body: impl FnOnce(Arc<Control>) -> FrontBody,
) -> Result<Response<FrontBody>, Cut> {
    let tcp = TcpStream::connect(to).await.map_err(|_| Cut)?;
    let (wire, control) = Wire::new(tcp);
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(wire));
    let (mut sender, connection) = handshake.await.map_err(|_| Cut)?;
    tokio::runtime::Handle::current().spawn(connection);
    head.version = hyper::Version::HTTP_11;
    // HTTP/2 has the host in the URI.
    if let Some(authority) = head.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        head.headers.entry(HOST).or_insert(host);
    }
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    head.uri = target.parse().map_err(|_| Cut)?;
    strip(&mut head.headers);
    if secure {
        head.headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    }
    let request = Request::from_parts(head, body(control));
    let (mut head, body) = sender.send_request(request).await.map_err(|_| Cut)?.into_parts();
    strip(&mut head.headers);
    Ok(Response::from_parts(head, body.map_err(|_| Cut).boxed_unsync()))
}

/// Why a body could not be collected.
pub enum Failed {
    TooLarge,
    /// With what came before.
    Broken(Bytes),
}

pub async fn collect(body: &mut FrontBody, limit: u64) -> Result<Bytes, Failed> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame.map(|frame| frame.into_data()) {
            Ok(Ok(data)) => whole.extend_from_slice(&data),
            Ok(Err(_trailers)) => {}
            Err(Cut) => return Err(Failed::Broken(whole.freeze())),
        }
        if whole.len() as u64 > limit {
            return Err(Failed::TooLarge);
        }
    }
    Ok(whole.freeze())
}

/// Headers that belong to one connection.
fn strip(headers: &mut HeaderMap) {
    for name in ["connection", "keep-alive", "transfer-encoding", "te", "upgrade", "expect", "trailer"] {
        headers.remove(name);
    }
}

pub fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub fn full(bytes: Bytes) -> FrontBody {
    full_of(Full::new(bytes))
}

pub fn full_of(body: Full<Bytes>) -> FrontBody {
    body.map_err(|never| match never {}).boxed_unsync()
}

pub fn empty() -> FrontBody {
    full(Bytes::new())
}
