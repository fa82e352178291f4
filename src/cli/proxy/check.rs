//! `transload proxy check`: what a file means, without any network.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::config::{AccessLogFormat, ListenAddress, ListenerConfig, ProxyConfig};
use super::config_file;
use crate::cli::output;
use crate::error::Result;
use crate::proxy::upstreams::UpstreamConfig;

/// Explain a configuration file without network access
#[derive(Clone, Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Configuration file
    file: PathBuf,
}

pub(super) fn run(args: &CheckArgs) -> Result<u8> {
    let proxy_config = config_file::load(&args.file)?;
    output::print(&config_text(&proxy_config));
    Ok(0)
}

pub(super) fn schema() -> Result<u8> {
    output::print(SCHEMA);
    Ok(0)
}

fn config_text(proxy_config: &ProxyConfig) -> String {
    let mut text = String::new();
    for listener_config in &proxy_config.listen {
        let _ = writeln!(text, "listens at {}: {}", listener_config.url(), listener_config.allowed_clients());
    }
    if let Some(address) = &proxy_config.listen_admin {
        let _ = writeln!(text, "takes the orders of proxy ls, rm, gc and verify at http://{address}");
    }
    let (settings, cache) = (&proxy_config.settings, &proxy_config.settings.cache);
    let _ = writeln!(
        text,
        "caches up to {} MiB in {}, and leaves {} MiB free",
        cache.size >> 20,
        cache.dir.display(),
        cache.keep_free >> 20
    );
    let _ = match settings.scrub {
        Some(rate) => {
            writeln!(text, "  and reads {} of it in a second, to find what is corrupt", output::format_bytes(rate))
        }
        None => writeln!(text, "  and never looks whether what it has is corrupt"),
    };
    for spec in &settings.upstreams {
        let tiers: Vec<String> = spec.tiers.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "{} is read from {}{}", spec.name, tiers.join(", then "), rules(spec));
        let (tag, negative) =
            (spec.tag_ttl.unwrap_or(settings.tag_ttl), spec.negative_ttl.unwrap_or(settings.negative_ttl));
        let _ = writeln!(
            text,
            "  a tag is believed for {} s, that something is absent for {} s",
            tag.as_secs(),
            negative.as_secs()
        );
        if let Some(file) = proxy_config.auth.get(&spec.name) {
            let _ = writeln!(text, "  with the credentials of {}", file.display());
        }
        if let ([durable, _, ..], true) = (&spec.tiers[..], spec.write_back) {
            let file = proxy_config.write_auth.get(&spec.name);
            let whose = file.map_or_else(String::new, |file| format!(", with the credentials of {}", file.display()));
            let _ = writeln!(text, "  what that lacks is copied into {}{whose}", durable.registry);
        }
    }
    let _ = writeln!(
        text,
        "at most {} connections at each address, {} fetches at once, {} s for a request's head, {} s for the upstreams",
        proxy_config.limits.connections,
        settings.fills,
        proxy_config.limits.head.as_secs(),
        settings.upstream_timeout.as_secs()
    );
    if let Some(connections) = proxy_config.limits.per_address {
        let _ = writeln!(text, "at most {connections} connections of each client address");
    }
    if proxy_config.access_log != AccessLogFormat::Off {
        let _ = writeln!(text, "tells each request on stdout as {:?}", proxy_config.access_log);
    }
    text
}

/// ` (only library/*; without library/nginx)`
fn rules(spec: &UpstreamConfig) -> String {
    let mut parts = Vec::new();
    for (word, patterns) in [("only", &spec.rules.allow), ("without", &spec.rules.deny)] {
        if !patterns.is_empty() {
            let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
            parts.push(format!("{word} {}", patterns.join(", ")));
        }
    }
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join("; ")) }
}

impl ListenerConfig {
    /// Where it is, as it was written.
    pub(super) fn url(&self) -> String {
        match (&self.at, &self.tls) {
            (ListenAddress::Tcp(address), None) => format!("http://{address}"),
            (ListenAddress::Tcp(address), Some(_)) => format!("https://{address}"),
            (ListenAddress::Unix(path), _) => format!("unix:{}", path.display()),
        }
    }

    /// Who may ask there.
    pub(super) fn allowed_clients(&self) -> String {
        let secret = match (self.token.is_some(), self.users.is_some()) {
            (false, false) => None,
            (true, false) => Some("a token"),
            (false, true) => Some("a user's name and password"),
            (true, true) => Some("a token, or a user's name and password"),
        };
        let certificate = self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        match (certificate.then_some("a client certificate"), secret) {
            (None, None) => "whoever can connect".to_owned(),
            (Some(one), None) | (None, Some(one)) => format!("whoever has {one}"),
            (Some(certificate), Some(secret)) => format!("whoever has {certificate} and {secret}"),
        }
    }
}

const SCHEMA: &str = include_str!("../../../deploy/proxy.schema.json");
