//! What authors of plugins run offline: [`plugin`] makes, builds, tests and measures plugins, and
//! [`replay`] runs recorded traffic through a pipeline. None of it needs a broker.

// Printing panics once the reader is gone, as with `| head`.
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

use std::path::{Path, PathBuf};

use presence_config::{Config, LoadedConfig, NodeTenants, Problems, StoredEntry, Text, variables};

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
    /// Reads the configuration of the selected tenant.
    ///
    /// # Errors
    /// What is wrong with it, or if it has several tenants and none is selected.
    pub fn load(&self) -> anyhow::Result<Config> {
        self.load_with(&[])
    }

    /// Like [`Self::load`], with these tenants in the store.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with(&self, stored: &[StoredEntry]) -> anyhow::Result<Config> {
        let path = self.config.as_deref();
        let text = Text::read(path)?;
        let node = NodeTenants {
            stored,
            ..NodeTenants::default()
        };
        let config = Config::parse_with(path, text.as_ref(), variables(), node)?;
        config.for_tenant(self.tenant.as_deref())
    }

    /// Like [`Self::load`], with the source of each key's value, and all problems. If the
    /// configuration has several tenants and none is selected, it is what they have in common.
    ///
    /// # Errors
    /// If the file can't be read or isn't TOML, or the tenant doesn't exist.
    pub fn read(&self) -> anyhow::Result<LoadedConfig> {
        let read = self.read_all()?;
        match &self.tenant {
            Some(name) => read.of_tenant(name),
            None => Ok(read),
        }
    }

    /// Reads the configuration of the process, with all of its tenants, whichever is selected.
    ///
    /// # Errors
    /// If the file can't be read, or isn't TOML.
    #[expect(clippy::disallowed_methods, reason = "all tenants are meant")]
    pub fn read_all(&self) -> Result<LoadedConfig, Problems> {
        Config::load_with_problems(self.config.as_deref(), variables())
    }

    /// Reads another file than the one in force here, without environment variables, which are for
    /// this node only. If the file has several tenants, it is the selected tenant's configuration.
    ///
    /// # Errors
    /// As [`Self::load`].
    #[expect(clippy::disallowed_methods, reason = "the tenant is looked up here")]
    pub fn load_file(&self, file: &Path) -> anyhow::Result<Config> {
        let config = Config::load(Some(file), std::iter::empty())?;
        match &config.tenants {
            Some(_) => config.for_tenant(self.tenant.as_deref()),
            None => Ok(config),
        }
    }
}
