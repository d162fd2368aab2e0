//! The files that the program holds for new plugins: see `build.rs`.

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The API, as WIT, in each of its versions, which a plugin's folder may have been made
/// for. The newest is the last.
const WIT: [(&str, &str); 2] = [
    ("0.1.0", include_str!("../../../../wit/0.1.0/presence.wit")),
    ("0.2.0", include_str!("../../../../wit/0.2.0/presence.wit")),
];

/// A version of the API, as WIT.
pub(super) fn wit(version: &str) -> Option<&'static str> {
    let wit = WIT.iter().find(|(known, _)| *known == version);
    wit.map(|(_, wit)| *wit)
}

/// Where a version of the API lies in a plugin's folder.
pub(super) fn wit_file(version: &str) -> String {
    format!("wit/{version}/presence.wit")
}

/// The workspace that the SDK is part of, with the versions that it is built with.
pub(super) const SDK_WORKSPACE: &str = include_str!("../../../../plugins/Cargo.toml");
