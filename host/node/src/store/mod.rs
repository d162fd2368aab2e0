//! The plugin store: plugins in an Object Store bucket, by the digest of their bytes, and the
//! revisions of the pipeline in a KV bucket, each written once. Nodes follow the newest revision
//! (`follow`). Operators' commands (`operator`) and the node's page (`page`) read and write both.

mod alerts;
mod bucket;
pub(crate) mod follow;
pub mod logs;
mod nodes;
pub mod operator;
pub(crate) mod page;
mod plugins;
pub(crate) mod state;
pub mod tenants;
pub(crate) mod trial;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::Client;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::kv::CreateErrorKind;
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, ErrorCode};
use presence_config::revision::{NUMBER_MAX, Revision};
use presence_config::subjects::{ALERTS, Subjects};

pub use plugins::{PluginInfo, StoredPlugin};

use bucket::{is_not_found, read_all};

/// How long the server has to confirm that it has stored a message.
const ACK: Duration = Duration::from_secs(10);

/// The prefix of the keys of revisions.
const KEY: &str = "revision.";

/// The longest revision, in bytes: what every server accepts in one message, less some room for the
/// message's headers.
const REVISION_BYTES_MAX: usize = 960 * 1024;

/// A tenant's plugin store, over a connection.
#[derive(Clone)]
pub struct Store {
    context: jetstream::Context,
    plugins: String,
    pipeline: String,
    alerts: String,
    alerts_subject: String,
}

/// How many of the newest revisions commands read, at most.
pub const READ_MAX: u64 = 1_000;

/// How many of the newest revisions are read to find the current one, if others have written into
/// the bucket.
pub(crate) const SCANNED_MAX: u64 = 100;

/// How many bytes of revisions are read, at most.
const READ_BYTES_MAX: u64 = 256 << 20;

/// A revision as found in the bucket.
#[derive(Debug)]
pub struct FoundRevision {
    /// Its number, from its key.
    pub number: u64,
    /// Its sequence number in the stream: the order of writing.
    pub place: u64,
    /// Its content, or why that can't be read.
    pub revision: anyhow::Result<Revision>,
}

/// The current revision: the highest that can be read; or an unreadable one above it, if that was
/// written later, as by a newer version. So a high number that somebody else has written counts
/// only until the next revision.
pub fn newest(revisions: Vec<FoundRevision>) -> Option<FoundRevision> {
    let good = revisions.iter().rposition(|it| it.revision.is_ok());
    let place = good
        .and_then(|at| revisions.get(at))
        .map_or(0, |it| it.place);
    let (good, above) = {
        let mut below = revisions;
        let above = below.split_off(good.map_or(0, |at| at + 1));
        (good.and_then(|_| below.pop()), above)
    };
    let later = above.into_iter().filter(|it| it.place > place);
    later.max_by_key(|it| it.place).or(good)
}

/// The number of the next revision: above `after` and all readable revisions, and not taken. `None`
/// if there is no higher number.
pub fn next_number(revisions: &[FoundRevision], after: u64) -> Option<u64> {
    let good = revisions.iter().filter(|it| it.revision.is_ok());
    let highest = good.map(|it| it.number).max().unwrap_or_default();
    let mut next = highest.max(after).checked_add(1)?;
    while revisions.iter().any(|it| it.number == next) {
        next = next.checked_add(1)?;
    }
    (next <= NUMBER_MAX).then_some(next)
}

/// The result of writing a revision.
#[derive(Debug)]
pub enum WriteResult {
    /// The revision was written.
    Done,
    /// Another revision of this number was written before.
    Conflict(Box<FoundRevision>),
}

/// The number in a key. Each number has exactly one key; otherwise there could be several revisions
/// of one number.
fn number_of(key: &str) -> Option<u64> {
    let number: u64 = key.parse().ok().filter(|number| *number > 0)?;
    (number.to_string() == key).then_some(number)
}

/// What is wrong with the configuration of a stream for revisions, if anything: each revision must
/// be written once, and stay.
fn stream_config_problem(config: &stream::Config) -> Option<&'static str> {
    let keeps_first = config.discard == DiscardPolicy::New
        && config.discard_new_per_subject
        && config.max_messages_per_subject == 1;
    if config.mirror.is_some() || config.sources.as_ref().is_some_and(|it| !it.is_empty()) {
        Some("is a copy of others")
    } else if !config.max_age.is_zero() {
        Some("forgets what it holds after some time")
    } else if config.retention != RetentionPolicy::Limits {
        Some("forgets what was read")
    } else if config.discard == DiscardPolicy::Old
        && (config.max_messages > 0 || config.max_bytes > 0)
    {
        Some("forgets what it holds when it is full")
    } else if !keeps_first || config.allow_rollup {
        Some("lets a revision be overwritten")
    } else if !config.deny_delete || !config.deny_purge {
        Some("lets revisions be deleted")
    } else if config.no_ack {
        Some("acknowledges nothing")
    } else {
        None
    }
}

impl Store {
    /// The store of the tenant with this prefix. The buckets may be missing.
    pub(crate) fn new(client: &Client, prefix: Option<&str>) -> Self {
        let named = |bucket: &str| match prefix {
            Some(prefix) => format!("{prefix}-{bucket}"),
            None => bucket.to_owned(),
        };
        Self {
            context: ContextBuilder::new().ack_timeout(ACK).build(client.clone()),
            plugins: named("presence-plugins"),
            pipeline: named("presence-pipeline"),
            alerts: named("presence-alerts"),
            alerts_subject: Subjects::new(prefix).of(ALERTS),
        }
    }

    /// The name of the bucket of revisions.
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// Creates the buckets and the stream of alerts, if they are missing, with this number of
    /// replicas.
    ///
    /// # Errors
    /// If the server refuses, or a bucket exists with an unsuitable configuration.
    pub async fn make(&self, replicas: usize) -> anyhow::Result<()> {
        self.make_plugins(replicas).await?;
        self.make_alerts(replicas).await?;
        if self.revisions_stream().await?.is_some() {
            return Ok(());
        }
        let made = self.context.create_stream(stream::Config {
            name: format!("KV_{}", self.pipeline),
            description: Some("presence: revisions of the pipeline, each written once".into()),
            subjects: vec![format!("$KV.{}.>", self.pipeline)],
            // The server itself refuses to change or remove a revision.
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            discard_new_per_subject: true,
            deny_delete: true,
            deny_purge: true,
            allow_direct: true,
            storage: StorageType::File,
            num_replicas: replicas,
            ..stream::Config::default()
        });
        let made = made.await;
        made.with_context(|| format!("can't make the bucket `{}`", self.pipeline))?;
        Ok(())
    }

    /// The revisions among the `last` messages of the bucket, in the order of their numbers.
    ///
    /// # Errors
    /// If the bucket can't be read, or has an unsuitable configuration.
    pub async fn revisions(&self, last: u64) -> anyhow::Result<Vec<FoundRevision>> {
        let Some(stream) = self.revisions_stream().await? else {
            return Ok(Vec::new());
        };
        let subject = self.subject("*");
        let newest = match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => message.sequence,
            Err(error) if is_not_found(&error.kind()) => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| self.unreadable()),
        };
        let from = newest.saturating_sub(last.saturating_sub(1));
        let messages = read_all(&stream, subject, from, READ_BYTES_MAX).await;
        let messages = messages.with_context(|| self.unreadable())?;
        let found = messages
            .iter()
            .filter_map(|it| self.found(&it.subject, it.place, &it.payload));
        // In a bucket that keeps several messages of a key, the last one is the newest.
        let by_number: BTreeMap<_, _> = found.map(|found| (found.number, found)).collect();
        Ok(by_number.into_values().collect())
    }

    /// A revision by its number, however old it is. `None` if it doesn't exist.
    ///
    /// # Errors
    /// If the bucket can't be read, or has an unsuitable configuration.
    pub async fn revision(&self, number: u64) -> anyhow::Result<Option<FoundRevision>> {
        let Some(stream) = self.revisions_stream().await? else {
            return Ok(None);
        };
        let subject = self.subject(&number.to_string());
        match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(it) => Ok(self.found(&it.subject, it.sequence, &it.payload)),
            Err(error) if is_not_found(&error.kind()) => Ok(None),
            Err(error) => Err(error).with_context(|| self.unreadable()),
        }
    }

    /// The current revision, as by [`newest`]. `None` if there is none.
    ///
    /// # Errors
    /// As [`Self::revisions`].
    pub(crate) async fn newest(&self) -> anyhow::Result<Option<FoundRevision>> {
        let Some(stream) = self.revisions_stream().await? else {
            return Ok(None);
        };
        let subject = self.subject("*");
        let last = match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(it) => self.found(&it.subject, it.sequence, &it.payload),
            Err(error) if is_not_found(&error.kind()) => return Ok(None),
            Err(error) => return Err(error).with_context(|| self.unreadable()),
        };
        match last {
            Some(found) if found.revision.is_ok() => Ok(Some(found)),
            // Others have written into the bucket.
            _ => Ok(newest(self.revisions(SCANNED_MAX).await?)),
        }
    }

    /// Writes a revision, unless its number is taken.
    ///
    /// # Errors
    /// If it can't be written.
    pub async fn write(&self, revision: &Revision) -> anyhow::Result<WriteResult> {
        let number = revision.revision;
        let body = revision.to_json();
        ensure!(
            body.len() <= REVISION_BYTES_MAX,
            "the pipeline takes {} bytes, and a revision has at most {REVISION_BYTES_MAX}: \
             make its plugins' configurations shorter",
            body.len()
        );
        ensure!(
            self.revisions_stream().await?.is_some(),
            "the bucket `{}` is gone",
            self.pipeline
        );
        let store = self.context.get_key_value(&self.pipeline).await?;
        let key = format!("{KEY}{number}");
        let error = match store.create(&key, body.into()).await {
            Ok(_) => return Ok(WriteResult::Done),
            Err(error) => error,
        };
        let is_taken = error.kind() == CreateErrorKind::AlreadyExists;
        // The write may have succeeded, and only its answer been lost.
        let subject = self.subject(&number.to_string());
        match store.entry(&key).await {
            Ok(Some(entry)) => match self.found(&subject, entry.revision, &entry.value) {
                Some(FoundRevision {
                    revision: Ok(written),
                    ..
                }) if !is_taken && written == *revision => Ok(WriteResult::Done),
                Some(found) => Ok(WriteResult::Conflict(Box::new(found))),
                None => Err(error.into()),
            },
            _ => Err(error).with_context(|| format!("can't write revision {number}")),
        }
    }

    /// The subject of the revision with this number; `*` for all.
    pub(crate) fn subject(&self, number: &str) -> String {
        format!("$KV.{}.{KEY}{number}", self.pipeline)
    }

    fn found(&self, subject: &str, place: u64, payload: &[u8]) -> Option<FoundRevision> {
        let number = subject.strip_prefix(&self.subject(""))?;
        let number = number_of(number)?;
        let revision = Revision::parse(payload).and_then(|revision| {
            ensure!(
                revision.revision == number,
                "it says that it is revision {}",
                revision.revision
            );
            Ok(revision)
        });
        let revision = revision.with_context(|| {
            format!(
                "revision {number} in the bucket `{}` can't be read: write another one \
                 (`presence pipeline rollback REVISION`)",
                self.pipeline
            )
        });
        Some(FoundRevision {
            number,
            place,
            revision,
        })
    }

    /// The stream of the revisions. `None` if the bucket doesn't exist.
    async fn revisions_stream(&self) -> anyhow::Result<Option<stream::Stream>> {
        let name = format!("KV_{}", self.pipeline);
        let Some(stream) = self.stream(&name).await? else {
            return Ok(None);
        };
        let config = &stream.cached_info().config;
        let ours = [format!("$KV.{}.>", self.pipeline)];
        let wrong = match config.subjects == ours {
            true => stream_config_problem(config),
            false => Some("holds other subjects"),
        };
        let Some(wrong) = wrong else {
            return Ok(Some(stream));
        };
        bail!(self.stream_config_error(&name, wrong))
    }

    /// A stream by its name. `None` if it doesn't exist.
    async fn stream(&self, name: &str) -> anyhow::Result<Option<stream::Stream>> {
        match self.context.get_stream(name).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                jetstream::context::GetStreamErrorKind::JetStream(why)
                    if why.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    Ok(None)
                }
                _ => Err(error).with_context(|| {
                    format!(
                        "can't reach the stream `{name}`: does the server have JetStream, and may \
                         this user use it?"
                    )
                }),
            },
        }
    }

    fn stream_config_error(&self, stream: &str, wrong: &str) -> String {
        format!(
            "the stream `{stream}` was not made by presence: it {wrong}. Move what it holds \
             elsewhere and remove it; `presence plugins push` makes a new one"
        )
    }

    fn unreadable(&self) -> String {
        format!("can't read the bucket `{}`", self.pipeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Revisions by number and place. A negative number makes an unreadable revision.
    fn found(all: &[(i64, u64)]) -> Vec<FoundRevision> {
        let found = all.iter().map(|&(number, place)| {
            let text = format!(r#"{{"revision": {number}, "chain": [], "who": "", "when": 1}}"#);
            FoundRevision {
                number: number.unsigned_abs(),
                place,
                revision: Revision::parse(text.as_bytes()),
            }
        });
        found.collect()
    }

    #[test]
    fn what_cant_be_read_holds_only_until_the_next_revision_is_written() {
        for (all, holds, next) in [
            (vec![], None, 1),
            (vec![(1, 1), (2, 2)], Some(2), 3),
            // Somebody else has written something under a high number.
            (vec![(1, 1), (2, 2), (-9, 3)], Some(9), 3),
            (vec![(1, 1), (2, 2), (3, 4), (-9, 3)], Some(3), 4),
            // Somebody else has written something under the next number.
            (vec![(1, 1), (2, 2), (-3, 3)], Some(3), 4),
            (vec![(1, 1), (2, 2), (-3, 3), (4, 4)], Some(4), 5),
            (vec![(-7, 1)], Some(7), 1),
        ] {
            let found = || found(&all);
            assert_eq!(newest(found()).map(|it| it.number), holds, "{all:?}");
            assert_eq!(next_number(&found(), 0), Some(next), "{all:?}");
        }
        assert_eq!(next_number(&found(&[(-9, 1)]), 8), Some(10));
        assert_eq!(next_number(&[], NUMBER_MAX), None);
    }

    #[test]
    fn a_number_has_one_key() {
        assert_eq!(number_of("7"), Some(7));
        for key in [
            "0", "07", "007", "+7", "-7", " 7", "7.0", "7.8", "", "seven",
        ] {
            assert_eq!(number_of(key), None, "{key}");
        }
    }
}
