//! The secrets that this process holds, so that no output shows them.
//!
//! ```text
//! credentials::Secret ── keep ──▶ register ◀── remote ── texts of registries and helpers
//!                                          ◀── own ───── errors, logs, everything that is printed
//! ```
//! A registry can put our `Authorization` header into its error message; without this it would go on to stderr, to
//! reports and to the proxy's clients. A secret is known for as long as a [`KeptSecret`] of it lives, and the last
//! [`MAX_FORGOTTEN`] for longer, since an answer may come after the secret was replaced. What a registry encodes in a way
//! that isn't usual can't be recognized.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Deref;
use std::sync::{Arc, LazyLock, PoisonError, RwLock, Weak};

/// A secret that is known to be one. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct KeptSecret(Arc<Entry>);

#[derive(Debug)]
struct Entry(String);

#[derive(Default)]
struct Register {
    /// By the hash of their text.
    known: HashMap<u64, Weak<Entry>>,
    /// What is looked for, by the first characters.
    forms: HashMap<[char; KEY_LENGTH], Vec<Form>>,
    recent: VecDeque<Arc<Entry>>,
    /// Forms since those of forgotten secrets were removed last.
    added: usize,
}

/// One way to send a secret.
struct Form {
    /// With [`canonical`] characters.
    text: String,
    of: Weak<Entry>,
    /// It consists of a token's characters only, so that its beginning alone is recognized.
    is_token: bool,
}

/// A character of a text in which secrets are looked for, and where it is there.
#[derive(Clone, Copy)]
struct Seen {
    char: char,
    from: usize,
    to: usize,
}

static REGISTER: LazyLock<RwLock<Register>> = LazyLock::new(RwLock::default);

/// Registers a secret. The same text is registered once.
pub(crate) fn register(secret: String) -> KeptSecret {
    let mut hasher = DefaultHasher::new();
    secret.hash(&mut hasher);
    let hash = hasher.finish();
    let same = |register: &Register| {
        register.known.get(&hash).and_then(Weak::upgrade).filter(|entry| entry.0 == secret).map(KeptSecret)
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
    if register.recent.len() == MAX_FORGOTTEN {
        register.recent.pop_front();
    }
    register.recent.push_back(entry.clone());
    KeptSecret(entry)
}

impl KeptSecret {
    /// Registers another text by which this secret is sent, such as `user:password` in Base64.
    pub(crate) fn also(&self, text: &str) {
        let mut new = forms(text);
        // The same text comes with each request. Usually it is known, and no other thread has to wait.
        let register = REGISTER.read().unwrap_or_else(PoisonError::into_inner);
        new.retain(|form| !register.has(form, &self.0));
        drop(register);
        if new.is_empty() {
            return;
        }
        let mut register = REGISTER.write().unwrap_or_else(PoisonError::into_inner);
        for form in new {
            register.add(form, &self.0);
        }
    }
}

impl Deref for KeptSecret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0.0
    }
}

/// Our own text without secrets of eight characters and more. Shorter ones are no rarer than our words: where `test` is a
/// password, `registry/test` must stay readable. Our texts hold them only if a registry wrote them, see [`redact_remote`].
pub(crate) fn redact_own(text: &str) -> Cow<'_, str> {
    without_user(mask(text, MIN_OWN_SECRET))
}

/// Someone else's text without any secret of four characters and more, and without what looks like one: tokens behind
/// `Bearer` and `Basic`, signatures of URLs.
pub(crate) fn redact_remote(text: &str) -> String {
    let masked = without_user(mask(text, KEY_LENGTH));
    without_values(&masked)
}

impl Register {
    /// Whether the text is registered as a form of this secret, or too short to be.
    fn has(&self, text: &str, of: &Arc<Entry>) -> bool {
        let Some(key) = key(text.chars()) else { return true };
        self.forms.get(&key).is_some_and(|forms| forms.iter().any(|form| form.is(text, of)))
    }

    fn add(&mut self, text: String, of: &Arc<Entry>) {
        let Some(key) = key(text.chars()) else { return };
        let forms = self.forms.entry(key).or_default();
        if forms.iter().any(|form| form.is(&text, of)) {
            return;
        }
        let is_token = text.bytes().all(is_token);
        forms.push(Form { text, of: Arc::downgrade(of), is_token });
        self.added += 1;
        if self.added >= SWEEP_INTERVAL {
            self.added = 0;
            self.known.retain(|_, entry| entry.strong_count() > 0);
            self.forms.retain(|_, forms| {
                forms.retain(|form| form.of.strong_count() > 0);
                !forms.is_empty()
            });
        }
    }

    /// The number of characters of the longest secret that the text begins with; `min` at least.
    fn found(&self, text: &[Seen], min: usize) -> Option<usize> {
        let chars = || text.iter().map(|seen| seen.char);
        let forms = self.forms.get(&key(chars())?)?.iter().filter(|form| form.of.strong_count() > 0);
        forms.filter_map(|form| form.found(chars())).filter(|length| *length >= min).max()
    }

    /// Where there are secrets.
    fn cuts(&self, text: &[Seen], min: usize, cuts: &mut Vec<(usize, usize)>) {
        let mut at = 0;
        while at + KEY_LENGTH <= text.len() {
            match self.found(&text[at..], min) {
                Some(length) => {
                    cuts.push((text[at].from, text[at + length - 1].to));
                    at += length;
                }
                None => at += 1,
            }
        }
    }
}

impl Form {
    /// Whether it is this text, of this secret.
    fn is(&self, text: &str, of: &Arc<Entry>) -> bool {
        self.text == text && self.of.upgrade().is_some_and(|entry| Arc::ptr_eq(&entry, of))
    }

    fn found(&self, text: impl Iterator<Item = char>) -> Option<usize> {
        let mut form = self.text.chars();
        let same = form.by_ref().zip(text).take_while(|(a, b)| a == b).count();
        // Registries cut what they quote.
        (same == self.text.chars().count() || self.is_token && same >= PREFIX_LENGTH).then_some(same)
    }
}

fn mask(text: &str, min: usize) -> Cow<'_, str> {
    let register = REGISTER.read().unwrap_or_else(PoisonError::into_inner);
    if register.forms.is_empty() {
        return Cow::Borrowed(text);
    }
    let seen = |(from, c): (usize, char)| Seen { char: canonical(c), from, to: from + c.len_utf8() };
    let plain: Vec<Seen> = text.char_indices().map(seen).collect();
    let mut cuts = Vec::new();
    register.cuts(&plain, min, &mut cuts);
    if text.contains(['%', '\\', '&']) {
        register.cuts(&decoded(text), min, &mut cuts);
    }
    if cuts.is_empty() {
        return Cow::Borrowed(text);
    }
    cuts.sort_unstable();
    Cow::Owned(replace(text, &cuts))
}

/// The text as it was before it became a part of a URL, of JSON or of HTML. What isn't encoded stays.
fn decoded(text: &str) -> Vec<Seen> {
    let (mut all, mut from) = (Vec::with_capacity(text.len()), 0);
    while let Some(c) = text[from..].chars().next() {
        let rest = &text[from..];
        let (char, length) = match c {
            '%' => percent(rest),
            '\\' => backslash(rest),
            '&' => entity(rest),
            _ => None,
        }
        .unwrap_or((c, c.len_utf8()));
        all.push(Seen { char: canonical(char), from, to: from + length });
        from += length;
    }
    all
}

/// `%C3%84` (RFC 3986 §2.1), as UTF-8.
fn percent(text: &str) -> Option<(char, usize)> {
    let mut bytes = Vec::new();
    for group in text.as_bytes().chunks_exact(3).take(4) {
        let hex = group.strip_prefix(b"%").and_then(|hex| std::str::from_utf8(hex).ok())?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        if let Some(c) = std::str::from_utf8(&bytes).ok().and_then(|text| text.chars().next()) {
            return Some((c, 3 * bytes.len()));
        }
    }
    None
}

/// `\"` and `\u0026` (RFC 8259 §7).
fn backslash(text: &str) -> Option<(char, usize)> {
    let c = text[1..].chars().next()?;
    match c {
        'u' => Some((char::from_u32(u32::from_str_radix(text.get(2..6)?, 16).ok()?)?, 6)),
        '"' | '\\' | '/' => Some((c, 2)),
        _ => None,
    }
}

/// `&amp;` and `&#43;`.
fn entity(text: &str) -> Option<(char, usize)> {
    let end = text.bytes().take(10).position(|byte| byte == b';')?;
    let c = match &text[1..end] {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        number => {
            let number = number.strip_prefix('#')?;
            let hex = number.strip_prefix(['x', 'X']).map(|hex| u32::from_str_radix(hex, 16));
            char::from_u32(hex.unwrap_or_else(|| number.parse()).ok()?)?
        }
    };
    Some((c, end + 1))
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
            let (from, least) = (at + name.len() + gap, if name.ends_with(' ') { MIN_TOKEN } else { MIN_VALUE });
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

/// What is looked for: the text, and if it's Base64, the same in the alphabet of URLs, without its padding.
fn forms(text: &str) -> Vec<String> {
    let all: String = text.chars().map(canonical).collect();
    let other = all.trim_end_matches('=').replace('+', "-").replace('/', "_");
    if other == all { vec![all] } else { vec![all, other] }
}

/// Some registries write all in upper case, or all in lower case. Forms have a plus for a space.
fn canonical(c: char) -> char {
    if c == ' ' { '+' } else { c.to_ascii_lowercase() }
}

fn key(mut text: impl Iterator<Item = char>) -> Option<[char; KEY_LENGTH]> {
    let mut key = ['\0'; KEY_LENGTH];
    for place in &mut key {
        *place = text.next()?;
    }
    Some(key)
}

/// RFC 6750's `b64token`, RFC 9110's `token68`.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)
}

/// What stands in a secret's place.
const MASK: &str = "***";
/// Shorter secrets aren't looked for. As `user:password` in Base64 they are longer.
const KEY_LENGTH: usize = 4;
const MIN_OWN_SECRET: usize = 8;
/// So much of a token is enough to recognize it.
const PREFIX_LENGTH: usize = 24;
const MAX_FORGOTTEN: usize = 512;
const SWEEP_INTERVAL: usize = 4096;
const MIN_VALUE: usize = 8;
const MIN_TOKEN: usize = 20;
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
        let kept = register("s3cr3t/+ \"&<x".to_owned());
        for text in [
            "s3cr3t/+ \"&<x",
            "S3CR3T/+ \"&<X",
            "s3cr3t%2F%2B%20%22%26%3Cx",
            "s3cr3t%2f%2b+%22%26%3cx",
            "s3cr3t/+ \\\"\\u0026\\u003cx",
            "s3cr3t/&#43; &#34;&amp;&lt;x",
            "s3cr3t/+ &quot;&#x26;<x",
            "s3cr3t%2F+ \"&<x",
        ] {
            assert_eq!(redact_own(&format!("a {text} b")), "a *** b", "{text}");
        }
        assert_eq!(&*kept, "s3cr3t/+ \"&<x");
    }

    #[test]
    fn a_cut_token_is_found() {
        let _kept = register("eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1c2VyLTEyMzQifQ.c2lnbmF0dXJl".to_owned());
        assert_eq!(redact_own("(eyJhbGciOiJub25lIn0.eyJzdWIiOi...)"), "(***...)");
        assert_eq!(redact_own("eyJhbGciOiJub25lIn0"), "eyJhbGciOiJub25lIn0", "too little to know it");
    }

    #[test]
    fn short_secrets_are_masked_in_texts_of_others_only() {
        let _kept = register("tést5".to_owned());
        assert_eq!((redact_own("a/tést5:1").as_ref(), redact_remote("no tést5!").as_str()), ("a/tést5:1", "no ***!"));
        let _tiny = register("abc".to_owned());
        assert_eq!(redact_remote("abc"), "abc");
    }

    #[test]
    fn the_pair_is_known_for_as_long_as_its_password() {
        let kept = register("a-pässword".to_owned());
        kept.also("dXNlcjphLXDDpHNzd29yZA==");
        assert_eq!(redact_own("Basic dXNlcjphLXDDpHNzd29yZA== is wrong"), "Basic *** is wrong");
        assert_eq!(redact_own("dXNlcjphLXDDpHNzd29yZA"), "***");
    }

    #[test]
    fn signatures_and_users_in_urls_are_masked() {
        assert_eq!(redact_own("at https://me:pw@host/x?a=b"), "at https://***@host/x?a=b");
        assert_eq!(
            redact_remote("GET https://h/b?se=2026-01-01&sig=abcdEFGH%2F12%3D&sp=r failed"),
            "GET https://h/b?se=2026-01-01&sig=***&sp=r failed"
        );
        assert_eq!(redact_remote("X-Amz-Signature=0123456789abcdef"), "X-Amz-Signature=***");
        assert_eq!(redact_remote("{\"token\":\"0123456789\"}"), "{\"token\":\"***\"}");
        assert_eq!(
            redact_remote("got 'Authorization: Bearer 0123456789abcdefghij'"),
            "got 'Authorization: Bearer ***'"
        );
        for text in ["Bearer authentication is required", "invalid token", "error=\"invalid_token\"", "design=12345678"]
        {
            assert_eq!(redact_remote(text), text);
        }
    }

    /// Tokens are renewed for months.
    #[test]
    fn forgotten_secrets_cost_no_memory() {
        for nth in 0..3 * SWEEP_INTERVAL {
            register(format!("a renewed token {nth}"));
        }
        let register = REGISTER.read().expect("no panic");
        assert!(register.recent.len() <= MAX_FORGOTTEN && register.known.len() < 2 * SWEEP_INTERVAL);
        assert!(register.forms.values().map(Vec::len).sum::<usize>() < 2 * SWEEP_INTERVAL);
    }
}
