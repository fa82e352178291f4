//! Everything that talks HTTP to a registry: the client side of the OCI distribution spec, as Docker
//! Hub, ACR and the others really answer it.
//!
//! - `client`, `call`, `transport`: one registry, a request to it, and how it is sent
//! - `auth`: tokens (`token`, `scope`), challenges (`challenge`), ACR's token exchange (`acr_exchange`), and the scopes
//!   for mounts (`mount_scopes`)
//! - `address`: which addresses a registry's answers may lead to
//! - `urls`: the URLs of the API, and which of them may be written to
//! - `idle_timeout`, `min_rate`: bodies that fail when they are silent or too slow
//! - `limits`: requests in flight (`parallelism`), requests per minute (`rate_limit`), pulls (`pull_limit`, and the
//!   bookkeeping in `pull_ledger`)
//! - `error`: from a response to an error
//! - `endpoints`: blobs, uploads, manifests, lists and deletes; one file for each kind of request
//!
//! [`Repo`] is one repository as a [`Source`] and [`Destination`].

mod acr_refusals;
mod address;
mod auth;
pub mod azure;
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

/// How registries are talked to. The same for all registries of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose credentials.
    pub credentials: Credentials,
    /// The Entra identity, for ACR where no other credentials are stored.
    pub entra: Option<EntraSettings>,
    /// Registries (`host` or `host:port`) that may be plain http or have unverified TLS.
    pub insecure: Vec<String>,
    /// Which certificates are trusted.
    pub trust: Arc<Trust>,
    /// The proxies that lead to registries.
    pub proxies: Proxies,
    /// Where a host is, whatever DNS says.
    pub resolve: Arc<HashMap<String, SocketAddr>>,
    /// Hosts of other sites that may be given credentials for a token.
    pub realms: Vec<String>,
    /// The size of an upload's chunks in bytes; chunked only where needed if `None`.
    pub chunk_size: Option<u64>,
    /// Requests at once to one registry, at most.
    pub concurrency: usize,
    /// How long a registry may be silent: before its answer, in the middle of a body that it sends,
    /// and of one that it takes.
    pub idle: Duration,
    /// The least rate of a body that it sends, or that it takes.
    pub min_rate: MinRate,
    /// All lists of referrers that are being read share one room in memory, and one that finds none left is refused: for
    /// whoever reads lists for any number of clients.
    pub share_list_room: bool,
    /// How long nobody asks at most after an answer of 429 or 503 without `Retry-After`.
    pub longest_pause: Duration,
    /// Faults that are forgiven to a request without a streamed body.
    pub retries: u32,
    /// How long such a request may be waited for in all, between its attempts: as a registry asks by
    /// `Retry-After`, or by the backoff.
    pub patience: Duration,
    /// Pulls of Docker Hub to leave unspent, of each account: before the next one would be taken of them,
    /// whoever needs it waits for the window to open again.
    pub reserve_pulls: Option<u64>,
    /// When to give up waiting for pulls; and a sign that waiting is wanted. Without it and `reserve_pulls`,
    /// a spent limit is an error at once.
    pub deadline: Option<Instant>,
    /// How soon it's asked whether pulls are back, at first and at most: a HEAD, which is free.
    pub pull_poll: (Duration, Duration),
    /// Accounts of Docker Hub that read in the stored one's place, each with pulls of its own.
    pub hub_accounts: Vec<Credential>,
    /// The tier of the Azure registries; the smallest one's limits if it isn't known.
    pub acr_sku: Option<Sku>,
    /// Requests a minute to a registry (as users name it), of any kind.
    pub rates: Arc<HashMap<String, u32>>,
    /// How many programs like this one share the rates and pulls.
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
    /// Whether an Entra identity was configured, rather than one looked for.
    fn has_identity(&self) -> bool {
        self.entra.as_ref().is_some_and(EntraSettings::is_configured)
    }

    /// The Entra identity's client: by the same certificates and addresses.
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
    /// No registry is asked before it's used.
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

    /// Tries the credentials of a registry: asks its base (`/v2/`).
    ///
    /// # Errors
    /// [`Kind::Unauthorized`] if they aren't taken.
    pub async fn verify(&self, name: &str) -> Result<()> {
        self.repository(&Repository::none(name.parse()?))?.ping().await
    }

    /// What ACR gives in exchange for a token of the Entra identity: a refresh token that lasts three hours.
    ///
    /// # Errors
    /// [`Kind::Usage`] if `name` isn't an Azure registry: none else may see a token of Entra.
    pub async fn azure_refresh_token(&self, name: &str) -> Result<Secret> {
        if !azure::is_acr(name) {
            return Err(Error::new(Kind::Usage, format!("{name} is not an Azure Container Registry"))
                .hint("--azure is for registries such as myregistry.azurecr.io"));
        }
        self.registry(name)?.acr_refresh_token().await
    }

    /// Those that were used, by name.
    pub fn known(&self) -> Vec<(String, Arc<Registry>)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(name, registry)| (name.clone(), registry.clone())).collect()
    }

    /// Deletes all upload sessions that are still open, within a few seconds: after an interrupt.
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
    /// Known not to exist, or to exist.
    new: Arc<OnceCell<bool>>,
}

impl Repo {
    /// The registry that it's in.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Asks the registry's base (`/v2/`), with credentials where it wants them.
    ///
    /// # Errors
    /// [`Kind::Unauthorized`] if the credentials aren't taken.
    pub async fn ping(&self) -> Result<()> {
        let call = self.call(Method::GET, Endpoint::Base, &self.pull, "reach the registry").await?;
        let response = self.registry.call(call).await?;
        if let Some(page) = web_page::instead(&self.registry.name, &response) {
            // Quay labels its answer "true" as HTML.
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
