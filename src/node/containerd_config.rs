//! Reads from containerd's `config.toml` whether it uses a directory of `hosts.toml` files.
//! <https://github.com/containerd/containerd/blob/main/docs/cri/config.md>

use std::path::Path;

/// How containerd uses a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ConfigPathUse {
    /// containerd reads it.
    Yes,
    /// The configuration names no directory.
    None,
    /// The configuration names another directory.
    Another(String),
    /// It is one of several. containerd 2.1 and later read none of them at a pull.
    OneOfSeveral(String),
}

/// The table with `config_path`, by the version of the file.
///
/// containerd 2 reads files of version 2 too, but not of version 1.
const TABLES: [(&str, &str); 3] = [
    ("1", "plugins.cri.registry"),
    ("2", "plugins.\"io.containerd.grpc.v1.cri\".registry"),
    ("3", "plugins.\"io.containerd.cri.v1.images\".registry"),
];

/// The table of this `config.toml` to which `config_path` belongs.
pub(crate) fn registry_table(config: &str) -> &'static str {
    let top = config.lines().map(str::trim).take_while(|line| !line.starts_with('['));
    let version = top.filter_map(|line| value(line, "version")).next().unwrap_or("1");
    TABLES.iter().find(|(known, _)| *known == version).map_or(TABLES[2].1, |(_, table)| table)
}

/// Whether containerd with this `config.toml` reads `directory`.
///
/// It reads line by line, as people and `containerd config default` write these files. Other forms of TOML and
/// imported files are ignored.
pub(crate) fn config_path_use(config: &str, directory: &Path) -> ConfigPathUse {
    let wanted = unquoted_key(registry_table(config));
    let (mut inside, mut found) = (false, None);
    for line in config.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            inside = unquoted_key(header.split(']').next().unwrap_or_default()) == wanted;
        } else if inside && let Some(value) = value(line, "config_path") {
            found = Some(value);
        }
    }
    // containerd 1 reads it as a list. containerd 2.1 and later read it as one name for pulls (containerd#12415,
    // #12808), although the default of 2.2 is such a list.
    match found {
        Some(list) if list.split(':').count() > 1 && list.split(':').any(|one| Path::new(one) == directory) => {
            ConfigPathUse::OneOfSeveral(list.to_owned())
        }
        Some(path) if Path::new(path) == directory => ConfigPathUse::Yes,
        Some(path) if !path.is_empty() => ConfigPathUse::Another(path.to_owned()),
        _ => ConfigPathUse::None,
    }
}

/// The value of a line `key = value  # comment`, without quotes.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let rest = line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim_start();
    match rest.chars().next() {
        Some(quote @ ('"' | '\'')) => rest[1..].split(quote).next(),
        _ => rest.split('#').next().map(str::trim),
    }
}

/// The name of a table without quotes and spaces.
fn unquoted_key(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '"' | '\'' | ' ' | '\t')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(config: &str) -> ConfigPathUse {
        super::config_path_use(config, Path::new("/etc/containerd/certs.d"))
    }

    #[test]
    fn the_table_is_that_of_the_files_version() {
        let path = "config_path = \"/etc/containerd/certs.d\"\n";
        for (head, table) in [
            ("", "plugins.cri.registry"),
            ("version = 2\n", "plugins.\"io.containerd.grpc.v1.cri\".registry"),
            ("version = 3\n", "plugins.\"io.containerd.cri.v1.images\".registry"),
        ] {
            assert_eq!(super::registry_table(head), table);
            assert_eq!(reads(&format!("{head}[{table}]\n  {path}")), ConfigPathUse::Yes);
            let single = table.replace('"', "'");
            assert_eq!(reads(&format!("{head}[plugins]\n  [ {single} ] # ours\n  {path}")), ConfigPathUse::Yes);
            for other in ["plugins.\"io.containerd.transfer.v1.local\"", "plugins.'io.containerd.nri.v1.nri'"] {
                assert_eq!(reads(&format!("{head}[{table}]\n[{other}]\n{path}")), ConfigPathUse::None, "{head}{other}");
            }
        }
        let old = "version = 3\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n";
        assert_eq!(reads(&format!("{old}{path}")), ConfigPathUse::None, "containerd 2 doesn't look there");
    }

    #[test]
    fn what_is_named() {
        let named = |path: &str| {
            reads(&format!("version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = {path}\n"))
        };
        assert_eq!(named("'/etc/containerd/certs.d/' # here"), ConfigPathUse::Yes);
        assert_eq!(named("''"), ConfigPathUse::None);
        assert_eq!(named("\"/opt/certs.d\""), ConfigPathUse::Another("/opt/certs.d".into()));
        // The output of `containerd config default` of 2.2.
        let default = "/etc/containerd/certs.d:/etc/docker/certs.d";
        assert_eq!(named(&format!("'{default}'")), ConfigPathUse::OneOfSeveral(default.into()));
        assert_eq!(named("'/a:/b'"), ConfigPathUse::Another("/a:/b".into()));
        assert_eq!(reads("version = 2\n# config_path = \"/etc/containerd/certs.d\"\n"), ConfigPathUse::None);
    }
}
