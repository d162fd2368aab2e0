//! `presence plugin build`: from a plugin's folder to one file.

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

/// What every import that a plugin may have begins with.
const OFFERED: &str = "presence:plugin/";

/// The interface of files, output, clock and environment, as compilers know it.
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

/// Builds, and says what came of it.
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
        // Of some interfaces there are only types.
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

/// What an operator has to grant.
pub(super) fn grants(manifest: &Manifest) -> Vec<&str> {
    let mut grants: Vec<_> = manifest.capabilities.iter().map(String::as_str).collect();
    if manifest.effect == Effect::Widen {
        grants.push("widen");
    }
    grants
}

/// A plugin's folder, and what its manifest says of it.
struct Source<'a> {
    folder: &'a Path,
    /// For what comes out on the way: `build` within it.
    scratch: PathBuf,
    /// The file that tells the language, which is where the plugin begins.
    entry: &'static str,
    manifest: Manifest,
}

impl Source<'_> {
    /// Where the version of the API lies that the plugin is built against.
    fn wit_file(&self) -> String {
        wit_file(&self.manifest.api)
    }

    /// The WIT world that the plugin is of.
    fn world(&self) -> &'static str {
        match self.manifest.role {
            Role::Enricher if self.manifest.stateful => "stateful-enricher",
            role => role.as_str(),
        }
    }
}

/// What a folder was built to.
pub(super) struct Built {
    pub(super) file: PathBuf,
    /// Whether the file is another one than before.
    is_new: bool,
}

/// Builds a plugin's folder. A plugin's file that is the same already is left alone.
///
/// # Errors
/// When something is missing, doesn't compile, or comes out as no plugin.
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

/// A folder's manifest, and its JSON as it goes into the plugin.
fn manifest(folder: &Path) -> anyhow::Result<(Manifest, Vec<u8>)> {
    let path = folder.join(super::update::MANIFEST);
    let wrong = || format!("{} is no manifest", path.display());
    let text = super::read(&path)?;
    let value: Value = serde_json::from_slice(&text).with_context(wrong)?;
    // From the text, so that the error says in which line.
    let manifest: Manifest = serde_json::from_slice(&text).with_context(wrong)?;
    if let Err(fix) = config::name(&manifest.name) {
        bail!("{}: the name is `{}`: {fix}", path.display(), manifest.name);
    }
    Ok((manifest, serde_json::to_vec(&value)?))
}

/// Puts the API where the compilers look for it, unless it lies there.
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

/// Makes a plugin of a core module, unless that asks for WASI.
fn without_wasi(module: &[u8], json: &[u8]) -> anyhow::Result<Vec<u8>> {
    let wanted = module_imports(module, WASI)?;
    if !wanted.is_empty() {
        let wanted: Vec<_> = wanted.iter().map(|function| denied(function)).collect();
        bail!("the plugin {}", wanted.join(", "));
    }
    assemble(module, json)
}

/// Whether a host would take it, as far as can be told without running it.
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
