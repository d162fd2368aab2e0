//! `presence input`: the stream that connects and disconnects are taken from.

use std::time::Duration;

use presence_config::escape::print;
use presence_kit::{ConfigArg, figures};
use presence_node::link::input_stream::InputStreamAdmin;
use presence_node::link::stream_setup::Retention;

use crate::arguments;
use crate::tenant;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Makes the JetStream stream that keeps connects and disconnects, or changes how much it keeps.
    #[command(
        after_help = "Example:\n  presence input init --max-bytes 4GiB --max-age 3d --replicas 3\n\nIt is the stream that `stream` in [input] names; without that, `presence-input`, and with\n`[tenant] prefix = \"acme\"`, `acme-presence-input`. Nodes take from it once [input] names it."
    )]
    Init(Init),
}

#[derive(clap::Args)]
pub(crate) struct Init {
    /// How many bytes it keeps; the oldest messages go first, taken or not.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = arguments::size)]
    max_bytes: u64,
    /// For how long it keeps one.
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = arguments::span)]
    max_age: Duration,
    /// On how many servers of a cluster it is kept.
    #[arg(long, value_name = "N", default_value_t = 1)]
    replicas: usize,
    #[command(flatten)]
    config: ConfigArg,
}

/// Runs one of them.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    crate::runtime::wait_for(async {
        match command {
            Command::Init(args) => init(args).await,
        }
    })
}

/// Makes the stream.
async fn init(args: &Init) -> anyhow::Result<()> {
    let config = tenant::load(&args.config).await?;
    let stream = InputStreamAdmin::connect(&config).await?;
    let retention = Retention {
        bytes_max: args.max_bytes,
        age_max: args.max_age,
        replicas: args.replicas,
    };
    let did = match stream.init(retention).await? {
        true => "was made",
        false => "was there",
    };
    let name = stream.name();
    print(format_args!(
        "the stream `{name}` {did}, and keeps {} of connects and disconnects, for {}\n",
        figures::bytes(args.max_bytes),
        arguments::span_text(args.max_age)
    ))?;
    if config.input.stream.is_none() {
        print(format_args!(
            "nodes take from it once their configuration has `stream = \"{name}\"` in [input]\n"
        ))?;
    }
    Ok(())
}
