//! The reading part of the distribution spec's conformance list, by our own tests: the proxy before a real
//! registry, each thing asked twice, of a cold cache and of a warm one.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::http::{self, Reply};
use super::support::{Front, Image, ProxyProcess, Registry};

/// A proxy with an empty cache before a registry with one image.
struct World {
    registry: Registry,
    front: Front,
    proxy: ProxyProcess,
    image: Image,
}

impl World {
    /// Of an image of this many layers.
    fn new(layers: usize) -> Self {
        let registry = Registry::start();
        let image = Image::single(31, &vec![70_000; layers]);
        image.push(registry.addr(), "library/app", "v1");
        let front = Front::before(registry.addr()).start();
        let proxy = ProxyProcess::hub(front.addr(), &[]);
        Self { registry, front, proxy, image }
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        http::send(self.proxy.addr(), method, path, headers, &[])
    }

    fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[])
    }

    /// Waits until so many blobs are in the cache.
    fn wait_for_blobs(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.proxy.files("blobs").len() < count {
            assert!(Instant::now() < deadline, "never committed");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn manifests(&self) -> [String; 2] {
        ["v1", self.image.digest()].map(|target| format!("/v2/library/app/manifests/{target}"))
    }

    /// The path of one of the image's blobs.
    fn blob(&self, n: usize) -> String {
        format!("/v2/library/app/blobs/{}", self.image.blobs[n].digest)
    }
}

/// The code of an error as the spec writes it.
#[track_caller]
fn code(reply: &Reply) -> String {
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let body = reply.json();
    let errors = body["errors"].as_array().expect("errors");
    assert!(!errors.is_empty() && errors.iter().all(|error| error["message"].is_string()), "{body}");
    errors[0]["code"].as_str().expect("a code").to_owned()
}

/// What a digest may look like that nothing has.
fn none() -> String {
    format!("sha256:{}", "0".repeat(64))
}

#[test]
fn ping_with_and_without_slash() {
    let world = World::new(1);
    for path in ["/v2/", "/v2", "/v2/?ns=docker.io"] {
        for method in ["GET", "HEAD"] {
            let reply = world.ask(method, path, &[]).expect(200);
            assert_eq!(reply.header("docker-distribution-api-version"), Some("registry/2.0"), "{path}");
            assert_eq!(reply.header("www-authenticate"), None, "it would be sent credentials");
        }
    }
    assert_eq!(world.get("/v2/").json(), json!({}));
    assert_eq!(world.front.log().len(), 0, "a ping is nobody else's business");
}

#[test]
fn manifests_by_tag_and_digest() {
    for method in ["GET", "HEAD"] {
        let world = World::new(1);
        for path in world.manifests().iter().flat_map(|path| [path, path]) {
            let reply = world.ask(method, path, &[]).expect(200);
            assert_eq!(reply.header("docker-content-digest"), Some(world.image.digest()), "{path}");
            assert_eq!(reply.header("content-type"), Some(world.image.media_type()));
            assert_eq!(reply.header("content-length"), Some(&*world.image.bytes().len().to_string()));
            assert_eq!(reply.header("content-encoding"), None, "containerd would decode it");
            let expected = if method == "GET" { world.image.bytes() } else { b"" };
            assert!(reply.body == expected, "{method} {path}");
        }
    }
}

#[test]
fn whatever_a_client_accepts_it_gets_what_there_is() {
    for accept in [
        "*/*",
        "application/vnd.oci.image.manifest.v1+json",
        // What the image isn't: it says by `Content-Type` what it is.
        "application/vnd.docker.distribution.manifest.v2+json",
        "text/html, application/vnd.oci.image.index.v1+json;q=0.5",
    ] {
        let world = World::new(1);
        for path in world.manifests().iter().flat_map(|path| [path, path]) {
            let reply = world.ask("GET", path, &[("accept", accept)]).expect(200);
            assert!(reply.body == world.image.bytes(), "{accept}");
            assert_eq!(reply.header("content-type"), Some(world.image.media_type()));
        }
        // The upstream hears all that we know, whoever asks first.
        let asked = world.front.log();
        let told = asked[0].header("accept").expect("an Accept").to_owned();
        assert!(told.contains("image.index") && told.contains("manifest.list"), "{told}");
    }
}

#[test]
fn blobs() {
    let world = World::new(2);
    for (n, blob) in world.image.blobs.iter().enumerate() {
        for round in ["cold", "warm"] {
            let head = world.ask("HEAD", &world.blob(n), &[]).expect(200);
            let reply = world.get(&world.blob(n)).expect(200);
            assert!(reply.whole && reply.body == blob.bytes, "{round}");
            for reply in [head, reply] {
                assert_eq!(reply.header("docker-content-digest"), Some(&*blob.digest), "{round}");
                assert_eq!(reply.header("content-length"), Some(&*blob.bytes.len().to_string()));
                assert_eq!(reply.header("content-type"), Some("application/octet-stream"));
                assert_eq!(reply.header("accept-ranges"), Some("bytes"));
                assert_eq!(reply.header("content-encoding"), None);
            }
            world.wait_for_blobs(n + 1);
        }
    }
    assert_eq!(world.front.count("GET", "/blobs/"), world.image.blobs.len());
}

#[test]
fn ranges_of_cold_and_warm_blobs() {
    let forms = ["0-9", "500-999", "69990-", "0-", "-10", "-999999", "65000-999999", "0-0", "69999-69999"];
    let world = World::new(forms.len());
    for (n, form) in forms.iter().enumerate() {
        // The config is the first.
        let (bytes, path) = (&world.image.blobs[n + 1].bytes, world.blob(n + 1));
        let (first, last) = form.split_once('-').expect("a range");
        let size = bytes.len();
        let part = match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) => first..size.min(last + 1),
            (Ok(first), Err(_)) => first..size,
            (Err(_), last) => size.saturating_sub(last.expect("a number"))..size,
        };
        for round in ["cold", "warm"] {
            let reply = world.ask("GET", &path, &[("range", &format!("bytes={form}"))]).expect(206);
            assert!(reply.whole && reply.body == bytes[part.clone()], "{form}, {round}");
            let told = format!("bytes {}-{}/{size}", part.start, part.end - 1);
            assert_eq!(reply.header("content-range"), Some(&*told), "{form}, {round}");
            assert_eq!(reply.header("content-length"), Some(&*part.len().to_string()));
            assert_eq!(reply.header("docker-content-digest"), Some(&*world.image.blobs[n + 1].digest));
            world.wait_for_blobs(n + 1);
        }
        assert_eq!(world.front.count("GET", &path), 1, "{form}");
    }
}

#[test]
fn ranges_that_are_not_there() {
    let forms = ["70000-", "99999-100000", "-0"];
    let world = World::new(forms.len());
    for (n, form) in forms.iter().enumerate() {
        let size = world.image.blobs[n + 1].bytes.len();
        for round in ["cold", "warm"] {
            let reply = world.ask("GET", &world.blob(n + 1), &[("range", &format!("bytes={form}"))]).expect(416);
            assert_eq!(reply.header("content-range"), Some(&*format!("bytes */{size}")), "{form}, {round}");
            assert_eq!(code(&reply), "SIZE_INVALID");
            world.wait_for_blobs(n + 1);
        }
    }
}

#[test]
fn ranges_that_are_not_served_give_the_whole() {
    // Several, upside down, of another unit, no range at all: RFC 9110 lets a server ignore them.
    let forms = ["bytes=0-1,5-6", "bytes=9-3", "lines=1-2", "bytes=a-b", "bytes=-"];
    let world = World::new(forms.len());
    for (n, form) in forms.iter().enumerate() {
        for round in ["cold", "warm"] {
            let reply = world.ask("GET", &world.blob(n + 1), &[("range", form)]).expect(200);
            assert!(reply.whole && reply.body == world.image.blobs[n + 1].bytes, "{form}, {round}");
            assert_eq!(reply.header("content-range"), None);
            world.wait_for_blobs(n + 1);
        }
    }
}

#[test]
fn a_head_has_no_range() {
    let world = World::new(1);
    let size = world.image.blobs[1].bytes.len().to_string();
    for round in ["cold", "warm"] {
        for form in ["bytes=0-9", "bytes=99999999-"] {
            // RFC 9110, 14.2: only `GET` has one.
            let reply = world.ask("HEAD", &world.blob(1), &[("range", form)]).expect(200);
            assert_eq!(reply.header("content-length"), Some(&*size), "{form}, {round}");
        }
        world.get(&world.blob(1)).expect(200);
        world.wait_for_blobs(1);
    }
}

#[test]
fn a_range_of_what_the_client_has_begun_with() {
    let world = World::new(2);
    for (n, tag, status) in [(1, None, 206), (2, Some("\"another\""), 200)] {
        let blob = &world.image.blobs[n];
        let own = format!("\"{}\"", blob.digest);
        let tag = tag.unwrap_or(&own);
        for round in ["cold", "warm"] {
            let reply = world.ask("GET", &world.blob(n), &[("range", "bytes=100-"), ("if-range", tag)]).expect(status);
            let expected = if status == 206 { &blob.bytes[100..] } else { &blob.bytes };
            assert!(reply.whole && reply.body == expected, "{tag}, {round}");
            world.wait_for_blobs(n);
        }
    }
    // By a date it can't be known: the whole.
    let dated = [("range", "bytes=100-"), ("if-range", "Sat, 29 Oct 1994 19:43:31 GMT")];
    world.ask("GET", &world.blob(1), &dated).expect(200);
}

#[test]
fn what_the_client_has_already_is_not_sent_again() {
    let world = World::new(1);
    let [tag, digest] = world.manifests();
    for (path, of) in [(&tag, world.image.digest()), (&digest, world.image.digest())] {
        for _ in ["cold", "warm"] {
            for known in [format!("\"{of}\""), format!("W/\"{of}\""), format!("\"x\", \"{of}\""), "*".to_owned()] {
                for method in ["GET", "HEAD"] {
                    let reply = world.ask(method, path, &[("if-none-match", &known)]).expect(304);
                    assert!(reply.body.is_empty());
                    assert_eq!(reply.header("etag"), Some(&*format!("\"{of}\"")));
                    assert_eq!(reply.header("docker-content-digest"), Some(of));
                }
            }
            world.ask("GET", path, &[("if-none-match", "\"x\"")]).expect(200);
        }
    }
    let blob = &world.image.blobs[1];
    let known = format!("\"{}\"", blob.digest);
    for _ in ["cold", "warm"] {
        world.ask("GET", &world.blob(1), &[("if-none-match", &known)]).expect(304);
        assert!(world.ask("GET", &world.blob(1), &[("if-none-match", "\"x\"")]).expect(200).body == blob.bytes);
    }
}

#[test]
fn what_is_not_there_is_404_with_the_specs_codes() {
    let world = World::new(1);
    for (path, expected) in [
        ("/v2/library/app/manifests/none".to_owned(), "MANIFEST_UNKNOWN"),
        (format!("/v2/library/app/manifests/{}", none()), "MANIFEST_UNKNOWN"),
        ("/v2/library/none/manifests/v1".to_owned(), "MANIFEST_UNKNOWN"),
        // No tag can be called so.
        ("/v2/library/app/manifests/.INVALID_MANIFEST_NAME".to_owned(), "MANIFEST_UNKNOWN"),
        (format!("/v2/library/app/blobs/{}", none()), "BLOB_UNKNOWN"),
        (format!("/v2/library/none/blobs/{}", none()), "BLOB_UNKNOWN"),
        (format!("/v2/library/app/blobs/sha512:{}", "0".repeat(128)), "BLOB_UNKNOWN"),
        ("/v2/library/none/tags/list".to_owned(), "NAME_UNKNOWN"),
        ("/v2/library/app/nothing".to_owned(), "NAME_UNKNOWN"),
        ("/v1/_ping".to_owned(), "NAME_UNKNOWN"),
    ] {
        for _ in ["cold", "warm"] {
            assert_eq!(code(&world.get(&path).expect(404)), expected, "{path}");
            let head = world.ask("HEAD", &path, &[]).expect(404);
            assert!(head.header("content-length").is_some_and(|length| length != "0"), "{path}");
        }
    }
}

#[test]
fn digests_and_names_that_are_none() {
    let world = World::new(1);
    let hex = "0".repeat(64);
    let upper = hex.replace('0', "A");
    for digest in [
        "sha256:123".to_owned(),
        "sha256:".to_owned(),
        format!("sha256:{upper}"),
        format!("sha256:{hex}0"),
        format!("sha512:{hex}"),
        format!("md5:{}", "0".repeat(32)),
        format!("sha256:{}", hex.replace('0', "g")),
    ] {
        for kind in ["blobs", "manifests", "referrers"] {
            let path = format!("/v2/library/app/{kind}/{digest}");
            assert_eq!(code(&world.get(&path).expect(400)), "DIGEST_INVALID", "{path}");
            world.ask("HEAD", &path, &[]).expect(400);
        }
    }
    assert_eq!(code(&world.get("/v2/library/app/blobs/nodigest").expect(400)), "DIGEST_INVALID");
    assert_eq!(code(&world.get("/v2/Library/app/manifests/v1").expect(400)), "NAME_INVALID");
    assert_eq!(world.front.log().len(), 0, "the upstream was asked for nonsense");
}

#[test]
fn pushes_and_deletions_are_405() {
    let world = World::new(1);
    let (blob, upload) = (world.blob(1), "/v2/library/app/blobs/uploads/6b3c9a93-af5d-473f-a4cb-9710022185cd");
    let [tag, digest] = world.manifests();
    for _ in ["cold", "warm"] {
        for (method, path) in [
            ("POST", "/v2/library/app/blobs/uploads/"),
            ("POST", &*format!("/v2/library/app/blobs/uploads/?mount={}&from=library/other", none())),
            ("POST", &*format!("/v2/library/app/blobs/uploads/?digest={}", none())),
            ("PATCH", upload),
            ("PUT", &*format!("{upload}?digest={}", none())),
            ("DELETE", upload),
            ("PUT", &tag),
            ("PUT", &digest),
            ("DELETE", &tag),
            ("DELETE", &digest),
            ("DELETE", &blob),
            ("POST", "/v2/"),
            // Also of what isn't configured: it doesn't matter.
            ("PUT", "/v2/quay.io/some/app/manifests/v1"),
        ] {
            let reply = http::send(world.proxy.addr(), method, path, &[], b"some bytes").expect(405);
            assert_eq!(code(&reply), "UNSUPPORTED", "{method} {path}");
            assert_eq!(reply.header("allow"), Some("GET, HEAD"), "{method} {path}");
        }
        assert!(world.get(&tag).expect(200).body == world.image.bytes());
        world.get(&blob).expect(200);
    }
    assert!(world.front.log().iter().all(|seen| matches!(&*seen.method, "GET" | "HEAD")), "it was passed on");
    world.registry.assert_no_open_uploads();
}

/// The tags of a page, and the path of the next one.
fn page(reply: &Reply) -> (Value, Option<String>) {
    let next = reply.header("link").map(|link| {
        let (path, rest) = link.strip_prefix('<').and_then(|rest| rest.split_once('>')).expect("<path>");
        assert_eq!(rest, "; rel=\"next\"");
        path.to_owned()
    });
    (reply.json()["tags"].clone(), next)
}

#[test]
fn tags_and_their_pages() {
    let world = World::new(1);
    for tag in ["a", "b", "c", "B"] {
        world.image.push(world.registry.addr(), "library/app", tag);
    }
    let list = "/v2/library/app/tags/list";
    for _ in ["cold", "warm"] {
        let all = world.get(list).expect(200);
        assert_eq!(all.header("content-type"), Some("application/json"));
        assert_eq!(all.json(), json!({"name": "library/app", "tags": ["B", "a", "b", "c", "v1"]}));
        assert_eq!(page(&all).1, None);
        let of = |query: &str| page(&world.get(&format!("{list}?{query}")).expect(200));
        assert_eq!(of("n=0"), (json!([]), None));
        assert_eq!(of("n=5"), (json!(["B", "a", "b", "c", "v1"]), None));
        assert_eq!(of("last=b"), (json!(["c", "v1"]), None));
        assert_eq!(of("last=bb&n=1").0, json!(["c"]));
        assert_eq!(of("last=zzz&n=3"), (json!([]), None));
        // From page to page, for a mirror's client too.
        for begin in ["n=2", "n=2&ns=docker.io"] {
            let (mut path, mut seen) = (Some(format!("{list}?{begin}")), Vec::new());
            while let Some(at) = path {
                let (tags, next) = page(&world.get(&at).expect(200));
                seen.push(tags);
                path = next;
            }
            assert_eq!(seen, [json!(["B", "a"]), json!(["b", "c"]), json!(["v1"])], "{begin}");
        }
        for wrong in ["n=-1", "n=many"] {
            let reply = world.get(&format!("{list}?{wrong}")).expect(400);
            assert_eq!(code(&reply), "PAGINATION_NUMBER_INVALID");
        }
        let named = world.get("/v2/docker.io/library/app/tags/list").expect(200);
        assert_eq!(named.json()["name"], "docker.io/library/app");
    }
}

#[test]
fn referrers_and_their_filter() {
    let world = World::new(1);
    let (kind, other) = ("application/vnd.x.sbom+json", "application/vnd.x.other");
    let of = [(1, kind), (2, other)].map(|(seed, kind)| Image::artifact(seed, kind, Some(&world.image)));
    let path = |digest: &str| format!("/v2/library/app/referrers/{digest}");
    // None is an empty index, never a 404: that would say that there is no such API.
    for digest in [none(), of[0].digest().to_owned()] {
        let reply = world.get(&path(&digest)).expect(200);
        assert_eq!(reply.header("content-type"), Some("application/vnd.oci.image.index.v1+json"));
        let index = reply.json();
        assert_eq!((&index["schemaVersion"], &index["manifests"]), (&json!(2), &json!([])));
    }
    let listed = |query: &str| {
        let reply = world.get(&format!("{}{query}", path(world.image.digest()))).expect(200);
        let all: Vec<_> = reply.json()["manifests"].as_array().expect("a list").clone();
        let digests: Vec<_> = all.iter().map(|entry| entry["digest"].as_str().expect("one").to_owned()).collect();
        assert!(all.iter().all(|entry| entry["artifactType"].is_string() && entry["size"].is_u64()), "{all:?}");
        (digests, reply.header("oci-filters-applied").map(str::to_owned))
    };
    assert_eq!(listed("").0, Vec::<String>::new());
    // Docker's registry has no such API: they are listed at a tag, which the proxy reads.
    for image in &of {
        image.push(world.registry.addr(), "library/app", "x");
    }
    let tag = world.image.referrers_tag();
    Image::referrers(&of).push(world.registry.addr(), "library/app", &tag);
    for _ in ["cold", "warm"] {
        assert_eq!(listed(""), (vec![of[0].digest().to_owned(), of[1].digest().to_owned()], None));
        let filtered = listed(&format!("?artifactType={kind}"));
        assert_eq!(filtered, (vec![of[0].digest().to_owned()], Some("artifactType".to_owned())));
        assert_eq!(listed("?artifactType=application/none").0, Vec::<String>::new());
    }
}

#[test]
fn an_image_and_an_empty_blob_by_every_name() {
    let world = World::new(1);
    let empty = Image::single(32, &[0]);
    empty.push(world.registry.addr(), "library/empty", "v1");
    for (place, ns) in [("library/app", ""), ("library/app", "?ns=docker.io"), ("docker.io/library/app", "")] {
        let reply = world.get(&format!("/v2/{place}/manifests/v1{ns}")).expect(200);
        assert!(reply.body == world.image.bytes());
        assert_eq!(reply.header("oci-namespace"), ns.strip_prefix("?ns="));
    }
    for blob in &empty.blobs {
        let path = format!("/v2/library/empty/blobs/{}", blob.digest);
        for _ in ["cold", "warm"] {
            assert!(world.get(&path).expect(200).body == blob.bytes);
        }
    }
}
