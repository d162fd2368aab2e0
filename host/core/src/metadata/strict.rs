//! The rules for metadata: strictly valid JSON, within limits.
//!
//! Metadata is broadcast as the text that came in, so every reader must be able to parse it. Half a
//! surrogate pair, a number too large for an `f64`, a duplicate key, or very deep nesting would be
//! read differently, or not at all, by some reader.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::json::Text;

/// A number without an exponent that has at most this many bytes fits into an `f64`.
const DIGITS_MAX: usize = 300;

/// The highest value that each of [`Limits`] may be set to.
pub const LIMITS_MAX: Limits = Limits {
    keys: 4_096,
    bytes: 1 << 20,
    depth: 64,
};

/// The limits of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The maximum number of keys of the object itself.
    pub keys: usize,
    /// The maximum length of its JSON text, in bytes.
    pub bytes: usize,
    /// The maximum depth of nested objects and arrays. The object itself is at depth 1.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            keys: 256,
            bytes: 16 * 1_024,
            depth: 16,
        }
    }
}

impl Limits {
    /// Checks the JSON text of one value in a metadata object.
    ///
    /// # Errors
    /// What is wrong with it, as a text to follow the key's name.
    pub fn check_value(self, text: &str) -> Result<(), String> {
        self.check_bytes(text.len())?;
        self.check_json(text)
    }

    /// As [`Self::check_value`], for a value that a lenient parser accepted as one value. Most are
    /// too simple to be checked again.
    pub(super) fn check_parsed_value(self, value: &str) -> Result<(), String> {
        let is_simple = match value.as_bytes() {
            [b't' | b'f' | b'n', ..] => true,
            [b'"', ..] => !value.contains('\\'),
            [b'-' | b'0'..=b'9', ..] => value.len() <= DIGITS_MAX && !value.contains(['e', 'E']),
            _ => false,
        };
        if is_simple {
            return Ok(());
        }
        self.check_json(value)
    }

    /// Checks the size of changed metadata.
    ///
    /// # Errors
    /// Which limit is exceeded.
    pub fn check_size(self, keys: usize, bytes: usize) -> Result<(), String> {
        self.check_bytes(bytes)?;
        self.check_keys(keys)
    }

    pub(super) fn check_bytes(self, bytes: usize) -> Result<(), String> {
        if bytes > self.bytes {
            let Self { bytes: max, .. } = self;
            return Err(format!("is {bytes} bytes long, and may be {max}"));
        }
        Ok(())
    }

    pub(super) fn check_keys(self, keys: usize) -> Result<(), String> {
        if keys > self.keys {
            return Err(format!("has more than {} keys", self.keys));
        }
        Ok(())
    }

    fn check_json(self, text: &str) -> Result<(), String> {
        let value = Value {
            limits: self,
            depth_left: self.depth.saturating_sub(1),
        };
        let mut json = serde_json::Deserializer::from_str(text);
        let read = value.deserialize(&mut json);
        let read = read.and_then(|()| json.end());
        read.map_err(|error| describe(&error))
    }
}

/// The error in a text, without line and column: these would refer to the value, not to the
/// message.
pub(super) fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(&place).unwrap_or(&text);
    match text {
        text if error.is_data() => text.to_owned(),
        // serde_json gives this error where the second half of a surrogate pair should begin.
        "unexpected end of hex escape" => {
            "is not strictly valid JSON: half a surrogate pair in an escape".into()
        }
        text => format!("is not strictly valid JSON: {text}"),
    }
}

/// Parses a value of any kind, and drops it.
#[derive(Clone, Copy)]
struct Value {
    limits: Limits,
    /// How many more levels of objects and arrays may be nested.
    depth_left: usize,
}

impl Value {
    fn inner<E: Error>(self) -> Result<Self, E> {
        let Some(depth_left) = self.depth_left.checked_sub(1) else {
            let depth = self.limits.depth;
            return Err(E::custom(format!("is nested more than {depth} deep")));
        };
        Ok(Self { depth_left, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Value {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while items.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        let mut keys = Keys::default();
        while let Some(Text(key)) = map.next_key()? {
            keys.insert(key).map_err(A::Error::custom)?;
            map.next_value_seed(inner)?;
        }
        Ok(())
    }
}

/// The keys of an object so far. A few are kept inline and compared one by one; the rest are in a
/// sorted set.
#[derive(Default)]
pub(super) struct Keys<'a> {
    inline: [Option<Cow<'a, str>>; 8],
    overflow: BTreeSet<Cow<'a, str>>,
    count: usize,
}

impl<'a> Keys<'a> {
    /// Adds a key.
    ///
    /// # Errors
    /// If the key is there already.
    pub(super) fn insert(&mut self, key: Cow<'a, str>) -> Result<(), String> {
        if self.inline.iter().flatten().any(|one| *one == key) || self.overflow.contains(&key) {
            return Err(format!("has the key {key:?} twice"));
        }
        match self.inline.get_mut(self.count) {
            Some(free) => *free = Some(key),
            None => drop(self.overflow.insert(key)),
        }
        self.count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), String> {
        check_within(Limits::default(), text)
    }

    fn check_within(limits: Limits, text: &str) -> Result<(), String> {
        limits.read(text).map(drop)
    }

    #[test]
    fn valid_metadata_is_taken_whatever_it_holds() {
        for text in [
            "{}",
            " {\"a\" : [1, -2.5e300, true, null, {\"b\": \"\\ud83d\\ude00 \\u0000\"}]}",
            r#"{"n": 123456789012345678901234567890, "z": 1e-999, "": ""}"#,
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_another_reader_would_stumble_over_is_refused_with_its_name() {
        for (text, word) in [
            (r#"{"a": "\ud800"}"#, "surrogate"),
            (r#"{"a": "\udc00x"}"#, "surrogate"),
            (r#"{"\ud800": 1}"#, "surrogate"),
            (r#"{"a": 1e999}"#, "number out of range"),
            (r#"{"a": [-1e999]}"#, "number out of range"),
            (r#"{"a": 01}"#, "number"),
            (r#"{"a": NaN}"#, "not strictly valid"),
            (r#"{"a": 1,}"#, "not strictly valid"),
            (r#"{"a": 1, "b": 2, "a": 3}"#, "\"a\" twice"),
            (r#"{"a": 1, "\u0061": 3}"#, "\"a\" twice"),
            (r#"{"x": [{"a": 1, "a": 3}]}"#, "\"a\" twice"),
            ("[]", "object"),
            ("7", "object"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
            assert!(!error.contains("line"), "{text}: {error}");
        }
    }

    #[test]
    fn limits_are_reached_and_not_passed() {
        let nested = |depth: usize| {
            let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
            format!("{{\"a\":{open}{close}}}")
        };
        assert_eq!(check(&nested(16)), Ok(()));
        assert!(check(&nested(17)).unwrap_err().contains("16 deep"));
        assert!(check(&nested(8_000)).unwrap_err().contains("16 deep"));
        let keys = |count: usize| {
            let keys: Vec<_> = (0..count).map(|key| format!("\"k{key}\":0")).collect();
            format!("{{{}}}", keys.join(","))
        };
        assert_eq!(check(&keys(256)), Ok(()));
        assert!(check(&keys(257)).unwrap_err().contains("256 keys"));
        let long = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
        assert_eq!(check(&long(16_384)), Ok(()));
        assert!(check(&long(16_385)).unwrap_err().contains("16385 bytes"));
    }

    #[test]
    fn the_highest_limits_are_read_without_overflowing_the_stack() {
        let nested = |depth: usize| {
            let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
            format!("{{\"a\":{open}{close}}}")
        };
        assert_eq!(check_within(LIMITS_MAX, &nested(LIMITS_MAX.depth)), Ok(()));
        let error = check_within(LIMITS_MAX, &nested(1 << 18)).unwrap_err();
        assert!(error.contains("64 deep"), "{error}");
    }

    #[test]
    fn a_value_is_one_level_down() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let limits = Limits::default();
        assert_eq!(limits.check_value(&nested(15)), Ok(()));
        assert!(limits.check_value(&nested(16)).is_err());
        assert!(limits.check_value("1e999").is_err());
        assert!(limits.check_value("1 2").is_err());
    }
}
