//! Error responses of the distribution spec ("Error Codes").

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use super::{ResponseBody, respond};
use crate::error::{Error, Kind};
use crate::printable;

/// An error response.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The HTTP status.
    pub(crate) status: StatusCode,
    /// The spec's code, such as `BLOB_UNKNOWN`.
    pub(crate) code: &'static str,
    /// The message for users.
    pub(crate) message: String,
    /// Additional headers.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    /// A refusal with this status, code and message.
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message: String = message.into();
        // The message may contain text from a client, and clients print it.
        Self { status, code, message: printable::line(&message).into_owned(), headers: Vec::new() }
    }

    /// Adds a header.
    #[must_use]
    pub(crate) fn with(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }

    /// The error response for an error of the backend.
    ///
    /// Clients must not learn local paths, so local errors are only logged. Clients do not get the text of an upstream's error
    /// either: that was meant for the server's own credentials.
    pub(crate) fn backend(error: &Error) -> Self {
        let made = match error.kind() {
            Kind::NotFound => Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", error.own_text()),
            // Not 429: containerd retries that five times at once and ignores `Retry-After`. After a 503 it continues with its
            // next host.
            Kind::Limited => Self::new(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", error.own_text()),
            Kind::Timeout => Self::new(StatusCode::GATEWAY_TIMEOUT, "UNKNOWN", "the upstream does not answer"),
            // The upstream refuses the proxy with 401 or 403. Not 401: the client would look for its own credentials, or send
            // them to the proxy. Not 404: containerd would report "not found" for content that may exist. Not 502: podman and
            // skopeo would retry without effect. After a 403 containerd, CRI-O, podman and Docker continue with their next
            // host or mirror at once. If there is none, they report that access was denied, which Docker Hub also answers for
            // missing repositories.
            Kind::Unauthorized | Kind::Denied => {
                log(error);
                Self::new(StatusCode::FORBIDDEN, "DENIED", UPSTREAM_DENIES)
            }
            // Not 413: clients would retry with smaller requests. Not 507: they would retry unchanged. Other registries also
            // answer 403 if a quota is exceeded.
            Kind::Full => Self::new(StatusCode::FORBIDDEN, "DENIED", error.own_text()),
            // The text contains nothing from the upstream.
            Kind::Damaged => Self::new(StatusCode::BAD_GATEWAY, "UNKNOWN", error.own_text()),
            Kind::Network | Kind::Registry => Self::new(StatusCode::BAD_GATEWAY, "UNKNOWN", "the upstream failed"),
            Kind::Interrupted => Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "the server is ending"),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", "the registry's storage failed"),
        };
        if made.status.is_server_error() {
            log(error);
        }
        match error.retry_after() {
            Some(wait) => made.with(header::RETRY_AFTER, &wait.as_secs().max(1).to_string()),
            None => made,
        }
    }

    /// The error response if a request's body breaks off, or cannot be stored.
    pub(crate) fn body(error: &Error) -> Self {
        match error.kind() {
            Kind::Network => Self::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", "the request's body broke off"),
            Kind::Timeout => {
                Self::new(StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID", "the request's body stopped coming")
            }
            Kind::Mismatch => Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", error.own_text()),
            _ => Self::backend(error),
        }
    }

    pub(super) fn into_response(self) -> Response<ResponseBody> {
        let body = serde_json::json!({"errors": [{"code": self.code, "message": self.message, "detail": null}]});
        let mut response = respond::buffered(self.status, "application/json", Bytes::from(body.to_string()));
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// Logs an error, unless the log has it already: an upstream that is down fails thousands of requests.
fn log(error: &Error) {
    if error.is_reported() {
        tracing::debug!("{error}");
    } else {
        tracing::error!("{error}");
    }
}

/// Says whose credentials are missing, because users check their own credentials first.
const UPSTREAM_DENIES: &str = "the upstream denies access to this proxy: the proxy's own credentials are not sufficient, \
    or the repository does not exist";
