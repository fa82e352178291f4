//! `transload proxy ls`, `rm` and `verify`: a cache's directory, without its proxy.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::cli::global::{Format, Global};
use crate::cli::output;
use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result};
use crate::proxy::cache::admin::{self, Listing};
use crate::reference::{Reference, Target};

#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Action {
    /// List what a cache holds: tags, and how much content; changes nothing
    Ls(Dir),
    /// Remove a tag, or a manifest or blob by its digest, from a cache that no proxy uses
    ///
    /// What a tag meant stays until it has to make room, as other tags may have it in common.
    Rm {
        #[command(flatten)]
        dir: Dir,
        /// A tag such as docker.io/library/nginx:1.27, or a digest such as sha256:…
        #[arg(value_name = "REF|DIGEST")]
        what: String,
    },
    /// Read all content of a cache, and drop what isn't what its digest says; exits with 3 if there was any
    ///
    /// A proxy may run meanwhile: it fetches again what was dropped.
    Verify(Dir),
}

#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(super) struct Dir {
    /// The directory of the cache
    #[arg(id = "admin-cache", long = "cache", value_name = "DIR")]
    dir: PathBuf,
}

/// Does it; returns the exit code.
pub(super) fn run(action: &Action, global: &Global) -> Result<u8> {
    match action {
        Action::Ls(dir) => ls(&admin::list(&dir.dir)?, global),
        Action::Rm { dir, what } => rm(dir, what, global),
        Action::Verify(dir) => verify(dir, global),
    }
}

fn ls(found: &Listing, global: &Global) -> Result<u8> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let names = found.tags.iter().map(|tag| (format!("{}/{}:{}", tag.upstream, tag.repository, tag.tag), tag));
    let counted = |(count, bytes): (usize, u64)| json!({ "count": count, "bytes": bytes });
    match global.output {
        Format::Json => {
            let tags: Vec<_> = names
                .map(|(name, tag)| {
                    let age = now.saturating_sub(tag.checked);
                    json!({ "name": name, "digest": tag.digest.to_string(), "ageSeconds": age })
                })
                .collect();
            let (manifests, blobs) = (counted(found.manifests), counted(found.blobs));
            output::print_json(&json!({ "tags": tags, "manifests": manifests, "blobs": blobs }));
        }
        Format::Text => {
            let mut text = String::new();
            for (name, tag) in names {
                let age = output::time(Duration::from_secs(now.saturating_sub(tag.checked)));
                let _ = writeln!(text, "{name}  {}  checked {age} ago", tag.digest);
            }
            for (noun, (count, bytes)) in [("manifest", found.manifests), ("blob", found.blobs)] {
                let _ = writeln!(text, "{}, {}", output::count(count, noun), output::bytes(bytes));
            }
            output::print(&text);
        }
    }
    Ok(0)
}

fn rm(Dir { dir }: &Dir, what: &str, global: &Global) -> Result<u8> {
    let found = if let Ok(digest) = what.parse::<Digest>() {
        admin::remove(dir, &digest)?
    } else {
        let Reference { repository, target, .. } = what.parse()?;
        match target {
            Target::Tag(tag) => admin::remove_tag(dir, &repository.registry, &repository.name, &tag)?,
            Target::Digest(digest) => admin::remove(dir, &digest)?,
        }
    };
    if !found {
        return Err(Error::new(Kind::NotFound, format!("{what} is not in the cache {}", dir.display()))
            .hint("`transload proxy ls` says what is"));
    }
    match global.output {
        Format::Json => output::print_json(&json!({ "removed": what })),
        Format::Text => output::print(&format!("removed {what}\n")),
    }
    Ok(0)
}

fn verify(Dir { dir }: &Dir, global: &Global) -> Result<u8> {
    let found = admin::verify(dir, |path| output::note(&format!("dropped {}", path.display())))?;
    let (count, bytes) = found.read;
    match global.output {
        Format::Json => {
            let dropped: Vec<String> = found.dropped.iter().map(Digest::to_string).collect();
            output::print_json(&json!({ "read": { "count": count, "bytes": bytes }, "dropped": dropped }));
        }
        Format::Text => {
            let (read, bytes) = (output::count(count, "file"), output::bytes(bytes));
            output::print(&format!("read {read}, {bytes}; dropped {}\n", found.dropped.len()));
        }
    }
    Ok(if found.dropped.is_empty() { 0 } else { PARTLY })
}

/// The exit code of what was done in part.
const PARTLY: u8 = 3;
