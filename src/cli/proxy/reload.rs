//! The configuration, read again while the proxy serves: on SIGHUP, and when the file or one that it names
//! changes. What is being fetched or sent goes on as it began.
//!
//! Files are known by their contents, which are taken when they are the same twice, as a mirror's list is: one
//! that is written in pieces is not half read, and one that is only touched is not read at all.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::config;
use super::listen::{Handle, Secrets};
use super::plan::{Door, Plan};
use super::serve::Upstreams;
use crate::changes::Changes;
use crate::cli::global::Global;
use crate::cli::output;
use crate::descriptor::Digest;
use crate::error::{Error, Result};
use crate::proxy::{Proxy, Settings};
use crate::regular_file::{self, Links};
use crate::server::{AccessLog, Limits};

/// What is looked at.
pub(super) struct Watch {
    path: PathBuf,
    hangup: Signal,
    plan: Plan,
    changes: Changes<Marks>,
    handles: Vec<Handle>,
    log: AccessLog,
}

/// SIGHUP where there is nothing to read again. It must not end the proxy, as by default it ends what doesn't
/// listen: whoever sends it, by habit or to all of a host's servers, wants a reload.
pub(super) struct Hangups(Signal);

impl Hangups {
    pub(super) fn new() -> Result<Self> {
        Ok(Self(hangups()?))
    }

    /// Never ready.
    pub(super) async fn run(mut self) {
        while self.0.recv().await.is_some() {
            output::note("SIGHUP: there is no file to read again without --config; flags change by a restart");
        }
        std::future::pending().await
    }
}

fn hangups() -> Result<Signal> {
    signal(SignalKind::hangup()).map_err(|error| Error::io("listen to signals", &error))
}

/// By what changed files are known: the digest of each, where it can be read.
type Marks = BTreeMap<PathBuf, Option<Digest>>;

impl Watch {
    /// Begins to look, before anything is told to be ready.
    pub(super) fn new(path: PathBuf, plan: Plan, handles: Vec<Handle>, log: AccessLog) -> Result<Self> {
        let hangup = hangups()?;
        let changes = Changes::since(marks(&path, &plan));
        Ok(Self { path, hangup, plan, changes, handles, log })
    }

    /// Never ready.
    pub(super) async fn run(mut self, proxy: &Proxy<Upstreams>, global: &Global) {
        loop {
            let asked = tokio::select! {
                Some(()) = self.hangup.recv() => true,
                () = tokio::time::sleep(PAUSE) => false,
            };
            let now = marks(&self.path, &self.plan);
            // Looked at before it's read: what is written in between is found the next time.
            if !self.changes.look(now.clone(), asked) {
                continue;
            }
            match self.reload(proxy, global, &now) {
                Ok(()) => output::note(&format!("read {} again", self.path.display())),
                Err(error) => {
                    output::error(&error);
                    output::note("the configuration stays as it was");
                }
            }
        }
    }

    fn reload(&mut self, proxy: &Proxy<Upstreams>, global: &Global, looked: &Marks) -> Result<()> {
        let plan = config::load(&self.path)?;
        // Those that are named for the first time are looked at now, before they are read.
        let mut seen = marks(&self.path, &plan);
        seen.extend(
            looked
                .iter()
                .filter_map(|(path, mark)| Some((seen.get_key_value(path)?.0.clone(), *mark)))
                .collect::<Marks>(),
        );
        // Other files' names are taken over, other addresses and another kind of access are not.
        let same = |(old, new): (&Door, &Door)| old.at == new.at && old.tls.is_some() == new.tls.is_some();
        let listens =
            plan.listen.len() == self.plan.listen.len() && plan.listen.iter().zip(&self.plan.listen).all(same);
        let doors = if listens { &plan.listen } else { &self.plan.listen };
        let secrets = doors.iter().map(Secrets::read).collect::<Result<Vec<_>>>()?;
        let origins = Upstreams::registries(global, &plan)?;
        // All of it can be used: from here on nothing fails but a world that makes no sense.
        proxy.set_upstreams(plan.settings.upstreams.clone())?;
        proxy.origins().set(origins);
        for (handle, secrets) in self.handles.iter().zip(secrets) {
            handle.set(secrets);
        }
        let (old, new) = (&self.plan, &plan);
        let limits = |plan: &Plan| {
            let settings = &plan.settings;
            let Limits { connections, per_address, head, .. } = plan.limits;
            let stop = (plan.shutdown_delay, plan.limits.drain);
            (connections, per_address, head, settings.fills, settings.parallel, settings.upstream_timeout, stop)
        };
        let cache = |plan: &Plan| {
            let Settings { cache, scrub, .. } = &plan.settings;
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
        let (listen, mut settings, limits) =
            (if listens { plan.listen } else { self.plan.listen.clone() }, plan.settings, self.plan.limits.clone());
        (settings.cache, settings.scrub) = (self.plan.settings.cache.clone(), self.plan.settings.scrub);
        (settings.fills, settings.parallel) = (self.plan.settings.fills, self.plan.settings.parallel);
        settings.upstream_timeout = self.plan.settings.upstream_timeout;
        self.log.set(plan.access_log.form());
        let (listen_admin, shutdown_delay) = (self.plan.listen_admin.take(), self.plan.shutdown_delay);
        self.plan = Plan { listen, settings, limits, listen_admin, shutdown_delay, ..plan };
        self.changes = Changes::since(seen);
        Ok(())
    }
}

/// What the files are like now: the configuration, and those that it names.
fn marks(path: &Path, plan: &Plan) -> Marks {
    let doors = plan.listen.iter().flat_map(|door| {
        let tls = door.tls.iter().flat_map(|tls| [Some(&tls.certificate), Some(&tls.key), tls.client_ca.as_ref()]);
        tls.flatten().chain(&door.token).chain(&door.users)
    });
    let files = std::iter::once(path)
        .chain(doors.chain(plan.auth.values()).chain(plan.write_auth.values()).map(PathBuf::as_path));
    let mark = |path: &Path| {
        let mut bytes = Vec::new();
        let (file, _) = regular_file::open(path, Links::Follow).ok()?;
        file.take(MOST).read_to_end(&mut bytes).ok()?;
        Some(Digest::of(&bytes))
    };
    files.map(|path| (path.to_owned(), mark(path))).collect()
}

/// Between two looks at the files.
const PAUSE: Duration = Duration::from_secs(2);
/// What is looked at of a file: all of any that makes sense.
const MOST: u64 = 1 << 20;
