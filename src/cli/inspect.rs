//! `transload inspect` and `transload tags`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use super::global::{Format, Global};
use super::image::SourceImage;
use super::output::{self, format_field};
use crate::content::Source;
use crate::copy::Account;
use crate::descriptor::{Descriptor, Digest, Platform, total};
use crate::error::{Error, Kind, Result, Side};
use crate::layout::Layout;
use crate::manifest::Manifest;
use crate::reference::{RejectedTags, Repository, SourceLocation, Target};
use crate::registry::Registries;

/// Show an image: platforms, layers, sizes, digests, annotations, referrers
#[derive(Debug, clap::Args)]
pub(super) struct InspectArgs {
    /// The image: `nginx:1.27`, `ghcr.io/o/r@sha256:…`, `oci:DIR[:TAG]`
    #[arg(value_name = "REF")]
    image: String,
    /// Only these platforms (each manifest read is a pull at Docker Hub)
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Also list referrers: signatures, attestations, SBOMs
    #[arg(long)]
    referrers: bool,
}

/// List the tags of a repository; exits with 3 if it lists names that are not tags
#[derive(Debug, clap::Args)]
pub(super) struct TagsArgs {
    /// The repository: `nginx`, `ghcr.io/o/r`, `oci:DIR`
    #[arg(value_name = "REPOSITORY")]
    repository: String,
}

/// The document that `inspect --output json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema: u32,
    reference: String,
    #[serde(flatten)]
    root: ManifestSummary,
    /// The children of an index.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    manifests: Vec<ManifestSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    referrers: Option<Vec<Descriptor>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestSummary {
    digest: String,
    media_type: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    /// The config and then the layers, or the entries of an index that are not manifests. `None` for a child that was not
    /// read.
    #[serde(skip_serializing_if = "Option::is_none")]
    blobs: Option<Vec<Descriptor>>,
    #[serde(skip)]
    config: Option<Digest>,
}

/// Runs `inspect`.
pub(super) async fn inspect(args: &InspectArgs, global: &Global, registries: &Registries) -> Result<u8> {
    let location: SourceLocation = args.image.parse()?;
    let from = SourceImage::resolve(location).await?;
    let document = match from.location() {
        SourceLocation::Registry(reference, _) => {
            read_image(&registries.repository(&reference.repository)?, from.target(), args).await
        }
        SourceLocation::Layout(directory, _) => read_image(&Layout::open(directory).await?, from.target(), args).await,
    };
    let document = document.map_err(|error| error.on(Side::Source))?;
    match global.output {
        Format::Json => output::print_json(&document),
        Format::Text => output::print(&document.table()),
    }
    Ok(0)
}

/// Runs `tags`: prints a line for each tag, page by page, or one JSON document.
pub(super) async fn tags(args: &TagsArgs, global: &Global, registries: &Registries) -> Result<u8> {
    let listed = match args.repository.strip_prefix("oci:") {
        Some(directory) => print_tags(&Layout::open(directory.as_ref()).await?, global).await,
        None => {
            let repository: Repository = args.repository.parse()?;
            print_tags(&registries.repository(&repository)?, global).await
        }
    };
    let rejected = listed.map_err(|error| error.on(Side::Source))?;
    Ok(match rejected.error(&args.repository) {
        Some(error) => {
            output::print_image_error("some tags", &error);
            3
        }
        None => 0,
    })
}

async fn print_tags<S: Source>(source: &S, global: &Global) -> Result<RejectedTags> {
    let mut all: Vec<String> = Vec::new();
    let mut rejected = RejectedTags::default();
    let mut pages = source.tags();
    while let Some(page) = pages.try_next().await? {
        let longer = page.names.len();
        let tags = page.tags.into_iter().map(String::from);
        let mut names: Vec<String> = tags.chain(page.names.into_iter().map(String::from)).collect();
        if longer > 0 {
            // A directory's names are sorted among its tags. A registry's order is kept.
            names.sort();
        }
        if matches!(global.output, Format::Text) {
            output::print(&names.iter().fold(String::new(), |text, name| text + &format_field(name) + "\n"));
        } else {
            all.append(&mut names);
        }
        rejected.add(page.malformed);
    }
    if global.output == Format::Json {
        let mut document = serde_json::json!({ "schema": 1, "tags": all });
        if !rejected.first().is_empty() {
            document["malformed"] = rejected.first().iter().map(ToString::to_string).collect();
        }
        output::print_json(&document);
    }
    Ok(rejected)
}

async fn read_image<S: Source>(source: &S, target: &Target, args: &InspectArgs) -> Result<Document> {
    let root = source.manifest(target).await.map_err(|error| match error.kind() {
        Kind::NotFound => error.hint("transload tags REPOSITORY lists the tags"),
        _ => error,
    })?;
    let wanted = |child: &Descriptor| {
        args.platform.is_empty()
            || child.platform.as_ref().is_some_and(|offered| args.platform.iter().any(|p| p.accepts(offered)))
    };
    let children: Vec<Descriptor> = root.contents().manifests.iter().filter(|child| wanted(child)).cloned().collect();
    if root.is_index() && children.is_empty() && !args.platform.is_empty() {
        return Err(Error::new(Kind::NotFound, "the image has none of the selected platforms")
            .hint("leave out --platform to see its platforms"));
    }
    let account = Account::alone();
    account.root(&root).await?;
    let look = |child| read_child(source, child, &account);
    let manifests = stream::iter(children).map(look).buffered(CONCURRENT_READS).try_collect().await?;
    let referrers = if args.referrers { Some(source.referrers(&root.digest()).await?) } else { None };
    Ok(Document {
        schema: 1,
        reference: args.image.clone(),
        root: ManifestSummary::of(&root, None),
        manifests,
        referrers,
    })
}

/// A child of an index, with its layers if it is an image. Attestations are not read, since that would cost pulls.
async fn read_child<S: Source>(source: &S, child: Descriptor, account: &Account) -> Result<ManifestSummary> {
    let is_image = child.platform.as_ref().is_none_or(|platform| !platform.is_unknown());
    if !is_image || child.media_type.is_index() {
        return Ok(ManifestSummary {
            digest: child.digest.to_string(),
            media_type: child.media_type.0,
            size: child.size,
            platform: child.platform.map(|platform| platform.to_string()),
            artifact_type: child.artifact_type,
            annotations: child.annotations,
            subject: None,
            blobs: None,
            config: None,
        });
    }
    let target = Target::Digest(child.digest);
    let manifest = account.child((&child.digest, child.size), source.manifest(&target)).await?;
    Ok(ManifestSummary::of(&manifest, child.platform))
}

impl ManifestSummary {
    fn of(manifest: &Manifest, platform: Option<Platform>) -> Self {
        let contents = manifest.contents();
        Self {
            digest: manifest.digest().to_string(),
            media_type: manifest.descriptor().media_type.0.clone(),
            size: manifest.descriptor().size,
            platform: platform.map(|platform| platform.to_string()),
            artifact_type: contents.artifact_type.clone().filter(|_| platform_less(manifest)),
            annotations: contents.annotations.clone(),
            subject: contents.subject.as_ref().map(|subject| subject.digest.to_string()),
            blobs: (!manifest.is_index() || !contents.blobs.is_empty()).then(|| contents.blobs.clone()),
            config: contents.config,
        }
    }

    fn rows(&self, table: &mut String, indent: &str) {
        let Some(blobs) = &self.blobs else { return };
        for (at, blob) in blobs.iter().enumerate() {
            // An artifact may have the bytes of its config also as a layer.
            let what = match self.config {
                Some(config) if at == 0 && config == blob.digest => "config",
                Some(_) => "layer",
                None => "blob",
            };
            let _ = writeln!(
                table,
                "{indent}{what:<7} {} {:>10}  {}",
                blob.digest,
                output::format_bytes(blob.size),
                format_field(&blob.media_type)
            );
        }
    }

    fn total(&self) -> String {
        let blobs = self.blobs.as_ref().map(|blobs| total(blobs.iter().map(|blob| blob.size)));
        blobs
            .map(|total| {
                format!(
                    ", {} in {}",
                    output::format_bytes(total),
                    output::count_noun(self.blobs.as_ref().map_or(0, Vec::len), "blob")
                )
            })
            .unwrap_or_default()
    }
}

impl Document {
    fn table(&self) -> String {
        let mut table = String::new();
        let _ = writeln!(table, "{}", format_field(&self.reference));
        let kind = format_field(&self.root.media_type);
        let _ = writeln!(table, "digest  {}\ntype    {kind}{}", self.root.digest, self.root.total());
        if let Some(kind) = &self.root.artifact_type {
            let _ = writeln!(table, "kind    {}", format_field(kind));
        }
        if let Some(subject) = &self.root.subject {
            let _ = writeln!(table, "subject {subject}");
        }
        for (key, value) in &self.root.annotations {
            let _ = writeln!(table, "note    {}={}", format_field(key), format_field(value));
        }
        self.root.rows(&mut table, "");
        for child in &self.manifests {
            let platform = child.platform.as_deref().unwrap_or("no platform");
            let name = if platform == "unknown/unknown" { "attestation" } else { platform };
            let _ = writeln!(table, "\n{}\n  digest  {}{}", format_field(name), child.digest, child.total());
            child.rows(&mut table, "  ");
        }
        for (at, referrer) in self.referrers.iter().flatten().enumerate() {
            let kind = referrer.artifact_type.as_deref().unwrap_or("unknown kind");
            let _ = writeln!(
                table,
                "{}referrer {} {}",
                if at == 0 { "\n" } else { "" },
                referrer.digest,
                format_field(kind)
            );
        }
        if self.referrers.as_ref().is_some_and(Vec::is_empty) {
            table += "\nno referrers\n";
        }
        table
    }
}

/// Whether the artifact type is more than the config type of an image.
fn platform_less(manifest: &Manifest) -> bool {
    let kind = manifest.contents().artifact_type.as_deref().unwrap_or_default();
    !kind.ends_with("image.config.v1+json") && !kind.ends_with("container.image.v1+json")
}

/// The number of manifests that are read at once.
const CONCURRENT_READS: usize = 8;
