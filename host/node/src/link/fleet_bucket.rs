//! The fleet's bucket: which nodes are alive, and which node owns each shard. All decisions are
//! made in [`Member`](presence_core::fleet::member::Member).
//!
//! Nothing is read from a replica of the stream that may be behind (`allow_direct` is off), and
//! every write is a compare-and-swap.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use async_nats::client::RequestErrorKind;
use async_nats::jetstream::context::{
    ContextBuilder, CreateStreamErrorKind, GetStreamErrorKind, RequestErrorKind as ApiErrorKind,
};
use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, UpdateErrorKind};
use async_nats::jetstream::stream::{
    self, DiscardPolicy, RetentionPolicy, StorageType, Stream as JetStream,
};
use async_nats::jetstream::{self, ErrorCode};
use futures_util::StreamExt as _;
use presence_config::causes::Causes;
use presence_core::digest::digest;
use presence_core::fleet::hash;
use presence_core::fleet::lease::WriteOutcome;
use presence_core::fleet::member::Key;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::link::connection::Connection;

/// The bucket's name, without the tenant's prefix.
const BUCKET: &str = "presence-fleet";

/// The key of [`Layout`].
const CONFIG: &str = "config";

/// The version of the bucket's layout.
const FORMAT: u32 = 1;

/// How many servers of a cluster keep the bucket.
const REPLICAS: usize = 3;

/// Settings that all nodes of a fleet must share. The first node writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// The version of the bucket's layout.
    format: u32,
    /// The version of the hash functions for users and nodes.
    hashes: u32,
    /// How many shards the fleet has.
    shards: u32,
    /// How long a lease lasts, in milliseconds.
    lease_ms: u64,
    /// The base of epochs: when the bucket was created, in microseconds since the Unix epoch. So
    /// the epochs of a bucket that is created again are greater.
    pub(crate) epoch_base: u64,
    /// A salt for placing shards on nodes, made from the tenant's name: without it, the shards of
    /// all small fleets on the same nodes would have the same owner. 0 in a bucket of an earlier
    /// version.
    #[serde(default)]
    pub(crate) placement: u64,
}

/// The bucket.
#[derive(Clone)]
pub(crate) struct FleetBucket {
    context: jetstream::Context,
    store: kv::Store,
    /// When its stream was created. A bucket that is removed and created again has another time.
    made_at: i128,
}

/// A watch on the bucket's changes.
pub(crate) struct BucketWatch(kv::Watch);

/// What the watch reports.
#[derive(Debug)]
pub(crate) enum WatchEvent {
    /// An entry has changed.
    Entry(Change),
    /// The layout was written or removed.
    Layout,
}

/// A key that has changed: its value (`None` if it was deleted) and its revision.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) key: Key,
    pub(crate) value: Option<String>,
    pub(crate) revision: u64,
}

/// Why the bucket can't be used.
#[derive(Debug)]
pub(crate) enum BucketError {
    /// It may be usable later.
    Retryable(anyhow::Error),
    /// No later attempt succeeds unless the configuration, the server or the bucket is changed.
    Fatal(anyhow::Error),
}

/// The bucket's name for the tenant with this prefix.
pub(crate) fn name(prefix: Option<&str>) -> String {
    match prefix {
        Some(prefix) => format!("{prefix}-{BUCKET}"),
        None => BUCKET.to_owned(),
    }
}

impl Layout {
    /// This node's layout. `name`: the tenant's name, if the node has several tenants.
    pub(crate) fn new(shards: u32, lease_ms: u64, name: Option<&str>) -> Self {
        Self {
            format: FORMAT,
            hashes: hash::VERSION,
            shards,
            lease_ms,
            epoch_base: clock::wall_now_us(),
            placement: name.map_or(0, |name| digest(&[name.as_bytes()])),
        }
    }

    /// In what this node's layout differs from the fleet's. `None` if they agree.
    fn difference(&self, fleets: &Self) -> Option<String> {
        let differs = |what: &str, mine: u64, theirs: u64| {
            (mine != theirs).then(|| format!("{what} is {mine} here and {theirs} in the fleet"))
        };
        let hashes = "the version of its hashes, which goes with the program's,";
        let differences = [
            differs("[fleet] shards", self.shards.into(), fleets.shards.into()),
            differs("[fleet] lease_ms", self.lease_ms, fleets.lease_ms),
            differs(hashes, self.hashes.into(), fleets.hashes.into()),
        ];
        let differences: Vec<_> = differences.into_iter().flatten().collect();
        (!differences.is_empty()).then(|| differences.join("; "))
    }
}

impl FleetBucket {
    /// Opens the bucket of the tenant with this prefix, and creates it if it is missing. Returns
    /// the fleet's layout, too. `answer`: how long to wait for each answer of the server.
    ///
    /// # Errors
    /// If the bucket can't be used; the error says whether a later attempt may succeed.
    pub(crate) async fn open(
        connection: &Connection,
        prefix: Option<&str>,
        mine: Layout,
        answer: Duration,
    ) -> Result<(Self, Layout), BucketError> {
        let context = ContextBuilder::new()
            .ack_timeout(answer)
            .timeout(answer)
            .build(connection.client().clone());
        let bucket = name(prefix);
        let stream = match stream_of(&context, &bucket).await? {
            Some(stream) => stream,
            None => make(&context, &bucket).await?,
        };
        check(&stream, &bucket).map_err(BucketError::Fatal)?;
        let made_at = made_at(&stream);
        let store = context.get_key_value(&bucket).await;
        let store = store
            .with_context(|| format!("can't open the bucket `{bucket}`"))
            .map_err(BucketError::Retryable)?;
        let opened = Self {
            context,
            store,
            made_at,
        };
        let fleets = opened.agree(mine, &bucket).await?;
        Ok((opened, fleets))
    }

    /// Reads the fleet's layout, or writes this node's if there is none yet.
    async fn agree(&self, mine: Layout, bucket: &str) -> Result<Layout, BucketError> {
        let failed = |what: &str, error: anyhow::Error| {
            BucketError::Retryable(error.context(format!("can't {what} the bucket `{bucket}`")))
        };
        let entry = self.store.entry(CONFIG).await;
        let mut entry = entry.map_err(|error| failed("read", error.into()))?;
        if !entry.as_ref().is_some_and(is_put) {
            let has_entries = self.has_entries().await;
            if has_entries.map_err(|error| failed("read", error))? {
                return Err(BucketError::Retryable(anyhow!(
                    "the bucket `{bucket}` has the entries of a fleet, and its key `{CONFIG}` is gone: \
                     a node that runs writes it again. If none does, remove the bucket"
                )));
            }
            match self.store.create(CONFIG, body_of(&mine)).await {
                Ok(_) => return Ok(mine),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("write", error.into())),
            }
            let written = self.store.entry(CONFIG).await;
            entry = written.map_err(|error| failed("read", error.into()))?;
        }
        let entry =
            entry.ok_or_else(|| failed("read", anyhow!("its key `{CONFIG}` comes and goes")))?;
        let remove = format!(
            "stop all nodes of the fleet, remove the bucket `{bucket}`, and start them again"
        );
        let fleets: Layout = match layout_of(&entry) {
            Ok(Layout { format, .. }) if format != FORMAT => {
                return Err(BucketError::Fatal(anyhow!(
                    "the bucket `{bucket}` has layout {format}, and this version of the program \
                     knows layout {FORMAT}: run the same version on all nodes, or {remove}"
                )));
            }
            Ok(fleets) => fleets,
            Err(error) => {
                return Err(BucketError::Fatal(anyhow!(
                    "the key `{CONFIG}` of the bucket `{bucket}` can't be read ({error}): it was not \
                     written by this version of the program. Run the same version on all nodes, or \
                     {remove}"
                )));
            }
        };
        match mine.difference(&fleets) {
            None => Ok(fleets),
            Some(difference) => Err(BucketError::Fatal(anyhow!(
                "this node can't join the fleet: {difference}. Configure it as the other nodes are; \
                 to change it for all of them, {remove}"
            ))),
        }
    }

    /// Writes a key, or deletes it if `value` is `None`, if its last revision is still `revision`.
    pub(crate) async fn write(
        &self,
        key: Key,
        value: Option<String>,
        revision: u64,
    ) -> WriteOutcome {
        let key = key.to_text();
        let Some(value) = value else {
            let deleted = self.store.delete_expect_revision(&key, Some(revision));
            return match deleted.await {
                // The client doesn't return the revision of the delete marker. The watch reports
                // it.
                Ok(()) => WriteOutcome::Stored(0),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                    WriteOutcome::Refused
                }
                Err(error) => unknown(&error),
            };
        };
        match self.store.update(&key, value.into(), revision).await {
            Ok(revision) => WriteOutcome::Stored(revision),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                WriteOutcome::Refused
            }
            Err(error) => unknown(&error),
        }
    }

    /// Reads a key. `None` if it can't be read.
    pub(crate) async fn read(&self, key: Key) -> Option<Change> {
        match self.store.entry(key.to_text()).await {
            Ok(Some(entry)) => Some(change(key, &entry)),
            Ok(None) => Some(Change {
                key,
                value: None,
                revision: 0,
            }),
            Err(error) => {
                tracing::debug!(
                    "the fleet's bucket can't be read: {}",
                    Causes(&error.into())
                );
                None
            }
        }
    }

    /// Whether the bucket has entries of nodes or owners.
    async fn has_entries(&self) -> anyhow::Result<bool> {
        let mut keys = self.store.keys().await?;
        while let Some(key) = keys.next().await {
            if Key::parse(&key?).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether it is still the bucket that was opened. `None` if the server doesn't say.
    pub(crate) async fn is_same(&self) -> Option<bool> {
        match self.context.get_stream(&self.store.stream_name).await {
            Ok(stream) => Some(made_at(&stream) == self.made_at),
            Err(error) => {
                let is_gone = matches!(
                    error.kind(),
                    GetStreamErrorKind::JetStream(why)
                        if why.error_code() == ErrorCode::STREAM_NOT_FOUND
                );
                is_gone.then_some(false)
            }
        }
    }

    /// Writes the fleet's layout again if it is missing, unreadable or changed since this node
    /// joined, and if this is still the bucket that was opened. Returns whether it was written.
    ///
    /// # Errors
    /// If it can't be read or written.
    pub(crate) async fn keep_layout(&self, layout: &Layout) -> anyhow::Result<bool> {
        if self.is_same().await != Some(true) {
            return Ok(false);
        }
        let entry = self.store.entry(CONFIG).await?;
        let revision = match &entry {
            Some(entry) if is_put(entry) && layout_of(entry).is_ok_and(|it| it == *layout) => {
                return Ok(false);
            }
            Some(entry) => entry.revision,
            None => 0,
        };
        match self.store.update(CONFIG, body_of(layout), revision).await {
            Ok(_) => Ok(true),
            // Another node wrote it first.
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// All entries of the bucket, and then its changes.
    ///
    /// # Errors
    /// If it can't be watched.
    pub(crate) async fn watch(&self) -> anyhow::Result<BucketWatch> {
        let watch = self.store.watch_with_history(">").await;
        Ok(BucketWatch(
            watch.context("can't watch the fleet's bucket")?,
        ))
    }
}

fn unknown(error: &(impl std::error::Error + 'static)) -> WriteOutcome {
    tracing::debug!("the outcome of a write into the fleet's bucket isn't known: {error}");
    WriteOutcome::Unknown
}

impl BucketWatch {
    /// The next change. `None`: the watch has failed, and must be started again.
    pub(crate) async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            let entry = self.0.next().await?.ok()?;
            // Other keys don't belong to the fleet, and are ignored.
            if let Some(key) = Key::parse(&entry.key) {
                return Some(WatchEvent::Entry(change(key, &entry)));
            }
            if entry.key == CONFIG {
                return Some(WatchEvent::Layout);
            }
        }
    }
}

fn made_at(stream: &JetStream) -> i128 {
    stream.cached_info().created.unix_timestamp_nanos()
}

fn is_put(entry: &kv::Entry) -> bool {
    entry.operation == Operation::Put
}

fn layout_of(entry: &kv::Entry) -> serde_json::Result<Layout> {
    serde_json::from_slice(&entry.value)
}

fn body_of(layout: &Layout) -> bytes::Bytes {
    // Plain data always has a JSON form.
    serde_json::to_vec(layout).unwrap_or_default().into()
}

fn change(key: Key, entry: &kv::Entry) -> Change {
    let value = match entry.operation {
        Operation::Put => String::from_utf8(entry.value.to_vec()).ok(),
        Operation::Delete | Operation::Purge => None,
    };
    Change {
        key,
        value,
        revision: entry.revision,
    }
}

/// The stream of the bucket. `None` if it doesn't exist.
async fn stream_of(
    context: &jetstream::Context,
    bucket: &str,
) -> Result<Option<JetStream>, BucketError> {
    let error = match context.get_stream(format!("KV_{bucket}")).await {
        Ok(stream) => return Ok(Some(stream)),
        Err(error) => error,
    };
    match error.kind() {
        GetStreamErrorKind::JetStream(why) => match why.error_code() {
            ErrorCode::STREAM_NOT_FOUND => Ok(None),
            ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                Err(BucketError::Fatal(no_jetstream()))
            }
            _ => Err(unreachable(error, bucket)),
        },
        _ if is_without_responders(&error) => Err(BucketError::Fatal(no_jetstream())),
        _ => Err(unreachable(error, bucket)),
    }
}

fn no_jetstream() -> anyhow::Error {
    anyhow!(
        "a fleet needs JetStream, and this NATS server, or this account, has none: turn it on \
         (`jetstream {{}}` in the server's configuration), or set `enabled = false` in [fleet]"
    )
}

fn unreachable(error: impl Into<anyhow::Error>, bucket: &str) -> BucketError {
    let error = error.into();
    BucketError::Retryable(error.context(format!("can't reach the bucket `{bucket}`")))
}

/// Whether JetStream requests have no responders.
fn is_without_responders(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let api = error.downcast_ref::<jetstream::context::RequestError>();
        let client = error.downcast_ref::<async_nats::client::RequestError>();
        if api.is_some_and(|it| matches!(it.kind(), ApiErrorKind::NoResponders))
            || client.is_some_and(|it| matches!(it.kind(), RequestErrorKind::NoResponders))
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Creates the bucket: on three servers if it is a cluster, else on one.
async fn make(context: &jetstream::Context, bucket: &str) -> Result<JetStream, BucketError> {
    let config = |num_replicas| stream::Config {
        name: format!("KV_{bucket}"),
        description: Some("presence: which nodes of a fleet live, and who owns what".into()),
        subjects: vec![format!("$KV.{bucket}.>")],
        max_messages_per_subject: 1,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        deny_delete: true,
        num_replicas,
        ..stream::Config::default()
    };
    let mut replicas = REPLICAS;
    loop {
        let error = match context.create_stream(config(replicas)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        match error.kind() {
            CreateStreamErrorKind::JetStream(why)
                if why.error_code() == ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED && replicas > 1 =>
            {
                replicas = 1;
            }
            // Another node created it first.
            CreateStreamErrorKind::JetStream(why)
                if why.error_code() == ErrorCode::STREAM_NAME_EXIST =>
            {
                let made = stream_of(context, bucket).await?;
                return made.ok_or_else(|| unreachable(error, bucket));
            }
            _ => {
                let error = anyhow::Error::new(error);
                return Err(BucketError::Retryable(error.context(format!(
                    "can't make the bucket `{bucket}` on {replicas} servers (on fewer, make it by \
                     hand)"
                ))));
            }
        }
    }
}

/// Checks that a stream is set up as a fleet's bucket must be.
fn check(stream: &JetStream, bucket: &str) -> anyhow::Result<()> {
    let config = &stream.cached_info().config;
    let wrong = if config.subjects != [format!("$KV.{bucket}.>")] {
        "holds other subjects"
    } else if config.mirror.is_some() || config.sources.as_ref().is_some_and(|it| !it.is_empty()) {
        "is a copy of others"
    } else if !config.max_age.is_zero() || config.retention != RetentionPolicy::Limits {
        "forgets what it holds"
    } else if config.allow_direct {
        "is read from servers that may be behind (`allow_direct`)"
    } else if config.no_ack {
        "acknowledges nothing"
    } else {
        return Ok(());
    };
    Err(anyhow!(
        "the stream `KV_{bucket}` is not the bucket of a fleet: it {wrong}. Stop all nodes of the \
         fleet and remove it; the first one that starts makes a new one"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_the_fleet_is_named() {
        let fleets = Layout::new(64, 6_000, None);
        let later = Layout {
            epoch_base: fleets.epoch_base + 1,
            // The first node's placement holds, so it may differ.
            placement: 7,
            ..fleets
        };
        assert_eq!(later.difference(&fleets), None);
        let other = Layout::new(32, 3_000, None).difference(&fleets);
        assert_eq!(
            other.as_deref(),
            Some(
                "[fleet] shards is 32 here and 64 in the fleet; [fleet] lease_ms is 3000 here and \
                 6000 in the fleet"
            )
        );
    }
}
