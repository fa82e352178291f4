//! Contains panics. A panic is a bug in the program; it ends only the work in which it happened.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;

use crate::error::{Error, Kind, Result};

/// Runs `work`. A panic in it becomes an error of [`Kind::Internal`].
///
/// State that the work shares with other tasks must stay valid: locks are taken with `PoisonError::into_inner`, and `Drop`
/// undoes unfinished steps.
pub(crate) async fn catch_panic<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(result) => result,
        Err(panic) => Err(panic_error(&*panic)),
    }
}

/// The error for the payload of a panic.
pub(crate) fn panic_error(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let what = format!("internal error: {}; please report it", text.unwrap_or("a panic without a message"));
    Error::new(Kind::Internal, what).hint("report it with the lines that begin with \"thread\" above, and the image")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_and_says_what_it_was() {
        assert_eq!(catch_panic(async { Ok(7) }).await.expect("no panic"), 7);
        let number = "none";
        for (panics, text) in [
            (catch_panic(async { panic!("of some text") }).await, "internal error: of some text; please report it"),
            (catch_panic(async { panic!("of {number}") }).await, "internal error: of none; please report it"),
        ] {
            let error = Result::<()>::expect_err(panics, "it panicked");
            assert_eq!((error.kind(), error.to_string()), (Kind::Internal, text.to_owned()));
        }
        let error = catch_panic(crate::pool::run_blocking(|| -> Result<()> { panic!("on the pool") })).await;
        assert!(error.expect_err("it panicked").to_string().contains("on the pool"));
    }
}
