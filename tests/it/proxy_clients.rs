//! `transload proxy` with real clients.

use super::support::{Front, Image, Proxied, Registry, TempDir, skopeo};

#[test]
fn skopeo_copies_through_it() {
    let registry = Registry::start();
    let image = Image::index(5, 3, &[30_000, 200_000]);
    image.push(registry.addr(), "library/app", "v1");
    let front = Front::before(registry.addr()).start();
    let proxy = Proxied::hub(front.addr(), &[]);
    let out = TempDir::new();
    for (round, path) in ["library/app", "docker.io/library/app"].iter().enumerate() {
        let from = format!("docker://{}/{path}:v1", proxy.addr());
        let to = format!("oci:{}:v1", out.join(&round.to_string()));
        skopeo(&["--insecure-policy", "copy", "--all", "--src-tls-verify=false", &from, &to]).ok();
        for blob in image.blobs.iter().map(|blob| (&blob.digest, &blob.bytes)) {
            let file = out.path().join(format!("{round}/blobs/sha256/{}", &blob.0[7..]));
            assert!(&std::fs::read(&file).expect("a blob") == blob.1, "{}", file.display());
        }
    }
    let blobs = image.blobs.len();
    assert_eq!(front.count("GET", "/blobs/"), blobs, "each once");
}
