//! Writing: uploads of blobs, and manifests.

use std::collections::HashSet;

use http::request::Parts;
use http::{HeaderName, Response, StatusCode, header};

use super::backend::{Backend, Blob as _, Upload};
use super::refusal::Refusal;
use super::respond::{self, DOCKER_CONTENT_DIGEST, set};
use super::route::{BeginUpload, RepositoryPath};
use super::{ResponseBody, Server, range, request_body};
use crate::body::Body;
use crate::descriptor::Digest;
use crate::error::{Error, Kind};
use crate::manifest::{MAX_MANIFEST, Manifest};
use crate::reference::{Tag, Target};

type Answer = Result<Response<ResponseBody>, Refusal>;

impl<B: Backend> Server<B> {
    /// A mount, a blob in one request, or a session (distribution spec, "Pushing Blobs").
    pub(super) async fn begin(&self, repository: RepositoryPath, begin: BeginUpload, body: &mut Body) -> Answer {
        if let Some(digest) = begin.mount {
            let mounted = self.backend.mount(&repository, &digest, begin.from.as_ref()).await;
            if mounted.map_err(|error| Refusal::backend(&error))? {
                return Ok(created_response(&repository, "blobs", &digest));
            }
        }
        self.uploads.check_capacity()?;
        let like = begin.digest.or(begin.like);
        let mut upload =
            self.backend.start_upload(&repository, like).await.map_err(|error| Refusal::backend(&error))?;
        if let Some(digest) = begin.digest {
            upload.append(body).await.map_err(|error| Refusal::body(&error))?;
            upload.commit(digest).await.map_err(|error| Refusal::body(&error))?;
            return Ok(created_response(&repository, "blobs", &digest));
        }
        let id = self.uploads.add(repository.clone(), upload);
        Ok(session_response(StatusCode::ACCEPTED, &repository, &id, 0))
    }

    pub(super) async fn status(&self, repository: &RepositoryPath, id: &str) -> Answer {
        let mut held = self.uploads.lock_upload(repository, id).await?;
        let size = size(&mut held).await?;
        Ok(session_response(StatusCode::NO_CONTENT, repository, id, size))
    }

    pub(super) async fn append(&self, repository: &RepositoryPath, id: &str, head: &Parts, body: &mut Body) -> Answer {
        let mut held = self.uploads.lock_upload(repository, id).await?;
        let size = append_body(&mut held, repository, id, head, body).await?;
        Ok(session_response(StatusCode::ACCEPTED, repository, id, size))
    }

    /// With the last chunk, or with none.
    pub(super) async fn finish(
        &self,
        repository: &RepositoryPath,
        id: &str,
        digest: Digest,
        head: &Parts,
        body: &mut Body,
    ) -> Answer {
        let mut held = self.uploads.lock_upload(repository, id).await?;
        append_body(&mut held, repository, id, head, body).await?;
        let Some(upload) = held.take() else { return Err(unknown_upload()) };
        // From here on the session is over, whatever comes: wrong bytes don't become right.
        self.uploads.remove(id);
        upload.commit(digest).await.map_err(|error| Refusal::body(&error))?;
        Ok(created_response(repository, "blobs", &digest))
    }

    pub(super) async fn cancel(&self, repository: &RepositoryPath, id: &str) -> Answer {
        let mut held = self.uploads.lock_upload(repository, id).await?;
        *held = None;
        self.uploads.remove(id);
        Ok(respond::empty_response(StatusCode::NO_CONTENT))
    }

    /// Stores a manifest under `target`, and under `tags` too (distribution spec 1.1.1+dev, end-7b).
    pub(super) async fn put_manifest(
        &self,
        repository: &RepositoryPath,
        target: Target,
        tags: Vec<Tag>,
        head: &Parts,
        body: &mut Body,
    ) -> Answer {
        let manifest = read_manifest(&target, head, body).await?;
        self.check_parts(repository, &manifest).await?;
        let targets: Vec<Target> = [target].into_iter().chain(tags.iter().cloned().map(Target::Tag)).collect();
        self.backend.put_manifest(repository, &manifest, &targets).await.map_err(|error| Refusal::backend(&error))?;
        let mut response = created_response(repository, "manifests", &manifest.digest());
        for tag in &tags {
            // A header for each tag. Clients push the tags that are not confirmed one by one.
            respond::add(response.headers_mut(), HeaderName::from_static("oci-tag"), tag);
        }
        if let Some(subject) = &manifest.contents().subject {
            // Spec, "Pushing Manifests with Subject": it's listed, nobody else needs to.
            set(response.headers_mut(), HeaderName::from_static("oci-subject"), &subject.digest.to_string());
        }
        Ok(response)
    }

    /// All blobs must be here, save those that their owner forbids to distribute. Of an index's
    /// children one must be: a sparse index, an image for some of its platforms, is taken. A
    /// subject may be missing (spec, "Pushing Manifests with Subject").
    async fn check_parts(&self, repository: &RepositoryPath, manifest: &Manifest) -> Result<(), Refusal> {
        let mut checked = HashSet::new();
        for blob in manifest.contents().blobs.iter().filter(|blob| !blob.media_type.is_foreign_layer()) {
            if !checked.insert(blob.digest) {
                continue;
            }
            let there =
                self.backend.blob(repository, &blob.digest).await.found.map_err(|error| Refusal::backend(&error))?;
            match there.map(|there| there.size()) {
                Some(size) if size == blob.size => {}
                Some(size) => {
                    let message = format!("blob {} has {size} bytes, the manifest says {}", blob.digest, blob.size);
                    return Err(Refusal::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message));
                }
                None => return Err(missing_content(format!("blob {} is not here", blob.digest))),
            }
        }
        for child in &manifest.contents().manifests {
            let child = Target::Digest(child.digest);
            if self.backend.resolve(repository, &child).await.found.map_err(|error| Refusal::backend(&error))?.is_some()
            {
                return Ok(());
            }
        }
        match manifest.contents().manifests.as_slice() {
            [] => Ok(()),
            _ => Err(missing_content("none of the manifests that the index lists is here".into())),
        }
    }
}

/// Appends the body, if it's the chunk that is due. Says how large the upload is then.
async fn append_body<U: Upload>(
    held: &mut Option<U>,
    repository: &RepositoryPath,
    id: &str,
    head: &Parts,
    body: &mut Body,
) -> Result<u64, Refusal> {
    let at = size(held).await?;
    check_chunk(head, at).map_err(|refusal| {
        if refusal.status != StatusCode::RANGE_NOT_SATISFIABLE {
            return refusal;
        }
        // Spec, "Pushing a blob in chunks": out of order; these say where to go on.
        refusal.with(header::LOCATION, &session_location(repository, id)).with(header::RANGE, &stored_range(at))
    })?;
    let Some(upload) = held.as_mut() else { return Err(unknown_upload()) };
    if let Err(error) = upload.append(body).await {
        // A client that broke off may go on. Where the storage failed, the disk is full, most
        // likely: what this upload holds of it must not stay for as long as a silent one may.
        if !matches!(error.kind(), Kind::Network | Kind::Timeout) {
            *held = None;
        }
        return Err(Refusal::body(&error));
    }
    size(held).await
}

fn check_chunk(head: &Parts, at: u64) -> Result<(), Refusal> {
    let Some(value) = head.headers.get(header::CONTENT_RANGE) else { return Ok(()) };
    let chunk = value.to_str().ok().and_then(range::parse_chunk_range).ok_or_else(|| {
        let message = "Content-Range is not <first>-<last>";
        Refusal::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
    })?;
    if *chunk.start() != at {
        let message = format!("the chunk begins at {}, but {at} is due", chunk.start());
        return Err(Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message));
    }
    let length = head.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length != chunk.end() - chunk.start() + 1) {
        let message = "Content-Length and Content-Range disagree";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "SIZE_INVALID", message));
    }
    Ok(())
}

async fn read_manifest(target: &Target, head: &Parts, body: &mut Body) -> Result<Manifest, Refusal> {
    let most = usize::try_from(MAX_MANIFEST).unwrap_or(usize::MAX);
    let read = request_body::read_all(body, most).await.map_err(|error| Refusal::body(&error))?;
    let bytes = read.ok_or_else(|| {
        let message = format!("a manifest has at most {MAX_MANIFEST} bytes");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message)
    })?;
    let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let manifest = Manifest::read(bytes, content_type, target.digest()).map_err(|error| match error.kind() {
        Kind::Mismatch => Refusal::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", error.to_string()),
        _ => invalid(&error),
    })?;
    // Spec, "Pushing Manifests": what the header says and what the body says must be the same.
    let said = content_type.map(crate::descriptor::MediaType::from);
    let own = &manifest.descriptor().media_type;
    match said {
        Some(said) if (said.is_index() || said.is_manifest()) && said != *own => {
            Err(invalid(&Error::new(Kind::Invalid, format!("Content-Type is {said}, but mediaType is {own}"))))
        }
        _ => Ok(manifest),
    }
}

async fn size<U: Upload>(held: &mut Option<U>) -> Result<u64, Refusal> {
    let Some(upload) = held else { return Err(unknown_upload()) };
    upload.size().await.map_err(|error| Refusal::backend(&error))
}

fn created_response(repository: &RepositoryPath, kind: &str, digest: &Digest) -> Response<ResponseBody> {
    let mut response = respond::empty_response(StatusCode::CREATED);
    let headers = response.headers_mut();
    set(headers, header::LOCATION, &format!("/v2/{}/{kind}/{digest}", repository.name));
    set(headers, DOCKER_CONTENT_DIGEST, &digest.to_string());
    response
}

/// How a session stands. The location is relative, as Azure's is: which name this server has for
/// its clients, it can't know.
fn session_response(status: StatusCode, repository: &RepositoryPath, id: &str, size: u64) -> Response<ResponseBody> {
    let mut response = respond::empty_response(status);
    let headers = response.headers_mut();
    set(headers, header::LOCATION, &session_location(repository, id));
    set(headers, header::RANGE, &stored_range(size));
    set(headers, HeaderName::from_static("docker-upload-uuid"), id);
    response
}

fn session_location(repository: &RepositoryPath, id: &str) -> String {
    format!("/v2/{}/blobs/uploads/{id}", repository.name)
}

/// Nothing is `0-0` too, as in every registry: Docker's client insists on a range.
fn stored_range(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}

fn unknown_upload() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "the upload is over")
}

fn missing_content(message: String) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN", message)
}

fn invalid(error: &Error) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", error.to_string())
}
