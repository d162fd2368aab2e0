//! `presence pipeline`: the pipeline of all nodes that follow the plugin store, as revisions.

mod apply;
pub(crate) mod change;
mod diff;
mod file;
mod history;
pub(crate) mod rollback;
mod show;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Prints the newest revision, or another one, as a file that can be applied.
    #[command(
        after_help = "Examples:\n  presence pipeline show > pipeline.toml\n  presence pipeline show 3"
    )]
    Show(show::Args),
    /// Prints what a file would change.
    #[command(
        after_help = "Example:\n  presence pipeline diff pipeline.toml\n\nThe file has [[pipeline]] sections, as presence.toml has them; anything else in it is of no\neffect. A section without a `digest` means the plugin that runs under that name; where none\ndoes, the one uploaded last, or else the built-in one."
    )]
    Diff(diff::Args),
    /// Makes a file's pipeline the next revision, and waits until every node runs it.
    #[command(
        after_help = "Example:\n  presence pipeline apply pipeline.toml --why 'hide the night shift'\n\nEvery node validates the revision before it is written; if one refuses it, nothing is\nwritten. If somebody else writes a revision meanwhile, that one holds, and this one is not\nwritten. The exit code is 1 if a node doesn't run the revision."
    )]
    Apply(apply::Args),
    /// Lists the revisions, the oldest first.
    #[command(after_help = "Example:\n  presence pipeline history --last 20")]
    History(history::Args),
    /// Makes an earlier pipeline the next revision: the one before, if none is named.
    #[command(
        after_help = "Examples:\n  presence pipeline rollback\n  presence pipeline rollback 3 --why 'too many alerts' --yes"
    )]
    Rollback(rollback::Args),
}

/// Runs one of them.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    crate::runtime::wait_for(async {
        match command {
            Command::Show(args) => show::run(args).await,
            Command::Diff(args) => diff::run(args).await,
            Command::Apply(args) => apply::run(args).await,
            Command::History(args) => history::run(args).await,
            Command::Rollback(args) => rollback::run(args).await,
        }
    })
}
