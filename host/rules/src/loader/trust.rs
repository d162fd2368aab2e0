//! Whether a plugin may run. That is asked at each load anew, of every plugin that is to be in a
//! pipeline, wherever it comes from; and of those that run, once a load is refused.

use anyhow::Context as _;
use presence_config::{Config, Plugins};
use presence_sandbox::{Blueprint, Capabilities, Plugin, Stage};

use super::built_in::is_built_in;
use super::{Found, GIVEN, Loader, grants};
use crate::signature::{SignatureError, Signatures};

/// What a plugin's bytes say for good of who vouches for it.
pub(super) struct Proof {
    is_built_in: bool,
    signed: Result<Signatures, SignatureError>,
}

impl Proof {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self {
            is_built_in: is_built_in(bytes),
            signed: Signatures::read(bytes),
        }
    }

    /// That the plugin is signed, if it has to be. One that is part of the program needn't be,
    /// wherever it comes from.
    pub(super) fn holds(&self, plugins: &Plugins) -> Result<(), SignatureError> {
        if !plugins.require_signature || self.is_built_in {
            return Ok(());
        }
        let signed = self.signed.as_ref().map_err(Clone::clone)?;
        signed.by(&plugins.trusted_keys).map(drop)
    }
}

impl Loader {
    /// That a plugin is trusted by a configuration.
    fn trusted(&self, plugins: &Plugins, plugin: &Plugin) -> anyhow::Result<()> {
        let proof = self.compiler.proof(&plugin.sha256);
        let proof = proof.context("it is not known who signed it: put its file back")?;
        Ok(proof.holds(plugins)?)
    }

    /// A plugin, if it is trusted. What runs was trusted when it was loaded, and may be no more.
    pub(super) fn vouched_for(&self, plugins: &Plugins, found: Found) -> anyhow::Result<Found> {
        let (plugin, origin) = &found;
        if **origin != *GIVEN {
            let trusted = self.trusted(plugins, plugin);
            trusted.with_context(|| format!("`{}` from {origin} can't be used", plugin.name))?;
        }
        Ok(found)
    }

    /// A blueprint as a configuration has it now: its stages that may not run any more are in
    /// quarantine. None where it is so already.
    pub fn judged(&self, config: &Config, blueprint: &Blueprint) -> Option<Blueprint> {
        blueprint.judged(&|stage| self.why_not(config, stage))
    }

    /// Whether all of a blueprint may run by a configuration, and does.
    pub fn permits(&self, config: &Config, blueprint: &Blueprint) -> bool {
        let mut stages = blueprint.stages();
        stages.all(|stage| stage.withdrawn().is_none()) && self.judged(config, blueprint).is_none()
    }

    /// Why a stage may not run, if so. It is granted what its entry says, where there is one for
    /// this very plugin, or else what it was granted.
    fn why_not(&self, config: &Config, stage: &Stage) -> Option<String> {
        // Its author tries it out, offline.
        if *stage.origin == *GIVEN {
            return None;
        }
        let plugin = &stage.plugin;
        if let Err(error) = self.trusted(&config.plugins, plugin) {
            return Some(format!("{error:#}"));
        }
        let entries = config.pipeline.iter().filter(|entry| {
            let digest = entry.digest.as_ref();
            entry.plugin == *plugin.name && digest.is_none_or(|it| *it.hex() == *plugin.sha256)
        });
        let granted = entries.map(|entry| grants::of_stage(&entry.grants));
        let granted = granted.reduce(Capabilities::and);
        stage.why_not_granted(granted, grants::ceiling(config.plugins.grants.as_deref()))
    }
}
