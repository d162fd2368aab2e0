//! JSON text without a parser's types: writing bodies of a few known fields around bytes that are
//! already JSON, and comparing texts by their content.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytestring::ByteString;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

mod scanner;

pub(crate) use scanner::Scanner;

/// The content of a JSON string, borrowed from the JSON text if it has no escapes.
#[derive(Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// Deserializes a field that is present. A `null` is passed to the type.
///
/// # Errors
/// If the value can't be deserialized.
pub fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    input: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(input).map(Some)
}

/// The part as a text of its own. A borrowed part must be a part of `text`, and shares its memory.
pub(crate) fn shared(part: Cow<'_, str>, text: &ByteString) -> ByteString {
    match part {
        Cow::Borrowed(part) => text.slice_ref(part),
        Cow::Owned(part) => part.into(),
    }
}

/// A text as a JSON string.
pub fn quoted(text: &str) -> String {
    let mut json = Vec::with_capacity(text.len() + 3);
    push_quoted(&mut json, text);
    String::from_utf8(json).unwrap_or_default()
}

/// The content of a JSON string. `None` if the value isn't a string.
pub(crate) fn text(json: &str) -> Option<Cow<'_, str>> {
    let within = json.strip_prefix('"')?.strip_suffix('"')?;
    match within.contains('\\') {
        false => Some(Cow::Borrowed(within)),
        true => serde_json::from_str(json).ok().map(Cow::Owned),
    }
}

/// Appends a text as a JSON string.
pub fn push_quoted(json: &mut Vec<u8>, text: &str) {
    // Writing a string to a vector can't fail.
    let _ = serde_json::to_writer(json, text);
}

/// Appends a number.
pub fn push_number(json: &mut Vec<u8>, number: u64) {
    let _ = serde_json::to_writer(json, &number);
}

/// Whether two JSON texts have the same content. The order of keys makes no difference.
pub fn is_same(a: &str, b: &str) -> bool {
    let value = |text| serde_json::from_str::<Value>(text).ok();
    a == b || value(a).is_some_and(|a| value(b) == Some(a))
}

/// Adds the content of a JSON text to a hash. Texts that differ only in the order of keys or in
/// white space have the same hash.
pub fn hash(text: &str, hasher: &mut impl Hasher) {
    // The text is only parsed if the order of keys or white space can make a difference.
    let holds_keys = text.starts_with(['{', '[']);
    let value = holds_keys.then(|| serde_json::from_str::<Value>(text).ok());
    match value.flatten() {
        Some(value) => hash_value(&value, hasher),
        None => hasher.write(text.as_bytes()),
    }
}

fn hash_value(value: &Value, hasher: &mut impl Hasher) {
    match value {
        Value::Object(entries) => {
            let sum = entries.iter().fold(0_u64, |sum, (key, value)| {
                let mut entry = DefaultHasher::new();
                key.hash(&mut entry);
                hash_value(value, &mut entry);
                sum.wrapping_add(entry.finish())
            });
            (b'{', entries.len(), sum).hash(hasher);
        }
        Value::Array(values) => {
            (b'[', values.len()).hash(hasher);
            values.iter().for_each(|value| hash_value(value, hasher));
        }
        simple => simple.to_string().hash(hasher),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashed(text: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        hash(text, &mut hasher);
        hasher.finish()
    }

    #[test]
    fn texts_that_differ_in_the_order_of_keys_alone_are_the_same() {
        for (a, b, same) in [
            (
                r#"{"a":1,"b":[2,{"c":3,"d":4}]}"#,
                r#"{ "b": [2, {"d":4,"c":3}], "a":1 }"#,
                true,
            ),
            (r#"{"a":1}"#, r#"{"a":1,"b":1}"#, false),
            (r#"{"a":{"b":1}}"#, r#"{"b":{"a":1}}"#, false),
            ("[1,2]", "[2,1]", false),
            ("[[1],2]", "[[1,2]]", false),
            (r#""a""#, r#""a""#, true),
            (r#""1""#, "1", false),
        ] {
            assert_eq!(is_same(a, b), same, "{a} {b}");
            assert_eq!(hashed(a) == hashed(b), same, "{a} {b}");
        }
    }
}
