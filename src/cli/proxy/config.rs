//! What a proxy is started with, whether a file or flags said it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::loopback::Loopback;
use crate::proxy::Settings;
use crate::server::{Form, Limits};

/// All of it.
#[derive(Clone, Debug)]
pub(super) struct ProxyConfig {
    pub(super) listen: Vec<ListenerConfig>,
    pub(super) settings: Settings,
    /// Credentials that only one upstream has: by its name.
    pub(super) auth: BTreeMap<String, PathBuf>,
    /// And those for writing back to its first tier.
    pub(super) write_auth: BTreeMap<String, PathBuf>,
    pub(super) limits: Limits,
    /// Bytes a second that a blob must come with, and the seconds that this is the average of; if not as the flags of
    /// all commands say.
    pub(super) min_rate: Option<u64>,
    pub(super) min_rate_window: Option<Duration>,
    /// For how long connections are accepted after the stop signal.
    pub(super) shutdown_delay: Duration,
    pub(super) access_log: AccessLogFormat,
    /// Where orders are taken, if they have an address of their own.
    pub(super) listen_admin: Option<Loopback>,
}

/// Whether each request is told, and how.
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

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListenerConfig {
    pub(super) at: ListenAddress,
    /// Certificates and key: TLS.
    pub(super) tls: Option<TlsFiles>,
    /// Who asks must know one of the tokens in it.
    pub(super) token: Option<PathBuf>,
    /// Or be one of the users in it.
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
    /// Clients must have a certificate of one of these authorities.
    pub(super) client_ca: Option<PathBuf>,
}
