//! Makes a plugin's file from a core module: a component with the manifest, and without other
//! custom sections.

use anyhow::{Context, Result};
use wit_component::ComponentEncoder;

use crate::sections;

/// Makes a plugin's file from a core module that carries wit-bindgen's metadata.
///
/// # Errors
/// When the metadata is missing, or the module has an import that components can't have, or lacks
/// an export that the metadata declares.
pub fn assemble(module: &[u8], manifest: &[u8]) -> Result<Vec<u8>> {
    let component = ComponentEncoder::default()
        .validate(true)
        .module(module)
        .and_then(|mut encoder| encoder.encode())
        .context("can't make a component of the compiled module")?;
    package(&component, manifest)
}

/// Makes a plugin's file from a component, or from a plugin's file whose manifest is to be
/// replaced: removes all custom sections, and adds the manifest.
///
/// # Errors
/// When it isn't a component.
pub fn package(component: &[u8], manifest: &[u8]) -> Result<Vec<u8>> {
    let mut plugin = sections::without_custom(component)?;
    sections::append_manifest(&mut plugin, manifest);
    Ok(plugin)
}
