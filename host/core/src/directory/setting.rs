//! Users' settings as the directory keeps them: each value as canonical JSON text, so that
//! formatting by a source or a rule makes no difference.

use std::collections::BTreeMap;

use serde_json::Value;

/// A user's settings: JSON text by key.
pub type UserSettings = BTreeMap<Box<str>, Box<str>>;

/// A key, and one of the values that users can have for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Setting {
    pub(super) key: Box<str>,
    pub(super) value: Box<str>,
}

impl Setting {
    /// A setting. `value`: JSON text.
    ///
    /// # Errors
    /// If the value isn't JSON.
    pub fn new(key: &str, value: &str) -> serde_json::Result<Self> {
        Ok(Self {
            key: key.into(),
            value: canonical(value)?,
        })
    }

    /// The key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The value, as canonical JSON text.
    pub fn value(&self) -> &str {
        &self.value
    }
}

/// Makes values canonical, except those that equal the value before. A value that isn't JSON stays
/// as it is, so no rule finds it.
pub(super) fn canonicalise(settings: &mut UserSettings, before: Option<&UserSettings>) {
    for (key, value) in settings {
        if before.and_then(|before| before.get(key)) != Some(value)
            && let Ok(canonical) = canonical(value)
        {
            *value = canonical;
        }
    }
}

/// JSON text without spaces or needless escapes, its objects' keys sorted.
fn canonical(json: &str) -> serde_json::Result<Box<str>> {
    let mut value: Value = serde_json::from_str(json)?;
    value.sort_all_objects();
    Ok(value.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatting_makes_no_difference_and_the_value_does() {
        let setting = |value| Setting::new("lastSeen", value).unwrap();
        let one = setting(r#"{"contactsExcept":["é"],"a":{"b":1,"c":null}}"#);
        let same =
            setting(" { \"a\" : {\"c\":null, \"b\":1},\n \"contactsExcept\": [\"\\u00e9\"] } ");
        assert_eq!(one, same);
        assert_ne!(setting("\"nobody\""), setting("\"everyone\""));
        assert_ne!(setting("[1,2]"), setting("[2,1]"));
        assert_ne!(setting("true"), setting("\"true\""));
        assert_ne!(
            setting("true"),
            Setting::new("doNotDisturb", "true").unwrap()
        );
        for value in ["", "nobody", "true false", "{"] {
            assert!(Setting::new("lastSeen", value).is_err(), "{value}");
        }
    }
}
