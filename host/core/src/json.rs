//! JSON text without a parser's types: writing bodies of a few known fields around bytes that are
//! already JSON, and comparing texts by their content.

use std::borrow::Cow;

use bytestring::ByteString;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use twox_hash::XxHash3_64;

use crate::digest::mix;

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

/// A digest of a key and a value, which is JSON text. Values that differ only in the order of keys
/// or in white space have the same digest. It is stored, and compared between nodes: it is the same
/// on every machine, and in every version.
pub(crate) fn entry_digest(key: &str, value: &str) -> u64 {
    pair_digest(XxHash3_64::oneshot(key.as_bytes()), text_digest(value))
}

fn text_digest(text: &str) -> u64 {
    // The text is only parsed if the order of keys or white space can make a difference.
    let holds_keys = text.starts_with(['{', '[']);
    let value = holds_keys.then(|| serde_json::from_str::<Value>(text).ok());
    match value.flatten() {
        Some(value) => value_digest(&value),
        None => XxHash3_64::oneshot(text.as_bytes()),
    }
}

fn value_digest(value: &Value) -> u64 {
    match value {
        Value::Object(entries) => {
            let sum = entries.iter().fold(0_u64, |sum, (key, value)| {
                let key = XxHash3_64::oneshot(key.as_bytes());
                sum.wrapping_add(pair_digest(key, value_digest(value)))
            });
            pair_digest(u64::from(b'{'), sum)
        }
        Value::Array(values) => {
            let values = values.iter().map(value_digest);
            pair_digest(u64::from(b'['), values.fold(0, pair_digest))
        }
        simple => XxHash3_64::oneshot(simple.to_string().as_bytes()),
    }
}

fn pair_digest(one: u64, other: u64) -> u64 {
    mix(mix(one).wrapping_add(other))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let [digest_a, digest_b] = [a, b].map(|value| entry_digest("k", value));
            assert_eq!(digest_a == digest_b, same, "{a} {b}");
        }
    }

    #[test]
    fn a_digest_never_changes() {
        for (key, value, digest) in [
            ("device", r#""web""#, 0x0886_4367_cf9e_8ae1),
            ("device", r#""tv""#, 0xedcd_7063_7e05_8ba4),
            ("web", r#""device""#, 0xf91d_a602_f21f_3345),
            ("", "", 0x1149_38e9_78a9_4320),
            ("list", r#"[1,{"b":2,"a":null}]"#, 0x9eb2_923d_a7f7_24af),
        ] {
            assert_eq!(entry_digest(key, value), digest, "{key} {value}");
        }
    }
}
