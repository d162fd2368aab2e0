//! `presence dlq`: dead letters, kept in a stream, listed, shown, and redriven.

mod filter;
mod init;
mod list;
mod redrive;
mod show;

use presence_config::Config;
use presence_kit::ConfigArg;
use presence_node::link::dlq_stream::DlqStream;

use crate::tenant;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Makes the JetStream stream that keeps dead letters, or changes how much it keeps.
    #[command(
        after_help = "Example:\n  presence dlq init --max-bytes 1GiB --max-age 7d\n\nThe stream is `presence-dlq`; with `[tenant] prefix = \"acme\"`, `acme-presence-dlq`. Dead letters\nthat were published before are not in it."
    )]
    Init(init::Args),
    /// Lists dead letters, the oldest first.
    #[command(
        after_help = "Example:\n  presence dlq list --reason plugin-failed --plugin quiet --since 2h\n\nThe numbers are those of the stream `presence-dlq`; `presence dlq show NUMBER` prints one."
    )]
    List(list::Args),
    /// Prints a dead letter: why the message could not be processed, and its content.
    #[command(after_help = "Example:\n  presence dlq show 17")]
    Show(show::Args),
    /// Publishes the messages of dead letters again, and says what became of each.
    #[command(
        after_help = "Examples:\n  presence dlq redrive 17 18\n  presence dlq redrive --reason plugin-failed --since 2h --yes\n\nA message that a processor accepts, or ignores since it knows of something newer, is removed\nfrom the stream; one that is refused again is replaced by its new dead letter. So it can be\nrepeated. An event that a plugin failed on is decided again if it is still its user's newest\none; nothing is published again. The exit code is 1 if a message was refused or left."
    )]
    Redrive(redrive::Args),
}

/// Runs one of the commands.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    crate::runtime::wait_for(async {
        match command {
            Command::Init(args) => init::run(args).await,
            Command::List(args) => list::run(args).await,
            Command::Show(args) => show::run(args).await,
            Command::Redrive(args) => redrive::run(args).await,
        }
    })
}

/// Which dead letters.
#[derive(clap::Args)]
pub(crate) struct StreamArgs {
    /// A stream of yours that keeps presence.dlq, in place of `presence-dlq`.
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    #[command(flatten)]
    config: ConfigArg,
}

impl StreamArgs {
    /// The configuration, and the stream.
    async fn open(&self) -> anyhow::Result<(Config, DlqStream)> {
        let config = tenant::load(&self.config).await?;
        let letters = DlqStream::connect(&config, self.stream.as_deref()).await?;
        Ok((config, letters))
    }
}
