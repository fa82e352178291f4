//! The body type of sources, destinations and the server.

use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::error::Result;

/// The bytes of a blob as they arrive, not yet verified.
pub type Body = BoxStream<'static, Result<Bytes>>;
