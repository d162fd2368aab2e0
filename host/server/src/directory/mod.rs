//! Where the directory comes from: a JSON file, a NATS KV bucket, or a service that
//! is asked.

mod content;
mod export;
pub(crate) mod kv;
mod reader;
pub(crate) mod request;

use std::path::Path;

use anyhow::Context as _;
use presence_core::directory::Directory;
use presence_core::names::Names;

pub(crate) use content::Content;
pub(crate) use export::Export;

/// What to say where there is no directory file, which is no error.
pub(crate) fn missing(path: &Path) -> Option<String> {
    let what = format!(
        "{} does not exist: nobody has contacts or groups",
        path.display()
    );
    (!path.exists()).then_some(what)
}

/// Reads a directory file. One that doesn't exist says nothing of anybody.
pub(crate) fn read_file(path: &Path, names: &Names) -> anyhow::Result<Content> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Content::default());
        }
        Err(error) => return Err(error).with_context(|| format!("can't read {}", path.display())),
    };
    Content::parse(&text, names)
        .with_context(|| format!("the directory {} can't be used", path.display()))
}

/// The directory that a file holds, for a command that reads it once. Says where there
/// is no such file.
pub(crate) fn load(path: &Path, names: &Names) -> anyhow::Result<Directory> {
    if let Some(what) = missing(path) {
        eprintln!("warning: {what}");
    }
    let (directory, _) = read_file(path, names)?.replace(&Directory::new());
    Ok(directory)
}
