//! The uploads that are under way, by their ids.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{StatusCode, header};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout};

use super::refusal::Refusal;
use super::route::RepositoryPath;

/// All uploads of a server. Those that were silent for ten minutes are given up, or earlier if there are too many.
pub(super) struct Uploads<U> {
    live: Mutex<HashMap<String, Entry<U>>>,
    secret: RandomState,
    next: AtomicU64,
}

struct Entry<U> {
    repository: RepositoryPath,
    touched: LastUse,
    /// `None` when it's over.
    upload: Arc<tokio::sync::Mutex<Option<U>>>,
}

/// When a request for an upload began or ended last.
#[derive(Clone)]
struct LastUse(Arc<Mutex<Instant>>);

impl LastUse {
    fn now() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn silent(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// An upload for one request alone. `None` when it's over.
pub(super) struct UploadLock<U> {
    upload: OwnedMutexGuard<Option<U>>,
    touched: LastUse,
}

impl<U> Deref for UploadLock<U> {
    type Target = Option<U>;

    fn deref(&self) -> &Option<U> {
        &self.upload
    }
}

impl<U> DerefMut for UploadLock<U> {
    fn deref_mut(&mut self) -> &mut Option<U> {
        &mut self.upload
    }
}

impl<U> Drop for UploadLock<U> {
    /// A request may take longer than an upload may be silent: the silence begins at its end.
    fn drop(&mut self) {
        self.touched.touch();
    }
}

impl<U> Default for Uploads<U> {
    fn default() -> Self {
        Self { live: Mutex::default(), secret: RandomState::new(), next: AtomicU64::new(0) }
    }
}

impl<U> Uploads<U> {
    /// Takes an upload in, and gives its id.
    pub(super) fn add(&self, repository: RepositoryPath, upload: U) -> String {
        let id = self.id();
        let upload = Arc::new(tokio::sync::Mutex::new(Some(upload)));
        self.lock().insert(id.clone(), Entry { repository, touched: LastUse::now(), upload });
        id
    }

    /// Whether one more may begin.
    pub(super) fn check_capacity(&self) -> Result<(), Refusal> {
        self.sweep();
        if self.lock().len() < MAX_UPLOADS || self.give_up_idle() {
            return Ok(());
        }
        Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "too many uploads are under way")
            .with(header::RETRY_AFTER, "5"))
    }

    /// The upload, for this request alone.
    ///
    /// A client that resumes may come before its broken request was noticed here: so it waits.
    pub(super) async fn lock_upload(&self, repository: &RepositoryPath, id: &str) -> Result<UploadLock<U>, Refusal> {
        let unknown = || Refusal::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "there is no such upload");
        let (upload, touched) = match self.lock().get(id).filter(|entry| entry.repository.name == repository.name) {
            Some(entry) => {
                entry.touched.touch();
                (entry.upload.clone(), entry.touched.clone())
            }
            None => return Err(unknown()),
        };
        let held = timeout(LOCK_TIMEOUT, upload.lock_owned()).await.map_err(|_| {
            let message = "another request is writing to this upload";
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message).with(header::RETRY_AFTER, "1")
        })?;
        if held.is_some() { Ok(UploadLock { upload: held, touched }) } else { Err(unknown()) }
    }

    /// Forgets an upload; what it stored is removed when nobody holds it any more.
    pub(super) fn remove(&self, id: &str) {
        let removed = self.lock().remove(id);
        drop(removed);
    }

    /// Forgets those that are over, and those that were silent for too long and that no request
    /// holds.
    pub(super) fn sweep(&self) {
        let stale: Vec<_> = {
            let mut live = self.lock();
            let old = |entry: &Entry<U>| {
                let free = entry.upload.try_lock();
                free.is_ok_and(|upload| upload.is_none() || entry.touched.silent() > STALE_AFTER)
            };
            let ids: Vec<_> = live.iter().filter(|(_, entry)| old(entry)).map(|(id, _)| id.clone()).collect();
            ids.into_iter().filter_map(|id| live.remove_entry(&id)).collect()
        };
        // Dropped outside the lock, since it removes files.
        for (id, _) in stale {
            tracing::debug!("forgot upload {id}");
        }
    }

    /// Forgets the upload that was silent longest, if that is some time and no request holds it: so whoever begins
    /// uploads and leaves them does not keep others from pushing. Whether there was one.
    fn give_up_idle(&self) -> bool {
        let given_up = {
            let mut live = self.lock();
            let idle = live.iter().filter(|(_, entry)| entry.upload.try_lock().is_ok());
            let idle = idle.map(|(id, entry)| (entry.touched.silent(), id.clone()));
            match idle.max() {
                Some((silent, id)) if silent >= EVICTABLE_AFTER => live.remove_entry(&id),
                _ => None,
            }
        };
        if let Some((id, _)) = &given_up {
            tracing::info!("gave up upload {id}: {MAX_UPLOADS} uploads are under way, and it was silent longest");
        }
        given_up.is_some()
    }

    /// An id that nobody guesses who wasn't told: whoever knows it can write to the upload.
    ///
    /// std's hasher with its random 128-bit key is a pseudo-random function of the counter.
    fn id(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{:016x}", self.secret.hash_one((number, 0_u8)), self.secret.hash_one((number, 1_u8)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry<U>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The most uploads at one time: each has an open file.
const MAX_UPLOADS: usize = 256;
/// How long an upload may be silent between two requests.
const STALE_AFTER: Duration = Duration::from_secs(10 * 60);
/// After how long a silence an upload gives way to another, when there are too many.
const EVICTABLE_AFTER: Duration = Duration::from_secs(30);
/// How long a request waits for another one of the same upload.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::route::ID_LENGTH;

    fn place(name: &str) -> RepositoryPath {
        RepositoryPath { name: name.into(), ns: None }
    }

    #[tokio::test(start_paused = true)]
    async fn silent_uploads_end_and_busy_ones_stay() {
        let uploads = Uploads::default();
        let (silent, busy, held) = (uploads.add(place("a"), 1), uploads.add(place("a"), 2), uploads.add(place("a"), 3));
        let guard = uploads.lock_upload(&place("a"), &held).await.expect("there");
        tokio::time::advance(STALE_AFTER / 2).await;
        drop(uploads.lock_upload(&place("a"), &busy).await.expect("there"));
        tokio::time::advance(STALE_AFTER / 2 + Duration::from_secs(1)).await;
        uploads.sweep();
        assert!(uploads.lock_upload(&place("a"), &silent).await.is_err());
        assert!(uploads.lock_upload(&place("a"), &busy).await.is_ok());
        tokio::time::advance(STALE_AFTER).await;
        drop(guard);
        uploads.sweep();
        assert!(uploads.lock_upload(&place("a"), &held).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_is_its_repositorys_and_one_requests() {
        let uploads = Uploads::default();
        let id = uploads.add(place("a"), ());
        assert_eq!(id.len(), ID_LENGTH);
        assert_ne!(id, uploads.add(place("a"), ()));
        assert_eq!(uploads.lock_upload(&place("b"), &id).await.err().map(|r| r.code), Some("BLOB_UPLOAD_UNKNOWN"));
        let mut held = uploads.lock_upload(&place("a"), &id).await.expect("free");
        assert_eq!(uploads.lock_upload(&place("a"), &id).await.err().map(|r| r.status.as_u16()), Some(503));
        *held = None;
        drop(held);
        assert_eq!(
            uploads.lock_upload(&place("a"), &id).await.err().map(|r| r.status.as_u16()),
            Some(404),
            "it's over"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_bounded() {
        let uploads = Uploads::default();
        for _ in 0..MAX_UPLOADS {
            assert!(uploads.check_capacity().is_ok());
            uploads.add(place("a"), ());
        }
        assert_eq!(uploads.check_capacity().err().map(|r| r.status.as_u16()), Some(429));
        tokio::time::advance(EVICTABLE_AFTER).await;
        assert!(uploads.check_capacity().is_ok(), "the one that was silent longest gives way");
        uploads.add(place("a"), ());
        tokio::time::advance(STALE_AFTER + Duration::from_secs(1)).await;
        uploads.sweep();
        assert!(uploads.lock().is_empty());
    }
}
