//! Puts revisions of the plugin store in force. They are loaded and swapped as the folder's
//! pipeline is.

use std::sync::Arc;
use std::time::Duration;

use presence_config::revision::Revision;
use presence_rules::loader::Loader;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Reload;
use super::refusal_log::LastRefusal;
use crate::reload::on_disk::FileKind;
use crate::store::Store;
use crate::store::follow::RevisionUpdate;
use crate::store::state::StoreState;
use crate::tasks::blocking;

/// How long the loop waits until a revision is written to disk.
pub(super) const KEEP: Duration = Duration::from_secs(5);

/// What a tenant follows of the plugin store.
pub(crate) struct StoreSource {
    pub(crate) updates: mpsc::Receiver<RevisionUpdate>,
    pub(crate) state: Arc<StoreState>,
    pub(crate) store: Store,
    /// The revision that is in force, or that is to be put in force.
    pub(crate) wanted: Option<Arc<Revision>>,
}

/// The next update from the store. Waits forever if there is no store.
pub(super) async fn next(store: &mut Option<StoreSource>) -> Option<RevisionUpdate> {
    match store {
        Some(store) => store.updates.recv().await,
        None => std::future::pending().await,
    }
}

impl Reload {
    /// Loads a revision, or reports why it can't be.
    pub(super) fn apply_revision(&mut self, update: RevisionUpdate) {
        let Some(store) = &mut self.store else {
            return;
        };
        match update {
            RevisionUpdate::Revision(revision) => {
                store.state.forget_refusal();
                self.config.pipeline = revision.stages();
                store.wanted = Some(revision);
                self.known_config.send_replace(self.config.clone());
                self.revision += 1;
                self.refused.pipeline = LastRefusal::default();
                self.load_pipeline(Loader::fingerprint(&self.config));
            }
            RevisionUpdate::Refused(number, why) => {
                store.state.refuse(number, why.clone());
                self.on_disk().set_refused(FileKind::Pipeline, &*why);
                self.refuse_pipeline(Some(why));
            }
        }
    }

    /// The revision of the configured pipeline. `None` if the pipeline comes from the folder.
    pub(super) fn wanted_revision(&self) -> Option<Arc<Revision>> {
        self.store.as_ref()?.wanted.clone()
    }

    /// Notes that a revision is in force, or why it isn't.
    pub(super) async fn note_revision(&mut self, revision: Arc<Revision>, refusal: Option<&str>) {
        let Some(store) = &self.store else {
            return;
        };
        if let Some(why) = refusal {
            self.on_disk().set_refused(FileKind::Pipeline, why);
            return store.state.refuse(revision.revision, why.into());
        }
        self.on_disk().mark_applied(FileKind::Pipeline);
        let before = store.state.in_force().map(|it| it.revision);
        if before != Some(revision.revision) {
            tracing::info!(
                revision = revision.revision,
                who = revision.who,
                why = revision.why,
                "pipeline revision in force"
            );
        }
        let (kept, keep) = (Arc::clone(self.loader.store_cache()), Arc::clone(&revision));
        // A disk may hang. The revision is in force even if it isn't written.
        let keeping = blocking(move || kept.record_in_force(&keep));
        store.state.set_in_force(revision);
        if tokio::time::timeout(KEEP, keeping).await.is_err() {
            tracing::warn!("the disk takes long to keep the pipeline revision");
        }
    }

    /// Reports that a revision is in force without its canary, and why.
    pub(super) fn note_without_canary(&mut self, number: u64, why: &str) {
        let Some(store) = &self.store else {
            return;
        };
        let why = format!("its canary doesn't run: {why}");
        let said = (number, why);
        if self.canary_refused.as_ref() != Some(&said) {
            let (number, why) = &said;
            tracing::error!("revision {number}: {why}");
            let about = json!({"revision": number, "error": why});
            self.alerts.raise("canary-refused", about);
        }
        store.state.refuse(number, said.1.clone());
        self.canary_refused = Some(said);
    }

    /// The content of the alert about a refused pipeline. `None` if there was an alert about this
    /// revision already. That is so at the start, which tries the newest revision before the store
    /// is followed.
    pub(super) fn about_refusal(&self, why: &str) -> Option<(&'static str, Value)> {
        let state = self.store.as_ref().map(|store| &store.state);
        let refused = state.and_then(|state| Some((state, state.refused()?)));
        match refused.filter(|(_, (_, refused))| refused == why) {
            Some((state, (revision, why))) => state.mark_alerted(revision, &why).then(|| {
                let about = json!({"revision": revision, "error": why});
                ("revision-refused", about)
            }),
            None => Some(("load-refused", json!({"error": why}))),
        }
    }
}
