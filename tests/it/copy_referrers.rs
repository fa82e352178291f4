//! `transload copy --referrers`: what it copies, and how many requests that takes.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::images::PLATFORMS;
use crate::support::{Fault, Front, Image, Registry, Rule, ServeProcess, TempDir, http, transload};

/// An index of 24 images, and everything that refers to it.
struct Tree {
    image: Image,
    /// Each referrer and its subject.
    referrers: Vec<(Image, Image)>,
    /// Artifacts at tags that are named after a digest.
    tagged: Vec<(Image, String)>,
}

impl Tree {
    /// 24 images with one config and one layer each; three artifacts about the index, a chain of two about the first of
    /// these, one about a child image; a signature and an attestation of the index at cosign's tags.
    fn new() -> Self {
        let children = (0..24).zip(PLATFORMS.iter().cycle()).map(|(nth, (os, architecture, _))| {
            let image = Image::single(7000 + nth, &[2000]);
            (image, json!({"platform": {"os": os, "architecture": architecture, "variant": format!("v{nth}")}}))
        });
        let image = Image::index_of(children.collect(), false);
        assert_eq!((image.manifests.len(), image.blobs.len()), (25, 48));
        let child = Image { blobs: vec![], manifests: vec![image.manifests[3].clone()] };
        let about = |seed: u64, subject: &Image| Image::artifact(seed, "application/vnd.example", Some(subject));
        let direct: Vec<Image> = (11..14).map(|seed| about(seed, &image)).collect();
        let nested = about(14, &direct[0]);
        let last = about(15, &nested);
        let of_child = about(16, &child);
        let mut referrers: Vec<(Image, Image)> = direct.iter().map(|found| (found.clone(), image.clone())).collect();
        referrers.extend([(nested.clone(), direct[0].clone()), (last, nested), (of_child, child)]);
        let attestation = Image::artifact(17, "application/vnd.dsse.envelope.v1+json", None);
        let tagged = vec![
            (Image::signature(&image), image.cosign_tag()),
            (attestation, format!("{}.att", image.referrers_tag())),
        ];
        Self { image, referrers, tagged }
    }

    /// Pushes all of it. At a registry without the referrers API also the lists of the tag schema.
    fn push(&self, at: SocketAddr, has_api: bool) {
        self.image.push(at, "app", "v1");
        for (artifact, _) in &self.referrers {
            artifact.push(at, "app", artifact.digest());
        }
        for (artifact, tag) in &self.tagged {
            artifact.push(at, "app", tag);
        }
        if !has_api {
            for subject in self.subjects() {
                let (subject, artifacts) = self.about(&subject);
                Image::referrers(&artifacts).push(at, "app", &subject.referrers_tag());
            }
        }
    }

    fn subjects(&self) -> BTreeSet<String> {
        self.referrers.iter().map(|(_, subject)| subject.digest().to_owned()).collect()
    }

    /// The subject with this digest, and the artifacts about it.
    fn about(&self, digest: &str) -> (&Image, Vec<Image>) {
        let about: Vec<&(Image, Image)> =
            self.referrers.iter().filter(|(_, subject)| subject.digest() == digest).collect();
        (&about[0].1, about.iter().map(|(artifact, _)| artifact.clone()).collect())
    }

    /// Fails the test unless the registry holds all of it, byte by byte, and lists each referrer once, and has no other
    /// tags.
    fn assert_at(&self, at: SocketAddr, has_api: bool) {
        self.image.assert_at(at, "app", "v1");
        for (artifact, _) in &self.referrers {
            artifact.assert_at(at, "app", artifact.digest());
        }
        let mut tags = BTreeSet::from(["v1".to_owned()]);
        for (artifact, tag) in &self.tagged {
            artifact.assert_at(at, "app", tag);
            tags.insert(tag.clone());
        }
        for digest in self.subjects() {
            let (subject, artifacts) = self.about(&digest);
            let wanted: BTreeSet<String> = artifacts.iter().map(|artifact| artifact.digest().to_owned()).collect();
            let listed = listed(at, subject, has_api);
            assert_eq!(listed.len(), wanted.len(), "each once");
            assert_eq!(BTreeSet::from_iter(listed), wanted);
            if !has_api {
                tags.insert(subject.referrers_tag());
            }
        }
        assert_eq!(listed_tags(at), tags);
    }
}

/// The digests that a registry lists as referring to `subject`, by the API or the tag schema.
fn listed(at: SocketAddr, subject: &Image, has_api: bool) -> Vec<String> {
    let path = match has_api {
        true => format!("/v2/app/referrers/{}", subject.digest()),
        false => format!("/v2/app/manifests/{}", subject.referrers_tag()),
    };
    let list = http::get(at, &path).expect(200).json();
    let entries = list["manifests"].as_array().expect("a list");
    entries.iter().map(|entry| entry["digest"].as_str().expect("a digest").to_owned()).collect()
}

fn listed_tags(at: SocketAddr) -> BTreeSet<String> {
    let list = http::get(at, "/v2/app/tags/list").expect(200).json();
    let tags = list["tags"].as_array().expect("a list");
    tags.iter().map(|tag| tag.as_str().expect("a tag").to_owned()).collect()
}

/// A registry of either kind: Debian's docker-registry, which has no referrers API, or our own server, which has it.
/// The front before it counts requests.
struct End {
    front: Front,
    at: SocketAddr,
    has_api: bool,
    _registry: (Option<Registry>, Option<(ServeProcess, TempDir)>),
}

impl End {
    fn start(has_api: bool) -> Self {
        let registry = if has_api {
            let directory = TempDir::new();
            let served = ServeProcess::start(directory.path(), &["--writable"]);
            (None, Some((served, directory)))
        } else {
            (Some(Registry::start()), None)
        };
        let at = match &registry {
            (Some(registry), _) => registry.addr(),
            (_, Some((served, _))) => served.addr(),
            _ => unreachable!("one of the two"),
        };
        Self { front: Front::before(at).start(), at, has_api, _registry: registry }
    }

    fn image(&self) -> String {
        format!("{}/app:v1", self.front.addr())
    }
}

/// Copies with `--referrers`. Returns the number of referrers, and of requests to the source and to the destination.
#[track_caller]
fn copy(from: &End, to: &End) -> (Value, usize, usize) {
    from.front.reset_log();
    to.front.reset_log();
    let document = transload(&["copy", &from.image(), &to.image(), "--referrers", "--output", "json"]).ok().json();
    (document["images"][0]["referrers"].clone(), from.front.log().len(), to.front.log().len())
}

/// All four pairs of registries with and without the referrers API. Requests to the source and the destination when this was
/// written:
///
/// | API at the source | API at the destination | cold | nothing to do |
/// | --- | --- | --- | --- |
/// | no | no | 102 + 170 | 11 + 15 |
/// | no | yes | 102 + 157 | 11 + 14 |
/// | yes | no | 130 + 170 | 39 + 15 |
/// | yes | yes | 130 + 157 | 39 + 14 |
///
/// Three requests for each manifest took 249 + 170 without the API at both ends.
#[test]
fn a_tree_with_referrers_takes_few_requests() {
    let tree = Tree::new();
    for (from, to) in [(false, false), (true, true), (false, true), (true, false)] {
        let (source, destination) = (End::start(from), End::start(to));
        tree.push(source.at, source.has_api);
        let (referrers, at_source, at_destination) = copy(&source, &destination);
        assert_eq!(referrers, 8);
        tree.assert_at(destination.at, destination.has_api);
        assert!(at_source + at_destination <= 340, "cold: {at_source} + {at_destination}");
        let (referrers, at_source, at_destination) = copy(&source, &destination);
        assert_eq!(referrers, 8);
        assert!(at_source + at_destination <= 60, "nothing to do: {at_source} + {at_destination}");
        let reads = ["GET", "HEAD"];
        assert!(destination.front.log().iter().all(|seen| reads.contains(&seen.method.as_str())), "nothing is written");
        tree.assert_at(destination.at, destination.has_api);
    }
}

/// Fails the test unless the copy brings `tree` to a new registry of the same kind. Returns the number of requests for
/// the source's list of tags.
#[track_caller]
fn copies_all(tree: &Tree, source: &End) -> usize {
    let destination = End::start(source.has_api);
    let (referrers, ..) = copy(source, &destination);
    assert_eq!(referrers, 8);
    tree.assert_at(destination.at, destination.has_api);
    source.front.count("GET", "/tags/list")
}

/// "Nothing to do" is found by looking: what is new or changed at the source is copied, at each level.
#[test]
fn a_changed_or_added_referrer_is_copied() {
    for has_api in [false, true] {
        let (source, destination) = (End::start(has_api), End::start(has_api));
        let mut tree = Tree::new();
        tree.push(source.at, has_api);
        copy(&source, &destination);
        tree.assert_at(destination.at, has_api);

        let last = tree.referrers[4].0.clone();
        let child = Image { blobs: vec![], manifests: vec![tree.image.manifests[7].clone()] };
        for (seed, subject) in [(21, tree.image.clone()), (22, last), (23, child.clone())] {
            tree.referrers.push((Image::artifact(seed, "application/vnd.new", Some(&subject)), subject));
        }
        // Another signature under the same tag, and tags that were not there.
        tree.tagged[0].0 = Image::artifact(24, "application/vnd.signature", None);
        for (seed, tag) in [(25, format!("{}.vex", tree.image.referrers_tag())), (26, child.cosign_tag())] {
            tree.tagged.push((Image::artifact(seed, "application/vnd.new", None), tag));
        }
        tree.push(source.at, has_api);
        let (referrers, ..) = copy(&source, &destination);
        assert_eq!(referrers, 13);
        tree.assert_at(destination.at, has_api);
        if has_api {
            // Our server does not delete.
            continue;
        }
        // What the destination lost is brought again, though the source did not change.
        let lost = &tree.referrers[4].0;
        http::send(destination.at, "DELETE", &format!("/v2/app/manifests/{}", lost.digest()), &[], &[]).expect(202);
        copy(&source, &destination);
        tree.assert_at(destination.at, has_api);
    }
}

/// Whatever the suffix, and whatever it is named after: the image, a child image, or an artifact about them.
#[test]
fn tags_that_are_named_after_a_digest_are_copied_with_any_suffix() {
    for has_api in [false, true] {
        let (source, destination) = (End::start(has_api), End::start(has_api));
        let mut tree = Tree::new();
        let child = Image { blobs: vec![], manifests: vec![tree.image.manifests[9].clone()] };
        let (artifact, signature) = (tree.referrers[3].0.clone(), tree.tagged[0].0.clone());
        let named = [(&tree.image, ".vex"), (&tree.image, ".cosign-bundle"), (&child, ".vex"), (&child, "-a.sbom")];
        let tags: Vec<String> = named
            .into_iter()
            .chain([(&artifact, ".intoto"), (&signature, ".sig")])
            .map(|(subject, suffix)| format!("{}{suffix}", subject.referrers_tag()))
            .collect();
        for (seed, tag) in (31..).zip(tags) {
            tree.tagged.push((Image::artifact(seed, "application/vnd.example", None), tag));
        }
        tree.push(source.at, has_api);
        // Not about this image.
        let other = Image::single(7999, &[2000]);
        Image::signature(&other).push(source.at, "app", &other.cosign_tag());
        let (referrers, ..) = copy(&source, &destination);
        assert_eq!(referrers, 14);
        tree.assert_at(destination.at, has_api);
    }
}

/// A list of tags that has no end costs ten requests for an index of 24 images and two for a single image. Everything is
/// copied all the same.
#[test]
fn a_long_list_of_tags_is_given_up() {
    for has_api in [false, true] {
        let (tree, source) = (Tree::new(), End::start(has_api));
        tree.push(source.at, has_api);
        let single = Image::single(7998, &[2000]);
        single.push(source.at, "single", "v1");
        let signature = Image::signature(&single);
        signature.push(source.at, "single", &single.cosign_tag());
        source.front.choose(|seen| {
            let page: u64 = seen.query.split("page=").nth(1).map_or(0, |page| page.parse().expect("a number"));
            let body = json!({"name": "app", "tags": ["v1", format!("v1.{page}")]}).to_string();
            let next = format!("?n=2&page={}", page + 1);
            seen.path.ends_with("/tags/list").then_some(Fault::Page { body, next: Some(next) })
        });
        assert_eq!(copies_all(&tree, &source), 10);
        source.front.reset_log();
        let to = Registry::start();
        let image = format!("{}/single:v1", source.front.addr());
        transload(&["copy", &image, &format!("{}/app:v1", to.addr()), "--referrers"]).ok();
        signature.assert_at(to.addr(), "app", &single.cosign_tag());
        assert_eq!(source.front.count("GET", "/tags/list"), 2);
    }
}

/// Some registries do not list tags for everyone, and a pull-through cache may list only the tags that it holds.
#[test]
fn a_list_of_tags_that_is_refused_or_lacks_tags_is_not_believed() {
    let lists = |tags: Value| Fault::Page { body: json!({"name": "app", "tags": tags}).to_string(), next: None };
    for has_api in [false, true] {
        let (mut tree, source) = (Tree::new(), End::start(has_api));
        let signed_child = Image { blobs: vec![], manifests: vec![tree.image.manifests[5].clone()] };
        tree.tagged.push((Image::signature(&signed_child), signed_child.cosign_tag()));
        tree.push(source.at, has_api);
        let refused = [401, 403, 404, 405].map(Fault::status);
        let lacking = [lists(Value::Null), lists(json!([])), lists(json!(["v1"])), lists(json!(["other"]))];
        for fault in refused.into_iter().chain(lacking) {
            source.front.clear_rules();
            source.front.add(Rule::on("GET", "/tags/list", fault.clone()));
            let destination = End::start(has_api);
            let (referrers, ..) = copy(&source, &destination);
            assert_eq!(referrers, 9, "{fault:?}");
            tree.assert_at(destination.at, has_api);
        }
    }
}

/// A registry that answered one request to the referrers API has the API. A refusal of another one is about that manifest.
#[test]
fn one_refused_list_of_referrers_does_not_hide_the_others() {
    let (tree, source) = (Tree::new(), End::start(true));
    tree.push(source.at, true);
    for code in [404, 403] {
        source.front.clear_rules();
        let path = format!("/referrers/{}", tree.image.manifests[0].digest);
        source.front.add(Rule::on("GET", &path, Fault::status(code)));
        copies_all(&tree, &source);
        assert_eq!(source.front.struck(), 1);
    }
}

/// A registry without the referrers API is asked for it once, and not once for each of 25 manifests.
#[test]
fn a_registry_without_the_referrers_api_is_asked_once() {
    let (tree, source, destination) = (Tree::new(), End::start(false), End::start(false));
    tree.push(source.at, false);
    copy(&source, &destination);
    assert_eq!((source.front.count("GET", "/referrers/"), destination.front.count("GET", "/referrers/")), (1, 1));
    // Only the lists of the tag schema that exist are read.
    let lists = |seen: &&crate::support::SeenRequest| {
        let tag = seen.path.rsplit('/').next().unwrap_or_default();
        seen.method == "GET" && tag.starts_with("sha256-") && !tag.contains('.')
    };
    assert_eq!(source.front.log().iter().filter(lists).count(), 4);
}

/// The images of a mirror's list share the list of tags.
#[test]
fn a_mirror_reads_the_list_of_tags_once_for_a_repository() {
    let (source, to, directory) = (End::start(false), Registry::start(), TempDir::new());
    let images: Vec<Image> = (0..6).map(|nth| Image::single(7900 + nth, &[2000])).collect();
    for (nth, image) in images.iter().enumerate() {
        image.push(source.at, "app", &format!("v{nth}"));
        Image::signature(image).push(source.at, "app", &image.cosign_tag());
        let sbom = Image::artifact(7950 + nth as u64, "application/spdx+json", Some(image));
        Image::referrers(&[sbom]).push(source.at, "app", &image.referrers_tag());
    }
    let tags = "[v0, v1, v2, v3, v4, v5]";
    let entry = format!("images: [{{source: {}/app, tags: {tags}, referrers: true}}]\n", source.front.addr());
    let list = directory.write("list.yaml", entry);
    let document = transload(&["mirror", &list, "--to", &to.addr().to_string(), "--output", "json"]).ok().json();
    let entries = document["images"].as_array().expect("images");
    assert!(entries.len() == 6 && entries.iter().all(|image| image["referrers"] == 2), "{document}");
    for image in &images {
        Image::signature(image).assert_at(to.addr(), "app", &image.cosign_tag());
        assert_eq!(listed(to.addr(), image, false).len(), 1);
    }
    assert_eq!(source.front.count("GET", "/tags/list"), 1);
}
