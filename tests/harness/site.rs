//! The folder that a host runs in: `presence.toml`, `directory.json` and `plugins.d`. Each is
//! changed as an operator would change it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;
use toml::Table;

use crate::tools;

/// The directory in the contract's example: user 12345 is seen by 67890 (a contact) and 22222 (in
/// the same group), and not by 11111 (a contact, but blocked).
pub const DIRECTORY: &str = r#"{
  "contacts": {"12345": ["67890", "11111"]},
  "groups": {"team-a": ["12345", "22222"]},
  "blocks": {"12345": ["11111"]}
}"#;

/// A temporary folder with all that a host needs.
#[derive(Debug)]
pub struct Site {
    folder: TempDir,
    config: Table,
    http_port: u16,
}

impl Site {
    /// A site for the default pipeline, the contract's directory, and a broker.
    ///
    /// # Errors
    /// When its files can't be written.
    pub fn new(nats_url: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("presence-site-")
            .tempdir()?;
        fs::create_dir(folder.path().join("plugins.d"))?;
        let http_port = tools::free_port()?;
        let site = Self {
            folder,
            config: Table::new(),
            http_port,
        };
        site.write_directory(DIRECTORY)?;
        site.with("nats.url", nats_url)?
            .with("http.listen", format!("127.0.0.1:{http_port}"))?
            // Hosts share compiled plugins.
            .with(
                "plugins.cache",
                tools::compiled().to_string_lossy().as_ref(),
            )?
            // Each site has a node name of its own: nodes on one machine would share the default
            // name.
            .with("node.name", format!("node-{http_port}"))
    }

    /// Sets a key of the configuration: `site.with("tracker.timeout_ms", 500)`.
    ///
    /// # Errors
    /// When the file can't be written, or a part of the path isn't a table.
    pub fn with(mut self, key: &str, value: impl Into<toml::Value>) -> Result<Self> {
        self.set(key, value)?;
        Ok(self)
    }

    /// Sets a key of the configuration and rewrites the file in one step.
    ///
    /// # Errors
    /// As [`Self::with`].
    pub fn set(&mut self, key: &str, value: impl Into<toml::Value>) -> Result<()> {
        let (path, name) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = &mut self.config;
        for part in path.split('.').filter(|part| !part.is_empty()) {
            let entry = table.entry(part).or_insert_with(|| Table::new().into());
            table = entry
                .as_table_mut()
                .with_context(|| format!("`{part}` is no table"))?;
        }
        table.insert(name.into(), value.into());
        tools::write_atomically(&self.config_path(), toml::to_string(&self.config)?)
    }

    /// Sets the pipeline: each stage's plugin, and its configuration if it has
    /// one.
    ///
    /// # Errors
    /// As [`Self::with`].
    pub fn set_pipeline(&mut self, stages: &[(&str, Option<Table>)]) -> Result<()> {
        let stages = stages.iter().map(|(plugin, config)| {
            let mut stage = Table::new();
            stage.insert("plugin".into(), (*plugin).into());
            if let Some(config) = config {
                stage.insert("config".into(), config.clone().into());
            }
            toml::Value::from(stage)
        });
        self.set("pipeline", stages.collect::<Vec<_>>())
    }

    /// Sets a key of a plugin's stage. The pipeline has to be set before.
    ///
    /// # Errors
    /// When there is no such stage, or as [`Self::with`].
    pub fn set_stage(
        &mut self,
        plugin: &str,
        key: &str,
        value: impl Into<toml::Value>,
    ) -> Result<()> {
        let mut stages = self
            .config
            .get("pipeline")
            .and_then(|stages| stages.as_array())
            .cloned()
            .unwrap_or_default();
        let stage = stages
            .iter_mut()
            .filter_map(toml::Value::as_table_mut)
            .find(|stage| stage.get("plugin").and_then(|name| name.as_str()) == Some(plugin));
        stage
            .with_context(|| format!("`{plugin}` is no stage"))?
            .insert(key.into(), value.into());
        self.set("pipeline", stages)
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.path().join("presence.toml")
    }

    /// The directory file.
    #[must_use]
    pub fn directory_path(&self) -> PathBuf {
        self.path().join("directory.json")
    }

    /// The file with the offset of the host's wall clock, in milliseconds.
    #[must_use]
    pub fn clock_offset_path(&self) -> PathBuf {
        self.path().join("clock-offset-ms")
    }

    /// Sets the host's wall clock, while it runs or before it starts. `ahead_ms`: how many
    /// milliseconds it is ahead of the machine's; negative if it is behind.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn set_wall_clock(&self, ahead_ms: i64) -> Result<()> {
        tools::write_atomically(&self.clock_offset_path(), ahead_ms.to_string())
    }

    /// The place of a plugin's file in the plugin folder.
    #[must_use]
    pub fn plugin_path(&self, name: &str) -> PathBuf {
        self.path().join("plugins.d").join(format!("{name}.wasm"))
    }

    /// The port of the host's HTTP endpoint.
    #[must_use]
    pub fn http_port(&self) -> u16 {
        self.http_port
    }

    /// Replaces the directory file in one step.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_directory(&self, json: &str) -> Result<()> {
        tools::write_atomically(&self.directory_path(), json)
    }

    /// As [`Self::write_directory`], from a value.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_directory_value(&self, value: &Value) -> Result<()> {
        self.write_directory(&value.to_string())
    }

    /// Puts a plugin's file into the plugin folder in one step, as `<name>.wasm`. It replaces the
    /// plugin of this name.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_plugin(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        tools::write_atomically(&self.plugin_path(name), bytes)
    }
}
