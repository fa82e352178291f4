//! An outside judge: the `oci-client` crate, which shares no code with transload, pulls what transload copied, pulls
//! through the proxy, and pushes to the server.

use std::net::SocketAddr;

use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer, linux_amd64_resolver};
use oci_client::manifest::{IMAGE_LAYER_GZIP_MEDIA_TYPE, OciImageManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

use crate::support::images::{Document, OCI_INDEX, OCI_MANIFEST};
use crate::support::layer::sha256;
use crate::support::{Fault, Front, Image, ProxyProcess, Registry, Rule, ServeProcess, TempDir, http, transload};

/// The types that a manifest may have.
const ACCEPT: [&str; 2] = [OCI_INDEX, OCI_MANIFEST];

/// The client. It chooses the image for linux/amd64 from an index.
fn client(is_monolithic: bool) -> Client {
    Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        use_monolithic_push: is_monolithic,
        platform_resolver: Some(Box::new(linux_amd64_resolver)),
        ..ClientConfig::default()
    })
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

fn reference(at: SocketAddr, name: &str) -> Reference {
    format!("{at}/{name}").parse().expect("a reference")
}

/// Fails the test unless the client pulls exactly this: the index byte for byte, and of the image for linux/amd64 the
/// manifest, the config and the layers.
#[track_caller]
fn pulls(from: &Reference, image: &Image) {
    let (client, auth) = (client(false), RegistryAuth::Anonymous);
    let (bytes, digest) = run(client.pull_manifest_raw(from, &auth, &ACCEPT)).expect("a manifest");
    assert_eq!((&bytes[..], digest.as_str()), (image.bytes(), image.digest()));
    let pulled = run(client.pull(from, &auth, vec![IMAGE_LAYER_GZIP_MEDIA_TYPE])).expect("an image");
    let child: &Document = &image.manifests[0];
    assert_eq!(pulled.digest.as_deref(), Some(child.digest.as_str()));
    let manifest: OciImageManifest = serde_json::from_slice(&child.bytes).expect("a manifest");
    let blob = |digest: &str| image.blobs.iter().find(|blob| blob.digest == digest).expect("a blob").bytes.clone();
    assert!(pulled.config.data == blob(&manifest.config.digest), "the config differs");
    assert_eq!(pulled.layers.len(), 2);
    // They are pulled at the same time, and come in any order.
    for wanted in &manifest.layers {
        assert!(pulled.layers.iter().any(|layer| layer.data == blob(&wanted.digest)), "{} differs", wanted.digest);
    }
}

/// From docker-registry to both kinds of registry: images of an index, tags, and referrers by the tag schema and the API.
#[test]
fn oci_client_pulls_what_was_copied() {
    let (source, plain, directory) = (Registry::start(), Registry::start(), TempDir::new());
    let served = ServeProcess::start(directory.path(), &["--writable"]);
    let image = Image::index(8101, 3, &[3000, 70_000]);
    image.push(source.addr(), "app", "v1");
    let sbom = Image::artifact(8102, "application/spdx+json", Some(&image));
    Image::referrers(std::slice::from_ref(&sbom)).push(source.addr(), "app", &image.referrers_tag());
    for to in [plain.addr(), served.addr()] {
        let goal = format!("{to}/a/b/app:v1");
        transload(&["copy", &format!("{}/app:v1", source.addr()), &goal, "--referrers"]).ok();
        let tagged = reference(to, "a/b/app:v1");
        pulls(&tagged, &image);
        pulls(&reference(to, &format!("a/b/app@{}", image.digest())), &image);
        let tags = run(client(false).list_tags(&tagged, &RegistryAuth::Anonymous, None, None)).expect("tags").tags;
        assert!(tags.contains(&"v1".to_owned()), "{tags:?}");
        let subject = reference(to, &format!("a/b/app@{}", image.digest()));
        let listed = run(client(false).pull_referrers(&subject, None)).expect("referrers").manifests;
        assert_eq!(listed.iter().map(|entry| entry.digest.as_str()).collect::<Vec<_>>(), [sbom.digest()]);
        assert_eq!(listed[0].artifact_type.as_deref(), Some("application/spdx+json"));
    }
}

/// Cold, then warm without the upstream.
#[test]
fn oci_client_pulls_through_the_proxy() {
    let registry = Registry::start();
    let image = Image::index(8103, 2, &[3000, 500_000]);
    image.push(registry.addr(), "library/app", "v1");
    let front = Front::before(registry.addr()).start();
    let proxy = ProxyProcess::hub(front.addr(), &[]);
    pulls(&reference(proxy.addr(), "library/app:v1"), &image);
    let asked = front.count("GET", "/blobs/");
    assert_eq!(asked, 3, "the config and the two layers");
    pulls(&reference(proxy.addr(), "library/app:v1"), &image);
    // As containerd names the upstream.
    let mut mirrored: Reference = "docker.io/library/app:v1".parse().expect("a reference");
    mirrored.set_mirror_registry(proxy.addr().to_string());
    pulls(&mirrored, &image);
    assert_eq!(front.count("GET", "/blobs/"), asked);
}

/// By chunks and in one piece. What was pushed is pulled again, by the client and by transload.
#[test]
fn oci_client_pushes_to_the_server() {
    let directory = TempDir::new();
    let served = ServeProcess::start(directory.path(), &["--writable"]);
    for (is_monolithic, name) in [(false, "chunked"), (true, "whole")] {
        let (client, auth) = (client(is_monolithic), RegistryAuth::Anonymous);
        let image = reference(served.addr(), &format!("{name}/app:v1"));
        // More than one chunk of the client, which has 4 MiB.
        let large: Vec<u8> = (0..5_000_000_u32).flat_map(|nth| nth.to_le_bytes()).take(9_000_000).collect();
        let layer = |bytes: Vec<u8>| ImageLayer::new(bytes, IMAGE_LAYER_GZIP_MEDIA_TYPE.to_owned(), None);
        let layers = [layer(large), layer(name.as_bytes().to_vec())];
        let config = Config::oci_v1(br#"{"architecture":"amd64","os":"linux"}"#.to_vec(), None);
        let pushed = run(client.push(&image, &layers, config.clone(), &auth, None)).expect("a push");
        assert!(pushed.manifest_url.contains(&format!("/v2/{name}/app/manifests/")), "{}", pushed.manifest_url);
        let pulled = run(client.pull(&image, &auth, vec![IMAGE_LAYER_GZIP_MEDIA_TYPE])).expect("a pull");
        assert!(pulled.config.data == config.data);
        for layer in &layers {
            let path = format!("/v2/{name}/app/blobs/{}", sha256(&layer.data));
            assert!(http::get(served.addr(), &path).expect(200).body == layer.data, "{path} differs");
            assert!(pulled.layers.iter().any(|other| other.data == layer.data), "{path} is not pulled");
        }
        let to = Registry::start();
        transload(&["copy", &format!("{}/{name}/app:v1", served.addr()), &format!("{}/app:v1", to.addr())]).ok();
        let there = http::get(to.addr(), "/v2/app/manifests/v1").expect(200);
        assert_eq!(there.header("docker-content-digest"), pulled.digest.as_deref());
    }
}

/// The crate documentation says why this client does not carry transload's own requests. These are the reasons that a
/// registry sees.
#[test]
fn oci_client_lacks_what_a_copier_needs() {
    let registry = Registry::start();
    let front = Front::before(registry.addr()).start();
    let (client, auth) = (client(false), RegistryAuth::Anonymous);
    let image = reference(front.addr(), "app:v1");

    // A PATCH for each item of a stream.
    let blob: Vec<u8> = (0..20_000_u32).map(|nth| nth.to_le_bytes()[0]).collect();
    let items: Vec<_> = blob.chunks(1000).map(|item| Ok(item.to_vec().into())).collect();
    run(client.store_auth_if_needed(image.resolve_registry(), &auth));
    run(client.push_blob_stream(&image, futures_util::stream::iter(items), &sha256(&blob), None)).expect("a push");
    assert_eq!(front.count("PATCH", "/blobs/uploads/"), 20);

    // A mount that is refused starts an upload session, which the client does not use.
    let absent = reference(front.addr(), "other:v1");
    front.reset_log();
    run(client.mount_blob(&image, &absent, &sha256(b"absent"))).expect_err("refused");
    let uploads: Vec<_> = front.log().iter().filter(|seen| seen.path.contains("/blobs/uploads/")).cloned().collect();
    assert_eq!(uploads.iter().map(|seen| (&*seen.method, seen.status)).collect::<Vec<_>>(), [("POST", Some(202))]);

    // No retry, and no word of how long to wait.
    front.reset_log();
    front.add(Rule::on("GET", "/manifests/", Fault::too_many(1)));
    let error = run(client.pull_manifest_raw(&image, &auth, &ACCEPT)).expect_err("limited");
    assert_eq!(front.count("GET", "/manifests/"), 1);
    assert!(!format!("{error:?}").to_lowercase().contains("retry-after"), "{error:?}");

    "[::1]:5000/app:v1".parse::<Reference>().expect_err("a registry at an IPv6 address");
}
