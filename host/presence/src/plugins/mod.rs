//! `presence plugins`: the plugin store, for operators.

mod abort;
mod activate;
mod canary;
mod history;
mod list;
mod logs;
mod oci;
mod oci_login;
mod promote;
mod push;
mod rollback;
mod shadow;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Uploads plugins to the store. That changes nothing of what runs.
    #[command(
        after_help = "Examples:\n  presence plugins push quiet.wasm\n  presence plugins push oci://ghcr.io/acme/quiet:1.0\n\nIt makes the store's buckets, if they are missing. Credentials for registries are those of\ndocker's configuration (`docker login`)."
    )]
    Push(push::Args),
    /// Lists the plugins in the store.
    #[command(after_help = "Example:\n  presence plugins list")]
    List(list::Args),
    /// Puts an uploaded plugin in force on all nodes, in place of the one of its name.
    #[command(
        after_help = "Example:\n  presence plugins activate quiet@sha256:1b2c3d4e --why 'the new rule'\n\nThe first digits of the digest are enough. `presence pipeline apply` adds a\nplugin that the pipeline does not have yet."
    )]
    Activate(activate::Args),
    /// Starts a canary: an uploaded plugin decides on a share of the users, in place of the active
    /// one of its name. Or changes the share of the running canary.
    #[command(
        after_help = "Example:\n  presence plugins canary quiet@sha256:1b2c3d4e --percent 5 --abort-on 'errors>0.1%,p99>2x,hidden>1%'"
    )]
    Canary(canary::Args),
    /// Promotes the canary: its plugin decides on all users.
    #[command(after_help = "Example:\n  presence plugins promote")]
    Promote(promote::Args),
    /// Aborts the canary: the active plugin decides on all users again. Without a canary, ends the
    /// shadow.
    #[command(after_help = "Example:\n  presence plugins abort --why 'users miss each other'")]
    Abort(abort::Args),
    /// Runs an uploaded plugin in a shadow: it decides beside the active one, nothing of it is
    /// published, and a report says what would be different.
    #[command(
        after_help = "Examples:\n  presence plugins shadow quiet@sha256:1b2c3d4e --for 10m\n  presence plugins shadow --end"
    )]
    Shadow(shadow::Args),
    /// Prints what a plugin has logged on all nodes, and what it logs.
    #[command(
        after_help = "Examples:\n  presence plugins logs quiet\n  presence plugins logs quiet --follow --debug\n\nNodes keep the last 500 lines of all their plugins. It works without the plugin store."
    )]
    Logs(logs::Args),
    /// Lists the revisions that changed a plugin, the oldest first.
    #[command(after_help = "Example:\n  presence plugins history quiet")]
    History(history::Args),
    /// Goes back to the previous revision: of one plugin, or of the whole pipeline.
    #[command(
        after_help = "Examples:\n  presence plugins rollback quiet\n  presence plugins rollback --yes"
    )]
    Rollback(rollback::Args),
}

/// Runs one of them.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    crate::runtime::wait_for(async {
        match command {
            Command::Push(args) => push::run(args).await,
            Command::List(args) => list::run(args).await,
            Command::Logs(args) => logs::run(args).await,
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
