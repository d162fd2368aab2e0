//! From a core module to a component that carries its manifest and nothing that
//! its function doesn't need.

use anyhow::{Context, Result, bail};
use wasm_encoder::{ComponentSectionId, CustomSection, RawSection, Section};
use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, DecodedWasm, WitPrinter};

/// The custom section, at the component's top level, that holds the manifest.
pub(super) const SECTION: &str = "presence:manifest";

/// Makes a component of a core module that wit-bindgen's metadata describes.
///
/// # Errors
/// When the metadata is missing, or asks for exports that the module lacks.
pub(super) fn assemble(module: &[u8], manifest: &[u8]) -> Result<Vec<u8>> {
    let encoded = ComponentEncoder::default()
        .validate(true)
        .module(module)?
        .encode()?;
    let mut component = without_custom_sections(&encoded)?;
    CustomSection {
        name: SECTION.into(),
        data: manifest.into(),
    }
    .append_to(&mut component);
    Ok(component)
}

/// The manifest that a component carries, as it stands there.
///
/// # Errors
/// When it isn't a component, or has no manifest.
pub(super) fn manifest(component: &[u8]) -> Result<&[u8]> {
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CustomSection(section) if depth == 0 && section.name() == SECTION => {
                return Ok(section.data());
            }
            _ => {}
        }
    }
    bail!("no custom section {SECTION}")
}

/// The component's imports and exports, as WIT text.
///
/// # Errors
/// When it isn't a component.
pub(super) fn wit(component: &[u8]) -> Result<String> {
    let DecodedWasm::Component(resolve, world) = wit_component::decode(component)? else {
        bail!("a WIT package, not a component");
    };
    let world = resolve
        .worlds
        .get(world)
        .context("the component has no world")?;
    let package = world
        .package
        .context("the component's world has no package")?;
    let others: Vec<_> = resolve
        .packages
        .iter()
        .map(|(id, _)| id)
        .filter(|id| *id != package)
        .collect();
    let mut printer = WitPrinter::default();
    printer.print(&resolve, package, &others)?;
    Ok(printer.output.to_string())
}

/// Leaves out every custom section (names, producers), in nested modules too.
fn without_custom_sections(wasm: &[u8]) -> Result<Vec<u8>> {
    /// A binary that is being copied, and the section of its parent that it is.
    struct Copy {
        bytes: Vec<u8>,
        section: u8,
    }
    let mut stack: Vec<Copy> = Vec::new();
    let mut next_section = 0;
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload?;
        match &payload {
            Payload::Version { range, .. } => {
                let preamble = wasm.get(range.start..range.end);
                let bytes = preamble.context("a preamble beyond the end")?.to_vec();
                stack.push(Copy {
                    bytes,
                    section: next_section,
                });
            }
            Payload::ModuleSection { .. } => next_section = ComponentSectionId::CoreModule.into(),
            Payload::ComponentSection { .. } => next_section = ComponentSectionId::Component.into(),
            Payload::CustomSection(_) => {}
            Payload::End(_) => {
                let done = stack.pop().context("an end without a beginning")?;
                match stack.last_mut() {
                    Some(parent) => {
                        RawSection {
                            id: done.section,
                            data: &done.bytes,
                        }
                        .append_to(&mut parent.bytes);
                    }
                    None => return Ok(done.bytes),
                }
            }
            other => {
                // Function bodies are within the code section, copied whole.
                if let (Some((id, range)), Some(copy)) = (other.as_section(), stack.last_mut()) {
                    let data = wasm
                        .get(range.start..range.end)
                        .context("a section beyond the end")?;
                    RawSection { id, data }.append_to(&mut copy.bytes);
                }
            }
        }
    }
    bail!("the component doesn't end")
}
