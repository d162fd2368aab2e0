//! `presence plugins`: the plugin store, for operators.

mod abort;
mod activate;
mod canary;
mod history;
mod list;
mod promote;
mod push;
mod rollback;
mod shadow;

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
    /// Has a plugin in the store decide on a share of the users, in the place of the one of its
    /// name; or makes the share of one that does another.
    #[command(
        after_help = "Example:\n  presence plugins canary quiet@sha256:1b2c3d4e --percent 5 --abort-on 'errors>0.1%,p99>2x,hidden>1%'"
    )]
    Canary(canary::Args),
    /// Has the canary's plugin decide on everyone.
    #[command(after_help = "Example:\n  presence plugins promote")]
    Promote(promote::Args),
    /// Has the canary's plugin decide on nobody any more.
    #[command(after_help = "Example:\n  presence plugins abort --why 'users miss each other'")]
    Abort(abort::Args),
    /// Has a plugin in the store decide beside the pipeline, in the place of the one of its name,
    /// and says what would be different. Nothing of it is published.
    #[command(after_help = "Example:\n  presence plugins shadow quiet@sha256:1b2c3d4e --for 10m")]
    Shadow(shadow::Args),
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
            Command::Canary(args) => canary::run(args).await,
            Command::Shadow(args) => shadow::run(args).await,
            Command::Promote(args) => promote::run(args).await,
            Command::Abort(args) => abort::run(args).await,
            Command::History(args) => history::run(args).await,
            Command::Rollback(args) => rollback::run(args).await,
        }
    })
}
