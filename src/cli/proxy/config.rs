//! The configuration of a proxy, from a file or from flags.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::loopback::Loopback;
use crate::proxy::Settings;
use crate::server::{Form, Limits};

/// The configuration.
#[derive(Clone, Debug)]
pub(super) struct ProxyConfig {
    pub(super) listen: Vec<ListenerConfig>,
    pub(super) settings: Settings,
    /// The credentials files of upstreams, by the upstream's name.
    pub(super) auth: BTreeMap<String, PathBuf>,
    /// The credentials files for write-back, likewise.
    pub(super) write_auth: BTreeMap<String, PathBuf>,
    pub(super) limits: Limits,
    /// The minimum rate of a blob in bytes per second, and the window of the average; `None` for the values of the global
    /// flags.
    pub(super) min_rate: Option<u64>,
    pub(super) min_rate_window: Option<Duration>,
    /// How long connections are accepted after the stop signal.
    pub(super) shutdown_delay: Duration,
    pub(super) access_log: AccessLogFormat,
    /// The separate address of the admin API.
    pub(super) listen_admin: Option<Loopback>,
}

/// The format of the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum AccessLogFormat {
    /// None
    #[default]
    Off,
    /// Fields in a fixed order
    Text,
    /// A JSON object a line
    Json,
}

impl AccessLogFormat {
    pub(super) fn form(self) -> Option<Form> {
        match self {
            Self::Off => None,
            Self::Text => Some(Form::Text),
            Self::Json => Some(Form::Json),
        }
    }
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListenerConfig {
    pub(super) at: ListenAddress,
    /// Certificate and key, for TLS.
    pub(super) tls: Option<TlsFiles>,
    /// A file of tokens; a client needs one of them.
    pub(super) token: Option<PathBuf>,
    /// A file of users; a client may use their passwords instead of a token.
    pub(super) users: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ListenAddress {
    Tcp(String),
    Unix(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TlsFiles {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    /// Clients need a certificate of one of these authorities.
    pub(super) client_ca: Option<PathBuf>,
}
