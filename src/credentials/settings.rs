//! The files, variables and helpers of a run.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{Credential, LocatedCredential, Secret, VariableCredential};
use crate::error::{Error, Kind, Result};
use crate::reference::{registry_name, without_https_port};

const VARIABLE_PREFIX: &str = "TRANSLOAD_AUTH_";

/// The places to search for credentials; none by default.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Files of Docker's format, or directories with one, from `--auth-file`.
    pub auth_files: Vec<PathBuf>,
    /// Docker's own file, which `login` reads and writes: `~/.docker/config.json`.
    pub docker_config: Option<PathBuf>,
    /// The files of podman, skopeo and buildah, in their order.
    pub containers_auth: Vec<PathBuf>,
    /// The search path for helpers, in the form of `PATH`.
    pub helper_path: Option<OsString>,
    /// The content of `DOCKER_AUTH_CONFIG`.
    pub(super) docker_auth_config: Option<Secret>,
    pub(super) given: Vec<(String, LocatedCredential)>,
    pub(super) by_variable: Vec<VariableCredential>,
}

impl Settings {
    /// The default places, from environment variables, which the caller passes in.
    ///
    /// # Errors
    /// If only one of `TRANSLOAD_USERNAME` and `TRANSLOAD_PASSWORD` is set, or `TRANSLOAD_REGISTRY` is missing: a
    /// password must not go to any other registry.
    pub fn from_environment(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self> {
        // An empty variable counts as unset, for manifests that leave out an optional value.
        let all: BTreeMap<OsString, OsString> = variables.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let path = |name: &str| all.get(std::ffi::OsStr::new(name)).map(PathBuf::from);
        let home = path("HOME").or_else(|| path("USERPROFILE"));

        let docker = path("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
        // containers-auth.json(5): the variable replaces the whole search.
        let containers_auth = match path("REGISTRY_AUTH_FILE") {
            Some(file) => vec![file],
            None => [
                path("XDG_RUNTIME_DIR"),
                path("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config"))),
            ]
            .into_iter()
            .flatten()
            .map(|directory| directory.join("containers/auth.json"))
            .collect(),
        };
        let mut settings = Self {
            docker_config: docker.map(|directory| directory.join("config.json")),
            containers_auth,
            helper_path: path("PATH").map(Into::into),
            docker_auth_config: text(&all, "DOCKER_AUTH_CONFIG")?.map(Secret::new),
            ..Self::default()
        };
        settings.take_triple(&all)?;
        for name in all.keys().filter_map(|name| name.to_str()) {
            let Some(host) = prefixed(name) else { continue };
            // This variable belongs to `--auth-file`.
            if !host.eq_ignore_ascii_case("FILE")
                && let Some(value) = text(&all, name)?
            {
                settings.by_variable.push(VariableCredential { name: name.to_owned(), value: Secret::new(value) });
            }
        }
        Ok(settings)
    }

    /// Uses `credential` for `registry` before anything else. `origin` names its source.
    ///
    /// # Errors
    /// If `registry` is not a valid name.
    pub fn add(&mut self, registry: &str, credential: Credential, origin: &str) -> Result<()> {
        let found = LocatedCredential { credential, origin: origin.to_owned() };
        // At the front: a later value, such as a flag after the environment, wins.
        self.given.insert(0, (registry_name(registry)?, found));
        Ok(())
    }

    fn take_triple(&mut self, all: &BTreeMap<OsString, OsString>) -> Result<()> {
        let username = text(all, "TRANSLOAD_USERNAME")?;
        let password = text(all, "TRANSLOAD_PASSWORD")?;
        let registry = text(all, "TRANSLOAD_REGISTRY")?;
        let wrong = |what: &str| {
            Error::new(Kind::Usage, what)
                .hint("set TRANSLOAD_REGISTRY, TRANSLOAD_USERNAME and TRANSLOAD_PASSWORD, or TRANSLOAD_AUTH_<HOST>")
        };
        match (registry, username, password) {
            (Some(registry), Some(username), Some(password)) => {
                let credential = Credential::basic(username, password);
                self.add(registry, credential, "TRANSLOAD_USERNAME and TRANSLOAD_PASSWORD")
            }
            (_, None, None) => Ok(()),
            (_, None, Some(_)) => Err(wrong("TRANSLOAD_PASSWORD is set, but TRANSLOAD_USERNAME is not")),
            (_, Some(_), None) => Err(wrong("TRANSLOAD_USERNAME is set, but TRANSLOAD_PASSWORD is not")),
            (None, Some(_), Some(_)) => {
                Err(wrong("TRANSLOAD_USERNAME and TRANSLOAD_PASSWORD are set, but TRANSLOAD_REGISTRY is not"))
            }
        }
    }
}

/// The variable with the credentials of `registry`.
///
/// The form of Terraform's `TF_TOKEN_<host>`: a dot or colon becomes `_`, a dash `__`. So two hosts never share a
/// variable. <https://developer.hashicorp.com/terraform/cli/config/config-file#environment-variable-credentials>
pub fn variable_name(registry: &str) -> String {
    let mut name = VARIABLE_PREFIX.to_owned();
    for character in registry.chars() {
        match character {
            '.' | ':' => name.push('_'),
            '-' => name.push_str("__"),
            '_' => name.push_str("___"),
            '[' | ']' => {}
            other => name.push(other.to_ascii_uppercase()),
        }
    }
    name
}

pub(super) fn from_variable(variables: &[VariableCredential], registry: &str) -> Result<Option<LocatedCredential>> {
    let wanted = variable_name(registry);
    let named = |name: &str| variables.iter().find(|have| have.name.eq_ignore_ascii_case(name));
    // The same registry with the default port of https.
    let found = named(&wanted).or_else(|| named(&variable_name(&https_spelling(registry)?)));
    let Some(VariableCredential { name, value }) = found else {
        let near = variables.iter().find(|have| without_separators(&have.name) == without_separators(&wanted));
        if let Some(near) = near {
            tracing::warn!("{} is not used for {registry}: that would be {wanted}", near.name);
        }
        return Ok(None);
    };
    match value.reveal().split_once(':') {
        Some((username, password)) if !username.is_empty() && !password.is_empty() => {
            Ok(Some(LocatedCredential { credential: Credential::basic(username, password), origin: name.clone() }))
        }
        _ => Err(Error::new(Kind::Usage, format!("{name} is not of the form user:password"))),
    }
}

fn prefixed(name: &str) -> Option<&str> {
    // On Windows, variable names ignore the letter case.
    let (start, host) = name.split_at_checked(VARIABLE_PREFIX.len())?;
    (start.eq_ignore_ascii_case(VARIABLE_PREFIX) && !host.is_empty()).then_some(host)
}

fn without_separators(name: &str) -> String {
    name.split('_').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("_").to_ascii_uppercase()
}

fn text<'a>(all: &'a BTreeMap<OsString, OsString>, name: &str) -> Result<Option<&'a str>> {
    match all.get(std::ffi::OsStr::new(name)).map(|value| value.to_str()) {
        None => Ok(None),
        Some(Some(value)) => Ok(Some(value)),
        Some(None) => Err(Error::new(Kind::Usage, format!("{name} is not valid UTF-8"))),
    }
}

impl std::fmt::Debug for VariableCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// The file for `--auth-file`; a mounted Kubernetes secret may be named by its directory.
/// <https://kubernetes.io/docs/concepts/configuration/secret/#docker-config-secrets>
pub(super) fn named_file(path: &Path) -> PathBuf {
    if !path.is_dir() {
        return path.to_owned();
    }
    let known = [".dockerconfigjson", ".dockercfg", "config.json", "auth.json"];
    known.iter().map(|name| path.join(name)).find(|file| file.exists()).unwrap_or_else(|| path.join(known[0]))
}

/// The registry's name with the port of https, if it means the same registry.
pub(super) fn https_spelling(registry: &str) -> Option<String> {
    let spelled = format!("{registry}:443");
    (without_https_port(&spelled) == registry).then_some(spelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_environment(pairs.iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn the_usual_places() {
        let made = settings(&[("HOME", "/h"), ("PATH", "/bin")]).expect("settings");
        assert_eq!(made.docker_config.as_deref(), Some(Path::new("/h/.docker/config.json")));
        assert_eq!(made.containers_auth, [PathBuf::from("/h/.config/containers/auth.json")]);
        assert_eq!(made.helper_path.as_deref(), Some(std::ffi::OsStr::new("/bin")));

        let made = settings(&[
            ("HOME", "/h"),
            ("DOCKER_CONFIG", "/d"),
            ("XDG_RUNTIME_DIR", "/run/user/1"),
            ("XDG_CONFIG_HOME", "/c"),
        ])
        .expect("settings");
        assert_eq!(made.docker_config.as_deref(), Some(Path::new("/d/config.json")));
        let wanted = ["/run/user/1/containers/auth.json", "/c/containers/auth.json"].map(PathBuf::from);
        assert_eq!(made.containers_auth, wanted);

        let made = settings(&[("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/a.json"), ("XDG_RUNTIME_DIR", "/r")]);
        assert_eq!(made.expect("settings").containers_auth, [PathBuf::from("/a.json")]);
    }

    #[test]
    fn a_password_without_its_registry_is_refused() {
        let user = ("TRANSLOAD_USERNAME", "u");
        let password = ("TRANSLOAD_PASSWORD", "hunter2");
        for (pairs, why) in [
            (vec![user, password], "TRANSLOAD_REGISTRY"),
            (vec![user, password, ("TRANSLOAD_REGISTRY", "")], "TRANSLOAD_REGISTRY"),
            (vec![user, ("TRANSLOAD_REGISTRY", "r.io")], "TRANSLOAD_PASSWORD is not"),
            (vec![password, ("TRANSLOAD_REGISTRY", "r.io")], "TRANSLOAD_USERNAME is not"),
            (vec![user, password, ("TRANSLOAD_REGISTRY", "https://r.io")], "URL"),
        ] {
            let error = settings(&pairs).expect_err(why);
            assert!(error.to_string().contains(why), "{pairs:?}: {error}");
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(!format!("{error} {error:?} {:?}", error.hint_text()).contains("hunter2"), "{error}");
        }
        let made = settings(&[user, password, ("TRANSLOAD_REGISTRY", "Index.docker.io")]).expect("settings");
        assert_eq!(made.given[0].0, "docker.io");
        assert!(!format!("{made:?}").contains("hunter2"));
    }

    #[test]
    fn variables_of_hosts_do_not_collide() {
        for (registry, name) in [
            ("my.azurecr.io", "TRANSLOAD_AUTH_MY_AZURECR_IO"),
            ("my-x.azurecr.io", "TRANSLOAD_AUTH_MY__X_AZURECR_IO"),
            ("127.0.0.1:5000", "TRANSLOAD_AUTH_127_0_0_1_5000"),
            ("[::1]:5000", "TRANSLOAD_AUTH___1_5000"),
        ] {
            assert_eq!(variable_name(registry), name);
            let made = settings(&[(name, "u:p:q"), ("TRANSLOAD_AUTH_FILE", "/a")]).expect("settings");
            let found = from_variable(&made.by_variable, registry).expect("well-formed").expect("found");
            assert_eq!(found.credential, Credential::basic("u", "p:q"));
            assert_eq!(made.by_variable.len(), 1, "TRANSLOAD_AUTH_FILE is no host's");
        }
        let made = settings(&[("TRANSLOAD_AUTH_A_B_IO", "u:p")]).expect("settings");
        assert_eq!(from_variable(&made.by_variable, "a-b.io").expect("nothing wrong"), None);
        let made = settings(&[("TRANSLOAD_AUTH_A_IO", "hunter2")]).expect("settings");
        let error = from_variable(&made.by_variable, "a.io").expect_err("no colon");
        assert!(error.to_string().contains("TRANSLOAD_AUTH_A_IO") && !error.to_string().contains("hunter2"));
        assert_eq!(from_variable(&made.by_variable, "b.io").expect("only matters for a.io"), None);
    }
}
