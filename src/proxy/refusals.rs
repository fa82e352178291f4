//! Refusals: a registry answers the proxy with 401, 403 or the like. They are logged once, not for each request.
//!
//! When a tier refuses the proxy, the next tier is asked. Clients see no difference, but all their pulls go to the next
//! tier. So the log has a line when refusals start and when they end, and metrics and the status page show them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Kind, Result};

/// The refusals of one registry.
///
/// A registry may refuse some repositories and not others. So a refusal of a repository is kept until a request for the same
/// repository succeeds, or until [`FORGET_AFTER`] has passed since the last refusal.
#[derive(Debug)]
pub(super) struct Refusals {
    registry: String,
    standing: Mutex<BTreeMap<String, Refusal>>,
}

#[derive(Debug)]
struct Refusal {
    reason: &'static str,
    last: Instant,
}

impl Refusals {
    pub(super) fn new(registry: &str) -> Self {
        Self { registry: registry.to_owned(), standing: Mutex::default() }
    }

    /// Records the result of a request for a repository. Returns the reason if it was refused.
    pub(super) fn record<T>(&self, repository: &str, asked: &Result<T>) -> Option<&'static str> {
        let mut standing = self.lock();
        let before = !standing.is_empty();
        standing.retain(|_, refusal| refusal.last.elapsed() < FORGET_AFTER);
        let refused = match asked {
            Ok(_) => {
                standing.remove(repository);
                None
            }
            Err(error) => reason(error).map(|reason| (reason, error)),
        };
        let Some((reason, error)) = refused else {
            if before && standing.is_empty() {
                tracing::warn!("{} no longer refuses this proxy", self.registry);
            }
            return None;
        };
        if standing.values().all(|refusal| refusal.reason != reason) {
            let hint = error.hint_text().map(|hint| format!("; {hint}")).unwrap_or_default();
            tracing::warn!("{} refuses this proxy ({reason}): {error}{hint}", self.registry);
        }
        if standing.len() < MAX_REPOSITORIES || standing.contains_key(repository) {
            standing.insert(repository.to_owned(), Refusal { reason, last: Instant::now() });
        }
        Some(reason)
    }

    /// The current reasons, each with the number of its repositories.
    pub(super) fn reasons(&self) -> BTreeMap<&'static str, usize> {
        let mut reasons = BTreeMap::new();
        for refusal in self.lock().values().filter(|refusal| refusal.last.elapsed() < FORGET_AFTER) {
            *reasons.entry(refusal.reason).or_default() += 1;
        }
        reasons
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Refusal>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reason why the registry cannot be used until an operator changes something. `None` for temporary faults, and for
/// errors of the content.
pub(super) fn reason(error: &Error) -> Option<&'static str> {
    match error.kind() {
        _ if error.is_transient() => None,
        Kind::Unauthorized => Some("unauthorized"),
        Kind::Denied => Some("denied"),
        // A pull limit that is reached.
        Kind::Limited => Some("limited"),
        // A certificate that is not trusted, a name without an address.
        Kind::Network => Some("unreachable"),
        // A redirect that the proxy must not follow.
        Kind::Refused => Some("refused"),
        // Credentials that this machine cannot give.
        Kind::Local | Kind::Usage => Some("local"),
        _ => None,
    }
}

/// A refusal that does not recur is forgotten after this time.
const FORGET_AFTER: Duration = Duration::from_secs(10 * 60);
/// Repositories that are kept for each registry. Bounded, because clients can invent names.
const MAX_REPOSITORIES: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> Result<()> {
        Err(Error::new(Kind::Denied, "403"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_stands_until_the_same_repository_is_answered() {
        let refusals = Refusals::new("r.io");
        assert_eq!(refusals.record("a", &denied()), Some("denied"));
        assert_eq!(refusals.record("b", &denied()), Some("denied"));
        assert_eq!(refusals.record("c", &Ok(())), None);
        assert_eq!(refusals.reasons(), BTreeMap::from([("denied", 2)]));
        refusals.record("a", &Ok(()));
        refusals.record("b", &Err::<(), _>(Error::new(Kind::Network, "reset")));
        assert_eq!(refusals.reasons(), BTreeMap::from([("denied", 1)]), "a passing fault is no answer");
        tokio::time::sleep(FORGET_AFTER).await;
        assert_eq!(refusals.reasons(), BTreeMap::new());
    }

    #[test]
    fn so_many_repositories_are_kept() {
        let refusals = Refusals::new("r.io");
        for nth in 0..1000 {
            assert!(refusals.record(&nth.to_string(), &denied()).is_some());
        }
        assert_eq!(refusals.reasons(), BTreeMap::from([("denied", MAX_REPOSITORIES)]));
    }

    #[test]
    fn what_is_about_the_content_is_no_refusal() {
        for kind in [Kind::NotFound, Kind::Mismatch, Kind::Invalid, Kind::Registry, Kind::TooLarge] {
            assert_eq!(reason(&Error::new(kind, "x").permanent()), None, "{kind:?}");
        }
        assert_eq!(reason(&Error::new(Kind::Unauthorized, "x").transient(None)), None);
    }
}
