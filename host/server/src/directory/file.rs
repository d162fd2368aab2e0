//! The directory as a JSON file.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, bail};
use presence_core::directory::Directory;
use presence_core::names::Names;

use super::content::Content;
use super::entry::without_bom;

/// What is at a directory file's path.
#[derive(Debug)]
pub(crate) enum File {
    /// A directory.
    Content(Content),
    /// Nothing.
    Missing,
}

/// Reads a directory file.
///
/// # Errors
/// If it can't be read, or what it holds is no directory.
pub(crate) fn read_file(path: &Path, names: &Names) -> anyhow::Result<File> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(File::Missing),
        Err(error) => return Err(error).with_context(|| format!("can't read {}", path.display())),
    };
    let text = without_bom(&text);
    if text.trim().is_empty() {
        bail!("{} is empty: it must hold at least `{{}}`", path.display());
    }
    let content = Content::parse(text, names);
    let content =
        content.with_context(|| format!("the directory {} can't be used", path.display()))?;
    Ok(File::Content(content))
}

/// The directory that a file holds, for a command that reads it once. One that nobody
/// named may be missing, which is said.
///
/// # Errors
/// If it can't be read, or was named and is missing.
pub(crate) fn load(path: &Path, is_named: bool, names: &Names) -> anyhow::Result<Directory> {
    match read_file(path, names)? {
        File::Content(content) => Ok(content.replace(&Directory::new()).0),
        File::Missing if is_named => bail!("{} does not exist", path.display()),
        File::Missing => {
            eprintln!("warning: {}", none(path));
            Ok(Directory::new())
        }
    }
}

/// What to say where there is no directory file, and nobody has named one.
pub(crate) fn none(path: &Path) -> String {
    format!(
        "{} does not exist: nobody has contacts or groups",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_file_and_an_empty_file_is_no_directory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("directory.json");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            load(&path, true, &Names::new())
        };
        let directory = read(b"\xef\xbb\xbf{\"contacts\":{\"a\":[\"b\"]}}").unwrap();
        assert_eq!(directory.len(), 2);
        for text in ["", " \n", "\u{feff}"] {
            let error = read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("is empty"), "{text:?}: {error}");
        }
        assert!(read(b"\xff\xfe{}").is_err());
        assert!(read(b"{}").unwrap().is_empty());
        std::fs::remove_file(&path).unwrap();
        assert!(load(&path, true, &Names::new()).is_err());
        assert!(load(&path, false, &Names::new()).unwrap().is_empty());
    }
}
