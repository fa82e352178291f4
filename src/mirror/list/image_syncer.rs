//! image-syncer's images: from each source to one or several destinations; or its older file, which
//! holds them under `images`, beside `auth`.
//!
//! ```yaml
//! quay.io/coreos/kube-rbac-proxy: quay.io/ruohe/kube-rbac-proxy              # all tags
//! quay.io/coreos/kube-rbac-proxy:v1.0,v2.0: [registry.example.com/a/proxy, registry.example.com/b/proxy]
//! quay.io/coreos/kube-rbac-proxy:/^v1/: registry.example.com/c/proxy         # tags by regular expression
//! quay.io/coreos/kube-rbac-proxy@sha256:…: registry.example.com/d/proxy:v1
//! ```
//! A destination may name as many tags as its source does: they go together in their order. Variables of the
//! environment are put into destinations.
//!
//! Rules: <https://github.com/AliyunContainerService/image-syncer#configure-files>, and
//! <https://github.com/AliyunContainerService/image-syncer/blob/master/pkg/utils/url.go>.

use super::node::{Key, Node, Value};
use super::reader::Reader;
use super::{DestinationRule, Entry, ImageSelection, Pattern, SelectedImage, TagFilter, TagSet, Template};
use crate::error::Result;
use crate::reference::{Repository, Tag};

pub(super) fn read(root: &Node, reader: &mut Reader<'_>) -> Result<()> {
    let Some(images) = root.field("images") else { return rules(root, reader) };
    for (key, value) in reader.fields(root, "the file")? {
        match key.text.as_str() {
            "images" => {}
            "auth" => credentials(key, value, reader)?,
            _ => reader.ignored(key, "image-syncer"),
        }
    }
    rules(images, reader)
}

/// `auth`: nothing of it is used; plain http must be allowed otherwise.
fn credentials(key: &Key, node: &Node, reader: &mut Reader<'_>) -> Result<()> {
    reader.note(key.line, "`auth` isn't used: transload login keeps credentials");
    for (registry, node) in reader.fields(node, "`auth`")? {
        let insecure = node.field("insecure");
        if let Some(value) = insecure
            && reader.boolean(value, "`insecure`")?
        {
            // The key may have a path.
            let host = registry.text.split('/').next().unwrap_or_default();
            reader.note(value.line, format!("`insecure: true` isn't done: give --insecure-registry {host}"));
        }
    }
    Ok(())
}

fn rules(node: &Node, reader: &mut Reader<'_>) -> Result<()> {
    for (source, destinations) in reader.fields(node, "`images`")? {
        let from = NamedRepository::parse(&source.text).filter(|from| !from.repository.is_empty());
        let from = from.ok_or_else(|| reader.fail(source.line, format!("{:?} is no source", source.text)))?;
        let repository = reader.repository(source.line, from.repository)?;
        let texts = match &destinations.value {
            // Older versions take their default registry then.
            Value::Null => Vec::new(),
            Value::Text(text) if text.is_empty() => Vec::new(),
            _ => reader.texts(destinations, "a destination")?,
        };
        if texts.is_empty() {
            let pick = from.pick(source.line, reader)?;
            let mut entry = reader.entry(source.line, repository.clone(), pick);
            if reader.defaults.target.is_none() {
                reader.note(
                    source.line,
                    "a source without a destination goes to those of --to, named by what follows the last slash, as \
                     in image-syncer's default namespace",
                );
                entry.target = DestinationRule::Below(Template::literal("{name}", None));
            }
            reader.add(entry)?;
        }
        for (line, text) in texts {
            rule(source, &from, &repository, (line, text), reader)?;
        }
    }
    Ok(())
}

/// A source and one of its destinations.
fn rule(
    key: &Key,
    from: &NamedRepository<'_>,
    source: &Repository,
    (line, text): (usize, &str),
    reader: &mut Reader<'_>,
) -> Result<()> {
    let text = &reader.expanded(line, text)?;
    let to = NamedRepository::parse(text).ok_or_else(|| reader.fail(line, format!("{text:?} is no destination")))?;
    let target: Repository = reader.at(line, to.repository.parse())?;
    let entry = |pick: ImageSelection, tag: Option<&str>, reader: &Reader<'_>| Entry {
        target: DestinationRule::Fixed(vec![(target.registry.clone(), Template::literal(&target.name, tag))]),
        strip_library: false,
        ..reader.entry(key.line, source.clone(), pick)
    };
    match (&from.which, &to.which) {
        (_, WantedTags::All) => {
            let entry = entry(from.pick(key.line, reader)?, None, reader);
            reader.add(entry)
        }
        // Which tags go where: in their order.
        (WantedTags::Tags(from), WantedTags::Tags(to)) if from.len() == to.len() => {
            for (from, to) in from.iter().zip(to) {
                let exact = SelectedImage { tag: Some(reader.at(key.line, from.parse())?), digest: None };
                let to = reader.at(line, to.parse::<Tag>())?;
                let entry = entry(ImageSelection { exact: [exact].into(), select: None }, Some(&to), reader);
                reader.add(entry)?;
            }
            Ok(())
        }
        (WantedTags::Digest(_), WantedTags::Tags(to)) if to.len() == 1 => {
            let to = reader.at(line, to.first().copied().unwrap_or_default().parse::<Tag>())?;
            let entry = entry(from.pick(key.line, reader)?, Some(&to), reader);
            reader.add(entry)
        }
        // The image is written by its digest anyway.
        (WantedTags::Digest(from_digest), WantedTags::Digest(to)) if from_digest == to => {
            let entry = entry(from.pick(key.line, reader)?, None, reader);
            reader.add(entry)
        }
        _ => Err(reader
            .fail(line, format!("{text:?} doesn't name as many tags as its source"))
            .hint("leave the destination's tags out to keep those of the source")),
    }
}

/// A repository, and which images of it.
#[derive(Debug)]
struct NamedRepository<'a> {
    repository: &'a str,
    which: WantedTags<'a>,
}

#[derive(Debug)]
enum WantedTags<'a> {
    All,
    Tags(Vec<&'a str>),
    Regex(&'a str),
    Digest(&'a str),
}

impl<'a> NamedRepository<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        if let Some((repository, digest)) = text.split_once('@') {
            // Of a tag and a digest the digest counts.
            let name = repository.rfind('/').map_or(0, |at| at + 1);
            let end = repository[name..].find(':').map_or(repository.len(), |at| name + at);
            return Some(Self { repository: &repository[..end], which: WantedTags::Digest(digest) });
        }
        if let Some((repository, rest)) = text.split_once(":/") {
            return Some(Self { repository, which: WantedTags::Regex(rest.strip_suffix('/')?) });
        }
        let after = text.rfind('/').map_or(0, |at| at + 1);
        match text[after..].split_once(':') {
            Some((name, tags)) => {
                let which = WantedTags::Tags(tags.split(',').map(str::trim).collect());
                Some(Self { repository: &text[..after + name.len()], which })
            }
            None => Some(Self { repository: text, which: WantedTags::All }),
        }
    }

    fn pick(&self, line: usize, reader: &mut Reader<'_>) -> Result<ImageSelection> {
        let select =
            |sets| ImageSelection { exact: [].into(), select: Some(TagFilter { sets, ..TagFilter::default() }) };
        Ok(match &self.which {
            WantedTags::All => select(Vec::new()),
            WantedTags::Regex(text) => {
                let patterns = vec![reader.pattern(line, Pattern::regex(text))?];
                select(vec![TagSet { patterns, ..TagSet::default() }])
            }
            WantedTags::Digest(digest) => {
                let digest = digest.parse().map(Some).map_err(|error| reader.fail(line, format!("{error}")))?;
                ImageSelection { exact: [SelectedImage { tag: None, digest }].into(), select: None }
            }
            WantedTags::Tags(tags) => {
                let exact = |tag: &&str| Ok(SelectedImage { tag: Some(reader.at(line, tag.parse())?), digest: None });
                ImageSelection { exact: tags.iter().map(exact).collect::<Result<_>>()?, select: None }
            }
        })
    }
}
