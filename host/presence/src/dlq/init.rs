//! `presence dlq init`

use std::time::Duration;

use presence_config::escape::print;
use presence_kit::{ConfigArg, figures};
use presence_node::link::dlq_stream::DlqStream;
use presence_node::link::stream_setup::Retention;

use crate::arguments;
use crate::tenant;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many bytes it keeps; the oldest dead letters go first.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = arguments::size)]
    max_bytes: u64,
    /// For how long it keeps one.
    #[arg(long, value_name = "TIME", default_value = "14d", value_parser = arguments::span)]
    max_age: Duration,
    /// On how many servers of a cluster it is kept.
    #[arg(long, value_name = "N", default_value_t = 1)]
    replicas: usize,
    #[command(flatten)]
    config: ConfigArg,
}

/// Makes the stream.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let config = tenant::load(&args.config).await?;
    let letters = DlqStream::connect(&config, None).await?;
    let retention = Retention {
        bytes_max: args.max_bytes,
        age_max: args.max_age,
        replicas: args.replicas,
    };
    let did = match letters.init(retention).await? {
        true => "was made",
        false => "was there",
    };
    let age = arguments::span_text(args.max_age);
    print(format_args!(
        "the stream `{}` {did}, and keeps {} of dead letters, for {age}\n",
        letters.name(),
        figures::bytes(args.max_bytes)
    ))?;
    Ok(())
}
