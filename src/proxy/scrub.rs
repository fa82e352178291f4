//! The scrubber: reads what is cached, slowly, and drops what isn't what its digest says.
//!
//! It's nobody's use of the cache: no hit is counted, no file's time of access changes, nothing is kept from
//! being evicted. It holds one piece of one file in memory. What it drops is fetched again when it's
//! asked for; whoever reads it at the moment reads on.

use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::cache::ContentStore;
use super::events::{Event, Observer};
use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result};
use crate::pool::run_blocking;
use crate::regular_file::{self, Links};

/// Number and bytes of what was read, and how much of it was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scrubbed {
    pub(super) files: usize,
    pub(super) bytes: u64,
    pub(super) dropped: usize,
}

/// A pass after the other, for ever, at `rate` bytes a second and at most one in [`PASS_INTERVAL`].
pub(super) async fn run(stores: [ContentStore; 2], rate: u64, observer: Arc<dyn Observer>) {
    let mut pace = RateLimiter::new(rate);
    loop {
        let begun = Instant::now();
        let tell = |digest: &Digest| observer.event(&Event::Corrupt { digest });
        let read = |bytes| observer.event(&Event::Scrubbed { bytes });
        let done = scrub_pass(&stores, Some(&mut pace), read, tell).await;
        tracing::info!("scrubbed {} files, {} MiB; dropped {}", done.files, done.bytes >> 20, done.dropped);
        sleep_until(begun + PASS_INTERVAL).await;
    }
}

/// Reads all of it once. Begins anywhere: a proxy that is restarted often must get to the end too.
pub(super) async fn scrub_pass(
    stores: &[ContentStore; 2],
    mut pace: Option<&mut RateLimiter>,
    read: impl Fn(u64) + Sync,
    mut dropped: impl FnMut(&Digest),
) -> Scrubbed {
    let mut done = Scrubbed::default();
    let first = RandomState::new().hash_one(0) as u8;
    for nth in 0..=u8::MAX {
        let part = scrub_part(stores, first.wrapping_add(nth), pace.as_deref_mut(), &read, &mut dropped).await;
        done.files += part.files;
        done.bytes += part.bytes;
        done.dropped += part.dropped;
    }
    done
}

/// Reads a 256th of it.
pub(super) async fn scrub_part(
    stores: &[ContentStore; 2],
    part: u8,
    mut pace: Option<&mut RateLimiter>,
    read: &(impl Fn(u64) + Sync),
    mut dropped: impl FnMut(&Digest),
) -> Scrubbed {
    let mut done = Scrubbed::default();
    for store in stores {
        for (digest, size) in store.shard(part) {
            let Some(good) = check_file(store, digest, size, pace.as_deref_mut(), read).await else { continue };
            done.files += 1;
            done.bytes += size;
            if !good {
                done.dropped += 1;
                dropped(&digest);
            }
        }
    }
    done
}

/// Whether the file was good; a bad one is gone then. `None` if it left the cache meanwhile, or can't be judged.
async fn check_file(
    store: &ContentStore,
    digest: Digest,
    size: u64,
    mut pace: Option<&mut RateLimiter>,
    read: &(impl Fn(u64) + Sync),
) -> Option<bool> {
    let mut reading = FileCheck::open(store, digest, size).await?;
    let good = loop {
        // What was evicted needs no check, and its room is held by the open file.
        if store.size_of(&digest) != Some(size) {
            return None;
        }
        let (next, count) = reading.next().await?;
        reading = next;
        match count {
            Ok(0) => break reading.is_right(size),
            Ok(count) => {
                read(count);
                if let Some(pace) = &mut pace {
                    pace.wait(count).await;
                }
            }
            Err(error) => {
                tracing::error!("{error}");
                break false;
            }
        }
    };
    if good {
        return Some(true);
    }
    let (store, inode) = (store.clone(), reading.inode);
    let gone = run_blocking(move || Ok(store.discard_same(&digest, size, inode))).await.unwrap_or(false);
    if gone {
        tracing::error!("{digest} has other bytes on the disk than its digest says: dropped, to be fetched again");
    }
    gone.then_some(false)
}

/// A file that is read, and its hash so far.
struct FileCheck {
    file: File,
    inode: u64,
    digest: Digest,
    hasher: crate::descriptor::Hasher,
    size: u64,
    buffer: Vec<u8>,
}

impl FileCheck {
    async fn open(store: &ContentStore, digest: Digest, size: u64) -> Option<Self> {
        let (store, path) = (store.clone(), store.path(&digest, size));
        let opened = run_blocking(move || match open_without_atime(&path) {
            Ok(file) => {
                let inode =
                    file.metadata().map_err(|error| Error::io(format!("read {}", path.display()), &error))?.ino();
                Ok(Some((file, inode)))
            }
            // Somebody removed it: who asks for it must not be promised it.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                store.discard(&digest);
                Ok(None)
            }
            Err(error) => Err(Error::io(format!("read {}", path.display()), &error)),
        });
        let (file, inode) = opened.await.inspect_err(|error| tracing::warn!("{error}")).ok().flatten()?;
        let hasher = digest.hasher();
        // One byte more than there should be tells a file that grew.
        let piece = usize::try_from(size + 1).unwrap_or(READ_SIZE).min(READ_SIZE);
        Some(Self { file, inode, digest, hasher, size: 0, buffer: vec![0; piece] })
    }

    /// Reads the next piece: how many bytes, 0 at the end.
    async fn next(mut self) -> Option<(Self, Result<u64>)> {
        let read = run_blocking(move || {
            let count = loop {
                match self.file.read(&mut self.buffer) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    other => break other,
                }
            };
            let count = count.map_err(|error| Error::io(format!("read {}", self.digest), &error));
            let count = count.map(|count| {
                self.hasher.update(&self.buffer[..count]);
                self.size += count as u64;
                count as u64
            });
            Ok((self, count))
        });
        read.await.ok()
    }

    fn is_right(&self, size: u64) -> bool {
        self.size == size && self.hasher.clone().finish() == self.digest
    }
}

/// Opens a file without changing its time of access, where that may be done.
pub(super) fn open_without_atime(path: &Path) -> std::io::Result<File> {
    let opened = match regular_file::open_with(path, Links::Refuse, rustix::fs::OFlags::NOATIME) {
        // Only its owner may.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => regular_file::open(path, Links::Refuse),
        other => other,
    };
    opened.map(|(file, _)| file)
}

/// So many bytes a second, and no more after a break.
#[derive(Debug)]
pub(super) struct RateLimiter {
    rate: u64,
    due: Instant,
}

impl RateLimiter {
    /// So many bytes a second from now on.
    pub(super) fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), due: Instant::now() }
    }

    async fn wait(&mut self, bytes: u64) {
        let now = Instant::now();
        self.due = self.due.max(now) + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        sleep_until(self.due).await;
    }
}

/// The rate of `4MiB`, or none for `off`.
///
/// # Errors
/// [`Kind::Usage`] if `bytes` doesn't read the text.
pub fn parse_rate(text: &str, bytes: impl Fn(&str) -> Result<u64>) -> Result<Option<u64>> {
    match text {
        "off" => return Ok(None),
        "on" => return Ok(Some(DEFAULT_RATE)),
        _ => {}
    }
    match bytes(text) {
        Ok(rate) if rate > 0 => Ok(Some(rate)),
        _ => {
            Err(Error::new(Kind::Usage, format!("{text:?} is no rate"))
                .hint("write bytes a second, such as 10MiB, or off"))
        }
    }
}

/// What a proxy reads of its cache in a second, where nobody says otherwise: 50 GiB in four hours.
pub const DEFAULT_RATE: u64 = 4 << 20;
/// From the start of a pass to that of the next one, at least.
const PASS_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
const READ_SIZE: usize = 256 << 10;
