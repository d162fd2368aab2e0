//! Reads plain JSON text piece by piece, with half the instructions of a parser for all JSON. Keys
//! and ids with escapes aren't plain: the caller leaves such a text to serde_json.

use serde_json::value::RawValue;

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

    /// Reads a string without escapes. Returns its content.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let quoted = self.quoted()?;
        quoted.get(1..quoted.len() - 1)
    }

    /// Reads a string without escapes. Returns it with its quotes. If there is none, nothing is
    /// read.
    pub(crate) fn quoted(&mut self) -> Option<&'a str> {
        let rest = self.text.get(self.offset()..)?;
        let within = rest.as_bytes().strip_prefix(b"\"")?;
        let length = plain_bytes(within);
        if within.get(length) != Some(&b'"') {
            return None;
        }
        self.at += length + 2;
        rest.get(..length + 2)
    }

    /// Reads a number that consists of digits alone.
    pub(crate) fn integer(&mut self) -> Option<u64> {
        let rest = self.text.as_bytes().get(self.offset()..)?;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = rest.get(..digits)?;
        let is_whole = !matches!(rest.get(digits), Some(b'.' | b'e' | b'E'));
        let has_other_zeros = number.len() > 1 && number.starts_with(b"0");
        if number.is_empty() || !is_whole || has_other_zeros {
            return None;
        }
        self.at += digits;
        number.iter().try_fold(0_u64, |sum, digit| {
            sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        })
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
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    // The highest bit of the first byte that is zero is set. Higher bytes may be set wrongly.
    let zero = |word: u64| word.wrapping_sub(EACH) & !word & (EACH << 7);
    let mut at = 0;
    while let Some(eight) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let word = u64::from_le_bytes(*eight);
        let control = word.wrapping_sub(EACH * 0x20) & !word & (EACH << 7);
        let found = control
            | zero(word ^ (EACH * u64::from(b'"')))
            | zero(word ^ (EACH * u64::from(b'\\')));
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    let is_special = |byte: &u8| *byte < 0x20 || matches!(byte, b'"' | b'\\');
    at + rest.iter().position(is_special).unwrap_or(rest.len())
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
