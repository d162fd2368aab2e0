//! `presence query`: what a viewer may see of users.

use presence_config::Config;
use presence_config::escape::{line, print, print_json};
use presence_core::token;
use presence_kit::text;
use presence_node::link::request_client::{self, ClientRequest};
use serde_json::{Value, json};

use crate::ask::RequestArgs;
use crate::explain;
use crate::tenant;

/// For how many of the users who are shown as offline an explanation is requested.
const EXPLAINED_MAX: usize = 10;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The viewer to ask for, on `presence.query`, which needs permission to ask for any viewer.
    #[arg(required_unless_present = "viewer_self")]
    viewer: Option<String>,
    /// The users to ask about; by default, the viewer's own contacts.
    users: Vec<String>,
    /// Asks as this viewer, on the viewer's own subject `presence.query.<viewer>`; all other
    /// arguments are users. The reply comes to the viewer's own inbox.
    #[arg(long = "as", value_name = "VIEWER")]
    viewer_self: Option<String>,
    #[command(flatten)]
    common: RequestArgs,
}

/// Asks, and prints the answer.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let question = args.question()?;
    let config = tenant::load_now(&args.common.config)?;
    let answer = request_client::ask(&config, &question)?;
    if args.common.json {
        print_json(answer)?;
        return Ok(());
    }
    print(table(&answer))?;
    // A viewer must not learn that the decision on a user is pending: this would reveal that the
    // user is online. An operator may know it, and has the right to ask for explanations.
    if let Some(viewer) = &args.viewer
        && args.viewer_self.is_none()
        && config.explain.enabled
    {
        print(pending(&config, viewer, &answer))?;
    }
    Ok(())
}

/// Text about the users who are shown as offline because the decision who may see them is pending.
fn pending(config: &Config, viewer: &str, answer: &Value) -> String {
    let users = answer.get("users").and_then(Value::as_array);
    let offline = users.into_iter().flatten().filter(|user| {
        user.get("status").is_some_and(|status| status == "offline")
            && user.get("lastSeen").is_none()
    });
    let mut text = String::new();
    for user in offline.take(EXPLAINED_MAX) {
        let user = user.get("userId").and_then(Value::as_str);
        let question = explain::question(viewer, user.unwrap_or_default());
        // The query was answered. A missing explanation is no failure.
        let Ok(explanation) = request_client::ask(config, &question) else {
            break;
        };
        if let Some(pending) = explain::pending(&explanation) {
            text.push_str(&format!("\n{pending}\n"));
        }
    }
    text
}

impl Args {
    fn question(&self) -> anyhow::Result<ClientRequest> {
        let is_answer = |answer: &Value| answer.get("users").is_some_and(Value::is_array);
        let users: Vec<_> = match &self.viewer_self {
            Some(_) => self.viewer.iter().chain(&self.users).collect(),
            None => self.users.iter().collect(),
        };
        let users = match users.is_empty() {
            true => json!("contacts"),
            false => json!(users),
        };
        Ok(match &self.viewer_self {
            Some(viewer) => {
                anyhow::ensure!(!viewer.is_empty(), "--as: the viewer's id is empty");
                let token = token::encode(viewer);
                ClientRequest {
                    subject: format!("presence.query.{token}"),
                    inbox: Some(token),
                    body: json!({"userIds": users}),
                    is_answer,
                }
            }
            None => ClientRequest {
                subject: "presence.query".into(),
                inbox: None,
                body: json!({"viewerId": self.viewer, "userIds": users}),
                is_answer,
            },
        })
    }
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
