//! `presence`: who is online, and who may see it. Arguments in, text out: one file per
//! command.

// `println!` and `eprintln!` panic once nobody reads the output any more, as with `| head`.
#![warn(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::disallowed_methods,
        reason = "a test may panic"
    )
)]

mod arguments;
mod ask;
mod check;
mod completions;
mod config;
mod confirmation;
mod dlq;
mod explain;
mod init;
mod input;
mod manual;
mod pipeline;
mod plugins;
mod publish;
mod query;
mod record;
mod runtime;
mod secrets;
mod status;
mod tenant;
mod tenants;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use presence_config::escape;
use presence_kit::{plugin, replay};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A presence processor: connections and heartbeats become online and offline
/// events, and WebAssembly plugins decide who may see them.
#[derive(Parser)]
#[command(
    name = "presence",
    version,
    after_help = "Example:\n  presence run --config presence.toml\n\n`presence COMMAND --help` explains a command."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Which configuration a processor runs by.
#[derive(clap::Args)]
struct RunArgs {
    /// The configuration file. Without it, presence.toml in the working folder, if there is one.
    #[arg(long, env = "PRESENCE_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the processor against a NATS server, until SIGTERM or SIGINT.
    #[command(after_help = "Example:\n  presence run --config presence.toml")]
    Run(RunArgs),
    /// Makes a folder with all that a node needs: configuration, directory and plugin folder.
    #[command(
        after_help = "Example:\n  presence init site\n\nIt writes presence.toml with the default pipeline, an example of a directory.json, and\nplugins.d. Nothing that is there already is overwritten."
    )]
    Init(init::Args),
    /// Publishes what a client would: connections with their heartbeats, and other input.
    #[command(
        subcommand,
        after_help = "Examples:\n  presence pub connect 12345 --metadata '{\"device\": \"web\"}'\n  presence pub event presence.heartbeat '{\"userId\": \"12345\", \"connId\": \"c1\"}'"
    )]
    Pub(publish::Command),
    /// Prints who may see whom, as it changes.
    #[command(
        after_help = "Examples:\n  presence watch\n  presence watch --viewer 67890 --json\n\nIt listens to presence.filtered.>, until SIGTERM or SIGINT. It prints changes only: what viewers\nwere told before, `presence query` answers."
    )]
    Watch(watch::Args),
    /// Records the input of a live system, for `presence replay`.
    #[command(
        after_help = "Example:\n  presence record capture.ndjson --for 10m --redact --directory directory.redacted.json\n\nIt ends when the first of its limits is reached, or on SIGINT or SIGTERM, with a complete file."
    )]
    Record(record::Args),
    /// Runs recorded input through the processor, in virtual time and without NATS.
    #[command(
        after_help = "Examples:\n  presence replay input.ndjson\n  presence replay capture.ndjson --plugin quiet/quiet.wasm\n\nEach line is {\"at\": ms, \"subject\": …, \"data\": {…}}; each publication is printed as one.\nWith --plugin, it prints which viewers would gain and lose sight of which users."
    )]
    Replay(replay::Args),
    /// Asks a running processor what a viewer may see of users.
    #[command(
        override_usage = "presence query [OPTIONS] <VIEWER> [USER]...\n       presence query [OPTIONS] --as <VIEWER> [USER]...",
        after_help = "Examples:\n  presence query 67890 12345 22222\n  PRESENCE_NATS_USER=67890 presence query --as 67890 12345\n\nWithout users, it asks about the viewer's own contacts. With --as, it needs no more\npermissions than a viewer has (docs/use/permissions.md)."
    )]
    Query(query::Args),
    /// Explains why a viewer can or can't see a user, stage by stage.
    #[command(
        after_help = "Example:\n  presence explain 67890 12345\n\nThe processor's configuration must have `enabled = true` in [explain]."
    )]
    Explain(explain::Args),
    /// Prints what a running processor on this machine runs, and what is wrong with it.
    #[command(
        after_help = "Example:\n  presence status --config presence.toml\n\nIt asks over HTTP, at [http] listen, and also lists the files on disk that are not in force.\nThe exit code is 0 if there is an answer, ready or not: use /readyz for probes."
    )]
    Status(status::Args),
    /// Validates the configuration, the directory and the plugins.
    #[command(
        after_help = "Examples:\n  presence check --config presence.toml\n  presence check --connect --json\n\nWith --connect, it also finds out what the broker forbids this node. Nothing is published, but\nthe server logs each subject that is tried as a violation."
    )]
    Check(check::Args),
    /// Prints every key of the configuration, its value in effect, and what sets it.
    #[command(
        after_help = "Example:\n  presence config --config presence.toml\n\nSecrets are never printed. The last column marks keys that take effect at the next start only."
    )]
    Config(config::Args),
    /// Dead letters: what could not be processed, kept in a stream, listed and redriven.
    #[command(
        subcommand,
        after_help = "Example:\n  presence dlq list --reason plugin-failed"
    )]
    Dlq(dlq::Command),
    /// The stream that keeps connects and disconnects while no node runs.
    #[command(
        subcommand,
        after_help = "Example:\n  presence input init --max-bytes 4GiB --max-age 3d"
    )]
    Input(input::Command),
    /// The plugin store: plugins for all nodes, uploaded, put in force and taken back.
    #[command(
        subcommand,
        after_help = "Example:\n  presence plugins push quiet.wasm\n\nThe nodes follow the store if they have `source = \"store\"` in [plugins]."
    )]
    Plugins(plugins::Command),
    /// The pipeline in the plugin store: its revisions, and how to change it.
    #[command(
        subcommand,
        after_help = "Example:\n  presence pipeline diff pipeline.toml"
    )]
    Pipeline(pipeline::Command),
    /// The tenants of a running processor on this machine: the state of each, and why.
    #[command(
        subcommand,
        after_help = "Example:\n  presence tenants list --config presence.toml"
    )]
    Tenants(tenants::Command),
    /// For plugin authors: makes, builds, inspects, tests and measures a plugin, offline.
    #[command(
        subcommand,
        after_help = "Example:\n  presence plugin new quiet --role filter --lang typescript"
    )]
    Plugin(plugin::Command),
    /// Prints a script that makes a shell complete commands and options.
    #[command(
        after_help = "Examples:\n  presence completions bash > /etc/bash_completion.d/presence\n  presence completions zsh > /usr/local/share/zsh/site-functions/_presence"
    )]
    Completions(completions::Args),
    /// Writes the manual pages of all commands into a folder.
    #[command(
        after_help = "Example:\n  presence man /usr/local/share/man/man1\n\nPages of an earlier version are replaced."
    )]
    Man(manual::Args),
}

/// Runs the command. The exit code is 1 if it failed, and 2 if the arguments are wrong.
fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => presence_node::run(args.config.as_deref()),
        Command::Tenants(command) => tenants::run(&command),
        Command::Init(args) => init::run(&args),
        Command::Pub(command) => publish::run(&command),
        Command::Watch(args) => watch::run(&args),
        Command::Record(args) => record::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Query(args) => query::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Dlq(command) => dlq::run(&command),
        Command::Input(command) => input::run(&command),
        Command::Plugins(command) => plugins::run(&command),
        Command::Pipeline(command) => pipeline::run(&command),
        Command::Plugin(command) => plugin::run(&command),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Man(args) => manual::run(&args, Cli::command()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output has seen enough of it, as `head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            escape::eprint_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
