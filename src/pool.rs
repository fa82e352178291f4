//! Work that blocks, on the pool that the runtime has for it.

use crate::error::{Error, Kind, Result};

/// Runs blocking work on the pool for it. When the future is dropped the work still ends.
pub(crate) async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::new(Kind::Interrupted, "the program is ending")),
        },
    }
}
