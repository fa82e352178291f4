//! `transload copy`: one image or all tags of a repository, to one or several destinations.

mod render;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use self::render::CopyOutput;
use super::global::{Global, parse_bytes};
use super::image::{CopyRequest, SourceImage};
use super::progress::Progress;
use crate::content::Source as _;
use crate::copy::{Engine, Options};
use crate::descriptor::Platform;
use crate::error::{Error, Kind, Result, Side};
use crate::reference::{Artifact, DestinationLocation, RejectedTags, SourceLocation, Tag};
use crate::registry::Registries;

/// Copy an image with all of its platforms
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The source, then one or more destinations: `hello-world`, `ghcr.io/o/r:tag`, `ghcr.io/o/r@sha256:…`,
    /// `oci:DIR[:TAG]`. A destination that is only a registry keeps the path and the tag of the source
    #[arg(required = true, num_args = 1.., value_names = ["SRC", "DST"])]
    images: Vec<String>,
    /// Copy only these platforms. The index keeps its digest and becomes sparse (repeatable, or comma-separated)
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Copy the image of --platform instead of the index
    #[arg(long, requires = "platform")]
    flatten: bool,
    /// Copy all tags of the repository
    #[arg(long)]
    all_tags: bool,
    /// Also copy signatures, attestations and other referrers
    #[arg(long)]
    referrers: bool,
    /// Check everything again even if the tags match, and repair it
    #[arg(long)]
    force: bool,
    /// Only print what would be copied
    #[arg(long)]
    dry_run: bool,
    /// Also copy foreign (non-distributable) layers
    #[arg(long)]
    include_foreign: bool,
    /// Leave out `library/` of Docker's official images
    #[arg(long)]
    strip_library: bool,
    /// Large blobs in parallel
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Retries per blob; more while a large blob makes progress
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=1000))]
    retries: u32,
    /// Upload in chunks of this size, such as 16MiB (default: chunks for ACR, one request per blob for others)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) chunk_size: Option<u64>,
}

/// Runs the command; returns the exit code.
pub(super) async fn run(args: &Args, global: &Global, registries: &Registries) -> Result<u8> {
    let (location, destinations) = args.locations()?;
    let source = SourceImage::resolve(location.clone()).await?;
    // Invalid destinations are refused before anything is written.
    for destination in &destinations {
        CopyRequest::new(source.clone(), destination.clone(), args.strip_library)?;
    }
    let begun = Instant::now();
    let progress = Progress::start(global);
    if destinations.iter().all(|destination| matches!(destination, DestinationLocation::Layout(..))) {
        progress.set_keeps_partial();
    }
    let engine = Engine::new(usize::from(args.jobs), progress.clone()).with_retries(args.retries);
    let options = args.options();
    let mut output = CopyOutput::new(global, args.all_tags || destinations.len() > 1);
    let mut first_error = None;
    let rejected = Arc::<Mutex<RejectedTags>>::default();
    let mut sources = if args.all_tags {
        all_tags(registries, &location, &source, &rejected)?
    } else {
        stream::iter([Ok(vec![source.clone()])]).boxed()
    };
    while let Some(sources) = sources.try_next().await? {
        let images = sources
            .iter()
            .flat_map(|source| {
                destinations
                    .iter()
                    .map(|destination| CopyRequest::new(source.clone(), destination.clone(), args.strip_library))
            })
            .collect::<Result<Vec<_>>>()?;
        let mut copies = stream::iter(images)
            .map(|image| {
                let (engine, options) = (&engine, &options);
                async move {
                    let result = image.copy(registries, engine, options).await;
                    (image, result)
                }
            })
            .buffer_unordered(CONCURRENT_IMAGES);
        while let Some((image, result)) = copies.next().await {
            if let Some(error) = output.add(&image, result, args.dry_run) {
                first_error.get_or_insert(error);
            }
        }
    }
    if let SourceLocation::Registry(reference, _) = &location
        && let Some(error) = rejected.lock().unwrap_or_else(PoisonError::into_inner).error(&reference.repository)
    {
        first_error.get_or_insert(output.reject(reference.repository.to_string(), error));
    }
    progress.clear();
    output.finish(first_error, begun.elapsed(), global, registries)
}

impl Args {
    fn locations(&self) -> Result<(SourceLocation, BTreeSet<DestinationLocation>)> {
        let (source, destinations) = match &self.images[..] {
            [_] => {
                return Err(Error::new(Kind::Usage, "there is no destination")
                    .hint("add one after the source: transload copy hello-world myregistry.azurecr.io"));
            }
            [source, destinations @ ..] => (source, destinations),
            [] => return Err(Error::new(Kind::Usage, "there is no source")),
        };
        let source: SourceLocation = source.parse()?;
        let destinations = destinations
            .iter()
            .map(|destination| destination.parse())
            .collect::<Result<BTreeSet<DestinationLocation>>>()?;
        if self.all_tags {
            self.check_all_tags(&source, &destinations)?;
        }
        Ok((source, destinations))
    }

    fn check_all_tags(&self, source: &SourceLocation, destinations: &BTreeSet<DestinationLocation>) -> Result<()> {
        let written = self.images.first().map(String::as_str).unwrap_or_default();
        let last = written.rsplit('/').next().unwrap_or_default();
        if !matches!(source, SourceLocation::Registry(..)) || last.contains(':') || last.contains('@') {
            return Err(Error::new(Kind::Usage, format!("--all-tags takes a repository, but {written:?} is not one"))
                .hint("leave out the tag or digest"));
        }
        if destinations.iter().any(|destination| {
            matches!(
                destination,
                DestinationLocation::Repository { tag: Some(_), .. } | DestinationLocation::Layout(_, Some(_))
            )
        }) {
            return Err(Error::new(Kind::Usage, "--all-tags writes many tags, but the destination names one")
                .hint("leave out its tag"));
        }
        Ok(())
    }

    fn options(&self) -> Options {
        Options {
            platforms: self.platform.clone(),
            flatten: self.flatten,
            referrers: self.referrers,
            force: self.force,
            dry_run: self.dry_run,
            include_foreign: self.include_foreign,
        }
    }
}

/// The tags of a repository as sources, page by page.
///
/// Lists of the referrers tag schema are left out: they are not images, and each destination has its own.
fn all_tags(
    registries: &Registries,
    location: &SourceLocation,
    source: &SourceImage,
    rejected: &Arc<Mutex<RejectedTags>>,
) -> Result<BoxStream<'static, Result<Vec<SourceImage>>>> {
    let SourceLocation::Registry(reference, _) = location else { return Ok(stream::empty().boxed()) };
    let (repo, source, rejected) = (registries.repository(&reference.repository)?, source.clone(), rejected.clone());
    let is_image = |tag: &Tag| !Artifact::of(tag).is_some_and(|artifact| artifact.is_list());
    let pages = repo.tags().map_err(|error| error.on(Side::Source));
    Ok(pages
        .map_ok(move |page| {
            rejected.lock().unwrap_or_else(PoisonError::into_inner).add(page.malformed);
            page.tags.into_iter().filter(is_image).map(|tag| source.with_tag(tag)).collect()
        })
        .boxed())
}

/// Parses the size of a chunk.
fn parse_size(text: &str) -> Result<u64> {
    let size = parse_bytes(text)?;
    if size < 1 << 20 {
        return Err(Error::new(Kind::Usage, format!("chunks of {size} bytes are too small: each takes a request"))
            .hint("use 1MiB or more"));
    }
    Ok(size)
}

/// The number of images that `--all-tags` or several destinations copy at once.
const CONCURRENT_IMAGES: usize = 8;

const AFTER_HELP: &str = "\
Exit codes: 0 all done, 1 failed, 2 usage, 3 partly done, 130 interrupted.

Examples:
  transload copy hello-world myregistry.azurecr.io
  transload copy nginx:1.27 myregistry.azurecr.io/web/nginx --platform linux/amd64,linux/arm64
  transload copy quay.io/o/r myregistry.azurecr.io --all-tags --referrers
  transload copy ghcr.io/o/r:v1 oci:./images";
