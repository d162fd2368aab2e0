//! The sandbox with real components: the default plugins, and a fixture for each kind of
//! misbehaviour.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

#[path = "sandbox/audiences.rs"]
mod audiences;
#[path = "sandbox/beside.rs"]
mod beside;
#[path = "sandbox/cache.rs"]
mod cache;
#[path = "sandbox/component.rs"]
mod component;
#[path = "sandbox/default_pipeline.rs"]
mod default_pipeline;
#[path = "sandbox/enrichers.rs"]
mod enrichers;
#[path = "sandbox/event_data.rs"]
mod event_data;
#[path = "sandbox/explain.rs"]
mod explain;
#[path = "sandbox/files.rs"]
mod files;
#[path = "sandbox/frozen.rs"]
mod frozen;
#[path = "sandbox/grants.rs"]
mod grants;
#[path = "sandbox/hostile.rs"]
mod hostile;
#[path = "sandbox/last_good.rs"]
mod last_good;
#[path = "sandbox/limits.rs"]
mod limits;
#[path = "sandbox/log.rs"]
mod log;
#[path = "sandbox/on_demand.rs"]
mod on_demand;
#[path = "sandbox/prepare.rs"]
mod prepare;
#[path = "sandbox/quarantine.rs"]
mod quarantine;
#[path = "sandbox/reads.rs"]
mod reads;
#[path = "sandbox/redactors.rs"]
mod redactors;
#[path = "sandbox/replacement.rs"]
mod replacement;
#[path = "sandbox/settings.rs"]
mod settings;
#[path = "sandbox/shared.rs"]
mod shared;
#[path = "sandbox/stage.rs"]
mod stage;
#[path = "sandbox/state.rs"]
mod state;
#[path = "sandbox/wasi.rs"]
mod wasi;
#[path = "sandbox/withdrawn.rs"]
mod withdrawn;
#[path = "sandbox/world.rs"]
mod world;
