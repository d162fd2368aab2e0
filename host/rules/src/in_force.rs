//! What is in force: which plugins decide, and where each came from. It is noted in
//! the state's folder, so that a start whose plugin folder lacks a file doesn't bring
//! back the built-in plugin that the file overrode.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct InForceFile {
    format: u32,
    plugins: Vec<InForceEntry>,
    /// What stands for the enrichers by which users were announced who are in the state; none if
    /// there were none.
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

/// What is known of the plugins that are, or were, in force.
#[derive(Debug, Default)]
pub struct InForce {
    /// Where it is noted; none where nothing is kept.
    path: Option<PathBuf>,
    noted: Mutex<InForceFile>,
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
        let noted = read(&path).with_context(|| {
            format!(
                "the note of the plugins in force, {0}, can't be read: if all of [plugins] dir is \
                 there, remove it",
                path.display()
            )
        })?;
        Ok(Self {
            path: Some(path),
            noted: noted.into(),
        })
    }

    /// The file that a plugin of this name last came from, if it did.
    pub fn file_of(&self, name: &str) -> Option<InForceEntry> {
        let noted = self.noted();
        let mut of_name = noted.plugins.iter().filter(|entry| entry.plugin == name);
        of_name.find(|entry| entry.source != BUILT_IN).cloned()
    }

    /// Where it is noted, for who is to remove it.
    pub fn note(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Whether users in the state were announced by other enrichers than those of a pipeline.
    pub fn has_other_enrichers(&self, blueprint: &Blueprint) -> bool {
        self.noted().enrichers != blueprint.enrichers_digest()
    }

    /// Notes what is in force from now on. What came from a file stays noted when the
    /// pipeline doesn't name it any more.
    pub fn record(&self, blueprint: &Blueprint) {
        self.note_both(blueprint, blueprint.enrichers_digest());
    }

    /// As [`Self::record`] at a start, but for the enrichers: those of the node's last run are
    /// noted until this one ends, or its pipeline changes. A process that is killed before then runs
    /// them again at its next start.
    pub fn record_plugins(&self, blueprint: &Blueprint) {
        let enrichers = self.noted().enrichers.clone();
        self.note_both(blueprint, enrichers);
    }

    fn noted(&self) -> MutexGuard<'_, InForceFile> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_both(&self, blueprint: &Blueprint, enrichers: Option<String>) {
        let mut now: Vec<_> = blueprint.stages().map(InForceEntry::of).collect();
        let mut noted = self.noted();
        let entries = &noted.plugins;
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
        if *noted == now {
            return;
        }
        let before = std::mem::replace(&mut *noted, now);
        // Of built-in plugins alone that are no enrichers, a note says no more than none.
        let is_built_in = |entry: &InForceEntry| entry.source == BUILT_IN;
        let says_nothing =
            |note: &InForceFile| note.plugins.iter().all(is_built_in) && note.enrichers.is_none();
        if says_nothing(&before) && says_nothing(&noted) {
            return;
        }
        if let Some(path) = &self.path
            && let Err(error) = write(path, &noted)
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

fn read(path: &Path) -> anyhow::Result<InForceFile> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(InForceFile::default()),
        // A folder that can't be used is for the state to tell of.
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
            noted: read(&path).unwrap().into(),
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
        // One of a version that noted no enrichers.
        fs::write(&path, r#"{"format":1,"plugins":[]}"#).unwrap();
        assert_eq!(read(&path).unwrap(), InForceFile::default());
        let below = path.join("below a file");
        assert_eq!(read(&below).unwrap(), InForceFile::default());
    }
}
