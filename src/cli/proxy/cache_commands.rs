//! `transload proxy ls`, `rm`, `gc` and `verify`: a cache's directory without its proxy, or a running proxy's
//! cache by its operators' address.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use serde_json::json;

use super::admin_client::AdminClient;
use crate::cli::global::{Format, Global, parse_bytes};
use crate::cli::output;
use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result, Side};
use crate::mirror::schedule;
use crate::pool::run_blocking;
use crate::proxy::cache::offline::{self, Item, Listing};
use crate::proxy::cache::{FileTotals, GcOptions, GcResult, Removal, RemovalReason};
use crate::proxy::cache_admin::{TagsPart, VerifiedPart};

#[derive(Clone, Debug, clap::Subcommand)]
pub(in crate::cli) enum Action {
    /// List the content of a cache: tags and sizes
    Ls(CacheLocation),
    /// Remove a tag, or a manifest or blob by its digest
    ///
    /// The content of a tag stays until its space is needed, because other tags may share it. Content that a running
    /// proxy is reading stays.
    Rm {
        #[command(flatten)]
        place: CacheLocation,
        /// A tag such as docker.io/library/nginx:1.27, or a digest such as sha256:…
        #[arg(value_name = "REF|DIGEST")]
        what: String,
    },
    /// Remove leftovers, and content that is too large or too old
    ///
    /// Removes files of incomplete fetches, truncated files, content beyond the limits (those of the running proxy with
    /// --admin), and content that was not used for --older-than. A running proxy knows the uses since its start. Earlier
    /// uses are the access times of the file system, which may be a day old or missing.
    Gc(Gc),
    /// Verify all content of a cache by digest, and remove what is corrupt; exits with 3 if anything was
    ///
    /// A proxy may run at the same time: it fetches removed content again.
    Verify(CacheLocation),
}

/// Which cache.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "admin-place", required = true, multiple = false)]
pub(in crate::cli) struct CacheLocation {
    /// Cache directory
    #[arg(id = "admin-cache", long = "cache", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Running proxy: the address of its --listen-admin, or else of its --listen-ops, such as 127.0.0.1:9091
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
}

#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Gc {
    #[command(flatten)]
    place: CacheLocation,
    /// Remove tags that were not checked, and content that was not used, for this time, such as 30d
    #[arg(long, value_name = "DURATION", value_parser = schedule::parse_duration)]
    older_than: Option<Duration>,
    /// Maximum size of the cache; the least recently used content is removed first
    #[arg(id = "gc-size", long = "cache-size", value_name = "SIZE", value_parser = parse_bytes, conflicts_with = "admin")]
    size: Option<u64>,
    /// Space to leave free on the disk
    #[arg(id = "gc-free", long = "keep-free", value_name = "SIZE", value_parser = parse_bytes, conflicts_with = "admin")]
    keep_free: Option<u64>,
    /// Only print what would be removed
    #[arg(long)]
    dry_run: bool,
}

impl CacheLocation {
    fn remote(&self) -> Result<Option<AdminClient>> {
        self.admin.as_deref().map(AdminClient::new).transpose()
    }

    fn dir(&self) -> PathBuf {
        self.dir.clone().unwrap_or_default()
    }

    fn name(&self) -> String {
        self.admin.clone().unwrap_or_else(|| self.dir().display().to_string())
    }
}

/// Does it; returns the exit code.
pub(in crate::cli) async fn run(action: &Action, global: &Global) -> Result<u8> {
    let done = match action {
        Action::Ls(place) => listing(place).await.and_then(|found| ls(&found, global)),
        Action::Rm { place, what } => rm(place, what, global).await,
        Action::Gc(args) => gc(args, global).await,
        Action::Verify(place) => verify(place, global).await,
    };
    // A cache's directory, or a proxy on this machine.
    done.map_err(|error| error.on(Side::Local))
}

async fn listing(place: &CacheLocation) -> Result<Listing> {
    let Some(remote) = place.remote()? else {
        let dir = place.dir();
        return run_blocking(move || offline::list(&dir)).await;
    };
    let mut tags = Vec::new();
    let sums = remote.each(Method::GET, "/admin/cache", |part: TagsPart| tags.extend(part.tags)).await?;
    tags.sort();
    let sum = |name: &str| {
        let sum: FileTotals = serde_json::from_value(sums[name].clone()).unwrap_or_default();
        (sum.count, sum.bytes)
    };
    Ok(Listing { tags, manifests: sum("manifests"), blobs: sum("blobs") })
}

fn ls(found: &Listing, global: &Global) -> Result<u8> {
    let now = crate::clock::unix_seconds();
    let names = found.tags.iter().map(|tag| (format!("{}/{}:{}", tag.upstream, tag.repository, tag.tag), tag));
    let counted = |(count, bytes): (usize, u64)| json!({ "count": count, "bytes": bytes });
    match global.output {
        Format::Json => {
            let tags: Vec<_> = names
                .map(|(name, tag)| {
                    let age = now.saturating_sub(tag.checked);
                    json!({ "name": name, "digest": tag.digest.to_string(), "age_seconds": age })
                })
                .collect();
            let (manifests, blobs) = (counted(found.manifests), counted(found.blobs));
            output::print_json(&json!({ "tags": tags, "manifests": manifests, "blobs": blobs }));
        }
        Format::Text => {
            let mut text = String::new();
            for (name, tag) in names {
                let age = output::format_duration(Duration::from_secs(now.saturating_sub(tag.checked)));
                let _ = writeln!(text, "{}  {}  checked {age} ago", output::format_field(name), tag.digest);
            }
            for (noun, (count, bytes)) in [("manifest", found.manifests), ("blob", found.blobs)] {
                let _ = writeln!(text, "{}, {}", output::count_noun(count, noun), output::format_bytes(bytes));
            }
            output::print(&text);
        }
    }
    Ok(0)
}

async fn rm(place: &CacheLocation, what: &str, global: &Global) -> Result<u8> {
    let item: Item = what.parse()?;
    let absent = || {
        Error::new(Kind::NotFound, format!("{what} is not in the cache {}", place.name()))
            .hint("`transload proxy ls` says what is")
    };
    match place.remote()? {
        Some(remote) => {
            let asked = remote.ask(Method::DELETE, &format!("/admin/cache?what={}", item)).await;
            let _: serde_json::Value =
                asked.map_err(|error| if error.kind() == Kind::NotFound { absent() } else { error })?;
        }
        None => {
            let dir = place.dir();
            if run_blocking(move || offline::remove(&dir, &item)).await? == Removal::Absent {
                return Err(absent());
            }
        }
    }
    match global.output {
        Format::Json => output::print_json(&json!({ "removed": what })),
        Format::Text => output::print(&format!("removed {what}\n")),
    }
    Ok(0)
}

async fn gc(args: &Gc, global: &Global) -> Result<u8> {
    let freed = match args.place.remote()? {
        Some(remote) => {
            let mut query = Vec::new();
            query.extend(args.older_than.map(|most| format!("older-than={}", most.as_secs())));
            query.extend(args.dry_run.then(|| "dry-run".to_owned()));
            remote.ask(Method::POST, &format!("/admin/gc?{}", query.join("&"))).await?
        }
        None => {
            let &Gc { size, keep_free, older_than, dry_run, .. } = args;
            let (dir, wanted) = (args.place.dir(), GcOptions { size, keep_free, older_than, dry_run });
            run_blocking(move || offline::gc(&dir, &wanted)).await?
        }
    };
    match global.output {
        Format::Json => output::print_json(&freed),
        Format::Text => output::print(&freed_text(&freed)),
    }
    Ok(0)
}

fn freed_text(freed: &GcResult) -> String {
    let mut text = String::new();
    for (why, sum) in &freed.removed {
        let why = match why {
            RemovalReason::Left => "left over",
            RemovalReason::Cut => "cut short",
            RemovalReason::Unused => "not used",
            RemovalReason::Room => "too much",
        };
        let _ = writeln!(text, "{why}: {}, {}", output::count_noun(sum.count, "file"), output::format_bytes(sum.bytes));
    }
    if freed.busy > 0 {
        let _ = writeln!(text, "kept, as it is being read: {}", output::count_noun(freed.busy, "file"));
    }
    let (verb, sum) = (if freed.dry_run { "would free" } else { "freed" }, freed.sum());
    let _ = writeln!(text, "{verb} {} in {}", output::format_bytes(sum.bytes), output::count_noun(sum.count, "file"));
    text
}

async fn verify(place: &CacheLocation, global: &Global) -> Result<u8> {
    let (read, dropped) = match place.remote()? {
        Some(remote) => {
            let (mut read, mut dropped) = (FileTotals::default(), Vec::new());
            let took = |part: VerifiedPart| {
                read.count += part.read.count;
                read.bytes += part.read.bytes;
                for digest in part.dropped {
                    output::note(&format!("dropped {digest}"));
                    dropped.push(digest);
                }
            };
            remote.each(Method::POST, "/admin/verify", took).await?;
            (read, dropped)
        }
        None => {
            let (dir, told) =
                (place.dir(), |path: &std::path::Path| output::note(&format!("dropped {}", path.display())));
            let found = run_blocking(move || offline::verify(&dir, told)).await?;
            (FileTotals { count: found.read.0, bytes: found.read.1 }, found.dropped)
        }
    };
    match global.output {
        Format::Json => {
            let dropped: Vec<String> = dropped.iter().map(Digest::to_string).collect();
            output::print_json(&json!({ "verified": read, "removed": dropped }));
        }
        Format::Text => {
            let (count, bytes) = (output::count_noun(read.count, "file"), output::format_bytes(read.bytes));
            output::print(&format!("read {count}, {bytes}; dropped {}\n", dropped.len()));
        }
    }
    Ok(if dropped.is_empty() { 0 } else { EXIT_PARTIAL })
}

/// The exit code of what was done in part.
const EXIT_PARTIAL: u8 = 3;
