//! `presence plugins canary`

use std::time::Duration;

use anyhow::{Context as _, ensure};
use presence_config::abort_on::AbortOn;
use presence_config::revision::Candidate;
use presence_core::share::Share;
use presence_node::clock;

use super::activate::{PluginRef, parse_plugin_ref};
use crate::arguments::span;
use crate::confirmation::ChangeOptions;
use crate::pipeline::change::StoreSession;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The plugin's name, and its digest or the first digits of it.
    #[arg(value_name = "NAME@DIGEST", value_parser = parse_plugin_ref)]
    plugin: PluginRef,
    /// Which share of the users it decides on.
    #[arg(long, value_name = "PERCENT", value_parser = Share::parse_percent)]
    percent: Share,
    /// When it is aborted by itself, such as `errors>0.1%,p99>2x,hidden>1%,shown>1%`.
    #[arg(long, value_name = "RULES")]
    abort_on: Option<AbortOn>,
    /// After how long it is promoted by itself, unless it was aborted.
    #[arg(long, value_name = "TIME", value_parser = span)]
    promote_after: Option<Duration>,
    #[command(flatten)]
    how: ChangeOptions,
}

/// Begins a canary, or changes its share.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = StoreSession::open(&args.how.config).await?;
    let name = &args.plugin.name;
    let digest = args.plugin.digest_in(&session).await?;
    let newest = session.newest_or_error()?;
    let entry = newest.chain.iter().find(|entry| entry.plugin == *name);
    let entry = entry.with_context(|| {
        format!("the pipeline has no plugin `{name}` whose place a canary could take")
    })?;
    ensure!(
        entry.digest != digest,
        "{name}@{} decides on everyone already",
        digest.short()
    );
    let before = session.canary();
    let same = before.filter(|it| it.plugin == *name && it.digest == digest);
    if let Some(other) = before.filter(|_| same.is_none()) {
        anyhow::bail!(
            "the canary {} decides on {} % of the users: `presence plugins promote` or `presence \
             plugins abort` ends it first",
            other.label(),
            other.percent
        );
    }
    let promote_after_ms = args
        .promote_after
        .map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
    let candidate = Candidate {
        plugin: name.clone(),
        digest,
        percent: args.percent,
        abort_on: match (&args.abort_on, same) {
            (Some(rules), _) => rules.clone(),
            (None, Some(same)) => same.abort_on.clone(),
            (None, None) => AbortOn::default(),
        },
        promote_after_ms: promote_after_ms.or_else(|| same?.promote_after_ms),
        started_at: same.map_or_else(clock::now_ms, |same| same.started_at),
    };
    let (named, percent) = (candidate.label(), candidate.percent);
    let why = match same {
        Some(same) => format!("canary {named}: from {} % to {percent} %", same.percent),
        None => format!("canary {named}: {percent} %"),
    };
    let chain = newest.chain.clone();
    session
        .change_to((chain, Some(candidate)), &args.how, &why, None)
        .await
}
