//! `presence pipeline show`

use presence_config::escape::{line, print, print_json};
use presence_kit::text;

use super::change::StoreSession;
use crate::arguments::Output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Its number; the newest one, if none is given.
    revision: Option<u64>,
    #[command(flatten)]
    output: Output,
}

/// Prints a revision.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = StoreSession::open(&args.output.config).await?;
    let revision = match args.revision {
        Some(number) => &session.find_revision(number).await?,
        None => session.newest_or_error()?,
    };
    if args.output.json {
        print_json(serde_json::to_value(revision)?)?;
        return Ok(());
    }
    let why = match &*revision.why {
        "" => String::new(),
        why => format!(": {}", line(why)),
    };
    print(format_args!(
        "# revision {}, {} by {}{why}\n{}",
        revision.revision,
        text::time(revision.when),
        line(&revision.who),
        revision.to_toml()
    ))?;
    Ok(())
}
