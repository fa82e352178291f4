//! Building responses.

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};

use super::ResponseBody;
use crate::body::Body;
use crate::descriptor::Digest;

/// A response whose body is in memory.
pub(crate) fn buffered(status: StatusCode, content_type: &str, body: Bytes) -> Response<ResponseBody> {
    let length = body.len() as u64;
    let mut response = Response::new(Full::new(body).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length.into());
    set(headers, header::CONTENT_TYPE, content_type);
    response
}

/// A response of `length` bytes from a stream. An error of `body` ends the connection early, so that the client notices it.
pub(crate) fn streamed(status: StatusCode, length: u64, body: Body) -> Response<ResponseBody> {
    let mut response = Response::new(StreamBody::new(body.map_ok(Frame::data).boxed()).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    response
}

/// A response without a body.
pub(super) fn empty_response(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    if status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED {
        response.headers_mut().insert(header::CONTENT_LENGTH, 0.into());
    }
    response
}

/// Turns the response into one to `HEAD`: removes the body, and keeps all headers, also the length.
pub(super) fn remove_body(response: &mut Response<ResponseBody>) {
    *response.body_mut() = Empty::new().map_err(|never| match never {}).boxed_unsync();
}

/// Sets a header. An invalid value is logged and left out.
pub(super) fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) => drop(headers.insert(name, value)),
        Err(_) => tracing::warn!("{value:?} cannot be sent as {name}"),
    }
}

/// Adds a header to others of the same name. An invalid value is logged and left out.
pub(super) fn add(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) => drop(headers.append(name, value)),
        Err(_) => tracing::warn!("{value:?} cannot be sent as {name}"),
    }
}

/// Sets the headers with the content's digest.
pub(super) fn set_content_digest(headers: &mut HeaderMap, digest: &Digest) {
    let etag = etag(digest);
    set(headers, DOCKER_CONTENT_DIGEST, etag.trim_matches('"'));
    set(headers, header::ETAG, &etag);
}

/// Whether `If-None-Match` shows that the client has the content (RFC 9110, 13.1.2).
pub(super) fn matches_etag(headers: &HeaderMap, digest: &Digest) -> bool {
    let Some(known) = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()) else { return false };
    let etag = etag(digest);
    known.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// The entity tag of content: its digest is a strong validator.
pub(super) fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

pub(super) const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
