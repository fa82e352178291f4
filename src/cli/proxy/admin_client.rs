//! The client of the [admin API](super::admin_api) of a running proxy.

use std::time::Duration;

use http::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Kind, Result, Side};
use crate::ops::ADMIN_HEADER;
use crate::registry::root_cause;

/// A client of one proxy.
pub(super) struct AdminClient {
    client: reqwest::Client,
    base: String,
}

impl AdminClient {
    /// A client of the proxy with this `--listen-admin` or `--listen-ops`.
    pub(super) fn new(address: &str) -> Result<Self> {
        let address = address.trim_end_matches('/');
        let base = format!("http://{}", address.strip_prefix("http://").unwrap_or(address));
        // The proxy is on this machine: no HTTP proxy is used, and no TLS, so a container without CA certificates works.
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).connect_timeout(Duration::from_secs(5));
        let client = client.redirect(reqwest::redirect::Policy::none()).build();
        let client = client.map_err(|error| Error::new(Kind::Local, format!("the HTTP client: {error}")))?;
        Ok(Self { client, base })
    }

    /// Requests one document.
    pub(super) async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T> {
        let answer = self.send(method, path).await?;
        let bytes = answer.bytes().await.map_err(|error| self.broken(&error))?;
        serde_json::from_slice(&bytes).map_err(|error| self.broken(&error))
    }

    /// Requests several documents. Returns the last one, which marks the end.
    pub(super) async fn each<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        mut took: impl FnMut(T),
    ) -> Result<Value> {
        let mut answer = self.send(method, path).await?;
        let mut left = Vec::new();
        while let Some(bytes) = answer.chunk().await.map_err(|error| self.broken(&error))? {
            left.extend_from_slice(&bytes);
            while let Some(end) = left.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = left.drain(..=end).collect();
                let value: Value = serde_json::from_slice(&line).map_err(|error| self.broken(&error))?;
                if value["done"] == true {
                    return Ok(value);
                }
                took(serde_json::from_value(value).map_err(|error| self.broken(&error))?);
            }
        }
        Err(self.broken(&"the response is incomplete"))
    }

    async fn send(&self, method: Method, path: &str) -> Result<reqwest::Response> {
        let request = self.client.request(method, format!("{}{path}", self.base)).header(ADMIN_HEADER, "1");
        let answer = request.send().await.map_err(|error| {
            let why = root_cause(&error.without_url());
            Error::new(Kind::Network, format!("cannot connect to the proxy at {}: {why}", self.base))
                .hint("--admin needs the address of the proxy's --listen-admin, or of its --listen-ops on loopback")
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let said = answer.text().await.unwrap_or_default();
        let said = serde_json::from_str::<Value>(&said).ok().and_then(|said| Some(said["error"].as_str()?.to_owned()));
        let said = said.unwrap_or_else(|| format!("status {status}"));
        let kind = match status.as_u16() {
            400 => Kind::Usage,
            403 => Kind::Denied,
            404 => Kind::NotFound,
            _ => Kind::Local,
        };
        let error = Error::new(kind, format!("the proxy at {}: {said}", self.base));
        Err(if kind == Kind::Denied {
            error.hint("start the proxy with --listen-admin 127.0.0.1:9091 and use that address, or with --listen-ops on loopback")
        } else {
            error
        })
    }

    fn broken(&self, why: &dyn std::fmt::Display) -> Error {
        Error::new(Kind::Network, format!("invalid response of the proxy at {}: {why}", self.base)).on(Side::Local)
    }
}
