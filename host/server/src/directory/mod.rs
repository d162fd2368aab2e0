//! Where the directory comes from: a JSON file, a NATS KV bucket, or a service that
//! is asked.

mod content;
mod entry;
mod export;
mod file;
pub(crate) mod health;
pub(crate) mod kept;
pub(crate) mod kv;
mod reader;
pub(crate) mod request;

pub(crate) use content::Content;
pub(crate) use export::Export;
pub(crate) use file::{File, load, none, read_file};
pub(crate) use health::Health;
