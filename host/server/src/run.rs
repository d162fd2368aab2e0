//! `presence run`: the node, put together and taken apart in order.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::Client;
use futures_util::StreamExt;
use presence_core::directory::Directory;
use presence_core::names::Names;
use presence_core::{Input, Settings, Shard, tracker};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::blueprint::Loader;
use crate::broker::{self, Health};
use crate::config::{self, Config, LogFormat};
use crate::http::{self, Status};
use crate::reload::Reload;
use crate::wire::{Source, Subjects};
use crate::worker::{self, State, Task};
use crate::{clock, directory_file, intake};

/// The longest body where no broker says otherwise, less room for headers.
pub(crate) const BODY_BYTES_MAX: usize = (1 << 20) - HEADER_BYTES_MAX;

/// More than the headers of any publication take.
const HEADER_BYTES_MAX: usize = 1_024;

/// How long another node on the same subjects has to answer.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the broker has to take what is left, when the node stops.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the node until it is told to stop.
pub(crate) fn run(path: Option<&Path>) -> anyhow::Result<()> {
    let config = Config::load(path, std::env::vars())?;
    log(&config);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(node(config, path))
}

/// What the shards of a node go by.
pub(crate) fn settings(config: &Config, body_bytes_max: usize) -> Settings {
    Settings {
        tracker: tracker::Settings {
            timeout_ms: config.tracker.timeout_ms,
            grace_ms: config.tracker.grace_ms,
        },
        broadcast: config.tracker.broadcast.clone(),
        reuse_verdicts: config.engine.reuse_verdicts,
        retry_ms: config.engine.retry_ms,
        retry_ms_max: config.engine.retry_ms_max,
        body_bytes_max,
        node: config.node.name.clone(),
    }
}

/// What belongs to one tenant, on this node.
struct Tenant {
    names: Arc<Names>,
    directory: Arc<Directory>,
    subjects: Subjects,
}

impl Tenant {
    fn new(config: &Config) -> anyhow::Result<Self> {
        let names = Arc::new(Names::new());
        let directory = match &config.directory {
            config::Directory::File { path } => {
                directory_file::load(path, &names, &Directory::new())?.0
            }
            config::Directory::Kv { .. } => {
                bail!("[directory] source = \"kv\" is not available yet: use \"file\"")
            }
        };
        let subjects = Subjects::new(config.tenant.prefix.as_deref());
        Ok(Self {
            names,
            directory: Arc::new(directory),
            subjects,
        })
    }
}

async fn node(config: Config, path: Option<&Path>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let tenant = Tenant::new(&config)?;
    let loader = Arc::new(Loader::new()?);
    let (blueprint, running) = loader
        .load(&config, true)
        .context("the pipeline can't be loaded")?;
    let health = Arc::new(Health::default());
    let (link, links) = mpsc::unbounded_channel();
    let client = broker::connect(&config.nats, &config.node.name, &health, link).await?;

    let epoch_ms = clock::now_ms();
    let mut workers = Vec::new();
    for number in 0..config.engine.worker_count() {
        let names = Arc::clone(&tenant.names);
        let settings = settings(&config, body_bytes_max(&client));
        let state = State {
            shard: Shard::new(settings, names, Arc::clone(&tenant.directory)),
            rules: blueprint.instantiate()?,
            client: client.clone(),
            subjects: tenant.subjects.clone(),
            source: Source::new(&config.node.name, number, epoch_ms),
            figures: Arc::default(),
        };
        workers.push(worker::start(number, config.engine.worker_queue, state)?);
    }
    let tasks: Arc<[_]> = workers.iter().map(|worker| worker.tasks.clone()).collect();
    let status = Arc::new(Status {
        broker: health,
        workers: workers
            .iter()
            .map(|worker| Arc::clone(&worker.figures))
            .collect(),
        ready: AtomicBool::new(false),
        swaps: AtomicU64::new(0),
        refused_swaps: AtomicU64::new(0),
    });
    http::serve(&config.http, Arc::clone(&status)).await?;
    tokio::spawn(follow_link(
        links,
        Arc::clone(&tasks),
        client.clone(),
        config.clone(),
    ));

    let mut readers = Vec::new();
    let started = async {
        greet(&client, &tenant.subjects, &config.node.name).await?;
        let messages = client.subscribe(tenant.subjects.of("presence.>")).await?;
        readers.push(tokio::spawn(intake::read(
            messages,
            tenant.subjects.clone(),
            Arc::clone(&tasks),
        )));
        client.flush().await?;
        anyhow::Ok(())
    };
    let stopped_early = tokio::select! {
        started = started => { started?; false }
        _ = terminate.recv() => true,
        _ = interrupt.recv() => true,
    };
    if !stopped_early {
        status.ready.store(true, Ordering::Relaxed);
        tracing::info!(node = config.node.name, workers = tasks.len(), "ready");
        let reload = Reload {
            path: path.map(Into::into),
            config,
            loader,
            running,
            names: tenant.names,
            directory: tenant.directory,
            workers: Arc::clone(&tasks),
            status: Arc::clone(&status),
            client: client.clone(),
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            ended = reload.follow() => ended?,
        }
    }
    tracing::info!("stopping");
    status.ready.store(false, Ordering::Relaxed);
    stop(&client, &tasks, readers).await;
    tracing::info!("stopped");
    Ok(())
}

/// Stops taking input, lets the workers finish, and sees the rest off.
async fn stop(
    client: &Client,
    workers: &[mpsc::Sender<Task>],
    readers: Vec<tokio::task::JoinHandle<()>>,
) {
    for reader in readers {
        reader.abort();
    }
    for worker in workers {
        let (done, drained) = oneshot::channel();
        if worker.send(Task::Drain(done)).await.is_ok() {
            let _ = tokio::time::timeout(FLUSH_TIMEOUT, drained).await;
        }
    }
    match tokio::time::timeout(FLUSH_TIMEOUT, client.flush()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "not all could be handed to NATS"),
        Err(_) => tracing::warn!("NATS did not take the last messages in time"),
    }
}

/// The longest body that the broker takes, once it is known.
pub(crate) fn body_bytes_max(client: &Client) -> usize {
    match client.server_info().max_payload {
        0 => BODY_BYTES_MAX,
        bytes => bytes.saturating_sub(HEADER_BYTES_MAX),
    }
}

/// While the broker is away, silence says nothing of anyone. When it is back,
/// it may take longer or shorter messages than before.
async fn follow_link(
    mut links: mpsc::UnboundedReceiver<bool>,
    workers: Arc<[mpsc::Sender<Task>]>,
    client: Client,
    config: Config,
) {
    while let Some(connected) = links.recv().await {
        let inputs = if connected {
            let settings = Box::new(settings(&config, body_bytes_max(&client)));
            vec![Input::Settings(settings), Input::Resume]
        } else {
            vec![Input::Pause]
        };
        for worker in workers.iter() {
            // A worker that is gone is one that was told to stop.
            let _ = worker
                .send(Task::Inputs(clock::now_ms(), inputs.clone()))
                .await;
        }
    }
}

/// Makes sure that no other node serves these subjects, and answers those that
/// start later.
async fn greet(client: &Client, subjects: &Subjects, node: &str) -> anyhow::Result<()> {
    let subject = subjects.of("presence.node.hello");
    let request = async_nats::Request::new().timeout(Some(HELLO_TIMEOUT));
    // Nobody answers: that is the good case, told by an error.
    if let Ok(reply) = client.send_request(subject.clone(), request).await {
        let other = String::from_utf8_lossy(&reply.payload).into_owned();
        bail!(
            "node `{other}` already serves {}: stop it first, or give this one another [tenant] prefix",
            subjects.of("presence.>")
        );
    }
    let mut hellos = client.subscribe(subject).await?;
    let (client, node) = (client.clone(), node.to_owned());
    tokio::spawn(async move {
        while let Some(hello) = hellos.next().await {
            if let Some(reply) = hello.reply {
                let _ = client.publish(reply, node.clone().into()).await;
            }
        }
    });
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
