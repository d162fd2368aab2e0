//! `presence completions`: a script with which a shell completes this program's commands and
//! options.

use std::io::Write as _;

use clap_complete::Shell;
use presence_config::escape::json_output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The shell.
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(args: &Args, program: clap::Command) -> anyhow::Result<()> {
    // The script comes from this program, and is for a shell: it is written without escapes.
    Ok(json_output().write_all(&script(args.shell, program))?)
}

/// The script of a shell.
fn script(shell: Shell, mut program: clap::Command) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, "presence", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, ValueEnum as _};

    use super::*;
    use crate::Cli;

    #[test]
    fn every_shell_is_offered_every_command() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell, Cli::command())).unwrap();
            for command in Cli::command().get_subcommands() {
                let name = command.get_name();
                assert!(script.contains(name), "{shell} doesn't complete {name}");
            }
        }
    }
}
