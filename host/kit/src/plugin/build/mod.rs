//! `presence plugin build`: builds a plugin's folder into one file.

mod c;
mod python;
mod rust;
mod tool;
mod typescript;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use presence_component::{assemble, imports, module_imports, package};
use presence_config as config;
use presence_config::escape::{line, print};
use presence_sandbox::Manifest;
use presence_sandbox::denied;
use presence_sandbox::manifest::{API, Effect, Role};
use serde_json::Value;

use super::embedded::{wit, wit_file};
use super::language::Language;
use crate::figures;

pub(super) use c::write_bindings;

/// The prefix of every import that a plugin may have.
const OFFERED: &str = "presence:plugin/";

/// The module name under which compilers import WASI: files, output, clock and environment.
const WASI: &str = "wasi_snapshot_preview1";

/// The arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The plugin's folder.
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Where to write the plugin; NAME.wasm in its folder by default.
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// Builds a plugin, and prints what it needs.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let Built { file, is_new } = build(&args.folder, args.output.as_deref())?;
    let plugin = super::read(&file)?;
    let manifest = Manifest::read(&file.to_string_lossy(), &plugin)?;
    let built = format_args!(
        "{}: {}, {} {}, {}, presence:plugin {}{}",
        file.display(),
        figures::bytes(plugin.len() as u64),
        manifest.name,
        manifest.version,
        manifest.role.as_str(),
        manifest.api,
        if is_new {
            ""
        } else {
            ": unchanged, not rebuilt"
        }
    )
    .to_string();
    print(format_args!("{}\n", line(built)))?;
    for import in imports(&plugin)? {
        // Interfaces that only define types aren't listed.
        if !import.functions.is_empty() {
            let functions = import.functions.join(", ");
            let imported = line(format_args!("{}: {functions}", import.interface));
            print(format_args!("  imports {imported}\n"))?;
        }
    }
    match grants(&manifest).as_slice() {
        [] => print("  needs no grants\n")?,
        grants => print(format_args!("  needs grants = {grants:?}\n"))?,
    }
    Ok(())
}

/// The grants that an operator has to give the plugin.
pub(super) fn grants(manifest: &Manifest) -> Vec<&str> {
    let mut grants: Vec<_> = manifest.capabilities.iter().map(String::as_str).collect();
    if manifest.effect == Effect::Widen {
        grants.push("widen");
    }
    grants
}

/// A plugin's folder and manifest.
struct Source<'a> {
    folder: &'a Path,
    /// The folder for intermediate files: `build` in the plugin's folder.
    scratch: PathBuf,
    /// The file by which the language was recognized. It is the plugin's main file.
    entry: &'static str,
    manifest: Manifest,
}

impl Source<'_> {
    /// The path of the version of the API that the plugin is built against.
    fn wit_file(&self) -> String {
        wit_file(&self.manifest.api)
    }

    /// The name of the WIT world that the plugin implements.
    fn world(&self) -> &'static str {
        match self.manifest.role {
            Role::Enricher if self.manifest.stateful => "stateful-enricher",
            role => role.as_str(),
        }
    }
}

/// The result of a build.
pub(super) struct Built {
    pub(super) file: PathBuf,
    /// Whether the file differs from the one before.
    is_new: bool,
}

/// Builds a plugin's folder. If the plugin's file is already the same, it isn't written.
///
/// # Errors
/// When something is missing, or doesn't compile, or the result is no plugin.
pub(super) fn build(folder: &Path, output: Option<&Path>) -> anyhow::Result<Built> {
    let (language, entry) = Language::of(folder)?;
    let (manifest, json) = manifest(folder)?;
    let output = match output {
        Some(output) => output.to_owned(),
        None => folder.join(format!("{}.wasm", manifest.name)),
    };
    let source = Source {
        folder,
        scratch: folder.join("build"),
        entry,
        manifest,
    };
    provide_wit(&source)?;
    fs::create_dir_all(&source.scratch)
        .with_context(|| format!("can't make {}", source.scratch.display()))?;
    let plugin = match language {
        Language::Rust => without_wasi(&rust::compile(&source)?, &json),
        Language::C => without_wasi(&c::compile(&source)?, &json),
        Language::Typescript => package(&typescript::compile(&source)?, &json),
        Language::Python => package(&python::compile(&source)?, &json),
    };
    let plugin = plugin?;
    check(&source, &plugin)?;
    let is_new = fs::read(&output).ok().as_ref() != Some(&plugin);
    if is_new {
        super::write(&output, &plugin)?;
    }
    Ok(Built {
        file: output,
        is_new,
    })
}

/// A folder's manifest, parsed, and as the JSON that goes into the plugin.
fn manifest(folder: &Path) -> anyhow::Result<(Manifest, Vec<u8>)> {
    let path = folder.join(super::update::MANIFEST);
    let wrong = || format!("{} is no manifest", path.display());
    let text = super::read(&path)?;
    let value: Value = serde_json::from_slice(&text).with_context(wrong)?;
    // Parsed from the text, so that an error names the line.
    let manifest: Manifest = serde_json::from_slice(&text).with_context(wrong)?;
    if let Err(fix) = config::name(&manifest.name) {
        bail!("{}: the name is `{}`: {fix}", path.display(), manifest.name);
    }
    Ok((manifest, serde_json::to_vec(&value)?))
}

/// Writes the API's WIT file where compilers look for it, unless it is there.
fn provide_wit(source: &Source<'_>) -> anyhow::Result<()> {
    let (folder, version) = (source.folder, &*source.manifest.api);
    let path = folder.join(source.wit_file());
    if path.is_file() {
        return Ok(());
    }
    let wit = wit(version).with_context(|| {
        format!("its manifest asks for presence:plugin {version}: write \"api\": \"{API}\"")
    })?;
    let place = || format!("can't write {}", path.display());
    fs::create_dir_all(path.parent().unwrap_or(folder)).with_context(place)?;
    fs::write(&path, wit).with_context(place)
}

/// Makes a plugin from a core module, unless the module imports WASI.
fn without_wasi(module: &[u8], json: &[u8]) -> anyhow::Result<Vec<u8>> {
    let wanted = module_imports(module, WASI)?;
    if !wanted.is_empty() {
        let wanted: Vec<_> = wanted.iter().map(|function| denied(function)).collect();
        bail!("the plugin {}", wanted.join(", "));
    }
    assemble(module, json)
}

/// Checks that a host would accept the plugin, as far as that can be told without running it.
fn check(source: &Source<'_>, plugin: &[u8]) -> anyhow::Result<()> {
    Manifest::read(&source.manifest.name, plugin)?;
    let takes_wasi = source
        .manifest
        .capabilities
        .iter()
        .any(|name| name == "wasi");
    let imports = imports(plugin)?;
    let foreign: Vec<_> = imports
        .iter()
        .map(|import| import.interface.as_str())
        .filter(|interface| !interface.starts_with(OFFERED))
        .filter(|interface| !(takes_wasi && interface.starts_with("wasi:")))
        .collect();
    if !foreign.is_empty() {
        bail!(
            "the plugin imports {}, and plugins are given nothing but presence:plugin: \
             do without, or ask for \"wasi\" under capabilities, whose calls all fail",
            foreign.join(", ")
        );
    }
    Ok(())
}
