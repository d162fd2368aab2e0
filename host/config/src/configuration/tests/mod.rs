//! The configuration as an operator sees it: files, variables, and the messages if something is
//! wrong.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

use tempfile::TempDir;

use super::*;

mod accepted;
mod effective;
mod overlaps;
mod refused;
mod tenants;

/// Loads a configuration from a file of this text, if there is any, and these variables.
fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, Problems> {
    let folder = folder_with(text);
    Config::load_in(folder.path(), None, variables(env))
}

fn folder_with(text: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    // An empty file would be refused.
    if !text.is_empty() {
        std::fs::write(folder.path().join(FILE_NAME), text).unwrap();
    }
    folder
}

fn variables(env: &[(&str, &str)]) -> impl Iterator<Item = (String, OsString)> {
    let owned: Vec<_> = env
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect();
    owned.into_iter()
}

/// The messages when this is loaded, without the folder of the file.
fn problems(text: &str, env: &[(&str, &str)]) -> Vec<String> {
    let folder = folder_with(text);
    let prefix = format!("{}/", folder.path().display());
    let problems = Config::load_in(folder.path(), None, variables(env)).unwrap_err();
    let printed = problems.to_string();
    assert_eq!(
        printed.lines().count(),
        problems.iter().count(),
        "{printed}"
    );
    printed
        .lines()
        .map(|line| line.replace(&prefix, ""))
        .collect()
}
