//! Compiled plugins, kept in a folder.

use std::fs;
use std::sync::Arc;

use presence_sandbox::{Engine, Plugin, self_test};

use crate::stage::{LIMITS, bytes};

#[test]
fn what_was_compiled_is_not_compiled_again() {
    let folder = tempfile::tempdir().unwrap();
    let load = |file: &str| {
        let engine = Engine::caching(folder.path()).unwrap();
        let plugin = Arc::new(Plugin::load(&engine, file, &bytes(file)).unwrap());
        let mut outcomes = self_test::run(&plugin, LIMITS);
        assert!(outcomes.all(|outcome| outcome.passes()));
        engine.cache_hits()
    };
    assert_eq!(load("contacts"), 0);
    assert_eq!(load("contacts"), 1);
    assert_eq!(load("groups"), 0);
}

#[test]
fn what_is_damaged_is_compiled_again() {
    let folder = tempfile::tempdir().unwrap();
    let load = || {
        let engine = Engine::caching(folder.path()).unwrap();
        Plugin::load(&engine, "contacts", &bytes("contacts")).unwrap();
        engine.cache_hits()
    };
    assert_eq!(load(), 0);
    let mut folders = vec![folder.path().to_owned()];
    let mut damaged = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                fs::write(path, "no code").unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged > 0);
    assert_eq!(load(), 0);
}

#[test]
fn a_file_is_no_folder_to_keep_anything_in() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let Err(refusal) = Engine::caching(file.path()) else {
        panic!("it was taken");
    };
    assert!(
        refusal
            .to_string()
            .starts_with("can't start the WebAssembly engine: ")
    );
}
