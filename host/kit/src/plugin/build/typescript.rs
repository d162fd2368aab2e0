//! Builds TypeScript and JavaScript: esbuild bundles the sources into one file, and componentize-js
//! makes a component from it that contains an engine.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::{Source, tool};

/// The script that is run in the plugin's folder, with the packages installed there.
const SCRIPT: &str = include_str!("componentize.mjs");

/// The code around the plugin's functions, through which the host calls them.
const GUARD: &str = include_str!("guest/guard.js");

/// The packages that the script needs.
const PACKAGES: [&str; 2] = ["@bytecodealliance/componentize-js", "esbuild"];

pub(super) fn compile(source: &Source<'_>) -> anyhow::Result<Vec<u8>> {
    let node = tool::find(source.folder, "node").context(
        "Node is needed, 20 or newer, from https://nodejs.org: there is no `node` on the path",
    )?;
    let folder = std::path::absolute(source.folder)?;
    if let Some(missing) = PACKAGES
        .iter()
        .find(|package| !is_installed(&folder, package))
    {
        bail!(
            "npm's package {missing} is needed: run `npm install` in {}",
            source.folder.display()
        );
    }
    let component = Path::new("build/component.wasm");
    let mut command = Command::new(node);
    command
        .args(["--input-type=module", "--eval", SCRIPT, "--"])
        .args([source.entry, &source.wit_file(), source.world()])
        .arg(&source.manifest.api)
        .arg(component)
        .arg(GUARD)
        .stdin(Stdio::null())
        .current_dir(&folder);
    tool::run_long(&mut command, source)?;
    super::super::read(&folder.join(component))
}

/// Whether Node would find a package: in the folder, or in one above it.
fn is_installed(folder: &Path, package: &str) -> bool {
    folder
        .ancestors()
        .any(|folder| folder.join("node_modules").join(package).is_dir())
}
