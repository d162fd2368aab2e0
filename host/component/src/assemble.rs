//! From a core module to a component that carries its manifest and nothing that
//! its function doesn't need.

use anyhow::{Context, Result};
use wit_component::ComponentEncoder;

use crate::sections;

/// Makes a plugin's file of a core module that wit-bindgen's metadata describes.
///
/// # Errors
/// When the metadata is missing, or the module imports what no component is
/// given, or lacks the exports that the metadata promises.
pub fn assemble(module: &[u8], manifest: &[u8]) -> Result<Vec<u8>> {
    let component = ComponentEncoder::default()
        .validate(true)
        .module(module)
        .and_then(|mut encoder| encoder.encode())
        .context("can't make a component of the compiled module")?;
    package(&component, manifest)
}

/// Makes a plugin's file of a component, or of a plugin's file that is to have
/// another manifest: strips it, and gives it its manifest.
///
/// # Errors
/// When it isn't a component.
pub fn package(component: &[u8], manifest: &[u8]) -> Result<Vec<u8>> {
    let mut plugin = sections::without_custom(component)?;
    sections::append_manifest(&mut plugin, manifest);
    Ok(plugin)
}
