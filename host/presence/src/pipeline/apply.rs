//! `presence pipeline apply`

use std::path::PathBuf;

use super::change::StoreSession;
use super::file::PinnedPipeline;
use crate::changing::ChangeOptions;

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
    let meant = PinnedPipeline::read(&args.file, &args.how.config, &session).await?;
    let chain = meant.chain.clone();
    session.change(chain, &args.how, "", Some(&meant)).await
}
