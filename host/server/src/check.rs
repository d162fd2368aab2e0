//! `presence check`: all that is wrong, before it is run.

use std::path::Path;

use presence_core::names::Names;

use crate::config::{self, Config};
use crate::directory;
use crate::escape::{print, say};
use crate::in_force::InForce;
use crate::loader::Loader;
use crate::log;
use crate::state;

/// Checks the configuration, the directory and the plugins.
pub(crate) fn run(path: Option<&Path>) -> anyhow::Result<()> {
    let (config, wrong) = Config::load_with_problems(path, config::variables())?;
    let wrong = wrong.iter().flat_map(|problems| problems.iter());
    let mut problems: Vec<anyhow::Error> = wrong
        .map(|problem| anyhow::anyhow!(problem.to_string()))
        .collect();
    problems.extend(log::level(&config.log).err());
    problems.extend(config.nats.unreadable());
    if let config::Directory::File { path, is_named } = &config.directory {
        problems.extend(directory::load(path, *is_named, &Names::new()).err());
    }
    problems.extend(state::problem(&config.state));
    let mut loader = Loader::new(&config)?;
    match InForce::read(&config) {
        Ok(in_force) => loader = loader.knowing(in_force),
        Err(problem) => problems.push(problem),
    }
    problems.extend(loader.load(&config, true).err().into_iter().flatten());
    problems.extend(loader.problems_beside(&config));
    for problem in &problems {
        say(format_args!("error: {problem:#}"));
    }
    let found = problems.len();
    anyhow::ensure!(
        found == 0,
        "{found} problem{} found",
        if found == 1 { "" } else { "s" }
    );
    print(format_args!("ok: {}\n", config.pipeline_line()))?;
    Ok(())
}
