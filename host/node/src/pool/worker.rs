//! A worker: one thread that owns a shard of the users, and the component
//! instances that decide about them. Nothing it holds is shared while it works. What it is
//! sent comes in lanes, each with room of its own: control, inputs and questions.

mod turns;

use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use bytestring::ByteString;
use foldhash::fast::FixedState;
use presence_core::body::explain::ExplainReport;
use presence_core::directory::Question;
use presence_core::names::Name;
use presence_core::query::Explain;
use presence_core::record::Record;
use presence_core::{Counters, Input};
use presence_sandbox::Pipeline;
use roaring::RoaringBitmap;
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::pool::lane::{self, Size};
use crate::tenant::ask::Asking;

pub(crate) use turns::{Refusals, State};

/// How many tasks of control may wait for a worker. The sender of more waits.
const CONTROL_MAX: usize = 64;

/// How many inputs a batch has at most.
pub(crate) const BATCH_MAX: usize = 256;

/// What an input takes in a lane beside the bytes of its message.
const INPUT_BYTES: usize = 256;

/// Inputs, in the order of their arrival.
pub(crate) struct Batch {
    /// When they arrived.
    pub(crate) arrived_at: u64,
    pub(crate) inputs: Vec<Input>,
    /// What they hold, in bytes.
    pub(crate) bytes: usize,
}

impl Batch {
    pub(crate) fn new(arrived_at: u64, inputs: Vec<Input>, bytes: usize) -> Self {
        Self {
            arrived_at,
            inputs,
            bytes,
        }
    }

    fn size(&self) -> Size {
        Size {
            messages: self.inputs.len(),
            bytes: self.bytes + self.inputs.len() * INPUT_BYTES,
        }
    }
}

/// What a worker is asked. It changes nothing that the worker knows.
pub(crate) enum Ask {
    /// Answer a piece of a query.
    Query(Arc<Asking>, usize),
    /// Explain why a viewer can or can't see a user. Answered with the generation
    /// of the pipeline that decided.
    Explain(Explain, oneshot::Sender<(u64, ExplainReport)>),
    /// Say who a viewer's own contacts are.
    Contacts(ByteString, oneshot::Sender<Result<Vec<Name>, Question>>),
}

/// How much may wait for a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// How many batches of inputs, were all of them full.
    pub(crate) batches: usize,
    /// How many bytes of inputs.
    pub(crate) input_bytes: usize,
    /// How many questions, or pieces of large ones.
    pub(crate) questions: usize,
}

/// What a worker is told by the node itself. It comes before inputs that wait.
pub(crate) enum Task {
    /// Something that all workers are told.
    Tell(Input),
    /// A new pipeline, ready to be called, and its generation.
    Pipeline(u64, Box<Pipeline>),
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
    tasks: mpsc::Sender<Task>,
    inputs: lane::Sender<Batch>,
    questions: lane::Sender<Ask>,
    pub(crate) figures: Arc<Figures>,
}

impl Worker {
    /// Hands over inputs if there is room for them now. Where there is none, they are to be
    /// counted as dropped.
    pub(crate) fn offer(&self, batch: Batch) -> bool {
        let size = batch.size();
        self.inputs.offer(batch, size).is_ok()
    }

    /// Hands over inputs when there is room for them. For the intake alone.
    pub(crate) async fn hand_over(&self, batch: Batch) {
        let size = batch.size();
        self.inputs.send(batch, size).await;
    }

    /// Asks, if there is room for the question now.
    pub(crate) fn ask(&self, ask: Ask) -> bool {
        let size = Size {
            messages: 1,
            bytes: 0,
        };
        self.questions.offer(ask, size).is_ok()
    }

    /// How many bytes of inputs wait.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.inputs.used().bytes
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

    /// How many bytes of inputs wait for them.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.iter().map(|worker| worker.queued_bytes() as u64).sum()
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
            worker.send(Task::Tell(input())).await;
        }
    }
}

/// Which of so many workers has a user, or anything else that can be told by its hash.
pub(crate) fn place(user: impl Hash, workers: usize) -> usize {
    FixedState::default().hash_one(user) as usize % workers.max(1)
}

impl From<Vec<Worker>> for Workers {
    fn from(workers: Vec<Worker>) -> Self {
        Self(workers.into())
    }
}

/// Starts a worker.
pub(crate) fn start(number: usize, room: Room, state: State) -> anyhow::Result<Worker> {
    let (tasks, control) = mpsc::channel(CONTROL_MAX);
    let (inputs, inputs_in) = lane::lane(Size {
        messages: room.batches.saturating_mul(BATCH_MAX),
        bytes: room.input_bytes,
    });
    let (questions, questions_in) = lane::lane(Size {
        messages: room.questions,
        bytes: usize::MAX,
    });
    let figures = Arc::clone(&state.figures);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    std::thread::Builder::new()
        .name(format!("worker-{number}"))
        .spawn(move || runtime.block_on(state.work(control, inputs_in, questions_in)))
        .context("can't start a worker thread")?;
    Ok(Worker {
        tasks,
        inputs,
        questions,
        figures,
    })
}
