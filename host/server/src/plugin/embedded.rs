//! The files that the program holds for new plugins: see `build.rs`.

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The API, as WIT.
pub(super) const WIT: &str = include_str!("../../../../wit/0.1.0/presence.wit");

/// Where the API lies in a plugin's folder.
pub(super) const WIT_FILE: &str = "wit/0.1.0/presence.wit";

/// The workspace that the SDK is part of, with the versions that it is built with.
pub(super) const SDK_WORKSPACE: &str = include_str!("../../../../plugins/Cargo.toml");
