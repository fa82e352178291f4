//! Checks of a list as a whole before any request: two images for one tag, patterns that may conflict, repeated
//! images.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use super::destination::{DestinationBase, ImageDestination};
use super::{Entry, List, Note, SelectedImage};
use crate::error::{Error, Kind, Result};
use crate::reference::Repository;

impl List {
    /// Checks that each image has a valid destination, and that no two images go to one tag. No registry is asked.
    /// `to` are the run's destinations.
    ///
    /// # Errors
    /// With the lines of the conflict; `name` is the file's.
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

    /// A note if an image is in the list more than once with the same destination. It has the line of the first one,
    /// and how many entries and different images there are.
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

    /// Notes about entries of different sources that may write the same tags, since their patterns select them.
    ///
    /// # Errors
    /// As [`Entry::places`].
    pub fn overlaps(&self, to: &[DestinationBase]) -> Result<Vec<Note>> {
        let mut seen: HashMap<ImageDestination, &Entry> = HashMap::new();
        let mut notes = Vec::new();
        for entry in &self.entries {
            // Different templates for one tag make different tags, so such entries cannot conflict.
            for place in entry.places(to, Some("tag"))? {
                let other = *seen.entry(place.clone()).or_insert(entry);
                let patterns = other.pick.needs_tag_list() || entry.pick.needs_tag_list();
                if other.source != entry.source && patterns {
                    let text = format!(
                        "line {} writes to {} too: if both have the same tag, this one fails",
                        other.line, place.0
                    );
                    notes.push(Note { line: entry.line, text });
                }
            }
        }
        Ok(notes)
    }
}

/// The image that is written to each tag of a destination, so that none overwrites another.
#[derive(Debug, Default)]
pub struct Claims(HashMap<ImageDestination, (Repository, SelectedImage, usize)>);

impl Claims {
    /// Records the destination of an image. Returns whether it is new.
    ///
    /// # Errors
    /// If another image goes there.
    pub fn claim(&mut self, place: &ImageDestination, entry: &Entry, exact: &SelectedImage) -> Result<bool> {
        if place.1.is_none() {
            // Written by digest: any other image there is the same.
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
