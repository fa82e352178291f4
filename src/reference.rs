//! Names of images as users write them: `hello-world`, `ghcr.io/o/r:tag@sha256:…`, `oci:DIR:TAG`.
//! No I/O.
//!
//! The rules are those of Docker's `reference` package: Docker Hub is the default registry, `library/`
//! its default namespace, `latest` the default tag.

mod artifact;
mod checked;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result};

pub use artifact::Artifact;
use checked::QuotedText;
pub use checked::{LayoutName, Malformed, RegistryName, RejectedTags, RepositoryName, Tag, parse_tags};

/// The name under which Docker Hub's images are known.
pub const DOCKER_HUB: &str = "docker.io";

/// A repository: where it is and what it's called there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// Host and, where it isn't the scheme's own, port: `docker.io`, `127.0.0.1:5000`, `[::1]:5000`.
    pub registry: RegistryName,
    /// The path: `library/hello-world`.
    pub name: RepositoryName,
}

impl Repository {
    /// No repository of the registry, for a request that concerns none (`GET /v2/`). Its name is empty, and
    /// no request to a repository can be made with it.
    pub fn none(registry: RegistryName) -> Self {
        Self { registry, name: RepositoryName::none() }
    }

    /// Whether it is on Docker Hub.
    pub fn is_docker_hub(&self) -> bool {
        self.registry == DOCKER_HUB
    }

    /// The repository of the same path below `prefix` (which may be empty) in another registry.
    ///
    /// With `strip_library`, Docker Hub's official images lose their `library/`.
    ///
    /// # Errors
    /// [`Kind::Usage`] if prefix and path together are no name of a repository.
    pub fn below(&self, registry: RegistryName, prefix: &str, strip_library: bool) -> Result<Self> {
        let name = match self.name.strip_prefix("library/") {
            Some(official) if strip_library && self.is_docker_hub() => official.parse()?,
            _ => self.name.clone(),
        };
        Ok(Self { registry, name: name.below(prefix)? })
    }

    /// The reference of `target` in this repository.
    pub fn at(&self, target: Target) -> Reference {
        Reference { repository: self.clone(), target }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}

impl FromStr for Repository {
    type Err = Error;

    /// Reads a repository without tag or digest.
    fn from_str(text: &str) -> Result<Self> {
        let reference: Reference = text.parse()?;
        let last = text.rsplit('/').next().unwrap_or(text);
        if last.contains(':') || last.contains('@') {
            return Err(Error::new(Kind::Usage, format!("{text:?} has a tag or digest, where a repository is meant"))
                .hint(format!("write {}", reference.repository)));
        }
        Ok(reference.repository)
    }
}

/// Which manifest of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// What the tag points to now.
    Tag(Tag),
    /// What has this name in a layout directory. No registry has such names.
    Name(LayoutName),
    /// This very manifest.
    Digest(Digest),
}

impl Target {
    /// The digest, if it is one.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Tag(_) | Self::Name(_) => None,
            Self::Digest(digest) => Some(*digest),
        }
    }

    /// The tag, if it is one.
    pub fn tag(&self) -> Option<&Tag> {
        match self {
            Self::Tag(tag) => Some(tag),
            Self::Name(_) | Self::Digest(_) => None,
        }
    }

    /// Refuses what no registry can have.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a name in a layout.
    pub fn in_registry(&self) -> Result<()> {
        let Self::Name(name) = self else { return Ok(()) };
        let tag = name.rsplit_once(':').map_or("TAG", |(_, tag)| tag);
        let tag = if check_tag(tag).is_ok() { tag } else { "TAG" };
        Err(Error::new(Kind::Usage, format!("the image's name {name:?} is not a tag, and a registry takes only tags"))
            .hint(format!("name the destination's repository and tag, such as myregistry.azurecr.io/name:{tag}")))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Name(name) => f.write_str(name),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A manifest in a repository of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// The repository.
    pub repository: Repository,
    /// The tag or digest. Where a user wrote both (`r:tag@sha256:…`), the digest: as in Docker,
    /// the tag is then no more than a remark.
    pub target: Target,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.target.digest().is_some() { '@' } else { ':' };
        write!(f, "{}{separator}{}", self.repository, self.target)
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(parse(text)?.0)
    }
}

/// What a user may name as the source of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceLocation {
    /// In a registry; with the tag that was written beside a digest.
    Registry(Reference, Option<Tag>),
    /// In an OCI image layout directory, under a name where one is given. Where the text has several colons, the
    /// directory ends at the last one: whoever opens it knows better, by [`layout_splits`].
    Layout(PathBuf, Option<Target>),
}

impl FromStr for SourceLocation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(rest) = text.strip_prefix("oci:") {
            let (directory, name) = split_layout(rest)?;
            return Ok(Self::Layout(directory, name));
        }
        let (reference, tag) = parse(text)?;
        Ok(Self::Registry(reference, tag))
    }
}

impl fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference, _) => reference.fmt(f),
            Self::Layout(directory, Some(name)) => write!(f, "oci:{}:{name}", directory.display()),
            Self::Layout(directory, None) => write!(f, "oci:{}", directory.display()),
        }
    }
}

/// What a user may name as the destination of a copy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DestinationLocation {
    /// A registry, or a path in it that ends in `/`: the source's own path is kept below it.
    Below {
        /// The registry.
        registry: RegistryName,
        /// What stands before the source's path; empty, or without a slash at its ends.
        prefix: String,
    },
    /// This repository; the source's tag is kept where `target` isn't given.
    Repository {
        /// The repository.
        repository: Repository,
        /// The tag that was given.
        tag: Option<Tag>,
    },
    /// An OCI image layout directory, and the image's name there; see [`SourceLocation::Layout`].
    Layout(PathBuf, Option<Target>),
}

impl DestinationLocation {
    /// Where an image of `source` goes: the repository. `None` for a layout directory.
    ///
    /// # Errors
    /// As [`Repository::below`].
    pub fn repository(&self, source: &Repository, strip_library: bool) -> Result<Option<Repository>> {
        Ok(match self {
            Self::Repository { repository, .. } => Some(repository.clone()),
            Self::Layout(..) => None,
            Self::Below { registry, prefix } => Some(source.below(registry.clone(), prefix, strip_library)?),
        })
    }
}

impl FromStr for DestinationLocation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(rest) = text.strip_prefix("oci:") {
            let (directory, tag) = split_layout(rest)?;
            return Ok(Self::Layout(directory, tag));
        }
        let bare = text.strip_prefix("docker://").unwrap_or(text);
        if let Some(path) = bare.strip_suffix('/') {
            let (registry, prefix) = path.split_once('/').unwrap_or((path, ""));
            if !looks_like_host(registry) {
                return Err(Error::new(Kind::Usage, format!("{text:?} names no registry"))
                    .hint("write the registry's host before the path, such as myregistry.azurecr.io/mirror/"));
            }
            if !prefix.is_empty() {
                check_name(text, prefix)?;
            }
            return Ok(Self::Below { registry: registry.parse()?, prefix: prefix.to_owned() });
        }
        if !bare.contains('/') && looks_like_host(bare) {
            return Ok(Self::Below { registry: bare.parse()?, prefix: String::new() });
        }
        if !bare.contains('/') {
            return Err(Error::new(Kind::Usage, format!("{text:?} names no registry to copy to")).hint(
                "write the registry's host, such as myregistry.azurecr.io, or docker.io/NAME/REPOSITORY for Docker Hub",
            ));
        }
        let (reference, _) = parse(bare)?;
        let explicit = bare.rsplit('/').next().is_some_and(|last| last.contains(':'));
        match reference.target {
            Target::Digest(_) => {
                Err(Error::new(Kind::Usage, format!("{text:?}: a destination takes a tag, not a digest"))
                    .hint("the digest follows from the image, which is copied byte for byte"))
            }
            Target::Tag(tag) => Ok(Self::Repository { repository: reference.repository, tag: explicit.then_some(tag) }),
            Target::Name(_) => Err(Error::new(Kind::Usage, format!("{text:?} is not a destination"))),
        }
    }
}

/// The name of a registry in the form that everything else uses: lower case, without the port that https has anyway,
/// and `docker.io` for Docker Hub's other names (`index.docker.io`, `registry-1.docker.io`).
///
/// # Errors
/// [`Kind::Usage`] if it is not a host with an optional port.
pub fn registry_name(text: &str) -> Result<String> {
    let written = registry_as_written(text)?;
    Ok(of_docker_hub(without_https_port(&written)).to_owned())
}

/// `docker.io` for the other names of Docker Hub.
fn of_docker_hub(name: &str) -> &str {
    match name {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => DOCKER_HUB,
        other => other,
    }
}

/// The name of a registry in lower case and with the port that was written: what other programs have in their files.
///
/// # Errors
/// As [`registry_name`].
pub fn registry_as_written(text: &str) -> Result<String> {
    let wrong = |why: &str| {
        Error::new(Kind::Usage, format!("{text:?} is not a registry: {why}"))
            .hint("write a host and, where needed, a port, such as myregistry.azurecr.io or 127.0.0.1:5000")
    };
    if text.contains("://") {
        return Err(wrong("it is written as a URL"));
    }
    let name = text.to_ascii_lowercase();
    let (host, port) = split_port(&name);
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => return Err(wrong("its port is not a number from 1 to 65535")),
    };
    let v6 = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let good = match v6 {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        }),
    };
    if !good {
        return Err(wrong("its host is malformed"));
    }
    // A port has many spellings, such as 05000.
    Ok(port.map_or_else(|| of_docker_hub(host).to_owned(), |port| format!("{host}:{port}")))
}

/// The name without `:443`, where it means the same registry: a registry is asked by https.
///
/// Hosts on this machine are asked by http too, so their port says something. A host without a dot keeps its port, since
/// it is no host to [`looks_like_host`] without one.
pub fn without_https_port(registry: &str) -> &str {
    let Some(host) = registry.strip_suffix(":443") else { return registry };
    if is_loopback(host) || !looks_like_host(host) { registry } else { host }
}

/// Whether a host is this machine: `localhost`, or a loopback address with or without brackets.
pub fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Host and port of `host[:port]`; an IPv6 host keeps its brackets.
pub fn split_port(registry: &str) -> (&str, Option<&str>) {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (registry, None),
    }
}

/// Checks a tag (distribution spec: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`).
pub fn check_tag(tag: &str) -> Result<()> {
    let first = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    if first && tag.len() <= 128 && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("{} is not a tag", QuotedText(tag))).hint(checked::TAG_HINT))
}

/// The reference, and the tag that stood beside a digest.
fn parse(text: &str) -> Result<(Reference, Option<Tag>)> {
    let bare = text.strip_prefix("docker://").unwrap_or(text);
    if bare.contains("://") {
        return Err(Error::new(Kind::Usage, format!("{text:?} is not an image reference: it is written as a URL"))
            .hint("write it without the scheme, such as ghcr.io/owner/name:tag"));
    }
    let (rest, digest) = match bare.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest.parse::<Digest>().map_err(|error| {
                Error::new(Kind::Usage, format!("{text:?} is not an image reference: {error}"))
                    .hint("a digest is sha256: and 64 characters of 0-9 and a-f")
            })?;
            (rest, Some(digest))
        }
        None => (bare, None),
    };
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') && !tag.contains(']') => (path, Some(tag)),
        _ => (rest, None),
    };
    let tag = tag.map(str::parse::<Tag>).transpose()?;
    let (registry, name) = match path.split_once('/') {
        Some((host, name))
            if looks_like_host(host) || host == "localhost" || host.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (host.parse()?, name)
        }
        _ => (RegistryName::docker_hub(), path),
    };
    let is_official = registry == DOCKER_HUB && !name.contains('/');
    let name = if is_official { format!("library/{name}") } else { name.to_owned() };
    let name = RepositoryName::within(text, name)?;
    let (target, beside) = match digest {
        Some(digest) => (Target::Digest(digest), tag),
        None => (Target::Tag(tag.unwrap_or_else(Tag::latest)), None),
    };
    Ok((Reference { repository: Repository { registry, name }, target }, beside))
}

/// Checks a repository's name, which stands in `text`.
///
/// Distribution spec: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` between slashes, 255 characters with the host.
pub fn check_name(text: &str, name: &str) -> Result<()> {
    let wrong = |why: String, hint: &str| {
        Error::new(Kind::Usage, format!("{text:?} is not an image reference: {why}")).hint(hint)
    };
    if name.is_empty() || name == "library/" {
        return Err(wrong(
            "it has no repository name".into(),
            "write a name such as nginx:1.27 or ghcr.io/owner/name:tag",
        ));
    }
    if name.len() > 255 {
        return Err(wrong("its repository name is longer than 255 characters".into(), "shorten it"));
    }
    for part in name.split('/') {
        let edges = part.bytes().next().zip(part.bytes().last()).is_some_and(|(a, z)| is_plain(a) && is_plain(z));
        let inside = part.bytes().all(|b| is_plain(b) || b"._-".contains(&b));
        let separators = !part.contains("..")
            && !part.contains("___")
            && !part.contains("._")
            && !part.contains("_.")
            && !part.contains("-.")
            && !part.contains(".-")
            && !part.contains("-_")
            && !part.contains("_-");
        if !(edges && inside && separators) {
            let hint = if part.bytes().any(|b| b.is_ascii_uppercase()) {
                "repository names are lower case"
            } else {
                "a repository's name has lower-case letters and digits, with '.', '_', '__' or '-' between them"
            };
            return Err(wrong(format!("{part:?} cannot be part of a repository's name"), hint));
        }
    }
    Ok(())
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Docker's rule: what stands before the first slash is a host if it has a dot or a colon, or is `localhost`.
pub fn looks_like_host(text: &str) -> bool {
    let (host, port) = split_port(text);
    host == "localhost" || host.contains('.') || host.starts_with('[')
        // `myregistry:5000` before a slash is a host; alone it would be an image with a tag.
        || port.is_some_and(|port| port.len() >= 2 && port.bytes().all(|b| b.is_ascii_digit()))
}

/// `DIR[:NAME]`, cut at the last colon.
fn split_layout(text: &str) -> Result<(PathBuf, Option<Target>)> {
    if text.is_empty() {
        return Err(Error::new(Kind::Usage, "\"oci:\" names no directory").hint("write oci:DIR or oci:DIR:TAG"));
    }
    match text.rsplit_once(':') {
        Some((directory, name)) if !directory.is_empty() && !name.contains('/') => {
            // What is said of a name that is neither is about tags: they are what most images have.
            let target = name.parse().map(Target::Tag).or_else(|error| named(name).ok_or(error))?;
            Ok((directory.into(), Some(target)))
        }
        _ => Ok((text.into(), None)),
    }
}

/// An image's name in a layout that is no tag.
fn named(text: &str) -> Option<Target> {
    text.parse().map(Target::Name).ok()
}

/// The directories that `DIR[:NAME]` may mean, the longest first, each with the name that is left: both a path and an
/// image's name (`nginx:1.13`, `docker.io/library/nginx:1.13`) may have colons.
pub fn layout_splits(directory: &std::path::Path, name: Option<&Target>) -> Vec<(PathBuf, Option<Target>)> {
    let whole = (directory.to_owned(), name.cloned());
    let Some(path) = directory.to_str() else { return vec![whole] };
    let text = name.map_or_else(|| path.to_owned(), |name| format!("{path}:{name}"));
    let cuts = text.rmatch_indices(':').filter(|(at, _)| *at > 0).filter_map(|(at, _)| {
        let name = &text[at + 1..];
        let target = name.parse().map(Target::Tag).ok().or_else(|| named(name))?;
        Some((PathBuf::from(&text[..at]), Some(target)))
    });
    [(PathBuf::from(&text), None)].into_iter().chain(cuts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        text.parse::<Reference>().map_or_else(|error| format!("error: {error}"), |reference| reference.to_string())
    }

    #[test]
    fn defaults_are_dockers() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (written, meant) in [
            ("hello-world", "docker.io/library/hello-world:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("docker://ghcr.io/o/r:v1", "ghcr.io/o/r:v1"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:t", "localhost:5000/x:t"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("reg:5000/a", "reg:5000/a:latest"),
            ("MyReg.azurecr.io/a", "myreg.azurecr.io/a:latest"),
            ("a__b/c-d.e_f", "docker.io/a__b/c-d.e_f:latest"),
        ] {
            assert_eq!(shown(written), meant, "{written}");
        }
        assert_eq!(shown(&format!("ghcr.io/o/r:tag@{digest}")), format!("ghcr.io/o/r@{digest}"));
    }

    #[test]
    fn wrong_references_say_why() {
        for (wrong, why) in [
            ("", "no repository name"),
            ("https://ghcr.io/o/r", "written as a URL"),
            ("Nginx", "lower case"),
            ("nginx:-x", "not a tag"),
            ("nginx@sha256:123", "hash"),
            ("a//b", "part of a repository"),
            ("ghcr.io/", "no repository name"),
            ("ghcr.io:99999/a", "port"),
            ("-a.io/x", "malformed"),
        ] {
            let error = wrong.parse::<Reference>().expect_err(wrong);
            let all = format!("{error} {}", error.hint_text().unwrap_or_default());
            assert!(all.contains(why), "{wrong}: {all}");
            assert_eq!(error.exit_code(), 2, "{wrong}: {all}");
        }
    }

    #[test]
    fn goals() {
        let source: Reference = "hello-world".parse().expect("a reference");
        let to = |text: &str, strip| {
            text.parse::<DestinationLocation>()
                .and_then(|goal| Ok(goal.repository(&source.repository, strip)?.map(|r| r.to_string())))
        };
        assert_eq!(to("my.azurecr.io", false).ok().flatten().as_deref(), Some("my.azurecr.io/library/hello-world"));
        assert_eq!(to("my.azurecr.io", true).ok().flatten().as_deref(), Some("my.azurecr.io/hello-world"));
        assert_eq!(to("127.0.0.1:5000/", false).ok().flatten().as_deref(), Some("127.0.0.1:5000/library/hello-world"));
        assert_eq!(to("my.azurecr.io/hub/", true).ok().flatten().as_deref(), Some("my.azurecr.io/hub/hello-world"));
        assert_eq!(to("my.azurecr.io/x/y:v1", false).ok().flatten().as_deref(), Some("my.azurecr.io/x/y"));
        assert!(to("hello-world:latest", false).is_err());
        assert!(to(&format!("my.azurecr.io/x@sha256:{}", "0".repeat(64)), false).is_err());
        let tag = |text: &str| text.parse().ok().map(Target::Tag);
        assert_eq!(
            "oci:dir/x:t".parse::<DestinationLocation>().ok(),
            Some(DestinationLocation::Layout("dir/x".into(), tag("t")))
        );
        assert_eq!(
            "oci:/a:b/c".parse::<DestinationLocation>().ok(),
            Some(DestinationLocation::Layout("/a:b/c".into(), None))
        );
    }

    #[test]
    fn the_port_of_https_says_nothing() {
        for (written, meant) in [
            ("r.example.com:443", "r.example.com"),
            ("R.Example.com:0443", "r.example.com"),
            ("x.azurecr.io:443", "x.azurecr.io"),
            ("index.docker.io:443", "docker.io"),
            ("[2001:db8::1]:443", "[2001:db8::1]"),
            ("r.example.com:0080", "r.example.com:80"),
            ("r.example.com:8443", "r.example.com:8443"),
            // It has to stay where the host would be no host without it, and where http is spoken, too.
            ("registry:443", "registry:443"),
            ("127.0.0.1:443", "127.0.0.1:443"),
            ("[::1]:443", "[::1]:443"),
            ("localhost:443", "localhost:443"),
        ] {
            assert_eq!(registry_name(written).expect("a registry"), meant, "{written}");
            let shown = shown(&format!("{written}/a/b:v1"));
            assert_eq!(shown, format!("{meant}/a/b:v1"));
            assert_eq!(shown.parse::<Reference>().expect("what is printed").to_string(), shown);
        }
        assert_eq!(registry_as_written("R.example.com:443").ok().as_deref(), Some("r.example.com:443"));
    }

    #[test]
    fn a_layout_and_its_name_may_both_have_colons() {
        let splits = |text: &str| {
            let Ok(SourceLocation::Layout(directory, name)) = text.parse() else { panic!("{text}") };
            let shown = |(directory, name): (PathBuf, Option<Target>)| {
                format!("{}|{}", directory.display(), name.map(|name| name.to_string()).unwrap_or_default())
            };
            layout_splits(&directory, name.as_ref()).into_iter().map(shown).collect::<Vec<_>>()
        };
        assert_eq!(splits("oci:lay"), ["lay|"]);
        assert_eq!(splits("oci:lay:nginx:1.13"), ["lay:nginx:1.13|", "lay:nginx|1.13", "lay|nginx:1.13"]);
        assert_eq!(splits("oci:/a:b/c"), ["/a:b/c|", "/a|b/c"]);
        assert_eq!(
            splits("oci:l:r.io:5000/a/b:v1")[1..],
            ["l:r.io:5000/a/b|v1", "l:r.io|5000/a/b:v1", "l|r.io:5000/a/b:v1"]
        );
    }
}
