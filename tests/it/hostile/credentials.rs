//! Passwords at rest, and the programs that hold them.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::proxy_config::user;
use crate::support::process::RUN_TIMEOUT;
use crate::support::registry::PASSWORD;
use crate::support::{Image, Registry, TempDir, Tool, http};

/// A credential helper that keeps one password in a file beside it.
const KEEPER: &str = r#"cd "$(dirname "$0")"
case $1 in
store) cat > kept ;;
get) [ -f kept ] && cat kept || { echo 'credentials not found in native keychain'; exit 1; } ;;
erase) rm kept ;;
esac"#;

/// A child that sleeps for ten minutes and holds the helper's outputs, and its process id in a file.
const CHILD: &str = r#"here=$(dirname "$0")
sh -c 'echo $$ > "$0/child"; exec sleep 600' "$here" &
while [ ! -s "$here/child" ]; do :; done
"#;

/// `printf carol:sesame | base64`
const CAROL: (&str, &str) = ("authorization", "Basic Y2Fyb2w6c2VzYW1l");

/// A command with `helper` in its PATH as docker-credential-x.
fn with_helper(dir: &TempDir, helper: &str, config: &str, args: &[&str]) -> Tool {
    dir.program("docker-credential-x", helper);
    dir.write("docker/config.json", config);
    let path = format!("{}:{}", dir.join(""), std::env::var("PATH").expect("a PATH"));
    Tool::transload().args(args).env("PATH", &path).env("DOCKER_CONFIG", &dir.join("docker"))
}

/// Reads an image of a registry that asks for a password, which docker-credential-x has.
fn inspect(dir: &TempDir, registry: &Registry, helper: &str) -> Tool {
    with_helper(dir, helper, r#"{"credsStore": "x"}"#, &["inspect", &format!("{}/app:v1", registry.addr())])
}

/// Waits until the process whose id is in `file` has ended; a dead one has no command line.
#[track_caller]
fn assert_ends(dir: &TempDir, file: &str) {
    let line = Path::new("/proc").join(dir.read(file).trim()).join("cmdline");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !std::fs::read(&line).unwrap_or_default().is_empty() {
        assert!(Instant::now() < deadline, "{file}: process {} still runs", dir.read(file));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// config.json names a credential helper, but in another case than Docker's documentation. Go matches names in any case,
/// so Docker asks the helper. A reader that is strict misses it and writes the password as plain text.
#[test]
fn login_gives_the_password_to_the_helper_however_config_json_spells_its_key() {
    let registry = Registry::with_basic("carol");
    let at = registry.addr().to_string();
    for config in [
        r#"{"credsStore": "x"}"#.to_owned(),
        r#"{"credsstore": "x"}"#.to_owned(),
        r#"{"credSstore": "x"}"#.to_owned(),
        "{\"cred\u{17f}Store\": \"x\"}".to_owned(),
        format!(r#"{{"CREDHELPERS": {{"{at}": "x"}}}}"#),
        r#"{"credsStore": "", "credsSTORE": "x"}"#.to_owned(),
        r#"{"credsstore": "x", "Auths": {}, "auths": null}"#.to_owned(),
    ] {
        let dir = TempDir::new();
        let args = ["login", &at, "--username", "carol", "--password-stdin"];
        let run = with_helper(&dir, KEEPER, &config, &args).stdin(PASSWORD).run().ok();
        assert!(run.stderr.contains("docker-credential-x") && !run.stderr.contains("unencrypted"), "{run:?}");
        let file = dir.read("docker/config.json");
        assert!(!file.contains(PASSWORD) && !file.contains("Y2Fyb2w6c2VzYW1l"), "{config} became {file}");
        assert!(dir.read("kept").contains(PASSWORD), "the helper does not have it");
    }
}

/// A password stands in config.json under a key in another case, or under another spelling of the host. After `logout`
/// the user believes that it is gone.
#[test]
fn logout_removes_the_password_under_every_spelling() {
    let dir = TempDir::new();
    dir.write(
        "config.json",
        r#"{"Auths": {"My.Registry.io": {"Auth": "dTpodW50ZXIy"}, "other.io": {"auth": "dTpw"}},
            "AUTHS": {"https://MY.registry.io/v1/": {"Password": "hunter2", "Username": "u"}}, "credHelpers": {}}"#,
    );
    let run = Tool::transload().args(&["logout", "my.registry.io"]).env("DOCKER_CONFIG", &dir.join("")).run().ok();
    assert!(run.stderr.starts_with("removed the credentials of my.registry.io from "), "{run:?}");
    let file = dir.read("config.json");
    assert!(!file.contains("dTpodW50ZXIy") && !file.contains("hunter2") && !file.contains("egistry.io"), "{file}");
    assert!(file.contains("\"Auths\"") && file.contains("\"AUTHS\"") && file.contains("other.io"), "{file}");
}

/// Entries of podman's and Docker's files whose fields are in another case are as good as others to Go programs.
#[test]
fn credentials_are_found_however_their_keys_are_spelled() {
    let registry = Registry::with_basic("carol");
    let at = registry.addr().to_string();
    Image::single(1, &[100]).push_as(registry.addr(), "app", "v1", &[CAROL]);
    for config in [
        format!(r#"{{"Auths": {{"{at}": {{"Auth": "Y2Fyb2w6c2VzYW1l"}}}}}}"#),
        format!(r#"{{"auths": {{"{at}": {{"USERNAME": "carol", "PassWord": "{PASSWORD}"}}}}}}"#),
        format!("{{\"auth\u{17f}\": {{\"{at}\": {{\"auth\": \"Y2Fyb2w6c2VzYW1l\"}}}}}}"),
    ] {
        for place in ["docker/config.json", "containers/auth.json", "secret/.dockerconfigjson"] {
            let dir = TempDir::new();
            let file = dir.write(place, &config);
            let tool = Tool::transload().args(&["inspect", &format!("{at}/app:v1")]);
            let tool = match place {
                "docker/config.json" => tool.env("DOCKER_CONFIG", &dir.join("docker")),
                "containers/auth.json" => tool.env("XDG_RUNTIME_DIR", &dir.join("")),
                _ => tool.args(&["--auth-file", &file]),
            };
            tool.run().ok();
        }
    }
}

/// A helper starts a child and hangs. The user presses Ctrl-C, or ten seconds pass: a child that is left would keep a
/// keychain, a pipe or a network connection for ever.
#[test]
fn children_of_a_helper_end_when_the_run_is_interrupted() {
    let dir = TempDir::new();
    let hangs = format!("{CHILD}echo $$ > \"$here/helper\"; exec sleep 600");
    let registry = Registry::with_basic("carol");
    let process = inspect(&dir, &registry, &hangs).spawn();
    let deadline = Instant::now() + RUN_TIMEOUT;
    while !dir.path().join("helper").exists() || dir.read("helper").is_empty() {
        assert!(Instant::now() < deadline, "the helper never ran");
        std::thread::sleep(Duration::from_millis(10));
    }
    process.interrupt();
    process.finish(RUN_TIMEOUT).exits(130);
    assert_ends(&dir, "helper");
    assert_ends(&dir, "child");
}

/// The same at the end of the ten seconds that a helper has.
#[test]
fn children_of_a_helper_end_at_its_time_limit() {
    let dir = TempDir::new();
    let hangs = format!("{CHILD}echo $$ > \"$here/helper\"; exec sleep 600");
    let run = inspect(&dir, &Registry::with_basic("carol"), &hangs).run().exits(1);
    assert!(run.stderr.contains("docker-credential-x") && run.stderr.contains("gave no answer in 10.0 s"), "{run:?}");
    assert_ends(&dir, "helper");
    assert_ends(&dir, "child");
}

/// A helper answers and ends, but a child of it keeps the pipe open: a reader that waits for the pipe's end hangs.
#[test]
fn a_child_that_holds_the_pipe_of_a_helper_delays_no_answer() {
    let registry = Registry::with_basic("carol");
    Image::single(1, &[100]).push_as(registry.addr(), "app", "v1", &[CAROL]);
    let dir = TempDir::new();
    let answers = format!(r#"{CHILD}printf '{{"Username":"carol","Secret":"{PASSWORD}"}}'"#);
    let run = inspect(&dir, &registry, &answers).run().ok();
    assert!(run.took < Duration::from_secs(8), "{run:?}");
    assert_ends(&dir, "child");
}

/// A helper prints without an end, to either output: a reader without a limit would use all memory.
#[test]
fn the_output_of_a_helper_is_bounded() {
    for to in ["", ">&2"] {
        let dir = TempDir::new();
        let floods = format!("echo $$ > \"$(dirname \"$0\")/helper\"; exec cat /dev/zero {to}");
        let run = inspect(&dir, &Registry::with_basic("carol"), &floods).run().exits(1);
        assert!(run.stderr.contains("it prints more than 1048576 bytes"), "{run:?}");
        assert_ends(&dir, "helper");
    }
}

/// A `login` was killed while it wrote (kill -9, a power cut): its temporary file holds the password, and nobody knows of it.
/// Each later run that reads or writes config.json removes it; one of a run that may still live stays.
#[test]
fn a_password_that_a_killed_login_left_is_removed_by_the_next_run() {
    let registry = Registry::with_basic("carol");
    let at = registry.addr().to_string();
    let reference = format!("{at}/app:v1");
    for args in [&["logout", &at][..], &["inspect", &reference], &["login", &at, "-u", "carol", "--password-stdin"]] {
        let dir = TempDir::new();
        let config = dir.write("config.json", r#"{"auths": {"z.io": {"auth": "dTpw"}}}"#);
        let left = dir.write(".config.json.transload-0123456789abcdef.tmp", "hunter2");
        // No process has this number: it is above the kernel's limit.
        let older = dir.write(".transload-2000000000.tmp", "hunter2");
        let (live, foreign) = (dir.write(".transload-1.tmp", "alive"), dir.write("notes.tmp", "not ours"));
        let lock =
            std::fs::File::create(dir.path().join(".config.json.transload-aaaaaaaaaaaaaaaa.tmp")).expect("a file");
        lock.lock().expect("a lock");
        Tool::transload().args(args).env("DOCKER_CONFIG", &dir.join("")).stdin(PASSWORD).run();
        for path in [&left, &older] {
            assert!(!Path::new(path).exists(), "{args:?} left {path}");
        }
        for path in [&config, &live, &foreign, &dir.join(".config.json.transload-aaaaaaaaaaaaaaaa.tmp")] {
            assert!(Path::new(path).exists(), "{args:?} removed {path}");
        }
    }
}

/// The same for reports: a run that is killed again and again must not fill the volume.
#[test]
fn a_report_that_a_killed_run_left_is_removed_by_the_next_run() {
    let (source, to) = (Registry::start(), Registry::start());
    Image::single(1, &[100]).push(source.addr(), "app", "v1");
    let dir = TempDir::new();
    let list = dir.write("images.txt", format!("{}/app:v1\n", source.addr()));
    let report = dir.join("reports/report.json");
    let left = dir.write("reports/.report.json.transload-0123456789abcdef.tmp", "{");
    Tool::transload().args(&["mirror", &list, "--to", &to.addr().to_string(), "--report", &report]).run().ok();
    assert!(!Path::new(&left).exists());
    let names: Vec<_> = std::fs::read_dir(dir.join("reports")).expect("a directory").flatten().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

/// bcrypt ignores all bytes of a password after the 72nd, and reads `secret`, NUL, `secret` as `secret`. A client that
/// knows a prefix of a long password, or adds to a known one, presents another password than the user's.
#[test]
fn a_password_that_bcrypt_would_cut_is_refused() {
    let longest = "s".repeat(72);
    let dir = TempDir::new();
    dir.write("users", user("anna", &longest) + &user("bert", "secret"));
    let config = "listen: [{ http: 127.0.0.1:0, users-file: users }]\ncache: { dir: cache, keep-free: 0 }\n\
                  upstreams: [{ name: docker.io, tiers: [\"127.0.0.1:1\"] }]\n";
    let proxy = Tool::transload().args(&["proxy", "--config", &dir.write("proxy.yaml", config)]).spawn();
    let line = proxy.stderr.wait_line("proxying ", RUN_TIMEOUT);
    let at = line.split(" on http://").nth(1).and_then(|at| at.parse().ok()).expect("an address");
    let status = |pair: String| {
        let basic = format!("Basic {}", base64(pair.as_bytes()));
        http::send(at, "GET", "/v2/", &[("authorization", &basic)], &[]).status
    };
    assert_eq!(status(format!("anna:{longest}")), 200);
    assert_eq!(status("bert:secret".to_owned()), 200);
    for pair in [
        format!("anna:{longest}x"),
        format!("anna:{longest}{longest}"),
        format!("anna:{longest}\0"),
        "bert:secret\0secret".to_owned(),
        "bert:secret\0".to_owned(),
    ] {
        assert_eq!(status(pair.clone()), 401, "{pair:?}");
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
