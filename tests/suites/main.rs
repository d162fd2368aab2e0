//! The end-to-end suites: the real host, on a real nats-server, seen from
//! outside. `cargo xtask test` gets what they need and runs them.

#![allow(
    clippy::indexing_slicing,
    reason = "an index that is wrong is a test that fails"
)]

mod bad_input;
mod believed;
mod blocks;
mod broker;
mod canary;
mod check;
mod clock;
mod compiled;
mod config_changes;
mod correction;
mod dead_letters;
mod delivery;
mod deploy;
mod directory;
mod directory_away;
mod directory_entries;
mod explain;
mod failures;
mod first_steps;
mod full_disk;
mod grants;
mod guide;
mod harness;
mod headers;
mod hostile;
mod hostile_text;
mod hot_swap;
mod in_force;
mod inbox;
mod inputs;
mod js_client;
mod large_audience;
mod layers;
mod lifecycle;
mod load;
mod login;
mod manual;
mod messenger;
mod node;
mod operator;
mod order;
mod page;
mod pause;
mod permissions;
mod plugin_kit;
mod plugin_logs;
mod plugin_tools;
mod privacy;
mod pulse;
mod query;
mod quotas;
mod readiness;
mod record;
mod registry;
mod replay;
mod replay_diff;
mod replies;
mod request_directory;
mod restart;
mod secrets;
mod seed;
mod service;
mod shown;
mod signatures;
mod slow_consumers;
mod speakers;
mod stalls;
mod state;
mod statements;
mod statuses;
mod store;
mod store_nodes;
mod telemetry;
mod tenant_edits;
mod tenant_sections;
mod tenants;
mod tenants_store;
mod turns;
mod world;
