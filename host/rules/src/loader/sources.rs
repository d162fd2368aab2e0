//! Finds out what a pipeline will be loaded from, without compiling anything. `presence check`
//! uses it, and so does the first line of the log, which has to be there even if loading takes
//! long or fails.

use std::collections::BTreeSet;
use std::path::Path;

use presence_config::regular_file;
use presence_config::{Config, Plugins, Source, Stage};
use presence_sandbox::manifest::Role;
use presence_sandbox::{Manifest, sha256};

use super::trust::Provenance;
use super::{built_in, file, limit};
use crate::in_force::BUILT_IN;
use crate::store_cache::{STORE, StoreCache};

/// What a stage will be loaded from.
#[derive(Debug)]
pub struct ResolvedPlugin {
    /// The plugin's name in the configuration.
    pub name: String,
    /// Its version and its role, if it has a manifest that can be read.
    pub manifest: Option<(String, &'static str)>,
    /// The path of its file, [`BUILT_IN`] or [`STORE`]; an error if there is no plugin.
    pub source: Result<String, String>,
    /// The SHA-256 of its bytes, in hexadecimal; empty if there is no plugin.
    pub sha256: String,
}

/// What each stage will be loaded from, in order.
pub fn resolve_plugins(config: &Config) -> Vec<ResolvedPlugin> {
    let stages = config.pipeline.iter();
    if config.follows_store() {
        let cache = StoreCache::of(config);
        let stored = |stage| resolve_stored(&cache, &config.plugins, stage);
        return stages.map(stored).collect();
    }
    stages
        .map(|stage| resolve(&config.plugins, stage))
        .collect()
}

/// The stages in one line, in order: each plugin with its version, its source and the beginning
/// of its digest, or with why it wasn't found.
pub fn describe_sources(config: &Config) -> String {
    let stages = resolve_plugins(config);
    let stages: Vec<_> = stages.iter().map(ResolvedPlugin::line).collect();
    stages.join(" → ")
}

/// A warning for each file that holds another plugin than its name says.
pub fn misnamed_files(config: &Config) -> Vec<String> {
    let from_folder = |stage: &&Stage| stage.source != Some(Source::BuiltIn);
    let stages = config.pipeline.iter().filter(from_folder);
    let warnings = stages.filter_map(|stage| {
        let (name, path) = (&*stage.plugin, file(&config.plugins.dir, &stage.plugin));
        let bytes = regular_file::read(&path, Some(limit(&config.plugins))).ok()?;
        Provenance::of(&bytes)
            .check_signature(&config.plugins)
            .ok()?;
        misnamed(&path, name, &Manifest::read(name, &bytes).ok()?.name)
    });
    warnings.collect::<BTreeSet<_>>().into_iter().collect()
}

/// A warning if a file holds another plugin than its name says. It is no error, since it may be
/// intended: two versions of a plugin can be in the folder side by side.
pub(super) fn misnamed(path: &Path, name: &str, held: &str) -> Option<String> {
    (name != held).then(|| {
        format!(
            "{} holds the plugin `{held}`, which runs as `{name}`: if that isn't meant, replace \
             the file",
            path.display()
        )
    })
}

fn resolve_stored(cache: &StoreCache, plugins: &Plugins, stage: &Stage) -> ResolvedPlugin {
    let name = &*stage.plugin;
    let Some(digest) = &stage.digest else {
        return ResolvedPlugin::none(name, "no digest".into());
    };
    match cache.plugin(digest, limit(plugins)) {
        Ok(bytes) => ResolvedPlugin::of_trusted(plugins, name, STORE, &bytes),
        Err(error) => ResolvedPlugin::none(name, format!("{error:#}")),
    }
}

fn resolve(plugins: &Plugins, stage: &Stage) -> ResolvedPlugin {
    let name = &*stage.plugin;
    let from_program = || match built_in(name) {
        Some(bytes) => ResolvedPlugin::of(name, BUILT_IN, bytes),
        None => ResolvedPlugin::none(name, "missing".into()),
    };
    if stage.source == Some(Source::BuiltIn) {
        return from_program();
    }
    let path = file(&plugins.dir, name);
    match regular_file::read(&path, Some(limit(plugins))) {
        Ok(bytes) => ResolvedPlugin::of_trusted(plugins, name, &path.display().to_string(), &bytes),
        Err(error) if error.is_missing() && stage.source.is_none() => from_program(),
        Err(error) if error.is_missing() => ResolvedPlugin::none(name, "missing".into()),
        Err(error) => ResolvedPlugin::none(name, format!("unreadable: {error}")),
    }
}

impl ResolvedPlugin {
    /// Whether it may be a redactor. A plugin without a readable manifest may be one.
    pub fn may_redact(&self) -> bool {
        let role = self.manifest.as_ref().map(|(_, role)| *role);
        role.is_none_or(|role| role == Role::Redactor.as_str())
    }

    fn of(name: &str, source: &str, bytes: &[u8]) -> Self {
        // If the manifest can't be read, the load says why.
        let manifest = Manifest::read(name, bytes).ok();
        Self {
            name: name.into(),
            manifest: manifest.map(|it| (it.version.to_string(), it.role.as_str())),
            source: Ok(source.into()),
            sha256: sha256(bytes).to_string(),
        }
    }

    /// As [`Self::of`], but without the manifest if the plugin isn't trusted: its bytes are not
    /// parsed then.
    fn of_trusted(plugins: &Plugins, name: &str, source: &str, bytes: &[u8]) -> Self {
        match Provenance::of(bytes).check_signature(plugins) {
            Ok(()) => Self::of(name, source, bytes),
            Err(_) => Self {
                name: name.into(),
                manifest: None,
                source: Ok(source.into()),
                sha256: sha256(bytes).to_string(),
            },
        }
    }

    fn none(name: &str, why: String) -> Self {
        Self {
            name: name.into(),
            manifest: None,
            source: Err(why),
            sha256: String::new(),
        }
    }

    fn line(&self) -> String {
        let Self { name, sha256, .. } = self;
        let version = self.manifest.as_ref();
        let version = version.map_or_else(String::new, |(version, _)| format!(" {version}"));
        match &self.source {
            Ok(source) => {
                let digest = sha256.get(..12).unwrap_or_default();
                format!("{name}{version} ({source}, sha256:{digest})")
            }
            Err(why) => format!("{name} ({why})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_holds_another_plugin_than_its_name_says_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.plugins.dir = folder.path().to_owned();
        let put = |file: &str, name| {
            std::fs::write(folder.path().join(file), built_in(name).unwrap()).unwrap();
        };
        put("contacts.wasm", "contacts");
        assert!(misnamed_files(&config).is_empty());
        put("groups.wasm", "public");
        let warnings = misnamed_files(&config);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].contains("groups.wasm holds the plugin `public`, which runs as `groups`")
        );
    }
}
