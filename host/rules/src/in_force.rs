//! Which plugins are in force, and where each of them came from. A note of this is kept in the
//! state's folder. With it, a start notices when the plugin folder lacks a file, and doesn't use
//! the built-in plugin that the file had overridden.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use presence_config::Config;
use presence_sandbox::{Blueprint, Stage};
use serde::{Deserialize, Serialize};

use crate::private;

/// The source of a plugin that is built into the program.
pub const BUILT_IN: &str = "built-in";

/// The version of the note's format. A note of another version is refused.
const FORMAT: u32 = 1;

/// A plugin that is in force, or was when its name was last in the pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForceEntry {
    /// Its name.
    pub plugin: String,
    /// Its version.
    pub version: String,
    /// The SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// The path of its file, [`BUILT_IN`], or `store` for a plugin of the plugin store.
    pub source: String,
    /// Whether it is in the pipeline now.
    pub in_pipeline: bool,
}

/// The note as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct InForceFile {
    format: u32,
    plugins: Vec<InForceEntry>,
    /// A digest of the enrichers that ran for the users in the state. `None`: there were no
    /// enrichers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enrichers: Option<String>,
}

impl Default for InForceFile {
    fn default() -> Self {
        Self {
            format: FORMAT,
            plugins: Vec::new(),
            enrichers: None,
        }
    }
}

/// The plugins that are, or were, in force, and the file in which they are noted.
#[derive(Debug, Default)]
pub struct InForce {
    /// The path of the note. `None`: there is no folder for state, so nothing is kept.
    path: Option<PathBuf>,
    saved: Mutex<InForceFile>,
}

impl InForce {
    /// Reads what was in force when the node last ran. The note is empty if the node never ran.
    ///
    /// # Errors
    /// If there is a note that can't be read. Without it, nobody could say whether a
    /// plugin is missing.
    pub fn read(config: &Config) -> anyhow::Result<Self> {
        let Some(path) = path(config) else {
            return Ok(Self::default());
        };
        let saved = read(&path).with_context(|| {
            format!(
                "the note of the plugins in force, {0}, can't be read: if all of [plugins] dir is \
                 there, remove it",
                path.display()
            )
        })?;
        Ok(Self {
            path: Some(path),
            saved: saved.into(),
        })
    }

    /// The entry of the plugin that was last in force under this name, unless it was a built-in
    /// one.
    pub fn file_of(&self, name: &str) -> Option<InForceEntry> {
        let saved = self.saved();
        let mut of_name = saved.plugins.iter().filter(|entry| entry.plugin == name);
        of_name.find(|entry| entry.source != BUILT_IN).cloned()
    }

    /// The path of the note, for messages that tell the operator to remove it.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Whether other enrichers than the pipeline's ran for the users in the state.
    pub fn has_other_enrichers(&self, blueprint: &Blueprint) -> bool {
        self.saved().enrichers != blueprint.enrichers_digest()
    }

    /// Notes that a pipeline is in force from now on. Plugins that came from files stay in the
    /// note even when the pipeline stops naming them.
    pub fn record(&self, blueprint: &Blueprint) {
        self.save(blueprint, blueprint.enrichers_digest());
    }

    /// As [`Self::record`], but the enrichers of the node's last run stay in the note. A start that
    /// has other enrichers uses this, and runs them for the users in the state. The new ones are
    /// noted when the pipeline changes or the process stops in order. If it is killed before, the
    /// next start runs them again.
    pub fn record_plugins(&self, blueprint: &Blueprint) {
        let enrichers = self.saved().enrichers.clone();
        self.save(blueprint, enrichers);
    }

    fn saved(&self) -> MutexGuard<'_, InForceFile> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, blueprint: &Blueprint, enrichers: Option<String>) {
        let mut now: Vec<_> = blueprint.stages().map(InForceEntry::of).collect();
        let mut saved = self.saved();
        let entries = &saved.plugins;
        let is_named = |entry: &InForceEntry| now.iter().any(|named| named.plugin == entry.plugin);
        let former = entries
            .iter()
            .filter(|entry| entry.source != BUILT_IN && !is_named(entry));
        let former: Vec<_> = former
            .map(|entry| InForceEntry {
                in_pipeline: false,
                ..entry.clone()
            })
            .collect();
        now.extend(former);
        let now = InForceFile {
            plugins: now,
            enrichers,
            ..InForceFile::default()
        };
        if *saved == now {
            return;
        }
        let before = std::mem::replace(&mut *saved, now);
        // A note of built-in plugins that are no enrichers says no more than a missing note.
        let is_built_in = |entry: &InForceEntry| entry.source == BUILT_IN;
        let says_nothing =
            |note: &InForceFile| note.plugins.iter().all(is_built_in) && note.enrichers.is_none();
        if says_nothing(&before) && says_nothing(&saved) {
            return;
        }
        if let Some(path) = &self.path
            && let Err(error) = write(path, &saved)
        {
            tracing::warn!(
                "which plugins are in force can't be noted, and a start won't notice a missing \
                 one: {error:#}"
            );
        }
    }
}

impl InForceEntry {
    fn of(stage: &Stage) -> Self {
        Self {
            plugin: stage.plugin.name.to_string(),
            version: stage.plugin.manifest.version.to_string(),
            sha256: stage.plugin.sha256.to_string(),
            source: stage.origin.to_string(),
            in_pipeline: true,
        }
    }
}

/// The path of a tenant's note.
fn path(config: &Config) -> Option<PathBuf> {
    // A tenant without a name and a prefix is called `presence`, which no other one can be.
    let tenant = config.tenant.file_name();
    let dir = config.state.dir.as_ref()?;
    Some(dir.join(format!("{tenant}.plugins.json")))
}

fn read(path: &Path) -> anyhow::Result<InForceFile> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(InForceFile::default()),
        // If the folder can't be used, the code that opens the state reports it.
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            return Ok(InForceFile::default());
        }
        Err(error) => return Err(error.into()),
    };
    let note: InForceFile = serde_json::from_slice(&bytes)?;
    anyhow::ensure!(
        note.format == FORMAT,
        "it is of the format {}, and this version reads {FORMAT}",
        note.format
    );
    Ok(note)
}

fn write(path: &Path, note: &InForceFile) -> anyhow::Result<()> {
    let written = private::write(path, &serde_json::to_vec_pretty(&note)?);
    written.with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(plugin: &str, source: &str) -> InForceEntry {
        InForceEntry {
            plugin: plugin.into(),
            version: "1.0.0".into(),
            sha256: "00".into(),
            source: source.into(),
            in_pipeline: true,
        }
    }

    #[test]
    fn what_is_noted_is_read_and_only_files_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("presence.plugins.json");
        assert_eq!(read(&path).unwrap(), InForceFile::default());
        let entries = [entry("contacts", BUILT_IN), entry("rule", "/d/rule.wasm")];
        let note = InForceFile {
            plugins: entries.to_vec(),
            enrichers: Some("1a".into()),
            ..InForceFile::default()
        };
        write(&path, &note).unwrap();
        assert_eq!(read(&path).unwrap(), note);
        let in_force = InForce {
            saved: read(&path).unwrap().into(),
            path: None,
        };
        assert_eq!(in_force.file_of("contacts"), None);
        assert_eq!(in_force.file_of("rule"), Some(entries[1].clone()));
        assert_eq!(in_force.file_of("other"), None);
    }

    #[test]
    fn a_note_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("presence.plugins.json");
        for bytes in ["", "{", r#"{"format":2,"plugins":[]}"#] {
            fs::write(&path, bytes).unwrap();
            assert!(read(&path).is_err(), "{bytes}");
        }
        // A note without enrichers, as older versions of the program wrote it.
        fs::write(&path, r#"{"format":1,"plugins":[]}"#).unwrap();
        assert_eq!(read(&path).unwrap(), InForceFile::default());
        let below = path.join("below a file");
        assert_eq!(read(&below).unwrap(), InForceFile::default());
    }
}
