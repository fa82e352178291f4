//! Docker's `config.json` and the files of its shape.
//!
//! ```text
//! { "auths":       { "<key>": { "auth": base64("user:password"), "identitytoken": …, "registrytoken": … } },
//!   "credHelpers": { "<host>": "<helper>" },      for this host: run docker-credential-<helper>
//!   "credsStore":  "<helper>" }                   for all others
//! ```
//! A key is a host (Docker), a host and a namespace (`quay.io/team`, containers-auth.json(5)), a
//! host with stars (`*.azurecr.io`, Kubernetes), or the URL of an old API (`https://host/v1/`).
//! The older `.dockercfg` is what stands in `auths`, without the rest. The manifest of a Kubernetes Secret that
//! holds one of both is read as what it holds.
//!
//! The names of all fields match in any case, by Go's rule ([`super::go_json`]): Docker Desktop 2.0.0.3 wrote
//! `credSstore`. So do the hosts in keys, which are DNS names.
//!
//! <https://github.com/docker/cli/blob/master/cli/config/configfile/file.go>
//! <https://github.com/containers/image/blob/main/docs/containers-auth.json.5.md>
//! <https://kubernetes.io/docs/concepts/containers/images/#config-json>

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use base64::Engine as _;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::go_json::{fold, merge_map, set_string};
use super::secret::{BASE64, within};
use super::settings::named_file;
use super::{Credential, DOCKER_HUB_KEY, LocatedCredential, Secret};
use crate::error::{Error, Kind, Result, Side};
use crate::reference::{DOCKER_HUB, Repository, registry_name, split_port};
use crate::regular_file::{self, Links};

/// The field with the entries, as [`fold`] writes it.
pub(super) const AUTHS: &str = "auths";

/// A file as it was read.
pub(super) struct AuthFile {
    pub(super) path: PathBuf,
    entries: Vec<Entry>,
    helpers: BTreeMap<String, String>,
    /// Keys of a registry with the port of https, by which Docker asks a helper.
    with_port: Vec<String>,
    store: Option<String>,
}

struct Entry {
    /// As it stands in the file.
    key: String,
    scope: String,
    value: Value,
}

/// The fields of the file. Names match in any case.
#[derive(Default)]
struct Shape {
    auths: Option<Map<String, Value>>,
    helpers: Option<BTreeMap<String, Option<String>>>,
    store: Option<String>,
    /// All other members.
    rest: Map<String, Value>,
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Shape, A::Error> {
                let mut shape = Shape::default();
                while let Some(name) = map.next_key::<String>()? {
                    match fold(&name).as_str() {
                        AUTHS => merge_map(&mut shape.auths, map.next_value()?),
                        "credhelpers" => merge_map(&mut shape.helpers, map.next_value()?),
                        "credsstore" => set_string(&mut shape.store, map.next_value()?),
                        _ => _ = shape.rest.insert(name, map.next_value()?),
                    }
                }
                Ok(shape)
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// The fields of an entry. Names match in any case.
#[derive(Default)]
struct Fields {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identity_token: Option<String>,
    registry_token: Option<String>,
}

impl Fields {
    /// The fields of `entry`, or nothing if it has not the form of an entry.
    fn read(entry: &Value) -> Option<Self> {
        let mut fields = Self::default();
        if entry.is_null() {
            return Some(fields);
        }
        for (name, value) in entry.as_object()? {
            let field = match fold(name).as_str() {
                "auth" => &mut fields.auth,
                "username" => &mut fields.username,
                "password" => &mut fields.password,
                "identitytoken" => &mut fields.identity_token,
                "registrytoken" => &mut fields.registry_token,
                _ => continue,
            };
            set_string(field, Option::deserialize(value).ok()?);
        }
        Some(fields)
    }
}

impl AuthFile {
    /// Reads `bytes`, which stand in `path`.
    ///
    /// # Errors
    /// If they aren't JSON of this shape. An entry that is broken is found when it's needed.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii();
        // Docker takes an empty file for one without entries.
        let bytes = if bytes.is_empty() { b"{}" } else { bytes };
        let within = within(path, bytes)?;
        let bytes = within.as_deref().unwrap_or(bytes);
        let shape: Shape = serde_json::from_slice(bytes).map_err(|error| malformed(path, &error))?;
        let auths = match shape.auths {
            Some(auths) => auths,
            None => shape.rest.into_iter().filter(|(_, value)| looks_like_entry(value)).collect(),
        };
        let mut entries: Vec<Entry> =
            auths.into_iter().map(|(key, value)| Entry { scope: scope(&key), key, value }).collect();
        // Of several keys for one registry, the one that Docker itself would use comes first.
        entries.sort_by_key(|entry| (entry.key != DOCKER_HUB_KEY, entry.key != entry.scope));
        let helpers = shape.helpers.unwrap_or_default();
        let keys = entries.iter().map(|entry| &entry.key).chain(helpers.keys());
        let with_port = keys.filter(|key| key.ends_with(":443") && scope(key) != **key).cloned().collect();
        Ok(Self {
            path: path.to_owned(),
            entries,
            helpers: by_host(helpers),
            with_port,
            store: shape.store.filter(|store| !store.is_empty()),
        })
    }

    /// The helper that keeps the credentials of `registry`: its own, or else the file's store.
    ///
    /// As with Docker, a registry with an empty helper of its own keeps them in the file.
    pub(super) fn helper(&self, registry: &str) -> Option<&str> {
        match self.helpers.get(registry) {
            Some(own) => (!own.is_empty()).then_some(own),
            None => self.store.as_deref(),
        }
    }

    /// What a helper is asked for: as Docker does, and for Docker Hub then as podman does. Also by the name with the
    /// port of https, where the file says that something was stored under it.
    pub(super) fn servers<'a>(&'a self, registry: &'a str) -> Vec<&'a str> {
        if registry == DOCKER_HUB {
            return vec![DOCKER_HUB_KEY, DOCKER_HUB];
        }
        let spelled = self.with_port.iter().filter(|key| scope(key) == registry);
        [registry].into_iter().chain(spelled.map(String::as_str)).collect()
    }

    /// Whether anything in the file is for this registry, by its host alone.
    pub(super) fn knows(&self, registry: &str) -> bool {
        self.helper(registry).is_some()
            || self.entries.iter().any(|entry| {
                let host = entry.scope.split('/').next().unwrap_or_default();
                host.contains('*') || spellings(registry).any(|spelling| spelling == host)
            })
    }

    /// The registries that the file's entries are for, each once.
    pub(super) fn registries(&self) -> Vec<&str> {
        let mut hosts: Vec<&str> = self.entries.iter().filter_map(|entry| entry.scope.split('/').next()).collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }

    /// What stands in the file itself for `repository`, the most specific entry first.
    ///
    /// # Errors
    /// If that entry is broken.
    pub(super) fn entry(&self, repository: &Repository) -> Result<Option<LocatedCredential>> {
        for scope in scopes(repository) {
            for entry in self.entries.iter().filter(|entry| entry.scope == scope) {
                if let Some(found) = self.read(entry)? {
                    return Ok(Some(found));
                }
            }
        }
        for entry in self.entries.iter().filter(|entry| matches_stars(&entry.scope, repository)) {
            if let Some(found) = self.read(entry)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn read(&self, entry: &Entry) -> Result<Option<LocatedCredential>> {
        let credential = credential(&entry.value).map_err(|why| {
            // Not what serde says: that would show the value.
            Error::new(Kind::Invalid, format!("the entry {:?} in {} {why}", entry.key, self.path.display()))
                .hint("log in again, or remove the entry")
        })?;
        let origin = || self.path.display().to_string();
        Ok(credential.map(|credential| LocatedCredential { credential, origin: origin() }))
    }
}

/// A file that is read again when it has changed.
pub(super) struct WatchedFile {
    path: PathBuf,
    /// `None` where it can't change: the environment, a pipe.
    seen: Option<Mutex<SeenFile>>,
    first: Option<Arc<AuthFile>>,
}

struct SeenFile {
    stamp: Option<Stamp>,
    file: Option<Arc<AuthFile>>,
}

type Stamp = (SystemTime, u64);

impl WatchedFile {
    /// A file that the user named: it must be there.
    pub(super) fn named(path: &Path) -> Result<Self> {
        let path = named_file(path);
        // The user may name `<(command)` of a shell, which is a pipe.
        match Self::open(&path, |path| regular_file::read_named(path, MAX_AUTH_FILE)) {
            Ok(watched) => watched,
            Err(error) => Err(Error::unreadable(format!("read the credentials in {}", path.display()), &error)),
        }
    }

    /// A file at a usual place, where there may be none.
    pub(super) fn at_default(path: &Path) -> Result<Self> {
        match Self::open(path, |path| regular_file::read(path, Links::Follow, MAX_AUTH_FILE)) {
            Ok(watched) => watched,
            Err(error) => {
                // A container's HOME is often root's, and not readable: Docker warns as well.
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!("credentials in {} are not used: {error}", path.display());
                }
                let seen = SeenFile { stamp: None, file: None };
                Ok(Self { path: path.to_owned(), seen: Some(Mutex::new(seen)), first: None })
            }
        }
    }

    /// Something that never changes.
    pub(super) fn fixed(file: AuthFile) -> Self {
        Self { path: file.path.clone(), seen: None, first: Some(Arc::new(file)) }
    }

    fn open(path: &Path, read: impl FnOnce(&Path) -> io::Result<Vec<u8>>) -> io::Result<Result<Self>> {
        let metadata = std::fs::metadata(path)?;
        let bytes = read(path)?;
        let file = match AuthFile::parse(path, &bytes) {
            Ok(file) => file,
            Err(error) => return Ok(Err(error)),
        };
        // What a shell passes as <(command) can be read once only.
        if !metadata.is_file() {
            return Ok(Ok(Self::fixed(file)));
        }
        let seen = SeenFile { stamp: stamp(&metadata), file: Some(Arc::new(file)) };
        Ok(Ok(Self { path: path.to_owned(), seen: Some(Mutex::new(seen)), first: None }))
    }

    /// The file as it is now. One that can't be read any more, or is just being written, counts
    /// as it was last; one that is gone is gone.
    pub(super) fn current(&self) -> Option<Arc<AuthFile>> {
        let Some(seen) = &self.seen else { return self.first.clone() };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        // One stat before each token that is asked for: no need for a thread or a watcher.
        let now = match std::fs::metadata(&self.path) {
            Ok(metadata) => stamp(&metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                *seen = SeenFile { stamp: None, file: None };
                return None;
            }
            Err(_) => return seen.file.clone(),
        };
        if now.is_some() && now != seen.stamp {
            seen.stamp = now;
            match regular_file::read(&self.path, Links::Follow, MAX_AUTH_FILE)
                .map(|bytes| AuthFile::parse(&self.path, &bytes))
            {
                Ok(Ok(file)) => seen.file = Some(Arc::new(file)),
                Ok(Err(error)) => tracing::warn!("changed credentials are not used: {error}"),
                Err(error) => tracing::warn!("credentials in {} are not used: {error}", self.path.display()),
            }
        }
        seen.file.clone()
    }
}

/// The largest file of credentials that is read or written, in bytes.
pub(super) const MAX_AUTH_FILE: u64 = 8 << 20;

fn stamp(metadata: &std::fs::Metadata) -> Option<Stamp> {
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Says where, but not what: serde's message may quote a secret.
pub(super) fn malformed(path: &Path, error: &serde_json::Error) -> Error {
    let what = if error.is_data() { "a value of the wrong kind" } else { "malformed JSON" };
    let (line, column) = (error.line(), error.column());
    Error::new(Kind::Invalid, format!("{what} at line {line}, column {column}"))
        .doing(format!("read the credentials in {}", path.display()))
        .on(Side::Local)
        .hint("it must have the form of Docker's config.json")
}

fn looks_like_entry(value: &Value) -> bool {
    const FIELDS: [&str; 4] = ["auth", "username", "identitytoken", "registrytoken"];
    value.as_object().is_some_and(|members| members.keys().any(|name| FIELDS.contains(&fold(name).as_str())))
}

/// The helpers by host. Of several keys for one host, the one that Docker itself would use comes first.
fn by_host(helpers: BTreeMap<String, Option<String>>) -> BTreeMap<String, String> {
    let (exact, other): (Vec<_>, Vec<_>) =
        helpers.into_iter().partition(|(key, _)| key == DOCKER_HUB_KEY || *key == scope(key));
    let helpers = other.into_iter().rev().chain(exact.into_iter().rev());
    helpers.map(|(key, helper)| (scope(&key), helper.unwrap_or_default())).collect()
}

/// What a key speaks for: `host` or `host/namespace`, as [`Repository`] writes it.
///
/// Docker cuts any key to its host; but a key with a namespace of its own must not be sent to the
/// whole registry, and `https://index.docker.io/v1/access-token` (Docker Desktop) is no password.
pub(super) fn scope(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let host = registry_name(host).unwrap_or_else(|_| host.to_ascii_lowercase());
    match path.trim_end_matches('/') {
        "" | "v1" | "v2" => host,
        path => format!("{host}/{path}"),
    }
}

/// The name of a registry, and its other spelling: `host` and `host:80`.
fn spellings(registry: &str) -> impl Iterator<Item = String> {
    let other = match registry.strip_suffix(":80") {
        Some(host) => Some(host.to_owned()),
        None => split_port(registry).1.is_none().then(|| format!("{registry}:80")),
    };
    [registry.to_owned()].into_iter().chain(other)
}

/// `host/a/b`, `host/a`, `host`; then the same for the other spelling of the host.
fn scopes(repository: &Repository) -> Vec<String> {
    let name = &*repository.name;
    let cuts = name.match_indices('/').map(|(at, _)| at).chain([name.len()]);
    let mut paths: Vec<&str> = cuts.map(|at| &name[..at]).collect();
    paths.reverse();
    let below = |host: String| {
        let mut scopes: Vec<String> = paths.iter().map(|path| format!("{host}/{path}")).collect();
        scopes.push(host);
        scopes
    };
    spellings(&repository.registry).flat_map(below).collect()
}

/// Kubernetes' rule: a star stands for any part of one label, and the number of labels must agree.
fn matches_stars(scope: &str, repository: &Repository) -> bool {
    let (pattern, path) = scope.split_once('/').unwrap_or((scope, ""));
    if !pattern.contains('*') || !(path.is_empty() || format!("{}/", repository.name).starts_with(&format!("{path}/")))
    {
        return false;
    }
    let (pattern, wanted_port) = split_port(pattern);
    let (host, port) = split_port(&repository.registry);
    let usual = |port: &str| ["443", "80"].contains(&port);
    wanted_port.filter(|port| !usual(port)) == port.filter(|port| !usual(port))
        && pattern.split('.').count() == host.split('.').count()
        && pattern.split('.').zip(host.split('.')).all(|(pattern, label)| match pattern.split_once('*') {
            Some((start, end)) => {
                label.len() >= start.len() + end.len() && label.starts_with(start) && label.ends_with(end)
            }
            None => pattern == label,
        })
}

/// What an entry holds; nothing where a helper left only the host's name behind.
fn credential(value: &Value) -> Result<Option<Credential>, &'static str> {
    let fields = Fields::read(value).ok_or("has values of the wrong kind")?;
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    if let Some(token) = filled(fields.registry_token) {
        return Ok(Some(Credential::Bearer(token.into())));
    }
    if let Some(token) = filled(fields.identity_token) {
        return Ok(Some(Credential::RefreshToken(token.into())));
    }
    let (username, password) = match filled(fields.auth) {
        Some(auth) => decode(&auth)?,
        None => (fields.username.unwrap_or_default(), fields.password.unwrap_or_default()),
    };
    Ok(match (username.is_empty(), password.is_empty()) {
        (true, true) => None,
        (false, false) => Some(from_pair(username, password)),
        (true, false) => return Err("has a password, but no user"),
        (false, true) => return Err("has a user, but no password"),
    })
}

/// What a user name and a secret mean: `<token>` is the helpers' sign for an identity token.
/// <https://docs.docker.com/reference/cli/docker/login/#credential-helper-protocol>
pub(super) fn from_pair(username: String, secret: String) -> Credential {
    if username == "<token>" {
        return Credential::RefreshToken(secret.into());
    }
    Credential::Basic { username, password: Secret::new(secret) }
}

/// The `auth` of an entry.
pub(super) fn encode(username: &str, password: &str) -> String {
    BASE64.encode(format!("{username}:{password}"))
}

fn decode(auth: &str) -> Result<(String, String), &'static str> {
    let bytes = BASE64.decode(auth.trim()).map_err(|_| "has an `auth` that isn't base64")?;
    let text = String::from_utf8(bytes).map_err(|_| "has an `auth` that isn't text")?;
    // Docker cuts zeros: its old files were padded with them.
    let text = text.trim_matches('\0').trim_end_matches(['\r', '\n']);
    let (username, password) = text.split_once(':').ok_or("has an `auth` without a colon")?;
    Ok((username.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::testing::Scratch;

    fn parse(text: &str) -> Result<AuthFile> {
        AuthFile::parse(Path::new("/x/config.json"), text.as_bytes())
    }

    /// `user:password`, or what kind of token, for a repository; `-` for nothing.
    fn look_up(file: &AuthFile, repository: &str) -> String {
        match file.entry(&repository.parse().expect("a repository")) {
            Ok(None) => "-".to_owned(),
            Ok(Some(LocatedCredential { credential: Credential::Basic { username, password }, .. })) => {
                format!("{username}:{}", password.reveal())
            }
            Ok(Some(LocatedCredential { credential: Credential::RefreshToken(token), .. })) => {
                format!("refresh {}", token.reveal())
            }
            Ok(Some(LocatedCredential { credential: Credential::Bearer(token), .. })) => {
                format!("bearer {}", token.reveal())
            }
            Err(error) => format!("error: {error}"),
        }
    }

    fn auths(pairs: &[(&str, &str)]) -> AuthFile {
        let auths: Map<String, Value> = pairs
            .iter()
            .map(|(key, auth)| ((*key).to_owned(), serde_json::json!({ "auth": BASE64.encode(auth) })))
            .collect();
        parse(&serde_json::json!({ "auths": auths }).to_string()).expect("well-formed")
    }

    #[test]
    fn docker_hub_has_many_names() {
        for key in [
            "https://index.docker.io/v1/",
            "https://index.docker.io/v1",
            "https://registry-1.docker.io/v2/",
            "docker.io",
            "registry-1.docker.io",
            "index.docker.io",
        ] {
            assert_eq!(look_up(&auths(&[(key, "u:p")]), "nginx"), "u:p", "{key}");
        }
        let several = auths(&[("docker.io", "b:b"), ("https://index.docker.io/v1/", "a:a")]);
        assert_eq!(look_up(&several, "nginx"), "a:a");
        // Docker Desktop keeps its own session so: that's no password for the registry.
        assert_eq!(look_up(&auths(&[("https://index.docker.io/v1/access-token", "u:p")]), "nginx"), "-");
        // Neither is another registry's.
        assert_eq!(look_up(&auths(&[("docker.io.example.com", "u:p"), ("io", "u:p")]), "nginx"), "-");
    }

    #[test]
    fn the_most_specific_entry_wins() {
        let file = auths(&[
            ("quay.io", "host:p"),
            ("quay.io/team/image", "image:p"),
            ("quay.io/team", "team:p"),
            ("docker.io/grafana", "hub:p"),
            ("reg.io:5000", "port:p"),
            ("https://old.io/v2/", "old:p"),
            ("UPPER.io", "upper:p"),
        ]);
        for (repository, wanted) in [
            ("quay.io/team/image", "image:p"),
            ("quay.io/team/image/deeper", "image:p"),
            ("quay.io/team/imagery", "team:p"),
            ("quay.io/teams/image", "host:p"),
            ("grafana/grafana", "hub:p"),
            ("nginx", "-"),
            ("reg.io:5000/a", "port:p"),
            ("reg.io/a", "-"),
            ("old.io/a", "old:p"),
            ("upper.io/a", "upper:p"),
            ("evil-quay.io/team/image", "-"),
        ] {
            assert_eq!(look_up(&file, repository), wanted, "{repository}");
        }
    }

    /// The port of http may be in the key or in the reference alone, with a namespace and without one.
    #[test]
    fn port_80_is_the_same_registry_with_any_namespace() {
        let wanted = ["a.io/team/image", "a.io/team", "a.io", "a.io:80/team/image", "a.io:80/team", "a.io:80"];
        assert_eq!(scopes(&"a.io/team/image".parse().expect("a repository")), wanted);
        let wanted = ["a.io:80/team/image", "a.io:80/team", "a.io:80", "a.io/team/image", "a.io/team", "a.io"];
        assert_eq!(scopes(&"a.io:80/team/image".parse().expect("a repository")), wanted);
        assert_eq!(
            scopes(&"a.io:5000/image".parse().expect("a repository")),
            ["a.io:5000/image", "a.io:5000"],
            "only port 80 has two spellings"
        );
        for (key, repository, wanted) in [
            ("a.io:80/team", "a.io/team/image", "u:p"),
            ("a.io/team", "a.io:80/team/image", "u:p"),
            ("a.io:80/team/image", "a.io/team/image", "u:p"),
            ("a.io:80/team", "a.io/teams/image", "-"),
        ] {
            assert_eq!(look_up(&auths(&[(key, "u:p")]), repository), wanted, "{key} for {repository}");
        }
        assert_eq!(look_up(&auths(&[("*.b.io:80", "u:p")]), "a.b.io/image"), "u:p");
        assert_eq!(look_up(&auths(&[("*.b.io", "u:p")]), "a.b.io:80/image"), "u:p");
        assert!(auths(&[("a.io:80", "u:p")]).knows("a.io") && auths(&[("a.io/team", "u:p")]).knows("a.io:80"));
        assert!(!auths(&[("a.io:5000", "u:p")]).knows("a.io"));
    }

    #[test]
    fn stars_match_within_a_label() {
        let file = auths(&[("*.azurecr.io", "any:p"), ("mine.azurecr.io", "mine:p"), ("reg*.x.io:5000/team", "r:p")]);
        for (repository, wanted) in [
            ("other.azurecr.io/a", "any:p"),
            ("mine.azurecr.io/a", "mine:p"),
            ("a.b.azurecr.io/a", "-"),
            ("azurecr.io/a", "-"),
            ("other.azurecr.io.evil.com/a", "-"),
            ("reg1.x.io:5000/team/a", "r:p"),
            ("reg1.x.io:5000/teams/a", "-"),
            ("reg1.x.io/team/a", "-"),
        ] {
            assert_eq!(look_up(&file, repository), wanted, "{repository}");
        }
    }

    #[test]
    fn entries_of_all_kinds() {
        let file = parse(
            r#"{"auths": {
                "colon.io": {"auth": "dTpwOnE="},
                "bare.io": {"auth": "dTpwOnE"},
                "zeros.io": {"auth": "dTpwAAAA"},
                "plain.io": {"username": "u", "password": "p"},
                "identity.io": {"auth": "MDAwOg==", "identitytoken": "t"},
                "helper.io": {"auth": "PHRva2VuPjp0"},
                "registry.io": {"registrytoken": "t", "auth": "dTpw"},
                "empty.io": {}, "blank.io": {"auth": ""},
                "nocolon.io": {"auth": "aHVudGVyMg=="},
                "notbase64.io": {"auth": "hunter2!"},
                "nopassword.io": {"username": "u"},
                "number.io": {"auth": 7},
                "string.io": "hunter2"
            }}"#,
        )
        .expect("broken entries only matter for their registries");
        for (host, wanted) in [
            ("colon.io", "u:p:q"),
            ("bare.io", "u:p:q"),
            ("zeros.io", "u:p"),
            ("plain.io", "u:p"),
            ("identity.io", "refresh t"),
            ("helper.io", "refresh t"),
            ("registry.io", "bearer t"),
            ("empty.io", "-"),
            ("blank.io", "-"),
        ] {
            assert_eq!(look_up(&file, &format!("{host}/a")), wanted, "{host}");
        }
        for (host, why) in [
            ("nocolon.io", "without a colon"),
            ("notbase64.io", "base64"),
            ("nopassword.io", "no password"),
            ("number.io", "wrong kind"),
            ("string.io", "wrong kind"),
        ] {
            let said = look_up(&file, &format!("{host}/a"));
            assert!(said.starts_with("error") && said.contains(why) && said.contains("/x/config.json"), "{said}");
            assert!(said.contains(host) && !said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn shapes_of_files() {
        for empty in ["", " \n", "{}", "\u{feff}{}", r#"{"auths": null}"#] {
            assert_eq!(look_up(&parse(empty).expect("nothing in it"), "a.io/a"), "-", "{empty:?}");
        }
        let old = parse(r#"{"https://a.io/v1/": {"auth": "dTpw", "email": "e"}, "HttpHeaders": {"x": "y"}}"#);
        assert_eq!(look_up(&old.expect("a .dockercfg"), "a.io/a"), "u:p");

        for (wrong, line) in [
            ("{\n\"auths\": {\n\"a.io\": {\"auth\": \"hunter2\" \"x\"}}}", "line 3"),
            ("{\n\"auths\": \"hunter2\"}", "line 2"),
            ("{\"credsStore\": {}}", "line 1"),
            ("{\n\"auths\": {", "line 2"),
            ("[]", "line 1"),
        ] {
            let error = parse(wrong).err().expect(wrong);
            let said = error.to_string();
            assert!(said.contains(line) && said.contains("/x/config.json"), "{wrong}: {said}");
            assert!(!said.contains("hunter2"), "{said}");
            assert_eq!(error.kind(), Kind::Invalid);
        }
    }

    #[test]
    fn whose_helper() {
        let file = parse(
            r#"{"credHelpers": {"a.io": "own", "https://index.docker.io/v1/": "hub", "file.io": ""}, "credsStore": "all"}"#,
        )
        .expect("well-formed");
        assert_eq!(file.helper("a.io"), Some("own"));
        assert_eq!(file.helper("docker.io"), Some("hub"));
        assert_eq!(file.helper("b.io"), Some("all"));
        assert_eq!(file.helper("file.io"), None);
        assert_eq!(parse(r#"{"credsStore": ""}"#).expect("well-formed").helper("b.io"), None);
    }

    #[test]
    fn names_match_in_any_case() {
        for (text, wanted) in [
            (r#"{"Auths": {"a.io": {"Auth": "dTpw"}}}"#, "u:p"),
            (r#"{"AUTHS": {"a.io": {"USERNAME": "u", "Password": "p"}}}"#, "u:p"),
            ("{\"auth\u{17f}\": {\"A.IO\": {\"Identityto\u{212a}en\": \"t\"}}}", "refresh t"),
            (r#"{"auths": {"a.io": {"RegistryToken": "t"}}}"#, "bearer t"),
            // The last one counts, and `null` sets no string.
            (r#"{"auths": {"a.io": {"auth": "dTpv", "Auth": "dTpw", "AUTH": null}}}"#, "u:p"),
            // Objects are merged; an entry is replaced as a whole.
            (r#"{"auths": {"b.io": {}}, "Auths": {"a.io": {"auth": "dTpw"}}}"#, "u:p"),
            (r#"{"auths": {"a.io": {"auth": "dTpw"}}, "Auths": {"b.io": {}}}"#, "u:p"),
            (r#"{"auths": {"a.io": {"auth": "dTpv"}}, "Auths": {"a.io": {"auth": "dTpw"}}}"#, "u:p"),
            (r#"{"auths": {"a.io": {"auth": "dTpw"}}, "auths": {"b.io": {}}}"#, "u:p"),
            (r#"{"auths": {"a.io": {"auth": "dTpw"}}, "Auths": {"a.io": {}}}"#, "-"),
            (r#"{"auths": {"a.io": {"auth": "dTpw"}}, "Auths": null}"#, "-"),
            (r#"{"Auths": {"a.io": null}}"#, "-"),
            // A .dockercfg.
            (r#"{"https://a.io/v1/": {"AUTH": "dTpw", "Email": "e"}}"#, "u:p"),
            (r#"{"auths_": {"a.io": {"auth": "dTpw"}}}"#, "-"),
        ] {
            let file = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(look_up(&file, "a.io/a"), wanted, "{text}");
        }
        for name in ["credsStore", "credSstore", "credsstore", "CREDSSTORE", "Cred\u{17f}Store"] {
            let file = parse(&format!(r#"{{"{name}": "x"}}"#)).expect("well-formed");
            assert_eq!(file.helper("a.io"), Some("x"), "{name}");
        }
        for name in ["credHelpers", "credhelpers", "CredHelpers"] {
            let file = parse(&format!(r#"{{"credsStore": "all", "{name}": {{"A.io": "x"}}}}"#)).expect("well-formed");
            assert_eq!((file.helper("a.io"), file.helper("b.io")), (Some("x"), Some("all")), "{name}");
        }
        let several = r#"{"credHelpers": {"a.io": "1", "b.io": "1"}, "credhelpers": {"a.io": "2", "A.io": "3", "c.io": null},
            "credsStore": "4", "credsstore": "5"}"#;
        let file = parse(several).expect("well-formed");
        let helpers = ["a.io", "b.io", "c.io", "d.io"].map(|host| file.helper(host));
        assert_eq!(helpers, [Some("2"), Some("1"), None, Some("5")]);
    }

    #[test]
    fn changed_files_are_read_again() {
        let scratch = Scratch::new();
        let one = r#"{"auths": {"a.io": {"auth": "dTox"}}}"#;
        let path = scratch.path("config.json");
        let watched = WatchedFile::at_default(&path).expect("none yet");
        assert!(watched.current().is_none());
        scratch.write("config.json", one);
        let now = |watched: &WatchedFile| watched.current().map_or("gone".into(), |file| look_up(&file, "a.io/a"));
        assert_eq!(now(&watched), "u:1");
        // Longer by a byte: a clock's tick may be too coarse for this test.
        scratch.write("config.json", &format!("{} ", one.replace("dTox", "dToy")));
        assert_eq!(now(&watched), "u:2");
        scratch.write("config.json", "{");
        assert_eq!(now(&watched), "u:2", "half written: as before");
        std::fs::remove_file(&path).expect("to remove it");
        assert_eq!(now(&watched), "gone");
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_read_once() {
        let scratch = Scratch::new();
        let pipe = scratch.path("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
        let (done, wait) = std::sync::mpsc::channel();
        let reader = pipe.clone();
        std::thread::spawn(move || {
            let watched = WatchedFile::named(&reader).expect("read");
            std::thread::sleep(std::time::Duration::from_millis(20));
            let twice = [watched.current(), watched.current()];
            let _ = done.send(twice.map(|file| file.map(|file| look_up(&file, "a.io/a"))));
        });
        std::fs::write(&pipe, r#"{"auths": {"a.io": {"auth": "dTpw"}}}"#).expect("written");
        let seen = wait.recv_timeout(std::time::Duration::from_secs(5)).expect("not to wait for more");
        assert_eq!(seen, [Some("u:p".to_owned()), Some("u:p".to_owned())]);
    }

    #[test]
    fn a_named_file_must_be_there() {
        let scratch = Scratch::new();
        let missing = scratch.path("missing.json");
        let error = WatchedFile::named(&missing).err().expect("missing").to_string();
        assert!(error.contains("missing.json"), "{error}");
        // A mounted secret, named by its directory.
        scratch.write("secret/.dockerconfigjson", r#"{"auths": {"a.io": {"auth": "dTpw"}}}"#);
        let watched = WatchedFile::named(&scratch.path("secret")).expect("there");
        assert_eq!(look_up(&watched.current().expect("read"), "a.io/a"), "u:p");
    }
}
