//! Limits the memory of large responses that are being sent.
//!
//! Manifests and lists are sent from memory. Those of real images are small, but a client can push a thousand manifests of
//! 4 MiB, and request each on a connection that reads slowly. Responses beyond the limit are refused with `Retry-After`. A
//! manifest that many clients request is in memory once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use http::{StatusCode, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::refusal::Refusal;
use crate::descriptor::Digest;
use crate::memory::SMALL_ANSWER;

/// The large responses of a server.
#[derive(Debug)]
pub(super) struct LargeResponses {
    /// Permits are KiB.
    room: Arc<Semaphore>,
    manifests: Mutex<HashMap<Digest, Weak<HeldBytes>>>,
}

/// Bytes that are being sent, with their permits.
#[derive(Debug)]
struct HeldBytes {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// A shared reference to the bytes.
struct SharedPart(Arc<HeldBytes>);

impl AsRef<[u8]> for SharedPart {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl Default for LargeResponses {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(LIMIT_KIB)), manifests: Mutex::default() }
    }
}

impl LargeResponses {
    /// The bytes of the manifest `digest` for a response. They are shared with other responses that send the same manifest.
    ///
    /// # Errors
    /// 503 if the limit is reached.
    pub(super) fn manifest(&self, digest: &Digest, bytes: Bytes) -> Result<Bytes, Refusal> {
        if bytes.len() <= SMALL_ANSWER {
            return Ok(bytes);
        }
        let mut manifests = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = manifests.get(digest).and_then(Weak::upgrade) {
            return Ok(Bytes::from_owner(SharedPart(held)));
        }
        let held = self.hold(bytes)?;
        // The map is small: entries that are no longer in use are removed.
        manifests.retain(|_, held| held.strong_count() > 0);
        manifests.insert(*digest, Arc::downgrade(&held));
        Ok(Bytes::from_owner(SharedPart(held)))
    }

    /// The bytes of a list for a response.
    ///
    /// # Errors
    /// 503 if the limit is reached.
    pub(super) fn list(&self, bytes: Bytes) -> Result<Bytes, Refusal> {
        if bytes.len() <= SMALL_ANSWER {
            Ok(bytes)
        } else {
            self.hold(bytes).map(|held| Bytes::from_owner(SharedPart(held)))
        }
    }

    fn hold(&self, bytes: Bytes) -> Result<Arc<HeldBytes>, Refusal> {
        let kib = u32::try_from(bytes.len().div_ceil(1024)).unwrap_or(u32::MAX);
        match self.room.clone().try_acquire_many_owned(kib) {
            Ok(room) => Ok(Arc::new(HeldBytes { bytes, _room: room })),
            Err(_) => {
                let message = "too many large responses are being sent at once: try again";
                Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", message)
                    .with(header::RETRY_AFTER, "1"))
            }
        }
    }
}

/// The limit of all large responses: 64 MiB, sixteen of the largest manifests.
const LIMIT_KIB: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_manifest_counts_once_and_others_are_refused_when_there_is_no_room() {
        let large = LargeResponses::default();
        let manifest = |nth: u8| large.manifest(&Digest::of(&[nth]), Bytes::from(vec![nth; 4 << 20]));
        let mut held: Vec<_> = (0..16).map(|nth| manifest(nth).unwrap_or_else(|_| panic!("no room"))).collect();
        assert!(manifest(16).is_err() && large.list(Bytes::from(vec![0; SMALL_ANSWER + 1])).is_err());
        assert!(large.list(Bytes::from(vec![0; SMALL_ANSWER])).is_ok(), "small ones need none");
        let again = manifest(3).unwrap_or_else(|_| panic!("it is there"));
        assert_eq!(again.as_ptr(), held[3].as_ptr());
        held.clear();
        assert!((20..35).all(|nth| manifest(nth).is_ok()), "room again");
        assert_eq!(large.room.available_permits(), LIMIT_KIB - (4 << 10), "but for the one that is sent still");
        drop(again);
        assert!(manifest(40).is_ok());
        assert!(large.manifests.lock().expect("no panic").len() <= 2);
    }
}
