//! README.md and docs/ are right: their commands run, and their tables are those of the program.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use transload::demo::persona::{Account, Grant};

use super::support::{Front, Image, Registry, TempDir, Tool, transload};

pub(super) const PRINCIPAL: &str = "0f1e2d3c-1111-2222-3333-444455556666";
pub(super) const SECRET: &str = "sp~Secret/+=%";

pub(super) fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

const COPY: &str = "docs/guides/copy.md";
const EXIT_CODES: &str = "docs/reference/exit-codes.md";
const JSON: &str = "docs/reference/json.md";
const METRICS: &str = "docs/reference/metrics.md";

/// The lines of each block of this page with this language, in its order.
pub(super) fn blocks_of(page: &str, language: &str) -> Vec<Vec<String>> {
    let (mut blocks, mut open): (Vec<Vec<String>>, Option<bool>) = (Vec::new(), None);
    for line in file(page).lines() {
        match (line.strip_prefix("```"), open) {
            (Some(named), None) => {
                open = Some(named == language);
                if named == language {
                    blocks.push(Vec::new());
                }
            }
            (Some(_), Some(_)) => open = None,
            (None, Some(true)) => blocks.last_mut().expect("an open block").push(line.to_owned()),
            _ => {}
        }
    }
    assert!(open.is_none(), "a block without an end");
    assert!(!blocks.is_empty(), "no {language} block");
    blocks
}

/// The rows of the table of this page whose first column has this head.
pub(super) fn table(page: &str, head: &str) -> Vec<(String, String)> {
    let text = file(page);
    let start = text.find(&format!("\n| {head} | ")).unwrap_or_else(|| panic!("no table of {head}"));
    let rows = text[start + 1..].lines().skip(2).take_while(|line| line.starts_with('|'));
    let rows: Vec<_> = rows
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').splitn(2, " | ").map(str::trim).collect();
            (cells[0].to_owned(), cells[1].to_owned())
        })
        .collect();
    assert!(!rows.is_empty(), "an empty table of {head}");
    rows
}

/// The documented metrics with this prefix, by the names of their families.
pub(super) fn metrics(prefix: &str) -> BTreeSet<String> {
    let text = file(METRICS);
    let rows = text.lines().filter(|line| line.starts_with("| `transload_"));
    let names = rows.filter_map(|row| row.split(" | ").next()).flat_map(quoted);
    names.filter(|name| name.starts_with(prefix)).map(|name| name.trim_end_matches("_total").to_owned()).collect()
}

/// Those of a page, in the same way.
pub(super) fn metrics_on(page: &str, prefix: &str) -> BTreeSet<String> {
    let names = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
}

/// What stands in backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Docker Hub and ACR look-alikes by their real names, and a user's home in between.
pub(super) struct World {
    origin: Registry,
    hub: Front,
    acr: Front,
    pub(super) mirror: Registry,
    pub(super) hello: Image,
    nginx: Image,
    pub(super) home: TempDir,
}

impl World {
    /// As the README has it: a service principal that may push, and no admin user.
    pub(super) fn new() -> Self {
        Self::with(vec![Account::new(PRINCIPAL, SECRET, Grant::everything())])
    }

    /// ACR with these service principals.
    pub(super) fn with(accounts: Vec<Account>) -> Self {
        let (origin, mirror) = (Registry::start(), Registry::start());
        let (hello, nginx) = (Image::tiny(1), Image::index(2, 3, &[30_000]));
        hello.push(origin.addr(), "library/hello-world", "latest");
        nginx.push(origin.addr(), "library/nginx", "1.27");
        let hub = Front::before(origin.addr()).hub(|_| {}).tls().start();
        let acr = Front::before(mirror.addr())
            .acr(move |acr| {
                acr.abac = true;
                acr.accounts = accounts;
            })
            .tls()
            .start();
        Self { origin, hub, acr, mirror, hello, nginx, home: TempDir::new() }
    }

    /// A line as a user types it, in a shell whose `transload` is the one under test.
    pub(super) fn shell(&self, line: &str) -> Tool {
        let program = Path::new(env!("CARGO_BIN_EXE_transload")).parent().expect("a directory");
        let path = format!("{}:{}", program.display(), std::env::var("PATH").expect("a PATH"));
        let authorities = [&self.hub, &self.acr]
            .map(|front| std::fs::read_to_string(front.ca_file().expect("TLS")).expect("a certificate"));
        let authorities = self.home.write("ca.pem", authorities.concat());
        let flags = [self.hub.flags(), self.acr.flags()].concat();
        let resolve: Vec<&str> = flags.iter().map(String::as_str).filter(|flag| flag.contains('=')).collect();
        Tool::new("sh")
            .args(&["-c", line])
            .env("PATH", &path)
            .env("HOME", &self.home.join(""))
            .env("DOCKER_CONFIG", &self.home.join(".docker"))
            .env("TRANSLOAD_CA_FILE", &authorities)
            .env("TRANSLOAD_RESOLVE", &resolve.join(","))
            .env("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")
    }
}

#[test]
fn the_commands_of_the_readme_run() {
    let world = World::new();
    world.home.write("images.txt", "hello-world\nnginx:1.27\n");
    let mut ran = Vec::new();
    for line in blocks_of("README.md", "console").iter().flatten() {
        let command = line.strip_prefix("$ ").unwrap_or_else(|| panic!("not a command: {line}"));
        let line = format!("cd \"$HOME\" && {command}");
        let run = world.shell(&line).env("CLIENT_ID", PRINCIPAL).env("CLIENT_SECRET", SECRET).run();
        assert!(run.code == 0, "$ {command}\n{run:?}");
        assert!(!run.stderr.contains("WARN") && !run.stderr.contains("error"), "$ {command}\n{run:?}");
        ran.push(
            command.split_whitespace().skip_while(|word| *word != "transload").nth(1).expect("a command").to_owned(),
        );
    }
    assert_eq!(ran, ["login", "copy", "copy", "inspect", "mirror", "mirror"]);
    let mirror = world.mirror.addr();
    world.hello.assert_at(mirror, "library/hello-world", "latest");
    world.hello.assert_at(mirror, "docker.io/library/hello-world", "latest");
    // `--platform linux/amd64 --flatten`: the one image in place of the index.
    let flat = super::support::http::get(mirror, "/v2/web/nginx/manifests/1.27").expect(200).body;
    assert!(flat == world.nginx.manifests[0].bytes);
}

/// Every page of the documentation.
fn pages() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages: Vec<String> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md"].map(str::to_owned).to_vec();
    let mut open = vec!["docs".to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(root.join(&dir)).expect("a directory").map(|entry| entry.expect("an entry")) {
            let path = format!("{dir}/{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() { open.push(path) } else { pages.push(path) }
        }
    }
    pages
}

/// A link to a page that does not exist, or to a heading that a page does not have, helps nobody.
#[test]
fn links_between_pages_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let anchor = |line: &str| -> String {
        let text = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        text.chars().filter(|letter| letter.is_alphanumeric() || *letter == '-' || *letter == '_').collect()
    };
    let mut links = 0;
    for page in pages() {
        let text = file(&page);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("https://") {
                continue;
            }
            links += 1;
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let dir = Path::new(&page).parent().expect("a directory");
            let path = if path.is_empty() { root.join(&page) } else { root.join(dir).join(path) };
            assert!(path.exists(), "{page}: {target}");
            if !heading.is_empty() {
                let text = std::fs::read_to_string(&path).expect("text");
                let found = text.lines().any(|line| line.starts_with('#') && anchor(line) == heading);
                assert!(found, "{page}: no heading {target}");
            }
        }
    }
    assert!(links > 30, "{links}");
}

/// Each `transload COMMAND … --option` in a block or in backticks is a command with such an option.
#[test]
fn commands_and_options_in_all_pages_exist() {
    let reference = file("docs/reference/cli.md");
    let mut seen = 0;
    for page in pages().iter().filter(|page| !page.ends_with("cli.md")) {
        let text = file(page);
        let mut in_block = false;
        let lines = text.lines().filter_map(|line| {
            in_block ^= line.starts_with("```");
            line.strip_prefix("$ ").or(Some(line).filter(|line| in_block && line.starts_with("transload ")))
        });
        let quoted = quoted(&text).into_iter().filter(|text| text.starts_with("transload ") && !text.contains('\n'));
        for line in lines.chain(quoted) {
            let Some((_, command)) = line.split_once("transload ") else { continue };
            let command = command.split(" | ").next().unwrap_or_default();
            let words: Vec<&str> = command.split_whitespace().collect();
            let path: Vec<&str> = words
                .iter()
                .copied()
                .take_while(|word| {
                    word.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-')
                        && !word.starts_with('-')
                })
                .collect();
            // The longest of `proxy warm`, `proxy` that is a command; the rest are arguments.
            let section = (1..=path.len().min(2)).rev().find_map(|length| {
                let heading = format!("\n## transload {}\n", path[..length].join(" "));
                reference.split(&heading).nth(1).and_then(|rest| rest.split("\n## ").next())
            });
            let Some(section) = section else {
                assert!(path.is_empty() || path[0] == "help", "{page}: no command in {line:?}");
                continue;
            };
            for option in words.iter().filter(|word| word.starts_with("--")) {
                let name = option.split(['=', '`', ',']).next().unwrap_or_default();
                let global =
                    reference.split("\n## Global options\n").nth(1).and_then(|rest| rest.split("\n## ").next());
                assert!(
                    has_flag(section, name) || has_flag(global.expect("global options"), name),
                    "{page}: {line:?} has no {name}"
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "{seen}");
}

/// docs/reference/cli.md is what the program's help says. `UPDATE_DOCS=1` writes the page.
#[test]
fn the_reference_of_commands_is_the_help_of_the_program() {
    let mut page =
        "# Commands\n\nThis page is the output of `transload COMMAND --help`; the global options stand once. A test keeps it equal to \
         the program.\n"
            .to_owned();
    let top = transload(&["--help"]).ok().stdout;
    let (own, global) = top.split_once("Global options:\n").expect("global options");
    let (global, rest) = global.split_once("\nExit codes: ").expect("exit codes");
    page += &format!("\n```text\n{}\n\nExit codes: {}\n```\n", own.trim_end(), rest.trim_end());
    page +=
        &format!("\n## Global options\n\nAll commands have these options.\n\n```text\n{}\n```\n", global.trim_end());
    document(&mut page, &top, &[]);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/cli.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("a page");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/reference/cli.md is old: run this test with UPDATE_DOCS=1");
}

/// Adds the help of each command below this one, whose help is `help`.
fn document(page: &mut String, help: &str, path: &[&str]) {
    let Some(commands) = help.split("\nCommands:\n").nth(1) else { return };
    let names = commands.lines().take_while(|line| line.starts_with("  ")).filter(|line| !line.starts_with("    "));
    for name in names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
        let path = [path, &[name]].concat();
        let own = transload(&[&path[..], &["--help"]].concat()).ok().stdout;
        // The global options stand once, in their own section. Exit codes and examples follow them, without indentation.
        let (before, after) = own.split_once("Global options:\n").unwrap_or((&own, ""));
        let mut ends = after.match_indices('\n').map(|(at, _)| at);
        let after = ends.find(|at| after[at + 1..].starts_with(char::is_alphabetic)).map_or("", |at| &after[at..]);
        let text = format!("{}\n{after}", before.trim_end());
        *page += &format!("\n## transload {}\n\n```text\n{}\n```\n", path.join(" "), text.trim_end());
        document(page, &own, &path);
    }
}

/// Whether help describes this flag: `  -v, --verbose...` or `      --jobs <N>`.
fn has_flag(help: &str, flag: &str) -> bool {
    let name = flag.split(' ').next().unwrap_or_default();
    help.lines().filter(|line| line.starts_with("  ") && line.trim_start().starts_with('-')).any(|line| {
        let mut words = line.split([' ', ',', '.']);
        words.by_ref().find(|word| word.starts_with("--")) == Some(name)
    })
}

#[test]
fn the_tables_of_options_and_exit_codes() {
    let help = transload(&["copy", "--help"]).ok().stdout;
    let mut listed = BTreeSet::new();
    for (cell, meaning) in table(COPY, "option") {
        let words = quoted(&cell)[0].to_owned();
        assert!(has_flag(&help, &words), "copy has no {words}");
        let name = words.split(' ').next().expect("a name").to_owned();
        // A default that is named: `number of … at the same time (4)`.
        if let Some(default) = meaning
            .split_once('(')
            .and_then(|(_, rest)| rest.split(')').next())
            .filter(|text| text.parse::<u32>().is_ok())
        {
            let own = help.split(&format!("{name} <")).nth(1).expect("asserted above");
            let own = own.split("[default: ").nth(1).and_then(|rest| rest.split(']').next());
            assert_eq!(own, Some(default), "{name}");
        }
        listed.insert(name);
    }
    // And the other way round.
    let own = help.split("Global options").next().expect("options").lines();
    let own =
        own.filter_map(|line| line.trim_start().strip_prefix("--")).map(|line| line.split(' ').next().expect("one"));
    let missing: Vec<&str> = own.filter(|name| !listed.contains(&format!("--{name}"))).collect();
    assert!(missing.is_empty(), "options of copy that {COPY} does not have: {missing:?}");

    let line = help.lines().find_map(|line| line.strip_prefix("Exit codes: ")).expect("exit codes");
    let codes: Vec<(&str, &str)> =
        line.trim_end_matches('.').split(", ").filter_map(|entry| entry.split_once(' ')).collect();
    let rows = table(EXIT_CODES, "code");
    let numbers: Vec<&str> = rows.iter().map(|row| row.0.as_str()).collect();
    assert_eq!(numbers, codes.iter().map(|code| code.0).collect::<Vec<_>>());
    for ((_, meaning), (code, said)) in rows.iter().zip(&codes) {
        assert!(meaning.starts_with(said), "{code}: {meaning:?} against {said:?}");
    }
}

/// The two commands of the README are those that CI runs.
#[test]
fn ci_runs_the_two_commands() {
    let commands = blocks_of("README.md", "sh").concat();
    assert_eq!(commands.len(), 2, "{commands:?}");
    let script = file(".ci/run");
    let plain = |line: &str| line.replace(" --locked", "").replace(" --quiet", "");
    let run: Vec<String> = script.lines().map(plain).collect();
    let ran: Vec<usize> = commands
        .iter()
        .map(|command| {
            let is_it = |line: &String| {
                line.split(';').next_back().is_some_and(|last| last.trim() == command) && !line.starts_with('#')
            };
            run.iter().position(is_it).unwrap_or_else(|| panic!(".ci/run doesn't run {command:?}"))
        })
        .collect();
    assert!(ran[0] < ran[1], "in that order");
    let manifest = file("Cargo.toml");
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).expect("a version");
    assert!(file("README.md").contains(&format!("Rust ({} or newer)", version.trim_matches('"'))), "{version}");
}

/// The documented fields, as paths: `images[].digest`.
fn documented() -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    for (names, meaning) in table(JSON, "field") {
        let mut parent = String::new();
        for name in quoted(&names) {
            let path =
                if let Some(rest) = name.strip_prefix('.') { format!("{parent}.{rest}") } else { name.to_owned() };
            parent = path.rsplit_once('.').map_or(String::new(), |(parent, _)| parent.to_owned());
            fields.insert(path.trim_end_matches("[]").to_owned());
            if path == "images[]" {
                // "for each: `source`, …, `status` (…), and either … or `error` with `side`, …"
                let (own, error) = meaning.split_once(" or `error` with ").expect("an error's fields");
                for field in quoted(own).into_iter().filter(|text| !is_status(text)) {
                    fields.insert(format!("images[].{field}"));
                }
                fields.insert("images[].error".to_owned());
                fields.extend(quoted(error).into_iter().map(|field| format!("images[].error.{field}")));
            } else if path == "summary" {
                fields.extend(quoted(&meaning).into_iter().map(|field| format!("summary.{field}")));
            } else if path == "registries[]" {
                let (own, quota) = meaning.split_once(" (").expect("a quota's fields");
                let (quota, _) = quota.split_once(')').expect("an end");
                fields.extend(quoted(own).into_iter().map(|field| format!("registries[].{field}")));
                fields.extend(quoted(quota).into_iter().map(|field| format!("registries[].pull_limit.{field}")));
            }
        }
    }
    fields
}

fn is_status(text: &str) -> bool {
    ["copied", "unchanged", "planned", "failed"].contains(&text)
}

/// The paths of a document. Digests and platforms have none below them.
fn paths(value: &Value, at: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                into.insert(path.clone());
                paths(value, &path, into);
            }
        }
        Value::Array(entries) => entries.iter().for_each(|entry| paths(entry, &format!("{at}[]"), into)),
        _ => {}
    }
}

#[test]
fn the_json_document_has_the_documented_fields_and_no_others() {
    let world = World::new();
    world
        .shell("echo \"$S\" | transload login myregistry.azurecr.io -u \"$U\" --password-stdin")
        .env("U", PRINCIPAL)
        .env("S", SECRET)
        .run()
        .ok();
    let mut seen = BTreeSet::new();
    let mut statuses = BTreeSet::new();
    for (line, code) in [
        ("transload copy hello-world myregistry.azurecr.io --dry-run --output json", 0),
        ("transload copy hello-world myregistry.azurecr.io --output json", 0),
        ("transload copy hello-world myregistry.azurecr.io --output json", 0),
        ("transload copy nginx:1.28 myregistry.azurecr.io --output json", 1),
    ] {
        let document = world.shell(line).run().exits(code).json();
        assert_eq!(document["schema"], 1);
        let image = &document["images"][0];
        statuses.insert(image["status"].as_str().expect("a status").to_owned());
        paths(&document, "", &mut seen);
        // "The sums".
        let summary = document["summary"].as_object().expect("fields");
        for (name, sum) in summary
            .iter()
            .filter(|(name, _)| !is_status(name) && !["requests", "duration_seconds"].contains(&name.as_str()))
        {
            assert_eq!(sum, image.get(name).unwrap_or(&Value::from(0)), "{name}");
        }
        assert_eq!(summary[image["status"].as_str().expect("a status")], 1);
    }
    let documented = documented();
    // Sums have the names of what is summed.
    let sums = |path: &String| {
        path.strip_prefix("summary.").is_some_and(|name| documented.contains(&format!("images[].{name}")))
    };
    let undocumented: Vec<&String> = seen.iter().filter(|path| !documented.contains(*path) && !sums(path)).collect();
    assert!(undocumented.is_empty(), "not in the documents: {undocumented:?}");
    let absent: Vec<&String> = documented.iter().filter(|path| !seen.contains(*path)).collect();
    assert!(absent.is_empty(), "in the documents only: {absent:?}");
    let named = table(JSON, "field").into_iter().find(|row| row.0 == "`images[]`").expect("the images").1;
    assert_eq!(
        quoted(&named).into_iter().filter(|text| is_status(text)).map(str::to_owned).collect::<BTreeSet<_>>(),
        statuses
    );
}

/// The fields that only a run of a list has, as the documents name them.
fn documented_of_runs() -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    for (names, meaning) in table(JSON, "field of a run") {
        for name in quoted(&names) {
            fields.insert(name.trim_end_matches("[]").to_owned());
            if name.ends_with("[]") {
                fields.extend(quoted(&meaning).into_iter().map(|field| format!("{name}.{field}")));
            }
        }
    }
    fields
}

#[test]
fn the_documents_of_runs_have_the_documented_fields_and_no_others() {
    let (source, target, dir) = (Registry::start(), Registry::start(), TempDir::new());
    let to = target.addr().to_string();
    let image = Image::made(1, "2020-01-01T00:00:00Z");
    image.push(source.addr(), "app", "v1");
    // What the list no longer holds.
    image.push(target.addr(), "app", "v0");
    let list = dir.write("list", format!("{0}/app:v1\n{0}/gone:v1\n", source.addr()));
    let (mut seen, mut statuses) = (BTreeSet::new(), BTreeSet::new());
    for (flags, code) in [
        (&["--dry-run"][..], 3),
        (&["--deadline", "0s"], 1),
        (&["--shard", "1/1"], 3),
        (&["--prune", "--prune-older-than", "0s"], 3),
    ] {
        let run =
            Tool::transload().args(&["mirror", &list, "--to", &to, "--output", "json"]).args(flags).run().exits(code);
        let document = run.json();
        statuses.extend(
            document["images"]
                .as_array()
                .expect("images")
                .iter()
                .map(|image| image["status"].as_str().map(str::to_owned)),
        );
        paths(&document, "", &mut seen);
    }
    let (common, own) = (documented(), documented_of_runs());
    let sums =
        |path: &str| path.strip_prefix("summary.").is_some_and(|name| common.contains(&format!("images[].{name}")));
    // An error is the same everywhere; a quota is Docker Hub's.
    let known = |path: &String| {
        common.contains(path)
            || own.contains(path)
            || sums(path)
            || path.contains(".error.") && path.starts_with("prune.")
    };
    let undocumented: Vec<&String> = seen.iter().filter(|path| !known(path)).collect();
    assert!(undocumented.is_empty(), "not in the documents: {undocumented:?}");
    let absent: Vec<&String> = own.iter().filter(|path| !seen.contains(*path)).collect();
    assert!(absent.is_empty(), "in the documents only: {absent:?}");
    let shared: Vec<&String> =
        common.iter().filter(|path| !seen.contains(*path) && !path.contains("pull_limit.")).collect();
    assert!(shared.is_empty(), "the README says that runs have them too: {shared:?}");
    let named: Vec<Option<String>> =
        ["copied", "failed", "planned", "skipped", "unchanged"].map(|status| Some(status.to_owned())).into();
    assert_eq!(statuses.into_iter().collect::<Vec<_>>(), named);
}

/// The guide's list, as printed except for the digest that it pins, run from Docker Hub and quay.io to ACR.
#[test]
fn the_list_runs() {
    let image = |seed: u64| {
        let child = |nth: u64, architecture: &str| {
            let platform = serde_json::json!({"platform": {"os": "linux", "architecture": architecture}});
            (Image::single(seed * 10 + nth, &[2000]), platform)
        };
        Image::index_of(vec![child(0, "amd64"), child(1, "arm64")], false)
    };
    let world = World::new();
    let (redis, nginx) = (image(50), image(60));
    redis.push(world.origin.addr(), "library/redis", "7.2");
    redis.push(world.origin.addr(), "library/redis", "7.4");
    nginx.push(world.origin.addr(), "library/nginx", "1.27");
    let quay = Registry::start();
    for (seed, tag) in [(70, "v2.49.1"), (71, "v2.53.0"), (72, "v3.1.0"), (73, "v3.1.0-distroless"), (74, "main")] {
        image(seed).push(quay.addr(), "prometheus/prometheus", tag);
    }
    let quay = Front::before(quay.addr()).name("quay.io").tls().start();
    let printed = blocks_of("docs/guides/mirror.md", "yaml")
        .into_iter()
        .find(|block| block.iter().any(|line| line == "images:"))
        .expect("a list");
    let pinned = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let list = printed.join("\n").replace(pinned, redis.digest());
    assert!(list.contains(redis.digest()), "{list}");
    let list = world.home.write("images.yaml", list);
    let run = Tool::transload()
        .args(&["mirror", &list, "--output", "json"])
        .args(&[world.hub.flags(), world.acr.flags(), quay.flags()].concat())
        .env("TRANSLOAD_REGISTRY", "myregistry.azurecr.io")
        .env("TRANSLOAD_USERNAME", PRINCIPAL)
        .env("TRANSLOAD_PASSWORD", SECRET)
        .run()
        .ok();
    let summary = &run.json()["summary"];
    assert_eq!((&summary["copied"], &summary["failed"]), (&5.into(), &0.into()), "{run:?}");
    let mirror = world.mirror.addr();
    nginx.assert_at(mirror, "hub/nginx", "1.27");
    redis.assert_at(mirror, "hub/redis", "7.2");
    redis.assert_at(mirror, "hub/redis", "7.4");
    image(71).assert_at(mirror, "hub/monitoring/prometheus", "v2.53.0");
    image(72).assert_at(mirror, "hub/monitoring/prometheus", "v3.1.0");
}
