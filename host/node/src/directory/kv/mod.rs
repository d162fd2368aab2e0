//! The directory as a NATS KV bucket, watched.
//!
//! A key is a section and a user or group: `contacts.12345`, `groups.team-a`, `blocks.12345` or
//! `settings.12345`. Its value is what a directory file has at this place.
//!
//! A watch alone doesn't notice that its bucket has vanished, was purged, or was replaced by
//! another: it goes on waiting. So the identity and the end of the bucket's stream are checked
//! regularly ([`followed`]). If they don't fit what was followed, the whole bucket is read again.

mod entries;
mod followed;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use async_nats::Client;
use async_nats::connection::State;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::{self, ErrorCode, kv, stream};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use presence_config::causes::Causes;
use presence_config::directory::ValueRoom;
use presence_core::directory::{Changes, Directory};
use presence_core::names::Names;
use tokio::sync::mpsc;

use super::health::DirectoryHealth;
use crate::link::connection::Connection;
use entries::Entries;
use followed::{Followed, StreamCheck};

pub(crate) use entries::Refusals;

/// How long to wait before the bucket is tried again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// The wait before a bucket with too many entries is read again: at first, and at most if the
/// bucket changes all the time.
const TOO_LARGE_RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

/// How often the identity and the end of the bucket's stream are checked.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// How many checks in a row may fail while the broker is connected.
const FAILED_CHECKS_MAX: u32 = 3;

/// How long the next entry may take while the bucket is read.
const READ: Duration = Duration::from_secs(10);

/// How many changes are passed on together, at most.
const BATCH_MAX: usize = 4_096;

/// News from the bucket.
#[derive(Debug)]
pub(crate) enum DirectoryUpdate {
    /// All of its entries, and the bucket's identity.
    Whole(Entries, String),
    /// All of its entries, and why they may not be the whole directory. Entries that it lacks stay
    /// as they were.
    Doubtful(Entries, String),
    /// The changed entries.
    Part(Entries),
    /// The bucket can't be read, and why.
    Unavailable(String),
    /// The bucket has more entries than allowed. They were not read.
    TooLarge,
}

/// Follows a bucket, and sends its content and changes.
pub(crate) struct BucketFollower {
    client: Client,
    bucket: String,
    health: Arc<DirectoryHealth>,
    updates: mpsc::Sender<DirectoryUpdate>,
    /// The identity of the bucket that was last taken as the directory.
    accepted: Option<String>,
    /// What had been followed of the bucket that was last taken as the directory.
    before: Option<Followed>,
    /// A mismatch that has been checked by reading again, and needs no further check. See
    /// [`Followed`].
    known_mismatch: Option<(u64, u64)>,
}

/// Why following a bucket has ended.
enum Ended {
    /// The whole bucket must be read again.
    Again,
    /// A doubtful bucket has been quiet: its content is taken as the directory.
    Accepted,
    /// The bucket had too many entries. With the end of its stream at that time; `None` if it may
    /// have too many, and that isn't known.
    TooLarge(Option<u64>),
    /// The receiver of updates is gone.
    Closed,
}

impl BucketFollower {
    /// `accepted`: the identity of the bucket that was taken as the directory when the node last
    /// ran.
    pub(crate) fn new(
        connection: &Connection,
        bucket: String,
        health: Arc<DirectoryHealth>,
        updates: mpsc::Sender<DirectoryUpdate>,
        accepted: Option<String>,
    ) -> Self {
        Self {
            client: connection.client().clone(),
            bucket,
            health,
            updates,
            accepted,
            before: None,
            known_mismatch: None,
        }
    }

    /// Follows the bucket until the receiver of updates is gone.
    pub(crate) async fn follow(mut self) {
        let mut wait = RETRY.0;
        let mut accept = false;
        let mut has_said = false;
        let mut too_large = (TOO_LARGE_RETRY.0, Instant::now());
        loop {
            match self.watch(accept).await {
                Ok(Ended::Closed) => return,
                Ok(Ended::TooLarge(up_to)) => {
                    (wait, has_said, accept) = (RETRY.0, true, false);
                    if too_large.1.elapsed() > 2 * TOO_LARGE_RETRY.1 {
                        too_large.0 = TOO_LARGE_RETRY.0;
                    }
                    self.wait_for_fit(up_to, too_large.0).await;
                    too_large = ((too_large.0 * 2).min(TOO_LARGE_RETRY.1), Instant::now());
                    continue;
                }
                Ok(ended) => {
                    (wait, has_said) = (RETRY.0, true);
                    accept = matches!(ended, Ended::Accepted);
                    continue;
                }
                // A missing broker says nothing about the bucket, and is reported elsewhere.
                Err(_) if has_said && !self.is_connected() => wait = RETRY.0,
                Err(error) => {
                    (accept, has_said) = (false, true);
                    let update = DirectoryUpdate::Unavailable(Causes(&error).to_string());
                    if self.updates.send(update).await.is_err() {
                        return;
                    }
                    wait = (wait * 2).min(RETRY.1);
                }
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Waits until a bucket with too many entries has changed, or the limit has.
    async fn wait_for_fit(&self, up_to: Option<u64>, wait: Duration) {
        let has_changed = async {
            tokio::time::sleep(wait).await;
            let jetstream = jetstream::new(self.client.clone());
            // A stream that can't be checked is read again, which reports why.
            while let (Some(up_to), Ok(Some(stream))) = (up_to, self.stream(&jetstream).await)
                && stream.cached_info().state.last_sequence == up_to
            {
                tokio::time::sleep(CHECK_EVERY).await;
            }
        };
        tokio::select! {
            () = has_changed => {}
            () = self.health.reread_requested() => {}
        }
    }

    fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Reads the bucket, and watches it until the watch ends. `accept`: its content counts as the
    /// directory even if it is another bucket than before.
    async fn watch(&mut self, accept: bool) -> anyhow::Result<Ended> {
        let jetstream = jetstream::new(self.client.clone());
        if self.stream(&jetstream).await?.is_none() {
            self.make(&jetstream).await?;
        }
        let store = jetstream.get_key_value(&self.bucket).await?;
        let entries_max = self.health.entries_max();
        let (entries, watch, mut followed) =
            match begin(&store, self.known_mismatch, entries_max).await? {
                Ok(begun) => begun,
                Err(up_to) => {
                    let sent = self.updates.send(DirectoryUpdate::TooLarge).await;
                    return Ok(sent.map_or(Ended::Closed, |()| Ended::TooLarge(Some(up_to))));
                }
            };
        let doubt = self.why_doubtful(&followed, accept);
        let is_doubtful = doubt.is_some();
        let update = match doubt {
            Some(why) => DirectoryUpdate::Doubtful(entries, why),
            None => {
                self.accepted = Some(followed.identity().to_owned());
                DirectoryUpdate::Whole(entries, followed.identity().to_owned())
            }
        };
        if self.updates.send(update).await.is_err() {
            return Ok(Ended::Closed);
        }
        let ended = self
            .follow_changes(&jetstream, watch, &mut followed, is_doubtful)
            .await;
        self.known_mismatch = followed.known_mismatch();
        if !is_doubtful {
            self.before = Some(followed);
        }
        ended
    }

    /// Sends what the watch reports, until the whole bucket must be read again.
    async fn follow_changes(
        &self,
        jetstream: &jetstream::Context,
        mut watch: kv::Watch,
        followed: &mut Followed,
        is_doubtful: bool,
    ) -> anyhow::Result<Ended> {
        let mut look =
            tokio::time::interval_at(tokio::time::Instant::now() + CHECK_EVERY, CHECK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failed = 0;
        loop {
            tokio::select! {
                entry = watch.next() => {
                    let mut part = Entries::new();
                    let mut next = Some(entry);
                    while let Some(entry) = next {
                        let entry = entry.context("the watch of the bucket has ended")??;
                        followed.note(&entry);
                        insert(&mut part, entry);
                        let more = part.len() < BATCH_MAX;
                        next = more.then(|| watch.next().now_or_never()).flatten();
                    }
                    if self.updates.send(DirectoryUpdate::Part(part)).await.is_err() {
                        return Ok(Ended::Closed);
                    }
                }
                () = self.health.reread_requested() => return Ok(Ended::TooLarge(None)),
                _ = look.tick() => {
                    let stream = match self.stream(jetstream).await {
                        Ok(Some(stream)) => stream,
                        Ok(None) => bail!(self.gone()),
                        Err(_) if !self.is_connected() => continue,
                        Err(error) => {
                            failed += 1;
                            if failed >= FAILED_CHECKS_MAX {
                                return Err(error);
                            }
                            continue;
                        }
                    };
                    failed = 0;
                    match followed.check(stream.cached_info()) {
                        StreamCheck::Quiet if is_doubtful => return Ok(Ended::Accepted),
                        StreamCheck::Followed | StreamCheck::Quiet => {}
                        StreamCheck::Other => return Ok(Ended::Again),
                    }
                }
            }
        }
    }

    /// The bucket's stream. `None` if the bucket doesn't exist.
    async fn stream(
        &self,
        jetstream: &jetstream::Context,
    ) -> anyhow::Result<Option<stream::Stream>> {
        match jetstream.get_stream(format!("KV_{}", self.bucket)).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(why)
                    if why.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    Ok(None)
                }
                _ => Err(error).with_context(|| format!("can't read the bucket {}", self.bucket)),
            },
        }
    }

    /// Creates the bucket, unless one with content has vanished: an empty bucket must not replace
    /// that directory, and whoever fills it again may need another configuration.
    async fn make(&self, jetstream: &jetstream::Context) -> anyhow::Result<()> {
        if self.health.has_entries() {
            bail!(self.gone());
        }
        let config = kv::Config {
            bucket: self.bucket.clone(),
            description: "presence: contacts, groups, blocks and settings".into(),
            ..kv::Config::default()
        };
        let made = jetstream.create_key_value(config).await.map(drop);
        let what = || format!("there is no bucket {}, and it can't be made", self.bucket);
        made.with_context(what)
    }

    fn gone(&self) -> String {
        format!("the bucket {} is gone: make and fill it again", self.bucket)
    }

    /// Why the bucket's content may not be the whole directory. `None`: there is no doubt.
    fn why_doubtful(&self, followed: &Followed, accept: bool) -> Option<String> {
        if !self.health.has_entries() {
            return None;
        }
        let bucket = &self.bucket;
        if followed.is_empty() {
            return Some(format!(
                "the bucket {bucket} is empty, where it wasn't: fill it again (to empty a \
                 directory, delete its keys)"
            ));
        }
        let identity = followed.identity();
        let settled = "once nothing has been written to it for a few seconds, it is taken as the \
                       whole directory";
        if accept {
            return None;
        }
        if self.accepted.as_deref().is_some_and(|it| it != identity) {
            return Some(format!(
                "the bucket {bucket} is not the one that was read before, but was made at \
                 {identity}: {settled}"
            ));
        }
        let before = self.before.as_ref();
        before
            .is_some_and(|it| it.has_lost(followed))
            .then(|| format!("the bucket {bucket} has lost keys that nobody deleted: {settled}"))
    }
}

/// Reads the whole directory from a bucket, once.
///
/// # Errors
/// If there is no such bucket, or it can't be read.
pub(crate) async fn read(client: Client, bucket: &str, names: &Names) -> anyhow::Result<Directory> {
    let what = || format!("can't read the directory's bucket {bucket}");
    let store = jetstream::new(client).get_key_value(bucket).await;
    let store = store.with_context(what)?;
    let begun = begin(&store, None, u64::MAX).await.with_context(what)?;
    let (whole, _, _) = begun.map_err(|_| anyhow!("it has too many entries"))?;
    Ok(Refusals::default()
        .replace(whole, names, &Directory::new())
        .0)
}

/// Reads all of a bucket's entries, and returns them with a watch for later changes. If there are
/// more than `entries_max`, it stops reading, and returns the end of the stream.
async fn begin(
    store: &kv::Store,
    known_mismatch: Option<(u64, u64)>,
    entries_max: u64,
) -> anyhow::Result<Result<(Entries, kv::Watch, Followed), u64>> {
    let info = store.stream.get_info().await?;
    let mut followed = Followed::new(&info, known_mismatch);
    let mut room = ValueRoom::of(entries_max);
    let mut watch = store.watch_with_history(">").await?;
    let mut whole = Entries::new();
    let mut current = info.state.messages == 0;
    while !current {
        let entry = tokio::time::timeout(READ, watch.next()).await;
        let entry = entry.context("the bucket's entries don't come")?;
        let entry = entry.context("the watch of the bucket has ended")??;
        current = entry.seen_current;
        followed.note(&entry);
        if let Some(value) = value_of(&entry) {
            match room.take(value) {
                Some(left) => room = left,
                None => return Ok(Err(info.state.last_sequence)),
            }
        }
        if let Some(before) = insert(&mut whole, entry) {
            room = room.give_back(&before);
        }
    }
    Ok(Ok((whole, watch, followed)))
}

fn value_of(entry: &kv::Entry) -> Option<&Bytes> {
    (entry.operation == kv::Operation::Put).then_some(&entry.value)
}

/// Notes an entry. Returns the value that was noted for its key before.
fn insert(entries: &mut Entries, entry: kv::Entry) -> Option<Bytes> {
    let value = value_of(&entry).cloned();
    entries.insert(entry.key, value).flatten()
}

impl DirectoryUpdate {
    /// The directory after this update. `None` if the update has no entries.
    pub(crate) fn apply(
        self,
        refusals: &mut Refusals,
        names: &Names,
        before: &Directory,
    ) -> Option<(Directory, Changes)> {
        match self {
            Self::Whole(entries, _) => Some(refusals.replace(entries, names, before)),
            Self::Doubtful(entries, _) | Self::Part(entries) => {
                Some(refusals.change(entries, names, before))
            }
            Self::Unavailable(_) | Self::TooLarge => None,
        }
    }
}
