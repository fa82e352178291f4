//! `transload node`: makes a node's containerd ask the proxy first.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::output::note;
use crate::error::Result;
use crate::node::{self, Acr, ConfigPathUse, InstallOutcome, Installed, Mirror, RemoveOutcome, RootDir};
use crate::regular_file::{self, Links};

/// Set up a Kubernetes node
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Command {
    #[command(subcommand)]
    what: NodeAction,
}

#[derive(Clone, Debug, Subcommand)]
enum NodeAction {
    InstallMirror(Args),
}

/// Print containerd's hosts.toml for a node.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct MirrorArgs {
    /// Registry to mirror: docker.io, ghcr.io, … (repeatable)
    #[arg(long, value_name = "REGISTRY", default_value = "docker.io")]
    registry: Vec<String>,

    /// URL of the proxy as the node reaches it: an address, because nodes do not use the cluster's DNS
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:30500")]
    proxy: String,

    /// Registry with copies, used after the proxy, such as myregistry.azurecr.io/docker.io
    ///
    /// {registry} is replaced by the name of the mirrored registry. The node must be able to pull from it: containerd uses
    /// the kubelet's credentials for the mirrored registry, or none.
    #[arg(long, value_name = "REGISTRY[/PREFIX]")]
    acr: Option<String>,

    /// Never use the mirrored registry itself
    #[arg(long)]
    no_upstream: bool,

    /// Milliseconds for a host to accept a connection; used by containerd 2.1 and newer
    #[arg(long, value_name = "MS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=30_000))]
    dial_timeout: u64,
}

/// Write containerd's hosts.toml, so that the node uses the proxy first, then ACR, then the registry itself
///
/// An existing file is kept beside it, and restored by --uninstall. A file that is already right is not changed. containerd
/// reads the file at each pull, and needs no restart.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    mirror: MirrorArgs,

    /// The node's root directory
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    /// containerd's config_path, below the root
    #[arg(long, value_name = "DIR", default_value = "/etc/containerd/certs.d")]
    certs_dir: PathBuf,

    /// Remove the file, and restore the one before it
    #[arg(long, conflicts_with_all = ["watch", "uninstall_on_exit"])]
    uninstall: bool,

    /// Keep running, and write the file again when it is changed (for a DaemonSet)
    #[arg(long)]
    watch: bool,

    /// With --watch: uninstall on SIGTERM and SIGINT
    #[arg(long, requires = "watch")]
    uninstall_on_exit: bool,

    /// With --watch: seconds between checks
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
}

impl MirrorArgs {
    /// One for each registry.
    pub(super) fn mirrors(&self) -> Result<Vec<Mirror>> {
        self.registry.iter().map(|registry| self.mirror(registry)).collect()
    }

    fn mirror(&self, registry: &str) -> Result<Mirror> {
        let mut mirror =
            Mirror::new(registry)?.proxy(&self.proxy)?.dial_timeout(Duration::from_millis(self.dial_timeout));
        if let Some(acr) = &self.acr {
            mirror = mirror.acr(Acr::parse(acr, registry)?);
        }
        if self.no_upstream { mirror.without_upstream() } else { Ok(mirror) }
    }
}

/// Runs it; in watch mode, until `stop`.
pub(super) async fn run(command: &Command, stop: impl Future<Output = &'static str>) -> Result<u8> {
    let NodeAction::InstallMirror(args) = &command.what;
    let mirrors = args.mirror.mirrors()?;
    let place = RootDir::new(&args.root)?;
    let all: Vec<(Mirror, Installed)> = mirrors
        .into_iter()
        .map(|mirror| {
            let installed = Installed::new(&place, &args.certs_dir, mirror.registry());
            (mirror, installed)
        })
        .collect();
    if args.uninstall {
        return uninstall(&all);
    }
    for (mirror, installed) in &all {
        report_install(installed, installed.write(mirror)?, false);
    }
    warn_of_config(args);
    if !args.watch {
        return Ok(0);
    }
    let signal = tokio::select! {
        signal = stop => signal,
        never = watch_forever(&all, Duration::from_secs(args.every)) => match never {},
    };
    note(&format!("{signal}: {}", if args.uninstall_on_exit { "uninstalling" } else { "the files stay" }));
    if args.uninstall_on_exit { uninstall(&all) } else { Ok(0) }
}

/// Puts back what somebody has changed. A failure is told, and tried again: without us, a pull would
/// only go another way.
async fn watch_forever(all: &[(Mirror, Installed)], every: Duration) -> std::convert::Infallible {
    let mut last = vec![String::new(); all.len()];
    loop {
        tokio::time::sleep(every).await;
        for ((mirror, installed), last) in all.iter().zip(&mut last) {
            match installed.write(mirror) {
                Ok(was) => {
                    last.clear();
                    report_install(installed, was, true);
                }
                // Once for each reason, not once for each look.
                Err(error) if *last != error.to_string() => {
                    super::output::print_error(&error);
                    *last = error.to_string();
                }
                Err(_) => {}
            }
        }
    }
}

/// All of them, whatever becomes of one.
fn uninstall(all: &[(Mirror, Installed)]) -> Result<u8> {
    let mut failed = Vec::new();
    for (_, installed) in all {
        let path = installed.path();
        let path = path.display();
        match installed.remove() {
            Ok(RemoveOutcome::Restored) => note(&format!("{path}: restored what was there before")),
            Ok(RemoveOutcome::Gone) => note(&format!("{path}: removed")),
            Ok(RemoveOutcome::Nothing) => note(&format!("{path}: nothing to remove")),
            Ok(RemoveOutcome::Foreign) => note(&format!("{path}: not ours any more, and left as it is")),
            Err(error) => failed.push(error),
        }
    }
    let last = failed.pop();
    failed.iter().for_each(super::output::print_error);
    last.map_or(Ok(0), Err)
}

fn report_install(installed: &Installed, was: InstallOutcome, again: bool) {
    let path = installed.path();
    let path = path.display();
    match was {
        InstallOutcome::Same if again => {}
        InstallOutcome::Same => note(&format!("{path}: as it should be")),
        InstallOutcome::Ours => note(&format!("{path}: updated")),
        InstallOutcome::Nothing => note(&format!("{path}: written")),
        InstallOutcome::Foreign => {
            note(&format!("{path}: written; what was there is kept beside it, and no longer in force"))
        }
    }
}

/// containerd may read no `certs.d`, or another one, unless it's told to: AKS does tell it. In a pod its file can't be
/// seen, and nothing is said.
fn warn_of_config(args: &Args) {
    let config = args.root.join("etc/containerd/config.toml");
    // In a pod the node's root is mounted: whatever stands there must not hold up the installation.
    let text = match regular_file::read_text(&config, Links::Follow, MAX_CONFIG) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => return note(&format!("warning: cannot read {}: {error}", config.display())),
    };
    let (file, certs) = (config.display(), args.certs_dir.display());
    let write = format!("config_path = \"{certs}\" in [{}], and restart containerd", node::registry_table(&text));
    let what = match node::config_path_use(&text, &args.certs_dir) {
        ConfigPathUse::Yes => return,
        ConfigPathUse::None => {
            format!("has no config_path, and most versions of containerd don't read {certs} then: write {write}")
        }
        ConfigPathUse::Another(path) => {
            format!("has config_path {path}, and {certs} isn't read: give --certs-dir {path}")
        }
        ConfigPathUse::OneOfSeveral(list) => {
            format!("has several directories ({list}), of which containerd 2.1 and 2.2 read none: write {write}")
        }
    };
    note(&format!("warning: {file} {what}"));
}

/// The largest `config.toml` of containerd that is read, in bytes.
const MAX_CONFIG: u64 = 1 << 20;
