//! Turns a TOML value, or the text of an environment variable, into a value of
//! a key's own type.

use serde::Serialize;
use serde_json::{Map, Number, Value};
use toml::de::DeValue;

use super::problem::InvalidValue;

/// A type that a key can have.
pub(super) trait Leaf: Sized + Serialize {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, InvalidValue>;
    fn from_text(text: &str) -> Result<Self, InvalidValue>;
}

impl Leaf for String {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, InvalidValue> {
        let text = value.as_str().map(str::to_owned);
        text.ok_or_else(|| other_kind(value, "a string in quotes"))
    }

    fn from_text(text: &str) -> Result<Self, InvalidValue> {
        Ok(text.to_owned())
    }
}

impl Leaf for bool {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, InvalidValue> {
        value
            .as_bool()
            .ok_or_else(|| other_kind(value, "true or false"))
    }

    fn from_text(text: &str) -> Result<Self, InvalidValue> {
        text.trim()
            .parse()
            .map_err(|_| not_a(text, "true or false"))
    }
}

impl Leaf for u64 {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, InvalidValue> {
        match value {
            DeValue::Integer(number) => Self::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| {
                    InvalidValue::new(format!("is {number}"), "write a whole number, not below 0")
                }),
            _ => Err(other_kind(value, "a whole number")),
        }
    }

    fn from_text(text: &str) -> Result<Self, InvalidValue> {
        let digits = text.trim().replace('_', "");
        digits
            .parse()
            .map_err(|_| not_a(text, "a whole number, not below 0"))
    }
}

impl Leaf for usize {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, InvalidValue> {
        u64::from_toml(value).and_then(fitting)
    }

    fn from_text(text: &str) -> Result<Self, InvalidValue> {
        u64::from_text(text).and_then(fitting)
    }
}

impl Leaf for f64 {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, InvalidValue> {
        match value {
            DeValue::Integer(number) => Self::from_text(number.as_str()),
            DeValue::Float(number) => Self::from_text(number.as_str()),
            _ => Err(other_kind(value, "a number")),
        }
    }

    fn from_text(text: &str) -> Result<Self, InvalidValue> {
        let digits = text.trim().replace('_', "");
        let number = digits.parse().ok().filter(|it: &Self| it.is_finite());
        number.ok_or_else(|| not_a(text, "a number, such as 0.01"))
    }
}

/// A list, which may also be written as one string, separated by commas.
impl Leaf for Vec<String> {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, InvalidValue> {
        match value {
            DeValue::String(text) => Ok(split(text)),
            DeValue::Array(items) => items
                .iter()
                .map(|item| String::from_toml(item.get_ref()))
                .collect::<Result<_, _>>()
                .map_err(|wrong| {
                    InvalidValue::new(format!("holds what {}", wrong.what), wrong.fix)
                }),
            _ => Err(other_kind(value, "a list of strings")),
        }
    }

    fn from_text(text: &str) -> Result<Self, InvalidValue> {
        if !text.trim_start().starts_with('[') {
            return Ok(split(text));
        }
        let value = DeValue::parse(text.trim());
        let value = value.map_err(|_| not_a(text, "a TOML list of strings in quotes"))?;
        Self::from_toml(value.get_ref())
    }
}

/// A TOML value as JSON. Dates become strings.
///
/// # Errors
/// For what JSON does not have: infinities, NaN, and integers beyond 64 bits.
pub(super) fn to_json(value: &DeValue<'_>) -> Result<Value, InvalidValue> {
    Ok(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Datetime(date) => Value::String(date.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(Value::from)
            .map_err(|_| no_json(&number.to_string()))?,
        DeValue::Float(number) => {
            let parsed = number.as_str().parse().ok().and_then(Number::from_f64);
            Value::Number(parsed.ok_or_else(|| no_json(number.as_str()))?)
        }
        DeValue::Array(items) => items
            .iter()
            .map(|item| to_json(item.get_ref()))
            .collect::<Result<_, _>>()?,
        DeValue::Table(table) => {
            let entries = table
                .iter()
                .map(|(key, item)| Ok((key.get_ref().to_string(), to_json(item.get_ref())?)));
            Value::Object(entries.collect::<Result<Map<_, _>, _>>()?)
        }
    })
}

/// The kind of a TOML value, in words.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The error that a value isn't of the key's kind.
pub(super) fn other_kind(value: &DeValue<'_>, wanted: &str) -> InvalidValue {
    InvalidValue::new(format!("is {}", kind(value)), format!("write {wanted}"))
}

fn not_a(text: &str, wanted: &str) -> InvalidValue {
    InvalidValue::new(format!("is `{text}`"), format!("write {wanted}"))
}

fn no_json(number: &str) -> InvalidValue {
    InvalidValue::new(
        format!("holds {number}, which JSON can't say"),
        "write a finite number of at most 64 bits",
    )
}

fn fitting(number: u64) -> Result<usize, InvalidValue> {
    let too_large = |_| InvalidValue::new(format!("is {number}"), "write a smaller number");
    number.try_into().map_err(too_large)
}

fn split(text: &str) -> Vec<String> {
    let items = text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty());
    items.map(str::to_owned).collect()
}
