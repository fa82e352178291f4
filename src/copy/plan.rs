//! The plan of a copy: the blobs to transfer and the manifests to write, in order. Pure: no I/O.

use std::collections::{BTreeMap, HashSet};

use super::{Graph, Options};
use crate::descriptor::{Descriptor, Digest, total};
use crate::error::{Error, Kind, Result, Side};
use crate::manifest::Manifest;

/// The blobs to transfer, each once, and the manifests to write, in waves.
#[derive(Debug, Default)]
pub struct Plan {
    /// The largest first: a blob that takes long must not start last.
    pub blobs: Vec<BlobStep>,
    /// The manifests of a wave name only manifests of earlier waves. The last wave is the root alone.
    pub waves: Vec<Vec<Manifest>>,
    /// Foreign layers, which are not copied.
    pub foreign: Vec<Descriptor>,
    /// Whether the index is written without some of its children.
    pub sparse: bool,
}

/// One blob to transfer.
#[derive(Clone, Debug)]
pub struct BlobStep {
    /// Its descriptor.
    pub blob: Descriptor,
    /// Whether the destination is not asked for it. A config is as new as its manifest, which the destination lacks.
    pub fresh: bool,
}

impl Plan {
    /// The plan for the graph that the walk found.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the image names one blob with two sizes.
    pub fn new(graph: &Graph, options: &Options) -> Result<Self> {
        let mut blobs: BTreeMap<Digest, Descriptor> = BTreeMap::new();
        let mut plan = Self { sparse: !graph.left_out.is_empty(), ..Self::default() };
        for blob in graph.manifests.iter().flat_map(|manifest| &manifest.contents().blobs) {
            if blob.media_type.is_foreign_layer() && !options.include_foreign {
                plan.foreign.push(blob.clone());
                continue;
            }
            let known = blobs.entry(blob.digest).or_insert_with(|| blob.clone());
            if known.size != blob.size {
                let what = format!(
                    "the image names blob {} with two sizes: {} and {} bytes",
                    blob.digest, known.size, blob.size
                );
                return Err(Error::new(Kind::Invalid, what).on(Side::Source));
            }
        }
        let configs: HashSet<Digest> =
            graph.manifests.iter().filter_map(|manifest| manifest.contents().config).collect();
        let step = |blob: Descriptor| BlobStep { fresh: !options.force && configs.contains(&blob.digest), blob };
        plan.blobs = blobs.into_values().map(step).collect();
        plan.blobs.sort_by_key(|step| std::cmp::Reverse(step.blob.size));
        let heights = graph.heights();
        for manifest in graph.manifests.iter().rev() {
            let height = heights.get(&manifest.digest()).copied().unwrap_or_default();
            if plan.waves.len() <= height {
                plan.waves.resize_with(height + 1, Vec::new);
            }
            plan.waves[height].push(manifest.clone());
        }
        Ok(plan)
    }

    /// The size of all blobs, in bytes.
    pub fn bytes(&self) -> u64 {
        total(self.blobs.iter().map(|step| step.blob.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn manifest(text: &str) -> Manifest {
        Manifest::read(Bytes::copy_from_slice(text.as_bytes()), None, None).expect("a manifest")
    }

    fn blob(media_type: &str, name: &str, size: u64) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{size}}}"#, Digest::of(name.as_bytes()))
    }

    fn image(config: &str, layers: &[String]) -> Manifest {
        manifest(&format!(r#"{{"config":{config},"layers":[{}]}}"#, layers.join(",")))
    }

    fn index(children: &[&Manifest]) -> Manifest {
        let children: Vec<_> = children
            .iter()
            .map(|child| {
                format!(
                    r#"{{"mediaType":"{}","digest":"{}","size":{}}}"#,
                    child.descriptor().media_type,
                    child.digest(),
                    child.descriptor().size
                )
            })
            .collect();
        manifest(&format!(r#"{{"manifests":[{}]}}"#, children.join(",")))
    }

    #[test]
    fn each_blob_is_planned_once_the_largest_first_without_foreign_layers() {
        let foreign = blob("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "f", 99);
        let one = image(&blob("c", "c1", 1), &[blob("l", "base", 50), foreign]);
        let two = image(&blob("c", "c2", 2), &[blob("l", "base", 50), blob("l", "top", 70)]);
        let root = index(&[&one, &two]);
        let graph = Graph { manifests: vec![root, one, two], ..Graph::default() };
        let plan = Plan::new(&graph, &Options::default()).expect("plans");
        assert_eq!(plan.blobs.iter().map(|step| step.blob.size).collect::<Vec<_>>(), [70, 50, 2, 1]);
        assert_eq!(plan.foreign.len(), 1);
        let with = Plan::new(&graph, &Options { include_foreign: true, ..Options::default() }).expect("plans");
        assert_eq!(with.blobs.len(), 5);
    }

    /// A manifest that is named at two depths is written before both manifests that name it.
    #[test]
    fn waves_are_children_first_even_where_depths_mix() {
        let leaf = image(&blob("c", "c1", 1), &[]);
        let inner = index(&[&leaf]);
        let root = index(&[&leaf, &inner]);
        let graph = Graph { manifests: vec![root.clone(), leaf.clone(), inner.clone()], ..Graph::default() };
        let plan = Plan::new(&graph, &Options::default()).expect("plans");
        let order: Vec<Vec<Digest>> =
            plan.waves.iter().map(|wave| wave.iter().map(Manifest::digest).collect()).collect();
        assert_eq!(order, [vec![leaf.digest()], vec![inner.digest()], vec![root.digest()]]);
    }

    #[test]
    fn two_sizes_of_one_blob_are_refused() {
        let one = image(&blob("c", "same", 1), &[blob("l", "same", 2)]);
        let graph = Graph { manifests: vec![one], ..Graph::default() };
        assert_eq!(Plan::new(&graph, &Options::default()).err().map(|e| e.kind()), Some(Kind::Invalid));
    }
}
