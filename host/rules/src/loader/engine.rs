//! The engine that compiles and runs plugins, with its cache of compiled code.

use anyhow::Context as _;
use presence_config::{self as config, Config};
use presence_sandbox::Engine;

use crate::private;

/// An engine that caches compiled code in the configured folder. If there is none, or it isn't
/// safe, the engine caches nothing.
pub fn engine(config: &Config) -> anyhow::Result<Engine> {
    let Some(folder) = &config.plugins.cache else {
        return Ok(Engine::new()?);
    };
    let engine = || -> anyhow::Result<Engine> {
        private::trusted_folder(folder)?;
        Ok(Engine::with_cache(folder, &cache_key(&config.state)?)?)
    };
    engine().or_else(|error| {
        tracing::warn!("compiled plugins are not kept ([plugins] cache): {error:#}");
        Ok(Engine::new()?)
    })
}

/// The key that authenticates cached code. It is in the user's own state folder, so that all nodes
/// and commands of the user share it. If that fails, it is in the node's configured one.
fn cache_key(state: &config::State) -> anyhow::Result<private::Key> {
    let own = match config::own_state() {
        Some(folder) => private::key(&folder),
        None => Err(anyhow::anyhow!("the user has no folder for state")),
    };
    own.or_else(|error| match &state.dir {
        Some(dir) if !state.dir_is_default => private::key(dir),
        _ => Err(error),
    })
    .context("there is no place for the key that they are signed with")
}
