//! Reading: manifests, blobs, and the lists.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, Method, Response, StatusCode, header};
use serde::Serialize;
use serde_json::json;

use super::backend::{Backend, Blob as _};
use super::range::{self, RequestedRange};
use super::refusal::Refusal;
use super::respond::{self, set};
use super::route::{PageQuery, RepositoryPath};
use super::sendfile::FilePipe;
use super::served::Reply;
use super::{ResponseBody, Server};
use crate::descriptor::{Descriptor, Digest, MediaType};
use crate::reference::Target;

type Answer = Result<Response<ResponseBody>, Refusal>;
pub(super) type ServedAnswer = Reply<Response<ResponseBody>, Refusal>;

impl<B: Backend> Server<B> {
    pub(super) async fn manifest(&self, repository: &RepositoryPath, target: &Target, head: &Parts) -> ServedAnswer {
        if head.method == Method::HEAD {
            // A proxy asks its upstream by `HEAD` too, which Docker Hub doesn't count as a pull.
            self.backend.resolve(repository, target).await.answer(|found| {
                let descriptor = found.ok_or_else(|| no_manifest(target))?;
                Ok(manifest_response(&descriptor, Bytes::new(), head))
            })
        } else {
            self.backend.manifest(repository, target).await.answer(|found| {
                let found = found.ok_or_else(|| no_manifest(target))?;
                let bytes = self.large.manifest(&found.digest(), found.bytes().clone())?;
                Ok(manifest_response(found.descriptor(), bytes, head))
            })
        }
    }

    pub(super) async fn blob(&self, repository: &RepositoryPath, digest: Digest, head: &Parts) -> ServedAnswer {
        let unknown = || {
            Refusal::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", format!("blob {digest} is not in {}", repository.name))
        };
        let reply = if head.method == Method::HEAD {
            // A proxy must not fetch it for that.
            self.backend.size_of(repository, &digest).await.map(|size| Some((size?, None)))
        } else {
            self.backend.blob(repository, &digest).await.map(|blob| {
                let blob = blob?;
                Some((blob.size(), Some(blob)))
            })
        };
        let Reply { found, served } = reply.answer(|found| found.ok_or_else(unknown));
        let found = match found {
            Ok((size, blob)) => self.blob_response(repository, &digest, head, size, blob).await,
            Err(refusal) => Err(refusal),
        };
        Reply { found, served }
    }

    /// `blob` is `None` for `HEAD`.
    async fn blob_response(
        &self,
        repository: &RepositoryPath,
        digest: &Digest,
        head: &Parts,
        size: u64,
        blob: Option<B::Blob>,
    ) -> Answer {
        let (status, part) = match self.wanted(digest, size, head) {
            // Whatever part is asked for (RFC 9110, 13.2.2).
            _ if respond::matches_etag(&head.headers, digest) => (StatusCode::NOT_MODIFIED, 0..0),
            RequestedRange::Whole => (StatusCode::OK, 0..size),
            RequestedRange::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
            RequestedRange::Beyond => {
                let message = format!("the blob has {size} bytes");
                return Err(Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", message)
                    .with(header::CONTENT_RANGE, &format!("bytes */{size}")));
            }
        };
        let length = part.end - part.start;
        let mut response = match blob {
            Some(blob) if status != StatusCode::NOT_MODIFIED => {
                let pipe = head.extensions.get::<FilePipe>().cloned();
                let body = blob.read(part.clone(), pipe).await.map_err(|error| Refusal::backend(&error))?;
                respond::streamed(status, length, body)
            }
            _ => {
                let mut response = respond::empty_response(status);
                if head.method == Method::HEAD {
                    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
                    if let Some(cached) = self.backend.cache_status(repository, digest) {
                        set(response.headers_mut(), HeaderName::from_static("cache-status"), cached);
                    }
                }
                response
            }
        };
        let headers = response.headers_mut();
        if status == StatusCode::PARTIAL_CONTENT {
            set(headers, header::CONTENT_RANGE, &format!("bytes {}-{}/{size}", part.start, part.end - 1));
        }
        set(headers, header::ACCEPT_RANGES, "bytes");
        set(headers, header::CONTENT_TYPE, "application/octet-stream");
        respond::set_content_digest(headers, digest);
        Ok(response)
    }

    /// `If-Range` with anything but this content's own tag asks for the whole (RFC 9110, 13.1.5); so does
    /// `HEAD`, which has no range (14.2).
    fn wanted(&self, digest: &Digest, size: u64, head: &Parts) -> RequestedRange {
        if head.method == Method::HEAD {
            return RequestedRange::Whole;
        }
        let text = |name: HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
        match text(header::IF_RANGE) {
            Some(tag) if tag != respond::etag(digest) => RequestedRange::Whole,
            _ => range::parse_range(text(header::RANGE), size),
        }
    }

    pub(super) async fn tags(&self, repository: &RepositoryPath, page: &PageQuery) -> ServedAnswer {
        let most = page_size(page);
        self.backend.tags(repository, page.after.as_deref(), most + 1).await.answer(|found| {
            let mut tags = found.ok_or_else(|| {
                let message = format!("there is no repository {}", repository.name);
                Refusal::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", message)
            })?;
            let next = truncate_page(&mut tags, most);
            let mut response =
                json_response(self.large.list(json!({"name": repository.name, "tags": tags}).to_string().into())?);
            if let Some(last) = next {
                let ns = repository.ns.as_ref().map_or_else(String::new, |ns| format!("&ns={}", escape(ns)));
                set_next_link(
                    &mut response,
                    &format!("/v2/{}/tags/list?n={most}&last={}{ns}", repository.name, escape(&last)),
                );
            }
            Ok(response)
        })
    }

    pub(super) async fn catalog(&self, page: &PageQuery) -> Answer {
        let most = page_size(page);
        let found = self.backend.repositories(page.after.as_deref(), most + 1).await;
        let mut names = found.map_err(|error| Refusal::backend(&error))?;
        let next = truncate_page(&mut names, most);
        let mut response = json_response(self.large.list(json!({"repositories": names}).to_string().into())?);
        if let Some(last) = next {
            set_next_link(&mut response, &format!("/v2/_catalog?n={most}&last={}", escape(&last)));
        }
        Ok(response)
    }

    /// Always an index, an empty one if nothing is about `subject` (distribution spec, "Listing
    /// Referrers"): a 404 would say that there is no such API.
    pub(super) async fn referrers(
        &self,
        repository: &RepositoryPath,
        subject: &Digest,
        kind: Option<&str>,
    ) -> ServedAnswer {
        self.backend.referrers(repository, subject).await.answer(|found| {
            let is_wanted = |entry: &&Descriptor| kind.is_none_or(|kind| entry.artifact_type.as_deref() == Some(kind));
            let manifests = (*found).as_ref().iter().filter(is_wanted).collect();
            let list = Index { schema_version: 2, media_type: MediaType::OCI_INDEX, manifests };
            // It can't fail: these are texts and numbers.
            let list = serde_json::to_vec(&list).unwrap_or_default();
            drop(found);
            let mut response = json_response(self.large.list(list.into())?);
            set(response.headers_mut(), header::CONTENT_TYPE, MediaType::OCI_INDEX);
            if kind.is_some() {
                set(response.headers_mut(), HeaderName::from_static("oci-filters-applied"), "artifactType");
            }
            Ok(response)
        })
    }
}

/// An index of what is listed, which takes no copy of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u8,
    media_type: &'a str,
    manifests: Vec<&'a Descriptor>,
}

fn manifest_response(descriptor: &Descriptor, bytes: Bytes, head: &Parts) -> Response<ResponseBody> {
    let mut response = if respond::matches_etag(&head.headers, &descriptor.digest) {
        respond::empty_response(StatusCode::NOT_MODIFIED)
    } else {
        let mut response = respond::buffered(StatusCode::OK, &descriptor.media_type.0, bytes);
        response.headers_mut().insert(header::CONTENT_LENGTH, descriptor.size.into());
        response
    };
    respond::set_content_digest(response.headers_mut(), &descriptor.digest);
    response
}

fn no_manifest(target: &Target) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", format!("manifest {target} is not here"))
}

fn json_response(text: Bytes) -> Response<ResponseBody> {
    respond::buffered(StatusCode::OK, "application/json", text)
}

fn page_size(page: &PageQuery) -> usize {
    page.most.unwrap_or(MAX_PAGE).min(MAX_PAGE)
}

/// Cuts one too many off. If there was one, gives the last that remains, for the next page.
fn truncate_page<T: std::fmt::Display>(list: &mut Vec<T>, most: usize) -> Option<String> {
    let more = list.len() > most;
    list.truncate(most);
    if more { list.last().map(T::to_string) } else { None }
}

fn set_next_link(response: &mut Response<ResponseBody>, to: &str) {
    set(response.headers_mut(), header::LINK, &format!("<{to}>; rel=\"next\""));
}

/// Escapes what isn't plain in a query. Tags and names are plain already; a client's `last` may
/// be anything.
fn escape(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-/".contains(byte);
    text.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The most entries of a page of tags or repositories, and of one that doesn't say how many.
const MAX_PAGE: usize = 1000;
