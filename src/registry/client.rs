//! One registry, and calls to it: shared state, accounts, retries.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;
use reqwest::Url;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Options;
use super::address::{Policy, origin, same_origin};
use super::auth::Auth;
use super::call::{Call, Payload};
use super::error;
use crate::descriptor::MAX_SIZE;
use http::header::CONTENT_LENGTH;

use super::auth::scope::{Access, Scope};
use super::endpoints::lists::ReferrersApi;
use super::idle_timeout::TimedBody;
use super::limits::parallelism::{ParallelismLimit, retry_after};
use super::limits::pull_ledger::{AccountPulls, PullQuota};
use super::limits::pull_limit::{PullLimit, PullPermit};
use super::limits::rate_limit::{Class, RateLimit};
use super::location;
use super::lookup::WithoutHead;
use super::network::{self, HttpClient, PROBE_TIMEOUT, ProbeAnswer};
use super::redirect;
use super::urls::{Endpoint, check_write};
use super::web_page;
use crate::credentials::Credential;
use crate::error::{Error, Kind, Result, Side};
use crate::memory::CollectedBody;
use crate::reference::{DOCKER_HUB, RegistryName, Repository, is_loopback, split_port, without_https_port};
use crate::retry::Budget;

/// A response whose body is not read yet.
pub(super) type Response = http::Response<TimedBody>;

/// A handle to one registry: the state that all users of the registry share in this run, and connections.
#[derive(Debug)]
pub struct Registry {
    state: Arc<RegistryState>,
    pub(super) http: HttpClient,
}

impl Deref for Registry {
    type Target = RegistryState;

    fn deref(&self) -> &RegistryState {
        &self.state
    }
}

/// The state of a registry that all handles share.
#[derive(Debug)]
pub struct RegistryState {
    /// The name that users write, such as `docker.io`.
    pub(super) name: String,
    /// The URL of the API, such as `https://registry-1.docker.io`. Unset until its scheme is known.
    base: OnceCell<Url>,
    first_base: Url,
    /// The registry did not answer a probe for TLS. No other probe is made before this time.
    silent_until: Mutex<Option<Instant>>,
    /// Plain http and unverified TLS are allowed.
    insecure: bool,
    is_on_this_machine: bool,
    pub(super) options: Arc<Options>,
    pub(super) policy: Policy,
    /// The stored account first, then those of `--hub-accounts`.
    accounts: Vec<Auth>,
    pub(super) pulls: PullLimit,
    pub(super) rate_limit: RateLimit,
    pub(super) limiter: Arc<ParallelismLimit>,
    /// Learned: the registry refuses larger upload bodies, in bytes.
    pub(super) largest_body: AtomicU64,
    /// Learned: whether the registry has the referrers API.
    pub(super) referrers_api: ReferrersApi,
    /// Learned: the registry does not support HEAD for these.
    pub(super) without_head: WithoutHead,
    pub(super) sessions: Mutex<HashMap<u64, OpenSession>>,
    pub(super) next_session: AtomicU64,
    /// Uploads whose session is not known yet.
    pub(super) starting: Mutex<JoinSet<()>>,
    pub(super) requests: AtomicU64,
}

/// An upload session, which is deleted if its blob does not arrive.
#[derive(Debug)]
pub(super) struct OpenSession {
    pub(super) url: Url,
    pub(super) scope: Scope,
    /// The connections that the session was started on.
    pub(super) http: HttpClient,
}

impl Registry {
    pub(super) fn new(name: &str, options: Arc<Options>) -> Result<Self> {
        // A layout directory's pseudo registry and unchecked text must not become a host.
        if name.parse::<RegistryName>()? != *name {
            return Err(Error::new(Kind::Usage, format!("{name:?} is not the name of a registry")));
        }
        let host = if name == DOCKER_HUB { "registry-1.docker.io" } else { name };
        let insecure =
            options.insecure.iter().any(|allowed| without_https_port(allowed) == name || allowed == split_port(name).0);
        // A registry on this machine: the scheme until a probe has decided.
        let is_on_this_machine = is_loopback(split_port(name).0);
        let scheme = if is_on_this_machine { "http" } else { "https" };
        let first_base = Url::parse(&format!("{scheme}://{host}"))
            .map_err(|error| Error::new(Kind::Usage, format!("{name:?} is not a registry: {error}")))?;
        // Further accounts, for reading.
        let given: &[Credential] = if name == DOCKER_HUB { &options.hub_accounts } else { &[] };
        let wanted = Arc::default();
        let accounts =
            [None].into_iter().chain(given.iter().cloned().map(Some)).map(|given| Auth::new(&wanted, given)).collect();
        let policy = Policy::new(&first_base, options.resolve.clone(), false)
            .with_insecure(&options.insecure)
            .with_resolver(options.resolver.clone());
        let http = HttpClient::new(network::Settings {
            registry: name,
            base: &first_base,
            policy: policy.clone(),
            proxies: &options.proxies,
            trust: &options.trust,
            insecure,
            idle: options.concurrency,
        });
        let state = RegistryState {
            name: name.to_owned(),
            base: OnceCell::new(),
            first_base,
            silent_until: Mutex::default(),
            insecure,
            is_on_this_machine,
            policy,
            accounts,
            pulls: PullLimit::new(name, &options),
            rate_limit: RateLimit::new(name, &options),
            limiter: ParallelismLimit::new(name, options.concurrency, options.longest_pause),
            largest_body: AtomicU64::new(u64::MAX),
            referrers_api: ReferrersApi::default(),
            without_head: WithoutHead::default(),
            sessions: Mutex::default(),
            next_session: AtomicU64::new(0),
            starting: Mutex::default(),
            requests: AtomicU64::new(0),
            options,
        };
        Ok(Self { state: Arc::new(state), http })
    }

    /// The same registry with connections that all lead to one of its addresses. `None` if pushes are not pinned, or if
    /// there is nothing to pin.
    pub(super) fn pinned(&self) -> Option<Self> {
        let http = self.http.pinned().filter(|_| self.options.pin_pushes)?;
        Some(Self { state: self.state.clone(), http })
    }

    /// The same registry with these connections.
    pub(super) fn with(&self, http: HttpClient) -> Self {
        Self { state: self.state.clone(), http }
    }

    /// Reports that a request, which began at `since`, failed. After a network error a pinned address is not used any
    /// longer.
    pub(super) fn note_fault(&self, error: &Error, since: Instant) {
        let of_network = matches!(error.kind(), Kind::Network | Kind::Timeout);
        if of_network && error.side() != Some(Side::Source) {
            self.http.on_fault(since);
        }
    }

    /// The number of requests so far. Redirects and token requests count too.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The pull quota in the newest responses of the registry (Docker Hub); of several accounts, their sum. `None` if
    /// there is no limit.
    pub fn quota(&self) -> Option<PullQuota> {
        self.pulls.quota()
    }

    /// The number of manifests read by GET so far. Docker Hub counts these as pulls.
    pub fn pulls(&self) -> u64 {
        self.pulls.count()
    }

    /// The pulls and the quota of each account that was used.
    pub fn account_pulls(&self) -> Vec<AccountPulls> {
        self.pulls.accounts(|index| self.account(index).username())
    }

    /// An ACR refresh token for the Entra identity.
    pub(super) async fn acr_refresh_token(&self) -> Result<crate::credentials::Secret> {
        let base = self.base().await?;
        let token = self.account(0).exchange(self, base, self.account(0).service().as_deref()).await?;
        token.ok_or_else(|| Error::new(Kind::Unauthorized, "there is no Azure identity here"))
    }

    /// The account with this index; the stored account if there is none.
    pub(super) fn account(&self, index: usize) -> &Auth {
        self.accounts.get(index).unwrap_or(&self.accounts[0])
    }

    /// Notes that a blob was mounted from this repository.
    pub(super) fn mounted_from(&self, from: &Repository) {
        self.account(0).mounted_from(&from.name);
    }

    /// The URL of the API. Probes the scheme, without credentials, if it is not known.
    pub(super) async fn base(&self) -> Result<&Url> {
        if let Some(base) = self.base.get() {
            return Ok(base);
        }
        let silent_until = || self.silent_until.lock().unwrap_or_else(PoisonError::into_inner);
        if silent_until().is_some_and(|until| Instant::now() < until) {
            return Ok(&self.first_base);
        }
        match self.base.get_or_try_init(|| Box::pin(self.find_base())).await {
            Ok(base) => Ok(base),
            // The request itself reports the fault and may be retried. The probe is then repeated.
            Err(error) if error.is_transient() => {
                if error.kind() == Kind::Timeout {
                    *silent_until() = Some(Instant::now() + PROBE_PAUSE);
                }
                Ok(&self.first_base)
            }
            Err(error) => Err(error),
        }
    }

    /// Notes that the registry answered at this URL with this status. If no probe has found the scheme yet, the answer
    /// decides it, except for 400 over http: servers with TLS answer so.
    pub(super) fn answered_at(&self, url: &Url, status: StatusCode) {
        let is_unclear = status == StatusCode::BAD_REQUEST && url.scheme() == "http";
        if !self.base.initialized() && same_origin(url, &self.first_base) && !is_unclear {
            let _ = self.base.set(self.first_base.clone());
        }
    }

    /// Changes the URL of a call to the scheme that was found since the call was made.
    async fn at_its_scheme(&self, url: &mut Url) -> Result<()> {
        let base = self.base().await?;
        let same_port = url.port_or_known_default() == base.port_or_known_default()
            || url.port().is_none() && base.port().is_none();
        if self.is_probed() && url.host_str() == base.host_str() && same_port && url.scheme() != base.scheme() {
            let _ = url.set_scheme(base.scheme());
        }
        Ok(())
    }

    /// Whether a probe decides between https and http: on this machine, and for insecure registries.
    fn is_probed(&self) -> bool {
        self.is_on_this_machine || self.insecure
    }

    /// Whether requests are confidential: TLS with a verified certificate, or a registry on this machine.
    pub(super) async fn is_confidential(&self) -> Result<bool> {
        let verified = !self.insecure && self.base().await?.scheme() == "https";
        Ok(verified || self.is_on_this_machine)
    }

    /// Decides between https and http. http is used only if the port answers a TLS handshake in another protocol, or if
    /// nothing answers the handshake and a request over http succeeds. A wrong certificate or a passing fault never
    /// leads to http.
    async fn find_base(&self) -> Result<Url> {
        let mut base = self.first_base.clone();
        if !self.is_probed() {
            return Ok(base);
        }
        let scheme = match self.http.probe().await? {
            ProbeAnswer::Tls => "https",
            ProbeAnswer::Other => "http",
            ProbeAnswer::Nothing if !self.is_on_this_machine && self.answers_by_http().await? => "http",
            ProbeAnswer::Nothing => {
                let what = format!("{} closed the connection without an answer to a TLS handshake", self.name);
                return Err(Error::new(Kind::Network, what));
            }
        };
        tracing::debug!("{}: using {scheme}", self.name);
        let _ = base.set_scheme(scheme);
        Ok(base)
    }

    /// Whether the registry answers a request over http, which has no credentials. A front that only redirects to https
    /// does not count.
    ///
    /// # Errors
    /// Errors that a retry does not help.
    async fn answers_by_http(&self) -> Result<bool> {
        let mut plain = self.first_base.clone();
        let _ = plain.set_scheme("http");
        let mut probe = http::Request::new(reqwest::Body::default());
        *probe.uri_mut() = uri(&Endpoint::Base.url(&plain)?)?;
        match tokio::time::timeout(PROBE_TIMEOUT, self.http.send(probe)).await {
            Ok(Ok(response)) => Ok(response.status().is_success() || response.status() == StatusCode::UNAUTHORIZED),
            Ok(Err(error)) if !error.is_transient() => Err(error),
            Ok(Err(_)) | Err(_) => Ok(false),
        }
    }

    /// The total time that one small request may wait between attempts.
    fn patience(&self) -> Duration {
        if self.options.deadline.is_some() { LONG_PATIENCE } else { self.options.patience }
    }

    /// Makes the call, with retries within a budget of its own. A streamed body is sent once.
    ///
    /// # Errors
    /// See [`error::from_response`] for statuses other than 2xx.
    pub(super) async fn call(&self, mut call: Call<'_>) -> Result<Response> {
        if matches!(call.body, Payload::Stream(..)) {
            return self.call_once(call).await;
        }
        self.call_judged(&mut call, |answered| answered).await
    }

    /// As [`call`](Self::call), for a body that can be sent again. `judge` decides which results are errors, and which
    /// errors are transient.
    pub(super) async fn call_judged(
        &self,
        call: &mut Call<'_>,
        mut judge: impl FnMut(Result<Response>) -> Result<Response>,
    ) -> Result<Response> {
        let budget = Budget::new(self.options.retries, self.patience());
        loop {
            match judge(self.call_once(call.again()).await) {
                Ok(response) => return Ok(response),
                Err(error) => budget.retry(error).await?,
            }
        }
    }

    /// Makes the call, reads the small response of at most `most` bytes, and parses it. A retry repeats all three: a
    /// body may break off after a good head, be damaged on its way, or come from something between.
    pub(super) async fn read<T>(
        &self,
        mut call: Call<'_>,
        most: u64,
        parse: impl Fn(&http::response::Parts, Bytes) -> Result<T>,
    ) -> Result<T> {
        let budget = Budget::new(self.options.retries, self.patience());
        let mut pages = 0;
        loop {
            let began = Instant::now();
            let read = async {
                let response = self.call_once(call.again()).await?;
                let page = web_page::instead(&self.name, &response);
                let (head, body) = response.into_parts();
                let bytes = read_body(body, length(&head.headers), most).await;
                let parsed = bytes.and_then(|bytes| parse(&head, bytes));
                parsed.map_err(|error| match page {
                    Some(page) => {
                        pages += 1;
                        // The second page is permanent.
                        if pages > 1 { page.permanent() } else { page }
                    }
                    None => error,
                })
            };
            match read.await.map_err(|error| error.doing(call.doing.clone())) {
                Ok(read) => return Ok(read),
                Err(error) => {
                    self.note_fault(&error, began);
                    budget.retry(error).await?;
                }
            }
        }
    }

    /// Makes the call once. If an account has no pulls left or may not read, the next account is tried.
    ///
    /// Waits for a pull if one is needed, none is left, and the options allow to wait.
    pub(super) async fn call_once(&self, mut call: Call<'_>) -> Result<Response> {
        let began = Instant::now();
        let doing = std::mem::take(&mut call.doing);
        self.at_its_scheme(&mut call.url).await.map_err(|error| error.doing(doing.clone()))?;
        check_write(&call.method, &call.url, self.base().await?, &call.scope.repository)
            .map_err(|error| error.doing(doing.clone()))?;
        let (name, push) = (call.scope.repository.name.as_str(), call.scope.access != Access::Pull);
        loop {
            let pull_permit = if call.costs_pull() {
                let ask = |account| Box::pin(self.ask_quota(call.url.clone(), call.scope, &call.headers, account));
                Some(self.pulls.reserve(name, push, began, ask).await.map_err(|error| error.doing(doing.clone()))?)
            } else {
                None
            };
            let account =
                pull_permit.as_ref().map_or_else(|| self.pulls.choose(name, push), |pull_permit| pull_permit.account);
            let error = match Box::pin(self.attempt(call.again(), account, pull_permit)).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let next = match error.kind() {
                _ if error.is_quota() => self.pulls.spend(account),
                Kind::Unauthorized | Kind::Denied if !error.is_transient() => self.pulls.deny(name, account),
                _ => false,
            };
            if !next {
                return Err(self.without_credentials(error, account).doing(doing).at_registry(&self.name));
            }
        }
    }

    /// Adds a hint that names the `--auth-file` without credentials for this registry, if an anonymous request was
    /// refused.
    fn without_credentials(&self, error: Error, account: usize) -> Error {
        let refused = matches!(error.kind(), Kind::Unauthorized | Kind::Denied);
        if !refused || self.account(account).username().is_some() {
            return error;
        }
        match (self.options.credentials.not_for(&self.name), error.hint_text().map(str::to_owned)) {
            (Some(files), Some(hint)) => error.hint_instead(format!("{files}; {hint}")),
            (Some(files), None) => error.hint(files),
            (None, _) => error,
        }
    }

    /// Makes the call with this account.
    async fn attempt(&self, call: Call<'_>, account: usize, pull_permit: Option<PullPermit<'_>>) -> Result<Response> {
        let (method, scope) = (call.method.clone(), call.scope);
        let streamed = matches!(call.body, Payload::Stream(..));
        let class = Class::of(&method, call.url.path());
        let response = self.send_signed(call, account, pull_permit).await?;
        let (status, storage) = (response.status(), location::redirected_to(&response).cloned());
        if status.is_success() {
            self.limiter.on_success();
            return Ok(response);
        }
        if streamed && redirect::keeps_method(status) {
            // The owner of the stream opens it again, and sends it to the redirect's target.
            return Ok(response);
        }
        let asked = retry_after(response.headers());
        if let Some(storage) = &storage
            && matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        {
            if let Some(page) = web_page::instead(&self.name, &response).filter(|_| web_page::stands_in(status)) {
                return Err(page);
            }
            let (path, storage) = (storage.path(), origin(storage));
            if path.starts_with("/v2/") && response.headers().contains_key(WWW_AUTHENTICATE) {
                return Err(self.sent_to_another_registry(&storage, scope));
            }
            // The storage refused the link, not our credentials. A new link may work, for example after its expiry.
            let what = format!("{} sends us to {storage}, which answered {}", self.name, status.as_u16());
            if !matches!(method, Method::GET | Method::HEAD) {
                let hint = format!("credentials are never sent to another host: name {storage} in the reference");
                return Err(Error::new(Kind::Denied, what).hint(hint));
            }
            return Err(Error::new(Kind::Registry, what).transient(None));
        }
        let user = self.account(account).username();
        let error = error::from_response(response, &self.name, &method, scope, user.as_deref()).await;
        let until = match status {
            // A pull limit delays pulls only.
            _ if error.is_quota() => None,
            StatusCode::TOO_MANY_REQUESTS if storage.is_none() => self.on_push_back(class, status.as_u16(), asked),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                self.limiter.on_push_back(status.as_u16(), asked)
            }
            _ => None,
        };
        // With a deadline, a request waits as long as the pause lasts, and does not fail after a few retries.
        match until {
            Some(until) if self.options.deadline.is_some() && asked.is_none() => {
                let wait = until.saturating_duration_since(Instant::now());
                Err(error.transient(Some(wait.max(MIN_WAIT))))
            }
            _ => Err(error),
        }
    }

    /// The registry redirects to another registry, which requires credentials. A redirect never gets credentials.
    fn sent_to_another_registry(&self, other: &str, scope: &Scope) -> Error {
        let host = other.split_once("://").map_or(other, |(_, host)| host);
        let what =
            format!("{} sends us to {other}, another registry, which requires a token of its own (401)", self.name);
        Error::new(Kind::Refused, what).hint(format!(
            "credentials are never sent to a redirect's target: name that registry in the reference, as in \
             {host}/{}",
            scope.repository.name
        ))
    }

    /// Reads an account's remaining pulls by HEAD, which costs no pull.
    async fn ask_quota(&self, url: Url, scope: &Scope, headers: &HeaderMap, account: usize) {
        let call = Call { headers: headers.clone(), ..Call::new(Method::HEAD, url, scope, "") };
        if let Err(error) = self.attempt(call, account, None).await {
            tracing::debug!("{}: the remaining pulls are unknown: {error}", self.name);
        }
    }
}

/// The URL in the type of the HTTP client.
pub(super) fn uri(url: &Url) -> Result<http::Uri> {
    url.as_str().parse().map_err(|_| Error::new(Kind::Registry, format!("{} is no address for HTTP", origin(url))))
}

/// Reads a small body to its end.
///
/// # Errors
/// [`Kind::Invalid`] if the body has more than `most` bytes, whatever `Content-Length` claims.
pub(super) async fn read_small(response: Response, most: u64) -> Result<Bytes> {
    let expected = length(response.headers());
    read_body(response.into_body(), expected, most).await
}

/// Reads a body that claims to have `expected` bytes. A large body waits for memory before most of it is read; the wait
/// does not count against [`SMALL_ANSWER_TIMEOUT`].
async fn read_body(mut body: TimedBody, expected: Option<u64>, most: u64) -> Result<Bytes> {
    let too_large = || Error::new(Kind::Invalid, format!("the answer has more than {most} bytes"));
    if expected.is_some_and(|expected| expected > most) {
        return Err(too_large());
    }
    let mut bytes = CollectedBody::new(most);
    loop {
        let reading = async {
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame?.into_data() else { continue };
                if !bytes.fits(&data) {
                    return Err(too_large());
                }
                if bytes.must_wait(&data) {
                    return Ok(Some(data));
                }
                bytes.add(&data);
            }
            Ok(None)
        };
        let slow = || {
            Error::new(Kind::Timeout, format!("the response did not end within {} s", SMALL_ANSWER_TIMEOUT.as_secs()))
        };
        let Some(data) = tokio::time::timeout(SMALL_ANSWER_TIMEOUT, reading).await.map_err(|_| slow())?? else {
            return Ok(bytes.finish());
        };
        bytes.wait(expected).await;
        bytes.add(&data);
    }
}

/// The time limit for the response after all of a blob was sent: the registry hashes and stores the blob meanwhile.
pub(super) const COMMIT_TIMEOUT: Duration = Duration::from_secs(600);
/// The time limit for a small response in total, however evenly it trickles.
pub(super) const SMALL_ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The minimal wait after a 429 without `Retry-After`.
const MIN_WAIT: Duration = Duration::from_millis(100);
/// The total wait of a request without a streamed body, if the run has a deadline.
const LONG_PATIENCE: Duration = Duration::from_secs(30 * 60);
/// How long no new probe is made after a silent one.
const PROBE_PAUSE: Duration = Duration::from_secs(30);

/// `Content-Length`, if it is a size that a blob can have.
pub(in crate::registry) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok().filter(|size| *size <= MAX_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(name: &str, insecure: &[&str]) -> Registry {
        let insecure = insecure.iter().map(|name| (*name).to_owned()).collect();
        Registry::new(name, Arc::new(Options { insecure, ..Options::default() })).expect("a registry")
    }

    /// A server with TLS answers http with 400, and may have been too slow for the probe.
    #[test]
    fn an_answer_of_400_by_http_decides_nothing() {
        let local = registry("localhost:5000", &[]);
        local.answered_at(&local.first_base, StatusCode::BAD_REQUEST);
        assert_eq!(local.base.get(), None);
        local.answered_at(&local.first_base, StatusCode::UNAUTHORIZED);
        assert_eq!(local.base.get().map(Url::as_str), Some("http://localhost:5000/"));

        let insecure = registry("r.test", &["r.test"]);
        insecure.answered_at(&insecure.first_base, StatusCode::BAD_REQUEST);
        assert_eq!(insecure.base.get().map(Url::as_str), Some("https://r.test/"));
    }
}
