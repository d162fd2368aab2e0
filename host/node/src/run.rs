//! `presence run`: the node, put together and taken apart in order.

mod first;

use std::convert::Infallible;
use std::future::pending;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::anyhow;
use presence_config::causes::Causes;
use presence_config::regular::Stamp;
use presence_config::subjects::Subjects;
use presence_config::{self as config, Config, Text};
use presence_core::names::Names;
use presence_rules::loader;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout, timeout_at};

use crate::clock;
use crate::link::admin::Admin;
use crate::link::alerts::{self, Alerts};
use crate::link::broker::{self, Access, Health};
use crate::link::connection::Connection;
use crate::link::hello::Turn;
use crate::link::plugin_log;
use crate::link::publisher::Publisher;
use crate::link::pulse::Pulse;
use crate::link::reply::Replies;
use crate::ops::http::{self, About, Board, Status};
use crate::ops::log;
use crate::pool::{OutboxSettings, Pool};
use crate::reload::{self, FromStore, Reload, Seen};
use crate::signals::Signals;
use crate::state::{self, Opened, Restored, Writer};
use crate::stop::{self, Readers, Stop};
use crate::store::Store;
use crate::store::follow::Follower;
use crate::store::page::PageStore;
use crate::store::trial::Trials;
use crate::tasks::{self, Faults, Tasks};
use crate::tenant::{self, Tenant};

use first::{Loaded, changed, fetcher, load, load_stored};

/// How long the first line of the log waits for plugins' files to be read.
const SURVEY: Duration = Duration::from_secs(5);

/// How often is looked whether another node has let go of the state.
const STATE_RETRY: Duration = Duration::from_millis(100);

/// How long is waited, at first and at most, before the state is opened again where its disk
/// is full: all of it is checked.
const FULL_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Runs the node until it is told to stop.
pub fn run(path: Option<&Path>) -> anyhow::Result<()> {
    let seen = Stamp::of(path.unwrap_or(Path::new(config::FILE_NAME)));
    let text = Text::read(path)?;
    let config = Config::parse(path, text.as_ref(), config::variables())?;
    log::begin(&config.log)?;
    tasks::log_panics();
    let (tasks, faults) = Tasks::new();
    // Before the first line of the log, which may be what hangs.
    let signals = Signals::take(config.node.stop_timeout, &tasks)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The connection to the broker, and the intake from it, on one thread: one
        // reads what the other has just written. Users have threads of their own.
        .worker_threads(1)
        .enable_all()
        .build()?;
    let read = (config, text, seen);
    let ended = runtime.block_on(node(read, path.map(Into::into), &signals, (tasks, faults)));
    // Nobody waits for what may hang: reading a file, and compiling.
    runtime.shutdown_background();
    match ended {
        Err(error) if error.is::<StepBack>() => Err(begin_anew()),
        ended => ended,
    }
}

/// Another node serves, and goes before this one.
#[derive(Debug, thiserror::Error)]
#[error("{0}: this one stops in order, and waits until the other has stopped")]
struct StepBack(String);

/// What the node is made of, before it takes input.
struct Parts {
    connection: Connection,
    reload: Reload,
    status: Arc<Status>,
    /// Up to when everything has been heard.
    heard: watch::Receiver<u64>,
    /// What was known when the node last ran.
    restored: Option<Restored>,
    /// Its turn to serve.
    turn: Turn,
    admin: Admin,
    board: Arc<Board>,
    /// What follows the plugin store; none where the pipeline is the folder's.
    follower: Option<Follower>,
}

async fn node(
    (config, text, seen): (Config, Option<Text>, Stamp),
    path: Option<PathBuf>,
    signals: &Signals,
    (tasks, mut faults): (Tasks, Faults),
) -> anyhow::Result<()> {
    let limit = config.node.stop_timeout;
    let mut parts = tokio::select! {
        parts = start((config, text, seen), path, &tasks) => parts?,
        () = signals.stopping() => {
            tracing::info!("stopped before it had begun to serve");
            return Ok(());
        }
        fault = faults.next() => return Err(fault),
    };
    let mut readers = Readers::default();
    let ended = tokio::select! {
        served = serve(&mut parts, &mut readers, &tasks, signals) => match served {
            Ok(why) => Err(why),
            // It has taken no input yet.
            Err(error) => return Err(error),
        },
        fault = faults.next() => Err(fault),
        () = signals.stopping() => Ok(()),
    };
    if let Err(error) = &ended {
        tracing::error!("{}", Causes(error));
    }
    let stop = Stop::begin(signals, limit);
    tracing::info!("stopping");
    let Parts {
        connection,
        reload,
        status,
        mut turn,
        ..
    } = parts;
    status.ready.store(false, Ordering::Relaxed);
    let broker = &status.broker;
    readers
        .stop(broker, stop.step("reading what has arrived", 0.3))
        .await;
    let tenant = &reload.tenant;
    tenant.give_up_waiting();
    let by = stop.step("handling what was taken in, and publishing it", 0.6);
    tokio::select! {
        () = tenant.end_shards(by) => {}
        () = stop::broker_stays_away(broker) => tracing::warn!(
            journal_bytes = tenant.pool.total(|thread| &thread.journal_bytes),
            "NATS can't be reached, and shards have more to publish than there is room for: that \
             is given up, and the state stays as it was last written ([nats] journal_bytes)"
        ),
    }
    let by = stop.step("writing the state", 0.85);
    let (loader, running) = (Arc::clone(&reload.loader), tenant.running.borrow().clone());
    let note = spawn_blocking(move || loader.put_in_force(&running.blueprint));
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
            Ok(Err(error)) => tracing::warn!("some messages could not be sent to NATS: {error:#}"),
            Err(_) => tracing::warn!("NATS did not take the last messages in time"),
        }
    }
    tracing::info!("stopped");
    ended
}

/// Where the configuration file is, or would be.
fn config_file(path: Option<&Path>) -> PathBuf {
    let file = path.unwrap_or(Path::new(config::FILE_NAME));
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned())
}

/// Says in the first line of the log what is started: version, configuration, broker and
/// pipeline.
async fn introduce(config: &Config, is_there: bool, path: Option<&Path>) {
    let file = config_file(path);
    let file = match is_there {
        true => file.display().to_string(),
        false => format!("the defaults ({} does not exist)", file.display()),
    };
    let known = config.clone();
    let survey = async {
        if known.follows_store() {
            return "of the plugin store".to_owned();
        }
        // What is read may hang.
        match timeout(SURVEY, spawn_blocking(move || loader::survey(&known))).await {
            Ok(Ok(pipeline)) => pipeline,
            _ => format!("{} (not read yet)", config.pipeline_line()),
        }
    };
    let pipeline = survey.await;
    tracing::info!(
        "presence {}: configuration {file}; broker {}; pipeline {pipeline}",
        env!("CARGO_PKG_VERSION"),
        config.nats.servers(),
    );
    for variable in &config.passed_over {
        tracing::warn!("{variable}");
    }
}

/// Puts the node together: nothing is heard or said yet.
async fn start(
    (mut config, mut text, seen): (Config, Option<Text>, Stamp),
    path: Option<PathBuf>,
    tasks: &Tasks,
) -> anyhow::Result<Parts> {
    introduce(&config, text.is_some(), path.as_deref()).await;
    let broker = Arc::new(Health::new(&config));
    let file = text.as_ref().map(|_| config_file(path.as_deref()));
    let about = About::new(&config, file);
    let board = Arc::new(Board::new(Arc::clone(&broker), about));
    http::serve(&config, Arc::clone(&board), tasks)?;
    let names = Arc::new(Names::new());
    let loaded = match config.follows_store() {
        // It is known only once the store has been asked.
        true => None,
        false => Some(load(&config).await?),
    };
    let access = Access::new(&config);
    let (link, links) = mpsc::unbounded_channel();
    let connection = access.main(&broker, link).await?;
    // Also while the node waits for its turn, for which it needs some of them.
    let rights = broker::follow_rights(connection.clone(), Arc::clone(&broker));
    tasks.spawn("rights", rights);
    let (sources, handed) = tenant::sources(&config);
    let (health, known) = (Arc::clone(&broker), sources.clone());
    let heard = Pulse::start(&access, &connection, health, known, tasks).await?;
    let subjects = Subjects::new(config.tenant.prefix.as_deref());
    let replies = Arc::new(Replies::new(&config, &subjects));
    let turn = Turn::listen(
        &connection,
        &subjects,
        config.node.name.clone(),
        (Arc::clone(&broker), heard.clone()),
        Arc::clone(&replies),
        tasks,
    );
    let turn = turn.await?;
    let admin = Admin::connect(&access).await?;
    let waits = admin.wait(&config, Arc::clone(&replies), &board, turn.wait(&board));
    waits.await;
    let newer = changed(&config, &text, path.clone(), loaded.as_ref()).await;
    let (alerts, raised) = Alerts::new(&config.node.name);
    tasks.spawn(
        "alerts",
        raised.publish(admin.client.clone(), subjects.clone()),
    );
    let plugin_log = plugin_log::publish(admin.client.clone(), config.node.name.clone());
    tasks.spawn("plugin-log", plugin_log);
    let mut in_store = None;
    let loaded = match loaded {
        Some(mut loaded) => {
            if let Some((changed, text_now)) = newer
                && let Ok(newer) = load(&changed).await
            {
                (config, text, loaded) = (changed, text_now, newer);
            }
            loaded
        }
        None => {
            if let Some(newer) = newer {
                (config, text) = newer;
            }
            let (loaded, begun) = load_stored(&mut config, &admin, &alerts).await?;
            in_store = Some(begun);
            loaded
        }
    };
    let Loaded {
        loader,
        stamp,
        blueprint,
        candidate,
    } = loaded;
    if !config.pipeline.is_empty() {
        tracing::info!("in force: {}", blueprint.line());
    }
    // Of a pipeline that has no stages, something else is said.
    if let Some(doubt) = loader::doubt(&blueprint)
        && !config.pipeline.is_empty()
    {
        tracing::warn!("{doubt}");
    }
    let servers = access.servers();
    let (state, restored) = open_state(&config, &servers, &names, &board, tasks).await?;
    let now = clock::now_ms();
    let epoch = restored.as_ref().map_or(now, |restored| restored.epoch);
    let outbox = OutboxSettings {
        bytes_max: config.nats.journal_bytes / config.engine.thread_count(),
        beacon_ms: config.nats.beacon_ms,
    };
    let pool = Pool::start(&Publisher::new(connection.clone()), handed, outbox, tasks)?;
    let mut tenant = Tenant::start(
        &config,
        blueprint,
        &connection,
        names,
        (epoch, state),
        replies,
        (pool, sources),
    );
    if let Some(candidate) = candidate {
        // Before anyone is known again: those in its share are not to be told twice.
        tenant.begin_canary(candidate).await;
    }
    let running = tenant.running.subscribe();
    let (noting, first) = (Arc::clone(&loader), Arc::clone(&running.borrow().blueprint));
    spawn_blocking(move || noting.put_in_force(&first)).await?;
    tasks.spawn(
        "in-force",
        reload::note_in_force(Arc::clone(&loader), running),
    );
    tenant.follow_link(links, connection.clone(), tasks);
    tasks.spawn("clock", clock::follow(tenant.shards.clone()));
    tenant.follow_corrections(tasks);
    let quarantine = alerts::follow_quarantine(alerts.clone(), tenant.running.subscribe());
    tasks.spawn("quarantine", quarantine);
    let state = in_store.as_ref().map(|(state, _)| Arc::clone(state));
    let status = Status::new(Arc::clone(&broker), &tenant, &loader, state, alerts.clone());
    let status = Arc::new(status);
    board.show(Arc::clone(&status));
    let fetcher = fetcher(&config, &admin, &loader);
    let (updates, follow) = mpsc::channel(1);
    let from_store = in_store.map(|(state, wanted)| FromStore {
        updates: follow,
        state,
        wanted,
        store: fetcher.store.clone(),
    });
    let follows = from_store.as_ref().map(|it| Arc::clone(&it.state));
    let seen = Seen::at_start(seen, stamp);
    let reload = Reload::new(
        path,
        (config, text, seen),
        loader,
        tenant,
        Arc::clone(&status),
        (connection.clone(), access.login),
        (from_store, alerts.clone(), tasks.clone()),
    );
    let follower = follows.map(|state| Follower {
        client: admin.client.clone(),
        fetcher,
        config: reload.known_config(),
        state,
        alerts,
        updates,
    });
    Ok(Parts {
        admin,
        board,
        follower,
        connection,
        reload,
        status,
        heard,
        restored,
        turn,
    })
}

/// Opens the state, once the node that has it has stopped.
async fn open_state(
    config: &Config,
    servers: &str,
    names: &Arc<Names>,
    board: &Board,
    tasks: &Tasks,
) -> anyhow::Result<(Option<Writer>, Option<Restored>)> {
    let mut full_wait = FULL_RETRY.0;
    loop {
        let (known, servers) = (config.clone(), servers.to_owned());
        let (shared, started) = (Arc::clone(names), tasks.clone());
        let opened = spawn_blocking(move || state::open(&known, &servers, &shared, &started));
        let wait = match opened.await?? {
            Opened::Kept(state, restored) => return Ok((Some(state), Some(restored))),
            Opened::Nothing => return Ok((None, None)),
            Opened::InUse(why) => {
                board.wait_for(why);
                STATE_RETRY
            }
            Opened::Full(why) => {
                board.wait_for(why);
                let wait = full_wait;
                full_wait = (wait * 2).min(FULL_RETRY.1);
                wait
            }
        };
        sleep(wait).await;
    }
}

/// Has the node serve its subjects, and follows its files, until it can't go on: says why.
///
/// # Errors
/// If it can't begin to serve.
async fn serve(
    parts: &mut Parts,
    readers: &mut Readers,
    tasks: &Tasks,
    signals: &Signals,
) -> anyhow::Result<anyhow::Error> {
    let Parts {
        connection,
        reload,
        status,
        heard,
        restored,
        turn,
        admin,
        board,
        follower,
    } = parts;
    let broker = Arc::clone(&status.broker);
    reload.read_directory().await;
    let (node, queue) = (
        reload.config.node.name.clone(),
        reload.config.nats.intake_queue,
    );
    let tenant = &reload.tenant;
    let reader = tenant.listen(connection, Arc::clone(&broker), heard.clone(), queue);
    let reader = reader.await?;
    let asked = Arc::clone(&status.asked);
    let queues = &reload.config.engine.queues;
    let asks = tenant
        .query_service(connection, Arc::clone(&broker), asked, queues)
        .listen()
        .await?;
    // It serves once.
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
    broker.subscribed();
    tenant.begin().await;
    // Before the first input, and after the directory: the first decisions are
    // on who was online when the node last ran.
    if let Some(restored) = restored.take() {
        tenant.restore(restored).await;
    }
    let (stop, stopping) = oneshot::channel();
    readers.add(stop, tasks.spawn("questions", asks.read(stopping)));
    let (stop, stopping) = oneshot::channel();
    readers.add(stop, tasks.spawn("intake", reader.read(stopping)));
    let trials = Arc::new(Trials {
        fetcher: fetcher(&reload.config, admin, &reload.loader),
        loader: Arc::clone(&reload.loader),
        config: reload.known_config(),
        running: tenant.running.subscribe(),
        turn: Mutex::default(),
        shadows: reload.shadows(),
    });
    if reload.config.follows_store() {
        let prefix = reload.config.tenant.prefix.as_deref();
        // It serves once.
        let _ = status.page_store.set(Arc::new(PageStore {
            store: Store::new(&admin.client, prefix),
            trials: Arc::clone(&trials),
            node: reload.config.node.name.clone(),
        }));
    }
    let (replies, board) = (Arc::clone(&tenant.replies), Arc::clone(board));
    let listening = admin.listen(&reload.config, replies).await?;
    let served = admin.clone().serve(listening, board, trials);
    tasks.spawn("admin", served);
    if let Some(follower) = follower.take() {
        tasks.spawn("store", follower.follow());
    }
    status.ready.store(true, Ordering::Relaxed);
    let (workers, shards) = (tenant.pool.len(), tenant.shards.iter().len());
    let announced = async {
        // One that is gone is noticed elsewhere.
        let _ = heard.wait_for(|_| broker.hears()).await;
        tracing::info!(node, workers, shards, "ready");
        pending::<Infallible>().await
    };
    Ok(tokio::select! {
        never = announced => match never {},
        () = reload.follow(signals) => anyhow!("files are no longer followed"),
        why = turn.is_over() => StepBack(why).into(),
    })
}

/// Begins anew, as the same process: nothing is left of what it knew but its state.
///
/// # Errors
/// If the program can't be run.
fn begin_anew() -> anyhow::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return anyhow::Error::new(error).context("can't begin anew"),
    };
    let error = Command::new(program)
        .args(std::env::args_os().skip(1))
        .exec();
    anyhow::Error::new(error).context("can't begin anew")
}
