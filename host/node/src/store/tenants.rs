//! Tenants in a KV bucket, each under its name. Nodes follow them. Commands change them by
//! compare-and-swap over the whole bucket: whether two tenants would have the same subjects can
//! only be seen from all of them together.
//!
//! A tenant ends when the bucket has a deletion marker for it. If a key is just missing, as in a
//! bucket that was lost, the tenant stays as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::Client;
use async_nats::jetstream::context::{ContextBuilder, GetStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, ErrorCode};
use presence_config::causes::Causes;
use presence_config::escape::brief;
use presence_config::{StoredEntry, StoredTenant, TENANTS_BUCKET, escape};
use presence_rules::private;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{interval, timeout};

use super::ACK;
use super::bucket::read_all;
use crate::link::bucket_keys::{self, Expected};
use crate::tasks::run_blocking;

/// How often the bucket is checked for changes.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// How long a starting node waits for the store before it uses what it knew last.
const AT_START: Duration = Duration::from_secs(5);

/// The greatest length of a key in log lines: as long as a name can be.
const SHOWN_BYTES_MAX: usize = 64;

/// How many bytes of tenants are read, at most.
const READ_BYTES_MAX: u64 = 256 << 20;

/// The bucket of tenants.
#[derive(Clone)]
pub struct TenantStore {
    context: jetstream::Context,
}

/// The bucket's entry for a tenant.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its sequence number in the stream: the order of writing.
    pub place: u64,
    /// Its content, or why that can't be read. `None` if the tenant was removed.
    pub tenant: Option<Result<StoredTenant, String>>,
}

/// A place in the bucket's stream. A bucket that is created anew counts from 1 again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketPlace {
    /// When the bucket was created, in nanoseconds since 1970.
    pub made: i64,
    /// The sequence number of the last message.
    pub last: u64,
}

impl BucketPlace {
    fn of(stream: &Stream) -> Self {
        let info = stream.cached_info();
        Self {
            made: i64::try_from(info.created.unix_timestamp_nanos()).unwrap_or(i64::MAX),
            last: info.state.last_sequence,
        }
    }
}

/// The bucket's entries by name.
pub type Entries = BTreeMap<String, Entry>;

/// The bucket's entries, and its place. The place is `None` if the bucket doesn't exist.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The place up to which it was read.
    pub place: Option<BucketPlace>,
    /// The entries.
    pub entries: Entries,
}

/// The result of writing a tenant.
#[derive(Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It was written, with this sequence number.
    Done(u64),
    /// Somebody else has written to the bucket since it was read.
    Changed,
}

/// What a node knows of the tenants in the bucket.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownTenants {
    /// The place up to which the bucket has been read. `None` if it hasn't been read.
    pub(crate) place: Option<BucketPlace>,
    pub(crate) tenants: Arc<[StoredEntry]>,
}

impl TenantStore {
    /// The bucket over this connection. It may be missing.
    pub(crate) fn new(client: &Client) -> Self {
        Self {
            context: ContextBuilder::new().ack_timeout(ACK).build(client.clone()),
        }
    }

    /// Creates the bucket if it is missing, with this number of replicas.
    ///
    /// # Errors
    /// If the server refuses, or the bucket exists with an unsuitable configuration.
    pub async fn make(&self, replicas: usize) -> anyhow::Result<()> {
        if self.stream().await?.is_some() {
            return Ok(());
        }
        // Configured as by the client's own function. That one isn't used, since it first makes a
        // request that would need a permission of its own.
        let made = self.context.create_stream(stream::Config {
            name: format!("KV_{TENANTS_BUCKET}"),
            description: Some("presence: tenants, each under its name".into()),
            subjects: vec![subject(">")],
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            storage: StorageType::File,
            num_replicas: replicas,
            ..stream::Config::default()
        });
        let made = made.await;
        made.with_context(|| format!("can't make the bucket `{TENANTS_BUCKET}`"))?;
        Ok(())
    }

    /// The bucket's current place. `None` if the bucket doesn't exist.
    ///
    /// # Errors
    /// If it can't be read, or has an unsuitable configuration.
    pub async fn place(&self) -> anyhow::Result<Option<BucketPlace>> {
        Ok(self.stream().await?.as_ref().map(BucketPlace::of))
    }

    /// All entries of the bucket; empty if it doesn't exist.
    ///
    /// # Errors
    /// If it can't be read, or has an unsuitable configuration.
    pub async fn snapshot(&self) -> anyhow::Result<Snapshot> {
        let Some(stream) = self.stream().await? else {
            return Ok(Snapshot::default());
        };
        let mut place = BucketPlace::of(&stream);
        let entries = Self::read(&stream).await?;
        // Entries may have been written since the place was read.
        let places = entries.values().map(|it| it.place);
        place.last = places.fold(place.last, u64::max);
        let place = Some(place);
        Ok(Snapshot { place, entries })
    }

    async fn read(stream: &Stream) -> anyhow::Result<Entries> {
        let unreadable = || format!("can't read the bucket `{TENANTS_BUCKET}`");
        let begin = subject("");
        let messages = read_all(stream, subject(">"), 0, READ_BYTES_MAX).await;
        let messages = messages.with_context(unreadable)?;
        let mut entries = Entries::new();
        for message in messages {
            let Some(name) = message.subject.strip_prefix(&begin) else {
                continue;
            };
            // In a bucket that keeps several messages of a key, the last one is the newest.
            let tenant = match presence_config::name(name) {
                // A deletion marker has no value.
                _ if message.payload.is_empty() => None,
                Ok(()) => {
                    let parsed = StoredTenant::parse(&message.payload);
                    Some(parsed.map_err(|error| brief(&Causes(&error).to_string())))
                }
                Err(fix) => Some(Err(format!("its key is no name of a tenant: {fix}"))),
            };
            let place = message.place;
            entries.insert(name.to_owned(), Entry { place, tenant });
        }
        Ok(entries)
    }

    /// Writes a tenant, or removes it (`None`), unless anything in the bucket has changed since
    /// `before`.
    ///
    /// # Errors
    /// If it can't be written.
    pub async fn write(
        &self,
        name: &str,
        tenant: Option<&StoredTenant>,
        before: &Snapshot,
    ) -> anyhow::Result<WriteOutcome> {
        ensure!(
            self.stream().await?.is_some(),
            "the bucket `{TENANTS_BUCKET}` is gone"
        );
        let expected = Expected {
            last: before.place.map_or(0, |it| it.last),
            of_key: before.entries.get(name).map_or(0, |it| it.place),
        };
        let value = tenant.map(|it| it.to_json().into());
        match bucket_keys::write(&self.context, subject(name), value, expected).await {
            Ok(place) => Ok(WriteOutcome::Done(place)),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {
                Ok(WriteOutcome::Changed)
            }
            Err(error) => Err(error)
                .with_context(|| format!("can't write the tenant `{}`", escape::line(name))),
        }
    }

    /// The stream of the bucket. `None` if it doesn't exist.
    async fn stream(&self) -> anyhow::Result<Option<Stream>> {
        let name = format!("KV_{TENANTS_BUCKET}");
        let stream = match self.context.get_stream(&name).await {
            Ok(stream) => stream,
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(why)
                    if why.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    return Ok(None);
                }
                _ => {
                    return Err(error).with_context(|| {
                        format!(
                            "can't reach the stream `{name}`: does the server have JetStream, and \
                             may this user use it?"
                        )
                    });
                }
            },
        };
        let config = &stream.cached_info().config;
        let wrong = if config.subjects != [subject(">")] {
            Some("holds other subjects")
        } else if config.mirror.is_some()
            || config.sources.as_ref().is_some_and(|it| !it.is_empty())
        {
            Some("is a copy of others")
        } else if !config.max_age.is_zero() || config.retention != RetentionPolicy::Limits {
            Some("forgets what it holds")
        } else if config.no_ack {
            Some("acknowledges nothing")
        } else {
            None
        };
        if let Some(wrong) = wrong {
            bail!(
                "the stream `{name}` was not made by presence: it {wrong}. Move what it holds \
                 elsewhere and remove it; `presence tenants apply` makes a new one"
            );
        }
        Ok(Some(stream))
    }
}

fn subject(name: &str) -> String {
    format!("$KV.{TENANTS_BUCKET}.{name}")
}

/// A key, shortened for log lines. A key that isn't a valid name may be of any length.
fn shown(key: &str, place: u64) -> String {
    if key.len() <= SHOWN_BYTES_MAX {
        return key.to_owned();
    }
    let begin = key.get(..key.floor_char_boundary(SHOWN_BYTES_MAX));
    format!("{}… (message {place})", begin.unwrap_or_default())
}

/// Follows the bucket for a node.
pub(crate) struct TenantsFollower {
    store: TenantStore,
    /// The file that keeps the known tenants over a restart. `None`: they aren't kept.
    saved_path: Option<PathBuf>,
    entries: Entries,
    /// The tenants whose sections are in force. After a restart, they have their subjects before
    /// others.
    in_force: BTreeSet<String>,
    /// The same set, as the node publishes it.
    now_in_force: watch::Receiver<BTreeSet<String>>,
    /// The place up to which the bucket has been read, and its number of messages then.
    place: Option<(BucketPlace, u64)>,
    /// Known tenants that the bucket lacks, as last logged.
    missing: BTreeSet<String>,
    tell: watch::Sender<KnownTenants>,
    /// Why the bucket can't be read; empty if it can.
    unavailable: String,
}

/// The content of the file that is kept over a restart.
#[derive(Deserialize, Serialize)]
struct SavedTenants {
    #[serde(default)]
    in_force: BTreeSet<String>,
    tenants: BTreeMap<String, StoredTenant>,
}

impl TenantsFollower {
    /// Begins without any knowledge. `dir`: the folder of the process's state. `in_force`: the
    /// tenants whose sections are in force.
    pub(crate) fn new(
        client: &Client,
        dir: Option<&Path>,
        in_force: watch::Receiver<BTreeSet<String>>,
    ) -> (Self, watch::Receiver<KnownTenants>) {
        let (tell, known) = watch::channel(KnownTenants::default());
        let new = Self {
            store: TenantStore::new(client),
            saved_path: dir.map(|dir| dir.join("presence-tenants.json")),
            entries: Entries::new(),
            in_force: BTreeSet::new(),
            now_in_force: in_force,
            place: None,
            missing: BTreeSet::new(),
            tell,
            unavailable: String::new(),
        };
        (new, known)
    }

    /// Follows the bucket for as long as the node runs.
    pub(crate) async fn follow(mut self) {
        // Needed even if the bucket can be read: it may be empty after it was created anew.
        self.remember().await;
        let first = timeout(AT_START, self.refresh()).await;
        if first != Ok(true) {
            if !self.entries.is_empty() {
                tracing::warn!(
                    tenants = self.entries.len(),
                    "the store can't be read yet: its tenants are served as they were last known"
                );
            }
            self.publish_known();
        }
        let mut looks = interval(CHECK_EVERY);
        loop {
            tokio::select! {
                _ = looks.tick() => drop(self.refresh().await),
                Ok(()) = self.now_in_force.changed() => {
                    self.in_force = self.now_in_force.borrow_and_update().clone();
                    self.keep().await;
                }
            }
        }
    }

    /// Reads the bucket, if it has changed. Returns whether it can be read.
    async fn refresh(&mut self) -> bool {
        let read = async {
            let Some(stream) = self.store.stream().await? else {
                // A bucket that is created in its place is read from its beginning.
                self.place = None;
                return match self.entries.is_empty() {
                    true => Ok(None),
                    false => bail!(
                        "the bucket `{TENANTS_BUCKET}` is gone. Bring it back from a backup, or \
                         write its tenants again (`presence tenants apply FILE`)"
                    ),
                };
            };
            // Checked as well, since removing messages doesn't change the last sequence number.
            let messages = stream.cached_info().state.messages;
            let place = (BucketPlace::of(&stream), messages);
            match self.place == Some(place) {
                true => Ok(None),
                false => Ok(Some((place, TenantStore::read(&stream).await?))),
            }
        };
        match read.await {
            Ok(read) => {
                if !std::mem::take(&mut self.unavailable).is_empty() {
                    tracing::info!("the tenants in the store can be read again");
                }
                if let Some((place, entries)) = read {
                    self.log_missing(&entries);
                    self.entries.extend(entries);
                    self.place = Some(place);
                    self.keep().await;
                    self.publish_known();
                }
                true
            }
            Err(error) => {
                let why = Causes(&error).to_string();
                if why != self.unavailable {
                    tracing::error!(
                        "the tenants in the store can't be read, and what was known of them \
                         holds: {why}"
                    );
                    self.unavailable = why;
                }
                false
            }
        }
    }

    /// Logs if the bucket lacks tenants that are known: it was purged, restored from a backup, or
    /// created anew.
    fn log_missing(&mut self, entries: &Entries) {
        let known = self.entries.iter().filter(|(_, it)| it.tenant.is_some());
        let missing = known.filter(|(name, _)| !entries.contains_key(*name));
        let missing: BTreeSet<_> = missing.map(|(name, _)| name.clone()).collect();
        if !missing.is_empty() && missing != self.missing {
            let names: Vec<_> = missing.iter().map(escape::line).collect();
            tracing::error!(
                tenants = missing.len(),
                "the bucket `{TENANTS_BUCKET}` lacks tenants that this node knows from it, as if it had \
                 been made anew or purged: they are served as they were last known, and other nodes \
                 may not know them. Write them again (`presence tenants apply FILE`), and remove \
                 those that are to end: {}",
                names.join(", ")
            );
        }
        self.missing = missing;
    }

    fn publish_known(&self) {
        // Of tenants with the same subjects, the first one in the list has them.
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by_key(|(name, entry)| (!self.in_force.contains(*name), entry.place));
        let tenants = entries.into_iter().filter_map(|(name, entry)| {
            let (name, value) = (shown(name, entry.place), entry.tenant.clone()?);
            Some(StoredEntry { name, value })
        });
        let tenants = tenants.collect();
        let place = self.place.map(|(place, _)| place);
        self.tell.send_replace(KnownTenants { place, tenants });
    }

    /// Reads the file that was kept.
    async fn remember(&mut self) {
        let Some(path) = self.saved_path.clone() else {
            return;
        };
        let Ok(bytes) = run_blocking(move || std::fs::read(path)).await else {
            return;
        };
        let Ok(kept) = serde_json::from_slice::<SavedTenants>(&bytes) else {
            tracing::error!("what was kept of the tenants in the store can't be read");
            return;
        };
        let entries = kept.tenants.into_iter().map(|(name, tenant)| {
            let tenant = Some(Ok(tenant));
            (name, Entry { place: 0, tenant })
        });
        self.entries = entries.collect();
        self.in_force = kept.in_force;
    }

    async fn keep(&self) {
        let Some(path) = self.saved_path.clone() else {
            return;
        };
        let tenants = self.entries.iter().filter_map(|(name, entry)| {
            let tenant = entry.tenant.as_ref()?.as_ref().ok()?;
            Some((name.clone(), tenant.clone()))
        });
        let kept = SavedTenants {
            in_force: self.in_force.clone(),
            tenants: tenants.collect(),
        };
        // Plain data always has a JSON form.
        let bytes = serde_json::to_vec(&kept).unwrap_or_default();
        let written = run_blocking(move || {
            if let Some(dir) = path.parent() {
                private::folder(dir)?;
            }
            anyhow::Ok(private::write(&path, &bytes)?)
        });
        if let Err(error) = written.await {
            tracing::warn!(
                "what is known of the tenants in the store can't be kept for a start without it: \
                 {error:#}"
            );
        }
    }
}
