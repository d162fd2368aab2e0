//! A shard as its thread has it: a value with all that belongs to it. What is done in its
//! turn is in [`turn`](super::turn).

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use presence_core::quota::Quota;
use presence_sandbox::{Latency, StatefulEnrichers};
use tokio::sync::oneshot;
use tracing::Span;

use super::cell::Cell;
use super::outbox::{Outbox, Transport};
use super::restart::Restart;
use super::rules::{Comparisons, ShardRules};
use super::shards::ShardFigures;
use super::thread_share::ThreadShare;
use super::turn::CurrentBatch;
use super::unacknowledged::Unacknowledged;
use super::work::Generation;
#[cfg(test)]
use super::work::PanicPoint;

use crate::beside::Pipelines;
use crate::clock;
use crate::directory::request::AnswerFetcher;
use crate::link::sequencer::Sequencer;
use crate::ops::recent_dead_letters::RecentDeadLetters;
use crate::state::position::ShardPosition;
use crate::state::{Restorer, Saver};
use crate::telemetry::Tracer;
use crate::tenant::failures::FailureLog;
use crate::tenant::quotas::Exceeded;
use crate::tenant::stale::StaleLog;

/// What all shards of a tenant have in common.
#[derive(Default)]
pub(crate) struct TenantContext {
    /// What is logged of them is in it; none where the node has one tenant.
    pub(crate) span: Option<Span>,
    /// What lines of its plugins are known by.
    pub(crate) lines_key: String,
    /// None where the directory holds all of its answers.
    pub(crate) fetcher: Option<Arc<AnswerFetcher>>,
    /// Reads what was stored of a shard; none where nothing is.
    pub(crate) restorer: Option<Restorer>,
    /// How many shards there are.
    pub(crate) shards: usize,
    /// What is told of its quotas.
    pub(crate) exceeded: Arc<Exceeded>,
    /// Its share of the threads.
    pub(crate) share: Arc<ThreadShare>,
    /// What the log was told of plugins that fail.
    pub(crate) failures: FailureLog,
    /// The last dead letters.
    pub(crate) letters: Arc<RecentDeadLetters>,
    /// How long messages take from their arrival until what comes of them is handed over.
    pub(crate) passage: Arc<Latency>,
    /// What makes traces of messages, if any are made.
    pub(crate) tracer: Option<Tracer>,
}

/// A shard, with all that belongs to it.
pub(crate) struct HostedShard {
    pub(super) shard: Cell,
    pub(super) pipelines: Pipelines,
    /// What it has of its own of the active one, and of the one beside it.
    pub(super) own: StatefulEnrichers,
    pub(super) own_beside: StatefulEnrichers,
    /// Decisions to compare in spare time, and whether the thread has noted that there are some.
    pub(super) comparisons: Comparisons,
    pub(super) has_comparisons: bool,
    pub(super) sequencer: Sequencer,
    /// None where nothing is kept over a restart.
    pub(super) saver: Option<Saver>,
    pub(super) tenant: Arc<TenantContext>,
    pub(super) figures: Arc<ShardFigures>,
    pub(super) stale: StaleLog,
    /// The inputs that it is at.
    pub(super) current: Option<CurrentBatch>,
    /// Up to where it has taken the input stream; none if it takes from none.
    pub(super) position: Option<ShardPosition>,
    /// How many batches it has handled since it took a question.
    pub(super) batches: usize,
    /// Whether its last turn was one with inputs.
    pub(super) took_inputs: bool,
    /// Whether its rules were called in it.
    pub(super) called_rules: bool,
    /// The place behind the last that it has put into the outbox, and behind the last that
    /// the broker is to acknowledge.
    pub(super) output_end: u64,
    pub(super) unacknowledged: Unacknowledged,
    pub(super) published_end: u64,
    /// What it is to end with, once it was told to.
    pub(super) ending: Option<PendingStop>,
    /// Set while it is to begin anew.
    pub(super) restart: Restart,
    /// Where it is among those that have something to do.
    pub(super) run_state: RunState,
    /// When its timer is set to.
    pub(super) timer: Option<u64>,
    /// Whether the thread has noted that changes of it wait for the broker.
    pub(super) is_unsaved: bool,
    /// Where it is to panic the next time that it comes there.
    #[cfg(test)]
    pub(super) panics_in: Option<PanicPoint>,
}

/// Where a shard is among those that have something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunState {
    /// Nowhere: it waits for mail or its timer.
    Idle,
    /// It waits for its turn.
    Ready,
    /// It waits for room in the outbox.
    Paused,
}

/// How a shard ends.
pub(super) struct PendingStop {
    /// Who is told when it has ended.
    pub(super) done: Option<oneshot::Sender<()>>,
    /// Whether it has done all that it was given, and given up what waits for more.
    pub(super) has_given_up: bool,
}

impl HostedShard {
    /// A shard that nothing has been told yet.
    pub(crate) fn new(
        shard: Cell,
        generation: Generation,
        sequencer: Sequencer,
        saver: Option<Saver>,
        tenant: Arc<TenantContext>,
        figures: Arc<ShardFigures>,
    ) -> Self {
        Self {
            shard,
            pipelines: Pipelines::alone(generation),
            own: StatefulEnrichers::default(),
            own_beside: StatefulEnrichers::default(),
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

    /// Its enrichers begin anew, and know nothing; what waits to be compared is not.
    pub(super) fn reset_rules(&mut self) {
        let beside = self.pipelines.beside.as_ref();
        let own_beside = beside.map(|it| it.generation.blueprint.own());
        self.own = self.pipelines.active.blueprint.own();
        self.own_beside = own_beside.unwrap_or_default();
        self.comparisons.clear();
    }

    /// Whether it has done all that it was given before it was told to stop.
    pub(super) fn has_given_up(&self) -> bool {
        self.ending.as_ref().is_some_and(|end| end.has_given_up)
    }

    /// Whether it must pause: the outbox is full and has something of this shard, or has too much
    /// of it.
    pub(super) fn must_pause<C: Transport>(&mut self, outbox: &Outbox<C>) -> bool {
        let begin = outbox.begin();
        let has_much = outbox
            .shard_bytes_max()
            .is_some_and(|max| self.unacknowledged.bytes_from(begin) >= max);
        has_much || outbox.is_full() && self.output_end > begin
    }

    /// Whether it has more to do now than what waits in its lanes.
    pub(super) fn has_more(&self, now: u64, rules: &ShardRules<'_>) -> bool {
        self.current.is_some()
            || self.shard.next_deadline().is_some_and(|at| at <= now)
            || rules.is_replaced()
            || self.is_to_give_up()
    }

    /// Whether it is to give up what waits for more, since it is to end.
    pub(super) fn is_to_give_up(&self) -> bool {
        self.ending.is_some() && !self.has_given_up()
    }

    /// When it is to have a turn though nothing comes.
    pub(super) fn due(&self) -> Option<u64> {
        if self.ending.is_some() || self.restart.is_under_way() {
            return None;
        }
        let saver = self.saver.as_ref();
        let save_at = saver.and_then(|saver| saver.due(&self.shard, self.position));
        self.shard.next_deadline().into_iter().chain(save_at).min()
    }

    /// Says how far it has come, if it has begun.
    pub(super) fn beacon<C: Transport>(&mut self, outbox: &mut Outbox<C>) {
        #[cfg(test)]
        self.may_panic(PanicPoint::Beacon);
        if self.sequencer.has_begun && self.shard.is_leading(clock::now_ms()) {
            self.output_end = outbox.push(self.sequencer.beacon());
            self.published_end = self.output_end;
        }
    }

    /// Hands over what the state lacks, if it is time.
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

    /// Behind which place something waits to be handed to the state; none if nothing does.
    pub(super) fn waits_for(&self) -> Option<u64> {
        self.saver.as_ref()?.waits_for()
    }

    /// Hands the shard over once the broker has all that it published. Says whether that is still
    /// waited for.
    pub(super) fn waits_to_resign<C: Transport>(&mut self, outbox: &mut Outbox<C>) -> bool {
        let Some(replica) = self.shard.as_replica() else {
            return false;
        };
        let Some(place) = replica.resigns_at() else {
            return false;
        };
        // What waits aside isn't the broker's yet, wherever it stood before.
        if outbox.has_aside(replica.lease()) || outbox.settled(place) != Some(true) {
            return true;
        }
        replica.is_acknowledged();
        false
    }

    /// Whether it has ended: all that it had to say has been handed over, and the state has
    /// all that it knew, as far as that can be.
    pub(super) fn has_ended<C: Transport>(&mut self, outbox: &mut Outbox<C>) -> bool {
        if !self.has_given_up() {
            return false;
        }
        #[cfg(test)]
        self.may_panic(PanicPoint::End);
        let end = self.published_end;
        let Some(saver) = &mut self.saver else {
            return outbox.is_handed(self.output_end).is_some();
        };
        // Where the broker can't be reached, the state stays as it was when it last had all.
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
        let told = figures.counters.lock();
        let told = std::mem::replace(&mut *told.unwrap_or_else(PoisonError::into_inner), counters);
        if counters.dead_letters_left_out > told.dead_letters_left_out {
            let error = "there are more dead letters than may be published ([dead_letters] per_s): \
                         some are counted, and not published";
            self.tenant.exceeded.log(Quota::DeadLetters, error);
        }
        // One that stands by holds what its owner tells of.
        let leads = self.shard.is_leading(clock::now_ms());
        figures.leads.store(leads.into(), Ordering::Relaxed);
        let in_step = self.shard.is_in_step();
        figures.in_step.store(in_step.into(), Ordering::Relaxed);
        let without_clock = !self.shard.needs_clock();
        figures
            .goes_without_clock
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
