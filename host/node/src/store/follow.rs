//! Follows the store: fetches the plugins of the newest revision, and passes it on to be loaded.
//! Revision numbers only grow: a node never goes back to a lower number than it has run, whatever
//! happens to the bucket.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::Client;
use async_nats::connection::State as Link;
use futures_util::StreamExt as _;
use presence_config::Config;
use presence_config::causes::Causes;
use presence_config::digest::Digest;
use presence_config::regular_file::Limit;
use presence_config::revision::Revision;
use presence_rules::store_cache::{HeldPlugins, StoreCache};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};

use super::state::StoreState;
use super::{FoundRevision, Store};
use crate::link::alerts::Alerts;
use crate::tasks::blocking;

/// How often a newer revision is looked for, if no message announced one.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// The longest wait before a revision that can't be fetched is tried again.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long a start waits for a store that doesn't answer, and the wait between two attempts.
const START: Duration = Duration::from_secs(5);
const START_AGAIN: Duration = Duration::from_millis(250);

/// The error text for a store that can't be read.
const UNREADABLE: &str = "the plugin store can't be read";

/// News from the store.
#[derive(Debug)]
pub(crate) enum RevisionUpdate {
    /// A newer revision, whose plugins are on this node.
    Revision(Arc<Revision>),
    /// A newer revision that can't be read, or whose plugins can't be fetched.
    Refused(u64, String),
}

/// Fetches plugins from the store to this node.
#[derive(Clone)]
pub(crate) struct PluginFetcher {
    pub(crate) store: Store,
    pub(crate) cache: Arc<StoreCache>,
}

impl PluginFetcher {
    /// Fetches a revision's plugins to this node, where they stay while the result is held.
    ///
    /// # Errors
    /// If one of them can't be fetched.
    pub(crate) async fn fetch(
        &self,
        revision: &Revision,
        limit: Limit,
    ) -> anyhow::Result<HeldPlugins> {
        let held = self.hold(revision.digests()).await?;
        for digest in revision.digests() {
            self.fetch_missing(&digest, limit).await?;
        }
        Ok(held)
    }

    /// Fetches a plugin to this node, where it stays while the result is held.
    ///
    /// # Errors
    /// If it can't be fetched.
    pub(crate) async fn fetch_plugin(
        &self,
        digest: &Digest,
        limit: Limit,
    ) -> anyhow::Result<HeldPlugins> {
        let held = self.hold([digest.clone()].into()).await?;
        self.fetch_missing(digest, limit).await?;
        Ok(held)
    }

    async fn hold(&self, digests: BTreeSet<Digest>) -> anyhow::Result<HeldPlugins> {
        let cache = Arc::clone(&self.cache);
        Ok(blocking(move || cache.hold(digests)).await?)
    }

    async fn fetch_missing(&self, digest: &Digest, limit: Limit) -> anyhow::Result<()> {
        let (cache, known) = (Arc::clone(&self.cache), digest.clone());
        let is_there = blocking(move || cache.plugin(&known, limit).is_ok());
        if is_there.await? {
            return Ok(());
        }
        let bytes = self.store.plugin(digest, limit).await?;
        let (cache, digest) = (Arc::clone(&self.cache), digest.clone());
        blocking(move || cache.keep(&digest, bytes)).await?
    }
}

/// The limit for the length of a plugin from the store.
pub(crate) fn limit(config: &Config) -> Limit {
    Limit {
        bytes_max: config.plugins.file_bytes_max,
        key: "[plugins] file_bytes_max",
    }
}

/// The revisions that a node can start with.
#[derive(Default)]
pub(crate) struct StartRevisions {
    /// The newest revision of the store.
    pub(crate) newest: Option<Arc<Revision>>,
    /// The one that was last in force on this node.
    pub(crate) kept: Option<Arc<Revision>>,
}

/// Finds the revisions that the node can start with. Logs if the store can't be read, or has lost
/// the revision that was in force.
pub(crate) async fn begin(
    fetcher: &PluginFetcher,
    limit: Limit,
    state: &StoreState,
) -> StartRevisions {
    let kept = Arc::clone(&fetcher.cache);
    let kept = blocking(move || kept.revision()).await;
    let kept = kept.map_err(Into::into).and_then(|kept| kept);
    let kept = kept.unwrap_or_else(|error| {
        tracing::error!("{}", Causes(&error));
        None
    });
    let before = kept.as_ref().map_or(0, |it| it.revision);
    let mut begin = StartRevisions {
        newest: None,
        kept: kept.map(Arc::new),
    };
    let goes_on = || match before {
        0 => "nothing is kept on this node either".to_owned(),
        _ => format!("starting with revision {before}, which this node has kept"),
    };
    let until = Instant::now() + START;
    let newest = loop {
        let asked = timeout_at(until, highest(fetcher, limit)).await;
        let asked = asked.context("it doesn't answer").flatten();
        match asked {
            Ok(newest) => break Ok(newest),
            Err(error) if Instant::now() + START_AGAIN >= until => break Err(error),
            Err(_) => sleep(START_AGAIN).await,
        }
    };
    match newest {
        Ok(Some(Ok(newest))) if newest.revision > before => begin.newest = Some(newest.into()),
        Ok(Some(Ok(newest))) if newest.revision == before => {
            if begin.kept.as_deref() == Some(&newest) {
                begin.newest = Some(newest.into());
            } else {
                tracing::error!("{}; {}", altered(&fetcher.store, before), goes_on());
            }
        }
        Ok(Some(Err((number, why)))) if number > before => {
            tracing::error!("revision {number} is refused, {}: {why}", goes_on());
            state.refuse(number, why);
        }
        Ok(Some(Err((number, why)))) if number == before => {
            tracing::error!(
                "revision {number} can't be had from the store: {why}; {}",
                goes_on()
            );
        }
        Ok(_) if before > 0 => {
            tracing::warn!("the plugin store has lost revision {before}; {}", goes_on())
        }
        Ok(_) => {}
        Err(error) => {
            let why = unreadable(&error);
            tracing::warn!("{why}; {}", goes_on());
            state.set_unreadable(Some(why));
        }
    }
    begin
}

/// The store's current revision, with its plugins on this node; or its number and why it can't be
/// used. `None` if the store has none.
async fn highest(
    fetcher: &PluginFetcher,
    limit: Limit,
) -> anyhow::Result<Option<Result<Revision, (u64, String)>>> {
    let Some(FoundRevision {
        number, revision, ..
    }) = fetcher.store.newest().await?
    else {
        return Ok(None);
    };
    let ready = match revision {
        // Nothing else is put in force during a start, so the plugins needn't be held.
        Ok(revision) => fetcher.fetch(&revision, limit).await.map(|_| revision),
        Err(error) => Err(error),
    };
    let ready = ready.map_err(|error| (number, Causes(&error).to_string()));
    Ok(Some(ready))
}

/// The error text for a store that can't be read, with the reason.
fn unreadable(error: &anyhow::Error) -> String {
    format!("{UNREADABLE}: {}", Causes(error))
}

/// The error text for a revision that differs from the one that the node has run under its number.
fn altered(store: &Store, number: u64) -> String {
    format!(
        "revision {number} in the bucket `{}` was altered, and revisions are written once: this \
         node doesn't take it",
        store.pipeline()
    )
}

/// Follows the store.
pub(crate) struct RevisionFollower {
    pub(crate) client: Client,
    pub(crate) fetcher: PluginFetcher,
    pub(crate) config: watch::Receiver<Config>,
    pub(crate) state: Arc<StoreState>,
    pub(crate) alerts: Alerts,
    pub(crate) updates: mpsc::Sender<RevisionUpdate>,
}

impl RevisionFollower {
    /// Follows the store until the node ends.
    pub(crate) async fn follow(self) {
        let mut last = LastUpdate {
            number: self.state.in_force().map_or(0, |it| it.revision),
            refused: None,
            _held: None,
        };
        let subject = self.fetcher.store.subject("*");
        // Without the permission for this subscription, new revisions are noticed a little later.
        let Ok(mut written) = self.client.subscribe(subject).await else {
            return;
        };
        let mut look = interval(CHECK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The last reported problem of the bucket; empty if there is none.
        let mut doubt = self.state.unreadable().unwrap_or_default();
        loop {
            tokio::select! {
                _ = look.tick() => {}
                Some(_) = written.next() => {}
            }
            // A missing broker is reported elsewhere.
            if self.client.connection_state() != Link::Connected {
                continue;
            }
            let new = match self.check_store(&mut last).await {
                Ok(None) => continue,
                Ok(Some(new)) => new,
                Err(error) => unreadable(&error),
            };
            if new != doubt {
                if !new.is_empty() {
                    tracing::warn!("{new}; what runs goes on");
                    self.alerts.raise("store", json!({"error": new}));
                }
                let is_away = new.starts_with(UNREADABLE);
                self.state.set_unreadable(is_away.then(|| new.clone()));
                doubt = new;
            }
        }
    }

    /// Looks for a newer revision, and passes it on. Returns what is wrong with the bucket; empty
    /// if nothing is. `None` if there is nothing to report.
    async fn check_store(&self, last: &mut LastUpdate) -> anyhow::Result<Option<String>> {
        let newest = self.fetcher.store.newest().await?;
        let Some(FoundRevision {
            number, revision, ..
        }) = newest
        else {
            let lost = (last.number > 0).then(|| {
                format!(
                    "the bucket `{}` has no revisions any more",
                    self.fetcher.store.pipeline()
                )
            });
            return Ok(Some(lost.unwrap_or_default()));
        };
        if number < last.number {
            return Ok(Some(format!(
                "the bucket `{}` ends with revision {number}, and this node has run {}",
                self.fetcher.store.pipeline(),
                last.number
            )));
        }
        if number == last.number {
            let in_force = self.state.in_force().filter(|it| it.revision == number);
            let is_altered = in_force.is_some_and(|it| revision.is_ok_and(|found| found != *it));
            let altered = is_altered.then(|| altered(&self.fetcher.store, number));
            return Ok(Some(altered.unwrap_or_default()));
        }
        let now = Instant::now();
        if last
            .refused
            .as_ref()
            .is_some_and(|it| it.waits(number, now))
        {
            return Ok(None);
        }
        let ready = match revision {
            Ok(revision) => {
                let limit = limit(&self.config.borrow());
                let fetched = self.fetcher.fetch(&revision, limit).await;
                fetched.map(|held| (revision, held))
            }
            Err(error) => Err(error),
        };
        let update = match ready {
            Ok((revision, held)) => {
                *last = LastUpdate {
                    number,
                    refused: None,
                    _held: Some(held),
                };
                RevisionUpdate::Revision(Arc::new(revision))
            }
            Err(error) => {
                let why = Causes(&error).to_string();
                let before = last.refused.take();
                let is_said = before.as_ref().is_some_and(|it| it.is(number, &why));
                last.refused = Some(FailedRevision::after_failure(before, number, &why, now));
                if is_said {
                    return Ok(None);
                }
                RevisionUpdate::Refused(number, why)
            }
        };
        // If the receiver is gone, the node is ending.
        let _ = self.updates.send(update).await;
        Ok(Some(String::new()))
    }
}

/// What was passed on last.
struct LastUpdate {
    /// The number of the newest revision that was passed on.
    number: u64,
    /// A revision that could not be fetched.
    refused: Option<FailedRevision>,
    /// Holds the plugins of the newest one, also while an earlier one is put in force.
    _held: Option<HeldPlugins>,
}

/// A revision that can't be used, for example because a plugin is missing. It is tried again after
/// waits that become longer, since plugins are large.
struct FailedRevision {
    number: u64,
    /// The reported reason.
    why: String,
    pause: Duration,
    retry_at: Instant,
}

impl FailedRevision {
    /// Notes another failure. `before`: the last failure, which may be of the same revision.
    fn after_failure(before: Option<Self>, number: u64, why: &str, now: Instant) -> Self {
        let same = before.filter(|it| it.number == number);
        let pause = same.map_or(CHECK_EVERY, |it| (it.pause * 2).min(PAUSE_MAX));
        Self {
            number,
            why: why.into(),
            pause,
            // Half an interval early, so that the wait ends before a tick and not just after it.
            retry_at: now + pause - CHECK_EVERY / 2,
        }
    }

    fn is(&self, number: u64, why: &str) -> bool {
        (self.number, &*self.why) == (number, why)
    }

    fn waits(&self, number: u64, now: Instant) -> bool {
        self.number == number && now < self.retry_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cant_be_had_is_tried_again_less_and_less_often() {
        let begin = Instant::now();
        let mut refused: Option<FailedRevision> = None;
        let mut tries = Vec::new();
        for second in (0..600).step_by(2) {
            let now = begin + Duration::from_secs(second);
            if refused.as_ref().is_some_and(|it| it.waits(7, now)) {
                continue;
            }
            tries.push(second);
            refused = Some(FailedRevision::after_failure(
                refused.take(),
                7,
                "missing",
                now,
            ));
        }
        assert_eq!(tries[..6], [0, 2, 6, 14, 30, 62]);
        assert_eq!(tries.len(), 14, "{tries:?}");
        let refused = refused.unwrap();
        assert!(refused.is(7, "missing") && !refused.is(7, "altered"));
        assert!(!refused.waits(8, begin), "another one is not waited for");
        let next = FailedRevision::after_failure(Some(refused), 8, "missing", begin);
        assert_eq!(next.pause, CHECK_EVERY);
    }
}
