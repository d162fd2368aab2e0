//! Compiles the plugins' workspace and makes a component of each core module.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use presence_component as component;
use presence_tests::toolchain::{TARGET, Toolchain, run};
use serde_json::Value;

use super::record;

/// A build's components, and its toolchain.
pub(super) struct Build {
    /// `rustc --version`.
    pub(super) rustc: String,
    /// `cargo --version`.
    pub(super) cargo: String,
    /// The hash of all source files.
    pub(super) sources: String,
    /// The components, by their file's path within `dist`.
    pub(super) components: BTreeMap<String, Vec<u8>>,
}

/// Builds every plugin and fixture. `locked` forbids a change of `Cargo.lock`.
///
/// # Errors
/// When there is no toolchain, or something doesn't compile or has no manifest.
pub(super) fn build(root: &Path, locked: bool) -> Result<Build> {
    let target_dir = target_dir(root)?;
    let toolchain = Toolchain::obtain(&target_dir)?;
    let plugins = root.join("plugins");
    let output = target_dir.join("plugins");
    compile(&toolchain, root, &output, locked)?;

    let release = output.join(TARGET).join("release");
    let mut components = BTreeMap::new();
    for (folder, modules, prefix) in [
        (plugins.clone(), release.clone(), ""),
        (
            plugins.join("fixtures"),
            release.join("examples"),
            "fixtures/",
        ),
    ] {
        for name in names(&folder)? {
            let component = assemble(&folder.join(&name), &modules, &name)
                .with_context(|| format!("making a component of plugins/{prefix}{name}"))?;
            components.insert(format!("{prefix}{name}.wasm"), component);
        }
    }
    Ok(Build {
        rustc: toolchain.rustc_version()?,
        cargo: toolchain.cargo_version()?,
        sources: record::hash_sources(root)?,
        components,
    })
}

/// Where Cargo puts what this workspace builds.
fn target_dir(root: &Path) -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let metadata = run(Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version=1"])
        .current_dir(root))?;
    let metadata: Value = serde_json::from_str(&metadata).context("reading cargo metadata")?;
    let target_dir = metadata.get("target_directory").and_then(Value::as_str);
    Ok(target_dir
        .context("cargo metadata names no target directory")?
        .into())
}

fn compile(toolchain: &Toolchain, root: &Path, output: &Path, locked: bool) -> Result<()> {
    let mut cargo = toolchain.cargo();
    cargo
        .args([
            "build",
            "--release",
            "--quiet",
            "--workspace",
            "--lib",
            "--examples",
        ])
        .args(["--target", TARGET, "--manifest-path"])
        .arg(root.join("plugins/Cargo.toml"))
        .args(locked.then_some("--locked"))
        .env("CARGO_TARGET_DIR", output)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            machine_independent(toolchain, root)?,
        );
    let status = cargo.status().context("running cargo")?;
    if !status.success() {
        bail!("building the plugins failed: cargo: {status}");
    }
    Ok(())
}

/// Flags that keep this machine's paths out of panic messages.
fn machine_independent(toolchain: &Toolchain, root: &Path) -> Result<String> {
    let cargo_home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => env::home_dir()
            .context("no home folder: set CARGO_HOME")?
            .join(".cargo"),
    };
    let flags = [
        (root, "/presence"),
        (&cargo_home, "/cargo"),
        (&toolchain.sysroot()?, "/rust"),
    ]
    .map(|(path, name)| format!("--remap-path-prefix={}={name}", path.display()));
    // How Cargo wants several flags in one variable.
    Ok(flags.join("\x1f"))
}

/// The folders that hold a plugin, in order: those with a manifest.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.path().join(MANIFEST).is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// One component: the compiled module with its manifest.
fn assemble(folder: &Path, modules: &Path, name: &str) -> Result<Vec<u8>> {
    let json = fs::read(folder.join(MANIFEST)).context("reading plugin.json")?;
    let manifest: Value = serde_json::from_slice(&json).context("reading plugin.json")?;
    if manifest.get("name").and_then(Value::as_str) != Some(name) {
        bail!("plugin.json must say \"name\": \"{name}\", as its folder does");
    }
    let module = modules.join(format!("{}.wasm", name.replace('-', "_")));
    let module = fs::read(&module)
        .with_context(|| format!("no module was built at {}", module.display()))?;
    component::assemble(&module, &serde_json::to_vec(&manifest)?)
}

const MANIFEST: &str = "plugin.json";
