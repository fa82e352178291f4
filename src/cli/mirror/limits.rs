//! How much of the registries' limits a run may use.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::credentials::Credential;
use crate::error::{Error, Kind, Result};
use crate::mirror::schedule;
use crate::registry::{Options, Sku};
use crate::regular_file;

/// The limits of registries, and of the run's time.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Reserve N of Docker Hub's pulls: when only these are left, its images wait until the limit resets, or
    /// until --deadline; other sources continue
    #[arg(long, value_name = "N", help_heading = HELP_HEADING)]
    reserve_pulls: Option<u64>,
    /// End the run after this time, such as 2h. Images that have not started are skipped, images in progress
    /// fail; the next run continues
    #[arg(long, value_name = "DURATION", value_parser = parse_deadline, conflicts_with = "interval", help_heading = HELP_HEADING)]
    deadline: Option<(Duration, Instant)>,
    /// SKU of the Azure registries, which sets their request limits: basic, standard (the default), premium
    #[arg(long, value_name = "SKU", help_heading = HELP_HEADING)]
    acr_sku: Option<Sku>,
    /// Limit the requests per minute to a registry, such as ghcr.io=600 (repeatable)
    #[arg(long, value_name = "REGISTRY=N", value_parser = parse_rate, help_heading = HELP_HEADING)]
    rate: Vec<(String, u32)>,
    /// File with accounts of Docker Hub, one USER:TOKEN per line; each has its own pull limit
    #[arg(long, value_name = "FILE", env = "TRANSLOAD_HUB_ACCOUNTS", help_heading = HELP_HEADING)]
    hub_accounts: Option<PathBuf>,
}

impl Args {
    /// When the run ends at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline.map(|(_, at)| at)
    }

    /// `options` with these limits, of which `share` programs have a part each.
    pub(super) fn options(&self, options: Options, share: u32) -> Result<Options> {
        Ok(Options {
            reserve_pulls: self.reserve_pulls,
            deadline: self.deadline(),
            acr_sku: self.acr_sku,
            rates: Arc::new(self.rate.iter().cloned().collect::<HashMap<_, _>>()),
            hub_accounts: self.accounts()?,
            share,
            ..options
        })
    }

    fn accounts(&self) -> Result<Vec<Credential>> {
        let Some(path) = &self.hub_accounts else { return Ok(Vec::new()) };
        let named = path.display();
        let text = regular_file::read_named_text(path, MAX_ACCOUNTS)
            .map_err(|error| Error::unreadable(format!("read --hub-accounts {named}"), &error))?;
        let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty() && !line.starts_with('#'));
        lines
            .map(|(line, number)| match line.trim().split_once(':') {
                Some((user, token)) if !user.is_empty() && !token.is_empty() => Ok(Credential::basic(user, token)),
                // Not shown: it may be a token.
                _ => Err(Error::new(Kind::Usage, format!("{named}:{number} is not USER:TOKEN"))),
            })
            .collect()
    }
}

/// How long, and when that is: the time runs from the program's start.
fn parse_deadline(text: &str) -> Result<(Duration, Instant)> {
    let long = schedule::parse_duration(text)?;
    Ok((long, Instant::now() + long))
}

fn parse_rate(text: &str) -> Result<(String, u32)> {
    let wrong = || Error::new(Kind::Usage, format!("{text:?} is not REGISTRY=N")).hint("such as ghcr.io=600");
    let (registry, number) = text.split_once('=').ok_or_else(wrong)?;
    let number = number.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)?;
    Ok((crate::reference::registry_name(registry)?, number))
}

/// The largest file of accounts that is read, in bytes.
const MAX_ACCOUNTS: u64 = 1 << 20;
const HELP_HEADING: &str = "Limits";
