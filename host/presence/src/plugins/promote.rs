//! `presence plugins promote`

use super::abort::canary;
use crate::confirmation::ChangeOptions;
use crate::pipeline::change::StoreSession;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    how: ChangeOptions,
}

/// Promotes the canary: its plugin decides on all users.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = StoreSession::open(&args.how.config).await?;
    let candidate = canary(&session)?;
    let chain = candidate.applied_to(&session.newest_or_error()?.chain);
    let why = format!("promote the canary {}", candidate.label());
    session.change(chain, &args.how, &why, None).await
}
