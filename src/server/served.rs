//! What a backend says of an answer besides the answer: how it came about. Clients hear that it may be old,
//! the access log hears all of it.

use super::refusal::Refusal;
use crate::error::{Error, Result};

/// How an answer came about. In the extensions of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// In one word, such as `hit`.
    pub how: &'static str,
    /// It may be old: what it comes from can't be asked.
    pub stale: bool,
}

/// What was found, and how, where the backend says so.
#[derive(Debug)]
pub struct Reply<T, E = Error> {
    /// What was found, or why nothing could be.
    pub found: Result<T, E>,
    /// How that came about. An error has it too.
    pub served: Option<Served>,
}

impl<T, E> Reply<T, E> {
    /// The same about what `convert` makes of it.
    pub fn map<U>(self, convert: impl FnOnce(T) -> U) -> Reply<U, E> {
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
