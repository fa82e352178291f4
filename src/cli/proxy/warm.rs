//! `transload proxy warm`: fills a running proxy with the images of a list.
//!
//! It runs the list like `transload mirror`, with the proxy as the source and [`DiscardingDestination`] as the destination. So
//! each blob is requested once, with limits and retries, and is verified here too.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use tokio::time::Instant;

use super::super::global::{Format, Global};
use super::super::progress::Progress;
use super::super::{output, render};
use super::Args;
use crate::content::{Destination, Feed, PushReceipt, Source, UploadStart};
use crate::copy::{Engine, Status};
use crate::descriptor::{Descriptor, Digest, Platform};
use crate::error::{Error, Kind, Result, Side};
use crate::manifest::Manifest;
use crate::mirror::list::{Defaults, DestinationBase, DestinationRule};
use crate::mirror::report::RunReport;
use crate::mirror::run::{self, Action, Event, Repositories};
use crate::mirror::{List, load};
use crate::reference::{RegistryName, Repository, Target};
use crate::registry::{Cached, Options, Registries, Repo};
use crate::verify::Verified;

/// Fill a running proxy with the images of a list, as if nodes had pulled them
///
/// Requests tags, manifests and blobs by path (/v2/docker.io/library/nginx/…), and verifies and discards the content. For
/// a blob that the proxy has, only a HEAD is sent. Destinations in the list are ignored.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct WarmArgs {
    /// List of images: a file, or `-` for stdin, in any format of `transload mirror`
    list: String,
    /// The proxy: `HOST[:PORT]` or a URL with http:// or https://. Its credentials are found as for a registry
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000", value_parser = parse_address)]
    proxy: Address,
    /// Only these platforms, in place of those of the list (repeatable, or comma-separated)
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Large blobs in parallel
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
}

/// The address of the proxy.
#[derive(Clone, Debug)]
struct Address {
    name: RegistryName,
    /// It was given as `http://…`, so plain HTTP is allowed.
    plain: bool,
}

fn parse_address(text: &str) -> Result<Address> {
    let bare = text.trim_end_matches('/');
    let plain = bare.strip_prefix("http://");
    let name = plain.or(bare.strip_prefix("https://")).unwrap_or(bare);
    Ok(Address { name: name.parse()?, plain: plain.is_some() })
}

impl WarmArgs {
    /// The client options for the proxy.
    pub(in crate::cli) fn options(&self, mut options: Options) -> Options {
        // On loopback, plain HTTP needs no --insecure-registry.
        if self.proxy.plain && !crate::reference::is_loopback(crate::reference::split_port(&self.proxy.name).0) {
            options.insecure.push(self.proxy.name.to_string());
        }
        options
    }

    /// The list, with the location of each image at the proxy.
    fn list(&self) -> Result<(List, Vec<DestinationBase>)> {
        let (mut list, name) = load::read(&self.list, &Defaults::default())?;
        let to = vec![DestinationBase { registry: self.proxy.name.clone(), prefix: String::new() }];
        for entry in &mut list.entries {
            entry.target = DestinationRule::Below("{registry}/{repository}".parse()?);
            entry.strip_library = false;
            if !self.platform.is_empty() {
                entry.platforms.clone_from(&self.platform);
            }
        }
        list.check(&to, &name)?;
        Ok((list, to))
    }
}

/// Runs the command, and returns an exit code like `transload mirror`.
pub(in crate::cli) async fn run(args: &Args, global: &Global, registries: &Registries) -> Result<u8> {
    let Some(args) = args.warm() else { return Ok(0) };
    let (list, to) = args.list()?;
    load::log_notes(&list);
    let progress = Progress::start(global);
    let begun = Instant::now();
    let done = Mutex::new(RunReport::start(None, false, &render::registry_usage(registries)));
    let ended = |event| {
        let event = with_proxy_names(event);
        progress.count_image(&event);
        let line = render::finished_line(&event, false).filter(|_| progress.wants_image_lines());
        let failure = done.lock().unwrap_or_else(PoisonError::into_inner).add_event(event);
        if let Some((which, error)) = failure {
            output::print_image_error(&which.source, &error);
        }
        if let Some(line) = line {
            output::note(&line);
        }
    };
    let engine = Engine::new(usize::from(args.jobs), progress.clone());
    // The destination is always empty, so the whole of each image is walked.
    let options = run::Options { action: Action::Copy { dry_run: false, force: true }, deadline: None };
    let places = ProxyRepositories { registries, proxy: &args.proxy.name };
    run::run(&list, &to, &places, &engine, &options, &|_, _| true, &ended).await;
    progress.clear();
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.finish(begun.elapsed(), render::registry_usage(registries));
    match global.output {
        Format::Json => output::print_json(&done),
        Format::Text if global.quiet => {}
        Format::Text => output::print(&render::run_summary(&done)),
    }
    Ok(done.exit_code())
}

/// Reports an image as unchanged if the proxy had all its blobs.
fn with_proxy_names(event: Event) -> Event {
    match event {
        Event::Copied(job, mut report) => {
            if report.blobs_uploaded == 0 {
                report.status = Status::Unchanged;
            }
            Event::Copied(job, report)
        }
        other => other,
    }
}

/// The list's repositories at the proxy.
struct ProxyRepositories<'a> {
    registries: &'a Registries,
    proxy: &'a RegistryName,
}

impl Repositories for ProxyRepositories<'_> {
    type Source = Repo;
    type Destination = DiscardingDestination;

    fn source(&self, repository: &Repository) -> Result<Repo> {
        let Repository { registry, name } = repository;
        if registry.contains([':', '[']) {
            return Err(Error::new(Kind::Unsupported, format!("{repository} cannot be requested by path"))
                .hint("a path cannot contain a registry with a port: use an upstream name without a port"));
        }
        let name = name.below(registry)?;
        self.registries.repository(&Repository { registry: self.proxy.clone(), name })
    }

    fn destination(&self, repository: &Repository) -> Result<DiscardingDestination> {
        let at = self.registries.repository(repository)?;
        Ok(DiscardingDestination { at, all: Repository::none(RegistryName::not_chosen()) })
    }
}

/// Verifies and discards content. The proxy that it comes from has cached it then.
#[derive(Clone)]
struct DiscardingDestination {
    /// The repository at the proxy, to check what is cached.
    at: Repo,
    /// The same for all images, so that a blob is requested once.
    all: Repository,
}

impl Destination for DiscardingDestination {
    type Session = ();

    fn repository(&self) -> &Repository {
        &self.all
    }

    async fn is_new(&self) -> bool {
        false
    }

    async fn resolve_existing(&self, _: &Target) -> Result<Option<Descriptor>> {
        Ok(None)
    }

    async fn existing_manifest(&self, digest: &Digest) -> Result<Manifest> {
        Err(Error::new(Kind::NotFound, format!("there is no manifest {digest}")))
    }

    async fn has_blob(&self, blob: &Descriptor) -> Result<bool> {
        Ok(self.at.cached(&blob.digest).await? == Cached::Yes)
    }

    async fn start_upload(&self, _: &Descriptor, _: Option<&Repository>) -> Result<UploadStart<()>> {
        Ok(UploadStart::Session(()))
    }

    async fn upload<S: Source>(&self, (): (), feed: &Feed<S>, mut body: Verified) -> Result<()> {
        while body.try_next().await?.is_some() {}
        // The last byte may arrive shortly before the proxy has committed the file.
        for _ in 0..STORED_POLLS {
            match self.at.cached(&feed.blob().digest).await? {
                Cached::Yes | Cached::Unknown => return Ok(()),
                Cached::Soon => tokio::time::sleep(STORED_POLL_INTERVAL).await,
                Cached::No => break,
            }
        }
        Err(Error::new(Kind::Local, format!("the proxy did not keep blob {}", feed.blob().digest))
            .on(Side::Source)
            .hint("its cache has no space for the whole list, or cannot be written: see its logs"))
    }

    async fn put_manifest(&self, _: &Manifest, _: &Target) -> Result<PushReceipt> {
        Ok(PushReceipt { lists_referrer: true })
    }

    async fn listed_referrers(&self, _: &Digest) -> Result<Vec<Descriptor>> {
        Ok(Vec::new())
    }
}

/// Checks whether a blob is stored: 300 in 30 s, for a slow disk.
const STORED_POLLS: u32 = 300;
const STORED_POLL_INTERVAL: Duration = Duration::from_millis(100);

const AFTER_HELP: &str = "\
What is moved is what the proxy had to fetch; an image is unchanged if it had all of its blobs.

Examples:
  transload proxy warm images.yaml
  transload proxy warm images.yaml --proxy https://proxy.example:5443 --platform linux/amd64
  echo nginx:1.27 | transload proxy warm -

Exit codes: 0 all done, 1 failed, 2 usage, 3 partly done, 130 interrupted.";
