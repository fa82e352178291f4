//! Hashes the bytes of a fill and writes them to the file, in order, on a thread of the blocking pool.
//!
//! One thread hashes and writes a batch while it is in the cache of its core, and another thread receives and sends
//! meanwhile. The thread stays as long as batches are waiting: to wake a thread for each batch costs more time than the
//! batch itself.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::error::{Error, Kind, Result};
use crate::proxy::cache::ReservedFile;
use crate::verify::ContentCheck;

/// Takes a blob's bytes in order, and reports its progress.
pub(super) struct FillWriter(Arc<SharedQueue>);

struct SharedQueue {
    reserved: Arc<ReservedFile>,
    work: Mutex<WriterState>,
    queue: Mutex<Queue>,
    /// The queue has changed. Only the fill waits for this.
    changed: Notify,
    progress: Box<dyn Fn(u64) + Send + Sync>,
}

/// The state of the working thread.
struct WriterState {
    at: u64,
    check: ContentCheck,
    written_from: Option<Arc<AtomicU64>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Vec<Bytes>>,
    /// A thread is working.
    busy: bool,
    failed: Option<Error>,
}

impl FillWriter {
    /// A writer of a blob that `check` verifies. Bytes from `written_from` on are in the file already, and are only hashed.
    /// `progress` is called with the offset up to which bytes are hashed and written.
    pub(super) fn new(
        reserved: Arc<ReservedFile>,
        check: ContentCheck,
        written_from: Option<Arc<AtomicU64>>,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Self {
        let work = Mutex::new(WriterState { at: 0, check, written_from });
        Self(Arc::new(SharedQueue {
            reserved,
            work,
            queue: Mutex::default(),
            changed: Notify::new(),
            progress: Box::new(progress),
        }))
    }

    /// Queues the next bytes. The caller [waits for space](Self::wait_for_space) first. After a failure bytes are dropped.
    pub(super) fn push(&self, frames: Vec<Bytes>) {
        let mut queue = self.0.queue();
        if queue.failed.is_some() {
            return;
        }
        queue.waiting.push_back(frames);
        if !std::mem::replace(&mut queue.busy, true) {
            let shared = self.0.clone();
            drop(tokio::task::spawn_blocking(move || shared.work()));
        }
    }

    /// Waits until the queue has space for a batch.
    ///
    /// # Errors
    /// Why earlier bytes could not be written or verified.
    pub(super) async fn wait_for_space(&self) -> Result<()> {
        self.wait_until(|queue| queue.waiting.len() < MAX_WAITING_BATCHES).await
    }

    /// Waits until all queued bytes are hashed and written.
    ///
    /// # Errors
    /// Why they could not be written or verified.
    pub(super) async fn wait_until_idle(&self) -> Result<()> {
        self.wait_until(|queue| !queue.busy).await
    }

    /// Waits for a failure.
    pub(super) async fn failure(&self) -> Error {
        match self.wait_until(|_| false).await {
            Err(error) => error,
            Ok(()) => pending().await,
        }
    }

    async fn wait_until(&self, ready: impl Fn(&Queue) -> bool) -> Result<()> {
        loop {
            {
                let queue = self.0.queue();
                if let Some(error) = &queue.failed {
                    return Err(error.duplicate());
                }
                if ready(&queue) {
                    return Ok(());
                }
            }
            self.0.changed.notified().await;
        }
    }
}

impl SharedQueue {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works until the queue is empty or a step fails. Blocks.
    fn work(&self) {
        let end = EndGuard(self);
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(frames) = end.next() {
            match work.take_in(&self.reserved, &frames) {
                Ok(()) => (self.progress)(work.at),
                // The hash may include bytes that are not in the file: nothing may follow them.
                Err(error) => return end.fail(error),
            }
        }
    }
}

impl WriterState {
    fn take_in(&mut self, reserved: &ReservedFile, frames: &[Bytes]) -> Result<()> {
        for frame in frames {
            self.check.take_in(frame)?;
            let from = self.written_from.as_ref().map_or(u64::MAX, |from| from.load(Ordering::Acquire));
            if self.at < from {
                reserved.write(frame, self.at)?;
            }
            self.at += frame.len() as u64;
        }
        Ok(())
    }
}

/// Ends the work of a thread, also after a panic.
struct EndGuard<'a>(&'a SharedQueue);

impl EndGuard<'_> {
    /// The next batch. `None` ends the thread; the next [`FillWriter::push`] starts another one.
    fn next(&self) -> Option<Vec<Bytes>> {
        let mut queue = self.0.queue();
        let had_space = queue.waiting.len() < MAX_WAITING_BATCHES;
        let next = queue.waiting.pop_front();
        queue.busy = next.is_some();
        if !had_space || !queue.busy {
            self.0.changed.notify_one();
        }
        next
    }
}

impl EndGuard<'_> {
    /// Ends the writer: drops the waiting batches, and makes [`FillWriter::push`] drop all later ones.
    fn fail(&self, error: Error) {
        let mut queue = self.0.queue();
        queue.waiting.clear();
        queue.failed.get_or_insert(error);
        self.0.changed.notify_one();
    }
}

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fail(Error::new(Kind::Local, "the thread that writes to the cache has panicked"));
        }
    }
}

/// Batches that wait while one is being written.
const MAX_WAITING_BATCHES: usize = 2;

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::body::Body;
    use crate::descriptor::{Descriptor, Digest};
    use crate::file_access::faults::{Call, Faults};
    use crate::file_access::{Files, OpenFile};
    use crate::proxy::cache::{Cache, Settings};
    use crate::verify::Verified;

    /// A writer of `content` into a file of `files`, and the progress that it reports.
    async fn writer(content: &[u8], files: &Files) -> (FillWriter, OpenFile, Arc<AtomicU64>) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let blob = Descriptor::new("x", Digest::of(content), content.len() as u64);
        let body: Body = Box::pin(futures_util::stream::empty());
        let (_, check) = Verified::new(body, &blob).expect("not empty").into_parts();
        let name = format!("transload-writer-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        let settings = Settings { dir: dir.clone(), size: 1 << 20, keep_free: 0, files: files.clone() };
        let cache = Cache::open(settings, |_, _| {}).await.expect("opens");
        let temp = cache.blobs.prepare(blob.size).expect("a file");
        let (reserved, told) = (temp.reserved().expect("of content"), Arc::<AtomicU64>::default());
        drop(temp);
        std::fs::remove_dir_all(&dir).expect("is there");
        let file = reserved.file().clone();
        let tell = told.clone();
        let tell = move |at| tell.store(at, Ordering::SeqCst);
        (FillWriter::new(reserved, check, None, tell), file, told)
    }

    fn content() -> Vec<u8> {
        (0..100_000_u32).map(|nth| (nth % 251) as u8).collect()
    }

    fn batch(bytes: &[u8]) -> Vec<Bytes> {
        vec![Bytes::copy_from_slice(bytes)]
    }

    /// A disk that fails once and then works again: bytes after the lost ones must not be written.
    #[tokio::test]
    async fn after_a_failed_write_nothing_more_is_written_or_told() {
        for error in [Errno::NOSPC, Errno::IO, Errno::DQUOT] {
            let (faults, content) = (Faults::default(), content());
            faults.plan(Call::Write, error, 1, 1);
            let (writer, file, told) = writer(&content, &faults.files()).await;
            writer.push(batch(&content[..10_000]));
            writer.wait_until_idle().await.expect("written");
            writer.push(batch(&content[10_000..20_000]));
            assert_eq!(writer.failure().await.kind(), Kind::Local);
            // As a fill does whose bytes arrived before it saw the failure.
            writer.push(batch(&content[20_000..30_000]));
            assert_eq!(writer.wait_until_idle().await.expect_err("it has failed").kind(), Kind::Local);
            assert_eq!(writer.wait_for_space().await.expect_err("it has failed").kind(), Kind::Local);
            let mut there = Vec::with_capacity(30_000);
            file.read_at(&mut there, 0).expect("reads");
            assert!(there.len() <= 15_000 && there[..10_000] == content[..10_000], "{} bytes", there.len());
            assert_eq!((told.load(Ordering::SeqCst), faults.count(Call::Write)), (10_000, 2));
        }
    }

    #[tokio::test]
    async fn all_is_written_in_its_order_or_nothing_more_is_told() {
        use std::os::unix::fs::FileExt as _;
        let content = content();
        for wrong in [false, true] {
            let (writer, file, told) = writer(&content, &Files::default()).await;
            let mut bytes = content.clone();
            *bytes.last_mut().expect("some") ^= u8::from(wrong);
            for batch in bytes.chunks(1000).collect::<Vec<_>>().chunks(2) {
                writer.wait_for_space().await.expect("until the end it's right");
                writer.push(batch.iter().map(|frame| Bytes::copy_from_slice(frame)).collect());
            }
            let done = writer.wait_until_idle().await.map_err(|error| error.kind());
            assert_eq!(done, if wrong { Err(Kind::Mismatch) } else { Ok(()) });
            assert_eq!(told.load(Ordering::SeqCst), if wrong { 98_000 } else { 100_000 });
            let mut there = vec![0; 98_000];
            file.file().read_exact_at(&mut there, 0).expect("it's there");
            assert_eq!(there, bytes[..98_000]);
            if wrong {
                assert_eq!(writer.failure().await.kind(), Kind::Mismatch);
            }
        }
    }
}
