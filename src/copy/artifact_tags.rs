//! Tags that are named after a digest, such as cosign's `sha256-<hex>.sig`: found by one list of a repository's tags
//! instead of several requests for each manifest of an image.
//!
//! **Where the list is cheaper.** Without a list, a manifest costs four requests for cosign's suffixes, and one more for
//! the list of the tag schema at a registry without the referrers API. So the list of tags may take two requests for
//! each manifest of the image, and never more than [`MAX_PAGES`]. A longer list is given up: a repository with a million
//! tags costs ten requests more than no list at all.
//!
//! **Where the list is believed.** A pull-through cache may list only the tags that it holds. The image's own manifest
//! is therefore looked up by its tags in any case. If one of them exists and is not in the list, or if the list lacks
//! the tag that is copied, the list is not believed, and all manifests are looked up.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::content::Source;
use crate::descriptor::Digest;
use crate::error::Result;
use crate::reference::{Artifact, Repository, Tag, Target};

/// The tags of one repository that are named after digests.
#[derive(Clone, Debug, Default)]
pub(super) struct ArtifactTags {
    tags: Arc<BTreeSet<Tag>>,
    /// Whether a tag that is not among them does not exist.
    complete: bool,
}

impl ArtifactTags {
    /// Reads the list of tags, in at most `max_pages` requests. A list that cannot be read is an incomplete one.
    async fn read<S: Source>(source: &S, target: &Target, max_pages: usize) -> Self {
        let (mut pages, mut tags, mut read) = (source.tags(), BTreeSet::new(), 0);
        // A list without the tag that is copied, or without any tag, is incomplete.
        let mut is_plausible = false;
        let complete = loop {
            if read == max_pages {
                tracing::debug!("the list of tags is long, so artifacts are looked up one by one");
                break false;
            }
            let page = match pages.try_next().await {
                Ok(Some(page)) => page,
                Ok(None) => break is_plausible,
                Err(error) => {
                    tracing::debug!("the tags cannot be listed, so artifacts are looked up one by one: {error}");
                    break false;
                }
            };
            read += 1;
            is_plausible |= match target {
                Target::Tag(wanted) => page.tags.contains(wanted),
                Target::Name(_) | Target::Digest(_) => !page.tags.is_empty(),
            };
            tags.extend(page.tags.into_iter().filter(|tag| Artifact::of(tag).is_some()));
            if tags.len() > MAX_TAGS {
                tracing::debug!("the list has more than {MAX_TAGS} tags of artifacts, which are looked up one by one");
                tags.clear();
                break false;
            }
            if page.is_last {
                break is_plausible;
            }
        };
        Self { tags: Arc::new(tags), complete }
    }

    /// The tags to look up for artifacts of `subject`.
    pub(super) fn candidates(&self, subject: &Digest) -> Result<BTreeSet<Tag>> {
        let mut found = if self.complete { BTreeSet::new() } else { usual_tags(subject)? };
        found.extend(self.listed(subject));
        Ok(found)
    }

    /// The listed tags of artifacts of `subject`. The list of its referrers is none of them.
    fn listed(&self, subject: &Digest) -> impl Iterator<Item = Tag> {
        let prefix = subject.referrers_tag();
        let from = self.tags.range(prefix.clone()..).take_while(move |tag| tag.starts_with(&*prefix));
        from.filter(|tag| Artifact::of(tag).is_some_and(|found| !found.is_list() && found.is_about(subject))).cloned()
    }

    /// Whether `subject` certainly has no list of referrers by the tag schema.
    pub(super) fn excludes_referrers_of(&self, subject: &Digest) -> bool {
        self.complete && !self.tags.contains(&subject.referrers_tag())
    }

    /// Compares the list with a tag that exists.
    pub(super) fn check(&mut self, existing: &Tag) {
        if self.complete && !self.tags.contains(existing) {
            tracing::debug!("the list of tags lacks {existing}, so artifacts are looked up one by one");
            self.complete = false;
        }
    }
}

/// The tags that cosign gives to artifacts of `subject`.
fn usual_tags(subject: &Digest) -> Result<BTreeSet<Tag>> {
    COSIGN_SUFFIXES.iter().map(|suffix| subject.cosign_tag(suffix)).collect()
}

/// The lists that the images of a run share.
#[derive(Debug, Default)]
pub(super) struct ArtifactTagLists(Mutex<VecDeque<SharedList>>);

#[derive(Debug)]
struct SharedList {
    repository: Repository,
    max_pages: usize,
    created: Instant,
    tags: Arc<OnceCell<ArtifactTags>>,
}

impl ArtifactTagLists {
    /// The tags of artifacts in `source`, for an image with this number of manifests. A list that another image read a short
    /// time ago is used again.
    pub(super) async fn of<S: Source>(&self, source: &S, target: &Target, manifests: usize) -> ArtifactTags {
        let max_pages = manifests.saturating_mul(PAGES_PER_MANIFEST).min(MAX_PAGES);
        let Some(repository) = source.origin() else { return ArtifactTags::read(source, target, max_pages).await };
        let cell = self.cell(repository, max_pages);
        cell.get_or_init(|| ArtifactTags::read(source, target, max_pages)).await.clone()
    }

    fn cell(&self, repository: &Repository, max_pages: usize) -> Arc<OnceCell<ArtifactTags>> {
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lists.retain(|list| list.created.elapsed() < LIST_TTL);
        let known = lists.iter().find(|list| list.repository == *repository && list.max_pages == max_pages);
        if let Some(known) = known {
            return known.tags.clone();
        }
        if lists.len() == MAX_LISTS {
            lists.pop_front();
        }
        let (repository, created, tags) = (repository.clone(), Instant::now(), Arc::default());
        lists.push_back(SharedList { repository, max_pages, created, tags: Arc::clone(&tags) });
        tags
    }
}

/// The suffixes of cosign's tags (sigstore/cosign, "SPEC.md"; before OCI 1.1 referrers), and that of OpenVEX documents.
const COSIGN_SUFFIXES: [&str; 4] = [".sig", ".att", ".sbom", ".vex"];
const PAGES_PER_MANIFEST: usize = 2;
/// Most registries give up to 1,000 tags in one page.
const MAX_PAGES: usize = 10;
/// Tags of artifacts that are kept: some 100 bytes each.
const MAX_TAGS: usize = 10_000;
/// Lists that are kept for other images.
const MAX_LISTS: usize = 8;
const LIST_TTL: Duration = Duration::from_secs(5 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn list(tags: &[String], complete: bool) -> ArtifactTags {
        let tags = tags.iter().map(|tag| tag.parse().expect("a tag")).collect();
        ArtifactTags { tags: Arc::new(tags), complete }
    }

    fn texts(tags: BTreeSet<Tag>) -> Vec<String> {
        tags.into_iter().map(String::from).collect()
    }

    #[test]
    fn a_complete_list_gives_the_tags_that_exist_and_an_incomplete_one_the_usual_tags_too() {
        let (image, other) = (Digest::Sha256([7; 32]), Digest::Sha256([8; 32]));
        let tag = |digest: &Digest, suffix: &str| format!("{}{suffix}", digest.referrers_tag());
        let tags =
            [tag(&image, ""), tag(&image, ".sig"), tag(&image, ".x"), tag(&image, "-x.sbom"), tag(&other, ".sig")];
        let (complete, incomplete) = (list(&tags, true), list(&tags, false));
        assert_eq!(
            texts(complete.candidates(&image).expect("tags")),
            [tag(&image, "-x.sbom"), tag(&image, ".sig"), tag(&image, ".x")]
        );
        let candidates = texts(incomplete.candidates(&image).expect("tags"));
        assert_eq!(candidates, ["-x.sbom", ".att", ".sbom", ".sig", ".vex", ".x"].map(|suffix| tag(&image, suffix)));
        assert!(!complete.excludes_referrers_of(&image) && complete.excludes_referrers_of(&other));
        assert!(!incomplete.excludes_referrers_of(&other));
    }

    #[test]
    fn a_tag_that_exists_and_is_not_listed_shows_that_the_list_is_incomplete() {
        let image = Digest::Sha256([7; 32]);
        let tag: Tag = image.cosign_tag(".sig").expect("a tag");
        let mut complete = list(&[tag.to_string()], true);
        complete.check(&tag);
        assert!(complete.complete);
        complete.check(&image.cosign_tag(".att").expect("a tag"));
        assert!(!complete.complete && !complete.excludes_referrers_of(&image));
    }
}
