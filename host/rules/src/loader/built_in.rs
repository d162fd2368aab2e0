//! The components that are built into the program.

use std::path::Path;

use anyhow::Context as _;

/// The default components, built from `plugins/` and committed in `plugins/dist`.
const COMPONENTS: [(&str, &[u8]); 8] = [
    (
        "blocklist",
        include_bytes!("../../../../plugins/dist/blocklist.wasm"),
    ),
    (
        "contacts",
        include_bytes!("../../../../plugins/dist/contacts.wasm"),
    ),
    (
        "device-class",
        include_bytes!("../../../../plugins/dist/device-class.wasm"),
    ),
    (
        "do-not-disturb",
        include_bytes!("../../../../plugins/dist/do-not-disturb.wasm"),
    ),
    (
        "groups",
        include_bytes!("../../../../plugins/dist/groups.wasm"),
    ),
    (
        "privacy",
        include_bytes!("../../../../plugins/dist/privacy.wasm"),
    ),
    (
        "public",
        include_bytes!("../../../../plugins/dist/public.wasm"),
    ),
    (
        "redact",
        include_bytes!("../../../../plugins/dist/redact.wasm"),
    ),
];

/// The bytes of a default component, if there is one of this name.
pub fn built_in(name: &str) -> Option<&'static [u8]> {
    let built_in = COMPONENTS.iter().find(|(built_in, _)| *built_in == name);
    built_in.map(|(_, bytes)| *bytes)
}

/// Whether the bytes are those of a default component.
pub(super) fn is_built_in(bytes: &[u8]) -> bool {
    COMPONENTS.iter().any(|(_, component)| *component == bytes)
}

/// As [`built_in`].
///
/// # Errors
/// If there is none of this name. The message also says that there is no file at the path.
pub(super) fn needed(name: &str, path: &Path) -> anyhow::Result<&'static [u8]> {
    built_in(name).with_context(|| {
        let names = COMPONENTS.map(|(name, _)| name).join(", ");
        format!(
            "there is no plugin `{name}`: {} does not exist, and built in are only {names}",
            path.display()
        )
    })
}
