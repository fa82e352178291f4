//! The cache's directory: what is found, kept, and removed.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use rustix::io::Errno;

use super::*;
use crate::descriptor::{Descriptor, MediaType};
use crate::error::Kind;
use crate::file_access::faults::{Call, Faults};
use crate::manifest::Manifest;

/// A directory that goes away.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("transload-cache-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("made");
        Self(path)
    }

    async fn open(&self, size: u64) -> Result<Cache> {
        Cache::open(Settings { dir: self.0.clone(), size, keep_free: 0, files: Files::default() }, |_, _| {}).await
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn put(cache: &Cache, content: &[u8]) -> Result<Digest> {
    let digest = Digest::of(content);
    let temp = cache.blobs.begin(content.len() as u64)?;
    write_at(&temp.file(), content, 0)?;
    cache.blobs.commit(digest, temp).map(|_| digest)
}

fn names(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// A disk that fails once at the start must not leave the directory without its lock, since it is written to later.
#[tokio::test]
async fn a_directory_that_could_not_be_created_completely_is_locked_and_swept() {
    let dir = Dir::new();
    drop(dir.open(1 << 20).await.expect("opens"));
    fs::write(dir.0.join("fills/1-0"), b"cut").expect("written");
    let faults = Faults::default();
    faults.plan(Call::CreateDir, Errno::IO, 2, 1);
    let settings = Settings { dir: dir.0.clone(), size: 1 << 20, keep_free: 0, files: faults.files() };
    let _cache = Cache::open(settings, |_, _| {}).await.expect("opens");
    assert_eq!(names(&dir.0.join("fills")), 0);
    let refused = dir.open(1 << 20).await.expect_err("it is in use");
    assert_eq!(refused.kind(), Kind::Usage, "{refused}");
}

#[tokio::test]
async fn only_whole_files_are_found_again() {
    let dir = Dir::new();
    let cache = dir.open(1 << 20).await.expect("opens");
    let whole = put(&cache, b"whole").expect("put");
    let cut = put(&cache, b"cut short").expect("put");
    // As a process leaves it that is killed.
    fs::write(dir.0.join("fills/1-0"), b"cut").expect("written");
    fs::write(cache.blobs.path(&cut, 9), b"cut").expect("written");
    fs::write(dir.0.join("blobs/sha256/notes.txt"), b"not ours").expect("written");
    drop(cache);
    let cache = dir.open(1 << 20).await.expect("opens");
    assert_eq!(cache.blobs.list(), [(whole, 5)]);
    assert_eq!(names(&dir.0.join("fills")), 0);
    assert!(!cache.blobs.path(&cut, 9).exists());
    assert!(dir.0.join("blobs/sha256/notes.txt").exists());
}

#[tokio::test]
async fn a_directory_has_one_proxy() {
    let dir = Dir::new();
    let first = dir.open(1000).await.expect("opens");
    let error = dir.open(1000).await.expect_err("locked");
    assert_eq!(error.kind(), Kind::Usage, "{error}");
    drop(first);
    dir.open(1000).await.expect("free again");
}

#[tokio::test]
async fn what_is_too_much_goes_and_what_is_read_stays() {
    let dir = Dir::new();
    let cache = dir.open(100).await.expect("opens");
    let read = put(&cache, &[1; 60]).expect("put");
    let pin = cache.blobs.pin(&read).expect("here");
    let error = cache.blobs.begin(50).expect_err("it is being read");
    assert_eq!(error.kind(), Kind::Local);
    let stored = cache.blobs.open_pinned(&read, pin).expect("opens").expect("here");
    drop(stored);
    let next = put(&cache, &[2; 50]).expect("put");
    assert_eq!(cache.blobs.list(), [(next, 50)]);
    assert!(!cache.blobs.path(&read, 60).exists());
    assert!(cache.blobs.begin(101).is_err(), "larger than all of it");
    assert_eq!(cache.blobs.list(), [(next, 50)], "for nothing");
    drop(cache);
    let cache = dir.open(40).await.expect("opens");
    assert_eq!(cache.blobs.count(), (0, 0), "the bound was lowered");
}

/// After a restart too what was fetched first goes first.
#[tokio::test]
async fn the_oldest_goes_first_after_a_restart() {
    let dir = Dir::new();
    let cache = dir.open(1000).await.expect("opens");
    let digests: Vec<_> = (0..20_u8).map(|n| put(&cache, &[n; 50]).expect("put")).collect();
    for (age, digest) in digests.iter().enumerate() {
        let file = File::options().append(true).open(cache.blobs.path(digest, 50)).expect("opens");
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age as u64)).expect("set");
    }
    drop(cache);
    let cache = dir.open(500).await.expect("opens");
    let left = cache.blobs.list();
    assert_eq!(left.len(), 10);
    assert!(digests[..10].iter().all(|digest| left.contains(&(*digest, 50))), "{left:?}");
}

#[tokio::test]
async fn the_disks_free_space_is_a_bound() {
    let dir = Dir::new();
    let cache = dir.open(1 << 20).await.expect("opens");
    put(&cache, &[1; 60]).expect("put");
    drop(cache);
    let settings = Settings { dir: dir.0.clone(), size: 1 << 20, keep_free: u64::MAX, files: Files::default() };
    let cache = Cache::open(settings, |_, _| {}).await.expect("opens");
    assert!(put(&cache, &[2; 60]).is_err());
    assert_eq!(cache.blobs.count().0, 0, "what was there made room first");
}

#[tokio::test]
async fn what_no_disk_has_room_for_costs_nothing() {
    let dir = Dir::new();
    let cache = dir.open(1 << 62).await.expect("opens");
    let held = put(&cache, &[1; 60]).expect("put");
    assert_eq!(cache.blobs.begin(1 << 61).expect_err("no disk is so large").kind(), Kind::Local);
    assert_eq!(cache.blobs.list(), [(held, 60)]);
    assert_eq!(names(&dir.0.join("fills")), 0);
}

#[tokio::test]
async fn manifests_and_tags_come_back_as_they_were() {
    let dir = Dir::new();
    let layers = r#"{"schemaVersion":2,"layers":[]}"#;
    // The bytes don't say which type it is.
    let odd = Manifest::read(layers.into(), Some(MediaType::DOCKER_MANIFEST), None).expect("a manifest");
    let name = TagName::new("docker.io", "library/app", "v1");
    {
        let cache = dir.open(1 << 20).await.expect("opens");
        cache.manifest_store.put(&odd).await;
        cache.manifest_store.put_tag(&name, CachedTag::new(&name, odd.descriptor(), 5)).await;
    }
    let cache = dir.open(1 << 20).await.expect("opens");
    let tag = cache.manifest_store.tag(&name).await.expect("known");
    let told: Descriptor = tag.descriptor();
    assert_eq!((told, tag.checked), (odd.descriptor().clone(), 5));
    let found = cache.manifest_store.manifest(&tag.digest()).await.expect("here");
    assert_eq!(found.descriptor(), odd.descriptor());
    assert_eq!(found.bytes(), odd.bytes());
    // A file in another one's place says nothing.
    let other = TagName::new("docker.io", "library/app", "v2");
    let place = dir.0.join("tags").join(other.file());
    fs::create_dir_all(place.parent().expect("one")).expect("made");
    fs::copy(dir.0.join("tags").join(name.file()), &place).expect("copied");
    assert_eq!(cache.manifest_store.tag(&other).await, None);
    cache.manifest_store.forget_tag(&name).await;
    assert_eq!(cache.manifest_store.tag(&name).await, None);
    drop(cache);
    // Bytes of the same length, and not the same.
    let file = fs::read_dir(dir.0.join("manifests/sha256")).expect("read").next().expect("one").expect("one").path();
    let file = fs::read_dir(file).expect("read").next().expect("one").expect("one").path();
    fs::write(&file, layers.replace("2", "3")).expect("written");
    let cache = dir.open(1 << 20).await.expect("opens");
    assert!(cache.manifest_store.manifest(&odd.digest()).await.is_none());
    assert!(!file.exists(), "dropped");
}

/// Quick also where there are many: here with a tenth of what a large cache has.
#[tokio::test]
async fn many_files_are_found_soon() {
    let dir = Dir::new();
    drop(dir.open(1 << 30).await.expect("opens"));
    for n in 0..10_000_u32 {
        let hex = Digest::of(&n.to_be_bytes()).hex();
        let shard = dir.0.join("blobs/sha256").join(&hex[..2]);
        if n < 256 * 8 {
            fs::create_dir_all(&shard).expect("made");
        }
        let _ = fs::create_dir(&shard);
        fs::write(shard.join(format!("{hex}.4")), b"1234").expect("written");
    }
    let begun = Instant::now();
    let cache = dir.open(1 << 30).await.expect("opens");
    assert_eq!(cache.blobs.count(), (10_000, 40_000));
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
}

/// A client can ask for any number of tags: those that were checked least lately are forgotten.
#[tokio::test]
async fn tags_on_the_disk_are_bounded() {
    let dir = Dir::new();
    let home = CacheDir::open(dir.0.clone(), Files::default()).expect("opens");
    let store = |_| ContentStore::open("manifests", home.clone(), 1 << 20, 0, |_, _| {}).expect("opens");
    fs::create_dir_all(dir.0.join("fills")).expect("made");
    let records = |_| RepositoryRecords::new(dir.0.join("repositories"), repository_records::MAX_RECORDS_BYTES);
    let open = |most| ManifestStore::new(store(()), records(()), home.clone(), most);
    let name = |nth: usize| TagName::new("a.io", "r", &format!("v{nth}"));
    let descriptor = Descriptor::new(MediaType::OCI_INDEX, Digest::of(b"x"), 1);
    let put = async |manifest_store: &ManifestStore, nth: usize| {
        manifest_store.put_tag(&name(nth), CachedTag::new(&name(nth), &descriptor, 0)).await;
        // The file system's clock has larger steps than these.
        let then = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + nth as u64);
        let file = File::options().append(true).open(dir.0.join("tags").join(name(nth).file()));
        file.and_then(|file| file.set_modified(then)).expect("dated");
    };
    let left = || (0..200).filter(|nth| dir.0.join("tags").join(name(*nth).file()).exists()).collect::<Vec<_>>();
    let manifest_store = open(80);
    for nth in 0..80 {
        put(&manifest_store, nth).await;
    }
    // What is checked again is no new one.
    put(&manifest_store, 79).await;
    assert_eq!(left().len(), 80);
    manifest_store.put_tag(&name(80), CachedTag::new(&name(80), &descriptor, 0)).await;
    assert_eq!(left(), (11..81).collect::<Vec<_>>());
    // What was there at the start counts.
    let manifest_store = open(70);
    manifest_store.put_tag(&name(81), CachedTag::new(&name(81), &descriptor, 0)).await;
    assert_eq!(left().len(), 62);
}

/// Else it would be fetched for each request: what is here is not stored again.
#[tokio::test]
async fn a_manifest_that_cannot_be_read_is_dropped() {
    let dir = Dir::new();
    let faults = Faults::default();
    let settings = Settings { dir: dir.0.clone(), size: 1 << 20, keep_free: 0, files: faults.files() };
    let open = async || Cache::open(settings.clone(), |_, _| {}).await.expect("opens");
    let text = serde_json::json!({"schemaVersion": 2, "layers": []}).to_string();
    let manifest = Manifest::read(text.into(), None, None).expect("a manifest");
    let digest = manifest.digest();
    let cache = open().await;
    cache.manifest_store.put(&manifest).await;
    drop(cache);
    let cache = open().await;
    faults.plan(Call::Read, Errno::IO, 0, 1);
    assert!(cache.manifest_store.manifest(&digest).await.is_none());
    assert_eq!(cache.manifest_store.content_store().size_of(&digest), None);
    cache.manifest_store.put(&manifest).await;
    drop(cache);
    assert!(open().await.manifest_store.manifest(&digest).await.is_some());
}
