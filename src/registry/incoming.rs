//! The body of a response: its errors are ours, and it's never waited for without end.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use super::answer::transport_error;
use crate::error::{Error, Kind, Result};

/// A response's body that fails when nothing came for too long.
///
/// The time runs only while somebody waits: a reader that is slow itself, since its destination is,
/// finds the bytes where they are.
pub(super) struct Incoming {
    body: reqwest::Body,
    registry: String,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    pub(super) fn new(body: reqwest::Body, registry: &str, patience: Duration) -> Self {
        Self { body, registry: registry.to_owned(), patience, waiting: None }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.waiting = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(|error| transport_error(error, &this.registry))));
        }
        let waiting = this.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.patience)));
        if waiting.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let what = format!("nothing came from {} for {} s", this.registry, this.patience.as_secs());
        Poll::Ready(Some(Err(Error::new(Kind::Timeout, what))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt as _, StreamBody};

    #[tokio::test(start_paused = true)]
    async fn only_a_reader_that_waits_loses_its_patience() {
        let (to, mut from) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>>>(4);
        let frames = StreamBody::new(futures_util::stream::poll_fn(move |cx| from.poll_recv(cx)));
        let mut body = Incoming::new(reqwest::Body::wrap(frames), "r.io", Duration::from_secs(10));
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
}
