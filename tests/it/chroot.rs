//! The program in an empty root: what an image `FROM scratch` has to hold.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::support::process::RUN_TIMEOUT;
use super::support::registry::PASSWORD;
use super::support::{Front, Image, Process, Registry, TempDir, Tool};

/// The files that a program needs: itself and, if it's linked to any, its libraries.
fn needed(program: &str) -> Vec<String> {
    let listed = Command::new("ldd").arg(program).output().expect("ldd runs");
    let text = String::from_utf8_lossy(&listed.stdout);
    // `libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`.
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(str::to_owned).filter(|path| path != program).collect()
}

/// A root with this program and these files at their places.
fn root(program: &str, files: &[String]) -> TempDir {
    let root = TempDir::new();
    for (from, to) in
        files.iter().map(|file| (file.as_str(), file.trim_start_matches('/'))).chain([(program, "transload")])
    {
        let to = root.path().join(to);
        std::fs::create_dir_all(to.parent().expect("a parent")).expect("made");
        std::fs::copy(from, to).expect("copied");
    }
    root
}

/// A copy from one registry to another, through TLS and with a login, by a program that sees
/// nothing but `root`.
fn copies_in(root: &TempDir) {
    let (origin, behind) = (Registry::start(), Registry::start());
    let image = Image::index(3, 2, &[40_000]);
    image.push(origin.addr(), "library/app", "v1");
    let acr = Front::before(behind.addr()).acr(|_| {}).tls().start();
    let auth = json!({ "auths": { "myregistry.azurecr.io": { "username": "admin", "password": "admin-secret" } } });
    root.write("config/auth.json", auth.to_string());
    root.write("config/ca.pem", std::fs::read(acr.ca_file().expect("TLS")).expect("a certificate"));
    // A name to look up: what a libc without its plug-ins may not be able to.
    root.write("etc/hosts", "127.0.0.1 origin.test\n");
    let host = format!("origin.test:{}", origin.addr().port());
    let source = format!("{host}/library/app:v1");
    let resolve: Vec<String> = acr.flags().into_iter().skip(2).collect();
    // Kubernetes' own way: nobody in particular, no HOME, nothing to write to.
    let args =
        ["copy", &source, "myregistry.azurecr.io", "--auth-file", "/config/auth.json", "--ca-file", "/config/ca.pem"];
    let args = [&args[..], &["--insecure-registry", &host]].concat();
    let chroot = ["--root", root.path().to_str().expect("UTF-8"), "/transload"];
    let run = Tool::new("unshare").args(&["--user", "--map-root-user"]).args(&chroot).args(&args).args(&resolve);
    let run = run.without("HOME").without("DOCKER_CONFIG").without("TMPDIR").run().ok();
    assert!(!run.stderr.contains("WARN"), "{run:?}");
    image.assert_at(behind.addr(), "library/app", "v1");
}

#[test]
fn it_needs_nothing_but_itself_and_its_libraries() {
    let program = env!("CARGO_BIN_EXE_transload");
    let libraries = needed(program);
    let names: Vec<&str> = libraries.iter().filter_map(|path| path.rsplit('/').next()).collect();
    // glibc's own, and what GCC's distroless image has.
    let known = ["libc.so", "libm.so", "libgcc_s.so", "libdl.so", "libpthread.so", "librt.so", "ld-linux"];
    assert!(names.iter().all(|name| known.iter().any(|known| name.starts_with(known))), "{names:?}");
    copies_in(&root(program, &libraries));
}

/// What `deploy/build.sh` has built, if it has; `TRANSLOAD_STATIC`, where it must have.
#[test]
#[expect(clippy::print_stderr, reason = "a test that was not run must say so")]
fn a_static_one_needs_nothing_but_itself() {
    let usual = concat!(env!("CARGO_MANIFEST_DIR"), "/target/x86_64-unknown-linux-musl/release/transload");
    let program = match std::env::var("TRANSLOAD_STATIC") {
        Ok(named) => named,
        Err(_) if Path::new(usual).exists() => usual.to_owned(),
        Err(_) => return eprintln!("not run: there is no {usual}; deploy/build.sh builds it"),
    };
    assert_eq!(needed(&program), Vec::<String>::new(), "{program} is linked to libraries");
    copies_in(&root(&program, &[]));
}

/// A command in a root that holds the program and nothing else: no certificates, no HOME. What is temporary is in `/`.
fn inside(root: &TempDir, args: &[&str]) -> Tool {
    let chroot = ["--user", "--map-root-user", "--root", root.path().to_str().expect("UTF-8"), "/transload"];
    let tool = Tool::new("unshare").args(&chroot).args(args);
    let tool = tool.without("HOME").without("XDG_RUNTIME_DIR").env("TMPDIR", "/").env("DOCKER_CONFIG", "/config");
    // No identity of the machine that runs the tests.
    tool.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")
}

/// The address behind `before` in what a program says when it listens.
#[track_caller]
fn address(process: &Process, before: &str) -> String {
    let line = process.stderr.wait_line(before, RUN_TIMEOUT);
    line.split("http://").nth(1).expect("an address").trim().to_owned()
}

/// All commands that do something by themselves: `proxy` and `proxy ls`, but not `k8s`.
fn all(command: &clap::Command, name: &str, into: &mut Vec<String>) {
    if !command.is_subcommand_required_set() && !name.is_empty() {
        into.push(name.to_owned());
    }
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        all(sub, format!("{name} {}", sub.get_name()).trim(), into);
    }
}

/// Each command, not only those that somebody thought of: an HTTP client that is built before it's known whether TLS is
/// needed fails where there are no certificates.
#[test]
fn every_command_runs_in_an_empty_root() {
    let program = env!("CARGO_BIN_EXE_transload");
    let root = root(program, &needed(program));
    let (source, other, asks) = (Registry::start(), Registry::start(), Registry::with_basic("carol"));
    Image::single(1, &[100]).push(source.addr(), "app", "v1");
    Image::single(2, &[100]).push(source.addr(), "library/app", "v1");
    let [from, to, login] = [&source, &other, &asks].map(|registry| registry.addr().to_string());
    let (image, target) = (format!("{from}/app:v1"), format!("{to}/copy/app:v1"));
    root.write("list.txt", format!("{image}\n"));
    root.write("hub.txt", "library/app:v1\n");
    let proxy_yaml = format!(
        "listen: [{{ http: 127.0.0.1:0 }}]\ncache: {{ dir: /c }}\nupstreams: [{{ name: docker.io, tiers: [\"{from}\"] }}]\n"
    );
    root.write("proxy.yaml", proxy_yaml);
    let upstream = format!("docker.io={from}");
    let flags = ["--listen", "127.0.0.1:0", "--listen-admin", "127.0.0.1:0", "--keep-free", "0"];
    let proxy = inside(&root, &[&["proxy", "--upstream", &upstream, "--cache", "/cache"][..], &flags].concat()).spawn();
    let (at, admin) = (address(&proxy, "proxying "), address(&proxy, "--admin on "));
    inside(&root, &["copy", &image, "oci:/layout:v1"]).run().ok();
    let serve = inside(&root, &["serve", "/layout", "--listen", "127.0.0.1:0"]).spawn();
    let served = address(&serve, "serving ");

    let password = format!("{PASSWORD}\n");
    let mut ran = vec!["proxy", "serve"];
    for (name, args) in [
        ("copy", vec![&image[..], &target]),
        ("mirror", vec!["/list.txt", "--to", &to, "--report", "/report.json"]),
        ("mirror check", vec!["/list.txt", "--to", &to]),
        ("mirror schema", vec![]),
        ("diff", vec!["/list.txt", "--to", &to]),
        ("login", vec![&login, "--username", "carol", "--password-stdin"]),
        ("k8s secret", vec!["--registry", &login, "--name", "s"]),
        ("k8s pod", vec![&image]),
        ("k8s hosts", vec!["--proxy", "http://10.0.0.50:5000"]),
        ("logout", vec![&login]),
        ("inspect", vec![&image]),
        ("tags", vec![image.split(":v1").next().expect("a repository")]),
        ("proxy check", vec!["/proxy.yaml"]),
        ("proxy schema", vec![]),
        ("proxy warm", vec!["/hub.txt", "--proxy", &at]),
        ("proxy ls", vec!["--admin", &admin]),
        ("proxy verify", vec!["--admin", &admin]),
        ("proxy gc", vec!["--admin", &admin]),
        ("proxy rm", vec!["--admin", &admin, "docker.io/library/app:v1"]),
        (
            "node install-mirror",
            vec!["--certs-dir", "/certs.d", "--proxy", "http://10.0.0.50:5000", "--registry", "docker.io"],
        ),
        ("demo", vec![]),
        ("completions", vec!["bash"]),
        ("man", vec![]),
    ] {
        let args = [name.split(' ').collect(), args].concat();
        let run = inside(&root, &args).stdin(&password).run();
        assert_eq!(run.code, 0, "{args:?}: {run:?}");
        assert!(!run.stderr.contains("WARN") || name == "demo", "{args:?}: {run:?}");
        ran.push(name);
    }
    // What else asks a server that speaks no TLS.
    inside(&root, &["inspect", &format!("{served}/layout:v1")]).run();
    for args in [["proxy", "ls", "--cache", "/cache"], ["proxy", "verify", "--cache", "/cache"]] {
        inside(&root, &args).run().ok();
    }
    let mut commands = Vec::new();
    all(&transload::cli::command(), "", &mut commands);
    commands.retain(|name| !ran.contains(&name.as_str()));
    assert_eq!(commands, Vec::<String>::new(), "these were not run");
}
