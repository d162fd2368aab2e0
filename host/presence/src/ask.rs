//! What the commands that ask a running processor have in common.

use presence_config::escape::{print, print_json};
use presence_kit::ConfigArg;
use presence_node::link::request_client::{self, ClientRequest};
use serde_json::Value;

use crate::tenant;

/// How the answer is wanted, and from whom.
#[derive(clap::Args)]
pub(crate) struct RequestArgs {
    /// Prints JSON: one object for each reply or event.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) config: ConfigArg,
}

/// Sends a question, and prints the answer: as JSON, or formatted by `text`.
pub(crate) fn ask_and_print(
    common: &RequestArgs,
    question: &ClientRequest,
    text: fn(&Value) -> String,
) -> anyhow::Result<()> {
    let config = tenant::load_now(&common.config)?;
    let answer = request_client::ask(&config, question)?;
    if common.json {
        print_json(answer)?;
    } else {
        print(text(&answer))?;
    }
    Ok(())
}
