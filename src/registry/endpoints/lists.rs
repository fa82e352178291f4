//! Lists: tags and referrers, page by page.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::header::{ACCEPT, HeaderMap};
use http::response::Parts;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::pages::{Bounds, Pages};
use crate::content::{TagPage, TagPages};
use crate::credentials::encode_form;
use crate::descriptor::{Descriptor, Digest, MediaType, null_is_empty};
use crate::error::{Error, Kind, Result};
use crate::memory::ListReservation;
use crate::reference::Target;
use crate::registry::Repo;
use crate::registry::auth::scope::Scope;
use crate::registry::call::Call;
use crate::registry::urls::Endpoint;

/// `null` is no tags: distribution writes it. Without the field it is another document.
#[derive(Deserialize)]
struct TagsDocument {
    #[serde(deserialize_with = "null_is_empty")]
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct ReferrersPage {
    #[serde(deserialize_with = "null_is_empty")]
    manifests: Vec<Descriptor>,
}

/// A list of tags while it is read.
struct TagList {
    repo: Repo,
    pages: Pages,
}

impl TagList {
    /// The next page; `None` at the end.
    async fn next(&mut self) -> Result<Option<TagPage>> {
        let repo = &self.repo;
        let doing = format!("list the tags of {}", repo.repository);
        let mut call = repo.call(Method::GET, Endpoint::Tags(&repo.repository.name), &repo.pull, doing.clone()).await?;
        if !self.pages.turn(&mut call.url).map_err(|error| error.doing(doing.clone()))? {
            return Ok(None);
        }
        let url = call.url.clone();
        let (head, size, page): Page<TagsDocument> = repo.registry.read(call, MAX_PAGE_BYTES, page).await?;
        self.pages.weigh(size).map_err(|error| error.doing(doing.clone()))?;
        let TagsDocument { mut tags } = page;
        // The spec lets a registry omit the Link of a page that is full ("Listing Tags": "MAY"). One more or one
        // fewer is a whole list: a registry that ignores `n`, or that has no more.
        let full = tags.last().filter(|_| tags.len() == TAGS_PER_PAGE);
        let guess = full.map(|last| encode_form(&[("n", &TAGS_PER_PAGE.to_string()), ("last", last)]));
        let taken = self.pages.take(&url, &head, &mut tags, String::as_str, guess);
        taken.map_err(|error| error.doing(doing))?;
        Ok(Some(TagPage::new(tags)))
    }
}

impl Repo {
    /// All tags, page by page, each once. The next page is where the registry's `Link` says: some (ECR) know it by
    /// a token of their own, so it can't be made up from the last tag.
    ///
    /// Ends in an error if the list may be incomplete, or exceeds [`TAG_BOUNDS`].
    pub(in crate::registry) fn list_tags(&self) -> TagPages {
        let pages = Pages::new(Some(format!("n={TAGS_PER_PAGE}")), TAG_BOUNDS);
        let list = TagList { repo: self.clone(), pages };
        stream::try_unfold(list, async |mut list| Ok(list.next().await?.map(|page| (page, list)))).boxed()
    }

    /// Whether the repository doesn't exist yet, so that nothing in it needs to be looked for.
    /// Asked once; an unclear answer means no.
    pub(in crate::registry) async fn probe_new(&self) -> bool {
        let at = Endpoint::Tags(&self.repository.name);
        let Ok(mut call) = self.call(Method::GET, at, &self.push, "look for the repository").await else {
            return false;
        };
        call.url.set_query(Some("n=1"));
        match self.registry.call_once(call).await {
            // NAME_UNKNOWN, not any 404: behind some paths a proxy answers for everything.
            Err(error) => error.kind() == Kind::NotFound && error.code() == Some("NAME_UNKNOWN"),
            Ok(_) => false,
        }
    }

    /// The referrers of `subject`: by the API, else by the tag schema (distribution spec, "Listing
    /// Referrers"). Bounded to [`REFERRER_BOUNDS`].
    pub(in crate::registry) async fn list_referrers(&self, subject: &Digest, scope: &Scope) -> Result<Vec<Descriptor>> {
        if self.registry.no_referrers.load(Ordering::Relaxed) {
            return self.tagged_referrers(subject, scope).await;
        }
        let doing = format!("list the referrers of {}@{subject}", self.repository);
        let (mut listed, mut room) = (Vec::<Descriptor>::new(), ListReservation::default());
        let mut pages = Pages::new(None, REFERRER_BOUNDS);
        let mut url = Endpoint::Referrers(&self.repository.name, subject).url(self.registry.base().await?)?;
        while pages.turn(&mut url).map_err(|error| error.doing(doing.clone()))? {
            let call = Call::new(Method::GET, url.clone(), scope, doing.clone());
            let call = call.header(ACCEPT, MediaType::OCI_INDEX);
            let read = self.registry.read(call, MAX_PAGE_BYTES, page).await;
            let (head, size, page): Page<ReferrersPage> = match read {
                Ok(read) => read,
                // 404 says that there is no API here (the spec has an empty list for no referrers); some
                // registries say 400, 405 or even 403 to a path that they don't know. A passing fault says nothing.
                Err(error)
                    if pages.is_first()
                        && !error.is_transient()
                        && matches!(error.kind(), Kind::NotFound | Kind::Registry | Kind::Denied) =>
                {
                    self.registry.no_referrers.store(true, Ordering::Relaxed);
                    return self.tagged_referrers(subject, scope).await;
                }
                Err(error) => return Err(error),
            };
            pages.weigh(size).map_err(|error| error.doing(doing.clone()))?;
            let ReferrersPage { mut manifests } = page;
            self.take_room(&mut room, &manifests).map_err(|error| error.doing(doing.clone()))?;
            let taken = pages.take(&url, &head, &mut manifests, |listed| &listed.digest, None);
            taken.map_err(|error| error.doing(doing.clone()))?;
            listed.extend(manifests);
        }
        Ok(listed)
    }

    async fn tagged_referrers(&self, subject: &Digest, scope: &Scope) -> Result<Vec<Descriptor>> {
        match self.get_manifest(&Target::Tag(subject.referrers_tag()), scope).await {
            Ok(index) => {
                let manifests = &index.contents().manifests;
                self.take_room(&mut ListReservation::default(), manifests)?;
                Ok(manifests.clone())
            }
            Err(error) if error.kind() == Kind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Takes room for the descriptors of a page, where all lists share it.
    fn take_room(&self, room: &mut ListReservation, page: &[Descriptor]) -> Result<()> {
        if !self.registry.options.share_list_room {
            return Ok(());
        }
        // Not `Limited`: the registry isn't, so whoever counts its limits must not learn of it.
        room.add(page.iter().map(Descriptor::weight).sum()).map_err(|_| {
            let what = "the list is long, and too many long ones are being read";
            Error::new(Kind::Invalid, what).hint("ask again later")
        })
    }
}

/// A page's headers, its size in bytes, and what it has.
type Page<T> = (HeaderMap, usize, T);

/// Reads a page of a list. What is not even JSON may be from something between the registry and us: it is asked again.
fn page<T: DeserializeOwned>(head: &Parts, bytes: Bytes) -> Result<Page<T>> {
    // 206 is a part, and 202 or 204 is no list.
    if head.status != StatusCode::OK {
        let what = format!("the answer is not a list: its status is {}", head.status.as_u16());
        return Err(Error::new(Kind::Invalid, what));
    }
    let parsed = serde_json::from_slice(&bytes).map_err(|error| {
        let wrong =
            Error::new(Kind::Invalid, "the answer is not a list").quoting(format!(": {error}")).caused_by(error);
        if serde_json::from_slice::<IgnoredAny>(&bytes).is_err() { wrong.transient(None) } else { wrong }
    });
    Ok((head.headers.clone(), bytes.len(), parsed?))
}

/// Entries that a page of tags is asked to have: Docker Hub and distribution allow 1,000. ACR gives what it likes.
const TAGS_PER_PAGE: usize = 1000;
/// In bytes.
const MAX_PAGE_BYTES: u64 = 8 << 20;
/// A million tags, also at registries that give but 1,000 for each request. The largest public repositories have
/// some 100,000. A tag has at most 128 characters.
const TAG_BOUNDS: Bounds = Bounds { pages: 1_000, entries: 1_000_000, bytes: 128 << 20 };
/// One image has a few signatures, SBOMs and attestations. One client request to the proxy reads at most this.
const REFERRER_BOUNDS: Bounds = Bounds { pages: 100, entries: 10_000, bytes: 16 << 20 };
