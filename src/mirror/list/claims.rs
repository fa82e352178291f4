//! What is known of a list as a whole before any registry is asked: that no two images go to one tag, which may,
//! and which are listed twice.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use super::destination::{DestinationBase, ImageDestination};
use super::{Entry, List, Note, SelectedImage};
use crate::error::{Error, Kind, Result};
use crate::reference::Repository;

impl List {
    /// Checks all that is known before any registry is asked: that each image has a destination that can
    /// be, and that no two go to one tag. `to` are the run's destinations.
    ///
    /// # Errors
    /// With the lines at fault; `name` is the file's.
    pub fn check(&self, to: &[DestinationBase], name: &str) -> Result<()> {
        let mut claims = Claims::default();
        for entry in &self.entries {
            let at = |error: Error| super::error::error_at(name, entry.line, error);
            if entry.pick.select.is_some() {
                entry.places(to, Some("tag")).map_err(at)?;
            }
            for exact in &entry.pick.exact {
                for place in entry.places(to, exact.tag.as_deref()).map_err(at)? {
                    claims.claim(&place, entry, exact).map_err(at)?;
                }
            }
        }
        Ok(())
    }

    /// A note where images stand in the list more than once, with the same destination: how many entries and
    /// images there are, and where the first of them is.
    ///
    /// # Errors
    /// As [`Entry::places`].
    pub fn repeated(&self, to: &[DestinationBase]) -> Result<Option<Note>> {
        let mut seen: HashMap<(&Repository, String, Vec<ImageDestination>), usize> = HashMap::new();
        let (mut images, mut first) = (0, None);
        for entry in &self.entries {
            for exact in &entry.pick.exact {
                images += 1;
                let key = (&entry.source, exact.to_string(), entry.places(to, exact.tag.as_deref())?);
                match seen.entry(key) {
                    Slot::Vacant(free) => _ = free.insert(entry.line),
                    Slot::Occupied(other) => _ = first.get_or_insert((entry.line, *other.get())),
                }
            }
        }
        Ok(first.map(|(line, other)| Note {
            line,
            text: format!(
                "the image is at line {other} already: of {images} images in the list {} are different",
                seen.len()
            ),
        }))
    }

    /// Entries of different sources that may write the same tags, since patterns pick theirs.
    ///
    /// # Errors
    /// As [`Entry::places`].
    pub fn overlaps(&self, to: &[DestinationBase]) -> Result<Vec<Note>> {
        let mut seen: HashMap<ImageDestination, &Entry> = HashMap::new();
        let mut notes = Vec::new();
        for entry in &self.entries {
            // Where templates make different tags of the same one, nothing can meet.
            for place in entry.places(to, Some("tag"))? {
                let other = *seen.entry(place.clone()).or_insert(entry);
                let patterns = other.pick.needs_tag_list() || entry.pick.needs_tag_list();
                if other.source != entry.source && patterns {
                    let text = format!(
                        "line {} goes to {} too: of an image whose tag that one has as well, this one fails",
                        other.line, place.0
                    );
                    notes.push(Note { line: entry.line, text });
                }
            }
        }
        Ok(notes)
    }
}

/// Which image goes to which tag of a destination, so that none overwrites another.
#[derive(Debug, Default)]
pub struct Claims(HashMap<ImageDestination, (Repository, SelectedImage, usize)>);

impl Claims {
    /// Notes that an image of an entry goes to a place. Returns whether it is new there.
    ///
    /// # Errors
    /// If another image goes there.
    pub fn claim(&mut self, place: &ImageDestination, entry: &Entry, exact: &SelectedImage) -> Result<bool> {
        if place.1.is_none() {
            // By its digest: whoever else goes there is the same.
            return Ok(true);
        }
        match self.0.entry(place.clone()) {
            Slot::Vacant(free) => {
                free.insert((entry.source.clone(), exact.clone(), entry.line));
                Ok(true)
            }
            Slot::Occupied(taken) => {
                let (source, other, line) = taken.get();
                if *source == entry.source && other == exact {
                    return Ok(false);
                }
                let name = |source: &Repository, exact: &SelectedImage| {
                    let colon = if exact.tag.is_some() { ":" } else { "" };
                    format!("{source}{colon}{exact}")
                };
                let (repository, tag) = (&place.0, place.1.as_deref().unwrap_or_default());
                Err(Error::new(
                    Kind::Usage,
                    format!(
                        "{} would overwrite {} of line {line} at {repository}:{tag}",
                        name(&entry.source, exact),
                        name(source, other)
                    ),
                )
                .hint("give one of them another target"))
            }
        }
    }
}
