//! Names of Kubernetes objects.
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/names/>

use crate::error::{Error, Kind, Result, Side};

/// Checks the name of a Secret or Pod: a DNS subdomain (RFC 1123).
pub(super) fn subdomain(text: &str) -> Result<String> {
    let whole = !text.is_empty() && text.len() <= 253;
    if whole && text.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    Err(invalid_name(
        text,
        "a name has up to 253 lower-case letters, digits, '-' and '.', and each part between dots begins and ends with a letter or digit (RFC 1123)",
    ))
}

/// Checks the name of a namespace or container: a DNS label (RFC 1123).
pub(super) fn label(text: &str) -> Result<String> {
    if text.len() <= 63 && is_label(text) {
        return Ok(text.to_owned());
    }
    Err(invalid_name(
        text,
        "a namespace has up to 63 lower-case letters, digits and '-', and begins and ends with a letter or digit (RFC 1123)",
    ))
}

/// Makes a label of any text: `My_image.x` becomes `my-image-x`. `None` if nothing is left.
pub(super) fn sanitized(text: &str) -> Option<String> {
    let mut name: String = text.to_ascii_lowercase();
    name = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    let name = name.trim_matches('-');
    is_label(name).then(|| name.to_owned())
}

fn is_label(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let edges = text.bytes().next().zip(text.bytes().last()).is_some_and(|(a, z)| good(a) && good(z));
    edges && text.bytes().all(|b| good(b) || b == b'-')
}

fn invalid_name(text: &str, rule: &str) -> Error {
    Error::new(Kind::Usage, format!("{text:?} is not a valid name in Kubernetes")).on(Side::Local).hint(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_kubernetes_takes_them() {
        for good in ["a", "acr", "my-secret.v2", "0", &"a".repeat(253)] {
            assert!(subdomain(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a..b", ".a", "a.", "a b", "a\nkind: x", "a: b", "ä", &"a".repeat(254)]
        {
            assert!(subdomain(bad).is_err(), "{bad}");
        }
        assert!(label("kube-system").is_ok() && label(&"a".repeat(63)).is_ok());
        assert!(label("a.b").is_err() && label("").is_err() && label(&"a".repeat(64)).is_err());
        assert_eq!(sanitized("Hello_World.2").as_deref(), Some("hello-world-2"));
        assert_eq!(sanitized(&format!("{}-x", "a".repeat(62))).as_deref(), Some("a".repeat(62).as_str()));
        assert_eq!(sanitized("___"), None);
    }
}
