//! The registry client: the client side of the OCI distribution spec, as Docker Hub, ACR and other registries implement
//! it.
//!
//! - `client`, `call`, `transport`: one registry, a request to it, and how it is sent
//! - `auth`: tokens (`token`, `scope`), challenges (`challenge`), ACR's token exchange (`acr_exchange`), and the scopes
//!   for mounts (`mount_scopes`)
//! - `address`: which addresses redirects, upload locations and token realms may lead to
//! - `resolver`: the addresses of a name
//! - `urls`: the URLs of the API, and which of them may be written to
//! - `idle_timeout`, `min_rate`: timeouts of bodies
//! - `limits`: requests in flight (`parallelism`), requests per minute (`rate_limit`), pulls (`pull_limit`, and the
//!   bookkeeping in `pull_ledger`)
//! - `error`: errors from responses
//! - `endpoints`: blobs, uploads, manifests, lists and deletes; one file for each kind of request
//!
//! [`Repo`] is one repository as a [`Source`] and [`Destination`].

mod acr_refusals;
mod address;
mod auth;
pub(crate) mod azure;
mod call;
mod client;
mod endpoints;
mod error;
mod error_document;
mod idle_timeout;
mod limits;
mod location;
mod lookup;
mod min_rate;
mod network;
mod redirect;
mod resolver;
mod transport;
mod urls;
mod web_page;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use reqwest::Url;
use tokio::sync::OnceCell;
use tokio::time::Instant;

pub use self::client::Registry;
pub use self::endpoints::blob::Cached;
pub use self::endpoints::delete::TagState;
pub use self::endpoints::upload::UploadSession;
pub use self::limits::pull_ledger::{AccountPulls, PullQuota};
pub use self::limits::rate_limit::Sku;
pub use self::min_rate::MinRate;
pub use self::network::{Proxies, Trust};
pub use self::resolver::Resolver;
pub(crate) use error::root_cause;

use self::address::Policy;
use self::auth::scope::Scope;
use self::call::Call;
use self::client::read_small;
use self::urls::Endpoint;
use crate::body::Body;
use crate::content::{Destination, Feed, PushReceipt, Source, TagPages, UploadStart};
use crate::credentials::entra::{Entra, EntraSettings};
use crate::credentials::{Credential, Credentials, Secret};
use crate::descriptor::{Descriptor, Digest};
use crate::error::{Error, Kind, Result};
use crate::manifest::Manifest;
use crate::reference::{Repository, Target};
use crate::verify::Verified;

/// The options of the registry client. All registries of a run share them.
#[derive(Clone, Debug)]
pub struct Options {
    /// The credentials of registries.
    pub credentials: Credentials,
    /// The Entra identity, for ACR where no other credentials are stored.
    pub entra: Option<EntraSettings>,
    /// Registries (`host` or `host:port`) that may be plain http or have unverified TLS.
    pub insecure: Vec<String>,
    /// The trusted certificates.
    pub trust: Arc<Trust>,
    /// The proxies that lead to registries.
    pub proxies: Proxies,
    /// Addresses of hosts, instead of DNS.
    pub resolve: Arc<HashMap<String, SocketAddr>>,
    /// The resolver for all other hosts.
    pub resolver: Resolver,
    /// Send all requests of one image's push to one address of the registry, for at most five minutes, so that a push
    /// does not reach two replicas. No effect through a proxy.
    pub pin_pushes: bool,
    /// Hosts of other sites that may receive credentials for a token.
    pub realms: Vec<String>,
    /// The size of an upload's chunks in bytes. `None` uses chunks only where the registry needs them.
    pub chunk_size: Option<u64>,
    /// The maximal number of concurrent requests to one registry.
    pub concurrency: usize,
    /// The idle timeout: before a response, within a response's body, and within a request's body.
    pub idle: Duration,
    /// The minimal rate of a body in either direction.
    pub min_rate: MinRate,
    /// All lists of referrers share one memory limit; a list above the limit fails. For servers that read lists for any
    /// number of clients.
    pub share_list_room: bool,
    /// The longest pause after a 429 or 503 without `Retry-After`.
    pub longest_pause: Duration,
    /// Retries of a request without a streamed body.
    pub retries: u32,
    /// The total wait of such a request between its attempts, by `Retry-After` or by the backoff.
    pub patience: Duration,
    /// Docker Hub pulls of each account that stay unused. A pull that would use one of them waits for the next window.
    pub reserve_pulls: Option<u64>,
    /// The deadline for waits for pulls. Without it and without `reserve_pulls`, a used up limit is an error at once.
    pub deadline: Option<Instant>,
    /// The first and the longest interval between checks whether pulls are available again. A check is a HEAD, which
    /// costs no pull.
    pub pull_poll: (Duration, Duration),
    /// Docker Hub accounts that read instead of the stored account. Each has pulls of its own.
    pub hub_accounts: Vec<Credential>,
    /// The tier of the Azure registries. `None` assumes the limits of the smallest one.
    pub acr_sku: Option<Sku>,
    /// Limits of requests per minute, by the name of the registry.
    pub rates: Arc<HashMap<String, u32>>,
    /// The number of processes that share the rates and pulls.
    pub share: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            credentials: Credentials::anonymous(),
            entra: None,
            insecure: Vec::new(),
            trust: Arc::default(),
            proxies: Proxies::default(),
            resolve: Arc::default(),
            resolver: Resolver::default(),
            pin_pushes: false,
            realms: Vec::new(),
            chunk_size: None,
            concurrency: 32,
            idle: Duration::from_secs(60),
            min_rate: MinRate::default(),
            share_list_room: false,
            longest_pause: Duration::from_secs(60),
            retries: 5,
            patience: Duration::from_secs(5 * 60),
            reserve_pulls: None,
            deadline: None,
            pull_poll: (Duration::from_secs(60), Duration::from_secs(10 * 60)),
            hub_accounts: Vec::new(),
            acr_sku: None,
            rates: Arc::default(),
            share: 1,
        }
    }
}

impl Options {
    /// Whether an Entra identity is configured, rather than discovered.
    fn has_identity(&self) -> bool {
        self.entra.as_ref().is_some_and(EntraSettings::is_configured)
    }

    /// The client of the Entra identity, with the same certificates and addresses.
    fn entra(&self) -> Result<Option<Entra>> {
        let Some(settings) = &self.entra else { return Ok(None) };
        let authority =
            Url::parse("https://login.microsoftonline.com").unwrap_or_else(|_| unreachable!("a constant URL"));
        self.proxies.check(&authority)?;
        let builder = reqwest::Client::builder()
            .dns_resolver(Policy::new(&authority, self.resolve.clone(), true))
            .tls_backend_preconfigured(network::library_tls(&self.trust)?)
            .no_proxy()
            .proxy(self.proxies.as_library_proxy());
        Entra::new(settings.clone(), builder).map(Some)
    }
}

/// All registries of a run. Clones share them.
#[derive(Clone, Debug)]
pub struct Registries {
    options: Arc<Options>,
    known: Arc<Mutex<BTreeMap<String, Arc<Registry>>>>,
}

impl Registries {
    /// A set without any request so far.
    pub fn new(options: Options) -> Self {
        Self { options: Arc::new(options), known: Arc::default() }
    }

    /// A repository, for reading and writing.
    pub fn repository(&self, repository: &Repository) -> Result<Repo> {
        Ok(Repo {
            pull: Scope::pull(repository),
            push: Scope::push(repository),
            registry: self.registry(&repository.registry)?,
            repository: Arc::new(repository.clone()),
            new: Arc::default(),
        })
    }

    /// The registry by its name.
    pub fn registry(&self, name: &str) -> Result<Arc<Registry>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(registry) = known.get(name) {
            return Ok(registry.clone());
        }
        let registry = Arc::new(Registry::new(name, self.options.clone())?);
        known.insert(name.to_owned(), registry.clone());
        Ok(registry)
    }

    /// Checks the credentials of a registry with a request to its base (`/v2/`).
    ///
    /// # Errors
    /// [`Kind::Unauthorized`] if the registry refuses them.
    pub async fn verify(&self, name: &str) -> Result<()> {
        self.repository(&Repository::none(name.parse()?))?.ping().await
    }

    /// Exchanges a token of the Entra identity for a refresh token of ACR, which is valid for three hours.
    ///
    /// # Errors
    /// [`Kind::Usage`] if `name` is no Azure registry: no other registry may receive an Entra token.
    pub async fn azure_refresh_token(&self, name: &str) -> Result<Secret> {
        if !azure::is_acr(name) {
            return Err(Error::new(Kind::Usage, format!("{name} is not an Azure Container Registry"))
                .hint("--azure is for registries such as myregistry.azurecr.io"));
        }
        self.registry(name)?.acr_refresh_token().await
    }

    /// The registries that were used, by name.
    pub fn known(&self) -> Vec<(String, Arc<Registry>)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(name, registry)| (name.clone(), registry.clone())).collect()
    }

    /// Deletes all open upload sessions after an interrupt. Takes a few seconds at most.
    pub async fn abandon_uploads(&self) {
        let all = self.known().into_iter().map(|(_, registry)| async move { registry.abandon_all().await });
        let _ = tokio::time::timeout(Duration::from_secs(5), futures_util::future::join_all(all)).await;
    }
}

/// One repository of a registry.
#[derive(Clone, Debug)]
pub struct Repo {
    registry: Arc<Registry>,
    repository: Arc<Repository>,
    pull: Scope,
    push: Scope,
    /// Whether the repository does not exist yet, once known.
    new: Arc<OnceCell<bool>>,
}

impl Repo {
    /// The registry of this repository.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Sends a request to the registry's base (`/v2/`), with credentials if the registry requires them.
    ///
    /// # Errors
    /// [`Kind::Unauthorized`] if the registry refuses the credentials.
    pub async fn ping(&self) -> Result<()> {
        let call = self.call(Method::GET, Endpoint::Base, &self.pull, "reach the registry").await?;
        let response = self.registry.call(call).await?;
        if let Some(page) = web_page::instead(&self.registry.name, &response) {
            // Quay labels its response "true" as HTML.
            let body = read_small(response, 1 << 20).await?;
            if body.trim_ascii_start().starts_with(b"<") {
                return Err(page.doing("reach the registry"));
            }
        }
        Ok(())
    }

    /// A call to an endpoint.
    async fn call<'a>(
        &self,
        method: Method,
        endpoint: Endpoint<'_>,
        scope: &'a Scope,
        doing: impl Into<String>,
    ) -> Result<Call<'a>> {
        let url = endpoint.url(self.registry.base().await?)?;
        Ok(Call::new(method, url, scope, doing))
    }
}

/// Endpoints of this repository.
impl Repo {
    fn at_manifest<'a>(&'a self, target: &'a Target) -> Endpoint<'a> {
        Endpoint::Manifest(&self.repository.name, target)
    }

    fn at_blob<'a>(&'a self, digest: &'a Digest) -> Endpoint<'a> {
        Endpoint::Blob(&self.repository.name, digest)
    }
}

impl Source for Repo {
    async fn resolve(&self, target: &Target) -> Result<Option<Descriptor>> {
        self.head_manifest(target, &self.pull).await
    }

    async fn manifest(&self, target: &Target) -> Result<Manifest> {
        self.get_manifest(target, &self.pull).await
    }

    async fn blob(&self, blob: &Descriptor, from: u64) -> Result<Body> {
        self.get_blob(blob, from).await
    }

    async fn blob_range(&self, blob: &Descriptor, part: Range<u64>) -> Result<Body> {
        self.get_part(blob, part).await
    }

    fn origin(&self) -> Option<&Repository> {
        Some(&self.repository)
    }

    async fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        self.list_referrers(subject, &self.pull).await
    }

    fn tags(&self) -> TagPages {
        self.list_tags()
    }
}

impl Destination for Repo {
    type Session = UploadSession;

    fn repository(&self) -> &Repository {
        &self.repository
    }

    fn for_one_image(&self) -> Self {
        match self.registry.pinned() {
            Some(registry) => Self { registry: Arc::new(registry), ..self.clone() },
            None => self.clone(),
        }
    }

    async fn is_new(&self) -> bool {
        *self.new.get_or_init(|| self.probe_new()).await
    }

    fn is_known_new(&self) -> bool {
        self.new.get() == Some(&true)
    }

    async fn resolve_existing(&self, target: &Target) -> Result<Option<Descriptor>> {
        self.head_manifest(target, &self.push).await
    }

    async fn existing_manifest(&self, digest: &Digest) -> Result<Manifest> {
        self.get_manifest(&Target::Digest(*digest), &self.push).await
    }

    async fn has_blob(&self, blob: &Descriptor) -> Result<bool> {
        self.head_blob(blob).await
    }

    async fn start_upload(&self, blob: &Descriptor, from: Option<&Repository>) -> Result<UploadStart<UploadSession>> {
        self.start_upload(blob, from).await
    }

    async fn upload<S: Source>(&self, session: UploadSession, feed: &Feed<S>, body: Verified) -> Result<()> {
        self.send_blob(session, feed, body).await
    }

    async fn put_manifest(&self, manifest: &Manifest, at: &Target) -> Result<PushReceipt> {
        self.send_manifest(manifest, at).await
    }

    async fn listed_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        self.list_referrers(subject, &self.push).await
    }
}
