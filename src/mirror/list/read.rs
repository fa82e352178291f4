//! Detects the format of a list, and limits its size.

use super::error::invalid_list;
use super::node::{MAX_ENTRIES, Node, Value};
use super::reader::{Defaults, Reader};
use super::text::{decode, is_structured, prepare};
use super::{DestinationBase, List, ListFormat, dregsy, image_syncer, lines, native, regsync, skopeo};
use crate::error::{Error, Result};
use crate::reference::RegistryName;

impl List {
    /// The largest list, in bytes. A reader of a file need not read more.
    pub const MAX_BYTES: u64 = MAX_BYTES as u64;

    /// Reads a list in any known format. `name` is the file's, for errors.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::error::Kind::Usage), with the line, for malformed lists, and for settings that would
    /// change which images are copied and are not supported.
    pub fn read(text: &str, name: &str) -> Result<Self> {
        Self::read_with(text, name, &Defaults::default())
    }

    /// Reads a list; `defaults` come from the command line.
    pub fn read_with(text: &str, name: &str, defaults: &Defaults) -> Result<Self> {
        let list = Self::parse(text, name, defaults)?;
        // The destinations of the run are not known yet. A conflict of two images is found anyway.
        let somewhere = [DestinationBase { registry: RegistryName::not_chosen(), prefix: String::new() }];
        list.check(if list.to.is_empty() { &somewhere } else { &list.to }, name)?;
        Ok(list)
    }

    /// Reads a list from the bytes of a file, without the [`check`](Self::check), which the caller does with the run's
    /// destinations.
    ///
    /// # Errors
    /// Those of reading a list, and for bytes that are UTF-16.
    pub(crate) fn parse_bytes(bytes: &[u8], name: &str, defaults: &Defaults) -> Result<Self> {
        Self::parse(&decode(bytes, name)?, name, defaults)
    }

    fn parse(text: &str, name: &str, defaults: &Defaults) -> Result<Self> {
        if text.len() > MAX_BYTES {
            let hint = format!("a list has up to {} MiB and {MAX_ENTRIES} entries: split it", MAX_BYTES >> 20);
            return Err(invalid_list(name, 0, "it is too large for a list").hint(hint));
        }
        let text = &*prepare(text);
        let mut reader = Reader::new(name, defaults);
        let form = if is_structured(text) {
            let mut root = Node::parse(text, name)?;
            let twice = root.keep_last_keys();
            let form = form(&root).ok_or_else(|| unknown_format(name, &root))?;
            reader.check_duplicate_keys(form, &twice)?;
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

/// Detects the format by the keys at the top.
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
    // skopeo skips registries without images.
    let is_registry = |node: &Node| node.is_null() || node.fields().is_some();
    if fields.iter().any(|(_, value)| has_images(value)) && fields.iter().all(|(_, value)| is_registry(value)) {
        return Some(ListFormat::Skopeo);
    }
    // Each destination names a registry. At least one source has a namespace or a tag.
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

/// Whether a mapping is skopeo's for one registry.
fn has_images(node: &Node) -> bool {
    skopeo::IMAGES.iter().any(|name| node.field(name).is_some())
}

fn unknown_format(name: &str, root: &Node) -> Error {
    let what = match &root.value {
        Value::List(_) => "a list without a name",
        Value::Map(_) => "none of the known formats",
        _ => "no list of images",
    };
    invalid_list(name, root.line, format!("it is {what}")).hint(
        "write one reference a line, or `images:` and a list of them; skopeo sync's, regsync's, \
         image-syncer's and dregsy's files are understood too",
    )
}

/// The largest list, in bytes.
pub(super) const MAX_BYTES: usize = 8 << 20;
