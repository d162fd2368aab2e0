//! `presence run`: the node, put together and taken apart in order.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, bail};
use presence_core::names::Names;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::broker::{self, Health};
use crate::clock;
use crate::config::{Config, LogFormat, Text};
use crate::hello::{self, Node};
use crate::http::{self, Status};
use crate::in_force::InForce;
use crate::loader::{self, Loader};
use crate::pulse::Pulse;
use crate::reload::Reload;
use crate::state;
use crate::tenant::Tenant;

/// How long each step of stopping may take: reading what has arrived, handling
/// it, handing the rest to the broker, and writing the state.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the node until it is told to stop.
pub(crate) fn run(path: Option<&Path>) -> anyhow::Result<()> {
    let text = Text::read(path)?;
    let config = Config::parse(path, text.as_ref(), std::env::vars())?;
    log(&config);
    tokio::runtime::Builder::new_multi_thread()
        // The connection to the broker, and the intake from it, on one thread: one
        // reads what the other has just written. Users have threads of their own.
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(node(config, text, path))
}

async fn node(config: Config, text: Option<Text>, path: Option<&Path>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopped = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(stopped);

    let in_force = InForce::read(&config)?;
    let loader = Arc::new(Loader::new(&config.plugins)?.knowing(in_force));
    let blueprint = loader.load(&config, true, None);
    let blueprint = blueprint
        .map_err(loader::together)
        .context("the pipeline can't be loaded")?;
    tracing::info!("in force: {}", blueprint.line());
    let names = Arc::new(Names::new());
    let (state, restored) = state::open(&config, &names)?.unzip();
    let now = clock::now_ms();
    let epoch = restored.as_ref().map_or(now, |restored| restored.epoch);
    let broker = Arc::new(Health::default());
    let (link, links) = mpsc::unbounded_channel();
    let (name, timeout_ms) = (&config.node.name, config.tracker.timeout_ms);
    let client = broker::connect(&config.nats, name, timeout_ms, &broker, link).await?;
    let tenant = Tenant::start(&config, blueprint, &client, epoch, names, state)?;
    loader.put_in_force(&tenant.running.borrow().blueprint);
    tenant.follow_link(links, client.clone());
    let (health, sources) = (Arc::clone(&broker), tenant.sources.clone());
    let heard = Pulse::start(&config, client.clone(), health, sources).await?;
    let intake_queue = config.nats.intake_queue;
    tokio::spawn(clock::follow(tenant.workers.clone()));
    tenant.follow_corrections();
    let status = Arc::new(Status::new(Arc::clone(&broker), &tenant));
    http::serve(&config.http, Arc::clone(&status)).await?;

    let (node, workers) = (config.node.name.clone(), tenant.workers.clone());
    let mut reload = Reload::new(
        path.map(Into::into),
        (config, text),
        loader,
        tenant,
        Arc::clone(&status),
        client.clone(),
    );

    let mut readers = Vec::new();
    let working = async {
        reload.read_directory().await;
        let reader = reload
            .tenant
            .listen(&client, Arc::clone(&broker), heard, intake_queue);
        let reader = reader.await?;
        let asked = Arc::clone(&status.asked);
        let desk = reload.tenant.desk(&client, Arc::clone(&broker), asked);
        let asks = desk.listen().await?;
        if let Some(fetcher) = &reload.tenant.fetcher {
            let invalidations = fetcher.listen(&client).await?;
            let workers = reload.tenant.workers.clone();
            let fetcher = Arc::clone(fetcher);
            tokio::spawn(fetcher.run(client.clone(), workers, invalidations));
        }
        let me = Node {
            node: node.clone(),
            epoch_ms: epoch,
            ready: false,
        };
        let replies = Arc::clone(&reload.tenant.replies);
        let ready = Arc::clone(&status);
        hello::greet(&client, &reload.tenant.subjects, me, ready, replies).await?;
        reload.tenant.begin().await;
        // Before the first input, and after the directory: the first decisions are
        // on who was online when the node last ran.
        if let Some(restored) = restored {
            reload.tenant.restore(restored).await;
        }
        let (stop, stopping) = oneshot::channel();
        readers.push((stop, tokio::spawn(asks.read(stopping))));
        let (stop, stopping) = oneshot::channel();
        readers.push((stop, tokio::spawn(reader.read(stopping))));
        status.ready.store(true, Ordering::Relaxed);
        tracing::info!(node, workers = workers.iter().len(), "ready");
        reload.follow().await
    };
    tokio::select! {
        ended = working => return ended,
        () = workers.one_is_gone() => bail!("a worker has failed: what it knew is lost"),
        () = &mut stopped => {}
    }
    tracing::info!("stopping");
    status.ready.store(false, Ordering::Relaxed);
    for (stop, reader) in readers {
        stop_reading(stop, reader, &broker).await;
    }
    reload.tenant.stop(STOP_TIMEOUT).await;
    broker.report_drops();
    if broker.connected.load(Ordering::Relaxed) {
        match tokio::time::timeout(STOP_TIMEOUT, client.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "not all could be handed to NATS"),
            Err(_) => tracing::warn!("NATS did not take the last messages in time"),
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Takes no more input, but what has arrived.
async fn stop_reading(
    stop: oneshot::Sender<()>,
    mut reader: tokio::task::JoinHandle<()>,
    broker: &Health,
) {
    // Without a broker nothing is on its way, and nobody would say so.
    if broker.connected.load(Ordering::Relaxed) && stop.send(()).is_ok() {
        let done = tokio::time::timeout(STOP_TIMEOUT, &mut reader).await;
        if done.is_ok() {
            return;
        }
        tracing::warn!("not all that had arrived could be read in time");
    }
    reader.abort();
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
