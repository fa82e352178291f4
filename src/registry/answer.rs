//! From a registry's answer, or the lack of one, to an error that says what to do.

use http::{Method, StatusCode};
use serde::Deserialize;

use super::azure::is_acr;
use super::limits::retry_after;
use super::network::find_source;
use super::token::Scope;
use super::transport::{Response, read_small};
use super::web_page::{self, CameFrom};
use crate::error::{Error, Kind};
use crate::reference::DOCKER_HUB;
use crate::{printable, redact};

/// The error that a response with a status other than 2xx stands for.
///
/// The body is read as the distribution spec's error document where it is one; ACR's and CDNs'
/// HTML pages and plain texts are cut to a line.
pub(super) async fn error(
    response: Response,
    registry: &str,
    method: &Method,
    scope: &Scope,
    user: Option<&str>,
) -> Error {
    let status = response.status();
    let wait = retry_after(response.headers());
    let remaining = super::quota::PullQuota::from_headers(response.headers());
    let page = web_page::media_type(response.headers()).filter(|_| web_page::stands_in(status));
    let from = response.extensions().get::<CameFrom>().cloned();
    let body = read_small(response, 64 << 10).await.unwrap_or_default();
    let (code, message) = explain(&body);
    if let Some(page) = page.filter(|_| code.is_none()) {
        return web_page::error(registry, from.as_ref(), status, &page, message.as_deref());
    }
    let (known, quote) = said(code.as_deref(), message.as_deref());
    let what = format!("{registry} answered {}{known}", status.as_u16());
    of_status(status, what, (code, message), Asked { registry, method, scope, user, wait, remaining }).quoting(quote)
}

/// What the registry said: a code of the specification, which is as good as our own words, and all else.
fn said(code: Option<&str>, message: Option<&str>) -> (String, String) {
    match (code, message) {
        (Some(code), Some(message)) if CODES.contains(&code) => (format!(" {code}"), format!(": {message}")),
        (Some(code), Some(message)) => (String::new(), format!(" {code}: {message}")),
        (Some(code), None) if CODES.contains(&code) => (format!(": {code}"), String::new()),
        (Some(text), None) | (None, Some(text)) => (String::new(), format!(": {text}")),
        (None, None) => (String::new(), String::new()),
    }
}

/// What was asked for, and what the answer's headers say of limits.
struct Asked<'a> {
    registry: &'a str,
    method: &'a Method,
    scope: &'a Scope,
    user: Option<&'a str>,
    wait: Option<std::time::Duration>,
    remaining: Option<super::quota::PullQuota>,
}

fn of_status(
    status: StatusCode,
    what: String,
    (code, message): (Option<String>, Option<String>),
    Asked { registry, method, scope, user, wait, remaining }: Asked<'_>,
) -> Error {
    let who = user.map_or_else(|| "an anonymous user".to_owned(), |user| format!("'{user}'"));
    // Nothing is written before something was read in the same repository: so reading is allowed.
    let write = !matches!(*method, Method::GET | Method::HEAD);
    let push = scope.pushes();
    let code = code.as_deref().unwrap_or_default();
    match status {
        // Geo-replicas agree after a while only: what one took, another doesn't know yet. (400 by distribution's
        // table, 404 elsewhere.)
        _ if code == "MANIFEST_BLOB_UNKNOWN" && is_acr(registry) => Error::new(Kind::Registry, what).transient(wait),
        // ACR gives a token for less than was asked, and then says 401 where others say 403.
        StatusCode::UNAUTHORIZED if user.is_some() && write => {
            Error::new(Kind::Denied, what).hint(push_hint(registry, &who))
        }
        StatusCode::UNAUTHORIZED => Error::new(Kind::Unauthorized, what).hint(login_hint(registry, user, push)),
        StatusCode::FORBIDDEN if write => Error::new(Kind::Denied, what).hint(push_hint(registry, &who)),
        StatusCode::FORBIDDEN if push => Error::new(Kind::Denied, what).hint(both_hint(registry, &who)),
        StatusCode::FORBIDDEN => Error::new(Kind::Denied, what).hint(pull_hint(registry, &who)),
        StatusCode::NOT_FOUND if code == "BLOB_UPLOAD_UNKNOWN" || code == "BLOB_UPLOAD_INVALID" => {
            Error::new(Kind::SessionLost, what)
        }
        StatusCode::NOT_FOUND => Error::new(Kind::NotFound, what),
        StatusCode::RANGE_NOT_SATISFIABLE => Error::new(Kind::SessionLost, what),
        StatusCode::PAYLOAD_TOO_LARGE => Error::new(Kind::TooLarge, what),
        StatusCode::TOO_MANY_REQUESTS => {
            limited(what, registry, wait, remaining.is_some_and(|q| q.remaining == 0), &message)
        }
        StatusCode::REQUEST_TIMEOUT => Error::new(Kind::Timeout, what).transient(wait),
        _ if code == "MANIFEST_BLOB_UNKNOWN" || code == "MANIFEST_UNKNOWN" => Error::new(Kind::Registry, what),
        _ if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => {
            Error::new(Kind::Registry, what).transient(wait)
        }
        // The bytes that arrived there are not those that were announced.
        _ if code == "DIGEST_INVALID" || code == "SIZE_INVALID" => Error::new(Kind::Mismatch, what),
        _ if code == "MANIFEST_INVALID" && write => Error::new(Kind::Invalid, what),
        _ => Error::new(Kind::Registry, what),
    }
}

/// The error for an exchange that broke off. Those of connections are made by [`super::network`].
pub(super) fn transport_error(error: &(dyn std::error::Error + 'static), registry: &str) -> Error {
    if let Some(own) = find_source::<Error>(error) {
        return own.duplicate();
    }
    Error::new(Kind::Network, format!("{registry}: {}", root_cause(error)))
}

/// The innermost cause, which says more than the layers around it.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

fn limited(
    what: String,
    registry: &str,
    wait: Option<std::time::Duration>,
    spent: bool,
    message: &Option<String>,
) -> Error {
    let quota = spent || message.as_deref().is_some_and(|text| text.contains("pull rate limit"));
    if quota {
        let hint = if registry == DOCKER_HUB {
            "Docker Hub's pull limit is spent: log in (transload login docker.io) for a higher one, or wait, it resets over 6 hours"
        } else {
            "the pull limit is spent: wait until it resets"
        };
        // Trying again soon can't help, and each try may count.
        return Error::new(Kind::Limited, what).hint(hint);
    }
    Error::new(Kind::Limited, what).transient(wait).hint("too many requests: try later, or with fewer --jobs")
}

/// What somebody without credentials can do.
pub(super) fn login_first(registry: &str) -> String {
    let identity = if is_acr(registry) { ", or with an Azure identity, as by az login" } else { "" };
    format!("log in by transload login {registry}{identity}")
}

fn login_hint(registry: &str, user: Option<&str>, push: bool) -> String {
    match user {
        Some(user) if push && is_acr(registry) => {
            format!("'{user}' may neither pull nor push here: it needs AcrPush or Container Registry Repository Writer")
        }
        Some(user) => format!("the password or token of '{user}' is not taken, or it may not see this repository"),
        None if registry == DOCKER_HUB => {
            "the repository does not exist, or is private: check its name, or log in by transload login docker.io"
                .to_owned()
        }
        None => login_first(registry),
    }
}

fn push_hint(registry: &str, who: &str) -> String {
    if is_acr(registry) {
        format!("{who} may pull but not push: it needs AcrPush or Container Registry Repository Writer")
    } else {
        format!("{who} may pull but not push: log in as one who may, by transload login {registry}")
    }
}

fn both_hint(registry: &str, who: &str) -> String {
    if is_acr(registry) {
        format!(
            "{who} may neither pull nor push here: it needs AcrPush or Container Registry Repository Writer, and an allowed address"
        )
    } else {
        format!("{who} may neither pull nor push here: log in as one who may, by transload login {registry}")
    }
}

fn pull_hint(registry: &str, who: &str) -> String {
    if is_acr(registry) {
        format!("{who} may not pull: it needs AcrPull or Container Registry Repository Reader, and an allowed address")
    } else {
        format!("{who} may not read this repository: log in as one who may, by transload login {registry}")
    }
}

#[derive(Deserialize)]
struct Document {
    errors: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

/// The error document's first code and message, else the body's first line of text.
fn explain(body: &[u8]) -> (Option<String>, Option<String>) {
    if let Ok(Document { errors }) = serde_json::from_slice::<Document>(body)
        && let Some(Entry { code, message }) = errors.into_iter().next()
    {
        let safe = |text: Option<String>| text.map(|text| shorten(&text)).filter(|text| !text.is_empty());
        return (safe(code), safe(message));
    }
    let text = String::from_utf8_lossy(body);
    // ACR's front answers in HTML: its title says it all.
    let line = match text.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>")) {
        Some((title, _)) => title,
        None if text.trim_start().starts_with(['<', '{']) => "",
        None => text.lines().next().unwrap_or_default(),
    };
    (None, Some(shorten(line)).filter(|line| !line.is_empty()))
}

/// Text of a registry, fit to be shown: without our secrets, which are looked for before anything is cut, without
/// control characters, and short.
fn shorten(text: &str) -> String {
    let redacted = redact::remote(text);
    let short: String = redacted.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect();
    printable::line(short.trim_end_matches('.')).into_owned()
}

/// The error codes of the distribution specification, and of registries that add to them: <https://distribution.github.io/distribution/spec/api/#errors-2>.
const CODES: [&str; 22] = [
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DENIED",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "MANIFEST_UNVERIFIED",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "PAGINATION_NUMBER_INVALID",
    "QUOTA_EXCEEDED",
    "RANGE_INVALID",
    "SIZE_INVALID",
    "TAG_INVALID",
    "TAG_UNKNOWN",
    "TOOMANYREQUESTS",
    "UNAUTHORIZED",
    "UNAVAILABLE",
    "UNKNOWN",
    "UNSUPPORTED",
];

#[cfg(test)]
mod tests {
    use super::explain;

    #[test]
    fn bodies_of_all_kinds_are_read() {
        let text = |body: &str| {
            let (code, message) = explain(body.as_bytes());
            format!("{}|{}", code.unwrap_or_default(), message.unwrap_or_default())
        };
        assert_eq!(text(r#"{"errors":[{"code":"DENIED","message":"no.","detail":{}}]}"#), "DENIED|no");
        assert_eq!(
            text("<html><head><title>413 Request Entity Too Large</title></head></html>"),
            "|413 Request Entity Too Large"
        );
        assert_eq!(text("Too Many Requests (HAP429)"), "|Too Many Requests (HAP429)");
        assert_eq!(text(""), "|");
        assert_eq!(text(r#"{"errors":[]}"#), "|");
    }
}
