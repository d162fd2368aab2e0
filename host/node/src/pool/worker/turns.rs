//! A worker at work: whose turn it is, and what is done in it.
//!
//! A turn goes through the lanes in order: control, inputs, what has fallen due, one
//! question. So many inputs come before that question that no flood of questions keeps
//! them waiting for long, and no flood of inputs keeps a question waiting for good.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use presence_core::query::Explain;
use presence_core::{Input, Output, Shard};
use presence_sandbox::Pipeline;
use tokio::sync::{mpsc, oneshot};

use super::{Ask, Batch, Figures, Task};
use crate::clock;
use crate::directory::request::Fetcher;
use crate::link::publisher::Publisher;
use crate::pool::lane::Receiver;
use crate::pool::seldom::Seldom;
use crate::state::Saver;
use crate::tenant::stale::StaleLog;

/// How many batches of inputs are handled in a turn, at most.
const BATCHES_A_TURN: usize = 16;

/// How many outputs of inputs come together before they are carried out.
const OUTPUTS_MAX: usize = 256;

/// What a worker owns.
pub(crate) struct State {
    pub(crate) shard: Shard,
    pub(crate) rules: Pipeline,
    /// The pipeline's.
    pub(crate) generation: u64,
    pub(crate) publisher: Publisher,
    pub(crate) figures: Arc<Figures>,
    /// None where nothing is kept over a restart.
    pub(crate) saver: Option<Saver>,
    /// None where the directory holds all of its answers.
    pub(crate) fetcher: Option<Arc<Fetcher>>,
    pub(crate) stale: StaleLog,
    /// What the log tells of refusals and of dead letters that were left out, for all
    /// workers.
    pub(crate) refusals: Arc<Refusals>,
}

/// When the log last told of what there was too much of.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    quotas: Seldom,
    left_out: Seldom,
}

/// How often the log tells of it, in milliseconds.
const REFUSALS_TOLD_MS: u64 = 10_000;

/// The lanes that a worker takes from.
struct Lanes {
    control: mpsc::Receiver<Task>,
    inputs: Receiver<Batch>,
    questions: Receiver<Ask>,
}

/// What a worker was woken by.
enum Woken {
    /// A task of the control lane; none where nobody sends any more.
    Control(Option<Box<Task>>),
    /// Anything else: a turn looks what there is.
    Other,
}

impl State {
    pub(super) async fn work(
        mut self,
        control: mpsc::Receiver<Task>,
        inputs: Receiver<Batch>,
        questions: Receiver<Ask>,
    ) {
        let mut lanes = Lanes {
            control,
            inputs,
            questions,
        };
        let mut out = Vec::new();
        loop {
            let mut control = match self.wait(&mut lanes).await {
                Woken::Control(None) => return,
                Woken::Control(task) => task,
                Woken::Other => None,
            };
            while let Some(task) = control {
                self.is_busy();
                if let Task::Stop(done) = *task {
                    return self.stop(&lanes, done, &mut out).await;
                }
                self.control(*task, &mut out).await;
                control = lanes.control.try_recv().ok().map(Box::new);
            }
            self.turn(&lanes, &mut out).await;
            if let Err(error) = self.publisher.tend().await {
                tracing::error!(%error, "a beacon could not be published");
            }
            self.save();
            self.tell_figures();
            self.figures.busy_since.store(0, Ordering::Relaxed);
        }
    }

    /// Waits until there is something to do.
    async fn wait(&mut self, lanes: &mut Lanes) -> Woken {
        let saver = self.saver.as_ref();
        let save_at = saver.and_then(|saver| saver.due(&self.shard));
        let wake_at = [self.shard.next_deadline(), save_at, self.publisher.due()];
        let wake_at = wake_at.into_iter().flatten().min();
        let woken = async {
            tokio::select! {
                biased;
                task = lanes.control.recv() => Woken::Control(task.map(Box::new)),
                () = lanes.inputs.ready() => Woken::Other,
                () = lanes.questions.ready() => Woken::Other,
                () = self.publisher.moved(), if self.publisher.waits() => Woken::Other,
            }
        };
        match wake_at {
            Some(at) => {
                let wait = Duration::from_millis(at.saturating_sub(clock::now_ms()));
                let woken = tokio::time::timeout(wait, woken).await;
                woken.unwrap_or(Woken::Other)
            }
            None => woken.await,
        }
    }

    /// Handles some of the inputs that wait, then what has fallen due, then a question.
    async fn turn(&mut self, lanes: &Lanes, out: &mut Vec<Output>) {
        for _ in 0..BATCHES_A_TURN {
            let Some(batch) = lanes.inputs.take() else {
                break;
            };
            self.is_busy();
            self.batch(batch, out).await;
        }
        // What has arrived comes first: a sign of life that waits in its lane counts.
        if lanes.inputs.is_empty() {
            self.is_busy();
            self.advance(clock::now_ms(), out).await;
        }
        if let Some(ask) = lanes.questions.take() {
            self.is_busy();
            self.answer(ask, out).await;
        }
    }

    /// Does all that the worker was given, and gives up what waits for more.
    async fn stop(mut self, lanes: &Lanes, done: oneshot::Sender<()>, out: &mut Vec<Output>) {
        while let Some(batch) = lanes.inputs.take() {
            self.is_busy();
            self.batch(batch, out).await;
        }
        while let Some(ask) = lanes.questions.take() {
            self.is_busy();
            self.answer(ask, out).await;
        }
        self.is_busy();
        while self.shard.give_up(clock::now_ms(), &mut self.rules, out) {
            self.carry_out(out).await;
        }
        self.carry_out(out).await;
        self.save_all().await;
        // The one who asked may have given up.
        let _ = done.send(());
        self.figures.busy_since.store(0, Ordering::Relaxed);
    }

    async fn batch(&mut self, batch: Batch, out: &mut Vec<Output>) {
        let arrived_at = batch.arrived_at;
        // What fell due before these arrived gets its turn before them, however busy the
        // lane is: a time-out stays one, though a sign of life came too late for it.
        let before = arrived_at.saturating_sub(1);
        self.advance(before, out).await;
        while self.shard.has_expiries(before) {
            self.is_busy();
            self.advance(before, out).await;
        }
        for input in batch.inputs {
            self.shard.handle(arrived_at, input, &mut self.rules, out);
            if out.len() >= OUTPUTS_MAX {
                self.carry_out(out).await;
            }
        }
        self.carry_out(out).await;
    }

    async fn control(&mut self, task: Task, out: &mut Vec<Output>) {
        match task {
            Task::Tell(input) => {
                self.shard
                    .handle(clock::now_ms(), input, &mut self.rules, out);
            }
            Task::Pipeline(generation, mut rules) => {
                rules.take_over(&mut self.rules);
                self.generation = generation;
                self.rules = *rules;
                self.shard
                    .handle(clock::now_ms(), Input::Rules, &mut self.rules, out);
            }
            Task::Restore(down_ms, records, done) => {
                self.shard.restore(clock::now_ms(), down_ms, records);
                self.shard.renew_leases(clock::now_ms());
                let _ = done.send(());
            }
            // The one who asked may have given up.
            Task::Uses(questions, answer) => {
                let uses = questions.iter().map(|question| self.shard.uses(question));
                let _ = answer.send(uses.collect());
            }
            Task::Ids(answer) => {
                let mut ids = self.shard.ids();
                if let Some(saver) = &self.saver {
                    ids |= saver.ids();
                }
                let _ = answer.send(ids);
            }
            Task::Begin => self.publisher.begin(),
            // The loop's own affair.
            Task::Stop(_) => {}
        }
        self.carry_out(out).await;
    }

    async fn answer(&mut self, ask: Ask, out: &mut Vec<Output>) {
        let now = clock::now_ms();
        match ask {
            // Nobody waits for the answer any more.
            Ask::Query(asking, _) if asking.is_given_up() => asking.pass_over(),
            Ask::Query(asking, piece) => {
                let users = asking.users(piece);
                let viewer = asking.viewer();
                let answers = self.shard.query(now, viewer, users, &mut self.rules, out);
                asking.answer(piece, answers);
            }
            // The one who asked may have given up.
            Ask::Explain(Explain { viewer, user }, answer) => {
                let rules = &mut self.rules;
                let found = self.shard.explain(now, &viewer, &user, rules, out);
                let _ = answer.send((self.generation, found));
            }
            Ask::Contacts(viewer, answer) => {
                let _ = answer.send(self.shard.contacts(&viewer, out));
            }
        }
        self.carry_out(out).await;
    }

    async fn advance(&mut self, now: u64, out: &mut Vec<Output>) {
        let is_due = self.shard.next_deadline().is_some_and(|at| at <= now);
        if is_due || self.rules.is_replaced() {
            self.shard.advance(now, &mut self.rules, out);
            self.carry_out(out).await;
        }
    }

    /// Notes that the worker is at the next thing.
    fn is_busy(&self) {
        self.figures
            .busy_since
            .store(clock::now_ms(), Ordering::Relaxed);
    }

    async fn carry_out(&mut self, out: &mut Vec<Output>) {
        for output in out.drain(..) {
            let sent = match output {
                Output::Publish(publication) => {
                    self.figures.published.fetch_add(1, Ordering::Relaxed);
                    self.publisher.publish(publication).await
                }
                Output::Deliver(delivery) => {
                    self.figures.published.fetch_add(1, Ordering::Relaxed);
                    self.publisher.deliver(delivery).await
                }
                Output::Reply(to, body) => self.publisher.reply(to, body).await,
                Output::Ignored(ignored) => {
                    self.stale.note(clock::now_ms(), &ignored);
                    Ok(())
                }
                Output::Refused(rejection) => {
                    if let Some(refused) = self.refusals.quotas.line(REFUSALS_TOLD_MS) {
                        tracing::warn!(refused, "a quota is exceeded: {}", rejection.error);
                    }
                    Ok(())
                }
                Output::Fetch(questions) => {
                    if let Some(fetcher) = &self.fetcher {
                        fetcher.want(questions);
                    }
                    Ok(())
                }
            };
            if let Err(error) = sent {
                tracing::error!(%error, "a message could not be published");
            }
        }
    }

    /// Hands over what the state lacks, if it is time.
    fn save(&mut self) {
        if let Some(saver) = &mut self.saver
            && !saver.save(&mut self.shard, &self.publisher)
        {
            tracing::error!("what happens from now on won't outlive a restart");
            self.saver = None;
            self.shard.keep_records(false);
        }
    }

    /// Hands over all that the state lacks, once the broker has all that was published.
    /// Where it can't be reached, the state stays as it was when it last had all.
    async fn save_all(&mut self) {
        let Some(saver) = &mut self.saver else {
            return;
        };
        match self.publisher.settled().await {
            Ok(true) => saver.save_all(&mut self.shard, &self.publisher).await,
            Ok(false) => tracing::warn!(
                "NATS can't be reached, and doesn't have the last messages: what they say is \
                 not kept, and the next start tells it anew"
            ),
            Err(error) => tracing::error!(%error, "a message could not be published"),
        }
    }

    fn tell_figures(&self) {
        let figures = &self.figures;
        let counters = self.shard.counters();
        let told = figures.counters.lock();
        let told = std::mem::replace(&mut *told.unwrap_or_else(PoisonError::into_inner), counters);
        if counters.dead_letters_left_out > told.dead_letters_left_out
            && self.refusals.left_out.line(REFUSALS_TOLD_MS).is_some()
        {
            tracing::warn!(
                left_out = counters.dead_letters_left_out,
                "there are more dead letters than may be published ([dead_letters] per_s): some \
                 are left out, and counted"
            );
        }
        let journal_bytes = self.publisher.journal_bytes() as u64;
        figures
            .journal_bytes
            .store(journal_bytes, Ordering::Relaxed);
        figures
            .repeated
            .store(self.publisher.repeated(), Ordering::Relaxed);
        figures
            .online_users
            .store(self.shard.online_users() as u64, Ordering::Relaxed);
        figures
            .connections
            .store(self.shard.connections() as u64, Ordering::Relaxed);
        let backlog = self.shard.backlog();
        figures.backlog.store(backlog as u64, Ordering::Relaxed);
        if backlog == 0 {
            figures.settled.store(self.generation, Ordering::Relaxed);
        }
    }
}
