//! `presence pipeline apply`

use std::path::PathBuf;

use super::change::StoreSession;
use super::file::PinnedPipeline;
use crate::confirmation::ChangeOptions;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file.
    file: PathBuf,
    #[command(flatten)]
    how: ChangeOptions,
}

/// Makes the file's pipeline the next revision.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = StoreSession::open(&args.how.config).await?;
    let pinned = PinnedPipeline::read(&args.file, &args.how.config, &session).await?;
    let chain = pinned.chain.clone();
    session.change(chain, &args.how, "", Some(&pinned)).await
}
