//! The configuration, read again while the proxy serves: on SIGHUP, and when the file or one that it names
//! changes. What is being fetched or sent goes on as it began.
//!
//! Files are known by their contents, which are taken when they are the same twice, as a mirror's list is: one
//! that is written in pieces is not half read, and one that is only touched is not read at all.

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

/// What is looked at.
pub(super) struct ConfigWatcher {
    path: PathBuf,
    hangup: Signal,
    proxy_config: ProxyConfig,
    changes: ChangeDetector<FileDigests>,
    handles: Vec<ListenerHandle>,
    log: AccessLog,
}

/// SIGHUP where there is nothing to read again. It must not end the proxy, as by default it ends what doesn't
/// listen: whoever sends it, by habit or to all of a host's servers, wants a reload.
pub(super) struct IgnoredHangups(Signal);

impl IgnoredHangups {
    pub(super) fn new() -> Result<Self> {
        Ok(Self(hangup_signal()?))
    }

    /// Never ready.
    pub(super) async fn run(mut self) {
        while self.0.recv().await.is_some() {
            output::note("SIGHUP: there is no file to read again without --config; flags change by a restart");
        }
        std::future::pending().await
    }
}

fn hangup_signal() -> Result<Signal> {
    signal(SignalKind::hangup()).map_err(|error| Error::io("listen to signals", &error))
}

/// By what changed files are known: the digest of each, where it can be read.
type FileDigests = BTreeMap<PathBuf, Option<Digest>>;

impl ConfigWatcher {
    /// Begins to look, before anything is told to be ready.
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
            // Looked at before it's read: what is written in between is found the next time.
            if !self.changes.observe(now.clone(), asked) {
                continue;
            }
            match self.reload(proxy, global, &now) {
                Ok(()) => output::note(&format!("read {} again", self.path.display())),
                Err(error) => {
                    output::print_error(&error);
                    output::note("the configuration stays as it was");
                }
            }
        }
    }

    fn reload(&mut self, proxy: &Proxy<RegistryOrigins>, global: &Global, looked: &FileDigests) -> Result<()> {
        let proxy_config = config_file::load(&self.path)?;
        // Those that are named for the first time are looked at now, before they are read.
        let mut seen = file_digests(&self.path, &proxy_config);
        seen.extend(
            looked
                .iter()
                .filter_map(|(path, mark)| Some((seen.get_key_value(path)?.0.clone(), *mark)))
                .collect::<FileDigests>(),
        );
        // Other files' names are taken over, other addresses and another kind of access are not.
        let same =
            |(old, new): (&ListenerConfig, &ListenerConfig)| old.at == new.at && old.tls.is_some() == new.tls.is_some();
        let listens = proxy_config.listen.len() == self.proxy_config.listen.len()
            && proxy_config.listen.iter().zip(&self.proxy_config.listen).all(same);
        let listener_configs = if listens { &proxy_config.listen } else { &self.proxy_config.listen };
        let secrets = listener_configs.iter().map(ListenerSecrets::read).collect::<Result<Vec<_>>>()?;
        let origins = RegistryOrigins::connect(global, &proxy_config)?;
        // All of it can be used: from here on nothing fails but a world that makes no sense.
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
                output::note(&format!("warning: what changed in `{what}` needs a restart"));
            }
        }
        // What needs a restart stays what it is, so that it's said again.
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

/// What the files are like now: the configuration, and those that it names.
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

/// The digest of all that is read of a file. `None` if it cannot be read, or is larger than any such file may be.
fn file_digest(path: &Path) -> Option<Digest> {
    Some(Digest::of(&regular_file::read(path, Links::Follow, listen::MAX_FILE).ok()?))
}

/// Between two looks at the files.
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
