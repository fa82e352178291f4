//! What the program is made of: licences that suit its own, and no crate twice without a reason.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// All of them permissive. One that offers a choice is looked at in whole: whoever adds another decides.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "BSD-3-Clause",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "LLVM-exception",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates in several versions, since those that need them don't agree yet.
const TWICE: &[&str] = &["base64", "syn"];

/// The packages in the program, or in what builds it: without those of tests, and without the features that only tests
/// enable.
fn packages() -> Vec<Value> {
    let metadata = cargo(&["metadata", "--format-version", "1", "--filter-platform", TARGET]);
    let document: Value = serde_json::from_str(&metadata).unwrap();
    // In the metadata the features of tests are enabled too. `cargo tree` leaves them out.
    let tree = cargo(&["tree", "--edges", "normal,build", "--target", TARGET, "--prefix", "none"]);
    let needed: BTreeSet<String> =
        tree.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    let is_needed = |package: &&Value| {
        let (name, version) = (package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        needed.contains(&format!("{name} v{version}"))
    };
    let found: Vec<Value> = document["packages"].as_array().unwrap().iter().filter(is_needed).cloned().collect();
    assert_eq!(found.len(), needed.len());
    found
}

/// The standard output of cargo.
fn cargo(args: &[&str]) -> String {
    let run = Command::new(env!("CARGO"))
        .args(args)
        .arg("--locked")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

/// Linux, since crates for other systems need not be on this machine.
const TARGET: &str = "x86_64-unknown-linux-gnu";

#[test]
fn licences_are_permissive_and_crates_are_there_once() {
    let (mut wrong, mut versions) = (Vec::new(), BTreeMap::<String, BTreeSet<String>>::new());
    let packages = packages();
    assert!(packages.len() > 100, "only {} packages were found", packages.len());
    for package in &packages {
        let (name, version) = (package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        let licence = package["license"].as_str().unwrap_or("none told");
        let mut named = licence.split([' ', '(', ')', '/']).filter(|word| !["", "AND", "OR", "WITH"].contains(word));
        if !named.all(|word| LICENCES.contains(&word)) {
            wrong.push(format!("{name} {version}: {licence}"));
        }
        versions.entry(name.to_owned()).or_default().insert(version.to_owned());
    }
    assert!(wrong.is_empty(), "licences: {wrong:?}");
    let twice: Vec<&String> = versions.iter().filter(|(_, all)| all.len() > 1).map(|(name, _)| name).collect();
    assert_eq!(twice, TWICE, "{versions:?}");
}
