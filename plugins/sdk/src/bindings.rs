//! What wit-bindgen makes of the WIT package: one module a world. The
//! interfaces that the worlds share are generated once, in `filter`.
//!
//! Nothing of this is for authors: the rest of the crate wraps it. It is public
//! only because [`export!`](crate::export) names it in the author's crate.
#![allow(missing_docs, unsafe_code, unreachable_pub, clippy::all)]

pub mod filter {
    wit_bindgen::generate!({
        path: "../../wit/0.2.0",
        world: "filter",
        pub_export_macro: true,
        additional_derives: [PartialEq],
        generate_all,
    });
}

pub mod redactor {
    wit_bindgen::generate!({
        path: "../../wit/0.2.0",
        world: "redactor",
        pub_export_macro: true,
        with: {
            "presence:plugin/events@0.2.0": super::filter::presence::plugin::events,
            "presence:plugin/audiences@0.2.0": super::filter::presence::plugin::audiences,
            "presence:plugin/directory@0.2.0": super::filter::presence::plugin::directory,
            "presence:plugin/host@0.2.0": super::filter::presence::plugin::host,
        },
    });
}

pub mod enricher {
    wit_bindgen::generate!({
        path: "../../wit/0.2.0",
        world: "enricher",
        pub_export_macro: true,
        with: {
            "presence:plugin/events@0.2.0": super::filter::presence::plugin::events,
            "presence:plugin/audiences@0.2.0": super::filter::presence::plugin::audiences,
            "presence:plugin/directory@0.2.0": super::filter::presence::plugin::directory,
            "presence:plugin/host@0.2.0": super::filter::presence::plugin::host,
        },
    });
}

pub mod stateful_enricher {
    wit_bindgen::generate!({
        path: "../../wit/0.2.0",
        world: "stateful-enricher",
        pub_export_macro: true,
        with: {
            "presence:plugin/events@0.2.0": super::filter::presence::plugin::events,
            "presence:plugin/audiences@0.2.0": super::filter::presence::plugin::audiences,
            "presence:plugin/directory@0.2.0": super::filter::presence::plugin::directory,
            "presence:plugin/host@0.2.0": super::filter::presence::plugin::host,
        },
    });
}

// The host's functions. On a native target there is no host but the one in memory.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use crate::testing::imports::{audiences, directory, events, host};
#[cfg(target_arch = "wasm32")]
pub(crate) use filter::presence::plugin::{audiences, directory, events, host};
