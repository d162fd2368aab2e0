//! What components log and explain: the lines are limited in number and length.

use std::sync::{Arc, Mutex};

use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::stage::{configured, pipeline, stage};
use crate::world::World;

#[test]
fn a_chatty_plugin_ends_by_its_fuel_and_is_cut_short_in_the_log() {
    let mut rules = pipeline([stage("chatty")]);
    let world = World::new(&json!({}));
    let lines = logged(|| {
        let (plugin, error) = world.failure(&mut rules);
        assert_eq!(plugin, "chatty");
        assert_eq!(error, "used up its fuel of 2000000");
    });
    assert_eq!(lines, vec!["and another thing"; 16]);
    // The limit of lines is per call.
    assert_eq!(logged(|| drop(world.decide(&mut rules))).len(), 16);
}

#[test]
fn a_long_line_is_cut_where_a_character_ends() {
    let text = "é".repeat(1_000);
    let mut world = World::new(&json!({}));
    world.online("ada", &json!({"mood": text}).to_string());
    let mut rules = pipeline([configured("reader", json!({"steps": [{"get": "mood"}]}))]);
    let lines = logged(|| drop(world.decide(&mut rules)));
    assert_eq!(lines.len(), 1);
    assert!((1_023..=1_024).contains(&lines[0].len()));
    assert!(lines[0].starts_with("get: Some("));
    assert!(lines[0].ends_with('é'));
}

#[test]
fn the_message_of_a_panic_is_said_with_the_failure_and_not_in_a_line_of_its_own() {
    let mut rules = pipeline([stage("trap")]);
    let lines = logged(|| {
        let (_, error) = World::new(&json!({})).failure(&mut rules);
        assert!(error.contains("this fixture always panics"), "{error}");
    });
    assert!(lines.is_empty(), "{lines:?}");
}

#[test]
fn what_self_tests_say_is_not_said_of_anybody() {
    // In one of its cases, the plugin warns of a setting that it can't read.
    let lines = logged(|| drop(pipeline([stage("redact")])));
    assert!(lines.is_empty(), "{lines:?}");
}

/// The lines and reasons that plugins log while this runs.
pub(crate) fn logged(run: impl FnOnce()) -> Vec<String> {
    listen("plugin", run)
}

/// The messages and errors that the sandbox logs while this runs.
pub(crate) fn logged_by_host(run: impl FnOnce()) -> Vec<String> {
    listen("presence_sandbox", run)
}

fn listen(target: &'static str, run: impl FnOnce()) -> Vec<String> {
    let lines = Lines(target, Arc::default());
    tracing::subscriber::with_default(Lines::clone(&lines), run);
    lines.1.lock().unwrap().clone()
}

#[derive(Clone)]
struct Lines(&'static str, Arc<Mutex<Vec<String>>>);

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with(self.0)
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Text(&self.1));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Text<'a>(&'a Mutex<Vec<String>>);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if ["explanation", "error"].contains(&field.name()) {
            self.0.lock().unwrap().push(value.to_owned());
        }
    }
}
