//! Tokens: how a user's or a group's id is written in a NATS subject and in the key of a KV bucket.
//! Each id has exactly one token, and no two ids have the same, so that a permission for a subject
//! is a permission for an id.
//!
//! An id of letters, digits, `_` and `-` is its own token. The token of any other id is `=` and the
//! id's base64url without padding: `ann@example.com` is `=YW5uQGV4YW1wbGUuY29t`.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The token of an id.
pub fn encode(id: &str) -> String {
    encoded(id).into_owned()
}

/// As [`encode`], without copying an id that is its own token.
pub fn encoded(id: &str) -> Cow<'_, str> {
    match is_plain(id) {
        true => id.into(),
        false => format!("={}", URL_SAFE_NO_PAD.encode(id)).into(),
    }
}

/// The id of a token. `None` if it is no token.
pub fn decode(token: &str) -> Option<String> {
    let Some(encoded) = token.strip_prefix('=') else {
        return is_plain(token).then(|| token.to_owned());
    };
    let id = String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()?;
    (!id.is_empty() && !is_plain(&id)).then_some(id)
}

/// Whether an id is its own token.
fn is_plain(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    !id.is_empty() && id.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn readable_ids_stand_as_they_are() {
        assert_eq!(encode("team-a_7"), "team-a_7");
        assert_eq!(encode("ann@example.com"), "=YW5uQGV4YW1wbGUuY29t");
        assert_eq!(
            decode("=YW5uQGV4YW1wbGUuY29t").as_deref(),
            Some("ann@example.com")
        );
    }

    #[test]
    fn an_id_has_one_token_alone() {
        for token in [
            "",
            "=",
            "a.b",
            "a b",
            "=!",
            "=_w",
            "=YQ",
            "=YW5uQA==",
            "=YB",
        ] {
            assert_eq!(decode(token), None, "{token}");
        }
    }

    proptest! {
        #[test]
        fn every_id_comes_back_from_a_token_that_fits_a_subject(id in ".{1,40}") {
            let token = encode(&id);
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"=_-".contains(&byte);
            prop_assert!(token.bytes().all(fits));
            prop_assert_eq!(decode(&token), Some(id));
        }
    }
}
