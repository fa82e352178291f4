//! Destinations of images, and templates of paths.

use std::fmt;
use std::str::FromStr;

use super::version::version;
use super::{DestinationRule, Entry};
use crate::error::{Error, Kind, Result};
use crate::reference::{RegistryName, Repository, RepositoryName, Tag, check_name, check_tag, looks_like_host};

/// A destination of a run: a registry, and a path before all repositories.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DestinationBase {
    /// The registry.
    pub registry: RegistryName,
    /// The path, without a slash at its ends. May be empty.
    pub prefix: String,
}

impl FromStr for DestinationBase {
    type Err = Error;

    /// Reads `myregistry.azurecr.io` or `myregistry.azurecr.io/mirror`. A slash at the end is ignored.
    fn from_str(text: &str) -> Result<Self> {
        let bare = text.strip_prefix("docker://").unwrap_or(text).trim_end_matches('/');
        let (registry, prefix) = bare.split_once('/').unwrap_or((bare, ""));
        let wrong = |why: &str| {
            Error::new(Kind::Usage, format!("{text:?} {why}"))
                .hint("write a registry's host and, where wanted, a path in it, such as myregistry.azurecr.io/mirror")
        };
        if bare.contains("://") {
            return Err(wrong("is written as a URL"));
        }
        if !looks_like_host(registry) {
            return Err(wrong("names no registry"));
        }
        if prefix.contains('@') || prefix.contains(':') {
            return Err(wrong("has a tag or digest; only a path is allowed"));
        }
        if !prefix.is_empty() {
            check_name(text, prefix)?;
        }
        Ok(Self { registry: registry.parse()?, prefix: prefix.to_owned() })
    }
}

impl fmt::Display for DestinationBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.registry)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

/// A template of the target's repository and tag, such as `hub/{repository}:{tag}`.
///
/// | placeholder | for `docker.io/library/nginx:1.27` |
/// | --- | --- |
/// | `{registry}` | `docker.io`; a port is joined with `-`: `localhost-5000` |
/// | `{repository}` | `library/nginx`; with `strip-library`, `nginx` |
/// | `{namespace}` | `library`: all before the name; empty without a slash, or with `strip-library` |
/// | `{name}` | `nginx`: all after the last slash |
/// | `{tag}` | `1.27`; allowed after the colon only |
///
/// A slash beside an empty `{namespace}` is dropped. A template without a colon keeps the source's tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    path: String,
    tag: Option<String>,
}

impl Default for Template {
    fn default() -> Self {
        Self { path: "{repository}".to_owned(), tag: None }
    }
}

impl FromStr for Template {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (path, tag) = match text.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (text, None),
        };
        let template = Self { path: path.trim_matches('/').to_owned(), tag: tag.map(str::to_owned) };
        template.check(text)?;
        Ok(template)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

impl Template {
    /// A template without placeholders: this repository, and this tag if there is one.
    pub(super) fn literal(path: &str, tag: Option<&str>) -> Self {
        Self { path: path.to_owned(), tag: tag.map(str::to_owned) }
    }

    /// Whether all selected images would get one tag.
    pub(super) fn is_one_tag(&self) -> bool {
        self.tag.as_ref().is_some_and(|tag| !tag.contains("{tag}"))
    }

    fn check(&self, text: &str) -> Result<()> {
        let known = |text: &str| {
            Error::new(Kind::Usage, text.to_owned())
                .hint("there are {registry}, {repository}, {namespace}, {name}, and behind a colon {tag}")
        };
        if text.contains('@') {
            return Err(Error::new(Kind::Usage, format!("{text:?}: a target takes a tag, not a digest"))
                .hint("the digest follows from the image, which is copied byte for byte"));
        }
        for (part, at) in [(self.path.as_str(), "path"), (self.tag.as_deref().unwrap_or_default(), "tag")] {
            let mut rest = part;
            while let Some((_, after)) = rest.split_once('{') {
                let (name, after) =
                    after.split_once('}').ok_or_else(|| known(&format!("{text:?} has a '{{' without its '}}'")))?;
                let fits = if name == "tag" { at == "tag" } else { PLACEHOLDERS.contains(&name) };
                if !fits {
                    return Err(known(&format!("{text:?}: there is no {{{name}}} in a {at}")));
                }
                rest = after;
            }
        }
        // A plain sample: a mistake in it is a mistake for all sources.
        let sample: Repository = "a.b/a/b".parse()?;
        let name = self.name(&sample, false);
        check_name(text, &name)?;
        self.tag.as_ref().map_or(Ok(()), |tag| check_tag(&fill_placeholders(tag, &sample, false).replace("{tag}", "a")))
    }

    fn name(&self, source: &Repository, strip_library: bool) -> String {
        let filled = fill_placeholders(&self.path, source, strip_library);
        filled.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
    }
}

/// Fills in all placeholders but `{tag}`.
fn fill_placeholders(text: &str, source: &Repository, strip_library: bool) -> String {
    let repository = match source.name.strip_prefix("library/") {
        Some(official) if strip_library && source.is_docker_hub() => official,
        _ => &source.name,
    };
    let (namespace, name) = repository.rsplit_once('/').unwrap_or(("", repository));
    // `localhost:5000`, `[::1]:5000`: characters that no path may have become a hyphen.
    let registry = source.registry.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
    let registry = registry.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    text.replace("{registry}", &registry)
        .replace("{repository}", repository)
        .replace("{namespace}", namespace)
        .replace("{name}", name)
}

/// Reads a target of a list: a path below the run's destinations, or a registry with a path.
///
/// Docker's rule decides whether the part before the first slash is a registry. A name alone never means Docker Hub;
/// `docker.io/…` does.
pub(super) fn parse_target(text: &str) -> Result<(Option<RegistryName>, Template)> {
    let bare = bare_reference(text)?;
    let bare = bare.strip_prefix("docker://").unwrap_or(bare);
    if !bare.contains('/') && version(bare).is_some() && bare.parse::<std::net::IpAddr>().is_err() {
        return Err(Error::new(Kind::Usage, format!("{text:?} is a version, not a target"))
            .hint(format!("write a tag behind the image's name, as in nginx:{bare}")));
    }
    if bare.contains("://") || bare.starts_with("oci:") {
        return Err(Error::new(Kind::Usage, format!("{text:?} is not a path in a registry"))
            .hint("write a path, or a registry and a path, such as myregistry.azurecr.io/web/nginx"));
    }
    let below = |path: &str| match path.strip_suffix('/') {
        Some(path) => format!("{path}/{{repository}}").parse(),
        None if path.is_empty() => Ok(Template::default()),
        None => path.parse(),
    };
    let (first, rest) = bare.split_once('/').unwrap_or((bare, ""));
    let is_host = looks_like_host(first) && !first.contains('{');
    if is_host && first == bare && !first.contains(['.', '[']) && !first.starts_with("localhost") {
        return Err(Error::new(Kind::Usage, format!("{text:?} may be a registry or a repository with a tag"))
            .hint(format!("write {text}/ for the registry, or a path with a slash for the repository")));
    }
    if is_host { Ok((Some(first.parse()?), below(rest)?)) } else { Ok((None, below(bare)?)) }
}

/// The target of an image: repository and tag. An image without a tag is written by its digest.
pub type ImageDestination = (Repository, Option<Tag>);

impl Entry {
    /// The targets of the image with this tag, each once; `to` are the run's destinations.
    ///
    /// # Errors
    /// If there is no destination, or the template makes an invalid name.
    pub fn places(&self, to: &[DestinationBase], tag: Option<&str>) -> Result<Vec<ImageDestination>> {
        self.each_place(to, tag)?.into_iter().map(|made| Ok((made.repository, made.tag?))).collect()
    }

    /// As [`Self::places`], but an invalid tag is an error of its own target only, and the other targets stay.
    ///
    /// # Errors
    /// If there is no destination, or for an error that does not depend on the tag.
    pub(in crate::mirror) fn each_place(
        &self,
        to: &[DestinationBase],
        tag: Option<&str>,
    ) -> Result<Vec<RenderedDestination>> {
        let mut places: Vec<RenderedDestination> = Vec::new();
        let mut add = |registry: &RegistryName, prefix: &str, template: &Template| {
            let made = self.place(registry, prefix, template, tag)?;
            if !places.iter().any(|known| known.repository == made.repository && known.text == made.text) {
                places.push(made);
            }
            Ok::<(), Error>(())
        };
        match &self.target {
            DestinationRule::Fixed(targets) => {
                targets.iter().try_for_each(|(registry, template)| add(registry, "", template))?
            }
            DestinationRule::Below(template) => {
                to.iter().try_for_each(|base| add(&base.registry, &base.prefix, template))?
            }
        }
        if places.is_empty() {
            return Err(Error::new(Kind::Usage, format!("{} has no destination", self.source))
                .hint("name one with --to, such as --to myregistry.azurecr.io"));
        }
        Ok(places)
    }

    /// Whether the entry needs the run's destinations.
    pub fn needs_destination(&self) -> bool {
        matches!(self.target, DestinationRule::Below(_))
    }

    fn place(
        &self,
        registry: &RegistryName,
        prefix: &str,
        template: &Template,
        tag: Option<&str>,
    ) -> Result<RenderedDestination> {
        let below = template.name(&self.source, self.strip_library);
        let name = if prefix.is_empty() { below } else { format!("{prefix}/{below}") };
        let name = RepositoryName::within(&format!("{registry}/{name}"), name)?;
        let repository = Repository { registry: registry.clone(), name };
        let made = match (&template.tag, tag) {
            (None, tag) => tag.map(str::to_owned),
            (Some(wanted), Some(tag)) => {
                Some(fill_placeholders(wanted, &self.source, self.strip_library).replace("{tag}", tag))
            }
            (Some(wanted), None) if wanted.contains("{tag}") => {
                return Err(Error::new(Kind::Usage, format!("an image without a tag has no {{tag}} for {template}"))
                    .hint("write its tag before the digest, as name:tag@sha256:…"));
            }
            (Some(wanted), None) => Some(fill_placeholders(wanted, &self.source, self.strip_library)),
        };
        if repository == self.source && made.as_deref() == tag {
            return Err(Error::new(Kind::Usage, format!("{} would be copied onto itself", self.source))
                .hint("name another destination, or a path in it"));
        }
        let tag = made.as_deref().map(str::parse).transpose();
        Ok(RenderedDestination { repository, text: made, tag })
    }
}

/// The result of a template for an image.
pub(in crate::mirror) struct RenderedDestination {
    pub(in crate::mirror) repository: Repository,
    /// The text of the tag, valid or not.
    pub(in crate::mirror) text: Option<String>,
    /// `None` for an image that is written by its digest.
    pub(in crate::mirror) tag: Result<Option<Tag>>,
}

const PLACEHOLDERS: [&str; 4] = ["registry", "repository", "namespace", "name"];

/// A reference without `oci://`, which Helm writes before references. References with a template or a variable are
/// refused.
pub(super) fn bare_reference(text: &str) -> Result<&str> {
    if text.contains("{{") || text.contains("{%") {
        return Err(Error::new(Kind::Usage, format!("{text:?} has a template that was not rendered"))
            .hint("render it first, for example: helm template … | transload mirror check -"));
    }
    if text.contains(char::is_whitespace) {
        return Err(Error::new(Kind::Usage, format!("{text:?} is more than one reference"))
            .hint("begin each item at the same column, with - and a space before it; a comment begins with #"));
    }
    if text.contains('$') {
        return Err(Error::new(Kind::Usage, format!("{text:?} has a variable; variables are not replaced here"))
            .hint("replace it first, for example: envsubst < FILE | transload mirror check -"));
    }
    let bare =
        text.strip_prefix("oci://").filter(|bare| bare.split_once('/').is_some_and(|(host, _)| looks_like_host(host)));
    Ok(bare.unwrap_or(text))
}
