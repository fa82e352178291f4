//! The open upload sessions, by ID.

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

/// All upload sessions of a server. A session without requests for ten minutes is removed, or earlier if there are too many.
pub(super) struct Uploads<U> {
    live: Mutex<HashMap<String, Entry<U>>>,
    secret: RandomState,
    next: AtomicU64,
}

struct Entry<U> {
    repository: RepositoryPath,
    touched: LastUse,
    /// `None` after the session has ended.
    upload: Arc<tokio::sync::Mutex<Option<U>>>,
}

/// When a request for a session started or ended last.
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

/// Exclusive access to a session. It contains `None` after the session has ended.
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
    /// The idle time starts at the end of a request: a request may take longer than a session may be idle.
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
    /// Adds a session, and returns its ID.
    pub(super) fn add(&self, repository: RepositoryPath, upload: U) -> String {
        let id = self.id();
        let upload = Arc::new(tokio::sync::Mutex::new(Some(upload)));
        self.lock().insert(id.clone(), Entry { repository, touched: LastUse::now(), upload });
        id
    }

    /// Checks that one more session may start.
    pub(super) fn check_capacity(&self) -> Result<(), Refusal> {
        self.sweep();
        if self.lock().len() < MAX_UPLOADS || self.give_up_idle() {
            return Ok(());
        }
        Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "too many upload sessions are open")
            .with(header::RETRY_AFTER, "5"))
    }

    /// Locks the session for one request.
    ///
    /// A client that resumes may come before the server has noticed that its last request broke off, so this waits.
    pub(super) async fn lock_upload(&self, repository: &RepositoryPath, id: &str) -> Result<UploadLock<U>, Refusal> {
        let unknown =
            || Refusal::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "the upload session does not exist");
        let (upload, touched) = match self.lock().get(id).filter(|entry| entry.repository.name == repository.name) {
            Some(entry) => {
                entry.touched.touch();
                (entry.upload.clone(), entry.touched.clone())
            }
            None => return Err(unknown()),
        };
        let held = timeout(LOCK_TIMEOUT, upload.lock_owned()).await.map_err(|_| {
            let message = "another request is writing to this upload session";
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message).with(header::RETRY_AFTER, "1")
        })?;
        if held.is_some() { Ok(UploadLock { upload: held, touched }) } else { Err(unknown()) }
    }

    /// Removes a session. Its temporary file is removed when no request uses it any more.
    pub(super) fn remove(&self, id: &str) {
        let removed = self.lock().remove(id);
        drop(removed);
    }

    /// Removes sessions that have ended, and those that were idle for too long and are not locked.
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
        // Dropped outside the lock, since dropping removes files.
        for (id, _) in stale {
            tracing::debug!("removed upload session {id}");
        }
    }

    /// Removes the session that was idle longest, if it was idle for [`EVICTABLE_AFTER`] and is not locked. So a client that
    /// abandons sessions does not block others. Returns whether there was one.
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
            tracing::info!("removed upload session {id}: {MAX_UPLOADS} are open, and it was idle longest");
        }
        given_up.is_some()
    }

    /// A new ID that cannot be guessed: whoever knows it can write to the session.
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

/// The limit of open sessions. Each has an open file.
const MAX_UPLOADS: usize = 256;
/// How long a session may be idle.
const STALE_AFTER: Duration = Duration::from_secs(10 * 60);
/// The idle time after which a session may be replaced by another one, if there are too many.
const EVICTABLE_AFTER: Duration = Duration::from_secs(30);
/// How long a request waits for another request of the same session.
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
