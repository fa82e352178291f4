//! Frames of a body in batches: one write for many frames.

use bytes::Bytes;
use futures_util::{FutureExt as _, TryStreamExt as _};

use crate::body::Body;
use crate::error::Error;

/// Frames that are written together.
#[derive(Default)]
pub(super) struct Batch {
    /// In order. Empty at the body's end, and where the body fails at once.
    pub(super) frames: Vec<Bytes>,
    /// In bytes.
    pub(super) length: u64,
    /// Why nothing comes after these frames.
    pub(super) error: Option<Error>,
}

/// Waits for the next frame, and adds the frames that are available without waiting, up to [`WRITE_BATCH`] bytes.
pub(super) async fn next_batch(body: &mut Body) -> Batch {
    let mut batch = Batch::default();
    while batch.length < WRITE_BATCH {
        let next = if batch.frames.is_empty() {
            body.try_next().await
        } else {
            // Polled without a waker. The next batch polls again with one, before anybody waits.
            match body.try_next().now_or_never() {
                Some(next) => next,
                None => break,
            }
        };
        match next {
            Ok(Some(frame)) => {
                batch.length += frame.len() as u64;
                batch.frames.push(frame);
            }
            Ok(None) => break,
            Err(error) => {
                batch.error = Some(error);
                break;
            }
        }
    }
    batch
}

/// Bytes of a batch, to which one frame may be added.
const WRITE_BATCH: u64 = 256 << 10;
