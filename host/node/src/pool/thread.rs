//! A thread of the pool: shards live on it, and take their turns. It waits only where none
//! of them has anything to do.

use std::any::Any;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use presence_core::{Input, Output};
use tracing::Span;

use super::hosted_shard::{HostedShard, RunState};
use super::instances::Instances;
use super::mailbox::Mailbox;
use super::outbox::{LOOK_MS, Outbox, Transport};
use super::rounds::{Rounds, Turn};
use super::spare_time::SpareTime;
use super::turn::{TurnContext, TurnResult};
use super::work::Task;
use super::{Address, Stopwatch, ThreadFigures};
use crate::clock;
use crate::tasks;

/// How long instances are kept that nobody calls, in milliseconds.
const UNUSED_MS: u64 = 60_000;

const NS_PER_MS: u64 = 1_000_000;

/// After how many milliseconds it is looked whether there is time to compare.
const COMPARE_MS: u64 = 1;

/// After how many nanoseconds of turns without inputs a thread gives way to other threads that are
/// to run, such as those that read and write the connection. Corrections take so long, and the system
/// itself may let a thread run for several milliseconds while another waits for the processor.
const YIELD_NS: u64 = 100_000;

/// A thread.
pub(super) struct Thread<C> {
    mailbox: Arc<Mailbox>,
    shards: HashMap<Address, Box<HostedShard>, FixedState>,
    instances: Instances,
    rounds: Rounds,
    /// When shards are to have a turn though nothing comes.
    timers: BTreeSet<(u64, Address)>,
    /// Shards that wait for room in the outbox.
    paused: Vec<Address>,
    /// Shards that have handed out changes, which the state is to have once the broker has
    /// all before these places.
    unsaved: VecDeque<(u64, Address)>,
    /// Shards that end, or begin anew: they are looked after now and then.
    watched: Vec<Address>,
    outbox: Outbox<C>,
    out: Vec<Output>,
    touched: Vec<Address>,
    figures: Arc<ThreadFigures>,
    /// Counts nanoseconds.
    stopwatch: Stopwatch,
    /// When instances that nobody calls are next given back.
    release_at: u64,
    /// Shards with decisions to compare, and how much time there is for it.
    comparing: VecDeque<Address>,
    spare: SpareTime,
    /// How many nanoseconds turns without inputs have taken since it last waited, or gave way.
    background_ns: u64,
}

/// Nobody waits for a thread that is gone, whatever ended it.
impl<C> Drop for Thread<C> {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

impl<C: Transport> Thread<C> {
    pub(super) fn new(
        mailbox: Arc<Mailbox>,
        outbox: Outbox<C>,
        figures: Arc<ThreadFigures>,
        stopwatch: Stopwatch,
    ) -> Self {
        Self {
            mailbox,
            shards: HashMap::default(),
            instances: Instances::default(),
            rounds: Rounds::default(),
            timers: BTreeSet::new(),
            paused: Vec::new(),
            unsaved: VecDeque::new(),
            watched: Vec::new(),
            outbox,
            out: Vec::new(),
            touched: Vec::new(),
            figures,
            stopwatch,
            release_at: clock::now_ms() + UNUSED_MS,
            comparing: VecDeque::new(),
            spare: SpareTime::default(),
            background_ns: 0,
        }
    }

    /// Works until the mailbox is closed.
    pub(super) async fn run(mut self) {
        while self.check_for_work() {
            let turn = self.rounds.next((self.stopwatch)());
            let is_idle = turn.is_none();
            if let Some(turn) = turn {
                self.turn(turn);
            }
            if !self.compare() && is_idle {
                self.wait().await;
            } else if self.background_ns >= YIELD_NS {
                self.background_ns = 0;
                std::thread::yield_now();
            }
        }
    }

    /// Compares what two pipelines decide on one event, if there is time for it. Says whether
    /// it did.
    pub(super) fn compare(&mut self) -> bool {
        if self.comparing.is_empty() || !self.spare.is_left() {
            return false;
        }
        let Some(address) = self.comparing.pop_front() else {
            return false;
        };
        let Some(hosted) = self.shards.get_mut(&address) else {
            return true;
        };
        let begun = (self.stopwatch)();
        self.figures.is_busy(clock::now_ms());
        let compared = catch_unwind(AssertUnwindSafe(|| {
            let fetch = self
                .instances
                .with(address, hosted, |_, rules| rules.compare());
            if let (Some(questions), Some(fetcher)) = (fetch, &hosted.tenant.fetcher) {
                fetcher.want(questions);
            }
        }));
        if let Err(panic) = compared {
            // What decides goes on: it has no part in this.
            tracing::error!(
                "what two pipelines decide could not be compared: {}",
                tasks::message(&*panic)
            );
            self.instances.reset_shard(address.tenant, hosted);
        }
        hosted.has_comparisons = !hosted.comparisons.is_empty();
        if hosted.has_comparisons {
            self.comparing.push_back(address);
        }
        let took = (self.stopwatch)().saturating_sub(begun);
        self.spare.spend(took);
        true
    }

    /// Whose turn it is, if it is anybody's.
    #[cfg(test)]
    pub(super) fn next(&mut self) -> Option<Turn> {
        self.rounds.next((self.stopwatch)())
    }

    /// How many shards live here, and how many timers they have.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.shards.len(), self.timers.len())
    }

    /// Looks what there is to do. Says whether to go on.
    pub(super) fn check_for_work(&mut self) -> bool {
        let now = clock::now_ms();
        self.outbox.update(now);
        let goes_on = self.receive();
        while let Some((at, address)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            if let Some(hosted) = self.shards.get_mut(&address) {
                hosted.timer = None;
            }
            self.make_ready(address);
        }
        if self.outbox.is_beacon_due(now) {
            let addresses: Vec<_> = self.shards.keys().copied().collect();
            for address in addresses {
                self.guarded(address, |thread| thread.beacon(address));
            }
            self.outbox.hand_over();
        }
        self.resume_paused();
        self.save_acknowledged();
        self.check_watched();
        if now >= self.release_at {
            self.release_at = now + UNUSED_MS;
            self.instances.release_unused();
        }
        let outbox = &self.outbox;
        self.figures
            .set_outbox_figures(outbox.bytes(), outbox.repeated());
        goes_on
    }

    /// Takes note of what has come.
    fn receive(&mut self) -> bool {
        let mut touched = std::mem::take(&mut self.touched);
        let goes_on = self.mailbox.take_touched(&mut touched);
        for address in touched.drain(..) {
            if !self.shards.contains_key(&address) {
                match self.mailbox.take_control(address) {
                    Some(Task::Place(hosted)) => self.place(address, hosted),
                    // It has ended.
                    _ => {
                        self.mailbox.discard(address);
                        continue;
                    }
                }
            }
            self.make_ready(address);
        }
        self.touched = touched;
        goes_on
    }

    fn beacon(&mut self, address: Address) {
        if let Some(hosted) = self.shards.get_mut(&address) {
            hosted.beacon(&mut self.outbox);
        }
    }

    fn place(&mut self, address: Address, mut hosted: Box<HostedShard>) {
        self.instances.enter(address.tenant, &mut hosted);
        self.shards.insert(address, hosted);
    }

    fn make_ready(&mut self, address: Address) {
        if let Some(hosted) = self.shards.get_mut(&address)
            && hosted.run_state == RunState::Idle
        {
            hosted.run_state = RunState::Ready;
            self.rounds.push(address, &hosted.tenant.share);
        }
    }

    /// Has shards go on that have waited for room in the outbox.
    fn resume_paused(&mut self) {
        if self.paused.is_empty() {
            return;
        }
        for address in std::mem::take(&mut self.paused) {
            let Some(hosted) = self.shards.get_mut(&address) else {
                continue;
            };
            if hosted.must_pause(&self.outbox) {
                self.paused.push(address);
            } else {
                hosted.run_state = RunState::Idle;
                self.make_ready(address);
            }
        }
    }

    /// Hands to the state what has waited for the broker.
    fn save_acknowledged(&mut self) {
        let acknowledged = self.outbox.acknowledged();
        while let Some((end, address)) = self.unsaved.front().copied()
            && end <= acknowledged
        {
            self.unsaved.pop_front();
            if let Some(hosted) = self.shards.get_mut(&address) {
                hosted.is_unsaved = false;
            }
            self.guarded(address, |thread| thread.save(address));
        }
    }

    /// Looks after shards that end, or begin anew.
    fn check_watched(&mut self) {
        for address in std::mem::take(&mut self.watched) {
            self.guarded(address, |thread| thread.check_shard(address));
        }
    }

    fn check_shard(&mut self, address: Address) {
        let Some(hosted) = self.shards.get_mut(&address) else {
            return;
        };
        if hosted.waits_to_resign(&mut self.outbox) {
            self.watched.push(address);
        }
        if hosted.restart.is_under_way() {
            if hosted.ends_unrestored(&mut self.outbox) {
                tracing::warn!(
                    "NATS can't be reached, so a shard that has failed can't be restarted before \
                     the node stops: its waiting inputs are dropped"
                );
                return self.remove(address);
            }
            hosted.continue_restart(address, &self.mailbox, &self.outbox);
            self.keep_watching(address);
            if self.mailbox.has_other_than_inputs(address) {
                self.make_ready(address);
            }
        } else if hosted.has_ended(&mut self.outbox) {
            self.remove(address);
        } else if hosted.has_given_up() {
            self.keep_watching(address);
        }
    }

    fn remove(&mut self, address: Address) {
        let Some(mut hosted) = self.shards.remove(&address) else {
            return;
        };
        if let Some(at) = hosted.timer {
            self.timers.remove(&(at, address));
        }
        self.instances.leave(address.tenant, &hosted.pipelines);
        self.mailbox.discard(address);
        if let Some(done) = hosted.ending.as_mut().and_then(|ending| ending.done.take()) {
            // The one who asked may have given up.
            let _ = done.send(());
        }
    }

    /// Has a shard take its turn.
    pub(super) fn turn(&mut self, Turn { shard, limit_ns }: Turn) {
        let begun = (self.stopwatch)();
        let until = begun.saturating_add(limit_ns);
        let turned = self.guarded(shard, |thread| thread.work(shard, until));
        let turned = turned.unwrap_or(TurnResult::Over);
        self.guarded(shard, |thread| thread.end_turn(shard, turned));
        let ended = (self.stopwatch)();
        let took = ended.saturating_sub(begun);
        self.rounds.took(shard.tenant, ended, took);
        self.spare.was_busy(took);
        let hosted = self.shards.get(&shard);
        if hosted.is_some_and(|hosted| !hosted.took_inputs) {
            self.background_ns += took;
        }
    }

    /// Has something be done with one shard. If it panics, that shard alone begins anew.
    fn guarded<T>(&mut self, address: Address, work: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let hosted = self.shards.get(&address);
        let span = hosted.and_then(|hosted| hosted.tenant.span.clone());
        let _tenant = span.as_ref().map(Span::enter);
        match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(done) => Some(done),
            Err(panic) => {
                self.failed(address, &*panic);
                None
            }
        }
    }

    fn work(&mut self, address: Address, until_ns: u64) -> TurnResult {
        let Some(hosted) = self.shards.get_mut(&address) else {
            return TurnResult::Over;
        };
        hosted.run_state = RunState::Idle;
        let mut context = TurnContext {
            address,
            mailbox: &self.mailbox,
            outbox: &mut self.outbox,
            out: &mut self.out,
            figures: &self.figures,
            until_ns,
            stopwatch: &mut self.stopwatch,
        };
        while !hosted.has_given_up() {
            // One that begins anew publishes nothing, and needs no room for it.
            if !hosted.restart.is_under_way() && hosted.must_pause(context.outbox) {
                return TurnResult::Full;
            }
            let Some(task) = context.mailbox.take_control(address) else {
                break;
            };
            context.is_busy();
            let task = match task {
                Task::Pipelines(pipelines) => {
                    let before = hosted.pipelines.assignment();
                    let after = pipelines.assignment();
                    let has_other_enrichers = !hosted.pipelines.has_same_enrichers(&pipelines);
                    self.instances.change(address.tenant, hosted, pipelines);
                    Task::Input(Input::Reassigned {
                        before,
                        after,
                        has_other_enrichers,
                    })
                }
                Task::Discard => {
                    self.remove(address);
                    return TurnResult::Over;
                }
                Task::Restored(restored) if hosted.restart.is_under_way() => {
                    hosted.restored(restored, context.outbox);
                    continue;
                }
                task => task,
            };
            self.instances.with(address, hosted, |hosted, rules| {
                hosted.control(task, rules, &mut context);
            });
        }
        if hosted.restart.is_under_way() {
            // It knows nothing that it could answer by.
            context.mailbox.drop_questions(address);
            return TurnResult::Over;
        }
        self.instances.with(address, hosted, |hosted, rules| {
            hosted.turn(rules, &mut context)
        })
    }

    /// A shard has panicked: it begins anew, unless it was about to end.
    fn failed(&mut self, address: Address, panic: &(dyn Any + Send)) {
        // Nothing is published that came of it.
        self.out.clear();
        let Some(hosted) = self.shards.get_mut(&address) else {
            return;
        };
        hosted.failed(panic);
        if hosted.has_given_up() {
            return self.remove(address);
        }
        self.instances.reset_shard(address.tenant, hosted);
        self.keep_watching(address);
    }

    fn keep_watching(&mut self, address: Address) {
        if !self.watched.contains(&address) {
            self.watched.push(address);
        }
    }

    /// Takes note of what a shard's turn has left to do.
    fn end_turn(&mut self, address: Address, turned: TurnResult) {
        let Some(hosted) = self.shards.get_mut(&address) else {
            return;
        };
        hosted.update_figures();
        if !hosted.comparisons.is_empty() && !std::mem::replace(&mut hosted.has_comparisons, true) {
            self.comparing.push_back(address);
        }
        let is_waiting = hosted.restart.is_under_way() || hosted.has_given_up();
        let resigns = hosted.waits_to_resign(&mut self.outbox);
        if is_waiting {
            self.keep_watching(address);
        } else if turned == TurnResult::Full {
            hosted.run_state = RunState::Paused;
            self.paused.push(address);
        } else {
            let now = clock::now_ms();
            let has_more = self
                .instances
                .with(address, hosted, |hosted, rules| hosted.has_more(now, rules));
            if has_more || self.mailbox.has(address) {
                self.make_ready(address);
            }
        }
        if resigns {
            self.keep_watching(address);
        }
        self.save(address);
    }

    /// Hands to the state what a shard has to be kept, or notes when that is to be done.
    fn save(&mut self, address: Address) {
        let Some(hosted) = self.shards.get_mut(&address) else {
            return;
        };
        // One that ends is looked after until the state has all of it.
        if !hosted.has_given_up() {
            hosted.save(&self.outbox);
            if let Some(end) = hosted.waits_for()
                && !std::mem::replace(&mut hosted.is_unsaved, true)
            {
                self.unsaved.push_back((end, address));
            }
        }
        let due = hosted.due();
        let before = std::mem::replace(&mut hosted.timer, due);
        if before != due {
            if let Some(at) = before {
                self.timers.remove(&(at, address));
            }
            self.timers.extend(due.map(|at| (at, address)));
        }
    }

    /// Waits until there may be something to do.
    async fn wait(&mut self) {
        self.figures.is_idle();
        let now = clock::now_ms();
        let begun = (self.stopwatch)();
        let free_at = self.rounds.free_at_ns();
        let free_ms = free_at.map(|at| at.saturating_sub(begun).div_ceil(NS_PER_MS));
        let due = [
            self.timers.first().map(|(at, _)| *at),
            self.outbox.due(now),
            (!self.watched.is_empty()).then_some(now + LOOK_MS),
            (!self.instances.is_empty()).then_some(self.release_at),
            (!self.comparing.is_empty()).then_some(now + COMPARE_MS),
            free_ms.map(|ms| now.saturating_add(ms)),
        ];
        let woken = async {
            tokio::select! {
                biased;
                () = self.mailbox.arrived() => {}
                () = self.outbox.moved() => {}
            }
        };
        match due.into_iter().flatten().min() {
            Some(at) => {
                let wait = Duration::from_millis(at.saturating_sub(now));
                // It is looked what there is to do in any case.
                let _ = tokio::time::timeout(wait, woken).await;
            }
            None => woken.await,
        }
        let idle = (self.stopwatch)().saturating_sub(begun);
        self.spare.was_idle(idle);
        self.background_ns = 0;
    }
}
