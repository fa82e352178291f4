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

/// A result of a backend, with its outcome if the backend reports one.
#[derive(Debug)]
pub(crate) struct Reply<T, E = Error> {
    /// The result.
    pub(crate) found: Result<T, E>,
    /// The outcome. An error has one too.
    pub(crate) served: Option<Served>,
}

impl<T, E> Reply<T, E> {
    /// Converts the value, and keeps the outcome.
    pub(crate) fn map<U>(self, convert: impl FnOnce(T) -> U) -> Reply<U, E> {
        Reply { found: self.found.map(convert), served: self.served }
    }
}

impl<T> Reply<T> {
    /// Converts the result into a response, and keeps the outcome.
    pub(super) fn answer<U>(self, answer: impl FnOnce(T) -> Result<U, Refusal>) -> Reply<U, Refusal> {
        let found = self.found.map_err(|error| Refusal::backend(&error)).and_then(answer);
        Reply { found, served: self.served }
    }
}

/// A result without an outcome.
impl<T, E> From<Result<T, E>> for Reply<T, E> {
    fn from(found: Result<T, E>) -> Self {
        Self { found, served: None }
    }
}
