//! Checks of the values of keys, beyond their type.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::problem::InvalidValue;

/// The longest name of a node, tenant, plugin or bucket, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 64;

/// The shortest word that is taken for the seed of an nkey, in bytes. A seed has 58.
const SEED_BYTES_MIN: usize = 56;

/// A number within limits.
pub(super) fn within<N>(range: RangeInclusive<N>) -> impl Fn(N) -> Result<N, InvalidValue>
where
    N: PartialOrd + Display + Copy,
{
    move |number| {
        if range.contains(&number) {
            return Ok(number);
        }
        let fix = format!("choose a number from {} to {}", range.start(), range.end());
        Err(InvalidValue::new(format!("is {number}"), fix))
    }
}

/// Accepts any value of the type.
pub(super) fn any<T>(value: T) -> Result<T, InvalidValue> {
    Ok(value)
}

/// A string that isn't empty.
pub(super) fn filled(text: String) -> Result<String, InvalidValue> {
    if text.is_empty() {
        return Err(InvalidValue::new(
            "is empty",
            "give it a value, or leave it out",
        ));
    }
    Ok(text)
}

/// The name of a file. A text that looks like a secret, which belongs into the file, is refused,
/// and the error doesn't repeat it.
pub(super) fn file_name(text: String) -> Result<String, InvalidValue> {
    let is_seed = |word: &str| {
        let of_seed = |it: char| it.is_ascii_uppercase() || ('2'..='7').contains(&it);
        word.len() >= SEED_BYTES_MIN && word.starts_with('S') && word.chars().all(of_seed)
    };
    if text.contains("-----BEGIN") || text.split(|it: char| !it.is_alphanumeric()).any(is_seed) {
        return Err(InvalidValue::new(
            "holds a key or a seed, where the name of a file belongs",
            "write what it holds into a file that only this user can read, and the file's name here",
        ));
    }
    filled(text)
}

/// A name that can stand in a subject, a file name and a header.
pub(super) fn token(text: String) -> Result<String, InvalidValue> {
    match name(&text) {
        Ok(()) => Ok(text),
        Err(fix) => Err(InvalidValue::new(format!("is `{text}`"), fix)),
    }
}

/// Whether a text is a name that can stand in a subject, a file name and a header.
///
/// # Errors
/// What to write instead.
pub fn name(text: &str) -> Result<(), String> {
    if (1..=NAME_BYTES_MAX).contains(&text.len()) && text.chars().all(in_token) {
        return Ok(());
    }
    Err(format!(
        "use 1 to {NAME_BYTES_MAX} of the letters A-Z and a-z, digits, `_` and `-`"
    ))
}

/// Whether a character may stand in a [`token`].
pub(super) fn in_token(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '-')
}
