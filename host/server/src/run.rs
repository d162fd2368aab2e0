//! `presence run`: the node, put together and taken apart in order.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, anyhow};
use async_nats::Client;
use presence_core::names::Names;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout_at;

use crate::broker::{Access, Health};
use crate::clock;
use crate::config::{self, Config, LogFormat, Text};
use crate::hello::{self, Node};
use crate::http::{self, Status};
use crate::in_force::InForce;
use crate::loader::{self, Loader};
use crate::pulse::Pulse;
use crate::regular::Stamp;
use crate::reload::{self, Reload, Seen};
use crate::signals::Signals;
use crate::state::{self, Restored};
use crate::stop::{Readers, Stop};
use crate::tasks::{self, Faults, Tasks};
use crate::tenant::Tenant;

/// Runs the node until it is told to stop.
pub(crate) fn run(path: Option<&Path>) -> anyhow::Result<()> {
    let seen = Stamp::of(path.unwrap_or(Path::new(config::FILE_NAME)));
    let text = Text::read(path)?;
    let config = Config::parse(path, text.as_ref(), config::variables())?;
    log(&config);
    tasks::log_panics();
    let (tasks, faults) = Tasks::new();
    // Before the first line of the log, which may be what hangs.
    let signals = Signals::take(config.node.stop_timeout, &tasks)?;
    for variable in &config.passed_over {
        tracing::warn!("{variable}");
    }
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
    ended
}

/// What the node is made of, before it takes input.
struct Parts {
    client: Client,
    reload: Reload,
    status: Arc<Status>,
    /// Up to when everything has been heard.
    heard: watch::Receiver<u64>,
    /// What was known when the node last ran.
    restored: Option<Restored>,
    /// Of what it publishes.
    epoch: u64,
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
    };
    let workers = parts.reload.tenant.workers.clone();
    let mut readers = Readers::default();
    let ended = tokio::select! {
        served = serve(&mut parts, &mut readers, &tasks, signals) => match served {
            Ok(()) => Err(anyhow!("files are no longer followed")),
            // It has taken no input yet.
            Err(error) => return Err(error),
        },
        () = workers.one_is_gone() => Err(anyhow!("a worker has failed: what it knew is lost")),
        fault = faults.next() => Err(fault),
        () = signals.stopping() => Ok(()),
    };
    if let Err(error) = &ended {
        tracing::error!("{error:#}");
    }
    let stop = Stop::begin(signals, limit);
    tracing::info!("stopping");
    let Parts {
        client,
        reload,
        status,
        ..
    } = parts;
    status.ready.store(false, Ordering::Relaxed);
    let broker = &status.broker;
    readers
        .stop(broker, stop.step("reading what has arrived", 0.3))
        .await;
    let tenant = &reload.tenant;
    let by = stop.step("handling what was taken in, and publishing it", 0.6);
    tenant.end_workers(by).await;
    let by = stop.step("writing the state", 0.85);
    let (loader, running) = (Arc::clone(&reload.loader), tenant.running.borrow().clone());
    let note = spawn_blocking(move || loader.put_in_force(&running.blueprint));
    let noted = timeout_at(by, note);
    let ((), noted) = tokio::join!(tenant.close_state(by), noted);
    if noted.is_err() {
        tracing::warn!("which plugins are in force could not be noted in time");
    }
    broker.report_drops();
    if broker.connected.load(Ordering::Relaxed) {
        let by = stop.step("handing the last messages to NATS", 0.92);
        match timeout_at(by, client.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "not all could be handed to NATS"),
            Err(_) => tracing::warn!("NATS did not take the last messages in time"),
        }
    }
    tracing::info!("stopped");
    ended
}

/// Puts the node together: nothing is heard or said yet.
async fn start(
    (config, text, seen): (Config, Option<Text>, Stamp),
    path: Option<PathBuf>,
    tasks: &Tasks,
) -> anyhow::Result<Parts> {
    let names = Arc::new(Names::new());
    let known = config.clone();
    // What is read may hang, and what is compiled takes long.
    let loaded = spawn_blocking(move || {
        let in_force = InForce::read(&known)?;
        let loader = Arc::new(Loader::new(&known)?.knowing(in_force));
        let stamp = Loader::stamp(&known);
        let blueprint = loader.load(&known, true);
        let blueprint = blueprint
            .map_err(loader::together)
            .context("the pipeline can't be loaded")?;
        anyhow::Ok((loader, stamp, blueprint))
    });
    let limit = config.plugins.load_timeout;
    let Ok(loaded) = tokio::time::timeout(limit, loaded).await else {
        let limit = limit.as_secs_f32();
        anyhow::bail!("the pipeline is not loaded within {limit} s ([plugins] load_timeout_ms)");
    };
    let (loader, stamp, blueprint) = loaded??;
    tracing::info!("in force: {}", blueprint.line());
    let (known, shared, started) = (config.clone(), Arc::clone(&names), tasks.clone());
    let kept = spawn_blocking(move || state::open(&known, &shared, &started)).await??;
    let (state, restored) = kept.unzip();
    let now = clock::now_ms();
    let epoch = restored.as_ref().map_or(now, |restored| restored.epoch);
    let broker = Arc::new(Health::default());
    let (link, links) = mpsc::unbounded_channel();
    let access = Access::new(&config);
    let client = access.main(&broker, link).await?;
    let tenant = Tenant::start(&config, blueprint, &client, epoch, names, state)?;
    let running = tenant.running.subscribe();
    let (noting, first) = (Arc::clone(&loader), Arc::clone(&running.borrow().blueprint));
    spawn_blocking(move || noting.put_in_force(&first)).await?;
    tasks.spawn(
        "in-force",
        reload::note_in_force(Arc::clone(&loader), running),
    );
    tenant.follow_link(links, client.clone(), tasks);
    let (health, sources) = (Arc::clone(&broker), tenant.sources.clone());
    let heard = Pulse::start(&access, client.clone(), health, sources, tasks).await?;
    tasks.spawn("clock", clock::follow(tenant.workers.clone()));
    tenant.follow_corrections(tasks);
    let status = Arc::new(Status::new(Arc::clone(&broker), &tenant, &loader));
    http::serve(&config.http, Arc::clone(&status), tasks)?;
    let seen = Seen::at_start(seen, stamp);
    let reload = Reload::new(
        path,
        (config, text, seen),
        loader,
        tenant,
        Arc::clone(&status),
        (client.clone(), access.login),
        tasks.clone(),
    );
    Ok(Parts {
        client,
        reload,
        status,
        heard,
        restored,
        epoch,
    })
}

/// Has the node serve its subjects, and follows its files for as long as it is polled.
async fn serve(
    parts: &mut Parts,
    readers: &mut Readers,
    tasks: &Tasks,
    signals: &Signals,
) -> anyhow::Result<()> {
    let Parts {
        client,
        reload,
        status,
        heard,
        restored,
        epoch,
    } = parts;
    let broker = Arc::clone(&status.broker);
    reload.read_directory().await;
    let (node, queue) = (
        reload.config.node.name.clone(),
        reload.config.nats.intake_queue,
    );
    let tenant = &reload.tenant;
    let reader = tenant.listen(client, Arc::clone(&broker), heard.clone(), queue);
    let reader = reader.await?;
    let asked = Arc::clone(&status.asked);
    let asks = tenant
        .desk(client, Arc::clone(&broker), asked)
        .listen()
        .await?;
    if let Some(fetcher) = &tenant.fetcher {
        let invalidations = fetcher.listen(client).await?;
        let workers = tenant.workers.clone();
        let fetcher = Arc::clone(fetcher);
        tasks.spawn(
            "fetcher",
            fetcher.run(client.clone(), workers, invalidations),
        );
    }
    let me = Node {
        node: node.clone(),
        epoch_ms: *epoch,
        ready: false,
    };
    let replies = Arc::clone(&tenant.replies);
    let ready = Arc::clone(status);
    hello::greet(client, &tenant.subjects, me, ready, replies, tasks).await?;
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
    status.ready.store(true, Ordering::Relaxed);
    tracing::info!(node, workers = tenant.workers.iter().len(), "ready");
    reload.follow(signals).await;
    Ok(())
}

fn log(config: &Config) {
    let filter = std::env::var("PRESENCE_LOG").unwrap_or_else(|_| config.log.level.clone());
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_default();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    match config.log.format {
        LogFormat::Text => log.with_ansi(ansi).with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}
