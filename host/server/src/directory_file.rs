//! The directory as a JSON file: contacts, groups, blocks and settings.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use presence_core::directory::{Changes, Directory, Settings};
use presence_core::names::Names;
use roaring::RoaringBitmap;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    contacts: Map<String, Value>,
    groups: Map<String, Value>,
    blocks: Map<String, Value>,
    settings: BTreeMap<String, BTreeMap<Box<str>, Box<RawValue>>>,
}

/// Reads the file, and makes of the directory so far what the file says.
pub(crate) fn load(
    path: &Path,
    names: &Names,
    before: &Directory,
) -> anyhow::Result<(Directory, Changes)> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), "no directory file: nobody has contacts or groups");
            "{}".into()
        }
        Err(error) => return Err(error).with_context(|| format!("can't read {}", path.display())),
    };
    parse(&text, names, before).with_context(|| format!("{} is not a directory", path.display()))
}

fn parse(text: &str, names: &Names, before: &Directory) -> anyhow::Result<(Directory, Changes)> {
    let file: File = serde_json::from_str(text)?;
    let mut edit = before.edit();
    let (users, groups) = edit.subjects();
    let mut contacts = BTreeMap::new();
    for (user, list) in &file.contacts {
        let user_id = names.intern(user);
        contacts.insert(
            user_id,
            set(names, list).with_context(|| format!("contacts of `{user}`"))?,
        );
    }
    let mut members = BTreeMap::new();
    for (group, list) in &file.groups {
        let list = set(names, list).with_context(|| format!("members of `{group}`"))?;
        members.insert(group.as_str(), list);
    }
    let mut blocks = BTreeMap::new();
    for (user, list) in &file.blocks {
        let user_id = names.intern(user);
        blocks.insert(
            user_id,
            set(names, list).with_context(|| format!("blocks of `{user}`"))?,
        );
    }
    let mut settings = BTreeMap::new();
    for (user, given) in file.settings {
        let given = given
            .into_iter()
            .map(|(key, value)| (key, value.get().into()));
        settings.insert(names.intern(&user), given.collect::<Settings>());
    }
    for user in users {
        if !contacts.contains_key(&user) {
            edit.contacts(user, None);
        }
        if !blocks.contains_key(&user) {
            edit.blocked(user, None);
        }
        if !settings.contains_key(&user) {
            edit.settings(user, None);
        }
    }
    for group in groups {
        if !members.contains_key(&*group) {
            edit.group(&group, None);
        }
    }
    contacts
        .into_iter()
        .for_each(|(user, list)| edit.contacts(user, Some(list)));
    members
        .into_iter()
        .for_each(|(group, list)| edit.group(group, Some(list)));
    blocks
        .into_iter()
        .for_each(|(user, list)| edit.blocked(user, Some(list)));
    settings
        .into_iter()
        .for_each(|(user, given)| edit.settings(user, Some(given)));
    Ok(edit.finish())
}

/// A list of user ids. They are interned in the file's order, which is the
/// order in which audiences are written.
fn set(names: &Names, list: &Value) -> anyhow::Result<RoaringBitmap> {
    let list = list.as_array().context("must be a list of user ids")?;
    list.iter()
        .map(|id| match id.as_str() {
            Some(id) if !id.is_empty() => Ok(names.intern(id).0),
            _ => anyhow::bail!("`{id}` must be a user id: a string that isn't empty"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use presence_core::directory::Question;

    #[test]
    fn a_file_is_read_and_replaced_by_the_next() {
        let names = Names::new();
        let text = r#"{"contacts":{"12345":["67890","11111"]},"groups":{"t":["12345","22222"]},
            "blocks":{"12345":["11111"]},"settings":{"12345":{"seen":"nobody"}}}"#;
        let (first, changes) = parse(text, &names, &Directory::new()).unwrap();
        assert!(!changes.is_empty());
        let user = names.intern("12345");
        assert_eq!(first.audience(&Question::Contacts(user)).unwrap().len(), 2);
        assert_eq!(first.setting(user, "seen"), Ok(Some("\"nobody\"")));
        let (same, changes) = parse(text, &names, &first).unwrap();
        assert!(changes.is_empty());
        let (last, _) = parse("{}", &names, &same).unwrap();
        assert!(last.is_empty());
        let error = parse(r#"{"contacts":{"a":[7]}}"#, &names, &last).unwrap_err();
        assert!(format!("{error:#}").contains("contacts of `a`"));
    }
}
