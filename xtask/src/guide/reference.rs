//! The API reference: a page of what a WIT package declares, with its comments.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use wit_component::WitPrinter;
use wit_parser::{
    Docs, Function, InterfaceId, Resolve, Type, TypeDefKind, TypeId, WorldId, WorldItem,
};

/// The page for a package, given as WIT text.
///
/// # Errors
/// When it isn't WIT, or declares something of a kind that the API doesn't use yet.
pub(super) fn page(wit: &str) -> Result<String> {
    let mut resolve = Resolve::default();
    let id = resolve.push_source("presence.wit", wit)?;
    let package = resolve.packages.get(id).context("the package is there")?;
    let mut page = Page {
        resolve: &resolve,
        text: format!(
            "<!-- Written by `cargo xtask guide`, from the comments in wit/. -->\n\n\
             # Plugin API reference\n\n`{}`, as it is in a new plugin's folder under `wit/`. \
             [Roles](../rules/roles.md) says how each language writes these names.\n",
            package.name
        ),
        exported: BTreeMap::new(),
    };
    page.docs(&package.docs);
    for (name, id) in &package.worlds {
        page.world(name, *id)?;
    }
    for (name, id) in &package.interfaces {
        page.interface(name, *id)?;
    }
    Ok(page.text)
}

struct Page<'a> {
    resolve: &'a Resolve,
    text: String,
    /// The exports that have been described so far, by name: comment and world.
    exported: BTreeMap<String, (Docs, String)>,
}

impl Page<'_> {
    fn world(&mut self, name: &str, id: WorldId) -> Result<()> {
        let world = self.resolve.worlds.get(id).context("the world is there")?;
        self.heading(2, &format!("World `{name}`"));
        self.docs(&world.docs);
        for item in world.imports.values() {
            if let WorldItem::Type { id, .. } = item {
                self.declared(*id)?;
            }
        }
        for item in world.exports.values() {
            let WorldItem::Function(function) = item else {
                bail!("world {name} exports something else than functions");
            };
            match self.exported.get(&function.name) {
                Some((docs, other)) if *docs == function.docs => {
                    let text = format!("\n### `{}`\n\nAs in `{other}`.\n", function.name);
                    self.text.push_str(&text);
                }
                _ => {
                    let said = (function.docs.clone(), name.to_owned());
                    self.exported.insert(function.name.clone(), said);
                    self.function(function)?;
                }
            }
        }
        Ok(())
    }

    fn interface(&mut self, name: &str, id: InterfaceId) -> Result<()> {
        let interface = self.resolve.interfaces.get(id).context("it is there")?;
        self.heading(2, &format!("Interface `{name}`"));
        self.docs(&interface.docs);
        for id in interface.types.values() {
            self.declared(*id)?;
        }
        for function in interface.functions.values() {
            self.function(function)?;
        }
        Ok(())
    }

    fn function(&mut self, function: &Function) -> Result<()> {
        self.heading(3, &format!("`{}`", function.name));
        let params = function.params.iter();
        let params = params.map(|param| Ok(format!("{}: {}", param.name, self.name(&param.ty)?)));
        let params = params.collect::<Result<Vec<_>>>()?.join(", ");
        let result = match &function.result {
            Some(ty) => format!(" -> {}", self.name(ty)?),
            None => String::new(),
        };
        let signature = format!("{}: func({params}){result};", function.name);
        write!(self.text, "\n```wit\n{signature}\n```\n")?;
        self.docs(&function.docs);
        Ok(())
    }

    /// Describes a type, with a row for each of its parts. Leaves out a name for another declared
    /// type.
    fn declared(&mut self, id: TypeId) -> Result<()> {
        let ty = self.resolve.types.get(id).context("the type is there")?;
        let name = ty.name.as_deref().context("a declared type has a name")?;
        let mut rows = Vec::new();
        let kind = match &ty.kind {
            TypeDefKind::Type(Type::Id(_)) => return Ok(()),
            TypeDefKind::Type(ty) => self.name(ty)?,
            TypeDefKind::Record(record) => {
                for field in &record.fields {
                    let ty = self.name(&field.ty)?;
                    rows.push((format!("{}: {ty}", field.name), &field.docs));
                }
                "record".to_owned()
            }
            TypeDefKind::Variant(variant) => {
                for case in &variant.cases {
                    let part = match &case.ty {
                        Some(ty) => format!("{}({})", case.name, self.name(ty)?),
                        None => case.name.clone(),
                    };
                    rows.push((part, &case.docs));
                }
                "variant".to_owned()
            }
            TypeDefKind::Enum(cases) => {
                let cases = cases.cases.iter();
                rows.extend(cases.map(|case| (case.name.clone(), &case.docs)));
                "enum".to_owned()
            }
            other => bail!("`{name}` is a {}: say how it is shown", other.as_str()),
        };
        self.heading(3, &format!("`{name}`, {kind}"));
        self.docs(&ty.docs);
        if !rows.is_empty() {
            self.text.push_str("\n| | |\n|---|---|\n");
        }
        for (part, docs) in rows {
            let docs = docs.contents.as_deref().unwrap_or_default();
            let docs = docs.split_whitespace().collect::<Vec<_>>().join(" ");
            writeln!(self.text, "| `{part}` | {docs} |")?;
        }
        Ok(())
    }

    fn heading(&mut self, level: usize, text: &str) {
        self.text
            .push_str(&format!("\n{} {text}\n", "#".repeat(level)));
    }

    fn docs(&mut self, docs: &Docs) {
        if let Some(docs) = &docs.contents {
            self.text.push_str(&format!("\n{}\n", docs.trim()));
        }
    }

    /// A type, as it is written in WIT.
    fn name(&self, ty: &Type) -> Result<String> {
        let mut printer = WitPrinter::default();
        printer.print_type_name(self.resolve, ty)?;
        Ok(printer.output.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_declared_is_there_with_its_comment() {
        let wit = "/// Rules.
            package a:b@1.0.0;
            /// Sets.
            interface sets {
                type set = u32;
                /// What there is.
                variant value { /// Words.
                    text(string), nothing }
                /// Both.
                union: func(a: set, b: set) -> set;
            }
            world one { use sets.{set}; export run: func(on: set) -> result<_, string>; }
            world two { include one; record state { version: u32 } export save: func() -> state; }";
        let page = page(wit).unwrap();
        for part in [
            "Rules.",
            "## Interface `sets`\n\nSets.\n\n### `set`, u32\n",
            "### `value`, variant\n\nWhat there is.\n\n| | |\n|---|---|\n| `text(string)` | Words. |\n| `nothing` |  |\n",
            "### `union`\n\n```wit\nunion: func(a: set, b: set) -> set;\n```\n\nBoth.\n",
            "## World `one`\n\n### `run`\n\n```wit\nrun: func(on: set) -> result<_, string>;\n```\n",
            "\n### `run`\n\nAs in `one`.\n",
            "## World `two`\n\n### `state`, record\n\n| | |\n|---|---|\n| `version: u32` |  |\n\n### `save`\n",
        ] {
            assert!(page.contains(part), "{page}\nhas no\n{part}");
        }
        assert!(super::page("package a:b; interface x { resource y; }").is_err());
    }
}
