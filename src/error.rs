//! One error type: what was being done, on which side, what went wrong, what to do about it.
//!
//! `main` prints an [`Error`] as one line (`error: source: cannot read …: …`) followed by a
//! `hint:` line where there is something that the user can do. Every text that gets in here loses the secrets that
//! this process knows, and its control characters become visible: an error goes to terminals, logs, reports and
//! clients, and may hold what a registry wrote.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::{printable, redact};

/// The result of nearly everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where, during what.
///
/// Boxed inside, so that a `Result` stays small in the hot paths.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    side: Option<Side>,
    doing: Option<String>,
    what: String,
    /// What another program said, which clients of a server don't see.
    quote: Option<String>,
    hint: Option<String>,
    retry_after: Option<Duration>,
    transient: bool,
    attempts: u32,
    spent: Duration,
    reported: bool,
    /// The HTTP status that a registry answered with, and the code in its error document.
    status: Option<u16>,
    code: Option<String>,
    /// The registry that it is about.
    registry: Option<String>,
    cause: Option<Cause>,
}

/// Shared by the copies of an error.
type Cause = Arc<dyn StdError + Send + Sync>;

/// Which end of a copy an error belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where an image is read from.
    Source,
    /// Where an image is written to.
    Destination,
    /// This machine: its files, its arguments.
    Local,
}

/// The kind of an error: decides exit code, retry and how a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The user asked for something that makes no sense; exit code 2.
    Usage,
    /// The repository, tag, manifest or blob isn't there.
    NotFound,
    /// No credentials, or wrong ones (HTTP 401).
    Unauthorized,
    /// Known, but not allowed (HTTP 403).
    Denied,
    /// Too many requests, or Docker Hub's pull limit (HTTP 429).
    Limited,
    /// Bytes that don't match their digest or size.
    Mismatch,
    /// The same content had the wrong digest several times: its holder is not asked for it for a while.
    Damaged,
    /// A form of image that transload doesn't copy, or a registry that can't take it.
    Unsupported,
    /// Content that can't be parsed, or is past a bound.
    Invalid,
    /// The upload session is gone (HTTP 404 or 416 on it): begin the blob in a new one.
    SessionLost,
    /// The registry wants smaller requests (HTTP 413).
    TooLarge,
    /// Connection, DNS or TLS trouble.
    Network,
    /// Nothing moved for too long.
    Timeout,
    /// An answer that the protocol doesn't know here.
    Registry,
    /// Refused by transload for safety (credentials or redirects to where they must not go).
    Refused,
    /// A local file operation failed.
    Local,
    /// No room for more content: a quota, a reserve of the disk, or the limit of a list.
    Full,
    /// SIGINT or SIGTERM; exit code 130.
    Interrupted,
    /// A fault of transload itself: a panic.
    Internal,
}

impl Kind {
    /// Its name in JSON documents, metrics and logs, such as `not-found`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::NotFound => "not-found",
            Self::Unauthorized => "unauthorized",
            Self::Denied => "denied",
            Self::Limited => "limited",
            Self::Mismatch => "mismatch",
            Self::Damaged => "damaged",
            Self::Unsupported => "unsupported",
            Self::Invalid => "invalid",
            Self::SessionLost => "session-lost",
            Self::TooLarge => "too-large",
            Self::Network => "network",
            Self::Timeout => "timeout",
            Self::Registry => "registry",
            Self::Refused => "refused",
            Self::Local => "local",
            Self::Full => "full",
            Self::Interrupted => "interrupted",
            Self::Internal => "internal",
        }
    }
}

impl Error {
    /// An error of `kind` that says `what` went wrong.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            side: None,
            doing: None,
            what: limited(clean(what.into())),
            quote: None,
            hint: None,
            retry_after: None,
            transient: matches!(kind, Kind::Network | Kind::Timeout),
            attempts: 0,
            spent: Duration::ZERO,
            reported: false,
            status: None,
            code: None,
            registry: None,
            cause: None,
        }))
    }

    /// A local I/O error while `doing` something.
    pub fn io(doing: impl Into<String>, error: &io::Error) -> Self {
        let full = error.kind() == io::ErrorKind::StorageFull;
        let made = Self::new(Kind::Local, error.to_string()).caused_by_io(error);
        let made = made.doing(doing).on(Side::Local);
        if full { made.hint("free some space, or choose another directory") } else { made }
    }

    /// A file that the user named couldn't be read, while `doing` something.
    pub fn unreadable(doing: impl Into<String>, error: &io::Error) -> Self {
        use io::ErrorKind;
        let made = Self::io(doing, error);
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => made.hint(
                "check the path: one that does not begin with / is looked for in the directory that transload runs in",
            ),
            ErrorKind::PermissionDenied => made.hint("the user that transload runs as must be allowed to read it"),
            ErrorKind::IsADirectory => made.hint("name a file, not a directory"),
            _ => made,
        }
    }

    /// Says on which side it happened, unless that is known already.
    #[must_use]
    pub fn on(mut self, side: Side) -> Self {
        self.0.side.get_or_insert(side);
        self
    }

    /// Says what was being done, as in "cannot {doing}", unless that is known already.
    #[must_use]
    pub fn doing(mut self, doing: impl Into<String>) -> Self {
        self.0.doing.get_or_insert_with(|| clean(doing.into()));
        self
    }

    /// Says anew of what kind it is.
    #[must_use]
    pub(crate) fn of_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Says anew what was being done, by whoever knows better what the user is about.
    #[must_use]
    pub fn replace_context(mut self, doing: impl Into<String>) -> Self {
        self.0.doing = Some(clean(doing.into()));
        self
    }

    /// Says anew what the user can do, as [`Self::replace_context`].
    #[must_use]
    pub fn hint_instead(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(clean(hint.into()));
        self
    }

    /// Says what the user can do, unless something better was said already.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert_with(|| limited(clean(hint.into())));
        self
    }

    /// Adds what another program said, or a parser about it, as it is to stand behind the message. It is shown to the
    /// user without any secret, and left out by [`own_text`](Self::own_text).
    #[must_use]
    pub(crate) fn quoting(mut self, quote: impl Into<String>) -> Self {
        self.0.quote = Some(clean(redact::redact_remote(&quote.into()))).filter(|quote| !quote.is_empty());
        self
    }

    /// The message without what another program said: for clients of a server, who must not read what is meant for
    /// the server's own credentials.
    pub(crate) fn own_text(&self) -> String {
        self.text(None)
    }

    fn text(&self, quote: Option<&str>) -> String {
        let Inner { side, doing, what, attempts, spent, .. } = &*self.0;
        let side = side.map(|side| format!("{side}: ")).unwrap_or_default();
        let doing = doing.as_ref().map(|doing| format!("cannot {doing}: ")).unwrap_or_default();
        let quote = quote.unwrap_or_default();
        let tries = match attempts {
            0 | 1 => String::new(),
            _ => format!(" (after {attempts} attempts in {:.1} s)", spent.as_secs_f64()),
        };
        format!("{side}{doing}{what}{quote}{tries}")
    }

    /// Marks it as worth another try, after `retry_after` where the server said so.
    #[must_use]
    pub fn transient(mut self, retry_after: Option<Duration>) -> Self {
        self.0.transient = true;
        self.0.retry_after = retry_after;
        self
    }

    /// Marks it as final: another try would end the same.
    #[must_use]
    pub fn permanent(mut self) -> Self {
        self.0.transient = false;
        self
    }

    /// Says how many attempts were made, and for how long.
    #[must_use]
    pub fn after(mut self, attempts: u32, spent: Duration) -> Self {
        self.0.attempts = attempts;
        self.0.spent = spent;
        self
    }

    /// Marks a mismatch as worth another try: what was damaged on the way may come whole the next time.
    #[must_use]
    pub fn transient_if_damaged(self) -> Self {
        if self.0.kind == Kind::Mismatch { self.transient(None) } else { self }
    }

    /// Notes the HTTP status of a registry's answer, and the code of its error document.
    #[must_use]
    pub(crate) fn answered(mut self, status: u16, code: Option<String>) -> Self {
        self.0.status = Some(status);
        self.0.code = code;
        self
    }

    /// Names the registry that it is about, unless one is named already.
    #[must_use]
    pub(crate) fn at_registry(mut self, registry: &str) -> Self {
        self.0.registry.get_or_insert_with(|| registry.to_owned());
        self
    }

    /// The registry that it is about, where known.
    pub(crate) fn registry(&self) -> Option<&str> {
        self.0.registry.as_deref()
    }

    /// Keeps the error of another library that this one was made from, for [`source`](StdError::source). Its text
    /// belongs into the message all the same.
    #[must_use]
    pub(crate) fn caused_by(mut self, cause: impl StdError + Send + Sync + 'static) -> Self {
        self.0.cause.get_or_insert_with(|| Arc::new(cause));
        self
    }

    /// As [`caused_by`](Self::caused_by), for an I/O error that is only lent.
    #[must_use]
    pub(crate) fn caused_by_io(self, cause: &io::Error) -> Self {
        self.caused_by(same_io_error(cause))
    }

    /// The same error with what `other`, which is about the same answer, knows of its reason.
    #[must_use]
    pub(crate) fn explained_by(self, other: Self) -> Self {
        let Inner { doing, side, .. } = *self.0;
        Self(Box::new(Inner { doing, side, ..*other.0 }))
    }

    /// Marks it as reported: whoever answers a request with it need not log it again.
    #[must_use]
    pub fn reported(mut self) -> Self {
        self.0.reported = true;
        self
    }

    /// Whether the log has it already.
    pub fn is_reported(&self) -> bool {
        self.0.reported
    }

    /// What kind of error this is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The HTTP status that a registry answered with; `None` if the error is no answer of a registry.
    pub(crate) fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// The code in a registry's error document, such as `NAME_UNKNOWN`.
    pub(crate) fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// On which side it happened, where known.
    pub fn side(&self) -> Option<Side> {
        self.0.side
    }

    /// What the user can do about it.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Whether another try may go better.
    pub fn is_transient(&self) -> bool {
        self.0.transient
    }

    /// Whether it's a spent quota of pulls, as Docker Hub's: to try again soon can't help.
    pub fn is_quota(&self) -> bool {
        self.0.kind == Kind::Limited && !self.0.transient
    }

    /// How long the server asked to wait before another try.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The exit code that this error ends the program with: 1, 2 for usage, 130 when interrupted.
    pub fn exit_code(&self) -> u8 {
        match self.0.kind {
            Kind::Usage => 2,
            Kind::Interrupted => 130,
            _ => 1,
        }
    }

    /// A copy for another waiter of the same work (an [`Error`] owns no live resource).
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let Inner { kind, side, doing, what, quote, hint, retry_after, transient, .. } = &*self.0;
        let Inner { attempts, spent, reported, status, code, registry, cause, .. } = &*self.0;
        Self(Box::new(Inner {
            kind: *kind,
            side: *side,
            doing: doing.clone(),
            what: what.clone(),
            quote: quote.clone(),
            hint: hint.clone(),
            retry_after: *retry_after,
            transient: *transient,
            attempts: *attempts,
            spent: *spent,
            reported: *reported,
            status: *status,
            code: code.clone(),
            registry: registry.clone(),
            cause: cause.clone(),
        }))
    }
}

/// Cuts a text that is too long to be read. A run keeps its errors to the end, and some quote what a registry sent.
fn limited(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default());
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

/// The most bytes of an error's text, and of its hint.
const MAX_TEXT: usize = 8 << 10;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(self.0.quote.as_deref()))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

/// The causes are for code that asks for their types. They are not cleaned of secrets, and the message of an [`Error`]
/// has their text already: print the error, never its causes.
impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.as_deref().map(|cause| cause as &(dyn StdError + 'static))
    }
}

/// An I/O error can't be cloned. Its kind and the number of the operating system stay.
fn same_io_error(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// Without secrets and control characters.
fn clean(text: String) -> String {
    let redacted = match redact::redact_own(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(redacted) => redacted,
    };
    match printable::line(&redacted) {
        Cow::Borrowed(_) => redacted,
        Cow::Owned(escaped) => escaped,
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Local => "local",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source_io_kind(error: &Error) -> Option<io::ErrorKind> {
        error.source()?.downcast_ref::<io::Error>().map(io::Error::kind)
    }

    #[test]
    fn the_cause_of_a_local_error_is_its_io_error() {
        let missing = Error::io("read x", &io::Error::from_raw_os_error(2));
        assert_eq!(source_io_kind(&missing), Some(io::ErrorKind::NotFound));
        let cause = missing.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        assert_eq!(cause.and_then(io::Error::raw_os_error), Some(2));
        let refused = Error::unreadable("read x", &io::Error::new(io::ErrorKind::InvalidData, "too large"));
        assert_eq!(source_io_kind(&refused), Some(io::ErrorKind::InvalidData));
        assert_eq!(refused.source().map(ToString::to_string).as_deref(), Some("too large"));
        assert!(Error::new(Kind::Network, "silent").source().is_none());
    }

    #[test]
    fn a_copy_of_an_error_keeps_its_causes_and_the_chain_goes_on() {
        let inner = Error::io("write y", &io::Error::from_raw_os_error(28));
        let outer = Error::new(Kind::Full, format!("no room: {inner}")).caused_by(inner).duplicate();
        let inner = outer.source().and_then(|cause| cause.downcast_ref::<Error>()).expect("the inner error");
        assert_eq!((inner.kind(), source_io_kind(inner)), (Kind::Local, Some(io::ErrorKind::StorageFull)));
    }

    #[test]
    fn a_cause_is_not_a_part_of_what_is_printed() {
        let cause = io::Error::other("password=hunter2");
        let error = Error::new(Kind::Invalid, "the file is malformed").caused_by(cause);
        assert_eq!(format!("{error} {error:?}"), "the file is malformed Invalid(the file is malformed)");
        assert!(error.source().is_some());
    }
}
