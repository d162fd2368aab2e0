//! WASI for plugins that can't do without importing it, because their language
//! has it in all that it builds: each function is there, and denied.

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, ResourceType};
use wasmtime::{Result, bail};

use crate::call::Call;

/// The capability that a manifest asks for, and that an operator grants.
pub(crate) const CAPABILITY: &str = "wasi";

/// Whether an import is one of WASI's.
pub(crate) fn offers(import: &str) -> bool {
    import.starts_with("wasi:")
}

/// Offers what a component imports of WASI. A call of it ends the plugin's call
/// with an error: there are no files, no network, no environment, no clock.
pub(crate) fn deny(linker: &mut Linker<Call>, component: &Component) -> Result<()> {
    let engine = component.engine();
    let component = component.component_type();
    for (interface, import) in component.imports(engine) {
        let ComponentItem::ComponentInstance(instance) = import.ty else {
            continue;
        };
        if !offers(interface) {
            continue;
        }
        let mut denied = linker.instance(interface)?;
        for (name, export) in instance.exports(engine) {
            match export.ty {
                ComponentItem::ComponentFunc(_) => {
                    let function = format!("{interface}#{name}");
                    denied.func_new(name, move |_, _, _, _| {
                        bail!("called {function}, and all of WASI is denied to plugins")
                    })?;
                }
                ComponentItem::Resource(_) => {
                    denied.resource(name, ResourceType::host::<()>(), |_, _| Ok(()))?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}
