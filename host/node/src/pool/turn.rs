//! A shard's turn. It never waits: outputs go to the thread's outbox.
//!
//! A turn goes through the lanes in order: control, inputs, work that is due, and one piece of a
//! question. A question waits for the inputs before it, but for at most [`BATCHES_A_QUESTION`]
//! batches of them. So a flood of questions doesn't delay inputs for long, and a flood of inputs
//! doesn't block questions. A turn ends when its time is over, even in the middle of a batch.

use std::cell::RefCell;
use std::iter::Peekable;
use std::sync::atomic::Ordering;
use std::time::Instant;
use std::vec;

use presence_core::fleet::replica::ReplicaOutput;
use presence_core::publish::Subject;
use presence_core::{Input, Output};

use super::hosted_shard::{HostedShard, PendingStop};
use super::mailbox::Mailbox;
use super::outbox::{Outbox, Transport};
use super::rules::ShardRules;
use super::shard_or_replica::HostedReplica;
#[cfg(test)]
use super::work::PanicPoint;
use super::work::{ShardQuestion, Task};
use super::{Address, Stopwatch, ThreadFigures};
use crate::clock;
use crate::link::journal::{DeliveryMode, JournalEntry};
use crate::link::shared_input::Receipt;
use crate::state::position::StreamPlaces;
use crate::telemetry::{HandledTrace, OpenTrace};

/// How many batches of inputs a question waits for, at most.
const BATCHES_A_QUESTION: usize = 16;

/// How often the turn's time is checked while inputs produce no outputs: after this many inputs.
const INPUTS_PER_CHECK: usize = 32;

/// How many outputs of inputs are collected before they are carried out.
const OUTPUTS_MAX: usize = 256;

/// The batch that a shard is handling.
pub(super) struct CurrentBatch {
    /// When the batch arrived, in milliseconds of the host's clock.
    arrived_at: u64,
    /// The same time as an [`Instant`]. `None` if the inputs are no messages.
    arrived: Option<Instant>,
    inputs: vec::IntoIter<Input>,
    /// How many inputs have been taken.
    taken: usize,
    /// The traced inputs, by their indexes.
    traced: Peekable<vec::IntoIter<(usize, OpenTrace)>>,
    /// The inputs' numbers in the input stream, if they come from it.
    places: Option<Box<StreamPlaces>>,
    /// The receipts of inputs that the owner must acknowledge, by the inputs' indexes.
    receipts: Peekable<vec::IntoIter<(usize, Receipt)>>,
    /// Whether everything that was due before the batch arrived has been done.
    is_begun: bool,
}

/// How a turn has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TurnResult {
    /// The turn's time is over, or nothing is left to do.
    Over,
    /// The outbox is full and contains messages of this shard, or the shard has too much in it.
    Full,
    /// The shard was discarded, with all of its data.
    Gone,
}

/// What a shard may use during its turn.
pub(super) struct TurnContext<'a, C> {
    pub(super) address: Address,
    pub(super) mailbox: &'a Mailbox,
    pub(super) outbox: &'a RefCell<Outbox<C>>,
    pub(super) out: &'a mut Vec<Output>,
    pub(super) figures: &'a ThreadFigures,
    /// When the turn's time is over, by the stopwatch.
    pub(super) until_ns: u64,
    pub(super) stopwatch: &'a Stopwatch,
}

impl HostedShard {
    /// Handles some of the waiting inputs, then work that is due, then a question.
    pub(super) fn turn<C: Transport>(
        &mut self,
        rules: &mut ShardRules<'_>,
        turn: &mut TurnContext<'_, C>,
    ) -> TurnResult {
        self.took_inputs = false;
        if self.has_given_up() {
            return TurnResult::Over;
        }
        while self.batches < BATCHES_A_QUESTION {
            if self.must_pause(&turn.outbox.borrow()) {
                return TurnResult::Full;
            }
            if self.current.is_none() {
                let Some(batch) = turn.mailbox.take_inputs(turn.address) else {
                    break;
                };
                self.current = Some(CurrentBatch {
                    arrived_at: batch.arrived_at,
                    arrived: (batch.bytes > 0).then_some(batch.arrived),
                    inputs: batch.inputs.into_iter(),
                    taken: 0,
                    traced: batch.traced.into_iter().peekable(),
                    places: batch.places,
                    receipts: batch.receipts.into_iter().peekable(),
                    is_begun: false,
                });
            }
            self.took_inputs = true;
            turn.mark_busy();
            if self.batch(rules, turn) == TurnResult::Full {
                return TurnResult::Full;
            }
            if self.current.is_none() {
                self.batches += 1;
            }
            if turn.is_over() {
                break;
            }
        }
        // Inputs come before work that is due: a waiting heartbeat counts.
        let has_inputs = self.current.is_some() || turn.mailbox.has_inputs(turn.address);
        if !has_inputs {
            turn.mark_busy();
            self.advance(clock::now_ms(), rules, turn);
        }
        if self.must_pause(&turn.outbox.borrow()) {
            return TurnResult::Full;
        }
        if !has_inputs || self.batches >= BATCHES_A_QUESTION {
            self.batches = 0;
            if let Some(ask) = turn.mailbox.take_question(turn.address) {
                turn.mark_busy();
                self.answer(ask, rules, turn);
            }
        }
        if self.is_giving_up() && self.current.is_none() && !turn.mailbox.has(turn.address) {
            return self.give_up(rules, turn);
        }
        TurnResult::Over
    }

    /// Handles the current batch, until the turn's time is over.
    fn batch<C: Transport>(
        &mut self,
        rules: &mut ShardRules<'_>,
        turn: &mut TurnContext<'_, C>,
    ) -> TurnResult {
        let Some(current) = &self.current else {
            return TurnResult::Over;
        };
        let arrived_at = current.arrived_at;
        if !current.is_begun {
            // Work that was due before the batch arrived is done first, however busy the lane is: a
            // connection that has timed out stays so, although its heartbeat is in the batch.
            let before = arrived_at.saturating_sub(1);
            self.advance(before, rules, turn);
            while self.shard.has_expiries(before) {
                if self.must_pause(&turn.outbox.borrow()) {
                    return TurnResult::Full;
                }
                if turn.is_over() {
                    return TurnResult::Over;
                }
                turn.mark_busy();
                self.advance(before, rules, turn);
            }
        }
        while let Some(current) = &mut self.current {
            current.is_begun = true;
            let Some(input) = current.inputs.next() else {
                break;
            };
            let place = current.taken;
            current.taken += 1;
            let position = current.places.as_ref().and_then(|it| it.after(place));
            let outputs = turn.out.len() + self.shard.waiting_outputs();
            let traced = current.traced.next_if(|(at, _)| *at == place);
            let mut receipt = current.receipts.next_if(|(at, _)| *at == place);
            let is_known = self.has_acknowledged(arrived_at, receipt.as_ref());
            if receipt.as_ref().is_some_and(|(_, it)| it.must_ack_first()) {
                self.acknowledge(arrived_at, receipt.take());
                self.carry_out(turn);
            }
            // In a fleet, only the owner makes the trace.
            let traced = traced.filter(|_| self.shard.is_leading(arrived_at));
            if is_known {
                // It is only acknowledged again.
            } else if let Some((_, begun)) = traced {
                self.handle_traced((arrived_at, input), begun, rules, turn);
            } else {
                self.shard.handle(arrived_at, input, rules, turn.out);
            }
            self.acknowledge(arrived_at, receipt);
            // The position may be set now: outputs go to the outbox before anything is stored.
            self.position = position.or(self.position);
            let made = turn.out.len() + self.shard.waiting_outputs();
            let is_look = made != outputs || (place + 1).is_multiple_of(INPUTS_PER_CHECK);
            let is_over = is_look && turn.is_over();
            if is_over || made >= OUTPUTS_MAX {
                self.carry_out(turn);
                if self.must_pause(&turn.outbox.borrow()) {
                    return TurnResult::Full;
                }
            }
            if is_over {
                return TurnResult::Over;
            }
        }
        let handled = self.current.take();
        self.carry_out(turn);
        let places = handled.as_ref().and_then(|it| it.places.as_deref());
        self.position = places.map(StreamPlaces::end).or(self.position);
        if let Some(arrived) = handled.and_then(|it| it.arrived) {
            self.tenant.publish_latency.end(arrived);
        }
        TurnResult::Over
    }

    /// Has a message of the input stream acknowledged after everything that was published because
    /// of it, if this replica is the owner.
    fn acknowledge(&mut self, now: u64, receipt: Option<(usize, Receipt)>) {
        if let Some((_, receipt)) = receipt
            && let Some(replica) = self.shard.as_replica()
        {
            replica.acknowledge(now, receipt);
        }
    }

    /// Whether a message of the input stream is a repeated delivery that was handled and
    /// acknowledged before.
    fn has_acknowledged(&mut self, now: u64, receipt: Option<&(usize, Receipt)>) -> bool {
        let replica = self.shard.as_replica().zip(receipt);
        replica.is_some_and(|(replica, (_, receipt))| replica.has_acknowledged(now, receipt))
    }

    /// Handles an input, and records its trace. Its outputs are carried out at once, so that the
    /// trace ends when they have been handed over.
    fn handle_traced<C: Transport>(
        &mut self,
        (arrived_at, input): (u64, Input),
        begun: OpenTrace,
        rules: &mut ShardRules<'_>,
        turn: &mut TurnContext<'_, C>,
    ) {
        self.carry_out(turn);
        let generation = match &input {
            Input::Message { message, .. } | Input::Excess { message, .. } => {
                rules.number_of(message.user())
            }
            _ => rules.number,
        };
        rules.note_calls();
        let from = Instant::now();
        self.shard.handle(arrived_at, input, rules, turn.out);
        let until = Instant::now();
        let is_published =
            |output: &&Output| matches!(output, Output::Publish(_) | Output::Deliver(_));
        let published = self.shard.waiting_publications();
        let handled = HandledTrace {
            begun,
            shard: turn.address.shard,
            generation,
            from,
            until,
            published: published + turn.out.iter().filter(is_published).count(),
            calls: rules.take_calls(),
        };
        self.carry_out(turn);
        if let Some(tracer) = &self.tenant.tracer {
            tracer.end(handled);
        }
    }

    /// Carries out a control task.
    pub(super) fn control<C: Transport>(
        &mut self,
        task: Task,
        rules: &mut ShardRules<'_>,
        turn: &mut TurnContext<'_, C>,
    ) {
        match task {
            Task::Input(input) => {
                let now = clock::now_ms();
                self.shard.handle(now, input, rules, turn.out);
            }
            // A shard that restarts doesn't know yet which ids it will use, so it can't list them.
            // And it is restored from the stored state only.
            Task::Ids(_) | Task::Restore(..) if self.restart.is_under_way() => {}
            Task::Uses(questions, answer) if self.restart.is_under_way() => {
                let _ = answer.send(vec![true; questions.len()]);
            }
            Task::Restore(down_ms, records, done) => {
                self.shard.restore(clock::now_ms(), down_ms, records);
                self.shard.renew_leases(clock::now_ms());
                // The requester may have given up.
                let _ = done.send(());
            }
            Task::Uses(questions, answer) => {
                let uses = questions.iter().map(|question| self.shard.uses(question));
                let _ = answer.send(uses.collect());
            }
            Task::Ids(answer) => {
                // Comparisons hold ids that are about to be freed, so they are skipped.
                rules.skip_comparisons();
                let mut ids = self.shard.ids();
                if let Some(saver) = &self.saver {
                    ids |= saver.ids();
                }
                let _ = answer.send(ids);
            }
            Task::Fleet(task) => {
                if let Some(replica) = self.shard.as_replica() {
                    replica.handle_task(clock::now_ms(), task);
                }
            }
            // A shard of a fleet begins when it becomes the owner.
            Task::Begin if self.shard.as_replica().is_some() => {}
            Task::Begin => {
                self.sequencer.has_begun = true;
                turn.outbox.borrow_mut().begin_beacons(clock::now_ms());
            }
            Task::Stop(done) => {
                self.ending = Some(PendingStop {
                    done: Some(done),
                    has_given_up: false,
                });
            }
            #[cfg(test)]
            Task::Panic(step) => {
                self.panics_in = Some(step);
                self.may_panic(PanicPoint::Turn);
            }
            // The worker and the thread handle these.
            Task::Place(_) | Task::Pipelines(_) | Task::Restored(_) | Task::Discard => {}
        }
        self.carry_out(turn);
    }

    fn answer<C: Transport>(
        &mut self,
        ask: ShardQuestion,
        rules: &mut ShardRules<'_>,
        turn: &mut TurnContext<'_, C>,
    ) {
        #[cfg(test)]
        self.may_panic(PanicPoint::Question);
        let now = clock::now_ms();
        match ask {
            // Nobody waits for the answer any more.
            ShardQuestion::Query(query, _) if query.is_given_up() => query.skip_piece(),
            ShardQuestion::Query(query, piece) => {
                let users = query.users(piece);
                let viewer = query.viewer();
                // If there is no answer, dropping `query` tells the requester.
                if let Some(answers) = self.shard.query(now, viewer, users, rules, turn.out) {
                    query.answer(piece, answers);
                }
            }
            // The requester may have given up.
            ShardQuestion::Explain(asked, answer) => {
                if let Some(found) = self.shard.explain(now, &asked, rules, turn.out) {
                    let _ = answer.send((rules.number_of(&asked.user), found));
                }
            }
            ShardQuestion::Contacts(viewer, answer) => {
                let _ = answer.send(self.shard.contacts(&viewer, turn.out));
            }
        }
        self.carry_out(turn);
    }

    /// Does what is due at a time, in part: see [`Shard::advance`](presence_core::Shard::advance).
    fn advance<C: Transport>(
        &mut self,
        now: u64,
        rules: &mut ShardRules<'_>,
        turn: &mut TurnContext<'_, C>,
    ) {
        let is_due = self.shard.next_deadline().is_some_and(|at| at <= now);
        if is_due || rules.is_replaced() {
            self.shard.advance(now, rules, turn.out);
            self.carry_out(turn);
        }
    }

    /// Stops waiting for answers of the directory, because the shard is about to end.
    fn give_up<C: Transport>(
        &mut self,
        rules: &mut ShardRules<'_>,
        turn: &mut TurnContext<'_, C>,
    ) -> TurnResult {
        turn.mark_busy();
        while self.shard.give_up(clock::now_ms(), rules, turn.out) {
            self.carry_out(turn);
            if self.must_pause(&turn.outbox.borrow()) {
                return TurnResult::Full;
            }
        }
        self.carry_out(turn);
        if let Some(ending) = &mut self.ending {
            ending.has_given_up = true;
        }
        TurnResult::Over
    }

    /// Carries out the outputs: messages go to the outbox.
    fn carry_out<C: Transport>(&mut self, turn: &mut TurnContext<'_, C>) {
        if self.shard.as_replica().is_some() {
            return self.carry_out_replica(turn);
        }
        if turn.out.is_empty() {
            return;
        }
        let mut published = 0;
        for output in turn.out.drain(..) {
            if let Some(entry) = self.entry(output) {
                published += u64::from(self.push(entry, &mut turn.outbox.borrow_mut()));
            }
        }
        self.published(published);
        turn.outbox.borrow_mut().hand_over();
    }

    /// Carries out the outputs of a replica, as [`Self::carry_out`] does for a shard without a
    /// fleet.
    fn carry_out_replica<C: Transport>(&mut self, turn: &mut TurnContext<'_, C>) {
        let Some(replica) = self.shard.as_replica() else {
            return;
        };
        let outputs = replica.take_outputs();
        let mut published = 0;
        for output in outputs {
            let entry = match output {
                ReplicaOutput::Shard(output) => self.entry(output),
                ReplicaOutput::ToStandbys(bytes) => {
                    let replica = self.shard.as_replica();
                    if let Some((epoch, fence)) = replica.and_then(HostedReplica::new_epoch) {
                        self.sequencer.begin_owned_epoch(epoch, fence);
                        turn.outbox.borrow_mut().begin_beacons(clock::now_ms());
                    }
                    self.sequencer.update(bytes)
                }
                other => {
                    let place = self.published_end;
                    if let Some(replica) = self.shard.as_replica() {
                        replica.carry_out(other, place);
                    }
                    None
                }
            };
            if let Some(entry) = entry {
                published += u64::from(self.push(entry, &mut turn.outbox.borrow_mut()));
            }
        }
        let replica = self.shard.as_replica();
        let receipts = replica
            .map(HostedReplica::take_receipts)
            .unwrap_or_default();
        for receipt in receipts {
            let entry = self.sequencer.ack(&receipt);
            self.push(entry, &mut turn.outbox.borrow_mut());
        }
        self.published(published);
        if let Some(replica) = self.shard.as_replica() {
            replica.report_state();
        }
        turn.outbox.borrow_mut().hand_over();
    }

    /// The message to publish for an output, if there is one. Other outputs are carried out here.
    fn entry(&mut self, output: Output) -> Option<JournalEntry> {
        match output {
            Output::Publish(publication) => {
                if publication.subject == Subject::DeadLetters {
                    self.tenant.dead_letters.note(&publication.body);
                }
                return Some(self.sequencer.publication(publication));
            }
            Output::Deliver(delivery) => return Some(self.sequencer.delivery(delivery)),
            Output::Reply(to, body) => return Some(JournalEntry::answer(to, body)),
            Output::Ignored(ignored) => self.stale.note(clock::now_ms(), &ignored),
            Output::PluginFailed(failed) => self.tenant.failures.note(clock::now_ms(), &failed),
            Output::Refused(rejection) => self.tenant.exceeded.note_counted(&rejection),
            Output::Fetch(questions) => {
                if let Some(fetcher) = &self.tenant.fetcher {
                    fetcher.want(questions);
                }
            }
        }
        None
    }

    /// Puts a message into the outbox. Returns whether it has a sequence number.
    fn push<C: Transport>(&mut self, entry: JournalEntry, outbox: &mut Outbox<C>) -> bool {
        let is_at_most_once = entry.is_at_most_once();
        let is_numbered = matches!(entry.delivery, DeliveryMode::Numbered(_));
        let bytes = entry.bytes();
        self.output_end = outbox.push(entry);
        if outbox.shard_bytes_max().is_some() {
            self.unacknowledged.push(self.output_end, bytes);
        }
        if !is_at_most_once {
            self.published_end = self.output_end;
        }
        is_numbered
    }

    fn published(&self, count: u64) {
        if count > 0 {
            let figures = &self.figures;
            figures.published.fetch_add(count, Ordering::Relaxed);
        }
    }
}

impl<C> TurnContext<'_, C> {
    /// Notes that the thread begins another piece of work.
    pub(super) fn mark_busy(&self) {
        self.figures.mark_busy(clock::now_ms());
    }

    /// Whether the turn's time is over.
    fn is_over(&self) -> bool {
        (self.stopwatch)() >= self.until_ns
    }
}
