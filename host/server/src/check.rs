//! `presence check`: all that is wrong, before it is run.

use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use presence_core::names::Names;

use crate::config::{self, Config};
use crate::directory;
use crate::loader::Loader;

/// Checks the configuration, the directory and the plugins.
pub(crate) fn run(path: Option<&Path>) -> anyhow::Result<()> {
    let (config, wrong) = Config::load_with_problems(path, std::env::vars())?;
    let wrong = wrong.iter().flat_map(|problems| problems.iter());
    let mut problems: Vec<anyhow::Error> = wrong
        .map(|problem| anyhow::anyhow!(problem.to_string()))
        .collect();
    for (key, file) in config.nats.files() {
        let opened = File::open(file);
        let opened = opened.with_context(|| format!("[nats] {key}: can't read {}", file.display()));
        problems.extend(opened.err());
    }
    if let config::Directory::File { path } = &config.directory {
        if let Some(what) = directory::missing(path) {
            eprintln!("warning: {what}");
        }
        problems.extend(directory::read_file(path, &Names::new()).err());
    }
    let loader = Loader::new()?;
    problems.extend(loader.load(&config, true, None).err().into_iter().flatten());
    problems.extend(loader.problems_beside(&config));
    for problem in &problems {
        eprintln!("error: {problem:#}");
    }
    let found = problems.len();
    anyhow::ensure!(
        found == 0,
        "{found} problem{} found",
        if found == 1 { "" } else { "s" }
    );
    println!("ok: {}", config.pipeline_line());
    Ok(())
}
