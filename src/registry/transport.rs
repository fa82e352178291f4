//! Requests to one registry: addresses, credentials, redirects, limits, counting.
//!
//! Redirects are followed here and not by the HTTP library, since `Authorization` must go to the
//! registry's own origin only, and not every address may be followed (see [`super::address`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderName, HeaderValue, LOCATION};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;
use reqwest::{Request, Url};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use super::Options;
use super::address::{Policy, origin, same_origin};
use super::answer;
use super::auth::Auth;
use super::challenge::Challenge;
use super::incoming::Incoming;
use super::limits::{Limiter, PullQuota, retry_after};
use super::token::Scope;
use crate::error::{Error, Kind, Result};
use crate::reference::{DOCKER_HUB, split_port};
use crate::retry::Budget;

/// A response whose body hasn't been read.
pub(super) type Response = http::Response<Incoming>;

/// One registry: everything that is shared by all who talk to it in this run.
#[derive(Debug)]
pub struct Registry {
    /// As users name it: `docker.io`.
    pub(super) name: String,
    /// Where it's asked: `https://registry-1.docker.io`.
    base: OnceCell<Url>,
    first_base: Url,
    /// Unverified TLS and plain http were allowed for it.
    insecure: bool,
    pub(super) options: Arc<Options>,
    http: OnceCell<reqwest::Client>,
    policy: OnceCell<Policy>,
    auth: Auth,
    limiter: Arc<Limiter>,
    /// Learned: bodies of uploads that are larger (in bytes) are refused here.
    pub(super) largest_body: AtomicU64,
    /// Learned: there is no referrers API here.
    pub(super) no_referrers: AtomicBool,
    pub(super) sessions: Mutex<HashMap<u64, (Url, Scope)>>,
    pub(super) next_session: AtomicU64,
    /// Uploads whose session isn't known yet.
    pub(super) starting: Mutex<JoinSet<()>>,
    requests: AtomicU64,
    quota: Mutex<Option<PullQuota>>,
}

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

impl Call<'_> {
    /// The same call. Of a streamed body nothing is left.
    fn again(&self) -> Self {
        let body = match &self.body {
            Payload::Bytes(bytes) => Payload::Bytes(bytes.clone()),
            Payload::Empty | Payload::Stream(..) => Payload::Empty,
        };
        Self {
            method: self.method.clone(),
            url: self.url.clone(),
            scope: self.scope,
            headers: self.headers.clone(),
            body,
            doing: self.doing.clone(),
        }
    }

    pub(super) fn header(mut self, name: HeaderName, value: impl TryInto<HeaderValue>) -> Self {
        if let Ok(value) = value.try_into() {
            self.headers.insert(name, value);
        }
        self
    }
}

impl Registry {
    pub(super) fn new(name: &str, options: Arc<Options>) -> Result<Self> {
        let host = if name == DOCKER_HUB { "registry-1.docker.io" } else { name };
        let insecure = options.insecure.iter().any(|allowed| allowed == name || allowed == split_port(name).0);
        let scheme = if is_loopback(split_port(name).0) && !insecure { "http" } else { "https" };
        let first_base = Url::parse(&format!("{scheme}://{host}"))
            .map_err(|error| Error::new(Kind::Usage, format!("{name:?} is not a registry: {error}")))?;
        Ok(Self {
            name: name.to_owned(),
            base: OnceCell::new(),
            first_base,
            insecure,
            http: OnceCell::new(),
            policy: OnceCell::new(),
            auth: Auth::new(),
            limiter: Limiter::new(options.concurrency),
            largest_body: AtomicU64::new(u64::MAX),
            no_referrers: AtomicBool::new(false),
            sessions: Mutex::default(),
            next_session: AtomicU64::new(0),
            starting: Mutex::default(),
            requests: AtomicU64::new(0),
            quota: Mutex::new(None),
            options,
        })
    }

    /// Requests made so far, each redirect and token request counted.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The pull quota that the registry (Docker Hub) last told.
    pub fn quota(&self) -> Option<PullQuota> {
        self.quota.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An ACR refresh token for the Entra identity.
    pub(super) async fn exchanged(&self) -> Result<crate::credentials::Secret> {
        let base = self.base().await?;
        let token = self.auth.exchange(self, base, self.auth.service().as_deref()).await?;
        token.ok_or_else(|| Error::new(Kind::Unauthorized, "there is no Azure identity here"))
    }

    /// The URL of `path` (which begins with `/v2/`) at this registry.
    pub(super) async fn url(&self, path: &str) -> Result<Url> {
        let base = self.base().await?;
        base.join(path).map_err(|error| Error::new(Kind::Invalid, format!("{path:?} is no path: {error}")))
    }

    pub(super) async fn base(&self) -> Result<&Url> {
        self.base.get_or_try_init(|| self.find_base()).await
    }

    /// A registry that the user called insecure is asked by https first, as Docker does.
    async fn find_base(&self) -> Result<Url> {
        if !self.insecure {
            return Ok(self.first_base.clone());
        }
        let mut plain = self.first_base.clone();
        let _ = plain.set_scheme("http");
        let probe = self.http().await?.get(self.first_base.join("/v2/").unwrap_or_else(|_| self.first_base.clone()));
        match tokio::time::timeout(PROBE_TIMEOUT, probe.send()).await {
            Ok(Ok(_)) => Ok(self.first_base.clone()),
            _ => Ok(plain),
        }
    }

    /// Makes the call, trying again within a budget of its own; a streamed body goes out once.
    ///
    /// # Errors
    /// What [`answer::error`] makes of statuses other than 2xx.
    pub(super) async fn call(&self, call: Call<'_>) -> Result<Response> {
        if matches!(call.body, Payload::Stream(..)) {
            return self.call_once(call).await;
        }
        let budget = Budget::new(self.options.retries, self.options.patience);
        loop {
            match self.call_once(call.again()).await {
                Ok(response) => return Ok(response),
                Err(error) => budget.retry(error).await?,
            }
        }
    }

    /// Makes the call and reads its small answer of at most `most` bytes, trying both again
    /// together: a body may break off after a fine head.
    pub(super) async fn read(&self, call: Call<'_>, most: u64) -> Result<(http::response::Parts, Bytes)> {
        let budget = Budget::new(self.options.retries, self.options.patience);
        loop {
            let read = async {
                let (head, body) = self.call_once(call.again()).await?.into_parts();
                let bytes = read_small(Response::new(body), most).await;
                bytes.map(|bytes| (head, bytes)).map_err(|error| error.doing(call.doing.clone()))
            };
            match read.await {
                Ok(read) => return Ok(read),
                Err(error) => budget.retry(error).await?,
            }
        }
    }

    /// Makes the call once: signs it, answers one challenge, follows redirects.
    pub(super) async fn call_once(&self, mut call: Call<'_>) -> Result<Response> {
        let doing = std::mem::take(&mut call.doing);
        let (method, scope) = (call.method.clone(), call.scope);
        let sent = self.signed(call).await;
        let (response, from) = sent.map_err(|error| error.doing(doing.clone()))?;
        if response.status().is_success() {
            self.limiter.went_well();
            return Ok(response);
        }
        if let Some(storage) = from
            && matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        {
            // It's the link that isn't taken, not our credentials: a new one may be, as after its expiry.
            let what = format!("{} sends us to {storage}, which answered {}", self.name, response.status().as_u16());
            return Err(Error::new(Kind::Registry, what).transient(None).doing(doing));
        }
        let error = answer::error(response, &self.name, &method, scope, self.auth.username().as_deref()).await;
        Err(error.doing(doing))
    }

    /// The response, and the origin that it came from after redirects if it isn't the call's.
    async fn signed(&self, call: Call<'_>) -> Result<(Response, Option<String>)> {
        let Call { method, url, scope, headers, mut body, .. } = call;
        let base = self.base().await?.clone();
        // A session's Location on another host gets the bytes, but never our credentials (CVE-2026-50151).
        let ours = same_origin(&base, &url);
        if !ours {
            self.policy().await?.check(&base, &url)?;
        }
        for attempt in 1..=SIGNATURES {
            let signature = if ours { self.auth.authorization(self, scope).await? } else { None };
            let mut signed = headers.clone();
            if let Some(value) = &signature {
                signed.insert(AUTHORIZATION, value.clone());
            }
            let streamed = matches!(body, Payload::Stream(..));
            let once = match &body {
                Payload::Bytes(bytes) => Payload::Bytes(bytes.clone()),
                _ => std::mem::replace(&mut body, Payload::Empty),
            };
            let (response, end) = self.followed(method.clone(), url.clone(), signed, once).await?;
            if !same_origin(&url, &end) {
                // Whatever it asks for: it's not the registry, and gets no credentials.
                return Ok((response, Some(origin(&end))));
            }
            if response.status() != StatusCode::UNAUTHORIZED || !ours {
                return Ok((response, None));
            }
            let challenge = Challenge::from_headers(response.headers());
            let again = self.auth.challenged(challenge, scope, signature.as_ref()).await;
            if streamed && again {
                // The stream is spent; whoever feeds it asks the session where to go on.
                return Err(Error::new(Kind::Unauthorized, "the token was not taken any more (401)")
                    .transient(Some(Duration::ZERO)));
            }
            if attempt == SIGNATURES || !again {
                return Ok((response, None));
            }
        }
        Err(Error::new(Kind::Unauthorized, "the registry keeps asking for credentials"))
    }

    /// Sends, and follows what GET and HEAD are redirected to.
    async fn followed(
        &self,
        method: Method,
        mut url: Url,
        mut headers: HeaderMap,
        mut body: Payload,
    ) -> Result<(Response, Url)> {
        let follow = method == Method::GET || method == Method::HEAD;
        for _ in 0..=MAX_REDIRECTS {
            let permit = self.limiter.acquire().await;
            let payload = std::mem::replace(&mut body, Payload::Empty);
            let response = self.raw(method.clone(), url.clone(), headers.clone(), payload).await?;
            drop(permit);
            let Some(location) =
                response.headers().get(LOCATION).filter(|_| follow && response.status().is_redirection())
            else {
                return Ok((response, url));
            };
            let next = location
                .to_str()
                .ok()
                .and_then(|location| url.join(location).ok())
                .ok_or_else(|| Error::new(Kind::Registry, "it redirects to what isn't a URL"))?;
            self.policy().await?.check(&url, &next)?;
            if !same_origin(&url, &next) {
                headers.remove(AUTHORIZATION);
            }
            tracing::debug!("redirected to {}", origin(&next));
            url = next;
        }
        Err(Error::new(Kind::Registry, format!("it redirects more than {MAX_REDIRECTS} times")))
    }

    /// One HTTP exchange, up to the response's head; counts it and learns limits from it.
    ///
    /// A streamed body's progress is watched by its owner: here only the others' waits are bounded.
    pub(super) async fn raw(&self, method: Method, url: Url, headers: HeaderMap, body: Payload) -> Result<Response> {
        let shown = format!("{method} {}{}", origin(&url), url.path());
        let mut request = Request::new(method.clone(), url);
        *request.headers_mut() = headers;
        let streamed = matches!(body, Payload::Stream(..));
        let empty = matches!(method, Method::POST | Method::PUT | Method::PATCH);
        match body {
            Payload::Empty if empty => {
                request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
            Payload::Empty => {}
            Payload::Bytes(bytes) => *request.body_mut() = Some(bytes.into()),
            Payload::Stream(body, length) => {
                // ACR refuses chunked transfer coding (CONTENT_LENGTH_INVALID; harbor#23016).
                request.headers_mut().insert(CONTENT_LENGTH, length.into());
                *request.body_mut() = Some(body);
            }
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        let sending = self.http().await?.execute(request);
        let sent = if streamed {
            sending.await
        } else {
            // What is written is also checked and stored before the answer comes.
            let idle = self.options.idle;
            let patience = if method == Method::PUT { COMMIT_TIMEOUT.max(idle) } else { idle };
            let late =
                || Error::new(Kind::Timeout, format!("no answer from {} in {} s", self.name, patience.as_secs()));
            tokio::time::timeout(patience, sending).await.map_err(|_| late())?
        };
        let response: http::Response<reqwest::Body> =
            sent.map_err(|error| answer::transport_error(error, &self.name))?.into();
        let response = response.map(|body| Incoming::new(body, &self.name, self.options.idle));
        tracing::debug!("{shown}: {}", response.status().as_u16());
        self.learn(&response);
        Ok(response)
    }

    fn learn(&self, response: &Response) {
        if let Some(told) = PullQuota::from_headers(response.headers()) {
            let mut quota = self.quota.lock().unwrap_or_else(PoisonError::into_inner);
            if !quota.as_ref().is_some_and(|known| told.is_older_than(known, self.options.concurrency)) {
                *quota = Some(told);
            }
        }
        if matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            self.limiter.pushed_back(retry_after(response.headers()));
        }
    }

    pub(super) async fn policy(&self) -> Result<&Policy> {
        self.http().await?;
        self.policy.get().ok_or_else(|| Error::new(Kind::Local, "the client has no address policy"))
    }

    async fn http(&self) -> Result<&reqwest::Client> {
        self.http
            .get_or_try_init(|| async {
                let policy = Policy::new(&self.first_base, self.options.resolve.clone(), false);
                let policy = self.policy.get_or_init(|| async { policy }).await.clone();
                self.options.client(policy, self.insecure, is_loopback(split_port(&self.name).0))
            })
            .await
    }
}

/// Reads a small body to its end.
///
/// # Errors
/// [`Kind::Invalid`] for more than `most` bytes: the size is never taken on trust.
pub(super) async fn read_small(response: Response, most: u64) -> Result<Bytes> {
    let mut body = response.into_body();
    let mut bytes = BytesMut::new();
    let reading = async {
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                if (bytes.len() + data.len()) as u64 > most {
                    return Err(Error::new(Kind::Invalid, format!("the answer has more than {most} bytes")));
                }
                bytes.extend_from_slice(&data);
            }
        }
        Ok(())
    };
    tokio::time::timeout(SMALL_TIMEOUT, reading)
        .await
        .map_err(|_| Error::new(Kind::Timeout, format!("the answer did not end in {} s", SMALL_TIMEOUT.as_secs())))??;
    Ok(bytes.freeze())
}

/// Whether a host as written is this machine: plain http needs no flag there, as in Docker.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// How long it may take to answer when it has all of a blob: it hashes and stores the blob meanwhile.
pub(super) const COMMIT_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a small answer may take in all, however evenly it trickles.
const SMALL_TIMEOUT: Duration = Duration::from_secs(60);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_REDIRECTS: u32 = 5;
/// How often a call is signed: without a token, with one, and with a new one if that expired on the way.
const SIGNATURES: u32 = 3;
