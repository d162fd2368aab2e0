//! `presence pipeline rollback`

use anyhow::Context as _;

use super::change::StoreSession;
use crate::confirmation::ChangeOptions;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The revision to go back to; the last one with another pipeline, if none is given.
    revision: Option<u64>,
    #[command(flatten)]
    how: ChangeOptions,
}

/// Makes an earlier pipeline the next revision.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = StoreSession::open(&args.how.config).await?;
    roll_back(&session, args.revision, &args.how).await
}

/// Goes back to a revision, or to the last one with another pipeline.
pub(crate) async fn roll_back(
    session: &StoreSession,
    revision: Option<u64>,
    how: &ChangeOptions,
) -> anyhow::Result<()> {
    let to = match revision {
        Some(number) => session.find_revision(number).await?,
        None => {
            let newest = session.newest_or_error()?;
            let mut earlier = session.readable().rev();
            // If the newest entry can't be read, this goes back to the newest one that can.
            let is_unreadable = session.unreadable_newest().is_some();
            let other = earlier.find(|it| is_unreadable || it.chain != newest.chain);
            let other = other.context("there is no earlier revision with another pipeline")?;
            other.clone()
        }
    };
    let why = format!("rollback to revision {}", to.revision);
    session.change(to.chain, how, &why, None).await
}
