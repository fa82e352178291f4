//! What stands in a `hosts.toml`.
//! <https://github.com/containerd/containerd/blob/main/docs/hosts.md>

use std::fmt::Write as _;
use std::time::Duration;

use crate::error::{Error, Kind, Result, Side};
use crate::reference::{DOCKER_HUB, check_name, is_loopback, registry_as_written, split_port};

/// The first line of each file of ours. What doesn't begin with it is somebody else's.
pub(super) const FILE_HEADER: &str =
    "# Written by transload node install-mirror; --uninstall restores what was here before.\n";

/// The second line, where the directory was made for the file, and goes with it.
pub(super) const DIRECTORY_MARKER: &str = "# The directory was made for this file.\n";

/// Where a node asks for one registry's images: the proxy, then ACR, then the registry itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    registry: String,
    proxy: Option<String>,
    acr: Option<Acr>,
    upstream: Option<String>,
    dial_timeout: Duration,
}

/// A registry of one's own that holds copies, below a prefix: `myregistry.azurecr.io/docker.io`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acr {
    scheme: &'static str,
    registry: String,
    prefix: String,
}

impl Mirror {
    /// A mirror of `registry`, so far with the registry itself only.
    ///
    /// # Errors
    /// If `registry` isn't a registry's name.
    pub fn new(registry: &str) -> Result<Self> {
        let registry = registry_as_written(registry)?;
        let upstream = Some(upstream_url(&registry));
        Ok(Self { registry, proxy: None, acr: None, upstream, dial_timeout: Duration::from_millis(200) })
    }

    /// Asks the proxy at this URL first, such as `http://127.0.0.1:30500`.
    ///
    /// # Errors
    /// If it isn't `http://HOST[:PORT]` or `https://HOST[:PORT]`.
    pub fn proxy(mut self, url: &str) -> Result<Self> {
        let (scheme, host) = split_url(url).ok_or_else(|| not_a_url(url))?;
        self.proxy = Some(format!("{scheme}://{}", registry_as_written(host).map_err(|_| not_a_url(url))?));
        Ok(self)
    }

    /// Asks this registry after the proxy.
    #[must_use]
    pub fn acr(mut self, acr: Acr) -> Self {
        self.acr = Some(acr);
        self
    }

    /// Never asks the registry itself.
    ///
    /// # Errors
    /// If nobody is left to be asked.
    pub fn without_upstream(mut self) -> Result<Self> {
        if self.proxy.is_none() && self.acr.is_none() {
            return Err(Error::new(Kind::Usage, "neither a proxy, nor ACR, nor the registry itself: nobody to ask")
                .on(Side::Local));
        }
        self.upstream = None;
        Ok(self)
    }

    /// How long a host may take to accept a connection before the next one is asked.
    #[must_use]
    pub fn dial_timeout(mut self, limit: Duration) -> Self {
        self.dial_timeout = limit;
        self
    }

    /// Whose images these are, such as `docker.io`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The text of the file, but for its first line.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Without `server`, containerd asks the registry itself in the end.
        let last = self.upstream.clone().or_else(|| self.acr.as_ref().map(Acr::url)).or_else(|| self.proxy.clone());
        let _ = writeln!(text, "server = {}", quoted(&last.unwrap_or_default()));
        if self.upstream.is_none() && self.acr.as_ref().is_some_and(|acr| !acr.prefix.is_empty()) {
            // The URL has the API's root in it; at the top level the key means the server.
            text.push_str("override_path = true\n");
        }
        if let Some(proxy) = &self.proxy {
            self.host(&mut text, proxy, false);
        }
        // The last one is the server already; but containerd 1 takes no file without a host.
        if let Some(acr) = self.acr.as_ref().filter(|_| self.upstream.is_some() || self.proxy.is_none()) {
            self.host(&mut text, &acr.url(), !acr.prefix.is_empty());
        }
        text
    }

    fn host(&self, text: &mut String, url: &str, override_path: bool) {
        let _ = write!(text, "\n[host.{}]\n  capabilities = [\"pull\", \"resolve\"]\n", quoted(url));
        if override_path {
            text.push_str("  override_path = true\n");
        }
        // containerd remembers no dead host: each manifest and blob dials it again, for 30 s by its
        // default (containerd#10660). It knows this key since 2.1, and passes over it before.
        let _ = writeln!(text, "  dial_timeout = \"{}ms\"", self.dial_timeout.as_millis());
    }
}

impl Acr {
    /// Reads `myregistry.azurecr.io`, with or without `https://`, and a prefix where one is meant.
    ///
    /// `{registry}` in it stands for the name of the registry whose copies they are.
    ///
    /// # Errors
    /// If host or prefix are malformed.
    pub fn parse(text: &str, of: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::new(Kind::Usage, format!("{text:?} is not REGISTRY[/PREFIX]: {why}"))
                .on(Side::Local)
                .hint("write the registry that holds the copies, such as myregistry.azurecr.io/docker.io")
        };
        let (scheme, bare) = split_url(text).unwrap_or(("https", text));
        let bare = bare.replace("{registry}", split_port(of).0);
        let (host, prefix) = bare.trim_end_matches('/').split_once('/').unwrap_or((bare.trim_end_matches('/'), ""));
        let registry = registry_as_written(host).map_err(|_| wrong("the host is malformed"))?;
        if !prefix.is_empty() {
            check_name(text, prefix).map_err(|_| wrong("the prefix is not a repository's name"))?;
        }
        Ok(Self { scheme, registry, prefix: prefix.to_owned() })
    }

    fn url(&self) -> String {
        let Self { scheme, registry, prefix } = self;
        if prefix.is_empty() { format!("{scheme}://{registry}") } else { format!("{scheme}://{registry}/v2/{prefix}") }
    }
}

/// The directory below `certs.d` in which containerd looks first: `host_5000_` for `host:5000`.
///
/// A colon can't stand in a name everywhere (Windows); containerd tries this form before the other.
pub fn directory_name(registry: &str) -> String {
    match split_port(registry) {
        (host, Some(port)) => format!("{host}_{port}_"),
        (host, None) => host.to_owned(),
    }
}

/// The URL of a registry itself: plain http on loopback, as everywhere.
fn upstream_url(registry: &str) -> String {
    let (host, _) = split_port(registry);
    match registry {
        DOCKER_HUB => "https://registry-1.docker.io".to_owned(),
        _ if is_loopback(host) => format!("http://{registry}"),
        _ => format!("https://{registry}"),
    }
}

/// Scheme and the rest of an http(s) URL.
fn split_url(text: &str) -> Option<(&'static str, &str)> {
    match text.split_once("://")? {
        ("http", rest) => Some(("http", rest.trim_end_matches('/'))),
        ("https", rest) => Some(("https", rest.trim_end_matches('/'))),
        _ => None,
    }
}

fn not_a_url(url: &str) -> Error {
    Error::new(Kind::Usage, format!("{url:?} is not the URL of a proxy"))
        .on(Side::Local)
        .hint("write scheme, host and port, such as http://127.0.0.1:30500; the name of a Service won't do, since nodes don't ask the cluster's DNS")
}

/// A TOML basic string. All that comes here was parsed; this holds whatever the parsers allow.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub() -> Mirror {
        Mirror::new("docker.io").expect("a registry").proxy("http://127.0.0.1:30500").expect("a URL")
    }

    fn acr(text: &str) -> Acr {
        Acr::parse(text, "docker.io").expect("a registry")
    }

    #[test]
    fn proxy_then_acr_then_the_upstream() {
        assert_eq!(
            hub().acr(acr("https://myregistry.azurecr.io/{registry}")).render(),
            r#"server = "https://registry-1.docker.io"

[host."http://127.0.0.1:30500"]
  capabilities = ["pull", "resolve"]
  dial_timeout = "200ms"

[host."https://myregistry.azurecr.io/v2/docker.io"]
  capabilities = ["pull", "resolve"]
  override_path = true
  dial_timeout = "200ms"
"#
        );
    }

    #[test]
    fn without_the_upstream_the_last_mirror_is_the_server() {
        let both = hub().acr(acr("myregistry.azurecr.io/docker.io")).without_upstream().expect("two are left");
        let text = both.render();
        assert!(text.starts_with("server = \"https://myregistry.azurecr.io/v2/docker.io\"\noverride_path = true\n"));
        assert_eq!(text.matches("[host.").count(), 1, "{text}");
        let proxy = hub().without_upstream().expect("one is left").render();
        assert!(
            proxy.starts_with("server = \"http://127.0.0.1:30500\"\n\n[host.\"http://127.0.0.1:30500\"]\n"),
            "{proxy}"
        );
        let mirror = || Mirror::new("docker.io").expect("a registry");
        assert!(mirror().without_upstream().is_err());
        assert!(mirror().acr(acr("r.azurecr.io")).without_upstream().expect("one").render().contains("[host."));
    }

    #[test]
    fn other_registries_and_their_directories() {
        let mirror = Mirror::new("Registry.Example.com:5000").expect("a registry");
        assert_eq!(directory_name(mirror.registry()), "registry.example.com_5000_");
        assert!(mirror.render().starts_with("server = \"https://registry.example.com:5000\"\n"));
        assert_eq!(directory_name(Mirror::new("index.docker.io").expect("a registry").registry()), "docker.io");
        assert_eq!(
            Acr::parse("r.azurecr.io/{registry}", "host:5000").expect("a prefix").url(),
            "https://r.azurecr.io/v2/host"
        );
        assert_eq!(acr("http://127.0.0.1:5000/").url(), "http://127.0.0.1:5000");
    }

    #[test]
    fn nothing_malformed_gets_into_a_file() {
        for url in [
            "127.0.0.1:30500",
            "ftp://x",
            "http://",
            "http://a/b",
            "http://u:p@h",
            "http://h:0",
            "http://h\"]\n[x",
            "http://h h",
        ] {
            assert!(Mirror::new("docker.io").expect("a registry").proxy(url).is_err(), "{url:?}");
        }
        for text in ["", "r.azurecr.io/UPPER", "r.azurecr.io/a//b", "r.azurecr.io/../x", "a b", "r.azurecr.io/a\"\n"] {
            assert!(Acr::parse(text, "docker.io").is_err(), "{text:?}");
        }
        for registry in ["", "..", "a/b", "docker.io/..", "a\nb", "_default/../.."] {
            assert!(Mirror::new(registry).is_err(), "{registry:?}");
        }
        assert_eq!(quoted("a\"\\\n"), "\"a\\\"\\\\\\u000A\"");
    }
}
