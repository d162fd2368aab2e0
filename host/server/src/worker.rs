//! A worker: one thread that owns a shard of the users, and the component
//! instances that decide about them. Nothing it holds is shared while it works.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bytestring::ByteString;
use foldhash::fast::FixedState;
use presence_core::body::explain::Found;
use presence_core::directory::Question;
use presence_core::names::Name;
use presence_core::query::Explain;
use presence_core::record::Record;
use presence_core::{Counters, Input, Output, Shard};
use presence_sandbox::Pipeline;
use roaring::RoaringBitmap;
use tokio::sync::{mpsc, oneshot};

use crate::ask::Asking;
use crate::barrier::Barrier;
use crate::clock;
use crate::directory::request::Fetcher;
use crate::publisher::Publisher;
use crate::stale::StaleLog;
use crate::state::Saver;

/// What a worker is sent.
pub(crate) enum Task {
    /// Inputs, in the order of their arrival, and when they arrived.
    Inputs(u64, Vec<Input>),
    /// A new pipeline, ready to be called, and its generation.
    Pipeline(u64, Box<Pipeline>),
    /// Answer a piece of a query.
    Query(Arc<Asking>, usize),
    /// Explain why a viewer can or can't see a user. Answered with the generation
    /// of the pipeline that decided.
    Explain(Explain, oneshot::Sender<(u64, Found)>),
    /// Say who a viewer's own contacts are.
    Contacts(ByteString, oneshot::Sender<Result<Vec<Name>, Question>>),
    /// This was known when the node last ran, and so long ago, in milliseconds. Say
    /// when it is known again.
    Restore(u64, Vec<Record>, oneshot::Sender<()>),
    /// Say of each of these answers of the directory whether it is gone by here.
    Uses(Arc<[Question]>, oneshot::Sender<Vec<bool>>),
    /// Say which ids are in use here.
    Ids(oneshot::Sender<RoaringBitmap>),
    /// The node serves its subjects from now on: say so.
    Begin,
    /// Say when all before this has been done, and handed to the broker's client
    /// and to the state; do nothing after it.
    Stop(oneshot::Sender<()>),
}

/// A worker's figures, as it last told them.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    counters: Mutex<Counters>,
    pub(crate) online_users: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) published: AtomicU64,
    /// How many messages were published again after a lost connection.
    pub(crate) repeated: AtomicU64,
    /// How many bytes of messages the broker hasn't acknowledged.
    pub(crate) journal_bytes: AtomicU64,
    /// How many users are still to be decided on again.
    pub(crate) backlog: AtomicU64,
    /// The last generation of the pipeline by which everyone has been decided on.
    pub(crate) settled: AtomicU64,
    /// Since when the worker has been at one task, in milliseconds since the Unix
    /// epoch; 0 while it waits for one.
    busy_since: AtomicU64,
}

impl Figures {
    /// For how long the worker has been at one task, in milliseconds.
    pub(crate) fn busy_ms(&self) -> u64 {
        match self.busy_since.load(Ordering::Relaxed) {
            0 => 0,
            since => clock::now_ms().saturating_sub(since),
        }
    }
}

/// A worker, as the rest of the node sees it.
#[derive(Debug)]
pub(crate) struct Worker {
    /// Bounded: when it is full, the intake drops what is for this worker, and
    /// counts it.
    tasks: mpsc::Sender<Task>,
    pub(crate) figures: Arc<Figures>,
}

impl Worker {
    /// Hands over a task if there is room for it now.
    pub(crate) fn offer(&self, task: Task) -> bool {
        self.tasks.try_send(task).is_ok()
    }

    /// Hands over a task, when there is room for it. A worker that is gone is
    /// one that was told to stop.
    pub(crate) async fn send(&self, task: Task) {
        let _ = self.tasks.send(task).await;
    }
}

/// A tenant's workers, shared.
#[derive(Clone, Debug)]
pub(crate) struct Workers(Arc<[Worker]>);

impl Workers {
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Worker> {
        self.0.iter()
    }

    /// The worker at a place.
    pub(crate) fn get(&self, place: usize) -> Option<&Worker> {
        self.0.get(place)
    }

    /// What each of them has counted.
    pub(crate) fn counters(&self) -> impl Iterator<Item = Counters> {
        self.iter().map(|worker| {
            let counters = worker.figures.counters.lock();
            *counters.unwrap_or_else(PoisonError::into_inner)
        })
    }

    /// A figure of all of them together.
    pub(crate) fn total(&self, of: fn(&Figures) -> &AtomicU64) -> u64 {
        let figures = self.iter().map(|worker| of(&worker.figures));
        figures.map(|figure| figure.load(Ordering::Relaxed)).sum()
    }

    /// The place of the worker that owns a user.
    pub(crate) fn place_of(&self, user: &str) -> usize {
        place(user, self.0.len())
    }

    /// Waits until one of them is gone, which none is before it is told to stop:
    /// it has panicked.
    pub(crate) async fn one_is_gone(&self) {
        let gone = self.iter().map(|worker| Box::pin(worker.tasks.closed()));
        futures_util::future::select_all(gone).await;
    }

    /// Hands the same input to every worker.
    pub(crate) async fn tell(&self, input: impl Fn() -> Input) {
        for worker in self.iter() {
            worker
                .send(Task::Inputs(clock::now_ms(), vec![input()]))
                .await;
        }
    }
}

/// Which of so many workers has a user.
pub(crate) fn place(user: &str, workers: usize) -> usize {
    FixedState::default().hash_one(user) as usize % workers.max(1)
}

impl From<Vec<Worker>> for Workers {
    fn from(workers: Vec<Worker>) -> Self {
        Self(workers.into())
    }
}

/// Starts a worker.
pub(crate) fn start(number: usize, queue: usize, state: State) -> anyhow::Result<Worker> {
    let (tasks, inbox) = mpsc::channel(queue);
    let figures = Arc::clone(&state.figures);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    std::thread::Builder::new()
        .name(format!("worker-{number}"))
        .spawn(move || runtime.block_on(state.work(inbox)))
        .context("can't start a worker thread")?;
    Ok(Worker { tasks, figures })
}

/// What a worker owns.
pub(crate) struct State {
    pub(crate) shard: Shard,
    pub(crate) rules: Pipeline,
    /// The pipeline's.
    pub(crate) generation: u64,
    pub(crate) publisher: Publisher,
    pub(crate) figures: Arc<Figures>,
    pub(crate) barrier: Barrier,
    /// None where nothing is kept over a restart.
    pub(crate) saver: Option<Saver>,
    /// None where the directory holds all of its answers.
    pub(crate) fetcher: Option<Arc<Fetcher>>,
    pub(crate) stale: StaleLog,
}

impl State {
    async fn work(mut self, mut inbox: mpsc::Receiver<Task>) {
        let mut out = Vec::new();
        // It is one of several shards.
        self.shard.told_elsewhere(self.barrier.told());
        loop {
            let saver = self.saver.as_ref();
            let save_at = saver.and_then(|saver| saver.due(&self.shard));
            let wake_at = [self.shard.next_deadline(), save_at, self.publisher.due()];
            let wake_at = wake_at.into_iter().flatten().min();
            let task = async {
                tokio::select! {
                    biased;
                    task = inbox.recv() => Some(task),
                    () = self.barrier.moved(), if self.shard.gains_wait() => None,
                    () = self.publisher.moved(), if self.publisher.waits() => None,
                }
            };
            let task = match wake_at {
                Some(at) => {
                    let wait = Duration::from_millis(at.saturating_sub(clock::now_ms()));
                    tokio::time::timeout(wait, task).await.ok().flatten()
                }
                None => task.await,
            };
            let now = clock::now_ms();
            self.figures.busy_since.store(now, Ordering::Relaxed);
            match task {
                Some(Some(Task::Stop(done))) => {
                    self.shard.give_up(now, &mut self.rules, &mut out);
                    self.carry_out(&mut out).await;
                    self.save_all().await;
                    // Whoever asked may have given up.
                    let _ = done.send(());
                    self.figures.busy_since.store(0, Ordering::Relaxed);
                    return;
                }
                Some(Some(task)) => self.task(task, &mut out).await,
                Some(None) => return,
                // What has arrived comes first: a sign of life that waits in the
                // queue counts.
                None if inbox.is_empty() => self.advance(clock::now_ms(), &mut out).await,
                None => {}
            }
            if let Err(error) = self.publisher.tend().await {
                tracing::error!(%error, "a beacon could not be published");
            }
            // All of it has been handed to the broker's client.
            self.barrier.tell(self.shard.losses_told());
            self.save();
            self.tell_figures();
            self.figures.busy_since.store(0, Ordering::Relaxed);
        }
    }

    async fn task(&mut self, task: Task, out: &mut Vec<Output>) {
        match task {
            Task::Inputs(arrived_at, inputs) => {
                // What fell due before these arrived gets its turn before them,
                // however busy the inbox is.
                self.advance(arrived_at.saturating_sub(1), out).await;
                for input in inputs {
                    self.shard.handle(arrived_at, input, &mut self.rules, out);
                }
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
            Task::Query(asking, piece) => {
                let (now, viewer) = (clock::now_ms(), asking.viewer());
                let users = asking.users(piece);
                let answers = self.shard.query(now, viewer, users, &mut self.rules, out);
                asking.answer(piece, answers);
            }
            // Whoever asked may have given up.
            Task::Explain(Explain { viewer, user }, answer) => {
                let (now, rules) = (clock::now_ms(), &mut self.rules);
                let found = self.shard.explain(now, &viewer, &user, rules, out);
                let _ = answer.send((self.generation, found));
            }
            Task::Contacts(viewer, answer) => {
                let _ = answer.send(self.shard.contacts(&viewer, out));
            }
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

    async fn advance(&mut self, now: u64, out: &mut Vec<Output>) {
        if self.shard.gains_wait() {
            self.shard.told_elsewhere(self.barrier.told());
        }
        let is_due = self.shard.next_deadline().is_some_and(|at| at <= now);
        if is_due || self.rules.has_become_another() {
            self.shard.advance(now, &mut self.rules, out);
            self.carry_out(out).await;
        }
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
        let journal_bytes = self.publisher.journal_bytes() as u64;
        figures
            .journal_bytes
            .store(journal_bytes, Ordering::Relaxed);
        figures
            .repeated
            .store(self.publisher.repeated(), Ordering::Relaxed);
        *figures
            .counters
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = self.shard.counters();
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
