//! Whether containerd reads a directory of `hosts.toml` files: what its `config.toml` says.
//! <https://github.com/containerd/containerd/blob/main/docs/cri/config.md>

use std::path::Path;

/// What containerd's configuration says of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ConfigPathUse {
    /// It is the one that containerd reads.
    Yes,
    /// None is named in the table that counts.
    None,
    /// Another one is.
    Another(String),
    /// It's one of several, of which containerd 2.1 and later read none at a pull.
    OneOfSeveral(String),
}

/// The table with `config_path`: its name follows from the file's version.
///
/// containerd 2 takes files of version 2 too, and none of version 1.
const TABLES: [(&str, &str); 3] = [
    ("1", "plugins.cri.registry"),
    ("2", "plugins.\"io.containerd.grpc.v1.cri\".registry"),
    ("3", "plugins.\"io.containerd.cri.v1.images\".registry"),
];

/// The table of this `config.toml` that `config_path` belongs to.
pub(crate) fn registry_table(config: &str) -> &'static str {
    let top = config.lines().map(str::trim).take_while(|line| !line.starts_with('['));
    let version = top.filter_map(|line| value(line, "version")).next().unwrap_or("1");
    TABLES.iter().find(|(known, _)| *known == version).map_or(TABLES[2].1, |(_, table)| table)
}

/// Whether containerd with this `config.toml` reads `directory`.
///
/// Line by line, as these files are written by people and by `containerd config default`: no TOML of other shapes,
/// and no file that it imports.
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
    // A list for containerd 1; to the one pull of containerd 2.1 and later it is a single name
    // (containerd#12415, #12808), though 2.2 has such a list by default.
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

/// A table's name without quotes and blanks, of which there may be some.
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
        // What `containerd config default` of 2.2 prints.
        let default = "/etc/containerd/certs.d:/etc/docker/certs.d";
        assert_eq!(named(&format!("'{default}'")), ConfigPathUse::OneOfSeveral(default.into()));
        assert_eq!(named("'/a:/b'"), ConfigPathUse::Another("/a:/b".into()));
        assert_eq!(reads("version = 2\n# config_path = \"/etc/containerd/certs.d\"\n"), ConfigPathUse::None);
    }
}
