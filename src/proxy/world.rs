//! Which upstreams there are, and which one a request means. No I/O.
//!
//! The world is closed: what a client writes, in the path or as `?ns=`, is looked up here and never
//! dialled (PROTOCOL D6: peers that dial it are open proxies into their own network).

use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::reference::{DOCKER_HUB, Repository, check_name, registry_name};
use crate::server::Place;

/// What is proxied under one name, and where it's read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The registry's name, as clients know it: `docker.io`.
    pub name: String,
    /// Where its images are read from, in this order.
    pub tiers: Vec<Base>,
}

/// A registry, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// The registry: `myregistry.azurecr.io`.
    pub registry: String,
    /// What stands before a repository's name there: `docker.io`, or nothing.
    pub prefix: String,
}

/// A repository of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spot {
    /// The upstream's number in [`World::specs`].
    pub upstream: usize,
    /// The repository, as it's named there.
    pub repository: Arc<str>,
}

/// All upstreams.
#[derive(Clone, Debug)]
pub struct World(Vec<Spec>);

impl World {
    /// These upstreams.
    ///
    /// # Errors
    /// [`Kind::Usage`] if there is none, or two have one name.
    pub fn new(specs: Vec<Spec>) -> Result<Self> {
        if specs.is_empty() {
            return Err(Error::new(Kind::Usage, "there is no upstream").hint("name one: --upstream docker.io"));
        }
        for (n, spec) in specs.iter().enumerate() {
            if specs[..n].iter().any(|other| other.name == spec.name) {
                return Err(Error::new(Kind::Usage, format!("there are two upstreams {}", spec.name)));
            }
        }
        Ok(Self(specs))
    }

    /// Its upstreams.
    pub fn specs(&self) -> &[Spec] {
        &self.0
    }

    /// What `place` means: by `?ns=`, else by the first part of the path, else the upstream that
    /// Docker's `registry-mirrors` means, which is Docker Hub or the only one that there is.
    pub fn find(&self, place: &Place) -> Option<Spot> {
        if let Some(ns) = &place.ns {
            return self.named(ns).map(|found| self.within(found, &place.name));
        }
        if let Some((first, rest)) = place.name.split_once('/') {
            if let Some(found) = self.named(first) {
                return Some(self.within(found, rest));
            }
            // Docker Hub's users have no dots: this is a registry that isn't one of ours.
            if first.contains('.') && self.named(DOCKER_HUB).is_some() {
                return None;
            }
        }
        let default = self.named(DOCKER_HUB).or((self.0.len() == 1).then_some(0))?;
        Some(self.within(default, &place.name))
    }

    fn named(&self, name: &str) -> Option<usize> {
        let name = if HUB_ALIASES.contains(&name) { DOCKER_HUB } else { name };
        self.0.iter().position(|spec| spec.name == name)
    }

    /// Docker Hub's own images have a first part that may be left out.
    fn within(&self, upstream: usize, name: &str) -> Spot {
        let bare = self.0[upstream].name == DOCKER_HUB && !name.contains('/');
        Spot { upstream, repository: if bare { format!("library/{name}").into() } else { name.into() } }
    }
}

impl Base {
    /// Where a repository is.
    pub fn repository(&self, name: &str) -> Repository {
        let name = if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) };
        Repository { registry: self.registry.clone(), name }
    }
}

impl FromStr for Base {
    type Err = Error;

    /// `REGISTRY[/PREFIX]`
    fn from_str(text: &str) -> Result<Self> {
        let (registry, prefix) = text.split_once('/').unwrap_or((text, ""));
        if !prefix.is_empty() {
            check_name(text, prefix)?;
        }
        Ok(Self { registry: registry_name(registry)?, prefix: prefix.to_owned() })
    }
}

impl FromStr for Spec {
    type Err = Error;

    /// `NAME=REGISTRY[/PREFIX]`, or `NAME` alone for the registry of that name.
    fn from_str(text: &str) -> Result<Self> {
        let (name, base) = text.split_once('=').unwrap_or((text, text));
        let hint = "write NAME=REGISTRY[/PREFIX], such as docker.io=myregistry.azurecr.io/docker.io";
        let base = base.parse().map_err(|error: Error| error.hint(hint))?;
        Ok(Self { name: registry_name(name).map_err(|error| error.hint(hint))?, tiers: vec![base] })
    }
}

/// Other names of Docker Hub that clients have for it.
const HUB_ALIASES: [&str; 2] = ["registry-1.docker.io", "index.docker.io"];

#[cfg(test)]
mod tests {
    use super::*;

    fn world(specs: &[&str]) -> World {
        World::new(specs.iter().map(|spec| spec.parse().expect("a spec")).collect()).expect("a world")
    }

    fn found(world: &World, ns: Option<&str>, name: &str) -> Option<String> {
        let place = Place { name: name.into(), ns: ns.map(str::to_owned) };
        let Spot { upstream, repository } = world.find(&place)?;
        Some(world.specs()[upstream].tiers[0].repository(&repository).to_string())
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

    #[test]
    fn what_makes_no_sense_is_said() {
        for wrong in ["", "=", "docker.io=", "docker.io=UP/../x", "a b=c", "docker.io=x.io/Upper"] {
            let error = wrong.parse::<Spec>().expect_err(wrong);
            assert_eq!(error.kind(), Kind::Usage, "{wrong}: {error}");
        }
        let twice = vec!["ghcr.io".parse().expect("a spec"), "ghcr.io=my.io".parse().expect("a spec")];
        assert!(World::new(twice).is_err());
        assert!(World::new(Vec::new()).is_err());
    }
}
