//! `presence watch`: prints who may see whom, as it changes. It receives the same messages as
//! services that forward them to viewers.

use std::fmt::Write as _;

use presence_config::Config;
use presence_config::escape::{eprint_line, line, print_json_while_read, print_while_read};
use presence_config::subjects::Subjects;
use presence_kit::text::{plain, time};
use presence_node::clock;
use presence_node::link::tap::{Tap, TappedMessage};
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::ask::RequestArgs;
use crate::tenant;

/// The most viewers of an event that are named.
const NAMED_MAX: usize = 10;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Prints only what this viewer may see.
    #[arg(long)]
    viewer: Option<String>,
    /// Prints only what is said of this user.
    #[arg(long)]
    user: Option<String>,
    #[command(flatten)]
    common: RequestArgs,
}

/// Prints events until a signal arrives.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let config = tenant::load_now(&args.common.config)?;
    crate::runtime::wait_for(watch(args, &config))
}

async fn watch(args: &Args, config: &Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let subjects = Subjects::new(config.tenant.prefix.as_deref());
    let subject = subjects.of("presence.filtered.>");
    let mut tap = Tap::open(config, "presence watch", &subject).await?;
    eprint_line(format_args!(
        "watching {subject} at {}; Ctrl-C ends it",
        config.nats.servers()
    ));
    loop {
        let received = tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            received = tap.next() => received,
        };
        let Some(received) = received else { break };
        print_message(args, &received)?;
    }
    for warning in tap.gaps() {
        eprint_line(format_args!("warning: {warning}"));
    }
    Ok(())
}

fn print_message(args: &Args, received: &TappedMessage) -> anyhow::Result<()> {
    let Ok(event) = serde_json::from_slice::<Value>(&received.payload) else {
        eprint_line(format_args!(
            "warning: a message on {} is no JSON",
            received.subject
        ));
        return Ok(());
    };
    if !is_selected(args, &event) {
        return Ok(());
    }
    match args.common.json {
        true => print_json_while_read(json!({"subject": received.subject, "data": event}))?,
        false => {
            let sentence = sentence(args.viewer.as_deref(), &event);
            // The time of day is enough for somebody who watches.
            let now = time(clock::now_ms());
            let now = now.split(' ').nth(1).unwrap_or_default();
            print_while_read(format_args!("{now}  {sentence}\n"))?;
        }
    }
    Ok(())
}

fn viewers(event: &Value) -> impl Iterator<Item = &str> {
    let viewers = event.get("visibleTo").and_then(Value::as_array);
    viewers.into_iter().flatten().filter_map(Value::as_str)
}

fn is_selected(args: &Args, event: &Value) -> bool {
    let user = event.get("userId").and_then(Value::as_str);
    let is_user = args.user.as_deref().is_none_or(|it| user == Some(it));
    let viewer = args.viewer.as_deref();
    is_user && viewer.is_none_or(|it| viewers(event).any(|viewer| viewer == it))
}

/// An event as one line: the viewers, the user, and what they see. `only`: the one viewer to name.
fn sentence(only: Option<&str>, event: &Value) -> String {
    let word = |key: &str| event.get(key).map(plain).unwrap_or_default();
    let all: Vec<_> = match only {
        Some(viewer) => vec![viewer],
        None => viewers(event).collect(),
    };
    let named = all.iter().take(NAMED_MAX).map(line);
    let mut viewers = named.collect::<Vec<_>>().join(", ");
    if all.len() > NAMED_MAX {
        let _ = write!(viewers, " and {} more", all.len() - NAMED_MAX);
    }
    let sees = if all.len() == 1 { "sees" } else { "see" };
    let user = word("userId");
    let what = match event.get("type").and_then(Value::as_str) {
        Some("user_online") => "online".to_owned(),
        Some("user_offline") => "offline".to_owned(),
        Some("user_updated") => "change".to_owned(),
        _ => word("type"),
    };
    let mut sentence = format!("{viewers} {sees} {user} {what}");
    if let Some(at) = event.get("lastSeen").and_then(Value::as_u64) {
        let _ = write!(sentence, ", last seen {}", time(at));
    }
    let metadata = event.get("metadata").and_then(Value::as_object);
    if let Some(metadata) = metadata.filter(|it| !it.is_empty()) {
        let _ = write!(sentence, "  {}", pairs(metadata));
    }
    sentence
}

fn pairs(metadata: &Map<String, Value>) -> String {
    let pairs = metadata.iter();
    let pairs: Vec<_> = pairs
        .map(|(key, value)| format!("{}={}", line(key), plain(value)))
        .collect();
    pairs.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_that_says_who_sees_whom() {
        let online = json!({
            "type": "user_online", "userId": "ada", "timestamp": 1, "visibleTo": ["ben", "cleo"],
            "metadata": {"device": "web"},
        });
        assert_eq!(
            sentence(None, &online),
            "ben, cleo see ada online  device=web"
        );
        assert_eq!(
            sentence(Some("cleo"), &online),
            "cleo sees ada online  device=web"
        );
        let offline = json!({
            "type": "user_offline", "userId": "a\u{1b}[2J\n", "timestamp": 1,
            "lastSeen": 1_698_000_000_000_u64, "visibleTo": ["ben"],
        });
        assert_eq!(
            sentence(None, &offline),
            "ben sees a\\u{1b}[2J\\n offline, last seen 2023-10-22 18:40:00 UTC"
        );
        let viewers: Vec<_> = (0..12).map(|viewer| viewer.to_string()).collect();
        let many = json!({"type": "user_updated", "userId": "ada", "visibleTo": viewers});
        let said = sentence(None, &many);
        assert!(said.ends_with("8, 9 and 2 more see ada change"), "{said}");
        assert_eq!(sentence(None, &json!({})), " see  ");
    }
}
