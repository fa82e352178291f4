//! What may be done to a program that stays, by those who have its machine.
//!
//! It's answered on loopback only. There it's still reached by what a browser on the machine is made to ask:
//! by a page's own requests (CSRF), and by a name of the page's site that leads to 127.0.0.1 (DNS
//! rebinding). So a request must have a header that no page can send to another site without being
//! allowed to, no sign of a page, and a host that is this machine by its very name.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::header::{CONTENT_TYPE, HOST, HeaderValue, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};

use super::text;
use crate::body::Body;
use crate::printable;
use crate::server::{ResponseBody, buffered};

/// Does what is asked.
pub(crate) type AdminHandler = Arc<dyn Fn(AdminRequest) -> BoxFuture<'static, Response<ResponseBody>> + Send + Sync>;

/// A request that may be answered.
#[derive(Clone, Debug)]
pub(crate) struct AdminRequest {
    pub(crate) method: Method,
    pub(crate) path: String,
    /// And with which query, as it was sent.
    pub(crate) query: String,
}

pub(super) async fn answer(admin: &AdminHandler, alone: bool, head: &Parts) -> Response<ResponseBody> {
    if let Some(why) = refusal_reason(alone, &head.headers) {
        return text(StatusCode::FORBIDDEN, &format!("{why}\n"));
    }
    let (path, query) = (head.uri.path().to_owned(), head.uri.query().unwrap_or_default().to_owned());
    admin(AdminRequest { method: head.method.clone(), path, query }).await
}

fn refusal_reason(alone: bool, headers: &HeaderMap) -> Option<&'static str> {
    if !alone {
        return Some(
            "/admin/ is answered on loopback only: it can have an address of its own there, by --listen-admin",
        );
    }
    if headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site") {
        return Some("/admin/ is not for browsers");
    }
    if !headers.get(HOST).and_then(|host| host.to_str().ok()).is_some_and(is_loopback_host) {
        return Some("/admin/ is asked by the names of this machine only: 127.0.0.1, [::1], localhost");
    }
    if !headers.contains_key(ADMIN_HEADER) {
        return Some("/admin/ needs the header X-Transload-Admin");
    }
    None
}

/// Whether a host, perhaps with a port, is this machine by its name.
fn is_loopback_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let v6 = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let literal = v6.unwrap_or(name).parse::<std::net::IpAddr>();
    name.eq_ignore_ascii_case("localhost") || literal.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// An answer of one document.
pub(crate) fn json(status: StatusCode, document: &impl serde::Serialize) -> Response<ResponseBody> {
    let text = serde_json::to_string(document).unwrap_or_default();
    buffered(status, "application/json", Bytes::from(printable::json(&text).into_owned()))
}

/// An answer of documents, one a line, that come as they are made. An error cuts it before its end.
pub(crate) fn chunked(lines: Body) -> Response<ResponseBody> {
    let mut response = Response::new(StreamBody::new(lines.map_ok(Frame::data).boxed()).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// The header that every request must have, with any value.
pub(crate) const ADMIN_HEADER: &str = "x-transload-admin";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_and_no_page() {
        let told = |headers: &[(&'static str, &'static str)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
            refusal_reason(true, &headers.collect())
        };
        for host in ["127.0.0.1:9090", "localhost", "LOCALHOST:1", "[::1]:9090", "127.9.9.9", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(told(&[("host", host), ("x-transload-admin", "1")]), None, "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:9090", "localhost.evil.example", "10.0.0.1", "", "[::2]"] {
            assert!(told(&[("host", host), ("x-transload-admin", "1")]).is_some(), "{host}");
        }
        assert!(told(&[("host", "localhost")]).is_some_and(|why| why.contains("X-Transload-Admin")));
        assert!(told(&[("x-transload-admin", "1")]).is_some());
        for (page, value) in
            [("origin", "http://localhost:9090"), ("origin", "null"), ("sec-fetch-site", "same-origin")]
        {
            assert!(told(&[("host", "localhost"), ("x-transload-admin", "1"), (page, value)]).is_some(), "{page}");
        }
        assert!(refusal_reason(false, &HeaderMap::new()).is_some_and(|why| why.contains("loopback only")));
    }
}
