//! A tenant on this node: everything that is its own hangs off this one value.
//!
//! Its users are shared out over its workers by a hash of their id. All that
//! changes while it runs (directory, pipeline, settings) is changed here, and
//! handed to the workers in between their inputs.

pub(crate) mod ask;
pub(crate) mod intake;
pub(crate) mod progress;
pub(crate) mod stale;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_nats::Client;
use futures_util::future::join_all;
use presence_config::subjects::{Source, Subjects};
use presence_config::{self as config, Config, Queues};
use presence_core::allowance::Allowance;
use presence_core::directory::{Changes, Directory};
use presence_core::names::Names;
use presence_core::{Input, Shard, metadata};
use presence_sandbox::{Blueprint, Pipeline};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use crate::directory;
use crate::directory::kept::Keeper;
use crate::directory::request::Fetcher;
use crate::link::broker::{self, Health};
use crate::link::drops::Carries;
use crate::link::handed::{Handed, Sources};
use crate::link::hearing::Hearing;
use crate::link::publisher::Publisher;
use crate::link::reply::Replies;
use crate::pool::worker::{self, State, Task, Workers};
use crate::state::{Restored, Writer};
use crate::tasks::Tasks;
use crate::tenant::ask::{Budget, Counts, Desk};
use crate::tenant::intake::{Account, Intake};
use crate::tenant::stale::StaleLog;

/// How many ids come together before those in use are told from the others.
const SWEEP_IDS_MIN: usize = 65_536;

/// What the pipeline's generations are counted from.
const FIRST_GENERATION: u64 = 1;

/// The pipeline that is in force.
#[derive(Clone)]
pub(crate) struct Running {
    /// Its number, counted from 1.
    pub(crate) generation: u64,
    pub(crate) blueprint: Arc<Blueprint>,
}

/// What the workers of a tenant hand to the broker's client, by worker: nothing yet.
pub(crate) fn sources(config: &Config) -> (Sources, Vec<Arc<Handed>>) {
    let mut sources = Sources::new(presence_config::pulse_ms(config.tracker.timeout_ms));
    let workers = 0..config.engine.worker_count();
    let handed = workers.map(|_| sources.add()).collect();
    (sources, handed)
}

/// A tenant that runs.
pub(crate) struct Tenant {
    pub(crate) subjects: Subjects,
    pub(crate) names: Arc<Names>,
    pub(crate) directory: Arc<Directory>,
    /// The directory that the workers have been told of.
    known_directory: watch::Sender<Arc<Directory>>,
    /// Whether the directory's source can be read.
    pub(crate) health: Arc<directory::Health>,
    /// Keeps the directory over a restart; none where nothing is kept.
    pub(crate) keeper: Option<Keeper>,
    /// None where the directory holds all of its answers.
    pub(crate) fetcher: Option<Arc<Fetcher>>,
    /// Whether explanations are given.
    explains: Arc<AtomicBool>,
    /// Where answers may go.
    pub(crate) replies: Arc<Replies>,
    pub(crate) running: watch::Sender<Running>,
    pub(crate) body_bytes_max: Arc<AtomicUsize>,
    /// How much metadata a message may have.
    metadata: watch::Sender<metadata::Limits>,
    pub(crate) workers: Workers,
    /// How many dead letters the workers may publish.
    dead_letters: Allowance,
    /// How far each worker has handed its messages to the broker's client.
    pub(crate) sources: Sources,
    /// None where nothing is kept over a restart.
    pub(crate) state: Option<Writer>,
    /// How many ids there were after the last sweep.
    swept: usize,
}

impl Tenant {
    /// Starts a tenant's workers. Nobody is in its directory yet.
    pub(crate) fn start(
        config: &Config,
        blueprint: Blueprint,
        client: &Client,
        names: Arc<Names>,
        (epoch, state): (u64, Option<Writer>),
        replies: Arc<Replies>,
        (sources, handed): (Sources, Vec<Arc<Handed>>),
    ) -> anyhow::Result<Self> {
        let subjects = Subjects::new(config.tenant.prefix.as_deref());
        let fetcher = match &config.directory {
            config::Directory::Request(request) => {
                let subject = subjects.of(&request.subject);
                let names = Arc::clone(&names);
                Some(Arc::new(Fetcher::new(request, subject, names)))
            }
            config::Directory::File { .. } | config::Directory::Kv { .. } => None,
        };
        let directory = Arc::new(match &fetcher {
            Some(_) => Directory::on_demand(),
            // Until it has been read.
            None => Directory::unavailable(),
        });
        let body_bytes_max = broker::body_bytes_max(client);
        let mut workers = Vec::new();
        let journal_bytes = config.nats.journal_bytes / config.engine.worker_count().max(1);
        let refusals: Arc<worker::Refusals> = Arc::default();
        let dead_letters = Allowance::new(config.dead_letters.rates);
        let queues = &config.engine.queues;
        let room = worker::Room {
            batches: queues.worker_queue,
            input_bytes: queues.worker_queue_bytes / config.engine.worker_count().max(1),
            questions: queues.question_queue,
        };
        for (number, handed) in handed.into_iter().enumerate() {
            let settings = presence_config::shard_settings(config, body_bytes_max, &dead_letters);
            let mut shard = Shard::new(settings, Arc::clone(&names), Arc::clone(&directory));
            shard.keep_records(state.is_some());
            let owned = State {
                shard,
                rules: blueprint.instantiate()?,
                generation: FIRST_GENERATION,
                publisher: Publisher::new(
                    client.clone(),
                    Source::new(
                        &config.node.name,
                        number,
                        epoch,
                        &subjects,
                        config.nats.message_ids,
                    ),
                    config.nats.beacon_ms,
                    journal_bytes,
                    handed,
                ),
                figures: Arc::default(),
                saver: state.as_ref().map(Writer::saver),
                fetcher: fetcher.clone(),
                stale: StaleLog::default(),
                refusals: Arc::clone(&refusals),
            };
            workers.push(worker::start(number, room, owned)?);
        }
        Ok(Self {
            replies,
            subjects,
            names,
            known_directory: watch::Sender::new(Arc::clone(&directory)),
            directory,
            health: Arc::default(),
            keeper: None,
            fetcher,
            explains: Arc::new(config.explain.enabled.into()),
            running: watch::Sender::new(Running {
                generation: FIRST_GENERATION,
                blueprint: Arc::new(blueprint),
            }),
            body_bytes_max: Arc::new(body_bytes_max.into()),
            metadata: watch::Sender::new(config.tracker.metadata),
            workers: workers.into(),
            dead_letters,
            sources,
            state,
            swept: 0,
        })
    }

    /// Has the workers say that they serve the tenant's subjects.
    pub(crate) async fn begin(&self) {
        for worker in self.workers.iter() {
            worker.send(Task::Begin).await;
        }
    }

    /// Has the workers know again what was known when the node last ran, and
    /// returns when they do. They decide again on everyone, by the directory they
    /// were given.
    pub(crate) async fn restore(&self, restored: Restored) {
        let count = self.workers.iter().len();
        let mut shares: Vec<_> = self.workers.iter().map(|_| Vec::new()).collect();
        let down_ms = restored.down_ms();
        for record in restored.records {
            if let Some(share) = shares.get_mut(worker::place(record.user(), count)) {
                share.push(record);
            }
        }
        let mut known = Vec::new();
        for (worker, share) in self.workers.iter().zip(shares) {
            let (done, restored) = oneshot::channel();
            worker.send(Task::Restore(down_ms, share, done)).await;
            known.push(restored);
        }
        for restored in known {
            // A worker that is gone is noticed elsewhere.
            let _ = restored.await;
        }
    }

    /// Subscribes to what is published for the tenant.
    pub(crate) async fn listen(
        &self,
        client: &Client,
        broker: Arc<Health>,
        heard: watch::Receiver<u64>,
        intake_queue: usize,
    ) -> anyhow::Result<Intake> {
        // One subscription, so that one order holds over all subjects.
        let messages = client.subscribe(self.subjects.of("presence.>")).await?;
        broker.drops.watch(&messages, Carries::Inputs);
        Ok(Intake {
            messages,
            subjects: self.subjects.clone(),
            replies: Arc::clone(&self.replies),
            body_bytes_max: Arc::clone(&self.body_bytes_max),
            metadata: self.metadata.subscribe(),
            workers: self.workers.clone(),
            broker,
            statistics: client.statistics(),
            account: Account::default(),
            hearing: Hearing::new(heard, intake_queue, self.workers.iter().len()),
        })
    }

    /// What answers to what the tenant's users ask.
    pub(crate) fn desk(
        &self,
        client: &Client,
        broker: Arc<Health>,
        counts: Arc<Counts>,
        queues: &Queues,
    ) -> Desk {
        Desk {
            client: client.clone(),
            subjects: self.subjects.clone(),
            replies: Arc::clone(&self.replies),
            workers: self.workers.clone(),
            body_bytes_max: Arc::clone(&self.body_bytes_max),
            broker,
            directory: self.known_directory.subscribe(),
            answers_are_fetched: self.fetcher.is_some(),
            explains: Arc::clone(&self.explains),
            counts,
            budget: Budget::new(queues.question_queue, queues.question_bytes_max),
        }
    }

    /// Puts a changed directory in force.
    pub(crate) async fn set_directory(&mut self, directory: Directory, changes: Changes) {
        if let Some(keeper) = &mut self.keeper {
            keeper.note(&directory, &changes, &self.names);
        }
        // One of which nothing was known answers anew what nobody has an answer to.
        let is_first = self.directory.is_on_demand() && !directory.is_on_demand();
        if changes.is_empty() && !is_first {
            return;
        }
        self.health.set_holds(!directory.is_empty());
        let (users, changed_answers) = (directory.len(), changes.len());
        if directory.is_on_demand() {
            tracing::debug!(changed_answers, "directory changed");
        } else {
            tracing::info!(users, changed_answers, "directory changed");
        }
        self.directory = Arc::new(directory);
        let input = Input::Directory(Arc::clone(&self.directory), Arc::new(changes));
        self.workers.tell(|| input.clone()).await;
        self.known_directory
            .send_replace(Arc::clone(&self.directory));
    }

    /// Puts a pipeline in force: its instances, one for each worker.
    pub(crate) async fn swap(&mut self, blueprint: Blueprint, pipelines: Vec<Pipeline>) {
        let generation = self.running.borrow().generation + 1;
        self.running.send_replace(Running {
            generation,
            blueprint: Arc::new(blueprint),
        });
        for (worker, pipeline) in self.workers.iter().zip(pipelines) {
            let task = Task::Pipeline(generation, Box::new(pipeline));
            worker.send(task).await;
        }
    }

    /// Puts changed settings in force.
    pub(crate) async fn configure(&self, config: &Config) {
        self.explains
            .store(config.explain.enabled, Ordering::Relaxed);
        self.metadata.send_replace(config.tracker.metadata);
        self.dead_letters.change(config.dead_letters.rates);
        let body_bytes_max = self.body_bytes_max.load(Ordering::Relaxed);
        let settings = presence_config::shard_settings(config, body_bytes_max, &self.dead_letters);
        // Leases run by steps of the same length.
        let timeout_ms = config.tracker.timeout_ms;
        self.sources
            .ask_every(presence_config::pulse_ms(timeout_ms));
        let input = Input::Settings(Box::new(settings));
        self.workers.tell(|| input.clone()).await;
    }

    /// Has the workers know that the broker may take longer or shorter messages when
    /// it is back from having been away.
    pub(crate) fn follow_link(
        &self,
        mut links: mpsc::UnboundedReceiver<bool>,
        client: Client,
        tasks: &Tasks,
    ) {
        let workers = self.workers.clone();
        let known = Arc::clone(&self.body_bytes_max);
        let fetcher = self.fetcher.clone();
        tasks.spawn("link", async move {
            while let Some(connected) = links.recv().await {
                if !connected {
                    continue;
                }
                let body_bytes_max = broker::body_bytes_max(&client);
                known.store(body_bytes_max, Ordering::Relaxed);
                if let Some(fetcher) = &fetcher {
                    fetcher.reconnected();
                }
                workers.tell(|| Input::BodyBytesMax(body_bytes_max)).await;
            }
        });
    }

    /// Has the log know how far corrections are.
    pub(crate) fn follow_corrections(&self, tasks: &Tasks) {
        let (workers, running) = (self.workers.clone(), self.running.subscribe());
        tasks.spawn("corrections", progress::follow(workers, running));
    }

    /// Gives back the ids that nothing refers to any more, when there are many.
    pub(crate) async fn tidy(&mut self) {
        if self.names.len() < 2 * self.swept + SWEEP_IDS_MIN {
            return;
        }
        self.names.begin_sweep();
        // Workers hold no directory older than what they have been sent, and no
        // id that they haven't got from it, or interned since the sweep began.
        self.names.keep(&self.directory.ids());
        for worker in self.workers.iter() {
            let (answer, ids) = oneshot::channel();
            worker.send(Task::Ids(answer)).await;
            if let Ok(ids) = ids.await {
                self.names.keep(&ids);
            }
        }
        if let Some(fetcher) = &self.fetcher {
            self.names.keep(&fetcher.ids());
        }
        let given_back = self.names.finish_sweep();
        self.swept = self.names.len();
        tracing::info!(given_back, in_use = self.swept, "unused ids given back");
    }

    /// Ends the workers, once they have done all that they were given. What isn't done by
    /// then is given up; each worker has its own turn, whatever holds up another.
    pub(crate) async fn end_workers(&self, by: Instant) {
        let ends = self.workers.iter().map(|worker| async {
            let (done, drained) = oneshot::channel();
            worker.send(Task::Stop(done)).await;
            // A worker that is gone has nothing left to do.
            let _ = drained.await;
        });
        if timeout_at(by, join_all(ends)).await.is_err() {
            tracing::warn!("not all that was taken in could be published in time");
        }
    }

    /// Has nothing wait any more for a disk that can't be written: the node is to stop.
    pub(crate) fn give_up_waiting(&self) {
        if let Some(state) = &self.state {
            state.give_up_waiting();
        }
        if let Some(keeper) = &self.keeper {
            keeper.give_up_waiting();
        }
    }

    /// Writes what the state and the copy of the directory lack, and closes them.
    pub(crate) async fn close_state(&self, by: Instant) {
        let state = async {
            if let Some(state) = &self.state
                && timeout_at(by, state.finish()).await.is_err()
            {
                tracing::warn!("not all of the state could be written in time");
            }
        };
        let directory = async {
            if let Some(keeper) = &self.keeper
                && timeout_at(by, keeper.finish()).await.is_err()
            {
                tracing::warn!("the directory could not be kept in time");
            }
        };
        tokio::join!(state, directory);
    }
}
