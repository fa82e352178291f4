//! Request bodies that are slices of a blob's stream, and a watchdog for their progress.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream as _, future};
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use crate::error::{Error, Kind, Result, Side};
use crate::registry::client::{COMMIT_TIMEOUT, Registry};
use crate::registry::min_rate::{MinRate, RateWatch};
use crate::verify::Verified;

/// Runs `sending`, and stops it if the transfer is idle for too long, or too slow.
pub(in crate::registry) async fn with_watchdog<T>(
    slot: &StreamSlot,
    registry: &Registry,
    sending: impl Future<Output = Result<T>>,
) -> Result<T> {
    let given_up = abort_reason(slot, &registry.name, registry.options.idle, registry.options.min_rate);
    match future::select(std::pin::pin!(sending), std::pin::pin!(given_up)).await {
        future::Either::Left((result, _)) => result,
        future::Either::Right((error, _)) => Err(error.on(Side::Destination).at_registry(&registry.name)),
    }
}

/// Waits until the destination has taken nothing for `idle`, or less than `least` in its window. Returns the error.
async fn abort_reason(slot: &StreamSlot, registry: &str, idle: Duration, least: MinRate) -> Error {
    let step = if least.bytes > 0 { idle.min(least.window) / 10 } else { idle / 10 };
    let mut rate = RateWatch::new(least);
    let (mut before, mut last) = (slot.taken(), Instant::now());
    loop {
        tokio::time::sleep(step).await;
        let now = slot.taken();
        if now.bytes != before.bytes || slot.waits_for_source() {
            last = Instant::now();
        }
        let patience = if slot.is_sent() { COMMIT_TIMEOUT.max(idle) } else { idle };
        if last.elapsed() > patience {
            let what = format!("{registry} neither accepted bytes nor responded for {} s", patience.as_secs());
            return Error::new(Kind::Timeout, what);
        }
        let blocked = now.blocked.saturating_sub(before.blocked);
        // With the whole body, the destination checks and stores it: that is no slow transfer.
        match rate.record(now.bytes - before.bytes, blocked, "were taken by", registry) {
            Err(error) if !slot.is_sent() => return error,
            _ => before = now,
        }
    }
}

/// Holds the stream between two requests, and the state of the current body.
#[derive(Clone, Default)]
pub(in crate::registry) struct StreamSlot(Arc<Mutex<StreamState>>);

#[derive(Default)]
struct StreamState {
    stream: Option<Verified>,
    error: Option<Error>,
    taken: UploadProgress,
    /// The start of the time in which the destination has bytes to take and has not requested more.
    blocked_since: Option<Instant>,
    waits: bool,
    sent: bool,
}

/// The bytes that the destination has taken so far.
#[derive(Clone, Copy, Default)]
struct UploadProgress {
    bytes: u64,
    /// The time in which the destination had bytes to take and took none, without the time in which the source brought
    /// nothing.
    blocked: Duration,
}

impl StreamState {
    /// The destination has taken all bytes, and requests more.
    fn unblock(&mut self) {
        if let Some(since) = self.blocked_since.take() {
            self.taken.blocked += since.elapsed();
        }
    }
}

impl StreamSlot {
    pub(in crate::registry) fn put(&self, stream: Verified) {
        self.lock().stream = Some(stream);
    }

    pub(in crate::registry) fn take_error(&self) -> Option<Error> {
        self.lock().error.take()
    }

    fn taken(&self) -> UploadProgress {
        let resting = self.lock();
        let now = resting.blocked_since.map_or(Duration::ZERO, |since| since.elapsed());
        UploadProgress { blocked: resting.taken.blocked + now, ..resting.taken }
    }

    fn waits_for_source(&self) -> bool {
        self.lock().waits
    }

    fn is_sent(&self) -> bool {
        self.lock().sent
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, StreamState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request body of known length with the next bytes of a stream.
///
/// The stream returns to the slot with the last byte, since a body that has yielded its whole Content-Length is not
/// polled again.
pub(in crate::registry) struct ChunkBody {
    slot: StreamSlot,
    /// In a mutex for `Sync`, which reqwest requires of bodies; never contended.
    stream: Mutex<Option<Verified>>,
    left: u64,
}

impl ChunkBody {
    pub(in crate::registry) fn new(slot: &StreamSlot, length: u64) -> Result<Self> {
        let mut resting = slot.lock();
        let stream =
            resting.stream.take().ok_or_else(|| Error::new(Kind::Network, "the stream of the blob is lost"))?;
        resting.sent = false;
        // Until the first poll the request waits here: the registry does not know of it.
        resting.waits = true;
        drop(resting);
        Ok(Self { slot: slot.clone(), stream: Mutex::new(Some(stream)), left: length })
    }
}

impl http_body::Body for ChunkBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let held = this.stream.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(stream) = held.as_mut().filter(|_| this.left > 0) else { return Poll::Ready(None) };
        this.slot.lock().unblock();
        let polled = Pin::new(&mut *stream).poll_next(cx);
        this.slot.lock().waits = polled.is_pending();
        match ready!(polled) {
            Some(Ok(mut bytes)) => {
                if bytes.len() as u64 > this.left {
                    stream.unread(bytes.split_off(usize::try_from(this.left).unwrap_or(usize::MAX)));
                }
                this.left -= bytes.len() as u64;
                let mut resting = this.slot.lock();
                resting.taken.bytes += bytes.len() as u64;
                if this.left == 0 {
                    resting.sent = true;
                    resting.stream = held.take();
                } else {
                    resting.blocked_since = Some(Instant::now());
                }
                drop(resting);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Some(Err(error)) => {
                this.slot.lock().error = Some(error.duplicate());
                Poll::Ready(Some(Err(error)))
            }
            None => {
                Poll::Ready(Some(Err(Error::new(Kind::Mismatch, "the blob ended before its size").on(Side::Source))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::{Descriptor, Digest};
    use futures_util::StreamExt as _;
    use http_body_util::BodyExt as _;

    /// A body of 300 frames of `size` bytes, of which the source brings one each `every`, and the destination takes
    /// one and then rests for `rest`. The error if it was given up, and how long it took in seconds.
    async fn sent(size: usize, every: Duration, rest: Duration, least: MinRate) -> (Option<Error>, u64) {
        let all = vec![7; size * FRAMES];
        let blob = Descriptor::new("application/octet-stream", Digest::of(&all), all.len() as u64);
        let frames = futures_util::stream::iter(0..FRAMES).then(move |_| async move {
            tokio::time::sleep(every).await;
            Ok(Bytes::from(vec![7; size]))
        });
        let slot = StreamSlot::default();
        slot.put(Verified::new(frames.boxed(), &blob).expect("opens"));
        let mut body = ChunkBody::new(&slot, blob.size).expect("a stream is there");
        let begun = Instant::now();
        let taking = async {
            while let Some(frame) = body.frame().await {
                frame.expect("it is right");
                tokio::time::sleep(rest).await;
            }
        };
        let given_up = abort_reason(&slot, "r.io", Duration::from_secs(30), least);
        let error = match future::select(std::pin::pin!(taking), std::pin::pin!(given_up)).await {
            future::Either::Left(_) => None,
            future::Either::Right((error, _)) => Some(error),
        };
        (error, begun.elapsed().as_secs())
    }

    const FRAMES: usize = 300;
    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_destination_that_takes_too_little_is_given_up_after_the_window() {
        let (error, seconds) = sent(1000, Duration::ZERO, SECOND, MinRate::default()).await;
        let error = error.expect("1,000 bytes a second are too few");
        assert!(error.is_transient() && error.kind() == Kind::Timeout, "{error}");
        assert!(error.to_string().contains("bytes were taken by r.io in 60 s, less than 1024 a second"), "{error}");
        assert!((60..=63).contains(&seconds), "{seconds}");
        for (size, bytes) in [(1100, 1024), (1, 0)] {
            let least = MinRate { bytes, ..MinRate::default() };
            let (error, seconds) = sent(size, Duration::ZERO, SECOND, least).await;
            assert!(error.is_none() && seconds >= 299, "{size}: {error:?}");
        }
    }

    /// The source brings 100 bytes a second, and the destination takes them at once.
    #[tokio::test(start_paused = true)]
    async fn a_slow_source_is_no_slow_destination() {
        let (error, seconds) = sent(100, SECOND, Duration::ZERO, MinRate::default()).await;
        assert!(error.is_none() && seconds >= 299, "{error:?}");
    }

    /// Of ten seconds for 2,000 bytes the source takes nine, and the destination one.
    #[tokio::test(start_paused = true)]
    async fn only_the_time_of_the_destination_counts() {
        let (error, seconds) = sent(2000, SECOND * 9, SECOND, MinRate::default()).await;
        assert!(error.is_none() && seconds >= 2699, "{error:?}");
    }
}
