//! What the readers of all forms share: notes, entries, and values of the kind that is wanted.

use std::collections::HashMap;

use super::destination::{DestinationBase, Template, bare_reference};
use super::error::{error_at, invalid_list};
use super::node::{Key, MAX_ENTRIES, Node, Value};
use super::{DestinationRule, Entry, ImageSelection, List, ListFormat, Note, Pattern, SelectedImage};
use crate::descriptor::Platform;
use crate::error::{Error, Kind, Result};
use crate::reference::{Reference, Repository, SourceLocation, Target, looks_like_host};

/// Collects what a list says.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) name: &'a str,
    pub(super) defaults: &'a Defaults,
    pub(super) to: Vec<DestinationBase>,
    entries: Vec<Entry>,
    notes: Vec<(Note, usize)>,
    noted: HashMap<String, usize>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(name: &'a str, defaults: &'a Defaults) -> Self {
        Self { name, defaults, to: Vec::new(), entries: Vec::new(), notes: Vec::new(), noted: HashMap::new() }
    }

    /// An error at a line.
    pub(super) fn fail(&self, line: usize, what: impl Into<String>) -> Error {
        invalid_list(self.name, line, what)
    }

    /// Says at which line an error is.
    pub(super) fn at<T>(&self, line: usize, result: Result<T>) -> Result<T> {
        result.map_err(|error| error_at(self.name, line, error))
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

    /// A pattern at a line, with a note if its `|` binds less than it seems.
    pub(super) fn pattern(&mut self, line: usize, parsed: Result<Pattern>) -> Result<Pattern> {
        let pattern = self.at(line, parsed)?;
        if let Some(text) = pattern.loose_alternatives() {
            self.note(line, text);
        }
        Ok(pattern)
    }

    /// Notes a key that the tool is not known to have.
    pub(super) fn ignored(&mut self, key: &Key, tool: &str) {
        self.note(key.line, format!("`{}` is nothing that {tool} is known to have: it is ignored", key.text));
    }

    /// Which of equal keys counts: to Go's YAML version 2 the last, to the others none.
    pub(super) fn keys_that_are_twice(&mut self, form: ListFormat, twice: &[(Key, usize)]) -> Result<()> {
        for (key, last) in twice {
            if matches!(form, ListFormat::Native | ListFormat::Lines | ListFormat::Skopeo) {
                return Err(self
                    .fail(*last, format!("the key {:?} is at line {} already", key.text, key.line))
                    .hint("join both under one key, or take one of them out"));
            }
            let text = format!("{:?} is not used: the same key is at line {last} again, and the last counts", key.text);
            self.note(key.line, text);
        }
        Ok(())
    }

    /// Adds an entry.
    pub(super) fn add(&mut self, entry: Entry) -> Result<()> {
        if let Some(name) = entry.source.name.strip_prefix("library/")
            && entry.source.is_docker_hub()
            && looks_like_host(name)
        {
            let text = format!(
                "{name} is read as an image of Docker Hub, {}: for that registry, a path is missing",
                entry.source
            );
            self.note(entry.line, text);
        }
        if self.entries.len() == MAX_ENTRIES {
            return Err(self
                .fail(entry.line, format!("more than {MAX_ENTRIES} entries"))
                .hint("cut the list in several"));
        }
        let one_tag = match &entry.target {
            DestinationRule::Fixed(targets) => targets.iter().any(|(_, template)| template.is_one_tag()),
            DestinationRule::Below(template) => template.is_one_tag(),
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
    pub(super) fn entry(&self, line: usize, source: Repository, pick: ImageSelection) -> Entry {
        Entry {
            line,
            source,
            pick,
            target: DestinationRule::Below(self.defaults.target.clone().unwrap_or_default()),
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

    /// As [`Self::texts`], but a text may be empty.
    pub(super) fn texts_or_empty<'n>(&self, node: &'n Node, what: &str) -> Result<Vec<(usize, &'n str)>> {
        let is_empty = |node: &Node| node.text() == Some("");
        match &node.value {
            Value::List(items) if items.iter().any(is_empty) => {
                let text = |item: &'n Node| match item.text() {
                    Some("") => Ok((item.line, "")),
                    _ => Ok((item.line, self.text(item, what)?)),
                };
                items.iter().map(text).collect()
            }
            _ => self.texts(node, what),
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
    pub(super) fn fields<'n>(&self, node: &'n Node, what: &str) -> Result<&'n [(Key, Node)]> {
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
    pub(super) fn reference(&self, line: usize, text: &str) -> Result<(Repository, Option<SelectedImage>)> {
        self.at(line, reference(text))
    }

    /// A repository.
    pub(super) fn repository(&self, line: usize, text: &str) -> Result<Repository> {
        self.at(line, bare_reference(text).and_then(str::parse))
    }

    /// A text with the variables of the environment put in, `$NAME` and `${NAME}`, as Go's os.ExpandEnv does.
    pub(super) fn expanded(&mut self, line: usize, text: &str) -> Result<String> {
        let mut made = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            made.push_str(before);
            let end = |c: char| !c.is_ascii_alphanumeric() && c != '_';
            let (name, after) = match after.strip_prefix('{').and_then(|after| after.split_once('}')) {
                Some(braced) => braced,
                None => after.split_at(after.find(end).unwrap_or(after.len())),
            };
            let Some(value) = self.defaults.environment.and_then(|variable| variable(name)) else {
                return Err(self
                    .fail(line, format!("{text:?} has the variable {name}, which the environment has not"))
                    .hint(format!("set it, as in {name}=… transload mirror …, or write its value")));
            };
            made.push_str(&value);
            rest = after;
        }
        made.push_str(rest);
        Ok(made)
    }

    pub(super) fn finish(mut self, form: ListFormat) -> Result<List> {
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
        Ok(List { form, entries: self.entries, to: self.to, notes })
    }
}

/// A reference; its tag and digest as they were written.
pub(super) fn reference(text: &str) -> Result<(Repository, Option<SelectedImage>)> {
    let text = bare_reference(text)?;
    let location = text.parse::<SourceLocation>()?;
    let SourceLocation::Registry(Reference { repository, target }, beside) = location else {
        return Err(Error::new(Kind::Usage, format!("{text:?} is a directory, and a list is of registries' images"))
            .hint("transload copy copies from and to directories"));
    };
    let exact = match target {
        Target::Digest(digest) => Some(SelectedImage { tag: beside, digest: Some(digest) }),
        Target::Tag(tag) => {
            let last = text.rsplit('/').next().unwrap_or(text);
            last.contains(':').then_some(SelectedImage { tag: Some(tag), digest: None })
        }
        // A reference has none of these.
        Target::Name(_) => None,
    };
    Ok((repository, exact))
}

/// What the command line says about a list.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// The path of entries that name none, before what the list has as its default.
    pub target: Option<Template>,
    /// Take `library/` off Docker Hub's official images, whatever the list says.
    pub strip_library: bool,
    /// Variables of the environment, for lists whose tool puts them in: regsync's templates, image-syncer's
    /// destinations. Without it such lists are refused.
    pub environment: Option<Environment>,
}

/// Looks a variable of the environment up.
pub type Environment = fn(&str) -> Option<String>;
