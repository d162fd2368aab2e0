//! Entry points for fuzzers: the readers of directory data, with assertions about what they accept.

use presence_core::directory::Directory;
use presence_core::names::Names;

use super::content::Content;
use super::entry::{self, Key};
use super::export::Export;

pub use super::service_fuzz::service;

/// Reads the text of a directory file. Written and read again, it must be the same directory.
pub fn file(text: &str) -> bool {
    let names = Names::new();
    let Ok(content) = Content::parse(text, &names) else {
        return false;
    };
    let (directory, _) = content.replace(&Directory::new());
    let written = serde_json::to_string(&Export::of(&directory, &names));
    let written = written.expect("a directory can be written");
    let again = Content::parse(&written, &names).expect("what is written can be read");
    let (same, changes) = again.replace(&directory);
    assert!(changes.is_empty(), "{written}");
    let again = Content::parse(&written, &names).expect("what is written can be read");
    let (fresh, _) = again.replace(&Directory::new());
    assert_eq!(fresh.len(), same.len(), "{written}");
    let nothing = Content::default().replace(&fresh).0;
    assert!(nothing.is_empty(), "{written}");
    true
}

/// Reads an entry of a bucket. It has only one key, and its value is written as it is read.
pub fn entry(key: &str, value: &[u8]) -> bool {
    let names = Names::new();
    let Ok(parsed) = Key::parse(key) else {
        return false;
    };
    let question = parsed.question(&names);
    assert_eq!(entry::key_of(&question, &names).as_deref(), Some(key));
    let mut edit = Directory::new().edit();
    if parsed.apply(&mut edit, &names, Some(value)).is_err() {
        return false;
    }
    let (directory, _) = edit.finish();
    if let Some(written) = entry::value_of(&directory, &question, &names) {
        let mut edit = directory.edit();
        let taken = parsed.apply(&mut edit, &names, Some(written.as_bytes()));
        taken.expect("what is written can be read");
        assert!(edit.finish().1.is_empty(), "{written}");
    }
    true
}
