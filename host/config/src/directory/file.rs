//! The directory as a JSON file.

use std::path::Path;

use anyhow::{Context as _, bail};
use presence_core::directory::Directory;
use presence_core::names::Names;

use super::content::Content;
use super::entry::without_bom;
use crate::escape::eprint_line;
use crate::regular_file::{self, Unreadable};

/// Reads the text of a directory file. `None` if there is no such file.
///
/// # Errors
/// If it can't be read, or is no regular file.
pub fn read_text(path: &Path) -> Result<Option<String>, Unreadable> {
    match regular_file::read_text(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Parses the text of a directory file.
///
/// # Errors
/// If it is no directory.
pub fn parse(path: &Path, text: &str, names: &Names) -> anyhow::Result<Content> {
    read(path, text, |text| Content::parse(text, names))
}

/// As [`parse`], for a directory that may have this many entries. `None` if it has more.
///
/// # Errors
/// As [`parse`].
pub fn parse_within(
    path: &Path,
    text: &str,
    names: &Names,
    entries_max: u64,
) -> anyhow::Result<Option<Content>> {
    let parse = |text: &str| Content::parse_within(text, names, entries_max);
    read(path, text, parse)
}

fn read<T>(
    path: &Path,
    text: &str,
    parse: impl Fn(&str) -> serde_json::Result<T>,
) -> anyhow::Result<T> {
    let text = without_bom(text);
    if text.trim().is_empty() {
        bail!("{} is empty: it must hold at least `{{}}`", path.display());
    }
    parse(text).with_context(|| format!("the directory {} can't be used", path.display()))
}

/// Loads a directory file, for a command that reads it once. The default file may be missing, which
/// is printed as a warning.
///
/// # Errors
/// If it can't be read, or was named and is missing.
pub fn load(path: &Path, is_named: bool, names: &Names) -> anyhow::Result<Directory> {
    match read_text(path)? {
        Some(text) => Ok(parse(path, &text, names)?.replace(&Directory::new()).0),
        None if is_named => bail!("{} does not exist", path.display()),
        None => {
            eprint_line(format_args!("warning: {}", missing_message(path)));
            Ok(Directory::new())
        }
    }
}

/// The message that the default directory file is missing.
pub fn missing_message(path: &Path) -> String {
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
        let load_of = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            load(&path, true, &Names::new())
        };
        let directory = load_of(b"\xef\xbb\xbf{\"contacts\":{\"a\":[\"b\"]}}").unwrap();
        assert_eq!(directory.len(), 2);
        for text in ["", " \n", "\u{feff}"] {
            let error = load_of(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("is empty"), "{text:?}: {error}");
        }
        assert!(load_of(b"\xff\xfe{}").is_err());
        assert!(load_of(b"{}").unwrap().is_empty());
        std::fs::remove_file(&path).unwrap();
        assert!(load(&path, true, &Names::new()).is_err());
        assert!(load(&path, false, &Names::new()).unwrap().is_empty());
    }
}
