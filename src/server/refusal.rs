//! Errors as the distribution spec writes them ("Error Codes").

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use super::{ResponseBody, respond};
use crate::error::{Error, Kind};
use crate::printable;

/// An answer that says no.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The HTTP status.
    pub(crate) status: StatusCode,
    /// The spec's code, such as `BLOB_UNKNOWN`.
    pub(crate) code: &'static str,
    /// What is wrong, for people.
    pub(crate) message: String,
    /// Headers that go with it.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    /// A refusal with this status, code and message.
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message: String = message.into();
        // It may repeat what a client sent, and clients print it.
        Self { status, code, message: printable::line(&message).into_owned(), headers: Vec::new() }
    }

    /// Adds a header.
    #[must_use]
    pub(crate) fn with(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }

    /// The refusal for what the backend couldn't do.
    ///
    /// A client must not learn local paths: what failed in here is logged, not told. Nor does it learn what an
    /// upstream wrote, which was meant for this server's credentials.
    pub(crate) fn backend(error: &Error) -> Self {
        let made = match error.kind() {
            Kind::NotFound => Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", error.own_text()),
            // Not 429: containerd tries that again at once, five times, whatever `Retry-After` says; by a 503
            // it goes on to its next host.
            Kind::Limited => Self::new(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", error.own_text()),
            Kind::Timeout => Self::new(StatusCode::GATEWAY_TIMEOUT, "UNKNOWN", "the upstream is silent"),
            // A proxy's upstream refuses the proxy, by 401 or 403. Never 401: the client would look for
            // credentials of its own, or send what it has to us. Not 404: containerd would say "not found" of
            // what may well be there. Nor 502, which podman and skopeo try again for nothing. By a 403
            // containerd, CRI-O, podman and Docker go on to their next host or mirror at once, and where there is
            // none, say that access was denied: Docker Hub answers so for what doesn't exist, too.
            Kind::Unauthorized | Kind::Denied => {
                log(error);
                Self::new(StatusCode::FORBIDDEN, "DENIED", UPSTREAM_DENIES)
            }
            // Not 413: clients would try again by smaller requests. Nor 507, which they would try again as it is. Other
            // registries too say so of a quota that is used up.
            Kind::Full => Self::new(StatusCode::FORBIDDEN, "DENIED", error.own_text()),
            // A gateway's fault, and the text has nothing that the upstream wrote.
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

    /// The refusal for a request's body that broke off, or for storage that couldn't take it.
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

/// Logs an error that is not in the log yet: one upstream that is down fails thousands of requests.
fn log(error: &Error) {
    if error.is_reported() {
        tracing::debug!("{error}");
    } else {
        tracing::error!("{error}");
    }
}

/// Whose credentials are wanting: whoever reads this has looked at their own first.
const UPSTREAM_DENIES: &str = "the upstream does not let this proxy read it: the proxy's own credentials do not suffice, \
    or there is no such repository";
