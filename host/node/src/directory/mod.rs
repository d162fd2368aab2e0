//! Where the directory comes from: a JSON file, a NATS KV bucket, or a service that is asked. Their
//! content is parsed by [`presence_config::directory`].

pub(crate) mod disk_copy;
pub(crate) mod health;
pub(crate) mod kv;
pub(crate) mod request;

pub(crate) use health::DirectoryHealth;
pub(crate) use presence_config::directory::{missing_message, parse_within, read_text};
