//! Tenants of the plugin store, for a process that serves several: they are followed, and commands
//! about them answered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;
use presence_config::causes::Causes;
use presence_config::{
    self as config, Config, InStore, OfNode, StoredTenant, TENANTS_BUCKET, TenantSection, Text,
};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use super::first::load;
use super::tenants::Shared;
use crate::link::micro::Answer;
use crate::store::tenants::{Known, TenantsFollower};
use crate::tasks::blocking;

/// What the tenants of now were made from.
#[derive(Clone, Default)]
pub(super) struct Taken {
    pub(super) path: Option<PathBuf>,
    pub(super) text: Option<Text>,
    pub(super) stored: Known,
    /// By what the tenants are served.
    pub(super) serving: Arc<[Arc<Config>]>,
}

impl Taken {
    /// The configuration that this is, with other tenants of the store.
    pub(super) fn with(&self, stored: &[InStore]) -> anyhow::Result<Config> {
        let (path, text) = (self.path.as_deref(), self.text.as_ref());
        let node = OfNode {
            stored,
            serving: &self.serving,
        };
        Ok(Config::parse_with(path, text, config::variables(), node)?)
    }
}

/// What a command has to be validated: tenants by name, and none of those that are to be removed.
#[derive(Deserialize)]
struct Changes {
    validate: BTreeMap<String, Option<StoredTenant>>,
}

impl Shared {
    pub(super) fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the tenants of the store, where there are some, and answers commands about them.
    ///
    /// # Errors
    /// If the broker can't be connected to at all.
    pub(super) async fn follow_store(
        self: &Arc<Self>,
        in_force: watch::Receiver<BTreeSet<String>>,
    ) -> anyhow::Result<watch::Receiver<Known>> {
        if !self.config.follows_store() {
            // Nothing comes.
            return Ok(watch::channel(Known::default()).1);
        }
        let admin = self.account.admin().await?;
        let dir = self.config.state.dir.as_deref();
        let (follower, known) = TenantsFollower::new(&admin.client, dir, in_force);
        self.tasks.spawn("tenants", follower.follow());
        let listening = admin.listen_for_tenants(&self.config).await?;
        let shared = Arc::clone(self);
        let served = async move {
            listening
                .serve(|_, request| shared.answer(request.payload))
                .await;
            // The node ends.
            std::future::pending().await
        };
        self.tasks.spawn("tenants-admin", served);
        tracing::info!(bucket = TENANTS_BUCKET, "tenants come from the store, too");
        Ok(known)
    }

    /// Answers a command about the tenants of the store: what they are at, or what would be wrong
    /// with changes.
    async fn answer(&self, request: Bytes) -> Answer {
        if request.is_empty() {
            let place = self.taken().stored.place;
            let made = place.map(|place| place.made);
            let place = place.map_or(0, |place| place.last);
            return Ok(json!({
                "ok": true,
                "made": made,
                "place": place,
                "tenants": self.told.states(),
            }));
        }
        let changes: Changes = serde_json::from_slice(&request)
            .map_err(|error| format!("the request can't be read: {error}"))?;
        self.validate(changes.validate)
            .await
            .map(|()| json!({"ok": true}))
            .map_err(|error| Causes(&error).to_string())
    }

    /// Finds what would be wrong with changes of tenants in the store: nothing where they are
    /// removed.
    async fn validate(
        &self,
        changes: BTreeMap<String, Option<StoredTenant>>,
    ) -> anyhow::Result<()> {
        let taken = self.taken().clone();
        // Their order says which of them have subjects before others.
        let mut after = taken.stored.tenants.to_vec();
        after.retain(|it| !matches!(changes.get(&it.name), Some(None)));
        for (name, change) in &changes {
            let Some(tenant) = change else { continue };
            let (name, value) = (name.clone(), Ok(tenant.clone()));
            match after.iter_mut().find(|it| it.name == name) {
                Some(before) => before.value = value,
                None => after.push(InStore { name, value }),
            }
        }
        let (before, after) =
            blocking(move || anyhow::Ok((taken.with(&taken.stored.tenants)?, taken.with(&after)?)))
                .await??;
        let before = before.tenants.unwrap_or_default();
        for section in &*after.tenants.unwrap_or_default() {
            let is_changed = changes.contains_key(&section.name);
            let was_good = |it: &TenantSection| it.name == section.name && it.config.is_ok();
            match &section.config {
                Ok(config) if is_changed && !config.follows_store() => {
                    let mut config = Config::clone(config);
                    config.keep_of_process(&self.config, section.own_account);
                    load(&config, &self.all.compiler).await?;
                }
                Ok(_) => {}
                Err(problems) if is_changed || before.iter().any(was_good) => {
                    anyhow::bail!("{problems}");
                }
                // It is as bad as it was.
                Err(_) => {}
            }
        }
        Ok(())
    }
}
