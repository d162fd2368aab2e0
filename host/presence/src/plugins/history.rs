//! `presence plugins history`

use presence_config::escape::{line, print, print_json};
use presence_config::revision::{Entry, Revision};
use presence_kit::{ConfigArg, text};
use serde_json::json;

use crate::pipeline::change::Session;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The plugin's name.
    name: String,
    /// Prints them as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArg,
}

/// Lists the revisions that changed a plugin's stages.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = Session::open(&args.config).await?;
    let mut before = Vec::new();
    let mut changes = Vec::new();
    for revision in session.readable() {
        let now = stages(revision, &args.name);
        if now != before {
            changes.push((revision, now.clone()));
        }
        before = now;
    }
    anyhow::ensure!(
        !changes.is_empty(),
        "no revision has a plugin `{}`",
        line(&args.name)
    );
    if args.json {
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
        print_json(json!({"plugin": args.name, "revisions": listed}))?;
        return Ok(());
    }
    let mut digest = String::new();
    let rows: Vec<_> = changes
        .iter()
        .map(|(revision, stages)| {
            let now = digests(stages);
            let what = match (&*now, now == digest) {
                ("", _) => "removed".to_owned(),
                (_, true) => format!("{now} (settings)"),
                (_, false) => now.clone(),
            };
            digest = now;
            [
                revision.revision.to_string(),
                text::time(revision.when),
                line(&revision.who),
                what,
                line(&revision.why),
            ]
        })
        .collect();
    let titles = ["REVISION", "TIME", "WHO", "PLUGIN", "WHY"];
    print(text::table(titles, &rows))?;
    Ok(())
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
