//! The flags of write-back.

use std::path::PathBuf;

use crate::proxy::upstreams::UpstreamConfig;

/// Whether, and as whom.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Copy images that only --original had into the upstream's registry, in the background
    #[arg(long, requires = "original", help_heading = "Operation")]
    write_back: bool,
    /// Read the credentials for --write-back from this file first
    #[arg(long, value_name = "FILE", requires = "write_back", help_heading = "Operation")]
    pub(super) write_back_auth_file: Option<PathBuf>,
}

impl Args {
    /// Marks the upstreams that have an original.
    pub(super) fn mark(&self, specs: &mut [UpstreamConfig]) {
        for spec in specs {
            spec.write_back = self.write_back && spec.tiers.len() > 1;
        }
    }
}
