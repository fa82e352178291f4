//! `--config`: what the file says. Reads the file and no other, asks nobody.
//!
//! `deploy/proxy.schema.json` has all of it; keys that aren't there are errors.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use super::config::{AccessLogFormat, ListenAddress, ListenerConfig, ProxyConfig, TlsFiles};
use super::scalars::{Seconds, Size};
use crate::cli::faults::cache_files;
use crate::cli::global::parse_bytes;
use crate::error::{Error, Kind, Result, Side};
use crate::proxy::rules::Rules;
use crate::proxy::upstreams::{UpstreamConfig, Upstreams};
use crate::proxy::{Settings, cache, scrub};
use crate::regular_file::{self, Links};
use crate::server::Limits;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default, rename = "$schema")]
    _schema: Option<String>,
    listen: Vec<Spanned<Listen>>,
    listen_admin: Option<Spanned<String>>,
    cache: Cache,
    upstreams: Spanned<Vec<Spanned<Upstream>>>,
    #[serde(default)]
    limits: Bounds,
    #[serde(default)]
    logs: Logs,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Listen {
    http: Option<String>,
    https: Option<String>,
    unix: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
    token_file: Option<PathBuf>,
    users_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Cache {
    dir: PathBuf,
    size: Option<Spanned<Size>>,
    keep_free: Option<Spanned<Size>>,
    scrub: Option<Spanned<Size>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Upstream {
    name: Spanned<String>,
    tiers: Option<Vec<Spanned<String>>>,
    auth_file: Option<PathBuf>,
    #[serde(default)]
    write_back: bool,
    write_back_auth_file: Option<PathBuf>,
    tag_ttl: Option<Seconds>,
    negative_ttl: Option<Seconds>,
    #[serde(default)]
    allow: Vec<Spanned<String>>,
    #[serde(default)]
    deny: Vec<Spanned<String>>,
}

/// No level: that of what the program says for itself is `--verbose`'s.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Logs {
    #[serde(default)]
    access: AccessLogFormat,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bounds {
    connections: Option<Spanned<usize>>,
    /// Of one client address; whole nodes and NAT gateways share one, so there is no limit unless it's given.
    connections_per_client: Option<Spanned<usize>>,
    fills: Option<Spanned<usize>>,
    head_timeout: Option<Spanned<Seconds>>,
    upstream_timeout: Option<Spanned<Seconds>>,
    parallel_fetch: Option<Spanned<usize>>,
    min_rate: Option<Spanned<Size>>,
    min_rate_window: Option<Spanned<Seconds>>,
    shutdown_delay: Option<Spanned<Seconds>>,
    drain_timeout: Option<Spanned<Seconds>>,
}

/// Reads a file.
///
/// # Errors
/// [`Kind::Usage`], with the line; or why it can't be read.
pub(super) fn load(path: &Path) -> Result<ProxyConfig> {
    let doing = || format!("read {}", path.display());
    let text = regular_file::read_text(path, Links::Follow, MAX_FILE_BYTES).map_err(|error| {
        if error.kind() == std::io::ErrorKind::FileTooLarge {
            let what = format!("{} is larger than any configuration", path.display());
            return Error::new(Kind::Usage, what).on(Side::Local).hint("is it the right file?");
        }
        Error::unreadable(doing(), &error)
    })?;
    parse(&text, path).map_err(|error| error.hint("`transload proxy schema` says what a file may have"))
}

/// What a text says; paths in it are meant from the directory of `path`.
fn parse(text: &str, path: &Path) -> Result<ProxyConfig> {
    let name = path.display().to_string();
    let options = serde_saphyr::options! { with_snippet: false };
    let file: File = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let message = error.without_snippet().to_string();
        let message = message.lines().next().unwrap_or_default().split(" at line ").next().unwrap_or_default();
        invalid_config(&name, line, message.trim_end_matches(','))
    })?;
    Parser { name, dir: path.parent().unwrap_or(Path::new("")) }.plan(file)
}

struct Parser<'a> {
    name: String,
    dir: &'a Path,
}

impl Parser<'_> {
    fn plan(&self, file: File) -> Result<ProxyConfig> {
        if file.listen.is_empty() {
            return Err(invalid_config(&self.name, 0, "`listen` is empty").hint("write such as - http: 127.0.0.1:5000"));
        }
        let listen = file.listen.into_iter().map(|listen| self.door(listen)).collect::<Result<Vec<_>>>()?;
        let size = |size: Option<Spanned<Size>>, default| {
            size.map_or(Ok(default), |size| self.at(&size.referenced, parse_bytes(&size.value.0)))
        };
        let cache = cache::Settings {
            dir: self.dir.join(file.cache.dir),
            size: size(file.cache.size, 50 << 30)?,
            keep_free: size(file.cache.keep_free, 1 << 30)?,
            files: cache_files(),
        };
        let scrub = match file.cache.scrub {
            None => Some(scrub::DEFAULT_RATE),
            Some(rate) => self.at(&rate.referenced, scrub::parse_rate(&rate.value.0, parse_bytes))?,
        };
        let (mut specs, mut auth, mut write_auth) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let place = file.upstreams.referenced;
        for upstream in file.upstreams.value {
            let place = upstream.referenced;
            let (file, write) = (upstream.value.auth_file.clone(), upstream.value.write_back_auth_file.clone());
            let spec = self.upstream(upstream.value)?;
            if let Some(file) = file {
                auth.insert(spec.name.clone(), self.dir.join(file));
            }
            if let Some(file) = write {
                write_auth.insert(spec.name.clone(), self.dir.join(file));
            }
            specs.push(spec);
            // Two of one name are found at the second.
            self.at(&place, Upstreams::new(specs.clone()))?;
        }
        self.at(&place, Upstreams::new(specs.clone()))?;
        let mut settings = Settings { scrub, ..Settings::new(specs, cache) };
        let min_rate = file.limits.min_rate.as_ref();
        let min_rate = min_rate.map(|rate| self.at(&rate.referenced, parse_bytes(&rate.value.0))).transpose()?;
        let seconds = |name, value: Option<&Spanned<Seconds>>, range| {
            value.map(|value| self.seconds(name, value, range)).transpose()
        };
        let min_rate_window = seconds("min-rate-window", file.limits.min_rate_window.as_ref(), 1..=3600)?;
        let shutdown_delay = seconds("shutdown-delay", file.limits.shutdown_delay.as_ref(), 0..=3600)?;
        let shutdown_delay = shutdown_delay.unwrap_or_default();
        let limits = self.limits(file.limits, &mut settings)?;
        let admin = file.listen_admin.map(|address| self.at(&address.referenced, address.value.parse())).transpose()?;
        Ok(ProxyConfig {
            listen,
            settings,
            auth,
            write_auth,
            limits,
            min_rate,
            min_rate_window,
            shutdown_delay,
            access_log: file.logs.access,
            listen_admin: admin,
        })
    }

    /// The duration of the key `name`, which must be within these seconds.
    fn seconds(&self, name: &str, value: &Spanned<Seconds>, range: RangeInclusive<u64>) -> Result<Duration> {
        if range.contains(&value.value.0.as_secs()) {
            return Ok(value.value.0);
        }
        let (from, to) = range.into_inner();
        let what = format!("`{name}` is not within {from} and {to} seconds");
        Err(invalid_config(&self.name, value.referenced.line(), &what))
    }

    fn limits(&self, bounds: Bounds, settings: &mut Settings) -> Result<Limits> {
        let mut limits = Limits { connections: 4096, buffer: 64 << 10, ..Limits::default() };
        if let Some(connections) = bounds.connections {
            limits.connections = self.within(&connections, 1..=1_000_000)?;
        }
        if let Some(connections) = bounds.connections_per_client {
            limits.per_address = Some(self.within(&connections, 1..=1_000_000)?);
        }
        if let Some(timeout) = bounds.head_timeout {
            limits.head = self.seconds("head-timeout", &timeout, 1..=3600)?;
        }
        if let Some(timeout) = bounds.upstream_timeout {
            settings.upstream_timeout = self.seconds("upstream-timeout", &timeout, 1..=600)?;
        }
        if let Some(timeout) = bounds.drain_timeout {
            limits.drain = self.seconds("drain-timeout", &timeout, 0..=86_400)?;
        }
        if let Some(fills) = bounds.fills {
            settings.fills = self.within(&fills, 1..=10_000)?;
        }
        if let Some(parallel) = bounds.parallel_fetch {
            settings.parallel = self.within(&parallel, 1..=32)?;
        }
        Ok(limits)
    }

    fn door(&self, listen: Spanned<Listen>) -> Result<ListenerConfig> {
        let (place, listen) = (listen.referenced, listen.value);
        let fail = |what: &str| Err(invalid_config(&self.name, place.line(), what));
        let path = |path: Option<PathBuf>| path.map(|path| self.dir.join(path));
        let (token, users) = (path(listen.token_file), path(listen.users_file));
        let (certificate, key, client_ca) = (path(listen.certificate), path(listen.key), path(listen.client_ca));
        let plain = certificate.is_none() && key.is_none() && client_ca.is_none();
        match (listen.http, listen.https, listen.unix) {
            (Some(address), None, None) if plain => {
                Ok(ListenerConfig { at: ListenAddress::Tcp(address), tls: None, token, users })
            }
            (None, None, Some(socket)) if plain => {
                Ok(ListenerConfig { at: ListenAddress::Unix(self.dir.join(socket)), tls: None, token, users })
            }
            (None, Some(address), None) => match (certificate, key) {
                (Some(certificate), Some(key)) => Ok(ListenerConfig {
                    at: ListenAddress::Tcp(address),
                    tls: Some(TlsFiles { certificate, key, client_ca }),
                    token,
                    users,
                }),
                _ => fail("https has a `certificate` and a `key`"),
            },
            (Some(_), None, None) | (None, None, Some(_)) => fail("certificates are for https"),
            _ => fail("each of `listen` has one of http, https and unix"),
        }
    }

    fn upstream(&self, upstream: Upstream) -> Result<UpstreamConfig> {
        let name = &upstream.name;
        let mut spec: UpstreamConfig = self.at(&name.referenced, name.value.parse())?;
        if name.value.contains(['=', '/']) {
            return Err(invalid_config(
                &self.name,
                name.referenced.line(),
                "`name` is a registry's name, such as docker.io",
            ));
        }
        if let Some(tiers) = upstream.tiers {
            spec.tiers = self.each(&tiers)?;
        }
        if upstream.write_back && spec.tiers.len() < 2 {
            let what = "`write-back` needs a second tier: it copies into the first tier what only a later one has";
            return Err(invalid_config(&self.name, name.referenced.line(), what));
        }
        if upstream.write_back_auth_file.is_some() && !upstream.write_back {
            return Err(invalid_config(
                &self.name,
                name.referenced.line(),
                "`write-back-auth-file` is for `write-back`",
            ));
        }
        spec.write_back = upstream.write_back;
        spec.tag_ttl = upstream.tag_ttl.map(|ttl| ttl.0);
        spec.negative_ttl = upstream.negative_ttl.map(|ttl| ttl.0);
        spec.rules = Rules { allow: self.each(&upstream.allow)?, deny: self.each(&upstream.deny)? };
        Ok(spec)
    }

    fn each<T: FromStr<Err = Error>>(&self, texts: &[Spanned<String>]) -> Result<Vec<T>> {
        texts.iter().map(|text| self.at(&text.referenced, text.value.parse())).collect()
    }

    fn within<T: PartialOrd + Copy + fmt::Display>(
        &self,
        value: &Spanned<T>,
        range: std::ops::RangeInclusive<T>,
    ) -> Result<T> {
        if range.contains(&value.value) {
            return Ok(value.value);
        }
        let what = format!("{} is not within {} and {}", value.value, range.start(), range.end());
        Err(invalid_config(&self.name, value.referenced.line(), what))
    }

    /// Says at which line an error is, and keeps its hint.
    fn at<T>(&self, place: &Location, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let made = invalid_config(&self.name, place.line(), error.to_string());
            match error.hint_text() {
                Some(hint) => made.hint(hint),
                None => made,
            }
        })
    }
}

fn invalid_config(name: &str, line: u64, what: impl fmt::Display) -> Error {
    let what = if line == 0 { format!("{name}: {what}") } else { format!("{name}:{line}: {what}") };
    Error::new(Kind::Usage, what).on(Side::Local)
}

/// More than any proxy needs.
const MAX_FILE_BYTES: u64 = 1 << 20;
