//! What a pipeline will be loaded from, found out without compiling anything: for the first
//! line of the log, which is to say it also where loading takes long or fails.

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
