//! The plugin store: plugins in an Object Store bucket, by the digest of their bytes, and the
//! revisions of the pipeline in a KV bucket, each written once. Nodes follow the newest
//! revision (`follow`); operators' commands read and write both (`operator`).

mod bucket;
pub(crate) mod follow;
pub mod operator;
mod plugins;
pub(crate) mod rollback;
pub(crate) mod state;
pub(crate) mod trial;

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::Client;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::kv::CreateErrorKind;
use async_nats::jetstream::stream::{self, DiscardPolicy, StorageType};
use async_nats::jetstream::{self, ErrorCode};
use presence_config::revision::Revision;

pub use plugins::{About, Stored};

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
}

/// A revision as it was found.
#[derive(Debug)]
pub struct Found {
    /// Its number, by its key.
    pub number: u64,
    /// What it says; an error if that can't be read.
    pub revision: anyhow::Result<Revision>,
}

/// What came of writing a revision.
#[derive(Debug)]
pub enum Written {
    /// It is written.
    Done,
    /// Another one of the same number was written before.
    Taken(Box<Found>),
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
        }
    }

    /// The name of the bucket of revisions.
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// Makes the buckets, where they are missing, on so many servers of a cluster.
    ///
    /// # Errors
    /// If the server refuses, or a bucket is there that is not what it should be.
    pub async fn make(&self, replicas: usize) -> anyhow::Result<()> {
        self.make_plugins(replicas).await?;
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

    /// All revisions, in the order of their numbers.
    ///
    /// # Errors
    /// If the bucket can't be read, or is not what it should be.
    pub async fn revisions(&self) -> anyhow::Result<Vec<Found>> {
        let Some(stream) = self.revisions_stream().await? else {
            return Ok(Vec::new());
        };
        let filter = self.subject(">");
        let messages = read_all(&stream, filter, u64::MAX).await;
        let messages = messages.with_context(|| self.unreadable())?;
        let mut found: Vec<_> = messages
            .iter()
            .filter_map(|message| self.found(&message.subject, &message.payload))
            .collect();
        // Of a bucket that keeps more than one of a key, the newest is the last.
        found.sort_by_key(|found| found.number);
        found.reverse();
        found.dedup_by_key(|found| found.number);
        found.reverse();
        Ok(found)
    }

    /// The revision that was written last; none if there is none. That is the highest one,
    /// unless somebody has written into the bucket by other means.
    ///
    /// # Errors
    /// As [`Self::revisions`].
    pub(crate) async fn newest(&self) -> anyhow::Result<Option<Found>> {
        let Some(stream) = self.revisions_stream().await? else {
            return Ok(None);
        };
        let subject = self.subject("*");
        match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => match self.found(&message.subject, &message.payload) {
                Some(found) => Ok(Some(found)),
                // The key is none of a revision, and was put there by others.
                None => Ok(self.revisions().await?.pop()),
            },
            Err(error) if is_not_found(&error.kind()) => Ok(None),
            Err(error) => Err(error).with_context(|| self.unreadable()),
        }
    }

    /// Writes a revision, unless there is one of its number.
    ///
    /// # Errors
    /// If it can't be written.
    pub async fn write(&self, revision: &Revision) -> anyhow::Result<Written> {
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
            Ok(_) => return Ok(Written::Done),
            Err(error) => error,
        };
        let is_taken = error.kind() == CreateErrorKind::AlreadyExists;
        // The answer may have been lost, and not what it answers.
        match store.entry(&key).await {
            Ok(Some(entry)) => match self.found(&self.subject(&number.to_string()), &entry.value) {
                Some(Found {
                    revision: Ok(written),
                    ..
                }) if !is_taken && written == *revision => Ok(Written::Done),
                Some(found) => Ok(Written::Taken(Box::new(found))),
                None => Err(error.into()),
            },
            _ => Err(error).with_context(|| format!("can't write revision {number}")),
        }
    }

    /// The subject of revisions.
    pub(crate) fn subject(&self, number: &str) -> String {
        format!("$KV.{}.{KEY}{number}", self.pipeline)
    }

    fn found(&self, subject: &str, payload: &[u8]) -> Option<Found> {
        let number = subject.strip_prefix(&self.subject(""))?;
        let number: u64 = number.parse().ok().filter(|number| *number > 0)?;
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
        Some(Found { number, revision })
    }

    /// The stream of the revisions; none if there is no bucket.
    async fn revisions_stream(&self) -> anyhow::Result<Option<stream::Stream>> {
        let name = format!("KV_{}", self.pipeline);
        let Some(stream) = self.stream(&name).await? else {
            return Ok(None);
        };
        let config = &stream.cached_info().config;
        let ours = [format!("$KV.{}.>", self.pipeline)];
        let wrong = if config.subjects != ours || config.mirror.is_some() {
            "holds other subjects"
        } else if !config.max_age.is_zero() {
            "forgets what it holds after some time"
        } else if config.discard == DiscardPolicy::Old
            && (config.max_messages > 0 || config.max_bytes > 0)
        {
            "forgets what it holds when it is full"
        } else {
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
