//! Lists the repositories, tags and names of a directory.

use std::collections::{BTreeMap, BTreeSet};

use super::names::{NameMatch, Scope, malformed, names};
use super::store::Store;
use crate::content::TagPage;
use crate::error::Result;
use crate::reference::{RepositoryName, Target};

impl Store {
    /// All repositories that have a tag, sorted by bytes.
    pub(crate) async fn repositories(&self) -> Result<Vec<RepositoryName>> {
        self.run_blocking(|store| {
            let index = store.index()?;
            let default = || store.default_repository().clone();
            let found = index.entries().flat_map(names).filter(|name| name.fit != NameMatch::Alias);
            Ok(found.map(|name| name.repository.unwrap_or_else(default)).collect::<BTreeSet<_>>().into_iter().collect())
        })
        .await
    }

    /// Up to `most` tags and names after `after`, sorted by bytes. The first page of the whole directory also has all malformed
    /// names.
    pub(super) async fn page(
        &self,
        scope: &Scope,
        after: Option<&str>,
        most: usize,
    ) -> Result<(TagPage, Option<String>)> {
        let (scope, after) = (scope.clone(), after.map(str::to_owned));
        self.run_blocking(move |store| {
            let index = store.index()?;
            let listed = store.listed(&index, &scope).into_iter();
            let targets = listed.flat_map(|entry| scope.targets(entry, store.default_repository()));
            let targets: BTreeMap<String, Target> = targets
                .map(|(_, target)| (target.to_string(), target))
                .filter(|(text, _)| after.as_ref() < Some(text))
                .collect();
            let (mut page, mut next) = (TagPage::default(), None);
            if scope == Scope::Whole && after.is_none() {
                page.malformed = index.entries().filter_map(malformed).collect();
            }
            for (at, (text, target)) in targets.into_iter().take(most).enumerate() {
                next = (at + 1 == most).then_some(text);
                match target {
                    Target::Tag(tag) => page.tags.push(tag),
                    Target::Name(name) => page.names.push(name),
                    Target::Digest(_) => {}
                }
            }
            Ok((page, next))
        })
        .await
    }
}
