//! (placeholder until the real one lands)
use crate::error::Result;
use crate::reference::Repository;

/// A secret.
#[derive(Clone)]
pub struct Secret(String);
impl Secret {
    /// Wraps.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    /// Shows.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
/// A credential.
#[derive(Clone, Debug)]
pub enum Credential {
    /// basic
    Basic {
        /// user
        username: String,
        /// password
        password: Secret,
    },
    /// refresh
    RefreshToken(Secret),
    /// bearer
    Bearer(Secret),
}
/// Sources.
#[derive(Clone, Default)]
pub struct Credentials;
impl Credentials {
    /// None.
    pub fn anonymous() -> Self {
        Self
    }
    /// Finds.
    pub async fn find(&self, _: &Repository) -> Result<Option<Credential>> {
        Ok(None)
    }
}
/// Entra.
#[derive(Debug)]
pub struct Entra;
impl Entra {
    /// Token.
    pub async fn token(&self) -> Result<Secret> {
        Ok(Secret::new(""))
    }
}
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}
