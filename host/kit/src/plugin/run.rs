//! `presence plugin run`: calls a plugin with one input, and prints everything that results.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use presence_config::escape::{eprint_line, line, print, print_json};
use presence_rules::limits::limits;
use presence_rules::loader;
use presence_sandbox::manifest::Case;
use presence_sandbox::self_test::{self, Outcome};
use presence_sandbox::{Limits, Plugin};
use serde_json::{Map, Value, json};

use super::lines;
use crate::ConfigArg;
use crate::figures;
use crate::text;

/// The keys of an input that is a whole case.
const OF_CASE: [&str; 7] = [
    "name",
    "config",
    "event",
    "directory",
    "audience",
    "now",
    "expect",
];

/// The arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The plugin: a .wasm file, or a folder, which is built first.
    file: PathBuf,
    /// The self-test to run.
    #[arg(long, value_name = "NAME", required_unless_present = "event")]
    case: Option<String>,
    /// A JSON file, or `-` for standard input: an event as it is broadcast, a dead letter with
    /// one, or a whole self-test. With --case, it takes the place of that self-test's event.
    #[arg(long, value_name = "FILE")]
    event: Option<PathBuf>,
    /// A JSON file with what the rule can ask the directory, as the host's directory file.
    #[arg(long, value_name = "FILE")]
    directory: Option<PathBuf>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
    // Its limits apply to the call.
    #[command(flatten)]
    config: ConfigArg,
}

/// Calls the plugin with the input, and prints the result.
///
/// # Errors
/// When the call fails.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let path = super::file(&args.file)?;
    let bytes = super::read(&path)?;
    let plugin = super::load(&loader::engine(&config)?, &path, &bytes)?;
    let mut case = match &args.case {
        Some(name) => super::case(&plugin, name)?.clone(),
        None => empty(),
    };
    if let Some(event) = &args.event {
        take(&mut case, input(event)?, args.case.is_some())
            .with_context(|| format!("the input {}", event.display()))?;
    }
    if let Some(directory) = &args.directory {
        let read = input(directory)?;
        let Value::Object(read) = read else {
            bail!("{}: must be a JSON object", directory.display());
        };
        case.directory = read;
    }
    let limits = limits(&config, true).capped_by(plugin.manifest.limits);
    let outcome = self_test::run_case(&plugin, &case, limits);
    if args.json {
        print_json(object(&plugin, &outcome))?;
    } else {
        print(page(&outcome, limits))?;
        if case.directory.is_empty() {
            eprint_line("note: the directory is empty: --directory FILE gives it one");
        }
    }
    ensure!(
        outcome.found.get("error").is_none(),
        "`{}` failed",
        line(&plugin.manifest.name)
    );
    Ok(())
}

/// A case with empty defaults.
fn empty() -> Case {
    Case {
        name: "the input".into(),
        config: json!({}),
        now: 0,
        event: Map::new(),
        directory: Map::new(),
        audience: Vec::new(),
        expect: Value::Null,
    }
}

/// The JSON in a file, or on standard input for `-`.
fn input(path: &Path) -> anyhow::Result<Value> {
    let text = if path == Path::new("-") {
        let mut text = Vec::new();
        std::io::stdin()
            .read_to_end(&mut text)
            .context("can't read standard input")?;
        text
    } else {
        super::read(path)?
    };
    serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))
}

/// Puts an input into a case. The input is a whole case, an event, or a dead letter with an event.
fn take(case: &mut Case, input: Value, is_event_only: bool) -> anyhow::Result<()> {
    let Value::Object(mut input) = input else {
        bail!("must be a JSON object");
    };
    if input.contains_key("reason") && input.get("payload").is_some_and(Value::is_string) {
        let payload = input.get("payload").and_then(Value::as_str);
        let payload = serde_json::from_str(payload.unwrap_or_default());
        input = payload.context("is a dead letter without an event")?;
    }
    if let Some(event) = input.remove("event").filter(|_| !is_event_only) {
        if let Some(unknown) = input.keys().find(|key| !OF_CASE.contains(&key.as_str())) {
            bail!(
                "has an unknown key `{unknown}`; known are {}",
                OF_CASE.join(", ")
            );
        }
        input.insert("event".into(), event);
        input
            .entry("name")
            .or_insert_with(|| case.name.clone().into());
        input.entry("expect").or_insert(Value::Null);
        *case = serde_json::from_value(Value::Object(input))?;
    } else {
        // The time is the event's, unless the case sets it.
        if case.now == 0 {
            let at = input.get("timestamp").and_then(Value::as_u64);
            case.now = at.unwrap_or_default();
        }
        case.event = input;
    }
    let kind = case.event.get("type").and_then(Value::as_str);
    ensure!(
        matches!(kind, Some("user_online" | "user_offline" | "user_updated")),
        "must be an event: with the `type` user_online or user_offline"
    );
    let user = case.event.get("userId").and_then(Value::as_str);
    ensure!(
        user.is_some_and(|user| !user.is_empty()),
        "must say whose event it is, as `userId`"
    );
    Ok(())
}

fn object(plugin: &Plugin, outcome: &Outcome) -> Value {
    json!({
        "plugin": plugin.manifest.name,
        "version": plugin.manifest.version.to_string(),
        "case": outcome.case,
        "answer": outcome.found,
        "lines": lines::objects(&outcome.lines),
        "reconsiderAt": outcome.reconsider_at,
        "fuel": outcome.spent.map(|spent| spent.fuel),
        "memoryBytes": outcome.spent.map(|spent| spent.memory_bytes),
        "timeNs": u64::try_from(outcome.took.as_nanos()).unwrap_or(u64::MAX),
    })
}

fn page(outcome: &Outcome, limits: Limits) -> String {
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut say = |what: &str, text: String| rows.push([what.into(), text]);
    say("case", line(&outcome.case));
    match outcome.found.get("error") {
        Some(error) => say("fails", text::plain(error)),
        None => say("answers", line(&outcome.found)),
    }
    for written in &outcome.lines {
        say("", lines::words(written));
    }
    if let Some(at) = outcome.reconsider_at {
        say("asked again", format!("at {}", text::time(at)));
    }
    if let Some(spent) = outcome.spent {
        let fuel = [spent.fuel, limits.fuel].map(figures::grouped);
        say("fuel", fuel.join(" of "));
        let memory = [spent.memory_bytes, limits.memory_bytes_max];
        let memory = memory.map(|bytes| figures::bytes(bytes as u64));
        say("memory", memory.join(" of "));
        let most = limits.deadline_ms.map(|ms| format!(" of {ms} ms"));
        let most = most.unwrap_or_default();
        say("time", format!("{}{most}", figures::time(outcome.took)));
    }
    text::columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(input: Value) -> anyhow::Result<Case> {
        let mut case = empty();
        take(&mut case, input, false)?;
        Ok(case)
    }

    #[test]
    fn an_input_is_an_event_a_dead_letter_or_a_case() {
        let event = json!({"type": "user_online", "userId": "ada", "timestamp": 7});
        let case = taken(event.clone()).unwrap();
        assert_eq!((case.event.len(), case.now), (3, 7));
        let letter = json!({
            "subject": "presence.events.user_online", "reason": "plugin-failed",
            "error": "plugin `x`: trapped", "payload": event.to_string(), "encoding": "utf8",
        });
        assert_eq!(taken(letter).unwrap().event["userId"], "ada");
        let whole = json!({"event": event, "audience": ["ben"], "now": 9});
        let case = taken(whole).unwrap();
        assert_eq!((case.audience, case.now), (vec!["ben".to_owned()], 9));
    }

    #[test]
    fn an_event_takes_the_place_of_a_case_s_event() {
        let mut case = empty();
        (case.audience, case.now) = (vec!["ben".into()], 9);
        let event = json!({"type": "user_online", "userId": "ada", "timestamp": 7});
        take(&mut case, event, true).unwrap();
        assert_eq!(case.event["userId"], "ada");
        assert_eq!((case.audience.len(), case.now), (1, 9));
    }

    #[test]
    fn what_is_no_event_is_said_to_be_none() {
        for (input, words) in [
            (json!([]), "must be a JSON object"),
            (json!({}), "`type` user_online"),
            (json!({"type": "user_online"}), "`userId`"),
            (
                json!({"event": {}, "audiense": []}),
                "unknown key `audiense`",
            ),
            (
                json!({"reason": "invalid-json", "payload": "{"}),
                "dead letter without an event",
            ),
        ] {
            let error = format!("{:#}", taken(input).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }
}
