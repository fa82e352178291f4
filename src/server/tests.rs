//! The front over a backend in memory: what goes over HTTP, in process and over a socket.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::descriptor::{Descriptor, Digest, MediaType};
use crate::error::{Kind, Result};
use crate::manifest::{MAX_MANIFEST, Manifest};
use crate::reference::{RepositoryName, Tag, Target};

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    read_only: bool,
    /// An upload can't be stored.
    full: bool,
    /// Reading a blob breaks off after its first byte.
    broken: bool,
    /// Reading a blob waits so long before its end.
    slow: Duration,
    /// How many blobs were begun to be read.
    reads: usize,
    blobs: BTreeMap<Digest, Bytes>,
    tags: BTreeMap<String, Digest>,
    manifests: BTreeMap<Digest, Manifest>,
    uploads: usize,
}

impl Memory {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("not poisoned")
    }

    async fn is_read(&self) {
        while self.state().reads == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn store(&self, content: &'static [u8]) -> Digest {
        let digest = Digest::of(content);
        self.state().blobs.insert(digest, Bytes::from_static(content));
        digest
    }
}

struct Found(Memory, Bytes);

struct Taken(Memory, Vec<u8>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.state().uploads -= 1;
    }
}

impl Backend for Memory {
    type Blob = Found;
    type Upload = Taken;

    fn is_writable(&self) -> bool {
        !self.state().read_only
    }
    async fn resolve(&self, repository: &RepositoryPath, target: &Target) -> Reply<Option<Descriptor>> {
        self.manifest(repository, target).await.map(|found| found.map(|manifest| manifest.descriptor().clone()))
    }
    async fn manifest(&self, _: &RepositoryPath, target: &Target) -> Reply<Option<Manifest>> {
        let state = self.state();
        let digest = target.digest().or_else(|| target.tag().and_then(|tag| state.tags.get(tag.as_str()).copied()));
        Ok(digest.and_then(|digest| state.manifests.get(&digest).cloned())).into()
    }
    async fn blob(&self, _: &RepositoryPath, digest: &Digest) -> Reply<Option<Found>> {
        Ok(self.state().blobs.get(digest).map(|bytes| Found(self.clone(), bytes.clone()))).into()
    }
    async fn tags(&self, repository: &RepositoryPath, after: Option<&str>, most: usize) -> Reply<Option<Vec<Tag>>> {
        let state = self.state();
        let behind = state.tags.keys().filter(|tag| after.is_none_or(|after| tag.as_str() > after));
        Ok((repository.name == "a/b").then(|| behind.take(most).map(|tag| tag.as_str().into()).collect())).into()
    }
    async fn repositories(&self, after: Option<&str>, most: usize) -> Result<Vec<RepositoryName>> {
        let all = ["a/b", "c"].into_iter().filter(|name| after.is_none_or(|after| *name > after));
        Ok(all.take(most).map(Into::into).collect())
    }
    async fn referrers(&self, _: &RepositoryPath, subject: &Digest) -> Reply<Arc<Referrers>> {
        let state = self.state();
        let about =
            state.manifests.values().filter(|m| m.contents().subject.as_ref().map(|s| s.digest) == Some(*subject));
        let entries = about.map(|manifest| {
            let mut entry = manifest.descriptor().clone();
            entry.artifact_type.clone_from(&manifest.contents().artifact_type);
            entry
        });
        let entries: Arc<Referrers> = Arc::new(entries.collect::<Vec<_>>());
        Ok(entries).into()
    }
    async fn start_upload(&self, _: &RepositoryPath, _: Option<Digest>) -> Result<Taken> {
        self.state().uploads += 1;
        Ok(Taken(self.clone(), Vec::new()))
    }
    async fn put_manifest(&self, _: &RepositoryPath, manifest: &Manifest, targets: &[Target]) -> Result<()> {
        let mut state = self.state();
        state.manifests.insert(manifest.digest(), manifest.clone());
        let tags = targets.iter().filter_map(Target::tag);
        state.tags.extend(tags.map(|tag| (tag.to_string(), manifest.digest())));
        Ok(())
    }
}

impl Blob for Found {
    fn size(&self) -> u64 {
        self.1.len() as u64
    }
    async fn read(self, range: Range<u64>, _: Option<FilePipe>) -> Result<Body> {
        let (broken, slow) = {
            let mut state = self.0.state();
            state.reads += 1;
            (state.broken, state.slow)
        };
        let mut first = self.1.slice(range.start as usize..range.end as usize);
        let rest = first.split_off(1);
        let rest = async move {
            tokio::time::sleep(slow).await;
            if broken { Err(Error::new(Kind::Local, "the disk is broken")) } else { Ok(rest) }
        };
        Ok(stream::once(async { Ok(first) }).chain(stream::once(rest)).boxed())
    }
}

impl Upload for Taken {
    async fn size(&mut self) -> Result<u64> {
        Ok(self.1.len() as u64)
    }
    async fn append(&mut self, body: &mut Body) -> Result<()> {
        while let Some(bytes) = body.next().await {
            self.1.extend_from_slice(&bytes?);
            if self.0.state().full {
                return Err(Error::new(Kind::Local, "cannot write /secret/path: no space"));
            }
        }
        Ok(())
    }
    async fn commit(mut self, digest: Digest) -> Result<()> {
        let bytes = Bytes::from(std::mem::take(&mut self.1));
        if !digest.matches(&bytes) {
            return Err(Error::new(Kind::Mismatch, "wrong bytes"));
        }
        self.0.state().blobs.insert(digest, bytes);
        Ok(())
    }
}

/// An answer, read to its end.
struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// Status and the spec's code.
    fn refused(&self) -> (u16, String) {
        (self.status, self.json()["errors"][0]["code"].as_str().expect("a code").to_owned())
    }
}

/// Sends `METHOD path` with `headers` (`name: value`) and the frames of a body.
async fn send(server: &Server<Memory>, line: &str, headers: &[&str], frames: Vec<Result<Bytes>>) -> Answer {
    let (method, path) = line.split_once(' ').expect("a request line");
    let mut request = Request::builder().method(method).uri(path);
    for header in headers {
        let (name, value) = header.split_once(": ").expect("a header");
        request = request.header(name, value);
    }
    let response = server.handle(request.body(stream::iter(frames).boxed()).expect("a request")).await;
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    Answer { status: head.status.as_u16(), headers: head.headers, body }
}

async fn get(server: &Server<Memory>, line: &str, headers: &[&str]) -> Answer {
    send(server, line, headers, vec![]).await
}

async fn push(server: &Server<Memory>, line: &str, headers: &[&str], body: &'static [u8]) -> Answer {
    send(server, line, headers, vec![Ok(Bytes::from_static(body))]).await
}

fn server() -> (Server<Memory>, Memory) {
    let memory = Memory::default();
    (Server::new(memory.clone()), memory)
}

fn descriptor(content: &[u8]) -> String {
    format!(r#"{{"mediaType":"x/y","digest":"{}","size":{}}}"#, Digest::of(content), content.len())
}

/// The text of an image's manifest, of which only the config `{}` is needed.
fn image(more: &str) -> Vec<u8> {
    format!(r#"{{"schemaVersion":2,"config":{},"layers":[]{more}}}"#, descriptor(b"{}")).into_bytes()
}

async fn put(server: &Server<Memory>, at: &str, content_type: &str, body: &[u8]) -> Answer {
    let header = format!("content-type: {content_type}");
    send(server, &format!("PUT /v2/a/b/manifests/{at}"), &[&header], vec![Ok(Bytes::copy_from_slice(body))]).await
}

#[tokio::test]
async fn manifests_are_answered_as_they_were_put() {
    let (server, memory) = server();
    memory.store(b"{}");
    let text = image("");
    let digest = Digest::of(&text).to_string();
    let answer = put(&server, "v1", MediaType::DOCKER_MANIFEST, &text).await;
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
    assert_eq!(answer.header("location"), Some(format!("/v2/a/b/manifests/{digest}").as_str()));
    assert_eq!(answer.header("oci-subject"), None);
    for at in ["v1", &digest] {
        for method in ["GET", "HEAD"] {
            let answer = get(&server, &format!("{method} /v2/a/b/manifests/{at}"), &[]).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("content-type"), Some(MediaType::DOCKER_MANIFEST));
            assert_eq!(answer.header("content-length"), Some(text.len().to_string().as_str()));
            assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
            assert_eq!(answer.body, if method == "GET" { &text[..] } else { b"" });
        }
    }
    let known = format!("if-none-match: W/\"x\", \"{digest}\"");
    assert_eq!(get(&server, "GET /v2/a/b/manifests/v1", &[&known]).await.status, 304);
    let answer = get(&server, "GET /v2/a/b/manifests/v2", &[]).await;
    assert_eq!(answer.refused(), (404, "MANIFEST_UNKNOWN".into()));
    assert_eq!(get(&server, "HEAD /v2/a/b/manifests/v2", &[]).await.body, "");
}

#[tokio::test]
async fn blobs_have_ranges() {
    let (server, memory) = server();
    let path = format!("/v2/a/b/blobs/{}", memory.store(b"0123456789"));
    let etag = format!("\"{}\"", Digest::of(b"0123456789"));
    let (same, other) = (format!("if-range: {etag}"), "if-range: \"other\"".to_owned());
    for (headers, status, content_range, body) in [
        (&[][..], 200, None, "0123456789"),
        (&["range: bytes=2-4"], 206, Some("bytes 2-4/10"), "234"),
        (&["range: bytes=7-"], 206, Some("bytes 7-9/10"), "789"),
        (&["range: bytes=-1"], 206, Some("bytes 9-9/10"), "9"),
        (&["range: bytes=2-4", &same], 206, Some("bytes 2-4/10"), "234"),
        (&["range: bytes=2-4", &other], 200, None, "0123456789"),
        (&["range: bytes=1-2,4-5"], 200, None, "0123456789"),
    ] {
        let answer = get(&server, &format!("GET {path}"), headers).await;
        assert_eq!((answer.status, answer.header("content-range")), (status, content_range), "{headers:?}");
        assert_eq!(answer.body, body);
        let head = get(&server, &format!("HEAD {path}"), headers).await;
        assert_eq!((head.status, head.body.len()), (200, 0), "only GET has ranges");
        assert_eq!(head.header("content-length"), Some("10"));
        assert_eq!(head.header("docker-content-digest"), Some(etag.trim_matches('"')));
    }
    let beyond = get(&server, &format!("GET {path}"), &["range: bytes=10-"]).await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */10")));
    let known = format!("if-none-match: {etag}");
    for range in ["x: y", "range: bytes=2-4", "range: bytes=10-"] {
        let answer = get(&server, &format!("GET {path}"), &[&known, range]).await;
        assert_eq!((answer.status, answer.header("content-range")), (304, None), "{range}");
    }
    let missing = get(&server, &format!("GET /v2/a/b/blobs/{}", Digest::of(b"x")), &[]).await;
    assert_eq!(missing.refused(), (404, "BLOB_UNKNOWN".into()));
}

#[tokio::test]
async fn lists_have_pages() {
    let (server, memory) = server();
    for tag in ["v1", "v2", "v3"] {
        memory.state().tags.insert(tag.into(), Digest::of(b""));
    }
    let mut path = "/v2/a/b/tags/list?n=2&ns=docker.io".to_owned();
    let mut tags = Vec::new();
    loop {
        let answer = get(&server, &format!("GET {path}"), &[]).await;
        assert_eq!(answer.json()["name"], "a/b");
        tags.push(answer.json()["tags"].as_array().expect("a list").len());
        let Some(link) = answer.header("link") else { break };
        path = link.strip_prefix('<').and_then(|rest| rest.strip_suffix(">; rel=\"next\"")).expect("a link").to_owned();
        assert!(path.ends_with("&ns=docker.io"), "{path}");
    }
    assert_eq!(tags, [2, 1]);
    let all = get(&server, "GET /v2/a/b/tags/list", &[]).await;
    assert_eq!(all.json()["tags"], serde_json::json!(["v1", "v2", "v3"]));
    assert_eq!(get(&server, "GET /v2/a/b/tags/list?n=0", &[]).await.json()["tags"], serde_json::json!([]));
    assert_eq!(get(&server, "GET /v2/x/tags/list", &[]).await.refused(), (404, "NAME_UNKNOWN".into()));
    let catalog = get(&server, "GET /v2/_catalog?n=1", &[]).await;
    assert_eq!(catalog.json()["repositories"], serde_json::json!(["a/b"]));
    assert_eq!(catalog.header("link"), Some("</v2/_catalog?n=1&last=a/b>; rel=\"next\""));
}

#[tokio::test]
async fn referrers_are_listed_and_filtered() {
    let (server, memory) = server();
    memory.store(b"{}");
    let subject = descriptor(b"a manifest that isn't here yet");
    for kind in ["sig", "sbom"] {
        let text = image(&format!(r#","artifactType":"test/{kind}","subject":{subject}"#));
        let answer = put(&server, &Digest::of(&text).to_string(), MediaType::OCI_MANIFEST, &text).await;
        assert_eq!(answer.status, 201);
        assert_eq!(
            answer.header("oci-subject"),
            Some(Digest::of(b"a manifest that isn't here yet").to_string().as_str())
        );
    }
    let path = format!("/v2/a/b/referrers/{}", Digest::of(b"a manifest that isn't here yet"));
    let all = get(&server, &format!("GET {path}"), &[]).await;
    assert_eq!(all.header("content-type"), Some(MediaType::OCI_INDEX));
    assert_eq!(all.header("oci-filters-applied"), None);
    assert_eq!(all.json()["manifests"].as_array().map(Vec::len), Some(2));
    let some = get(&server, &format!("GET {path}?artifactType=test%2Fsig"), &[]).await;
    assert_eq!(some.header("oci-filters-applied"), Some("artifactType"));
    assert_eq!(some.json()["manifests"][0]["artifactType"], "test/sig");
    assert_eq!(some.json()["manifests"].as_array().map(Vec::len), Some(1));
    let none = get(&server, &format!("GET /v2/a/b/referrers/{}", Digest::of(b"")), &[]).await;
    assert_eq!((none.status, none.json()["manifests"].clone()), (200, serde_json::json!([])));
}

#[tokio::test]
async fn a_blob_in_chunks() {
    let (server, memory) = server();
    let begun = get(&server, "POST /v2/a/b/blobs/uploads/", &[]).await;
    assert_eq!((begun.status, begun.header("range")), (202, Some("0-0")));
    let at = begun.header("location").expect("a location").to_owned();
    let patch = async |range: &str, body| push(&server, &format!("PATCH {at}"), &[range], body).await;

    let first = patch("content-range: 0-2", b"abc").await;
    assert_eq!((first.status, first.header("range"), first.header("location")), (202, Some("0-2"), Some(at.as_str())));
    for wrong in ["content-range: 0-2", "content-range: 4-6"] {
        let answer = patch(wrong, b"def").await;
        assert_eq!((answer.status, answer.header("range")), (416, Some("0-2")), "{wrong}");
        assert_eq!(answer.header("location"), Some(at.as_str()));
    }
    assert_eq!(patch("content-range: x", b"def").await.status, 400);
    let length = push(&server, &format!("PATCH {at}"), &["content-range: 3-5", "content-length: 2"], b"de").await;
    assert_eq!(length.refused(), (400, "SIZE_INVALID".into()));
    let status = get(&server, &format!("GET {at}"), &[]).await;
    assert_eq!((status.status, status.header("range")), (204, Some("0-2")));

    // A body that breaks off: what came is kept.
    let fault = Err(Error::new(Kind::Network, "reset"));
    let broken = send(&server, &format!("PATCH {at}"), &[], vec![Ok(Bytes::from_static(b"de")), fault]).await;
    assert_eq!(broken.refused(), (400, "BLOB_UPLOAD_INVALID".into()));
    assert_eq!(get(&server, &format!("GET {at}"), &[]).await.header("range"), Some("0-4"));

    let digest = Digest::of(b"abcdef");
    let other = get(&server, &format!("PUT {}?digest={digest}", at.replace("/a/b/", "/c/")), &[]).await;
    assert_eq!(other.refused(), (404, "BLOB_UPLOAD_UNKNOWN".into()));
    let done = push(&server, &format!("PUT {at}?digest={digest}"), &["content-range: 5-5"], b"f").await;
    assert_eq!((done.status, done.header("docker-content-digest")), (201, Some(digest.to_string().as_str())));
    assert_eq!(done.header("location"), Some(format!("/v2/a/b/blobs/{digest}").as_str()));
    assert_eq!(memory.state().blobs[&digest], "abcdef");
    assert_eq!(get(&server, &format!("GET {at}"), &[]).await.refused(), (404, "BLOB_UPLOAD_UNKNOWN".into()));
    assert_eq!(memory.state().uploads, 0);
}

#[tokio::test]
async fn wrong_bytes_end_the_upload() {
    let (server, memory) = server();
    let at = get(&server, "POST /v2/a/b/blobs/uploads/", &[]).await.header("location").expect("there").to_owned();
    let put = format!("PUT {at}?digest={}", Digest::of(b"right"));
    assert_eq!(push(&server, &put, &[], b"wrong").await.refused(), (400, "DIGEST_INVALID".into()));
    assert_eq!(push(&server, &put, &[], b"right").await.refused(), (404, "BLOB_UPLOAD_UNKNOWN".into()));
    assert!(memory.state().blobs.is_empty());
    let cancelled =
        get(&server, "POST /v2/a/b/blobs/uploads/", &[]).await.header("location").expect("there").to_owned();
    assert_eq!(get(&server, &format!("DELETE {cancelled}"), &[]).await.status, 204);
    assert_eq!(get(&server, &format!("GET {cancelled}"), &[]).await.status, 404);
    assert_eq!(memory.state().uploads, 0);
}

#[tokio::test]
async fn a_full_disk_is_not_kept_full() {
    let (server, memory) = server();
    memory.state().full = true;
    let at = get(&server, "POST /v2/a/b/blobs/uploads/", &[]).await.header("location").expect("there").to_owned();
    let answer = push(&server, &format!("PATCH {at}"), &[], b"abc").await;
    assert_eq!(answer.refused(), (500, "UNKNOWN".into()));
    assert!(!String::from_utf8_lossy(&answer.body).contains("secret"), "a client needn't know our paths");
    assert_eq!(memory.state().uploads, 0);
    assert_eq!(get(&server, &format!("GET {at}"), &[]).await.refused(), (404, "BLOB_UPLOAD_UNKNOWN".into()));
}

#[tokio::test]
async fn a_blob_in_one_request() {
    let (server, memory) = server();
    let digest = Digest::of(b"abc");
    let mount = format!("POST /v2/a/b/blobs/uploads/?mount={digest}&from=c");
    let refused = get(&server, &mount, &[]).await;
    assert_eq!(refused.status, 202, "it isn't here yet: a session");
    let line = format!("POST /v2/a/b/blobs/uploads/?digest={digest}");
    assert_eq!(push(&server, &line, &[], b"abd").await.refused(), (400, "DIGEST_INVALID".into()));
    assert!(memory.state().blobs.is_empty());
    assert_eq!(push(&server, &line, &[], b"abc").await.status, 201);
    assert_eq!(memory.state().blobs[&digest], "abc");
    let mounted = get(&server, &mount, &[]).await;
    assert_eq!((mounted.status, mounted.header("location")), (201, Some(format!("/v2/a/b/blobs/{digest}").as_str())));
}

#[tokio::test]
async fn manifests_are_checked() {
    let (server, memory) = server();
    let text = image("");
    let refused = async |at: &str, kind: &str, text: &[u8]| put(&server, at, kind, text).await.refused();
    assert_eq!(refused("v1", MediaType::OCI_MANIFEST, &text).await, (404, "MANIFEST_BLOB_UNKNOWN".into()));
    memory.store(b"{}");
    let lies = String::from_utf8(text.clone()).expect("text").replace("\"size\":2", "\"size\":3");
    assert_eq!(refused("v1", MediaType::OCI_MANIFEST, lies.as_bytes()).await, (400, "MANIFEST_INVALID".into()));
    let other = Digest::of(b"other").to_string();
    assert_eq!(refused(&other, MediaType::OCI_MANIFEST, &text).await, (400, "DIGEST_INVALID".into()));
    assert_eq!(refused("v1", MediaType::OCI_INDEX, &text).await, (400, "MANIFEST_INVALID".into()));
    assert_eq!(refused("v1", MediaType::OCI_MANIFEST, b"{").await, (400, "MANIFEST_INVALID".into()));
    let named = image(&format!(r#","mediaType":"{}""#, MediaType::OCI_MANIFEST));
    assert_eq!(refused("v1", MediaType::DOCKER_MANIFEST, &named).await, (400, "MANIFEST_INVALID".into()));
    let large = vec![b' '; MAX_MANIFEST as usize + 1];
    assert_eq!(refused("v1", MediaType::OCI_MANIFEST, &large).await, (413, "SIZE_INVALID".into()));
    assert!(memory.state().manifests.is_empty());

    // An index needs one of its children.
    let child = |content: &[u8]| descriptor(content).replace("x/y", MediaType::OCI_MANIFEST);
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{},{}]}}"#, child(b"missing"), child(&text));
    let missing = refused("v1", MediaType::OCI_INDEX, index.as_bytes()).await;
    assert_eq!(missing, (404, "MANIFEST_BLOB_UNKNOWN".into()));
    assert_eq!(put(&server, &Digest::of(&text).to_string(), MediaType::OCI_MANIFEST, &text).await.status, 201);
    assert_eq!(put(&server, "v1", MediaType::OCI_INDEX, index.as_bytes()).await.status, 201);
    // Of its entries that are no manifests, it needs all.
    let cache = format!(r#"{{"schemaVersion":2,"manifests":[{},{}]}}"#, descriptor(b"{}"), descriptor(b"missing"));
    let missing = refused("v1", MediaType::OCI_INDEX, cache.as_bytes()).await;
    assert_eq!(missing, (404, "MANIFEST_BLOB_UNKNOWN".into()));
    // What may not be distributed needn't be here.
    let foreign = descriptor(b"windows").replace("x/y", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    let windows = format!(r#"{{"schemaVersion":2,"config":{},"layers":[{foreign}]}}"#, descriptor(b"{}"));
    assert_eq!(put(&server, "w", MediaType::DOCKER_MANIFEST, windows.as_bytes()).await.status, 201);
}

#[tokio::test]
async fn a_read_only_registry_takes_nothing() {
    let (server, memory) = server();
    memory.state().read_only = true;
    for line in ["POST /v2/a/b/blobs/uploads/", "PUT /v2/a/b/manifests/v1", "PATCH /v2/a/b/blobs/uploads/x"] {
        let answer = push(&server, line, &[], b"x").await;
        assert_eq!(answer.refused(), (405, "UNSUPPORTED".into()), "{line}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
    assert_eq!(get(&server, "GET /v2/", &[]).await.status, 200);
    assert_eq!(memory.state().uploads, 0);
}

/// A server on a socket, and what ends it.
struct Running {
    address: std::net::SocketAddr,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<()>>,
}

async fn running(limits: Limits) -> (Running, Memory) {
    let (server, memory) = server();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(run(listener, server, limits, async move { drop(stopped.await) }));
    (Running { address, stop, task }, memory)
}

/// What comes for `request` until the server closes the connection.
async fn talk(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("sends");
    let mut answer = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).expect("text")
}

fn request_for(digest: Digest) -> String {
    format!("GET /v2/a/b/blobs/{digest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
}

#[tokio::test]
async fn requests_end_before_the_server_does() {
    let (running, memory) = running(Limits::default()).await;
    let request = request_for(memory.store(b"0123456789"));
    memory.state().slow = Duration::from_millis(300);
    let idle = TcpStream::connect(running.address).await.expect("connects");
    let talk = tokio::spawn(async move { talk(running.address, &request).await });
    memory.is_read().await;
    running.stop.send(()).expect("runs");
    running.task.await.expect("no panic").expect("ends");
    assert!(talk.await.expect("no panic").ends_with("\r\n\r\n0123456789"), "the answer is whole");
    assert!(TcpStream::connect(running.address).await.is_err(), "nobody listens");
    drop(idle);
}

#[tokio::test]
async fn what_does_not_end_is_cut() {
    let limits = Limits { drain: Duration::from_millis(200), ..Limits::default() };
    let (running, memory) = running(limits).await;
    let request = request_for(memory.store(b"0123456789"));
    memory.state().slow = Duration::from_secs(3600);
    let talk = tokio::spawn(async move { talk(running.address, &request).await });
    memory.is_read().await;
    running.stop.send(()).expect("runs");
    running.task.await.expect("no panic").expect("ends");
    assert!(!talk.await.expect("no panic").ends_with("9"));
}

#[tokio::test]
async fn a_fault_in_the_middle_is_seen_by_the_client() {
    let (running, memory) = running(Limits::default()).await;
    let request = request_for(memory.store(b"0123456789"));
    memory.state().broken = true;
    let answer = talk(running.address, &request).await;
    assert!(answer.contains("content-length: 10\r\n") && answer.ends_with("\r\n\r\n0"), "{answer}");
}

#[tokio::test]
async fn slow_heads_and_idle_connections_are_ended() {
    let (running, _) = running(Limits { head: Duration::from_millis(200), ..Limits::default() }).await;
    for begun in ["", "P", "GET /v2/ HTTP/1.1\r\nhost: x\r\nx-slow"] {
        let ended = tokio::time::timeout(Duration::from_secs(5), talk(running.address, begun)).await;
        assert!(ended.is_ok(), "{begun:?} held the connection");
    }
    let kept = talk(running.address, "GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n");
    let answer = tokio::time::timeout(Duration::from_secs(5), kept).await.expect("the idle connection is closed");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test]
async fn busy_connections_are_bounded() {
    let (running, memory) = running(Limits { connections: 1, ..Limits::default() }).await;
    let request = request_for(memory.store(b"0123456789"));
    memory.state().slow = Duration::from_millis(300);
    let first = tokio::spawn(async move { talk(running.address, &request).await });
    memory.is_read().await;
    let request = "GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut second = Box::pin(talk(running.address, request));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut second).await.is_err(), "it waits");
    assert!(first.await.expect("no panic").ends_with("\r\n\r\n0123456789"), "the answer is whole");
    let answer = tokio::time::timeout(Duration::from_secs(5), second).await.expect("it has its turn");
    assert!(answer.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn an_idle_connection_gives_its_place_to_another_client() {
    let (running, _) = running(Limits { connections: 1, ..Limits::default() }).await;
    let request = "GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n";
    for begun in ["", "GET /v2/ HTT", request] {
        let mut idle = TcpStream::connect(running.address).await.expect("connects");
        idle.write_all(begun.as_bytes()).await.expect("sends");
        if begun == request {
            assert!(idle.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0), "it has the only place");
        }
        let last = "GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let other = tokio::time::timeout(Duration::from_secs(5), talk(running.address, last));
        assert!(other.await.expect("it has a place").starts_with("HTTP/1.1 200 OK"), "{begun:?}");
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), idle.read_to_end(&mut rest));
        assert!(ended.await.is_ok(), "{begun:?}: it is closed");
    }
}

#[tokio::test]
async fn a_connection_must_say_something_soon() {
    let limits = Limits { first_byte: Duration::from_millis(100), ..Limits::default() };
    let (running, _) = running(limits).await;
    let silent = tokio::time::timeout(Duration::from_secs(5), talk(running.address, ""));
    assert_eq!(silent.await.expect("it is closed"), "");
    // Who has begun has longer.
    let mut slow = TcpStream::connect(running.address).await.expect("connects");
    slow.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\n").await.expect("sends");
    let silent = tokio::time::timeout(Duration::from_secs(5), talk(running.address, ""));
    silent.await.expect("a later one is closed");
    slow.write_all(b"connection: close\r\n\r\n").await.expect("sends");
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

/// Heads arrive in pieces, several in one, and before and after bodies of both kinds.
#[tokio::test]
async fn requests_are_told_apart_however_they_arrive() {
    let (running, _) = running(Limits::default()).await;
    let put = "PUT /v2/a/b/manifests/v1 HTTP/1.1\r\nhost: x\r\ncontent-type: x\r\n";
    let all = format!(
        "GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n{put}content-length: 5\r\n\r\nGET /\
         {put}transfer-encoding: chunked\r\n\r\n5\r\nGET /\r\n0\r\n\r\n\
         GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    );
    for piece in [1, 7, 100, all.len()] {
        let mut stream = TcpStream::connect(running.address).await.expect("connects");
        stream.set_nodelay(true).expect("a socket");
        let (mut read, mut write) = stream.split();
        let mut answers = String::new();
        let sent = async {
            for piece in all.as_bytes().chunks(piece) {
                write.write_all(piece).await.expect("sends");
                tokio::task::yield_now().await;
            }
        };
        let received = async { read.read_to_string(&mut answers).await.expect("answers") };
        tokio::join!(sent, received);
        let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        assert_eq!(statuses.len(), 4, "{piece}: {answers}");
        assert_eq!((statuses[0], statuses[3]), ("200", "200"), "{piece}: {answers}");
    }
}

#[tokio::test]
async fn a_refused_push_hears_why() {
    let (running, memory) = running(Limits::default()).await;
    memory.state().read_only = true;
    let mut stream = TcpStream::connect(running.address).await.expect("connects");
    let length = 8 << 20;
    let head = format!(
        "PUT /v2/a/b/manifests/v1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("sends");
    stream.write_all(&vec![b'x'; length]).await.expect("is read to the end");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("UNSUPPORTED"), "{answer}");
}
