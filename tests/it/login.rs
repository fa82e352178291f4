//! `transload login` and `logout`: tried first, kept where Docker keeps it, read by other tools.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use transload::demo::persona::{Account, AcrConfig, Grant};

use super::support::registry::PASSWORD;
use super::support::{ForwardProxy, Front, Image, Registry, Run, TempDir, Tool};

const PRINCIPAL: &str = "0f1e2d3c-1111-2222-3333-444455556666";
const SECRET: &str = "sp~Secret/+=%: x";

/// A user's home, where several programs run one after the other.
struct User {
    docker: TempDir,
}

impl User {
    fn new() -> Self {
        Self { docker: TempDir::new() }
    }

    fn transload(&self, args: &[&str]) -> Tool {
        let tool = Tool::transload().args(args).env("DOCKER_CONFIG", &self.docker.join(""));
        // No identity of the machine that runs the tests.
        tool.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")
    }

    fn login(&self, registry: &str, user: &str, password: &str, flags: &[String]) -> Run {
        let run = self.transload(&["login", registry, "--username", user, "--password-stdin"]);
        let run = run.args(flags).args(&["-vv"]).stdin(&format!("{password}\n")).run();
        assert!(!run.stderr.contains(password) && !run.stdout.contains(password), "{run:?}");
        run
    }

    fn config(&self) -> Value {
        serde_json::from_str(&self.docker.read("config.json")).expect("JSON")
    }

    #[track_caller]
    fn assert_nothing_kept(&self) {
        let left: Vec<_> = std::fs::read_dir(self.docker.path()).expect("a directory").flatten().collect();
        assert!(left.is_empty(), "kept: {left:?}");
    }

    /// What is kept is for its owner alone, and all of it is whole.
    #[track_caller]
    fn assert_private(&self) {
        let files = std::fs::read_dir(self.docker.path()).expect("a directory").flatten();
        let files: Vec<_> = files.map(|file| file.file_name()).collect();
        assert_eq!(files, ["config.json"], "no temporary file stays");
        let mode = std::fs::metadata(self.docker.join("config.json")).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    }

    /// Skopeo reads with what is kept here.
    fn skopeo(&self, args: &[&str]) -> Tool {
        Tool::new("skopeo").args(args).env("REGISTRY_AUTH_FILE", &self.docker.join("config.json"))
    }

    /// Skopeo meets a look-alike by its real name.
    fn skopeo_at(&self, front: &Front, image: &str) -> Run {
        let proxy = ForwardProxy::always_to(front.addr()).start();
        let tool = self.skopeo(&["inspect", "--raw", &format!("docker://{image}")]);
        tool.env("HTTPS_PROXY", &proxy.url()).env("SSL_CERT_FILE", &front.ca_file().expect("TLS")).run()
    }
}

/// The wrong password: one error, one hint, nothing kept.
#[track_caller]
fn assert_refused(run: Run, user: &User, registry: &str, name: &str) {
    let run = run.exits(1);
    let lines: Vec<&str> =
        run.stderr.lines().filter(|line| !line.contains("DEBUG") && !line.contains("INFO")).collect();
    assert_eq!(lines.len(), 2, "{}", run.stderr);
    assert!(lines[0].starts_with(&format!("error: cannot log in to {registry}: ")), "{}", run.stderr);
    assert!(lines[1].starts_with("hint: ") && lines[1].contains(name), "{}", run.stderr);
    assert!(!lines[1].contains("transload login"), "that is what was just done: {}", lines[1]);
    assert_eq!(run.stdout, "");
    user.assert_nothing_kept();
}

fn acr_before(behind: &Registry, adapt: impl FnOnce(&mut AcrConfig) + 'static) -> Front {
    Front::before(behind.addr()).acr(adapt).tls().start()
}

#[test]
fn a_registry_with_basic_auth() {
    let registry = Registry::with_basic("carol");
    let at = registry.addr().to_string();
    let image = Image::single(1, &[4000]);
    let user = User::new();
    assert_refused(user.login(&at, "carol", "hunter2", &[]), &user, &at, "'carol'");
    let run = user.login(&at, "carol", PASSWORD, &[]).ok();
    assert!(run.stderr.contains(&format!("logged in to {at} as carol\n")), "{}", run.stderr);
    assert!(run.stderr.contains("warning: the credentials are kept unencrypted in "), "{}", run.stderr);
    user.assert_private();

    // It pushes with what is kept; skopeo reads with the same; nobody reads without.
    let source = Registry::start();
    image.push(source.addr(), "app", "v1");
    let from = format!("{}/app:v1", source.addr());
    user.transload(&["copy", &from, &format!("{at}/app")]).run().ok();
    let skopeo = ["inspect", "--raw", "--tls-verify=false", &format!("docker://{at}/app:v1")];
    assert_eq!(user.skopeo(&skopeo).run().ok().stdout.as_bytes(), image.bytes());
    Tool::new("skopeo").args(&skopeo).run().exits(1);

    let run = user.transload(&["logout", &at]).run().ok();
    assert!(run.stderr.starts_with(&format!("removed the credentials of {at} from ")), "{}", run.stderr);
    assert_eq!(user.config()["auths"], json!({}));
    user.assert_private();
    user.transload(&["copy", &from, &format!("{at}/app"), "--force"]).run().exits(1);
    let again = user.transload(&["logout", &at]).run().ok();
    assert_eq!(again.stderr, format!("not logged in to {at}\n"));
}

#[test]
fn docker_hub() {
    let behind = Registry::start();
    let image = Image::single(1, &[4000]);
    image.push(behind.addr(), "alice/private", "latest");
    let hub = Front::before(behind.addr()).hub(|hub| hub.anonymous = vec![]).tls().start();
    let user = User::new();
    assert_refused(user.login("docker.io", "alice", "hunter2", &hub.flags()), &user, "docker.io", "'alice'");
    let run = user.login("index.docker.io", "alice", "wonderland", &hub.flags()).ok();
    assert!(run.stderr.contains("logged in to docker.io as alice\n"), "{}", run.stderr);
    user.assert_private();
    // Docker's own key, so that Docker finds it.
    let config = user.config();
    let keys: Vec<&String> = config["auths"].as_object().expect("entries").keys().collect();
    assert_eq!(keys, ["https://index.docker.io/v1/"]);
    assert_eq!(hub.hub().pulls().len(), 0, "a login is no pull");
    assert_eq!(user.skopeo_at(&hub, "docker.io/alice/private").ok().stdout.as_bytes(), image.bytes());
    let target = Registry::start();
    let to = target.addr().to_string();
    user.transload(&["copy", "alice/private", &to]).args(&hub.flags()).run().ok();
    image.assert_at(target.addr(), "alice/private", "latest");
    user.transload(&["logout", "docker.io"]).run().ok();
    assert_eq!(user.config()["auths"], json!({}));
}

/// Admin users, service principals and repository tokens, the last of which may be for one
/// repository only.
#[test]
fn azure_container_registry() {
    let source = Registry::start();
    let image = Image::single(1, &[4000]);
    image.push(source.addr(), "app", "v1");
    let from = format!("{}/app:v1", source.addr());
    for (name, password) in [("admin", "admin-secret"), (PRINCIPAL, SECRET), ("mirror-token", "t0ken-of-it")] {
        let (behind, user) = (Registry::start(), User::new());
        let acr = acr_before(&behind, |acr| {
            acr.abac = true;
            acr.accounts.push(Account::new(PRINCIPAL, SECRET, Grant::everything()));
            acr.accounts.push(Account::new("mirror-token", "t0ken-of-it", vec![Grant::new("app", "pull,push")]));
        });
        let refused = user.login(acr.host(), name, "hunter2", &acr.flags());
        assert_refused(refused, &user, acr.host(), &format!("'{name}'"));
        user.login(acr.host(), name, password, &acr.flags()).ok();
        user.assert_private();
        assert_eq!(acr.count("*", "/oauth2/exchange") as u64 + acr.acr().entra().tokens(), 0);
        user.transload(&["copy", &from, acr.host()]).args(&acr.flags()).run().ok();
        image.assert_at(behind.addr(), "app", "v1");
        let read = user.skopeo_at(&acr, "myregistry.azurecr.io/app:v1").ok();
        assert_eq!(read.stdout.as_bytes(), image.bytes());
    }
}

#[test]
fn the_azure_identity() {
    let (source, behind, user) = (Registry::start(), Registry::start(), User::new());
    let image = Image::single(1, &[4000]);
    image.push(source.addr(), "app", "v1");
    let acr = acr_before(&behind, |_| {});
    let azure = |tool: Tool, secret: &str| {
        let tool = tool.env("AZURE_TENANT_ID", "11111111-2222-3333-4444-555555555555");
        let tool = tool.env("AZURE_CLIENT_ID", "99999999-8888-7777-6666-555555555555");
        tool.env("AZURE_CLIENT_SECRET", secret).run()
    };
    let login = || user.transload(&["login", acr.host(), "--azure"]).args(&acr.flags());
    let run = azure(login(), "hunter2").exits(1);
    assert!(run.stderr.contains("AADSTS7000215") && run.stderr.contains("\nhint: "), "{}", run.stderr);
    assert!(!run.stderr.contains("hunter2"), "{}", run.stderr);
    user.assert_nothing_kept();
    // Nobody at all.
    let run = login().env("PATH", "/nonexistent").run().exits(1);
    assert!(run.stderr.contains("no identity was found") && run.stderr.contains("\nhint: run `az login`"), "{run:?}");
    user.assert_nothing_kept();

    let run = azure(login(), "entra-secret").ok();
    assert!(run.stderr.contains("logged in to myregistry.azurecr.io with Azure, for three hours\n"), "{}", run.stderr);
    user.assert_private();
    let config = user.config();
    let token = config["auths"]["myregistry.azurecr.io"]["identitytoken"].as_str().expect("a token");
    assert!(!run.stderr.contains(token) && !run.stdout.contains(token), "{run:?}");

    // Used without the identity, by transload and by skopeo.
    acr.reset_log();
    let from = format!("{}/app:v1", source.addr());
    user.transload(&["copy", &from, acr.host()]).args(&acr.flags()).run().ok();
    image.assert_at(behind.addr(), "app", "v1");
    assert_eq!(acr.count("*", "/oauth2/exchange"), 0);
    let read = user.skopeo_at(&acr, "myregistry.azurecr.io/app:v1").ok();
    assert_eq!(read.stdout.as_bytes(), image.bytes());
}

/// Keeps secrets in files beside itself, and notes how it was called.
const HELPER: &str = r#"
here=$(dirname "$0")
echo "$@" >> "$here/calls"
case $1 in
  store) cat > "$here/stored" ;;
  get) read -r server; grep -q "\"$server\"" "$here/stored" 2>/dev/null && exec cat "$here/stored"
       echo "credentials not found in native keychain"; exit 1 ;;
  erase) rm -f "$here/stored" ;;
esac"#;

#[test]
fn a_credential_helper() {
    for key in ["credsStore", "credHelpers"] {
        with_a_helper(key);
    }
}

fn with_a_helper(key: &str) {
    let (registry, user, bin) = (Registry::with_basic("carol"), User::new(), TempDir::new());
    let at = registry.addr().to_string();
    bin.program("docker-credential-keeper", HELPER);
    let helper = if key == "credsStore" { json!("keeper") } else { json!({&at: "keeper"}) };
    user.docker.write("config.json", json!({key: helper, "psFormat": "table"}).to_string());
    let path = format!("{}:{}", bin.join(""), std::env::var("PATH").expect("a PATH"));
    let transload = |args: &[&str]| user.transload(args).env("PATH", &path);
    let login = ["login", &at, "-u", "carol", "--password-stdin"];
    transload(&login).stdin("hunter2").run().exits(1);
    assert!(!bin.path().join("stored").exists(), "nothing is kept untried");

    let run = transload(&login).stdin(PASSWORD).run().ok();
    assert!(run.stderr.contains("the credentials are kept by docker-credential-keeper"), "{}", run.stderr);
    assert!(!run.stderr.contains("warning"), "{}", run.stderr);
    let stored: Value = serde_json::from_str(&bin.read("stored")).expect("JSON");
    assert_eq!(stored, json!({"ServerURL": at, "Username": "carol", "Secret": PASSWORD}));
    let config = user.config();
    assert_eq!(config, json!({key: helper, "psFormat": "table", "auths": {&at: {}}}), "as Docker leaves it");

    let image = Image::single(1, &[4000]);
    let source = Registry::start();
    image.push(source.addr(), "app", "v1");
    let from = format!("{}/app:v1", source.addr());
    transload(&["copy", &from, &format!("{at}/app")]).run().ok();
    // Skopeo asks the same helper; a credsStore is nothing to it.
    if key == "credHelpers" {
        let skopeo = ["inspect", "--raw", "--tls-verify=false", &format!("docker://{at}/app:v1")];
        assert_eq!(user.skopeo(&skopeo).env("PATH", &path).run().ok().stdout.as_bytes(), image.bytes());
    }

    let run = transload(&["logout", &at]).run().ok();
    assert!(run.stderr.contains("from docker-credential-keeper"), "{}", run.stderr);
    assert!(!bin.path().join("stored").exists());
    assert_eq!(user.config()["auths"], json!({}));
    transload(&["copy", &from, &format!("{at}/app"), "--force"]).run().exits(1);
    // Never as an argument, which other users can see.
    assert!(bin.read("calls").lines().all(|line| ["store", "get", "erase"].contains(&line)), "{}", bin.read("calls"));

    // A helper that isn't there is said, and the password not put elsewhere.
    user.docker.write("config.json", r#"{"credsStore": "missing"}"#);
    let run = transload(&login).stdin(PASSWORD).run().exits(1);
    assert!(run.stderr.contains("docker-credential-missing") && run.stderr.contains("hint: "), "{}", run.stderr);
    assert_eq!(user.config(), json!({"credsStore": "missing"}));
}

/// What stood in the file stays: other registries, other tools' settings, and the order.
#[test]
fn the_file_is_otherwise_left_as_it_is() {
    let (registry, user) = (Registry::with_basic("carol"), User::new());
    let at = registry.addr().to_string();
    let before = "{\n\t\"auths\": {\n\t\t\"ghcr.io\": {\n\t\t\t\"auth\": \"b3RoZXI6c2VjcmV0\"\n\t\t}\n\t},\n\t\"HttpHeaders\": {\n\t\t\"X\": \"y\"\n\t},\n\t\"currentContext\": \"default\"\n}";
    user.docker.write("config.json", before);
    user.login(&at, "carol", PASSWORD, &[]).ok();
    user.assert_private();
    assert_eq!(user.config()["auths"]["ghcr.io"]["auth"], "b3RoZXI6c2VjcmV0");
    user.transload(&["logout", &at]).run().ok();
    assert_eq!(user.docker.read("config.json").trim_end(), before);
    // One that isn't JSON is not overwritten.
    user.docker.write("config.json", "{ not JSON");
    let run = user.login(&at, "carol", PASSWORD, &[]).exits(1);
    assert!(run.stderr.contains("config.json") && run.stderr.contains("hint: "), "{}", run.stderr);
    assert_eq!(user.docker.read("config.json"), "{ not JSON");
}

#[test]
fn what_makes_no_sense_is_said_before_anything_is_asked() {
    let registry = Registry::with_basic("carol");
    let at = registry.addr().to_string();
    registry.reset_log();
    let user = User::new();
    let run = user.transload(&["login", &at]).run().exits(2);
    assert_eq!(
        run.stderr,
        "error: local: stdin is not a terminal, so nobody can be asked for a user and a password\n\
         hint: pass --username USER --password-stdin, or --azure\n"
    );
    let run = user.transload(&["login", &at, "-u", "carol", "--password-stdin"]).stdin("\n").run().exits(2);
    assert!(run.stderr.contains("the password is empty"), "{}", run.stderr);
    user.transload(&["login", &at, "--password-stdin"]).stdin("x").run().exits(2);
    user.transload(&["login", &at, "--password", "x"]).run().exits(2);
    let run = user.transload(&["login", &at, "--azure"]).run().exits(2);
    assert!(run.stderr.contains("is not an Azure Container Registry\nhint: "), "{}", run.stderr);
    let run = user.transload(&["login", "hello world", "-u", "c", "--password-stdin"]).stdin("x").run().exits(2);
    assert!(run.stderr.starts_with("error: "), "{}", run.stderr);
    assert_eq!(registry.requests(), []);
    user.assert_nothing_kept();
    // A registry that isn't there is no wrong password.
    let run = user.login("127.0.0.1:1", "carol", PASSWORD, &[]).exits(1);
    assert!(run.stderr.contains("error: cannot log in to 127.0.0.1:1: ") && run.stderr.contains("refused"), "{run:?}");
    user.assert_nothing_kept();
}

/// Asked for at a terminal; what is typed for the password isn't shown.
#[test]
fn a_prompt_on_a_terminal() {
    let (registry, user) = (Registry::with_basic("carol"), User::new());
    let at = registry.addr().to_string();
    // script(1) gives it one, whose name comes first.
    let line = format!("tty; exec {} login {at}", env!("CARGO_BIN_EXE_transload"));
    let mut child = Command::new("script")
        .args(["-q", "-e", "-c", &line, "/dev/null"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("DOCKER_CONFIG", user.docker.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script(1) is a part of every Debian");
    let (mut keys, mut screen) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let mut shown = String::new();
    let mut wait_for = |what: &str, shown: &mut String| {
        let mut byte = [0];
        while !shown.ends_with(what) {
            assert_eq!(screen.read(&mut byte).expect("a readable pipe"), 1, "no {what:?} in {shown:?}");
            shown.push(char::from(byte[0]));
        }
    };
    wait_for("\n", &mut shown);
    let terminal = shown.trim().to_owned();
    wait_for("Username: ", &mut shown);
    keys.write_all(b"carol\n").expect("a reader");
    wait_for("Password: ", &mut shown);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let stty = Command::new("stty").args(["-a", "-F", &terminal]).output().expect("stty runs");
        if String::from_utf8_lossy(&stty.stdout).contains(" -echo ") {
            break;
        }
        assert!(Instant::now() < deadline, "{terminal} still shows what is typed");
        std::thread::sleep(Duration::from_millis(5));
    }
    keys.write_all(format!("{PASSWORD}\n").as_bytes()).expect("a reader");
    wait_for(&format!("logged in to {at} as carol"), &mut shown);
    drop(keys);
    assert!(child.wait().expect("a child").success());
    assert!(!shown.contains(PASSWORD), "{shown}");
    user.assert_private();
}
