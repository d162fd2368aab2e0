//! The settings in effect, key by key, and what sets each: for `presence config` and `presence
//! check`. A key that nothing sets has the default that the reference file documents. A test checks
//! that this is the default that is read.

use std::path::PathBuf;
use std::sync::LazyLock;

use serde::Serialize;
use serde_json::{Value, json};
use toml::Table;
use url::Url;

use super::problem::{Place, Problems};
use super::{Auth, Config, Directory};

/// The reference configuration: every key with its default.
const REFERENCE: &str = include_str!("../../../../presence.toml");

/// Keys without a default: their values in the reference file are examples.
const WITHOUT_DEFAULT: [&str; 12] = [
    "nats.creds",
    "nats.nkey",
    "nats.user",
    "nats.password",
    "nats.token",
    "nats.tls.ca",
    "nats.tls.cert",
    "nats.tls.key",
    "http.admin_token",
    "telemetry.headers",
    "telemetry.headers_file",
    "plugins.grants",
];

/// The text that is shown instead of a secret.
const HIDDEN: &str = "(secret)";

/// A configuration, and what was found while reading it.
pub struct LoadedConfig {
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// The configuration, with the default in place of a value that is wrong.
    pub config: Config,
    /// The problems of the configuration.
    pub problems: Option<Problems>,
    /// Every key, in the order of the sections; a `[[pipeline]]` counts as one.
    pub settings: Vec<Setting>,
    /// The same for each of several tenants, in their order.
    pub(super) tenant_settings: Vec<Vec<Setting>>,
}

impl LoadedConfig {
    /// The same for one tenant: its keys, what sets them, and its problems.
    ///
    /// # Errors
    /// If there is no such tenant.
    pub fn of_tenant(&self, name: &str) -> anyhow::Result<Self> {
        let (place, section) = self.config.find_tenant(name)?;
        let (config, problems) = match &section.config {
            Ok(config) => (Config::clone(config), None),
            Err(problems) => (Config::default(), Some(problems.clone())),
        };
        let settings = self.tenant_settings.get(place).cloned();
        Ok(Self {
            file: self.file.clone(),
            config,
            problems,
            settings: settings.unwrap_or_default(),
            tenant_settings: Vec::new(),
        })
    }

    /// The configuration, if nothing is wrong with it.
    ///
    /// # Errors
    /// All problems.
    pub(super) fn into_result(self) -> Result<Config, Problems> {
        match self.problems {
            None => Ok(self.config),
            Some(problems) => Err(problems),
        }
    }
}

/// A key, and what sets it.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The key with its section, such as `nats.tls.ca`.
    pub key: String,
    /// Where its value is set. `None`: the default applies.
    pub place: Option<Place>,
    /// The value as it is written there. It may be a secret.
    written: Option<Value>,
}

impl Setting {
    /// A key that nothing sets.
    pub(super) fn default_of(key: String) -> Self {
        Self {
            key,
            place: None,
            written: None,
        }
    }

    /// Notes that the key is set to this value at this place.
    pub(super) fn set(&mut self, place: &Place, value: &impl Serialize) {
        self.place = Some(place.clone());
        self.written = serde_json::to_value(value).ok();
    }

    /// The value in effect. A secret is replaced by a fixed text. `None` if there is no value.
    pub fn effective(&self, config: &Config) -> Option<Value> {
        let path = |path: &PathBuf| Some(json!(path));
        let identity = config.nats.tls.identity.as_ref();
        match &*self.key {
            "node.name" => Some(json!(config.node.name)),
            // The value as written may hold a login.
            "nats.url" => {
                let servers: Vec<_> = config.nats.url.iter().map(Url::as_str).collect();
                Some(json!(servers))
            }
            "nats.creds" => match &config.nats.auth {
                Auth::Creds(file) => path(file),
                _ => None,
            },
            "nats.nkey" => match &config.nats.auth {
                Auth::Nkey(file) => path(file),
                _ => None,
            },
            "nats.user" => match &config.nats.auth {
                Auth::Password { user, .. } => Some(json!(user)),
                _ => None,
            },
            "nats.password" => match &config.nats.auth {
                Auth::Password { .. } => Some(json!(HIDDEN)),
                _ => None,
            },
            "nats.token" => match &config.nats.auth {
                Auth::Token(_) => Some(json!(HIDDEN)),
                _ => None,
            },
            "http.admin_token" => config.http.admin_token.as_ref().map(|_| json!(HIDDEN)),
            "telemetry.headers" => {
                let (are_set, _) = config.telemetry.has_headers();
                are_set.then(|| json!(HIDDEN))
            }
            "telemetry.headers_file" => config.telemetry.has_headers().1.and_then(path),
            "nats.tls.ca" => config.nats.tls.ca.as_ref().and_then(path),
            "nats.tls.cert" => identity.and_then(|own| path(&own.cert)),
            "nats.tls.key" => identity.and_then(|own| path(&own.key)),
            // Other keys may imply it.
            "nats.tls.required" => Some(json!(config.nats.tls.required)),
            "state.dir" => config.state.dir.as_ref().map_or(Some(json!("")), path),
            "plugins.dir" => path(&config.plugins.dir),
            "plugins.cache" => config.plugins.cache.as_ref().map_or(Some(json!("")), path),
            // Trusted keys imply it.
            "plugins.require_signature" => Some(json!(config.plugins.require_signature)),
            "directory.path" => match &config.directory {
                Directory::File { path: file, .. } => path(file),
                Directory::Kv { .. } | Directory::Request(_) => self.as_written(),
            },
            _ => self.as_written(),
        }
    }

    /// The keys that imply this one, if it has a value and isn't set itself.
    pub fn implied_by(&self, config: &Config) -> Option<&'static str> {
        let is_implied = self.place.is_none()
            && match &*self.key {
                "nats.tls.required" => config.nats.tls.required,
                "nats.user" | "nats.password" | "nats.token" => self.effective(config).is_some(),
                _ => false,
            };
        match &*self.key {
            _ if !is_implied => None,
            "nats.tls.required" => Some("nats.url or nats.tls"),
            _ => Some("nats.url"),
        }
    }

    /// The value as written, or the default.
    fn as_written(&self) -> Option<Value> {
        match &self.written {
            Some(written) => Some(written.clone()),
            None => default_of(&self.key),
        }
    }
}

/// The documented default of a key, if it has one.
fn default_of(key: &str) -> Option<Value> {
    static DEFAULTS: LazyLock<Table> = LazyLock::new(|| uncommented().parse().unwrap_or_default());
    if WITHOUT_DEFAULT.contains(&key) {
        return None;
    }
    let (sections, name) = key.rsplit_once('.')?;
    let mut table = &*DEFAULTS;
    for section in sections.split('.') {
        table = table.get(section)?.as_table()?;
    }
    serde_json::to_value(table.get(name)?).ok()
}

/// The reference file in which the keys that are commented out apply, too.
pub(super) fn uncommented() -> String {
    let lines = REFERENCE.lines().map(|line| match line.strip_prefix("# ") {
        Some(key) if key.contains(" = ") => key,
        _ => line,
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}
