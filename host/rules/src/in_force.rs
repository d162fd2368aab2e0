//! What is in force: which plugins decide, and where each came from. It is noted in
//! the state's folder, so that a start whose plugin folder lacks a file doesn't bring
//! back the built-in plugin that the file overrode.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use presence_config::Config;
use presence_sandbox::{Blueprint, Stage};
use serde::{Deserialize, Serialize};

use crate::private;

/// Where a plugin that the program holds comes from.
pub const BUILT_IN: &str = "built-in";

/// The note's form. Another one isn't read.
const FORMAT: u32 = 1;

/// A plugin that is in force, or was when its name was last in the pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForceEntry {
    /// Its name.
    pub plugin: String,
    /// Its version.
    pub version: String,
    /// Of its file, in hexadecimal.
    pub sha256: String,
    /// The path of its file, or [`BUILT_IN`].
    pub source: String,
    /// Whether the pipeline has it now.
    pub in_pipeline: bool,
}

/// The note as it is written.
#[derive(Serialize, Deserialize)]
struct InForceFile {
    format: u32,
    plugins: Vec<InForceEntry>,
}

/// What is known of the plugins that are, or were, in force.
#[derive(Debug, Default)]
pub struct InForce {
    /// Where it is noted; none where nothing is kept.
    path: Option<PathBuf>,
    entries: Mutex<Vec<InForceEntry>>,
}

impl InForce {
    /// Reads what was in force when the node last ran: nothing, if it never did.
    ///
    /// # Errors
    /// If there is a note that can't be read. Without it, nobody could say whether a
    /// plugin is missing.
    pub fn read(config: &Config) -> anyhow::Result<Self> {
        let Some(path) = path(config) else {
            return Ok(Self::default());
        };
        let entries = read(&path).with_context(|| {
            format!(
                "the note of the plugins in force, {0}, can't be read: if all of [plugins] dir is \
                 there, remove it",
                path.display()
            )
        })?;
        Ok(Self {
            path: Some(path),
            entries: entries.into(),
        })
    }

    /// The file that a plugin of this name last came from, if it did.
    pub fn file_of(&self, name: &str) -> Option<InForceEntry> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut of_name = entries.iter().filter(|entry| entry.plugin == name);
        of_name.find(|entry| entry.source != BUILT_IN).cloned()
    }

    /// Where it is noted, for who is to remove it.
    pub fn note(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Notes what is in force from now on. What came from a file stays noted when the
    /// pipeline doesn't name it any more.
    pub fn record(&self, blueprint: &Blueprint) {
        let mut now: Vec<_> = blueprint.stages().map(InForceEntry::of).collect();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
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
        if *entries == now {
            return;
        }
        let before = std::mem::replace(&mut *entries, now);
        // Of built-in plugins alone, a note says no more than none.
        let is_built_in = |entry: &InForceEntry| entry.source == BUILT_IN;
        if before.iter().chain(entries.iter()).all(is_built_in) {
            return;
        }
        if let Some(path) = &self.path
            && let Err(error) = write(path, &entries)
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

/// Where a tenant's plugins are noted.
fn path(config: &Config) -> Option<PathBuf> {
    // No tenant's prefix is `presence`.
    let tenant = config.tenant.file_name();
    let dir = config.state.dir.as_ref()?;
    Some(dir.join(format!("{tenant}.plugins.json")))
}

fn read(path: &Path) -> anyhow::Result<Vec<InForceEntry>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        // A folder that can't be used is for the state to tell of.
        Err(error) if error.kind() == ErrorKind::NotADirectory => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let note: InForceFile = serde_json::from_slice(&bytes)?;
    anyhow::ensure!(
        note.format == FORMAT,
        "it is of the format {}, and this version reads {FORMAT}",
        note.format
    );
    Ok(note.plugins)
}

fn write(path: &Path, entries: &[InForceEntry]) -> anyhow::Result<()> {
    let note = InForceFile {
        format: FORMAT,
        plugins: entries.to_vec(),
    };
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
        assert!(read(&path).unwrap().is_empty());
        let entries = [entry("contacts", BUILT_IN), entry("rule", "/d/rule.wasm")];
        write(&path, &entries).unwrap();
        let in_force = InForce {
            entries: read(&path).unwrap().into(),
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
        assert!(read(&path.join("below a file")).unwrap().is_empty());
    }
}
