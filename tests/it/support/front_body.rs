//! Bodies on their way through the front: counted, and spoiled as a fault wants it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;

use super::Fault;
use super::wire::Control;

/// Why a message ends where it should not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut by a fault")
    }
}

impl std::error::Error for Cut {}

pub type FrontBody = UnsyncBoxBody<Bytes, Cut>;

/// What happens to a body.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plan {
    /// Broken off after so many bytes.
    pub cut: Option<u64>,
    /// With a reset rather than an orderly close.
    pub reset: bool,
    /// Nothing more after so many bytes, for ever.
    pub stall: Option<u64>,
    /// Ends properly after so many bytes.
    pub end: Option<u64>,
    /// This byte is inverted.
    pub flip: Option<u64>,
    /// So many zeros at the end.
    pub append: u64,
    /// Bytes a second.
    pub rate: Option<u64>,
}

impl Plan {
    /// Of the answer's body, whose length is known or not.
    pub fn of_answer(fault: Option<&Fault>, length: Option<u64>) -> Self {
        let mut plan = Self::default();
        match fault {
            Some(&Fault::ResetAfter(bytes)) => {
                plan.cut = Some(bytes);
                plan.reset = true;
            }
            Some(&Fault::TruncateAt(bytes)) => plan.cut = Some(bytes),
            Some(&Fault::EndAt(bytes)) => plan.end = Some(bytes),
            Some(&Fault::StallAfter(bytes)) => plan.stall = Some(bytes),
            Some(&Fault::FlipByteAt(byte)) => plan.flip = Some(byte),
            Some(&Fault::Throttle(rate)) => plan.rate = Some(rate),
            Some(&Fault::WrongLength(by)) if by < 0 => {
                plan.end = length.map(|length| length.saturating_sub(by.unsigned_abs()));
            }
            Some(&Fault::WrongLength(by)) => plan.append = by.unsigned_abs(),
            _ => {}
        }
        plan
    }

    /// Of the request's body.
    pub fn of_request(fault: Option<&Fault>) -> Self {
        let mut plan = Self::default();
        match fault {
            Some(&Fault::ResetRequestAfter(bytes)) => plan.cut = Some(bytes),
            Some(&Fault::Throttle(rate)) => plan.rate = Some(rate),
            _ => {}
        }
        plan
    }
}

/// Passes a body on as planned; `moved` counts its bytes.
pub fn pass<B>(from: B, plan: Plan, control: Arc<Control>, moved: Arc<AtomicU64>) -> FrontBody
where
    B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static,
{
    let (to, mut frames) = mpsc::channel(1);
    tokio::runtime::Handle::current().spawn(async move {
        // Err: nobody takes the frames any more.
        drop(pump(from, plan, &control, &moved, &to).await);
    });
    let stream = futures_util::stream::poll_fn(move |context| frames.poll_recv(context));
    StreamBody::new(stream).boxed_unsync()
}

type Sink = mpsc::Sender<Result<Frame<Bytes>, Cut>>;

async fn pump<B>(
    mut from: B,
    plan: Plan,
    control: &Control,
    moved: &AtomicU64,
    to: &Sink,
) -> Result<(), mpsc::error::SendError<Result<Frame<Bytes>, Cut>>>
where
    B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static,
{
    let started = Instant::now();
    let last = [plan.cut, plan.stall, plan.end].into_iter().flatten().min();
    let mut at = 0;
    while last != Some(at) {
        // A client may go away while its bytes are still awaited.
        let frame = tokio::select! {
            frame = from.frame() => frame,
            () = to.closed() => return Ok(()),
        };
        let mut data = match frame {
            None => return append(plan, moved, to).await,
            Some(Err(_)) => return to.send(Err(Cut)).await,
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(trailers) => {
                    to.send(Ok(trailers)).await?;
                    continue;
                }
            },
        };
        if let Some(last) = last {
            data.truncate(usize::try_from(last - at).unwrap_or(usize::MAX));
        }
        let data = flip(data, plan.flip.and_then(|byte| byte.checked_sub(at)));
        // Small pieces, so that a slow body is an even flow.
        for piece in pieces(data, plan.rate) {
            let size = piece.len() as u64;
            at += size;
            moved.fetch_add(size, Ordering::Relaxed);
            to.send(Ok(Frame::data(piece))).await?;
            if let Some(rate) = plan.rate {
                let due = started + Duration::from_secs_f64(at as f64 / rate as f64);
                tokio::time::sleep_until(due.into()).await;
            }
        }
    }
    if plan.end == last && plan.end.is_some() {
        return Ok(());
    }
    if plan.stall == last && plan.stall.is_some() {
        to.closed().await;
        return Ok(());
    }
    // hyper drops what it has not written when a body fails, so wait until it has.
    drop(to.reserve().await);
    tokio::select! {
        () = control.written() => {}
        () = to.closed() => {}
    }
    if plan.reset {
        control.reset_on_close();
    }
    to.send(Err(Cut)).await
}

async fn append(
    plan: Plan,
    moved: &AtomicU64,
    to: &Sink,
) -> Result<(), mpsc::error::SendError<Result<Frame<Bytes>, Cut>>> {
    if plan.append == 0 {
        return Ok(());
    }
    moved.fetch_add(plan.append, Ordering::Relaxed);
    let zeros = vec![0; usize::try_from(plan.append).unwrap_or_default()];
    to.send(Ok(Frame::data(Bytes::from(zeros)))).await
}

fn flip(data: Bytes, at: Option<u64>) -> Bytes {
    let Some(at) = at.and_then(|at| usize::try_from(at).ok()).filter(|&at| at < data.len()) else {
        return data;
    };
    let mut data = BytesMut::from(data);
    data[at] = !data[at];
    data.freeze()
}

fn pieces(mut data: Bytes, rate: Option<u64>) -> Vec<Bytes> {
    let size = rate.map_or(usize::MAX, |rate| usize::try_from(rate / 50).unwrap_or(usize::MAX).max(1));
    let mut pieces = Vec::new();
    while data.len() > size {
        pieces.push(data.split_to(size));
    }
    pieces.push(data);
    pieces
}
