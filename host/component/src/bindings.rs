//! Generates the bindings that a plugin in C is compiled with.

use anyhow::{Context, Result};
use wit_bindgen_core::Files;
use wit_parser::Resolve;

/// The C bindings of a world: a header, a source file, and an object file that describes the
/// compiled module's imports and exports. Each is named after the world.
///
/// # Errors
/// When the text isn't WIT, or has no such world.
pub fn c_bindings(wit: &str, world: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let mut resolve = Resolve::default();
    let package = resolve.push_source("presence.wit", wit)?;
    let id = resolve
        .select_world(&[package], Some(world))
        .with_context(|| format!("the WIT package has no world `{world}`"))?;
    let mut files = Files::default();
    let mut generator = wit_bindgen_c::Opts::default().build();
    generator.generate(&mut resolve, id, &mut files)?;
    let files = files
        .iter()
        .map(|(name, content)| (name.to_owned(), content.to_vec()));
    Ok(files.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_s_bindings_are_a_header_a_source_and_an_object() {
        let wit = "package a:b; world rule { export run: func(x: u32) -> string; }";
        let files = c_bindings(wit, "rule").unwrap();
        let mut names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["rule.c", "rule.h", "rule_component_type.o"]);
        let error = c_bindings(wit, "other").unwrap_err();
        assert!(
            format!("{error:#}").contains("no world `other`"),
            "{error:#}"
        );
    }
}
