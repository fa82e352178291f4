//! Requests to a registry of the demo, counted by the registry.

use std::collections::BTreeSet;

use http::{Method, StatusCode};
use serde::Serialize;

use crate::cli::output;

/// The kind of an answered request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// 401: the client needs a token.
    Challenge,
    Token,
    Head,
    ManifestRead,
    Redirect,
    /// A blob, read from the target of a redirect.
    BlobRead,
    Session,
    BlobWritten,
    ManifestWritten,
    /// Tags or referrers.
    List,
    Refused,
    Other,
}

/// The requests of one command to one registry.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    seen: Vec<(Kind, String)>,
    struck: Vec<Fault>,
}

/// The counts in the JSON document.
#[derive(Serialize)]
pub(super) struct Counts {
    requests: usize,
    challenges: usize,
    tokens: usize,
    manifests_read: usize,
    redirects: usize,
    blobs_read: usize,
    blobs_written: usize,
    manifests_written: usize,
}

impl Kind {
    pub(super) fn of(method: &Method, path: &str, status: StatusCode) -> Self {
        let good = status.is_success();
        match *method {
            _ if status == StatusCode::UNAUTHORIZED => Self::Challenge,
            _ if path.ends_with("/token") => Self::Token,
            _ if status == StatusCode::TEMPORARY_REDIRECT => Self::Redirect,
            Method::HEAD => Self::Head,
            Method::GET if good && path.contains("/manifests/") => Self::ManifestRead,
            Method::GET if good && path.ends_with("/data") => Self::BlobRead,
            Method::POST if status == StatusCode::ACCEPTED => Self::Session,
            Method::PUT if good && path.contains("/blobs/uploads/") => Self::BlobWritten,
            Method::PUT if good && path.contains("/manifests/") => Self::ManifestWritten,
            Method::GET if path.contains("/referrers/") || path.ends_with("/tags/list") => Self::List,
            _ if good => Self::Other,
            _ => Self::Refused,
        }
    }
}

impl Tally {
    pub(super) fn add(&mut self, kind: Kind, path: String) {
        self.seen.push((kind, path));
    }

    pub(super) fn note_fault(&mut self, what: Fault) {
        self.struck.push(what);
    }

    pub(super) fn has_fault(&self, what: Fault) -> bool {
        self.struck.contains(&what)
    }

    pub(super) fn requests(&self) -> usize {
        self.seen.len()
    }

    pub(super) fn count(&self, kind: Kind) -> usize {
        self.seen.iter().filter(|(seen, _)| *seen == kind).count()
    }

    /// How many different objects the requests of a kind were for.
    pub(super) fn distinct(&self, kind: Kind) -> usize {
        let paths = self.seen.iter().filter(|(seen, _)| *seen == kind).map(|(_, path)| path);
        paths.collect::<BTreeSet<_>>().len()
    }

    /// Requests that were not for authentication.
    pub(super) fn asked(&self) -> usize {
        self.requests() - self.count(Kind::Challenge) - self.count(Kind::Token)
    }

    /// `9 requests: 1 challenge, 1 token, …`.
    pub(super) fn text(&self) -> String {
        let nouns = [
            (Kind::Challenge, "challenge"),
            (Kind::Token, "token"),
            (Kind::Head, "HEAD"),
            (Kind::ManifestRead, "manifest read"),
            (Kind::Redirect, "redirect"),
            (Kind::BlobRead, "blob read there"),
            (Kind::Session, "upload begun"),
            (Kind::BlobWritten, "blob stored"),
            (Kind::ManifestWritten, "manifest stored"),
            (Kind::List, "list"),
            (Kind::Refused, "refusal"),
            (Kind::Other, "other"),
        ];
        let parts = nouns.map(|(kind, noun)| (self.count(kind), noun));
        let parts = parts.into_iter().filter(|(number, _)| *number > 0).map(|(number, noun)| count_noun(number, noun));
        let all = output::count_noun(self.requests(), "request");
        format!("{all}: {}", parts.collect::<Vec<_>>().join(", "))
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            requests: self.requests(),
            challenges: self.count(Kind::Challenge),
            tokens: self.count(Kind::Token),
            manifests_read: self.count(Kind::ManifestRead),
            redirects: self.count(Kind::Redirect),
            blobs_read: self.count(Kind::BlobRead),
            blobs_written: self.count(Kind::BlobWritten),
            manifests_written: self.count(Kind::ManifestWritten),
        }
    }
}

/// `2 blobs read there`: a number with the plural of the first word.
fn count_noun(number: usize, noun: &str) -> String {
    match noun.split_once(' ') {
        Some((noun, rest)) => format!("{} {rest}", output::count_noun(number, noun)),
        None if noun == "other" => format!("{number} other"),
        None => output::count_noun(number, noun),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// All tokens so far become invalid.
    TokensExpire,
    /// The upload session is lost, as sometimes at ACR (azure-sdk-for-net#35322).
    SessionIsLost,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_by_what_they_came_to() {
        let of = |method: Method, path: &str, status: u16| {
            Kind::of(&method, path, StatusCode::from_u16(status).expect("a status"))
        };
        assert_eq!(of(Method::HEAD, "/v2/a/manifests/x", 401), Kind::Challenge);
        assert_eq!(of(Method::GET, "/oauth2/token", 200), Kind::Token);
        assert_eq!(of(Method::GET, "/v2/a/blobs/sha256:0", 307), Kind::Redirect);
        assert_eq!(of(Method::GET, "/cdn/a/blobs/sha256:0/data", 200), Kind::BlobRead);
        assert_eq!(of(Method::PUT, "/v2/a/blobs/uploads/1", 404), Kind::Refused);
        let mut tally = Tally::default();
        tally.add(Kind::BlobRead, "/a".into());
        tally.add(Kind::BlobRead, "/a".into());
        tally.add(Kind::Token, "/t".into());
        assert_eq!(tally.text(), "3 requests: 1 token, 2 blobs read there");
        assert_eq!((tally.distinct(Kind::BlobRead), tally.asked()), (1, 2));
    }
}
