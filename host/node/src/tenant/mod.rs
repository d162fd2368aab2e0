//! A tenant on this node: this one value holds everything that belongs to it.
//!
//! Its users are divided among its shards by a hash of their ids. The shards live on the node's
//! pool of threads. Everything that changes while the tenant runs (directory, pipeline, settings)
//! is changed here, and handed to the shards between their inputs.

pub(crate) mod ask;
pub(crate) mod failures;
pub(crate) mod intake;
mod listen;
pub(crate) mod progress;
pub(crate) mod quotas;
pub(crate) mod router;
pub(crate) mod stale;
pub(crate) mod stream_intake;
pub(crate) mod stream_router;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use presence_config::subjects::{Source, Subjects};
use presence_config::{self as config, Config, Quotas};
use presence_core::directory::{Changes, Directory};
use presence_core::names::Names;
use presence_core::quota::Quota;
use presence_core::share::{Assignment, Share};
use presence_core::{Input, Shard, metadata};
use presence_sandbox::{Blueprint, Latency};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tracing::Span;

use crate::candidate::{CandidatePipeline, Mode, Pipelines};
use crate::directory;
use crate::directory::disk_copy::CopyWriter;
use crate::directory::request::AnswerFetcher;
use crate::fleet::{Fleet, FleetStart};
use crate::link::broker::BrokerHealth;
use crate::link::connection::Connection;
use crate::link::progress::{PollInterval, Sources};
use crate::link::reply_guard::ReplyGuard;
use crate::link::sequencer::Sequencer;
use crate::ops::recent_dead_letters::RecentDeadLetters;
use crate::periodic_checks::PeriodicChecks;
use crate::pool::{
    self, Generation, HostedShard, Pool, QueueLimits, ShardOrReplica, Shards, ShardsGuard, Task,
    TenantContext, ThreadShare,
};
use crate::state::{Restored, Writer};
use crate::tasks::Tasks;
use crate::telemetry::Tracer;
use crate::tenant::progress::Corrections;
use crate::tenant::quotas::ExceededLog;
use crate::tenant::stream_intake::StreamHealth;

/// The least number of new ids before a sweep looks for unused ones.
const SWEEP_IDS_MIN: usize = 65_536;

/// How many users and groups are allowed per entry of a directory: an entry names two, and some are
/// known without being named by an entry.
const KNOWN_PER_ENTRY: u64 = 3;

/// The number of the first pipeline.
const FIRST_GENERATION: u64 = 1;

/// The pipelines that are in force.
#[derive(Clone)]
pub(crate) struct RunningPipelines {
    /// The number of the active pipeline, counted from 1.
    pub(crate) generation: u64,
    pub(crate) blueprint: Arc<Blueprint>,
    /// The candidate beside it, if there is one.
    pub(crate) candidate: Option<CandidatePipeline>,
}

impl From<&RunningPipelines> for Pipelines {
    fn from(running: &RunningPipelines) -> Self {
        Self {
            active: running.into(),
            candidate: running.candidate.clone(),
        }
    }
}

impl From<&RunningPipelines> for Generation {
    fn from(running: &RunningPipelines) -> Self {
        Self {
            number: running.generation,
            blueprint: Arc::clone(&running.blueprint),
        }
    }
}

/// A canary with which a node starts.
pub(crate) struct FirstCandidate {
    pub(crate) blueprint: Blueprint,
    pub(crate) share: Share,
    /// The stages that it was loaded from.
    pub(crate) chain: Arc<[config::Stage]>,
}

/// A running tenant.
pub(crate) struct Tenant {
    pub(crate) subjects: Subjects,
    pub(crate) names: Arc<Names>,
    pub(crate) directory: Arc<Directory>,
    /// Whether the directory's source has more entries than allowed. The refused content isn't
    /// kept: the source is read again.
    is_too_large: bool,
    /// The directory that the shards have got.
    pub(crate) known_directory: watch::Sender<Arc<Directory>>,
    /// Whether the directory's source can be read.
    pub(crate) health: Arc<directory::DirectoryHealth>,
    /// Keeps a copy of the directory for the next start. `None` if none is kept.
    pub(crate) copy_writer: Option<CopyWriter>,
    /// Fetches missing answers of the directory service. `None` if the directory is complete.
    pub(crate) fetcher: Option<Arc<AnswerFetcher>>,
    /// Whether requests for explanations are answered.
    pub(crate) explains: Arc<AtomicBool>,
    /// The last dead letters.
    pub(crate) dead_letters: Arc<RecentDeadLetters>,
    /// How long messages take from their arrival until their outputs are handed over.
    pub(crate) publish_latency: Arc<Latency>,
    /// Decides on which reply subjects answers may be sent.
    pub(crate) replies: Arc<ReplyGuard>,
    pub(crate) running: watch::Sender<RunningPipelines>,
    /// The last number that was given to a pipeline.
    generations: u64,
    pub(crate) body_bytes_max: Arc<AtomicUsize>,
    /// The limits on a message's metadata.
    metadata: watch::Sender<metadata::Limits>,
    pub(crate) shards: Shards,
    _shards_guard: ShardsGuard,
    /// The fleet of this tenant. `None` if the node serves it alone.
    pub(crate) fleet: Option<Arc<Fleet>>,
    /// The threads on which the shards live.
    pub(crate) pool: Pool,
    /// The rates and numbers that its shards share.
    quotas: Quotas,
    /// Notes and logs exceeded quotas.
    pub(crate) exceeded: Arc<ExceededLog>,
    /// Its share of the threads.
    share: Arc<ThreadShare>,
    /// The tenant's request for how often the broker is asked for acknowledgements.
    pulse: PollInterval,
    /// The stored state. `None` if nothing is kept over a restart.
    pub(crate) state: Option<Writer>,
    /// The stream from which connects and disconnects are taken. `None` if there is none.
    pub(crate) input_stream: Option<Arc<StreamHealth>>,
    /// Makes traces of messages. `None` if there are none.
    tracer: Option<Tracer>,
    /// How many ids were in use after the last sweep.
    swept: usize,
}

/// The size of a directory, in entries. Users and groups without an entry take memory too, so many
/// of them count as entries.
fn size(directory: &Directory) -> u64 {
    let known = directory.len() + directory.group_count() as u64;
    directory.entries().max(known / KNOWN_PER_ENTRY)
}

impl Tenant {
    /// Starts a tenant's shards. Its directory hasn't been read yet.
    pub(crate) fn start(
        config: &Config,
        blueprint: Blueprint,
        connection: &Connection,
        names: Arc<Names>,
        (epoch, state, fleet): (u64, Option<Writer>, Option<&FleetStart>),
        replies: Arc<ReplyGuard>,
        (pool, sources, tracer): (Pool, &Sources, Option<Tracer>),
    ) -> Self {
        let subjects = Subjects::new(config.tenant.prefix.as_deref());
        let fetcher = match &config.directory {
            config::Directory::Request(request) => {
                let subject = subjects.of(&request.subject);
                let names = Arc::clone(&names);
                Some(Arc::new(AnswerFetcher::new(request, subject, names)))
            }
            config::Directory::File { .. } | config::Directory::Kv { .. } => None,
        };
        let directory = Arc::new(match &fetcher {
            Some(_) => Directory::on_demand(),
            // Until it has been read.
            None => Directory::unavailable(),
        });
        let body_bytes_max = connection.body_bytes_max();
        let quotas = Quotas::new(config);
        let exceeded = Arc::<ExceededLog>::default();
        let weight = config.limits.weight;
        let share = ThreadShare::new(weight, quotas.cpu.clone(), Arc::clone(&exceeded));
        let share = Arc::new(share);
        let count = config.shard_count();
        let queues = &config.engine.queues;
        let room = QueueLimits {
            batches: queues.worker_queue,
            input_bytes: queues.worker_queue_bytes / count,
            questions: queues.question_queue,
        };
        let running = RunningPipelines {
            generation: FIRST_GENERATION,
            blueprint: Arc::new(blueprint),
            candidate: None,
        };
        let dead_letters = Arc::<RecentDeadLetters>::default();
        let publish_latency = Arc::<Latency>::default();
        let common = Arc::new(TenantContext {
            span: config.tenant.name.is_some().then(Span::current),
            lines_key: config.tenant.lines_key(),
            fetcher: fetcher.clone(),
            restorer: state.as_ref().map(Writer::restorer),
            shards: count,
            dead_letters: Arc::clone(&dead_letters),
            publish_latency: Arc::clone(&publish_latency),
            tracer: tracer.clone(),
            exceeded: Arc::clone(&exceeded),
            share: Arc::clone(&share),
            ..TenantContext::default()
        });
        let shards = pool.place(count, room, |number, figures| {
            let settings = presence_config::shard_settings(config, body_bytes_max, &quotas);
            let mut shard = Shard::new(settings, Arc::clone(&names), Arc::clone(&directory));
            let message_ids = config.nats.message_ids;
            let (shard, sequencer) = match fleet {
                None => {
                    shard.keep_records(state.is_some());
                    let node = &config.node.name;
                    let source = Source::new(node, number, epoch, &subjects, message_ids);
                    (ShardOrReplica::alone(shard), Sequencer::new(source))
                }
                Some(fleet) => {
                    let source = Source::of_fleet(number, &subjects, message_ids);
                    let number = u32::try_from(number).unwrap_or(u32::MAX);
                    let updates_subject = subjects.shard_standby_messages(number);
                    let (names, links) = (Arc::clone(&names), fleet.links.clone());
                    let replica = (number, fleet.replicas.clone());
                    let cell = ShardOrReplica::replica(shard, replica, names, links);
                    (cell, Sequencer::of_fleet(source, updates_subject))
                }
            };
            let saver = state.as_ref().map(Writer::saver);
            let common = Arc::clone(&common);
            let generation = (&running).into();
            HostedShard::new(shard, generation, sequencer, saver, common, figures)
        });
        let shards = match fleet {
            None => shards,
            Some(_) => shards.of_fleet(),
        };
        Self {
            replies,
            subjects,
            names,
            known_directory: watch::Sender::new(Arc::clone(&directory)),
            directory,
            is_too_large: false,
            health: Arc::default(),
            copy_writer: None,
            fetcher,
            explains: Arc::new(config.explain.enabled.into()),
            dead_letters,
            publish_latency,
            running: watch::Sender::new(running),
            generations: FIRST_GENERATION,
            body_bytes_max: Arc::new(body_bytes_max.into()),
            metadata: watch::Sender::new(config.tracker.metadata),
            _shards_guard: ShardsGuard::of(&shards),
            shards,
            fleet: fleet.map(|it| Arc::clone(&it.fleet)),
            pool,
            quotas,
            exceeded,
            share,
            pulse: sources.request_interval(presence_config::pulse_ms(config.tracker.timeout_ms)),
            state,
            input_stream: config
                .input
                .stream
                .clone()
                .map(|it| StreamHealth::new(it).into()),
            tracer,
            swept: 0,
        }
    }

    /// Tells the shards that the node serves the tenant's subjects, so that they send beacons.
    pub(crate) async fn begin(&self) {
        for shard in self.shards.iter() {
            shard.send(Task::Begin).await;
        }
    }

    /// Restores the shards from the records of the last run, and waits until that is done. The
    /// shards decide again on all users, with the directory that they have got.
    pub(crate) async fn restore(&self, restored: Restored) {
        let count = self.shards.iter().len();
        let mut shares: Vec<_> = self.shards.iter().map(|_| Vec::new()).collect();
        let down_ms = restored.down_ms();
        for record in restored.records {
            if let Some(share) = shares.get_mut(pool::place(record.user(), count)) {
                share.push(record);
            }
        }
        let mut known = Vec::new();
        for (shard, share) in self.shards.iter().zip(shares) {
            let (done, restored) = oneshot::channel();
            shard.send(Task::Restore(down_ms, share, done)).await;
            known.push(restored);
        }
        for restored in known {
            // An ended thread is handled elsewhere.
            let _ = restored.await;
        }
    }

    /// Runs the enrichers again for all users who are online.
    pub(crate) async fn run_enrichers(&self) {
        let active = self.running.borrow().generation;
        let same = Assignment {
            active,
            candidate: None,
        };
        for shard in self.shards.iter() {
            let input = Input::Reassigned {
                before: same,
                after: same,
                has_other_enrichers: true,
            };
            shard.send(Task::Input(input)).await;
        }
    }

    /// The limit on the directory's entries. A directory that is larger already may keep its size.
    pub(crate) fn directory_entries_max(&self, entries_max: u64) -> u64 {
        match entries_max {
            0 => u64::MAX,
            max => max.max(size(&self.directory)),
        }
    }

    /// Puts a changed directory in force, if it doesn't exceed the limit or the size that it had.
    ///
    /// # Errors
    /// If it is too large: the known directory stays in force.
    pub(crate) async fn take_directory(
        &mut self,
        directory: Directory,
        changes: Changes,
        entries_max: u64,
    ) -> Result<(), String> {
        if size(&directory) > self.directory_entries_max(entries_max) {
            return Err(self.refuse_directory(entries_max));
        }
        self.is_too_large = false;
        self.set_directory(directory, changes).await;
        Ok(())
    }

    /// Notes that the directory's source has more entries than allowed. Returns the reason.
    pub(crate) fn refuse_directory(&mut self, entries_max: u64) -> String {
        self.is_too_large = true;
        let why = quotas::directory_entries(entries_max);
        self.exceeded.note(Quota::DirectoryEntries, &why);
        why
    }

    /// Whether the directory's source has more entries than allowed.
    pub(crate) fn is_too_large(&self) -> bool {
        self.is_too_large
    }

    /// Puts a changed directory in force.
    pub(crate) async fn set_directory(&mut self, directory: Directory, changes: Changes) {
        if let Some(copy_writer) = &mut self.copy_writer {
            copy_writer.note(&directory, &changes, &self.names);
        }
        self.health.note_read();
        // The first directory answers questions that had no answer before, even if it is empty.
        let is_first = self.directory.is_on_demand() && !directory.is_on_demand();
        if changes.is_empty() && !is_first {
            return;
        }
        self.health.set_has_entries(!directory.is_empty());
        let (users, changed_lists) = (directory.len(), changes.len());
        if directory.is_on_demand() {
            tracing::debug!(changed_lists, "directory changed");
        } else {
            tracing::info!(users, changed_lists, "directory changed");
        }
        self.directory = Arc::new(directory);
        let input = Input::Directory(Arc::clone(&self.directory), Arc::new(changes));
        self.shards.broadcast(|| input.clone()).await;
        self.known_directory
            .send_replace(Arc::clone(&self.directory));
    }

    /// Starts a canary together with the node.
    pub(crate) async fn begin_canary(&mut self, candidate: FirstCandidate) {
        let FirstCandidate {
            blueprint,
            share,
            chain,
        } = candidate;
        let candidate = CandidatePipeline {
            generation: self.next_generation(blueprint),
            mode: Mode::Canary(share),
            meter: Arc::default(),
            chain,
        };
        let active = Generation::from(&*self.running.borrow());
        self.set_pipelines(Pipelines {
            active,
            candidate: Some(candidate),
        })
        .await;
    }

    /// Puts pipelines in force.
    pub(crate) async fn set_pipelines(&mut self, pipelines: Pipelines) {
        let Pipelines { active, candidate } = pipelines.clone();
        self.running.send_replace(RunningPipelines {
            generation: active.number,
            blueprint: active.blueprint,
            candidate,
        });
        for shard in self.shards.iter() {
            shard.send(Task::Pipelines(pipelines.clone())).await;
        }
    }

    /// A pipeline with the next number, which no other pipeline has had.
    pub(crate) fn next_generation(&mut self, blueprint: Blueprint) -> Generation {
        self.generations += 1;
        Generation {
            number: self.generations,
            blueprint: Arc::new(blueprint),
        }
    }

    /// Puts changed settings in force.
    pub(crate) async fn configure(&self, config: &Config) {
        self.explains
            .store(config.explain.enabled, Ordering::Relaxed);
        self.metadata.send_replace(config.tracker.metadata);
        self.quotas.change(config);
        self.share.change_weight(config.limits.weight);
        let body_bytes_max = self.body_bytes_max.load(Ordering::Relaxed);
        let settings = presence_config::shard_settings(config, body_bytes_max, &self.quotas);
        // A lease advances in steps of the pulse, so the pulse depends on the timeout.
        let timeout_ms = config.tracker.timeout_ms;
        self.pulse.set(presence_config::pulse_ms(timeout_ms));
        let input = Input::Settings(Box::new(settings));
        self.shards.broadcast(|| input.clone()).await;
    }

    /// After each reconnect, tells the shards the longest body that the broker takes, which may
    /// have changed.
    pub(crate) fn follow_link(
        &self,
        mut connects: watch::Receiver<u64>,
        (connection, broker): (Connection, Arc<BrokerHealth>),
        tasks: &Tasks,
    ) {
        broker.set_body_bytes_max(connection.body_bytes_max());
        let shards = self.shards.clone();
        let known = Arc::clone(&self.body_bytes_max);
        let fetcher = self.fetcher.clone();
        tasks.spawn("link", async move {
            while connects.changed().await.is_ok() {
                let body_bytes_max = connection.body_bytes_max();
                known.store(body_bytes_max, Ordering::Relaxed);
                broker.set_body_bytes_max(body_bytes_max);
                if let Some(fetcher) = &fetcher {
                    fetcher.on_reconnect();
                }
                shards
                    .broadcast(|| Input::BodyBytesMax(body_bytes_max))
                    .await;
            }
            // The connection ends only with the node.
            std::future::pending().await
        });
    }

    /// Logs the progress of corrections.
    pub(crate) fn follow_corrections(&self, periodic_checks: &PeriodicChecks, tasks: &Tasks) {
        let mut corrections = Corrections::new(self.shards.clone(), self.running.subscribe());
        periodic_checks.add(tasks, "corrections", move || corrections.check());
    }

    /// Frees the ids that nothing refers to any more, when there are many.
    pub(crate) async fn sweep(&mut self) {
        if self.names.len() < 2 * self.swept + SWEEP_IDS_MIN && !self.names.is_sweep_due() {
            return;
        }
        self.names.begin_sweep();
        // A shard holds no directory older than the last one that it was sent. Its ids come from
        // there, or were interned after the sweep began.
        self.names.keep(&self.directory.ids());
        for shard in self.shards.iter() {
            let (answer, ids) = oneshot::channel();
            shard.send(Task::Ids(answer)).await;
            // If a shard doesn't answer, its ids are unknown, so none may be freed.
            let Ok(ids) = ids.await else { return };
            self.names.keep(&ids);
        }
        if let Some(fetcher) = &self.fetcher {
            self.names.keep(&fetcher.ids());
        }
        if let Some(candidate) = &self.running.borrow().candidate {
            self.names.keep(&candidate.meter.ids());
        }
        let given_back = self.names.finish_sweep();
        self.swept = self.names.len();
        tracing::info!(
            freed = given_back,
            in_use = self.swept,
            "unused user ids freed"
        );
    }

    /// Removes the limit on processor time, because the tenant is about to stop.
    pub(crate) fn lift_quotas(&self) {
        self.share.remove_cpu_limit();
    }

    /// Stops the shards after they have done everything that they got. What isn't done at `by` is
    /// dropped. The shards stop independently, so a slow one doesn't delay the others.
    pub(crate) async fn end_shards(&self, by: Instant) {
        let ends = self.shards.iter().map(|shard| async {
            let (done, drained) = oneshot::channel();
            shard.send(Task::Stop(done)).await;
            // An ended thread has nothing left to do.
            let _ = drained.await;
        });
        if timeout_at(by, join_all(ends)).await.is_err() {
            tracing::warn!(
                "stop: not all received inputs could be processed and published in time"
            );
        }
    }

    /// Ends publishing in the fleet, if the tenant is part of one. Otherwise, messages that wait
    /// for the node's lease would delay messages of other tenants.
    pub(crate) fn end_in_fleet(&self) {
        if let Some(fleet) = &self.fleet {
            fleet.lease.end();
        }
    }

    /// Stops waiting for a disk that can't be written, because the node is about to stop.
    pub(crate) fn give_up_waiting(&self) {
        if let Some(state) = &self.state {
            state.give_up_waiting();
        }
        if let Some(copy_writer) = &self.copy_writer {
            copy_writer.give_up_waiting();
        }
    }

    /// Writes the last changes of the state and of the directory's copy, and closes both.
    pub(crate) async fn close_state(&self, by: Instant) {
        let state = async {
            if let Some(state) = &self.state
                && timeout_at(by, state.finish()).await.is_err()
            {
                tracing::warn!("not all of the state could be written in time");
            }
        };
        let directory = async {
            if let Some(copy_writer) = &self.copy_writer
                && timeout_at(by, copy_writer.finish()).await.is_err()
            {
                tracing::warn!("stop: the copy of the directory could not be written in time");
            }
        };
        tokio::join!(state, directory);
    }
}
