//! The digest of a plugin's bytes, as it is written: `sha256:` and 64 hexadecimal digits.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// How a digest begins.
const ALGORITHM: &str = "sha256:";

/// How many hexadecimal digits a SHA-256 has.
const DIGITS: usize = 64;

/// The SHA-256 of a plugin's bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(Arc<str>);

/// A text that is no digest.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no digest: write `sha256:` and 64 hexadecimal digits")]
pub struct InvalidDigest(String);

impl Digest {
    /// Reads a digest as it is written.
    ///
    /// # Errors
    /// If the text is no digest.
    pub fn parse(text: &str) -> Result<Self, InvalidDigest> {
        let digits = text.strip_prefix(ALGORITHM).unwrap_or_default();
        if !are_digits(digits) || digits.len() != DIGITS {
            return Err(InvalidDigest(text.into()));
        }
        Ok(Self(digits.into()))
    }

    /// A digest from its hexadecimal digits alone, as the sandbox has them.
    ///
    /// # Errors
    /// If they aren't the digits of a SHA-256.
    pub fn of_hex(digits: &str) -> Result<Self, InvalidDigest> {
        Self::parse(&format!("{ALGORITHM}{digits}"))
    }

    /// The hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// The beginning of the digest, for tables and the log.
    pub fn short(&self) -> String {
        let digits = self.0.get(..12).unwrap_or_default();
        format!("{ALGORITHM}{digits}")
    }

    /// Whether it begins with this text, which may lack `sha256:`, and must have at least four
    /// digits.
    pub fn starts_with(&self, text: &str) -> bool {
        let digits = text.strip_prefix(ALGORITHM).unwrap_or(text);
        digits.len() >= 4 && self.0.starts_with(digits)
    }
}

fn are_digits(text: &str) -> bool {
    let is_digit = |character: char| matches!(character, '0'..='9' | 'a'..='f');
    text.chars().all(is_digit)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ALGORITHM}{}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_has_one_spelling() {
        let digits = "0123456789abcdef".repeat(4);
        let digest = Digest::parse(&format!("sha256:{digits}")).unwrap();
        assert_eq!(digest, Digest::of_hex(&digits).unwrap());
        assert_eq!(digest.to_string(), format!("sha256:{digits}"));
        assert_eq!(digest.short(), "sha256:0123456789ab");
        for text in [
            "",
            "sha256:",
            &digits,
            &format!("sha512:{digits}"),
            &format!("sha256:{}", digits.to_uppercase()),
            &format!("sha256:{digits}0"),
            &format!("sha256:{}", "é".repeat(32)),
        ] {
            assert!(Digest::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_beginning_of_four_digits_or_more_can_stand_for_it() {
        let digest = Digest::of_hex(&"0123456789abcdef".repeat(4)).unwrap();
        for (text, is) in [
            ("sha256:0123", true),
            ("01234", true),
            ("012", false),
            ("1234", false),
            ("", false),
        ] {
            assert_eq!(digest.starts_with(text), is, "{text}");
        }
    }
}
