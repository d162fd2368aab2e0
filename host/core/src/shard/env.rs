//! What one step of a shard works with: what all parts of the shard share, the rules, and the
//! outputs so far. It is lent to the parts. They know of nothing above them.

use std::sync::Arc;

use super::heartbeats::HeartbeatBatch;
use super::messages::with_other_keys;
use super::settings::Settings;
use super::types::{Counters, Output};
use crate::clock::Clock;
use crate::directory::Directory;
use crate::event::{Change, Event};
use crate::inbox::Inboxes;
use crate::ledger::Ledger;
use crate::metadata::Metadata;
use crate::names::Names;
use crate::publish::Numbering;
use crate::rules::Rules;
use crate::tracker::Tracker;

/// How many users go offline, and how many statements end, before new inputs get their
/// turn.
pub(super) const EXPIRIES_AT_ONCE: usize = 256;

/// How many outputs there may be before they have to be carried out; the event that reaches the
/// limit may exceed it. What is due at one moment may concern everyone who is online.
const OUTPUTS_AT_ONCE: usize = 1_024;

/// What all parts of a shard share.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) settings: Settings,
    pub(super) names: Arc<Names>,
    pub(super) directory: Arc<Directory>,
    pub(super) clock: Clock,
    pub(super) tracker: Tracker<Metadata>,
    pub(super) numbering: Numbering,
    pub(super) inboxes: Inboxes,
    pub(super) counters: Counters,
    /// What has been heard of connections. `None`: it isn't kept.
    pub(super) heartbeats: Option<HeartbeatBatch>,
}

/// What one step works with.
pub(super) struct Env<'a> {
    pub(super) common: &'a mut Common,
    pub(super) rules: &'a mut dyn Rules,
    pub(super) out: &'a mut Vec<Output>,
}

impl Common {
    pub(super) fn new(settings: Settings, names: Arc<Names>, directory: Arc<Directory>) -> Self {
        let (users, connections) = match settings.limits_per_shard {
            true => (
                settings.users.with_same_limit(),
                settings.connections.with_same_limit(),
            ),
            false => (settings.users.clone(), settings.connections.clone()),
        };
        Self {
            tracker: Tracker::new(settings.tracker_settings()).within(&users, &connections),
            settings,
            names,
            directory,
            clock: Clock::default(),
            numbering: Numbering::default(),
            inboxes: Inboxes::default(),
            counters: Counters::default(),
            heartbeats: None,
        }
    }

    /// What a step works with at `now`, or later if the clock is ahead of that.
    pub(super) fn env<'a>(
        &'a mut self,
        now: u64,
        rules: &'a mut dyn Rules,
        out: &'a mut Vec<Output>,
    ) -> Env<'a> {
        self.clock.advance_to(now);
        Env {
            common: self,
            rules,
            out,
        }
    }

    /// The monotonic time.
    pub(super) fn now(&self) -> u64 {
        self.clock.now()
    }

    /// Applies the setting of which keys are broadcast, also to live connections.
    pub(super) fn apply_broadcast(&mut self, ledger: &Ledger) {
        let (broadcast, names) = (&self.settings.broadcast, &self.names);
        self.tracker.update_metadata(
            |conn, given| with_other_keys(broadcast, conn, given),
            |user| ledger.is_stated(user, names),
        );
    }

    /// Other enrichers decide how users are shown.
    pub(super) fn reshow_all(&mut self, ledger: &Ledger) {
        let names = &self.names;
        self.tracker
            .reshow_all(|user| ledger.is_stated(user, names));
    }

    /// Makes an event of a user, whose id it interns.
    pub(super) fn event(
        &self,
        user: &str,
        timestamp: u64,
        change: Change,
        metadata: Metadata,
    ) -> Event {
        let (user, name) = self.names.intern_name(user);
        Event {
            user,
            name,
            timestamp,
            change,
            metadata,
        }
    }
}

impl Env<'_> {
    /// Whether the outputs have to be carried out before there are more.
    pub(super) fn is_full(&self) -> bool {
        self.out.len() >= OUTPUTS_AT_ONCE
    }
}
