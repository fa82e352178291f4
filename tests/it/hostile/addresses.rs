//! Names and URLs that lead to private addresses or to another owner's token endpoint.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::super::support::{Fault, Front, Image, Registry, Rule, Tool};

const PUBLIC: &str = "registry.example";

/// A registry on the internet redirects a blob to an address that is not of the internet, in each of its forms.
#[test]
fn no_form_of_a_private_address_is_followed() {
    let behind = Registry::start();
    let image = Image::single(1, &[3000]);
    image.push(behind.addr(), "a/b", "v1");
    let front = Front::before(behind.addr()).name(PUBLIC).tls().start();
    let to = Registry::start();
    let port = front.addr().port();
    for host in [
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0",
        "127.0.0.1.",
        "localhost.",
        "LOCALHOST",
        "%6cocalhost",
        "169.254.169.254.",
        "168.63.129.16",
        "192.0.0.8",
        "198.18.0.1",
        "240.0.0.1",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b:1::127.0.0.1]",
        "[2002:7f00:1::1]",
        "[2001:0:4136:e378::1]",
        "[fec0::1]",
        "[100::1]",
    ] {
        front.clear_rules();
        front.reset_log();
        let target = format!("https://{host}:{port}/v2/a/b/blobs/{}", image.blobs[1].digest);
        front.add(Rule::on("GET", "/blobs/", Fault::Redirect(target)).host(PUBLIC));
        let args = ["copy", &format!("{PUBLIC}/a/b:v1"), &to.addr().to_string()];
        let run = Tool::transload().args(&args).args(&front.flags_only(PUBLIC)).run().exits(1);
        assert!(run.stderr.contains("private address"), "{host}: {}", run.stderr);
        assert!(front.log().iter().all(|seen| seen.host == PUBLIC), "{host}: {:?}", front.log());
    }
}

/// A registry names a token endpoint of another customer of the same cloud. The names differ below a suffix that all
/// customers share, so the password must not go there.
#[test]
fn a_token_endpoint_on_a_shared_suffix_is_another_site() {
    for (own, other) in [
        ("a.cloudapp.azure.com", "b.cloudapp.azure.com"),
        ("a.westeurope.cloudapp.azure.com", "b.westeurope.cloudapp.azure.com"),
        ("a.azurewebsites.net", "b.azurewebsites.net"),
        ("a.github.io", "b.github.io"),
        ("a.co.uk", "b.co.uk"),
        ("registry.example", "auth.example"),
    ] {
        let behind = Registry::start();
        let challenge = format!(r#"Bearer realm="https://{other}/token",service="x""#);
        let rule = Rule::on("*", "/v2/", Fault::Demand(challenge.leak())).host(own);
        let front = Front::before(behind.addr()).name(own).name(other).tls().rule(rule).start();
        let config = json!({"auths": {own: {"auth": STANDARD.encode("mirror:sesame")}}}).to_string();
        let tool = Tool::transload().args(&["tags", &format!("{own}/a/b")]).args(&front.flags());
        let run = tool.file(".docker/config.json", &config).run().exits(1);
        assert!(run.stderr.contains(&format!("sent to {other}, which is another site")), "{}", run.stderr);
        assert!(front.struck() > 0 && front.log().iter().all(|seen| seen.host == own), "{:?}", front.log());
    }
}
