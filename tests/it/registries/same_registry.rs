//! One registry by several names.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::support::registry::PASSWORD;
use crate::support::{Front, Image, ProxyProcess, Registry, Run, Tool, http};

const HOST: &str = "my-server.test";

fn front(registry: &Registry) -> Front {
    Front::before(registry.addr()).tls().name(HOST).start()
}

fn auth() -> String {
    STANDARD.encode(format!("carol:{PASSWORD}"))
}

/// Reads `reference` with this config.json.
fn inspect(front: &Front, reference: &str, config: &serde_json::Value) -> Run {
    let tool = Tool::transload().args(&["inspect", reference]).args(&front.flags_only(HOST));
    tool.file(".docker/config.json", &config.to_string()).run()
}

/// Docker wants the port of a host without a dot, and others write it anyway. Credentials that are stored for one
/// spelling are found by the other.
#[test]
fn credentials_are_found_with_and_without_the_port_of_https() {
    let registry = Registry::with_basic("carol");
    Image::single(531, &[900]).push_as(
        registry.addr(),
        "app",
        "v1",
        &[("authorization", &format!("Basic {}", auth()))],
    );
    let front = front(&registry);
    for stored in
        [HOST, "my-server.test:443", "https://my-server.test:443/v1/", "MY-SERVER.test:443", "*.test:443", "*.test"]
    {
        for asked in [HOST, "my-server.test:443"] {
            let config = json!({"auths": {stored: {"auth": auth()}}});
            inspect(&front, &format!("{asked}/app:v1"), &config).ok();
        }
    }
    let other = json!({"auths": {"my-server.test:8443": {"auth": auth()}, "other.test": {"auth": auth()}}});
    inspect(&front, "my-server.test:443/app:v1", &other).exits(1);
    for variable in ["TRANSLOAD_AUTH_MY__SERVER_TEST", "TRANSLOAD_AUTH_MY__SERVER_TEST_443"] {
        let tool = Tool::transload().args(&["inspect", "my-server.test:443/app:v1"]).args(&front.flags_only(HOST));
        tool.env(variable, &format!("carol:{PASSWORD}")).run().ok();
    }
}

/// A helper that Docker gave the credentials of `my-server.test:443` knows them by that name only.
#[test]
fn a_helper_is_asked_by_the_name_that_was_stored() {
    let registry = Registry::with_basic("carol");
    Image::single(532, &[900]).push_as(
        registry.addr(),
        "app",
        "v1",
        &[("authorization", &format!("Basic {}", auth()))],
    );
    let front = front(&registry);
    let helper = format!(
        "read -r server\n[ \"$server\" = my-server.test:443 ] || {{ echo 'credentials not found in native keychain'; exit 1; }}\n\
         echo '{{\"Username\":\"carol\",\"Secret\":\"{PASSWORD}\"}}'"
    );
    for config in [
        json!({"credsStore": "x", "auths": {"my-server.test:443": {}}}),
        json!({"credHelpers": {"my-server.test:443": "x"}}),
    ] {
        let tool = Tool::transload().args(&["inspect", "my-server.test/app:v1"]).args(&front.flags_only(HOST));
        tool.home().program("bin/docker-credential-x", &helper);
        let path = format!("{}:{}", tool.home().join("bin"), std::env::var("PATH").expect("a PATH"));
        tool.file(".docker/config.json", &config.to_string()).env("PATH", &path).run().ok();
    }
}

/// A layer that is in one repository of a registry is mounted into another one, however the registry is spelled.
#[test]
fn blobs_are_mounted_between_both_spellings() {
    let registry = Registry::start();
    let image = Image::single(533, &[900_000]);
    image.push(registry.addr(), "base", "v1");
    let front = front(&registry);
    let copy = ["copy", "my-server.test:443/base:v1", "my-server.test/team/app:v1"];
    let run = Tool::transload().args(&copy).args(&front.flags_only(HOST)).run().ok();
    image.assert_at(registry.addr(), "team/app", "v1");
    assert_eq!(front.count("PUT", "/blobs/uploads/"), 0, "{}", run.stderr);
    assert!(front.count("POST", "mount=") > 0, "{}", run.stderr);
}

/// A name with the port ends in `.azurecr.io:443`, and is an Azure registry all the same: its large blobs go in chunks.
#[test]
fn an_azure_registry_is_known_with_its_port() {
    let registry = Registry::start();
    let from = Registry::start();
    let image = Image::single(534, &[17 << 20]);
    image.push(from.addr(), "app", "v1");
    let front = Front::before(registry.addr()).acr(|_| {}).tls().start();
    let to = format!("{}:443/app:v1", front.host());
    let tool = Tool::transload().args(&["copy", &format!("{}/app:v1", from.addr()), &to]).args(&front.flags());
    tool.env("TRANSLOAD_AUTH_MYREGISTRY_AZURECR_IO", "admin:admin-secret").run().ok();
    image.assert_at(registry.addr(), "app", "v1");
    assert_eq!(front.count("PATCH", ""), 2, "chunks of 16 MiB");
}

/// containerd sends `ns=HOST:443` to its mirror where the image's reference has the port.
#[test]
fn the_proxy_knows_its_upstream_with_and_without_the_port() {
    let registry = Registry::start();
    let image = Image::single(535, &[900]);
    image.push(registry.addr(), "app", "v1");
    for name in [HOST, "my-server.test:443"] {
        let proxy = ProxyProcess::start(&format!("{name}={}", registry.addr()), &[]);
        for ns in [HOST, "my-server.test:443"] {
            let reply = http::get(proxy.addr(), &format!("/v2/app/manifests/v1?ns={ns}")).expect(200);
            assert_eq!(reply.body, image.bytes());
        }
        http::get(proxy.addr(), "/v2/app/manifests/v1?ns=my-server.test:8443").expect(404);
    }
}
