//! Proxies of companies.

use std::net::TcpListener;

use super::{NAME, Secure, failed_at_once};
use crate::support::certificates::{Authority, Special};
use crate::support::{Fault, ForwardProxy, Front, Image, Registry, Rule, SocksProxy, TempDir, Tool};

const TARGET: &str = "registry.example.test:443";

/// The proxy of a company has a private address and a name in private DNS. The user named it, so the rule for
/// addresses that a registry sends us to is not for it.
#[test]
fn a_proxy_may_be_at_any_address_and_in_any_variable() {
    let registry = Secure::start();
    let proxy = ForwardProxy::to(TARGET, registry.front.addr()).start();
    let port = proxy.addr().port();
    for (variable, value) in [
        ("HTTPS_PROXY", format!("http://localhost:{port}")),
        ("https_proxy", format!("http://127.0.0.1:{port}/")),
        ("ALL_PROXY", format!("localhost:{port}")),
        ("all_proxy", format!("127.0.0.1:{port}")),
    ] {
        let before = proxy.log().len();
        registry.inspect(&[(variable, &value)]).ok();
        assert_eq!(proxy.log()[before..], [format!("CONNECT {TARGET} HTTP/1.1")], "{variable}={value}");
    }
}

/// A password in the variable is percent-encoded. It reaches the proxy decoded, and no log or error.
#[test]
fn a_password_in_the_variable_is_decoded_and_never_shown() {
    let registry = Secure::start();
    let proxy = ForwardProxy::to(TARGET, registry.front.addr()).user("corp\\me:hunter2@#/x").start();
    let url = format!("http://corp%5Cme:hunter2%40%23%2Fx@{}", proxy.addr());
    let run = registry.inspect_with(&["-vv"], &[("HTTPS_PROXY", &url)]).ok();
    assert!(!run.stderr.contains("hunter2"), "{}", run.stderr);
    assert_eq!(proxy.log().len(), 1);

    let url = format!("http://corp%5Cme:hunter3@{}", proxy.addr());
    let run = failed_at_once(
        registry.inspect_with(&["-vv"], &[("HTTPS_PROXY", &url)]),
        &[&format!("the proxy {} (HTTPS_PROXY) does not accept the user name and password", proxy.url()), "(407)"],
    );
    assert!(!run.stderr.contains("hunter3") && !run.stderr.contains("is the registry up"), "{}", run.stderr);
    assert_eq!(proxy.log().len(), 2, "it is asked once");
}

/// A proxy that is itself asked by TLS, with a certificate of the company's authority.
#[test]
fn a_proxy_by_tls() {
    let registry = Secure::start();
    let authority = Authority::new("Proxy Authority");
    let certificate = authority.issue(&["localhost"], Special::default());
    let proxy = ForwardProxy::to(TARGET, registry.front.addr()).user("me:pw").tls(certificate.server()).start();
    let url = format!("https://me:pw@localhost:{}", proxy.addr().port());
    let files = TempDir::new();
    let file = files.write("proxy.pem", &authority.certificate);
    registry.inspect_with(&["--ca-file", &file], &[("HTTPS_PROXY", &url)]).ok();
    assert_eq!(proxy.log(), [format!("CONNECT {TARGET} HTTP/1.1")]);
    failed_at_once(
        registry.inspect(&[("HTTPS_PROXY", &url)]),
        &[
            "the TLS certificate of the proxy https://localhost:",
            "signed by an unknown authority, \"Proxy Authority\"",
            "HTTPS_PROXY",
        ],
    );
}

/// Plain http goes to the proxy as a request to be forwarded, with the proxy's own password.
#[test]
fn plain_http_is_forwarded() {
    let registry = Registry::start();
    Image::single(1, &[3000]).push(registry.addr(), "app", "v1");
    let proxy = ForwardProxy::to("plain.example.test:80", registry.addr()).user("me:pw").start();
    let url = format!("http://me:pw@{}", proxy.addr());
    let args = ["inspect", "plain.example.test/app:v1", "--insecure-registry", "plain.example.test"];
    Tool::transload().args(&args).env("ALL_PROXY", &url).run().ok();
    let log = proxy.log();
    assert!(log.iter().any(|line| line.starts_with("GET http://plain.example.test/v2/app/")), "{log:?}");

    let wrong = format!("http://me:wrong@{}", proxy.addr());
    let before = proxy.log().len();
    let run = Tool::transload().args(&args).env("HTTP_PROXY", &wrong).env("HTTPS_PROXY", &url).run();
    failed_at_once(run, &["(HTTP_PROXY) does not accept the user name and password in HTTP_PROXY (407)"]);
    assert_eq!(proxy.log()[before..].iter().filter(|line| !line.starts_with("CONNECT")).count(), 1);
}

/// A forwarded exchange that breaks off may be the proxy's fault as well as the registry's: the error names both.
#[test]
fn a_forwarded_exchange_that_breaks_off_names_the_proxy() {
    let registry = Registry::start();
    Image::single(1, &[900_000]).push(registry.addr(), "app", "v1");
    for fault in [Fault::LoseResponse, Fault::ResetAfter(100)] {
        let front = Front::before(registry.addr()).rule(Rule::on("GET", "/manifests/v1", fault)).start();
        let proxy = ForwardProxy::to("plain.example.test:80", front.addr()).start();
        let args =
            ["inspect", "plain.example.test/app:v1", "--insecure-registry", "plain.example.test", "--retries", "0"];
        let run = Tool::transload().args(&args).env("ALL_PROXY", &proxy.url()).run().exits(1);
        let named = format!("plain.example.test, through the proxy {} (ALL_PROXY): ", proxy.url());
        assert!(run.stderr.contains(&named), "{}", run.stderr);
    }
}

/// A registry that the user called insecure is not asked by http because a proxy refuses the tunnel for https: the
/// password would leave in clear.
#[test]
fn a_refused_tunnel_is_no_reason_for_http() {
    let registry = Registry::with_basic("me");
    let proxy = ForwardProxy::to(TARGET, registry.addr()).user("corp:pw").start();
    let url = format!("http://corp:wrong@{}", proxy.addr());
    let resolve = format!("{NAME}={}", registry.addr());
    let args = ["inspect", &format!("{NAME}/app:v1"), "--insecure-registry", NAME, "--resolve", &resolve];
    let user = format!("TRANSLOAD_AUTH_{}", NAME.replace('.', "_"));
    let run = Tool::transload().args(&args).env(&user, "me:sesame").env("HTTPS_PROXY", &url).run();
    failed_at_once(run, &["(HTTPS_PROXY) does not accept the user name and password in HTTPS_PROXY (407)"]);
    assert_eq!(registry.requests(), []);
}

/// SOCKS 5, as `ssh -D` offers it, with and without a password.
#[test]
fn socks_proxies_are_told_the_name() {
    let registry = Secure::start();
    let hosts = [(TARGET, registry.front.addr())];
    let open = SocksProxy::start(&hosts, None);
    let closed = SocksProxy::start(&hosts, Some(("me", "p@ss")));
    for (proxy, url) in [
        (&open, format!("socks5h://{}", open.addr())),
        // The name is not known here, so the proxy is asked for it.
        (&open, format!("socks5://{}", open.addr())),
        (&closed, format!("socks5h://me:p%40ss@localhost:{}", closed.addr().port())),
    ] {
        let before = proxy.log().len();
        registry.inspect(&[("HTTPS_PROXY", &url)]).ok();
        assert_eq!(proxy.log()[before..], [format!("name {TARGET}")], "{url}");
    }
}

/// With `socks5://` a name that is known here is resolved here, so the rule for addresses holds.
#[test]
fn socks5_resolves_names_here_and_socks5h_there() {
    let registry = Secure::start();
    let at = registry.front.addr();
    let address = at.to_string();
    let proxy = SocksProxy::start(&[(TARGET, at), (&address, at)], None);
    let resolve = format!("{NAME}={at}");
    for (scheme, asked) in [("socks5", format!("address {address}")), ("socks5h", format!("name {TARGET}"))] {
        let before = proxy.log().len();
        let url = format!("{scheme}://{}", proxy.addr());
        registry.inspect_with(&["--resolve", &resolve], &[("ALL_PROXY", &url)]).ok();
        assert_eq!(proxy.log()[before..], [asked], "{scheme}");
    }
}

/// Whatever is wrong with a proxy is said of the proxy, with its variable, and found out by one attempt.
#[test]
fn faults_of_a_proxy_are_named_and_not_tried_again() {
    let registry = Secure::start();
    let to = || ForwardProxy::to(TARGET, registry.front.addr());
    let page = "content-type: text/html; charset=utf-8\r\ncontent-length: 6\r\n\r\n<html>";
    let dead = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let answers: Vec<_> = [
        to().user("me:pw"),
        to().offers("Negotiate, NTLM TlRMTVNTUAAC"),
        to().refuses(&format!("403 Forbidden\r\n{page}")),
        to().refuses("502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"),
        to().refuses("405 No\r\ncontent-length: 0\r\n\r\n"),
        ForwardProxy::default(),
        to().offers("Negotiate, Basic realm=\"a, b\""),
    ]
    .into_iter()
    .map(ForwardProxy::start)
    .collect();
    let socks = [SocksProxy::start(&[], None), SocksProxy::start(&[], Some(("me", "pw")))];
    let url = |nth: usize| answers[nth].url();
    for (value, part) in [
        (url(0), "wants a user name and a password (407)"),
        (url(1), "wants a user by Negotiate, NTLM (407), but only Basic is supported"),
        (url(2), "answered 403 (text/html) to CONNECT registry.example.test:443"),
        (url(3), "answered 502 to CONNECT registry.example.test:443"),
        (url(4), "answered 405 to CONNECT registry.example.test:443"),
        (url(5), "answered 503 to CONNECT registry.example.test:443"),
        (url(6), "wants a user name and a password (407)"),
        (format!("http://{dead}"), "cannot be reached: Connection refused"),
        (format!("https://{dead}"), "cannot be reached: Connection refused"),
        (format!("socks5h://{dead}"), "cannot be reached: Connection refused"),
        ("http://proxy.invalid:3128".to_owned(), "has no address: "),
        (format!("http://{}", socks[0].addr()), "failed: "),
        (format!("https://{}", registry.behind.addr()), "does not speak TLS"),
        (
            format!("socks5h://{}", socks[0].addr()),
            "could not connect: host unreachable (SOCKS reply 4), when asked for registry.example.test:443",
        ),
        (format!("socks5h://{}", socks[1].addr()), "wants a user name and a password"),
        (format!("socks5://me:no@{}", socks[1].addr()), "does not accept the user name and password"),
    ] {
        let shown = value.replace("me:no@", "");
        let said = format!("the proxy {shown} (HTTPS_PROXY) {part}");
        let run = failed_at_once(registry.inspect(&[("HTTPS_PROXY", &value)]), &[&said, "hint: "]);
        assert!(
            run.stderr
                .lines()
                .any(|line| line.starts_with("hint: ") && line.contains("PROXY") || line.contains("local proxy")),
            "{}",
            run.stderr
        );
        assert!(
            !run.stderr.contains("is the registry up") && !run.stderr.contains("--insecure-registry"),
            "{}",
            run.stderr
        );
    }
    for proxy in &answers {
        assert!(proxy.log().len() <= 1, "asked once: {:?}", proxy.log());
    }
}

/// A variable that names no proxy is not left out: a request that should go through a proxy must not go past it.
#[test]
fn a_variable_that_names_no_proxy_is_an_error() {
    let registry = Secure::start();
    let resolve = format!("{NAME}={}", registry.front.addr());
    for value in ["ftp://hunter2@proxy:21", "http://me:hunter2#@proxy:3128", "socks4://proxy", "http://"] {
        let run = registry.inspect_with(&["--resolve", &resolve], &[("HTTPS_PROXY", value)]).exits(2);
        assert!(run.stderr.contains("HTTPS_PROXY does not name a proxy: "), "{}", run.stderr);
        assert!(!run.stderr.contains("hunter2"), "{}", run.stderr);
    }
    assert_eq!(registry.front.connections(), 0);
}

/// Every command goes the same way: a login, a mirror, a copy into a registry on this machine.
#[test]
fn all_commands_use_the_proxy() {
    let registry = Secure::start();
    let proxy = ForwardProxy::to(TARGET, registry.front.addr()).start();
    let to = Registry::start();
    let files = TempDir::new();
    let list = files.write("list.txt", format!("{NAME}/app:v1\n"));
    let to = to.addr().to_string();
    let copied = format!("{to}/copied:v1");
    let image = format!("{NAME}/app:v1");
    for args in [
        &["mirror", &list, "--to", &to][..],
        &["copy", &image, &copied],
        &["login", NAME, "-u", "me", "--password-stdin"],
    ] {
        let before = proxy.log().len();
        let tool = Tool::transload().args(args).args(&["--ca-file", &registry.ca_file()]);
        let run = tool.env("HTTPS_PROXY", &proxy.url()).env("HTTP_PROXY", &proxy.url()).stdin("pw").run();
        let log = proxy.log();
        assert!(
            log.len() > before && log.iter().all(|line| line.starts_with("CONNECT ")),
            "{args:?}: {log:?}\n{}",
            run.stderr
        );
        run.ok();
    }
}
