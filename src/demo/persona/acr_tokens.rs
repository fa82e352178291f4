//! Tokens of the look-alike of Azure Container Registry: issuing and checking.

use http::StatusCode;
use http::request::Parts;
use serde_json::{Value, json};

use super::access::{self, Grant, Route, Scope};
use super::wire::{self, Credential, Form};
use super::{Acr, Answer};

/// The user name if the Basic password is a refresh or access token.
const TOKEN_USER: &str = "00000000-0000-0000-0000-000000000000";

/// The authenticated sender of a request.
enum Holder {
    /// An account, with its rights.
    Account(Vec<Grant>),
    /// An access token, with its scopes.
    Token(Vec<Scope>),
}

impl Acr {
    /// Exchanges an Entra ID token for a refresh token. The token is in the body because it may be long.
    pub(super) fn exchange(&self, form: &Form) -> Result<Answer, Answer> {
        if form.first("grant_type") != Some("access_token") || form.first("service") != Some(&self.service) {
            return Err(wire::errors(StatusCode::BAD_REQUEST, "BAD_REQUEST", "grant_type or service is wrong"));
        }
        let token = form.first("access_token").unwrap_or_default();
        let owner = self.entra.owner(token).ok_or_else(|| self.unauthorized(&[], None))?;
        let claims = json!({"sub": owner, "aud": self.service, "grant_type": "refresh_token"});
        let refresh = self.mint.seal(claims, self.config.refresh_seconds);
        Ok(wire::json(StatusCode::OK, &json!({"refresh_token": refresh})))
    }

    pub(super) fn post_token(&self, form: &Form) -> Result<Answer, Answer> {
        let field = |name| form.first(name).unwrap_or_default();
        let holder = match form.first("grant_type") {
            Some("refresh_token") => self.token_holder(field("refresh_token")),
            Some("password") => self.account(field("username"), field("password")),
            _ => {
                return Err(wire::errors(StatusCode::BAD_REQUEST, "BAD_REQUEST", "grant_type is wrong"));
            }
        };
        self.access_token(form, holder)
    }

    pub(super) fn basic_token(&self, head: &Parts) -> Result<Answer, Answer> {
        let holder = match wire::credential(head) {
            Credential::Basic { user, password } => self.account(&user, &password),
            Credential::None if self.config.anonymous_pull => Some(Holder::Account(vec![Grant::new("*", "pull")])),
            _ => None,
        };
        self.access_token(&Form::of_query(head), holder)
    }

    /// An access token. The answer has no `expires_in`: a client must read the token's `exp`.
    fn access_token(&self, form: &Form, holder: Option<Holder>) -> Result<Answer, Answer> {
        let Some(Holder::Account(grants)) = holder else {
            return Err(self.unauthorized(&[], None));
        };
        if form.first("service") != Some(&self.service) {
            return Err(wire::errors(StatusCode::BAD_REQUEST, "BAD_REQUEST", "service is wrong"));
        }
        let asked = Scope::asked(form);
        if self.config.abac && asked.iter().any(|scope| scope.name.contains('*')) {
            return Err(self.unauthorized(&[], None));
        }
        let access = access::to_claim(&access::narrow(&grants, &asked));
        let claims = json!({"aud": self.service, "grant_type": "access_token", "access": access});
        let token = self.mint.seal(claims, self.config.access_seconds);
        Ok(wire::json(StatusCode::OK, &json!({"access_token": token})))
    }

    pub(super) fn authorize(&self, head: &Parts, route: Route<'_>) -> Result<(), Answer> {
        let needs = route.needs(head);
        let holder = match wire::credential(head) {
            Credential::Bearer(token) => self.token_holder(&token).filter(|held| matches!(held, Holder::Token(_))),
            Credential::Basic { user, password } => self.account(&user, &password),
            _ => return Err(self.unauthorized(&needs, None)),
        };
        match holder {
            None => Err(self.unauthorized(&needs, Some("invalid_token"))),
            Some(Holder::Token(scopes)) if !access::covers(&scopes, &needs) => {
                Err(self.unauthorized(&needs, Some("insufficient_scope")))
            }
            Some(Holder::Account(grants)) if !access::covers(&access::narrow(&grants, &needs), &needs) => {
                let text = "requested access to the resource is denied";
                Err(wire::errors(StatusCode::FORBIDDEN, "DENIED", text))
            }
            Some(_) => Ok(()),
        }
    }

    fn account(&self, user: &str, password: &str) -> Option<Holder> {
        if user == TOKEN_USER {
            return self.token_holder(password);
        }
        let mut accounts = self.config.accounts.iter();
        let account = accounts.find(|account| account.user == user && account.password == password);
        account.map(|account| Holder::Account(account.grants.clone()))
    }

    fn token_holder(&self, token: &str) -> Option<Holder> {
        let claims: Value = self.mint.open(token)?;
        Some(match claims["grant_type"].as_str()? {
            "refresh_token" => Holder::Account(self.config.identity.clone()),
            _ => Holder::Token(access::from_claim(&claims["access"])),
        })
    }

    fn unauthorized(&self, needs: &[Scope], error: Option<&str>) -> Answer {
        let text = "authentication required, visit https://aka.ms/acr/authorization for more information.";
        let mut answer = wire::errors(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", text);
        let realm = format!("{}/oauth2/token", self.config.url);
        let value = access::challenge(&realm, &self.service, needs, error);
        wire::set(answer.headers_mut(), "www-authenticate", &value);
        answer
    }
}
