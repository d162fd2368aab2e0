//! Compares `plugins/dist` with a build: byte for byte if the same toolchain made both. Otherwise
//! it compares manifests and interfaces.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use presence_component as component;

use super::build::Build;
use super::record::{FILE, Record, sha256};

/// Compares `dist` with a build.
///
/// # Errors
/// When they differ: the error has all differences.
pub(super) fn check(dist: &Path, build: &Build) -> Result<()> {
    let record = Record::read(dist)?;
    let same_toolchain = record.rustc == build.rustc && record.cargo == build.cargo;
    let mut faults = Vec::new();
    if record.sources_sha256 != build.sources {
        faults.push("the sources have changed since it was built".to_owned());
    }
    let mut names: BTreeSet<String> = record.files_sha256.keys().cloned().collect();
    names.extend(build.components.keys().cloned());
    names.extend(files(dist)?);
    for name in names {
        if let Err(fault) = compare(dist, &name, &record, build, same_toolchain) {
            faults.push(format!("{name}: {fault:#}"));
        }
    }
    if !faults.is_empty() {
        bail!(
            "plugins/dist is not what the sources build to; `cargo xtask plugins` rebuilds it:\n  {}",
            faults.join("\n  ")
        );
    }
    let count = build.components.len();
    if same_toolchain {
        println!(
            "plugins/dist: all {count} components are byte for byte what the sources build to"
        );
    } else {
        println!(
            "plugins/dist: all {count} components have the manifests and interfaces that the sources \
             build to, and the sources are those they were built from. Their bytes were not compared: \
             they were built by {} with {}, and this is {} with {}",
            record.rustc, record.cargo, build.rustc, build.cargo
        );
    }
    Ok(())
}

fn compare(
    dist: &Path,
    name: &str,
    record: &Record,
    build: &Build,
    same_toolchain: bool,
) -> Result<()> {
    let built = build
        .components
        .get(name)
        .context("there is no source for it")?;
    let committed = fs::read(dist.join(name)).context("it is missing")?;
    if record.files_sha256.get(name) != Some(&sha256(&committed)) {
        bail!("it isn't the file that {FILE} records");
    }
    if same_toolchain {
        if committed != *built {
            bail!("its bytes differ");
        }
        return Ok(());
    }
    if component::manifest(&committed)? != component::manifest(built)? {
        bail!("its manifest differs");
    }
    if component::wit(&committed)? != component::wit(built)? {
        bail!("its imports or exports differ");
    }
    Ok(())
}

/// The components in `dist`, as paths within it.
fn files(dist: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for (folder, prefix) in [(dist.to_owned(), ""), (dist.join("fixtures"), "fixtures/")] {
        if !folder.is_dir() {
            continue;
        }
        for entry in
            fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?
        {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != FILE && name != "fixtures" {
                files.push(format!("{prefix}{name}"));
            }
        }
    }
    Ok(files)
}
