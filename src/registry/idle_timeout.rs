//! Response bodies with timeouts and our error type.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::error::transport_error;
use super::min_rate::{MinRate, RateWatch};
use crate::error::{Error, Kind, Result};

/// A response body that fails if it is idle for too long, or too slow.
///
/// The timeout runs only while a reader waits. A reader that is slow itself, for example because its destination is
/// slow, finds bytes in the buffer.
pub(super) struct TimedBody {
    body: reqwest::Body,
    peer: String,
    patience: Duration,
    rate: RateWatch,
    waiting: Option<IdleTimer>,
}

/// A wait for the next bytes.
struct IdleTimer {
    since: Instant,
    /// The wait up to this time is already recorded in the rate's window.
    noted: Instant,
    timer: Pin<Box<Sleep>>,
}

impl TimedBody {
    /// `peer` is the sender's name in errors.
    pub(super) fn new(body: reqwest::Body, peer: String, patience: Duration, least: MinRate) -> Self {
        Self { body, peer, patience, rate: RateWatch::new(least), waiting: None }
    }

    /// Handles a frame, or the end of the body.
    fn on_frame(&mut self, frame: Option<Result<Frame<Bytes>, reqwest::Error>>) -> Option<Result<Frame<Bytes>>> {
        let waited = self.waiting.take().map(|waiting| waiting.noted.elapsed());
        let frame = match frame? {
            Ok(frame) => frame,
            Err(error) => return Some(Err(transport_error(&error, &self.peer).at_registry(&self.peer))),
        };
        let length = frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
        // A body that is complete does not fail for its rate.
        let noted = self.rate.record(length, waited.unwrap_or_default(), DIRECTION, &self.peer);
        Some(if self.body.is_end_stream() { Ok(frame) } else { noted.map(|()| frame) })
    }

    /// Keeps waiting. Returns the error for a body that is idle for too long, or too slow.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let now = Instant::now;
        let due = |since: Instant, rate: &RateWatch, patience: Duration| {
            let silent = since + patience;
            rate.time_left().map_or(silent, |left| silent.min(now() + left))
        };
        let (patience, rate) = (self.patience, &mut self.rate);
        let waiting = self.waiting.get_or_insert_with(|| {
            let since = now();
            let timer = Box::pin(tokio::time::sleep_until(due(since, rate, patience)));
            IdleTimer { since, noted: since, timer }
        });
        while waiting.timer.as_mut().poll(cx).is_ready() {
            if waiting.since.elapsed() >= patience {
                let what = format!("nothing came from {} for {} s", self.peer, patience.as_secs());
                return Poll::Ready(Error::new(Kind::Timeout, what).at_registry(&self.peer));
            }
            if let Err(error) = rate.record(0, waiting.noted.elapsed(), DIRECTION, &self.peer) {
                return Poll::Ready(error.at_registry(&self.peer));
            }
            waiting.noted = now();
            waiting.timer.as_mut().reset(due(waiting.since, rate, patience));
        }
        Poll::Pending
    }
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(this.on_frame(frame)),
            Poll::Pending => this.wait(cx).map(|error| Some(Err(error))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The words before the sender's name in the error for a slow body.
const DIRECTION: &str = "came from";

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt as _, StreamBody};

    #[tokio::test(start_paused = true)]
    async fn only_a_reader_that_waits_loses_its_patience() {
        let (to, mut from) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>>>(4);
        let frames = StreamBody::new(futures_util::stream::poll_fn(move |cx| from.poll_recv(cx)));
        let mut body =
            TimedBody::new(reqwest::Body::wrap(frames), "r.io".to_owned(), Duration::from_secs(10), MinRate::default());
        let frame = || Ok(Frame::data(Bytes::from_static(b"x")));
        let late = tokio::time::sleep(Duration::from_secs(9));
        let (got, _) = tokio::join!(body.frame(), async {
            late.await;
            to.send(frame()).await
        });
        assert!(got.is_some_and(|frame| frame.is_ok()), "it came in time");
        to.send(frame()).await.expect("room");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(body.frame().await.is_some_and(|frame| frame.is_ok()), "it was there all the time");
        let error = body.frame().await.and_then(Result::err).expect("nothing comes");
        assert_eq!(error.kind(), Kind::Timeout);
        assert!(error.is_transient() && error.to_string().contains("nothing came from r.io for 10 s"), "{error}");
    }

    /// A body of frames of `size` bytes, of which one comes each `every` until there were `count`.
    fn dripping(size: usize, every: Duration, count: usize, least: MinRate) -> TimedBody {
        let frames = futures_util::stream::unfold(0, move |nth| async move {
            tokio::time::sleep(every).await;
            (nth < count).then(|| (Ok::<_, Error>(Frame::data(Bytes::from(vec![0; size]))), nth + 1))
        });
        let body = reqwest::Body::wrap(StreamBody::new(Box::pin(frames)));
        TimedBody::new(body, "r.io".to_owned(), Duration::from_secs(30), least)
    }

    /// How many frames came, and how it ended.
    async fn drained(mut body: TimedBody, rest: Duration) -> (usize, Option<Error>) {
        let mut frames = 0;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(_) => frames += 1,
                Err(error) => return (frames, Some(error)),
            }
            tokio::time::sleep(rest).await;
        }
        (frames, None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_crawls_is_given_up_after_a_minute() {
        let begun = Instant::now();
        let (_, error) =
            drained(dripping(1000, Duration::from_secs(1), 1000, MinRate::default()), Duration::ZERO).await;
        let error = error.expect("1,000 bytes a second are too few");
        assert!(error.is_transient() && error.kind() == Kind::Timeout, "{error}");
        assert!(error.to_string().contains("came from r.io in 60 s, less than 1024 a second"), "{error}");
        assert_eq!(begun.elapsed().as_secs(), 60);
        for (size, bytes) in [(1100, 1024), (1, 0)] {
            let least = MinRate { bytes, ..MinRate::default() };
            let (frames, error) = drained(dripping(size, Duration::from_secs(1), 1000, least), Duration::ZERO).await;
            assert!(frames == 1000 && error.is_none(), "{size}: {error:?}");
        }
    }

    /// Of ten seconds the upstream takes one, and the reader nine.
    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_no_slow_upstream() {
        let body = dripping(2000, Duration::from_secs(1), 200, MinRate::default());
        let (frames, error) = drained(body, Duration::from_secs(9)).await;
        assert!(frames == 200 && error.is_none(), "{error:?}");
    }
}
