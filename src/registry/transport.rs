//! Sends requests: credentials, limits, redirects, counters.
//!
//! Redirects are followed here and not by the HTTP library: `Authorization` must go to the registry's own origin only,
//! and some addresses are forbidden (see [`super::address`]).

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderValue};
use http::{HeaderMap, Method, Request, StatusCode};
use reqwest::Url;
use tokio::time::Instant;

use super::address::{origin, same_origin};
use super::auth::challenge::Challenge;
use super::auth::scope::Scope;
use super::call::names_manifest;
use super::call::{Call, Payload};
use super::client::{COMMIT_TIMEOUT, Registry, Response, length, uri};
use super::idle_timeout::TimedBody;
use super::limits::parallelism::{Permit, retry_after};
use super::limits::pull_ledger::PullQuota;
use super::limits::pull_limit::PullPermit;
use super::limits::rate_limit::Class;
use super::location;
use super::network::PeerName;
use super::redirect;
use super::urls::check_write;
use crate::error::{Error, Kind, Result};
use crate::reference::Repository;

impl Registry {
    /// Adds the credentials of `account`, answers challenges, and sends the call. `pull_permit` is the pull that the
    /// call costs.
    pub(super) async fn send_signed(
        &self,
        call: Call<'_>,
        account: usize,
        pull_permit: Option<PullPermit<'_>>,
    ) -> Result<Response> {
        let Call { method, url, scope, headers, mut body, .. } = call;
        let base = self.base().await?.clone();
        let auth = self.account(account);
        // An upload session's Location on another host gets the bytes, but never our credentials (CVE-2026-50151).
        let ours = same_origin(&base, &url);
        if !ours {
            self.policy.check(&base, &url)?;
        }
        let mut pull_permit = pull_permit;
        for attempt in 1..=MAX_SIGNATURES {
            let turn = if ours { auth.first_request().await } else { None };
            let signature = if ours { self.authorization(account, scope).await? } else { None };
            let mut signed = headers.clone();
            if let Some(value) = &signature {
                signed.insert(AUTHORIZATION, value.clone());
            }
            let streamed = matches!(body, Payload::Stream(..));
            let once = body.next();
            let mark = self.pulls.mark(account);
            let response = self.send_following_redirects(&method, &url, signed, once, &scope.repository).await?;
            if location::redirected_to(&response).is_some() {
                // Another origin gets no credentials, whatever it asks for.
                return Ok(response);
            }
            if response.status() != StatusCode::UNAUTHORIZED || !ours {
                if ours {
                    self.record_answer(account, mark, &url, &response, pull_permit.as_mut());
                }
                return Ok(response);
            }
            let challenge = Challenge::from_headers(response.headers());
            let again = auth.on_challenge(challenge, scope, signature.as_ref()).await;
            drop(turn);
            if streamed && again {
                // The stream is used up. Its owner asks the session where to continue.
                return Err(Error::new(Kind::Unauthorized, "the token is no longer accepted (401)")
                    .transient(Some(Duration::ZERO)));
            }
            if attempt == MAX_SIGNATURES || !again {
                if let Some(pull_permit) = &mut pull_permit {
                    pull_permit.answered(false);
                }
                return Ok(response);
            }
        }
        Err(Error::new(Kind::Unauthorized, "the registry keeps asking for credentials"))
    }

    /// The account's `Authorization`. If there are several accounts, one whose password is refused is not used again.
    async fn authorization(&self, account: usize, scope: &Scope) -> Result<Option<HeaderValue>> {
        let auth = self.account(account);
        auth.authorization(self, scope).await.inspect_err(|error| {
            if error.kind() == Kind::Unauthorized && !error.is_transient() && self.pulls.refuse(account) {
                let account_name = auth.username().unwrap_or_default();
                tracing::warn!("{}: continuing without the account '{account_name}': {error}", self.name);
            }
        })
    }

    /// Records the pull quota in a response of the registry itself.
    fn record_answer(
        &self,
        account: usize,
        mark: u64,
        url: &Url,
        response: &Response,
        pull_permit: Option<&mut PullPermit<'_>>,
    ) {
        let success = response.status().is_success();
        let quota = PullQuota::from_headers(response.headers());
        if quota.is_some() || (success && names_manifest(url)) {
            self.pulls.learn(account, mark, quota);
        }
        if let Some(pull_permit) = pull_permit {
            pull_permit.answered(success);
        }
    }

    /// Sends a request and follows redirects (see [`redirect`]). A streamed body is sent once: its redirect is the
    /// response.
    ///
    /// # Errors
    /// [`Kind::Refused`] for a redirect to a forbidden address, and for a write outside of `repository`.
    async fn send_following_redirects(
        &self,
        method: &Method,
        asked: &Url,
        mut headers: HeaderMap,
        mut body: Payload,
        repository: &Repository,
    ) -> Result<Response> {
        let base = self.base().await?;
        let streamed = matches!(body, Payload::Stream(..));
        let mut url = asked.clone();
        for _ in 0..=MAX_REDIRECTS {
            let permit = self.acquire_permits(method, &url).await?;
            let mut response = self.send_once(method, &url, headers.clone(), body.next()).await?;
            drop(permit);
            let next = redirect::target(method, &response, &url)?;
            let Some(next) = next.filter(|_| !streamed) else {
                location::note_origin(&mut response, asked, url);
                return Ok(response);
            };
            self.policy.check(&url, &next)?;
            check_write(method, &next, base, repository)?;
            if !same_origin(&url, &next) {
                headers.remove(AUTHORIZATION);
            }
            tracing::debug!("redirected to {}", origin(&next));
            url = next;
        }
        Err(Error::new(Kind::Registry, format!("it redirects more than {MAX_REDIRECTS} times")))
    }

    /// Waits for a permit to run, and for the rate limit. A request that waits for the rate limit holds no permit. The
    /// request's own timeout does not run yet.
    async fn acquire_permits(&self, method: &Method, url: &Url) -> Result<Permit> {
        // The registry does not count requests to storage elsewhere.
        if !same_origin(self.base().await?, url) {
            return Ok(self.limiter.acquire().await);
        }
        let class = Class::of(method, url.path());
        loop {
            self.rate_limit.wait(class).await;
            let permit = self.limiter.acquire().await;
            if self.rate_limit.take(class) {
                return Ok(permit);
            }
        }
    }

    /// One request to a token endpoint.
    pub(super) async fn ask_token(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Payload,
    ) -> Result<Response> {
        loop {
            self.limiter.wait_for_pause().await;
            self.rate_limit.wait(Class::Token).await;
            if self.rate_limit.take(Class::Token) {
                break;
            }
        }
        let response = self.send_once(&method, &url, headers, body).await?;
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            self.on_push_back(Class::Token, response.status().as_u16(), retry_after(response.headers()));
        }
        Ok(response)
    }

    /// One HTTP exchange, up to the response's head. Counts it.
    ///
    /// The owner of a streamed body watches its progress; other requests have a time limit here.
    async fn send_once(&self, method: &Method, url: &Url, headers: HeaderMap, body: Payload) -> Result<Response> {
        let mut request = Request::new(reqwest::Body::default());
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri(url)?;
        *request.headers_mut() = headers;
        let streamed = matches!(body, Payload::Stream(..));
        let empty = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
        match body {
            Payload::Empty if empty => {
                request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
            Payload::Empty => {}
            Payload::Bytes(bytes) => *request.body_mut() = bytes.into(),
            Payload::Stream(body, length) => {
                // ACR refuses chunked transfer coding (CONTENT_LENGTH_INVALID; harbor#23016).
                request.headers_mut().insert(CONTENT_LENGTH, length.into());
                *request.body_mut() = body;
            }
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let sending = Box::pin(self.http.send(request));
        let sent = if streamed {
            sending.await
        } else {
            // The registry checks and stores a written body before it answers.
            let idle = self.options.idle;
            let patience = if *method == Method::PUT { COMMIT_TIMEOUT.max(idle) } else { idle };
            let late =
                || Error::new(Kind::Timeout, format!("no answer from {} in {} s", self.name, patience.as_secs()));
            let sent = tokio::time::timeout(patience, sending).await.unwrap_or_else(|_| Err(late()));
            sent.inspect_err(|error| self.note_fault(error, began))
        };
        let mut sent = sent?;
        self.answered_at(url, sent.status());
        let peer = sent.extensions_mut().remove::<PeerName>().map_or_else(|| self.name.clone(), |PeerName(name)| name);
        let response = sent.map(|body| TimedBody::new(body, peer, self.options.idle, self.options.min_rate));
        let (status, took) = (response.status().as_u16(), began.elapsed().as_millis());
        let (origin, path) = (origin(url), url.path());
        match length(response.headers()) {
            Some(bytes) => tracing::debug!("{method} {origin}{path}: {status}, {bytes} bytes, {took} ms"),
            None => tracing::debug!("{method} {origin}{path}: {status}, {took} ms"),
        }
        Ok(response)
    }

    /// Handles a 429 or 503 for a request of this class: the class pauses if it has limits per minute, else all
    /// requests do. Returns the end of the pause.
    pub(super) fn on_push_back(&self, class: Class, status: u16, wait: Option<Duration>) -> Option<Instant> {
        if wait.is_some() && self.rate_limit.on_rate_limited(class, wait) {
            return None;
        }
        self.limiter.on_push_back(status, wait)
    }
}

pub(super) const MAX_REDIRECTS: u32 = 5;
/// How often a call is sent with credentials: without a token, with one, and with a new one if that expired meanwhile.
const MAX_SIGNATURES: u32 = 3;
