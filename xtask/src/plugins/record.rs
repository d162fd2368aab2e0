//! `plugins/dist/BUILD.json`: what the components were built from, and by what.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use walkdir::{DirEntry, WalkDir};

use super::build::Build;

/// The record's name within `dist`.
pub(super) const FILE: &str = "BUILD.json";

/// The record.
#[derive(Deserialize, Serialize)]
pub(super) struct Record {
    /// `rustc --version`.
    pub(super) rustc: String,
    /// `cargo --version`.
    pub(super) cargo: String,
    /// The hash of all source files.
    pub(super) sources_sha256: String,
    /// Each component's hash, by its file's path within `dist`.
    pub(super) files_sha256: BTreeMap<String, String>,
}

impl Record {
    pub(super) fn of(build: &Build) -> Self {
        let hashes = build
            .components
            .iter()
            .map(|(name, bytes)| (name.clone(), sha256(bytes)));
        Self {
            rustc: build.rustc.clone(),
            cargo: build.cargo.clone(),
            sources_sha256: build.sources.clone(),
            files_sha256: hashes.collect(),
        }
    }

    /// # Errors
    /// When there is no record, or it can't be read.
    pub(super) fn read(dist: &Path) -> Result<Self> {
        let path = dist.join(FILE);
        let json = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&json).with_context(|| format!("reading {}", path.display()))
    }

    /// # Errors
    /// None that can happen.
    pub(super) fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

/// The SHA-256 of some bytes, in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// The hash of the plugins' sources and the WIT files: of each file's path and
/// content, in the order of the paths.
///
/// # Errors
/// When a file can't be read.
pub(super) fn hash_sources(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for folder in ["plugins", "wit"] {
        list(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let content = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy();
        hash.update(format!("{name}\0{}\0", content.len()));
        hash.update(content);
    }
    Ok(format!("{:x}", hash.finalize()))
}

/// All files below a folder, without a build's output and the templates of new plugins.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let is_listed = |entry: &DirEntry| {
        let made = ["dist", "target", "templates"];
        !(entry.file_type().is_dir() && made.iter().any(|made| entry.file_name() == *made))
    };
    for entry in WalkDir::new(folder).into_iter().filter_entry(is_listed) {
        let entry = entry?;
        if !entry.file_type().is_dir() {
            files.push(entry.into_path());
        }
    }
    Ok(())
}
