//! A slice of a blob's stream as a request's body, and the watch over its progress.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{Stream as _, future};
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use super::transport::{COMMIT_TIMEOUT, Registry};
use crate::error::{Error, Kind, Result, Side};
use crate::verify::Verified;

/// Runs `sending`, and stops it where nothing has moved for too long.
pub(super) async fn watched<T>(
    slot: &Slot,
    registry: &Registry,
    sending: impl Future<Output = Result<T>>,
) -> Result<T> {
    let idle = registry.options.idle;
    let stalled = async {
        let mut last = (slot.moved(), Instant::now());
        loop {
            tokio::time::sleep(idle / 10).await;
            let (moved, waiting) = (slot.moved(), slot.waits_for_source());
            if moved != last.0 || waiting {
                last = (moved, Instant::now());
            }
            let patience = if slot.is_sent() { COMMIT_TIMEOUT.max(idle) } else { idle };
            if last.1.elapsed() > patience {
                return Error::new(
                    Kind::Timeout,
                    format!("{} took nothing and said nothing for {} s", registry.name, patience.as_secs()),
                );
            }
        }
    };
    match future::select(std::pin::pin!(sending), std::pin::pin!(stalled)).await {
        future::Either::Left((result, _)) => result,
        future::Either::Right((error, _)) => Err(error.on(Side::Destination)),
    }
}

/// Where the stream rests between two requests, and where a request's body leaves word.
#[derive(Clone, Default)]
pub(super) struct Slot(Arc<Mutex<Resting>>);

#[derive(Default)]
struct Resting {
    stream: Option<Verified>,
    error: Option<Error>,
    moved: u64,
    waits: bool,
    sent: bool,
}

impl Slot {
    pub(super) fn put(&self, stream: Verified) {
        self.lock().stream = Some(stream);
    }

    pub(super) fn take_error(&self) -> Option<Error> {
        self.lock().error.take()
    }

    fn moved(&self) -> u64 {
        self.lock().moved
    }

    fn waits_for_source(&self) -> bool {
        self.lock().waits
    }

    fn is_sent(&self) -> bool {
        self.lock().sent
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Resting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next bytes of a stream as a request's body of known length.
///
/// Its stream goes back into the slot with its last byte, as a body that has yielded its whole
/// Content-Length isn't polled again.
pub(super) struct Piece {
    slot: Slot,
    /// In a mutex for `Sync`, which reqwest asks of bodies; never contended.
    stream: Mutex<Option<Verified>>,
    left: u64,
}

impl Piece {
    pub(super) fn new(slot: &Slot, length: u64) -> Result<Self> {
        let mut resting = slot.lock();
        let stream =
            resting.stream.take().ok_or_else(|| Error::new(Kind::Network, "the stream of the blob is lost"))?;
        resting.sent = false;
        // Until it's asked for bytes, the request waits for its turn with us: the registry knows nothing of it.
        resting.waits = true;
        drop(resting);
        Ok(Self { slot: slot.clone(), stream: Mutex::new(Some(stream)), left: length })
    }
}

impl http_body::Body for Piece {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let held = this.stream.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(stream) = held.as_mut().filter(|_| this.left > 0) else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *stream).poll_next(cx);
        this.slot.lock().waits = polled.is_pending();
        match ready!(polled) {
            Some(Ok(mut bytes)) => {
                if bytes.len() as u64 > this.left {
                    stream.unread(bytes.split_off(usize::try_from(this.left).unwrap_or(usize::MAX)));
                }
                this.left -= bytes.len() as u64;
                let mut resting = this.slot.lock();
                resting.moved += bytes.len() as u64;
                if this.left == 0 {
                    resting.sent = true;
                    resting.stream = held.take();
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
