//! The readers of a blob that is being fetched.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{ALONE_PATIENCE, Begun, Fill, Progress, Stage, held};
use crate::content::{Body, limited};
use crate::error::{Error, Kind, Result};
use crate::proxy::reading::Reader;
use crate::proxy::{Inner, Origins};
use crate::server::FilePipe;

/// The bytes in `range`, as they get there. Whether it's read slowly, or not to its end, is nothing
/// to the writer.
pub(super) fn along<O: Origins>(
    inner: Arc<Inner<O>>,
    fill: Arc<Fill<O::Source>>,
    range: Range<u64>,
    pipe: Option<FilePipe>,
) -> Body {
    let follow = Follow {
        reader: inner.readers.enter(pipe),
        progress: fill.progress.subscribe(),
        at: range.start,
        end: range.end,
        aside: None,
        looked_aside: false,
        alone: None,
        inner,
        fill,
    };
    stream::try_unfold(follow, Follow::next).boxed()
}

struct Follow<O: Origins> {
    inner: Arc<Inner<O>>,
    fill: Arc<Fill<O::Source>>,
    progress: watch::Receiver<Progress>,
    reader: Reader,
    at: u64,
    end: u64,
    /// A ranged read of the upstream beside the writer, for what is far ahead of it. Never of the
    /// last byte: that comes from the file, when all of it is right.
    aside: Option<(Body, OwnedSemaphorePermit)>,
    looked_aside: bool,
    /// The rest from the upstream, for nobody writes any more.
    alone: Option<Body>,
}

impl<O: Origins> Follow<O> {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let bytes = self.bytes().await?;
        self.at += bytes.len() as u64;
        Ok(Some((bytes, self)))
    }

    async fn bytes(&mut self) -> Result<Bytes> {
        loop {
            if let Some(alone) = &mut self.alone {
                let next = alone.try_next().await?;
                return next.ok_or_else(|| Error::new(Kind::Network, "the upstream's body ended early"));
            }
            // Marks it as seen: `changed` waits for what comes after this.
            let Progress { stage, at } = *self.progress.borrow_and_update();
            let there = at.min(self.end);
            if self.at < there {
                self.aside = None;
                return self.read(there).await;
            }
            if stage == Stage::Failed {
                self.go_alone().await?;
                continue;
            }
            if !self.looked_aside && self.at - at > NEAR {
                self.looked_aside = true;
                self.look_aside().await;
                continue;
            }
            let Some((aside, _)) = &mut self.aside else {
                // Can't fail: the sender is in the fill.
                let _ = self.progress.changed().await;
                continue;
            };
            tokio::select! {
                next = aside.try_next() => match next {
                    Ok(Some(bytes)) => return Ok(bytes),
                    // At its end, or broken: the writer comes along.
                    Ok(None) => self.aside = None,
                    Err(error) => {
                        tracing::info!("{error}: going on with what is being fetched");
                        self.aside = None;
                    }
                },
                // Perhaps it has caught up.
                _ = self.progress.changed() => {}
            }
        }
    }

    async fn read(&mut self, end: u64) -> Result<Bytes> {
        match self.fill.begun.get() {
            Some(Begun { to: Some((file, _)), .. }) => self.reader.some(file, self.at..end).await,
            _ => Err(Error::new(Kind::Local, "there is no file")),
        }
    }

    /// When the writer failed: if that was the disk's fault, the rest is read past it, and the whole
    /// is still verified (from the hash's last known state on).
    async fn go_alone(&mut self) -> Result<()> {
        let why = self.fill.why();
        let Some(Begun { to: Some((_, feed)), .. }) = self.fill.begun.get() else { return Err(why) };
        if why.kind() != Kind::Local {
            return Err(why);
        }
        let pass = self.inner.pass(&self.fill.spot, 0, ALONE_PATIENCE).await?;
        let rest = feed.open(self.at).await?;
        self.alone = Some(held(limited(rest.boxed(), self.end - self.at), pass));
        Ok(())
    }

    async fn look_aside(&mut self) {
        let Some(Begun { blob, .. }) = self.fill.begun.get() else { return };
        let part = self.at..self.end.min(blob.size.saturating_sub(1));
        if part.is_empty() {
            return;
        }
        let Ok(permit) = self.inner.fills.sides.clone().try_acquire_owned() else { return };
        match self.inner.open_part(&self.fill.spot, blob, part).await {
            Ok(Some((_, tier, body))) => {
                let body = self.inner.counted(&self.fill.spot, tier, body);
                self.aside = Some((body, permit));
            }
            Ok(None) => {}
            Err(error) => tracing::info!("{error}: waiting for what is being fetched"),
        }
    }
}

/// How far ahead of the writer it's still waited for.
const NEAR: u64 = 8 << 20;
