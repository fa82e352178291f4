//! One request to a registry, before it is sent.

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use reqwest::Url;

use super::auth::scope::Scope;

/// One request to be made.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) scope: &'a Scope,
    pub(super) headers: HeaderMap,
    pub(super) body: Payload,
    /// What to say when it fails, as in "cannot {doing}".
    pub(super) doing: String,
}

/// A request's body.
pub(super) enum Payload {
    Empty,
    /// Can be sent again.
    Bytes(Bytes),
    /// Can be sent once.
    Stream(reqwest::Body, u64),
}

impl Payload {
    /// The body to be sent now; what can be sent again stays.
    pub(super) fn next(&mut self) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(bytes.clone()),
            other => std::mem::replace(other, Self::Empty),
        }
    }
}

impl<'a> Call<'a> {
    /// A call without headers and body.
    pub(super) fn new(method: Method, url: Url, scope: &'a Scope, doing: impl Into<String>) -> Self {
        Self { method, url, scope, headers: HeaderMap::new(), body: Payload::Empty, doing: doing.into() }
    }

    /// The call once more. A streamed body goes with the first one.
    pub(super) fn again(&mut self) -> Self {
        let body = self.body.next();
        Self {
            method: self.method.clone(),
            url: self.url.clone(),
            scope: self.scope,
            headers: self.headers.clone(),
            body,
            doing: self.doing.clone(),
        }
    }

    /// Whether Docker Hub counts it as a pull: a GET of a manifest does, a HEAD doesn't.
    pub(super) fn costs_pull(&self) -> bool {
        self.method == Method::GET && names_manifest(&self.url)
    }

    pub(super) fn header(mut self, name: HeaderName, value: impl TryInto<HeaderValue>) -> Self {
        if let Ok(value) = value.try_into() {
            self.headers.insert(name, value);
        }
        self
    }
}

/// Whether it's a manifest's URL, `/v2/NAME/manifests/REFERENCE`.
pub(super) fn names_manifest(url: &Url) -> bool {
    url.path().rsplit('/').nth(1) == Some("manifests")
}
