//! Compares JSON names as Go's encoding/json does.

/// The form of a name that Go compares.
///
/// Go folds letters by Unicode's simple case folding, in which two characters outside ASCII equal ASCII letters:
/// U+017F (long s) and U+212A (the Kelvin sign).
/// <https://cs.opensource.google/go/go/+/master:src/encoding/json/fold.go>
pub(crate) fn fold(name: &str) -> String {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    name.chars().map(fold).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fold_as_in_go() {
        for name in ["credsstore", "credsStore", "CREDSSTORE", "cred\u{17f}Store"] {
            assert_eq!(fold(name), "credsstore", "{name}");
        }
        assert_eq!(fold("identityto\u{212a}en"), "identitytoken");
        // Letters that only look or sound alike, and other characters, are different.
        for name in ["creds_store", "credsSt\u{f6}re", "creds\u{df}tore", " credsstore"] {
            assert_ne!(fold(name), "credsstore", "{name}");
        }
    }
}
