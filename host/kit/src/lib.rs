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

use std::path::{Path, PathBuf};

use presence_config::{Config, InStore, LoadedConfig, OfNode, Problems, Text, variables};

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
        self.load_with(&[])
    }

    /// As [`Self::load`], where these tenants are in the store.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with(&self, stored: &[InStore]) -> anyhow::Result<Config> {
        let path = self.config.as_deref();
        let text = Text::read(path)?;
        let node = OfNode {
            stored,
            ..OfNode::default()
        };
        let config = Config::parse_with(path, text.as_ref(), variables(), node)?;
        config.for_tenant(self.tenant.as_deref())
    }

    /// As [`Self::load`], with what sets each key, and what is wrong. Where the configuration
    /// has several tenants and none is named, it is what they have in common.
    ///
    /// # Errors
    /// A file that can't be read or isn't TOML, or a tenant that isn't there.
    pub fn read(&self) -> anyhow::Result<LoadedConfig> {
        let read = self.read_all()?;
        match &self.tenant {
            Some(name) => read.of_tenant(name),
            None => Ok(read),
        }
    }

    /// Reads the configuration of the process, with all of its tenants, whichever is meant.
    ///
    /// # Errors
    /// A file that can't be read, or isn't TOML.
    #[expect(clippy::disallowed_methods, reason = "all tenants are meant")]
    pub fn read_all(&self) -> Result<LoadedConfig, Problems> {
        Config::load_with_problems(self.config.as_deref(), variables())
    }

    /// Reads another file than the one that is in force here, without variables, which are for
    /// the node: that of the tenant that is meant, if the file has several.
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
