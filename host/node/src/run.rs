//! `presence run`: the process, with one tenant or with several.

mod account;
mod first;
mod isolated;
mod live_changes;
mod retry_wait;
mod sections;
mod start_slots;
mod stored;
mod tenant;
mod tenants;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use presence_config::causes::Causes;
use presence_config::regular_file::Stamp;
use presence_config::{self as config, Config, Text};
use presence_rules::loader;
use tokio::time::{sleep, timeout};

use crate::ops::http::{self, NodeDescription, StatusBoard};
use crate::ops::log;
use crate::reload::ConfigSource;
use crate::signals::Signals;
use crate::stop::{Readers, Stop};
use crate::tasks::{self, Faults, Tasks, blocking};
use crate::telemetry::{self, Telemetry};

use account::Account;
use first::TenantStart;
use start_slots::StartSlot;
use tenant::{ProcessContext, StepBack, TenantEnv};

/// How often a starting tenant checks whether its login has changed in the configuration.
const LOGIN_CHECK_EVERY: Duration = Duration::from_secs(1);

/// How long the first line of the log waits for the plugins' files to be read.
const SURVEY: Duration = Duration::from_secs(5);

/// Runs the node until it is told to stop.
pub fn run(path: Option<&Path>) -> anyhow::Result<()> {
    let seen = Stamp::of(path.unwrap_or(Path::new(config::FILE_NAME)));
    let text = Text::read(path)?;
    let config = Config::parse(path, text.as_ref(), config::variables())?;
    log::begin(&config.log)?;
    tasks::log_panics();
    let (tasks, faults) = Tasks::new();
    // Set up before the first line of the log: writing it may hang.
    let signals = Signals::take(config.node.stop_timeout, &tasks)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The connection to the broker and the intake share a thread, since one reads what the
        // other has just written. Users have threads of their own.
        .worker_threads(1)
        // A thread takes memory even while it waits for work.
        .thread_keep_alive(Duration::from_secs(1))
        .enable_all()
        .build()?;
    let read = (config, text, seen);
    let ended = runtime.block_on(node(read, path.map(Into::into), &signals, (tasks, faults)));
    // Reading files and compiling may hang, so they aren't waited for.
    runtime.shutdown_background();
    match ended {
        Err(error) if error.is::<StepBack>() => Err(restart_process()),
        ended => ended,
    }
}

async fn node(
    (config, text, seen): (Config, Option<Text>, Stamp),
    path: Option<PathBuf>,
    signals: &Signals,
    (tasks, faults): (Tasks, Faults),
) -> anyhow::Result<()> {
    let (telemetry, pending) = Telemetry::new(&config)?;
    let telemetry = Arc::new(telemetry);
    let is_there = text.is_some();
    let file = is_there.then(|| config_file(path.as_deref()));
    if config.tenants.is_some() {
        introduce(&config, is_there, path.as_deref()).await;
        let tenants = tenants::Shared::new(&config, file, signals, &tasks, &telemetry);
        let statuses = Arc::clone(&tenants.statuses);
        let source = Box::new(move || statuses.metrics());
        pending.start(&config, &telemetry, source, &tasks)?;
        http::serve_tenants(&config, Arc::clone(&tenants.statuses), &tasks)?;
        let ended = tenants.serve(path, (text, seen), faults).await;
        telemetry.end().await;
        return ended;
    }
    let start = TenantStart {
        config,
        source: ConfigSource::File { path, text },
        seen,
    };
    let ended = alone(start, file, signals, (tasks, faults), (&telemetry, pending)).await;
    telemetry.end().await;
    ended
}

/// Serves the only tenant.
async fn alone(
    start: TenantStart,
    file: Option<PathBuf>,
    signals: &Signals,
    (tasks, mut faults): (Tasks, Faults),
    (telemetry, pending): (&Telemetry, telemetry::Pending),
) -> anyhow::Result<()> {
    let limit = start.config.node.stop_timeout;
    let account = Account::new(&start.config, start.config.engine.thread_count(), &tasks);
    let about = NodeDescription::new(&start.config, file, telemetry);
    let board = Arc::new(StatusBoard::new(Arc::clone(&account.broker), about));
    let status = Arc::clone(&board);
    let source = Box::new(move || status.metrics());
    pending.start(&start.config, telemetry, source, &tasks)?;
    let env = TenantEnv {
        account: &account,
        process: &ProcessContext::start(&start.config.node.name, &tasks),
        board: &board,
        signals,
        tasks: &tasks,
        telemetry,
        place: StartSlot::of_one(),
    };
    let _needs = account.broker.need(&start.config);
    let (known, known_path) = (start.config.clone(), path_of(&start.source));
    let starting = async {
        let ConfigSource::File { path, text } = &start.source else {
            anyhow::bail!("the one tenant's configuration is a file's");
        };
        introduce(&start.config, text.is_some(), path.as_deref()).await;
        http::serve(&start.config, Arc::clone(&board), &tasks)?;
        tenant::start(start, &env).await
    };
    let mut parts = tokio::select! {
        parts = starting => parts?,
        never = follow_login(&known, known_path, &account) => match never {},
        () = signals.stopping() => {
            tracing::info!("stopped before it had begun to serve");
            return Ok(());
        }
        fault = faults.next() => return Err(fault),
    };
    let mut readers = Readers::default();
    let ended = tokio::select! {
        served = parts.serve(&mut readers, &env) => match served {
            Ok(why) => Err(why),
            // The tenant has taken no input yet.
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
    parts.stop(readers, &stop).await;
    tracing::info!("stopped");
    ended
}

/// Follows the login in the configuration file while the tenant starts: the tenant may be waiting
/// for a new one.
async fn follow_login(
    known: &Config,
    path: Option<PathBuf>,
    account: &Account,
) -> std::convert::Infallible {
    let mut auth = known.nats.auth.clone();
    loop {
        sleep(LOGIN_CHECK_EVERY).await;
        let path = path.clone();
        let read = blocking(move || {
            let text = Text::read(path.as_deref())?;
            Config::parse(path.as_deref(), text.as_ref(), config::variables())
        });
        // Other problems of the file are reported once the tenant serves.
        if let Ok(Ok(new)) = read.await
            && new.nats.auth != auth
        {
            tracing::info!("the login in the configuration has changed: it is used from now on");
            account.access.log_in_by(&new);
            auth = new.nats.auth;
        }
    }
}

fn path_of(source: &ConfigSource) -> Option<PathBuf> {
    match source {
        ConfigSource::File { path, .. } => path.clone(),
        ConfigSource::Watched(_) => None,
    }
}

/// The path of the configuration file, whether or not it exists.
fn config_file(path: Option<&Path>) -> PathBuf {
    let file = path.unwrap_or(Path::new(config::FILE_NAME));
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned())
}

/// Logs the first line: what is started, with version, configuration, broker and pipeline.
async fn introduce(config: &Config, is_there: bool, path: Option<&Path>) {
    let file = config_file(path);
    let file = match is_there {
        true => file.display().to_string(),
        false => format!("the defaults ({} does not exist)", file.display()),
    };
    let known = config.clone();
    let survey = async {
        if let Some(tenants) = &known.tenants {
            return format!("of each of {} tenants", tenants.len());
        }
        if known.follows_store() {
            return "of the plugin store".to_owned();
        }
        // Reading files may hang.
        match timeout(SURVEY, blocking(move || loader::describe_sources(&known))).await {
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
    for variable in &config.ignored_variables {
        tracing::warn!("{variable}");
    }
}

/// Replaces this process by a new run of the same program, which keeps nothing but the state on
/// disk.
///
/// # Errors
/// If the program can't be run.
fn restart_process() -> anyhow::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return anyhow::Error::new(error).context("can't begin anew"),
    };
    let error = Command::new(program)
        .args(std::env::args_os().skip(1))
        .exec();
    anyhow::Error::new(error).context("can't begin anew")
}
