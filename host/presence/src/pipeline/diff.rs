//! `presence pipeline diff`

use std::path::PathBuf;

use presence_config::escape::{print, print_json};
use serde_json::json;

use super::change::StoreSession;
use super::file::PinnedPipeline;
use crate::arguments::Output;
use crate::secrets;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file.
    file: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// Prints what the file would change.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = StoreSession::open(&args.output.config).await?;
    let pinned = PinnedPipeline::read(&args.file, &args.output.config, &session).await?;
    let difference = session.difference(&pinned.chain);
    if args.output.json {
        let revision = session.newest().map(|it| it.revision);
        let chain = secrets::masked_value(json!(pinned.chain));
        print_json(json!({"revision": revision, "difference": difference, "chain": chain}))?;
    } else if difference.is_empty() {
        print("nothing changes\n")?;
    } else {
        print(difference)?;
    }
    Ok(())
}
