//! Names of Azure Container Registries.

/// Whether `host` is an Azure Container Registry: `NAME.azurecr.io`, or that of a sovereign cloud.
///
/// Only the end of the name counts: tools that looked for the suffix anywhere sent Entra tokens to other hosts
/// (GO-2026-6225, CVE-2026-105769: `x.azurecr.io.attacker.com`).
pub(crate) fn is_acr(host: &str) -> bool {
    [".azurecr.io", ".azurecr.cn", ".azurecr.us"]
        .iter()
        .filter_map(|suffix| host.strip_suffix(suffix))
        .any(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.'))
}

#[cfg(test)]
mod tests {
    use super::is_acr;

    #[test]
    fn the_suffix_is_anchored() {
        for acr in ["myregistry.azurecr.io", "my-a1b2.azurecr.cn", "r.westeurope.geo.azurecr.io", "r.azurecr.us"] {
            assert!(is_acr(acr), "{acr}");
        }
        for other in [
            "azurecr.io",
            ".azurecr.io",
            "x.azurecr.io.attacker.com",
            "xazurecr.io",
            "x.azurecr.io:443",
            "a/b.azurecr.io",
        ] {
            assert!(!is_acr(other), "{other}");
        }
    }
}
