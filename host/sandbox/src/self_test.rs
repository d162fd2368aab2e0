//! A plugin's self-tests: the cases in its manifest, run in the sandbox at
//! every load.

use std::sync::Arc;
use std::time::{Duration, Instant};

use presence_core::audience::Audience;
use presence_core::directory::{Directory, UserSettings};
use presence_core::event::{Change, Event, Reason};
use presence_core::metadata::{Metadata, MetadataChange};
use presence_core::names::Names;
use presence_core::rules::{Context, Rendition};
use serde_json::{Map, Value, json};
use tracing::subscriber::NoSubscriber;

use crate::error::{one_line, shortened};
use crate::instance::CallCost;
use crate::manifest::Case;
use crate::test_instance::{Answer, TestInstance};
use crate::{Limits, LineKind, LoadError, Plugin, PluginLine};

/// The key under which a case says when it expects the rule to be asked again, besides its answer.
pub const RECONSIDER_AT: &str = "reconsiderAt";

/// The outcome of a case.
#[derive(Debug)]
pub struct Outcome {
    /// The case's name.
    pub case: String,
    /// What it expects.
    pub expected: Value,
    /// The result, in the same form.
    pub found: Value,
    /// What the plugin wrote during the call, and while it was configured.
    pub lines: Vec<PluginLine>,
    /// When a filter or redactor asked to be asked again, in milliseconds since the Unix epoch.
    pub reconsider_at: Option<u64>,
    /// The cost of the call. `None` if it failed.
    pub spent: Option<CallCost>,
    /// How long the call took.
    pub took: Duration,
}

impl Outcome {
    /// Whether the result is the expected one.
    pub fn passes(&self) -> bool {
        matches(&self.expected, &self.found)
    }
}

/// Runs all cases of a plugin, in order, each in an instance of its own.
pub fn run(plugin: &Arc<Plugin>, limits: Limits) -> impl Iterator<Item = Outcome> {
    let cases = plugin.manifest.tests.iter();
    cases.map(move |case| run_case(plugin, case, limits))
}

/// Runs all cases of a plugin, and returns the failures. What the plugin logs meanwhile is left out
/// of the log, where it would look like lines about the tenant's own users.
pub(crate) fn problems(plugin: &Arc<Plugin>, limits: Limits) -> Vec<LoadError> {
    let outcomes: Vec<_> = tracing::subscriber::with_default(NoSubscriber::default(), || {
        run(plugin, limits).collect()
    });
    let failed = outcomes
        .into_iter()
        .filter(|outcome: &Outcome| !outcome.passes());
    let problem = failed.map(|outcome| LoadError::SelfTest {
        plugin: plugin.name.to_string(),
        case: outcome.case,
        what: shortened(format!(
            "expected {}, and got {}",
            outcome.expected, outcome.found
        )),
    });
    problem.collect()
}

/// Runs a case, in an instance of its own.
pub fn run_case(plugin: &Plugin, case: &Case, limits: Limits) -> Outcome {
    let recorder = Arc::default();
    let plugin = Arc::new(plugin.with_recorder(&recorder));
    let mut outcome = Outcome {
        case: case.name.clone(),
        expected: case.expect.clone(),
        found: Value::Null,
        lines: Vec::new(),
        reconsider_at: None,
        spent: None,
        took: Duration::ZERO,
    };
    match TestInstance::new(&plugin, &case.config, limits) {
        Ok(trial) => call(&mut trial.with_load_limits(), case, &mut outcome),
        Err(error) => outcome.found = json!({"error": error.to_string()}),
    }
    outcome.lines = recorder.take();
    // The time counts only in cases that name it.
    if case.expect.get(RECONSIDER_AT).is_some()
        && let Some(found) = outcome.found.as_object_mut()
    {
        found.insert(RECONSIDER_AT.into(), outcome.reconsider_at.into());
    }
    // The reason of the failure is in the result already, so the line that has it is dropped.
    let error = outcome.found.get("error").and_then(Value::as_str);
    if let (Some(error), Some(last)) = (error, outcome.lines.last())
        && last.kind == LineKind::Error
        && error.contains(&one_line(&last.text))
    {
        outcome.lines.pop();
    }
    outcome
}

fn call(trial: &mut TestInstance, case: &Case, outcome: &mut Outcome) {
    let world = World::of(case);
    let names = &world.names;
    let begin = Instant::now();
    let answer = trial.call(world.context(), world.audience.clone());
    outcome.took = begin.elapsed();
    outcome.spent = trial.last_cost();
    outcome.reconsider_at = trial.reconsider_at();
    outcome.found = match answer {
        Ok(Answer::Audience(audience)) => json!({"audience": list(names, &audience)}),
        Ok(Answer::Renditions(renditions)) => {
            let renditions = renditions.iter().map(|part| rendition(names, part));
            json!({"renditions": renditions.collect::<Vec<_>>()})
        }
        Ok(Answer::Changes(changes)) => json!({"metadata": enriched(case, changes)}),
        Err(failure) => json!({"error": failure.error}),
    };
}

/// What a case's call is about, and what the plugin may know.
#[derive(Debug)]
pub struct World {
    /// The audience before the call.
    pub audience: Audience,
    now: u64,
    names: Arc<Names>,
    directory: Arc<Directory>,
    event: Arc<Event>,
}

impl World {
    /// The event, the directory and the audience of a case.
    pub fn of(case: &Case) -> Self {
        let names = Names::new();
        let viewers = case.audience.iter();
        Self {
            audience: viewers.map(|viewer| names.intern(viewer)).collect(),
            now: case.now,
            directory: Arc::new(directory(&names, &case.directory)),
            event: Arc::new(event(&names, &case.event)),
            names: Arc::new(names),
        }
    }

    /// The context for a call. It can be used for any number of calls.
    pub fn context(&self) -> Context<'_> {
        Context {
            now: self.now,
            monotonic: self.now,
            event: &self.event,
            directory: &self.directory,
            names: &self.names,
        }
    }
}

fn rendition(names: &Names, rendition: &Rendition) -> Value {
    json!({
        "visibleTo": list(names, &rendition.audience),
        "keys": rendition.keys.iter().map(|key| &**key).collect::<Vec<_>>(),
        "lastSeen": rendition.last_seen,
    })
}

/// The case's metadata after an enricher's changes.
fn enriched(case: &Case, changes: Vec<MetadataChange>) -> Map<String, Value> {
    let metadata = case.event.get("metadata").and_then(Value::as_object);
    let mut metadata = metadata.cloned().unwrap_or_default();
    for (key, value) in changes {
        match value.and_then(|value| serde_json::from_str(&value).ok()) {
            Some(value) => drop(metadata.insert(key, value)),
            None => drop(metadata.shift_remove(&key)),
        }
    }
    metadata
}

/// Whether a result is the expected one. Audiences are compared as sets. An error must contain the
/// expected text.
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

/// A result or expectation with its audiences sorted, since they are sets.
pub fn sorted(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(audience) = value.get_mut("audience") {
        sort(audience);
    }
    let renditions = value.get_mut("renditions").and_then(Value::as_array_mut);
    for rendition in renditions.into_iter().flatten() {
        if let Some(viewers) = rendition.get_mut("visibleTo") {
            sort(viewers);
        }
    }
    value
}

fn sort(set: &mut Value) {
    if let Some(list) = set.as_array_mut() {
        list.sort_by_cached_key(Value::to_string);
        list.dedup();
    }
}

fn list(names: &Names, audience: &Audience) -> Vec<String> {
    let name = |id| names.name(id).map(|name| name.as_str().to_owned());
    audience.ids().filter_map(name).collect()
}

/// The event that the fields of a case describe.
pub fn event(names: &Names, fields: &Map<String, Value>) -> Event {
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
        edit.settings(names.intern(user), Some(settings.collect::<UserSettings>()));
    }
    edit.finish().0
}
