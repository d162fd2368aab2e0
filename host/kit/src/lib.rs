//! What authors of plugins run offline: [`plugin`] makes, builds, tests and measures one,
//! and [`replay`] runs recorded traffic through a pipeline. Nothing of it knows a broker.

// It panics once nobody reads any more, as with `| head`.
#![warn(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::disallowed_methods,
        reason = "a test may panic"
    )
)]

pub mod explained;
pub mod figures;
pub mod plugin;
pub mod replay;
pub mod text;

use std::path::PathBuf;

use presence_config::Config;

/// Which configuration is meant.
#[derive(clap::Args)]
pub struct ConfigArg {
    /// The configuration file. Without it, presence.toml in the working folder, if there is one.
    #[arg(long, env = "PRESENCE_CONFIG")]
    pub config: Option<PathBuf>,
    /// The tenant, where the configuration has several (`[[tenant]]`).
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
}

impl ConfigArg {
    /// Reads the configuration, of the tenant that is meant.
    ///
    /// # Errors
    /// What is wrong with it, or if it isn't said which of several tenants is meant.
    pub fn load(&self) -> anyhow::Result<Config> {
        let config = Config::load(self.config.as_deref(), presence_config::variables())?;
        config.for_tenant(self.tenant.as_deref())
    }
}
