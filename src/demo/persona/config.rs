//! Where each look-alike stands and how strict it is.

use super::access::{Account, Grant};

/// Where the look-alike stands and how strict it is. The default is the real Hub's names with
/// an account `alice`, password `wonderland`, who may push to `alice/*`.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The token endpoint named in challenges.
    pub realm: String,
    /// The `service` named in challenges.
    pub service: String,
    /// Where blobs are redirected to.
    pub cdn: String,
    /// Who may log in.
    pub accounts: Vec<Account>,
    /// What may be done without: everyone may pull everything, unless told otherwise.
    pub anonymous: Vec<Grant>,
    /// Life of a token in seconds. The live value is said to be 300.
    pub token_seconds: u64,
    /// Whether the token endpoint tells that life; a client must assume 60 s if not (auth.md).
    pub tell_expiry: bool,
    /// Life of a signed link in seconds.
    pub link_seconds: u64,
    /// Pulls per 6 hours without login; `None` is no limit and no headers.
    pub anonymous_pulls: Option<u64>,
    /// Pulls per 6 hours for an account; `None` as for a paid plan.
    pub account_pulls: Option<u64>,
    /// The same for accounts that have a plan of their own, by user.
    pub plans: Vec<(String, Option<u64>)>,
    /// Requests to the registry, of any kind, before the abuse limit answers them all.
    pub abuse_after: Option<u64>,
    /// Seconds after which those requests are counted anew; never, if none.
    pub abuse_seconds: Option<u64>,
    /// Whether HEAD of a blob is redirected as GET is.
    pub redirect_head: bool,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            realm: "https://auth.docker.io/token".to_owned(),
            service: "registry.docker.io".to_owned(),
            cdn: "https://production.cloudflare.docker.com".to_owned(),
            accounts: vec![Account::new(
                "alice",
                "wonderland",
                vec![Grant::new("alice/*", "pull,push,delete"), Grant::new("*", "pull")],
            )],
            anonymous: vec![Grant::new("*", "pull")],
            token_seconds: 300,
            tell_expiry: true,
            link_seconds: 600,
            anonymous_pulls: Some(100),
            account_pulls: None,
            plans: Vec::new(),
            abuse_after: None,
            abuse_seconds: None,
            redirect_head: false,
        }
    }
}

impl HubConfig {
    /// The same without names or TLS: registry and tokens at `main` (`host:port`), the CDN at
    /// another origin, `side`.
    #[must_use]
    pub fn loopback(main: &str, side: &str) -> Self {
        Self { realm: format!("http://{main}/token"), cdn: format!("http://{side}/cdn"), ..Self::default() }
    }
}

/// Where the look-alike stands and how strict it is. The default is `myregistry.azurecr.io` with an
/// admin (`admin`, `admin-secret`), a reader's repository-scoped token (`reader`, `reader-secret`)
/// and Entra ID.
#[derive(Debug, Clone)]
pub struct AcrConfig {
    /// The login server.
    pub url: String,
    /// The blob storage that GET of a blob is redirected to.
    pub storage: String,
    /// Admin, service principals, repository-scoped tokens.
    pub accounts: Vec<Account>,
    /// What Entra ID's identity may do.
    pub identity: Vec<Grant>,
    /// Entra ID's own settings.
    pub entra: EntraConfig,
    /// Whether everyone may pull.
    pub anonymous_pull: bool,
    /// ABAC mode: wildcard scopes are refused (acr-cli PR #504). Whether with 400 or 401 is not
    /// known; this says 401.
    pub abac: bool,
    /// Life of an access token in seconds.
    pub access_seconds: u64,
    /// Life of a refresh token in seconds.
    pub refresh_seconds: u64,
    /// Life of a SAS link in seconds.
    pub link_seconds: u64,
    /// Bytes in one request to an upload before it is 413.
    pub body_limit: u64,
    /// Bytes in an `Authorization` header before it is 400 (acr#797).
    pub authorization_limit: usize,
    /// The `OCI-Chunk-Min-Length` to announce and insist on.
    pub chunk_min: Option<u64>,
    /// What a broken connection does to an upload session.
    pub after_reset: AfterReset,
    /// Whether a PATCH without `Content-Length` is refused even without `Content-Range`. Docker's
    /// own pushes are said to do just that against the live service, harbor#23016 says it is
    /// refused: the stricter reading is the default.
    pub refuse_streamed: bool,
    /// Whether there is a Referrers API. Off, the registry behind answers.
    pub referrers: bool,
    /// Entries in one page of it.
    pub referrers_page: Option<usize>,
    /// Whether a mount is answered with an upload session instead.
    pub refuse_mounts: bool,
    /// PUT, PATCH and POST in a window before 429 with `Retry-After` counting down to its end.
    pub writes: Option<u64>,
    /// The same for GET and HEAD.
    pub reads: Option<u64>,
    /// The same for DELETE.
    pub deletes: Option<u64>,
    /// The same for the token endpoint and the exchange.
    pub oauth: Option<u64>,
    /// The window's seconds.
    pub window: u64,
    /// Whether HEAD of a blob is redirected as GET is.
    pub redirect_head: bool,
    /// How many hours ago each tag was written, as its own API for tags tells.
    pub tag_hours: u64,
    /// Tags that can't be deleted.
    pub locked_tags: Vec<String>,
}

impl Default for AcrConfig {
    fn default() -> Self {
        let reader = vec![Grant::new("public/*", "pull,metadata_read")];
        Self {
            url: "https://myregistry.azurecr.io".to_owned(),
            storage: "https://weumanaged12.blob.core.windows.net".to_owned(),
            accounts: vec![
                Account::new("admin", "admin-secret", Grant::everything()),
                Account::new("reader", "reader-secret", reader),
            ],
            identity: Grant::everything(),
            entra: EntraConfig::default(),
            anonymous_pull: false,
            abac: false,
            access_seconds: 4500,
            refresh_seconds: 3 * 3600,
            link_seconds: 1200,
            body_limit: 20_000_000,
            authorization_limit: 8192,
            chunk_min: None,
            after_reset: AfterReset::default(),
            refuse_streamed: true,
            referrers: true,
            referrers_page: None,
            refuse_mounts: false,
            writes: None,
            reads: None,
            deletes: None,
            oauth: None,
            window: 60,
            redirect_head: false,
            tag_hours: 0,
            locked_tags: Vec::new(),
        }
    }
}

impl AcrConfig {
    /// The same without names or TLS: registry and Entra ID at `main` (`host:port`), the blob
    /// storage at another origin, `side`.
    #[must_use]
    pub fn loopback(main: &str, side: &str) -> Self {
        let entra = EntraConfig {
            authority: format!("http://{main}/entra"),
            metadata: format!("http://{main}"),
            ..EntraConfig::default()
        };
        Self { url: format!("http://{main}"), storage: format!("http://{side}"), entra, ..Self::default() }
    }
}

/// Who may ask for tokens. The default is the public cloud's names with made-up ids.
#[derive(Debug, Clone)]
pub struct EntraConfig {
    /// The authority (`AZURE_AUTHORITY_HOST`).
    pub authority: String,
    /// The instance metadata service.
    pub metadata: String,
    /// The tenant's id.
    pub tenant: String,
    /// The application's id, also the managed identity's.
    pub client: String,
    /// Its client secret.
    pub secret: String,
    /// The federated token (the file's content) taken at first; see [`super::Entra::rotate`].
    pub assertion: String,
    /// Life of a token in seconds.
    pub token_seconds: u64,
    /// Groups that a token lists, each some 40 bytes: with 200 it's too long for a header.
    pub groups: usize,
}

impl Default for EntraConfig {
    fn default() -> Self {
        Self {
            authority: "https://login.microsoftonline.com".to_owned(),
            metadata: "http://169.254.169.254".to_owned(),
            tenant: "11111111-2222-3333-4444-555555555555".to_owned(),
            client: "99999999-8888-7777-6666-555555555555".to_owned(),
            secret: "entra-secret".to_owned(),
            assertion: "federated-token-1".to_owned(),
            token_seconds: 3600,
            groups: 0,
        }
    }
}

/// What becomes of an upload session when a connection breaks in the middle of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AfterReset {
    /// The chunk counts for nothing, the session goes on: openresty spools a request before it
    /// passes it.
    #[default]
    Kept,
    /// What arrived counts: the session's `Range` ends in the middle of the chunk.
    Partial,
    /// The session answers 404 `BLOB_UPLOAD_INVALID` (azure-sdk-for-net#35322).
    Lost404,
    /// The session answers 416 (Azure/acr#866).
    Lost416,
}
