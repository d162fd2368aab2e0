//! `presence plugins rollback`

use anyhow::{Context as _, ensure};

use super::history::stages;
use crate::confirmation::ChangeOptions;
use crate::pipeline::change::StoreSession;
use crate::pipeline::rollback;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The plugin's name; the whole pipeline, if none is given.
    name: Option<String>,
    #[command(flatten)]
    how: ChangeOptions,
}

/// Goes back to the previous revision of a plugin, or of the whole pipeline.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = StoreSession::open(&args.how.config).await?;
    let Some(name) = &args.name else {
        return rollback::roll_back(&session, None, &args.how).await;
    };
    let newest = session.newest_or_error()?;
    let now = stages(newest, name);
    ensure!(!now.is_empty(), "the pipeline has no plugin `{name}`");
    let before = session.readable().rev().find(|revision| {
        let then = stages(revision, name);
        // The earlier stages replace the current ones one by one, so their numbers have to be
        // equal.
        then.len() == now.len() && then != now
    });
    let before = before.with_context(|| {
        format!("no earlier revision has another `{name}`: `presence plugins history {name}`")
    })?;
    let mut then = stages(before, name).into_iter();
    let mut chain = newest.chain.clone();
    for entry in chain.iter_mut().filter(|entry| entry.plugin == *name) {
        if let Some(then) = then.next() {
            *entry = then;
        }
    }
    let why = format!("rollback of {name} to revision {}", before.revision);
    session.change(chain, &args.how, &why, None).await
}
