//! `presence plugins abort`

use anyhow::Context as _;
use presence_config::revision::Candidate;

use super::shadow;
use crate::confirmation::ChangeOptions;
use crate::pipeline::change::StoreSession;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    how: ChangeOptions,
}

/// Aborts the canary. Without a canary, ends the shadow.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = StoreSession::open(&args.how.config).await?;
    if session.canary().is_none() && shadow::runs(&session.operator).await {
        return shadow::end(&session.operator, args.how.json).await;
    }
    let why = format!("abort the canary {}", canary(&session)?.label());
    let chain = session.newest_or_error()?.chain.clone();
    session.change(chain, &args.how, &why, None).await
}

/// The running canary.
///
/// # Errors
/// If there is none.
pub(super) fn canary(session: &StoreSession) -> anyhow::Result<&Candidate> {
    session.canary().with_context(|| {
        "no canary runs: `presence plugins canary` begins one, and `presence pipeline history` \
         says how the last one ended"
    })
}
