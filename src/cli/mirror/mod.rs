//! `transload mirror`: a list of images, whole.

mod check;
pub(super) mod diff;
mod limits;
mod repositories;
mod run;

use super::global::Global;
use crate::error::Result;
use crate::mirror::list::{Defaults, DestinationBase, Template};
use crate::mirror::load::Overrides;
use crate::registry::{Options, Registries};

/// Mirror a whole list of images
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    run: run::RunArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    Check(check::CheckArgs),
    /// Print the JSON schema of transload's own lists
    Schema,
}

/// Where to, as `mirror LIST` and `mirror check` have it.
#[derive(Clone, Debug, clap::Args)]
struct DestinationArgs {
    /// Destination: a registry with an optional path. Replaces `to` of the list, not registries that its entries name
    /// (repeatable)
    #[arg(long, value_name = "REGISTRY[/PATH]")]
    to: Vec<DestinationBase>,
    /// Path at the destination for entries without a target, made of {registry}, {repository}, {namespace},
    /// {name} and, after a colon, {tag}
    #[arg(long, value_name = "TEMPLATE")]
    target: Option<Template>,
    /// Leave out `library/` of Docker's official images
    #[arg(long)]
    strip_library: bool,
    /// Copy to the registries that entries name themselves, although --to or --target is given
    #[arg(long)]
    keep_targets: bool,
}

impl DestinationArgs {
    fn overrides(&self) -> Overrides {
        Overrides {
            to: self.to.clone(),
            keep_targets: self.keep_targets,
            defaults: Defaults {
                target: self.target.clone(),
                strip_library: self.strip_library,
                environment: Some(|name| std::env::var(name).ok()),
            },
        }
    }
}

impl Args {
    /// Runs what needs no registry, and no credentials: theirs may be broken. `None` for a run.
    pub(super) fn run_offline(&self, global: &Global) -> Option<Result<u8>> {
        self.action.as_ref().map(|action| match action {
            Action::Check(args) => check::run(args, global),
            Action::Schema => check::schema(),
        })
    }

    /// How registries are asked, by this command's flags.
    pub(super) fn options(&self, options: Options) -> Result<Options> {
        self.run.options(options)
    }

    /// Whether it ends by itself when it's asked to stop.
    pub(super) fn is_scheduled(&self) -> bool {
        self.run.is_scheduled()
    }
}

/// Runs a list; returns the exit code.
pub(super) async fn run(args: &Args, global: &Global, registries: &Registries) -> Result<u8> {
    run::run(&args.run, global, registries).await
}

const AFTER_HELP: &str = "\
LIST has one reference per line, or is transload's YAML, or a file of skopeo sync, regsync, image-syncer or dregsy.

Examples:
  transload mirror images.yaml --to myregistry.azurecr.io/hub
  transload mirror check images.yaml --to myregistry.azurecr.io";
