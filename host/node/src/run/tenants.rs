//! Several tenants in one process. Each one starts, fails, stops and restarts independently of the
//! others. One task follows the configuration file for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use presence_config::causes::Causes;
use presence_config::escape::brief;
use presence_config::regular_file::Stamp;
use presence_config::{self as config, Config, NodeTenants, Text};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::account::Account;
use super::first::TenantStart;
use super::isolated::IsolatedRuntime;
use super::live_changes::{apply_changes_until_restart, raise_files_max};
use super::retry_wait::RetryWait;
use super::stored::AppliedConfig;
use super::tenant::{self, ProcessContext, StepBack, TenantEnv, TenantParts};
use crate::ops::http::{NodeDescription, SharedAccount, StatusBoard, TenantPhase, TenantStatuses};
use crate::reload::watch::{FileWatch, Paths};
use crate::reload::{self, ConfigSource};
use crate::signals::Signals;
use crate::stop::{Readers, Stop};
use crate::store::tenants::KnownTenants;
use crate::tasks::{Faults, Tasks, blocking};
use crate::telemetry::Telemetry;

/// The state that a tenant should be in.
#[derive(Clone, Debug)]
pub(super) enum DesiredState {
    /// Serving by this configuration. The flag says whether the tenant has an account of its own.
    Serve(Arc<Config>, bool),
    /// Not served; its state is kept.
    Pause,
    /// Not served: its section is invalid, for this reason.
    Refuse(String),
    /// Ended.
    End,
}

/// What the tenants of a process share.
pub(super) struct Shared {
    /// The configuration that the process was started with.
    pub(super) config: Config,
    /// The configuration file, if there is one.
    file: Option<PathBuf>,
    pub(super) account: Arc<Account>,
    /// The same account, as isolated tenants use it.
    isolated: Arc<Account>,
    isolated_runtime: IsolatedRuntime,
    /// The accounts of the tenants that have their own, by the tenant's name.
    accounts: Mutex<BTreeMap<String, Arc<Account>>>,
    pub(super) process: ProcessContext,
    signals: Signals,
    pub(super) tasks: Tasks,
    telemetry: Arc<Telemetry>,
    pub(super) statuses: Arc<TenantStatuses>,
    /// What was last taken from the file and the store.
    pub(super) applied: Mutex<AppliedConfig>,
}

/// A tenant that was started, and has not been told to end.
pub(super) struct RunningTenant {
    /// Whether its section had a usable name.
    pub(super) is_named: bool,
    pub(super) wanted: watch::Sender<DesiredState>,
    pub(super) life: JoinHandle<()>,
}

/// The task of an earlier tenant of the same name, which may still be ending.
pub(super) type Predecessor = Option<JoinHandle<()>>;

impl Shared {
    pub(super) fn new(
        config: &Config,
        file: Option<PathBuf>,
        signals: &Signals,
        tasks: &Tasks,
        telemetry: &Arc<Telemetry>,
    ) -> Self {
        let account = Account::new(config, config.engine.thread_count(), tasks);
        let isolated = Arc::new(account.isolated(config, tasks));
        let account = Arc::new(account);
        let accounts_of_all = [&account, &isolated].map(|account| -> SharedAccount {
            let account = Arc::clone(account);
            Box::new(move || account.figures())
        });
        Self {
            statuses: TenantStatuses::new(config, file.clone(), telemetry, accounts_of_all.into())
                .into(),
            file,
            isolated,
            isolated_runtime: IsolatedRuntime::default(),
            account,
            accounts: Mutex::default(),
            process: ProcessContext::start(&config.node.name, tasks),
            signals: signals.clone(),
            tasks: tasks.clone(),
            telemetry: Arc::clone(telemetry),
            config: config.clone(),
            applied: Mutex::default(),
        }
    }

    /// Serves all tenants until the process has to stop, and stops them in order.
    ///
    /// # Errors
    /// If something that all tenants need has failed.
    pub(super) async fn serve(
        self,
        path: Option<PathBuf>,
        (text, seen): (Option<Text>, Stamp),
        mut faults: Faults,
    ) -> anyhow::Result<()> {
        let shared = Arc::new(self);
        raise_files_max();
        *shared.applied() = AppliedConfig {
            path: path.clone(),
            text: text.clone(),
            ..AppliedConfig::default()
        };
        let (in_force, now_in_force) = watch::channel(BTreeSet::new());
        let mut tenants = ConfigFollower {
            stored: shared.follow_store(now_in_force).await?,
            in_force,
            running: shared.config.clone(),
            text,
            seen,
            path,
            watch: shared.process.watches.watch(),
            begun: BTreeMap::new(),
            ending: BTreeMap::new(),
            refused: String::new(),
            shared: Arc::clone(&shared),
        };
        let sections = shared.config.tenants.clone().unwrap_or_default();
        tenants.want(&sections);
        shared.applied().serving = tenants.serving();
        let ended = tokio::select! {
            never = tenants.follow() => match never {},
            fault = faults.next() => Err(fault),
            () = shared.signals.stopping() => Ok(()),
        };
        if let Err(error) = &ended {
            tracing::error!("{}", Causes(error));
        }
        let limit = shared.config.node.stop_timeout;
        let stop = Stop::begin(&shared.signals, limit);
        tracing::info!("stopping");
        for tenant in tenants.begun.values() {
            tenant.wanted.send_replace(DesiredState::End);
        }
        let by = stop.step("stopping the tenants", 0.95);
        let begun = tenants.begun.into_iter();
        let begun = begun.map(|(name, tenant)| (name, tenant.life));
        for (name, life) in begun.chain(tenants.ending) {
            if timeout_at(by, life).await.is_err() {
                tracing::warn!(tenant = name, "not stopped in time");
            }
        }
        tracing::info!("stopped");
        ended
    }

    fn accounts(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Account>>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The account for a tenant: its own, or the process's for isolated or for other tenants. The
    /// account that the tenant had before is closed, unless it can be kept.
    async fn account_of(&self, config: &Config, name: &str, own_account: bool) -> Arc<Account> {
        let before = self.accounts().get(name).cloned();
        let (account, is_kept) = match before {
            _ if !own_account && config.tenant.isolated => (Arc::clone(&self.isolated), false),
            _ if !own_account => (Arc::clone(&self.account), false),
            Some(before) if before.is_for(config) => (before, true),
            _ => {
                // Not more threads than the tenant has shards: no other tenant uses them.
                let threads = config.shard_count().min(config.engine.thread_count());
                let account = Account::new(config, threads, &self.tasks);
                (Arc::new(account), false)
            }
        };
        if is_kept {
            account.access.log_in_by(config);
        } else {
            self.close_account(name).await;
            if own_account {
                let own = Arc::clone(&account);
                self.accounts().insert(name.to_owned(), own);
            }
        }
        account
    }

    /// Closes a tenant's own account, if it has one.
    async fn close_account(&self, name: &str) {
        let account = self.accounts().remove(name);
        if let Some(account) = account {
            account.close().await;
        }
    }

    /// The task of a tenant: carries out one order after the other.
    pub(super) async fn run_tenant(
        self: Arc<Self>,
        name: String,
        mut wanted: watch::Receiver<DesiredState>,
        before: Predecessor,
    ) {
        if let Some(before) = before {
            // The predecessor has the state open, and takes its leave on the same subjects.
            let _ = before.await;
        }
        let mut wait = RetryWait::default();
        // False for a node of a fleet, which keeps no state.
        let mut keeps_state = true;
        loop {
            let order = wanted.borrow_and_update().clone();
            let (config, own_account) = match order {
                DesiredState::Serve(config, own_account) => (config, own_account),
                DesiredState::End => {
                    self.process.plugin_logs.forget(&name);
                    return self.close_account(&name).await;
                }
                DesiredState::Pause => {
                    tracing::info!("paused: {}", state_after_stop(keeps_state));
                    self.statuses.set_phase(&name, TenantPhase::Paused, None);
                    self.close_account(&name).await;
                    let _ = wanted.changed().await;
                    continue;
                }
                DesiredState::Refuse(why) => {
                    for line in why.lines() {
                        tracing::error!("the tenant does not start: {line}");
                    }
                    self.statuses
                        .set_phase(&name, TenantPhase::Refused(why), None);
                    let _ = wanted.changed().await;
                    continue;
                }
            };
            keeps_state = !config.fleet.enabled;
            let account = self.account_of(&config, &name, own_account).await;
            let began = Instant::now();
            // On the heap, so that a tenant that is paused or refused takes little memory.
            let served = Box::pin(self.serve_one(&name, &account, &config, &mut wanted));
            let ended = self.isolated_runtime.run(account.priority, served).await;
            match ended {
                Ok(()) => wait = RetryWait::default(),
                Err(error) => {
                    let took = began.elapsed();
                    let why = brief(&Causes(&error).to_string());
                    for line in why.lines() {
                        tracing::error!("{line}");
                    }
                    if error.is::<StepBack>() {
                        continue;
                    }
                    self.statuses
                        .set_phase(&name, TenantPhase::Refused(why), None);
                    // Another configuration may help at once; otherwise a retry may.
                    tokio::select! {
                        _ = wanted.changed() => wait = RetryWait::default(),
                        () = sleep(wait.after(took)) => {}
                    }
                }
            }
        }
    }

    /// Serves a tenant until something else is wanted.
    ///
    /// # Errors
    /// If it can't be served, or can't go on.
    async fn serve_one(
        &self,
        name: &str,
        account: &Arc<Account>,
        config: &Arc<Config>,
        wanted: &mut watch::Receiver<DesiredState>,
    ) -> anyhow::Result<()> {
        let (live_config, follow) = watch::channel(Arc::clone(config));
        let wait = |why: String| {
            tracing::warn!("{why}");
            self.statuses
                .set_phase(name, TenantPhase::Refused(why), None);
        };
        let claimed = tokio::select! {
            claim = account.claim(config, name, wait) => claim,
            () = apply_changes_until_restart(
                wanted,
                (config, account),
                &live_config,
                (&self.statuses, name),
            ) => return Ok(()),
        };
        let _claim = claimed;
        let place = tokio::select! {
            place = self.process.starts.acquire(&self.tasks) => place,
            () = apply_changes_until_restart(
                wanted,
                (config, account),
                &live_config,
                (&self.statuses, name),
            ) => return Ok(()),
        };
        let _needs = account.broker.need(config);
        let (tasks, mut faults) = Tasks::new();
        let about = NodeDescription::new(config, self.file.clone(), &self.telemetry);
        let board = Arc::new(StatusBoard::new(Arc::clone(&account.broker), about));
        self.statuses
            .set_phase(name, TenantPhase::Begun, Some(Arc::clone(&board)));
        let env = TenantEnv {
            account,
            process: &self.process,
            board: &board,
            signals: &self.signals,
            tasks: &tasks,
            telemetry: &self.telemetry,
            place,
        };
        let start = TenantStart {
            config: Config::clone(config),
            source: ConfigSource::Watched(follow),
            seen: Stamp::default(),
        };
        let started = tokio::select! {
            started = tenant::start(start, &env) => started.map(Some),
            fault = faults.next() => Err(fault),
            () = apply_changes_until_restart(
                wanted,
                (config, account),
                &live_config,
                (&self.statuses, name),
            ) => Ok(None),
        };
        let ended = match started {
            Ok(Some(parts)) => {
                self.serve_until(
                    parts,
                    &env,
                    &mut faults,
                    apply_changes_until_restart(
                        wanted,
                        (config, account),
                        &live_config,
                        (&self.statuses, name),
                    ),
                )
                .await
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        tasks.end();
        ended
    }

    async fn serve_until(
        &self,
        mut parts: TenantParts,
        env: &TenantEnv<'_>,
        faults: &mut Faults,
        other: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let mut readers = Readers::default();
        let ended = tokio::select! {
            served = parts.serve(&mut readers, env) => match served {
                Ok(why) => Err(why),
                // The tenant has taken no input yet.
                Err(error) => {
                    parts.give_up();
                    return Err(error);
                }
            },
            fault = faults.next() => Err(fault),
            () = other => Ok(()),
        };
        let stop = Stop::of_tenant(self.config.node.stop_timeout.mul_f32(0.9));
        parts.stop(readers, &stop).await;
        tracing::info!("stopped");
        ended
    }
}

/// Says for the log what happens to the state of a tenant that isn't served any more.
pub(super) fn state_after_stop(keeps_state: bool) -> &'static str {
    match keeps_state {
        true => "nothing of it is served, and its state is kept",
        false => {
            "nothing of it is served here, and a fleet keeps no state: if no other node serves it, its \
             users are heard anew later"
        }
    }
}

/// Follows the configuration file and the store for all tenants.
pub(super) struct ConfigFollower {
    pub(super) shared: Arc<Shared>,
    /// The tenants of the store.
    stored: watch::Receiver<KnownTenants>,
    /// The names of the store's tenants whose sections are in force.
    in_force: watch::Sender<BTreeSet<String>>,
    path: Option<PathBuf>,
    /// The content that was last taken from the file.
    text: Option<Text>,
    running: Config,
    seen: Stamp,
    watch: FileWatch,
    pub(super) begun: BTreeMap<String, RunningTenant>,
    /// The tenants that were told to end.
    pub(super) ending: BTreeMap<String, JoinHandle<()>>,
    /// Why the file's last content was not taken; empty if it was.
    refused: String,
}

impl ConfigFollower {
    /// Follows the file and the store. It never returns.
    async fn follow(&mut self) -> std::convert::Infallible {
        let mut reloads = self.shared.signals.reloads();
        let file = self.path.clone();
        let file = file.unwrap_or_else(|| Path::new(config::FILE_NAME).to_owned());
        let covered = self.watch.cover(Paths {
            files: vec![file.clone()],
            folders: Vec::new(),
        });
        let _ = blocking(covered).await;
        loop {
            let stamp_of = file.clone();
            let stamp = blocking(move || Stamp::of(&stamp_of)).await;
            if let Ok(stamp) = stamp
                && stamp != self.seen
            {
                self.seen = stamp;
                self.read().await;
            }
            tokio::select! {
                _ = self.watch.due() => {}
                Ok(()) = reloads.changed() => self.seen = Stamp::default(),
                Ok(()) = self.stored.changed() => self.take_stored().await,
            }
        }
    }

    /// Reads the file, and puts its tenants in force.
    async fn read(&mut self) {
        let (path, running) = (self.path.clone(), self.text.clone());
        let stored = Arc::clone(&self.stored.borrow().tenants);
        let serving = self.serving();
        let read = blocking(move || {
            let read = || Text::read_again(path.as_deref());
            let text = reload::changed(running.as_ref(), reload::REREAD_AFTER, read)?;
            let Some(text) = text else {
                return Ok(None);
            };
            let node = NodeTenants {
                stored: &stored,
                serving: &serving,
            };
            let new = Config::parse_with(path.as_deref(), Some(&text), config::variables(), node)?;
            anyhow::ensure!(
                new.tenants.is_some(),
                "there is no [[tenant]] in the file any more: this takes effect at the next start"
            );
            Ok(Some((text, new)))
        });
        let taken = match read.await {
            Ok(read) => read,
            Err(error) => Err(error.into()),
        };
        match taken {
            Ok(None) => self.refused.clear(),
            Ok(Some((text, new))) => {
                self.refused.clear();
                self.shared.applied().text = Some(text.clone());
                self.text = Some(text);
                self.take(new);
            }
            Err(error) => {
                // A retry may succeed without a change of the file.
                self.seen = Stamp::default();
                let why = Causes(&error).to_string();
                if why != self.refused {
                    for line in why.lines() {
                        tracing::error!("configuration not taken, the running one stays: {line}");
                    }
                    self.refused = why;
                }
            }
        }
        self.shared.statuses.set_file_refused(&self.refused);
    }

    /// Puts the tenants of the store in force.
    async fn take_stored(&mut self) {
        let known = self.stored.borrow_and_update().clone();
        let (taken, tenants) = (self.shared.applied().clone(), Arc::clone(&known.tenants));
        match blocking(move || taken.with(&tenants))
            .await
            .map_err(Into::into)
            .flatten()
        {
            Ok(new) => {
                self.take(new);
                self.log_in_force(&known);
                self.shared.applied().stored = known;
            }
            // The file's content is in force, whatever is wrong with the store's tenants.
            Err(error) => tracing::error!("tenants of the store not taken: {error:#}"),
        }
    }

    /// Publishes which of the store's tenants have sections that are in force.
    fn log_in_force(&self, known: &KnownTenants) {
        let names: BTreeSet<_> = known.tenants.iter().map(|it| &*it.name).collect();
        let sections = self.running.tenants.iter().flat_map(|it| it.iter());
        let sections = sections.filter(|it| it.config.is_ok() && names.contains(&*it.name));
        let new = sections.map(|it| it.name.clone()).collect();
        self.in_force.send_if_modified(|now| {
            let is_other = *now != new;
            *now = new;
            is_other
        });
    }

    fn take(&mut self, new: Config) {
        let before = std::mem::replace(&mut self.running, new);
        for change in before.changes(&self.running) {
            if change.affects_process() {
                let section = change.section;
                tracing::warn!("[{section}] has changed: it takes effect at the next start");
            }
        }
        // Tenants may be waiting for a new login.
        self.shared.account.access.log_in_by(&self.running);
        self.shared.isolated.access.log_in_by(&self.running);
        let sections = self.running.tenants.clone().unwrap_or_default();
        self.want(&sections);
        self.shared.applied().serving = self.serving();
        tracing::info!(tenants = sections.len(), "configuration reloaded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of a future, which is kept while it waits, in bytes.
    fn bytes<F: Future>(
        _: impl Fn(Arc<Shared>, String, watch::Receiver<DesiredState>, Predecessor) -> F,
    ) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_tenant_that_is_not_served_takes_little_memory() {
        // There may be thousands of tenants that are paused, or that are only in the store.
        let bytes = bytes(Shared::run_tenant);
        assert!(bytes < 4 << 10, "{bytes} bytes");
    }
}
