//! The flags of write-back.

use std::path::PathBuf;

use crate::error::{Error, Kind, Result};
use crate::proxy::upstreams::UpstreamConfig;

/// Whether, and as whom.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Copy images that only a later tier had into the first tier, in the background
    #[arg(long, help_heading = "Operation")]
    write_back: bool,
    /// Read the credentials for --write-back from this file first
    #[arg(long, value_name = "FILE", requires = "write_back", help_heading = "Operation")]
    pub(super) write_back_auth_file: Option<PathBuf>,
}

impl Args {
    /// Marks the upstreams that have several tiers.
    ///
    /// # Errors
    /// [`Kind::Usage`] if there are none.
    pub(super) fn mark(&self, specs: &mut [UpstreamConfig]) -> Result<()> {
        for spec in specs.iter_mut() {
            spec.write_back = self.write_back && spec.tiers.len() > 1;
        }
        if self.write_back && !specs.iter().any(|spec| spec.write_back) {
            return Err(Error::new(Kind::Usage, "--write-back needs an upstream with several tiers")
                .hint("write such as --upstream docker.io=myregistry.azurecr.io/docker.io,docker.io"));
        }
        Ok(())
    }
}
