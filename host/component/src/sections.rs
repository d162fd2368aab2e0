//! A component's sections: reading and adding the manifest, and removing other custom sections.

use anyhow::{Context, Result, bail};
use wasm_encoder::{ComponentSectionId, CustomSection, RawSection, Section};
use wasmparser::{Parser, Payload};

use crate::stubs::Stubs;

/// The custom section, at the component's top level, that holds the manifest.
pub const SECTION: &str = "presence:manifest";

/// The manifest that a component carries, unparsed.
///
/// # Errors
/// When it isn't a component, or has no manifest.
pub fn manifest(component: &[u8]) -> Result<&[u8]> {
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

/// Adds the manifest to a component that has none.
pub(crate) fn append_manifest(component: &mut Vec<u8>, manifest: &[u8]) {
    CustomSection {
        name: SECTION.into(),
        data: manifest.into(),
    }
    .append_to(component);
}

/// Removes every custom section (names, producers), also in nested modules. Modules of stubs for
/// WASI get a name section that tells which function each stub replaces.
pub(crate) fn without_custom(wasm: &[u8]) -> Result<Vec<u8>> {
    /// A component or module that is being copied, and the id of the section that holds it.
    struct Copy {
        bytes: Vec<u8>,
        section: u8,
        stubs: Stubs,
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
                    stubs: Stubs::default(),
                });
            }
            Payload::ModuleSection { .. } => next_section = ComponentSectionId::CoreModule.into(),
            Payload::ComponentSection { .. } => next_section = ComponentSectionId::Component.into(),
            Payload::CustomSection(_) => {}
            Payload::End(_) => {
                let mut done = stack.pop().context("an end without a beginning")?;
                if let Some(names) = done.stubs.names() {
                    names.append_to(&mut done.bytes);
                }
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
                if let Some(copy) = stack.last_mut() {
                    copy.stubs.read(other)?;
                }
                // Function bodies are parts of the code section, which is copied whole.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_component_s_own_manifest_is_its_manifest() {
        let inner = wat::parse_str(r#"(component (@custom "presence:manifest" "inner"))"#).unwrap();
        assert_eq!(manifest(&inner).unwrap(), b"inner");
        let outer = wat::parse_str(
            r#"(component
                 (@custom "producers" "x")
                 (core module (@custom "name" "y") (func (export "f")))
                 (component (@custom "presence:manifest" "inner")))"#,
        )
        .unwrap();
        assert!(manifest(&outer).is_err());
        let mut stripped = without_custom(&outer).unwrap();
        let bare =
            wat::parse_str(r#"(component (core module (func (export "f"))) (component))"#).unwrap();
        assert_eq!(stripped, without_custom(&bare).unwrap());
        append_manifest(&mut stripped, b"own");
        assert_eq!(manifest(&stripped).unwrap(), b"own");
    }
}
