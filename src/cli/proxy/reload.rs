//! Reloads the configuration while the proxy runs: on SIGHUP, and when the file or a file that it names changes. Running
//! fetches and responses continue unchanged.
//!
//! A change is recognised by the content of the files, and applied after two equal looks, as for a mirror's list. So a file that
//! is being written is not read too early, and a file that is only touched is not reloaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::config::{ListenerConfig, ProxyConfig};
use super::config_file;
use super::listen::{self, ListenerHandle, ListenerSecrets};
use super::origins::RegistryOrigins;
use crate::change_detector::ChangeDetector;
use crate::cli::global::Global;
use crate::cli::output;
use crate::descriptor::Digest;
use crate::error::{Error, Result};
use crate::proxy::{Proxy, Settings};
use crate::regular_file::{self, Links};
use crate::server::{AccessLog, Limits};

/// Watches the configuration.
pub(super) struct ConfigWatcher {
    path: PathBuf,
    hangup: Signal,
    proxy_config: ProxyConfig,
    changes: ChangeDetector<FileDigests>,
    handles: Vec<ListenerHandle>,
    log: AccessLog,
}

/// Handles SIGHUP without a configuration file. By default the signal would end the process, but senders of SIGHUP usually want
/// a reload.
pub(super) struct IgnoredHangups(Signal);

impl IgnoredHangups {
    pub(super) fn new() -> Result<Self> {
        Ok(Self(hangup_signal()?))
    }

    /// Never ready.
    pub(super) async fn run(mut self) {
        while self.0.recv().await.is_some() {
            output::note("SIGHUP: without --config there is no file to reload; changed flags need a restart");
        }
        std::future::pending().await
    }
}

fn hangup_signal() -> Result<Signal> {
    signal(SignalKind::hangup()).map_err(|error| Error::io("listen to signals", &error))
}

/// The digest of each file; `None` if it cannot be read.
type FileDigests = BTreeMap<PathBuf, Option<Digest>>;

impl ConfigWatcher {
    /// Starts watching. Called before the proxy reports that it is ready.
    pub(super) fn new(
        path: PathBuf,
        proxy_config: ProxyConfig,
        handles: Vec<ListenerHandle>,
        log: AccessLog,
    ) -> Result<Self> {
        let hangup = hangup_signal()?;
        let changes = ChangeDetector::starting_at(file_digests(&path, &proxy_config));
        Ok(Self { path, hangup, proxy_config, changes, handles, log })
    }

    /// Never ready.
    pub(super) async fn run(mut self, proxy: &Proxy<RegistryOrigins>, global: &Global) {
        loop {
            let asked = tokio::select! {
                Some(()) = self.hangup.recv() => true,
                () = tokio::time::sleep(POLL_INTERVAL) => false,
            };
            let now = file_digests(&self.path, &self.proxy_config);
            // Hashed before it is read: a change in between is found the next time.
            if !self.changes.observe(now.clone(), asked) {
                continue;
            }
            match self.reload(proxy, global, &now) {
                Ok(()) => output::note(&format!("reloaded {}", self.path.display())),
                Err(error) => {
                    output::print_error(&error);
                    output::note("the old configuration stays in use");
                }
            }
        }
    }

    fn reload(&mut self, proxy: &Proxy<RegistryOrigins>, global: &Global, looked: &FileDigests) -> Result<()> {
        let proxy_config = config_file::load(&self.path)?;
        // Files that are named for the first time are hashed now, before they are read.
        let mut seen = file_digests(&self.path, &proxy_config);
        seen.extend(
            looked
                .iter()
                .filter_map(|(path, mark)| Some((seen.get_key_value(path)?.0.clone(), *mark)))
                .collect::<FileDigests>(),
        );
        // Changed file names apply at once. Changed addresses, and a switch between HTTP and HTTPS, need a restart.
        let same =
            |(old, new): (&ListenerConfig, &ListenerConfig)| old.at == new.at && old.tls.is_some() == new.tls.is_some();
        let listens = proxy_config.listen.len() == self.proxy_config.listen.len()
            && proxy_config.listen.iter().zip(&self.proxy_config.listen).all(same);
        let listener_configs = if listens { &proxy_config.listen } else { &self.proxy_config.listen };
        let secrets = listener_configs.iter().map(ListenerSecrets::read).collect::<Result<Vec<_>>>()?;
        let origins = RegistryOrigins::connect(global, &proxy_config)?;
        // Everything is loaded. From here on only invalid upstreams can fail.
        proxy.set_upstreams(proxy_config.settings.upstreams.clone())?;
        proxy.origins().set(origins);
        for (handle, secrets) in self.handles.iter().zip(secrets) {
            handle.set(secrets);
        }
        let (old, new) = (&self.proxy_config, &proxy_config);
        let limits = |proxy_config: &ProxyConfig| {
            let settings = &proxy_config.settings;
            let Limits { connections, per_address, head, .. } = proxy_config.limits;
            let stop = (proxy_config.shutdown_delay, proxy_config.limits.drain);
            (connections, per_address, head, settings.fills, settings.parallel, settings.upstream_timeout, stop)
        };
        let cache = |proxy_config: &ProxyConfig| {
            let Settings { cache, scrub, .. } = &proxy_config.settings;
            (cache.dir.clone(), cache.size, cache.keep_free, *scrub)
        };
        for (what, differs) in [
            ("listen", !listens),
            ("listen-admin", old.listen_admin != new.listen_admin),
            ("cache", cache(old) != cache(new)),
            ("limits", limits(old) != limits(new)),
        ] {
            if differs {
                output::note(&format!("warning: changes of `{what}` need a restart"));
            }
        }
        // Settings that need a restart keep their old values, so that the warning is repeated at the next reload.
        let (listen, mut settings, limits) = (
            if listens { proxy_config.listen } else { self.proxy_config.listen.clone() },
            proxy_config.settings,
            self.proxy_config.limits.clone(),
        );
        (settings.cache, settings.scrub) = (self.proxy_config.settings.cache.clone(), self.proxy_config.settings.scrub);
        (settings.fills, settings.parallel) = (self.proxy_config.settings.fills, self.proxy_config.settings.parallel);
        settings.upstream_timeout = self.proxy_config.settings.upstream_timeout;
        self.log.set(proxy_config.access_log.form());
        let (listen_admin, shutdown_delay) = (self.proxy_config.listen_admin.take(), self.proxy_config.shutdown_delay);
        self.proxy_config = ProxyConfig { listen, settings, limits, listen_admin, shutdown_delay, ..proxy_config };
        self.changes = ChangeDetector::starting_at(seen);
        Ok(())
    }
}

/// The digests of the configuration file and of the files that it names.
fn file_digests(path: &Path, proxy_config: &ProxyConfig) -> FileDigests {
    let listener_configs = proxy_config.listen.iter().flat_map(|listener_config| {
        let tls =
            listener_config.tls.iter().flat_map(|tls| [Some(&tls.certificate), Some(&tls.key), tls.client_ca.as_ref()]);
        tls.flatten().chain(&listener_config.token).chain(&listener_config.users)
    });
    let files = std::iter::once(path).chain(
        listener_configs
            .chain(proxy_config.auth.values())
            .chain(proxy_config.write_auth.values())
            .map(PathBuf::as_path),
    );
    files.map(|path| (path.to_owned(), file_digest(path))).collect()
}

/// The digest of a file. `None` if it cannot be read, or is larger than [`listen::MAX_FILE`].
fn file_digest(path: &Path) -> Option<Digest> {
    Some(Digest::of(&regular_file::read(path, Links::Follow, listen::MAX_FILE).ok()?))
}

/// The time between two looks at the files.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    /// A users file may be large, and a new user stands at its end.
    #[test]
    fn a_change_at_the_end_of_a_large_file_is_seen() {
        let path = std::env::temp_dir().join(format!("transload-reload-{}", std::process::id()));
        let size = usize::try_from(listen::MAX_FILE).expect("small");
        let mut digests = Vec::new();
        for last in [b'a', b'b'] {
            let mut bytes = vec![b'#'; size - 1];
            bytes.push(last);
            std::fs::write(&path, bytes).expect("written");
            digests.push(file_digest(&path).expect("it can be read"));
        }
        std::fs::remove_file(&path).expect("removed");
        assert_ne!(digests[0], digests[1]);
    }
}
