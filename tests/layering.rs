//! The order of knowledge: each module names only what stands before it (DESIGN: the engine knows
//! no HTTP, the registry client, the server and the engine never name each other).
#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};

/// A module, and all that it may name.
const ALLOWED: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("changes", &[]),
    ("regular_file", &[]),
    ("pool", &["error"]),
    ("descriptor", &["error"]),
    ("reference", &["error", "descriptor"]),
    ("manifest", &["error", "descriptor"]),
    ("retry", &["error"]),
    ("verify", &["error", "descriptor", "content"]),
    ("content", &["error", "descriptor", "reference", "manifest", "retry", "verify"]),
    ("credentials", &["error", "regular_file", "reference"]),
    ("registry", &["error", "descriptor", "reference", "manifest", "retry", "verify", "content", "credentials"]),
    ("layout", &["error", "regular_file", "pool", "descriptor", "reference", "manifest", "retry", "verify", "content"]),
    ("copy", &["error", "descriptor", "reference", "manifest", "retry", "verify", "content"]),
    ("server", &["error", "pool", "descriptor", "reference", "manifest", "retry", "verify", "content"]),
    (
        "proxy",
        &[
            "error",
            "regular_file",
            "pool",
            "descriptor",
            "reference",
            "manifest",
            "retry",
            "verify",
            "content",
            "server",
        ],
    ),
    ("ops", &["error", "content", "server"]),
    (
        "mirror",
        &[
            "changes",
            "error",
            "regular_file",
            "descriptor",
            "reference",
            "manifest",
            "retry",
            "verify",
            "content",
            "copy",
        ],
    ),
    ("node", &["error", "regular_file", "reference"]),
    ("demo", &["error", "descriptor", "reference"]),
];

#[test]
fn each_module_names_only_what_stands_before_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (module, allowed) in ALLOWED {
        for file in files(&src, module) {
            seen += 1;
            let text = std::fs::read_to_string(&file).unwrap();
            // Tests may build what they like.
            let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            for named in text.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(names) {
                if named != *module && !allowed.contains(&named.as_str()) && !named.is_empty() {
                    wrong.push(format!("{} names crate::{named}", file.strip_prefix(&src).unwrap().display()));
                }
            }
        }
    }
    assert!(seen > 30, "only {seen} files were found");
    assert_eq!(wrong, Vec::<String>::new());
}

/// The modules behind each `crate::` of a line.
fn names(line: &str) -> Vec<String> {
    line.split("crate::")
        .skip(1)
        .flat_map(|rest| {
            let inner = rest.strip_prefix('{').and_then(|list| list.split('}').next());
            let roots: Vec<&str> = inner.map_or_else(|| vec![rest], |list| list.split(',').collect());
            roots
                .into_iter()
                .map(|root| root.trim().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect())
                .collect::<Vec<String>>()
        })
        .collect()
}

fn files(src: &Path, module: &str) -> Vec<PathBuf> {
    let single = src.join(format!("{module}.rs"));
    let mut found: Vec<PathBuf> = single.exists().then_some(single).into_iter().collect();
    let mut folders = vec![src.join(module)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && path.file_name().is_some_and(|name| name != "tests.rs")
            {
                found.push(path);
            }
        }
    }
    found
}
