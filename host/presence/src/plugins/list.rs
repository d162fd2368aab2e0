//! `presence plugins list`

use presence_config::escape::{line, print, print_json};
use presence_kit::{figures, text};
use presence_node::store::StoredPlugin;
use serde_json::json;

use crate::arguments::Output;
use crate::pipeline::change::StoreSession;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    output: Output,
}

/// Lists the plugins, and which of them the newest revision has.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = StoreSession::open(&args.output.config).await?;
    let plugins = session.operator.store().plugins().await;
    let plugins = plugins.map_err(|error| session.operator.with_broker_error(error))?;
    let newest = session.newest();
    let is_active = |it: &StoredPlugin| {
        newest.is_some_and(|revision| revision.chain.iter().any(|entry| entry.digest == it.digest))
    };
    if args.output.json {
        let listed = plugins.iter().map(|it| {
            json!({
                "plugin": it.about.name,
                "version": it.about.version,
                "role": it.about.role,
                "digest": it.digest,
                "bytes": it.bytes,
                "uploadedAt": it.when,
                "who": it.about.who,
                "active": is_active(it),
            })
        });
        let listed: Vec<_> = listed.collect();
        print_json(json!({"plugins": listed, "revision": newest.map(|it| it.revision)}))?;
        return Ok(());
    }
    if plugins.is_empty() {
        print("no plugins\n")?;
        return Ok(());
    }
    let rows: Vec<_> = plugins
        .iter()
        .map(|it| {
            let active = if is_active(it) { "active" } else { "" };
            [
                line(&it.about.name),
                line(&it.about.version),
                line(&it.about.role),
                it.digest.short(),
                figures::bytes(it.bytes),
                text::time(it.when),
                line(&it.about.who),
                active.to_owned(),
            ]
        })
        .collect();
    let titles = [
        "PLUGIN", "VERSION", "ROLE", "DIGEST", "SIZE", "UPLOADED", "BY", "",
    ];
    print(text::table(titles, &rows))?;
    Ok(())
}
