//! (placeholder)
use super::Secret;
use crate::error::Result;
/// Entra.
#[derive(Debug)]
pub struct Entra;
impl Entra {
    /// Token.
    pub async fn token(&self) -> Result<Secret> {
        Ok(Secret::new(""))
    }
}
