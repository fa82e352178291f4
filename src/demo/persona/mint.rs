//! Tokens and signatures of the look-alikes, and the clock that lets them expire.
//!
//! The tokens have the form of a JWT, since clients read `exp` of ACR's tokens (docs/protocol.md, section 2). The
//! signature is a plain keyed hash, which detects forged tokens in tests, and is no security boundary.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Issues and checks tokens. The parts of a persona share it.
#[derive(Debug)]
pub struct Mint {
    key: u64,
    ahead: AtomicU64,
    generation: AtomicU64,
    issued: AtomicU64,
}

impl Mint {
    /// A mint with its own key, which accepts no tokens of others.
    #[must_use]
    pub fn new() -> Self {
        Self {
            key: RandomState::new().hash_one("transload"),
            ahead: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            issued: AtomicU64::new(0),
        }
    }

    /// Seconds since 1970, by this persona's clock.
    #[must_use]
    pub fn now(&self) -> u64 {
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        real.as_secs() + self.ahead.load(Ordering::Relaxed)
    }

    /// Advances this persona's clock, so that tokens and links expire without a wait.
    pub fn advance(&self, by: Duration) {
        self.ahead.fetch_add(by.as_secs(), Ordering::Relaxed);
    }

    /// Makes every token issued so far invalid.
    pub fn revoke(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// How many tokens were issued.
    #[must_use]
    pub fn issued(&self) -> u64 {
        self.issued.load(Ordering::Relaxed)
    }

    /// A token with these claims, valid for this many seconds.
    pub(super) fn seal(&self, mut claims: Value, seconds: u64) -> String {
        let now = self.now();
        claims["iat"] = json!(now);
        claims["nbf"] = json!(now);
        claims["exp"] = json!(now + seconds);
        claims["jti"] = json!(format!("{:x}", self.issued.fetch_add(1, Ordering::Relaxed)));
        claims["generation"] = json!(self.generation.load(Ordering::Relaxed));
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self.sign(&signed);
        format!("{signed}.{signature}")
    }

    /// The claims of a valid token.
    pub(super) fn open(&self, token: &str) -> Option<Value> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (_, payload) = signed.split_once('.')?;
        if self.sign(signed) != signature {
            return None;
        }
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let living = claims["exp"].as_u64()? > self.now();
        let current = claims["generation"] == json!(self.generation.load(Ordering::Relaxed));
        (living && current).then_some(claims)
    }

    /// A user's id, in the form of a UUID.
    pub(super) fn id(&self, user: &str) -> String {
        let hash = Sha256::digest(user.as_bytes());
        let hex: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    }

    pub(super) fn sign(&self, text: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(self.key.to_le_bytes());
        hash.update(text.as_bytes());
        hash.update(self.key.to_le_bytes());
        URL_SAFE_NO_PAD.encode(hash.finalize())
    }
}

impl Default for Mint {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_passes_until_it_expires() {
        let mint = Mint::new();
        let token = mint.seal(json!({"sub": "me"}), 60);
        assert_eq!(mint.open(&token).expect("living")["sub"], "me");
        mint.advance(Duration::from_secs(61));
        assert!(mint.open(&token).is_none());
    }

    #[test]
    fn forged_foreign_and_revoked_tokens_do_not_pass() {
        let mint = Mint::new();
        let token = mint.seal(json!({}), 60);
        assert!(mint.open(&format!("{token}x")).is_none());
        assert!(Mint::new().open(&token).is_none());
        mint.revoke();
        assert!(mint.open(&token).is_none());
    }
}
