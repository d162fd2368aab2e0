//! Whether a plugin may run. Each load checks this for every plugin of the new pipeline, wherever
//! it comes from. After a load, the plugins that run are checked again, even if it was refused.

use anyhow::Context as _;
use presence_config::{Config, Plugins};
use presence_sandbox::{Blueprint, Capabilities, Plugin, Stage};

use super::built_in::is_built_in;
use super::{Found, Loader, ORIGIN_COMMAND_LINE, grants};
use crate::signature::{SignatureError, Signatures};

/// Who vouches for a plugin: whether it is built in, and its signatures. This depends on its bytes
/// alone, and not on the configuration.
pub(super) struct Provenance {
    is_built_in: bool,
    signed: Result<Signatures, SignatureError>,
}

impl Provenance {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self {
            is_built_in: is_built_in(bytes),
            signed: Signatures::read(bytes),
        }
    }

    /// Checks that the plugin is signed with a trusted key, if the configuration requires that. The
    /// bytes of a built-in plugin need no signature, wherever they come from.
    pub(super) fn check_signature(&self, plugins: &Plugins) -> Result<(), SignatureError> {
        if !plugins.require_signature || self.is_built_in {
            return Ok(());
        }
        let signed = self.signed.as_ref().map_err(Clone::clone)?;
        signed.verify(&plugins.trusted_keys).map(drop)
    }
}

impl Loader {
    /// Checks that a configuration trusts a plugin.
    fn trusted(&self, plugins: &Plugins, plugin: &Plugin) -> anyhow::Result<()> {
        let provenance = self.compiler.provenance(&plugin.sha256);
        let provenance = provenance.context("it is not known who signed it: put its file back")?;
        Ok(provenance.check_signature(plugins)?)
    }

    /// Checks that a plugin is trusted. This includes a plugin that runs already: it was trusted
    /// when it was loaded, but may not be any more.
    pub(super) fn check_trusted(&self, plugins: &Plugins, found: Found) -> anyhow::Result<Found> {
        let (plugin, origin) = &found;
        if **origin != *ORIGIN_COMMAND_LINE {
            let trusted = self.trusted(plugins, plugin);
            trusted.with_context(|| format!("`{}` from {origin} can't be used", plugin.name))?;
        }
        Ok(found)
    }

    /// The blueprint, with those stages in quarantine that may not run by this configuration.
    /// `None`: nothing about the blueprint changes.
    pub fn reevaluated(&self, config: &Config, blueprint: &Blueprint) -> Option<Blueprint> {
        blueprint.with_withdrawals(&|stage| self.why_not(config, stage))
    }

    /// Whether a configuration lets all stages of a blueprint run, and none of them is withdrawn.
    pub fn permits(&self, config: &Config, blueprint: &Blueprint) -> bool {
        let mut stages = blueprint.stages();
        stages.all(|stage| stage.withdrawn().is_none())
            && self.reevaluated(config, blueprint).is_none()
    }

    /// Why a stage may not run. `None`: it may. The grants are those of the configuration's entries
    /// for this very plugin, or, if there is no such entry, those that the stage was loaded with.
    fn why_not(&self, config: &Config, stage: &Stage) -> Option<String> {
        // The plugin's author tries it out offline.
        if *stage.origin == *ORIGIN_COMMAND_LINE {
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
        let granted = granted.reduce(Capabilities::union);
        stage.why_not_granted(granted, grants::ceiling(config.plugins.grants.as_deref()))
    }
}
