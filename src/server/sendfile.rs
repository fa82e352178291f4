//! Sends parts of files to a client by sendfile(2), without copying them through the process.
//!
//! The body of a response consists of [`Bytes`], which hyper writes to the connection. The frame for a part of a file is a
//! placeholder: as many bytes of a constant, which nobody reads. The part itself is in the queue of the connection. When hyper
//! writes bytes of the constant, the connection lets the kernel send the bytes of the file instead. That avoids the copy to
//! the process and back, which is most of the cost of a cached blob, and needs no buffer.
//!
//! This works because hyper writes the frames of a body in order, and does not copy them if the connection supports vectored
//! writes. TLS needs the bytes in the process. On a Unix socket the gain was not measured.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// The queue of file parts of a connection. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct FilePipe(Arc<Mutex<VecDeque<FilePart>>>);

/// A part of a file that is not sent yet.
#[derive(Debug)]
struct FilePart {
    file: Arc<File>,
    range: Range<u64>,
}

impl FilePipe {
    /// The longest part in bytes.
    pub(crate) const MAX_PART: u64 = PLACEHOLDER.len() as u64;

    /// The next frame of this connection's response: a placeholder for the bytes in `range`, or for the first
    /// [`Self::MAX_PART`] of them. The bytes are read when they are sent, so they must not change until then.
    ///
    /// If the file is too short, the connection ends there.
    pub(crate) fn part(&self, file: Arc<File>, range: Range<u64>) -> Bytes {
        let end = range.end.min(range.start + Self::MAX_PART);
        // At most the length of the constant.
        let length = usize::try_from(end - range.start).unwrap_or(0);
        if length > 0 {
            self.queue().push_back(FilePart { file, range: range.start..end });
        }
        Bytes::from_static(&PLACEHOLDER[..length])
    }

    /// The queued bytes.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> u64 {
        self.queue().iter().map(|part| part.range.end - part.range.start).sum()
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<FilePart>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends bytes of the first part, of which `left` are not sent yet: as many as the socket accepts.
    fn send(&self, stream: &TcpStream, left: usize) -> io::Result<usize> {
        let mut queue = self.queue();
        let part = queue.front_mut().filter(|part| part.range.end - part.range.start == left as u64);
        let Some(FilePart { file, range }) = part else {
            return Err(io::Error::other("the frame does not match the next queued file part"));
        };
        let sent = sendfile(stream, file, &mut range.start, left)?;
        if sent == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a file became shorter while it was sent"));
        }
        if range.is_empty() {
            queue.pop_front();
        }
        Ok(sent)
    }
}

/// TCP with its [`FilePipe`].
pub(super) struct PipedStream {
    stream: TcpStream,
    pipe: FilePipe,
    /// TCP_CORK is set: only full segments are sent, and the rest waits for more bytes or a flush. Otherwise the end of each
    /// part would be a segment of its own, and the client would wake up twice as often.
    corked: bool,
}

impl PipedStream {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, pipe: FilePipe::default(), corked: false }
    }

    /// `None` if the kernel has no sendfile(2) for this.
    pub(super) fn pipe(&self) -> Option<FilePipe> {
        cfg!(target_os = "linux").then(|| self.pipe.clone())
    }

    fn cork(&mut self, corked: bool) {
        // An error is ignored: without TCP_CORK there are only more segments.
        if self.corked != corked && cork(&self.stream, corked).is_ok() {
            self.corked = corked;
        }
    }

    fn poll_send(&self, cx: &mut Context<'_>, left: usize) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_io(Interest::WRITABLE, || self.pipe.send(&self.stream, left)) {
                // The socket was not ready: waits for it.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl AsyncRead for PipedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PipedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if is_placeholder(bytes) {
            self.cork(true);
            return self.poll_send(cx, bytes.len());
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let plain = slices.iter().take_while(|slice| !is_placeholder(slice)).count();
        if plain < slices.len() {
            self.cork(true);
        }
        match slices.first() {
            Some(first) if plain == 0 => self.poll_send(cx, first.len()),
            _ => Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..plain]),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cork(false);
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cork(false);
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Whether these are bytes of the constant itself, by address. Equal bytes elsewhere do not count.
fn is_placeholder(bytes: &[u8]) -> bool {
    !bytes.is_empty() && PLACEHOLDER.as_ptr_range().contains(&bytes.as_ptr())
}

#[cfg(target_os = "linux")]
fn sendfile(to: &TcpStream, from: &File, at: &mut u64, count: usize) -> io::Result<usize> {
    Ok(rustix::fs::sendfile(to, from, Some(at), count)?)
}

/// tcp(7), TCP_CORK.
#[cfg(target_os = "linux")]
fn cork(stream: &TcpStream, corked: bool) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_tcp_cork(stream, corked)?)
}

#[cfg(not(target_os = "linux"))]
fn cork(_: &TcpStream, _: bool) -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn sendfile(_: &TcpStream, _: &File, _: &mut u64, _: usize) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The placeholder. It is never read, so it takes no memory.
static PLACEHOLDER: [u8; 4 << 20] = [0; 4 << 20];

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::Duration;

    use futures_util::{StreamExt as _, stream};
    use http::{Request, Response, StatusCode};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::body::Body;
    use crate::server::respond::streamed;
    use crate::server::{Handler, Limits, ResponseBody, run};

    /// Answers with plain bytes, a part of a file, plain bytes, and the rest of the file.
    struct Mixed {
        file: Arc<File>,
        /// What it says that the file has.
        size: u64,
    }

    impl Handler for Mixed {
        async fn handle(&self, request: Request<Body>) -> Response<ResponseBody> {
            let pipe = request.extensions().get::<FilePipe>().expect("plain TCP").clone();
            let (file, size) = (self.file.clone(), self.size);
            let mut at = 0;
            let frames = stream::iter(0..).map(move |nth: u64| match nth {
                0 => Bytes::from_static(b"before"),
                2 => Bytes::from_static(b"between"),
                _ => {
                    let end = if nth == 1 { at + 10 } else { size };
                    let part = pipe.part(file.clone(), at..end);
                    at += part.len() as u64;
                    part
                }
            });
            let frames =
                frames.enumerate().take_while(|(nth, frame)| std::future::ready(*nth < 3 || !frame.is_empty()));
            streamed(StatusCode::OK, 13 + size, frames.map(|(_, frame)| Ok(frame)).boxed())
        }
    }

    /// A file with this content that has no name any more.
    fn file(content: &[u8]) -> Arc<File> {
        let path = std::env::temp_dir().join(format!("transload-pipe-{}-{}", std::process::id(), content.len()));
        std::fs::write(&path, content).expect("writes");
        let file = File::open(&path).expect("opens");
        std::fs::remove_file(&path).expect("removes");
        Arc::new(file)
    }

    fn content(size: usize) -> Vec<u8> {
        (0..size).map(|at| (at / 7 + at % 251) as u8).collect()
    }

    async fn serve(content: &[u8], size: u64) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let handler = Mixed { file: file(content), size };
        tokio::spawn(run(listener, handler, Limits::default(), std::future::pending()));
        TcpStream::connect(address).await.expect("connects")
    }

    const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    /// The next answer's body, of `size` bytes.
    async fn answer(client: &mut TcpStream, size: usize) -> Vec<u8> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.expect("a head"));
        }
        let mut body = vec![0; size];
        client.read_exact(&mut body).await.expect("a body");
        body
    }

    fn expected(content: &[u8]) -> Vec<u8> {
        [b"before", &content[..10], b"between", &content[10..]].concat()
    }

    /// Several parts, more than a socket takes at once, in one answer after another on one connection.
    #[tokio::test]
    async fn what_is_sent_is_what_the_file_has_in_its_place() {
        let content = content(9_000_001);
        let mut client = serve(&content, content.len() as u64).await;
        // Asked for both at once, which HTTP/1.1 allows: the answers come one after the other.
        client.write_all(&[ASK, ASK].concat()).await.expect("asks");
        // The socket is full before anything is read, and stays so for most of the answer.
        tokio::time::timeout(Duration::from_secs(10), client.readable()).await.expect("soon").expect("it begins");
        for _ in 0..2 {
            assert!(answer(&mut client, content.len() + 13).await == expected(&content), "other bytes came");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_too_short_ends_the_connection() {
        let content = content(3_000_000);
        let mut client = serve(&content, 3_000_001).await;
        client.write_all(ASK).await.expect("asks");
        let body = answer(&mut client, content.len() + 13).await;
        assert!(body == expected(&content), "other bytes came");
        assert_eq!(client.read(&mut [0; 8]).await.expect("an end"), 0);
    }

    /// What is left over in the kernel leaves with a flush, and not some time later.
    #[tokio::test]
    async fn a_flush_lets_go_what_was_held_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let mut piped = PipedStream::new(TcpStream::connect(address).await.expect("connects"));
        let corked = |piped: &PipedStream| rustix::net::sockopt::tcp_cork(&piped.stream).expect("a socket");
        let frame = piped.pipe.part(file(b"0123456789a"), 0..11);
        let mut slices = [IoSlice::new(b"head"), IoSlice::new(&frame)];
        assert_eq!(piped.write_vectored(&slices).await.expect("writes"), 4);
        assert_eq!(piped.write_vectored(&slices[1..]).await.expect("sends"), 11);
        assert!(corked(&piped));
        piped.flush().await.expect("flushes");
        assert!(!corked(&piped));
        slices[1] = IoSlice::new(b"more");
        assert_eq!(piped.write_vectored(&slices).await.expect("writes"), 8);
        assert!(!corked(&piped), "for parts of files only");
    }

    /// Parts and what hyper writes are in step, or nothing is sent: never one part's bytes for another's.
    #[test]
    fn a_part_is_sent_only_when_it_is_its_turn() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        let _inside = runtime.enter();
        let stream = std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("connects");
        stream.set_nonblocking(true).expect("sets");
        let stream = TcpStream::from_std(stream).expect("a stream");
        let pipe = FilePipe::default();
        assert!(pipe.send(&stream, 5).is_err(), "there is none");
        let frame = pipe.part(file(b"0123456789"), 2..9);
        assert!(is_placeholder(&frame) && !is_placeholder(&[0; 7]));
        assert!(pipe.send(&stream, 5).is_err(), "of another length");
        assert_eq!(pipe.send(&stream, 7).ok(), Some(7));
        assert!(pipe.send(&stream, 7).is_err(), "it was sent");
    }
}
