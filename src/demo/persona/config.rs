//! The addresses of the look-alikes, and their rules.

use super::access::{Account, Grant};

/// The addresses and rules of Docker Hub's look-alike. The default has the real names, and an account `alice`,
/// password `wonderland`, with push rights for `alice/*`.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The token endpoint in challenges.
    pub realm: String,
    /// The `service` in challenges.
    pub service: String,
    /// The target of redirects for blobs.
    pub cdn: String,
    /// Accounts that may log in.
    pub accounts: Vec<Account>,
    /// Rights without a login. The default is to pull everything.
    pub anonymous: Vec<Grant>,
    /// The lifetime of a token in seconds. The real one is reported to be 300.
    pub token_seconds: u64,
    /// Whether the token endpoint returns that lifetime. Otherwise a client must assume 60 s (auth.md).
    pub send_expiry: bool,
    /// The lifetime of a signed link in seconds.
    pub link_seconds: u64,
    /// Pulls per 6 hours without a login; `None`: no limit and no headers.
    pub anonymous_pulls: Option<u64>,
    /// Pulls per 6 hours for an account; `None` as in a paid plan.
    pub account_pulls: Option<u64>,
    /// Other limits, by user.
    pub plans: Vec<(String, Option<u64>)>,
    /// Requests of any kind before the abuse limit refuses all others.
    pub abuse_after: Option<u64>,
    /// The window of the abuse limit in seconds; `None`: it never ends.
    pub abuse_seconds: Option<u64>,
    /// Whether HEAD of a blob is redirected, as GET is.
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
            send_expiry: true,
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
    /// The same with plain HTTP on loopback: registry and tokens at `main` (`host:port`), the CDN at another origin,
    /// `side`.
    #[must_use]
    pub fn loopback(main: &str, side: &str) -> Self {
        Self { realm: format!("http://{main}/token"), cdn: format!("http://{side}/cdn"), ..Self::default() }
    }
}

/// The addresses and rules of ACR's look-alike. The default is `myregistry.azurecr.io` with an admin (`admin`,
/// `admin-secret`), a reader's repository-scoped token (`reader`, `reader-secret`) and Entra ID.
#[derive(Debug, Clone)]
pub struct AcrConfig {
    /// The login server.
    pub url: String,
    /// The storage to which GET of a blob is redirected.
    pub storage: String,
    /// Admin, service principals, repository-scoped tokens.
    pub accounts: Vec<Account>,
    /// The rights of Entra ID's identity.
    pub identity: Vec<Grant>,
    /// The settings of Entra ID.
    pub entra: EntraConfig,
    /// Whether anonymous pulls are allowed.
    pub anonymous_pull: bool,
    /// ABAC mode: wildcard scopes are refused (acr-cli PR #504). Whether with 400 or 401 is unknown; the look-alike
    /// answers 401.
    pub abac: bool,
    /// The lifetime of an access token in seconds.
    pub access_seconds: u64,
    /// The lifetime of a refresh token in seconds.
    pub refresh_seconds: u64,
    /// The lifetime of a SAS link in seconds.
    pub link_seconds: u64,
    /// The largest body of a request to an upload, in bytes. A larger one is answered with 413.
    pub body_limit: u64,
    /// The longest `Authorization` header, in bytes. A longer one is answered with 400 (acr#797).
    pub authorization_limit: usize,
    /// The `OCI-Chunk-Min-Length` to announce and enforce.
    pub chunk_min: Option<u64>,
    /// The effect of a broken connection on an upload session.
    pub after_reset: AfterReset,
    /// Whether a PATCH without `Content-Length` is refused even without `Content-Range`. Docker's own pushes are
    /// reported to be accepted, harbor#23016 reports a refusal: the default is the stricter one.
    pub refuse_streamed: bool,
    /// Whether there is a referrers API. Without it, the registry behind answers.
    pub referrers: bool,
    /// The most entries in a page of referrers.
    pub referrers_page: Option<usize>,
    /// Whether a mount is answered with an upload session.
    pub refuse_mounts: bool,
    /// The most PUT, PATCH and POST in a window. More are answered with 429 and a `Retry-After` that counts down to
    /// its end.
    pub writes: Option<u64>,
    /// The same for GET and HEAD.
    pub reads: Option<u64>,
    /// The same for DELETE.
    pub deletes: Option<u64>,
    /// The same for the token endpoint and the exchange.
    pub oauth: Option<u64>,
    /// The length of the window in seconds.
    pub window: u64,
    /// Whether HEAD of a blob is redirected, as GET is.
    pub redirect_head: bool,
    /// How many hours ago each tag was written, by ACR's own API for tags.
    pub tag_hours: u64,
    /// Tags that cannot be deleted.
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
    /// The same with plain HTTP on loopback: registry and Entra ID at `main` (`host:port`), the blob storage at
    /// another origin, `side`.
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

/// The settings of Entra ID. The default has the public cloud's names and invented ids.
#[derive(Debug, Clone)]
pub struct EntraConfig {
    /// The authority (`AZURE_AUTHORITY_HOST`).
    pub authority: String,
    /// The instance metadata service.
    pub metadata: String,
    /// The tenant's id.
    pub tenant: String,
    /// The application's id, which is the managed identity's too.
    pub client: String,
    /// Its client secret.
    pub secret: String,
    /// The first valid federated token (the content of the file); see [`super::Entra::rotate`].
    pub assertion: String,
    /// The lifetime of a token in seconds.
    pub token_seconds: u64,
    /// Groups in a token, of some 40 bytes each. With 200 of them it is too long for a header.
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

/// The effect of a connection that breaks in the middle of a chunk on its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AfterReset {
    /// The chunk is dropped, and the session continues: openresty buffers a request before it forwards it.
    #[default]
    Kept,
    /// The received part counts: the session's `Range` ends in the middle of the chunk.
    Partial,
    /// The session answers 404 `BLOB_UPLOAD_INVALID` (azure-sdk-for-net#35322).
    Lost404,
    /// The session answers 416 (Azure/acr#866).
    Lost416,
}
