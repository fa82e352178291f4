//! What is shown: `inspect`, `tags`, `completions`, `man`, `--help`; and to whom.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::copy_plain::serve;
use super::support::images::{OCI_INDEX, OCI_MANIFEST};
use super::support::{Front, Image, Registry, TempDir, Tool, skopeo, transload};

/// A registry with these, each as `app:TAG`.
fn registry(images: &[(&str, &Image)]) -> Registry {
    let registry = Registry::start();
    for (tag, image) in images {
        image.push(registry.addr(), "app", tag);
    }
    registry.reset_log();
    registry
}

fn text(name: &str, more: &[&str]) -> String {
    transload(&[&["inspect", name], more].concat()).ok().stdout
}

fn document(name: &str, more: &[&str]) -> Value {
    transload(&[&["inspect", name, "--output", "json"], more].concat()).ok().json()
}

fn object(image: &Image) -> Value {
    serde_json::from_slice(image.bytes()).expect("a manifest is JSON")
}

#[test]
fn one_image() {
    let image = Image::single(1, &[40_000, 3000]);
    let registry = registry(&[("v1", &image)]);
    let name = format!("{}/app:v1", registry.addr());
    let blobs = &image.blobs;
    let sizes: Vec<usize> = blobs.iter().map(|blob| blob.bytes.len()).collect();
    assert_eq!(
        text(&name, &[]),
        format!(
            "{name}\n\
             digest  {}\n\
             type    {OCI_MANIFEST}, {:.1} KiB in 3 blobs\n\
             config  {} {:>10}  application/vnd.oci.image.config.v1+json\n\
             layer   {}   39.1 KiB  application/vnd.oci.image.layer.v1.tar+gzip\n\
             layer   {}    2.9 KiB  application/vnd.oci.image.layer.v1.tar+gzip\n",
            image.digest(),
            sizes.iter().sum::<usize>() as f64 / 1024.0,
            blobs[0].digest,
            format!("{} B", sizes[0]),
            blobs[1].digest,
            blobs[2].digest,
        )
    );
    let shown = document(&name, &[]);
    let mut expected = vec![object(&image)["config"].clone()];
    expected.extend(object(&image)["layers"].as_array().expect("layers").iter().cloned());
    assert_eq!(
        shown,
        json!({
            "schema": 1,
            "reference": name,
            "digest": image.digest(),
            "mediaType": OCI_MANIFEST,
            "size": image.bytes().len(),
            "blobs": expected,
        })
    );
    // One request each, and no blob.
    let asked: Vec<_> = registry.requests().into_iter().map(|request| (request.0, request.1)).collect();
    assert_eq!(asked, vec![("GET".to_owned(), "/v2/app/manifests/v1".to_owned()); 2]);
    // By digest too.
    let by_digest = format!("{}/app@{}", registry.addr(), image.digest());
    assert_eq!(document(&by_digest, &[])["digest"], image.digest());
}

#[test]
fn an_index_and_its_platforms() {
    let image = Image::tiny(1);
    let registry = registry(&[("v1", &image)]);
    let name = format!("{}/app:v1", registry.addr());
    let shown = document(&name, &[]);
    assert_eq!((&shown["mediaType"], &shown["digest"]), (&json!(OCI_INDEX), &json!(image.digest())));
    assert_eq!(shown["blobs"], Value::Null);
    // In the index's order, with the blobs of images and no attestation read.
    let children = object(&image)["manifests"].as_array().expect("children").clone();
    let listed = shown["manifests"].as_array().expect("children");
    assert_eq!(listed.len(), 24);
    for (entry, child) in listed.iter().zip(&children) {
        assert_eq!((&entry["digest"], &entry["size"]), (&child["digest"], &child["size"]));
        let attestation = child["platform"]["os"] == "unknown";
        assert_eq!(entry["blobs"].as_array().map(Vec::len), if attestation { None } else { Some(2) });
    }
    let platforms: Vec<&str> = listed[..5].iter().filter_map(|child| child["platform"].as_str()).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8"]);
    assert_eq!(registry.count("GET", "/manifests/"), 13, "the index and 12 images");

    let table = text(&name, &[]);
    let heads: Vec<&str> = table.split("\n\n").skip(1).map(|part| part.lines().next().unwrap_or_default()).collect();
    assert_eq!(heads.len(), 24);
    assert_eq!((heads[0], heads[3], heads[12]), ("linux/amd64", "linux/arm/v7", "attestation"));

    // Only what is wanted is read: each costs a pull at Docker Hub.
    registry.reset_log();
    let shown = document(&name, &["--platform", "linux/arm64,linux/s390x"]);
    let listed = shown["manifests"].as_array().expect("children");
    let platforms: Vec<&str> = listed.iter().filter_map(|child| child["platform"].as_str()).collect();
    assert_eq!(platforms, ["linux/arm64/v8", "linux/s390x"]);
    assert_eq!(registry.count("GET", "/manifests/"), 3);
    let run = transload(&["inspect", &name, "--platform", "plan9/amd64"]).exits(1);
    assert!(run.stderr.contains("none of the selected platforms\nhint: "), "{}", run.stderr);
}

/// By the tag schema at a registry without the API, by the API at ACR; the same is shown.
#[test]
fn an_artifact_and_referrers() {
    let image = Image::single(1, &[4000]);
    let sbom = Image::artifact(1, "application/spdx+json", Some(&image));
    let referrers = Image::referrers(std::slice::from_ref(&sbom));
    let registry = registry(&[("v1", &image), ("sbom", &sbom), (&image.referrers_tag(), &referrers)]);
    let at = registry.addr();
    let artifact = document(&format!("{at}/app:sbom"), &[]);
    assert_eq!(
        (&artifact["artifactType"], &artifact["subject"]),
        (&json!("application/spdx+json"), &json!(image.digest()))
    );
    let table = text(&format!("{at}/app:sbom"), &[]);
    assert!(table.contains(&format!("\nkind    application/spdx+json\nsubject {}\n", image.digest())), "{table}");

    let line = format!("\nreferrer {} application/spdx+json\n", sbom.digest());
    let table = text(&format!("{at}/app:v1"), &["--referrers"]);
    assert!(table.ends_with(&line), "{table}");
    assert!(!text(&format!("{at}/app:v1"), &[]).contains("referrer"));
    let shown = document(&format!("{at}/app:v1"), &["--referrers"]);
    assert_eq!(shown["referrers"][0]["digest"], sbom.digest());
    assert_eq!(shown["referrers"][0]["artifactType"], "application/spdx+json");
    let without = text(&format!("{at}/app:sbom"), &["--referrers"]);
    assert!(without.ends_with("\nno referrers\n"), "{without}");
    assert_eq!(document(&format!("{at}/app:sbom"), &["--referrers"])["referrers"], json!([]));

    let behind = Registry::start();
    let acr = Front::before(behind.addr()).acr(|_| {}).start();
    let user = "Basic YWRtaW46YWRtaW4tc2VjcmV0";
    for (tag, image) in [("v1", &image), ("sbom", &sbom)] {
        image.push_as(acr.addr(), "app", tag, &[("authorization", user)]);
    }
    let name = format!("{}/app:v1", acr.addr());
    let variable = format!("TRANSLOAD_AUTH_{}", acr.addr().to_string().replace(['.', ':'], "_"));
    let tool = Tool::transload().args(&["inspect", &name, "--referrers"]).env(&variable, "admin:admin-secret");
    let table = tool.run().ok().stdout;
    assert!(table.ends_with(&line), "{table}");
    assert_eq!(acr.count("GET", "/referrers/"), 1);
}

#[test]
fn a_directory_that_skopeo_made() {
    let (image, other) = (Image::docker(1, &[4000]), Image::index(2, 2, &[3000]));
    let registry = registry(&[("v1", &image), ("v2", &other)]);
    let directory = TempDir::new();
    let layout = directory.join("images");
    for tag in ["v1", "v2"] {
        let from = format!("docker://{}/app:{tag}", registry.addr());
        let to = format!("oci:{layout}:{tag}");
        skopeo(&["copy", "--all", "--insecure-policy", "--src-tls-verify=false", &from, &to]).ok();
    }
    let name = format!("oci:{layout}");
    assert_eq!(transload(&["tags", &name]).ok().stdout, "v1\nv2\n");
    assert_eq!(transload(&["tags", &name, "--output", "json"]).ok().json(), json!({"schema": 1, "tags": ["v1", "v2"]}));
    let shown = document(&format!("{name}:v2"), &[]);
    let raw = skopeo(&["inspect", "--raw", &format!("{name}:v2")]).ok().stdout;
    assert_eq!(shown["size"], raw.len());
    assert_eq!(shown["manifests"][0]["platform"], "linux/amd64");
    assert_eq!(shown["manifests"].as_array().map(Vec::len), Some(2));
    let converted = document(&format!("{name}:v1"), &[]);
    assert_eq!(converted["mediaType"], OCI_MANIFEST, "skopeo converts Docker's types");
    assert_eq!(converted["blobs"][1]["digest"], image.blobs[1].digest.as_str());
    // Which of the two is for the user to say.
    let run = transload(&["inspect", &name]).exits(2);
    assert!(run.stderr.contains("v1") && run.stderr.contains("hint: "), "{}", run.stderr);
    let run = transload(&["inspect", &format!("{name}:v3")]).exits(1);
    assert!(run.stderr.starts_with("error: source: ") && run.stderr.contains("hint: "), "{}", run.stderr);
}

#[test]
fn what_is_not_there() {
    let registry = registry(&[("v1", &Image::single(1, &[400]))]);
    let at = registry.addr();
    let run = transload(&["inspect", &format!("{at}/app:v2")]).exits(1);
    assert!(run.stderr.starts_with("error: source: ") && run.stderr.contains("hint: transload tags"), "{}", run.stderr);
    let run = transload(&["tags", &format!("{at}/nothing")]).exits(1);
    assert!(run.stderr.starts_with("error: source: ") && run.stderr.contains("nothing"), "{}", run.stderr);
    let run = transload(&["tags", &format!("{at}/app:v1")]).exits(2);
    assert!(run.stderr.starts_with("error: ") && run.stderr.contains("hint: "), "{}", run.stderr);
    transload(&["inspect", "oci:/nonexistent"]).exits(1);
    transload(&["inspect", "UPPER"]).exits(2);
    transload(&["inspect"]).exits(2);
}

/// More tags than a page has: as a directory, through our server page by page, and through
/// docker-registry, which sends them all at once.
#[test]
fn more_than_a_thousand_tags() {
    let image = Image::single(1, &[400]);
    let directory = TempDir::new();
    directory.write("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    for blob in &image.blobs {
        directory.write(&format!("blobs/sha256/{}", &blob.digest[7..]), &blob.bytes);
    }
    directory.write(&format!("blobs/sha256/{}", &image.digest()[7..]), image.bytes());
    let tags: Vec<String> = (0..1234).map(|nth| format!("v{nth:04}")).collect();
    let entry = |tag: &String| {
        let mut entry = image.descriptor();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        entry
    };
    let index = json!({"schemaVersion": 2, "manifests": tags.iter().map(entry).collect::<Vec<_>>()});
    directory.write("index.json", index.to_string());
    let expected = tags.join("\n") + "\n";
    let name = format!("oci:{}", directory.path().display());
    assert_eq!(transload(&["tags", &name]).ok().stdout, expected);

    let (_serving, at) = serve(&directory.join(""));
    let at = at.parse().expect("an address");
    let repositories = super::support::http::get(at, "/v2/_catalog").expect(200).json();
    let repository = repositories["repositories"][0].as_str().expect("a repository").to_owned();
    let front = Front::before(at).start();
    let name = format!("{}/{repository}", front.addr());
    assert_eq!(transload(&["tags", &name]).ok().stdout, expected);
    assert_eq!(front.count("GET", "/tags/list"), 2);
    let listed = transload(&["tags", &name, "--output", "json"]).ok().json();
    assert_eq!(listed["tags"].as_array().map(Vec::len), Some(1234));
}

/// The script does what it's for, in the shell that every Debian has.
#[test]
fn completions() {
    let script = transload(&["completions", "bash"]).ok().stdout;
    let complete = |line: &[&str]| {
        let (words, last) = (line.join(" "), line.len() - 1);
        let ask = format!(
            "{script}\nCOMP_WORDS=({words} '')\nCOMP_CWORD={}\n_transload transload '' {}\necho \"${{COMPREPLY[@]}}\"",
            last + 1,
            line[last]
        );
        let run = Tool::new("bash").args(&["--norc", "-c", &ask]).run().ok();
        assert_eq!(run.stderr, "");
        run.stdout.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let commands = complete(&["transload"]);
    for command in ["copy", "login", "logout", "inspect", "tags", "serve", "demo", "completions", "man"] {
        assert!(commands.iter().any(|word| word == command), "no {command} in {commands:?}");
    }
    let flags = complete(&["transload", "copy"]);
    assert!(flags.iter().any(|word| word == "--all-tags"), "{flags:?}");
    for (shell, start) in
        [("zsh", "#compdef transload\n"), ("fish", "# Print an optspec"), ("elvish", ""), ("powershell", "")]
    {
        let run = transload(&["completions", shell]).ok();
        assert!(run.stdout.starts_with(start) && run.stdout.contains("all-tags"), "{shell}: {}", &run.stdout[..80]);
    }
    transload(&["completions", "tcsh"]).exits(2);
    transload(&["completions"]).exits(2);
}

#[test]
fn manuals_and_help() {
    let page = transload(&["man"]).ok().stdout;
    assert!(page.contains(concat!(".TH transload 1  \"transload ", env!("CARGO_PKG_VERSION"), "\"")), "{page}");
    assert!(page.contains("Exit codes: ") && page.contains("transload\\-copy(1)"), "{page}");
    let help = transload(&["--help"]).ok().stdout;
    assert!(help.contains("Exit codes: 0 all done, 1 failed, 2 usage, 3 partly done, 130 interrupted."), "{help}");
    for command in ["copy", "login", "logout", "inspect", "tags", "serve", "demo", "completions", "man"] {
        let page = transload(&["man", command]).ok().stdout;
        let title = format!(".TH transload-{command} 1  \"transload {}\"", env!("CARGO_PKG_VERSION"));
        assert!(page.contains(&title), "{page}");
        let help = transload(&[command, "--help"]).ok();
        assert!(help.stdout.contains(&format!("Usage: transload {command}")) && help.stderr.is_empty(), "{help:?}");
        assert!(help.stdout.contains("--ca-file"), "{}", help.stdout);
    }
    let copy = transload(&["copy", "--help"]).ok().stdout;
    assert!(copy.contains("Exit codes: 0 all done, 1 failed"), "{copy}");
    let run = transload(&["man", "nonsense"]).exits(2);
    assert!(run.stderr.contains("no command \"nonsense\"\nhint: "), "{}", run.stderr);
    // No arguments: help, and the exit code of a wrong command line.
    let run = transload(&[]).exits(2);
    assert!(run.stderr.contains("Usage: transload"), "{}", run.stderr);
    assert_eq!(transload(&["--version"]).ok().stdout, concat!("transload ", env!("CARGO_PKG_VERSION"), "\n"));
}

/// `transload man | head -1`: a reader that has gone is no error. A full disk is.
#[test]
fn nobody_reads_what_is_printed() {
    let (source, target) = (registry(&[("v1", &Image::tiny(1))]), Registry::start());
    let name = format!("{}/app:v1", source.addr());
    let (repository, to) = (format!("{}/app", source.addr()), target.addr().to_string());
    let commands: [&[&str]; 8] = [
        &["man"],
        &["--help"],
        &["--version"],
        &["completions", "bash"],
        &["inspect", &name],
        &["tags", &repository],
        &["copy", &name, &to],
        &["copy", &name, &to, "--output", "json"],
    ];
    for args in commands {
        let run = |stdout: Stdio| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_transload"));
            command.args(args).env_clear().stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
            let output = command.output().expect("it starts");
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        assert_eq!(run(writer.into()), (Some(0), String::new()), "{args:?} into a closed pipe");
        if args[0].starts_with("--") {
            // By clap.
            continue;
        }
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux");
        let (code, said) = run(full.into());
        assert_eq!(code, Some(1), "{args:?} into /dev/full: {said}");
        assert!(said.starts_with("error: local: cannot write to stdout: No space left on device"), "{said}");
    }
}
