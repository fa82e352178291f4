//! Upload sessions: one streamed PUT where the registry takes it, else ranged chunks; and how to go
//! on after a fault.
//!
//! A chunk is no buffer: its body is a slice of the one stream that the source sends. After a fault
//! the registry is asked what it has (`GET` of the session), and the source is opened there. A
//! session that is gone (ACR loses them: azure-sdk-for-net#35322, Azure/acr#866) is replaced by a new
//! one. Bytes are never replayed blindly.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future;
use http::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, RANGE};
use http::{HeaderValue, Method, StatusCode};
use reqwest::Url;

use super::chunk_body::{ChunkBody, StreamSlot, with_watchdog};
use crate::content::{Feed, Source, UploadStart};
use crate::descriptor::Descriptor;
use crate::error::{Error, Kind, Result, Side};
use crate::reference::Repository;
use crate::registry::Repo;
use crate::registry::address::{origin, same_origin};
use crate::registry::auth::scope::Scope;
use crate::registry::azure::is_acr;
use crate::registry::call::{Call, Payload};
use crate::registry::client::{Registry, Response};
use crate::registry::location::{self, answered_by};
use crate::registry::redirect;
use crate::registry::transport::MAX_REDIRECTS;
use crate::registry::urls::check_session;
use crate::retry::Budget;
use crate::verify::Verified;

/// An upload that a registry began.
#[derive(Debug)]
pub struct UploadSession {
    id: u64,
    /// The newest Location.
    url: Url,
    /// How many bytes the registry has.
    at: u64,
    /// `OCI-Chunk-Min-Length`, in bytes.
    least: u64,
    /// The length of the last body that was tried, in bytes.
    tried: u64,
    /// Where the last body was redirected to, and how often in a row.
    redirected: Option<Url>,
    redirects: u32,
    /// From which origin bodies are redirected to the same path of which other one.
    moved: Option<(Url, Url)>,
}

impl Repo {
    /// The session that a 202 describes.
    pub(in crate::registry) async fn session(&self, response: &Response) -> Result<UploadSession> {
        let url = self.session_url(response).await?;
        let least = response.headers().get("oci-chunk-min-length").and_then(|value| value.to_str().ok()?.parse().ok());
        let id = self.registry.next_session.fetch_add(1, Ordering::Relaxed);
        self.registry.track_session(id, &url, self);
        Ok(UploadSession {
            id,
            url,
            at: 0,
            least: least.unwrap_or(0),
            tried: 0,
            redirected: None,
            redirects: 0,
            moved: None,
        })
    }

    /// Sends a blob, resuming and restarting within the feed's budget.
    pub(in crate::registry) async fn send_blob<S: Source>(
        &self,
        mut session: UploadSession,
        feed: &Feed<S>,
        body: Verified,
    ) -> Result<()> {
        let mut body = body;
        loop {
            let slot = StreamSlot::default();
            slot.put(body);
            let Err(error) = self.send_rest(&mut session, feed.blob(), &slot).await else {
                self.registry.untrack_session(session.id);
                return Ok(());
            };
            // The source failed, and has spent its part of the budget already.
            let error = slot.take_error().unwrap_or(error);
            if error.side() == Some(Side::Source) {
                self.cancel(&session).await;
                return Err(error);
            }
            drop(slot);
            if session.redirected.is_some() {
                if let Err(error) = feed.budget().retry(error).await {
                    self.cancel(&session).await;
                    return Err(error);
                }
                body = self.reopen(&session, feed, session.at).await?;
                continue;
            }
            match self.recover(session, feed, error).await? {
                Some(recovered) => (session, body) = recovered,
                None => return Ok(()),
            }
        }
    }

    /// Sends what the session hasn't yet, to the end.
    async fn send_rest(&self, session: &mut UploadSession, blob: &Descriptor, slot: &StreamSlot) -> Result<()> {
        let doing = format!("write blob {} to {}", blob.digest, self.repository);
        loop {
            let left = blob.size - session.at;
            let chunk = self.chunk_size().map(|size| size.max(session.least));
            // A blob of one chunk is sent whole with the PUT that ends it: ACR refuses only large ones.
            let whole = chunk.is_none_or(|size| session.at == 0 && left <= size);
            let (method, length) = match chunk {
                _ if whole => (Method::PUT, left),
                _ if left == 0 => (Method::PUT, 0),
                Some(size) => (Method::PATCH, left.min(size)),
                None => (Method::PUT, left),
            };
            let last = method == Method::PUT;
            session.tried = length;
            let mut url = session.redirected.take().unwrap_or_else(|| session.next());
            // A redirect repeats the query of the request that it answers.
            if last && !url.query_pairs().any(|(name, _)| name == "digest") {
                // Behind whatever query the Location has: it is the registry's state.
                url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
            }
            let asked = url.clone();
            let mut headers = HeaderMap::new();
            if length > 0 {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
                if !last || session.at > 0 {
                    // Without a unit, unlike HTTP's own: ACR refuses "bytes 0-9/*" (dotnet/sdk-container-builds#258).
                    let range = format!("{}-{}", session.at, session.at + length - 1);
                    headers.extend(HeaderValue::try_from(range).ok().map(|value| (CONTENT_RANGE, value)));
                }
            }
            let body = if length == 0 {
                Payload::Empty
            } else {
                Payload::Stream(reqwest::Body::wrap(ChunkBody::new(slot, length)?), length)
            };
            let call = Call { headers, body, ..Call::new(method, url, &self.push, doing.clone()) };
            let sending = self.registry.call_once(call);
            // Without a body to watch, the transport itself bounds the wait for the answer.
            let response =
                if length == 0 { sending.await? } else { with_watchdog(slot, &self.registry, sending).await? };
            if redirect::keeps_method(response.status()) {
                return Err(session.redirect(&response, &asked).doing(doing));
            }
            session.redirects = 0;
            let before = session.at;
            session.at += length;
            if last {
                return Ok(());
            }
            match self.session_url(&response).await {
                Ok(url) => session.url = url,
                // ECR answers 201 to a PATCH; a Location beside it may be that of the blob.
                Err(_) if response.status() == StatusCode::CREATED => {}
                Err(error) if error.kind() == Kind::Refused => return Err(error.doing(doing)),
                // Without a new one the old one holds.
                Err(_) => {}
            }
            self.registry.track_session(session.id, &session.url, self);
            if let Some(has) = taken_in_part(response.headers(), before, session.at) {
                let what = format!("the registry took {has} bytes, where {} were sent", session.at);
                session.at = has;
                return Err(Error::new(Kind::Registry, what).transient(None).doing(doing));
            }
        }
    }

    /// Finds where to go on after `error`, in this session or a new one. `None` if the blob turns
    /// out to be stored: the answer alone was lost.
    async fn recover<S: Source>(
        &self,
        mut session: UploadSession,
        feed: &Feed<S>,
        error: Error,
    ) -> Result<Option<(UploadSession, Verified)>> {
        // Some say no more than 404 to a session that is gone.
        let mut lost = matches!(error.kind(), Kind::SessionLost | Kind::NotFound | Kind::TooLarge | Kind::Mismatch);
        let mut error = match error.kind() {
            // `DIGEST_INVALID`: the bytes that arrived there are not those that were verified here.
            Kind::SessionLost | Kind::NotFound | Kind::Mismatch => error.transient(None),
            Kind::TooLarge => self.shrink(session.tried, error),
            Kind::Network if session.tried > DEFAULT_CHUNK => {
                // Hung up in the middle of one large body: smaller ones from here on.
                self.registry.largest_body.fetch_min(DEFAULT_CHUNK, Ordering::Relaxed);
                error
            }
            _ => error,
        };
        loop {
            if let Err(error) = feed.budget().retry(error).await {
                self.cancel(&session).await;
                return Err(error);
            }
            if !lost {
                match self.state(&mut session).await {
                    Ok(()) if session.at > 0 && session.at <= feed.blob().size => {
                        tracing::info!("blob {}: going on at byte {}", feed.blob().digest, session.at);
                        let body = self.reopen(&session, feed, session.at).await?;
                        // A session that goes on after a fault is asked anew.
                        (session.redirected, session.moved) = (None, None);
                        return Ok(Some((session, body)));
                    }
                    Err(fault) if fault.is_transient() => {
                        error = fault;
                        continue;
                    }
                    // `Range: 0-0` may mean no byte or one: begin anew rather than guess.
                    Ok(()) | Err(_) => lost = true,
                }
            }
            match self.head_blob(feed.blob()).await {
                Ok(true) => {
                    self.registry.untrack_session(session.id);
                    return Ok(None);
                }
                Ok(false) | Err(_) => self.cancel(&session).await,
            }
            tracing::info!("blob {}: beginning again in a new upload session", feed.blob().digest);
            match self.start_upload(feed.blob(), None).await {
                Ok(UploadStart::Mounted) => return Ok(None),
                Ok(UploadStart::Session(new)) => {
                    let body = self.reopen(&new, feed, 0).await?;
                    return Ok(Some((new, body)));
                }
                Err(fault) => error = fault,
            }
        }
    }

    /// Asks the session how many bytes it has (distribution spec, "Pushing a blob in chunks").
    async fn state(&self, session: &mut UploadSession) -> Result<()> {
        let call = Call::new(Method::GET, session.url.clone(), &self.push, "ask the upload session's state");
        let response = self.registry.call_once(call).await?;
        session.at = end_of_range(response.headers()).filter(|end| *end > 1).unwrap_or(0);
        if let Ok(url) = self.session_url(&response).await {
            session.url = url;
            self.registry.track_session(session.id, &session.url, self);
        }
        Ok(())
    }

    /// Opens the source again from byte `from` on, for this session, which is deleted if that fails.
    async fn reopen<S: Source>(&self, session: &UploadSession, feed: &Feed<S>, from: u64) -> Result<Verified> {
        let opened = feed.open(from).await;
        if opened.is_err() {
            self.cancel(session).await;
        }
        opened
    }

    /// The session's URL by the `Location` of a response.
    ///
    /// # Errors
    /// As [`session_url`].
    async fn session_url(&self, response: &Response) -> Result<Url> {
        let base = self.registry.base().await?;
        session_url(response.headers(), answered_by(response).unwrap_or(base), base, &self.repository)
    }

    /// Deletes the session, if the registry still knows it. Its failure says nothing.
    async fn cancel(&self, session: &UploadSession) {
        self.registry.abandon(session.id).await;
    }

    /// A body of `tried` bytes was refused (413): smaller ones from here on, unless that one was small.
    fn shrink(&self, tried: u64, error: Error) -> Error {
        if tried <= MIN_CHUNK {
            return error.hint(format!(
                "something before the registry takes no body of {tried} bytes: raise its limit (nginx: client_max_body_size)"
            ));
        }
        let smaller = if tried > DEFAULT_CHUNK { DEFAULT_CHUNK } else { (tried / 4).max(MIN_CHUNK) };
        self.registry.largest_body.fetch_min(smaller, Ordering::Relaxed);
        error.transient(Some(Duration::ZERO))
    }

    /// The size of chunks, if this registry needs or the user wants any.
    fn chunk_size(&self) -> Option<u64> {
        let taken = self.registry.largest_body.load(Ordering::Relaxed);
        let wanted = self.registry.options.chunk_size.or(is_acr(&self.registry.name).then_some(DEFAULT_CHUNK));
        match wanted {
            Some(wanted) => Some(wanted.min(taken)),
            None => (taken < u64::MAX).then_some(taken),
        }
    }
}

impl UploadSession {
    /// Where the next body goes.
    fn next(&self) -> Url {
        let mut url = self.url.clone();
        if let Some((_, to)) = self.moved.as_ref().filter(|(from, _)| same_origin(from, &self.url)) {
            let set = url.set_scheme(to.scheme()).is_ok() && url.set_host(to.host_str()).is_ok();
            if !set || url.set_port(to.port()).is_err() {
                return self.url.clone();
            }
        }
        url
    }

    /// Notes where a streamed body was redirected to. The error is transient, and costs an attempt: the source has to
    /// be opened again. A registry that redirects again and again ends that.
    fn redirect(&mut self, response: &Response, asked: &Url) -> Error {
        let Some(next) = location::of(response.headers(), asked) else {
            return Error::new(Kind::Registry, "it redirects an upload to what isn't a URL");
        };
        self.redirects += 1;
        if self.redirects > MAX_REDIRECTS {
            return Error::new(Kind::Registry, format!("it redirects an upload more than {MAX_REDIRECTS} times"));
        }
        let what = format!("the upload is redirected to {}", origin(&next));
        // A front sends all on to another host, whose answers may name the front again: bodies go there at once then.
        let same = asked.path() == next.path() && asked.query() == next.query();
        self.moved = same.then(|| (asked.clone(), next.clone()));
        self.redirected = Some(next);
        Error::new(Kind::Registry, what).transient(Some(Duration::ZERO))
    }
}

impl Registry {
    fn track_session(&self, id: u64, url: &Url, repo: &Repo) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.insert(id, (url.clone(), repo.push.clone()));
    }

    fn untrack_session(&self, id: u64) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    async fn abandon(&self, id: u64) {
        let session = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some((url, scope)) = session {
            let deleted = tokio::time::timeout(DELETE_TIMEOUT, self.delete_session(url, &scope)).await;
            if let Err(error) = deleted.unwrap_or_else(|_| Err(Error::new(Kind::Timeout, "no answer"))) {
                tracing::debug!("{error}");
            }
        }
    }

    /// `DELETE` of a session, a few times where that fails: one that stays holds storage until the registry's own
    /// cleaning finds it.
    async fn delete_session(&self, url: Url, scope: &Scope) -> Result<()> {
        let budget = Budget::new(DELETE_RETRIES, DELETE_TIMEOUT);
        loop {
            let call = Call::new(Method::DELETE, url.clone(), scope, "delete an upload session");
            match self.call_once(call).await {
                Ok(_) => return Ok(()),
                Err(error) => budget.retry_quietly(error).await?,
            }
        }
    }

    /// Runs what must not stop in its middle, on a task that [`Self::abandon_all`] waits for.
    pub(in crate::registry) fn finish_in_background(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        while starting.try_join_next().is_some() {}
        starting.spawn(task);
    }

    pub(in crate::registry) async fn abandon_all(&self) {
        let mut starting = std::mem::take(&mut *self.starting.lock().unwrap_or_else(PoisonError::into_inner));
        loop {
            let open: Vec<u64> = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
            future::join_all(open.into_iter().map(|id| self.abandon(id))).await;
            if starting.join_next().await.is_none() {
                return;
            }
        }
    }
}

/// The session's URL from `Location`, which may be relative to the URL that answered (ACR's is, with a query).
///
/// # Errors
/// [`Kind::Registry`] if there is none, [`Kind::Refused`] as [`check_session`].
fn session_url(headers: &HeaderMap, asked: &Url, base: &Url, repository: &Repository) -> Result<Url> {
    let wrong = || Error::new(Kind::Registry, "the registry began an upload without a Location to send it to");
    let url = location::of(headers, asked).ok_or_else(wrong)?;
    check_session(&url, base, repository)?;
    if !same_origin(&url, base) {
        tracing::debug!("the upload goes to another host, without credentials");
    }
    Ok(url)
}

/// How many bytes the registry has by the `Range` of its answer to a chunk, if that means that it took a part of the
/// chunk. The chunk brought the upload from `before` to `after` bytes.
///
/// The distribution spec has the end of all that it took. Some answer otherwise after they took the whole chunk: ECR
/// with the end of the first chunk (aws/containers-roadmap issue 2831), zot with the length of this chunk
/// (distribution-spec issue 580), others with one byte more, or with `0-0`. What is not within the chunk says nothing;
/// if the chunk was lost, the next one is answered with 416, or the digest is wrong.
fn taken_in_part(headers: &HeaderMap, before: u64, after: u64) -> Option<u64> {
    end_of_range(headers).filter(|has| *has > before.max(1) && *has < after)
}

/// How many bytes there are by `Range: 0-9` (inclusive; some write `bytes=0-9`).
fn end_of_range(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RANGE)?.to_str().ok()?;
    let text = text.trim_start().trim_start_matches("bytes").trim_start_matches(['=', ' ']);
    let end: u64 = text.split_once('-')?.1.trim().parse().ok()?;
    end.checked_add(1)
}

/// 16 MiB: ACR refuses single bodies from some 20 MB on, and counts each chunk as a write.
const DEFAULT_CHUNK: u64 = 16 << 20;
/// What the DELETE of an upload session may take in all, and how often it is tried again.
const DELETE_TIMEOUT: Duration = Duration::from_secs(5);
const DELETE_RETRIES: u32 = 3;
/// Chunks are made no smaller than this, however large bodies are refused: nginx's own limit, if none is set.
const MIN_CHUNK: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::LOCATION;

    fn headers(name: http::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn locations_are_relative_absolute_or_wrongly_plain() {
        let base = Url::parse("https://r.azurecr.io/v2/").expect("a URL");
        let repository = "r.azurecr.io/a".parse().expect("a repository");
        let read = |headers: &HeaderMap| session_url(headers, &base, &base, &repository);
        let at = |text| read(&headers(LOCATION, text)).map(|url| url.to_string()).ok();
        assert_eq!(
            at("/v2/a/blobs/uploads/1?_nouploadcache=false&_state=x"),
            Some("https://r.azurecr.io/v2/a/blobs/uploads/1?_nouploadcache=false&_state=x".into())
        );
        assert_eq!(at("http://r.azurecr.io/upload/x"), Some("https://r.azurecr.io/upload/x".into()));
        assert_eq!(at("http://r.azurecr.io/v2/b/manifests/x"), None, "no upload");
        assert_eq!(at("http://other.io/v2/x"), Some("http://other.io/v2/x".into()), "refused later, by the policy");
        assert_eq!(read(&HeaderMap::new()).err().map(|e| e.kind()), Some(Kind::Registry));
    }

    /// A front sends each body on to another host, whose Locations name the front: bodies go there at once.
    #[test]
    fn bodies_follow_a_redirect_that_keeps_the_path() {
        let url = |text: &str| Url::parse(text).expect("a URL");
        let mut session = UploadSession {
            id: 0,
            url: url("https://front.io/v2/a/blobs/uploads/1?x=2"),
            at: 0,
            least: 0,
            tried: 0,
            redirected: None,
            redirects: 0,
            moved: Some((url("https://front.io/v2/a"), url("https://other.io:8443/v2/a"))),
        };
        assert_eq!(session.next().as_str(), "https://other.io:8443/v2/a/blobs/uploads/1?x=2");
        session.url = url("https://third.io/v2/a/blobs/uploads/1");
        assert_eq!(session.next(), session.url, "it is no Location at the front");
    }

    #[test]
    fn ranges_are_inclusive() {
        assert_eq!(end_of_range(&headers(RANGE, "0-9")), Some(10));
        assert_eq!(end_of_range(&headers(RANGE, "bytes=0-9")), Some(10));
        assert_eq!(end_of_range(&headers(RANGE, "bytes 0-9")), Some(10));
        assert_eq!(end_of_range(&headers(RANGE, "x")), None);
    }

    #[test]
    fn only_a_part_of_the_chunk_that_was_sent_is_gone_on_from() {
        let took = |range, before, after| taken_in_part(&headers(RANGE, range), before, after);
        assert_eq!(took("0-14", 10, 20), Some(15));
        // All of it, as the specification says; then ECR, zot, one byte too many, and nothing.
        for (range, before, after) in
            [("0-19", 10, 20), ("0-9", 10, 20), ("0-4", 15, 20), ("0-20", 10, 20), ("0-0", 0, 20), ("x", 0, 20)]
        {
            assert_eq!(took(range, before, after), None, "{range}");
        }
    }
}
