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
const TWICE: &[&str] = &["base64", "getrandom", "syn", "untrusted"];

/// The packages in the program, or in what builds it: without what is for tests.
fn packages() -> Vec<Value> {
    // Linux, since crates for other systems needn't be on this machine.
    let run = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let document: Value = serde_json::from_slice(&run.stdout).unwrap();
    let resolve = &document["resolve"];
    let nodes: BTreeMap<&str, &Value> =
        resolve["nodes"].as_array().unwrap().iter().map(|node| (node["id"].as_str().unwrap(), node)).collect();
    let (mut seen, mut next) = (BTreeSet::new(), vec![resolve["root"].as_str().unwrap()]);
    while let Some(id) = next.pop() {
        if !seen.insert(id) {
            continue;
        }
        for needed in nodes[id]["deps"].as_array().unwrap() {
            if needed["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"] != "dev") {
                next.push(needed["pkg"].as_str().unwrap());
            }
        }
    }
    let all = document["packages"].as_array().unwrap();
    all.iter().filter(|package| seen.contains(package["id"].as_str().unwrap())).cloned().collect()
}

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
