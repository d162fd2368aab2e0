//! A folder of compiled plugins: only code that was written there with the same key is run.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use presence_sandbox::{Engine, Plugin, self_test};

use crate::stage::{LIMITS, bytes};

/// Loads a plugin, and runs its self-tests. Returns the numbers of cache hits and of refused files.
fn load(folder: &Path, key: &[u8], file: &str) -> (u64, u64) {
    let engine = Engine::with_cache(folder, key).unwrap();
    let plugin = Arc::new(Plugin::load(&engine, file, &bytes(file)).unwrap());
    let mut outcomes = self_test::run(&plugin, LIMITS);
    assert!(outcomes.all(|outcome| outcome.passes()));
    (engine.cache_hits(), engine.cache_refusals())
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The only file in a new folder after a plugin was loaded.
fn kept(key: &[u8], file: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(load(folder.path(), key, file), (0, 0));
    let kept = files(folder.path());
    assert_eq!(kept.len(), 1, "{kept:?}");
    (folder, kept[0].clone())
}

#[test]
fn what_was_compiled_is_not_compiled_again() {
    let (folder, kept) = kept(b"key", "contacts");
    assert_eq!(load(folder.path(), b"key", "contacts"), (1, 0));
    assert_eq!(load(folder.path(), b"key", "groups"), (0, 0));
    let mode = fs::metadata(kept).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_flipped_bit_anywhere_has_it_compiled_anew_and_replaced() {
    let (folder, path) = kept(b"key", "contacts");
    let sound = fs::read(&path).unwrap();
    // One bit in the digest, in the header, in the code and at the end.
    let places = [0, 40, sound.len() / 2, sound.len() - 1];
    for place in places {
        let mut bytes = sound.clone();
        bytes[place] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(load(folder.path(), b"key", "contacts"), (0, 1), "{place}");
        assert_eq!(load(folder.path(), b"key", "contacts"), (1, 0), "{place}");
    }
}

#[test]
fn what_is_cut_off_empty_longer_or_no_code_at_all_is_replaced() {
    let (folder, path) = kept(b"key", "contacts");
    let sound = fs::read(&path).unwrap();
    for bytes in [
        Vec::new(),
        sound[..32].to_vec(),
        sound[..sound.len() / 2].to_vec(),
        [&sound[..], b"\0"].concat(),
    ] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(load(folder.path(), b"key", "contacts"), (0, 1));
    }
    assert_eq!(load(folder.path(), b"key", "contacts"), (1, 0));
}

#[test]
fn code_of_another_plugin_or_of_who_has_not_the_key_is_not_run() {
    let (folder, path) = kept(b"key", "contacts");
    let (_other, groups) = kept(b"key", "groups");
    fs::copy(groups, &path).unwrap();
    assert_eq!(load(folder.path(), b"key", "contacts"), (0, 1));
    // With another key the file isn't found, since its name differs. Under the right name, it is
    // refused.
    assert_eq!(load(folder.path(), b"another", "contacts"), (0, 0));
    let all = files(folder.path());
    let theirs = all.iter().find(|file| **file != path).unwrap();
    fs::copy(theirs, &path).unwrap();
    assert_eq!(load(folder.path(), b"key", "contacts"), (0, 1));
    assert_eq!(load(folder.path(), b"key", "contacts"), (1, 0));
}

#[test]
fn links_pipes_and_folders_in_its_place_are_no_files() {
    let (folder, path) = kept(b"key", "contacts");
    let elsewhere = folder.path().join("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    assert_eq!(load(folder.path(), b"key", "contacts"), (0, 1));
    assert_eq!(load(folder.path(), b"key", "contacts"), (1, 0));

    // Nobody ever writes into this pipe, so reading it must not wait.
    fs::remove_file(&path).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    assert_eq!(load(folder.path(), b"key", "contacts"), (0, 1));
    assert_eq!(load(folder.path(), b"key", "contacts"), (1, 0));

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(load(folder.path(), b"key", "contacts"), (0, 1));
}

#[test]
fn where_nothing_can_be_kept_plugins_are_compiled_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone");
    assert_eq!(load(&gone, b"key", "contacts"), (0, 0));
    assert_eq!(load(&gone, b"key", "contacts"), (0, 0));
}
