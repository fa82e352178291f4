//! How a backend has produced an answer. The access log has the outcome, and clients get a header if the answer may be
//! outdated.

use super::refusal::Refusal;
use crate::error::{Error, Result};

/// How an answer was produced. It is in the extensions of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    /// The outcome in one word, such as `hit`.
    pub(crate) how: &'static str,
    /// The answer may be outdated, because the upstream cannot be asked.
    pub(crate) stale: bool,
}

/// What was found, and how, where the backend says so.
#[derive(Debug)]
pub(crate) struct Reply<T, E = Error> {
    /// What was found, or why nothing could be.
    pub(crate) found: Result<T, E>,
    /// How that came about. An error has it too.
    pub(crate) served: Option<Served>,
}

impl<T, E> Reply<T, E> {
    /// The same about what `convert` makes of it.
    pub(crate) fn map<U>(self, convert: impl FnOnce(T) -> U) -> Reply<U, E> {
        Reply { found: self.found.map(convert), served: self.served }
    }
}

impl<T> Reply<T> {
    /// The answer to a client that `answer` makes of it.
    pub(super) fn answer<U>(self, answer: impl FnOnce(T) -> Result<U, Refusal>) -> Reply<U, Refusal> {
        let found = self.found.map_err(|error| Refusal::backend(&error)).and_then(answer);
        Reply { found, served: self.served }
    }
}

/// A backend that has nothing to say about it.
impl<T, E> From<Result<T, E>> for Reply<T, E> {
    fn from(found: Result<T, E>) -> Self {
        Self { found, served: None }
    }
}
