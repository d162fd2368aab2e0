//! Reads plain JSON text piece by piece, with half the instructions of a parser for all JSON. Keys
//! and ids with escapes aren't plain: the caller leaves such a text to serde_json.

use std::ops::Range;

use serde_json::value::RawValue;

/// How many bytes of a string are looked at at a time.
const CHUNK: usize = 16;

/// A number with at most this many digits fits into a `u64`.
const DIGITS_MAX: usize = 19;

/// A place in a JSON text, from which it is read on. Each method returns `None` if what comes next
/// isn't what it reads, or isn't plain.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    /// The beginning of a text.
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// The whole text.
    pub(crate) fn text(&self) -> &'a str {
        self.text
    }

    /// The text from the next byte on that is no white space.
    pub(crate) fn rest(&mut self) -> &'a str {
        self.text.get(self.offset()..).unwrap_or_default()
    }

    /// The offset of the next byte that is no white space.
    fn offset(&mut self) -> usize {
        let bytes = self.text.as_bytes();
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = bytes.get(self.at) {
            self.at += 1;
        }
        self.at
    }

    /// Reads an object. `field` is called after each key, and reads the value. Returns the text of
    /// the object.
    pub(crate) fn object(
        &mut self,
        mut field: impl FnMut(&mut Self, &'a str) -> Option<()>,
    ) -> Option<&'a str> {
        let start = self.offset();
        self.byte(b'{')?;
        if self.byte(b'}').is_none() {
            loop {
                let key = self.string()?;
                self.byte(b':')?;
                field(self, key)?;
                if self.byte(b',').is_none() {
                    break self.byte(b'}')?;
                }
            }
        }
        self.text.get(start..self.at)
    }

    /// Reads a list. `item` is called for each of its values, and reads it.
    pub(crate) fn list(&mut self, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.byte(b'[')?;
        if self.byte(b']').is_some() {
            return Some(());
        }
        loop {
            item(self)?;
            if self.byte(b',').is_none() {
                return self.byte(b']');
            }
        }
    }

    /// Reads a string without escapes. Returns its content.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let content = self.content()?;
        self.text.get(content)
    }

    /// Reads a string without escapes. Returns it with its quotes. If there is none, nothing is
    /// read.
    pub(crate) fn quoted(&mut self) -> Option<&'a str> {
        let content = self.content()?;
        self.text.get(content.start - 1..content.end + 1)
    }

    /// Reads a string without escapes. Returns where its content is. If there is none, nothing is
    /// read.
    fn content(&mut self) -> Option<Range<usize>> {
        let bytes = self.text.as_bytes();
        let start = self.offset();
        if bytes.get(start) != Some(&b'"') {
            return None;
        }
        let start = start + 1;
        let end = start + plain_bytes(bytes.get(start..)?);
        if bytes.get(end) != Some(&b'"') {
            return None;
        }
        self.at = end + 1;
        Some(start..end)
    }

    /// Reads a number that consists of digits alone, and has at most 19 of them.
    pub(crate) fn integer(&mut self) -> Option<u64> {
        let rest = self.text.as_bytes().get(self.offset()..)?;
        let (mut number, mut digits) = (0_u64, 0);
        while let Some(digit @ b'0'..=b'9') = rest.get(digits) {
            number = number
                .wrapping_mul(10)
                .wrapping_add(u64::from(digit - b'0'));
            digits += 1;
        }
        let is_whole = !matches!(rest.get(digits), Some(b'.' | b'e' | b'E'));
        let has_other_zeros = digits > 1 && rest.starts_with(b"0");
        if !(1..=DIGITS_MAX).contains(&digits) || !is_whole || has_other_zeros {
            return None;
        }
        self.at += digits;
        Some(number)
    }

    /// Reads a value of any kind. Returns its text, which need not be plain.
    pub(crate) fn value(&mut self) -> Option<&'a str> {
        if let Some(string) = self.quoted() {
            return Some(string);
        }
        let rest = self.text.get(self.offset()..)?;
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
        let value = values.next()?.ok()?.get();
        self.at += value.len();
        Some(value)
    }

    /// Reads the end of the text.
    pub(crate) fn end(&mut self) -> Option<()> {
        (self.offset() == self.text.len()).then_some(())
    }

    fn byte(&mut self, byte: u8) -> Option<()> {
        let at = self.offset();
        let is_next = self.text.as_bytes().get(at) == Some(&byte);
        is_next.then(|| self.at += 1)
    }
}

/// The number of bytes before the first quote, backslash or control character.
fn plain_bytes(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        match special(chunk) {
            None => at += chunk.len(),
            Some(place) => return at + place,
        }
    }
    let rest = bytes.get(at..).unwrap_or_default();
    let mut chunk = [b'"'; CHUNK];
    if let Some(room) = chunk.get_mut(..rest.len()) {
        room.copy_from_slice(rest);
    }
    at + special(&chunk).unwrap_or_default()
}

/// The place of the first quote, backslash or control character. Written in this way, it is
/// compiled to a few vector instructions.
fn special(chunk: &[u8; CHUNK]) -> Option<usize> {
    let found = u128::from_le_bytes(chunk.map(|byte| {
        if byte < 0x20 || byte == b'"' || byte == b'\\' {
            0xff
        } else {
            0
        }
    }));
    (found != 0).then(|| found.trailing_zeros() as usize / 8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_string_ends_where_its_content_does(
            bytes in prop::collection::vec(
                prop::sample::select(vec![0x00, 0x1f, 0x20, 0x21, b'"', b'#', b'[', b'\\', b']', 0x7f, 0x80, 0xa2, 0xdc, 0xff]),
                0..40,
            ),
        ) {
            let is_special = |byte: &u8| *byte < 0x20 || matches!(byte, b'"' | b'\\');
            let expected = bytes.iter().position(is_special).unwrap_or(bytes.len());
            prop_assert_eq!(plain_bytes(&bytes), expected);
        }
    }

    #[test]
    fn what_is_not_plain_is_not_read() {
        for text in ["", "\"", "\"a", "\"a\\n\"", "\"a\nb\"", "7"] {
            assert_eq!(Scanner::new(text).string(), None, "{text}");
        }
        for text in [
            "",
            "-1",
            "01",
            "1.0",
            "1e3",
            "1E3",
            "18446744073709551616",
            "\"1\"",
        ] {
            assert_eq!(Scanner::new(text).integer(), None, "{text}");
        }
        for text in [
            "",
            "{",
            "{\"a\"}",
            "{\"a\":1,}",
            "{\"a\":1 \"b\":2}",
            "{,}",
            "[]",
        ] {
            let mut json = Scanner::new(text);
            assert_eq!(
                json.object(|json, _| json.value().map(drop)),
                None,
                "{text}"
            );
        }
    }

    #[test]
    fn a_list_is_read_value_by_value() {
        for (text, expected) in [
            ("[]", Some(vec![])),
            (" [ \"a\" ,\"b\" ]", Some(vec!["a", "b"])),
            ("", None),
            ("[", None),
            ("[,]", None),
            ("[\"a\",]", None),
            ("[\"a\" \"b\"]", None),
            ("[7]", None),
            ("{}", None),
        ] {
            let mut read = Vec::new();
            let list = Scanner::new(text).list(|json| {
                read.push(json.string()?);
                Some(())
            });
            assert_eq!(list.map(|()| read), expected, "{text}");
        }
    }

    #[test]
    fn values_of_every_kind_are_read_as_they_stand() {
        let values = [
            "\"a b\"",
            "\"\\\"\\n\"",
            "7",
            "-1.5e3",
            "true",
            "null",
            "[1, {\"}\": []}]",
            "{ }",
            "0",
        ];
        let fields: Vec<_> = values
            .iter()
            .map(|value| format!("\"k\" : {value}\n"))
            .collect();
        let text = format!(" {{ {} }} ", fields.join(","));
        let (mut json, mut read) = (Scanner::new(&text), Vec::new());
        let field = |json: &mut Scanner<'_>, key: &str| {
            assert_eq!(key, "k");
            json.value().map(|value| read.push(value.to_owned()))
        };
        json.object(field).unwrap();
        assert_eq!(json.end(), Some(()));
        assert_eq!(read, values);
        assert_eq!(
            Scanner::new(" 1698000000000,").integer(),
            Some(1_698_000_000_000)
        );
    }
}
