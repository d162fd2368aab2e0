//! Deciding who may see an online user, and telling the viewers who see a difference.
//!
//! A verdict is reused for as long as it holds. A decision that failed, or that lacks an
//! answer of the directory, is pending: no further viewer is told until it is made again.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;
use roaring::RoaringBitmap;

use super::dirty_users::{DirtyUsers, Phase};
use super::env::Env;
use super::reconcile::{Reconciled, reconcile};
use super::retries::{Retries, Retry};
use super::types::Output;
use crate::departed::{Departed, KnownMetadata};
use crate::directory::Question;
use crate::event::Event;
use crate::ledger::Ledger;
use crate::metadata::Metadata;
use crate::names::Id;
use crate::recipients::Recipients;
use crate::rules::Decision;
use crate::verdicts::{Verdict, Verdicts};

/// How soon a user is decided on again at the earliest because a plugin asks for it, in
/// milliseconds. A plugin may ask for it in every call.
const AGAIN_MS_MIN: u64 = 100;

/// How many users are decided on for the first time, after missing answers have come, before new
/// inputs get their turn.
const FIRST_AT_ONCE: usize = 256;

/// Who may see each user of the shard, and who has been told.
#[derive(Debug)]
pub(super) struct Decisions {
    pub(super) ledger: Ledger,
    pub(super) verdicts: Verdicts,
    pub(super) departed: Departed,
    /// Users on whom to decide again as soon as possible.
    pub(super) dirty: DirtyUsers,
    /// Decisions to make again at a given time: they failed, lack an answer, or a rule asked for
    /// it.
    pub(super) retries: Retries,
    /// Users whom no viewer knows as online, and whose missing answers are cached now.
    pub(super) undecided: BTreeSet<Id>,
    /// The stamps of updates that were broadcast, and of which viewers haven't been told.
    unnotified_updates: HashMap<Id, u64, foldhash::fast::FixedState>,
}

impl Decisions {
    /// No decisions yet. At most `departures_max` departures will be remembered.
    pub(super) fn new(departures_max: usize) -> Self {
        Self {
            ledger: Ledger::default(),
            verdicts: Verdicts::default(),
            departed: Departed::new(departures_max),
            dirty: DirtyUsers::default(),
            retries: Retries::default(),
            undecided: BTreeSet::new(),
            unnotified_updates: HashMap::default(),
        }
    }

    /// A user was announced as online. `is_stated`: by an application.
    pub(super) fn online(&mut self, event: &Arc<Event>, is_stated: bool, env: &mut Env<'_>) {
        self.ledger.online(Arc::clone(event)).is_stated = is_stated;
        self.retries.set(event.user, None);
        self.decide(event, Phase::All, env);
    }

    /// A user was announced as offline. Returns the viewers to tell: all who were told that the
    /// user came online, whatever the rules say now. `status_waits`: a change of the user's status
    /// hasn't been decided on.
    pub(super) fn offline(&mut self, event: &Event, status_waits: bool) -> Recipients {
        // If the last decision is pending, no viewer is told later when the user was last seen.
        let user = event.user;
        let pending = self.retries.pending_until(user).is_some();
        let Some(entry) = self.ledger.offline(user) else {
            let nothing = KnownMetadata::all(&Metadata::default());
            self.departed.note(event, nothing, Recipients::default());
            return Recipients::default();
        };
        let last = entry.current();
        let known = match self.verdicts.keys_read(last) {
            Some(keys) => KnownMetadata::some(&last.metadata, keys),
            None => KnownMetadata::all(&last.metadata),
        };
        let settled = !(pending || status_waits || entry.was_undecided);
        let admitted = match settled {
            true => entry.recipients.clone(),
            false => Recipients::default(),
        };
        self.departed.note(event, known, admitted);
        self.retries.set(user, None);
        self.forget_update(user);
        let ledger = &self.ledger;
        self.verdicts
            .evict_offline(|user| ledger.get(user).is_some(), ledger.len());
        entry.recipients
    }

    /// Replaces what is shown of an online user by this event. Viewers who go on seeing the user,
    /// and see a difference, are told of it. Viewers who lose or gain sight of the user are told as
    /// after any other change.
    ///
    /// Nothing is broadcast. If the decision is pending, viewers are told when it is made.
    pub(super) fn show(&mut self, event: Arc<Event>, env: &mut Env<'_>) {
        if self.ledger.show(&event) {
            self.decide_again(&event, env);
        }
    }

    /// As [`Self::show`], for an event that was just broadcast as an update.
    pub(super) fn show_update(&mut self, event: Arc<Event>, env: &mut Env<'_>) {
        self.unnotified_updates
            .insert(event.user, env.common.clock.stamp());
        self.show(event, env);
    }

    /// As [`Self::show`], but viewers may not be told of the event yet. Rules use it at once, and
    /// viewers who lose sight of the user by it are told.
    pub(super) fn show_later(&mut self, event: Arc<Event>, env: &mut Env<'_>) {
        if self.ledger.defer(&event) {
            self.decide_again(&event, env);
        }
    }

    /// Decides who may see an online user, and tells the viewers who see a difference.
    pub(super) fn decide(&mut self, event: &Arc<Event>, phase: Phase, env: &mut Env<'_>) {
        let wall = env.common.clock.wall();
        if env.common.settings.reuse_verdicts
            && let Some((verdict, again_at)) = self.verdicts.find(wall, event)
        {
            env.reuse_decision(wall, event);
            return self.decided(event, &verdict, again_at, phase, env);
        }
        match env.ask_rules(wall, event) {
            Decision::Decided(renditions, reads) => {
                let verdict = Arc::new(Verdict::new(event.user, renditions));
                let again_at = reads.reconsider_at;
                self.verdicts.keep(wall, event, Arc::clone(&verdict), reads);
                self.decided(event, &verdict, again_at, phase, env);
            }
            Decision::CacheMiss(questions) => {
                self.defer(event.user, false, env);
                let fetches = questions.clone();
                self.retries.fetches.note(event.user, fetches);
                env.out.push(Output::Fetch(questions));
            }
            Decision::Failed(failure) => {
                // One dead letter per event, however often the decision is tried again.
                if let Some(wait_ms) = self.defer(event.user, true, env) {
                    env.plugin_failed(event, &failure, Some(wait_ms));
                }
            }
        }
    }

    /// Decides on some of the users of whom no viewer has been told because answers were missing.
    pub(super) fn decide_first(&mut self, env: &mut Env<'_>) {
        for _ in 0..FIRST_AT_ONCE {
            if env.is_full() {
                return;
            }
            let Some(user) = self.undecided.pop_first() else {
                return;
            };
            if let Some(entry) = self.ledger.get(user) {
                let event = Arc::clone(entry.current());
                self.decide(&event, Phase::All, env);
            }
        }
    }

    /// Forgets a user's update: viewers have been told of it, or the user has no connection any
    /// more.
    pub(super) fn forget_update(&mut self, user: Id) {
        if !self.unnotified_updates.is_empty() {
            self.unnotified_updates.remove(&user);
        }
    }

    /// Whether a decision on an online user depends on an answer of the directory.
    pub(super) fn uses(&self, question: &Question) -> bool {
        let is_online = |user| self.ledger.get(user).is_some();
        self.retries.fetches.has(question) || self.verdicts.reads(question, is_online)
    }

    /// The numbers of all ids in here.
    pub(super) fn ids(&self) -> RoaringBitmap {
        let mut ids = self.ledger.ids()
            | self.verdicts.ids()
            | self.departed.ids()
            | self.retries.fetches.ids();
        ids.extend(self.unnotified_updates.keys().map(|user| user.0));
        ids
    }

    fn decide_again(&mut self, event: &Arc<Event>, env: &mut Env<'_>) {
        let user = event.user;
        if self.retries.pending_until(user).is_some() {
            return;
        }
        // While the user is dirty, viewers who gain sight are told only in the second phase.
        let phase = match self.dirty.has(user) {
            true => Phase::Losses,
            false => Phase::All,
        };
        self.decide(event, phase, env);
    }

    /// Brings what viewers have been told in line with a verdict.
    fn decided(
        &mut self,
        event: &Arc<Event>,
        verdict: &Verdict,
        again_at: Option<u64>,
        phase: Phase,
        env: &mut Env<'_>,
    ) {
        let user = event.user;
        let clock = &env.common.clock;
        let again_at = again_at.filter(|at| *at > clock.wall());
        let earliest = env.common.now() + AGAIN_MS_MIN;
        let again = again_at.map(|at| Retry {
            at: clock.now_at(at).max(earliest),
            next_wait_ms: None,
            pending_since: None,
            has_letter: false,
        });
        let max = env.common.settings.audience_max;
        let is_over = max > 0 && verdict.audience.len() > max;
        if is_over {
            if self.defer(user, true, env).is_some() {
                env.audience_refused(event, verdict.audience.len());
            }
        } else {
            self.retries.set(user, again);
        }
        let Some(entry) = self.ledger.get_mut(user) else {
            return;
        };
        // Viewers who lose sight of the user are told all the same.
        let restricted = is_over.then(|| verdict.among(entry.recipients.audience()));
        let verdict = restricted.as_ref().unwrap_or(verdict);
        let updated_at = match self.unnotified_updates.is_empty() {
            true => None,
            false => self.unnotified_updates.get(&user).copied(),
        };
        let settled = reconcile(entry, event, verdict, phase, updated_at, env);
        let differs = match settled {
            Reconciled::Unchanged => false,
            Reconciled::Published { differs } | Reconciled::Remaining { differs } => differs,
        };
        if differs {
            self.ledger.mark_changed(user);
        }
        match settled {
            Reconciled::Remaining { .. } if phase == Phase::Losses => self.dirty.mark_gaining(user),
            Reconciled::Remaining { .. } => {}
            Reconciled::Unchanged | Reconciled::Published { .. } => self.forget_update(user),
        }
    }

    /// Puts off a decision that has failed, or lacks an answer. No further viewer is told until it
    /// is made. If it is to have a dead letter, returns for how many milliseconds it is put off.
    fn defer(&mut self, user: Id, has_failed: bool, env: &Env<'_>) -> Option<u64> {
        let settings = &env.common.settings;
        let before = self.retries.get(user);
        let pending = before.and_then(|again| again.next_wait_ms);
        let wait_ms = pending.unwrap_or(settings.retry_ms);
        let had_letter = before.is_some_and(|again| again.has_letter);
        let again = Retry {
            at: env.common.now() + wait_ms,
            next_wait_ms: Some(wait_ms.saturating_mul(2).min(settings.retry_ms_max)),
            pending_since: before
                .and_then(|before| before.pending_since)
                .or_else(|| Some(env.common.now())),
            has_letter: had_letter || has_failed,
        };
        self.retries.set(user, Some(again));
        (has_failed && !had_letter).then_some(wait_ms)
    }
}
