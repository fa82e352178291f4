//! An Azure identity in place of stored credentials, against look-alikes of ACR, Entra and IMDS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use transload::demo::persona::{AcrConfig, Grant, Persona};

use super::support::background::Background;
use super::support::{Fault, Front, Image, Registry, Rule, Run, SeenRequest, TempDir, Tool, http};

const TENANT: &str = "11111111-2222-3333-4444-555555555555";
const CLIENT: &str = "99999999-8888-7777-6666-555555555555";
const ENTRA: &str = "login.microsoftonline.com";
const IMDS: &str = "/metadata/identity/oauth2/token";
/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.1:1";

/// A source that holds `app:v1`, and a look-alike of ACR before an empty registry.
struct Stage {
    image: Image,
    source: Registry,
    behind: Registry,
    acr: Front,
    /// All of the program's PATH.
    bin: TempDir,
}

impl Stage {
    fn new(adapt: impl FnOnce(&mut AcrConfig) + 'static) -> Self {
        let image = Image::single(1, &[40_000]);
        Self::with(image, adapt)
    }

    fn with(image: Image, adapt: impl FnOnce(&mut AcrConfig) + 'static) -> Self {
        let (source, behind) = (Registry::start(), Registry::start());
        image.push(source.addr(), "app", "v1");
        let acr = Front::before(behind.addr()).acr(adapt).tls().start();
        Self { image, source, behind, acr, bin: TempDir::new() }
    }

    /// Copies `app:v1` to the look-alike's `app:v1`; no identity is there unless one is added.
    fn copy(&self) -> Tool {
        let from = format!("{}/app:v1", self.source.addr());
        let to = format!("{}/app", self.acr.host());
        self.tool(&["copy", &from, &to, "--force"])
    }

    fn tool(&self, args: &[&str]) -> Tool {
        let tool = Tool::transload().args(args).args(&self.acr.flags());
        tool.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", NOWHERE).env("PATH", &self.bin.join(""))
    }

    /// The image is there, and Entra's token came by the exchange once and nowhere else.
    #[track_caller]
    fn assert_copied(&self) {
        self.image.assert_at(self.behind.addr(), "app", "v1");
        let log = self.acr.log();
        assert_eq!(log.iter().filter(|seen| seen.path == "/oauth2/exchange").count(), 1);
        assert_eq!(self.acr.acr().entra().tokens(), 1);
    }

    /// Requests to Entra itself.
    fn asked_entra(&self) -> Vec<SeenRequest> {
        self.acr.log().into_iter().filter(|seen| seen.host == ENTRA).collect()
    }

    fn metadata(&self) -> String {
        format!("http://{}", self.acr.side())
    }

    /// Puts an Azure CLI into the PATH that is logged in, and notes its arguments.
    fn install_az(&self) {
        let token = entra_token(&self.acr);
        let log = self.bin.join("az.log");
        let document = json!({"accessToken": token, "expiresOn": "2099-01-01 00:00:00.000000", "tokenType": "Bearer"});
        self.bin.program("az", &format!("echo \"$@\" >> {log}\necho 'WARNING: new version' >&2\necho '{document}'"));
    }
}

fn client(tool: Tool) -> Tool {
    tool.env("AZURE_TENANT_ID", TENANT).env("AZURE_CLIENT_ID", CLIENT)
}

fn client_secret(tool: Tool) -> Tool {
    client(tool).env("AZURE_CLIENT_SECRET", "entra-secret")
}

fn form(acr: &Front, host: &str, path: &str, body: &str) -> Value {
    let headers = [("host", host), ("content-type", "application/x-www-form-urlencoded")];
    http::send(acr.side(), "POST", path, &headers, body.as_bytes()).expect(200).json()
}

/// A token as Entra gives it for ACR.
fn entra_token(acr: &Front) -> String {
    let body = format!(
        "grant_type=client_credentials&client_id={CLIENT}&client_secret=entra-secret\
         &scope=https%3A%2F%2Fcontainerregistry.azure.net%2F.default"
    );
    let answer = form(acr, ENTRA, &format!("/{TENANT}/oauth2/v2.0/token"), &body);
    answer["access_token"].as_str().expect("a token").to_owned()
}

/// What `az acr login` stores.
fn refresh_token(acr: &Front) -> String {
    let entra = entra_token(acr);
    let body = format!("grant_type=access_token&service={}&access_token={entra}", acr.host());
    form(acr, acr.host(), "/oauth2/exchange", &body)["refresh_token"].as_str().expect("a token").to_owned()
}

#[track_caller]
fn assert_secret(run: &Run, secret: &str) {
    assert!(!run.stdout.contains(secret) && !run.stderr.contains(secret), "{secret} is shown: {run:?}");
}

#[test]
fn a_client_secret() {
    let stage = Stage::new(|acr| acr.abac = true);
    let run = client_secret(stage.copy()).args(&["-vv"]).run().ok();
    stage.assert_copied();
    assert_eq!(stage.asked_entra().len(), 1);
    assert_eq!(stage.asked_entra()[0].path, format!("/{TENANT}/oauth2/v2.0/token"));
    assert!(run.stderr.contains(&format!("using the client secret of {CLIENT}")), "{}", run.stderr);
    // Not even when every request is shown.
    for secret in ["entra-secret", "eyJ"] {
        assert_secret(&run, secret);
    }
}

/// Kubernetes rotates the file; whoever kept its content would be refused.
#[test]
fn a_workload_identity_and_its_rotated_file() {
    let stage = Stage::new(|_| {});
    let files = TempDir::new();
    let file = files.write("token", "federated-token-1\n");
    let copy = || client(stage.copy()).env("AZURE_FEDERATED_TOKEN_FILE", &file);
    copy().run().ok();
    stage.assert_copied();

    stage.acr.acr().entra().rotate("federated-token-2");
    let run = copy().run().exits(1);
    assert!(run.stderr.contains("AADSTS700024") && run.stderr.contains("hint: "), "{}", run.stderr);
    assert_secret(&run, "federated-token");

    files.write("token", "federated-token-2");
    copy().run().ok();
    assert_eq!(stage.acr.acr().entra().tokens(), 2);

    files.write("token", "\n");
    let run = copy().run().exits(1);
    assert!(run.stderr.contains(&format!("cannot read {file}: it is empty")), "{}", run.stderr);
}

/// All tokens of ACR end in the middle of a copy, the refresh token too, and the file is another
/// one by then: as on the third hour of a long mirror.
#[test]
fn the_file_is_read_again_within_a_run() {
    let stage = Stage::with(Image::single(1, &[3 << 20, 40_000]), |_| {});
    let files = Arc::new(TempDir::new());
    let file = files.write("token", "federated-token-1");
    let Persona::Acr(acr) = stage.acr.persona().clone() else { panic!("not ACR") };
    let rotate = move |_: &SeenRequest| {
        acr.entra().rotate("federated-token-2");
        files.write("token", "federated-token-2");
        true
    };
    // The second chunk, whose request is the first that a rule sees with this range.
    let second = |seen: &SeenRequest| seen.header("content-range") == Some("1048576-2097151");
    stage.acr.add(Rule::on("PATCH", "", Fault::ExpireTokens).when(move |seen| second(seen) && rotate(seen)).once());
    let tool = client(stage.copy()).env("AZURE_FEDERATED_TOKEN_FILE", &file);
    tool.args(&["--chunk-size", "1MiB"]).run().ok();
    assert_eq!(stage.acr.struck(), 1);
    stage.image.assert_at(stage.behind.addr(), "app", "v1");
    assert_eq!(stage.acr.acr().entra().tokens(), 2);
    assert_eq!(stage.acr.count("POST", "/oauth2/exchange"), 2);
}

/// The metadata service is on the machine's own link: a proxy would give away the token, or get
/// that of its own machine.
#[test]
fn a_managed_identity_is_not_asked_for_through_a_proxy() {
    for proxy in [None, Some(NOWHERE)] {
        let stage = Stage::new(|_| {});
        let tool = stage.copy().env("AZURE_POD_IDENTITY_AUTHORITY_HOST", &stage.metadata());
        let names = ["HTTP_PROXY", "http_proxy"];
        names.into_iter().zip(proxy.into_iter().cycle()).fold(tool, |tool, (name, to)| tool.env(name, to)).run().ok();
        stage.assert_copied();
        assert_eq!(stage.asked_entra().len(), 0);
        let asked: Vec<SeenRequest> = stage.acr.log().into_iter().filter(|seen| seen.path == IMDS).collect();
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].header("metadata"), Some("true"));
        assert_eq!(asked[0].query, "resource=https%3A%2F%2Fcontainerregistry.azure.net&api-version=2018-02-01");
    }
}

/// One of several identities; another one isn't there, and then nobody is logged in.
#[test]
fn a_user_assigned_identity_by_its_client_id() {
    let stage = Stage::new(|_| {});
    let copy = |id: &str| {
        let tool = stage.copy().env("AZURE_POD_IDENTITY_AUTHORITY_HOST", &stage.metadata());
        tool.env("AZURE_CLIENT_ID", id).run()
    };
    copy(CLIENT).ok();
    stage.assert_copied();
    let run = copy("00000000-1111-2222-3333-444444444444").exits(1);
    assert!(run.stderr.contains("hint: "), "{}", run.stderr);
    assert_eq!(stage.acr.acr().entra().tokens(), 1);
}

#[test]
fn the_azure_cli() {
    let stage = Stage::new(|_| {});
    stage.install_az();
    let run = stage.copy().args(&["-v"]).run().ok();
    stage.assert_copied();
    let asked = "account get-access-token --resource https://containerregistry.azure.net --output json\n";
    assert_eq!(stage.bin.read("az.log"), asked, "once in a run");
    assert_secret(&run, "eyJ");
}

/// Who configured an identity means that one: nobody else's is used in its place.
#[test]
fn a_wrong_secret_is_an_error_and_not_a_reason_to_be_somebody_else() {
    let stage = Stage::new(|acr| acr.anonymous_pull = true);
    stage.install_az();
    let issued = stage.acr.acr().entra().tokens();
    stage.acr.reset_log();
    let tool = stage.copy().env("AZURE_POD_IDENTITY_AUTHORITY_HOST", &stage.metadata());
    let run = client(tool).env("AZURE_CLIENT_SECRET", "hunter2").run().exits(1);
    let errors: Vec<&str> = run.stderr.lines().collect();
    assert_eq!(errors.len(), 2, "{}", run.stderr);
    let said = format!("{ENTRA} refused {CLIENT}: AADSTS7000215: Invalid client secret provided.");
    assert!(errors[0].starts_with("error: destination: ") && errors[0].ends_with(&said), "{}", run.stderr);
    assert!(errors[1].starts_with("hint: ") && errors[1].contains("AADSTS"), "{}", run.stderr);
    assert_secret(&run, "hunter2");
    // Once for the look whether the repository is new, which may fail, and once for good.
    assert!(stage.asked_entra().len() <= 2, "{:?}", stage.asked_entra());
    assert_eq!(stage.acr.count("*", IMDS), 0);
    assert!(!stage.bin.path().join("az.log").exists());
    assert_eq!(stage.acr.acr().entra().tokens(), issued);

    // Half an identity is the same: exit code 2, before anything is sent there.
    stage.acr.reset_log();
    let run = stage.copy().env("AZURE_CLIENT_SECRET", "hunter2").env("AZURE_TENANT_ID", TENANT).run().exits(2);
    assert!(run.stderr.contains("AZURE_CLIENT_SECRET is set, but AZURE_CLIENT_ID is not"), "{}", run.stderr);
    assert_eq!(stage.asked_entra().len(), 0);
}

/// A service principal as the chart mounts it, with a secret that was rotated since.
#[test]
fn a_service_principal_in_files() {
    let stage = Stage::new(|_| {});
    let dir = TempDir::new();
    for (name, value) in
        [("AZURE_CLIENT_ID", CLIENT), ("AZURE_TENANT_ID", TENANT), ("AZURE_CLIENT_SECRET", "entra-secret\n")]
    {
        dir.write(name, value);
    }
    let files = |tool: Tool| tool.env("TRANSLOAD_AZURE_PRINCIPAL", &dir.join(""));
    // The variable has the secret of before.
    files(client(stage.copy()).env("AZURE_CLIENT_SECRET", "hunter2")).run().ok();
    dir.write("AZURE_CLIENT_SECRET", "hunter2");
    let run = files(client_secret(stage.copy())).run().exits(1);
    assert!(run.stderr.contains("Invalid client secret"), "{}", run.stderr);
    assert_secret(&run, "hunter2");
}

/// An identity without the role is told which one it lacks, whatever request finds it out.
#[test]
fn an_identity_that_may_only_read() {
    let stage = Stage::new(|acr| acr.identity = vec![Grant::new("*", "pull")]);
    let run = client_secret(stage.copy()).run().exits(1);
    let hint =
        "hint: 'the Entra identity' may pull but not push: it needs AcrPush or Container Registry Repository Writer\n";
    assert!(run.stderr.ends_with(hint), "{}", run.stderr);
    // A second token, for the same identity.
    let other = format!("{}/other", stage.acr.host());
    let run = client_secret(stage.copy()).args(&[&other]).run().exits(1);
    assert_eq!(run.stderr.matches("(hint: 'the Entra identity' may pull but not push").count(), 2, "{}", run.stderr);
    assert_eq!(stage.behind.count("PUT", "") + stage.behind.count("POST", ""), 0);
}

/// A listener that takes no more connections: packets to it are lost, as those to 169.254.169.254
/// are outside Azure.
fn black_hole() -> (Background, String, Vec<std::net::TcpStream>) {
    let (tell, told) = std::sync::mpsc::channel::<SocketAddr>();
    let background = Background::spawn(move || async move {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let listener = socket.listen(1).expect("a listener");
        tell.send(listener.local_addr().expect("an address")).expect("somebody waits");
        std::future::pending::<()>().await;
        drop(listener);
    });
    let at = told.recv().expect("an address");
    let connect = || std::net::TcpStream::connect_timeout(&at, Duration::from_millis(200));
    let filling = std::iter::from_fn(|| connect().ok()).take(100).collect();
    assert!(connect().is_err(), "the listener still takes connections");
    (background, format!("http://{at}"), filling)
}

#[test]
fn no_identity_at_all_is_soon_known() {
    let stage = Stage::new(|acr| acr.anonymous_pull = true);
    let (_hole, silent, _filling) = black_hole();
    let bare = |tool: Tool| tool.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", &silent).run();
    let run = bare(stage.copy()).exits(1);
    assert!(run.took < Duration::from_secs(5), "{:?}", run.took);
    assert!(run.stderr.starts_with("error: destination: "), "{}", run.stderr);
    assert!(
        run.stderr.contains("hint: log in by transload login myregistry.azurecr.io, or with an Azure identity"),
        "{run:?}"
    );
    assert_eq!(stage.acr.acr().entra().tokens() as usize + stage.acr.count("*", "/oauth2/exchange"), 0);

    // What is public can be had.
    stage.image.push(stage.behind.addr(), "public", "v1");
    let target = Registry::start();
    let from = format!("{}/public:v1", stage.acr.host());
    let run = bare(stage.tool(&["copy", &from, &target.addr().to_string()])).ok();
    assert!(run.took < Duration::from_secs(5), "{:?}", run.took);
    stage.image.assert_at(target.addr(), "public", "v1");
}

/// Somebody in hundreds of groups has a token that no header of ACR's takes (acr#797).
#[test]
fn a_long_token_goes_in_the_body() {
    let stage = Stage::new(|acr| acr.entra.groups = 400);
    client_secret(stage.copy()).run().ok();
    stage.assert_copied();
    let log = stage.acr.log();
    let exchange = log.iter().find(|seen| seen.path == "/oauth2/exchange").expect("asserted above");
    assert!(exchange.received() > 16_384, "{} bytes", exchange.received());
    assert_eq!((exchange.method.as_str(), exchange.query.as_str(), exchange.scheme()), ("POST", "", None));
    assert!(log.iter().all(|seen| seen.target().len() < 1000));
}

/// `az acr login` lasts three hours; the identity that is there too goes on.
#[test]
fn an_expired_login_falls_back_to_the_identity() {
    let stage = Stage::new(|_| {});
    let token = refresh_token(&stage.acr);
    stage.acr.persona().advance(Duration::from_secs(3 * 3600 + 1));
    stage.acr.reset_log();
    let config = json!({"auths": {"myregistry.azurecr.io": {"auth": "", "identitytoken": token}}});
    let run = client_secret(stage.copy()).file(".docker/config.json", &config.to_string()).run().ok();
    stage.image.assert_at(stage.behind.addr(), "app", "v1");
    assert_eq!(stage.acr.count("POST", "/oauth2/exchange"), 1);
    assert_secret(&run, &token);

    // A password that is wrong is another matter: nobody else is asked in its place.
    stage.acr.reset_log();
    let tool = client_secret(stage.copy()).env("TRANSLOAD_AUTH_MYREGISTRY_AZURECR_IO", "admin:hunter2");
    let run = tool.run().exits(1);
    assert!(run.stderr.contains("hint: the password or token of 'admin' was refused"), "{}", run.stderr);
    assert_eq!(stage.asked_entra().len(), 0);
}

/// CVE-2026-105769: a host that merely contains the suffix got Entra's tokens.
#[test]
fn hosts_that_only_look_like_azure_get_no_token() {
    for name in ["myregistry.azurecr.io.attacker.example", "xazurecr.io", "myregistry-azurecr.io"] {
        let stage = Stage::new(move |acr| acr.url = format!("https://{name}"));
        stage.install_az();
        let issued = stage.acr.acr().entra().tokens();
        stage.acr.reset_log();
        let tool = stage.copy().env("AZURE_POD_IDENTITY_AUTHORITY_HOST", &stage.metadata());
        let run = client_secret(tool).run().exits(1);
        assert!(run.stderr.contains(&format!("hint: log in by transload login {name}\n")), "{}", run.stderr);
        assert!(stage.acr.count("GET", "/v2/") + stage.acr.count("HEAD", "/v2/") > 0, "it was asked at all");
        let login = client_secret(stage.tool(&["login", name, "--azure"])).run().exits(2);
        assert!(login.stderr.contains("is not an Azure Container Registry"), "{}", login.stderr);
        assert_eq!(
            stage.asked_entra().len() + stage.acr.count("*", IMDS) + stage.acr.count("*", "/oauth2/exchange"),
            0
        );
        assert!(!stage.bin.path().join("az.log").exists());
        assert_eq!(stage.acr.acr().entra().tokens(), issued);
    }
}

/// A registry of Azure's name whose challenge points elsewhere: no identity goes there.
#[test]
fn a_realm_elsewhere_gets_no_token() {
    let stage = Stage::new(|_| {});
    let header = r#"Bearer realm="https://tokens.attacker.example/oauth2/token",service="myregistry.azurecr.io""#;
    stage.acr.add(Rule::on("*", "/v2/", Fault::Header("www-authenticate", Some(header.to_owned()))));
    let run = client_secret(stage.copy())
        .args(&["--resolve", &format!("tokens.attacker.example={}", stage.acr.addr())])
        .run();
    run.exits(1);
    assert!(stage.acr.struck() > 0);
    assert_eq!(stage.asked_entra().len() + stage.acr.count("*", "/oauth2/exchange"), 0);
    assert_eq!(stage.acr.acr().entra().tokens(), 0);
}
