//! Web pages in the place of a registry's answer: of captive portals, single sign-on, and proxies that block a host.
//!
//! They come with any status: 200, a redirect to a login page, 403, or 511 (RFC 6585, section 6, which is made for
//! them). A registry's own answers may be labelled as HTML too: a framework's default for an empty answer, or the page
//! of a proxy before it. So the label alone is no error where the content is what was asked for.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use reqwest::Url;

use super::address::origin;
use super::location::redirected_to;
use crate::error::{Error, Kind};

/// The media type of a response, if it is that of a web page.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let bare = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    matches!(bare.as_str(), "text/html" | "application/xhtml+xml").then_some(bare)
}

/// Whether a page with this status stands in for the answer, rather than being a registry's or its front's own error.
pub(super) fn stands_in(status: StatusCode) -> bool {
    status.is_success()
        || status.is_redirection()
        || matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS)
        || status == StatusCode::NETWORK_AUTHENTICATION_REQUIRED
}

/// The error for a page. `from` is where redirects led to, and `title` the page's own text.
pub(super) fn error(
    registry: &str,
    from: Option<&Url>,
    status: StatusCode,
    media_type: &str,
    title: Option<&str>,
) -> Error {
    let status = status.as_u16();
    let what = match from {
        Some(from) => {
            let from = origin(from);
            format!("{registry} sends us to {from}, which answered {status} with a web page ({media_type})")
        }
        None => format!("{registry} answered {status} with a web page ({media_type})"),
    };
    let kind = if status == 403 { Kind::Denied } else { Kind::Registry };
    let made = Error::new(kind, what);
    // What stands between may say "please wait" once, and let the next request through.
    let made = if (200..300).contains(&status) && from.is_none() { made.transient(None) } else { made };
    made.quoting(title.map(|title| format!(": {title}")).unwrap_or_default()).hint(
        "this is no answer of a registry: a login page of the network, or a proxy that blocks the host, answers in its \
         place; open the registry's address in a browser to see the page",
    )
}

/// The error for a response that should be a document or a blob, if it is labelled as a page.
pub(super) fn instead<B>(registry: &str, response: &http::Response<B>) -> Option<Error> {
    let media_type = media_type(response.headers())?;
    Some(error(registry, redirected_to(response), response.status(), &media_type, None))
}
