//! The content of a directory, in its three forms: a JSON file, the entries of a bucket, and the
//! answers of a service.

mod content;
pub mod entry;
mod export;
mod file;
#[cfg(fuzzing)]
pub mod fuzz;
mod reader;
mod room;
pub mod service;
#[cfg(fuzzing)]
mod service_fuzz;

pub use content::Content;
pub use export::Export;
pub use file::{load, missing_message, parse, parse_within, read_text};
pub use room::ValueRoom;
