//! `presence plugin inspect`: prints what a plugin is, without running it.

use std::path::PathBuf;

use presence_component::{Import, imports, wit};
use presence_config::escape::{line, print, print_json};
use presence_sandbox::manifest::{Effect, OnFailure, Role};
use presence_sandbox::{Manifest, sha256};
use serde_json::{Value, json};

use super::build;
use crate::figures;
use crate::text;

/// The interface of the directory. The functions imported from it show what a plugin reads.
const DIRECTORY: &str = "presence:plugin/directory";

/// The arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The plugin: a .wasm file, or a folder, which is built first.
    file: PathBuf,
    /// Prints its world instead: all its imports and exports, as WIT.
    #[arg(long, conflicts_with = "json")]
    wit: bool,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

/// Prints the facts about a plugin.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let path = super::file(&args.file)?;
    let plugin = super::read(&path)?;
    let manifest = Manifest::read(&path.to_string_lossy(), &plugin)?;
    if args.wit {
        print(wit(&plugin)?)?;
        return Ok(());
    }
    let imports = imports(&plugin)?;
    if args.json {
        print_json(object(&manifest, &imports, &plugin))?;
    } else {
        print(page(&manifest, &imports, &plugin))?;
    }
    Ok(())
}

fn object(manifest: &Manifest, imports: &[Import], plugin: &[u8]) -> Value {
    let limits = manifest.limits;
    let imported = imports
        .iter()
        .map(|import| json!({"interface": import.interface, "functions": import.functions}));
    json!({
        "name": manifest.name,
        "version": manifest.version.to_string(),
        "role": manifest.role.as_str(),
        "api": manifest.api,
        "effect": effect(manifest),
        "capabilities": manifest.capabilities,
        "directory": needs(imports),
        "imports": imported.collect::<Vec<_>>(),
        "limits": {
            "fuel": limits.fuel,
            "memoryBytes": limits.memory_bytes,
            "deadlineMs": limits.deadline_ms,
        },
        "onFailure": on_failure(manifest),
        "sizeBytes": plugin.len(),
        "sha256": &*sha256(plugin),
        "selfTests": manifest.tests.iter().map(|case| &case.name).collect::<Vec<_>>(),
    })
}

fn page(manifest: &Manifest, imports: &[Import], plugin: &[u8]) -> String {
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut say = |what: &str, text: &str| rows.push([what.into(), line(text)]);
    say("plugin", &format!("{} {}", manifest.name, manifest.version));
    say("role", &role(manifest));
    say("API", &format!("presence:plugin {}", manifest.api));
    say("capabilities", &list(&manifest.capabilities));
    say("grants", &list(&build::grants(manifest)));
    say("directory", &list(&needs(imports)));
    for import in imports {
        let is_shown = import.interface.starts_with(DIRECTORY);
        // Interfaces that only define types aren't listed.
        if !is_shown && !import.functions.is_empty() {
            let functions = list(&import.functions);
            say("imports", &format!("{}: {functions}", import.interface));
        }
    }
    say("limits", &limits(manifest));
    say("on failure", on_failure(manifest));
    let size = figures::grouped(plugin.len() as u64);
    say("size", &format!("{size} bytes"));
    say("sha256", &sha256(plugin));
    say("self-tests", &manifest.tests.len().to_string());
    for case in &manifest.tests {
        say("", &case.name);
    }
    text::columns(&rows)
}

fn list<S: AsRef<str>>(names: &[S]) -> String {
    if names.is_empty() {
        return "none".into();
    }
    let names: Vec<_> = names.iter().map(AsRef::as_ref).collect();
    names.join(", ")
}

/// The functions of the directory that the plugin imports.
fn needs(imports: &[Import]) -> Vec<&str> {
    let directory = imports
        .iter()
        .filter(|import| import.interface.starts_with(DIRECTORY));
    let functions = directory.flat_map(|import| &import.functions);
    functions.map(String::as_str).collect()
}

fn role(manifest: &Manifest) -> String {
    match manifest.role {
        Role::Filter => format!(
            "filter, which may {}",
            match manifest.effect {
                Effect::Narrow => "only remove viewers",
                Effect::Widen => "add viewers",
            }
        ),
        other => other.as_str().into(),
    }
}

fn effect(manifest: &Manifest) -> &'static str {
    match manifest.effect {
        Effect::Narrow => "narrow",
        Effect::Widen => "widen",
    }
}

fn on_failure(manifest: &Manifest) -> &'static str {
    let policy = manifest
        .on_failure
        .unwrap_or_else(|| manifest.role.on_failure());
    match policy {
        OnFailure::Hold => "hold",
        OnFailure::LastGood => "last-good",
    }
}

fn limits(manifest: &Manifest) -> String {
    let own = manifest.limits;
    let mut limits = Vec::new();
    limits.extend(
        own.fuel
            .map(|fuel| format!("{} fuel", figures::grouped(fuel))),
    );
    limits.extend(own.memory_bytes.map(|bytes| figures::bytes(bytes as u64)));
    limits.extend(own.deadline_ms.map(|ms| format!("{ms} ms")));
    if limits.is_empty() {
        "the host's".into()
    } else {
        format!("{} a call, and the host's", limits.join(", "))
    }
}
