//! A revision of a pipeline, as the plugin store keeps it: the chain with each plugin pinned by
//! the digest of its bytes, and who made it, when and why. One JSON document, which is never
//! changed once it is written.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context as _, ensure};
use presence_core::share::Share;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::abort_on::AbortOn;
use crate::causes::Causes;
use crate::configuration::STAGES_MAX;
use crate::digest::Digest;
use crate::escape::{cut, escape_json};
use crate::{Grant, OnFailure, Stage, StagePlace, name};

/// The longest `who` and the longest `why`, in bytes.
pub const WORDS_BYTES_MAX: usize = 4_096;

/// The highest number of a revision. There will be far fewer, and every reader of JSON reads it
/// exactly.
pub const NUMBER_MAX: u64 = 1_000_000_000_000;

/// A revision of a pipeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revision {
    /// Its number, counted from 1. The revision with the highest number is in force.
    pub revision: u64,
    /// The stages, in order.
    pub chain: Vec<Entry>,
    /// The canary. `None` if there is none.
    #[serde(default)]
    pub candidate: Option<Candidate>,
    /// Who made it, by their own account.
    pub who: String,
    /// When it was made, in milliseconds since the Unix epoch.
    pub when: u64,
    /// Why it was made. Empty if nobody said.
    #[serde(default)]
    pub why: String,
}

/// A stage of a revision: what a `[[pipeline]]` section says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The plugin's name.
    pub plugin: String,
    /// The digest of the plugin's bytes.
    pub digest: Digest,
    /// The plugin's configuration.
    #[serde(default)]
    pub config: Map<String, Value>,
    /// The plugin's grants.
    #[serde(default)]
    pub grants: Vec<Grant>,
    /// What happens when the plugin has failed repeatedly. `None`: the plugin decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
}

/// A canary: a plugin that decides for a share of the users, in place of the plugin of the same
/// name in the chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// The plugin's name.
    pub plugin: String,
    /// The digest of the plugin's bytes.
    pub digest: Digest,
    /// The share of the users.
    pub percent: Share,
    /// The rules by which it ends itself. Empty: it doesn't.
    #[serde(default)]
    pub abort_on: AbortOn,
    /// After how many milliseconds it is promoted by itself. `None`: it isn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promote_after_ms: Option<u64>,
    /// When it began, in milliseconds since the Unix epoch. It stays the same canary when its share
    /// changes.
    pub started_at: u64,
}

impl Candidate {
    /// The chain with this plugin's bytes in place of those of the same name.
    pub fn applied_to(&self, chain: &[Entry]) -> Vec<Entry> {
        let mut chain = chain.to_vec();
        for entry in chain.iter_mut().filter(|it| it.plugin == self.plugin) {
            entry.digest = self.digest.clone();
        }
        chain
    }

    /// Whether both are the same canary, whatever their shares.
    pub fn is_same(&self, other: &Self) -> bool {
        self.plugin == other.plugin
            && self.digest == other.digest
            && self.started_at == other.started_at
    }

    /// The plugin's name, and the beginning of its digest.
    pub fn label(&self) -> String {
        format!("{}@{}", self.plugin, self.digest.short())
    }
}

impl Revision {
    /// Reads a revision as it is stored.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        Self::read(bytes).map_err(|error| {
            let why = Causes(&error).to_string();
            match cut(&why) {
                Cow::Borrowed(_) => error,
                // The error may quote as much as the whole revision.
                Cow::Owned(why) => anyhow::anyhow!(why),
            }
        })
    }

    fn read(bytes: &[u8]) -> anyhow::Result<Self> {
        let revision: Self = serde_json::from_slice(bytes).context("it is no revision")?;
        ensure!(revision.revision > 0, "revisions are counted from 1");
        ensure!(
            revision.revision <= NUMBER_MAX,
            "its number is above {NUMBER_MAX}"
        );
        ensure!(
            revision.chain.len() <= STAGES_MAX,
            "it has {} stages, and at most {STAGES_MAX} can run",
            revision.chain.len()
        );
        for entry in &revision.chain {
            let named = name(&entry.plugin);
            named.map_err(|fix| anyhow::anyhow!("the plugin's name `{}`: {fix}", entry.plugin))?;
        }
        if let Some(candidate) = &revision.candidate {
            let plugin = &candidate.plugin;
            ensure!(
                revision.chain.iter().any(|entry| entry.plugin == *plugin),
                "its candidate is the plugin `{plugin}`, which its chain lacks"
            );
        }
        for words in [&revision.who, &revision.why] {
            ensure!(
                words.len() <= WORDS_BYTES_MAX,
                "who or why is longer than {WORDS_BYTES_MAX} bytes"
            );
        }
        Ok(revision)
    }

    /// The stored form of the revision. Plain data always has a JSON form.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The stages, in the form of a configuration.
    pub fn stages(&self) -> Vec<Stage> {
        self.chain.iter().map(Entry::stage).collect()
    }

    /// The stages that decide for the candidate's share of the users. `None` without a candidate.
    pub fn candidate_stages(&self) -> Option<Vec<Stage>> {
        let candidate = self.candidate.as_ref()?;
        let chain = candidate.applied_to(&self.chain);
        Some(chain.iter().map(Entry::stage).collect())
    }

    /// The digests of all plugins that it needs.
    pub fn digests(&self) -> BTreeSet<Digest> {
        let candidate = self.candidate.iter().map(|it| &it.digest);
        let chain = self.chain.iter().map(|it| &it.digest);
        chain.chain(candidate).cloned().collect()
    }

    /// The stages, in the form of a file for `presence pipeline apply`.
    pub fn to_toml(&self) -> String {
        toml_of(&self.chain)
    }
}

impl Entry {
    /// The entry for a stage that runs these bytes.
    pub fn of(stage: &Stage, digest: Digest) -> Self {
        let config = stage.config.as_object().cloned().unwrap_or_default();
        Self {
            plugin: stage.plugin.clone(),
            digest,
            config,
            grants: stage.grants.clone(),
            on_failure: stage.on_failure,
        }
    }

    fn stage(&self) -> Stage {
        Stage {
            plugin: self.plugin.clone(),
            config: Value::Object(self.config.clone()),
            grants: self.grants.clone(),
            source: None,
            digest: Some(self.digest.clone()),
            on_failure: self.on_failure,
            place: StagePlace::default(),
        }
    }
}

/// A value in one line of TOML. `None` if TOML can't express it.
fn inline(value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(is) => is.to_string(),
        // TOML has no integers as large as this.
        Value::Number(number) if number.is_u64() && !number.is_i64() => return None,
        Value::Number(number) => number.to_string(),
        Value::String(text) => string(text),
        Value::Array(items) => {
            let items: Option<Vec<_>> = items.iter().map(inline).collect();
            format!("[{}]", items?.join(", "))
        }
        Value::Object(entries) if entries.is_empty() => "{}".to_owned(),
        Value::Object(entries) => {
            let entries = entries.iter().map(|(key, value)| {
                let in_bare = |it: char| it.is_ascii_alphanumeric() || "-_".contains(it);
                let is_bare = !key.is_empty() && key.chars().all(in_bare);
                let key = if is_bare { key.clone() } else { string(key) };
                Some(format!("{key} = {}", inline(value)?))
            });
            let entries: Option<Vec<_>> = entries.collect();
            format!("{{ {} }}", entries?.join(", "))
        }
    })
}

/// A TOML string. All escapes of JSON are also escapes of TOML.
fn string(text: &str) -> String {
    let json = Value::from(text).to_string();
    escape_json(&json).into_owned()
}

/// Stages in the form of a file for `presence pipeline apply`.
pub fn toml_of(chain: &[Entry]) -> String {
    let mut text = String::new();
    for entry in chain {
        let Entry {
            plugin,
            digest,
            config,
            grants,
            on_failure,
        } = entry;
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = write!(
            text,
            "[[pipeline]]\nplugin = \"{plugin}\"\ndigest = \"{digest}\"\n"
        );
        let grants: Vec<_> = grants.iter().map(|it| format!("{:?}", word(it))).collect();
        let _ = writeln!(text, "grants = [{}]", grants.join(", "));
        if let Some(on_failure) = on_failure {
            let _ = writeln!(text, "on_failure = {:?}", word(on_failure));
        }
        if !config.is_empty() {
            let config = Value::Object(config.clone());
            let line = match inline(&config) {
                Some(config) => format!("config = {config}"),
                // For example, because of a null. It is written as a string, so that nobody can
                // apply the file without noticing.
                None => format!(
                    "# A file can't say this configuration, and `apply` refuses it: it is here as JSON.\n\
                     config = {}",
                    string(&config.to_string())
                ),
            };
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

/// A word as a configuration spells it.
fn word(value: impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Config;
    use crate::escape::line;

    fn revision() -> Revision {
        let digest = |digit: &str| Digest::of_hex(&digit.repeat(64)).unwrap();
        let config = json!({"keys": ["device"], "deep": {"a": [1, 2.5, true]}, "text": "a\n\"b\""});
        Revision {
            revision: 7,
            chain: vec![
                Entry {
                    plugin: "contacts".into(),
                    digest: digest("a"),
                    config: Map::new(),
                    grants: vec![Grant::Widen],
                    on_failure: None,
                },
                Entry {
                    plugin: "redact".into(),
                    digest: digest("b"),
                    config: config.as_object().unwrap().clone(),
                    grants: Vec::new(),
                    on_failure: Some(OnFailure::LastGood),
                },
            ],
            candidate: None,
            who: "ada".into(),
            when: 1_700_000_000_000,
            why: String::new(),
        }
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let revision = revision();
        assert_eq!(Revision::parse(&revision.to_json()).unwrap(), revision);
    }

    #[test]
    fn a_candidate_stands_in_the_place_of_the_plugin_of_its_name() {
        let mut revision = revision();
        let digest = Digest::of_hex(&"c".repeat(64)).unwrap();
        revision.candidate = Some(Candidate {
            plugin: "redact".into(),
            digest: digest.clone(),
            percent: Share::of_places(525),
            abort_on: "p99>2x,errors>0.1%".parse().unwrap(),
            promote_after_ms: None,
            started_at: 7,
        });
        assert_eq!(Revision::parse(&revision.to_json()).unwrap(), revision);
        let json: Value = serde_json::from_slice(&revision.to_json()).unwrap();
        assert_eq!(json["candidate"]["percent"], 5.25);
        assert_eq!(json["candidate"]["abort_on"], "errors>0.1%,p99>2x");
        let stages = revision.candidate_stages().unwrap();
        assert_eq!(stages[0], revision.stages()[0]);
        assert_eq!(stages[1].digest, Some(digest.clone()));
        assert_eq!(stages[1].config, revision.stages()[1].config);
        assert_eq!(revision.digests().len(), 3);
        for (field, value) in [
            ("plugin", json!("unknown")),
            ("percent", json!(0)),
            ("percent", json!("5")),
            ("abort_on", json!("errors>1")),
            ("digest", json!("sha256:00")),
            ("more", json!(1)),
        ] {
            let mut bad = json.clone();
            bad["candidate"][field] = value;
            assert!(
                Revision::parse(bad.to_string().as_bytes()).is_err(),
                "{field}"
            );
        }
    }

    #[test]
    fn what_is_shown_can_be_applied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipeline.toml");
        let revision = revision();
        std::fs::write(&path, revision.to_toml()).unwrap();
        let config = Config::load(Some(&path), std::iter::empty()).unwrap();
        assert_eq!(config.pipeline, revision.stages());
    }

    #[test]
    fn its_stages_survive_a_file_whatever_their_configuration_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipeline.toml");
        let mut revision = revision();
        let config = json!({
            "words": "a\u{202e}b\u{7f}\u{9b}\u{2028}\n\"quoted\" 'too' \\ ä 😀",
            "a key\u{202e}": [1, -2, 1.5, 1e300, true, [], {}, {"deep": {"x-y_1": "z"}}],
        });
        revision.chain[0].config = config.as_object().cloned().unwrap();
        let text = revision.to_toml();
        for row in text.lines() {
            assert_eq!(line(row), row, "nothing in it is harmful");
        }
        std::fs::write(&path, text).unwrap();
        let config = Config::load(Some(&path), std::iter::empty()).unwrap();
        assert_eq!(config.pipeline, revision.stages());
        for unsayable in [
            json!({"a": null}),
            json!({"a": [{"b": null}]}),
            json!({"a": u64::MAX}),
        ] {
            revision.chain[0].config = unsayable.as_object().cloned().unwrap();
            std::fs::write(&path, revision.to_toml()).unwrap();
            let refused = Config::load(Some(&path), std::iter::empty()).unwrap_err();
            let refused = refused.to_string();
            assert!(
                refused.contains("`config` in [[pipeline]] is a string"),
                "{refused}"
            );
        }
    }

    #[test]
    fn what_is_none_is_refused_with_what_is_wrong() {
        let good = serde_json::to_value(revision()).unwrap();
        let with = |pointer: &str, value: Value| {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            bad.to_string()
        };
        for (text, problem) in [
            (String::new(), "no revision"),
            ("[]".into(), "no revision"),
            (with("/revision", json!(0)), "counted from 1"),
            (with("/revision", json!(-1)), "no revision"),
            (with("/revision", json!(u64::MAX)), "its number is above"),
            (with("/chain/0/plugin", json!("a.b")), "name `a.b`"),
            (with("/chain/0/digest", json!("sha256:00")), "no digest"),
            (with("/chain/0/grants", json!(["fly"])), "fly"),
            (with("/chain/0/config", json!([])), "no revision"),
            (with("/why", json!("y".repeat(5_000))), "longer than"),
            (
                with("/chain", json!(vec![&good["chain"][0]; 65])),
                "65 stages",
            ),
        ] {
            let error = Revision::parse(text.as_bytes()).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(problem), "{problem} is not in: {error}");
        }
    }
}
