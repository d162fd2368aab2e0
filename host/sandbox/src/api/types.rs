//! The types of the newest version that are passed between host and components, and that the rest
//! of the sandbox uses.

// The derives of wasmtime generate `unsafe impl`s. There is no other unsafe code here.
#![allow(unsafe_code)]

use std::sync::Arc;

use wasmtime::component::{ComponentType, Lift, Lower};

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
pub(crate) enum Kind {
    #[component(name = "online")]
    Online,
    #[component(name = "offline")]
    Offline,
}

#[derive(Clone, ComponentType, Lower)]
#[component(record)]
pub(crate) struct EventArg {
    pub(crate) kind: Kind,
    pub(crate) user: Arc<str>,
}

#[derive(Clone, ComponentType, Lift)]
#[component(record)]
pub(crate) struct RenditionResult {
    pub(crate) audience: u32,
    pub(crate) keys: Vec<String>,
    #[component(name = "last-seen")]
    pub(crate) last_seen: bool,
}

/// The date and the time of day in a time zone, at one moment.
#[derive(Clone, ComponentType, Lower)]
#[component(record)]
pub(crate) struct LocalTime {
    pub(crate) year: i16,
    pub(crate) month: u8,
    pub(crate) day: u8,
    pub(crate) hour: u8,
    pub(crate) minute: u8,
    pub(crate) second: u8,
    pub(crate) weekday: u8,
    #[component(name = "utc-offset-s")]
    pub(crate) utc_offset_s: i32,
    #[component(name = "next-change")]
    pub(crate) next_change: Option<u64>,
}

/// The state that a stateful enricher hands over.
#[derive(Clone, ComponentType, Lift, Lower)]
#[component(record)]
pub(crate) struct State {
    pub(crate) version: u32,
    pub(crate) data: Vec<u8>,
}
