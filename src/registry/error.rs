//! Turns a registry's error response, or a failed exchange, into an error with a hint.

use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;

use super::acr_refusals::{Refusal, abac_hint};
use super::auth::acr_exchange::IDENTITY_NAME;
use super::auth::scope::{Access, Scope};
use super::azure::is_acr;
use super::client::{Response, SMALL_ANSWER_TIMEOUT};
use super::error_document::{Explained, explain};
use super::limits::parallelism::retry_after;
use super::limits::pull_ledger::SIX_HOURS;
use super::location::redirected_to;
use super::network::find_source;
use super::web_page;
use crate::clock;
use crate::error::{Error, Kind};
use crate::reference::DOCKER_HUB;
use crate::waits;

/// The error for a response with a status other than 2xx.
///
/// The body is parsed as the distribution spec's error document if it is one. HTML pages and plain text, which ACR and
/// CDNs send, are cut to one line.
pub(super) async fn from_response(
    response: Response,
    registry: &str,
    method: &Method,
    scope: &Scope,
    user: Option<&str>,
) -> Error {
    let status = response.status();
    let wait = retry_after(response.headers());
    let remaining = super::limits::pull_ledger::PullQuota::from_headers(response.headers());
    let page = web_page::media_type(response.headers()).filter(|_| web_page::stands_in(status));
    let from = redirected_to(&response).cloned();
    let body = beginning(response).await;
    let explained = explain(&body);
    if let Some(page) = page.filter(|_| explained.code.is_none()) {
        return web_page::error(registry, from.as_ref(), status, &page, explained.message.as_deref());
    }
    let (known, quote) = quoted(&explained);
    let what = format!("{registry} answered {}{known}", status.as_u16());
    let asked = RequestContext { registry, method, scope, user, wait, remaining };
    let error = match refusal(status, &asked, &explained) {
        Some((kind, hint)) => Error::new(kind, what).hint(hint),
        None => from_status(status, what, &explained, asked),
    };
    error.answered(status.as_u16(), explained.code).quoting(quote)
}

/// The beginning of an error's body, up to [`MAX_BODY`]: a page that is long or breaks off may state the reason there.
async fn beginning(response: Response) -> Vec<u8> {
    let (mut body, mut bytes) = (response.into_body(), Vec::new());
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            let room = MAX_BODY - bytes.len();
            bytes.extend_from_slice(&data[..data.len().min(room)]);
            if bytes.len() == MAX_BODY {
                break;
            }
        }
    };
    // A part is enough.
    let _ = tokio::time::timeout(SMALL_ANSWER_TIMEOUT, reading).await;
    bytes
}

/// The error of a token endpoint. A wrong secret gives 400 at ACR, 403 at Harbor, and 401 elsewhere.
pub(super) fn token_error(
    status: StatusCode,
    body: &[u8],
    wait: Option<std::time::Duration>,
    (registry, user): (&str, Option<&str>),
) -> Error {
    let explained = explain(body);
    let what = format!("the token endpoint answered {}", status.as_u16());
    let message = explained.message.as_deref().unwrap_or_default();
    let refusal = Refusal { registry, repository: "the repository", status, write: false, message };
    let refused = is_acr(registry).then(|| refusal.explain()).flatten();
    let error = match (refused, user) {
        (Some((kind, hint)), _) => Error::new(kind, what).hint(hint),
        _ if status == StatusCode::TOO_MANY_REQUESTS => Error::new(Kind::Limited, what).transient(wait),
        _ if status.is_server_error() => Error::new(Kind::Registry, what).transient(wait),
        (None, Some(user)) => {
            let hint = format!(
                "the password or token of '{user}' was refused, or has expired: log in again by transload login {registry}"
            );
            Error::new(Kind::Unauthorized, what).hint(with_abac(hint, registry, Some(user)))
        }
        (None, None) => Error::new(Kind::Unauthorized, what).hint(login_first(registry)),
    };
    let (known, quote) = quoted(&explained);
    error.answered(status.as_u16(), explained.code).quoting(format!("{known}{quote}"))
}

/// A refusal that only ACR has.
fn refusal(status: StatusCode, asked: &RequestContext<'_>, explained: &Explained) -> Option<(Kind, String)> {
    let RequestContext { registry, method, scope, .. } = asked;
    let refusal = Refusal {
        registry,
        repository: &scope.repository.name,
        status,
        write: !matches!(**method, Method::GET | Method::HEAD),
        message: explained.message.as_deref().unwrap_or_default(),
    };
    is_acr(registry).then(|| refusal.explain())?
}

/// The registry's code and message: the part with a code of the specification, which is trusted text, and the quoted
/// rest.
fn quoted(Explained { code, message }: &Explained) -> (String, String) {
    match (code, message) {
        (Some(code), Some(message)) if ERROR_CODES.contains(&code.as_str()) => {
            (format!(" {code}"), format!(": {message}"))
        }
        (Some(code), Some(message)) => (String::new(), format!(" {code}: {message}")),
        (Some(code), None) if ERROR_CODES.contains(&code.as_str()) => (format!(": {code}"), String::new()),
        (Some(text), None) | (None, Some(text)) => (String::new(), format!(": {text}")),
        (None, None) => (String::new(), String::new()),
    }
}

/// The request, and the limits in the response's headers.
struct RequestContext<'a> {
    registry: &'a str,
    method: &'a Method,
    scope: &'a Scope,
    user: Option<&'a str>,
    wait: Option<std::time::Duration>,
    remaining: Option<super::limits::pull_ledger::PullQuota>,
}

fn from_status(
    status: StatusCode,
    what: String,
    Explained { code, message }: &Explained,
    RequestContext { registry, method, scope, user, wait, remaining }: RequestContext<'_>,
) -> Error {
    let account = user.map_or_else(|| "an anonymous user".to_owned(), |user| format!("'{user}'"));
    let delete = scope.access == Access::Delete;
    // A write follows a read in the same repository, so reading is allowed.
    let write = !matches!(*method, Method::GET | Method::HEAD);
    let push = scope.pushes();
    let code = code.as_deref().unwrap_or_default();
    match status {
        // Geo-replicas are eventually consistent: another replica does not know the blob yet. (400 by distribution's
        // table, 404 elsewhere.)
        _ if code == "MANIFEST_BLOB_UNKNOWN" && is_acr(registry) => Error::new(Kind::Registry, what).transient(wait),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if delete => {
            let known = status == StatusCode::FORBIDDEN || user.is_some();
            let kind = if known { Kind::Denied } else { Kind::Unauthorized };
            Error::new(kind, what).hint(delete_hint(registry))
        }
        // ACR issues a token with fewer rights than requested, and answers 401 where others answer 403.
        StatusCode::UNAUTHORIZED if user.is_some() && write => {
            Error::new(Kind::Denied, what).hint(with_abac(push_hint(registry, &account), registry, user))
        }
        StatusCode::UNAUTHORIZED if user.is_some() => {
            Error::new(Kind::Unauthorized, what).hint(with_abac(login_hint(registry, user, push), registry, user))
        }
        StatusCode::UNAUTHORIZED => Error::new(Kind::Unauthorized, what).hint(login_hint(registry, user, push)),
        StatusCode::FORBIDDEN if write => Error::new(Kind::Denied, what).hint(push_hint(registry, &account)),
        StatusCode::FORBIDDEN if push => Error::new(Kind::Denied, what).hint(pull_and_push_hint(registry, &account)),
        StatusCode::FORBIDDEN => Error::new(Kind::Denied, what).hint(pull_hint(registry, &account)),
        StatusCode::NOT_FOUND if code == "BLOB_UPLOAD_UNKNOWN" || code == "BLOB_UPLOAD_INVALID" => {
            Error::new(Kind::SessionLost, what)
        }
        StatusCode::NOT_FOUND => Error::new(Kind::NotFound, what),
        StatusCode::RANGE_NOT_SATISFIABLE => Error::new(Kind::SessionLost, what),
        StatusCode::PAYLOAD_TOO_LARGE => Error::new(Kind::TooLarge, what),
        StatusCode::TOO_MANY_REQUESTS => rate_limited(what, registry, wait, remaining, message),
        StatusCode::REQUEST_TIMEOUT => Error::new(Kind::Timeout, what).transient(wait),
        _ if code == "MANIFEST_BLOB_UNKNOWN" || code == "MANIFEST_UNKNOWN" => Error::new(Kind::Registry, what),
        _ if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => {
            Error::new(Kind::Registry, what).transient(wait)
        }
        // The registry received other bytes than announced.
        _ if code == "DIGEST_INVALID" || code == "SIZE_INVALID" => Error::new(Kind::Mismatch, what),
        _ if code == "MANIFEST_INVALID" && write => Error::new(Kind::Invalid, what),
        _ => Error::new(Kind::Registry, what),
    }
}

/// The error for an exchange with `name` that broke off. [`super::network`] makes the errors of connections.
pub(super) fn transport_error(error: &(dyn std::error::Error + 'static), name: &str) -> Error {
    if let Some(own) = find_source::<Error>(error) {
        return own.duplicate();
    }
    let made = Error::new(Kind::Network, format!("{name}: {}", root_cause(error)));
    match find_source::<std::io::Error>(error) {
        Some(cause) => made.caused_by_io(cause),
        None => made,
    }
}

/// The innermost cause, which is the most specific one. The message of an [`Error`] has its causes already.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let (mut inner, mut next) = (error, error.source());
    while let Some(source) = next {
        inner = source;
        next = source.source().filter(|_| !source.is::<Error>());
    }
    inner.to_string()
}

fn rate_limited(
    what: String,
    registry: &str,
    wait: Option<std::time::Duration>,
    pulls: Option<super::limits::pull_ledger::PullQuota>,
    message: &Option<String>,
) -> Error {
    let spent = pulls.as_ref().is_some_and(|pulls| pulls.remaining == 0);
    let quota = spent || message.as_deref().is_some_and(|text| text.contains("pull rate limit"));
    if quota {
        // Trying again soon can't help, and each try may count.
        return Error::new(Kind::Limited, what).hint(pulls_spent_hint(registry, wait, pulls.map(|pulls| pulls.window)));
    }
    let hint = match wait {
        Some(wait) if wait >= LONG_WAIT => format!(
            "too many requests: {registry} asks to wait for {}: try again at {}",
            waits::format_seconds(wait.as_secs()),
            clock::local_time_in(wait)
        ),
        _ => "too many requests: try later, or with fewer --jobs".to_owned(),
    };
    Error::new(Kind::Limited, what).transient(wait).hint(hint)
}

/// When there are pulls again: as the registry says, or when its window (in seconds) has passed.
fn pulls_spent_hint(registry: &str, wait: Option<Duration>, window: Option<u64>) -> String {
    let again = match (wait, window.filter(|window| *window > 0)) {
        (Some(wait), _) if !wait.is_zero() => format!("wait until it resets at {}", clock::local_time_in(wait)),
        (_, window) if window.is_some() || registry == DOCKER_HUB => {
            let window = window.unwrap_or(SIX_HOURS);
            let time = clock::local_time_in(Duration::from_secs(window));
            format!("wait: it resets over {} hours, at {time} at the latest", window.div_ceil(3600))
        }
        _ => "wait until it resets".to_owned(),
    };
    if registry == DOCKER_HUB {
        format!("Docker Hub's pull limit is spent: log in (transload login docker.io) for a higher one, or {again}")
    } else {
        format!("the pull limit is spent: {again}")
    }
}

/// The hint for anonymous users.
pub(super) fn login_first(registry: &str) -> String {
    let identity = if is_acr(registry) { ", or with an Azure identity, as by az login" } else { "" };
    format!("log in by transload login {registry}{identity}")
}

fn login_hint(registry: &str, user: Option<&str>, push: bool) -> String {
    match user {
        Some(user) if push && is_acr(registry) => {
            format!("'{user}' may neither pull nor push here: it needs AcrPush or Container Registry Repository Writer")
        }
        Some(user) => format!("the password or token of '{user}' was refused, or has no access to this repository"),
        None if registry == DOCKER_HUB => {
            "the repository does not exist, or is private: check its name, or log in by transload login docker.io"
                .to_owned()
        }
        None => login_first(registry),
    }
}

fn push_hint(registry: &str, account: &str) -> String {
    if is_acr(registry) {
        format!("{account} may pull but not push: it needs AcrPush or Container Registry Repository Writer")
    } else {
        format!("{account} may pull but not push: log in with an account that may, by transload login {registry}")
    }
}

fn pull_and_push_hint(registry: &str, account: &str) -> String {
    if is_acr(registry) {
        format!(
            "{account} may neither pull nor push here: it needs AcrPush or Container Registry Repository Writer, and an allowed address"
        )
    } else {
        format!(
            "{account} may neither pull nor push here: log in with an account that may, by transload login {registry}"
        )
    }
}

/// The hint for a refused delete.
fn delete_hint(registry: &str) -> &'static str {
    if is_acr(registry) {
        "pruning requires the right to delete: AcrDelete, Container Registry Repository Contributor, or a token with \
         content/delete and metadata/read"
    } else {
        "pruning requires the right to delete: log in with an account that has it"
    }
}

/// The hint of a 401 for a known user. At ACR, a 401 may also mean that the registry's mode changed after the login.
/// This run exchanged the Entra identity itself.
fn with_abac(hint: String, registry: &str, user: Option<&str>) -> String {
    if is_acr(registry) && user != Some(IDENTITY_NAME) { format!("{hint}; {}", abac_hint(registry)) } else { hint }
}

fn pull_hint(registry: &str, account: &str) -> String {
    if is_acr(registry) {
        format!(
            "{account} may not pull: it needs AcrPull or Container Registry Repository Reader, and an allowed address"
        )
    } else {
        format!(
            "{account} may not read this repository: log in with an account that may, by transload login {registry}"
        )
    }
}

/// From here on a wait is told with the time of day.
const LONG_WAIT: Duration = Duration::from_secs(60);
/// The most bytes of an error's body that are read.
const MAX_BODY: usize = 64 << 10;

/// The error codes of the distribution specification and of registries that add to it:
/// <https://distribution.github.io/distribution/spec/api/#errors-2>.
const ERROR_CODES: [&str; 22] = [
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
