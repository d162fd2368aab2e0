//! The files for new plugins that are embedded in the program: see `build.rs`.

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The WIT text of each version of the API that plugins may be built for. The newest is the last.
const WIT: [(&str, &str); 2] = [
    ("0.1.0", include_str!("../../../../wit/0.1.0/presence.wit")),
    ("0.2.0", include_str!("../../../../wit/0.2.0/presence.wit")),
];

/// The WIT text of a version of the API.
pub(super) fn wit(version: &str) -> Option<&'static str> {
    let wit = WIT.iter().find(|(known, _)| *known == version);
    wit.map(|(_, wit)| *wit)
}

/// The path of a version of the API in a plugin's folder.
pub(super) fn wit_file(version: &str) -> String {
    format!("wit/{version}/presence.wit")
}

/// The manifest of the workspace that the SDK belongs to, with the versions of its dependencies.
pub(super) const SDK_WORKSPACE: &str = include_str!("../../../../plugins/Cargo.toml");
