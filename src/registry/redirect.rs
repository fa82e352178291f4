//! Which redirects are followed. The caller checks the target.
//!
//! Reads follow every redirect. Writes follow 307 and 308 only, which keep the method and body (RFC 9110 §15.4.8,
//! §15.4.9): 301, 302 and 303 would turn a write into a GET.

use http::{Method, StatusCode};
use reqwest::Url;

use super::address::origin;
use super::client::Response;
use super::location;
use crate::error::{Error, Kind, Result};

/// Whether a redirect with this status keeps the method and body.
pub(super) fn keeps_method(status: StatusCode) -> bool {
    matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT)
}

/// The target of a redirect from `asked`; `None` if the response is no redirect.
///
/// # Errors
/// [`Kind::Registry`] for a redirect without a valid URL, or one that loses the method and body of a write.
pub(super) fn target(method: &Method, response: &Response, asked: &Url) -> Result<Option<Url>> {
    let status = response.status();
    let read = matches!(*method, Method::GET | Method::HEAD);
    if !status.is_redirection() || !response.headers().contains_key(http::header::LOCATION) {
        return Ok(None);
    }
    let next = location::of(response.headers(), asked)
        .ok_or_else(|| Error::new(Kind::Registry, "it redirects to what isn't a URL"))?;
    if read || keeps_method(status) {
        return Ok(Some(next));
    }
    let what = format!("it redirects a {method} to {} by {}, which loses its body", origin(&next), status.as_u16());
    Err(Error::new(Kind::Registry, what)
        .hint("a registry that has moved redirects writes by 307 or 308; or name the other registry itself"))
}
