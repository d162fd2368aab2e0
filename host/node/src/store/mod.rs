//! The plugin store: plugins in an Object Store bucket, by the digest of their bytes, and the
//! revisions of the pipeline in a KV bucket, each written once. Nodes follow the newest
//! revision (`follow`); operators' commands (`operator`) and the node's page (`page`) read and write both.

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

/// What the keys of revisions begin with.
const KEY: &str = "revision.";

/// The longest revision, in bytes: what every server carries in one message, with room for
/// what stands around it.
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

/// How many of the newest revisions commands read at most.
pub const READ_MAX: u64 = 1_000;

/// How many of them are read to find the one that holds, where others have written into the
/// bucket.
pub(crate) const LOOK_MAX: u64 = 100;

/// How many bytes of them are read.
const READ_BYTES_MAX: u64 = 256 << 20;

/// A revision as it was found.
#[derive(Debug)]
pub struct FoundRevision {
    /// Its number, by its key.
    pub number: u64,
    /// Its place in the order in which all were written.
    pub place: u64,
    /// What it says; an error if that can't be read.
    pub revision: anyhow::Result<Revision>,
}

/// The revision that holds: the highest that can be read, or one above it that can't be and was
/// written later, as by a newer version. So what somebody else writes under a high number ends
/// with the next revision.
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

/// The number of the next revision, in order after `after` and under no number that is taken;
/// none if there is no higher one.
pub fn next_number(revisions: &[FoundRevision], after: u64) -> Option<u64> {
    let good = revisions.iter().filter(|it| it.revision.is_ok());
    let highest = good.map(|it| it.number).max().unwrap_or_default();
    let mut next = highest.max(after).checked_add(1)?;
    while revisions.iter().any(|it| it.number == next) {
        next = next.checked_add(1)?;
    }
    (next <= NUMBER_MAX).then_some(next)
}

/// What came of writing a revision.
#[derive(Debug)]
pub enum WriteResult {
    /// It is written.
    Done,
    /// Another one of the same number was written before.
    Taken(Box<FoundRevision>),
}

/// The number that a key says. Each has one key: otherwise there could be several revisions of
/// one number.
fn number_of(key: &str) -> Option<u64> {
    let number: u64 = key.parse().ok().filter(|number| *number > 0)?;
    (number.to_string() == key).then_some(number)
}

/// What is wrong with the shape of a stream for revisions: each is to be written once, and to
/// stay.
fn misshape(config: &stream::Config) -> Option<&'static str> {
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
    /// Of the tenant with this prefix, over a connection. The buckets may be missing.
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

    /// Makes the buckets and the stream of alerts, where they are missing, on so many servers of
    /// a cluster.
    ///
    /// # Errors
    /// If the server refuses, or a bucket is there that is not what it should be.
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
            // The server itself refuses what would change a revision, or remove one.
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

    /// The revisions among so many that were written last, in the order of their numbers.
    ///
    /// # Errors
    /// If the bucket can't be read, or is not what it should be.
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
        // Of a bucket that keeps more than one of a key, the newest is the last.
        let by_number: BTreeMap<_, _> = found.map(|found| (found.number, found)).collect();
        Ok(by_number.into_values().collect())
    }

    /// A revision by its number, however old it is; none if there is none.
    ///
    /// # Errors
    /// If the bucket can't be read, or is not what it should be.
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

    /// The revision that holds, as [`newest`]; none if there is none.
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
            _ => Ok(newest(self.revisions(LOOK_MAX).await?)),
        }
    }

    /// Writes a revision, unless there is one of its number.
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
        // The answer may have been lost, and not what it answers.
        let subject = self.subject(&number.to_string());
        match store.entry(&key).await {
            Ok(Some(entry)) => match self.found(&subject, entry.revision, &entry.value) {
                Some(FoundRevision {
                    revision: Ok(written),
                    ..
                }) if !is_taken && written == *revision => Ok(WriteResult::Done),
                Some(found) => Ok(WriteResult::Taken(Box::new(found))),
                None => Err(error.into()),
            },
            _ => Err(error).with_context(|| format!("can't write revision {number}")),
        }
    }

    /// The subject of revisions.
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

    /// The stream of the revisions; none if there is no bucket.
    async fn revisions_stream(&self) -> anyhow::Result<Option<stream::Stream>> {
        let name = format!("KV_{}", self.pipeline);
        let Some(stream) = self.stream(&name).await? else {
            return Ok(None);
        };
        let config = &stream.cached_info().config;
        let ours = [format!("$KV.{}.>", self.pipeline)];
        let wrong = match config.subjects == ours {
            true => misshape(config),
            false => Some("holds other subjects"),
        };
        let Some(wrong) = wrong else {
            return Ok(Some(stream));
        };
        bail!(self.misshapen(&name, wrong))
    }

    /// A stream; none if there is none of this name.
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

    fn misshapen(&self, stream: &str, wrong: &str) -> String {
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

    /// Revisions by number and place; one that can't be read where that is negative.
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
            // Somebody has written something under a high number.
            (vec![(1, 1), (2, 2), (-9, 3)], Some(9), 3),
            (vec![(1, 1), (2, 2), (3, 4), (-9, 3)], Some(3), 4),
            // Or under the next one.
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
