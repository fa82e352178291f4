//! The walk from the root manifest to all manifests that the destination needs.

use std::collections::{HashMap, HashSet};

use bytes::BytesMut;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{Account, Engine, ManifestLock, Options};
use crate::content::{Destination, Source};
use crate::descriptor::{Descriptor, Digest, Platform};
use crate::error::{Error, Kind, Result, Side};
use crate::manifest::{MAX_CHILDREN, MAX_DEPTH, Manifest};
use crate::reference::Target;
use crate::retry::Budget;
use crate::verify::Verified;

/// The manifests of an image that the destination lacks, and those that it has.
#[derive(Debug, Default)]
pub struct Graph {
    /// Manifests that the destination lacks, parents before children. The first is the root.
    pub manifests: Vec<Manifest>,
    /// Children that the destination has. Their subtrees are not walked: a registry accepts no manifest before the parts
    /// that it names.
    pub present: Vec<Descriptor>,
    /// Children of other platforms than the selected ones.
    pub left_out: Vec<Descriptor>,
    /// The platforms of the children, as the index names them.
    pub platforms: HashSet<Platform>,
    /// The number of children that were read from the source.
    pub pulls: usize,
}

/// The result of visiting a child.
enum Child {
    Present(Box<Descriptor>),
    Read(Manifest),
}

/// The digests of the manifests of an image. They stay when the graph is dropped.
#[derive(Debug, Default)]
pub(super) struct ManifestDigests {
    /// All manifests that the destination has now. The first is the root.
    pub(super) digests: Vec<Digest>,
    /// The indexes among them whose children were not read.
    pub(super) unread: Vec<Digest>,
}

/// A walk over the manifests of an image.
pub(super) struct Walk<'a> {
    /// Accounts for the memory of the manifests.
    pub(super) account: &'a Account,
    /// The number of manifests that are read at once.
    pub(super) jobs: usize,
    /// The engine whose knowledge of the destination is used instead of requests.
    pub(super) knows: Option<&'a Engine>,
}

impl Walk<'_> {
    /// Walks from `root`, which was read from the side `from`.
    pub(super) async fn run<S: Source, D: Destination>(
        &self,
        source: &S,
        destination: &D,
        (root, from): (Manifest, Side),
        options: &Options,
    ) -> Result<Graph> {
        let mut graph = Graph::default();
        let mut seen = HashSet::from([root.digest()]);
        if !root.is_index() && !options.platforms.is_empty() && !options.flatten {
            check_single(source, &root, &options.platforms).await?;
        }
        let there = from == Side::Destination;
        let look = !options.force && root.is_index() && (there || !destination.is_new().await);
        let mut level = vec![root];
        let mut depth = 0;
        while !level.is_empty() {
            depth += 1;
            if depth > MAX_DEPTH {
                return Err(
                    Error::new(Kind::Invalid, format!("its indexes nest deeper than {MAX_DEPTH}")).on(Side::Source)
                );
            }
            let platforms = if depth == 1 && !options.flatten { &options.platforms[..] } else { &[] };
            let wanted = graph.children(&level, platforms, &mut seen)?;
            graph.manifests.append(&mut level);
            let visit = |child| self.visit(source, destination, child, look);
            let mut children = stream::iter(wanted).map(visit).buffered(self.jobs);
            while let Some(child) = children.try_next().await? {
                match child {
                    Child::Present(descriptor) => graph.present.push(*descriptor),
                    Child::Read(manifest) => {
                        graph.pulls += 1;
                        level.push(manifest);
                    }
                }
            }
        }
        Ok(graph)
    }

    async fn visit<S: Source, D: Destination>(
        &self,
        source: &S,
        destination: &D,
        child: Descriptor,
        look: bool,
    ) -> Result<Child> {
        let target = Target::Digest(child.digest);
        let manifest_lock = match self.knows {
            Some(engine) => match engine.lock_manifest(destination, child.digest).await {
                None => return Ok(Child::Present(Box::new(child))),
                manifest_lock => manifest_lock,
            },
            None => None,
        };
        if look {
            let found = destination.resolve_existing(&target).await.map_err(|error| error.on(Side::Destination))?;
            if found.is_some() {
                manifest_lock.into_iter().for_each(ManifestLock::finish);
                return Ok(Child::Present(Box::new(child)));
            }
        }
        // The lock is not held while the source is read, which may take hours.
        drop(manifest_lock);
        let read = async { source.manifest(&target).await.map_err(|error| missing_child(error.on(Side::Source))) };
        self.account.child((&child.digest, child.size), read).await.map(Child::Read)
    }
}

fn missing_child(error: Error) -> Error {
    match error.kind() {
        Kind::NotFound => error.hint("the source lacks an image that the index names; --platform copies the others"),
        _ => error,
    }
}

impl Graph {
    /// The graph of an image that the destination holds.
    pub(super) fn present(root: Descriptor) -> Self {
        Self { present: vec![root], ..Self::default() }
    }

    /// Drops the manifests and keeps their digests.
    pub(super) fn into_digests(self) -> ManifestDigests {
        let unread = self.present.iter().filter(|found| found.media_type.is_index()).map(|found| found.digest);
        ManifestDigests { digests: self.digests().collect(), unread: unread.collect() }
    }

    /// The selected children of a level that were not `seen` yet. Records the children that were left out.
    ///
    /// # Errors
    /// If there are too many, or none for a selected platform.
    fn children(
        &mut self,
        level: &[Manifest],
        platforms: &[Platform],
        seen: &mut HashSet<Digest>,
    ) -> Result<Vec<Descriptor>> {
        let mut wanted = Vec::new();
        for manifest in level {
            let (chosen, left_out) = select_platforms(&manifest.contents().manifests, platforms)?;
            self.left_out.extend(left_out.into_iter().cloned());
            let platforms = chosen.iter().filter_map(|child| child.platform.clone());
            self.platforms.extend(platforms.filter(|platform| !platform.is_unknown()));
            wanted.extend(chosen.into_iter().filter(|child| seen.insert(child.digest)).cloned());
            if seen.len() > MAX_CHILDREN {
                let what = format!("it has more than {MAX_CHILDREN} manifests");
                return Err(Error::new(Kind::Invalid, what).on(Side::Source));
            }
        }
        Ok(wanted)
    }

    /// The digests of all manifests that the destination will have.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        self.manifests.iter().map(Manifest::digest).chain(self.present.iter().map(|descriptor| descriptor.digest))
    }

    /// The number of waves that must be written before each manifest.
    pub(super) fn heights(&self) -> HashMap<Digest, usize> {
        let mut heights = HashMap::new();
        // A manifest that is named at two levels may come before its parent, so this repeats until nothing changes.
        for _ in 0..=MAX_DEPTH {
            let mut same = true;
            for manifest in self.manifests.iter().rev() {
                let below = manifest.contents().manifests.iter().filter_map(|child| heights.get(&child.digest));
                let height = below.max().map_or(0, |below| below + 1);
                same &= heights.insert(manifest.digest(), height) == Some(height);
            }
            if same {
                break;
            }
        }
        heights
    }
}

/// The children for the selected platforms with their attestations, and the other children.
fn select_platforms<'a>(
    children: &'a [Descriptor],
    platforms: &[Platform],
) -> Result<(Vec<&'a Descriptor>, Vec<&'a Descriptor>)> {
    if platforms.is_empty() || children.is_empty() {
        return Ok((children.iter().collect(), Vec::new()));
    }
    let fits =
        |child: &Descriptor, wanted: &Platform| child.platform.as_ref().is_some_and(|offered| wanted.accepts(offered));
    for wanted in platforms {
        if !children.iter().any(|child| fits(child, wanted)) {
            return Err(missing(wanted, children.iter().filter_map(|child| child.platform.as_ref())));
        }
    }
    let fitting = children.iter().filter(|child| platforms.iter().any(|wanted| fits(child, wanted)));
    let images: HashSet<String> = fitting.map(|child| child.digest.to_string()).collect();
    // An attestation of BuildKit is a sibling that names its image in an annotation
    // (docs.docker.com/build/metadata/attestations/attestation-storage).
    let about = |child: &Descriptor| {
        child.annotations.get("vnd.docker.reference.digest").is_some_and(|image| images.contains(image))
    };
    Ok(children.iter().partition(|child| images.contains(&child.digest.to_string()) || about(child)))
}

/// The image of an index for the one selected platform. An image without an index is returned itself.
pub(super) async fn only_child<S: Source>(source: &S, root: &Manifest, platforms: &[Platform]) -> Result<Descriptor> {
    let [wanted] = platforms else {
        return Err(Error::new(Kind::Usage, "--flatten takes exactly one --platform")
            .hint("add one, such as --platform linux/amd64"));
    };
    if !root.is_index() {
        check_single(source, root, platforms).await?;
        return Ok(root.descriptor().clone());
    }
    let children = &root.contents().manifests;
    let fitting: Vec<_> = children
        .iter()
        .filter(|child| child.platform.as_ref().is_some_and(|offered| wanted.accepts(offered)))
        .collect();
    match fitting[..] {
        [] => Err(missing(wanted, children.iter().filter_map(|child| child.platform.as_ref()))),
        [child, ref others @ ..] if others.iter().all(|other| other.digest == child.digest) => Ok((*child).clone()),
        _ => Err(several(wanted, &fitting)),
    }
}

/// The error for several images of one platform. It lists their variants and OS versions.
fn several(wanted: &Platform, fitting: &[&Descriptor]) -> Error {
    let named = |child: &&Descriptor| match &child.platform {
        Some(platform) => format!("{platform} ({})", child.digest.short()),
        None => child.digest.to_string(),
    };
    let shown: Vec<String> = fitting.iter().take(MAX_PLATFORMS_IN_ERROR).map(named).collect();
    let example = fitting.iter().filter_map(|child| child.platform.as_ref()).find(|offered| *offered != wanted);
    let hint = match example {
        Some(example) => format!("name one with its variant or OS version, such as --platform {example}"),
        None => "name one by its digest, or leave out --flatten to copy all of them".to_owned(),
    };
    let count = fitting.len();
    let what = format!("--flatten takes one image, but {count} images are for {wanted}: {}", shown.join(", "));
    Error::new(Kind::Usage, what).on(Side::Source).hint(hint)
}

/// Checks the platform of an image without an index, which is in its config.
async fn check_single<S: Source>(source: &S, manifest: &Manifest, platforms: &[Platform]) -> Result<()> {
    let Some(config) = manifest
        .contents()
        .blobs
        .first()
        .filter(|config| config.media_type.0.contains("config") || config.media_type.0.contains("image.v1"))
    else {
        return Ok(());
    };
    let Some(bytes) = read_small(source, config).await? else { return Ok(()) };
    let Ok(platform) = serde_json::from_slice::<Platform>(&bytes) else { return Ok(()) };
    if platform.os.is_empty() || platforms.iter().any(|wanted| wanted.accepts(&platform)) {
        return Ok(());
    }
    Err(missing(&platforms[0], std::iter::once(&platform)))
}

/// Reads a small blob and verifies it. `None` if the blob is not small.
async fn read_small<S: Source>(source: &S, blob: &Descriptor) -> Result<Option<bytes::Bytes>> {
    if blob.size > 1 << 20 {
        return Ok(None);
    }
    let budget = Budget::default();
    let read = async || {
        let mut verified = Verified::new(source.blob(blob, 0).await?, blob)?;
        let mut bytes = BytesMut::new();
        while let Some(frame) = verified.try_next().await? {
            bytes.extend_from_slice(&frame);
        }
        Ok::<_, Error>(bytes.freeze())
    };
    loop {
        match read().await {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(error) => budget.retry(error.transient_if_damaged().on(Side::Source)).await?,
        }
    }
}

fn missing<'a>(wanted: &Platform, offered: impl Iterator<Item = &'a Platform>) -> Error {
    let offered = offered.filter(|platform| !platform.is_unknown()).map(ToString::to_string);
    let mut offered: Vec<String> = offered.take(MAX_PLATFORMS_IN_ERROR).collect();
    offered.dedup();
    Error::new(Kind::NotFound, format!("the image has no platform {wanted}")).on(Side::Source).hint(format!(
        "it has {}",
        if offered.is_empty() { "no platform information".to_owned() } else { offered.join(", ") }
    ))
}

/// The most platforms that an error lists.
const MAX_PLATFORMS_IN_ERROR: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    fn child(name: &str, platform: Option<&str>, about: Option<&Descriptor>) -> Descriptor {
        let mut made = Descriptor::new("m", Digest::of(name.as_bytes()), 1);
        made.platform = platform.map(|text| text.parse().expect("a platform"));
        if let Some(about) = about {
            made.annotations.insert("vnd.docker.reference.digest".into(), about.digest.to_string());
        }
        made
    }

    #[test]
    fn platforms_take_their_attestations_along() {
        let amd = child("amd", Some("linux/amd64"), None);
        let arm = child("arm", Some("linux/arm64/v8"), None);
        let of_amd = child("att1", Some("unknown/unknown"), Some(&amd));
        let of_arm = child("att2", Some("unknown/unknown"), Some(&arm));
        let all = [amd.clone(), arm.clone(), of_amd.clone(), of_arm.clone()];
        let (chosen, left_out) =
            select_platforms(&all, &["linux/arm64".parse().expect("a platform")]).expect("there is one");
        assert_eq!(chosen, [&arm, &of_arm]);
        assert_eq!(left_out, [&amd, &of_amd]);
        let error = select_platforms(&all, &["linux/s390x".parse().expect("a platform")]).expect_err("there is none");
        assert_eq!(error.hint_text(), Some("it has linux/amd64, linux/arm64/v8"));
    }

    #[test]
    fn every_image_of_a_platform_is_chosen() {
        let (v6, v7) = (child("v6", Some("linux/arm/v6"), None), child("v7", Some("linux/arm/v7"), None));
        let old = child("2019", Some("windows/amd64:10.0.17763.1"), None);
        let new = child("2022", Some("windows/amd64:10.0.20348.1"), None);
        let all = [v6.clone(), old.clone(), v7.clone(), new.clone()];
        let chosen = |platform: &str| {
            let (chosen, _) = select_platforms(&all, &[platform.parse().expect("a platform")]).expect("there are some");
            chosen.into_iter().cloned().collect::<Vec<_>>()
        };
        assert_eq!(chosen("linux/arm"), [v6.clone(), v7]);
        assert_eq!(chosen("linux/arm/v6"), [v6]);
        assert_eq!(chosen("windows/amd64"), [old, new.clone()]);
        assert_eq!(chosen("windows/amd64:10.0.20348"), [new]);
    }
}
