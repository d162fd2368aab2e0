//! A plugin's self-tests: the cases in its manifest, run in the sandbox at
//! every load.

use std::collections::BTreeSet;
use std::sync::Arc;

use presence_core::audience::Audience;
use presence_core::directory::{Directory, Settings};
use presence_core::event::{Change, Event, Reason};
use presence_core::metadata::Metadata;
use presence_core::names::Names;
use presence_core::rules::{Context, Rules};
use serde_json::{Map, Value, json};

use crate::call::Seen;
use crate::manifest::{Case, Role};
use crate::{Limits, LoadError, Pipeline, Stage};

/// Runs all cases of a stage's plugin, and says which of them fail.
pub(crate) fn run(stage: &Stage, limits: Limits) -> impl Iterator<Item = LoadError> {
    let cases = stage.plugin.manifest.tests.iter();
    cases.filter_map(move |case| {
        let found = outcome(stage, case, limits);
        let fails = !matches(&case.expect, &found);
        fails.then(|| LoadError::SelfTest {
            plugin: stage.plugin.name.to_string(),
            case: case.name.clone(),
            what: format!("expected {}, and got {found}", case.expect),
        })
    })
}

/// What comes out, in the form in which a case says what it expects.
fn outcome(stage: &Stage, case: &Case, limits: Limits) -> Value {
    let stage = Stage::new(
        Arc::clone(&stage.plugin),
        case.config.clone(),
        stage.widen_granted,
        None,
    );
    let role = stage.plugin.manifest.role;
    let mut pipeline = match Pipeline::new(&[Arc::new(stage)], limits) {
        Ok(pipeline) => pipeline,
        Err(error) => return json!({"error": error.to_string()}),
    };
    let names = Arc::new(Names::new());
    let directory = Arc::new(directory(&names, &case.directory));
    let event = Arc::new(event(&names, &case.event));
    let context = Context {
        now: case.now,
        event: &event,
        directory: &directory,
        names: &names,
    };
    let audience: Audience = case
        .audience
        .iter()
        .map(|viewer| names.intern(viewer))
        .collect();
    let outcome = match role {
        Role::Filter => pipeline
            .filter(context, audience, &mut Seen::default())
            .map(|audience| json!({"audience": list(&names, &audience)})),
        Role::Redactor => pipeline
            .split(context, &audience, &mut Seen::default())
            .map(|renditions| {
                let renditions = renditions.iter().map(|rendition| {
                    json!({
                        "visibleTo": list(&names, &rendition.audience),
                        "keys": rendition.keys.iter().map(|key| &**key).collect::<Vec<_>>(),
                        "lastSeen": rendition.last_seen,
                    })
                });
                json!({"renditions": renditions.collect::<Vec<_>>()})
            }),
        Role::Enricher => {
            let enriched = pipeline.enrich(context);
            match enriched.failures.into_iter().next() {
                Some(failure) => Err(failure),
                None => {
                    let mut metadata = case
                        .event
                        .get("metadata")
                        .and_then(Value::as_object)
                        .cloned()
                        .unwrap_or_default();
                    for (key, value) in enriched.changes {
                        match value.and_then(|value| serde_json::from_str(&value).ok()) {
                            Some(value) => drop(metadata.insert(key, value)),
                            None => drop(metadata.shift_remove(&key)),
                        }
                    }
                    Ok(json!({"metadata": metadata}))
                }
            }
        }
    };
    outcome.unwrap_or_else(|failure| json!({"error": failure.error}))
}

/// Whether an outcome is what was expected: audiences as sets, an error by a
/// part of its text.
fn matches(expected: &Value, found: &Value) -> bool {
    match (
        expected.get("error").and_then(Value::as_str),
        found.get("error").and_then(Value::as_str),
    ) {
        (Some(expected), Some(found)) => found.contains(expected),
        (None, None) => sorted(expected) == sorted(found),
        _ => false,
    }
}

fn sorted(value: &Value) -> Value {
    let sort = |list: &Value| {
        let set: BTreeSet<_> = list
            .as_array()
            .into_iter()
            .flatten()
            .map(Value::to_string)
            .collect();
        json!(set)
    };
    let mut value = value.clone();
    if let Some(audience) = value.get_mut("audience") {
        *audience = sort(audience);
    }
    for rendition in value
        .get_mut("renditions")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(viewers) = rendition.get_mut("visibleTo") {
            *viewers = sort(viewers);
        }
    }
    value
}

fn list(names: &Names, audience: &Audience) -> Vec<String> {
    let name = |id| names.name(id).map(|name| name.as_str().to_owned());
    audience.ids().filter_map(name).collect()
}

fn event(names: &Names, fields: &Map<String, Value>) -> Event {
    let text = |key: &str| fields.get(key).and_then(Value::as_str);
    let number = |key: &str| fields.get(key).and_then(Value::as_u64).unwrap_or_default();
    let change = if text("type") == Some("user_offline") {
        let reason = match text("reason") {
            Some("timeout") => Reason::Timeout,
            Some("logout") => Reason::Logout,
            _ => Reason::Disconnect,
        };
        Change::Offline {
            last_seen: number("lastSeen"),
            reason,
        }
    } else {
        Change::Online
    };
    let metadata = fields
        .get("metadata")
        .map(Value::to_string)
        .unwrap_or_default();
    let (user, name) = names.intern_name(text("userId").unwrap_or_default());
    let metadata = Metadata::parse(&metadata, |_| true);
    Event {
        user,
        name,
        timestamp: number("timestamp"),
        change,
        metadata,
    }
}

fn directory(names: &Names, given: &Map<String, Value>) -> Directory {
    let section = |key: &str| {
        given
            .get(key)
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
    };
    let set = |list: &Value| {
        let users = list
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        Some(users.map(|user| names.intern(user).0).collect())
    };
    let mut edit = Directory::new().edit();
    section("contacts").for_each(|(user, list)| edit.contacts(names.intern(user), set(list)));
    section("groups").for_each(|(group, list)| edit.group(group, set(list)));
    section("blocks").for_each(|(user, list)| edit.blocked(names.intern(user), set(list)));
    for (user, settings) in section("settings") {
        let settings = settings.as_object().into_iter().flatten();
        let settings = settings.map(|(key, value)| (key.as_str().into(), value.to_string().into()));
        edit.settings(names.intern(user), Some(settings.collect::<Settings>()));
    }
    edit.finish().0
}
