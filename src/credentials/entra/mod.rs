//! Access tokens of Microsoft Entra for Azure Container Registry.
//!
//! In this order, as in acr-env and the SDKs' `DefaultAzureCredential`: a client secret (in mounted files, or in
//! variables), a workload identity (a file that Kubernetes keeps renewing), a managed identity, the Azure CLI. The first
//! two are taken when they're configured, and then nothing else is tried: a copy must not run as
//! somebody else because a secret has expired.
//!
//! Why not Microsoft's `azure_identity` 1.0, which does the same? It takes no other address than its
//! own for the metadata service, and no `http://127.0.0.1` as authority, so a test of the program
//! can't stand in for Azure. Outside Azure it asks the metadata service for up to 72 seconds; its
//! Azure CLI has no time limit, and is run through `/bin/sh`. It reads the environment by itself.
//! Its HTTP client comes with a feature of its own, which brings certificates and proxies that
//! aren't ours. And it brings 30 of 187 crates. The four requests here are
//! documented protocols:
//!
//! - <https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow>
//! - <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token>
//! - <https://learn.microsoft.com/azure/container-apps/managed-identity#connect-to-azure-services-in-app-code>
//! - <https://learn.microsoft.com/cli/azure/account#az-account-get-access-token>
//!
//! Azure Arc's endpoint, certificates as secrets and the developer CLI are left out.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use http::{StatusCode, header};
use reqwest::{Client, ClientBuilder, Url, redirect};
use serde::Deserialize;

use super::{Secret, encode_form, process};
use crate::error::{Error, Kind, Result, Side};
use crate::regular_file::{self, Links};

mod settings;
mod token_request;

pub use settings::EntraSettings;

use settings::{authority, check_complete, check_tenant, is_loopback, resource};
use token_request::{error_chain, retry_after, send};

const IMDS: &str = "http://169.254.169.254";
const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Gets access tokens for `https://containerregistry.azure.net` (or its like in another cloud).
pub struct Entra {
    settings: EntraSettings,
    authority: Url,
    /// Where the token is valid.
    resource: &'static str,
    /// For the authority; with the user's proxies and certificates.
    client: Client,
    /// For this machine and its metadata service; never through a proxy.
    direct: Client,
    /// A second; shorter in tests.
    second: Duration,
}

/// What a source of tokens that may not be there says.
enum TokenAttempt {
    Token(Secret),
    NotHere(String),
}

impl Entra {
    /// Prepares, without asking anything yet. `client` carries the proxies and certificates to use;
    /// redirects and time limits are set here.
    ///
    /// # Errors
    /// If the settings make no sense: half an identity, or an authority that isn't https.
    pub fn new(settings: EntraSettings, client: ClientBuilder) -> Result<Self> {
        check_complete(&settings)?;
        let authority = authority(settings.authority_host.as_deref())?;
        let failed = |error: reqwest::Error| Error::new(Kind::Local, error_chain(&error)).doing("make an HTTP client");
        let second = Duration::from_secs(1);
        // A redirect would carry the secret in the body elsewhere.
        let client = client
            .redirect(redirect::Policy::none())
            .connect_timeout(second * 10)
            .timeout(second * 30)
            .build()
            .map_err(failed)?;
        // Outside Azure nothing answers there, not even with a refusal. It speaks no TLS; no
        // certificates, so that an image without any can still ask.
        let direct = Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .redirect(redirect::Policy::none())
            .connect_timeout(second * 2)
            .timeout(second * 15)
            .build()
            .map_err(failed)?;
        Ok(Self { resource: resource(&authority), settings, authority, client, direct, second })
    }

    /// A new access token. It lasts about an hour; nothing is kept here, since what the registry
    /// gives in exchange for it lasts three.
    ///
    /// Takes two minutes at the very most: while Azure updates its metadata service.
    ///
    /// # Errors
    /// If no identity was found, or Entra refused it. A passing fault is marked as such.
    pub async fn token(&self) -> Result<Secret> {
        let token = self.request_token().await;
        token.map_err(|error| error.doing("get a token from Microsoft Entra"))
    }

    async fn request_token(&self) -> Result<Secret> {
        let EntraSettings { client_id, tenant_id, client_secret, federated_token_file, .. } = &self.settings;
        if let Some(dir) = &self.settings.principal {
            let [client, tenant, secret] = read_principal(dir)?;
            let (client, tenant) = (client.reveal(), tenant.reveal());
            tracing::debug!("Entra: using the client secret of {client} in {}", dir.display());
            return self.ask_authority(tenant, client, &[("client_secret", secret.reveal())]).await;
        }
        if let (Some(client), Some(tenant)) = (client_id, tenant_id) {
            if let Some(secret) = client_secret {
                tracing::debug!("Entra: using the client secret of {client}");
                return self.ask_authority(tenant, client, &[("client_secret", secret.reveal())]).await;
            }
            if let Some(file) = federated_token_file {
                tracing::debug!("Entra: using the workload identity {client}");
                let token = read_token(file)?;
                let proof = [("client_assertion_type", ASSERTION), ("client_assertion", token.reveal())];
                return self.ask_authority(tenant, client, &proof).await;
            }
        }
        let managed = match tokio::time::timeout(self.second * 80, self.ask_managed_identity()).await {
            Ok(Ok(TokenAttempt::Token(token))) => return Ok(token),
            Ok(Ok(TokenAttempt::NotHere(why))) => why,
            Ok(Err(error)) => return Err(error),
            Err(_) => "the managed identity can't be used (it took too long)".to_owned(),
        };
        let cli = match self.ask_azure_cli().await {
            TokenAttempt::Token(token) => return Ok(token),
            TokenAttempt::NotHere(why) => why,
        };
        Err(Error::new(
            Kind::Unauthorized,
            format!("no identity was found: neither AZURE_CLIENT_SECRET nor AZURE_FEDERATED_TOKEN_FILE is set; {managed}; {cli}"),
        )
        .hint("run `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET"))
    }

    /// The client credentials grant.
    async fn ask_authority(&self, tenant: &str, client: &str, proof: &[(&str, &str)]) -> Result<Secret> {
        let mut url = self.authority.clone();
        url.set_path(&format!("{tenant}/oauth2/v2.0/token"));
        url.set_query(None);
        let scope = format!("{}/.default", self.resource);
        let mut pairs = vec![("grant_type", "client_credentials"), ("client_id", client), ("scope", &scope)];
        pairs.extend_from_slice(proof);
        let http = if is_loopback(&url) { &self.direct } else { &self.client };
        let request = http
            .post(url)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json")
            .body(encode_form(&pairs));
        let (status, headers, answer) = send(request).await?;
        if let (StatusCode::OK, Some(token)) = (status, answer.access_token.as_ref()) {
            return Ok(Secret::new(token.as_str()));
        }
        let host = self.authority.host_str().unwrap_or_default();
        let mut said = answer.complaint(status);
        for (_, secret) in proof {
            said = said.replace(secret, "***");
        }
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS => {
                Error::new(Kind::Limited, format!("{host} says: {said}")).transient(retry_after(&headers))
            }
            status if status.is_server_error() => {
                Error::new(Kind::Registry, format!("{host} says: {said}")).transient(retry_after(&headers))
            }
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Error::new(Kind::Unauthorized, format!("{host} refused {client}: {said}"))
                    .hint("look the AADSTS number up at https://login.microsoftonline.com/error")
            }
            status if status.is_success() && answer.unreadable => {
                let what = format!("the answer of {host} is not JSON: {said}");
                Error::new(Kind::Registry, what).transient(retry_after(&headers))
            }
            _ => Error::new(Kind::Registry, format!("{host} gave no token: {said}"))
                .hint("check AZURE_AUTHORITY_HOST and AZURE_TENANT_ID"),
        })
    }

    /// Asks what this machine has for managed identities.
    async fn ask_managed_identity(&self) -> Result<TokenAttempt> {
        let mut pairs = vec![("resource", self.resource)];
        if let Some(client) = &self.settings.client_id {
            pairs.push(("client_id", client));
        }
        let (base, path) = match &self.settings.identity_endpoint {
            Some((endpoint, _)) => {
                pairs.push(("api-version", "2019-08-01"));
                (endpoint.as_str(), "")
            }
            None => {
                pairs.push(("api-version", "2018-02-01"));
                (self.settings.imds_host.as_deref().unwrap_or(IMDS), "/metadata/identity/oauth2/token")
            }
        };
        let Ok(mut url) = Url::parse(&format!("{}{path}", base.trim_end_matches('/'))) else {
            return Err(Error::new(
                Kind::Usage,
                format!("{base:?}, the address of the metadata service, is not a URL"),
            ));
        };
        url.set_query(Some(&encode_form(&pairs)));
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut request = self.direct.get(url.clone());
            request = match &self.settings.identity_endpoint {
                Some((_, header)) => request.header("X-IDENTITY-HEADER", header.reveal()),
                // Says that no page in a browser made us ask.
                None => request.header("Metadata", "true"),
            };
            let (status, _, answer) = match send(request).await {
                Ok(answer) => answer,
                Err(error) => return Ok(TokenAttempt::NotHere(format!("there is no managed identity here ({error})"))),
            };
            if let (StatusCode::OK, Some(token)) = (status, answer.access_token.as_ref()) {
                tracing::debug!("Entra: using the managed identity");
                return Ok(TokenAttempt::Token(Secret::new(token.as_str())));
            }
            match self.wait_for_imds(status, answer.error.is_some(), attempt) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => {
                    let said = answer.complaint(status);
                    return Ok(TokenAttempt::NotHere(format!("the managed identity can't be used ({said})")));
                }
            }
        }
    }

    /// How long to wait before the metadata service is asked again, as MSAL does it.
    /// <https://github.com/AzureAD/microsoft-authentication-library-for-dotnet/blob/main/docs/imds_retry_based_on_errors.md>
    fn wait_for_imds(&self, status: StatusCode, azures: bool, attempt: u32) -> Option<Duration> {
        match status.as_u16() {
            410 => (attempt < 7).then_some(self.second * 10),
            // Amazon and Google have services at the same address, which know no such path.
            404 if !azures => None,
            404 | 408 | 429 | 500.. => (attempt < 4).then(|| self.second * (1 << (attempt - 1))),
            _ => None,
        }
    }

    async fn ask_azure_cli(&self) -> TokenAttempt {
        let name = if cfg!(windows) { "az.cmd" } else { "az" };
        let Some(program) = process::look_up(self.settings.program_path.as_deref(), name) else {
            return TokenAttempt::NotHere("the Azure CLI is not installed".to_owned());
        };
        let mut args = vec!["account", "get-access-token", "--resource", self.resource, "--output", "json"];
        if let Some(tenant) = &self.settings.tenant_id {
            args.extend(["--tenant", tenant]);
        }
        // It is written in Python, and slow to start.
        let output = match process::run(&program, &args, b"", self.second * 30).await {
            Ok(output) if output.status.success() => output,
            Ok(output) => return TokenAttempt::NotHere(format!("the Azure CLI says: {}", output.complaint())),
            Err(why) => return TokenAttempt::NotHere(format!("the Azure CLI {why}")),
        };
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Printed {
            access_token: String,
        }
        match serde_json::from_slice::<Printed>(&output.stdout) {
            Ok(printed) => {
                tracing::debug!("Entra: using the Azure CLI's login");
                TokenAttempt::Token(Secret::new(printed.access_token))
            }
            Err(_) => TokenAttempt::NotHere("the Azure CLI printed no token".to_owned()),
        }
    }
}

impl fmt::Debug for Entra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entra").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The client's id, the tenant and the client's secret, read anew each time.
fn read_principal(dir: &Path) -> Result<[Secret; 3]> {
    // Kubernetes replaces all files of a volume at once, by this link: those of one version belong together.
    // <https://kubernetes.io/docs/tasks/inject-data-application/distribute-credentials-secure/>
    let version = std::fs::canonicalize(dir.join("..data")).unwrap_or_else(|_| dir.to_owned());
    let read = |name: &str| read_token(&version.join(name));
    let all = [read("AZURE_CLIENT_ID")?, read("AZURE_TENANT_ID")?, read("AZURE_CLIENT_SECRET")?];
    check_tenant(all[1].reveal())?;
    Ok(all)
}

/// The largest token file that is read, in bytes: Kubernetes' tokens have some 2 KiB.
const MAX_TOKEN: u64 = 256 << 10;

/// Read anew each time: Kubernetes replaces it before it expires, after an hour by default.
fn read_token(file: &Path) -> Result<Secret> {
    let doing = || format!("read {}", file.display());
    let text = regular_file::read_text(file, Links::Follow, MAX_TOKEN).map_err(|error| Error::io(doing(), &error))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(Error::new(Kind::Invalid, "it is empty").doing(doing()).on(Side::Local));
    }
    Ok(Secret::new(token))
}

#[cfg(all(test, unix))]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;
    use crate::credentials::testing::Scratch;

    const TOKEN: &str = r#"{"token_type":"Bearer","expires_in":"3599","access_token":"an entra token"}"#;

    /// Answers each request with the next of its answers, then not any more.
    struct StandIn {
        url: String,
        /// Request line, headers and body.
        asked: Arc<Mutex<Vec<String>>>,
        _task: JoinSet<()>,
    }

    impl StandIn {
        async fn start(answers: &[(u16, &str)]) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let url = format!("http://{}", listener.local_addr().expect("an address"));
            let asked = Arc::new(Mutex::new(Vec::new()));
            let mut left: VecDeque<(u16, String)> =
                answers.iter().map(|(code, body)| (*code, (*body).into())).collect();
            let log = asked.clone();
            let mut task = JoinSet::new();
            task.spawn(async move {
                while let Some((code, body)) = left.pop_front() {
                    let Ok((stream, _)) = listener.accept().await else { return };
                    let mut stream = BufReader::new(stream);
                    let (mut head, mut length) = (String::new(), 0);
                    while !head.ends_with("\r\n\r\n") {
                        let start = head.len();
                        if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                        if let Some(value) = head[start..].to_ascii_lowercase().strip_prefix("content-length:") {
                            length = value.trim().parse().unwrap_or(0);
                        }
                    }
                    let mut sent = vec![0; length];
                    stream.read_exact(&mut sent).await.expect("the body");
                    log.lock().expect("the log").push(head + &String::from_utf8_lossy(&sent));
                    let head = format!("HTTP/1.1 {code} X\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
                    let extra = "Retry-After: 7\r\nLocation: http://127.0.0.1:1/\r\n\r\n";
                    stream.write_all(format!("{head}{extra}{body}").as_bytes()).await.expect("to answer");
                }
            });
            Self { url, asked, _task: task }
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().expect("the log").clone()
        }
    }

    fn entra(settings: EntraSettings) -> Result<Entra> {
        // What is on this machine is not asked for through a proxy, of which there is none.
        let proxy = reqwest::Proxy::all("http://127.0.0.1:1").expect("a proxy");
        let mut entra = Entra::new(settings, Client::builder().tls_certs_only([]).proxy(proxy))?;
        entra.second = Duration::from_millis(20);
        Ok(entra)
    }

    fn service_principal(authority: &str) -> EntraSettings {
        EntraSettings {
            client_id: Some("client".into()),
            tenant_id: Some("tenant".into()),
            client_secret: Some(Secret::new("hunter&2")),
            authority_host: Some(authority.into()),
            ..EntraSettings::default()
        }
    }

    #[test]
    fn tokens_can_be_got_by_any_thread() {
        fn check<T: Send + Sync>(_: &T) {}
        let entra = entra(EntraSettings::default()).expect("settings");
        check(&entra);
        fn check_future<T: Send>(_: T) {}
        check_future(entra.token());
    }

    #[tokio::test]
    async fn with_a_client_secret() {
        let stand_in = StandIn::start(&[(200, TOKEN)]).await;
        let token = entra(service_principal(&stand_in.url)).expect("settings").token().await.expect("a token");
        assert_eq!(token.reveal(), "an entra token");
        let asked = stand_in.asked().remove(0);
        assert!(asked.starts_with("POST /tenant/oauth2/v2.0/token HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("content-type: application/x-www-form-urlencoded"), "{asked}");
        let body = "grant_type=client_credentials&client_id=client\
                    &scope=https%3A%2F%2Fcontainerregistry.azure.net%2F.default&client_secret=hunter%262";
        assert!(asked.ends_with(&format!("\r\n\r\n{body}")), "{asked}");
    }

    /// A Secret as Kubernetes mounts it: files that are links through `..data`, which is a link to a version.
    #[tokio::test]
    async fn with_a_service_principal_whose_secret_is_rotated() {
        let scratch = Scratch::new();
        let version = |name: &str, client: &str, secret: &str| {
            scratch.write(&format!("principal/{name}/AZURE_CLIENT_ID"), client);
            scratch.write(&format!("principal/{name}/AZURE_TENANT_ID"), "tenant\n");
            scratch.write(&format!("principal/{name}/AZURE_CLIENT_SECRET"), secret);
            std::os::unix::fs::symlink(name, scratch.path("principal/new")).expect("a link");
            std::fs::rename(scratch.path("principal/new"), scratch.path("principal/..data")).expect("to rename it");
        };
        version("..1", "client", "first\n");
        for name in ["AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET"] {
            let link = scratch.path("principal").join(name);
            std::os::unix::fs::symlink(format!("..data/{name}"), link).expect("a link");
        }
        let stand_in = StandIn::start(&[(200, TOKEN), (200, TOKEN), (200, TOKEN)]).await;
        // It comes before what the variables say.
        let settings = EntraSettings { principal: Some(scratch.path("principal")), ..service_principal(&stand_in.url) };
        assert!(settings.is_configured());
        let entra = entra(settings).expect("settings");
        entra.token().await.expect("a token");
        version("..2", "other", "second");
        entra.token().await.expect("a token");
        let asked = stand_in.asked();
        assert!(asked[0].starts_with("POST /tenant/") && asked[0].contains("client_id=client&"), "{asked:?}");
        assert!(asked[0].ends_with("&client_secret=first"), "{asked:?}");
        assert!(asked[1].contains("client_id=other&") && asked[1].ends_with("&client_secret=second"), "{asked:?}");

        version("..3", "other", " ");
        let error = entra.token().await.expect_err("no secret").to_string();
        assert!(error.contains("AZURE_CLIENT_SECRET") && error.contains("empty"), "{error}");
        scratch.write("principal/..3/AZURE_TENANT_ID", "../x");
        scratch.write("principal/..3/AZURE_CLIENT_SECRET", "third");
        let error = entra.token().await.expect_err("no tenant").to_string();
        assert!(error.contains("is not a tenant") && stand_in.asked().len() == 2, "{error}");
        std::fs::remove_dir_all(scratch.path("principal")).expect("to remove it");
        let error = entra.token().await.expect_err("nobody else is tried").to_string();
        assert!(error.contains("principal/AZURE_CLIENT_ID"), "{error}");
    }

    #[tokio::test]
    async fn with_a_workload_identity_whose_file_changes() {
        let scratch = Scratch::new();
        let stand_in = StandIn::start(&[(200, TOKEN), (200, TOKEN)]).await;
        let settings = EntraSettings {
            client_secret: None,
            federated_token_file: Some(scratch.write("token", "first\n")),
            ..service_principal(&stand_in.url)
        };
        let entra = entra(settings).expect("settings");
        entra.token().await.expect("a token");
        scratch.write("token", "second\n");
        entra.token().await.expect("a token");
        let asked = stand_in.asked();
        let kind = "client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer";
        assert!(asked[0].ends_with(&format!("&{kind}&client_assertion=first")), "{asked:?}");
        assert!(asked[1].ends_with("&client_assertion=second"), "{asked:?}");

        std::fs::remove_file(scratch.path("token")).expect("to remove it");
        let error = entra.token().await.expect_err("no file").to_string();
        assert!(error.contains(&scratch.path("token").display().to_string()), "{error}");
    }

    #[tokio::test]
    async fn what_entra_refuses() {
        let invalid = r#"{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret hunter&2.\r\nTrace ID: 1"}"#;
        let stand_in =
            StandIn::start(&[(401, invalid), (429, "slow down"), (503, ""), (307, ""), (200, "{}"), (200, "<html>")])
                .await;
        let entra = entra(service_principal(&stand_in.url)).expect("settings");
        for (kind, transient, text) in [
            (Kind::Unauthorized, false, "AADSTS7000215: Invalid client secret ***."),
            (Kind::Limited, true, "HTTP 429"),
            (Kind::Registry, true, "HTTP 503"),
            // Not followed: the secret would go along.
            (Kind::Registry, false, "HTTP 307"),
            (Kind::Registry, false, "HTTP 200"),
            (Kind::Registry, true, "is not JSON: HTTP 200"),
        ] {
            let error = entra.token().await.expect_err(text);
            assert!(error.to_string().contains(text) && !error.to_string().contains("Trace"), "{error}");
            assert!(error.to_string().starts_with("cannot get a token from Microsoft Entra"), "{error}");
            assert!(!format!("{error} {error:?} {entra:?}").contains("hunter"), "{error}");
            assert_eq!((error.kind(), error.is_transient()), (kind, transient), "{error}");
            assert_eq!(error.retry_after(), transient.then(|| Duration::from_secs(7)), "{error}");
        }
        // Nobody answers any more; and no other identity is looked for.
        let error = entra.token().await.expect_err("gone");
        assert_eq!((error.kind(), error.is_transient()), (Kind::Network, true), "{error}");
    }

    #[tokio::test]
    async fn with_a_managed_identity() {
        let stand_in = StandIn::start(&[(200, TOKEN), (200, TOKEN)]).await;
        let mut settings = EntraSettings { imds_host: Some(stand_in.url.clone()), ..EntraSettings::default() };
        entra(settings.clone()).expect("settings").token().await.expect("a token");
        settings.client_id = Some("one of several".into());
        entra(settings).expect("settings").token().await.expect("a token");
        let asked = stand_in.asked();
        let line = "GET /metadata/identity/oauth2/token?resource=https%3A%2F%2Fcontainerregistry.azure.net";
        assert!(asked[0].starts_with(&format!("{line}&api-version=2018-02-01 ")), "{asked:?}");
        assert!(asked[0].contains("\r\nmetadata: true\r\n"), "{asked:?}");
        assert!(asked[1].starts_with(&format!("{line}&client_id=one+of+several&")), "{asked:?}");
    }

    #[tokio::test]
    async fn in_container_apps() {
        let stand_in = StandIn::start(&[(200, TOKEN)]).await;
        let endpoint = format!("{}/msi/token/", stand_in.url);
        let settings =
            EntraSettings { identity_endpoint: Some((endpoint, Secret::new("a header"))), ..EntraSettings::default() };
        entra(settings).expect("settings").token().await.expect("a token");
        let asked = stand_in.asked().remove(0);
        assert!(asked.starts_with("GET /msi/token?resource=") && asked.contains("api-version=2019-08-01"), "{asked}");
        assert!(asked.contains("\r\nx-identity-header: a header\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn a_metadata_service_that_is_busy_is_asked_again() {
        let answers = [(410, ""), (429, ""), (500, ""), (404, r#"{"error":"not_found"}"#), (410, ""), (200, TOKEN)];
        let stand_in = StandIn::start(&answers).await;
        let settings = EntraSettings { imds_host: Some(stand_in.url.clone()), ..EntraSettings::default() };
        // The fourth fault of the other kind is one too many.
        let patient = entra(settings.clone()).expect("settings");
        let error = patient.token().await.expect_err("too many faults").to_string();
        assert!(error.contains("the managed identity can't be used (not_found)"), "{error}");
        assert_eq!(stand_in.asked().len(), 4);
        patient.token().await.expect("a token");

        let others =
            StandIn::start(&[(404, "<html>Amazon's</html>"), (400, r#"{"error":"identity_not_found"}"#)]).await;
        let entra = entra(EntraSettings { imds_host: Some(others.url.clone()), ..settings }).expect("settings");
        let error = entra.token().await.expect_err("not Azure").to_string();
        assert!(error.contains("HTTP 404"), "{error}");
        let error = entra.token().await.expect_err("no identity").to_string();
        assert!(error.contains("identity_not_found"), "{error}");
        assert_eq!(others.asked().len(), 2, "neither is worth another try");
    }

    #[tokio::test]
    async fn a_metadata_service_that_is_silent_is_left() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let host = format!("http://{}", listener.local_addr().expect("an address"));
        let entra = entra(EntraSettings { imds_host: Some(host), ..EntraSettings::default() }).expect("settings");
        let token = tokio::time::timeout(Duration::from_secs(5), entra.token()).await.expect("not to hang");
        assert!(token.expect_err("silence").to_string().contains("took too long"));
    }

    #[tokio::test]
    async fn with_the_azure_cli() {
        let scratch = Scratch::new();
        let settings = EntraSettings {
            // Nobody listens there.
            imds_host: Some("http://127.0.0.1:1".into()),
            tenant_id: Some("tenant".into()),
            program_path: Some(scratch.path("bin").into()),
            ..EntraSettings::default()
        };
        let ask = async || {
            let mut entra = entra(settings.clone()).expect("settings");
            entra.second = Duration::from_millis(100);
            entra.token().await
        };
        let error = ask().await.expect_err("nothing here");
        assert_eq!(error.kind(), Kind::Unauthorized);
        for part in ["AZURE_CLIENT_SECRET", "no managed identity", "Connection refused", "CLI is not installed"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        scratch.program("az", r#"echo "$@" > "$HERE/args"; echo 'a warning' >&2; echo '{"accessToken": "cli token"}'"#);
        assert_eq!(ask().await.expect("a token").reveal(), "cli token");
        let args =
            "account get-access-token --resource https://containerregistry.azure.net --output json --tenant tenant\n";
        assert_eq!(scratch.read("args"), args);
        for (script, why) in [
            ("echo \"ERROR: Please run 'az login'\" >&2; exit 1", "Please run 'az login'"),
            ("echo '{\"hunter\": 2}'", "printed no token"),
            ("exec sleep 600", "gave no answer in 3.0 s"),
        ] {
            scratch.program("az", script);
            let error = ask().await.expect_err(why).to_string();
            assert!(error.contains(why) && !error.contains("hunter"), "{error}");
        }
    }
}
