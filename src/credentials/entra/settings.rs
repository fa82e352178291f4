//! The settings of the identity and its cloud.

use std::ffi::OsString;
use std::path::PathBuf;

use reqwest::Url;

use crate::credentials::Secret;
use crate::error::{Error, Kind, Result};

const PUBLIC_AUTHORITY: &str = "https://login.microsoftonline.com";

/// The settings that choose the identity. The names are those of the Azure SDKs' environment variables.
#[derive(Clone, Debug, Default)]
pub struct EntraSettings {
    /// `AZURE_CLIENT_ID`: the application, or one of several managed identities.
    pub client_id: Option<String>,
    /// `AZURE_TENANT_ID`.
    pub tenant_id: Option<String>,
    /// `AZURE_CLIENT_SECRET`.
    pub client_secret: Option<Secret>,
    /// `TRANSLOAD_AZURE_PRINCIPAL`: a directory with the files `AZURE_CLIENT_ID`, `AZURE_TENANT_ID` and
    /// `AZURE_CLIENT_SECRET`, such as a mounted Kubernetes Secret. It takes precedence over the variables, and is read
    /// for each token, so that a rotated secret is used at once.
    pub principal: Option<PathBuf>,
    /// `AZURE_FEDERATED_TOKEN_FILE`, set by AKS's workload identity webhook.
    pub federated_token_file: Option<PathBuf>,
    /// `AZURE_AUTHORITY_HOST`: the authority of another cloud, or of a test.
    pub authority_host: Option<String>,
    /// `AZURE_POD_IDENTITY_AUTHORITY_HOST`: the address of the metadata service instead of 169.254.169.254.
    pub imds_host: Option<String>,
    /// `IDENTITY_ENDPOINT` and `IDENTITY_HEADER`: the metadata service of App Service and Container Apps.
    pub identity_endpoint: Option<(String, Secret)>,
    /// `PATH`, to find `az`.
    pub program_path: Option<OsString>,
}

impl EntraSettings {
    /// Whether an identity is configured, rather than discovered.
    pub fn is_configured(&self) -> bool {
        self.principal.is_some() || self.client_secret.is_some() || self.federated_token_file.is_some()
    }

    /// The settings in environment variables, which the caller passes in.
    pub fn from_environment(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let (mut settings, mut endpoint, mut header) = (Self::default(), None, None);
        for (name, value) in variables {
            if value.is_empty() {
                continue;
            }
            let text = || value.to_str().map(str::to_owned);
            match name.to_str() {
                Some("AZURE_CLIENT_ID") => settings.client_id = text(),
                Some("AZURE_TENANT_ID") => settings.tenant_id = text(),
                Some("AZURE_CLIENT_SECRET") => settings.client_secret = text().map(Secret::new),
                Some("TRANSLOAD_AZURE_PRINCIPAL") => settings.principal = Some(value.into()),
                Some("AZURE_FEDERATED_TOKEN_FILE") => settings.federated_token_file = Some(value.into()),
                Some("AZURE_AUTHORITY_HOST") => settings.authority_host = text(),
                Some("AZURE_POD_IDENTITY_AUTHORITY_HOST") => settings.imds_host = text(),
                Some("IDENTITY_ENDPOINT") => endpoint = text(),
                Some("IDENTITY_HEADER") => header = text().map(Secret::new),
                Some("PATH") => settings.program_path = Some(value),
                _ => {}
            }
        }
        settings.identity_endpoint = endpoint.zip(header);
        settings
    }
}

/// Refuses half an identity: otherwise another identity would be used.
pub(super) fn check_complete(settings: &EntraSettings) -> Result<()> {
    let EntraSettings { client_id, tenant_id, client_secret, federated_token_file, .. } = settings;
    if let Some(tenant) = tenant_id {
        check_tenant(tenant)?;
    }
    let (proof, hint) = match (client_secret, federated_token_file) {
        (Some(_), _) => {
            ("AZURE_CLIENT_SECRET", "set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET together")
        }
        (None, Some(_)) => (
            "AZURE_FEDERATED_TOKEN_FILE",
            "annotate the service account with azure.workload.identity/client-id, and label the pod with azure.workload.identity/use",
        ),
        (None, None) => return Ok(()),
    };
    for (value, name) in [(client_id, "AZURE_CLIENT_ID"), (tenant_id, "AZURE_TENANT_ID")] {
        if value.is_none() {
            return Err(Error::new(Kind::Usage, format!("{proof} is set, but {name} is not")).hint(hint));
        }
    }
    Ok(())
}

/// Checks the tenant, which becomes part of a path and an argument.
pub(super) fn check_tenant(tenant: &str) -> Result<()> {
    let plain = tenant.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b)) && !tenant.starts_with('-');
    if plain {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("AZURE_TENANT_ID is {tenant:?}, which is not a tenant")))
}

pub(super) fn authority(host: Option<&str>) -> Result<Url> {
    let host = host.unwrap_or(PUBLIC_AUTHORITY);
    let text = if host.contains("://") { host.to_owned() } else { format!("https://{host}") };
    let wrong = |why: &str| Error::new(Kind::Usage, format!("AZURE_AUTHORITY_HOST is {host:?}, which {why}"));
    let url = Url::parse(&text).map_err(|_| wrong("is not a URL"))?;
    match url.scheme() {
        "https" => Ok(url),
        // A test on this machine: requests cannot be overheard.
        "http" if is_loopback(&url) => Ok(url),
        _ => Err(wrong("is not https").hint("secrets are sent there")),
    }
}

/// Checks the address only: the resolver may give `localhost` any address.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The audiences of the SDKs: ACR's own in the public cloud, that of Azure's management elsewhere.
/// <https://learn.microsoft.com/dotnet/api/azure.containers.containerregistry.containerregistryaudience>
pub(super) fn resource(authority: &Url) -> &'static str {
    match authority.host_str() {
        Some("login.chinacloudapi.cn" | "login.partner.microsoftonline.cn") => "https://management.chinacloudapi.cn",
        Some("login.microsoftonline.us") => "https://management.usgovcloudapi.net",
        _ => "https://containerregistry.azure.net",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_only_go_to_https_or_this_very_machine() {
        for (host, wanted) in [
            (None, "https://login.microsoftonline.com/"),
            (Some("https://login.microsoftonline.us/"), "https://login.microsoftonline.us/"),
            (Some("login.chinacloudapi.cn"), "https://login.chinacloudapi.cn/"),
            (Some("http://127.0.0.1:8080"), "http://127.0.0.1:8080/"),
            (Some("http://[::1]:8080"), "http://[::1]:8080/"),
        ] {
            assert_eq!(authority(host).expect(wanted).as_str(), wanted);
        }
        for wrong in [
            "http://login.microsoftonline.com",
            "http://localhost:8080",
            "http://127.0.0.1.evil.com",
            "http://10.0.0.1",
            "ftp://127.0.0.1",
            "https://",
        ] {
            let error = authority(Some(wrong)).expect_err(wrong);
            assert_eq!(error.kind(), Kind::Usage, "{error}");
            assert!(error.to_string().contains("AZURE_AUTHORITY_HOST"), "{error}");
        }
    }

    #[test]
    fn the_audience_follows_the_cloud() {
        for (host, wanted) in [
            (None, "https://containerregistry.azure.net"),
            (Some("https://login.microsoftonline.us"), "https://management.usgovcloudapi.net"),
            (Some("https://login.chinacloudapi.cn"), "https://management.chinacloudapi.cn"),
            (Some("http://127.0.0.1:1"), "https://containerregistry.azure.net"),
        ] {
            assert_eq!(resource(&authority(host).expect("an authority")), wanted);
        }
    }

    #[test]
    fn half_an_identity_is_a_mistake() {
        let settings = |pairs: &[(&str, &str)]| {
            EntraSettings::from_environment(pairs.iter().map(|(name, value)| (name.into(), value.into())))
        };
        let (id, tenant) = (("AZURE_CLIENT_ID", "c"), ("AZURE_TENANT_ID", "t"));
        let (secret, file) = (("AZURE_CLIENT_SECRET", "hunter2"), ("AZURE_FEDERATED_TOKEN_FILE", "/f"));
        for (pairs, why) in [
            (vec![secret, id], "AZURE_TENANT_ID is not"),
            (vec![secret, tenant], "AZURE_CLIENT_ID is not"),
            (vec![file, tenant], "AZURE_FEDERATED_TOKEN_FILE is set, but AZURE_CLIENT_ID"),
            (vec![("AZURE_TENANT_ID", "../x")], "not a tenant"),
            (vec![("AZURE_TENANT_ID", "--debug")], "not a tenant"),
        ] {
            let error = check_complete(&settings(&pairs)).expect_err(why);
            assert!(error.to_string().contains(why) && !error.to_string().contains("hunter2"), "{error}");
        }
        for pairs in [vec![], vec![id], vec![tenant], vec![id, tenant, secret], vec![id, tenant, file, ("X", "")]] {
            check_complete(&settings(&pairs)).expect("whole");
        }
        let all = settings(&[
            secret,
            ("AZURE_AUTHORITY_HOST", "h"),
            ("AZURE_POD_IDENTITY_AUTHORITY_HOST", "i"),
            ("IDENTITY_ENDPOINT", "e"),
            ("PATH", "/bin"),
        ]);
        assert_eq!((all.authority_host.as_deref(), all.imds_host.as_deref()), (Some("h"), Some("i")));
        assert!(all.identity_endpoint.is_none(), "Azure Arc, without a header");
        assert!(!format!("{all:?}").contains("hunter2"));
        assert!(settings(&[("IDENTITY_ENDPOINT", "e"), ("IDENTITY_HEADER", "h")]).identity_endpoint.is_some());
    }
}
