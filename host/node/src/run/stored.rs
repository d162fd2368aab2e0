//! The tenants of the plugin store, for a process that serves several: follows them, and answers
//! commands about them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;
use presence_config::causes::Causes;
use presence_config::escape::{brief, cut};
use presence_config::{
    self as config, Config, NodeTenants, StoredEntry, StoredTenant, TENANTS_BUCKET, TenantSection,
    Text,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::first::load;
use super::tenants::Shared;
use crate::link::hello;
use crate::link::micro::Answer;
use crate::store::tenants::{KnownTenants, TenantsFollower};
use crate::tasks::blocking;

/// What the current tenants were made from.
#[derive(Clone, Default)]
pub(super) struct AppliedConfig {
    pub(super) path: Option<PathBuf>,
    pub(super) text: Option<Text>,
    pub(super) stored: KnownTenants,
    /// The configurations by which the tenants are served.
    pub(super) serving: Arc<[Arc<Config>]>,
}

impl AppliedConfig {
    /// The configuration with other tenants from the store.
    pub(super) fn with(&self, stored: &[StoredEntry]) -> anyhow::Result<Config> {
        let (path, text) = (self.path.as_deref(), self.text.as_ref());
        let node = NodeTenants {
            stored,
            serving: &self.serving,
        };
        Ok(Config::parse_with(path, text, config::variables(), node)?)
    }
}

/// The request of a command about the tenants of the store.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Request {
    /// Check changes: tenants by name; `None` for those that will be removed.
    Validate(BTreeMap<String, Option<StoredTenant>>),
    /// Report the state of the tenants with these names.
    States(Vec<String>),
    /// List the nodes that share a fleet with this one, for any of its tenants.
    Fleet,
}

impl Shared {
    pub(super) fn applied(&self) -> MutexGuard<'_, AppliedConfig> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the tenants of the store, if the store is used, and answers commands about them.
    ///
    /// # Errors
    /// If no connection to the broker can be set up.
    pub(super) async fn follow_store(
        self: &Arc<Self>,
        in_force: watch::Receiver<BTreeSet<String>>,
    ) -> anyhow::Result<watch::Receiver<KnownTenants>> {
        if !self.config.follows_store() {
            // A channel without a sender: nothing ever comes.
            return Ok(watch::channel(KnownTenants::default()).1);
        }
        let admin = self.account.admin().await?;
        let dir = self.config.state.dir.as_deref();
        let (follower, known) = TenantsFollower::new(&admin.client, dir, in_force);
        self.tasks.spawn("tenants", follower.follow());
        let listening = admin.listen_for_tenants(&self.config).await?;
        let shared = Arc::clone(self);
        let client = admin.client.clone();
        let served = async move {
            let carried = || client.server_info().max_payload;
            listening
                .serve(|_, request| shared.answer(request.payload, carried()))
                .await;
            // Reached only when the node ends.
            std::future::pending().await
        };
        self.tasks.spawn("tenants-admin", served);
        tracing::info!(bucket = TENANTS_BUCKET, "tenants come from the store, too");
        Ok(known)
    }

    /// Answers a command about the tenants of the store. `carried`: the greatest length of a
    /// message that the broker accepts, in bytes.
    async fn answer(&self, request: Bytes, carried: usize) -> Answer {
        let request = serde_json::from_slice(&request)
            .map_err(|error| format!("the request can't be read: {}", cut(&error.to_string())))?;
        match request {
            Request::States(names) => Ok(self.states(&names, carried / 2)),
            Request::Fleet => Ok(json!({"ok": true, "nodes": self.statuses.fleet_nodes()})),
            Request::Validate(changes) => {
                let validated = self.validate(changes).await;
                validated
                    .map(|()| json!({"ok": true}))
                    .map_err(|error| brief(&Causes(&error).to_string()))
            }
        }
    }

    /// The states of tenants, how far the store has been read, and how many tenants at the end are
    /// left out for want of room.
    fn states(&self, names: &[String], room: usize) -> Value {
        // Read before the states, which may only be newer.
        let place = self.applied().stored.place;
        let (mut tenants, mut bytes, mut left_out) = (Vec::new(), 0, 0);
        for (at, name) in names.iter().enumerate() {
            let Some(state) = self.statuses.state(name) else {
                continue;
            };
            bytes += state.to_string().len();
            if bytes > room && !tenants.is_empty() {
                left_out = names.len() - at;
                break;
            }
            tenants.push(state);
        }
        json!({
            "ok": true,
            "made": place.map(|place| place.made),
            "place": place.map_or(0, |place| place.last),
            "tenants": tenants,
            "leftOut": left_out,
        })
    }

    /// Checks changes of tenants in the store. Removals can't be wrong, except by what they do to
    /// other tenants.
    async fn validate(
        &self,
        changes: BTreeMap<String, Option<StoredTenant>>,
    ) -> anyhow::Result<()> {
        let applied = self.applied().clone();
        // The order is kept: of tenants with the same subjects, the first has them.
        let mut after = applied.stored.tenants.to_vec();
        after.retain(|it| !matches!(changes.get(&it.name), Some(None)));
        for (name, change) in &changes {
            let Some(tenant) = change else { continue };
            let (name, value) = (name.clone(), Ok(tenant.clone()));
            match after.iter_mut().find(|it| it.name == name) {
                Some(before) => before.value = value,
                None => after.push(StoredEntry { name, value }),
            }
        }
        let (before, after) = blocking(move || {
            anyhow::Ok((
                applied.with(&applied.stored.tenants)?,
                applied.with(&after)?,
            ))
        })
        .await??;
        let before = before.tenants.unwrap_or_default();
        let after = after.tenants.unwrap_or_default();
        for section in &*after {
            let is_changed = changes.contains_key(&section.name);
            let was_good = |it: &TenantSection| it.name == section.name && it.config.is_ok();
            match &section.config {
                Ok(config) if is_changed => {
                    let mut config = Config::clone(config);
                    config.keep_process_values(&self.config, section.own_account);
                    if !section.paused {
                        no_other_has_subjects(&config, &after).await?;
                    }
                    if !config.follows_store() {
                        load(&config, &self.process.compiler).await?;
                    }
                }
                Ok(_) => {}
                Err(problems) if is_changed || before.iter().any(was_good) => {
                    return Err(problems.clone().into());
                }
                // This section was invalid before the changes, too.
                Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Checks that no other tenant has this one's subjects by another login to the same NATS account.
/// The sections don't show that. So the login itself is tried, and the nodes that it reaches are
/// asked.
///
/// # Errors
/// If another tenant has them.
async fn no_other_has_subjects(config: &Config, all: &[TenantSection]) -> anyhow::Result<()> {
    let name = config.tenant.name.as_deref().unwrap_or_default();
    let has_prefix = |it: &&TenantSection| {
        let prefix = it.config.as_ref().map(|it| &it.tenant.prefix);
        it.name != name && !it.paused && prefix.is_ok_and(|it| *it == config.tenant.prefix)
    };
    let others = all.iter().filter(has_prefix).map(|it| &*it.name);
    let others: Vec<_> = others.collect();
    if others.is_empty() {
        return Ok(());
    }
    // A login that doesn't work is reported when the tenant starts.
    let found = hello::other_tenant(config, &others).await.ok().flatten();
    if let Some(other) = found {
        anyhow::bail!(
            "the tenant `{name}` would have the subjects of `{other}`: both logins are of one NATS \
             account. Give one another `prefix`, or a login of another account"
        );
    }
    Ok(())
}
