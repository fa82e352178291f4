//! Registries that want a certificate of their clients.

use tokio_rustls::rustls::version::{TLS12, TLS13};

use super::{NAME, failed_at_once};
use crate::support::certificates::{Authority, Special, TlsFront};
use crate::support::{Fault, Front, Image, Registry, Rule, TempDir, Tool};

const PLACE: &str = ".config/containers/certs.d/registry.example.test";

/// A registry that wants certificates of `clients`.
struct Wary {
    image: Image,
    behind: Registry,
    authority: Authority,
    clients: Authority,
    files: TempDir,
}

impl Wary {
    fn new() -> Self {
        let behind = Registry::start();
        let image = Image::single(1, &[3000]);
        image.push(behind.addr(), "app", "v1");
        let (authority, files) = (Authority::new("Example Authority"), TempDir::new());
        files.write("ca.pem", &authority.certificate);
        Self { image, behind, authority, clients: Authority::new("Clients"), files }
    }

    fn tool(&self, front: &TlsFront) -> Tool {
        let resolve = format!("{NAME}={}", front.addr());
        let args =
            ["inspect", &format!("{NAME}/app:v1"), "--resolve", &resolve, "--ca-file", &self.files.join("ca.pem")];
        Tool::transload().args(&args)
    }
}

/// A client certificate of `certs.d` opens the registry. Without one, the error says at once what is missing.
#[test]
fn client_certificates_are_shown_to_the_registry() {
    let wary = Wary::new();
    let server = wary.authority.issue(&[NAME], Special::default());
    for version in [&TLS12, &TLS13] {
        let front = TlsFront::start(server.server_for_clients_of(&wary.clients, version), wary.behind.addr());
        let client = wary.clients.client("me");
        let (cert, key) = (format!("{PLACE}/client.cert"), format!("{PLACE}/client.key"));
        wary.tool(&front).file(&cert, &client.certificate).file(&key, &client.key).run().ok();
        let asks = format!("{NAME} asks for a client certificate, and there is none for it");
        failed_at_once(wary.tool(&front).run(), &[&asks, &format!("certs.d/{NAME}/"), "client.cert and client.key"]);
        let other = Authority::new("Other").client("me");
        failed_at_once(
            wary.tool(&front).file(&cert, &other.certificate).file(&key, &other.key).run(),
            &[&format!("{NAME} does not accept the client certificate "), "client.cert"],
        );
    }
}

/// Pairs of files that are none.
#[test]
fn files_of_a_client_certificate_that_do_not_fit_are_named() {
    let wary = Wary::new();
    let server = wary.authority.issue(&[NAME], Special::default());
    let front = TlsFront::start(server.server_for_clients_of(&wary.clients, &TLS13), wary.behind.addr());
    let (one, two) = (wary.clients.client("one"), wary.clients.client("two"));
    let (cert, key) = (format!("{PLACE}/client.cert"), format!("{PLACE}/client.key"));
    let with = |files: &[(&String, &String)]| {
        files.iter().fold(wary.tool(&front), |tool, (name, content)| tool.file(name, content)).run()
    };
    failed_at_once(
        with(&[(&cert, &one.certificate)]),
        &["client.cert cannot be used: its key, ", "client.key, is missing"],
    );
    failed_at_once(
        with(&[(&key, &one.key)]),
        &["client.key cannot be used: the client certificate of this key, ", "is missing"],
    );
    failed_at_once(
        with(&[(&cert, &one.certificate), (&key, &two.key)]),
        &["client.key is the key of another certificate"],
    );
    failed_at_once(
        with(&[(&cert, &one.certificate), (&key, &one.certificate)]),
        &["client.key cannot be used: it holds no private key"],
    );
    failed_at_once(
        with(&[(&cert, &one.key), (&key, &one.key)]),
        &["client.cert cannot be used: it holds no certificate"],
    );
    assert!(front.clients().is_empty());
}

/// A registry redirects to storage at another host, which also asks for a certificate. The registry's is not for it.
#[test]
fn a_client_certificate_is_never_shown_to_another_host() {
    let wary = Wary::new();
    let storage = "storage.example.test";
    let stored = wary.authority.issue(&[storage], Special::default());
    let storage_front = TlsFront::start(stored.server_that_asks_clients_of(&wary.clients), wary.behind.addr());
    let redirecting = Front::before(wary.behind.addr()).start();
    for blob in &wary.image.blobs {
        let path = format!("/v2/app/blobs/{}", blob.digest);
        redirecting.add(Rule::on("GET", &path, Fault::Redirect(format!("https://{storage}{path}"))));
    }
    let server = wary.authority.issue(&[NAME], Special::default());
    let front = TlsFront::start(server.server_that_asks_clients_of(&wary.clients), redirecting.addr());
    let client = wary.clients.client("me");
    let to = Registry::start();
    let tool = Tool::transload()
        .args(&["copy", &format!("{NAME}/app:v1"), &to.addr().to_string(), "--ca-file", &wary.files.join("ca.pem")])
        .args(&["--resolve", &format!("{NAME}={}", front.addr())])
        .args(&["--resolve", &format!("{storage}={}", storage_front.addr())]);
    tool.file(&format!("{PLACE}/client.cert"), &client.certificate)
        .file(&format!("{PLACE}/client.key"), &client.key)
        .run()
        .ok();
    assert!(front.clients().contains(&true) && !front.clients().contains(&false), "{:?}", front.clients());
    assert!(
        !storage_front.clients().is_empty() && !storage_front.clients().contains(&true),
        "{:?}",
        storage_front.clients()
    );
}
