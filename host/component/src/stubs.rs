//! Stubs for WASI in plugins, which have no WASI. componentize-py makes modules whose functions
//! replace WASI's and only trap. These functions get names, so that the host can tell which one a
//! plugin called.

use anyhow::{Context as _, Result};
use wasm_encoder::{NameMap, NameSection};
use wasmparser::{ExternalKind, Operator, Parser, Payload, TypeRef};

/// The prefix of the names. The sandbox knows it, too.
const PREFIX: &str = "wasi#";

/// What has been read of a module that may consist of stubs.
#[derive(Default)]
pub(crate) struct Stubs {
    exports: Vec<(u32, String)>,
    imported: u32,
    bodies: usize,
    /// Whether a function does more than trap.
    does_more: bool,
}

impl Stubs {
    /// Reads a part of a module.
    pub(crate) fn read(&mut self, payload: &Payload<'_>) -> Result<()> {
        match payload {
            Payload::ImportSection(imports) => {
                for import in imports.clone().into_imports() {
                    self.imported += u32::from(matches!(import?.ty, TypeRef::Func(_)));
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports.clone() {
                    let export = export?;
                    if export.kind == ExternalKind::Func {
                        self.exports.push((export.index, export.name.to_owned()));
                    }
                }
            }
            Payload::CodeSectionEntry(body) => {
                let mut operators = body.get_operators_reader()?;
                let traps = matches!(operators.read()?, Operator::Unreachable);
                self.does_more |= !traps || !matches!(operators.read()?, Operator::End);
                self.bodies += 1;
            }
            _ => {}
        }
        Ok(())
    }

    /// The names of its functions, if they only trap and all of its exports are its own.
    pub(crate) fn names(&mut self) -> Option<NameSection> {
        let own = |(index, _): &(u32, String)| *index >= self.imported;
        if self.does_more || self.bodies == 0 || !self.exports.iter().all(own) {
            return None;
        }
        self.exports.sort_unstable();
        self.exports.dedup_by_key(|(index, _)| *index);
        let mut functions = NameMap::new();
        for (index, name) in &self.exports {
            functions.append(*index, &format!("{PREFIX}{name}"));
        }
        let mut names = NameSection::new();
        names.functions(&functions);
        Some(names)
    }
}

/// The functions that a core module imports from another.
///
/// # Errors
/// When it isn't a module.
pub fn module_imports(module: &[u8], from: &str) -> Result<Vec<String>> {
    let mut functions = Vec::new();
    for payload in Parser::new(0).parse_all(module) {
        if let Payload::ImportSection(imports) = payload.context("no core module")? {
            for import in imports.into_imports() {
                let import = import?;
                if import.module == from {
                    functions.push(import.name.to_owned());
                }
            }
        }
    }
    Ok(functions)
}

#[cfg(test)]
mod tests {
    use crate::sections::without_custom;

    fn text(wat: &str) -> String {
        let stripped = without_custom(&wat::parse_str(wat).unwrap()).unwrap();
        String::from_utf8_lossy(&stripped).into_owned()
    }

    #[test]
    fn functions_that_only_trap_are_named_by_what_they_stand_in_for() {
        let stub = "(component (core module
            (func (export \"path_open\") (result i32) unreachable)
            (func (export \"fd_write\") unreachable)))";
        let named = text(stub);
        assert!(named.contains("wasi#path_open") && named.contains("wasi#fd_write"));
        let rule = "(component (core module
            (func (export \"path_open\") unreachable)
            (func (export \"filter\") nop)))";
        assert!(!text(rule).contains("wasi#"));
    }
}
