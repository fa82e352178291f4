//! Stores credentials for later runs, in Docker's places: `login` and `logout`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize as _;
use serde_json::ser::PrettyFormatter;
use serde_json::{Value, json};

use super::file::{AUTHS, AuthFile, MAX_AUTH_FILE, encode, malformed, scope};
use super::go_json::{Members, fold};
use super::helper::Helpers;
use super::{Credential, DOCKER_HUB_KEY, Secret, Settings};
use crate::atomic_file;
use crate::error::{Error, Kind, Result, Side};
use crate::reference::{DOCKER_HUB, registry_as_written, registry_name};
use crate::regular_file::{self, Links};

/// The user name for an identity token, as Azure's CLI writes it: podman skips an entry whose `auth` has no user.
/// <https://learn.microsoft.com/azure/container-registry/container-registry-authentication>
const TOKEN_USER: &str = "00000000-0000-0000-0000-000000000000";

/// The place of stored credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorageLocation {
    /// In `docker-credential-{0}`.
    Helper(String),
    /// In this file, in plain text.
    File(PathBuf),
}

impl fmt::Display for StorageLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Helper(name) => write!(f, "docker-credential-{name}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Stores `credential` for `registry`: in the credential helper that Docker's `config.json` names for the registry, or
/// else in that file.
///
/// The file is replaced atomically, and its other content stays.
///
/// # Errors
/// If the file cannot be read, parsed or written, or if the helper fails.
pub async fn store(settings: &Settings, registry: &str, credential: &Credential) -> Result<StorageLocation> {
    let written = registry_as_written(registry)?;
    let registry = registry_name(registry)?;
    let doing = |error: Error| error.doing(format!("store the credentials of {registry}")).on(Side::Local);
    let mut config = Config::open(settings).map_err(doing)?;
    // Docker finds an entry by the name in an image's reference.
    let key = if registry == DOCKER_HUB { DOCKER_HUB_KEY } else { &written };
    let (entry, stored) = match config.parsed.helper(&registry) {
        Some(name) => {
            let (username, secret) = match credential {
                Credential::Basic { username, password } => (username.as_str(), password),
                Credential::RefreshToken(token) => ("<token>", token),
                Credential::Bearer(_) => {
                    let what = format!("docker-credential-{name} can't keep a registry token");
                    return Err(doing(Error::new(Kind::Unsupported, what)));
                }
            };
            let helpers = Helpers::new(settings.helper_path.clone());
            helpers.store(name, key, username, secret.reveal(), &config.path).await.map_err(doing)?;
            // Docker leaves the bare name in the file; an old password must not stay.
            (json!({}), StorageLocation::Helper(name.to_owned()))
        }
        None => (entry(credential), StorageLocation::File(config.path.clone())),
    };
    config.replace(&registry, Some((key, entry)));
    config.save().map_err(doing)?;
    Ok(stored)
}

/// Deletes the credentials for `registry`. Returns the places that had some.
///
/// # Errors
/// As [`store`].
pub async fn erase(settings: &Settings, registry: &str) -> Result<Vec<StorageLocation>> {
    let registry = registry_name(registry)?;
    let doing = |error: Error| error.doing(format!("remove the credentials of {registry}")).on(Side::Local);
    let mut config = Config::open(settings).map_err(doing)?;
    let mut erased = Vec::new();
    if let Some(name) = config.parsed.helper(&registry) {
        let helpers = Helpers::new(settings.helper_path.clone());
        for server in config.parsed.servers(&registry) {
            if helpers.erase(name, server, &config.path).await.map_err(doing)? {
                erased = vec![StorageLocation::Helper(name.to_owned())];
            }
        }
    }
    let held_secret = config.holds_something(&registry);
    if config.replace(&registry, None) {
        config.save().map_err(doing)?;
        if held_secret {
            erased.push(StorageLocation::File(config.path.clone()));
        }
    }
    Ok(erased)
}

/// A file with this one credential, in the format of Kubernetes' pull secrets (`.dockerconfigjson`), which
/// `--auth-file` reads.
///
/// The file has the user and password in addition to `auth`: the kubelet reads either, other programs only one of them.
pub fn pull_secret(registry: &str, username: &str, password: &Secret) -> String {
    let key = if registry == DOCKER_HUB { DOCKER_HUB_KEY } else { registry };
    let password = password.reveal();
    let entry = json!({ "username": username, "password": password, "auth": encode(username, password) });
    json!({ "auths": { key: entry } }).to_string()
}

/// Docker's `config.json` during a change.
struct Config {
    path: PathBuf,
    parsed: AuthFile,
    whole: Members,
}

impl Config {
    fn open(settings: &Settings) -> Result<Self> {
        let Some(path) = settings.docker_config.clone() else {
            return Err(Error::new(Kind::Usage, "no directory for Docker's config.json is set")
                .hint("set DOCKER_CONFIG to a directory, or HOME"));
        };
        // A symbolic link, as dotfile managers make them, stays; its target is replaced.
        let path = std::fs::canonicalize(&path).unwrap_or(path);
        let bytes = match regular_file::read(&path, Links::Follow, MAX_AUTH_FILE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io(format!("read {}", path.display()), &error)),
        };
        let parsed = AuthFile::parse(&path, &bytes)?;
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let whole = match text.trim_ascii() {
            b"" => Members::default(),
            text => serde_json::from_slice(text).map_err(|error| malformed(&path, &error))?,
        };
        Ok(Self { path, parsed, whole })
    }

    /// Whether an entry for the whole registry holds more than the name that a helper leaves.
    fn holds_something(&self, registry: &str) -> bool {
        let entries = self.whole.matching(AUTHS).filter_map(Value::as_object).flatten();
        let mut own = entries.filter(|(key, _)| scope(key) == registry).filter_map(|(_, entry)| entry.as_object());
        own.any(|fields| !fields.is_empty())
    }

    /// Replaces all entries for the whole registry with `new`. Returns whether that changed anything.
    fn replace(&mut self, registry: &str, new: Option<(&str, Value)>) -> bool {
        let mut changed = false;
        let mut last = self.whole.0.iter().rposition(|(name, _)| fold(name) == AUTHS);
        if new.is_some() && last.is_none() {
            last = Some(self.whole.0.len());
            self.whole.0.push((AUTHS.to_owned(), Value::Null));
        }
        for (at, (_, value)) in self.whole.0.iter_mut().enumerate().filter(|(_, (name, _))| fold(name) == AUTHS) {
            // The last of several equal members counts.
            let new = new.as_ref().filter(|_| Some(at) == last);
            if new.is_some() && value.is_null() {
                *value = json!({});
            }
            let Some(auths) = value.as_object_mut() else { continue };
            let before = auths.len();
            // A replaced entry keeps its place.
            auths.retain(|key, _| scope(key) != registry || new.is_some_and(|(again, _)| again == key));
            changed |= auths.len() != before;
            if let Some((key, entry)) = new {
                auths.insert((*key).to_owned(), entry.clone());
                changed = true;
            }
        }
        changed
    }

    fn save(&self) -> Result<()> {
        let mut text = Vec::new();
        // Docker's indentation.
        let mut to = serde_json::Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"\t"));
        self.whole.serialize(&mut to).map_err(|error| Error::new(Kind::Local, error.to_string()))?;
        text.push(b'\n');
        let fits = regular_file::check_size(text.len() as u64, MAX_AUTH_FILE);
        fits.and_then(|()| write_private(&self.path, &text)).map_err(|error| {
            Error::io(format!("write {}", self.path.display()), &error)
                .hint("set DOCKER_CONFIG to a directory that can be written")
        })
    }
}

fn entry(credential: &Credential) -> Value {
    match credential {
        Credential::Basic { username, password } => json!({ "auth": encode(username, password.reveal()) }),
        Credential::RefreshToken(token) => {
            json!({ "auth": encode(TOKEN_USER, ""), "identitytoken": token.reveal() })
        }
        Credential::Bearer(token) => json!({ "registrytoken": token.reveal() }),
    }
}

/// Replaces the file atomically. The file, and a directory that is created for it, are readable by this user only.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_private_directory(directory)?;
    atomic_file::write(path, Some(0o600), |to| to.write_all(bytes))
}

fn make_private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::credentials::testing::Scratch;
    use crate::credentials::{Credentials, Secret};

    /// Keeps what it's told in a file for each server.
    const KEEPER: &str = r#"echo "$1" >> "$HERE/log"
case $1 in
store) cat > "$HERE/kept" ;;
get) if [ -f "$HERE/kept" ]; then cat "$HERE/kept"; else echo 'credentials not found in native keychain'; exit 1; fi ;;
erase) rm "$HERE/kept" ;;
esac"#;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("there").permissions().mode() & 0o777
    }

    async fn find(settings: &Settings, repository: &str) -> Option<Credential> {
        let credentials = Credentials::load(settings).expect("well-formed");
        credentials.find(&repository.parse().expect("a repository")).await.expect("found or not")
    }

    #[tokio::test]
    async fn a_file_never_grows_beyond_what_is_read() {
        let scratch = Scratch::new();
        let rest = |length: u64| format!(r#"{{"x":"{}"}}"#, "x".repeat(usize::try_from(length).expect("small")));
        let old = rest(MAX_AUTH_FILE - 100);
        scratch.write("docker/config.json", &old);
        let kept = store(&scratch.settings(), "a.io", &Credential::basic("u", "p".repeat(200))).await;
        assert!(kept.expect_err("too large").to_string().contains("more than"));
        assert!(scratch.read("docker/config.json") == old, "it is as it was");
    }

    #[tokio::test]
    async fn into_a_new_file() {
        let scratch = Scratch::new();
        let settings = scratch.settings();
        let kept = store(&settings, "A.io:5000", &Credential::basic("u", "p:q")).await.expect("stored");
        assert_eq!(kept, StorageLocation::File(scratch.path("docker/config.json")));
        assert_eq!(mode(&scratch.path("docker")), 0o700);
        assert_eq!(mode(&scratch.path("docker/config.json")), 0o600);
        assert_eq!(find(&settings, "a.io:5000/x").await, Some(Credential::basic("u", "p:q")));
        let alone = std::fs::read_dir(scratch.path("docker")).expect("a directory").count();
        assert_eq!(alone, 1, "nothing temporary is left");

        for token in [Credential::RefreshToken(Secret::new("t")), Credential::Bearer(Secret::new("t"))] {
            store(&settings, "b.io", &token).await.expect("stored");
            assert_eq!(find(&settings, "b.io/x").await, Some(token));
        }
        assert_eq!(find(&settings, "a.io:5000/x").await, Some(Credential::basic("u", "p:q")), "still there");
    }

    #[tokio::test]
    async fn the_rest_of_the_file_stays_as_it_is() {
        let scratch = Scratch::new();
        let before = "{\n\t\"zeta\": {\n\t\t\"b\": 1,\n\t\t\"a\": [\n\t\t\ttrue\n\t\t]\n\t},\n\t\"auths\": {\n\t\t\"z.io\": {\n\t\t\t\"auth\": \"dTpw\"\n\t\t},\n\t\t\"https://a.io/v1/\": {\n\t\t\t\"auth\": \"dTpv\"\n\t\t},\n\t\t\"a.io/ns\": {\n\t\t\t\"auth\": \"dTpu\"\n\t\t},\n\t\t\"y.io\": {}\n\t},\n\t\"alpha\": null\n}\n";
        let path = scratch.write("docker/config.json", before);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("to change the mode");
        let settings = scratch.settings();

        store(&settings, "z.io", &Credential::basic("u", "p")).await.expect("stored");
        assert_eq!(scratch.read("docker/config.json"), before, "the same again, in its place");
        assert_eq!(mode(&path), 0o600);

        store(&settings, "a.io", &Credential::basic("u", "x")).await.expect("stored");
        let after = scratch.read("docker/config.json");
        assert!(!after.contains("https://a.io/v1/"), "the old key would be found first: {after}");
        assert_eq!(find(&settings, "a.io/x").await, Some(Credential::basic("u", "x")));
        assert_eq!(find(&settings, "a.io/ns/x").await, Some(Credential::basic("u", "n")), "not the registry's");
        let order: Vec<_> = ["zeta", "z.io", "a.io/ns", "y.io", "alpha"].map(|key| after.find(key)).into();
        assert!(order.is_sorted() && order.iter().all(Option::is_some), "{after}");

        assert_eq!(erase(&settings, "a.io").await.expect("erased"), [StorageLocation::File(path)]);
        assert_eq!(find(&settings, "a.io/x").await, None);
        assert_eq!(find(&settings, "z.io/x").await, Some(Credential::basic("u", "p")));
        assert_eq!(erase(&settings, "a.io").await.expect("nothing to erase"), []);
    }

    #[tokio::test]
    async fn docker_hub_under_dockers_key() {
        let scratch = Scratch::new();
        scratch.write("docker/config.json", r#"{"auths": {"docker.io": {"auth": "b2xkOnA="}}}"#);
        let settings = scratch.settings();
        store(&settings, "docker.io", &Credential::basic("u", "p")).await.expect("stored");
        let text = scratch.read("docker/config.json");
        assert!(text.contains("\"https://index.docker.io/v1/\"") && !text.contains("\"docker.io\""), "{text}");
    }

    #[tokio::test]
    async fn by_a_helper() {
        let scratch = Scratch::new();
        scratch.helper("keeper", KEEPER);
        scratch.write("docker/config.json", r#"{"auths": {"a.io": {"auth": "dTpvbGQ="}}, "credsStore": "keeper"}"#);
        let settings = scratch.settings();
        let kept = store(&settings, "a.io", &Credential::basic("u", "p")).await.expect("stored");
        assert_eq!(kept, StorageLocation::Helper("keeper".into()));
        assert_eq!(scratch.read("kept"), r#"{"ServerURL":"a.io","Username":"u","Secret":"p"}"#);
        let text = scratch.read("docker/config.json");
        assert!(text.contains("\"a.io\": {}") && !text.contains("dTpvbGQ="), "the old password is gone: {text}");
        assert_eq!(find(&settings, "a.io/x").await, Some(Credential::basic("u", "p")));

        let refused =
            store(&settings, "a.io", &Credential::Bearer(Secret::new("hunter2"))).await.expect_err("a bearer");
        assert_eq!(refused.kind(), Kind::Unsupported);
        store(&settings, "a.io", &Credential::RefreshToken(Secret::new("t"))).await.expect("stored");
        assert_eq!(find(&settings, "a.io/x").await, Some(Credential::RefreshToken(Secret::new("t"))));

        assert_eq!(erase(&settings, "a.io").await.expect("erased"), [StorageLocation::Helper("keeper".into())]);
        assert_eq!(find(&settings, "a.io/x").await, None);
        assert!(!scratch.read("docker/config.json").contains("a.io"));
        assert_eq!(erase(&settings, "a.io").await.expect("nothing to erase"), []);
        assert_eq!(scratch.read("log").matches("erase").count(), 1);
    }

    #[tokio::test]
    async fn names_in_another_case_keep_it_and_leave_no_old_password() {
        let scratch = Scratch::new();
        scratch.helper("keeper", KEEPER);
        // Members of one meaning, hosts of one meaning, and a member that is there twice.
        let before = r#"{"HTTPheaders": {"X": 1}, "Auths": {"A.io": {"auth": "dTpvbGQ="}, "z.io": {"auth": "dTp6"}},
            "AUTHS": {"a.io": {"Auth": "dTpvbGQ="}}, "auths": {"https://A.IO/v1/": {"password": "old"}}, "auths": {},
            "credHelpers": {}, "credsstore": "keeper"}"#;
        scratch.write("docker/config.json", before);
        let settings = scratch.settings();
        let kept = store(&settings, "a.io", &Credential::basic("u", "hunter2")).await.expect("stored");
        assert_eq!(kept, StorageLocation::Helper("keeper".into()));
        let text = scratch.read("docker/config.json");
        for secret in ["hunter2", "aHVudGVyMg", "dTpvbGQ=", "old", &encode("u", "hunter2")] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        let order =
            ["HTTPheaders", "\"Auths\"", "z.io", "AUTHS", "\"auths\"", "\"a.io\": {}", "credHelpers", "credsstore"];
        let order = order.map(|part| text.find(part).unwrap_or_else(|| panic!("{part} in {text}")));
        assert!(order.is_sorted() && !text.contains("credsStore"), "{text}");
        assert_eq!(find(&settings, "a.io/x").await, Some(Credential::basic("u", "hunter2")));

        scratch.write("docker/config.json", &before.replace("keeper", ""));
        let kept = store(&settings, "a.io", &Credential::basic("u", "p")).await.expect("stored");
        assert_eq!(kept, StorageLocation::File(scratch.path("docker/config.json")));
        assert_eq!(find(&settings, "a.io/x").await, Some(Credential::basic("u", "p")));
        assert!(!scratch.read("docker/config.json").contains("dTpvbGQ="), "an old password would be left");
        let erased = erase(&settings, "a.io").await.expect("erased");
        assert_eq!(erased, [StorageLocation::File(scratch.path("docker/config.json"))]);
        assert_eq!(find(&settings, "a.io/x").await, None);
        assert_eq!(scratch.read("docker/config.json").matches("io\"").count(), 1, "z.io alone");
        assert_eq!(find(&settings, "z.io/x").await, Some(Credential::basic("u", "z")));
    }

    #[tokio::test]
    async fn a_file_that_is_not_understood_is_not_touched() {
        let scratch = Scratch::new();
        scratch.write("docker/config.json", "{\"auths\": {},\n oops}");
        let error = store(&scratch.settings(), "a.io", &Credential::basic("u", "p")).await.expect_err("malformed");
        assert!(error.to_string().contains("line 2"), "{error}");
        assert_eq!(scratch.read("docker/config.json"), "{\"auths\": {},\n oops}");
        let nowhere = store(&Settings::default(), "a.io", &Credential::basic("u", "p")).await.expect_err("no place");
        assert_eq!(nowhere.kind(), Kind::Usage);
    }

    #[tokio::test]
    async fn a_link_stays_a_link() {
        let scratch = Scratch::new();
        let real = scratch.write("dotfiles/docker.json", "{}");
        std::fs::create_dir_all(scratch.path("docker")).expect("a directory");
        std::os::unix::fs::symlink(&real, scratch.path("docker/config.json")).expect("a link");
        store(&scratch.settings(), "a.io", &Credential::basic("u", "p")).await.expect("stored");
        assert!(scratch.path("docker/config.json").is_symlink());
        assert!(scratch.read("dotfiles/docker.json").contains("a.io"));
    }
}
