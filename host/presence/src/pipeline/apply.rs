//! `presence pipeline apply`

use std::path::PathBuf;

use super::change::{How, Session};
use super::file::Meant;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file.
    file: PathBuf,
    #[command(flatten)]
    how: How,
}

/// Makes it the next revision.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = Session::open(&args.how.config).await?;
    let meant = Meant::read(&args.file, &args.how.config, &session).await?;
    let chain = meant.chain.clone();
    session.change(chain, &args.how, "", Some(&meant)).await
}
