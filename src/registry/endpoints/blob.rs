//! Reading blobs, and beginning uploads.

use std::ops::Range;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, future};
use http::header::{CONTENT_RANGE, RANGE};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;
use reqwest::Url;

use super::upload::UploadSession;
use crate::body::Body;
use crate::content::{UploadStart, take_bytes};
use crate::descriptor::{Descriptor, Digest};
use crate::error::{Error, Kind, Result};
use crate::panics;
use crate::reference::Repository;
use crate::registry::Repo;
use crate::registry::auth::scope::Scope;
use crate::registry::call::Call;
use crate::registry::client::Response;
use crate::registry::client::length;
use crate::registry::urls::Endpoint;
use crate::registry::web_page;

/// Whether a cache has a blob, as it says by `Cache-Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// It has it.
    Yes,
    /// It fetches it.
    Soon,
    /// It hasn't it.
    No,
    /// It's no cache, or doesn't say.
    Unknown,
}

impl Cached {
    /// Reads `Cache-Status`. Of several caches the one that answered us comes last (RFC 9211, section 2).
    pub(in crate::registry) fn from_headers(headers: &HeaderMap) -> Self {
        let status = headers.get("cache-status").and_then(|value| value.to_str().ok());
        let mut words = status.and_then(|status| status.rsplit(',').next()).unwrap_or_default().split(';');
        let (cache, words) = (words.next().unwrap_or_default(), words.map(str::trim).collect::<Vec<_>>());
        match cache {
            "" => Self::Unknown,
            _ if words.contains(&"hit") => Self::Yes,
            _ if words.contains(&"collapsed") => Self::Soon,
            _ => Self::No,
        }
    }
}

impl Repo {
    /// `GET` of a blob's bytes from `from` on. Once: the feed that reads it has the budget.
    pub(in crate::registry) async fn get_blob(&self, blob: &Descriptor, from: u64) -> Result<Body> {
        let doing = format!("read blob {}", blob.digest);
        let mut call = self.call(Method::GET, self.at_blob(&blob.digest), &self.pull, doing.clone()).await?;
        if from > 0 {
            call = call.header(RANGE, format!("bytes={from}-"));
        }
        let response = match self.registry.call_once(call).await {
            Err(error) if error.kind() == Kind::NotFound && !blob.urls.is_empty() => self
                .get_foreign_layer(blob, from)
                .await
                .map_err(|elsewhere| elsewhere.doing(format!("{doing} from its own address")))?,
            other => other?,
        };
        self.refuse_page(&response, Some(blob.size)).map_err(|error| error.doing(doing.clone()))?;
        let skip = check_head(&response, blob, from).map_err(|error| error.doing(doing))?;
        Ok(body_of(response, skip))
    }

    /// `GET` of some of a blob's bytes, and no more: so the connection can be used again.
    pub(in crate::registry) async fn get_part(&self, blob: &Descriptor, part: Range<u64>) -> Result<Body> {
        let doing = format!("read blob {}", blob.digest);
        let call = self.call(Method::GET, self.at_blob(&blob.digest), &self.pull, doing.clone()).await?;
        let range = format!("bytes={}-{}", part.start, part.end.saturating_sub(1));
        let response = self.registry.call_once(call.header(RANGE, range)).await?;
        self.refuse_page(&response, Some(blob.size)).map_err(|error| error.doing(doing.clone()))?;
        let skip = check_head(&response, blob, part.start).map_err(|error| error.doing(doing))?;
        if response.status() != StatusCode::PARTIAL_CONTENT && part.start > 0 {
            return Err(Error::new(Kind::Unsupported, "the registry knows no ranges"));
        }
        Ok(take_bytes(body_of(response, skip), part.end - part.start))
    }

    /// `GET` of a foreign layer from where its descriptor says (OCI image spec, "Descriptor Properties": `urls`).
    /// Without credentials, and not to addresses that a redirect mayn't lead to either.
    async fn get_foreign_layer(&self, blob: &Descriptor, from: u64) -> Result<Response> {
        let mut last = Error::new(Kind::NotFound, "the layer names no other address");
        for text in &blob.urls {
            let Ok(url) = Url::parse(text) else { continue };
            let mut call = self.call(Method::GET, self.at_blob(&blob.digest), &self.pull, "").await?;
            call.url = url;
            if from > 0 {
                call = call.header(RANGE, format!("bytes={from}-"));
            }
            match self.registry.call_once(call).await {
                Ok(response) => return Ok(response),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Refuses a web page in the place of a blob. Storage may label a blob as one, but then its size is right.
    pub(in crate::registry) fn refuse_page(&self, response: &Response, size: Option<u64>) -> Result<()> {
        let found = length(response.headers());
        if response.status() == StatusCode::PARTIAL_CONTENT || found.is_some() && found == size {
            return Ok(());
        }
        web_page::instead(&self.registry.name, response).map_or(Ok(()), Err)
    }

    /// `POST` of an upload, which asks for a mount too where there is something to mount from.
    ///
    /// Once begun, it's ended even if the caller is dropped: else a session would stay open of which
    /// nobody here knows.
    pub(in crate::registry) async fn start_upload(
        &self,
        blob: &Descriptor,
        from: Option<&Repository>,
    ) -> Result<UploadStart<UploadSession>> {
        let (repo, blob, from) = (self.clone(), blob.clone(), from.cloned());
        let (tell, told) = tokio::sync::oneshot::channel();
        self.registry.finish_in_background(async move {
            // Nobody listens after an interrupt; the session is known by then, and is deleted.
            drop(tell.send(panics::catch_panic(repo.post_upload(&blob, from.as_ref())).await));
        });
        told.await.map_err(|_| Error::new(Kind::Interrupted, "the upload was abandoned"))?
    }

    async fn post_upload(&self, blob: &Descriptor, from: Option<&Repository>) -> Result<UploadStart<UploadSession>> {
        let doing = format!("begin the upload of blob {} to {}", blob.digest, self.repository);
        let scope = from.map(|from| self.push.mounting(from));
        let call = self.upload_call(blob, from, scope.as_ref().unwrap_or(&self.push), &doing).await?;
        let response = match self.registry.call(call).await {
            // What may not be mounted may still be uploaded: a token for both repositories may be refused as a whole.
            Err(error)
                if from.is_some() && matches!(error.kind(), Kind::Unauthorized | Kind::Denied | Kind::NotFound) =>
            {
                self.registry.call(self.upload_call(blob, None, &self.push, &doing).await?).await?
            }
            other => other?,
        };
        match response.status() {
            StatusCode::CREATED => {
                if let Some(from) = from {
                    self.registry.mounted_from(from);
                }
                Ok(UploadStart::Mounted)
            }
            _ => self.session(&response).await.map(UploadStart::Session).map_err(|error| error.doing(doing)),
        }
    }
}

impl Repo {
    /// The `POST` that begins an upload, and asks for a mount of the blob from `from`.
    async fn upload_call<'a>(
        &self,
        blob: &Descriptor,
        from: Option<&Repository>,
        scope: &'a Scope,
        doing: &str,
    ) -> Result<Call<'a>> {
        let mut call = self.call(Method::POST, Endpoint::Uploads(&self.repository.name), scope, doing).await?;
        // Digests and names need no escapes here, and some registries expect none.
        let mount = from.map(|from| format!("mount={}&from={}", blob.digest, from.name));
        // Distribution spec, "Pushing a blob in chunks": others than sha256 must be announced.
        let algorithm = (!matches!(blob.digest, Digest::Sha256(_)))
            .then(|| format!("digest-algorithm={}", blob.digest.algorithm()));
        let query: Vec<String> = mount.into_iter().chain(algorithm).collect();
        call.url.set_query(Some(query.join("&").as_str()).filter(|query| !query.is_empty()));
        Ok(call)
    }
}

/// Checks status, range and length of a blob's response. Returns how many bytes of it to skip: a
/// server may ignore Range and send the whole (RFC 9110 §14.2).
fn check_head(response: &Response, blob: &Descriptor, from: u64) -> Result<u64> {
    let wrong = |what: String| {
        Err(Error::new(Kind::Mismatch, format!("blob {} is not as described: {what}", blob.digest)).transient(None))
    };
    let headers = response.headers();
    let (start, total) = match response.status() {
        StatusCode::PARTIAL_CONTENT => match content_range(headers) {
            Some((start, total)) => (start, total),
            None => {
                return Err(Error::new(Kind::Registry, "a partial answer says not which part it is").transient(None));
            }
        },
        _ => (0, length(headers)),
    };
    match total {
        Some(total) if total != blob.size => {
            wrong(format!("the manifest says {} bytes, the registry {total}", blob.size))
        }
        _ if start > from => wrong(format!("it was asked from byte {from}, and begins at {start}")),
        _ => Ok(from - start),
    }
}

fn body_of(response: Response, mut skip: u64) -> Body {
    let body = response.into_body().into_data_stream();
    if skip == 0 {
        return body.boxed();
    }
    let rest = body.try_filter_map(move |mut bytes: Bytes| {
        let cut = skip.min(bytes.len() as u64);
        skip -= cut;
        let _ = bytes.split_to(usize::try_from(cut).unwrap_or(usize::MAX));
        future::ready(Ok((!bytes.is_empty()).then_some(bytes)))
    });
    rest.boxed()
}

/// Start and total of `bytes 5-9/10`.
pub(in crate::registry) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    Some((range.split_once('-')?.0.trim().parse().ok()?, total.trim().parse().ok()))
}
