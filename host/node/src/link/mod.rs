//! Everything that talks to the broker: connections, publishing, acknowledgements, subscriptions,
//! JetStream streams and the admin service.

pub(crate) mod admin;
pub(crate) mod alerts;
pub(crate) mod broker;
pub(crate) mod bucket_keys;
pub(crate) mod connection;
pub mod dlq_stream;
pub(crate) mod drops;
pub(crate) mod fleet_bucket;
pub(crate) mod hello;
pub mod input_stream;
pub(crate) mod journal;
pub(crate) mod login;
pub(crate) mod micro;
pub(crate) mod plugin_log;
pub mod probe;
pub(crate) mod progress;
pub(crate) mod publisher;
pub(crate) mod pulse;
pub mod redrive_lock;
pub(crate) mod reply_guard;
pub(crate) mod request;
pub mod request_client;
pub(crate) mod sequencer;
pub(crate) mod shared_input;
pub mod stream_setup;
pub mod tap;
pub(crate) mod watermark;
pub(crate) mod wire;
