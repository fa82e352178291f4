//! Lists: tags and referrers, page by page.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::Method;
use http::header::{ACCEPT, HeaderMap, LINK};
use reqwest::Url;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Repo;
use super::address::same_origin;
use super::token::Scope;
use super::transport::{Call, Payload};
use crate::content::TagPage;
use crate::descriptor::{Descriptor, Digest, MediaType, null_is_empty};
use crate::error::{Error, Kind, Result};
use crate::reference::Target;

/// The referrers of a manifest.
pub(super) struct Referrers {
    pub(super) listed: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct TagsDocument {
    #[serde(default, deserialize_with = "null_is_empty")]
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct ReferrersPage {
    #[serde(default, deserialize_with = "null_is_empty")]
    manifests: Vec<Descriptor>,
}

impl Repo {
    /// A page of tags. The next one is where the registry's `Link` says: some (ECR) know it by a token of
    /// their own, so it can't be made up from the last tag.
    pub(super) async fn list_tags(&self, next: Option<&str>) -> Result<TagPage> {
        let first = format!("/v2/{}/tags/list?n={PAGE}", self.repository.name);
        let doing = format!("list the tags of {}", self.repository);
        let call = self.call(Method::GET, next.unwrap_or(&first), &self.pull, doing).await?;
        let url = call.url.clone();
        let (page, next): (TagsDocument, _) = self.registry.read(call, MAX_LIST, page(&url)).await?;
        let next = next.filter(|next| same_origin(next, &url) && *next != url);
        let next = next.map(|next| format!("{}?{}", next.path(), next.query().unwrap_or_default()));
        Ok(TagPage { tags: page.tags, next })
    }

    /// Whether the repository doesn't exist yet, so that nothing in it needs to be looked for.
    /// Asked once; an unclear answer means no.
    pub(super) async fn probe_new(&self) -> bool {
        let Ok(call) = self.call(Method::GET, "tags/list?n=1", &self.push, "look for the repository").await else {
            return false;
        };
        match self.registry.call_once(call).await {
            // NAME_UNKNOWN, not any 404: behind some paths a proxy answers for everything.
            Err(error) => error.kind() == Kind::NotFound && error.to_string().contains("NAME_UNKNOWN"),
            Ok(_) => false,
        }
    }

    /// The referrers of `subject`: by the API, else by the tag schema (distribution spec, "Listing
    /// Referrers"). Bounded to [`MAX_REFERRERS`].
    pub(super) async fn list_referrers(&self, subject: &Digest, scope: &Scope) -> Result<Referrers> {
        if self.registry.no_referrers.load(Ordering::Relaxed) {
            return self.tagged_referrers(subject, scope).await;
        }
        let doing = format!("list the referrers of {}@{subject}", self.repository);
        let mut listed: Vec<Descriptor> = Vec::new();
        let mut next = Some(self.registry.url(&format!("/v2/{}/referrers/{subject}", self.repository.name)).await?);
        while let Some(url) = next.take() {
            let call = Call {
                method: Method::GET,
                url: url.clone(),
                scope,
                headers: HeaderMap::new(),
                body: Payload::Empty,
                doing: doing.clone(),
            };
            let call = call.header(ACCEPT, MediaType::OCI_INDEX);
            let (page, after): (ReferrersPage, _) = match self.registry.read(call, MAX_LIST, page(&url)).await {
                Ok(read) => read,
                // 404 says that there is no API here (the spec has an empty list for no referrers); some
                // registries say 400, 405 or even 403 to a path that they don't know. A passing fault says nothing.
                Err(error)
                    if listed.is_empty()
                        && !error.is_transient()
                        && matches!(error.kind(), Kind::NotFound | Kind::Registry | Kind::Denied) =>
                {
                    self.registry.no_referrers.store(true, Ordering::Relaxed);
                    return self.tagged_referrers(subject, scope).await;
                }
                Err(error) => return Err(error),
            };
            next = after.filter(|next| same_origin(next, &url));
            listed.extend(page.manifests);
            if listed.len() > MAX_REFERRERS {
                return Err(Error::new(Kind::Invalid, format!("more than {MAX_REFERRERS} referrers")).doing(doing));
            }
        }
        Ok(Referrers { listed })
    }

    async fn tagged_referrers(&self, subject: &Digest, scope: &Scope) -> Result<Referrers> {
        let listed = match self.get_manifest(&Target::Tag(subject.referrers_tag()), scope).await {
            Ok(index) => index.contents().manifests.clone(),
            Err(error) if error.kind() == Kind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Referrers { listed })
    }
}

/// Reads a page of a list, and where the next one is. What is no list may be from something between the registry and
/// us: it is asked again.
fn page<T: DeserializeOwned>(base: &Url) -> impl Fn(&HeaderMap, Bytes) -> Result<(T, Option<Url>)> {
    move |headers, bytes| {
        let page = serde_json::from_slice(&bytes)
            .map_err(|error| Error::new(Kind::Invalid, format!("the answer is not a list: {error}")).transient(None))?;
        Ok((page, next_page(headers, base)))
    }
}

/// The target of `Link: <…>; rel="next"` (RFC 8288).
fn next_page(headers: &HeaderMap, base: &Url) -> Option<Url> {
    headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).find_map(
        |link| {
            let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
            let is_next = parameters.split(';').any(|p| matches!(p.trim(), "rel=\"next\"" | "rel=next"));
            is_next.then(|| base.join(target).ok()).flatten()
        },
    )
}

/// Docker Hub and distribution allow 1,000 tags a page; ACR gives what it likes.
const PAGE: u32 = 1000;
const MAX_LIST: u64 = 8 << 20;
const MAX_REFERRERS: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed() {
        let base = Url::parse("https://r.io/v2/a/tags/list?n=2").expect("a URL");
        let mut headers = HeaderMap::new();
        headers.insert(LINK, http::HeaderValue::from_static("</v2/a/tags/list?n=2&last=b>; rel=\"next\""));
        assert_eq!(
            next_page(&headers, &base).map(|url| url.to_string()).as_deref(),
            Some("https://r.io/v2/a/tags/list?n=2&last=b")
        );
        headers.insert(LINK, http::HeaderValue::from_static("<x>; rel=\"prev\""));
        assert_eq!(next_page(&headers, &base), None);
    }
}
