//! `WWW-Authenticate` (RFC 9110 §11.6.1), and which token realms are believed.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;
use reqwest::Url;

/// How a registry wants to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::registry) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from `realm` (distribution's token specification).
    Bearer {
        /// The token endpoint.
        realm: String,
        /// The name by which the token endpoint knows the registry.
        service: Option<String>,
        /// `insufficient_scope` or `invalid_token`, where the registry says why.
        error: Option<String>,
    },
}

impl Challenge {
    /// The best challenge of a 401's headers: Bearer, else Basic.
    pub(in crate::registry) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for value in headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()) {
            for (scheme, mut parameters) in parse(value) {
                let mut take = |name: &str| {
                    let at = parameters.iter().position(|(key, _)| key == name)?;
                    Some(parameters.swap_remove(at).1)
                };
                match scheme.to_ascii_lowercase().as_str() {
                    "bearer" => {
                        if let Some(realm) = take("realm") {
                            return Some(Self::Bearer { realm, service: take("service"), error: take("error") });
                        }
                    }
                    "basic" => basic = Some(Self::Basic),
                    _ => {}
                }
            }
        }
        basic
    }
}

/// Whether credentials for a registry at `base` may be given to the token endpoint `realm`.
///
/// The realm comes from an unauthenticated answer: whoever forges it would be given the password
/// (CVE-2026-48978, CVE-2026-33540). It must be the registry's own host, or one of the same site;
/// Docker Hub's is known. ACR's is always the registry itself.
pub(in crate::registry) fn realm_is_trusted(base: &Url, realm: &Url, allowed: &[String]) -> bool {
    let (Some(own), Some(host)) = (base.host_str(), realm.host_str()) else { return false };
    if own == host || allowed.iter().any(|name| name == host) {
        return true;
    }
    if crate::registry::azure::is_acr(own) || own.parse::<std::net::IpAddr>().is_ok() || own.starts_with('[') {
        return false;
    }
    own == "registry-1.docker.io" && host == "auth.docker.io" || site(own).is_some_and(|own| site(host) == Some(own))
}

/// The part of a host name that one owner has: its label below a public suffix, and that suffix.
///
/// By the public suffix list (publicsuffix.org), with its private section: customers of one cloud share suffixes such
/// as `github.io`, and are no one site.
fn site(host: &str) -> Option<&str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok() {
        return None;
    }
    psl::domain_str(host).filter(|site| !SHARED_CLOUD_DOMAINS.contains(site))
}

/// Domains of clouds whose customers have names at several depths, such as `a.westeurope.cloudapp.azure.com`, of
/// which the public suffix list knows a part only. No two hosts there are known to have one owner.
const SHARED_CLOUD_DOMAINS: [&str; 10] = [
    "amazonaws.com",
    "amazonaws.com.cn",
    "azmk8s.io",
    "azure.cn",
    "azure.com",
    "azure.net",
    "azure.us",
    "chinacloudapi.cn",
    "usgovcloudapi.net",
    "windows.net",
];

/// The schemes of one header, as written.
pub(in crate::registry) fn schemes(header: &str) -> Vec<String> {
    parse(header).into_iter().map(|(scheme, _)| scheme).collect()
}

/// The challenges of one header: the scheme, and its parameters with their names in lower case.
fn parse(header: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut challenges: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',']);
    // A scheme stands before the place in the header, and nothing but spaces between them.
    let mut follows_scheme = false;
    while !rest.is_empty() {
        let word_end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        let after_space = after.trim_start();
        if let Some(value) = after_space.strip_prefix('=').filter(|_| !word.is_empty() && !challenges.is_empty()) {
            let (value, next) = read_value(value.trim_start());
            if let Some((_, parameters)) = challenges.last_mut() {
                parameters.push((word.to_ascii_lowercase(), value));
            }
            (rest, follows_scheme) = (next, false);
        } else if word.is_empty() {
            break;
        } else if follows_scheme {
            // The data of a scheme without parameters, such as NTLM's (`token68`).
            (rest, follows_scheme) = (after_space, false);
        } else {
            challenges.push((word.to_owned(), Vec::new()));
            (rest, follows_scheme) = (after_space, !after_space.starts_with(','));
        }
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    challenges
}

/// A token or quoted string, and what follows.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn challenge(header: &str) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        headers.insert(WWW_AUTHENTICATE, header.parse().expect("a header"));
        Challenge::from_headers(&headers)
    }

    #[test]
    fn challenges_as_registries_write_them() {
        let hub = challenge(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push",error="insufficient_scope""#,
        );
        let Some(Challenge::Bearer { realm, service, error }) = hub else { panic!("{hub:?}") };
        assert_eq!(
            (realm.as_str(), service.as_deref(), error.as_deref()),
            ("https://auth.docker.io/token", Some("registry.docker.io"), Some("insufficient_scope"))
        );
        assert_eq!(challenge("Basic realm=\"x, y\""), Some(Challenge::Basic));
        assert_eq!(challenge("BASIC"), Some(Challenge::Basic));
        let both = challenge(r#"Basic realm="r", Bearer realm=https://t.io/token , service = "s""#);
        assert_eq!(
            both,
            Some(Challenge::Bearer { realm: "https://t.io/token".into(), service: Some("s".into()), error: None })
        );
        assert_eq!(challenge("Negotiate abc=="), None);
    }

    #[test]
    fn realms() {
        let trusted = |own: &str, realm: &str| {
            let url = |host: &str| Url::parse(&format!("https://{host}")).expect("a URL");
            realm_is_trusted(&url(own), &url(realm), &["sso.corp.net".to_owned()])
        };
        assert!(trusted("registry-1.docker.io", "auth.docker.io"));
        assert!(trusted("registry.gitlab.com", "gitlab.com"));
        assert!(trusted("ghcr.io", "ghcr.io"));
        assert!(trusted("r.example.org", "sso.corp.net"));
        assert!(!trusted("registry-1.docker.io", "auth.docker.io.evil.com"));
        assert!(!trusted("a.azurecr.io", "b.azurecr.io"));
        assert!(!trusted("a.co.uk", "b.co.uk"));
        assert!(!trusted("1.2.3.4", "2.2.3.4"));
        assert!(!trusted("r.example.org", "evil.net"));
        assert!(trusted("registry.example.co.uk", "auth.example.co.uk"));
        // Suffixes that many customers share, a bare suffix, and hosts without a site.
        for suffix in [
            "cloudapp.azure.com",
            "westeurope.cloudapp.azure.com",
            "azurewebsites.net",
            "azurecontainer.io",
            "blob.core.windows.net",
            "github.io",
            "herokuapp.com",
            "s3.amazonaws.com",
            "appspot.com",
            "com.br",
            "gov.uk",
            "compute.amazonaws.com",
        ] {
            assert!(!trusted(&format!("a.{suffix}"), &format!("b.{suffix}")), "{suffix}");
            assert!(!trusted(&format!("a.{suffix}"), suffix), "{suffix}");
        }
        assert!(trusted("r.a.github.io", "auth.a.github.io"));
        assert!(trusted("registry.cn-hangzhou.aliyuncs.com", "dockerauth.cn-hangzhou.aliyuncs.com"));
        for (own, realm) in [("a.localhost", "localhost"), ("com", "com.evil"), ("r.example.org", "example.org.")] {
            assert_eq!(trusted(own, realm), realm == "example.org.", "{own} {realm}");
        }
        assert!(!trusted("[2001:db8::1]", "[2001:db8::2]"));
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_panic(header in "[ -~]{0,80}") {
            let _ = parse(&header);
        }
    }
}
