//! `presence query`: what a viewer may see of users.

use serde_json::{Value, json};

use super::{Common, text};
use crate::escape::line;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Who asks.
    viewer: String,
    /// After whom; the viewer's own contacts if nobody is named.
    users: Vec<String>,
    #[command(flatten)]
    common: Common,
}

/// Asks, and prints the answer.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let users = if args.users.is_empty() {
        json!("contacts")
    } else {
        json!(args.users)
    };
    let question = json!({"viewerId": args.viewer, "userIds": users});
    let is_answer = |answer: &Value| answer.get("users").is_some_and(Value::is_array);
    super::answer(&args.common, "presence.query", &question, is_answer, table)
}

fn table(answer: &Value) -> String {
    let users = answer.get("users").and_then(Value::as_array);
    let rows: Vec<_> = users.into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return "the viewer has no contacts in the directory\n".into();
    }
    text::table(["WHO", "STATUS", "LAST SEEN", "METADATA"], &rows)
}

fn row(user: &Value) -> [String; 4] {
    let field = |name: &str| user.get(name).map(text::plain).unwrap_or_default();
    let last_seen = user.get("lastSeen").and_then(Value::as_u64);
    let metadata = user.get("metadata").and_then(Value::as_object);
    let metadata = metadata.into_iter().flatten();
    let metadata: Vec<_> = metadata
        .map(|(key, value)| format!("{}={}", line(key), text::plain(value)))
        .collect();
    [
        field("userId"),
        field("status"),
        last_seen.map(text::time).unwrap_or_default(),
        metadata.join(" "),
    ]
}
