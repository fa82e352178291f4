//! Which form a list is written in; limits, and errors with lines.

use super::error::invalid_list;
use super::node::{MAX_ENTRIES, Node, Value};
use super::reader::{Defaults, Reader};
use super::text::{decode, is_structured, prepare};
use super::{DestinationBase, List, ListFormat, dregsy, image_syncer, lines, native, regsync, skopeo};
use crate::error::{Error, Result};
use crate::reference::RegistryName;

impl List {
    /// Bytes that a list may have. Who reads a file need not take more.
    pub const MAX_BYTES: u64 = MAX_BYTES as u64;

    /// Reads a list in whatever form it is. `name` is the file's, for errors.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::error::Kind::Usage), with the line: for what isn't understood, and for what would change which images
    /// are copied and can't be done.
    pub fn read(text: &str, name: &str) -> Result<Self> {
        Self::read_with(text, name, &Defaults::default())
    }

    /// Reads a list of bytes, as they stand in a file.
    ///
    /// # Errors
    /// As [`Self::read`], and for bytes that are UTF-16.
    pub fn read_bytes(bytes: &[u8], name: &str, defaults: &Defaults) -> Result<Self> {
        Self::read_with(&decode(bytes, name)?, name, defaults)
    }

    /// Reads a list, the command line's word standing before its defaults.
    pub fn read_with(text: &str, name: &str, defaults: &Defaults) -> Result<Self> {
        let list = Self::parse(text, name, defaults)?;
        // Where they go isn't known yet; that two go to one place is.
        let somewhere = [DestinationBase { registry: RegistryName::not_chosen(), prefix: String::new() }];
        list.check(if list.to.is_empty() { &somewhere } else { &list.to }, name)?;
        Ok(list)
    }

    /// As [`Self::read_bytes`], for who knows the destinations: without the [`check`](Self::check).
    pub(crate) fn parse_bytes(bytes: &[u8], name: &str, defaults: &Defaults) -> Result<Self> {
        Self::parse(&decode(bytes, name)?, name, defaults)
    }

    fn parse(text: &str, name: &str, defaults: &Defaults) -> Result<Self> {
        if text.len() > MAX_BYTES {
            let hint = format!("a list has up to {} MiB and {MAX_ENTRIES} entries: cut it in several", MAX_BYTES >> 20);
            return Err(invalid_list(name, 0, "it is too large for a list").hint(hint));
        }
        let text = &*prepare(text);
        let mut reader = Reader::new(name, defaults);
        let form = if is_structured(text) {
            let mut root = Node::parse(text, name)?;
            let twice = root.keep_last_keys();
            let form = form(&root).ok_or_else(|| unknown_format(name, &root))?;
            reader.keys_that_are_twice(form, &twice)?;
            match form {
                ListFormat::Lines | ListFormat::Native => native::read(&root, &mut reader)?,
                ListFormat::Skopeo => skopeo::read(&root, &mut reader)?,
                ListFormat::Regsync => regsync::read(&root, &mut reader)?,
                ListFormat::ImageSyncer => image_syncer::read(&root, &mut reader)?,
                ListFormat::Dregsy => dregsy::read(&root, &mut reader)?,
            }
            form
        } else {
            lines::read(text, &mut reader)?;
            ListFormat::Lines
        };
        reader.finish(form)
    }
}

/// By the keys at the top: each form has its own.
fn form(root: &Node) -> Option<ListFormat> {
    let fields = root.fields()?;
    let is_list = |name: &str| root.field(name).is_some_and(|node| node.items().is_some() || node.is_null());
    if root.field("images").is_some_and(|node| node.fields().is_some()) && !fields.iter().any(|f| has_images(&f.1)) {
        return Some(ListFormat::ImageSyncer);
    }
    if root.field("images").is_some()
        || fields.iter().any(|(key, _)| native::TOP_KEYS.contains(&key.text.as_str())) && root.field("sync").is_none()
    {
        return Some(ListFormat::Native);
    }
    if is_list("sync") {
        return Some(ListFormat::Regsync);
    }
    if is_list("tasks") {
        return Some(ListFormat::Dregsy);
    }
    // skopeo passes over registries without images.
    let is_registry = |node: &Node| node.is_null() || node.fields().is_some();
    if fields.iter().any(|(_, value)| has_images(value)) && fields.iter().all(|(_, value)| is_registry(value)) {
        return Some(ListFormat::Skopeo);
    }
    // Destinations name a registry, and sources a namespace or a tag, one of them at least.
    let is_target =
        |node: &Node| node.is_null() || node.text().is_some_and(|text| text.contains('/') || text.is_empty());
    let is_rule = |node: &Node| match &node.value {
        Value::List(items) => !items.is_empty() && items.iter().all(is_target),
        _ => is_target(node),
    };
    let rules =
        fields.iter().all(|(_, value)| is_rule(value)) && fields.iter().any(|(key, _)| key.text.contains(['/', ':']));
    rules.then_some(ListFormat::ImageSyncer)
}

/// Whether a mapping is what skopeo has for a registry.
fn has_images(node: &Node) -> bool {
    skopeo::IMAGES.iter().any(|name| node.field(name).is_some())
}

fn unknown_format(name: &str, root: &Node) -> Error {
    let what = match &root.value {
        Value::List(_) => "a list without a name",
        Value::Map(_) => "none of the known forms",
        _ => "no list of images",
    };
    invalid_list(name, root.line, format!("it is {what}")).hint(
        "write one reference a line, or `images:` and a list of them; skopeo sync's, regsync's, \
         image-syncer's and dregsy's files are understood too",
    )
}

/// What a file may have at most.
pub(super) const MAX_BYTES: usize = 8 << 20;
