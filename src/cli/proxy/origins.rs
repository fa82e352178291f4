//! The registry client as the source of the proxy's upstreams.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::config::ProxyConfig;
use crate::cli::global::Global;
use crate::credentials::Credentials;
use crate::descriptor::Digest;
use crate::error::Result;
use crate::proxy::Origins;
use crate::proxy::writeback::WriteBackOrigins;
use crate::reference::Repository;
use crate::registry::{MinRate, Options, Registries, Repo};

/// The registry client as the proxy's upstreams. Clones share it.
#[derive(Clone)]
pub(super) struct RegistryOrigins(Arc<RwLock<RegistryClients>>);

/// The client for all upstreams, and those of upstreams with credentials of their own.
pub(super) struct RegistryClients {
    common: Registries,
    own: BTreeMap<String, Registries>,
    /// For writing back: connections and limits of their own, since pulls come first.
    writing: BTreeMap<String, Registries>,
}

impl RegistryOrigins {
    /// The upstreams of a configuration.
    pub(super) fn new(global: &Global, proxy_config: &ProxyConfig) -> Result<Self> {
        Ok(Self(Arc::new(RwLock::new(Self::connect(global, proxy_config)?))))
    }

    /// The clients for a configuration. Credentials are read again.
    pub(super) fn connect(global: &Global, proxy_config: &ProxyConfig) -> Result<RegistryClients> {
        let mut own = BTreeMap::new();
        for (name, file) in &proxy_config.auth {
            own.insert(name.clone(), Registries::new(apply_config(options(global, Some(file))?, proxy_config)));
        }
        let mut writing = BTreeMap::new();
        for spec in proxy_config.settings.upstreams.iter().filter(|spec| spec.write_back) {
            let file = proxy_config.write_auth.get(&spec.name).or_else(|| proxy_config.auth.get(&spec.name));
            writing.insert(spec.name.clone(), Registries::new(options(global, file)?));
        }
        let common = Registries::new(apply_config(global.options()?, proxy_config));
        Ok(RegistryClients { common, own, writing })
    }

    /// All clients that there are now.
    pub(super) fn clients(&self) -> Vec<Registries> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        std::iter::once(&known.common).chain(known.own.values()).cloned().collect()
    }

    /// From now on these.
    pub(super) fn set(&self, known: RegistryClients) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = known;
    }
}

/// How registries are asked, with the credentials of `file` first.
pub(super) fn options(global: &Global, file: Option<&PathBuf>) -> Result<Options> {
    let mut settings = global.settings()?;
    if let Some(file) = file {
        settings.auth_files.insert(0, file.clone());
    }
    Ok(Options { credentials: Credentials::load(&settings)?, ..global.options()? })
}

/// What may be tried again, and waited for, is decided by the proxy: within its clients' patience.
pub(super) fn apply_config(given: Options, proxy_config: &ProxyConfig) -> Options {
    let min_rate = MinRate {
        bytes: proxy_config.min_rate.unwrap_or(given.min_rate.bytes),
        window: proxy_config.min_rate_window.unwrap_or(given.min_rate.window),
    };
    Options {
        min_rate,
        share_list_room: true,
        // Less than the time that a client waits, so that it is over for a client that does.
        longest_pause: Duration::from_secs(5).min(proxy_config.settings.upstream_timeout / 5),
        retries: 0,
        patience: Duration::ZERO,
        concurrency: 64,
        idle: given.idle.min(Duration::from_secs(30)),
        ..given
    }
}

impl Origins for RegistryOrigins {
    type Source = Repo;

    fn source(&self, upstream: &str, repository: &Repository) -> Result<Repo> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.own.get(upstream).unwrap_or(&known.common).repository(repository)
    }

    async fn size_of(&self, source: &Repo, digest: &Digest) -> Result<Option<u64>> {
        source.size_of(digest).await
    }
}

impl WriteBackOrigins for RegistryOrigins {
    type FirstTier = Repo;

    fn first_tier(&self, upstream: &str, repository: &Repository) -> Result<Repo> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.writing.get(upstream).unwrap_or(&known.common).repository(repository)
    }
}
