//! `presence plugins history`

use anyhow::ensure;
use presence_config::digest::Digest;
use presence_config::escape::{line, print, print_json};
use presence_config::revision::{Entry, Revision};
use presence_kit::explained::{flag, word};
use presence_kit::text;
use serde_json::{Value, json};

use crate::arguments::Output;
use crate::pipeline::change::StoreSession;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The plugin's name.
    name: String,
    #[command(flatten)]
    output: Output,
}

/// Lists the revisions that changed a plugin's stages, and its quarantines.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = StoreSession::open(&args.output.config).await?;
    let alerts = session.operator.store().alerts().await;
    let alerts = alerts.map_err(|error| session.operator.with_broker_error(error))?;
    let quarantines: Vec<_> = alerts
        .iter()
        .filter(|it| word(it, "/plugin") == args.name && alert_text(it).is_some())
        .collect();
    let mut before = Vec::new();
    let mut changes = Vec::new();
    for revision in session.readable() {
        let now = stages(revision, &args.name);
        if now != before {
            changes.push((revision, now.clone()));
        }
        before = now;
    }
    ensure!(
        !changes.is_empty() || !quarantines.is_empty(),
        "no revision has a plugin `{}`",
        line(&args.name)
    );
    if args.output.json {
        let listed = changes.iter().map(|(revision, stages)| {
            json!({
                "revision": revision.revision,
                "when": revision.when,
                "who": revision.who,
                "why": revision.why,
                "stages": stages,
            })
        });
        let listed: Vec<_> = listed.collect();
        let all = json!({"plugin": args.name, "revisions": listed, "alerts": quarantines});
        print_json(all)?;
        return Ok(());
    }
    let mut digest = String::new();
    let revisions = changes.iter().map(|(revision, stages)| {
        let now = digests(stages);
        let what = match (&*now, now == digest) {
            ("", _) => "removed".to_owned(),
            (_, true) => format!("{now} (settings)"),
            (_, false) => now.clone(),
        };
        digest = now;
        let row = [
            revision.revision.to_string(),
            text::time(revision.when),
            line(&revision.who),
            what,
            line(&revision.why),
        ];
        (revision.when, row)
    });
    let quarantines = quarantines.iter().map(|alert| {
        let when = alert.get("timestamp").and_then(Value::as_u64);
        let when = when.unwrap_or_default();
        let digest = Digest::parse(&word(alert, "/digest"));
        let row = [
            String::new(),
            text::time(when),
            line(format_args!("the node {}", word(alert, "/node"))),
            digest.map(|it| it.short()).unwrap_or_default(),
            line(alert_text(alert).unwrap_or_default()),
        ];
        (when, row)
    });
    let mut rows: Vec<_> = revisions.chain(quarantines).collect();
    rows.sort_by_key(|(when, _)| *when);
    let rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    let titles = ["REVISION", "TIME", "WHO", "PLUGIN", "WHY"];
    print(text::table(titles, &rows))?;
    Ok(())
}

/// The text of an alert about a quarantine. `None` for other alerts.
fn alert_text(alert: &Value) -> Option<String> {
    let what = match &*word(alert, "/type") {
        "quarantine" => format!("in quarantine: {}", word(alert, "/error")),
        "quarantine-over" => "out of quarantine".to_owned(),
        _ => return None,
    };
    Some(match flag(alert, "/candidate") {
        true => format!("{what} (as a canary or shadow)"),
        false => what,
    })
}

/// A plugin's stages in a revision.
pub(super) fn stages(revision: &Revision, name: &str) -> Vec<Entry> {
    let stages = revision.chain.iter().filter(|entry| entry.plugin == name);
    stages.cloned().collect()
}

fn digests(stages: &[Entry]) -> String {
    let mut digests: Vec<_> = stages.iter().map(|entry| entry.digest.short()).collect();
    digests.dedup();
    digests.join(", ")
}
