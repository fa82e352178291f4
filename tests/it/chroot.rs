//! The program in an empty root: what an image `FROM scratch` has to hold.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::support::{Front, Image, Registry, TempDir, Tool};

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
