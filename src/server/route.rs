//! From method, path and query to what is asked. Pure.
//!
//! Repository names contain slashes, so a path is read from its end; and since names, tags,
//! digests and session ids are held to their grammar here, nothing behind this file sees a path.

use http::{Method, StatusCode, header};

use super::refusal::Refusal;
use crate::descriptor::Digest;
use crate::reference::{RepositoryName, Tag, Target};

/// Which repository is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepositoryPath {
    /// The repository's name.
    pub name: RepositoryName,
    /// The registry that containerd asks its mirror for: `?ns=docker.io` (distribution spec,
    /// "Registry Proxying"). A key to look up, never an address to dial.
    pub ns: Option<String>,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `GET /v2/`: is this a registry?
    Base,
    /// `GET /v2/_catalog`.
    Catalog(PageQuery),
    /// `GET /v2/<name>/tags/list`.
    Tags(RepositoryPath, PageQuery),
    /// `GET` or `HEAD /v2/<name>/manifests/<reference>`.
    Manifest(RepositoryPath, Target),
    /// `GET` or `HEAD /v2/<name>/blobs/<digest>`.
    Blob(RepositoryPath, Digest),
    /// `GET /v2/<name>/referrers/<digest>?artifactType=`.
    Referrers(RepositoryPath, Digest, Option<String>),
    /// `PUT /v2/<name>/manifests/<reference>`; with a digest also `?tag=<tag>`, for each of these tags.
    PutManifest(RepositoryPath, Target, Vec<Tag>),
    /// `POST /v2/<name>/blobs/uploads/`.
    Begin(RepositoryPath, BeginUpload),
    /// `GET` of an upload's location.
    Status(RepositoryPath, String),
    /// `PATCH` of an upload's location.
    Append(RepositoryPath, String),
    /// `PUT` of an upload's location with `?digest=`.
    Finish(RepositoryPath, String, Digest),
    /// `DELETE` of an upload's location.
    Cancel(RepositoryPath, String),
}

/// How an upload begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BeginUpload {
    /// `?mount=`: the blob may be here already.
    pub mount: Option<Digest>,
    /// `?from=`: the repository that it is mounted from.
    pub from: Option<RepositoryName>,
    /// `?digest=`: the body is the whole blob.
    pub digest: Option<Digest>,
    /// `?digest-algorithm=`: a digest of the algorithm that will be used.
    pub like: Option<Digest>,
}

/// Which part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageQuery {
    /// `?n=`: how many at most.
    pub most: Option<usize>,
    /// `?last=`: those behind it.
    pub after: Option<String>,
}

impl Route {
    /// The registry that a mirror is asked for.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Base | Self::Catalog(_) => None,
            Self::Tags(repository, _)
            | Self::Manifest(repository, _)
            | Self::Blob(repository, _)
            | Self::Referrers(repository, ..) => repository.ns.as_deref(),
            Self::PutManifest(repository, ..) | Self::Begin(repository, _) | Self::Status(repository, _) => {
                repository.ns.as_deref()
            }
            Self::Append(repository, _) | Self::Finish(repository, ..) | Self::Cancel(repository, _) => {
                repository.ns.as_deref()
            }
        }
    }

    /// Whether it changes what is stored.
    pub fn is_write(&self) -> bool {
        match self {
            Self::Base | Self::Catalog(_) | Self::Tags(..) | Self::Manifest(..) | Self::Blob(..) => false,
            Self::Referrers(..) => false,
            Self::PutManifest(..) | Self::Begin(..) | Self::Status(..) => true,
            Self::Append(..) | Self::Finish(..) | Self::Cancel(..) => true,
        }
    }
}

/// Reads a request's line.
///
/// # Errors
/// What to answer to a request that makes no sense.
pub fn route(method: &Method, path: &str, query: Option<&str>) -> Result<Route, Refusal> {
    let unknown = || Refusal::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "there is nothing at this path");
    let query = Query::parse(query.unwrap_or_default());
    let path = path.strip_prefix("/v2").ok_or_else(unknown)?;
    if path.is_empty() || path == "/" {
        return check_read_method(method).map(|()| Route::Base);
    }
    let path = path.strip_prefix('/').ok_or_else(unknown)?;
    let parts: Option<Vec<String>> = path.split('/').map(decode).collect();
    let parts = parts.ok_or_else(unknown)?;
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["_catalog"] => check_read_method(method).and_then(|()| query.page()).map(Route::Catalog),
        [name @ .., "tags", "list"] => {
            check_read_method(method)?;
            Ok(Route::Tags(query.repository_path(name)?, query.page()?))
        }
        [name @ .., "manifests", reference] => manifest(method, query.repository_path(name)?, reference, &query),
        [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
            begin(method, query.repository_path(name)?, &query)
        }
        [name @ .., "blobs", "uploads", id] => upload(method, query.repository_path(name)?, id, &query),
        [name @ .., "blobs", digest] => {
            let repository = query.repository_path(name)?;
            check_read_method(method)?;
            Ok(Route::Blob(repository, parse_digest(digest)?))
        }
        [name @ .., "referrers", digest] => {
            check_read_method(method)?;
            let kind = query.value("artifactType").map(str::to_owned);
            Ok(Route::Referrers(query.repository_path(name)?, parse_digest(digest)?, kind))
        }
        _ => Err(unknown()),
    }
}

fn manifest(method: &Method, repository: RepositoryPath, reference: &str, query: &Query) -> Result<Route, Refusal> {
    let target = match reference.parse() {
        _ if reference.contains(':') => Target::Digest(parse_digest(reference)?),
        Ok(tag) => Target::Tag(tag),
        // Nothing can have this name: so it isn't there, and can't be put there.
        Err(_) if method == Method::PUT => {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", "this is not a tag"));
        }
        Err(_) => return Err(Refusal::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "this is not a tag")),
    };
    match *method {
        Method::GET | Method::HEAD => Ok(Route::Manifest(repository, target)),
        Method::PUT => {
            // Only a push by digest names tags in its query (distribution spec 1.1.1+dev, end-7b).
            let tags = if target.digest().is_some() { query.tags()? } else { Vec::new() };
            Ok(Route::PutManifest(repository, target, tags))
        }
        _ => Err(not_allowed("GET, HEAD, PUT")),
    }
}

fn begin(method: &Method, repository: RepositoryPath, query: &Query) -> Result<Route, Refusal> {
    if method != Method::POST {
        return Err(not_allowed("POST"));
    }
    let from = query.value("from").map(str::parse::<RepositoryName>).transpose();
    let from = from.map_err(|error| name_invalid(&error))?;
    let like = match query.value("digest-algorithm") {
        None => None,
        Some("sha256") => Some(Digest::Sha256([0; 32])),
        Some("sha512") => Some(Digest::Sha512([0; 64])),
        Some(_) => return Err(digest_invalid("only sha256 and sha512 are known")),
    };
    let digest = |key| query.value(key).map(parse_digest).transpose();
    Ok(Route::Begin(repository, BeginUpload { mount: digest("mount")?, from, digest: digest("digest")?, like }))
}

fn upload(method: &Method, repository: RepositoryPath, id: &str, query: &Query) -> Result<Route, Refusal> {
    let well_formed = id.len() == ID_LENGTH && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !well_formed {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "there is no such upload"));
    }
    let id = id.to_owned();
    match *method {
        Method::GET => Ok(Route::Status(repository, id)),
        Method::PATCH => Ok(Route::Append(repository, id)),
        Method::DELETE => Ok(Route::Cancel(repository, id)),
        Method::PUT => match query.value("digest") {
            Some(digest) => Ok(Route::Finish(repository, id, parse_digest(digest)?)),
            None => Err(digest_invalid("a PUT that ends an upload says ?digest=")),
        },
        _ => Err(not_allowed("GET, PATCH, PUT, DELETE")),
    }
}

fn check_read_method(method: &Method) -> Result<(), Refusal> {
    if matches!(*method, Method::GET | Method::HEAD) { Ok(()) } else { Err(not_allowed("GET, HEAD")) }
}

fn not_allowed(allowed: &str) -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", format!("only {allowed} can be done here"))
        .with(header::ALLOW, allowed)
}

fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|error: crate::error::Error| digest_invalid(error.to_string()))
}

fn digest_invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
}

fn name_invalid(error: &crate::error::Error) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "NAME_INVALID", error.to_string())
}

/// A decoded query.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            // In a query a `+` is a space, or the `+` of `image.config.v1+json`, which clients
            // forget to escape. No value that is known here has a space in it.
            // A value that is not well encoded stays as it is: it is no tag, digest or name.
            Some((decode(key)?, decode(value).unwrap_or_else(|| value.to_owned())))
        });
        Self(pairs.collect())
    }

    /// A value that isn't empty.
    fn value(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, v)| k == key && !v.is_empty()).map(|(_, v)| v.as_str())
    }

    /// The tags of a push by digest, each once.
    fn tags(&self) -> Result<Vec<Tag>, Refusal> {
        let mut tags: Vec<Tag> = Vec::new();
        for (_, text) in self.0.iter().filter(|(key, _)| key == "tag") {
            let tag = text.parse().map_err(|error: crate::error::Error| {
                Refusal::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", error.to_string())
            })?;
            if !tags.contains(&tag) {
                tags.push(tag);
            }
            if tags.len() > MAX_PUSH_TAGS {
                let message = format!("a push names at most {MAX_PUSH_TAGS} tags");
                return Err(Refusal::new(StatusCode::URI_TOO_LONG, "UNSUPPORTED", message));
            }
        }
        Ok(tags)
    }

    fn repository_path(&self, name: &[&str]) -> Result<RepositoryPath, Refusal> {
        let name = name.join("/").parse().map_err(|error| name_invalid(&error))?;
        Ok(RepositoryPath { name, ns: self.value("ns").map(str::to_owned) })
    }

    fn page(&self) -> Result<PageQuery, Refusal> {
        let wrong =
            |_| Refusal::new(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", "n is not a number of entries");
        let most = self.value("n").map(str::parse).transpose().map_err(wrong)?;
        Ok(PageQuery { most, after: self.value("last").map(str::to_owned) })
    }
}

/// Percent-decodes; `None` for what isn't well formed, or isn't text.
fn decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    // At most 15.
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Tags that one push of a manifest may name.
const MAX_PUSH_TAGS: usize = 100;
/// The length of an upload's id: 128 bits in hexadecimal.
pub(super) const ID_LENGTH: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn place(name: &str) -> RepositoryPath {
        RepositoryPath { name: name.into(), ns: None }
    }

    fn get(path: &str) -> Result<Route, (u16, &'static str)> {
        asked(&Method::GET, path)
    }

    fn asked(method: &Method, path: &str) -> Result<Route, (u16, &'static str)> {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        route(method, path, query).map_err(|refusal| (refusal.status.as_u16(), refusal.code))
    }

    fn digest() -> Digest {
        Digest::of(b"abc")
    }

    #[test]
    fn names_have_slashes_and_look_like_paths() {
        assert_eq!(get("/v2"), Ok(Route::Base));
        assert_eq!(get("/v2/"), Ok(Route::Base));
        for name in ["a", "a/b/c", "tags/list", "manifests/manifests", "a/blobs/uploads", "_catalog/x"] {
            let expected = if name.starts_with('_') { None } else { Some(place(name)) };
            let of = |route: Result<Route, _>| match route {
                Ok(Route::Tags(repository, _) | Route::Manifest(repository, _) | Route::Blob(repository, _)) => {
                    Some(repository)
                }
                _ => None,
            };
            assert_eq!(of(get(&format!("/v2/{name}/tags/list"))), expected, "{name}");
            assert_eq!(of(get(&format!("/v2/{name}/manifests/v1"))), expected, "{name}");
            assert_eq!(of(get(&format!("/v2/{name}/blobs/{DIGEST}"))), expected, "{name}");
        }
        assert_eq!(get("/v2/a/manifests/sha256%3Aba"), Err((400, "DIGEST_INVALID")));
        let encoded = DIGEST.replace(':', "%3A");
        assert_eq!(get(&format!("/v2/a/blobs/{encoded}")), Ok(Route::Blob(place("a"), digest())));
    }

    #[test]
    fn uploads() {
        let id = "0123456789abcdef0123456789abcdef";
        let at = format!("/v2/a/b/blobs/uploads/{id}");
        let upload = |method, query: &str| asked(&method, &format!("{at}{query}"));
        assert_eq!(upload(Method::GET, ""), Ok(Route::Status(place("a/b"), id.into())));
        assert_eq!(upload(Method::PATCH, ""), Ok(Route::Append(place("a/b"), id.into())));
        assert_eq!(upload(Method::DELETE, ""), Ok(Route::Cancel(place("a/b"), id.into())));
        assert_eq!(upload(Method::PUT, ""), Err((400, "DIGEST_INVALID")));
        let finish = Route::Finish(place("a/b"), id.into(), digest());
        assert_eq!(upload(Method::PUT, &format!("?digest={}", DIGEST.replace(':', "%3A"))), Ok(finish));
        assert_eq!(asked(&Method::GET, "/v2/a/blobs/uploads/../../x"), Err((404, "NAME_UNKNOWN")));
        assert_eq!(asked(&Method::GET, "/v2/a/blobs/uploads/..%2Fx"), Err((404, "BLOB_UPLOAD_UNKNOWN")));
        for path in ["/v2/a/blobs/uploads", "/v2/a/blobs/uploads/"] {
            assert_eq!(asked(&Method::POST, path), Ok(Route::Begin(place("a"), BeginUpload::default())));
            assert_eq!(get(path), Err((405, "UNSUPPORTED")));
        }
        let begin = BeginUpload { mount: Some(digest()), from: Some("x/y".into()), ..BeginUpload::default() };
        let mount = format!("/v2/a/blobs/uploads/?mount={DIGEST}&from=x/y");
        assert_eq!(asked(&Method::POST, &mount), Ok(Route::Begin(place("a"), begin)));
    }

    #[test]
    fn queries() {
        let page = PageQuery { most: Some(3), after: Some("v1+x".into()) };
        assert_eq!(get("/v2/a/tags/list?last=v1%2Bx&n=3&n=4"), Ok(Route::Tags(place("a"), page)));
        assert_eq!(get("/v2/_catalog?n=-1"), Err((400, "PAGINATION_NUMBER_INVALID")));
        let kind = Some("application/vnd.x+json".to_owned());
        let path = format!("/v2/a/referrers/{DIGEST}?artifactType=application/vnd.x+json");
        assert_eq!(get(&path), Ok(Route::Referrers(place("a"), digest(), kind)));
        let Ok(Route::Manifest(repository, _)) = get("/v2/library/x/manifests/v1?ns=docker.io") else {
            panic!("a manifest")
        };
        assert_eq!(repository.ns.as_deref(), Some("docker.io"));
    }

    #[test]
    fn a_push_by_digest_may_name_tags() {
        let put = |path: &str| asked(&Method::PUT, &format!("/v2/a/manifests/{path}"));
        let to = |tags: &[&str]| {
            let tags = tags.iter().map(|tag| Tag::from(*tag)).collect();
            Ok(Route::PutManifest(place("a"), Target::Digest(digest()), tags))
        };
        assert_eq!(put(DIGEST), to(&[]));
        assert_eq!(
            put(&format!("{DIGEST}?tag=v1&tag=v1.0&x=y&tag=v1&ns=docker.io&tag=latest")).map(|route| text_of(&route)),
            to(&["v1", "v1.0", "latest"]).map(|route| text_of(&route))
        );
        assert_eq!(put(&format!("{DIGEST}?tag=v%31")), to(&["v1"]));
        for wrong in ["", ".x", "a/b", "%ff", "a%2Fb", "a+b", "..%2f..%2fx", "v1&tag="] {
            assert_eq!(put(&format!("{DIGEST}?tag={wrong}")), Err((400, "MANIFEST_INVALID")), "{wrong}");
        }
        let tags = |count: usize| (0..count).map(|nth| format!("&tag=v{nth}")).collect::<String>();
        assert!(put(&format!("{DIGEST}?{}", tags(MAX_PUSH_TAGS))).is_ok());
        assert_eq!(put(&format!("{DIGEST}?{}", tags(MAX_PUSH_TAGS + 1))), Err((414, "UNSUPPORTED")));
        // By tag, the query says nothing.
        let tagged = Route::PutManifest(place("a"), Target::Tag("v1".into()), Vec::new());
        assert_eq!(put("v1?tag=v2"), Ok(tagged));
    }

    #[test]
    fn what_cannot_be() {
        for (path, answer) in [
            ("/", (404, "NAME_UNKNOWN")),
            ("/v1/", (404, "NAME_UNKNOWN")),
            ("/v2a/manifests/v1", (404, "NAME_UNKNOWN")),
            ("/v2/a", (404, "NAME_UNKNOWN")),
            ("/v2/manifests/v1", (400, "NAME_INVALID")),
            ("/v2/A/manifests/v1", (400, "NAME_INVALID")),
            ("/v2/a//b/manifests/v1", (400, "NAME_INVALID")),
            ("/v2/../etc/manifests/passwd", (400, "NAME_INVALID")),
            ("/v2/%2e%2e/manifests/v1", (400, "NAME_INVALID")),
            ("/v2/a%2f..%2fb/manifests/v1", (400, "NAME_INVALID")),
            ("/v2/a/manifests/.v1", (404, "MANIFEST_UNKNOWN")),
            ("/v2/a/blobs/sha256:..", (400, "DIGEST_INVALID")),
            ("/v2/%ff/manifests/v1", (404, "NAME_UNKNOWN")),
            ("/v2/%+1/manifests/v1", (404, "NAME_UNKNOWN")),
        ] {
            assert_eq!(get(path), Err(answer), "{path}");
        }
        assert_eq!(asked(&Method::DELETE, "/v2/a/manifests/v1"), Err((405, "UNSUPPORTED")));
        assert_eq!(asked(&Method::PUT, "/v2/a/manifests/.v1"), Err((400, "MANIFEST_INVALID")));
        assert_eq!(asked(&Method::DELETE, &format!("/v2/a/blobs/{DIGEST}")), Err((405, "UNSUPPORTED")));
    }

    fn methods() -> impl Strategy<Value = Method> {
        prop::sample::select(vec![
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
            Method::OPTIONS,
        ])
    }

    fn text_of(route: &Route) -> Vec<String> {
        match route {
            Route::Base | Route::Catalog(_) => vec![],
            Route::Tags(repository, _) | Route::Blob(repository, _) | Route::Referrers(repository, ..) => {
                vec![repository.name.to_string()]
            }
            Route::Begin(repository, _) => vec![repository.name.to_string()],
            Route::Manifest(repository, target) => vec![repository.name.to_string(), target.to_string()],
            Route::PutManifest(repository, target, tags) => {
                let tags = tags.iter().map(ToString::to_string);
                [repository.name.to_string(), target.to_string()].into_iter().chain(tags).collect()
            }
            Route::Status(repository, id) | Route::Append(repository, id) | Route::Cancel(repository, id) => {
                vec![repository.name.to_string(), id.clone()]
            }
            Route::Finish(repository, id, _) => vec![repository.name.to_string(), id.clone()],
        }
    }

    proptest! {
        /// Whatever comes: no panic, and no name, tag or id that could leave a directory.
        #[test]
        fn nothing_gets_through_that_is_no_name(
            method in methods(),
            parts in prop::collection::vec(prop_oneof![
                Just("manifests".to_owned()), Just("blobs".to_owned()), Just("uploads".to_owned()), Just("tags".to_owned()),
                Just("list".to_owned()), Just("referrers".to_owned()), Just(DIGEST.to_owned()), Just("..".to_owned()),
                Just("%2e%2e".to_owned()), Just("a%2Fb".to_owned()), Just("%00".to_owned()),
                Just("0123456789abcdef0123456789abcdef".to_owned()), "[a-z0-9._-]{0,6}", any::<String>(),
            ], 0..7),
            query in prop::option::of(any::<String>()),
        ) {
            let path = format!("/v2/{}", parts.join("/"));
            if let Ok(route) = route(&method, &path, query.as_deref()) {
                for text in text_of(&route) {
                    prop_assert!(!text.is_empty());
                    prop_assert!(text.split('/').all(|part| !part.is_empty() && !part.starts_with('.')), "{:?}", text);
                    prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:/".contains(&b)), "{:?}", text);
                }
            }
        }

        /// Every valid name is found again, whatever its parts are called.
        #[test]
        fn every_name_can_be_asked_for(
            parts in prop::collection::vec(prop_oneof![
                Just("manifests"), Just("blobs"), Just("uploads"), Just("tags"), Just("list"), Just("v2"), Just("a-b"),
            ], 1..6),
        ) {
            let name = parts.join("/");
            let manifest = Route::Manifest(place(&name), Target::Tag("v1".into()));
            prop_assert_eq!(get(&format!("/v2/{name}/manifests/v1")), Ok(manifest));
            prop_assert_eq!(get(&format!("/v2/{name}/blobs/{DIGEST}")), Ok(Route::Blob(place(&name), digest())));
            prop_assert_eq!(get(&format!("/v2/{name}/tags/list")), Ok(Route::Tags(place(&name), PageQuery::default())));
            let begin = asked(&Method::POST, &format!("/v2/{name}/blobs/uploads/"));
            prop_assert_eq!(begin, Ok(Route::Begin(place(&name), BeginUpload::default())));
        }
    }
}
