//! The flags that all commands have, and what becomes of them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};

use super::logs::LogFormat;
use crate::credentials::entra::EntraSettings;
use crate::credentials::{Credential, Credentials, Settings};
use crate::error::{Error, Kind, Result};
use crate::registry::{MinRate, Options, Proxies, Registries, Trust};
use crate::regular_file;

/// Flags of all commands.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// Output format on stdout
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, help_heading = HELP_HEADING)]
    pub(super) output: Format,
    /// Print only errors
    #[arg(long, short, global = true, conflicts_with = "verbose", help_heading = HELP_HEADING)]
    pub(super) quiet: bool,
    /// Verbose; -vv logs requests
    #[arg(long, short, global = true, action = ArgAction::Count, help_heading = HELP_HEADING)]
    pub(super) verbose: u8,
    /// Format of log lines on stderr
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, help_heading = HELP_HEADING)]
    pub(super) log_format: LogFormat,
    /// Also trust the certificates in this PEM file (repeatable)
    #[arg(long, global = true, value_name = "FILE", env = "TRANSLOAD_CA_FILE", help_heading = HELP_HEADING)]
    pub(super) ca_file: Vec<PathBuf>,
    /// Allow plain HTTP or unverified TLS for this registry, or for storage that a registry redirects to (repeatable;
    /// plain HTTP on loopback needs no flag)
    #[arg(long, global = true, value_name = "HOST[:PORT]", help_heading = HELP_HEADING)]
    pub(super) insecure_registry: Vec<String>,
    /// Connect to this address for a host instead of using DNS (repeatable)
    #[arg(long, global = true, value_name = "HOST=ADDRESS:PORT", env = "TRANSLOAD_RESOLVE", value_delimiter = ',', value_parser = parse_resolve, help_heading = HELP_HEADING)]
    pub(super) resolve: Vec<(String, SocketAddr)>,
    /// Allow this host to issue tokens for registries of other sites (repeatable)
    #[arg(long, global = true, value_name = "HOST", help_heading = HELP_HEADING)]
    pub(super) allow_realm: Vec<String>,
    /// Read credentials from this file first: of docker or podman, or a Kubernetes secret (repeatable)
    #[arg(long, global = true, value_name = "FILE", env = "TRANSLOAD_AUTH_FILE", help_heading = HELP_HEADING)]
    pub(super) auth_file: Vec<PathBuf>,
    /// Idle timeout of a connection before a retry
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60, help_heading = HELP_HEADING,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(super) idle_timeout: u64,
    /// Minimum transfer rate of a blob, in bytes per second, before a retry; 0 for none
    #[arg(long, global = true, value_name = "SIZE", default_value = "1KiB", value_parser = parse_bytes, help_heading = HELP_HEADING)]
    pub(super) min_rate: u64,
    /// Seconds over which --min-rate is averaged
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60, help_heading = HELP_HEADING,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(super) min_rate_window: u64,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Human-readable
    Text,
    /// One JSON document
    Json,
}

impl Global {
    /// The registries with one credential for one of them, to try it.
    pub(super) fn registries_as(&self, registry: &str, credential: &Credential) -> Result<Registries> {
        let credentials = Credentials::fixed(registry, credential.clone())?;
        Ok(Registries::new(Options { credentials, entra: None, ..self.options()? }))
    }

    /// Where credentials are kept and looked for.
    pub(super) fn settings(&self) -> Result<Settings> {
        let mut settings = Settings::from_environment(std::env::vars_os())?;
        settings.auth_files.extend(self.auth_file.iter().cloned());
        Ok(settings)
    }

    /// How registries are asked, by these flags and the environment.
    pub(super) fn options(&self) -> Result<Options> {
        let mut trust = Trust::from_environment(std::env::vars_os());
        for file in &self.ca_file {
            let pem = regular_file::read_named(file, MAX_CA_FILE)
                .map_err(|error| Error::unreadable(format!("read --ca-file {}", file.display()), &error))?;
            trust.add_file(file, &pem)?;
        }
        Ok(Options {
            credentials: Credentials::load(&self.settings()?)?,
            entra: Some(EntraSettings::from_environment(std::env::vars_os())),
            insecure: self.insecure_registry.clone(),
            trust: Arc::new(trust),
            proxies: Proxies::from_environment(std::env::vars_os()),
            resolve: Arc::new(self.resolve.iter().cloned().collect()),
            realms: self.allow_realm.clone(),
            idle: Duration::from_secs(self.idle_timeout),
            min_rate: MinRate { bytes: self.min_rate, window: Duration::from_secs(self.min_rate_window) },
            ..Options::default()
        })
    }
}

/// The largest file of certificates that is read, in bytes: all public authorities have some 250 KiB.
const MAX_CA_FILE: u64 = 16 << 20;

/// `16MiB`, `4M`, `1048576`.
pub(super) fn parse_bytes(text: &str) -> Result<u64> {
    let wrong = || Error::new(Kind::Usage, format!("{text:?} is not a size such as 16MiB"));
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    text[..digits].parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

fn parse_resolve(text: &str) -> Result<(String, SocketAddr)> {
    let wrong = || Error::new(Kind::Usage, format!("{text:?} is not HOST=ADDRESS:PORT"));
    let (host, address) = text.split_once('=').ok_or_else(wrong)?;
    Ok((host.to_ascii_lowercase(), address.parse().map_err(|_| wrong())?))
}

pub(super) const HELP_HEADING: &str = "Global options";
