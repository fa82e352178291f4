//! Reads the manifest of a Kubernetes Secret, as `kubectl get secret NAME -o yaml` writes it.
//!
//! <https://kubernetes.io/docs/concepts/configuration/secret/#docker-config-secrets>

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use crate::error::{Error, Kind, Result, Side};

/// The fields of a manifest that are read.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    data: Option<BTreeMap<String, Option<String>>>,
    #[serde(default, rename = "stringData")]
    string_data: Option<BTreeMap<String, Option<String>>>,
}

/// The file of credentials in a Secret's manifest, YAML or JSON; `None` if this is no Secret.
///
/// # Errors
/// If the Secret has no file of credentials. Values are never shown.
pub(super) fn within(path: &Path, bytes: &[u8]) -> Result<Option<Vec<u8>>> {
    let manifest = if bytes.starts_with(b"{") {
        serde_json::from_slice::<Manifest>(bytes).ok()
    } else {
        std::str::from_utf8(bytes).ok().and_then(|text| serde_saphyr::from_str::<Manifest>(text).ok())
    };
    let Some(manifest) = manifest.filter(|manifest| manifest.kind == "Secret") else { return Ok(None) };
    let wrong = |why: &str| {
        Error::new(Kind::Invalid, format!("the Secret in {} {why}", path.display()))
            .on(Side::Local)
            .hint("kubectl create secret docker-registry makes such a Secret; its key is .dockerconfigjson")
    };
    for name in [".dockerconfigjson", ".dockercfg"] {
        let value = |fields: &Option<BTreeMap<String, Option<String>>>| fields.as_ref()?.get(name)?.clone();
        // As in Kubernetes, `stringData` takes precedence over `data`.
        if let Some(text) = value(&manifest.string_data) {
            return Ok(Some(text.into_bytes()));
        }
        if let Some(text) = value(&manifest.data) {
            let text: String = text.split_whitespace().collect();
            return BASE64.decode(text).map(Some).map_err(|_| wrong(&format!("has a {name} that isn't base64")));
        }
    }
    Err(wrong("has no .dockerconfigjson"))
}

/// Secrets written by hand may lack the padding.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<String>> {
        let bytes = within(Path::new("secret.yaml"), text.trim_ascii().as_bytes())?;
        Ok(bytes.map(|bytes| String::from_utf8(bytes).expect("text")))
    }

    #[test]
    fn manifests_hold_a_file() {
        let encoded = BASE64.encode("{\"auths\": {}}");
        for text in [
            format!(
                "apiVersion: v1\nkind: Secret\ndata:\n  .dockerconfigjson: {encoded}\ntype: kubernetes.io/dockerconfigjson\n"
            ),
            format!("---\napiVersion: v1\ndata:\n  .dockercfg: {encoded}\nkind: Secret\n"),
            format!("kind: Secret\ndata:\n  .dockerconfigjson: >-\n    {}\n    {}\n", &encoded[..8], &encoded[8..]),
            "kind: Secret\nstringData:\n  .dockerconfigjson: '{\"auths\": {}}'\n".to_owned(),
            format!(
                "{{\"kind\": \"Secret\", \"apiVersion\": \"v1\", \"data\": {{\".dockerconfigjson\": \"{encoded}\"}}}}"
            ),
        ] {
            let read = read(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(read.as_deref(), Some("{\"auths\": {}}"), "{text}");
        }
    }

    #[test]
    fn other_files_are_none() {
        for text in
            ["{\"auths\": {}}", "{\"kind\": \"x\"}", "kind: ConfigMap\ndata: {a: b}\n", "{", "", "\u{0}", "a: [b"]
        {
            assert!(read(text).is_ok_and(|read| read.is_none()), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_its_values() {
        for (text, why) in [
            ("kind: Secret\ndata: {password: aHVudGVyMg==}\n", "has no .dockerconfigjson"),
            ("kind: Secret\n", "has no .dockerconfigjson"),
            ("kind: Secret\ndata: {.dockerconfigjson: 'hunter2!'}\n", "isn't base64"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.to_string().contains(why) && !error.to_string().contains("hunter2"), "{error}");
            assert!(error.hint_text().is_some_and(|hint| hint.contains("kubectl create secret")));
        }
    }
}
