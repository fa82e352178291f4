//! The URLs of a registry's API, and which of them may be written to.
//!
//! A URL is built from checked parts, each of which becomes one percent-encoded segment; nothing is
//! resolved against the base, so `..`, `?` and `#` in a part cannot lead to another endpoint. Where an
//! upload continues is for the registry to say (`Location`), so that is checked instead.

use http::Method;
use reqwest::Url;

use super::address::same_origin;
use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result};
use crate::reference::{Repository, RepositoryName, Tag, Target};

/// An endpoint of a registry's API.
#[derive(Clone, Copy, Debug)]
pub(super) enum Endpoint<'a> {
    /// `/v2/`
    Base,
    /// `/v2/<name>/tags/list`
    Tags(&'a RepositoryName),
    /// `/v2/<name>/manifests/<tag or digest>`
    Manifest(&'a RepositoryName, &'a Target),
    /// `/v2/<name>/blobs/<digest>`
    Blob(&'a RepositoryName, &'a Digest),
    /// `/v2/<name>/blobs/uploads/`
    Uploads(&'a RepositoryName),
    /// `/v2/<name>/referrers/<digest>`
    Referrers(&'a RepositoryName, &'a Digest),
    /// `/acr/v1/<name>/_tags/<tag>`: Azure's own API.
    AcrTag(&'a RepositoryName, &'a Tag),
    /// `/oauth2/exchange`: Azure's own API.
    AcrExchange,
}

impl Endpoint<'_> {
    /// Its URL at the registry of this base, without a query.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a name that no registry can have.
    pub(super) fn url(&self, base: &Url) -> Result<Url> {
        let (first, name): (&[&str], _) = match self {
            Self::Base => return below(base, ["v2", ""]),
            Self::AcrExchange => return below(base, ["oauth2", "exchange"]),
            Self::AcrTag(name, _) => (&["acr", "v1"], *name),
            Self::Tags(name) | Self::Manifest(name, _) | Self::Blob(name, _) => (&["v2"], *name),
            Self::Uploads(name) | Self::Referrers(name, _) => (&["v2"], *name),
        };
        if name.is_empty() {
            return Err(Error::new(Kind::Invalid, "a request without a repository cannot be made to one"));
        }
        let last = match self {
            Self::Base | Self::AcrExchange => ["", ""].map(str::to_owned),
            Self::Tags(_) => ["tags", "list"].map(str::to_owned),
            Self::Manifest(_, target) => {
                target.in_registry()?;
                ["manifests".to_owned(), target.to_string()]
            }
            Self::Blob(_, digest) => ["blobs".to_owned(), digest.to_string()],
            Self::Referrers(_, digest) => ["referrers".to_owned(), digest.to_string()],
            Self::AcrTag(_, tag) => ["_tags".to_owned(), tag.to_string()],
            // And the slash at the end.
            Self::Uploads(_) => {
                return below(base, first.iter().copied().chain(name.split('/')).chain(["blobs", "uploads", ""]));
            }
        };
        below(base, first.iter().copied().chain(name.split('/')).chain(last.iter().map(String::as_str)))
    }
}

/// The URL of these segments at the base's origin.
fn below<'a>(base: &Url, segments: impl IntoIterator<Item = &'a str>) -> Result<Url> {
    let mut url = base.clone();
    url.set_query(None);
    url.set_fragment(None);
    let wrong = |()| Error::new(Kind::Invalid, format!("{base} is not the address of a registry"));
    url.path_segments_mut().map_err(wrong)?.clear().extend(segments);
    Ok(url)
}

/// Checks that a request that changes something is one to this repository: the last check before it is sent.
///
/// # Errors
/// [`Kind::Refused`] for the URL of anything else. That is a fault of this program, save where a registry
/// names the URL of an upload session; [`check_session`] refuses that one earlier.
pub(super) fn check_write(method: &Method, url: &Url, base: &Url, repository: &Repository) -> Result<()> {
    if matches!(*method, Method::GET | Method::HEAD) || is_own(url, base, &repository.name) {
        return Ok(());
    }
    check_session(url, base, repository)
}

/// Whether it is a manifest, a tag, or the beginning of an upload, in the repository of this name.
fn is_own(url: &Url, base: &Url, name: &RepositoryName) -> bool {
    if !same_origin(url, base) || name.is_empty() {
        return false;
    }
    let rest = |before: &str| url.path().strip_prefix(before)?.strip_prefix(name.as_str());
    // A segment that was built here holds no escape: tags and digests need none.
    let is_one = |segment: &str| !segment.is_empty() && !segment.contains(['/', '\\', '%']);
    match (rest("/v2/"), rest("/acr/v1/")) {
        (Some("/blobs/uploads/"), _) => true,
        (Some(rest), _) => rest.strip_prefix("/manifests/").is_some_and(is_one),
        (_, Some(rest)) => rest.strip_prefix("/_tags/").is_some_and(is_one),
        (None, None) => false,
    }
}

/// Checks where a registry sends the bytes of an upload.
///
/// The path is the registry's affair (distribution spec, "Pushing a blob in chunks"), and differs: mostly
/// `/v2/<name>/blobs/uploads/<id>`, `…/blobs/upload/<id>` at ghcr.io, `/artifacts-uploads/…` at Google,
/// all of them behind a prefix at some. But at the registry's own origin the request has our credentials,
/// so it must not be another endpoint, nor a session of another repository. Another origin gets no credentials.
///
/// # Errors
/// [`Kind::Refused`].
pub(super) fn check_session(url: &Url, base: &Url, repository: &Repository) -> Result<()> {
    if !same_origin(url, base) || is_session(url.path(), &repository.name) {
        return Ok(());
    }
    let path = url.path();
    Err(Error::new(
        Kind::Refused,
        format!("the registry sends an upload to {path:?}, which is no upload session of {repository}"),
    )
    .hint("the registry, or a proxy in front of it, is faulty or hostile"))
}

fn is_session(path: &str, name: &RepositoryName) -> bool {
    let Some(path) = decoded(path) else { return false };
    // As lenient as the most lenient server: `\` is a slash, `//` is one, `;…` is no part of a segment.
    let segments: Vec<String> = path
        .split(['/', '\\'])
        .map(|segment| segment.split(';').next().unwrap_or_default().to_ascii_lowercase())
        .filter(|segment| !segment.is_empty())
        .collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    if segments.iter().any(|segment| matches!(*segment, "." | ".." | "_tags" | "_manifests" | "_catalog")) {
        return false;
    }
    let [.., kind, _] = segments[..] else { return false };
    if matches!(kind, "manifests" | "blobs" | "tags" | "referrers") {
        return false;
    }
    let Some(api) = segments.iter().position(|segment| *segment == "v2") else {
        // A path of the registry's own, outside of the API that we know.
        return !matches!(segments[0], "acr" | "oauth2" | "token");
    };
    let Some(blobs) = segments.windows(2).rposition(|pair| matches!(pair, ["blobs", "uploads" | "upload"])) else {
        return false;
    };
    // A registry behind a proxy may know the repository by a longer name.
    let own: Vec<&str> = name.split('/').collect();
    blobs > api && segments[api + 1..blobs].ends_with(&own) && segments.len() > blobs + 2
}

/// The path with its escapes decoded, those of escapes too; `None` if that never ends or is no text.
fn decoded(path: &str) -> Option<String> {
    let mut path = path.to_owned();
    for _ in 0..MAX_ESCAPES {
        let next = percent_decoded(&path)?;
        if next == path {
            return (!path.contains(char::is_control)).then_some(path);
        }
        path = next;
    }
    None
}

/// [`percent_decode`], if the result is text.
pub(super) fn percent_decoded(text: &str) -> Option<String> {
    String::from_utf8(percent_decode(text)).ok()
}

/// Decodes once. A `%` that begins no escape stays.
pub(super) fn percent_decode(text: &str) -> Vec<u8> {
    let hex = |byte: Option<&u8>| {
        byte.and_then(|byte| char::from(*byte).to_digit(16)).and_then(|digit| u8::try_from(digit).ok())
    };
    let bytes = text.as_bytes();
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        match (byte, hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(high << 4 | low);
                at += 3;
            }
            _ => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

/// How often a path may be escaped.
const MAX_ESCAPES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Url {
        Url::parse("https://r.io").expect("a URL")
    }

    fn repository() -> Repository {
        "r.io/team/app".parse().expect("a repository")
    }

    #[test]
    fn urls_are_those_of_the_specification() {
        let (name, digest) = (&repository().name, &Digest::of(b"x"));
        let (tag, pinned) = (Target::Tag("v1.0_x-y".into()), Target::Digest(*digest));
        for (endpoint, path) in [
            (Endpoint::Base, "/v2/".to_owned()),
            (Endpoint::Tags(name), "/v2/team/app/tags/list".to_owned()),
            (Endpoint::Manifest(name, &tag), "/v2/team/app/manifests/v1.0_x-y".to_owned()),
            (Endpoint::Manifest(name, &pinned), format!("/v2/team/app/manifests/{digest}")),
            (Endpoint::Blob(name, digest), format!("/v2/team/app/blobs/{digest}")),
            (Endpoint::Uploads(name), "/v2/team/app/blobs/uploads/".to_owned()),
            (Endpoint::Referrers(name, digest), format!("/v2/team/app/referrers/{digest}")),
            (Endpoint::AcrTag(name, &"v1".into()), "/acr/v1/team/app/_tags/v1".to_owned()),
            (Endpoint::AcrExchange, "/oauth2/exchange".to_owned()),
        ] {
            assert_eq!(endpoint.url(&base()).expect("a URL").as_str(), format!("https://r.io{path}"));
        }
    }

    #[test]
    fn what_is_no_registry_is_no_host() {
        let registries = crate::registry::Registries::new(crate::registry::Options::default());
        for bad in ["oci:/images", "DESTINATION", "", "a/b", "user@r.io", "r.io?x", "r.io#x", "R.io"] {
            assert!(registries.registry(bad).is_err(), "{bad:?}");
        }
        assert!(registries.registry("r.io:5000").is_ok());
    }

    #[test]
    fn what_no_registry_has_gets_no_url() {
        let name = Target::Name("r.io/victim/app:latest".into());
        assert!(Endpoint::Manifest(&repository().name, &name).url(&base()).is_err());
        let none = Repository::none("r.io".into());
        assert!(Endpoint::Manifest(&none.name, &Target::Tag("v1".into())).url(&base()).is_err());
        assert!(Endpoint::Uploads(&none.name).url(&base()).is_err());
    }

    #[test]
    fn segments_are_escaped_and_never_resolved() {
        let url = below(&base(), ["v2", "a/../b", "a?b#c", "%2e%2e", "a\\b"]).expect("a URL");
        assert_eq!(url.as_str(), "https://r.io/v2/a%2F..%2Fb/a%3Fb%23c/%252e%252e/a%5Cb");
    }

    #[test]
    fn only_the_own_repository_is_written_to() {
        let may = |method: &Method, path: &str| {
            let url = base().join(path).expect("a URL");
            check_write(method, &url, &base(), &repository()).is_ok()
        };
        for good in [
            "/v2/team/app/manifests/v1",
            "/v2/team/app/blobs/uploads/",
            "/v2/team/app/blobs/uploads/?mount=x",
            "/v2/team/app/blobs/uploads/0a?_state=x",
            "/acr/v1/team/app/_tags/v1",
        ] {
            assert!(may(&Method::PUT, good), "{good}");
        }
        for bad in [
            "/v2/victim/app/manifests/v1",
            "/v2/team/app/manifests/../../../victim/app/manifests/v1",
            "/v2/team/app/manifests/a/manifests/b",
            "/v2/team/app/manifests/",
            "/v2/team/app2/manifests/v1",
            "/v2/team/app/blobs/sha256:0",
            "/acr/v1/victim/app/_tags/v1",
            "/acr/v1/team/app/_manifests/v1",
            "/v2/",
        ] {
            assert!(!may(&Method::PUT, bad) && !may(&Method::DELETE, bad) && !may(&Method::POST, bad), "{bad}");
            assert!(may(&Method::GET, bad), "reading is the registry's affair: {bad}");
        }
    }

    #[test]
    fn locations_of_real_registries_are_taken() {
        for path in [
            "/v2/team/app/blobs/uploads/0fa3?_state=x",
            "/v2/team/app/blobs/uploads/0fa3?_nouploadcache=false&_state=x",
            "/v2/team/app/blobs/upload/1.0fa3",
            "/v2/team/app/blobs/uploads/0fa3/",
            "/v2/remote-docker/team/app/blobs/uploads/0fa3",
            "/artifactory/api/docker/local/v2/team/app/blobs/uploads/0fa3",
            "/repository/docker/v2/team/app/blobs/uploads/0fa3",
            "/artifacts-uploads/namespaces/p/repositories/r/uploads/AF2x",
            "/upload/0fa3",
            "//v2/team/app/blobs/uploads/a%2Bb%3D",
        ] {
            let url = Url::parse(&format!("https://r.io{path}")).expect("a URL");
            assert!(check_session(&url, &base(), &repository()).is_ok(), "{path}");
        }
        let elsewhere = Url::parse("https://storage.io/v2/victim/app/manifests/latest").expect("a URL");
        assert!(check_session(&elsewhere, &base(), &repository()).is_ok(), "it gets no credentials");
    }

    #[test]
    fn locations_at_other_endpoints_are_refused() {
        for path in [
            "/v2/victim/app/manifests/latest",
            "/v2/victim/app/manifests/latest/",
            "/v2//victim/app//manifests//latest",
            "/v2/victim/app/manifests/latest;x=1",
            "/v2/victim/app/MANIFESTS/latest",
            "/v2/team/app/manifests/latest",
            "/v2/team/app/blobs/uploads/../../../../victim/app/manifests/latest",
            "/v2/team/app/blobs/uploads/%2e%2e/%2e%2e/%2e%2e/%2e%2e/victim/app/manifests/latest",
            "/v2/team/app/blobs/uploads/..%2f..%2f..%2f..%2fvictim/app/manifests/latest",
            "/v2/team/app/blobs/uploads/%252e%252e%252fvictim%252fmanifests%252flatest",
            "/v2/team/app/blobs/uploads/x%2fmanifests%2flatest",
            "/v2/team/app/blobs/uploads/x%5cmanifests%5clatest",
            "/v2/team/app/blobs/uploads/x/manifests/latest",
            "/v2/team/app/blobs/uploads/x/blobs/sha256:00",
            "/v2/victim/app/blobs/uploads/0fa3",
            "/v2/team/app/blobs/sha256:00",
            "/v2/team/app/blobs/uploads/",
            "/prefix/v2/victim/app/manifests/latest",
            "/acr/v1/victim/app/_tags/latest",
            "/acr/v1/victim/app/_manifests/sha256:00",
            "/oauth2/token",
            "/v2/",
            "/",
            "/v2/team/app/blobs/uploads/a%0d%0ab",
        ] {
            let url = Url::parse(&format!("https://r.io{path}")).expect("a URL");
            let error = check_session(&url, &base(), &repository()).expect_err(path);
            assert_eq!(error.kind(), Kind::Refused, "{path}");
        }
    }
}
