//! The directory as a NATS KV bucket, watched.
//!
//! A key is a section and whom it is about, `contacts.12345`, `groups.team-a`,
//! `blocks.12345` or `settings.12345`; its value is what stands there in a
//! directory file. An id that holds anything but letters, digits, `_` and `-`
//! is written as `=` and its base64url: `contacts.=YW5uQGV4YW1wbGUuY29t`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::Client;
use async_nats::jetstream::{self, kv};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use presence_core::directory::{Changes, Directory, Edit};
use presence_core::names::Names;
use presence_core::token;
use tokio::sync::mpsc;

use super::content::SECTIONS;
use super::reader;

/// How long to wait before the bucket is tried again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// How many changes are taken together, at most.
const BATCH_MAX: usize = 4_096;

/// What the bucket says.
#[derive(Debug)]
pub(crate) enum Update {
    /// All that it holds.
    Whole(Entries),
    /// What has changed.
    Part(Entries),
}

/// Values by key; none where the key was deleted.
type Entries = BTreeMap<String, Option<Bytes>>;

/// Follows a bucket for as long as someone listens. The first update is whole,
/// and so is the first after every loss.
pub(crate) async fn follow(client: Client, bucket: String, updates: mpsc::Sender<Update>) {
    let mut wait = RETRY.0;
    while !updates.is_closed() {
        match watch(&client, &bucket, &updates).await {
            Ok(()) => wait = RETRY.0,
            Err(error) => {
                tracing::warn!(bucket, "can't read the directory, trying again: {error:#}");
                wait = (wait * 2).min(RETRY.1);
            }
        }
        tokio::time::sleep(wait).await;
    }
}

/// Watches until the watch ends.
async fn watch(
    client: &Client,
    bucket: &str,
    updates: &mpsc::Sender<Update>,
) -> anyhow::Result<()> {
    let jetstream = jetstream::new(client.clone());
    let store = match jetstream.get_key_value(bucket).await {
        Ok(store) => store,
        Err(_) => {
            let config = kv::Config {
                bucket: bucket.to_owned(),
                description: "presence: contacts, groups, blocks and settings".into(),
                ..kv::Config::default()
            };
            let made = jetstream.create_key_value(config).await;
            made.context("there is no such bucket, and it can't be made")?
        }
    };
    let (whole, mut watch) = begin(&store).await?;
    if updates.send(Update::Whole(whole)).await.is_err() {
        return Ok(());
    }
    while let Some(entry) = watch.next().await {
        let mut part = Entries::new();
        insert(&mut part, entry?);
        while part.len() < BATCH_MAX
            && let Some(Some(entry)) = watch.next().now_or_never()
        {
            insert(&mut part, entry?);
        }
        if updates.send(Update::Part(part)).await.is_err() {
            return Ok(());
        }
    }
    bail!("the watch ended")
}

/// What a bucket holds now.
///
/// # Errors
/// If there is no such bucket, or it can't be read.
pub(crate) async fn read(client: Client, bucket: &str) -> anyhow::Result<Update> {
    let what = || format!("can't read the directory's bucket {bucket}");
    let store = jetstream::new(client).get_key_value(bucket).await;
    let store = store.with_context(what)?;
    let (whole, _) = begin(&store).await.with_context(what)?;
    Ok(Update::Whole(whole))
}

/// What a bucket holds, and a watch that tells what changes after that.
async fn begin(store: &kv::Store) -> anyhow::Result<(Entries, kv::Watch)> {
    let is_empty = store.status().await?.info.state.messages == 0;
    let mut watch = store.watch_with_history(">").await?;
    let mut whole = Entries::new();
    let mut current = is_empty;
    while !current {
        let entry = watch.next().await.context("the watch ended")??;
        current = entry.seen_current;
        insert(&mut whole, entry);
    }
    Ok((whole, watch))
}

fn insert(entries: &mut Entries, entry: kv::Entry) {
    let value = (entry.operation == kv::Operation::Put).then_some(entry.value);
    entries.insert(entry.key, value);
}

impl Update {
    /// The directory with this update. What can't be read in it is passed over:
    /// what was known there stays.
    pub(crate) fn apply(self, names: &Names, before: &Directory) -> (Directory, Changes) {
        let mut edit = before.edit();
        let entries = match self {
            Self::Part(entries) => entries,
            Self::Whole(mut entries) => {
                add_deletions(&mut entries, &edit, names);
                entries
            }
        };
        for (key, value) in entries {
            if let Err(error) = take(&mut edit, names, &key, value.as_deref()) {
                tracing::error!(key, "directory entry not taken: {error:#}");
            }
        }
        edit.finish()
    }
}

/// Adds, as deleted, what the directory holds and the bucket doesn't.
fn add_deletions(entries: &mut Entries, edit: &Edit, names: &Names) {
    let (users, groups) = edit.subjects();
    let users = users.into_iter().filter_map(|user| names.name(user));
    let users = users.flat_map(|user| {
        ["contacts", "blocks", "settings"].map(|section| key(section, user.as_str()))
    });
    let groups = groups.iter().map(|group| key("groups", group));
    for key in users.chain(groups) {
        entries.entry(key).or_insert(None);
    }
}

fn take(edit: &mut Edit, names: &Names, key: &str, value: Option<&[u8]>) -> anyhow::Result<()> {
    let (section, about) = parse_key(key)?;
    let value = value.map(std::str::from_utf8).transpose()?;
    let ids = || value.map(|json| reader::ids(json, names)).transpose();
    match section {
        "contacts" => edit.contacts(names.intern(&about), ids()?),
        "groups" => edit.group(&about, ids()?),
        "blocks" => edit.blocked(names.intern(&about), ids()?),
        _ => {
            let settings = value.map(reader::settings).transpose()?;
            edit.settings(names.intern(&about), settings);
        }
    }
    Ok(())
}

/// The key of a section and an id, as it is written.
fn key(section: &str, about: &str) -> String {
    format!("{section}.{}", token::encode(about))
}

/// The section of a key, and whom it is about.
fn parse_key(key: &str) -> anyhow::Result<(&str, String)> {
    let (section, about) = key
        .split_once('.')
        .context("a key is a section, a dot, and an id")?;
    if !SECTIONS.contains(&section) {
        bail!(
            "the section must be one of {}",
            SECTIONS.join(", ")
        );
    }
    let about = match about.strip_prefix('=') {
        Some(encoded) => {
            let bytes = URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('='));
            let bytes = bytes.context("the id behind `=` is not base64url")?;
            String::from_utf8(bytes).context("the id behind `=` is not UTF-8")?
        }
        None => about.to_owned(),
    };
    anyhow::ensure!(!about.is_empty(), "the id is empty");
    Ok((section, about))
}

#[cfg(test)]
mod tests {
    use super::*;
    use presence_core::directory::Question;

    fn entries(entries: &[(&str, Option<&'static str>)]) -> Entries {
        let entries = entries.iter();
        entries
            .map(|(key, value)| {
                (
                    (*key).to_owned(),
                    value.map(|text| Bytes::from_static(text.as_bytes())),
                )
            })
            .collect()
    }

    #[test]
    fn keys_name_a_section_and_an_id() {
        assert_eq!(
            parse_key("contacts.12345").unwrap(),
            ("contacts", "12345".into())
        );
        let (section, about) = parse_key("groups.=YW5uQGV4YW1wbGUuY29t").unwrap();
        assert_eq!((section, &*about), ("groups", "ann@example.com"));
        assert_eq!(key("contacts", "12345"), "contacts.12345");
        assert_eq!(
            key("groups", "ann@example.com"),
            "groups.=YW5uQGV4YW1wbGUuY29t"
        );
        for key in [
            "contacts",
            "friends.1",
            "contacts.",
            "blocks.=!",
            "blocks.=_w",
        ] {
            assert!(parse_key(key).is_err(), "{key}");
        }
    }

    #[test]
    fn updates_change_what_they_name_and_a_whole_one_all() {
        let names = Names::new();
        let whole = entries(&[
            ("contacts.a", Some(r#"["b","c"]"#)),
            ("groups.t", Some(r#"["a","d"]"#)),
            ("contacts.gone", None),
            ("settings.a", Some(r#"{"x":1}"#)),
        ]);
        let (directory, _) = Update::Whole(whole).apply(&names, &Directory::new());
        let a = names.intern("a");
        let contacts =
            |directory: &Directory| directory.audience(&Question::Contacts(a)).unwrap().len();
        assert_eq!(contacts(&directory), 2);
        assert_eq!(directory.setting(a, "x"), Ok(Some("1")));

        let part = entries(&[("contacts.a", Some("[7]")), ("groups.t", None)]);
        let (changed, changes) = Update::Part(part).apply(&names, &directory);
        assert_eq!(
            contacts(&changed),
            2,
            "what can't be read leaves what was known"
        );
        assert!(
            changes
                .iter()
                .any(|change| *change == Question::Members("t".into()))
        );

        let whole = entries(&[("contacts.a", Some("[7]"))]);
        let (same, _) = Update::Whole(whole).apply(&names, &changed);
        assert_eq!(contacts(&same), 2);
        assert_eq!(same.setting(a, "x"), Ok(None));

        let (last, _) = Update::Whole(Entries::new()).apply(&names, &same);
        assert!(last.is_empty());
    }
}
