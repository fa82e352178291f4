//! A list that is read page by page: whether it is complete, and where it must stop.
//!
//! Every list of a registry goes through [`Pages`], so every caller is bounded: by pages, entries, links that were
//! followed before, and pages in a row that bring nothing new. A list that exceeds a bound, or that may be
//! incomplete, is an error and never a shorter list: `mirror --prune` deletes tags that a list lacks.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, Hash, RandomState};

use http::HeaderMap;
use reqwest::Url;

use super::link::next_query;
use crate::error::{Error, Kind, Result};

/// How much of a list is read.
#[derive(Clone, Copy, Debug)]
pub(in crate::registry) struct Bounds {
    /// Requests.
    pub(in crate::registry) pages: usize,
    /// Different entries.
    pub(in crate::registry) entries: usize,
    /// Of all pages' bodies: an entry may have any length.
    pub(in crate::registry) bytes: u64,
}

/// The state of one list while it is read.
#[derive(Debug)]
pub(in crate::registry) struct Pages {
    bounds: Bounds,
    read: usize,
    bytes: u64,
    /// Pages in a row without a new entry.
    idle: usize,
    entries: Fingerprints,
    followed: Fingerprints,
    next: Next,
}

#[derive(Debug)]
enum Next {
    First(Option<String>),
    Query(String),
    End,
}

/// Text that was seen. 128 bits with random keys stand for each: a million tags take 16 MB, whatever their length.
#[derive(Debug, Default)]
struct Fingerprints {
    keys: [RandomState; 2],
    seen: HashSet<[u64; 2]>,
}

impl Fingerprints {
    /// Whether it is new.
    fn insert(&mut self, text: impl Hash) -> bool {
        self.seen.insert([self.keys[0].hash_one(&text), self.keys[1].hash_one(&text)])
    }
}

impl Pages {
    /// A list whose first page has this query.
    pub(in crate::registry) fn new(first: Option<String>, bounds: Bounds) -> Self {
        let mut followed = Fingerprints::default();
        followed.insert(first.as_deref().unwrap_or_default());
        Self {
            bounds,
            read: 0,
            bytes: 0,
            idle: 0,
            entries: Fingerprints::default(),
            followed,
            next: Next::First(first),
        }
    }

    /// Whether no page was read yet.
    pub(in crate::registry) fn is_first(&self) -> bool {
        self.read == 0
    }

    /// Sets the query of the next page. False at the end of the list.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if as many pages were read as may be.
    pub(in crate::registry) fn turn(&mut self, url: &mut Url) -> Result<bool> {
        match &self.next {
            Next::End => return Ok(false),
            Next::First(query) => url.set_query(query.as_deref()),
            Next::Query(query) => url.set_query(Some(query)),
        }
        if self.read >= self.bounds.pages {
            return Err(list_too_long(format!("it has more than {} pages", self.bounds.pages)));
        }
        Ok(true)
    }

    /// Counts a page's body of so many bytes, before it is parsed.
    ///
    /// # Errors
    /// [`Kind::Invalid`] past the bound.
    pub(in crate::registry) fn weigh(&mut self, bytes: usize) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.bytes > self.bounds.bytes {
            return Err(list_too_long(format!("it has more than {} bytes", self.bounds.bytes)));
        }
        Ok(())
    }

    /// Takes a page that was read from `url`, and keeps those of its entries that are new. Without a `Link`, the next
    /// page is the one that `guess` names.
    ///
    /// # Errors
    /// [`Kind::Invalid`] past a bound, and the errors of [`next_query`].
    pub(in crate::registry) fn take<T, K: Hash + ?Sized>(
        &mut self,
        url: &Url,
        headers: &HeaderMap,
        page: &mut Vec<T>,
        key: impl Fn(&T) -> &K,
        guess: Option<String>,
    ) -> Result<()> {
        self.read += 1;
        let link = next_query(headers, url)?;
        page.retain(|entry| self.entries.insert(key(entry)));
        if self.entries.seen.len() > self.bounds.entries {
            return Err(list_too_long(format!("it has more than {} entries", self.bounds.entries)));
        }
        self.idle = if page.is_empty() { self.idle + 1 } else { 0 };
        let guess = guess.filter(|_| self.idle == 0);
        self.next = match link.or(guess) {
            None => Next::End,
            Some(_) if self.idle > MAX_EMPTY_PAGES => {
                return Err(list_too_long(format!("{} pages in a row have no new entry", self.idle)));
            }
            Some(query) if !self.followed.insert(&query) => {
                return Err(list_too_long("a page leads back to an earlier one".to_owned()));
            }
            Some(query) => Next::Query(query),
        };
        Ok(())
    }
}

fn list_too_long(why: String) -> Error {
    Error::new(Kind::Invalid, format!("the list is not read to its end: {why}"))
}

/// An empty page with a next one is legal, as where a registry filters a page after it was cut.
const MAX_EMPTY_PAGES: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { pages: 50, entries: 100, bytes: 1000 };

    fn pages() -> Pages {
        Pages::new(Some("n=2".to_owned()), BOUNDS)
    }

    fn url() -> Url {
        Url::parse("https://r.io/v2/a/tags/list").expect("a URL")
    }

    /// Reads a page with these entries, and a link to this next one. The new entries, and the next page's query.
    fn take(pages: &mut Pages, entries: &[&str], next: Option<&str>) -> Result<(Vec<String>, Option<String>)> {
        let (mut at, mut headers) = (url(), HeaderMap::new());
        assert!(pages.turn(&mut at)?, "the list has ended");
        if let Some(next) = next {
            headers.insert("link", format!("<?{next}>; rel=next").parse().expect("a header"));
        }
        let mut page: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        let guess = page.last().filter(|_| page.len() == 2).map(|last| format!("n=2&last={last}"));
        pages.take(&at, &headers, &mut page, String::as_str, guess)?;
        let more = pages.turn(&mut at)?;
        Ok((page, more.then(|| at.query().unwrap_or_default().to_owned())))
    }

    fn texts(entries: &[&str], next: Option<&str>) -> (Vec<String>, Option<String>) {
        (entries.iter().map(|entry| (*entry).to_owned()).collect(), next.map(str::to_owned))
    }

    #[test]
    fn a_list_ends_without_a_link() {
        let mut pages = pages();
        assert_eq!(take(&mut pages, &["a", "b"], Some("last=b")).expect("a page"), texts(&["a", "b"], Some("last=b")));
        assert_eq!(take(&mut pages, &["b", "c"], None).expect("a page"), texts(&["c"], Some("n=2&last=c")));
        assert_eq!(take(&mut pages, &["b", "c"], None).expect("a page"), texts(&[], None), "`last` is ignored");
    }

    #[test]
    fn an_empty_page_is_no_end_but_many_are_an_error() {
        let mut pages = pages();
        for nth in 0..MAX_EMPTY_PAGES {
            let next = format!("token={nth}");
            assert_eq!(take(&mut pages, &[], Some(&next)).expect("a page"), texts(&[], Some(&next)));
        }
        assert!(take(&mut pages, &[], Some("token=x")).expect_err("no progress").to_string().contains("in a row"));
    }

    #[test]
    fn a_list_is_bounded() {
        let mut circle = pages();
        take(&mut circle, &["a"], Some("last=a")).expect("a page");
        assert!(take(&mut circle, &["b"], Some("n=2")).expect_err("a circle").to_string().contains("leads back"));
        let mut long = pages();
        let read = (0..).map(|nth| take(&mut long, &[&format!("v{nth}")], Some(&format!("last={nth}"))));
        assert_eq!(read.take_while(Result::is_ok).count(), BOUNDS.pages - 1, "the last one says that there are more");
        let tags: Vec<String> = (0..=BOUNDS.entries).map(|nth| format!("v{nth}")).collect();
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        assert!(take(&mut pages(), &tags, None).expect_err("too many").to_string().contains("more than 100 entries"));
        assert!(take(&mut pages(), &tags[1..], None).is_ok());
        let mut large = pages();
        large.weigh(600).expect("fits");
        assert!(large.weigh(401).expect_err("too much").to_string().contains("more than 1000 bytes"));
    }
}
