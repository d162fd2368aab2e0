//! Where the directory comes from: a JSON file, a NATS KV bucket, or a service that
//! is asked.

mod content;
mod entry;
mod export;
mod file;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
pub(crate) mod health;
pub(crate) mod kept;
pub(crate) mod kv;
mod reader;
pub(crate) mod request;

#[cfg(test)]
pub(crate) use content::Content;
pub(crate) use export::Export;
pub(crate) use file::{load, none, parse, read_text};
pub(crate) use health::Health;
