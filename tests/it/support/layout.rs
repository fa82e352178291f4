//! Layout directories that no tool of ours wrote.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Image, TempDir};

/// The file of a blob or manifest.
pub fn file(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs/sha256").join(digest.strip_prefix("sha256:").expect("a sha256 digest"))
}

/// Writes `image` into a new layout `name`, where it has this tag.
pub fn write(dir: &TempDir, name: &str, image: &Image, tag: &str) -> PathBuf {
    let mut entry = image.descriptor();
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    let layout = dir.path().join(name);
    let contents = image.blobs.iter().map(|blob| (&blob.digest, &blob.bytes));
    let contents = contents.chain(image.manifests.iter().map(|manifest| (&manifest.digest, &manifest.bytes)));
    for (digest, bytes) in contents {
        let file = file(&layout, digest);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
        std::fs::write(file, bytes).expect("a file");
    }
    std::fs::write(layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file");
    index(&layout, &[entry]);
    layout
}

/// Replaces the layout's index by one of these entries.
pub fn index(layout: &Path, entries: &[Value]) {
    let index = json!({"schemaVersion": 2, "manifests": entries});
    std::fs::write(layout.join("index.json"), index.to_string()).expect("a file");
}

/// Replaces a file by a named pipe that nobody writes to.
pub fn pipe(path: &Path) {
    drop(std::fs::remove_file(path));
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.expect("mkfifo runs").success(), "{}", path.display());
}

/// Replaces a file by a link.
pub fn link(path: &Path, to: &Path) {
    drop(std::fs::remove_file(path));
    std::os::unix::fs::symlink(to, path).expect("a link");
}
