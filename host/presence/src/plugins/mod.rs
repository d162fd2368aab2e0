//! `presence plugins`: the plugin store, for operators.

mod activate;
mod history;
mod list;
mod push;
mod rollback;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Uploads plugins to the store. That changes nothing of what runs.
    #[command(
        after_help = "Example:\n  presence plugins push quiet.wasm\n\nIt makes the store's buckets, if they are missing."
    )]
    Push(push::Args),
    /// Lists the plugins in the store.
    #[command(after_help = "Example:\n  presence plugins list")]
    List(list::Args),
    /// Has all nodes run a plugin in the store, in the place of the one of its name.
    #[command(
        after_help = "Example:\n  presence plugins activate quiet@sha256:1b2c3d4e --why 'the new rule'\n\nThe first digits of the digest are enough. A plugin that the pipeline lacks comes into it by\n`presence pipeline apply`."
    )]
    Activate(activate::Args),
    /// Lists the revisions that changed a plugin, the oldest first.
    #[command(after_help = "Example:\n  presence plugins history quiet")]
    History(history::Args),
    /// Has all nodes run what they ran before: of one plugin, or of the whole pipeline.
    #[command(
        after_help = "Examples:\n  presence plugins rollback quiet\n  presence plugins rollback --yes"
    )]
    Rollback(rollback::Args),
}

/// Runs one of them.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match command {
            Command::Push(args) => push::run(args).await,
            Command::List(args) => list::run(args).await,
            Command::Activate(args) => activate::run(args).await,
            Command::History(args) => history::run(args).await,
            Command::Rollback(args) => rollback::run(args).await,
        }
    })
}
