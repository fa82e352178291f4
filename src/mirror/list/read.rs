//! Which form a list is written in, and what all forms share: limits, errors with lines, notes.

use std::collections::HashMap;

use super::node::{Node, Value};
use super::place::{Base, Template};
use super::{Aim, Entry, Exact, Form, List, Note, Pick, dregsy, image_syncer, lines, own, regsync, skopeo};
use crate::descriptor::Platform;
use crate::error::{Error, Kind, Result, Side};
use crate::reference::{Reference, RegistryName, Repository, Target};

/// What the command line says about a list.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// The path of entries that name none, before what the list has as its default.
    pub target: Option<Template>,
    /// Take `library/` off Docker Hub's official images, whatever the list says.
    pub strip_library: bool,
}

impl List {
    /// Bytes that a list may have. Who reads a file need not take more.
    pub const MAX_BYTES: u64 = MAX_BYTES as u64;

    /// Reads a list in whatever form it is. `name` is the file's, for errors.
    ///
    /// # Errors
    /// [`Kind::Usage`], with the line: for what isn't understood, and for what would change which images
    /// are copied and can't be done.
    pub fn read(text: &str, name: &str) -> Result<Self> {
        Self::read_with(text, name, &Defaults::default())
    }

    /// Reads a list, the command line's word standing before its defaults.
    pub fn read_with(text: &str, name: &str, defaults: &Defaults) -> Result<Self> {
        if text.len() > MAX_BYTES {
            let hint = format!("a list has up to {} MiB and {MAX_ENTRIES} entries: cut it in several", MAX_BYTES >> 20);
            return Err(fail(name, 0, "it is too large for a list").hint(hint));
        }
        // YAML forgives a mark at its beginning, Windows' editors write it.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut reader = Reader::new(name, defaults);
        let form = if is_structured(text) {
            let root = Node::parse(text, name)?;
            let form = form(&root).ok_or_else(|| unknown(name, &root))?;
            match form {
                Form::Lines | Form::Own => own::read(&root, &mut reader)?,
                Form::Skopeo => skopeo::read(&root, &mut reader)?,
                Form::Regsync => regsync::read(&root, &mut reader)?,
                Form::ImageSyncer => image_syncer::read(&root, &mut reader)?,
                Form::Dregsy => dregsy::read(&root, &mut reader)?,
            }
            form
        } else {
            lines::read(text, &mut reader)?;
            Form::Lines
        };
        reader.finish(form)
    }
}

/// Whether a text is YAML or JSON rather than lines of references: by its first line that says
/// something. No reference has a colon before a space or at its end.
fn is_structured(text: &str) -> bool {
    let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    first.is_some_and(|line| {
        let line = line.split(" #").next().unwrap_or_default().trim_end();
        // `[::1]:5000/name`
        let v6 = line.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let is_v6 = v6.is_some_and(|(address, _)| address.parse::<std::net::Ipv6Addr>().is_ok());
        (line.starts_with(['{', '[', '"', '\'', '%', '&', '?', '!']) && !is_v6)
            || line.starts_with("---")
            || line == "-"
            || line.starts_with("- ")
            || line.ends_with(':')
            || line.contains(": ")
    })
}

/// By the keys at the top: each form has its own.
fn form(root: &Node) -> Option<Form> {
    let fields = root.fields()?;
    let is_list = |name: &str| root.field(name).is_some_and(|node| node.items().is_some() || node.is_null());
    if root.field("images").is_some_and(|node| node.fields().is_some()) && !fields.iter().any(|f| has_images(&f.1)) {
        return Some(Form::ImageSyncer);
    }
    if root.field("images").is_some()
        || fields.iter().any(|(key, _)| own::TOP.contains(&key.text.as_str())) && root.field("sync").is_none()
    {
        return Some(Form::Own);
    }
    if is_list("sync") {
        return Some(Form::Regsync);
    }
    if is_list("tasks") {
        return Some(Form::Dregsy);
    }
    if !fields.is_empty() && fields.iter().all(|(_, value)| has_images(value)) {
        return Some(Form::Skopeo);
    }
    // Destinations name a registry, and sources a namespace or a tag, one of them at least.
    let is_target = |node: &Node| node.text().is_some_and(|text| text.contains('/') || text.is_empty());
    let is_rule = |node: &Node| match &node.value {
        Value::List(items) => !items.is_empty() && items.iter().all(is_target),
        _ => is_target(node),
    };
    let rules =
        fields.iter().all(|(_, value)| is_rule(value)) && fields.iter().any(|(key, _)| key.text.contains(['/', ':']));
    rules.then_some(Form::ImageSyncer)
}

/// Whether a mapping is what skopeo has for a registry.
fn has_images(node: &Node) -> bool {
    skopeo::IMAGES.iter().any(|name| node.field(name).is_some())
}

fn unknown(name: &str, root: &Node) -> Error {
    let what = match &root.value {
        Value::List(_) => "a list without a name",
        Value::Map(_) => "none of the known forms",
        _ => "no list of images",
    };
    fail(name, root.line, format!("it is {what}")).hint(
        "write one reference a line, or `images:` and a list of them; skopeo sync's, regsync's, \
         image-syncer's and dregsy's files are understood too",
    )
}

/// Collects what a list says.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) name: &'a str,
    pub(super) defaults: &'a Defaults,
    pub(super) to: Vec<Base>,
    entries: Vec<Entry>,
    notes: Vec<(Note, usize)>,
    noted: HashMap<String, usize>,
}

impl<'a> Reader<'a> {
    fn new(name: &'a str, defaults: &'a Defaults) -> Self {
        Self { name, defaults, to: Vec::new(), entries: Vec::new(), notes: Vec::new(), noted: HashMap::new() }
    }

    /// An error at a line.
    pub(super) fn fail(&self, line: usize, what: impl Into<String>) -> Error {
        fail(self.name, line, what)
    }

    /// Says at which line an error is.
    pub(super) fn at<T>(&self, line: usize, result: Result<T>) -> Result<T> {
        result.map_err(|error| at(self.name, line, error))
    }

    /// Remarks on a line. What is said again is only counted.
    pub(super) fn note(&mut self, line: usize, text: impl Into<String>) {
        let text = text.into();
        if let Some(known) = self.noted.get(&text) {
            self.notes[*known].1 += 1;
            return;
        }
        self.noted.insert(text.clone(), self.notes.len());
        self.notes.push((Note { line, text }, 0));
    }

    /// Adds an entry.
    pub(super) fn add(&mut self, entry: Entry) -> Result<()> {
        if self.entries.len() == MAX_ENTRIES {
            return Err(self
                .fail(entry.line, format!("more than {MAX_ENTRIES} entries"))
                .hint("cut the list in several"));
        }
        let one_tag = match &entry.target {
            Aim::Fixed(targets) => targets.iter().any(|(_, template)| template.is_one_tag()),
            Aim::Below(template) => template.is_one_tag(),
        };
        if one_tag && (entry.pick.select.is_some() || entry.pick.exact.len() > 1) {
            return Err(self
                .fail(entry.line, "several images would get one tag")
                .hint("leave the target's tag out, or write {tag} in it, such as nginx:{tag}-hub"));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// An entry as plain as can be: this source, below the run's destinations.
    pub(super) fn entry(&self, line: usize, source: Repository, pick: Pick) -> Entry {
        Entry {
            line,
            source,
            pick,
            target: Aim::Below(self.defaults.target.clone().unwrap_or_default()),
            strip_library: self.defaults.strip_library,
            platforms: Vec::new(),
            referrers: false,
        }
    }

    /// The text of a scalar that must be one.
    pub(super) fn text<'n>(&self, node: &'n Node, what: &str) -> Result<&'n str> {
        match node.text() {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(self.fail(node.line, format!("{what} is a text, and this is {}", node.kind()))),
        }
    }

    /// The texts of a list, or one text alone; none if there is nothing.
    pub(super) fn texts<'n>(&self, node: &'n Node, what: &str) -> Result<Vec<(usize, &'n str)>> {
        match &node.value {
            Value::Null => Ok(Vec::new()),
            Value::Text(_) => Ok(vec![(node.line, self.text(node, what)?)]),
            Value::List(items) => items.iter().map(|item| Ok((item.line, self.text(item, what)?))).collect(),
            Value::Map(_) => Err(self.fail(node.line, format!("{what} is a list of texts, and this is a mapping"))),
        }
    }

    /// The items of a list; none if there is nothing.
    pub(super) fn items<'n>(&self, node: &'n Node, what: &str) -> Result<&'n [Node]> {
        match &node.value {
            Value::Null => Ok(&[]),
            Value::List(items) => Ok(items),
            _ => Err(self.fail(node.line, format!("{what} is a list, and this is {}", node.kind()))),
        }
    }

    /// The fields of a mapping; none if there is nothing.
    pub(super) fn fields<'n>(&self, node: &'n Node, what: &str) -> Result<&'n [(super::node::Key, Node)]> {
        match &node.value {
            Value::Null => Ok(&[]),
            Value::Map(fields) => Ok(fields),
            _ => Err(self.fail(node.line, format!("{what} is a mapping, and this is {}", node.kind()))),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, node: &Node, what: &str) -> Result<bool> {
        match node.text().map(str::to_ascii_lowercase).as_deref() {
            Some("true" | "yes" | "on") => Ok(true),
            Some("false" | "no" | "off") => Ok(false),
            _ => Err(self.fail(node.line, format!("{what} is true or false"))),
        }
    }

    /// A platform.
    pub(super) fn platform(&self, line: usize, text: &str) -> Result<Platform> {
        self.at(line, text.parse())
    }

    /// A reference: its repository, and which image; `None` where neither tag nor digest was written.
    pub(super) fn reference(&self, line: usize, text: &str) -> Result<(Repository, Option<Exact>)> {
        self.at(line, reference(text))
    }

    fn finish(mut self, form: Form) -> Result<List> {
        if self.entries.is_empty() {
            return Err(self.fail(0, "it names no images").hint("write one reference a line, such as nginx:1.27"));
        }
        let more = |(mut note, again): (Note, usize)| {
            match again {
                0 => {}
                1 => note.text += " (and at another line)",
                _ => note.text += &format!(" (and at {again} other lines)"),
            }
            note
        };
        self.notes.sort_by_key(|(note, _)| note.line);
        let notes = self.notes.into_iter().map(more).collect();
        let list = List { form, entries: self.entries, to: self.to, notes };
        // Where they go isn't known yet; that two go to one place is.
        let somewhere = [Base { registry: RegistryName::not_chosen(), prefix: String::new() }];
        list.check(if list.to.is_empty() { &somewhere } else { &list.to }, self.name)?;
        Ok(list)
    }
}

/// A reference; its tag and digest as they were written.
pub(super) fn reference(text: &str) -> Result<(Repository, Option<Exact>)> {
    let location = text.parse::<crate::reference::Location>()?;
    let crate::reference::Location::Registry(Reference { repository, target }, beside) = location else {
        return Err(Error::new(Kind::Usage, format!("{text:?} is a directory, and a list is of registries' images"))
            .hint("transload copy copies from and to directories"));
    };
    let exact = match target {
        Target::Digest(digest) => Some(Exact { tag: beside, digest: Some(digest) }),
        Target::Tag(tag) => {
            let last = text.rsplit('/').next().unwrap_or(text);
            last.contains(':').then_some(Exact { tag: Some(tag), digest: None })
        }
        // A reference has none of these.
        Target::Name(_) => None,
    };
    Ok((repository, exact))
}

/// An error at a line of a file; the whole file is line 0.
pub(super) fn fail(name: &str, line: usize, what: impl Into<String>) -> Error {
    let what = what.into();
    let what = if line == 0 { format!("{name}: {what}") } else { format!("{name}:{line}: {what}") };
    Error::new(Kind::Usage, what).on(Side::Local)
}

/// Says at which line an error is, and keeps its hint.
pub(super) fn at(name: &str, line: usize, error: Error) -> Error {
    let made = fail(name, line, error.to_string());
    match error.hint_text() {
        Some(hint) => made.hint(hint),
        None => made,
    }
}

/// What a file may have at most.
pub(super) const MAX_BYTES: usize = 8 << 20;

/// Entries that a list may have.
pub(super) const MAX_ENTRIES: usize = 100_000;
