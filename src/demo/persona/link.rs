//! Signed, short-lived links to blobs on another host.

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Method, Uri, response};

use super::mint::Mint;
use super::wire::{Base, Form, set};

/// A host that serves blobs to clients with a signed link.
#[derive(Debug)]
pub(super) struct Links {
    base: Base,
    seconds: u64,
    /// The query before the expiry's value, such as `sp=r&se=`.
    expiry: &'static str,
    /// The query between expiry and signature, such as `&sig=`.
    signature: &'static str,
}

/// The reason for refusing a link.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The request has `Authorization` besides the signature.
    Authorization,
    Forged,
    Expired,
}

impl Links {
    pub(super) fn new(base: &str, seconds: u64, expiry: &'static str, signature: &'static str) -> Self {
        Self { base: Base::new(base), seconds, expiry, signature }
    }

    pub(super) fn issue(&self, mint: &Mint, name: &str, digest: &str) -> String {
        let path = format!("/{name}/blobs/{digest}/data");
        let expires = mint.now() + self.seconds;
        let signature = mint.sign(&format!("{path} {expires}"));
        format!("{}{path}?{}{expires}{}{signature}", self.base.url, self.expiry, self.signature)
    }

    /// The path after the base, if the request is for this host.
    pub(super) fn serves<'a>(&self, head: &'a Parts) -> Option<&'a str> {
        self.base.serves(head)
    }

    /// Checks a link, and returns the request to the registry behind: same method, same `Range`.
    pub(super) fn open(&self, mint: &Mint, path: &str, head: &Parts) -> Result<Parts, Refused> {
        if head.headers.contains_key(AUTHORIZATION) {
            return Err(Refused::Authorization);
        }
        let query = Form::of_query(head);
        let name = |text: &'static str| text.rsplit('&').find(|part| !part.is_empty()).unwrap_or_default();
        let value = |text| query.first(name(text).trim_end_matches('=')).unwrap_or_default();
        let expires: u64 = value(self.expiry).parse().map_err(|_| Refused::Forged)?;
        if mint.sign(&format!("{path} {expires}")) != value(self.signature) {
            return Err(Refused::Forged);
        }
        if expires <= mint.now() {
            return Err(Refused::Expired);
        }
        let mut forwarded = head.clone();
        let path = path.strip_suffix("/data").unwrap_or(path);
        forwarded.uri = format!("/v2{path}").parse().map_err(|_| Refused::Forged)?;
        Ok(forwarded)
    }
}

/// The request with which a registry checks that the blob exists, before it redirects.
pub(super) fn probe(head: &Parts) -> Parts {
    let mut probe = head.clone();
    probe.method = Method::HEAD;
    probe.headers.remove("range");
    probe.uri = head.uri.path().parse().unwrap_or_else(|_| Uri::from_static("/"));
    probe
}

/// Turns the answer to [`probe`] into the redirect.
pub(super) fn redirect(response: &mut response::Parts, to: &str) {
    response.status = http::StatusCode::TEMPORARY_REDIRECT;
    response.headers.clear();
    set(&mut response.headers, "location", to);
    set(&mut response.headers, "content-length", "0");
    set(&mut response.headers, "docker-distribution-api-version", "registry/2.0");
}
