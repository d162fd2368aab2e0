//! One entry of a directory: a key, which is a section and an id, and a JSON value, as in a
//! directory file. A KV bucket holds entries, and so does the stored copy of the directory.
//!
//! Each id has exactly one key: `contacts.12345`, or `contacts.=YW5uQGV4YW1wbGUuY29t` if it holds
//! anything but letters, digits, `_` and `-`.

use std::borrow::Cow;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use presence_core::directory::{Directory, Edit, Question};
use presence_core::message::{ID_BYTES_MAX, is_id};
use presence_core::names::Names;
use presence_core::token;

use super::content::SECTIONS;
use super::export::Export;
use super::reader;

/// A key: a section, and the id that the entry is about.
#[derive(Debug, PartialEq, Eq)]
pub struct Key<'a> {
    section: &'a str,
    about: String,
}

impl<'a> Key<'a> {
    /// Reads a key.
    ///
    /// # Errors
    /// Why the text is no key, and the right key if it can be guessed.
    pub fn parse(key: &'a str) -> Result<Self, String> {
        let Some((section, token)) = key.split_once('.') else {
            return Err("a key is a section, a dot, and an id".into());
        };
        if !SECTIONS.contains(&section) {
            let sections = SECTIONS.join(", ");
            return Err(format!("the section must be one of {sections}"));
        }
        if let Some(about) = token::decode(token).filter(|about| is_id(about)) {
            return Ok(Self { section, about });
        }
        let guessed = guess_id(token).filter(|about| is_id(about));
        Err(match guessed {
            Some(about) => format!(
                "an id has one key alone: write it as `{section}.{}`",
                token::encode(&about)
            ),
            None => format!(
                "behind the section stands an id of 1 to {ID_BYTES_MAX} bytes: as it is, if it \
                 is of letters, digits, `_` and `-`, or else as `=` and its base64url without \
                 padding"
            ),
        })
    }

    /// The question that the entry answers.
    pub fn question(&self, names: &Names) -> Question {
        match self.section {
            "contacts" => Question::Contacts(names.intern(&self.about)),
            "groups" => Question::Members(self.about.as_str().into()),
            "blocks" => Question::BlockedBy(names.intern(&self.about)),
            _ => Question::Settings(names.intern(&self.about)),
        }
    }

    /// Sets the entry to this value, or removes it if there is none.
    ///
    /// # Errors
    /// If the value can't be read; nothing is changed then.
    pub fn apply(
        &self,
        edit: &mut Edit,
        names: &Names,
        value: Option<&[u8]>,
    ) -> anyhow::Result<()> {
        let text = value.map(std::str::from_utf8).transpose();
        let text = text.context("the value is not UTF-8")?.map(without_bom);
        let ids = || text.map(|json| reader::ids(json, names)).transpose();
        match self.section {
            "contacts" => edit.contacts(names.intern(&self.about), ids()?),
            "groups" => edit.group(&self.about, ids()?),
            "blocks" => edit.blocked(names.intern(&self.about), ids()?),
            _ => {
                let settings = text.map(reader::settings).transpose()?;
                edit.settings(names.intern(&self.about), settings);
            }
        }
        Ok(())
    }
}

/// The text without a byte-order mark at its beginning, which some editors write.
pub fn without_bom(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// The key of the entry about an id in a section.
pub fn key(section: &str, about: &str) -> String {
    format!("{section}.{}", token::encode(about))
}

/// The key of the entry that answers a question. `None` if many entries do.
pub fn key_of(question: &Question, names: &Names) -> Option<String> {
    let (section, about): (_, Cow<'_, str>) = match question {
        Question::Members(group) => ("groups", (&**group).into()),
        Question::Contacts(id) => ("contacts", names.name(*id)?.as_str().to_owned().into()),
        Question::BlockedBy(id) => ("blocks", names.name(*id)?.as_str().to_owned().into()),
        Question::Settings(id) => ("settings", names.name(*id)?.as_str().to_owned().into()),
        _ => return None,
    };
    Some(key(section, &about))
}

/// The value of the entry that answers a question. `None` if there is no such entry.
pub fn value_of(directory: &Directory, question: &Question, names: &Names) -> Option<String> {
    let value = match question {
        Question::Settings(id) => serde_json::to_string(&Export::settings(directory, *id)?),
        _ => {
            if !directory.has_entry(question) {
                return None;
            }
            serde_json::to_string(&Export::list(directory, question, names))
        }
    };
    value.ok()
}

/// The id that was probably meant by a token that is wrong.
fn guess_id(token: &str) -> Option<String> {
    let Some(encoded) = token.strip_prefix('=') else {
        return Some(token.to_owned());
    };
    let encoded = encoded
        .trim_end_matches('=')
        .replace('+', "-")
        .replace('/', "_");
    String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_a_section_and_an_id() {
        let parsed = Key::parse("contacts.12345").unwrap();
        assert_eq!((parsed.section, &*parsed.about), ("contacts", "12345"));
        let parsed = Key::parse("groups.=YW5uQGV4YW1wbGUuY29t").unwrap();
        assert_eq!(
            (parsed.section, &*parsed.about),
            ("groups", "ann@example.com")
        );
        assert_eq!(key("contacts", "12345"), "contacts.12345");
        let ann = key("groups", "ann@example.com");
        assert_eq!(ann, "groups.=YW5uQGV4YW1wbGUuY29t");
    }

    #[test]
    fn any_other_key_is_refused_with_the_right_one() {
        for (key, right) in [
            ("contacts.=MTIzNDU", "`contacts.12345`"),
            (
                "blocks.=YW5uQGV4YW1wbGUuY29t==",
                "`blocks.=YW5uQGV4YW1wbGUuY29t`",
            ),
            ("blocks.=YW5uQA==", "`blocks.=YW5uQA`"),
            ("blocks.ann.b", "`blocks.=YW5uLmI`"),
            ("settings.a/b", "`settings.=YS9i`"),
            ("groups.=Pz8/", "`groups.=Pz8_`"),
        ] {
            let error = Key::parse(key).unwrap_err();
            assert!(error.contains(right), "{key}: {error}");
        }
        let long = format!("contacts.{}", "x".repeat(ID_BYTES_MAX + 1));
        for key in [
            "contacts",
            "friends.1",
            "contacts.",
            "blocks.=",
            "blocks.=!",
            "blocks.=_w",
            &long,
        ] {
            let error = Key::parse(key).unwrap_err();
            assert!(!error.contains("write it as"), "{key}: {error}");
        }
    }

    #[test]
    fn an_entry_is_written_as_it_is_read() {
        let names = Names::new();
        let entries = [
            ("contacts.a", r#"["b","c"]"#),
            ("blocks.a", r#"["d"]"#),
            ("groups.t", r#"["a"]"#),
            ("settings.a", r#"{"x":{"y":[1]}}"#),
            ("contacts.e", "[]"),
            ("settings.e", "{}"),
        ];
        let mut edit = Directory::new().edit();
        for (key, value) in entries {
            let key = Key::parse(key).unwrap();
            key.apply(&mut edit, &names, Some(value.as_bytes()))
                .unwrap();
        }
        let (directory, _) = edit.finish();
        for (key, value) in entries {
            let question = Key::parse(key).unwrap().question(&names);
            assert_eq!(key_of(&question, &names).as_deref(), Some(key));
            assert_eq!(
                value_of(&directory, &question, &names).as_deref(),
                Some(value)
            );
        }
        let nobody = Question::Contacts(names.intern("d"));
        assert_eq!(value_of(&directory, &nobody, &names), None);
        assert_eq!(key_of(&Question::Everyone, &names), None);
    }
}
