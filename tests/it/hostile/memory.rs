//! Images that cost memory.
//!
//! A manifest may have 4 MiB, and an image ten thousand of them: 40 GiB that an image of a few layers asks a client to
//! keep. transload has a limit for the manifests of one image, one for those of all images that it copies at once, and
//! one for large answers that it reads or sends at once. The tests measure the process's peak of resident memory.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::layer::sha256;
use crate::support::process::RUN_TIMEOUT;
use crate::support::proxied::{assert_metric_line, ops_addr};
use crate::support::{
    FakeRegistry, FakeRequest, FakeResponse, Fault, Front, Image, Process, ProxyProcess, Registry, Rule, Run, TempDir,
    Tool, http,
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const MIB: usize = 1 << 20;
/// Bytes of an annotation that is large, and allowed.
const ANNOTATION: usize = 200 << 10;

/// A manifest that the registry makes anew for each request: so it takes no memory of the tests.
#[derive(Clone)]
struct Made {
    nth: usize,
    size: usize,
    /// Made large by annotations, which clients keep; else by spaces.
    annotated: bool,
}

impl Made {
    /// An image whose only blob is `{}`.
    fn bytes(&self) -> Vec<u8> {
        let empty = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2});
        // The annotations of one descriptor are limited, and those of many together are not.
        let mut layer = empty.clone();
        layer["annotations"] = json!({"pad": " ".repeat(ANNOTATION)});
        let layers = vec![layer; if self.annotated { self.size / (ANNOTATION + 500) } else { 0 }];
        let body = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": empty, "layers": layers,
            "annotations": {"nth": self.nth.to_string()}});
        let mut bytes = body.to_string().into_bytes();
        bytes.resize(self.size.max(bytes.len()), b' ');
        bytes
    }
}

#[derive(Default)]
struct Content {
    made: HashMap<String, Made>,
    indexes: HashMap<String, Arc<Vec<u8>>>,
    tags: HashMap<String, String>,
}

/// A registry of hostile images, on a port of its own. It keeps no bytes of the large ones.
struct Hostile {
    addr: SocketAddr,
    content: Arc<Mutex<Content>>,
    requests: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl Hostile {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address");
        let (content, requests) = (Arc::new(Mutex::new(Content::default())), Arc::<Mutex<Vec<String>>>::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (served, seen, stopped) = (content.clone(), requests.clone(), stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (served, seen) = (served.clone(), seen.clone());
                std::thread::spawn(move || drop(answer_all(stream, &served, &seen)));
            }
        });
        Self { addr, content, requests, stop }
    }

    /// Adds an image of `size` bytes. Gives back its descriptor.
    fn image(&self, nth: usize, size: usize) -> serde_json::Value {
        self.add(Made { nth, size, annotated: false })
    }

    fn add(&self, made: Made) -> serde_json::Value {
        let bytes = made.bytes();
        let digest = sha256(&bytes);
        self.content.lock().expect("no panic").made.insert(digest.clone(), made);
        json!({"mediaType": MANIFEST, "digest": digest, "size": bytes.len()})
    }

    /// Adds an index of these. Gives back its descriptor.
    fn index(&self, children: &[serde_json::Value]) -> serde_json::Value {
        let body = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": children}).to_string().into_bytes();
        let (digest, size) = (sha256(&body), body.len());
        self.content.lock().expect("no panic").indexes.insert(digest.clone(), Arc::new(body));
        json!({"mediaType": INDEX, "digest": digest, "size": size})
    }

    fn tag(&self, tag: &str, image: &serde_json::Value) {
        let digest = image["digest"].as_str().expect("a digest").to_owned();
        self.content.lock().expect("no panic").tags.insert(tag.to_owned(), digest);
    }

    /// An index of so many images of 4 MiB, under `latest`.
    fn with_large_children(count: usize) -> Self {
        let hostile = Self::start();
        let child = |nth| hostile.add(Made { nth, size: 4 * MIB, annotated: true });
        let children: Vec<_> = (0..count).map(child).collect();
        hostile.tag("latest", &hostile.index(&children));
        hostile
    }

    fn requests(&self, part: &str) -> usize {
        self.requests.lock().expect("no panic").iter().filter(|request| request.contains(part)).count()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.addr));
    }
}

fn answer_all(mut stream: TcpStream, content: &Mutex<Content>, requests: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut header = String::new();
        while lines.read_line(&mut header)? > 2 {
            header.clear();
        }
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        requests.lock().expect("no panic").push(format!("{method} {path}"));
        let (status, media_type, bytes) = answer(path, content);
        let name = path.rsplit('/').next().unwrap_or_default();
        let tagged = content.lock().expect("no panic").tags.get(name).cloned();
        let digest = tagged.map_or_else(String::new, |digest| format!("docker-content-digest: {digest}\r\n"));
        let length = bytes.len();
        let head =
            format!("HTTP/1.1 {status} x\r\ncontent-type: {media_type}\r\ncontent-length: {length}\r\n{digest}\r\n");
        stream.write_all(head.as_bytes())?;
        if method != "HEAD" {
            stream.write_all(&bytes)?;
        }
    }
}

fn answer(path: &str, content: &Mutex<Content>) -> (u16, &'static str, Vec<u8>) {
    let content = content.lock().expect("no panic");
    let name = path.rsplit('/').next().unwrap_or_default();
    let name = content.tags.get(name).map_or(name, String::as_str);
    if path == "/v2/" || (path.contains("/blobs/") && name == sha256(b"{}")) {
        return (200, "application/octet-stream", b"{}".to_vec());
    }
    if let Some(made) = content.made.get(name).cloned() {
        drop(content);
        return (200, MANIFEST, made.bytes());
    }
    match content.indexes.get(name) {
        Some(index) => (200, INDEX, index.to_vec()),
        None => (404, "application/json", br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#.to_vec()),
    }
}

/// The peak of a process's resident memory, in MiB, as it was seen last.
struct Peak(Arc<AtomicU64>);

impl Peak {
    fn of(process: &Process) -> Self {
        let (seen, id) = (Arc::<AtomicU64>::default(), process.id());
        let peak = Self(seen.clone());
        std::thread::spawn(move || {
            // Until it has ended. The kernel keeps the peak, so nothing is missed in between.
            while let Some(now) = peak_of(id) {
                seen.store(now, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        peak
    }

    #[track_caller]
    fn assert_below(&self, most: u64) {
        let peak = self.0.load(Ordering::Relaxed);
        assert!(peak > 0 && peak < most, "{peak} MiB, not below {most}");
    }
}

fn peak_of(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib >> 10)
}

/// Runs transload, which takes less than so many MiB.
#[track_caller]
fn within(most: u64, args: &[&str]) -> Run {
    let process = Tool::transload().args(args).spawn();
    let peak = Peak::of(&process);
    let run = process.finish(2 * RUN_TIMEOUT);
    peak.assert_below(most);
    run
}

/// The attack: an index of 60 images whose manifests have 4 MiB each.
#[test]
fn a_copy_of_an_image_with_large_manifests_fails_within_its_memory() {
    let hostile = Hostile::with_large_children(60);
    let dir = TempDir::new();
    let (from, to) = (format!("{}/evil", hostile.addr), format!("oci:{}", dir.join("layout")));
    let run = within(200, &["copy", &from, &to]).exits(1);
    assert!(run.stderr.contains("the manifests of the image take more than 64 MiB of memory in all"), "{}", run.stderr);
    let read = hostile.requests("GET /v2/evil/manifests/sha256");
    // Their bytes alone would be 64 MiB; how much of each is kept is known when it is read.
    assert!(read <= 16, "no more of it is read: {read}");
}

/// The same, seen by `inspect`, which prints what manifests say.
#[test]
fn an_inspection_of_an_image_with_large_manifests_fails_within_its_memory() {
    let hostile = Hostile::with_large_children(60);
    let from = format!("{}/evil", hostile.addr);
    for output in ["text", "json"] {
        let run = within(200, &["inspect", &from, "--output", output]).exits(1);
        assert!(run.stderr.contains("take more than 64 MiB of memory"), "{}", run.stderr);
        assert_eq!(run.stdout, "");
    }
}

/// The attack: descriptors that promise small manifests, and a registry that sends 4 MiB for each.
#[test]
fn manifests_larger_than_their_descriptors_say_are_read_few_at_a_time() {
    let hostile = Hostile::start();
    let children: Vec<_> = (0..64)
        .map(|nth| {
            let mut child = hostile.image(nth, 4 * MIB);
            child["size"] = json!(500);
            child
        })
        .collect();
    hostile.tag("latest", &hostile.index(&children));
    let dir = TempDir::new();
    let (from, to) = (format!("{}/evil", hostile.addr), format!("oci:{}", dir.join("layout")));
    let run = within(120, &["copy", &from, &to, "--jobs", "16"]).exits(1);
    assert!(run.stderr.contains("bytes, where its descriptor says 500"), "{}", run.stderr);
}

/// The attack: each image is within its own limit, and a list has many of them. They are copied, one after the other;
/// ordinary images don't wait for them.
#[test]
fn a_mirror_run_of_many_images_with_large_manifests_stays_within_its_memory() {
    let hostile = Hostile::start();
    let mut list = String::from("images:\n");
    for image in 0..6 {
        let children: Vec<_> = (0..6).map(|nth| hostile.image(100 * image + nth, 4 * MIB)).collect();
        hostile.tag(&format!("large{image}"), &hostile.index(&children));
        hostile.tag(&format!("small{image}"), &hostile.image(100 * image + 50, 0));
        list += &format!("- {}/evil:large{image}\n- {0}/evil:small{image}\n", hostile.addr);
    }
    let (registry, dir) = (Registry::start(), TempDir::new());
    let list = dir.write("list.yaml", list);
    let to = format!("{}/mirror", registry.addr());
    let run = within(130, &["mirror", &list, "--to", &to, "--output", "json"]).ok();
    assert_eq!(run.json()["summary"]["copied"], 12, "{}", run.stdout);
}

/// The attack: a tree of 60 indexes that name 9,000 images each. All of them are descriptors, and none is read.
#[test]
fn a_tree_with_too_many_manifests_is_refused_before_any_of_them_is_read() {
    let hostile = Hostile::start();
    let digest = |nth: usize, at: usize| format!("sha256:{:064x}", 9000 * nth + at);
    let index = |nth: usize| {
        let child = |at: usize| json!({"mediaType": MANIFEST, "digest": digest(nth, at), "size": 9});
        hostile.index(&(0..9000).map(child).collect::<Vec<_>>())
    };
    let indexes: Vec<_> = (0..60).map(index).collect();
    hostile.tag("latest", &hostile.index(&indexes));
    let dir = TempDir::new();
    let (from, to) = (format!("{}/evil", hostile.addr), format!("oci:{}", dir.join("layout")));
    let run = within(200, &["copy", &from, &to]).exits(1);
    let why = ["it has more than 10000 manifests", "take more than 64 MiB of memory"];
    assert!(why.iter().any(|why| run.stderr.contains(why)), "{}", run.stderr);
    assert_eq!(hostile.requests(&digest(0, 0)), 0);
    assert!(hostile.requests("GET ") < 70);
}

/// The attack: one client pulls an index with 60 images of 4 MiB each through a proxy that writes back. The copy would
/// end a proxy that has 256 MiB, and again after each restart.
#[test]
fn write_back_of_an_image_with_large_manifests_fails_within_the_memory_of_a_proxy() {
    let (hostile, durable) = (Hostile::with_large_children(60), Registry::start());
    let (original, durable) = (hostile.addr.to_string(), durable.addr());
    let flags = ["--write-back", "--listen-ops", "127.0.0.1:0"];
    let proxy = ProxyProcess::start(&format!("{original}={durable},{original}"), &flags);
    let peak = Peak::of(&proxy.process);
    http::get(proxy.addr(), "/v2/evil/manifests/latest").expect(200);
    let ops = ops_addr(&proxy);
    assert_metric_line(ops, "transload_proxy_write_back_images_total{result=\"failed\"} 1");
    // The image, and none of the children that its copy read.
    assert_metric_line(ops, "transload_proxy_write_back_queue_length 1");
    peak.assert_below(200);
}

/// The attack: many clients ask a proxy for different manifests of 4 MiB at once, and read them slowly.
#[test]
fn clients_that_ask_for_many_large_manifests_at_once_get_them_within_the_memory_of_a_proxy() {
    let hostile = Hostile::start();
    let images: Vec<String> =
        (0..60).map(|nth| hostile.image(nth, 4 * MIB)["digest"].as_str().expect("a digest").to_owned()).collect();
    let proxy = ProxyProcess::start(&format!("docker.io={}", hostile.addr), &[]);
    let (peak, at) = (Peak::of(&proxy.process), proxy.addr());
    let ask = |digest: &str| http::get(at, &format!("/v2/evil/manifests/{digest}"));
    let asked: Vec<u16> = std::thread::scope(|scope| {
        let asking: Vec<_> = images.iter().map(|digest| scope.spawn(move || ask(digest).status)).collect();
        asking.into_iter().map(|asked| asked.join().expect("a client")).collect()
    });
    peak.assert_below(180);
    // On a slow machine the registry may be too slow for the proxy, too.
    assert!(asked.iter().all(|status| [200, 502, 503, 504].contains(status)), "{asked:?}");
    // Who was refused asks again.
    for digest in &images {
        let deadline = Instant::now() + RUN_TIMEOUT;
        while ask(digest).status != 200 {
            assert!(Instant::now() < deadline, "{digest}");
        }
    }
    peak.assert_below(180);
}

/// Entries of a page, and pages of a list of referrers.
const ENTRIES: usize = 2000;
const PAGES: usize = 5;

/// A registry whose every repository has long lists. It makes each page anew, and keeps none. A referrer has forty empty
/// annotations: 400 bytes of JSON, which take several times as much when they are parsed.
fn with_long_lists() -> FakeRegistry {
    let annotations: HashMap<_, _> = (0..40).map(|nth| (format!("a{nth}"), "")).collect();
    let annotations = json!(annotations).to_string();
    FakeRegistry::start(move |asked: &FakeRequest| {
        let (path, query) = asked.target.split_once('?').unwrap_or((asked.target.as_str(), ""));
        let page: usize = query.split("page=").nth(1).and_then(|page| page.parse().ok()).unwrap_or(0);
        let body = if path.ends_with("/tags/list") {
            let tags: Vec<_> = (0..5 * ENTRIES).map(|nth| format!("\"v{page}-{nth:095}\"")).collect();
            format!("{{\"name\":\"app\",\"tags\":[{}]}}", tags.join(","))
        } else {
            let entry = |nth: usize| {
                let digest = format!("sha256:{:064x}", ENTRIES * page + nth);
                format!(
                    "{{\"mediaType\":\"{MANIFEST}\",\"digest\":\"{digest}\",\"size\":9,\"annotations\":{annotations}}}"
                )
            };
            let entries: Vec<_> = (0..ENTRIES).map(entry).collect();
            format!("{{\"schemaVersion\":2,\"mediaType\":\"{INDEX}\",\"manifests\":[{}]}}", entries.join(","))
        };
        let answer = FakeResponse::new(200, body).with("content-type", INDEX);
        if page + 1 == PAGES {
            return answer;
        }
        answer.with("link", &format!("<{path}?page={}>; rel=\"next\"", page + 1))
    })
}

/// The attack: many clients ask a proxy at once for long lists, each of another repository.
#[test]
fn clients_that_ask_for_many_long_lists_at_once_get_them_within_the_memory_of_a_proxy() {
    let registry = with_long_lists();
    let proxy = ProxyProcess::start(&format!("docker.io={}", registry.addr()), &[]);
    let (peak, at, subject) = (Peak::of(&proxy.process), proxy.addr(), format!("sha256:{:064x}", 1));
    let ask = |nth: usize| {
        let list = if nth.is_multiple_of(4) { "tags/list".to_owned() } else { format!("referrers/{subject}") };
        http::get(at, &format!("/v2/evil/app{nth}/{list}"))
    };
    let asked: Vec<u16> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..16).map(|nth| scope.spawn(move || ask(nth).status)).collect();
        asking.into_iter().map(|asked| asked.join().expect("a client")).collect()
    });
    peak.assert_below(LISTS_PEAK);
    assert!(asked.iter().all(|status| [200, 502, 503, 504].contains(status)), "{asked:?}");
    // Who was refused asks again, and gets all of it.
    for nth in [0, 1] {
        let deadline = Instant::now() + RUN_TIMEOUT;
        let whole = loop {
            let reply = ask(nth);
            if reply.status == 200 {
                break reply;
            }
            assert!(Instant::now() < deadline, "{nth}: {}", reply.text());
        };
        let pages = if nth == 0 { 1000 } else { ENTRIES * PAGES };
        let list = whole.json();
        assert_eq!(list["tags"].as_array().or(list["manifests"].as_array()).map(Vec::len), Some(pages));
    }
    peak.assert_below(LISTS_PEAK);
}

/// In MiB: what the proxy may take for all of them.
const LISTS_PEAK: u64 = 200;

/// The attack: an image whose copy kills the proxy, whatever it is that does it; the killed proxy is started again by
/// its supervisor. After three times the image is given up, and a pull does not bring it back.
#[test]
fn an_image_whose_copy_kills_the_proxy_is_given_up() {
    let (original, durable) = (Registry::start(), Registry::start());
    let image = Image::single(8, &[5000]);
    image.push(original.addr(), "library/app", "v1");
    let stalls = Rule::on("POST", "/uploads/", Fault::Delay(Duration::from_secs(600)));
    let front = Front::before(durable.addr()).rule(stalls).start();
    let upstream = format!("{0}={1},{0}", original.addr(), front.addr());
    let flags = ["--write-back", "--listen-ops", "127.0.0.1:0", "--tag-ttl", "0"];
    let mut cache = TempDir::new();
    for killed in 0..3 {
        let proxy = ProxyProcess::start_in(cache, &upstream, &flags);
        if killed == 0 {
            image.assert_at(proxy.addr(), "library/app", "v1");
        }
        front.wait_for("its copy", |seen| seen.method == "POST");
        cache = proxy.kill();
        // The image has several blobs: another POST of the proxy that is dead now is none of the next one's.
        front.reset_log();
    }
    front.clear_rules();
    let proxy = ProxyProcess::start_in(cache, &upstream, &flags);
    let ops = ops_addr(&proxy);
    assert_metric_line(ops, "transload_proxy_write_back_images_total{result=\"given-up\"} 1");
    assert!(proxy.process.stderr.text().contains("the proxy was killed 3 times while it was copied"));
    image.assert_at(proxy.addr(), "library/app", "v1");
    assert_metric_line(ops, "transload_proxy_write_back_queue_length 0");
    assert_eq!(http::get(durable.addr(), "/v2/library/app/manifests/v1").status, 404);
}
