//! Whoever wants the token of an Azure identity.
//!
//! An identity is sent by verified TLS only. `--insecure-registry` allows plain http and unverified certificates: then
//! whoever is between can read what is sent, and can force plain http by blocking port 443.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use transload::demo::persona::{Account, Grant};

use super::super::support::{Front, Image, Registry, TempDir, Tool};

const HOST: &str = "myregistry.azurecr.io";
/// The name under which ACR takes a refresh token as the password.
const TOKEN_USER: &str = "00000000-0000-0000-0000-000000000000";

/// Who is between us and the registry.
struct Between {
    front: Front,
    /// All of the program's PATH: an Azure CLI that is logged in.
    bin: TempDir,
    _behind: Registry,
    source: Registry,
}

impl Between {
    /// Speaks plain http only, as when port 443 is blocked; or TLS with a certificate of its own.
    fn new(tls: bool) -> Self {
        let (source, behind) = (Registry::start(), Registry::start());
        Image::single(1, &[3000]).push(source.addr(), "app", "v1");
        let pusher = vec![Grant::new("*", "pull,push")];
        let builder = Front::before(behind.addr()).acr(move |acr| {
            if !tls {
                acr.url = format!("http://{HOST}");
            }
            acr.accounts = vec![Account::new("pusher", "secret", pusher)];
        });
        let front = if tls { builder.tls().start() } else { builder.start() };
        let bin = TempDir::new();
        let token =
            json!({"accessToken": "eyJ.entra.token", "expiresOn": "2099-01-01 00:00:00.000000", "tokenType": "Bearer"});
        bin.program("az", &format!("echo asked >> {}\necho '{token}'", bin.join("az.log")));
        Self { front, bin, _behind: behind, source }
    }

    /// A copy to the registry, which the user called insecure. The metadata service of the machine has an identity.
    fn copy(&self) -> Tool {
        self.tool(&["copy", &format!("{}/app:v1", self.source.addr()), &format!("{HOST}/app")])
    }

    fn tool(&self, args: &[&str]) -> Tool {
        let resolve = format!("{HOST}={}", self.front.addr());
        let tool = Tool::transload().args(args).args(&["--insecure-registry", HOST, "--resolve", &resolve]);
        tool.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", &format!("http://{}", self.front.side()))
            .env("PATH", &self.bin.join(""))
    }

    /// Nobody got an identity's token: none was sent, and none was even asked for.
    #[track_caller]
    fn assert_nothing_sent(&self) {
        let log = self.front.log();
        assert!(log.iter().any(|seen| seen.path.starts_with("/v2/")), "it was asked at all");
        assert!(log.iter().all(|seen| seen.scheme().is_none()), "{log:#?}");
        assert_eq!(self.front.count("POST", "/oauth2/"), 0);
        assert_eq!(self.front.acr().entra().tokens(), 0);
        assert!(!self.bin.path().join("az.log").exists(), "the Azure CLI was asked");
    }
}

/// Whoever is between blocks port 443, or answers TLS with any certificate, and waits for the exchange of the
/// identity's token.
#[test]
fn an_identity_that_is_found_is_not_sent_to_an_insecure_registry() {
    for tls in [false, true] {
        let between = Between::new(tls);
        let run = between.copy().run().exits(1);
        assert!(run.stderr.contains("the identity is not sent to myregistry.azurecr.io"), "{}", run.stderr);
        assert!(run.stderr.contains("leave out --insecure-registry"), "{}", run.stderr);
        between.assert_nothing_sent();
    }
}

/// The same with an identity that the user configured: it is an error, and not a reason to be nobody.
#[test]
fn an_identity_that_is_configured_is_not_sent_to_an_insecure_registry() {
    for tls in [false, true] {
        let between = Between::new(tls);
        let tool = between.copy().env("AZURE_TENANT_ID", "11111111-2222-3333-4444-555555555555");
        let tool = tool.env("AZURE_CLIENT_ID", "99999999-8888-7777-6666-555555555555");
        let run = tool.env("AZURE_CLIENT_SECRET", "entra-secret").run().exits(1);
        assert!(run.stderr.contains("the identity is not sent to myregistry.azurecr.io"), "{}", run.stderr);
        assert!(run.stderr.contains("hint: leave out --insecure-registry"), "{}", run.stderr);
        assert!(!run.stderr.contains("entra-secret"), "{}", run.stderr);
        between.assert_nothing_sent();
    }
}

/// `az acr login` leaves ACR's refresh token in Docker's file, as an identity token or as a password.
#[test]
fn a_token_of_an_azure_login_is_not_sent_to_an_insecure_registry() {
    let basic = STANDARD.encode(format!("{TOKEN_USER}:eyJ.refresh.token"));
    for tls in [false, true] {
        for stored in [
            json!({"auth": STANDARD.encode(format!("{TOKEN_USER}:")), "identitytoken": "eyJ.refresh.token"}),
            json!({"auth": basic}),
            json!({"registrytoken": "eyJ.access.token"}),
        ] {
            let between = Between::new(tls);
            let config = json!({"auths": {HOST: stored}}).to_string();
            let run = between.copy().file(".docker/config.json", &config).run().exits(1);
            assert!(run.stderr.contains("the identity is not sent to myregistry.azurecr.io"), "{}", run.stderr);
            between.assert_nothing_sent();
        }
    }
}

#[test]
fn a_login_with_an_identity_is_not_made_at_an_insecure_registry() {
    for tls in [false, true] {
        let between = Between::new(tls);
        let run = between.tool(&["login", HOST, "--azure"]).run().exits(1);
        assert!(run.stderr.contains("the identity is not sent to myregistry.azurecr.io"), "{}", run.stderr);
        assert_eq!(between.front.count("POST", "/oauth2/"), 0);
        assert_eq!(between.front.acr().entra().tokens(), 0);
    }
}

/// A password is another matter: the user stored it for this registry, and called the registry insecure. docker and
/// skopeo send it too.
#[test]
fn a_stored_password_is_sent_to_an_insecure_registry() {
    for tls in [false, true] {
        let between = Between::new(tls);
        let config = json!({"auths": {HOST: {"auth": STANDARD.encode("pusher:secret")}}}).to_string();
        between.copy().file(".docker/config.json", &config).run().ok();
        assert_eq!(between.front.acr().entra().tokens(), 0);
    }
}
