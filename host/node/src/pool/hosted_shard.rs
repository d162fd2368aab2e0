//! A shard with everything that belongs to it, as its thread holds it. Its turn is in
//! [`turn`](super::turn).

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use presence_core::quota::Quota;
use presence_sandbox::{Latency, StatefulEnrichers};
use tokio::sync::oneshot;
use tracing::Span;

use super::outbox::{Outbox, Transport};
use super::restart::Restart;
use super::rules::{Comparisons, ShardRules};
use super::shard_or_replica::ShardOrReplica;
use super::shards::ShardFigures;
use super::thread_share::ThreadShare;
use super::turn::CurrentBatch;
use super::unacknowledged::Unacknowledged;
use super::work::Generation;
#[cfg(test)]
use super::work::PanicPoint;

use crate::candidate::Pipelines;
use crate::clock;
use crate::directory::request::AnswerFetcher;
use crate::link::sequencer::Sequencer;
use crate::ops::recent_dead_letters::RecentDeadLetters;
use crate::state::position::ShardPosition;
use crate::state::{Restorer, Saver};
use crate::telemetry::Tracer;
use crate::tenant::failures::FailureLog;
use crate::tenant::quotas::ExceededLog;
use crate::tenant::stale::StaleLog;

/// What all shards of a tenant share.
#[derive(Default)]
pub(crate) struct TenantContext {
    /// The span of the tenant's log lines. `None` if the node has one tenant.
    pub(crate) span: Option<Span>,
    /// The key under which the tenant's plugin lines are kept.
    pub(crate) lines_key: String,
    /// Fetches missing answers of the directory service. `None` if the directory is complete.
    pub(crate) fetcher: Option<Arc<AnswerFetcher>>,
    /// Reads a shard's stored state. `None` if nothing is stored.
    pub(crate) restorer: Option<Restorer>,
    /// How many shards the tenant has.
    pub(crate) shards: usize,
    /// Notes and logs exceeded quotas.
    pub(crate) exceeded: Arc<ExceededLog>,
    /// The tenant's share of the threads.
    pub(crate) share: Arc<ThreadShare>,
    /// Logs failures of plugins.
    pub(crate) failures: FailureLog,
    /// The last dead letters.
    pub(crate) dead_letters: Arc<RecentDeadLetters>,
    /// How long messages take from their arrival until their outputs are handed over.
    pub(crate) publish_latency: Arc<Latency>,
    /// Makes traces of messages. `None` if there are none.
    pub(crate) tracer: Option<Tracer>,
}

/// A shard with everything that belongs to it.
pub(crate) struct HostedShard {
    pub(super) shard: ShardOrReplica,
    pub(super) pipelines: Pipelines,
    /// The shard's own state of the active pipeline, and of the one beside it.
    pub(super) enrichers: StatefulEnrichers,
    pub(super) candidate_enrichers: StatefulEnrichers,
    /// The decisions to compare in spare time, and whether the thread knows that there are some.
    pub(super) comparisons: Comparisons,
    pub(super) has_comparisons: bool,
    pub(super) sequencer: Sequencer,
    /// `None` if nothing is kept over a restart.
    pub(super) saver: Option<Saver>,
    pub(super) tenant: Arc<TenantContext>,
    pub(super) figures: Arc<ShardFigures>,
    pub(super) stale: StaleLog,
    /// The batch that it is handling.
    pub(super) current: Option<CurrentBatch>,
    /// Up to where it has taken the input stream. `None` if it takes none.
    pub(super) position: Option<ShardPosition>,
    /// How many batches it has handled since its last question.
    pub(super) batches: usize,
    /// Whether its last turn handled inputs.
    pub(super) took_inputs: bool,
    /// Whether its inputs may wait for a few milliseconds: those of a standby in step.
    pub(super) is_deferrable: bool,
    /// Whether its last turn called its rules.
    pub(super) called_rules: bool,
    /// The place behind its last entry in the outbox.
    pub(super) output_end: u64,
    /// Its entries in the outbox that the broker hasn't acknowledged, in bytes.
    pub(super) unacknowledged: Unacknowledged,
    /// The place behind its last entry that the broker must acknowledge.
    pub(super) published_end: u64,
    /// The stop that it was told to make.
    pub(super) ending: Option<PendingStop>,
    /// The state of its restart, if it has failed.
    pub(super) restart: Restart,
    /// Whether it waits for a turn, or for room in the outbox.
    pub(super) run_state: RunState,
    /// When its timer is due.
    pub(super) timer: Option<u64>,
    /// Whether the thread knows that changes of this shard wait for the broker.
    pub(super) is_unsaved: bool,
    /// The step at which it must panic next.
    #[cfg(test)]
    pub(super) panics_in: Option<PanicPoint>,
}

/// What a shard waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunState {
    /// It waits for mail or its timer.
    Idle,
    /// It waits for its turn.
    Ready,
    /// It waits for room in the outbox.
    Paused,
}

/// A stop of a shard.
pub(super) struct PendingStop {
    /// Notified when the shard has ended.
    pub(super) done: Option<oneshot::Sender<()>>,
    /// Whether it has done everything that it got before, and has stopped waiting for answers.
    pub(super) has_given_up: bool,
}

impl HostedShard {
    /// A shard that has got no input yet.
    pub(crate) fn new(
        shard: ShardOrReplica,
        generation: Generation,
        sequencer: Sequencer,
        saver: Option<Saver>,
        tenant: Arc<TenantContext>,
        figures: Arc<ShardFigures>,
    ) -> Self {
        Self {
            shard,
            pipelines: Pipelines::alone(generation),
            enrichers: StatefulEnrichers::default(),
            candidate_enrichers: StatefulEnrichers::default(),
            comparisons: Comparisons::default(),
            has_comparisons: false,
            sequencer,
            saver,
            tenant,
            figures,
            stale: StaleLog::default(),
            current: None,
            position: None,
            batches: 0,
            took_inputs: false,
            is_deferrable: false,
            called_rules: false,
            output_end: 0,
            unacknowledged: Unacknowledged::default(),
            published_end: 0,
            ending: None,
            restart: Restart::default(),
            run_state: RunState::Idle,
            timer: None,
            is_unsaved: false,
            #[cfg(test)]
            panics_in: None,
        }
    }

    /// Resets its enrichers to their initial state, and drops the decisions to compare.
    pub(super) fn reset_rules(&mut self) {
        let candidate = self.pipelines.candidate.as_ref();
        let candidate_enrichers = candidate.map(|it| it.generation.blueprint.stateful_enrichers());
        self.enrichers = self.pipelines.active.blueprint.stateful_enrichers();
        self.candidate_enrichers = candidate_enrichers.unwrap_or_default();
        self.comparisons.clear();
    }

    /// Whether it is stopping, and has done everything that it got before.
    pub(super) fn has_given_up(&self) -> bool {
        self.ending.as_ref().is_some_and(|end| end.has_given_up)
    }

    /// Whether it must pause: the outbox is full and contains entries of this shard, or the shard
    /// has too much in it.
    pub(super) fn must_pause<C: Transport>(&mut self, outbox: &Outbox<C>) -> bool {
        let begin = outbox.begin();
        let has_much = outbox
            .shard_bytes_max()
            .is_some_and(|max| self.unacknowledged.bytes_from(begin) >= max);
        has_much || outbox.is_full() && self.output_end > begin
    }

    /// Whether it has more to do now, apart from what waits in its lanes.
    pub(super) fn has_more(&self, now: u64, rules: &ShardRules<'_>) -> bool {
        self.current.is_some()
            || self.shard.next_deadline().is_some_and(|at| at <= now)
            || rules.is_replaced()
            || self.is_giving_up()
    }

    /// Whether it is stopping, and still has work to do or answers to wait for.
    pub(super) fn is_giving_up(&self) -> bool {
        self.ending.is_some() && !self.has_given_up()
    }

    /// When it needs a turn without mail. `None` if it doesn't.
    pub(super) fn due(&self) -> Option<u64> {
        if self.ending.is_some() || self.restart.is_under_way() {
            return None;
        }
        let saver = self.saver.as_ref();
        let save_at = saver.and_then(|saver| saver.due(&self.shard, self.position));
        self.shard.next_deadline().into_iter().chain(save_at).min()
    }

    /// Sends a beacon, if the node serves and owns the shard.
    pub(super) fn send_beacon<C: Transport>(&mut self, outbox: &mut Outbox<C>) {
        #[cfg(test)]
        self.may_panic(PanicPoint::Beacon);
        if self.sequencer.has_begun && self.shard.is_leading(clock::now_ms()) {
            self.output_end = outbox.push(self.sequencer.beacon());
            self.published_end = self.output_end;
        }
    }

    /// Hands changes to the state, if it is time.
    pub(super) fn save<C: Transport>(&mut self, outbox: &Outbox<C>) {
        #[cfg(test)]
        self.may_panic(PanicPoint::Save);
        let broker = (self.published_end, outbox.acknowledged());
        if let Some(saver) = &mut self.saver
            && !saver.save(&mut self.shard, self.position, broker)
        {
            tracing::error!(
                "the writer of the state has ended: changes from now on are lost at a restart"
            );
            self.saver = None;
            self.shard.keep_records(false);
        }
    }

    /// The place up to which the broker must have everything before taken changes can be stored.
    /// `None` if none were taken.
    pub(super) fn waits_for(&self) -> Option<u64> {
        self.saver.as_ref()?.waits_for()
    }

    /// Reports to the fleet that the shard is resigned, once the broker has everything that it
    /// published. Returns whether the shard still waits for this.
    pub(super) fn waits_to_resign<C: Transport>(&mut self, outbox: &mut Outbox<C>) -> bool {
        let Some(replica) = self.shard.as_replica() else {
            return false;
        };
        let Some(place) = replica.resigns_at() else {
            return false;
        };
        // Entries that were put aside get new places at the end of the outbox, so the old place
        // says nothing about them.
        if outbox.has_aside(replica.lease()) || outbox.settled(place) != Some(true) {
            return true;
        }
        replica.report_resigned();
        false
    }

    /// Whether it has ended: all of its entries have been handed over, and the state has all of its
    /// changes, as far as possible.
    pub(super) fn try_end<C: Transport>(&mut self, outbox: &mut Outbox<C>) -> bool {
        if !self.has_given_up() {
            return false;
        }
        #[cfg(test)]
        self.may_panic(PanicPoint::End);
        let end = self.published_end;
        let Some(saver) = &mut self.saver else {
            return outbox.is_handed(self.output_end).is_some();
        };
        // If the broker can't be reached, the last changes are not stored.
        match outbox.settled(end) {
            Some(true) => saver.save_all(&mut self.shard, self.position, end),
            Some(false) => {
                tracing::warn!(
                    "NATS can't be reached, and has not acknowledged the last messages: the state \
                     doesn't include them, and the next start publishes them again"
                );
                true
            }
            None => false,
        }
    }

    #[cfg(test)]
    pub(super) fn may_panic(&mut self, step: PanicPoint) {
        if self.panics_in.take_if(|at| *at == step).is_some() {
            panic!("told to");
        }
    }

    pub(super) fn update_figures(&mut self) {
        #[cfg(test)]
        self.may_panic(PanicPoint::Figures);
        let figures = &self.figures;
        let counters = self.shard.counters();
        let before = figures.counters.lock();
        let before = std::mem::replace(
            &mut *before.unwrap_or_else(PoisonError::into_inner),
            counters,
        );
        if counters.dead_letters_left_out > before.dead_letters_left_out {
            let error = "there are more dead letters than may be published ([dead_letters] per_s): \
                         some are counted, and not published";
            self.tenant.exceeded.log(Quota::DeadLetters, error);
        }
        // A standby has the same users as the owner, so its figures would count twice.
        let leads = self.shard.is_leading(clock::now_ms());
        figures.leads.store(leads.into(), Ordering::Relaxed);
        let synced = self.shard.is_synced();
        figures.synced.store(synced.into(), Ordering::Relaxed);
        let without_clock = !self.shard.needs_clock();
        figures
            .needs_no_watermark
            .store(without_clock, Ordering::Relaxed);
        let own = |count: usize| if leads { count as u64 } else { 0 };
        let online_users = own(self.shard.online_users());
        figures.online_users.store(online_users, Ordering::Relaxed);
        let connections = own(self.shard.connections());
        figures.connections.store(connections, Ordering::Relaxed);
        let (pending, since) = self.shard.pending();
        figures.pending.store(own(pending), Ordering::Relaxed);
        let since = since.filter(|_| leads).unwrap_or_default();
        figures.pending_since.store(since, Ordering::Relaxed);
        let backlog = own(self.shard.backlog());
        figures.backlog.store(backlog, Ordering::Relaxed);
        if backlog == 0 {
            let settled = self.pipelines.active.number;
            figures.settled.store(settled, Ordering::Relaxed);
        }
    }
}
