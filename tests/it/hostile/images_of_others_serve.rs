//! A directory that is served holds several repositories, and content by digest. Who knows a digest of one repository
//! asks for it under another: a proxy in front of the server may let a client read only some repositories.

use serde_json::{Value, json};

use crate::support::http::{self, Reply};
use crate::support::images::{Document, OCI_INDEX, OCI_MANIFEST};
use crate::support::push::push_blob;
use crate::support::{Image, ServeProcess, TempDir};

/// A server with an image and its signature in `private/app`, and another image in `public/app`.
struct World {
    dir: TempDir,
    serving: ServeProcess,
    private: Image,
    signature: Image,
    public: Image,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new();
        let serving = serve(&dir);
        let private = Image::single(1, &[3000]);
        let signature = Image::artifact(2, "application/x-signature", Some(&private));
        let public = Image::single(3, &[4000]);
        private.push(serving.addr(), "private/app", "v1");
        signature.blobs.iter().for_each(|blob| push_blob(serving.addr(), "private/app", blob, &[]));
        let world = Self { dir, serving, private, signature, public };
        world.put("private/app", world.signature.root(), None).expect(201);
        world.public.push(world.serving.addr(), "public/app", "v1");
        world
    }

    fn restart(&mut self) {
        self.serving.process.kill();
        self.serving = serve(&self.dir);
    }

    fn put(&self, repository: &str, manifest: &Document, tag: Option<&str>) -> Reply {
        let path = format!("/v2/{repository}/manifests/{}", tag.unwrap_or(&manifest.digest));
        http::send(self.serving.addr(), "PUT", &path, &[("content-type", &manifest.media_type)], &manifest.bytes)
    }

    fn status(&self, method: &str, repository: &str, kind: &str, digest: &str) -> u16 {
        http::send(self.serving.addr(), method, &format!("/v2/{repository}/{kind}/{digest}"), &[], &[]).status
    }

    /// The private image and its parts are readable where they belong, and in no other repository.
    #[track_caller]
    fn assert_private(&self) {
        for repository in ["private/app", "public/app", "other"] {
            let expected = if repository == "private/app" { 200 } else { 404 };
            for method in ["GET", "HEAD"] {
                for image in [&self.private, &self.signature] {
                    let status = self.status(method, repository, "manifests", image.digest());
                    assert_eq!(status, expected, "{method} {repository}: a manifest");
                }
                let layer = &self.private.blobs[1].digest;
                assert_eq!(self.status(method, repository, "blobs", layer), expected, "{method} {repository}: a blob");
            }
            let path = format!("/v2/{repository}/referrers/{}", self.private.digest());
            let list = http::get(self.serving.addr(), &path).expect(200).json();
            let listed = list["manifests"].as_array().map(Vec::len);
            assert_eq!(listed, Some(usize::from(expected == 200)), "{repository}: referrers");
        }
    }
}

fn serve(dir: &TempDir) -> ServeProcess {
    ServeProcess::start(&dir.path().join("images"), &["--writable", "--keep-free", "0"])
}

fn index(children: &[Value]) -> Document {
    Document::new(OCI_INDEX, &json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}))
}

#[test]
fn a_digest_is_no_key_to_another_repository() {
    let mut world = World::new();
    world.assert_private();
    world.restart();
    world.assert_private();
}

/// The attacker pushes a manifest that names a blob of another repository, to have it served under their own.
#[test]
fn a_manifest_does_not_bring_blobs_of_another_repository() {
    let world = World::new();
    let refused = world.put("public/app", world.private.root(), Some("stolen")).expect(404);
    assert_eq!(refused.json()["errors"][0]["code"], "MANIFEST_BLOB_UNKNOWN");
    world.assert_private();
}

/// The attacker pushes an index that names an image of their own, so that it is taken, and the private one beside it:
/// by digest, by tag, and within another index.
#[test]
fn an_index_does_not_bring_images_of_another_repository() {
    let mut world = World::new();
    let both = index(&[world.public.descriptor(), world.private.descriptor()]);
    let size = both.bytes.len();
    world.put("public/app", &both, None).expect(201);
    world.put("public/app", &both, Some("both")).expect(201);
    let outer = index(&[json!({"mediaType": OCI_INDEX, "digest": both.digest, "size": size})]);
    world.put("public/app", &outer, Some("outer")).expect(201);
    world.assert_private();
    world.restart();
    world.assert_private();
    for digest in [&both.digest, &outer.digest, &world.public.root().digest] {
        assert_eq!(world.status("GET", "public/app", "manifests", digest), 200, "what is their own is served");
    }
    // The same index where both images belong.
    world.public.push(world.serving.addr(), "private/app", "public");
    world.put("private/app", &both, Some("both")).expect(201);
    assert_eq!(world.status("GET", "private/app", "manifests", world.private.digest()), 200);
}

/// The attacker names the private blob as a layer that its owner doesn't allow to be distributed, which a manifest may
/// name although it isn't there.
#[test]
fn a_foreign_layer_does_not_bring_a_blob_of_another_repository() {
    let mut world = World::new();
    let mut body: Value = serde_json::from_slice(world.public.bytes()).expect("JSON");
    let stolen = &world.private.blobs[1];
    body["layers"].as_array_mut().expect("layers").push(json!({
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "digest": stolen.digest,
        "size": stolen.bytes.len(),
    }));
    let manifest = Document::new(OCI_MANIFEST, &body);
    world.put("public/app", &manifest, None).expect(201);
    let around = json!({"mediaType": OCI_MANIFEST, "digest": manifest.digest, "size": manifest.bytes.len()});
    world.put("public/app", &index(&[around]), Some("around")).expect(201);
    world.assert_private();
    world.restart();
    world.assert_private();
    assert_eq!(world.status("GET", "public/app", "manifests", &manifest.digest), 200);
}

/// The attacker signs with their own artifact about the private image: that gives them their own list, and nothing else.
#[test]
fn a_referrer_does_not_bring_its_subject() {
    let world = World::new();
    let own = Image::artifact(9, "application/x-own", Some(&world.private));
    own.blobs.iter().for_each(|blob| push_blob(world.serving.addr(), "other", blob, &[]));
    world.put("other", own.root(), None).expect(201);
    let list = |repository: &str| {
        let path = format!("/v2/{repository}/referrers/{}", world.private.digest());
        let list = http::get(world.serving.addr(), &path).expect(200).json();
        let listed = list["manifests"].as_array().expect("a list").iter();
        listed.map(|entry| entry["digest"].as_str().expect("a digest").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list("other"), [own.digest()]);
    assert_eq!(list("private/app"), [world.signature.digest()]);
    assert_eq!(world.status("GET", "other", "manifests", world.private.digest()), 404);
    assert_eq!(world.status("GET", "other", "manifests", own.digest()), 200);
}

/// A mount takes a blob over without its bytes: only from a repository that has it, and which the client names.
#[test]
fn a_blob_is_mounted_only_from_a_repository_that_holds_it() {
    let world = World::new();
    let layer = &world.private.blobs[1].digest;
    let mount = |from: &str| {
        let path = format!("/v2/other/blobs/uploads/?mount={layer}{from}");
        http::send(world.serving.addr(), "POST", &path, &[], &[]).status
    };
    for from in ["", "&from=public/app", "&from=nothing", "&from=other"] {
        assert_eq!(mount(from), 202, "{from:?}: a session instead");
        assert_eq!(world.status("GET", "other", "blobs", layer), 404, "{from:?}");
    }
    assert_eq!(mount("&from=private/app"), 201);
    assert_eq!(world.status("GET", "other", "blobs", layer), 200);
    assert_eq!(mount(""), 201, "it's there already");
}

/// What belongs to a repository stays readable by digest: pushed without a tag, after its tag went to another image,
/// and over a restart.
#[test]
fn what_is_ones_own_is_served_by_digest() {
    let mut world = World::new();
    let (untagged, second) = (Image::nested(4), Image::index(5, 3, &[2000]));
    for blob in &untagged.blobs {
        push_blob(world.serving.addr(), "public/app", blob, &[]);
    }
    for manifest in &untagged.manifests {
        world.put("public/app", manifest, None).expect(201);
    }
    second.push(world.serving.addr(), "public/app", "v1");
    for _ in 0..2 {
        for image in [&world.public, &untagged, &second] {
            for manifest in &image.manifests {
                assert_eq!(world.status("GET", "public/app", "manifests", &manifest.digest), 200);
                assert_eq!(world.status("GET", "private/app", "manifests", &manifest.digest), 404);
            }
            for blob in &image.blobs {
                assert_eq!(world.status("GET", "public/app", "blobs", &blob.digest), 200);
                assert_eq!(world.status("GET", "private/app", "blobs", &blob.digest), 404);
            }
        }
        world.restart();
    }
    // What other tools see: roots only, each with its name or the repository that it was pushed to.
    let text = std::fs::read(world.dir.path().join("images/index.json")).expect("an index");
    let listed: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(listed["manifests"].as_array().map(Vec::len), Some(5), "{listed}");
}
