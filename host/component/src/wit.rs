//! What a component imports and exports.

use anyhow::{Context, Result, bail};
use wit_component::{DecodedWasm, WitPrinter};
use wit_parser::{Resolve, WorldId, WorldItem};

/// An interface that a component imports.
#[derive(Debug, PartialEq, Eq)]
pub struct Import {
    /// Its name, with package and version.
    pub interface: String,
    /// The functions of the interface that the component uses.
    pub functions: Vec<String>,
}

/// What a component imports, in order.
///
/// # Errors
/// When it isn't a component.
pub fn imports(component: &[u8]) -> Result<Vec<Import>> {
    let (resolve, world) = decode(component)?;
    let world = resolve.worlds.get(world).context("it has no world")?;
    let import = |(key, item): (_, &WorldItem)| {
        let functions = match item {
            WorldItem::Interface { id, .. } => {
                let interface = resolve.interfaces.get(*id);
                let functions = interface
                    .into_iter()
                    .flat_map(|interface| &interface.functions);
                functions.map(|(name, _)| name.clone()).collect()
            }
            WorldItem::Function(_) | WorldItem::Type { .. } => Vec::new(),
        };
        let interface = resolve.name_world_key(key);
        Import {
            interface,
            functions,
        }
    };
    // Types that a world names come with their interfaces, so they aren't listed.
    let imports = world
        .imports
        .iter()
        .filter(|(_, item)| !matches!(item, WorldItem::Type { .. }));
    Ok(imports.map(import).collect())
}

/// The component's imports and exports, as WIT text.
///
/// # Errors
/// When it isn't a component.
pub fn wit(component: &[u8]) -> Result<String> {
    let (resolve, world) = decode(component)?;
    let world = resolve.worlds.get(world).context("it has no world")?;
    let package = world.package.context("its world has no package")?;
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

fn decode(component: &[u8]) -> Result<(Resolve, WorldId)> {
    match wit_component::decode(component)? {
        DecodedWasm::Component(resolve, world) => Ok((resolve, world)),
        DecodedWasm::WitPackage(..) => bail!("it is a WIT package, not a component"),
    }
}
