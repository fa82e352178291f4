//! Access control: scopes, accounts, and the scopes that a request needs.

use http::Method;
use http::request::Parts;
use serde_json::{Value, json};

use super::wire::Form;

/// `type:name:actions`, as in a token request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scope {
    kind: String,
    pub(super) name: String,
    actions: Vec<String>,
}

impl Scope {
    pub(super) fn repository(name: &str, actions: &[&str]) -> Self {
        let actions = actions.iter().map(|&action| action.to_owned()).collect();
        Self { kind: "repository".to_owned(), name: name.to_owned(), actions }
    }

    /// A name may contain colons (`host:5000/x`): the type ends at the first colon, and the actions begin after the
    /// last.
    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        let actions = actions.split(',').map(str::to_owned).collect();
        Some(Self { kind: kind.to_owned(), name: name.to_owned(), actions })
    }

    /// All scopes that a form requests: `scope` may repeat, and may have several scopes with spaces.
    pub(super) fn asked(form: &Form) -> Vec<Self> {
        form.all("scope").flat_map(|scope| scope.split(' ')).filter_map(Self::parse).collect()
    }

    fn allows(&self, kind: &str, name: &str, action: &str) -> bool {
        let named = self.name == name || self.name == "*";
        self.kind == kind && named && self.actions.iter().any(|own| own == action || own == "*")
    }

    pub(super) fn text(&self) -> String {
        format!("{}:{}:{}", self.kind, self.name, self.actions.join(","))
    }
}

pub(super) fn covers(granted: &[Scope], needed: &[Scope]) -> bool {
    needed.iter().all(|need| {
        let held = |action: &String| granted.iter().any(|scope| scope.allows(&need.kind, &need.name, action));
        need.actions.iter().all(held)
    })
}

/// The `access` claim of a token.
pub(super) fn to_claim(scopes: &[Scope]) -> Value {
    let entry = |scope: &Scope| json!({"type": scope.kind, "name": scope.name, "actions": scope.actions});
    scopes.iter().map(entry).collect()
}

pub(super) fn from_claim(claim: &Value) -> Vec<Scope> {
    let entries = claim.as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let scope = |entry: &Value| Scope {
        kind: text(&entry["type"]),
        name: text(&entry["name"]),
        actions: entry["actions"].as_array().map(|all| all.iter().map(text).collect()).unwrap_or_default(),
    };
    entries.iter().map(scope).collect()
}

/// Rights for the repositories that match a pattern.
#[derive(Debug, Clone)]
pub struct Grant {
    pattern: String,
    actions: Vec<String>,
}

impl Grant {
    /// `pattern` is a repository, `prefix/*`, or `*`; `actions` is a list like `pull,push`.
    #[must_use]
    pub fn new(pattern: &str, actions: &str) -> Self {
        let actions = actions.split(',').map(str::to_owned).collect();
        Self { pattern: pattern.to_owned(), actions }
    }

    /// All rights for all repositories.
    #[must_use]
    pub fn everything() -> Vec<Self> {
        vec![Self::new("*", "pull,push,delete,metadata_read,metadata_write")]
    }

    fn matches(&self, name: &str) -> bool {
        match self.pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => self.pattern == name,
        }
    }
}

/// A user, a service principal, an admin or a repository-scoped token.
#[derive(Debug, Clone)]
pub struct Account {
    /// The user name for Basic authentication.
    pub user: String,
    /// The password or secret.
    pub password: String,
    /// The rights.
    pub grants: Vec<Grant>,
}

impl Account {
    /// An account with these rights.
    #[must_use]
    pub fn new(user: &str, password: &str, grants: Vec<Grant>) -> Self {
        Self { user: user.to_owned(), password: password.to_owned(), grants }
    }
}

/// The granted part of the requested scopes. Docker's token server grants a subset without an error (distribution's
/// auth.md), so a client must check it.
pub(super) fn narrow(grants: &[Grant], asked: &[Scope]) -> Vec<Scope> {
    let kept = asked.iter().filter_map(|scope| {
        let granted: Vec<&String> =
            grants.iter().filter(|grant| grant.matches(&scope.name)).flat_map(|grant| &grant.actions).collect();
        let all = scope.actions.iter().any(|action| action == "*");
        let actions: Vec<String> = if scope.kind == "registry" {
            let whole = grants.iter().any(|grant| grant.pattern == "*");
            scope.actions.iter().filter(|_| whole).cloned().collect()
        } else if all {
            granted.into_iter().cloned().collect()
        } else {
            scope.actions.iter().filter(|action| granted.contains(action)).cloned().collect()
        };
        (!actions.is_empty()).then(|| Scope { actions, ..scope.clone() })
    });
    kept.collect()
}

/// A Bearer challenge. Several scopes are in one parameter, separated by spaces.
pub(super) fn challenge(realm: &str, service: &str, needs: &[Scope], error: Option<&str>) -> String {
    let mut value = format!("Bearer realm=\"{realm}\",service=\"{service}\"");
    if !needs.is_empty() {
        let scopes: Vec<String> = needs.iter().map(Scope::text).collect();
        value.push_str(&format!(",scope=\"{}\"", scopes.join(" ")));
    }
    if let Some(error) = error {
        value.push_str(&format!(",error=\"{error}\""));
    }
    value
}

/// A request of the distribution API, by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route<'a> {
    Ping,
    Catalog,
    Manifest {
        name: &'a str,
        reference: &'a str,
    },
    Blob {
        name: &'a str,
        digest: &'a str,
    },
    Upload {
        name: &'a str,
        session: &'a str,
    },
    Tags {
        name: &'a str,
    },
    Referrers {
        name: &'a str,
        subject: &'a str,
    },
    /// ACR's own API.
    Tag {
        name: &'a str,
        tag: &'a str,
    },
}

impl<'a> Route<'a> {
    /// Parses a path from its end, since a repository's name may contain `manifests` or `blobs`.
    pub(super) fn of(path: &'a str) -> Option<Self> {
        if let Some(rest) = path.strip_prefix("/acr/v1/") {
            let (name, tag) = rest.rsplit_once("/_tags/")?;
            return Some(Self::Tag { name, tag });
        }
        let rest = path.strip_prefix("/v2")?;
        if matches!(rest, "" | "/") {
            return Some(Self::Ping);
        }
        let rest = rest.strip_prefix('/')?;
        if rest == "_catalog" {
            return Some(Self::Catalog);
        }
        if let Some(name) = rest.strip_suffix("/blobs/uploads") {
            return Some(Self::Upload { name, session: "" });
        }
        let (before, last) = rest.rsplit_once('/')?;
        let (name, kind) = before.rsplit_once('/')?;
        match kind {
            "manifests" => Some(Self::Manifest { name, reference: last }),
            "blobs" => Some(Self::Blob { name, digest: last }),
            "referrers" => Some(Self::Referrers { name, subject: last }),
            "tags" if last == "list" => Some(Self::Tags { name }),
            "uploads" => Some(Self::Upload { name: name.strip_suffix("/blobs")?, session: last }),
            _ => None,
        }
    }

    /// The scopes that a token needs for this request. A mount needs `pull` on its source too, as in distribution's
    /// `appendAccessRecords` (rust-oci-client#235).
    pub(super) fn needs(self, head: &Parts) -> Vec<Scope> {
        let name = match self {
            Self::Ping => return Vec::new(),
            Self::Catalog => return Scope::parse("registry:catalog:*").into_iter().collect(),
            Self::Manifest { name, .. } | Self::Blob { name, .. } | Self::Upload { name, .. } => name,
            Self::Tags { name } | Self::Referrers { name, .. } | Self::Tag { name, .. } => name,
        };
        let actions: &[&str] = match (self, &head.method) {
            (Self::Upload { .. }, _) | (_, &Method::PUT | &Method::POST | &Method::PATCH) => &["pull", "push"],
            (_, &Method::DELETE) => &["delete"],
            (Self::Tag { .. }, _) => &["metadata_read"],
            _ => &["pull"],
        };
        let mut needs = vec![Scope::repository(name, actions)];
        if head.method == Method::POST
            && let Some(from) = Form::of_query(head).first("from")
        {
            needs.push(Scope::repository(from, &["pull"]));
        }
        needs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_from_the_end() {
        let manifest = Route::Manifest { name: "a/manifests/b", reference: "latest" };
        assert_eq!(Route::of("/v2/a/manifests/b/manifests/latest"), Some(manifest));
        assert_eq!(Route::of("/v2/a/b/blobs/uploads/"), Some(Route::Upload { name: "a/b", session: "" }));
        assert_eq!(Route::of("/v2/a/b/blobs/uploads/7"), Some(Route::Upload { name: "a/b", session: "7" }));
        assert_eq!(Route::of("/v2/"), Some(Route::Ping));
        assert_eq!(Route::of("/acr/v1/a/b/_tags/1.0"), Some(Route::Tag { name: "a/b", tag: "1.0" }));
        assert_eq!(Route::of("/token"), None);
    }

    #[test]
    fn a_grant_narrows_what_is_asked() {
        let asked = Scope::asked(&Form::parse("scope=repository:me/x:pull,push+repository:other:pull"));
        let granted = narrow(&[Grant::new("me/*", "pull,push"), Grant::new("*", "pull")], &asked);
        assert!(covers(&granted, &asked));
        let granted = narrow(&[Grant::new("*", "pull")], &asked);
        assert!(!covers(&granted, &asked));
        assert_eq!(granted[0].text(), "repository:me/x:pull");
    }
}
