//! The body of a request, which may stall, and which may have to be thrown away.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http_body_util::BodyExt as _;
use tokio::time::timeout;

use crate::body::Body;
use crate::error::{Error, Kind, Result};
use crate::memory::CollectedBody;

/// A request's body as a stream: [`Kind::Network`] if the client hangs up in the middle,
/// [`Kind::Timeout`] if nothing comes for a minute.
pub fn request_body<R>(body: R) -> Body
where
    R: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    R::Error: std::error::Error + Send + Sync,
{
    stream::try_unfold(body, |mut body| async move {
        loop {
            match timeout(IDLE_TIMEOUT, body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => {
                    // Trailers say nothing that is needed.
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return Ok(Some((data, body)));
                    }
                }
                Ok(Some(Err(error))) => {
                    let what = format!("the client's body broke off: {error}");
                    return Err(Error::new(Kind::Network, what).caused_by(error));
                }
                Err(_) => {
                    let what = format!("the client sent nothing for {} s", IDLE_TIMEOUT.as_secs());
                    return Err(Error::new(Kind::Timeout, what));
                }
            }
        }
    })
    .boxed()
}

/// Reads a body that is refused to its end, within bounds: a server that closes the connection
/// while the client still writes resets it, and the answer is lost with it.
pub(super) async fn discard(body: &mut Body) {
    let all = async {
        let mut read = 0;
        while read < MAX_DISCARDED
            && let Ok(Some(bytes)) = body.try_next().await
        {
            read += bytes.len();
        }
    };
    let _ = timeout(DISCARD_TIME, all).await;
}

/// The whole body, or `None` if it has more than `most` bytes. A large one waits for its turn before most of it is
/// read, and has to come within a minute then: others wait for it.
pub(super) async fn read_all(body: &mut Body, most: usize) -> Result<Option<Bytes>> {
    let mut bytes = CollectedBody::for_push(most as u64);
    while let Some(frame) = body.try_next().await? {
        if !bytes.fits(&frame) {
            return Ok(None);
        }
        if bytes.must_wait(&frame) {
            bytes.wait(None).await;
            bytes.add(&frame);
            let slow =
                |_| Error::new(Kind::Timeout, format!("the body did not end in {} s", LARGE_BODY_TIMEOUT.as_secs()));
            return timeout(LARGE_BODY_TIMEOUT, read_rest(body, bytes)).await.map_err(slow)?;
        }
        bytes.add(&frame);
    }
    Ok(Some(bytes.finish()))
}

async fn read_rest(body: &mut Body, mut bytes: CollectedBody) -> Result<Option<Bytes>> {
    while let Some(frame) = body.try_next().await? {
        if !bytes.fits(&frame) {
            return Ok(None);
        }
        bytes.add(&frame);
    }
    Ok(Some(bytes.finish()))
}

/// How long the rest of a large body may take, however evenly it trickles.
const LARGE_BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a client may be silent in the middle of a body.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of a refused body is read. Reading costs little, and a client that sends a whole
/// layer in one request hears why it's refused.
const MAX_DISCARDED: usize = 256 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(5);
