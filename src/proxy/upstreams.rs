//! The configured upstreams, and which one a request is for. No I/O.
//!
//! A name from a client, in the path or as `?ns=`, is only looked up here. The proxy never connects to a host that a client
//! names: it would be an open proxy into its own network (docs/protocol.md, section 4).

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::rules::Rules;
use crate::error::{Error, Kind, Result};
use crate::reference::{
    DOCKER_HUB, RegistryName, Repository, RepositoryName, check_name, registry_name, without_https_port,
};
use crate::server::RepositoryPath;

/// The configuration of one upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpstreamConfig {
    /// The registry's name, as clients know it: `docker.io`.
    pub(crate) name: String,
    /// Where its images are read from, in this order.
    pub(crate) tiers: Vec<RegistryPath>,
    /// Which of its repositories may be asked for.
    pub(crate) rules: Rules,
    /// How long a cached tag stays fresh; `None` for the value of [`Settings`](super::Settings).
    pub(crate) tag_ttl: Option<Duration>,
    /// How long an answer "not found" is remembered; `None` for the value of [`Settings`](super::Settings).
    pub(crate) negative_ttl: Option<Duration>,
    /// What only its last tiers had is copied into the first.
    pub(crate) write_back: bool,
}

/// A registry and a prefix of repository names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RegistryPath {
    /// The registry: `myregistry.azurecr.io`.
    pub(crate) registry: RegistryName,
    /// The prefix of all repository names, such as `docker.io`, or empty.
    pub(crate) prefix: String,
}

/// A repository of an upstream. It keeps the configuration that was valid when the request came, so a reload does not
/// change a fetch that is running.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamRepository {
    pub(crate) upstream: Arc<UpstreamConfig>,
    /// The repository, by its name at the upstream.
    pub(crate) repository: Arc<str>,
}

impl UpstreamRepository {
    /// A text that identifies the repository. It differs from that of a repository of the same name at other tiers.
    pub(super) fn record_name(&self) -> String {
        format!("{} {} {}", self.upstream.name, self.upstream.tiers_text(), self.repository)
    }
}

/// The configured upstreams.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upstreams(Vec<Arc<UpstreamConfig>>);

/// Compares the repository, the upstream's name and its tiers. With other tiers it is another repository: answers of the old
/// tiers say nothing about it.
impl PartialEq for UpstreamRepository {
    fn eq(&self, other: &Self) -> bool {
        self.repository == other.repository
            && (Arc::ptr_eq(&self.upstream, &other.upstream)
                || (self.upstream.name == other.upstream.name && self.upstream.tiers == other.upstream.tiers))
    }
}

impl Eq for UpstreamRepository {}

impl Hash for UpstreamRepository {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.upstream.name.hash(state);
        self.upstream.tiers.hash(state);
        self.repository.hash(state);
    }
}

impl Upstreams {
    /// The upstreams of a configuration.
    ///
    /// # Errors
    /// [`Kind::Usage`] if there is none, if two have the same name, or if one has no tiers, more than [`MAX_TIERS`], or the
    /// same tier twice.
    pub(crate) fn new(specs: Vec<UpstreamConfig>) -> Result<Self> {
        if specs.is_empty() {
            return Err(Error::new(Kind::Usage, "no upstream is configured").hint("add one, such as docker.io"));
        }
        for (n, spec) in specs.iter().enumerate() {
            if specs[..n].iter().any(|other| other.name == spec.name) {
                return Err(Error::new(Kind::Usage, format!("two upstreams have the name {}", spec.name))
                    .hint("remove one of them: clients address an upstream by its name"));
            }
            check_tiers(spec)?;
        }
        Ok(Self(specs.into_iter().map(Arc::new).collect()))
    }

    /// The registries that are read from, each once.
    pub(crate) fn registries(&self) -> BTreeSet<&str> {
        self.0.iter().flat_map(|spec| &spec.tiers).map(|base| base.registry.as_str()).collect()
    }

    /// The upstream repository of a request: by `?ns=`, else by the first part of the path, else the upstream that
    /// Docker's `registry-mirrors` implies, which is Docker Hub or the only one. `None` if no upstream is configured for it, or
    /// the rules deny it.
    pub(crate) fn find(&self, repository: &RepositoryPath) -> Option<UpstreamRepository> {
        self.requested(repository).filter(|repo| repo.upstream.rules.allows(&repo.repository))
    }

    /// A repository of the upstream of this name. `None` if there is no such upstream, or the rules deny the repository.
    pub(crate) fn repository(&self, upstream: &str, repository: &str) -> Option<UpstreamRepository> {
        self.repository_unchecked(upstream, repository).filter(|repo| repo.upstream.rules.allows(&repo.repository))
    }

    /// Like [`repository`](Self::repository) without the rules: for the records on disk, not for answers.
    pub(super) fn repository_unchecked(&self, upstream: &str, repository: &str) -> Option<UpstreamRepository> {
        let upstream = self.0.iter().find(|spec| spec.name == upstream)?.clone();
        Some(UpstreamRepository { upstream, repository: repository.into() })
    }

    fn requested(&self, repository: &RepositoryPath) -> Option<UpstreamRepository> {
        if let Some(ns) = &repository.ns {
            return self.position(ns).map(|found| self.repository_of(found, &repository.name));
        }
        if let Some((first, rest)) = repository.name.split_once('/') {
            if let Some(found) = self.position(first) {
                return Some(self.repository_of(found, rest));
            }
            // Names of Docker Hub users have no dots: this is a registry that is not configured.
            if first.contains('.') && self.position(DOCKER_HUB).is_some() {
                return None;
            }
        }
        let default = self.position(DOCKER_HUB).or((self.0.len() == 1).then_some(0))?;
        Some(self.repository_of(default, &repository.name))
    }

    fn position(&self, name: &str) -> Option<usize> {
        // containerd asks for `ns=HOST:443` where the image's reference has the port.
        let name = without_https_port(name);
        let name = if HUB_ALIASES.contains(&name) { DOCKER_HUB } else { name };
        self.0.iter().position(|spec| spec.name == name)
    }

    /// Clients may leave out `library/` of Docker Hub's official images.
    fn repository_of(&self, upstream: usize, name: &str) -> UpstreamRepository {
        let upstream = self.0[upstream].clone();
        let bare = upstream.name == DOCKER_HUB && !name.contains('/');
        UpstreamRepository { upstream, repository: if bare { format!("library/{name}").into() } else { name.into() } }
    }
}

fn check_tiers(spec: &UpstreamConfig) -> Result<()> {
    let (name, tiers) = (&spec.name, &spec.tiers);
    if tiers.is_empty() || tiers.len() > MAX_TIERS {
        let what = format!("the upstream {name} has {} tiers; 1 to {MAX_TIERS} are allowed", tiers.len());
        return Err(Error::new(Kind::Usage, what).hint("a tier is a registry with an optional path"));
    }
    match tiers.iter().enumerate().find(|(n, tier)| tiers[..*n].contains(tier)) {
        Some((_, tier)) => Err(Error::new(Kind::Usage, format!("the upstream {name} has the tier {tier} twice"))
            .hint("remove one of them")),
        None => Ok(()),
    }
}

impl RegistryPath {
    /// The repository of this name below the prefix.
    ///
    /// # Errors
    /// [`Kind::Usage`] if the name, or prefix and name together, is not a valid repository name.
    pub(crate) fn repository(&self, name: &str) -> Result<Repository> {
        let name = name.parse::<RepositoryName>()?.below(&self.prefix)?;
        Ok(Repository { registry: self.registry.clone(), name })
    }
}

impl fmt::Display for RegistryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.prefix {
            "" => self.registry.fmt(f),
            prefix => write!(f, "{}/{prefix}", self.registry),
        }
    }
}

impl FromStr for RegistryPath {
    type Err = Error;

    /// `REGISTRY[/PREFIX]`
    fn from_str(text: &str) -> Result<Self> {
        let (registry, prefix) = text.split_once('/').unwrap_or((text, ""));
        if !prefix.is_empty() {
            check_name(text, prefix)?;
        }
        Ok(Self { registry: registry.parse()?, prefix: prefix.to_owned() })
    }
}

impl UpstreamConfig {
    /// An upstream without any rules.
    pub(crate) fn new(name: String, tiers: Vec<RegistryPath>) -> Self {
        Self { name, tiers, rules: Rules::default(), tag_ttl: None, negative_ttl: None, write_back: false }
    }

    /// Its tiers as one text: `my.azurecr.io/hub,docker.io`.
    pub(super) fn tiers_text(&self) -> String {
        self.tiers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// Whether [`tiers_text`](Self::tiers_text) is this text. Called for each pull by tag, so it allocates nothing.
    pub(super) fn is_read_from(&self, text: &str) -> bool {
        let mut parts = text.split(',');
        let is = |base: &RegistryPath, part: &str| match part.strip_prefix(&*base.registry) {
            Some("") => base.prefix.is_empty(),
            Some(rest) => !base.prefix.is_empty() && rest.strip_prefix('/') == Some(&base.prefix),
            None => false,
        };
        self.tiers.iter().all(|base| parts.next().is_some_and(|part| is(base, part))) && parts.next().is_none()
    }
}

impl FromStr for UpstreamConfig {
    type Err = Error;

    /// `NAME=TIER[,TIER…]`, each tier `REGISTRY[/PREFIX]`; or `NAME` alone for the registry of that name.
    fn from_str(text: &str) -> Result<Self> {
        let (name, tiers) = text.split_once('=').unwrap_or((text, text));
        let hint = "write NAME=REGISTRY[/PREFIX], such as docker.io=myregistry.azurecr.io/docker.io";
        let tiers = tiers.split(',').map(str::parse).collect::<Result<_>>().map_err(|error| error.hint(hint))?;
        Ok(Self::new(registry_name(name).map_err(|error| error.hint(hint))?, tiers))
    }
}

/// Each tier that fails costs a client time before the next one is asked.
const MAX_TIERS: usize = 8;

/// Other names that clients use for Docker Hub.
const HUB_ALIASES: [&str; 2] = ["registry-1.docker.io", "index.docker.io"];

#[cfg(test)]
mod tests {
    use super::*;

    fn world(specs: &[&str]) -> Upstreams {
        Upstreams::new(specs.iter().map(|spec| spec.parse().expect("a spec")).collect()).expect("a world")
    }

    fn found(upstreams: &Upstreams, ns: Option<&str>, name: &str) -> Option<String> {
        let repository = RepositoryPath { name: name.into(), ns: ns.map(str::to_owned) };
        let UpstreamRepository { upstream, repository } = upstreams.find(&repository)?;
        Some(upstream.tiers[0].repository(&repository).ok()?.to_string())
    }

    #[test]
    fn by_namespace_by_path_or_by_default() {
        let two = world(&["docker.io=my.azurecr.io/hub", "127.0.0.1:5001"]);
        for (ns, name, meant) in [
            (Some("docker.io"), "library/nginx", Some("my.azurecr.io/hub/library/nginx")),
            (Some("registry-1.docker.io"), "nginx", Some("my.azurecr.io/hub/library/nginx")),
            (Some("127.0.0.1:5001"), "a/b", Some("127.0.0.1:5001/a/b")),
            (Some("ghcr.io"), "a/b", None),
            (Some("169.254.169.254"), "a/b", None),
            // By `?ns=` the path is a repository and nothing else.
            (Some("docker.io"), "docker.io/library/nginx", Some("my.azurecr.io/hub/docker.io/library/nginx")),
            (None, "docker.io/library/nginx", Some("my.azurecr.io/hub/library/nginx")),
            (None, "docker.io/nginx", Some("my.azurecr.io/hub/library/nginx")),
            (None, "library/nginx", Some("my.azurecr.io/hub/library/nginx")),
            (None, "ghcr.io/a/b", None),
        ] {
            assert_eq!(found(&two, ns, name).as_deref(), meant, "{ns:?} {name}");
        }
        let other = world(&["ghcr.io", "quay.io"]);
        assert_eq!(found(&other, None, "a/b"), None);
        assert_eq!(found(&other, None, "quay.io/a/b").as_deref(), Some("quay.io/a/b"));
        assert_eq!(found(&world(&["ghcr.io"]), None, "a/b").as_deref(), Some("ghcr.io/a/b"));
    }

    /// Also for what is written back; and other tiers make another repository.
    #[test]
    fn rules_hold_and_tiers_differ() {
        let with = |spec: &str, deny: &[&str]| {
            let mut spec: UpstreamConfig = spec.parse().expect("a spec");
            spec.rules.deny = deny.iter().map(|pattern| pattern.parse().expect("a pattern")).collect();
            Upstreams::new(vec![spec]).expect("a world")
        };
        let closed = with("ghcr.io", &["secret/**"]);
        assert!(
            closed.repository("ghcr.io", "secret/a").is_none() && found(&closed, Some("ghcr.io"), "secret/a").is_none()
        );
        let repo = |upstreams: &Upstreams| upstreams.repository("ghcr.io", "open/a").expect("allowed");
        assert_eq!(repo(&closed), repo(&with("ghcr.io", &[])));
        assert_ne!(repo(&closed), repo(&with("ghcr.io=my.azurecr.io", &[])));
    }

    #[test]
    fn tiers_are_told_apart_by_their_text() {
        let spec = |bases: &[&str]| {
            let bases = bases.iter().map(|base| base.parse().expect("a base")).collect();
            UpstreamConfig::new("docker.io".to_owned(), bases)
        };
        let all =
            [&["a.io"][..], &["a.io/x"], &["a.io/x/y"], &["a.io", "b.io"], &["b.io", "a.io"], &["a.io:80"]].map(spec);
        assert_eq!(all[3].tiers_text(), "a.io,b.io");
        for (n, one) in all.iter().enumerate() {
            for (m, other) in all.iter().enumerate() {
                assert_eq!(one.is_read_from(&other.tiers_text()), n == m, "{one:?} {other:?}");
            }
        }
        assert!(!all[1].is_read_from("a.io/") && !all[0].is_read_from("a.io/") && !all[0].is_read_from(""));
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for wrong in [
            "",
            "=",
            "docker.io=",
            "docker.io=a.io,",
            "docker.io=,a.io",
            "docker.io=UP/../x",
            "a b=c",
            "docker.io=x.io/Upper",
        ] {
            let error = wrong.parse::<UpstreamConfig>().expect_err(wrong);
            assert_eq!(error.kind(), Kind::Usage, "{wrong}: {error}");
        }
        let twice = vec!["ghcr.io".parse().expect("a spec"), "ghcr.io=my.io".parse().expect("a spec")];
        assert!(Upstreams::new(twice).is_err());
        for wrong in ["docker.io=a.io,a.io", "docker.io=a,b,c,d,e,f,g,h,i"] {
            assert!(Upstreams::new(vec![wrong.parse().expect("a spec")]).is_err(), "{wrong}");
        }
        assert!(Upstreams::new(Vec::new()).is_err());
    }
}
