//! One tenant on this node: assembled, served, and stopped in order.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::anyhow;
use presence_config::Config;
use presence_config::subjects::Subjects;
use presence_core::names::Names;
use presence_core::quota::Quota;
use presence_rules::loader::{self, SharedCompiler};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout_at};

use super::account::Account;
use super::first::{LoadedPipeline, TenantStart, fetcher, load, load_stored};
use super::start_slots::{StartSlot, StartSlots};
use crate::clock;
use crate::fleet::parts::part_channel;
use crate::fleet::{self, FleetStart};
use crate::link::admin::Admin;
use crate::link::alerts::{Alerts, Quarantine};
use crate::link::connection::Connection;
use crate::link::hello::ServingTurn;
use crate::link::input_stream::InputStreams;
use crate::link::plugin_log::PluginLogs;
use crate::link::reply_guard::ReplyGuard;
use crate::ops::http::{Status, StatusBoard};
use crate::periodic_checks::PeriodicChecks;
use crate::reload::watch::Watches;
use crate::reload::{self, FileStamps, Reload, StoreSource};
use crate::signals::Signals;
use crate::state::{self, OpenResult, Restored, Writer};
use crate::stop::{self, Readers, Stop};
use crate::store::Store;
use crate::store::follow::RevisionFollower;
use crate::store::page::PageStore;
use crate::store::trial::RevisionValidator;
use crate::tasks::{Tasks, blocking, run_blocking};
use crate::telemetry::Telemetry;
use crate::tenant::Tenant;

/// The interval at which a state in use by another node is tried again.
const STATE_RETRY: Duration = Duration::from_millis(100);

/// The wait before the state is opened again after its disk was full, at first and at most. Opening
/// checks all of the state, so it shouldn't be done often.
const FULL_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Another node serves, and has precedence over this one.
#[derive(Debug, thiserror::Error)]
#[error("{0}: this one stops in order, and waits until the other has stopped")]
pub(super) struct StepBack(String);

/// The surroundings of a tenant.
pub(super) struct TenantEnv<'a> {
    pub(super) account: &'a Account,
    pub(super) process: &'a ProcessContext,
    pub(super) board: &'a Arc<StatusBoard>,
    pub(super) signals: &'a Signals,
    /// The tenant's own tasks, which end with it.
    pub(super) tasks: &'a Tasks,
    pub(super) telemetry: &'a Telemetry,
    pub(super) place: StartSlot,
}

/// What the tenants of a process share.
pub(super) struct ProcessContext {
    pub(super) compiler: SharedCompiler,
    pub(super) watches: Watches,
    pub(super) plugin_logs: PluginLogs,
    pub(super) periodic_checks: PeriodicChecks,
    pub(super) starts: StartSlots,
    /// How far wall time is ahead of the monotonic clock, in milliseconds.
    clock: watch::Receiver<i64>,
}

impl ProcessContext {
    /// Starts without any tenant.
    pub(super) fn start(node: &str, tasks: &Tasks) -> Self {
        Self {
            compiler: SharedCompiler::default(),
            watches: Watches::new(),
            plugin_logs: PluginLogs::start(node, tasks),
            periodic_checks: PeriodicChecks::start(tasks),
            starts: StartSlots::new(),
            clock: clock::watch(tasks),
        }
    }
}

/// The parts of a tenant that has been assembled and takes no input yet.
pub(super) struct TenantParts {
    connection: Connection,
    reload: Reload,
    pub(super) status: Arc<Status>,
    /// The time up to which every message has been received.
    received_up_to: watch::Receiver<u64>,
    /// The restored state of the last run, if any.
    restored: Option<Restored>,
    /// Whether the state was written under other enrichers.
    has_other_enrichers: bool,
    /// The tenant's turn to serve.
    turn: ServingTurn,
    admin: Admin,
    /// Follows the plugin store. `None` if the pipeline comes from the folder.
    follower: Option<RevisionFollower>,
    /// What the tenant joins its fleet with. `None` if it serves alone.
    fleet: Option<FleetStart>,
    /// Counts the connects.
    connects: watch::Receiver<u64>,
}

/// Assembles a tenant. It receives and publishes nothing yet.
pub(super) async fn start(
    mut start: TenantStart,
    env: &TenantEnv<'_>,
) -> anyhow::Result<TenantParts> {
    let &TenantEnv {
        account,
        board,
        tasks,
        ..
    } = env;
    let compiler = &env.process.compiler;
    let broker = Arc::clone(&account.broker);
    let names = Arc::new(Names::new());
    let loaded = match start.config.follows_store() {
        // The pipeline is known only once the store has been asked.
        true => None,
        false => Some(load(&start.config, compiler).await?),
    };
    let link = account.link().await?;
    let connection = link.connection.clone();
    let subjects = Subjects::new(start.config.tenant.prefix.as_deref());
    let replies = Arc::new(ReplyGuard::new(&start.config, &subjects));
    let turn = ServingTurn::listen(
        &connection,
        &subjects,
        (
            start.config.node.name.clone(),
            start.config.fleet.enabled,
            start.config.tenant.name.clone(),
        ),
        (Arc::clone(&broker), link.received_up_to.clone()),
        Arc::clone(&replies),
        (&account.rechecks, tasks),
    );
    let turn = turn.await?;
    let admin = account.admin().await?.clone();
    let waits = admin.wait(&start.config, Arc::clone(&replies), board, turn.wait(board));
    waits.await;
    let newer = start.changed(loaded.as_ref()).await;
    let (alerts, raised) = Alerts::new(&start.config.node.name);
    tasks.spawn(
        "alerts",
        raised.publish(admin.client.clone(), subjects.clone()),
    );
    env.process
        .plugin_logs
        .add(&start.config.tenant, &admin.client);
    let mut in_store = None;
    let loaded = match loaded {
        Some(mut loaded) => {
            if let Some(changed) = newer
                && let Ok(newer) = load(&changed.config, compiler).await
            {
                (start, loaded) = (changed, newer);
            }
            loaded
        }
        None => {
            if let Some(newer) = newer {
                start = newer;
            }
            let stored = load_stored(&mut start.config, compiler, &admin, &alerts).await?;
            in_store = Some(stored.1);
            stored.0
        }
    };
    let config = &start.config;
    let LoadedPipeline {
        loader,
        stamp,
        blueprint,
        candidate,
    } = loaded;
    if !config.pipeline.is_empty() {
        tracing::info!("in force: {}", blueprint.line());
    }
    // If the pipeline has no stages, another warning says so.
    if let Some(doubt) = loader::pipeline_warning(&blueprint)
        && !config.pipeline.is_empty()
    {
        tracing::warn!("{doubt}");
    }
    let servers = account.access.servers();
    let fleet = fleet::join(config, &connection, board).await?;
    let (state, restored) = match &fleet {
        None => open_state(config, &servers, &names, board, tasks).await?,
        // In a fleet the standbys keep the state.
        Some(_) => (None, None),
    };
    let now = clock::now_ms();
    let epoch = restored.as_ref().map_or(now, |restored| restored.epoch);
    let mut tenant = Tenant::start(
        config,
        blueprint,
        &connection,
        names,
        (epoch, state, fleet.as_ref()),
        replies,
        (
            account.pool().await?,
            &link.sources,
            env.telemetry.tracer(config.tenant.name.as_deref()),
        ),
    );
    let (exceeded, memory) = (Arc::clone(&tenant.exceeded), loader.memory().clone());
    loader.memory().on_refusal(move || {
        let error = format!(
            "all plugins together may have {} bytes of memory ([limits] plugin_memory_bytes_max): \
             one was refused more",
            memory.bytes_max()
        );
        exceeded.log(Quota::PluginMemory, &error);
    });
    if let Some(candidate) = candidate {
        // Before the state is restored: the users in the canary's share must not be announced
        // twice.
        tenant.begin_canary(candidate).await;
    }
    let running = tenant.running.subscribe();
    let (noting, first) = (Arc::clone(&loader), Arc::clone(&running.borrow().blueprint));
    let has_users = restored.as_ref().is_some_and(Restored::has_users);
    let noted = run_blocking(move || {
        let is_other = has_users && noting.in_force().has_other_enrichers(&first);
        match is_other {
            true => noting.in_force().record_plugins(&first),
            false => noting.record_in_force(&first),
        }
        is_other
    });
    let has_other_enrichers = noted.await;
    tasks.spawn(
        "in-force",
        reload::note_in_force(Arc::clone(&loader), running),
    );
    let connected = (connection.clone(), Arc::clone(&broker));
    tenant.follow_link(link.connects.clone(), connected, tasks);
    let clock = env.process.clock.clone();
    tasks.spawn("clock", clock::follow(clock, tenant.shards.clone()));
    tenant.follow_corrections(&env.process.periodic_checks, tasks);
    let mut quarantine = Quarantine::new(alerts.clone(), tenant.running.subscribe());
    let look = move || quarantine.check();
    env.process.periodic_checks.add(tasks, "quarantine", look);
    let state = in_store.as_ref().map(|(state, _)| Arc::clone(state));
    let status = Status::new(Arc::clone(&broker), &tenant, &loader, state, alerts.clone());
    let status = Arc::new(status);
    board.set_status(Arc::clone(&status));
    let fetcher = fetcher(config, &admin, &loader);
    let (updates, follow) = mpsc::channel(1);
    let from_store = in_store.map(|(state, wanted)| StoreSource {
        updates: follow,
        state,
        wanted,
        store: fetcher.store.clone(),
    });
    let follows = from_store.as_ref().map(|it| Arc::clone(&it.state));
    let seen = FileStamps::at_start(start.seen, stamp);
    let reload = Reload::new(
        start.source,
        (start.config, seen),
        loader,
        tenant,
        Arc::clone(&status),
        (connection.clone(), account.access.login.clone()),
        (
            from_store,
            alerts.clone(),
            tasks.clone(),
            &env.process.watches,
        ),
    );
    let follower = follows.map(|state| RevisionFollower {
        client: admin.client.clone(),
        fetcher,
        config: reload.known_config(),
        state,
        alerts,
        updates,
    });
    Ok(TenantParts {
        admin,
        follower,
        connection,
        reload,
        status,
        received_up_to: link.received_up_to.clone(),
        connects: link.connects.clone(),
        restored,
        has_other_enrichers,
        turn,
        fleet,
    })
}

/// Opens the state. Waits while another node uses it, or its disk is full.
async fn open_state(
    config: &Config,
    servers: &str,
    names: &Arc<Names>,
    board: &StatusBoard,
    tasks: &Tasks,
) -> anyhow::Result<(Option<Writer>, Option<Restored>)> {
    let mut full_wait = FULL_RETRY.0;
    loop {
        let (known, servers) = (config.clone(), servers.to_owned());
        let (shared, started) = (Arc::clone(names), tasks.clone());
        let opened = run_blocking(move || state::open(&known, &servers, &shared, &started));
        let wait = match opened.await? {
            OpenResult::Kept(state, restored) => return Ok((Some(state), Some(restored))),
            OpenResult::Nothing => return Ok((None, None)),
            OpenResult::InUse(why) => {
                board.set_wait_reason(why);
                STATE_RETRY
            }
            OpenResult::Full(why) => {
                board.set_wait_reason(why);
                let wait = full_wait;
                full_wait = (wait * 2).min(FULL_RETRY.1);
                wait
            }
        };
        sleep(wait).await;
    }
}

impl TenantParts {
    /// Subscribes to the tenant's subjects, serves them, and follows its files, until it can't go
    /// on. Returns the reason.
    ///
    /// # Errors
    /// If it can't begin to serve.
    pub(super) async fn serve(
        &mut self,
        readers: &mut Readers,
        env: &TenantEnv<'_>,
    ) -> anyhow::Result<anyhow::Error> {
        let Self {
            connection,
            reload,
            status,
            received_up_to,
            restored,
            has_other_enrichers,
            turn,
            admin,
            follower,
            fleet,
            connects,
        } = self;
        let tasks = env.tasks;
        let broker = Arc::clone(&status.broker);
        reload.read_directory().await;
        let (node, queue) = (
            reload.config.node.name.clone(),
            reload.config.nats.intake_queue,
        );
        let tenant = &reload.tenant;
        // Before the inputs, whose subscription covers the subjects of questions: the broker tells a
        // client that nobody answers only while nobody has subscribed.
        let asked = Arc::clone(&status.asked);
        let queues = &reload.config.engine.queues;
        let asks = tenant
            .query_service(connection, Arc::clone(&broker), asked, queues)
            .listen()
            .await?;
        let (parts, told_of_parts) = part_channel();
        let told_of_parts = fleet.is_some().then_some(told_of_parts);
        let reader = tenant.listen(
            connection,
            Arc::clone(&broker),
            received_up_to.clone(),
            queue,
            told_of_parts,
        );
        let mut reader = reader.await?;
        let timeout_ms = reload.config.tracker.timeout_ms;
        let streams = || InputStreams::of(&reload.config, admin);
        let routed = streams().and_then(|it| tenant.stream_router(it, connection, timeout_ms));
        let stream = streams().filter(|_| tenant.fleet.is_none());
        let stream = stream.and_then(|it| tenant.stream_intake(it, restored.as_ref(), timeout_ms));
        let (stream, caught_up) = stream.unzip();
        reader.stream = caught_up;
        // It is set only once.
        let _ = status.questions.set(asks.service());
        if let Some(fetcher) = &tenant.fetcher {
            let invalidations = fetcher.listen(connection, &broker).await?;
            let shards = tenant.shards.clone();
            let fetcher = Arc::clone(fetcher);
            tasks.spawn(
                "fetcher",
                fetcher.run(connection.clone(), shards, invalidations, queue),
            );
        }
        env.board.note_subscribed();
        tenant.begin().await;
        // Before the first input, and after the directory is known: the first decisions are about
        // the users who were online when the node last ran.
        if let Some(restored) = restored.take() {
            tenant.restore(restored).await;
            if *has_other_enrichers {
                tracing::info!(
                    "the enrichers are others than when the state was written: they run again for \
                     users who are online"
                );
                tenant.run_enrichers().await;
            }
        }
        if let Some(start) = fleet.take() {
            let broker = (&*connection, Arc::clone(&broker));
            let shards = (tenant.shards.clone(), parts);
            let links = (connects.clone(), received_up_to.clone(), tasks);
            let known = Arc::clone(status);
            let is_closed = Box::new(move || known.is_closed());
            let subjects = tenant.subjects.clone();
            fleet::driver::start(start, broker, subjects, shards, links, is_closed).await?;
        }
        let (stop, stopping) = oneshot::channel();
        readers.add(stop, tasks.spawn("questions", asks.read(stopping)));
        let (stop, stopping) = oneshot::channel();
        readers.add(stop, tasks.spawn("intake", reader.read(stopping)));
        if let Some(stream) = stream {
            let (stop, stopping) = oneshot::channel();
            readers.add(stop, tasks.spawn("input stream", stream.read(stopping)));
        }
        if let Some(routed) = routed {
            let (stop, stopping) = oneshot::channel();
            readers.add(stop, tasks.spawn("input stream", routed.read(stopping)));
        }
        let validator = Arc::new(RevisionValidator {
            fetcher: fetcher(&reload.config, admin, &reload.loader),
            loader: Arc::clone(&reload.loader),
            config: reload.known_config(),
            running: tenant.running.subscribe(),
            turn: Mutex::default(),
            shadows: reload.shadows(),
        });
        if let Some(state) = &status.store {
            let prefix = reload.config.tenant.prefix.as_deref();
            // It is set only once.
            let _ = status.page_store.set(Arc::new(PageStore {
                store: Store::new(&admin.client, prefix),
                validator: Arc::clone(&validator),
                state: Arc::clone(state),
                node: reload.config.node.name.clone(),
            }));
        }
        let (replies, board) = (Arc::clone(&tenant.replies), Arc::clone(env.board));
        let listening = admin.listen(&reload.config, replies).await?;
        let served = admin.clone().serve(listening, board, validator);
        tasks.spawn("admin", served);
        if let Some(follower) = follower.take() {
            tasks.spawn("store", follower.follow());
        }
        let (fleet, ready) = (tenant.fleet.clone(), Arc::clone(status));
        ready.ready.store(fleet.is_none(), Ordering::Relaxed);
        env.place.give_back();
        let (workers, shards) = (tenant.pool.len(), tenant.shards.iter().len());
        let announced = async {
            // If the sender is gone, that is noticed elsewhere.
            let _ = received_up_to.wait_for(|_| env.board.is_subscribed()).await;
            if let Some(fleet) = &fleet {
                // Input that comes before a shard has an owner would be lost.
                fleet.until_settled().await;
                ready.ready.store(true, Ordering::Relaxed);
            }
            tracing::info!(node, workers, shards, "ready");
            pending::<Infallible>().await
        };
        Ok(tokio::select! {
            never = announced => match never {},
            () = reload.follow(env.signals) => anyhow!("files are no longer followed"),
            why = turn.until_over() => StepBack(why).into(),
        })
    }

    /// Gives up a tenant that couldn't begin to serve. What it may have published in a fleet must
    /// not keep others waiting.
    pub(super) fn give_up(&self) {
        self.reload.tenant.end_in_fleet();
    }

    /// Stops the tenant in order: input that was taken in is handled, published and stored.
    pub(super) async fn stop(self, readers: Readers, stop: &Stop<'_>) {
        let Self {
            connection,
            reload,
            status,
            mut turn,
            fleet,
            ..
        } = self;
        let joined = fleet.is_none();
        status.ready.store(false, Ordering::Relaxed);
        reload.tenant.lift_quotas();
        let broker = &status.broker;
        if let Some(fleet) = reload.tenant.fleet.as_ref().filter(|_| joined) {
            let by = stop.step("handing its shards over to other nodes", 0.25);
            tokio::select! {
                left = timeout_at(by, fleet.leave()) => if left.is_err() {
                    tracing::warn!(
                        "not all shards could be handed over in time: other nodes take them when \
                         this node's lease ends"
                    );
                },
                () = stop::until_broker_lost(broker) => tracing::warn!(
                    "NATS can't be reached, so no shard can be handed over: other nodes take them \
                     when this node's lease ends"
                ),
            }
        }
        readers
            .stop(broker, stop.step("reading what has arrived", 0.3))
            .await;
        let tenant = &reload.tenant;
        tenant.give_up_waiting();
        let by = stop.step("handling what was taken in, and publishing it", 0.6);
        tokio::select! {
            () = tenant.end_shards(by) => {}
            () = stop::until_broker_lost(broker) => tracing::warn!(
                journal_bytes = tenant.pool.total(|thread| &thread.journal_bytes),
                "NATS can't be reached, and shards have more to publish than there is room for: that \
                 is given up, and the state stays as it was last written ([nats] journal_bytes)"
            ),
        }
        reload.tenant.end_in_fleet();
        let by = stop.step("writing the state", 0.85);
        let (loader, running) = (Arc::clone(&reload.loader), tenant.running.borrow().clone());
        let note = blocking(move || loader.record_in_force(&running.blueprint));
        let noted = timeout_at(by, note);
        let ((), noted) = tokio::join!(tenant.close_state(by), noted);
        if noted.is_err() {
            tracing::warn!("which plugins are in force could not be noted in time");
        }
        broker.drops.report();
        if broker.connected.load(Ordering::Relaxed) {
            let by = stop.step("handing the last messages to NATS", 0.92);
            let _ = timeout_at(by, turn.leave()).await;
            match timeout_at(by, connection.flush()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!("some messages could not be sent to NATS: {error:#}");
                }
                Err(_) => tracing::warn!("NATS did not take the last messages in time"),
            }
        }
    }
}
