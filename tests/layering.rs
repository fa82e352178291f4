//! The order of knowledge: each module names only modules that stand before it in the table below. The engine knows
//! no HTTP; the registry client, the server and the engine never name each other.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};

/// Small tools that every other module may name. They name each other and `error` only.
const TOOLS: &[&str] = &[
    "atomic_file",
    "body",
    "change_detector",
    "clock",
    "error",
    "file_access",
    "go_names",
    "memory",
    "panics",
    "pool",
    "printable",
    "redact",
    "regular_file",
    "waits",
];

/// A module, and all that it may name besides the tools.
const ALLOWED: &[(&str, &[&str])] = &[
    ("error", &["printable", "redact"]),
    ("atomic_file", TOOLS),
    ("body", TOOLS),
    ("change_detector", TOOLS),
    ("clock", TOOLS),
    ("file_access", TOOLS),
    ("go_names", TOOLS),
    ("memory", TOOLS),
    ("panics", TOOLS),
    ("pool", TOOLS),
    ("printable", TOOLS),
    ("redact", TOOLS),
    ("regular_file", TOOLS),
    ("waits", TOOLS),
    ("descriptor", &[]),
    ("reference", &["descriptor"]),
    ("manifest", &["descriptor"]),
    ("retry", &[]),
    ("verify", &["descriptor", "content"]),
    ("content", &["descriptor", "reference", "manifest", "retry", "verify"]),
    ("credentials", &["reference"]),
    ("registry", &["descriptor", "reference", "manifest", "retry", "verify", "content", "credentials"]),
    ("layout", &["descriptor", "reference", "manifest", "retry", "verify", "content"]),
    ("copy", &["descriptor", "reference", "manifest", "retry", "verify", "content"]),
    ("server", &["descriptor", "reference", "manifest", "retry", "verify", "content"]),
    ("proxy", &["descriptor", "reference", "manifest", "retry", "verify", "content", "copy", "server"]),
    ("ops", &["content", "server"]),
    ("mirror", &["descriptor", "reference", "manifest", "retry", "verify", "content", "copy"]),
    ("node", &["reference"]),
    ("demo", &["descriptor", "reference"]),
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
                let may = allowed.contains(&named.as_str()) || *module != "error" && TOOLS.contains(&named.as_str());
                if named != *module && !may && !named.is_empty() {
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
