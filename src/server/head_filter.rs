//! A connection filter between the socket and hyper. It stops requests with malformed heads, and reports the state of the
//! connection to the listener.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connections::Activity;
use super::head_parser::{ChunkScanner, Framing, HeadParser, HeadProgress};

/// Passes a head to hyper when it is complete and well formed, and a body as it arrives.
pub(super) struct HeadFilter<T> {
    io: T,
    activity: Activity,
    phase: Phase,
    /// Bytes that hyper does not have yet: a part of a head, and the bytes before it.
    held: Vec<u8>,
    /// The number of these bytes that may be passed on.
    cleared: usize,
    /// The limit of held bytes: hyper refuses longer heads itself.
    limit: usize,
}

enum Phase {
    Head(HeadParser),
    Body(u64),
    Chunks(ChunkScanner),
    /// The head is malformed: hyper gets [`MALFORMED_HEAD`] instead.
    Refused,
    /// Bytes are no longer checked: hyper ends this connection.
    Ended,
    /// A body without a defined end.
    Broken(&'static str),
}

impl<T> HeadFilter<T> {
    /// Watches `io`; `limit` is hyper's own limit on a head, in bytes.
    pub(super) fn new(io: T, activity: Activity, limit: usize) -> Self {
        Self { io, activity, phase: Phase::Head(HeadParser::default()), held: Vec::new(), cleared: 0, limit }
    }

    /// Passes on the held bytes that were checked. Returns true if there were any.
    fn hand_over(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        if self.cleared > 0 {
            let some = self.cleared.min(buffer.remaining());
            buffer.put_slice(&self.held[..some]);
            self.held.drain(..some);
            self.cleared -= some;
            if self.held.is_empty() {
                self.held = Vec::new();
            }
            return true;
        }
        if matches!(self.phase, Phase::Refused) {
            buffer.put_slice(&MALFORMED_HEAD[..MALFORMED_HEAD.len().min(buffer.remaining())]);
            (self.phase, self.held) = (Phase::Ended, Vec::new());
            return true;
        }
        false
    }
}

impl Phase {
    /// The number of these bytes that may be passed on. The others are a part of a head.
    fn clear(&mut self, bytes: &[u8]) -> usize {
        let mut cleared = 0;
        while cleared < bytes.len() {
            let rest = &bytes[cleared..];
            let (used, next) = match self {
                Self::Head(head) => match head.read(rest) {
                    HeadProgress::Incomplete => return cleared,
                    HeadProgress::Complete(length, Framing::Length(0)) => {
                        (length, Some(Self::Head(HeadParser::default())))
                    }
                    HeadProgress::Complete(length, Framing::Length(body)) => (length, Some(Self::Body(body))),
                    HeadProgress::Complete(length, Framing::Chunked) => {
                        (length, Some(Self::Chunks(ChunkScanner::new())))
                    }
                    HeadProgress::Malformed(why) => {
                        tracing::debug!("refused a request with a malformed head: {why}");
                        *self = Self::Refused;
                        return cleared;
                    }
                },
                Self::Body(left) => {
                    let used = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= used as u64;
                    (used, (*left == 0).then(|| Self::Head(HeadParser::default())))
                }
                Self::Chunks(chunks) => match chunks.read(rest) {
                    Ok((used, ended)) => (used, ended.then(|| Self::Head(HeadParser::default()))),
                    Err(why) => (rest.len(), Some(Self::Broken(why))),
                },
                Self::Refused | Self::Broken(_) => return cleared,
                Self::Ended => (rest.len(), None),
            };
            cleared += used;
            if let Some(next) = next {
                *self = next;
            }
        }
        cleared
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for HeadFilter<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.hand_over(buffer) {
                return Poll::Ready(Ok(()));
            }
            let start = buffer.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, buffer))?;
            let fresh = &buffer.filled()[start..];
            if fresh.is_empty() {
                if this.held.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                // The client has closed the connection within a head. hyper handles that.
                (this.phase, this.cleared) = (Phase::Ended, this.held.len());
                continue;
            }
            if !this.activity.received() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "closed for another client")));
            }
            if this.held.is_empty() {
                // The common case, without a copy: a whole head in one read, or a part of a body.
                let cleared = this.phase.clear(fresh);
                if let Phase::Broken(why) = this.phase {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
                }
                if cleared == fresh.len() {
                    return Poll::Ready(Ok(()));
                }
                this.held.extend_from_slice(&fresh[cleared..]);
                buffer.set_filled(start + cleared);
                if cleared > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                this.held.extend_from_slice(fresh);
                buffer.set_filled(start);
                this.cleared = this.phase.clear(&this.held);
                if let Phase::Broken(why) = this.phase {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
                }
            }
            if this.cleared == 0 && this.held.len() > this.limit && !matches!(this.phase, Phase::Refused) {
                (this.phase, this.cleared) = (Phase::Ended, this.held.len());
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for HeadFilter<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.activity.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A request that hyper answers with 400 before it ends the connection.
const MALFORMED_HEAD: &[u8] = b"\0\r\n\r\n";
