//! `presence pipeline diff`

use std::path::PathBuf;

use presence_config::escape::{print, print_json};
use presence_kit::ConfigArg;
use serde_json::json;

use super::change::Session;
use super::file::Meant;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file.
    file: PathBuf,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArg,
}

/// Prints what it would change.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = Session::open(&args.config).await?;
    let meant = Meant::read(&args.file, &session).await?;
    let difference = session.difference(&meant.chain);
    if args.json {
        let revision = session.newest().map(|it| it.revision);
        print_json(json!({"revision": revision, "difference": difference, "chain": meant.chain}))?;
    } else if difference.is_empty() {
        print("nothing changes\n")?;
    } else {
        print(difference)?;
    }
    Ok(())
}
