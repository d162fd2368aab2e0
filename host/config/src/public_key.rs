//! A public key that plugins are signed with, as it is written: `ed25519:` and its 32 bytes in
//! base64.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// How a key begins.
const ALGORITHM: &str = "ed25519:";

/// How many bytes a key has.
const BYTES: usize = 32;

/// A public key of Ed25519.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; BYTES]);

/// A text that is no key.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is no public key: write `ed25519:` and 44 characters, as `presence plugin keygen` prints them"
)]
pub struct InvalidKey(String);

impl PublicKey {
    /// Reads a key as it is written.
    ///
    /// # Errors
    /// If the text is no key.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let encoded = text.trim().strip_prefix(ALGORITHM).unwrap_or_default();
        let bytes = STANDARD.decode(encoded).ok();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        // A text that is no public key is most likely the private key: it must not be repeated.
        let shown = || text.chars().take(ALGORITHM.len()).collect();
        bytes.map(Self).ok_or_else(|| InvalidKey(shown()))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ALGORITHM}{}", STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_written_and_what_is_none_is_not_repeated() {
        let key = PublicKey([7; BYTES]);
        assert_eq!(PublicKey::parse(&key.to_string()).unwrap(), key);
        for text in [
            "",
            "ed25519:",
            "ed25519:AAAA",
            "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
            "-----BEGIN PRIVATE KEY-----secret",
        ] {
            let error = PublicKey::parse(text).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
