//! Where user names, passwords and tokens of registries come from, and where `login` puts them.
//! Knows no registry's HTTP.
//!
//! Sources, in this order; the first that has something for the registry wins:
//!
//! 1. what was given for this run: `TRANSLOAD_REGISTRY` with `TRANSLOAD_USERNAME` and
//!    `TRANSLOAD_PASSWORD`, and `TRANSLOAD_AUTH_<HOST>=user:password`;
//! 2. `--auth-file`, in the order given: a Kubernetes secret (`.dockerconfigjson`, the old
//!    `.dockercfg`, or the directory that it's mounted at), or any file of Docker's shape;
//! 3. `DOCKER_AUTH_CONFIG`, the same JSON in the environment (Docker CLI, GitLab's runner);
//! 4. Docker's `config.json`;
//! 5. the `auth.json` of podman, skopeo and buildah.
//!
//! Within a file: the credential helper of the registry, or else the file's store, then the
//! entries in `auths`, the most specific first.
//!
//! Nothing here reads the process's environment: the CLI passes it to [`Settings::from_environment`].

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::atomic_file;
use crate::error::{Result, Side};
use crate::redact;
use crate::reference::Repository;

pub mod entra;
mod file;
mod go_json;
mod helper;
mod process;
mod secret;
mod settings;
mod store;
/// `application/x-www-form-urlencoded` (WHATWG URL, section 5): the body of a token request, or a URL's query.
pub(crate) fn encode_form(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

#[cfg(test)]
pub(crate) mod testing;

pub use settings::{Settings, variable_name};
pub use store::{StorageLocation, erase, pull_secret, store};

use file::{AuthFile, WatchedFile};
use helper::Helpers;

/// The key under which Docker keeps Docker Hub's credentials, a fossil of the first registry API.
/// <https://github.com/docker/cli/blob/master/cli/command/registry.go>
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A password or token. It is never printed: what prints it shows `***`, and so does all that is printed while it is
/// known, whoever wrote it.
#[derive(Clone)]
pub struct Secret(redact::KeptSecret);

impl Secret {
    /// Wraps `secret`.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(redact::register(secret.into()))
    }

    /// Says that the secret is also sent in this form, which then isn't printed either: `user:password` in Base64.
    pub(crate) fn also_sent_as(&self, form: &str) {
        self.0.also(form);
    }

    /// The secret itself, for the one place that sends or stores it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// When it expires, if it's a JSON Web Token that says so. Nothing is verified: that's for
    /// whoever issued it.
    pub fn expires(&self) -> Option<SystemTime> {
        #[derive(Deserialize)]
        struct Claims {
            /// Fractions occur (RFC 7519 §2, "NumericDate").
            exp: f64,
        }
        let [_, claims, _] = self.0.split('.').collect::<Vec<_>>()[..] else { return None };
        let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
        let Claims { exp } = serde_json::from_slice(&claims).ok()?;
        // Until the year 2106: whatever is later is no time that a token has.
        let known = (0.0..=f64::from(u32::MAX)).contains(&exp);
        known.then(|| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(exp.trunc()))
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        *self.0 == *other.0
    }
}

impl Eq for Secret {}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self::new(secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What proves to a registry who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A user and a password (or a personal access token in its place).
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// An OAuth refresh token, exchanged for access tokens. Docker calls it `identitytoken`.
    RefreshToken(Secret),
    /// A token that is sent to the registry as it stands. Docker calls it `registrytoken`.
    Bearer(Secret),
}

impl Credential {
    /// A user and a password.
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Basic { username: username.into(), password: Secret::new(password) }
    }
}

/// A credential, and where it was found, for what is said when the registry refuses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedCredential {
    /// The credential.
    pub credential: Credential,
    /// As in "the credentials from …": a file, a helper, a variable.
    pub origin: String,
}

/// All credentials that this run may use. Cheap to clone; clones share what helpers answered.
///
/// Files are read again when they change, and helpers asked again after some minutes: a proxy
/// runs for months, while Kubernetes renews mounted secrets and helpers hand out short-lived tokens.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    given: Vec<(String, LocatedCredential)>,
    by_variable: Vec<VariableCredential>,
    files: Vec<WatchedFile>,
    /// So many of the files, the first ones, were named by `--auth-file`.
    named: usize,
    helpers: Helpers,
}

/// A variable `TRANSLOAD_AUTH_<HOST>`: the host can't be read back from its name, only compared.
#[derive(Clone)]
struct VariableCredential {
    name: String,
    value: Secret,
}

impl Credentials {
    /// No credentials: everything is asked for as anybody may.
    pub fn anonymous() -> Self {
        Self(Arc::new(Inner {
            given: Vec::new(),
            by_variable: Vec::new(),
            files: Vec::new(),
            named: 0,
            helpers: Helpers::new(None),
        }))
    }

    /// This credential for this registry, none for others.
    ///
    /// # Errors
    /// If `registry` isn't a registry's name.
    pub fn fixed(registry: &str, credential: Credential) -> Result<Self> {
        let mut settings = Settings::default();
        settings.add(registry, credential, "the caller")?;
        Self::load(&settings)
    }

    /// Reads the files that `settings` names.
    ///
    /// # Errors
    /// If a file is malformed, or one that was named explicitly can't be read. A file at a
    /// default place that isn't there or may not be read is passed over.
    pub fn load(settings: &Settings) -> Result<Self> {
        let mut files = Vec::new();
        for path in &settings.auth_files {
            files.push(WatchedFile::named(path)?);
        }
        if let Some(text) = &settings.docker_auth_config {
            files.push(WatchedFile::fixed(AuthFile::parse(Path::new("DOCKER_AUTH_CONFIG"), text.reveal().as_bytes())?));
        }
        if let Some(path) = &settings.docker_config {
            // What a `login` that was killed left beside it holds a password.
            atomic_file::remove_abandoned(&std::fs::canonicalize(path).unwrap_or_else(|_| path.clone()));
        }
        for path in settings.docker_config.iter().chain(&settings.containers_auth) {
            files.push(WatchedFile::at_default(path)?);
        }
        Ok(Self(Arc::new(Inner {
            given: settings.given.clone(),
            by_variable: settings.by_variable.clone(),
            files,
            named: settings.auth_files.len(),
            helpers: Helpers::new(settings.helper_path.clone()),
        })))
    }

    /// The credential for `repository`, or `None`, which means: ask as anybody may.
    ///
    /// Runs credential helpers, each for ten seconds at most. Cancelling kills a running helper.
    ///
    /// # Errors
    /// If a helper that's named for the registry fails, or the registry's entry is broken.
    pub async fn find(&self, repository: &Repository) -> Result<Option<Credential>> {
        Ok(self.locate(repository).await?.map(|found| found.credential))
    }

    /// Like [`find`](Self::find), with where the credential is from.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub async fn locate(&self, repository: &Repository) -> Result<Option<LocatedCredential>> {
        let found = self
            .search(repository)
            .await
            .map_err(|error| error.doing(format!("find the credentials of {}", repository.registry)).on(Side::Local))?;
        match &found {
            Some(found) => tracing::debug!("{repository}: credentials from {}", found.origin),
            None => tracing::debug!("{repository}: no credentials, asking anonymously"),
        }
        Ok(found)
    }

    /// For hints, when a registry refuses somebody without credentials: the files of `--auth-file` that have
    /// nothing for it, and what they are for. `None` without such files, or if one has something.
    pub fn not_for(&self, registry: &str) -> Option<String> {
        let mut said = Vec::new();
        for watched in self.0.files.iter().take(self.0.named) {
            let Some(file) = watched.current() else { continue };
            if file.knows(registry) {
                return None;
            }
            let path = file.path.display();
            said.push(match &file.registries()[..] {
                [] => format!("{path} (--auth-file) has no entry"),
                known => {
                    let shown = known.iter().take(3).copied().collect::<Vec<_>>().join(", ");
                    let more = if known.len() > 3 { ", …" } else { "" };
                    format!("{path} (--auth-file) has nothing for {registry}, only for {shown}{more}")
                }
            });
        }
        (!said.is_empty()).then(|| said.join("; "))
    }

    /// Drops what helpers answered, so that the next search asks them again: for when a registry
    /// refused a credential that may have been renewed since.
    pub async fn forget(&self) {
        self.0.helpers.forget().await;
    }

    async fn search(&self, repository: &Repository) -> Result<Option<LocatedCredential>> {
        let registry = repository.registry.as_str();
        if let Some((_, found)) = self.0.given.iter().find(|(given, _)| given == registry) {
            return Ok(Some(found.clone()));
        }
        if let Some(found) = settings::from_variable(&self.0.by_variable, registry)? {
            return Ok(Some(found));
        }
        for watched in &self.0.files {
            let Some(file) = watched.current() else { continue };
            match self.search_file(&file, repository).await? {
                // `az acr login` leaves one behind each time, good for three hours.
                Some(LocatedCredential { credential: Credential::RefreshToken(token), origin })
                    if is_expired(&token) =>
                {
                    tracing::warn!("the login to {registry} in {origin} has expired, and is not used");
                }
                Some(found) => return Ok(Some(found)),
                None => {}
            }
        }
        Ok(None)
    }

    async fn search_file(&self, file: &AuthFile, repository: &Repository) -> Result<Option<LocatedCredential>> {
        if let Some(name) = file.helper(&repository.registry) {
            for server in file.servers(&repository.registry) {
                if let Some(credential) = self.0.helpers.find(name, server, &file.path).await? {
                    let origin = format!("docker-credential-{name}, named in {}", file.path.display());
                    return Ok(Some(LocatedCredential { credential, origin }));
                }
            }
        }
        file.entry(repository)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

fn is_expired(token: &Secret) -> bool {
    token.expires().is_some_and(|expiry| expiry <= crate::clock::now())
}

#[cfg(all(test, unix))]
mod tests {
    use super::testing::Scratch;
    use super::*;

    fn repository(text: &str) -> Repository {
        text.parse().expect("a repository")
    }

    #[test]
    fn secrets_are_not_printed() {
        let all = [
            Credential::basic("user", "hunter2"),
            Credential::RefreshToken(Secret::new("hunter2")),
            Credential::Bearer(Secret::new("hunter2")),
        ];
        for credential in all {
            let found = LocatedCredential { credential, origin: "a file".into() };
            let printed = format!("{found:?} {:#?}", found.credential);
            assert!(printed.contains("***") && !printed.contains("hunter2"), "{printed}");
        }
        assert_eq!(Secret::new("hunter2").to_string(), "***");
    }

    #[tokio::test]
    async fn sources_in_their_order() {
        let scratch = Scratch::new();
        let file =
            |name: &str, auth: &str| scratch.write(name, &format!(r#"{{"auths": {{"a.io": {{"auth": "{auth}"}}}}}}"#));
        let mut settings = Settings::from_environment([
            ("TRANSLOAD_AUTH_A_IO".into(), "variable:p".into()),
            ("DOCKER_AUTH_CONFIG".into(), r#"{"auths": {"a.io": {"auth": "aW5saW5lOnA="}}}"#.into()),
        ])
        .expect("settings");
        settings.auth_files = vec![file("one.json", "b25lOnA="), file("two.json", "dHdvOnA=")];
        settings.docker_config = Some(file("docker.json", "ZG9ja2VyOnA="));
        settings.containers_auth = vec![file("run.json", "cnVuOnA="), file("home.json", "aG9tZTpw")];
        settings.add("a.io", Credential::basic("environment", "p"), "the environment").expect("a registry");
        settings.add("a.io", Credential::basic("flag", "p"), "a flag").expect("a registry");

        let mut seen = Vec::new();
        // Each time without what won.
        let drop_first: [fn(&mut Settings); 9] = [
            |s| _ = s.given.remove(0),
            |s| s.given.clear(),
            |s| s.by_variable.clear(),
            |s| _ = s.auth_files.remove(0),
            |s| s.auth_files.clear(),
            |s| s.docker_auth_config = None,
            |s| s.docker_config = None,
            |s| _ = s.containers_auth.remove(0),
            |s| s.containers_auth.clear(),
        ];
        for without in drop_first {
            let credentials = Credentials::load(&settings).expect("well-formed");
            assert_eq!(credentials.find(&repository("b.io/x")).await.expect("nothing wrong"), None);
            match credentials.find(&repository("a.io/x")).await.expect("nothing wrong") {
                Some(Credential::Basic { username, .. }) => seen.push(username),
                other => panic!("{other:?}"),
            }
            without(&mut settings);
        }
        assert_eq!(seen, ["flag", "environment", "variable", "one", "two", "inline", "docker", "run", "home"]);
        let none = Credentials::load(&settings).expect("nothing to read");
        assert_eq!(none.find(&repository("a.io/x")).await.expect("nothing wrong"), None);
    }

    #[tokio::test]
    async fn a_helper_before_the_entries_and_docker_hub_by_both_names() {
        let scratch = Scratch::new();
        scratch.helper(
            "x",
            r#"read -r server; echo "$server" >> "$HERE/asked"
case $server in
docker.io|a.io) printf '{"Username":"helper","Secret":"p"}' ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac"#,
        );
        let entries = r#"{"a.io": {"auth": "ZmlsZTpw"}, "b.io": {"auth": "ZmlsZTpw"}}"#;
        scratch.write("docker/config.json", &format!(r#"{{"auths": {entries}, "credsStore": "x"}}"#));
        let credentials = Credentials::load(&scratch.settings()).expect("well-formed");
        for (name, user) in [("a.io/x", "helper"), ("b.io/x", "file"), ("nginx", "helper")] {
            let found = credentials.locate(&repository(name)).await.expect("nothing wrong").expect("found");
            assert_eq!(found.credential, Credential::basic(user, "p"), "{name}");
            assert!(found.origin.contains("config.json"), "{}", found.origin);
            assert_eq!(found.origin.contains("docker-credential-x"), user == "helper", "{}", found.origin);
        }
        assert_eq!(scratch.read("asked"), "a.io\nb.io\nhttps://index.docker.io/v1/\ndocker.io\n");
    }

    #[tokio::test]
    async fn a_broken_entry_only_matters_for_its_registry() {
        let scratch = Scratch::new();
        let entries = r#"{"a.io": {"auth": "!"}, "b.io": {"auth": "dTpw"}}"#;
        scratch.write("docker/config.json", &format!(r#"{{"auths": {entries}, "credHelpers": {{"c.io": "no"}}}}"#));
        let credentials = Credentials::load(&scratch.settings()).expect("well-formed");
        let said = |error: crate::error::Error| error.to_string();
        let broken = credentials.find(&repository("a.io/x")).await.map_err(said).expect_err("broken");
        assert!(
            broken.starts_with("local: cannot find the credentials of a.io") && broken.contains("base64"),
            "{broken}"
        );
        let missing = credentials.find(&repository("c.io/x")).await.map_err(said).expect_err("no helper");
        assert!(missing.contains("docker-credential-no"), "{missing}");
        assert!(credentials.find(&repository("b.io/x")).await.expect("nothing wrong").is_some());
    }

    #[tokio::test]
    async fn an_expired_login_is_passed_over() {
        let jwt = |claims: &str| format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims));
        let (past, future) = (jwt(r#"{"exp": 1600000000, "sub": "x"}"#), jwt(r#"{"exp": 4000000000}"#));
        assert_eq!(Secret::new(&*past).expires(), Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000)));
        for opaque in ["dckr_pat_x", "a.b.c", &jwt("{}"), &jwt("[]")] {
            assert_eq!(Secret::new(opaque).expires(), None, "{opaque}");
        }

        let scratch = Scratch::new();
        let file = |name: &str, token: &str| {
            let entry = format!(r#"{{"auth": "MDAwOg==", "identitytoken": "{token}"}}"#);
            scratch.write(name, &format!(r#"{{"auths": {{"a.io": {entry}}}}}"#))
        };
        let mut settings = Settings { auth_files: vec![file("past.json", &past)], ..Settings::default() };
        let find = async |settings: &Settings| {
            let credentials = Credentials::load(settings).expect("well-formed");
            credentials.find(&repository("a.io/x")).await.expect("nothing wrong")
        };
        assert_eq!(find(&settings).await, None);
        settings.auth_files.push(file("future.json", &future));
        assert_eq!(find(&settings).await, Some(Credential::RefreshToken(future.into())));
    }

    #[tokio::test]
    async fn given_by_the_caller() {
        let credentials = Credentials::fixed("a.io", Credential::basic("u", "p")).expect("a registry");
        fn check<T: Send>(_: T) {}
        check(credentials.find(&repository("a.io/x")));
        assert!(credentials.find(&repository("a.io/x")).await.expect("nothing wrong").is_some());
        assert!(credentials.find(&repository("a.io:80/x")).await.expect("nothing wrong").is_none());
        assert!(Credentials::anonymous().find(&repository("a.io/x")).await.expect("nothing wrong").is_none());
        assert!(Credentials::fixed("https://a.io", Credential::basic("u", "p")).is_err());
    }
}
