//! Certificates of servers: which are trusted, and what is said of the others.

use super::{NAME, failed_at_once};
use crate::support::certificates::{Authority, Identity, Special, TlsFront, self_signed};
use crate::support::{Image, Registry, Run, TempDir, Tool};

/// A registry that shows this certificate.
struct Shown {
    _behind: Registry,
    front: TlsFront,
    files: TempDir,
}

impl Shown {
    fn start(identity: &Identity) -> Self {
        let behind = Registry::start();
        Image::single(1, &[3000]).push(behind.addr(), "app", "v1");
        let front = TlsFront::start(identity.server(), behind.addr());
        Self { front, _behind: behind, files: TempDir::new() }
    }

    fn tool(&self, name: &str) -> Tool {
        let resolve = format!("{name}={}", self.front.addr());
        Tool::transload().args(&["inspect", &format!("{name}/app:v1"), "--resolve", &resolve])
    }

    fn trusting(&self, name: &str, pem: &str) -> Run {
        self.tool(name).args(&["--ca-file", &self.files.write("trusted.pem", pem)]).run()
    }
}

/// `openssl req -x509` makes a certificate that signs itself and may sign others. A user who trusts it means itself.
#[test]
fn a_self_signed_certificate_is_trusted_as_itself() {
    let authority = Special { authority: true, ..Special::default() };
    for special in [authority, Special::default()] {
        let identity = self_signed(&[NAME], special);
        let shown = Shown::start(&identity);
        shown.trusting(NAME, &identity.certificate).ok();
        let file = shown.files.write("own.pem", &identity.certificate);
        shown.tool(NAME).env("SSL_CERT_FILE", &file).run().ok();
        let directory = shown.files.join("");
        shown.tool(NAME).env("SSL_CERT_DIR", &directory).run().ok();
        let certs_d = format!(".config/containers/certs.d/{NAME}/ca.crt");
        shown.tool(NAME).file(&certs_d, &identity.certificate).run().ok();

        failed_at_once(
            shown.tool(NAME).run(),
            &["of registry.example.test is not trusted: it is self-signed", "--ca-file"],
        );
        let other = self_signed(&[NAME], special);
        failed_at_once(shown.trusting(NAME, &other.certificate), &["is not trusted: "]);
        failed_at_once(
            shown.trusting("other.example.test", &identity.certificate),
            &["the TLS certificate of other.example.test is for registry.example.test, not other.example.test"],
        );
    }
}

/// The certificate that a server shows is enough, also where another authority signed it.
#[test]
fn a_servers_certificate_is_trusted_without_its_issuer() {
    let identity = Authority::new("Unknown").issue(&[NAME], Special::default());
    let shown = Shown::start(&identity);
    shown.trusting(NAME, &identity.certificate).ok();
    failed_at_once(shown.trusting("a.test", &identity.certificate), &["is for registry.example.test, not a.test"]);
}

/// Dates count, however the certificate is trusted.
#[test]
fn certificates_that_are_not_valid_now_are_refused_with_the_day() {
    let authority = Authority::new("Example Authority");
    for (years, said) in [((2020, 2021), "expired on 2021-01-01"), ((2120, 2121), "is not valid before 2120-01-01")] {
        let special = Special { years: Some(years), ..Special::default() };
        let itself = Special { authority: true, ..special };
        for (identity, itself) in [(authority.issue(&[NAME], special), false), (self_signed(&[NAME], itself), true)] {
            let shown = Shown::start(&identity);
            let trusted = if itself { &identity.certificate } else { &authority.certificate };
            let said = format!("the TLS certificate of {NAME} {said}");
            failed_at_once(shown.trusting(NAME, trusted), &[&said, "clock"]);
        }
        // An authority is not known, but the certificate itself is.
        let leaf = Authority::new("Unknown").issue(&[NAME], special);
        let shown = Shown::start(&leaf);
        failed_at_once(shown.trusting(NAME, &leaf.certificate), &[said]);
    }
}

/// What is wrong, in words.
#[test]
fn errors_say_what_is_wrong_with_a_certificate() {
    let authority = Authority::new("Example Authority");
    let trusted = &authority.certificate;
    let shown = Shown::start(&authority.issue(&["a.test", "*.b.test", "10.0.0.1"], Special::default()));
    failed_at_once(shown.trusting(NAME, trusted), &["is for a.test, *.b.test, 10.0.0.1, not registry.example.test"]);
    shown.trusting("x.b.test", trusted).ok();

    let shown = Shown::start(&authority.issue(&[NAME], Special { without_names: true, ..Special::default() }));
    failed_at_once(shown.trusting(NAME, trusted), &["has no subject alternative name", "subjectAltName"]);

    let shown = Shown::start(&Authority::new("Intercepting Proxy CA").issue(&[NAME], Special::default()));
    let said = "is not trusted: it is signed by an unknown authority, \"Intercepting Proxy CA\"";
    failed_at_once(shown.trusting(NAME, trusted), &[said, "--ca-file", &format!("--insecure-registry {NAME}")]);
    shown.tool(NAME).args(&["--insecure-registry", NAME]).run().ok();

    let plain = Registry::start();
    let resolve = format!("{NAME}={}", plain.addr());
    let run = Tool::transload().args(&["inspect", &format!("{NAME}/app:v1"), "--resolve", &resolve]).run();
    failed_at_once(run, &["does not speak TLS, but perhaps plain HTTP", &format!("--insecure-registry {NAME}")]);
}

/// `SSL_CERT_DIR` has several directories, with files of any name; what is not a certificate is left out.
#[test]
fn directories_of_certificates() {
    let authority = Authority::new("Example Authority");
    let shown = Shown::start(&authority.issue(&[NAME], Special::default()));
    shown.files.write("one/README", "no certificate");
    shown.files.write("two/3513523f.0", &authority.certificate);
    std::fs::create_dir(shown.files.join("two/nested")).expect("a directory");
    std::os::unix::fs::symlink("nowhere", shown.files.join("two/dangling.pem")).expect("a link");
    let at = |name: &str| shown.files.join(name);
    let list = [at("one"), at("missing"), at("two")].join(":");
    shown.tool(NAME).env("SSL_CERT_DIR", &list).run().ok();
    let file = shown.files.write("other.pem", &Authority::new("Other").certificate);
    shown.tool(NAME).env("SSL_CERT_FILE", &file).env("SSL_CERT_DIR", &at("two")).run().ok();
    failed_at_once(shown.tool(NAME).env("SSL_CERT_FILE", &file).run(), &["signed by an unknown authority"]);
    for list in [at("missing"), at("one")] {
        failed_at_once(shown.tool(NAME).env("SSL_CERT_DIR", &list).run(), &["SSL_CERT_DIR names no directory", &list]);
    }
    // Set to nothing is not set.
    failed_at_once(shown.tool(NAME).env("SSL_CERT_DIR", "").env("SSL_CERT_FILE", "").run(), &["unknown authority"]);
}

/// A file that the user named, and that holds no certificates, is never left out silently.
#[test]
fn files_without_certificates_are_named() {
    let identity = self_signed(&[NAME], Special::default());
    let shown = Shown::start(&identity);
    let cut = &identity.certificate[..200];
    for (content, why) in [
        (Some(""), "it is empty"),
        (Some("hello"), "it holds no certificate in PEM"),
        (Some(identity.key.as_str()), "it holds no certificate, but PRIVATE KEY"),
        (Some(cut), "its PEM is damaged"),
        (None, "No such file or directory"),
    ] {
        let file = shown.files.join("named.pem");
        match content {
            Some(content) => drop(shown.files.write("named.pem", content)),
            None => std::fs::remove_file(&file).expect("a file"),
        }
        failed_at_once(shown.tool(NAME).args(&["--ca-file", &file]).run(), &[&file, why]);
        failed_at_once(shown.tool(NAME).env("SSL_CERT_FILE", &file).run(), &["SSL_CERT_FILE", &file, why]);
        if let Some(content) = content {
            let name = format!(".config/containers/certs.d/{NAME}/ca.crt");
            let run = shown.tool(NAME).file(&name, content).run();
            failed_at_once(run, &[&format!("certs.d/{NAME}/ca.crt cannot be used: {why}")]);
        }
    }
    let file = shown.files.write("key.pem", &identity.key);
    let run = Tool::transload().args(&["inspect", "oci:nothing", "--ca-file", &file]).run();
    failed_at_once(run, &[&file, "it holds no certificate"]);
}

/// Directories of Docker and of podman for one registry, by its name and port, and for no other.
#[test]
fn certs_d_is_for_one_registry() {
    let authority = Authority::new("Example Authority");
    let shown = Shown::start(&authority.issue(&[NAME, "127.0.0.1"], Special::default()));
    let name = |place: &str, host: &str| format!("{place}/certs.d/{host}/any.crt");
    for place in [".config/containers", ".config/docker", ".docker"] {
        shown.tool(NAME).file(&name(place, NAME), &authority.certificate).run().ok();
        let with_port = format!("{NAME}:443");
        shown.tool(NAME).file(&name(place, &with_port), &authority.certificate).run().ok();
        for other in ["other.example.test", "registry.example.test:5000", "example.test"] {
            let run = shown.tool(NAME).file(&name(place, other), &authority.certificate).run();
            failed_at_once(run, &["is not trusted"]);
        }
    }
    let at = shown.front.addr().to_string();
    let loopback = Tool::transload().args(&["inspect", &format!("{at}/app:v1")]);
    loopback.file(&name(".config/containers", &at), &authority.certificate).run().ok();
    let elsewhere = shown.tool(NAME);
    elsewhere.home().write(&format!("xdg/containers/certs.d/{NAME}/ca.crt"), &authority.certificate);
    let config = elsewhere.home().join("xdg");
    elsewhere.env("XDG_CONFIG_HOME", &config).run().ok();
}
