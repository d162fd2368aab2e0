//! `[[pipeline]]`: the chain of plugins that decides who may see whom.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use toml::de::DeValue;

use super::checks::token;
use super::problem::{InvalidValue, Place};
use super::section::Section;
use super::value::{other_kind, to_json};
use crate::digest::Digest;

/// The plugins that are granted `widen` unless the file says otherwise.
const WIDENING: [&str; 2] = ["contacts", "groups"];

/// The highest number of stages: each has an instance in every worker.
pub(crate) const STAGES_MAX: usize = 64;

/// `[[pipeline]]`: one plugin of the chain. A plugin may stand in it more than
/// once.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// The plugin's name: one token of `[A-Za-z0-9_-]`.
    pub plugin: String,
    /// What the plugin is configured with: a JSON object, empty by default.
    pub config: Value,
    /// What the plugin may do if it asks for it.
    pub grants: Vec<Grant>,
    /// Where the plugin must come from. `None`: from wherever it is found.
    pub source: Option<Source>,
    /// The digest that the plugin's bytes must have. `None`: any.
    pub digest: Option<Digest>,
    /// What happens when the plugin has failed repeatedly. `None`: the plugin decides.
    pub on_failure: Option<OnFailure>,
    /// Where its entry is.
    pub place: StagePlace,
}

/// Where the entry of a stage is. `None` for a stage of the default pipeline. The place doesn't
/// change what the stage does: so all places are equal, and none is printed.
#[derive(Clone, Default)]
pub struct StagePlace(pub Option<Place>);

impl PartialEq for StagePlace {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for StagePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("_")
    }
}

/// What happens when a plugin has failed repeatedly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Nobody new is told, and enrichers are skipped.
    Hold,
    /// The last good generation takes over.
    LastGood,
}

/// Where a plugin can come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// From the program, even if the plugin folder has one of the same name.
    BuiltIn,
    /// From the plugin folder, and never from the program.
    Folder,
}

/// What an operator can grant a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grant {
    /// A filter may add viewers, and not only take them away.
    Widen,
    /// A plugin may import WASI, all of which is denied.
    Wasi,
    /// A plugin may ask the directory for contacts.
    Contacts,
    /// A plugin may ask the directory for groups and who is in them.
    Groups,
    /// A plugin may ask the directory for blocks.
    Blocks,
    /// A plugin may ask the directory for settings.
    Settings,
    /// A plugin may ask the directory for all users that it knows.
    Everyone,
    /// A plugin may write to the log.
    Log,
    /// None of the grants from `Contacts` on. A list that names none of these, and not `none`,
    /// grants them all.
    None,
}

/// Every grant, with its spelling.
const GRANTS: [(&str, Grant); 9] = [
    ("widen", Grant::Widen),
    ("wasi", Grant::Wasi),
    ("contacts", Grant::Contacts),
    ("groups", Grant::Groups),
    ("blocks", Grant::Blocks),
    ("settings", Grant::Settings),
    ("everyone", Grant::Everyone),
    ("log", Grant::Log),
    ("none", Grant::None),
];

/// The pipeline of a file that has none: contacts and groups, without blocked users, and only the
/// device of the metadata.
pub(super) fn default() -> Vec<Stage> {
    let plain = ["contacts", "groups", "blocklist"].map(|plugin| (plugin, json!({})));
    let redact = ("redact", json!({ "keys": ["device"] }));
    let stages = plain.into_iter().chain([redact]);
    stages
        .map(|(plugin, config)| Stage {
            plugin: plugin.into(),
            config,
            grants: default_grants(plugin),
            source: None,
            digest: None,
            on_failure: None,
            place: StagePlace::default(),
        })
        .collect()
}

impl Stage {
    /// Reads one stage. `None` if the plugin's name or the configuration is missing or wrong, which
    /// is reported.
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let plugin = section.get("plugin", token);
        if !section.is_set("plugin") {
            let fix = "name one, such as `plugin = \"contacts\"`";
            section.refuse("plugin", InvalidValue::new("is missing", fix));
        }
        let config = section.find("config").map(|(_, value)| match value {
            DeValue::Table(_) => to_json(value),
            _ => Err(other_kind(
                value,
                "a table, such as `{ keys = [\"device\"] }`",
            )),
        });
        let config = match config.unwrap_or(Ok(json!({}))) {
            Ok(config) => Some(config),
            Err(wrong) => {
                section.refuse("config", wrong);
                None
            }
        };
        let grants = section.get("grants", grants);
        let on_failure = section.get("on_failure", |text: String| match text.as_str() {
            "hold" => Ok(OnFailure::Hold),
            "last-good" => Ok(OnFailure::LastGood),
            _ => Err(InvalidValue::new(
                format!("is `{text}`"),
                "write `hold` or `last-good`",
            )),
        });
        let source = section.get("source", |text: String| match text.as_str() {
            "built-in" => Ok(Source::BuiltIn),
            "folder" => Ok(Source::Folder),
            _ => Err(InvalidValue::new(
                format!("is `{text}`"),
                "write `built-in` or `folder`",
            )),
        });
        let digest = section.get("digest", |text: String| {
            Digest::parse(&text).map_err(|_| {
                InvalidValue::new(
                    format!("is `{text}`"),
                    "write `sha256:` and the 64 hexadecimal digits of the file's SHA-256",
                )
            })
        });
        let plugin = plugin?;
        Some(Self {
            source,
            digest,
            on_failure,
            place: StagePlace(Some(section.place().clone())),
            config: config?,
            grants: grants.unwrap_or_else(|| default_grants(&plugin)),
            plugin,
        })
    }
}

impl Grant {
    /// The grant as it is written.
    pub fn as_str(self) -> &'static str {
        let written = GRANTS.iter().find(|(_, grant)| *grant == self);
        written.map_or("", |(name, _)| name)
    }
}

/// A list of grants.
pub(super) fn grants(names: Vec<String>) -> Result<Vec<Grant>, InvalidValue> {
    let grant = |name: &String| {
        let known = GRANTS.iter().find(|(known, _)| known == name);
        known.map(|(_, grant)| *grant).ok_or_else(|| {
            let known = GRANTS.map(|(name, _)| format!("`{name}`"));
            let fix = format!("write some of {}", known.join(", "));
            InvalidValue::new(format!("names `{name}`"), fix)
        })
    };
    let grants: Vec<_> = names.iter().map(grant).collect::<Result<_, _>>()?;
    let is_beside = |it: &&Grant| !matches!(it, Grant::None | Grant::Widen | Grant::Wasi);
    match grants.iter().find(is_beside) {
        Some(other) if grants.contains(&Grant::None) => {
            let what = format!("names `none` and `{}`", other.as_str());
            Err(InvalidValue::new(what, "keep one of them"))
        }
        _ => Ok(grants),
    }
}

fn default_grants(plugin: &str) -> Vec<Grant> {
    if WIDENING.contains(&plugin) {
        vec![Grant::Widen]
    } else {
        Vec::new()
    }
}
