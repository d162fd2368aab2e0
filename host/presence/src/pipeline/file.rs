//! A pipeline that is read from a file, with a digest for each of its plugins.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use presence_config::digest::Digest;
use presence_config::revision::Entry;
use presence_config::{Source, Stage};
use presence_kit::ConfigArg;
use presence_node::store::{PluginInfo, StoredPlugin};
use presence_rules::loader::built_in;

use super::change::StoreSession;

/// The pipeline of a file, with a digest for each plugin.
pub(crate) struct PinnedPipeline {
    pub(crate) chain: Vec<Entry>,
    /// The built-in plugins in the chain, which may have to be uploaded.
    built_in: BTreeMap<Digest, (&'static [u8], PluginInfo)>,
}

impl PinnedPipeline {
    /// Reads a file. Of several tenants in it, this is the pipeline of the one that `arg` names.
    pub(crate) async fn read(
        path: &Path,
        arg: &ConfigArg,
        session: &StoreSession,
    ) -> anyhow::Result<Self> {
        let config = arg.load_file(path)?;
        ensure!(
            config.pipeline.iter().any(|it| it.place.0.is_some()),
            "{} has no [[pipeline]] section",
            path.display()
        );
        let stored = session.operator.store().plugins().await;
        let stored = stored.map_err(|error| session.operator.with_broker_error(error))?;
        let mut pinned = Self {
            chain: Vec::new(),
            built_in: BTreeMap::new(),
        };
        for stage in &config.pipeline {
            let digest = pinned.digest(stage, session, &stored)?;
            pinned.chain.push(Entry::of(stage, digest));
        }
        Ok(pinned)
    }

    /// Uploads the chain's built-in plugins that the store lacks.
    pub(crate) async fn upload(&self, session: &StoreSession) -> anyhow::Result<()> {
        let store = session.operator.store();
        let uploaded = async {
            store.make(1).await?;
            for (digest, (bytes, about)) in &self.built_in {
                store.push(digest, bytes, about).await?;
            }
            anyhow::Ok(())
        };
        session.operator.attempt("$O.", uploaded).await
    }

    fn digest(
        &mut self,
        stage: &Stage,
        session: &StoreSession,
        stored: &[StoredPlugin],
    ) -> anyhow::Result<Digest> {
        let name = &*stage.plugin;
        let own = match built_in(name) {
            Some(bytes) => {
                let (digest, about) = PluginInfo::of(bytes, name, "built-in")?;
                Some((digest, bytes, about))
            }
            None => None,
        };
        let is_own = |digest: &Digest| own.as_ref().is_some_and(|(it, ..)| it == digest);
        let runs = session.newest();
        let runs = runs.and_then(|it| it.chain.iter().find(|entry| entry.plugin == name));
        let digest = match (&stage.digest, stage.source) {
            (Some(digest), _) => digest.clone(),
            (None, Some(Source::Folder)) => bail!(
                "the entry of `{name}` says `source = \"folder\"`, and the store has no folder: \
                 write a `digest`, or leave both out"
            ),
            (None, Some(Source::BuiltIn)) => {
                let own = own.as_ref().map(|(digest, ..)| digest.clone());
                own.with_context(|| format!("there is no built-in plugin `{name}`"))?
            }
            (None, None) => {
                let runs = runs.map(|entry| entry.digest.clone());
                let uploaded = || stored.iter().find(|it| it.about.name == name);
                let uploaded = || Some(uploaded()?.digest.clone());
                let built_in = || own.as_ref().map(|(digest, ..)| digest.clone());
                runs.or_else(uploaded).or_else(built_in).with_context(|| {
                    format!(
                        "there is no plugin `{name}` in the store, and none is built in: upload \
                         it, with `presence plugins push {name}.wasm`"
                    )
                })?
            }
        };
        if is_own(&digest)
            && let Some((digest, bytes, about)) = own
        {
            self.built_in.insert(digest, (bytes, about));
        }
        Ok(digest)
    }
}
