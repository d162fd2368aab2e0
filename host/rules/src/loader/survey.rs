//! What a pipeline will be loaded from, found out without compiling anything: for the first
//! line of the log, which is to say it also where loading takes long or fails.

use std::collections::BTreeSet;
use std::path::Path;

use presence_config::regular;
use presence_config::{Config, Plugins, Source, Stage};
use presence_sandbox::{Manifest, sha256};

use super::{built_in, file, limit};
use crate::in_force::BUILT_IN;

/// The stages in one line, in order: each plugin with its version, where it comes from and
/// the beginning of its digest, or why that can't be said.
pub fn survey(config: &Config) -> String {
    let stages = config.pipeline.iter();
    let stages: Vec<_> = stages.map(|stage| found(&config.plugins, stage)).collect();
    stages.join(" → ")
}

/// Files that hold another plugin than their names say, a warning each.
pub fn misnamed_files(config: &Config) -> Vec<String> {
    let from_folder = |stage: &&Stage| stage.source != Some(Source::BuiltIn);
    let stages = config.pipeline.iter().filter(from_folder);
    let warnings = stages.filter_map(|stage| {
        let (name, path) = (&*stage.plugin, file(&config.plugins.dir, &stage.plugin));
        let bytes = regular::read(&path, Some(limit(&config.plugins))).ok()?;
        misnamed(&path, name, &Manifest::read(name, &bytes).ok()?.name)
    });
    warnings.collect::<BTreeSet<_>>().into_iter().collect()
}

/// A warning where a file holds another plugin than its name says. It may be meant: two
/// versions of a plugin can lie side by side.
pub(super) fn misnamed(path: &Path, name: &str, held: &str) -> Option<String> {
    (name != held).then(|| {
        format!(
            "{} holds the plugin `{held}`, which runs as `{name}`: if that isn't meant, replace \
             the file",
            path.display()
        )
    })
}

fn found(plugins: &Plugins, stage: &Stage) -> String {
    let name = &*stage.plugin;
    let built_in = built_in(name).map(|bytes| described(name, BUILT_IN, bytes));
    let missing = || format!("{name} (missing)");
    if stage.source == Some(Source::BuiltIn) {
        return built_in.unwrap_or_else(missing);
    }
    let path = file(&plugins.dir, name);
    match regular::read(&path, Some(limit(plugins))) {
        Ok(bytes) => described(name, &path.display().to_string(), &bytes),
        Err(error) if error.is_missing() && stage.source.is_none() => {
            built_in.unwrap_or_else(missing)
        }
        Err(error) if error.is_missing() => missing(),
        Err(error) => format!("{name} (unreadable: {error})"),
    }
}

fn described(name: &str, source: &str, bytes: &[u8]) -> String {
    let version = match Manifest::read(name, bytes) {
        Ok(manifest) => format!(" {}", manifest.version),
        // Loading it says why.
        Err(_) => String::new(),
    };
    let digest = sha256(bytes);
    let digest = digest.get(..12).unwrap_or_default();
    format!("{name}{version} ({source}, sha256:{digest})")
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
