//! `transload mirror LIST`.

use super::super::global::Global;
use super::Where;
use crate::error::{Error, Kind, Result};
use crate::registry::Registries;

/// What a run takes.
#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// The list: a file, or `-` for stdin
    #[arg(required = true)]
    list: Option<String>,
    #[command(flatten)]
    to: Where,
}

/// Runs the list.
#[expect(clippy::unused_async, reason = "what it will do waits")]
pub(super) async fn run(args: &RunArgs, _: &Global, _: &Registries) -> Result<u8> {
    let _ = (&args.list, &args.to);
    Err(Error::new(Kind::Unsupported, "mirror LIST isn't built yet").hint("transload mirror check reads the list"))
}
