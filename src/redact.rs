//! The secrets that this process holds, so that no output shows them.
//!
//! ```text
//! credentials::Secret ── keep ──▶ register ◀── remote ── texts of registries and helpers
//!                                          ◀── own ───── errors, logs, everything that is printed
//! ```
//! A registry can put our `Authorization` header into its error message; without this it would go on to stderr, to
//! reports and to the proxy's clients. A secret is known for as long as a [`Kept`] of it lives, and the last
//! [`RECENT`] for longer, since an answer may come after the secret was replaced. What a registry encodes in a way
//! that isn't usual can't be recognized.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Deref;
use std::sync::{Arc, LazyLock, PoisonError, RwLock, Weak};

/// A secret that is known to be one. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Kept(Arc<Entry>);

#[derive(Debug)]
struct Entry(String);

#[derive(Default)]
struct Register {
    /// By the hash of their text.
    known: HashMap<u64, Weak<Entry>>,
    /// What is looked for, by the first bytes in lower case.
    forms: HashMap<[u8; KEY], Vec<Form>>,
    recent: VecDeque<Arc<Entry>>,
    /// Forms since those of forgotten secrets were removed last.
    added: usize,
}

/// One way to write a secret.
struct Form {
    text: String,
    of: Weak<Entry>,
    /// It consists of a token's characters only, so that its beginning alone is recognized.
    is_token: bool,
}

static REGISTER: LazyLock<RwLock<Register>> = LazyLock::default;

/// Registers a secret. The same text is registered once.
pub(crate) fn keep(secret: String) -> Kept {
    let mut hasher = DefaultHasher::new();
    secret.hash(&mut hasher);
    let hash = hasher.finish();
    let same = |register: &Register| {
        register.known.get(&hash).and_then(Weak::upgrade).filter(|entry| entry.0 == secret).map(Kept)
    };
    if let Some(kept) = same(&REGISTER.read().unwrap_or_else(PoisonError::into_inner)) {
        return kept;
    }
    let entry = Arc::new(Entry(secret));
    let mut register = REGISTER.write().unwrap_or_else(PoisonError::into_inner);
    register.known.insert(hash, Arc::downgrade(&entry));
    for form in forms(&entry.0) {
        register.add(form, &entry);
    }
    if register.recent.len() == RECENT {
        register.recent.pop_front();
    }
    register.recent.push_back(entry.clone());
    Kept(entry)
}

impl Kept {
    /// Registers another text by which this secret is sent, such as `user:password` in Base64.
    pub(crate) fn also(&self, text: &str) {
        let mut register = REGISTER.write().unwrap_or_else(PoisonError::into_inner);
        for form in forms(text) {
            register.add(form, &self.0);
        }
    }
}

impl Deref for Kept {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0.0
    }
}

/// Our own text without secrets of eight bytes and more. Shorter ones are no rarer than our words: where `test` is a
/// password, `registry/test` must stay readable. Our texts hold them only if a registry wrote them, see [`remote`].
pub(crate) fn own(text: &str) -> Cow<'_, str> {
    without_user(mask(text, OWN_MIN))
}

/// Someone else's text without any secret of four bytes and more, and without what looks like one: tokens behind
/// `Bearer` and `Basic`, signatures of URLs.
pub(crate) fn remote(text: &str) -> String {
    let masked = without_user(mask(text, KEY));
    without_values(&masked)
}

impl Register {
    fn add(&mut self, text: String, of: &Arc<Entry>) {
        let Some(key) = key(text.as_bytes()) else { return };
        let forms = self.forms.entry(key).or_default();
        if forms.iter().any(|form| form.text == text && form.of.upgrade().is_some_and(|entry| Arc::ptr_eq(&entry, of))) {
            return;
        }
        let is_token = text.bytes().all(is_token);
        forms.push(Form { text, of: Arc::downgrade(of), is_token });
        self.added += 1;
        if self.added >= SWEEP {
            self.added = 0;
            self.known.retain(|_, entry| entry.strong_count() > 0);
            self.forms.retain(|_, forms| {
                forms.retain(|form| form.of.strong_count() > 0);
                !forms.is_empty()
            });
        }
    }

    /// The length of the longest secret, of `min` bytes at least, that `text` begins with.
    fn found(&self, text: &[u8], min: usize) -> Option<usize> {
        let forms = self.forms.get(&key(text)?)?.iter().filter(|form| form.of.strong_count() > 0);
        forms.filter_map(|form| form.found(text)).filter(|length| *length >= min).max()
    }
}

impl Form {
    fn found(&self, text: &[u8]) -> Option<usize> {
        let same = self.text.bytes().zip(text).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count();
        // Registries cut what they quote.
        (same == self.text.len() || self.is_token && same >= PARTIAL).then_some(same)
    }
}

fn mask(text: &str, min: usize) -> Cow<'_, str> {
    let register = REGISTER.read().unwrap_or_else(PoisonError::into_inner);
    let (mut masked, mut done, mut at) = (String::new(), 0, 0);
    while at + KEY <= text.len() {
        match register.found(&text.as_bytes()[at..], min) {
            Some(length) if text.is_char_boundary(at) && text.is_char_boundary(at + length) => {
                masked.push_str(&text[done..at]);
                masked.push_str(MASK);
                (done, at) = (at + length, at + length);
            }
            _ => at += 1,
        }
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    masked.push_str(&text[done..]);
    Cow::Owned(masked)
}

/// `https://user:password@host` without the user and the password.
fn without_user(text: Cow<'_, str>) -> Cow<'_, str> {
    let mut cut = Vec::new();
    for (at, _) in text.match_indices("://") {
        let from = at + 3;
        let authority = text[from..].split(|c: char| c.is_whitespace() || "/?#\"'<>".contains(c)).next();
        if let Some((user, _)) = authority.and_then(|authority| authority.rsplit_once('@')) {
            cut.push((from, from + user.len()));
        }
    }
    if cut.is_empty() { text } else { Cow::Owned(replace(&text, &cut)) }
}

/// Without the values that stand behind names such as `sig=`, and behind `Bearer` and `Basic`.
fn without_values(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut cut: Vec<(usize, usize)> = Vec::new();
    for name in NAMES {
        for (at, _) in lower.match_indices(name) {
            let before = lower[..at].chars().next_back();
            let after = &lower[at + name.len()..];
            // `Bearer TOKEN`, `sig=…`, `"token":"…"`.
            let gap = match name.strip_suffix(' ') {
                Some(_) => 0,
                None if after.starts_with('=') => 1 + usize::from(after[1..].starts_with('"')),
                None if after.starts_with("\":\"") => 3,
                None if after.starts_with("\": \"") => 4,
                None => continue,
            };
            let (from, least) = (at + name.len() + gap, if name.ends_with(' ') { LEAST_TOKEN } else { LEAST_VALUE });
            let length = lower[from..].bytes().take_while(|byte| is_token(*byte) || *byte == b'%').count();
            if before.is_none_or(|c| !c.is_ascii_alphanumeric()) && length >= least {
                cut.push((from, from + length));
            }
        }
    }
    cut.sort_unstable();
    replace(text, &cut)
}

/// The text with `***` in these places, which are in their order.
fn replace(text: &str, cut: &[(usize, usize)]) -> String {
    let (mut replaced, mut done) = (String::with_capacity(text.len()), 0);
    for (from, to) in cut.iter().filter(|(from, to)| from < to) {
        if *from >= done {
            replaced.push_str(&text[done..*from]);
            replaced.push_str(MASK);
        }
        done = done.max(*to);
    }
    replaced.push_str(&text[done..]);
    replaced
}

/// The ways in which registries repeat a text: as it is, in a URL, in a form, within JSON, within HTML.
fn forms(text: &str) -> Vec<String> {
    let encode = |write: fn(char, &mut String)| text.chars().fold(String::new(), |mut to, c| {
        write(c, &mut to);
        to
    });
    let url = encode(|c, to| match c {
        c if c.is_ascii_alphanumeric() || "-._~".contains(c) => to.push(c),
        c => c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| _ = write!(to, "%{byte:02X}")),
    });
    let json = encode(|c, to| match c {
        '"' | '\\' => to.extend(['\\', c]),
        c if c.is_control() || "<>&".contains(c) => _ = write!(to, "\\u{:04x}", u32::from(c)),
        c => to.push(c),
    });
    let html = encode(|c, to| match c {
        '<' => to.push_str("&lt;"),
        '>' => to.push_str("&gt;"),
        '&' => to.push_str("&amp;"),
        '"' => to.push_str("&#34;"),
        '\'' => to.push_str("&#39;"),
        '+' => to.push_str("&#43;"),
        c => to.push(c),
    });
    // Base64 in the alphabet of URLs, and without its padding.
    let other = text.trim_end_matches('=').replace('+', "-").replace('/', "_");
    let mut all = vec![text.to_owned(), url.replace("%20", "+"), url, json, html, other];
    all.dedup();
    all
}

fn key(text: &[u8]) -> Option<[u8; KEY]> {
    Some(text.first_chunk::<KEY>()?.map(|byte| byte.to_ascii_lowercase()))
}

/// RFC 6750's `b64token`, RFC 9110's `token68`.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)
}

/// What stands in a secret's place.
const MASK: &str = "***";
/// Shorter secrets aren't looked for. As `user:password` in Base64 they are longer.
const KEY: usize = 4;
const OWN_MIN: usize = 8;
/// So much of a token is enough to recognize it.
const PARTIAL: usize = 24;
const RECENT: usize = 512;
const SWEEP: usize = 4096;
const LEAST_VALUE: usize = 8;
const LEAST_TOKEN: usize = 20;
/// What secrets stand behind. Those with a space have no `=`.
const NAMES: [&str; 17] = [
    "bearer ",
    "basic ",
    "sig",
    "signature",
    "x-amz-signature",
    "x-amz-security-token",
    "x-amz-credential",
    "x-goog-signature",
    "x-goog-credential",
    "token",
    "access_token",
    "refresh_token",
    "identity_token",
    "identitytoken",
    "registrytoken",
    "client_secret",
    "password",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_however_it_is_written() {
        let kept = keep("s3cr3t/+ \"&<x".to_owned());
        for text in [
            "s3cr3t/+ \"&<x",
            "S3CR3T/+ \"&<X",
            "s3cr3t%2F%2B%20%22%26%3Cx",
            "s3cr3t%2f%2b+%22%26%3cx",
            "s3cr3t/+ \\\"\\u0026\\u003cx",
            "s3cr3t/&#43; &#34;&amp;&lt;x",
        ] {
            assert_eq!(own(&format!("a {text} b")), "a *** b", "{text}");
        }
        assert_eq!(&*kept, "s3cr3t/+ \"&<x");
    }

    #[test]
    fn a_cut_token_is_found() {
        let _kept = keep("eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1c2VyLTEyMzQifQ.c2lnbmF0dXJl".to_owned());
        assert_eq!(own("(eyJhbGciOiJub25lIn0.eyJzdWIiOi...)"), "(***...)");
        assert_eq!(own("eyJhbGciOiJub25lIn0"), "eyJhbGciOiJub25lIn0", "too little to know it");
    }

    #[test]
    fn short_secrets_are_masked_in_texts_of_others_only() {
        let _kept = keep("tést5".to_owned());
        assert_eq!((own("a/tést5:1").as_ref(), remote("no tést5!").as_str()), ("a/tést5:1", "no ***!"));
        let _tiny = keep("abc".to_owned());
        assert_eq!(remote("abc"), "abc");
    }

    #[test]
    fn the_pair_is_known_for_as_long_as_its_password() {
        let kept = keep("a-pässword".to_owned());
        kept.also("dXNlcjphLXDDpHNzd29yZA==");
        assert_eq!(own("Basic dXNlcjphLXDDpHNzd29yZA== is wrong"), "Basic *** is wrong");
        assert_eq!(own("dXNlcjphLXDDpHNzd29yZA"), "***");
    }

    #[test]
    fn signatures_and_users_in_urls_are_masked() {
        assert_eq!(own("at https://me:pw@host/x?a=b"), "at https://***@host/x?a=b");
        assert_eq!(
            remote("GET https://h/b?se=2026-01-01&sig=abcdEFGH%2F12%3D&sp=r failed"),
            "GET https://h/b?se=2026-01-01&sig=***&sp=r failed"
        );
        assert_eq!(remote("X-Amz-Signature=0123456789abcdef"), "X-Amz-Signature=***");
        assert_eq!(remote("{\"token\":\"0123456789\"}"), "{\"token\":\"***\"}");
        assert_eq!(remote("got 'Authorization: Bearer 0123456789abcdefghij'"), "got 'Authorization: Bearer ***'");
        for text in ["Bearer authentication is required", "invalid token", "error=\"invalid_token\"", "design=12345678"] {
            assert_eq!(remote(text), text);
        }
    }

    /// Tokens are renewed for months.
    #[test]
    fn forgotten_secrets_cost_no_memory() {
        for nth in 0..3 * SWEEP {
            keep(format!("a renewed token {nth}"));
        }
        let register = REGISTER.read().expect("no panic");
        assert!(register.recent.len() <= RECENT && register.known.len() < 2 * SWEEP);
        assert!(register.forms.values().map(Vec::len).sum::<usize>() < 2 * SWEEP);
    }
}
