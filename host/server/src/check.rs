//! `presence check`: all that is wrong, before it is run.

use std::path::Path;

use presence_core::directory::Directory;
use presence_core::names::Names;

use crate::blueprint::Loader;
use crate::config::{self, Config};
use crate::directory_file;

/// Checks the configuration, the directory and the plugins.
pub(crate) fn run(path: Option<&Path>) -> anyhow::Result<()> {
    let config = Config::load(path, std::env::vars())?;
    let mut wrong = 0;
    let mut say = |what: anyhow::Error| {
        eprintln!("error: {what:#}");
        wrong += 1;
    };
    if let config::Directory::File { path } = &config.directory
        && let Err(error) = directory_file::load(path, &Names::new(), &Directory::new())
    {
        say(error);
    }
    let loader = Loader::new()?;
    let problems = loader.problems(&config);
    if problems.is_empty()
        && let Err(error) = loader.load(&config, true)
    {
        say(error);
    }
    problems.into_iter().for_each(&mut say);
    anyhow::ensure!(wrong == 0, "{wrong} problem(s) found");
    let plugins: Vec<_> = config
        .pipeline
        .iter()
        .map(|stage| stage.plugin.as_str())
        .collect();
    println!("ok: pipeline {}", plugins.join(" → "));
    Ok(())
}
