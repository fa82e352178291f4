//! The proxies that the environment names, and which one leads to a host.
//!
//! `HTTPS_PROXY` is for https, `HTTP_PROXY` for http, `ALL_PROXY` for both where the other is not set; each in upper
//! case first, then in lower case. `NO_PROXY` lists hosts that are reached without one ([`super::no_proxy`]).

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderValue;
use reqwest::Url;

use super::no_proxy::NoProxy;
use crate::credentials::Secret;
use crate::error::{Error, Kind, Result};
use crate::registry::address::{authority, without_brackets};
use crate::registry::auth::challenge;
use crate::registry::auth::token::basic;
use crate::registry::urls::percent_decoded;

/// The proxies of a run. The default has none. Clones share what was learned of them.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    https: Option<Arc<Setting>>,
    http: Option<Arc<Setting>>,
    exceptions: NoProxy,
}

/// What a variable names, or why that is no proxy.
type Setting = Result<Arc<Proxy>, String>;

/// One proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) scheme: Scheme,
    /// A name or an address, an IPv6 one without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: Option<(String, Secret)>,
    /// The value of `Proxy-Authorization` for that user.
    authorization: Option<HeaderValue>,
    /// The environment variable that names it.
    variable: String,
    /// A connection was made through it in this run.
    worked: AtomicBool,
}

/// How a proxy is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// HTTP: CONNECT for https, and requests to be forwarded for http.
    Http,
    /// The same over TLS.
    Https,
    /// SOCKS 5 with names that are resolved here, where that is possible.
    Socks5,
    /// SOCKS 5 with names that the proxy resolves.
    Socks5h,
}

impl Proxies {
    /// Those of the process's environment variables, which the caller passes in.
    ///
    /// A value that names no proxy is an error where the proxy would be used.
    pub fn from_environment(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let all: HashMap<OsString, OsString> = variables.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let value = |name: &str| {
            let value = all.get(std::ffi::OsStr::new(name))?.to_string_lossy().trim().to_owned();
            (!value.is_empty()).then(|| (name.to_owned(), value))
        };
        let either = |name: &str| value(name).or_else(|| value(&name.to_ascii_lowercase()));
        let setting = |(name, value): (String, String)| Arc::new(Proxy::parse(&name, &value));
        // A CGI program has the request header "Proxy" in HTTP_PROXY (CVE-2016-5385), as Go knows too.
        let http = if value("REQUEST_METHOD").is_some() { value("http_proxy") } else { either("HTTP_PROXY") };
        // Shared, so that what is learned of the proxy is learned for both.
        let for_all = either("ALL_PROXY").map(setting);
        Self {
            https: either("HTTPS_PROXY").map(setting).or_else(|| for_all.clone()),
            http: http.map(setting).or(for_all),
            exceptions: NoProxy::parse(&either("NO_PROXY").map(|(_, list)| list).unwrap_or_default()),
        }
    }

    /// The proxy that leads to a host; `None` if it is reached directly.
    ///
    /// # Errors
    /// [`Kind::Usage`] if the variable that is for it names no proxy.
    pub(super) fn for_host(&self, https: bool, host: &str, port: u16) -> Result<Option<Arc<Proxy>>> {
        let setting = if https { &self.https } else { &self.http };
        let Some(setting) = setting.as_ref().filter(|_| !self.exceptions.matches(host, port)) else { return Ok(None) };
        match &**setting {
            Ok(proxy) => Ok(Some(proxy.clone())),
            Err(why) => Err(Error::new(Kind::Usage, why).hint(
                "a proxy is named as http://HOST:PORT, https://HOST:PORT, socks5://HOST:PORT or socks5h://HOST:PORT, \
                 with USER:PASSWORD@ before the host; other characters than letters and digits there as %XX",
            )),
        }
    }

    /// The same for the HTTP library, for requests that do not go to a registry.
    pub(in crate::registry) fn as_library_proxy(&self) -> reqwest::Proxy {
        let own = self.clone();
        reqwest::Proxy::custom(move |url| {
            let (host, port) = (url.host_str()?, url.port_or_known_default()?);
            own.for_host(url.scheme() == "https", host, port).ok().flatten()?.url()
        })
    }

    /// Checks the proxy that leads to `url`.
    ///
    /// # Errors
    /// As [`for_host`](Self::for_host).
    pub(in crate::registry) fn check(&self, url: &Url) -> Result<()> {
        let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
        self.for_host(url.scheme() == "https", host, port).map(drop)
    }
}

impl Proxy {
    /// Parses the value of a variable. The error says why it is no proxy, without any of the value: there may be a
    /// password in it.
    fn parse(variable: &str, value: &str) -> Setting {
        let wrong = |why: &str| Err(format!("{variable} does not name a proxy: {why}"));
        let text = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
        let Ok(url) = Url::parse(&text) else { return wrong("it is not a URL") };
        let (scheme, default) = match url.scheme() {
            "http" => (Scheme::Http, 80),
            "https" => (Scheme::Https, 443),
            "socks5" => (Scheme::Socks5, 1080),
            "socks5h" => (Scheme::Socks5h, 1080),
            // It may be the beginning of a password, where "://" is in one.
            "socks4" | "socks4a" => return wrong("SOCKS 4 is not supported"),
            _ => return wrong("its scheme is none of http, https, socks5 and socks5h"),
        };
        let Some(host) = url.host_str().filter(|host| !host.is_empty()) else { return wrong("it has no host") };
        let decoded = |part: &str| percent_decoded(part);
        let user = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => match (decoded(user), decoded(password.unwrap_or_default())) {
                (Some(user), Some(password)) => Some((user, Secret::new(password))),
                _ => return wrong("its user name or password is not UTF-8"),
            },
        };
        if let (Some((user, password)), Scheme::Socks5 | Scheme::Socks5h) = (&user, scheme)
            && (user.len() > 255 || password.reveal().len() > 255)
        {
            return wrong("SOCKS 5 knows no user name or password of more than 255 bytes");
        }
        let authorization = user.as_ref().and_then(|(user, password)| basic(user, password).ok());
        Ok(Arc::new(Self {
            scheme,
            host: without_brackets(host).to_ascii_lowercase(),
            port: url.port().unwrap_or(default),
            user,
            authorization,
            variable: variable.to_owned(),
            worked: AtomicBool::new(false),
        }))
    }

    /// Whether requests for http are given to it to be forwarded, rather than sent through a tunnel.
    pub(super) fn forwards(&self) -> bool {
        matches!(self.scheme, Scheme::Http | Scheme::Https)
    }

    /// The `Proxy-Authorization` header's value.
    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    /// Notes that a connection was made through it.
    pub(super) fn works(&self) {
        self.worked.store(true, Ordering::Relaxed);
    }

    /// An error of the proxy, with a hint. It is tried again only if the proxy has worked in this run: one that never did is wrongly
    /// configured, and trying again takes time without any hope.
    pub(super) fn fault(&self, what: impl fmt::Display) -> Error {
        let error = self.refusal(what);
        if self.worked.load(Ordering::Relaxed) { error.transient(None) } else { error }
    }

    /// An error of the proxy that trying again cannot help, with a hint.
    pub(super) fn refusal(&self, what: impl fmt::Display) -> Error {
        Error::new(Kind::Network, format!("the proxy {self} {what}")).permanent().hint(self.hint())
    }

    /// What to do about a proxy that does not work.
    pub(super) fn hint(&self) -> String {
        format!("check {}; hosts that need no proxy are listed in NO_PROXY", self.variable)
    }

    /// The error for an answer of 407: the proxy requires a user and a password, or other ones. `authenticate` is the
    /// value of `Proxy-Authenticate`, empty without one.
    pub(super) fn wants_user(&self, authenticate: &str) -> Error {
        let schemes = challenge::schemes(authenticate);
        if !schemes.is_empty() && !schemes.iter().any(|scheme| scheme.eq_ignore_ascii_case("basic")) {
            return self
                .refusal(format!("wants a user by {} (407), but only Basic is supported", schemes.join(", ")))
                .hint_instead("set up a local proxy that signs in there, such as cntlm or px, and name that one");
        }
        match self.user {
            Some(_) => {
                self.login_refused(format!("does not accept the user name and password in {} (407)", self.variable))
            }
            None => self.login_refused("wants a user name and a password (407)"),
        }
    }

    /// The error for a login that the proxy requires or refuses, with a hint that says where the user stands.
    pub(super) fn login_refused(&self, what: impl fmt::Display) -> Error {
        let variable = &self.variable;
        self.refusal(what).hint_instead(match self.user {
            Some(_) => format!("correct them in {variable}; characters such as @ : / # are written as %40 %3A %2F %23"),
            None => format!(
                "put USER:PASSWORD@ before the host in {variable}; other characters than letters and digits as %XX"
            ),
        })
    }

    /// Host and port.
    pub(super) fn address(&self) -> String {
        authority(&self.host, self.port)
    }

    /// Its URL with user and password.
    fn url(&self) -> Option<Url> {
        let mut url = Url::parse(&format!("{}://{}", self.scheme, self.address())).ok()?;
        if let Some((user, password)) = &self.user {
            url.set_username(user).ok()?;
            url.set_password(Some(password.reveal())).ok()?;
        }
        Some(url)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Socks5 => "socks5",
            Self::Socks5h => "socks5h",
        })
    }
}

/// As it may be shown: without user and password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{} ({})", self.scheme, self.address(), self.variable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::from_environment(variables.iter().map(|(name, value)| ((*name).into(), (*value).into())))
    }

    /// The proxy for `https://r.test` and for `http://r.test`, as they are shown.
    fn shown(variables: &[(&str, &str)]) -> [String; 2] {
        let proxies = proxies(variables);
        [(true, 443), (false, 80)].map(|(https, port)| match proxies.for_host(https, "r.test", port) {
            Ok(Some(proxy)) => proxy.to_string(),
            Ok(None) => "direct".to_owned(),
            Err(error) => error.to_string(),
        })
    }

    #[test]
    fn the_variable_that_is_set_first_names_the_proxy() {
        assert_eq!(shown(&[]), ["direct", "direct"]);
        assert_eq!(shown(&[("HTTPS_PROXY", "http://p:1")]), ["http://p:1 (HTTPS_PROXY)", "direct"]);
        assert_eq!(shown(&[("http_proxy", "http://p:1")]), ["direct", "http://p:1 (http_proxy)"]);
        let all = [("ALL_PROXY", "socks5h://p"), ("https_proxy", "p:2"), ("HTTPS_PROXY", "")];
        assert_eq!(shown(&all), ["http://p:2 (https_proxy)", "socks5h://p:1080 (ALL_PROXY)"]);
        assert_eq!(shown(&[("HTTPS_PROXY", "https://[::1]")])[0], "https://[::1]:443 (HTTPS_PROXY)");
        assert_eq!(shown(&[("HTTPS_PROXY", "P.Test")])[0], "http://p.test:80 (HTTPS_PROXY)");
        assert_eq!(shown(&[("HTTP_PROXY", "http://evil"), ("REQUEST_METHOD", "GET")])[1], "direct");
        assert_eq!(shown(&[("ALL_PROXY", "p:1"), ("no_proxy", "other.test,r.test:443")])[0], "direct");
    }

    #[test]
    fn a_user_and_a_password_are_decoded_and_never_shown() {
        let all = proxies(&[("HTTPS_PROXY", "http://co%72p:p%40ss%3Aword@p:3128")]);
        let proxy = all.for_host(true, "r.test", 443).expect("a proxy").expect("a proxy");
        let (user, password) = proxy.user.as_ref().expect("a user");
        assert_eq!((user.as_str(), password.reveal()), ("corp", "p@ss:word"));
        assert_eq!(proxy.to_string(), "http://p:3128 (HTTPS_PROXY)");
        assert!(!format!("{proxy:?}").contains("p@ss"), "{proxy:?}");
        let header = proxy.authorization().expect("a header");
        assert_eq!(header.to_str().ok(), Some("Basic Y29ycDpwQHNzOndvcmQ="));
        assert_eq!(proxy.url().expect("a URL").as_str(), "http://corp:p%40ss%3Aword@p:3128/");
    }

    #[test]
    fn a_proxy_for_both_schemes_is_one() {
        let all = proxies(&[("ALL_PROXY", "http://p:1")]);
        let [https, http] = [true, false].map(|https| all.for_host(https, "r.test", 443).expect("a proxy"));
        assert!(Arc::ptr_eq(&https.expect("a proxy"), &http.expect("a proxy")));
    }

    #[test]
    fn a_login_that_is_refused_has_the_hint_that_helps() {
        let [with, without] = ["socks5://me:pw@p:1", "socks5://p:1"].map(|url| {
            let all = proxies(&[("ALL_PROXY", url)]);
            all.for_host(true, "r.test", 443).expect("a proxy").expect("a proxy")
        });
        for (error, what, hint) in [
            (with.login_refused("refuses"), "refuses", "correct them in ALL_PROXY; "),
            (without.login_refused("refuses"), "refuses", "put USER:PASSWORD@ before the host in ALL_PROXY; "),
            (with.wants_user("Negotiate, Basic realm=\"x, y\""), "does not accept", "correct them in ALL_PROXY; "),
            (without.wants_user("Negotiate, basic"), "wants a user name and a password (407)", "put USER:PASSWORD@ "),
            (without.wants_user(""), "wants a user name and a password (407)", "put USER:PASSWORD@ "),
            (with.wants_user("NTLM x, Negotiate"), "wants a user by NTLM, Negotiate (407)", "set up a local proxy "),
        ] {
            assert!(error.to_string().contains(what), "{error}");
            assert!(error.hint_text().is_some_and(|text| text.starts_with(hint)), "{error}: {:?}", error.hint_text());
        }
    }

    #[test]
    fn what_names_no_proxy_is_an_error_without_the_value() {
        for value in
            ["ftp://hunter2@p", "http://me:hunter2#x@p:3128", "socks4://p", "http://", "p:99999", "me:hunter2@"]
        {
            let [https, http] = shown(&[("HTTPS_PROXY", value)]);
            assert!(https.starts_with("HTTPS_PROXY does not name a proxy: "), "{value}: {https}");
            assert!(!https.contains("hunter2"), "{https}");
            assert_eq!(http, "direct");
        }
    }
}
