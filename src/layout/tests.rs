use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::*;
use crate::descriptor::MediaType;
use crate::retry::Budget;

/// A directory that is removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("transload-layout-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }

    async fn create(&self) -> Layout {
        Layout::create(&self.0).await.expect("a layout")
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(&self.0)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.0.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    fn index(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.0.join("index.json")).expect("an index")).expect("JSON")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A source of one blob, given as its frames; reading fails at the end if `broken`.
#[derive(Clone)]
struct Frames {
    frames: Vec<&'static [u8]>,
}

impl Source for Frames {
    async fn resolve(&self, _: &Target) -> Result<Option<Descriptor>> {
        Ok(None)
    }
    async fn manifest(&self, target: &Target) -> Result<Manifest> {
        Err(Error::new(Kind::NotFound, target.to_string()))
    }
    async fn blob(&self, _: &Descriptor, _: u64) -> Result<Body> {
        let frames: Vec<_> = self.frames.iter().map(|frame| Ok(Bytes::from_static(frame))).collect();
        Ok(stream::iter(frames).boxed())
    }
    async fn referrers(&self, _: &Digest) -> Result<Vec<Descriptor>> {
        Ok(Vec::new())
    }
    fn tags(&self) -> crate::content::TagPages {
        stream::empty().boxed()
    }
}

fn manifest(text: &str) -> Manifest {
    Manifest::read(Bytes::copy_from_slice(text.as_bytes()), None, None).expect("a manifest")
}

fn part(content: &str) -> String {
    let digest = Digest::of(content.as_bytes());
    format!(r#"{{"mediaType":"application/octet-stream","digest":"{digest}","size":{}}}"#, content.len())
}

fn reference_to(manifest: &Manifest) -> String {
    serde_json::to_string(manifest.descriptor()).expect("JSON")
}

/// An image whose config is `{}` and whose one layer is `content`.
pub(super) fn image(content: &str) -> Manifest {
    manifest(&format!(r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#, part("{}"), part(content)))
}

pub(super) fn index_of(children: &[&Manifest]) -> Manifest {
    let children: Vec<_> = children.iter().map(|child| reference_to(child)).collect();
    manifest(&format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, children.join(",")))
}

pub(super) fn referrer(subject: &Manifest, kind: &str) -> Manifest {
    manifest(&format!(
        r#"{{"schemaVersion":2,"artifactType":"test/{kind}","config":{},"layers":[],"subject":{},"annotations":{{"k":"v"}}}}"#,
        part("{}"),
        reference_to(subject)
    ))
}

fn blob_of(content: &[u8]) -> Descriptor {
    Descriptor::new("application/octet-stream", Digest::of(content), content.len() as u64)
}

fn tag(text: &str) -> Target {
    Target::Tag(text.into())
}

async fn send<S: Source>(from: S, blob: Descriptor, to: &Layout) -> Result<()> {
    let feed = Feed::new(from, blob.clone(), Budget::new(0, std::time::Duration::ZERO), Arc::new(|_| {}));
    let UploadStart::Session(session) = to.start_upload(&blob, None).await? else { panic!("nothing to mount from") };
    let body = feed.open(0).await?;
    to.upload(session, &feed, body).await
}

async fn store(layout: &Layout, content: &'static [u8]) {
    send(Frames { frames: vec![content] }, blob_of(content), layout).await.expect("stored");
}

async fn put(layout: &Layout, manifest: &Manifest, name: Option<&str>) {
    let at = name.map_or_else(|| Target::Digest(manifest.digest()), tag);
    layout.put_manifest(manifest, &at).await.expect("put");
}

#[tokio::test]
async fn an_image_goes_from_directory_to_directory() {
    let (one, two) = (Dir::new(), Dir::new());
    let source = one.create().await;
    store(&source, b"{}").await;
    store(&source, b"a layer").await;
    put(&source, &image("a layer"), Some("v1")).await;

    let target = two.create().await;
    let read = source.manifest(&tag("v1")).await.expect("reads");
    for blob in &read.contents().blobs {
        assert!(!target.has_blob(blob).await.expect("asks"));
        send(source.clone(), blob.clone(), &target).await.expect("sent");
        assert!(target.has_blob(blob).await.expect("asks"));
    }
    put(&target, &read, Some("v2")).await;

    assert_eq!(two.files(), ["blobs", "index.json", "oci-layout"], "as the spec draws it, and nothing else");
    let entry = &two.index()["manifests"][0];
    assert_eq!(entry["annotations"]["org.opencontainers.image.ref.name"], "v2");
    assert_eq!(entry["mediaType"], MediaType::OCI_MANIFEST);
    assert_eq!(std::fs::read(two.blob(&Digest::of(b"a layer"))).expect("a blob"), b"a layer");
    let again = Layout::open(&two.0).await.expect("opens");
    assert_eq!(again.resolve_existing(&tag("v2")).await.expect("asks").map(|d| d.digest), Some(read.digest()));
    assert_eq!(again.resolve(&tag("v1")).await.expect("asks"), None);
}

#[tokio::test]
async fn wrong_bytes_leave_nothing() {
    let dir = Dir::new();
    let layout = dir.create().await;
    let error = send(Frames { frames: vec![b"hello ", b"wOrld"] }, blob_of(b"hello world"), &layout).await;
    assert_eq!(error.expect_err("mismatch").kind(), Kind::Mismatch);
    assert_eq!(dir.files(), ["blobs", "index.json", "oci-layout"]);
    assert!(layout.open_blob(&Digest::of(b"hello world")).await.expect("asks").is_none());
}

#[tokio::test]
async fn a_blob_of_the_wrong_size_is_not_trusted_and_mended() {
    let dir = Dir::new();
    let layout = dir.create().await;
    let blob = blob_of(b"whole");
    std::fs::create_dir_all(dir.blob(&blob.digest).parent().expect("a parent")).expect("made");
    std::fs::write(dir.blob(&blob.digest), b"who").expect("written");
    assert!(!layout.has_blob(&blob).await.expect("asks"));
    assert_eq!(layout.blob(&blob, 0).await.err().map(|e| e.kind()), Some(Kind::Mismatch));
    store(&layout, b"whole").await;
    assert!(layout.has_blob(&blob).await.expect("asks"));
}

#[tokio::test]
async fn blobs_are_mounted_from_repositories_that_have_them() {
    let dir = Dir::new();
    let whole = dir.create().await;
    let [a, b, c] = ["a", "b", "c"].map(|name| whole.store.repository(&name.into()));
    store(&a, b"shared").await;
    let blob = blob_of(b"shared");
    let start = async |to: &Layout, from: &Layout| to.start_upload(&blob, Some(from.repository())).await;
    assert!(matches!(start(&b, &c).await, Ok(UploadStart::Session(_))), "c has no such blob");
    assert!(!b.has_blob(&blob).await.expect("asks"));
    assert!(matches!(start(&b, &a).await, Ok(UploadStart::Mounted)));
    assert!(b.has_blob(&blob).await.expect("asks") && !c.has_blob(&blob).await.expect("asks"));
    assert!(matches!(b.start_upload(&blob_of(b"other"), Some(a.repository())).await, Ok(UploadStart::Session(_))));
    let elsewhere = "ghcr.io/o/r".parse().expect("a repository");
    assert!(matches!(b.start_upload(&blob, Some(&elsewhere)).await, Ok(UploadStart::Session(_))));
    // To the directory as a whole everything belongs.
    assert!(matches!(start(&whole, &whole).await, Ok(UploadStart::Mounted)));
}

#[tokio::test]
async fn which_image_is_meant() {
    let dir = Dir::new();
    let layout = dir.create().await;
    assert_eq!(layout.select_target(None).await.err().map(|e| e.kind()), Some(Kind::NotFound));
    let (one, two) = (image("1"), image("2"));
    put(&layout, &one, None).await;
    assert_eq!(layout.select_target(None).await.ok(), Some(Target::Digest(one.digest())));
    put(&layout, &one, Some("v1")).await;
    put(&layout, &referrer(&one, "sbom"), None).await;
    put(&layout, &two, Some(&format!("{}.sig", one.digest().referrers_tag()))).await;
    assert_eq!(layout.select_target(None).await.ok(), Some(tag("v1")), "signatures aren't images");
    put(&layout, &two, Some("v2")).await;
    let error = layout.select_target(None).await.expect_err("two");
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.to_string().contains("v1, v2"), "{error}");
    let error = layout.manifest(&tag("v3")).await.expect_err("missing");
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.hint_text().is_some_and(|hint| hint.contains("v1, v2")), "{error}");
}

#[tokio::test]
async fn found_is_what_is_whole() {
    let dir = Dir::new();
    let layout = dir.create().await;
    let (one, two) = (image("1"), image("2"));
    let both = index_of(&[&one, &two]);
    put(&layout, &one, None).await;
    put(&layout, &both, Some("v1")).await;
    let found = async |target: &Target| layout.resolve_existing(target).await.expect("asks").is_some();
    assert!(!found(&Target::Digest(one.digest())).await, "its blobs are missing");
    assert!(!found(&tag("v1")).await, "a child lacks its blobs");
    store(&layout, b"{}").await;
    store(&layout, b"1").await;
    assert!(found(&Target::Digest(one.digest())).await);
    assert!(found(&tag("v1")).await, "sparse, but what is there is whole");
    std::fs::write(dir.blob(&Digest::of(b"1")), b"").expect("written");
    assert!(!found(&tag("v1")).await, "a layer was truncated");
    store(&layout, b"1").await;
    put(&layout, &two, None).await;
    assert!(!found(&tag("v1")).await, "the second child came without its layer");
}

/// Eight indexes, each of which names the next one thirty times: to read each as often as it is named would take 30^7
/// reads.
#[tokio::test]
async fn a_manifest_that_is_named_often_is_read_once() {
    let dir = Dir::new();
    let layout = dir.create().await;
    let mut inner = image("1");
    store(&layout, b"{}").await;
    store(&layout, b"1").await;
    put(&layout, &inner, None).await;
    for _ in 0..7 {
        inner = index_of(&[&inner; 30]);
        put(&layout, &inner, None).await;
    }
    let found = layout.resolve_existing(&Target::Digest(inner.digest())).await.expect("asks");
    assert_eq!(found.map(|found| found.digest), Some(inner.digest()));
}

#[tokio::test]
async fn referrers_by_subject_and_by_tag_schema() {
    let dir = Dir::new();
    let layout = dir.create().await;
    let (one, sig, sbom) = (image("1"), referrer(&image("1"), "sig"), referrer(&image("1"), "sbom"));
    let of_one = async || layout.referrers(&one.digest()).await.expect("asks");
    put(&layout, &one, Some("v1")).await;
    assert!(of_one().await.is_empty());
    let pushed = layout.put_manifest(&sig, &Target::Digest(sig.digest())).await.expect("put");
    assert!(pushed.lists_referrer);
    // By the tag schema both, as another tool would have written it.
    put(&layout, &sbom, Some("a")).await;
    put(&layout, &index_of(&[&sig, &sbom]), Some(&one.digest().referrers_tag())).await;
    let found = of_one().await;
    assert_eq!(found.iter().map(|d| d.digest).collect::<Vec<_>>(), [sig.digest(), sbom.digest()]);
    assert_eq!(found[0].artifact_type.as_deref(), Some("test/sig"));
    assert_eq!(found[0].annotations.get("k").map(String::as_str), Some("v"));
    assert!(layout.referrers(&sig.digest()).await.expect("asks").is_empty());
}

async fn all_tags(layout: &Layout) -> Vec<String> {
    let tags: Vec<_> = layout.tags().map_ok(|page| page.tags).try_concat().await.expect("tags");
    tags.into_iter().map(String::from).collect()
}

#[tokio::test]
async fn repositories_keep_their_tags_apart() {
    let dir = Dir::new();
    let layout = dir.create().await;
    let (a, b) = (layout.store.repository(&"team/a".into()), layout.store.repository(&"b".into()));
    for (at, names) in [(&a, &["v10", "v2", "v1"][..]), (&b, &["v1"])] {
        for name in names {
            put(at, &image(&format!("{}{name}", at.repository().name)), Some(name)).await;
        }
    }
    assert_eq!(all_tags(&a).await, ["v1", "v10", "v2"]);
    assert_eq!(a.tags_page(Some("v1"), 9).await.expect("tags"), ["v10", "v2"]);
    assert_eq!(a.tags_page(Some("v1"), 1).await.expect("tags"), ["v10"]);
    assert_eq!(layout.store.repositories().await.expect("names"), ["b", "team/a"]);
    assert_eq!(b.manifest(&tag("v1")).await.expect("reads").digest(), image("bv1").digest());
    // The whole directory has full names; a tag alone only if one image has it.
    let full = Target::Name("b:v1".into());
    assert_eq!(layout.manifest(&full).await.expect("reads").digest(), image("bv1").digest());
    assert_eq!(layout.manifest(&tag("v10")).await.expect("reads").digest(), image("team/av10").digest());
    assert_eq!(layout.manifest(&tag("v1")).await.expect_err("two").kind(), Kind::Usage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_do_not_lose_each_others_names() {
    let dir = Dir::new();
    let stores = [dir.create().await, dir.create().await];
    let names: Vec<_> = (0..24).map(|n| format!("v{n:02}")).collect();
    let puts = names.iter().enumerate().map(|(n, name)| {
        let layout = stores[n % 2].clone();
        async move { layout.put_manifest(&image(name), &tag(name)).await }
    });
    for put in futures_util::future::join_all(puts).await {
        put.expect("put");
    }
    assert_eq!(all_tags(&stores[0]).await, names);
    assert_eq!(dir.files(), ["blobs", "index.json", "oci-layout"]);
}

#[tokio::test]
async fn other_directories_are_refused() {
    let dir = Dir::new();
    let open = async || Layout::open(&dir.0).await.expect_err("no layout");
    assert!(open().await.to_string().contains("does not exist"));
    std::fs::create_dir_all(dir.0.join("photos")).expect("made");
    assert!(open().await.to_string().contains("no file oci-layout"));
    let error = Layout::create(&dir.0).await.expect_err("not empty");
    assert_eq!(error.kind(), Kind::Usage);
    assert_eq!(dir.files(), ["photos"]);
    std::fs::write(dir.0.join("oci-layout"), br#"{"imageLayoutVersion":"2.0.0"}"#).expect("written");
    assert_eq!(open().await.kind(), Kind::Unsupported);
}

#[tokio::test]
async fn a_listed_manifest_that_is_missing_is_said() {
    let dir = Dir::new();
    let layout = dir.create().await;
    put(&layout, &image("1"), Some("v1")).await;
    std::fs::remove_file(dir.blob(&image("1").digest())).expect("removed");
    let error = layout.manifest(&tag("v1")).await.expect_err("missing");
    assert_eq!(error.kind(), Kind::Invalid);
    for broken in [None, Some(vec![b' '; image("1").bytes().len()])] {
        if let Some(broken) = broken {
            std::fs::write(dir.blob(&image("1").digest()), broken).expect("written");
            assert_eq!(layout.manifest(&tag("v1")).await.expect_err("corrupt").kind(), Kind::Mismatch);
        }
        assert_eq!(layout.resolve_existing(&tag("v1")).await.expect("no error: a copy mends it"), None);
        put(&layout, &image("1"), Some("v1")).await;
        assert!(layout.manifest(&tag("v1")).await.is_ok());
    }
}

#[tokio::test]
async fn a_push_is_hashed_and_keeps_what_came_before_a_fault() {
    let dir = Dir::new();
    let layout = dir.create().await;
    let digest = |text: &[u8]| {
        let mut hasher = Digest::Sha512([0; 64]).hasher();
        hasher.update(text);
        hasher.finish()
    };
    let begin = async || layout.store.create_upload_for(None, Some(Digest::of(b"").hasher())).await.expect("begins");
    let frames = |end: Option<Error>| {
        let parts = [b"he", b"ll"].map(|frame| Ok(Bytes::from_static(frame)));
        stream::iter(parts.into_iter().chain(end.map(Err)).collect::<Vec<_>>())
    };

    let partial = begin().await;
    let fault = partial.append(&mut frames(Some(Error::new(Kind::Network, "reset")))).await;
    assert_eq!(fault.expect_err("a fault").kind(), Kind::Network);
    assert_eq!(partial.size().await.expect("asks"), 4);
    partial.append(&mut stream::iter([Ok(Bytes::from_static(b"o"))])).await.expect("goes on");
    partial.commit(Digest::of(b"hello")).await.expect("is right");
    assert_eq!(std::fs::read(dir.blob(&Digest::of(b"hello"))).expect("a blob"), b"hello");

    for (claimed, right) in
        [(digest(b"hell"), true), (digest(b"hello"), false), (Digest::of(b"hello"), false), (Digest::of(b"hell"), true)]
    {
        let partial = begin().await;
        partial.append(&mut frames(None)).await.expect("written");
        let done = partial.commit(claimed).await;
        assert_eq!(done.is_ok(), right, "{claimed}");
        assert!(done.is_ok() || done.is_err_and(|error| error.kind() == Kind::Mismatch));
    }
    assert_eq!(dir.files(), ["blobs", "index.json", "oci-layout"]);
}

#[tokio::test]
async fn reads_from_anywhere_in_chunks() {
    let dir = Dir::new();
    let layout = dir.create().await;
    let content: &'static [u8] = (0..IO_CHUNK * 2 + 3).map(|n| (n % 251) as u8).collect::<Vec<_>>().leak();
    store(&layout, content).await;
    for from in [0, 1, IO_CHUNK - 1, IO_CHUNK, content.len() - 1, content.len()] {
        let body = layout.blob(&blob_of(content), from as u64).await.expect("opens");
        let frames: Vec<Bytes> = body.try_collect().await.expect("reads");
        assert!(frames.iter().all(|frame| !frame.is_empty() && frame.len() <= IO_CHUNK));
        assert!(frames.concat() == content[from..], "{from}");
    }
}

/// A source of one blob that says from which bytes it was asked, and breaks off at `end`.
#[derive(Clone)]
struct Breaking {
    content: Arc<Vec<u8>>,
    end: usize,
    asked: Arc<std::sync::Mutex<Vec<u64>>>,
}

impl Breaking {
    fn new(size: usize) -> Self {
        let content = (0..size).map(|nth| (nth * 31 / 7) as u8).collect();
        Self { content: Arc::new(content), end: size, asked: Arc::default() }
    }

    fn until(&self, end: usize) -> Self {
        Self { end, ..self.clone() }
    }

    fn asked(&self) -> Vec<u64> {
        std::mem::take(&mut self.asked.lock().expect("no panic while held"))
    }
}

impl Source for Breaking {
    async fn resolve(&self, _: &Target) -> Result<Option<Descriptor>> {
        Ok(None)
    }
    async fn manifest(&self, target: &Target) -> Result<Manifest> {
        Err(Error::new(Kind::NotFound, target.to_string()))
    }
    async fn blob(&self, _: &Descriptor, from: u64) -> Result<Body> {
        self.asked.lock().expect("no panic while held").push(from);
        let mut frames = vec![Ok(Bytes::copy_from_slice(&self.content[from as usize..self.end]))];
        if self.end < self.content.len() {
            frames.push(Err(Error::new(Kind::Denied, "it broke off")));
        }
        Ok(stream::iter(frames).boxed())
    }
    async fn referrers(&self, _: &Digest) -> Result<Vec<Descriptor>> {
        Ok(Vec::new())
    }
    fn tags(&self) -> crate::content::TagPages {
        stream::empty().boxed()
    }
}

const WHOLE: usize = 3 << 20;
const HALF: usize = 2 << 20;

#[tokio::test]
async fn a_copy_that_broke_off_is_gone_on_from() {
    let dir = Dir::new();
    let (layout, source) = (dir.create().await, Breaking::new(WHOLE));
    let blob = blob_of(&source.content);
    let partial = format!(".transload-partial-sha256-{}", blob.digest.hex());
    send(source.until(HALF), blob.clone(), &layout).await.expect_err("it broke off");
    assert_eq!(dir.files(), [partial.as_str(), "blobs", "index.json", "oci-layout"]);
    assert_eq!(std::fs::metadata(dir.0.join(&partial)).expect("a file").len(), HALF as u64);
    assert_eq!(source.asked(), [0]);
    send(source.clone(), blob.clone(), &layout).await.expect("stored");
    assert_eq!(source.asked(), [0, HALF as u64]);
    assert!(std::fs::read(dir.blob(&blob.digest)).expect("the blob") == *source.content);
    assert_eq!(dir.files(), ["blobs", "index.json", "oci-layout"]);
}

/// A file of all bytes, whose copy ended before it had its name.
#[tokio::test]
async fn a_partial_file_that_is_whole_or_too_long_is_gone_on_from() {
    let dir = Dir::new();
    let (layout, source) = (dir.create().await, Breaking::new(WHOLE));
    let blob = blob_of(&source.content);
    let partial = dir.0.join(format!(".transload-partial-sha256-{}", blob.digest.hex()));
    for more in [0, 5] {
        std::fs::write(&partial, [&source.content[..], &vec![0; more]].concat()).expect("a file");
        send(source.clone(), blob.clone(), &layout).await.expect("stored");
        assert_eq!(source.asked(), [0, WHOLE as u64 - 1]);
        std::fs::remove_file(dir.blob(&blob.digest)).expect("it was stored");
    }
}

/// What is in a partial file is trusted no more than what comes from a registry.
#[tokio::test]
async fn a_damaged_partial_file_is_found_and_removed() {
    let dir = Dir::new();
    let (layout, source) = (dir.create().await, Breaking::new(WHOLE));
    let blob = blob_of(&source.content);
    let partial = dir.0.join(format!(".transload-partial-sha256-{}", blob.digest.hex()));
    std::fs::write(&partial, vec![7; HALF]).expect("a file");
    let error = send(source.clone(), blob.clone(), &layout).await.expect_err("it is damaged");
    assert_eq!(error.kind(), Kind::Mismatch);
    assert_eq!(dir.files(), ["blobs", "index.json", "oci-layout"]);
    source.asked();
    send(source.clone(), blob.clone(), &layout).await.expect("stored");
    assert_eq!(source.asked(), [0]);
}

/// A link that somebody put in the place of a partial file is not written through.
#[tokio::test]
async fn links_in_the_place_of_a_partial_file_are_not_followed() {
    let dir = Dir::new();
    let (layout, source) = (dir.create().await, Breaking::new(WHOLE));
    let blob = blob_of(&source.content);
    let partial = dir.0.join(format!(".transload-partial-sha256-{}", blob.digest.hex()));
    let victim = dir.0.join("blobs/victim");
    std::fs::write(&victim, "precious").expect("a file");
    for hard in [false, true] {
        if hard {
            std::fs::hard_link(&victim, &partial).expect("a link");
        } else {
            std::os::unix::fs::symlink(&victim, &partial).expect("a link");
        }
        send(source.clone(), blob.clone(), &layout).await.expect("stored");
        assert_eq!(source.asked(), [0]);
        assert_eq!(std::fs::read_to_string(&victim).expect("a file"), "precious");
        assert_eq!(dir.files(), ["blobs", "index.json", "oci-layout"]);
        std::fs::remove_file(dir.blob(&blob.digest)).expect("it was stored");
    }
}
