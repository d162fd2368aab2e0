//! Masks secrets in what a command prints: passwords, tokens, seeds, and logins within addresses.

use serde_json::Value;

/// What is printed in place of a secret.
const MASK: &str = "***";

/// The value of a key is a secret if the key's name contains one of these.
const NAMES: [&str; 10] = [
    "password",
    "passwd",
    "passphrase",
    "token",
    "seed",
    "secret",
    "credential",
    "api_key",
    "apikey",
    "private_key",
];

/// A patch of TOML documents, with their secrets masked. `None` if a secret can't be found in the
/// text.
pub(crate) fn masked<'a>(
    mut patch: String,
    documents: impl Iterator<Item = &'a str>,
) -> Option<String> {
    let mut secrets = Vec::new();
    for document in documents {
        let of_document = secrets.len();
        let read = Value::Object(toml::from_str(document).ok()?);
        collect(&read, false, &mut secrets);
        // A secret that is written with escapes isn't found in the text.
        if secrets
            .iter()
            .skip(of_document)
            .any(|it| !document.contains(it))
        {
            return None;
        }
    }
    sort(&mut secrets);
    for secret in &secrets {
        patch = patch.replace(secret, MASK);
    }
    // A secret of several lines isn't found in the patch, where each line has a sign before it.
    secrets.iter().all(|it| !it.contains('\n')).then_some(patch)
}

/// A value with its secrets masked.
pub(crate) fn masked_value(mut value: Value) -> Value {
    let mut secrets = Vec::new();
    collect(&value, false, &mut secrets);
    sort(&mut secrets);
    mask(&mut value, &secrets);
    value
}

fn mask(value: &mut Value, secrets: &[String]) {
    match value {
        Value::Object(keys) => keys.values_mut().for_each(|it| mask(it, secrets)),
        Value::Array(values) => values.iter_mut().for_each(|it| mask(it, secrets)),
        Value::String(text) => {
            for secret in secrets {
                *text = text.replace(secret, MASK);
            }
        }
        _ => {}
    }
}

/// Sorts the longest first: one secret may be part of another. Drops empty ones.
fn sort(secrets: &mut Vec<String>) {
    secrets.retain(|it| !it.is_empty());
    secrets.sort_unstable_by_key(|it| std::cmp::Reverse(it.len()));
}

/// Collects the secrets of a value. `is_secret`: whether the name of a key around it says that it
/// is one.
fn collect(value: &Value, is_secret: bool, secrets: &mut Vec<String>) {
    match value {
        Value::Object(keys) => {
            for (key, value) in keys {
                let key = key.to_lowercase().replace('-', "_");
                let says_so = NAMES.iter().any(|it| key.contains(it));
                collect(value, is_secret || says_so, secrets);
            }
        }
        Value::Array(values) => {
            values.iter().for_each(|it| collect(it, is_secret, secrets));
        }
        Value::String(text) if is_secret => secrets.push(text.clone()),
        Value::String(text) => {
            // There may be several addresses, separated by commas.
            for url in text.split(',') {
                let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
                if let Some((login, _)) = rest.rsplit_once('@') {
                    secrets.push(login.to_owned());
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_key_or_an_address_says_to_be_secret_is_masked_wherever_it_stands() {
        let document = "keys = ['device']\nApi-Key = 'k1'\ntokens = ['t0ken', 't0ken-2']\n\
                        url = 'https://u:pw@h'\n";
        let shown = masked(document.to_owned(), [document].into_iter()).unwrap();
        let expected = "keys = ['device']\nApi-Key = '***'\ntokens = ['***', '***']\n\
                        url = 'https://***@h'\n";
        assert_eq!(shown, expected);
        let value = json!({"config": {"password": "p", "a": [{"secret": {"b": "s3"}}], "c": "s3"}});
        let shown = json!({"config": {"***": 1}});
        assert_ne!(masked_value(value.clone()), shown);
        let shown =
            json!({"config": {"password": "***", "a": [{"secret": {"b": "***"}}], "c": "***"}});
        assert_eq!(masked_value(value), shown);
    }
}
