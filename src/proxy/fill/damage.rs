//! Which blobs failed verification, by the repository that sent them.
//!
//! After damage in transit another fetch brings the right bytes. A blob that is damaged in the registry's storage comes
//! damaged each time: after [`MAX_FAILURES`] fetches the repository is not asked for it until some time has passed. The
//! next tier is asked instead. If there is none, clients get an error at once.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::content::MAX_DAMAGED;
use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result, Side};
use crate::reference::Repository;

/// The blobs that failed verification recently.
#[derive(Debug, Default)]
pub(super) struct Damage(Mutex<HashMap<(Repository, Digest), Record>>);

#[derive(Debug)]
struct Record {
    /// Consecutive failures.
    failures: u32,
    last: Instant,
}

impl Damage {
    /// Records how a fetch of the whole blob from `repository` ended.
    pub(super) fn learn<T>(&self, repository: &Repository, digest: &Digest, fetched: &Result<T>) {
        let mut records = self.lock();
        match fetched {
            Ok(_) if records.is_empty() => {}
            Ok(_) => drop(records.remove(&(repository.clone(), *digest))),
            Err(error) if error.kind() == Kind::Mismatch => {
                records.retain(|_, record| record.last.elapsed() < RECORD_TTL);
                let key = (repository.clone(), *digest);
                if records.len() >= MAX_RECORDS && !records.contains_key(&key) {
                    forget_oldest(&mut records);
                }
                let record = records.entry(key).or_insert(Record { failures: 0, last: Instant::now() });
                (record.failures, record.last) = (record.failures + 1, Instant::now());
            }
            Err(_) => {}
        }
    }

    /// Checks that the repository may be asked for the blob.
    ///
    /// # Errors
    /// [`Kind::Damaged`] for `ttl` after the last of [`MAX_FAILURES`] failures. One fetch is tried after that.
    pub(super) fn check(&self, repository: &Repository, digest: &Digest, ttl: Duration) -> Result<()> {
        let records = self.lock();
        if records.is_empty() {
            return Ok(());
        }
        let record = records.get(&(repository.clone(), *digest));
        let Some(record) = record.filter(|record| record.failures >= MAX_FAILURES && record.last.elapsed() < ttl)
        else {
            return Ok(());
        };
        let rest = (ttl - record.last.elapsed()).as_secs_f64().ceil();
        let what = format!(
            "the bytes that {repository} sends for blob {digest} do not have that digest ({} times); \
             it is not asked again for {rest} s",
            record.failures
        );
        Err(Error::new(Kind::Damaged, what).on(Side::Source).reported())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Repository, Digest), Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget_oldest(records: &mut HashMap<(Repository, Digest), Record>) {
    let oldest = records.iter().min_by_key(|(_, record)| record.last).map(|(key, _)| key.clone());
    oldest.and_then(|key| records.remove(&key));
}

/// Consecutive failures after which the repository is not asked.
pub(super) const MAX_FAILURES: u32 = MAX_DAMAGED;
/// Older failures are forgotten.
const RECORD_TTL: Duration = Duration::from_secs(10 * 60);
const MAX_RECORDS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn repository(name: &str) -> Repository {
        Repository { registry: "a.io".into(), name: name.into() }
    }

    fn damaged() -> Result<()> {
        Err(Error::new(Kind::Mismatch, "wrong"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_blob_that_fails_three_times_in_a_row_is_left_alone_for_a_while() {
        let (damage, digest, other) = (Damage::default(), Digest::of(b"a"), Digest::of(b"b"));
        let (one, two) = (repository("one"), repository("two"));
        let learn = |fetched: Result<()>| damage.learn(&one, &digest, &fetched);
        for fetched in [damaged(), damaged(), Ok(()), damaged(), Err(Error::new(Kind::Network, "reset")), damaged()] {
            learn(fetched);
            damage.check(&one, &digest, TTL).expect("not three in a row");
        }
        learn(damaged());
        let error = damage.check(&one, &digest, TTL).expect_err("three");
        assert!(error.kind() == Kind::Damaged && error.own_text().contains("a.io/one"), "{error}");
        damage.check(&two, &digest, TTL).expect("another repository");
        damage.check(&one, &other, TTL).expect("another blob");
        tokio::time::sleep(TTL).await;
        damage.check(&one, &digest, TTL).expect("once more");
        learn(damaged());
        damage.check(&one, &digest, TTL).expect_err("one failure is enough then");
        damage.check(&one, &digest, Duration::ZERO).expect("where nothing is to be remembered");
        learn(Ok(()));
        damage.check(&one, &digest, TTL).expect("mended");
        learn(damaged());
        damage.check(&one, &digest, TTL).expect("and counted anew");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_blobs_are_remembered() {
        let damage = Damage::default();
        for nth in 0..3 * MAX_RECORDS as u64 {
            damage.learn(&repository("r"), &Digest::of(&nth.to_le_bytes()), &damaged());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(damage.lock().len(), MAX_RECORDS);
        assert!(damage.lock().contains_key(&(repository("r"), Digest::of(&2999_u64.to_le_bytes()))), "the latest stay");
    }
}
